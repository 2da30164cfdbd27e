"""A source that is an artifact in a registry: what `ocis2i upload`, or `oras push`, has put there.

What `oras pull` would write into an empty directory is the source. A blob is fetched and checked
before anything of it is unpacked.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ocis2i.errors import ImageError, SourceError, shown
from ocis2i.events import Report
from ocis2i.images import Places, meant
from ocis2i.lazy_dataclass import dataclass
from ocis2i.oci_artifacts import (
    REVISION,
    SCHEME,
    Artifact,
    ArtifactFile,
    decode_artifact,
    files_of,
)
from ocis2i.reference import Reference, RegistryLocation
from ocis2i.registry import Registry
from ocis2i.s2i import SourceInfo
from ocis2i.settings import Settings
from ocis2i.sources.archive import COMMIT_ID, add_archive, open_file
from ocis2i.sources.ignore import DEFAULT_EXCLUDE
from ocis2i.sources.local import CopyOrder, DirectoryFacts, Fetched, copy_tree
from ocis2i.sources.paths import open_directory
from ocis2i.sources.single import inspect
from ocis2i.sources.unpacking import Member, Unpacker, too_large


@dataclass(frozen=True, slots=True)
class ArtifactSource:
    """An artifact by its tag or digest."""

    location: RegistryLocation
    context_dir: str = ""
    exclude: str = DEFAULT_EXCLUDE
    keep_symlinks: bool = False

    def __str__(self) -> str:
        return f"{SCHEME}{self.location.reference.with_default_tag()}"


def fetch_artifact(
    source: ArtifactSource,
    into: Path,
    *,
    places: Places | None,
    settings: Settings,
    report: Report,
) -> Fetched:
    """Puts the files of an artifact into the empty directory `into`.

    Raises `SourceError` for what is no artifact with files, `PolicyError` for one that is larger
    than a layer may be, and `RegistryError`.
    """
    if places is None:
        raise SourceError(f"`{source}` is in a registry, and nothing here speaks to one")
    reference = meant(source.location, places)
    places.policy.check_registry(reference)
    registry = places.registry
    try:
        name = str(reference)
        artifact = decode_artifact(registry.get_manifest(reference), name)
        files = files_of(artifact, name)
    except ImageError as error:
        raise SourceError(error.message, hint=error.hint) from error
    with tempfile.TemporaryDirectory(
        dir=into.parent, prefix="artifact-", ignore_cleanup_errors=True
    ) as scratch:
        root = Path(scratch) / "source"
        root.mkdir(0o700)
        limit = settings.layer_limit
        if sum(file.blob.size for file in files) > limit:
            raise too_large(f"`{source}`", limit)
        directories = _unpack(reference, files, root, registry, limit)
        single = _single(root, files)
        order = CopyOrder(
            source.context_dir,
            source.exclude,
            links="keep" if source.keep_symlinks else "confine",
            unpacked=directories,
            followed_limit_bytes=limit,
        )
        ignored = copy_tree(root, into, order, report)
    info = _info(source, reference, artifact)
    if single and (into / single.file_name).exists():
        info = replace(
            info,
            file_name=single.file_name,
            file_sha256=single.file_sha256,
            file_kind=single.file_kind,
            file_architecture=single.file_architecture,
        )
    return Fetched(info, ignored)


def _single(root: Path, files: tuple[ArtifactFile, ...]) -> SourceInfo | None:
    """What an artifact of one program, jar or war is, which gets the mode that it takes to run."""
    if len(files) != 1 or files[0].unpack or "/" in files[0].path:
        return None
    path = root / files[0].path
    try:
        with open_file(path, f"`{shown(files[0].path)}`") as file:
            found = inspect(file, files[0].path, f"`{shown(files[0].path)}`")
    except SourceError:
        return None  # as data: somebody has put it there as it is
    if found is None:
        return None
    path.chmod(found.mode)
    return SourceInfo(
        file_name=files[0].path,
        file_sha256=files[0].blob.digest.hex if files[0].blob.digest.algorithm == "sha256" else "",
        file_kind=found.kind,
        file_architecture=found.architecture,
    )


def _info(source: ArtifactSource, reference: Reference, artifact: Artifact) -> SourceInfo:
    pinned = replace(reference, tag=None, digest=artifact.descriptor.digest)
    revision = artifact.annotations.get(REVISION, "")
    return SourceInfo(
        location=f"{SCHEME}{pinned}",
        commit_id=revision if COMMIT_ID.fullmatch(revision) else "",
        context_dir=source.context_dir,
    )


def _unpack(
    reference: Reference,
    files: tuple[ArtifactFile, ...],
    root: Path,
    registry: Registry,
    limit_bytes: int,
) -> Mapping[str, DirectoryFacts]:
    where = f"`{SCHEME}{reference}`"
    with (
        open_directory(root) as root_fd,
        Unpacker(root_fd, where, limit_bytes=limit_bytes, replace=True) as unpacker,
    ):
        for file in files:
            with _fetched(reference, file, registry, root.parent) as content:
                if file.unpack:
                    add_archive(content, unpacker, where, limit_bytes)
                else:
                    unpacker.add(_member(file, content), content.read)
        return unpacker.directories


@contextmanager
def _fetched(
    reference: Reference, file: ArtifactFile, registry: Registry, scratch: Path
) -> Iterator[BinaryIO]:
    with tempfile.TemporaryFile(dir=scratch) as content:
        registry.fetch_blob(reference, file.blob, content)
        content.seek(0)
        yield content


def _member(file: ArtifactFile, content: BinaryIO) -> Member:
    # An artifact knows no times of its files; that of now is what a download has.
    return Member(
        file.path,
        "file",
        0o755 if file.executable else 0o644,
        os.fstat(content.fileno()).st_mtime_ns,
        file.blob.size,
    )
