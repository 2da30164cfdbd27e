"""What an OCI artifact is: a manifest that points at files and not at an image. No input or output.

Read is what image-spec 1.1 says of artifacts (manifest.md) and what `oras` has pushed since before
it: the kind of an artifact is its `artifactType`, or else the media type of its config.
"""

from __future__ import annotations

from collections.abc import Mapping

from ocis2i.errors import ImageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    Descriptor,
    Index,
    Json,
    Manifest,
    encode_descriptor,
    encode_json,
    parse_json,
)
from ocis2i.reference import Digest

# How a source names an artifact: what follows is a reference.
SCHEME = "oci-artifact://"
SOURCE_TYPE = "application/vnd.ocis2i.source.v1"
CACHE_TYPE = "application/vnd.ocis2i.build-cache.v1"
FILE_TYPE = "application/octet-stream"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
EMPTY = b"{}"
EMPTY_CONFIG = Descriptor(EMPTY_TYPE, Digest.of(EMPTY), len(EMPTY))

# The annotations of image-spec (annotations.md), and those by which `oras` knows a directory.
TITLE = "org.opencontainers.image.title"
REVISION = "org.opencontainers.image.revision"
SOURCE_URL = "org.opencontainers.image.source"
CREATED = "org.opencontainers.image.created"
UNPACK = "io.deis.oras.content.unpack"
CONTENT_DIGEST = "io.deis.oras.content.digest"
# What no annotation of others says: whether a file may be executed.
EXECUTABLE = "io.ocis2i.source.executable"
CACHE_KEY = "io.ocis2i.cache.key"
CACHE_EXPIRES = "io.ocis2i.cache.expires"

_IMAGE_CONFIGS = (OCI_CONFIG, DOCKER_CONFIG)


@dataclass(frozen=True, slots=True)
class Artifact:
    """An artifact as it was read; `kind` is a media type that says what it is for."""

    kind: str
    descriptor: Descriptor
    blobs: tuple[Descriptor, ...]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ArtifactFile:
    """A file of an artifact, or with `unpack` a tar of files; `path` is a stranger's word."""

    path: str
    blob: Descriptor
    unpack: bool
    executable: bool


def decode_artifact(found: Manifest | Index, name: str) -> Artifact:
    """What a manifest says as an artifact; raises `ImageError` when `name` is something else."""
    if isinstance(found, Index):
        raise ImageError(
            f"`{name}` is an index of images, not an artifact",
            hint="name the artifact itself, by its tag or digest",
        )
    if found.config.media_type in _IMAGE_CONFIGS:
        raise ImageError(
            f"`{name}` is a container image, not an artifact",
            hint="`ocis2i upload` and `oras push` make artifacts",
        )
    kind = parse_json(found.raw, "the manifest").get("artifactType") or found.config.media_type
    if not isinstance(kind, str):
        raise ImageError(f"`artifactType` of `{name}` must be text")
    blobs = tuple(blob for blob in found.layers if blob.media_type != EMPTY_TYPE)
    return Artifact(kind, found.descriptor, blobs, found.annotations)


def files_of(artifact: Artifact, name: str) -> tuple[ArtifactFile, ...]:
    """The files that `oras pull` would write: those with a title. Raises `ImageError` for none."""
    files = tuple(
        ArtifactFile(
            path=title,
            blob=blob,
            unpack=blob.annotations.get(UNPACK) == "true",
            executable=blob.annotations.get(EXECUTABLE) == "true",
        )
        for blob in artifact.blobs
        if (title := blob.annotations.get(TITLE))
    )
    if not files:
        raise ImageError(
            f"the artifact `{name}` of type `{artifact.kind}` has no files",
            hint=f"each of its blobs needs a name, in the annotation `{TITLE}`",
        )
    return files


# --- referrers ----------------------------------------------------------------------------------


def fallback_tag(subject: Digest) -> str:
    """The tag of the referrers of `subject` where a registry keeps no list of its own.

    (distribution-spec, "Referrers Tag Schema".)
    """
    return f"{subject.algorithm[:32]}-{subject.hex[:64]}"


def referrer_type(referrer: Descriptor) -> str:
    """What kind of artifact a descriptor of a list of referrers is; empty when it does not say."""
    kind = referrer.extra.get("artifactType", "")
    return kind if isinstance(kind, str) else ""


def add_to_index(known: Index | None, referrer: Descriptor) -> bytes | None:
    """An index with `referrer` at its end; `None` when it is in `known` already."""
    if known and any(one.digest == referrer.digest for one in known.manifests):
        return None
    document: Json = parse_json(known.raw, "the index") if known else {}
    manifests = [*document.get("manifests", ()), encode_descriptor(referrer)]
    return encode_json(
        document | {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": manifests}
    )
