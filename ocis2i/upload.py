"""A source goes into a registry as an artifact, to be built from there.

A tree becomes one compressed tar, such as `oras pull` unpacks too: sorted, owned by root, times in
whole seconds. So the same tree has the same digest, and a git commit has one digest everywhere: its
files have the commit's time. A file of its own stays as it is.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from ocis2i import tar
from ocis2i.blobs import CHUNK
from ocis2i.compression import Compression, compress
from ocis2i.errors import SourceError, UsageError, shown
from ocis2i.events import Report, stage
from ocis2i.fs import remove_tree
from ocis2i.images import Places
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import OCI_LAYER_GZIP, Descriptor, format_time
from ocis2i.oci_artifacts import (
    CONTENT_DIGEST,
    CREATED,
    EXECUTABLE,
    FILE_TYPE,
    REVISION,
    SOURCE_TYPE,
    SOURCE_URL,
    TITLE,
    UNPACK,
)
from ocis2i.rebuild import is_remote
from ocis2i.reference import Reference
from ocis2i.settings import Settings
from ocis2i.sources import Source, SourceInfo, fetch

_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class FileSource:
    """One file that is uploaded as it is, a program or a jar as a rule.

    `name` is what it is called in place of its own name.
    """

    path: Path
    name: str | None = None


def check_target(reference: Reference) -> Reference:
    """Where an artifact may be pushed to; raises `UsageError` for a digest."""
    if reference.digest:
        raise UsageError(
            f"the artifact cannot be named `{reference}`: its digest is not known yet",
            hint="leave out the part from `@` on",
        )
    return reference.with_default_tag()


def upload(
    source: Source | FileSource,
    target: Reference,
    places: Places,
    *,
    settings: Settings,
    report: Report,
    stdin: BinaryIO | None = None,
) -> Descriptor:
    """Pushes a source to the tag `target`; the descriptor of its manifest.

    What goes in is what a build would take of `source`. Raises `SourceError` and `RegistryError`.
    """
    # What takes a fifth of a second to load is for artifacts alone.
    from ocis2i.oras_client import Part, push_artifact  # noqa: PLC0415

    with places.store.in_use(), _workplace(places) as directory:
        if isinstance(source, FileSource):
            said = _of_file(source.path, source.name)
            part, annotations = Part(source.path, FILE_TYPE, said), {}
        else:
            root = directory / "src"
            root.mkdir(0o700)
            with stage(report, "fetch"):
                tree = fetch(
                    source,
                    root,
                    settings=settings,
                    report=report,
                    stdin=stdin,
                    places=places,
                )
            path = root / tree.info.file_name
            if tree.info.file_name and path.is_file():
                # From standard input or over HTTP: what is one file stays one.
                part = Part(path, FILE_TYPE, _of_file(path))
            else:
                latest = tree.info.commit_time or settings.source_date_epoch
                path = directory / "layer"
                digest = _pack(root, path, exact=tree.info.commit_time, latest=latest)
                part = Part(path, OCI_LAYER_GZIP, _of_tree(digest))
            annotations = annotations_of(tree.info)
        with stage(report, "push", str(target)):
            pushed = push_artifact(
                places.registry, target, SOURCE_TYPE, [part], annotations=annotations
            )
    return pushed.descriptor


@contextmanager
def _workplace(places: Places) -> Iterator[Path]:
    """A directory in the store, which `prune` removes if we cannot."""
    with places.store.new_build() as (directory, _):
        try:
            yield directory
        finally:
            remove_tree(directory)


# --- what is said of it -------------------------------------------------------------------------


def annotations_of(info: SourceInfo) -> dict[str, str]:
    """What the manifest says of where the source came from (image-spec, annotations.md).

    Paths of this host are nobody else's affair.
    """
    said = {
        REVISION: info.commit_id,
        SOURCE_URL: info.location if is_remote(info.location) else "",
        CREATED: "",
    }
    if info.commit_time is not None:
        said[CREATED] = format_time(datetime.fromtimestamp(info.commit_time, UTC))
    return {key: text for key, text in said.items() if text}


def _of_tree(tar_digest: str) -> dict[str, str]:
    return {TITLE: ".", UNPACK: "true", CONTENT_DIGEST: tar_digest}


def title_of(path: Path) -> str:
    """The name that a file has in an artifact; raises `SourceError` when JSON cannot hold it."""
    try:
        return path.name.encode().decode()
    except UnicodeError:
        raise SourceError(f"the name `{shown(path.name)}` is not UTF-8", hint="rename it") from None


def _of_file(path: Path, name: str | None = None) -> dict[str, str]:
    try:
        executable = path.stat().st_mode & stat.S_IXUSR
    except OSError as error:
        raise SourceError(
            f"cannot read `{shown(str(path))}`: {error.strerror}", hint="let this user read it"
        ) from error
    title = title_of(path if name is None else Path(name))
    return {TITLE: title} | ({EXECUTABLE: "true"} if executable else {})


# --- one tar ------------------------------------------------------------------------------------


def _pack(root: Path, path: Path, *, exact: int | None, latest: int | None) -> str:
    """Writes the tree of `root` to the compressed tar `path`; the digest of the tar inside."""
    pieces = _Pieces(tar_of(root, exact=exact, latest=latest))
    with path.open("wb") as out:
        written = compress(pieces, out, compression=Compression.GZIP)
    return str(written.diff_id)


def tar_of(root: Path, *, exact: int | None = None, latest: int | None = None) -> Iterator[bytes]:
    """The tree of a directory of our own as a tar.

    All times in it are `exact`, or `latest` at most; both are in seconds since 1970.
    """
    for name, path in _sorted(root, b""):
        status = path.lstat()
        seconds = status.st_mtime_ns // _NS if exact is None else exact
        if latest is not None:
            seconds = min(seconds, latest)
        header = _header(name, path, status, seconds * _NS)
        yield tar.encode_header(header)
        if header.kind == tar.REGULAR:
            yield from _content(path, header.size)
    yield tar.END


def _sorted(directory: Path, prefix: bytes) -> Iterator[tuple[bytes, Path]]:
    """All below a directory in byte order, directories before what is in them."""
    for path in sorted(directory.iterdir(), key=lambda one: os.fsencode(one.name)):
        name = prefix + os.fsencode(path.name)
        if path.is_dir() and not path.is_symlink():
            yield name + b"/", path
            yield from _sorted(path, name + b"/")
        else:
            yield name, path


def _header(name: bytes, path: Path, status: os.stat_result, mtime_ns: int) -> tar.Header:
    mode = stat.S_IMODE(status.st_mode)
    if stat.S_ISLNK(status.st_mode):
        target = os.fsencode(path.readlink())
        return tar.Header(name, tar.SYMLINK, 0o777, 0, 0, 0, mtime_ns, target)
    if stat.S_ISDIR(status.st_mode):
        return tar.Header(name, tar.DIRECTORY, mode, 0, 0, 0, mtime_ns)
    return tar.Header(name, tar.REGULAR, mode, 0, 0, status.st_size, mtime_ns)


def _content(path: Path, size: int) -> Iterator[bytes]:
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            yield data
    yield tar.padding(size)


class _Pieces:
    """Bytes that come in pieces, as a stream."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._ahead = b""

    def read(self, size: int = -1, /) -> bytes:
        while not self._ahead:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._ahead = piece
        if size < 0:
            size = len(self._ahead)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return data

    def close(self) -> None:
        pass
