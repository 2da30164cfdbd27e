"""What save-artifacts wrote, in a registry: for builders that keep nothing between two builds.

The cache of a build is an artifact of its own. It belongs to the name of the result, the builder,
the scripts and the platform: their key is its tag, unless the user gives one, and stands in it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from ocis2i.blobs import CHUNK
from ocis2i.compression import Compression, compress
from ocis2i.errors import ImageError, PolicyError
from ocis2i.images import Obtained, Places
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import OCI_LAYER_ZSTD, format_time
from ocis2i.net import RequestError
from ocis2i.oci_artifacts import (
    CACHE_EXPIRES,
    CACHE_KEY,
    CACHE_TYPE,
    Artifact,
    decode_artifact,
)
from ocis2i.reference import Digest, Reference
from ocis2i.scripts import ScriptPlace

DEFAULT_TTL_SECONDS = 14 * 24 * 3600


@dataclass(frozen=True, slots=True)
class CacheSpec:
    """Where the artifacts of the last build are read from, and those of this one written to.

    What is written now counts for `ttl_seconds`.
    """

    now: datetime
    read: Reference | None = None
    write: Reference | None = None
    ttl_seconds: float = DEFAULT_TTL_SECONDS


@dataclass(frozen=True, slots=True)
class CacheEntry:
    """The cache of one build: what it must say of itself, and where it is."""

    spec: CacheSpec
    key: str

    @property
    def source(self) -> Reference | None:
        """The artifact to read."""
        return _keyed(self.spec.read, self.key)

    @property
    def target(self) -> Reference | None:
        """The tag to write to."""
        return _keyed(self.spec.write, self.key)


def cache_key(name: Reference | None, builder: Obtained, scripts: Iterable[ScriptPlace]) -> str:
    """What the artifacts of one build have in common with those that another may go on from.

    Of the image's own scripts the digest of the image says enough.
    """
    parts = [
        name.name if name else "",
        str(builder.manifest.descriptor.digest),
        str(builder.image.config.platform),
        *([one.name, one.path_in_image, _content(one)] for one in scripts),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _content(script: ScriptPlace) -> str:
    return hashlib.sha256(script.file.read_bytes()).hexdigest() if script.file else ""


def _keyed(reference: Reference | None, key: str) -> Reference | None:
    if reference is None or reference.tag or reference.digest:
        return reference
    return replace(reference, tag=f"cache-{key[:32]}")


def read_cache(
    entry: CacheEntry, source: Reference, places: Places, into: BinaryIO, *, size_limit: int
) -> Digest:
    """Writes the tar of the cache `source` to `into`; the digest of the artifact.

    Raises `RegistryError` when it cannot be had, `ImageError` when it is no cache, that of another
    build, or damaged, and `PolicyError` when it has expired, is too large or forbidden.
    """
    places.policy.check_registry(source)
    try:
        found = decode_artifact(places.registry.get_manifest(source), str(source))
    except RequestError as error:
        if error.status != 404:
            raise
        raise ImageError(f"there is none yet at `{source}`") from error
    _check(found, entry, source)
    (blob,) = found.blobs
    what = f"the cache `{source}`"
    if blob.size > size_limit:
        raise PolicyError(f"{what} has {blob.size} bytes, the limit is {size_limit}")
    from ocis2i.decompression import open_decompressed  # noqa: PLC0415 - few builds have one

    with places.store.scratch_file() as fetched:
        places.registry.fetch_blob(source, blob, fetched)
        fetched.seek(0)
        reader = open_decompressed(fetched, blob.media_type, limit=size_limit, what=what)
        while data := reader.read(CHUNK):
            into.write(data)
    into.flush()
    into.seek(0)
    return found.descriptor.digest


def _check(found: Artifact, entry: CacheEntry, source: Reference) -> None:
    if found.kind != CACHE_TYPE or len(found.blobs) != 1:
        raise ImageError(f"`{source}` is no cache of a build, but an artifact of `{found.kind}`")
    if found.annotations.get(CACHE_KEY) != entry.key:
        raise ImageError(
            f"the cache `{source}` is that of another name, builder, platform or other scripts"
        )
    written = found.annotations.get(CACHE_EXPIRES, "")
    try:
        expires = datetime.fromisoformat(written)
        is_over = expires <= entry.spec.now
    except (ValueError, TypeError):  # the latter for a time without a zone
        raise ImageError(f"the cache `{source}` does not say until when it counts") from None
    if is_over:
        raise PolicyError(f"the cache `{source}` has expired: it counted until {written}")


def write_cache(entry: CacheEntry, target: Reference, places: Places, tar: BinaryIO) -> Digest:
    """Pushes the tar, from where it stands, as the cache `target`; the digest of the artifact.

    Raises `RegistryError`.
    """
    # What takes a fifth of a second to load is for artifacts alone.
    from ocis2i.oras_client import Part, push_artifact  # noqa: PLC0415

    expires = entry.spec.now + timedelta(seconds=entry.spec.ttl_seconds)
    annotations = {CACHE_KEY: entry.key, CACHE_EXPIRES: format_time(expires)}
    with places.store.scratch_file() as packed:
        compress(tar, packed, compression=Compression.ZSTD)
        packed.flush()
        part = Part(Path(str(packed.name)), OCI_LAYER_ZSTD)
        pushed = push_artifact(places.registry, target, CACHE_TYPE, [part], annotations=annotations)
    return pushed.descriptor.digest
