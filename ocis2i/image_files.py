"""The files of an image as its layers list them, for who only looks: nothing is unpacked.

The layers are read as streams, lowest first, and needed by no agent: this works on every host.
Whiteouts, opaque directories, hard and symbolic links count as they do in a container.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import field, replace
from typing import Literal

from ocis2i import tar
from ocis2i.blobs import BlobSource
from ocis2i.decompression import open_decompressed
from ocis2i.errors import ImageError, PolicyError
from ocis2i.images import Obtained, PassingBlobs, Places
from ocis2i.layers import OPAQUE_MARKER, WHITEOUT_PREFIX
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Layer

CONTENT_LIMIT = 1 << 20
_ALL_CONTENT_LIMIT = 64 << 20
_MOST_ENTRIES = 3_000_000
_MOST_LINKS = 40  # as the kernel has it (path_resolution(7))
_WHITEOUT, _OPAQUE = WHITEOUT_PREFIX.decode(), OPAQUE_MARKER.decode()

Kind = Literal["file", "directory", "link", "other"]
_KINDS: Mapping[bytes, Kind] = {
    tar.REGULAR: "file",
    tar.HARD_LINK: "file",
    tar.DIRECTORY: "directory",
    tar.SYMLINK: "link",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """A file of an image; `target` is of a link, `content` of a small file that was wanted."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    size: int = 0
    target: str = ""
    content: bytes | None = field(default=None, repr=False)


_ROOT = Entry("directory", 0o755, 0, 0)


@dataclass(frozen=True, slots=True)
class Tree:
    """All files of an image, by path without the first slash."""

    entries: Mapping[str, Entry]

    def resolve(self, path: str) -> str | None:
        """Where `path` leads, links followed below the root; `None`: to nothing."""
        waiting = [part for part in path.split("/")[::-1] if part not in ("", ".")]
        here: list[str] = []
        links = 0
        while waiting:
            part = waiting.pop()
            if part == "..":
                here = here[:-1]
                continue
            joined = "/".join((*here, part))
            entry = self.entries.get(joined)
            if entry is None:
                return None
            if entry.kind != "link":
                if waiting and entry.kind != "directory":
                    return None
                here.append(part)
                continue
            links += 1
            if links > _MOST_LINKS:
                return None
            if entry.target.startswith("/"):
                here = []
            waiting += [one for one in entry.target.split("/")[::-1] if one not in ("", ".")]
        return "/".join(here)

    def find(self, path: str) -> Entry | None:
        """What is at `path`, links followed."""
        where = self.resolve(path)
        return (
            None if where is None else (self.entries.get(where) or (_ROOT if not where else None))
        )

    def below(self, path: str) -> Iterator[tuple[str, Entry]]:
        """The directory `path` and all in it, by absolute path, links not followed."""
        where = self.resolve(path)
        if where is None:
            return
        for name, entry in sorted(self.entries.items()):
            if name == where or not where or name.startswith(f"{where}/"):
                yield f"/{name}", entry


def read_tree(found: Obtained, places: Places, wanted: Callable[[str], bool]) -> Tree:
    """The tree of an image, with the content of small files whose absolute path is `wanted`.

    What the store lacks is fetched, and not kept. Raises `ImageError`, `RegistryError`, and
    `PolicyError` for an image without end.
    """
    blobs = PassingBlobs(places, found.origin)
    entries: dict[str, Entry] = {}
    room = _ALL_CONTENT_LIMIT
    for layer in found.image.layers:
        reader = _LayerReader(wanted, room)
        reader.read(layer, blobs)
        room = reader.room
        entries = merge(entries, reader)
        if len(entries) > _MOST_ENTRIES:
            raise PolicyError(
                f"`{found.name}` has more than {_MOST_ENTRIES} files",
                hint="it is a fixed limit: take a smaller image",
            )
    return Tree(entries)


class _LayerReader:
    """One layer: what it adds, and what of the layers below it hides."""

    def __init__(self, wanted: Callable[[str], bool], room: int) -> None:
        self._wanted = wanted
        self.room = room
        self.entries: dict[str, Entry] = {}
        self.removed: set[str] = set()
        self.opaque: set[str] = set()
        self.hard_links: dict[str, str] = {}

    def read(self, layer: Layer, blobs: BlobSource) -> None:
        """Reads all of it, so that its digest is checked."""
        descriptor = layer.descriptor
        what = f"the layer `{descriptor.digest}`"
        with (
            closing(blobs.open_blob(descriptor)) as blob,
            open_decompressed(blob, descriptor.media_type, what=what) as stream,
        ):
            archive = tar.Reader(stream)
            try:
                while (header := archive.next()) is not None:
                    self._note(header, archive)
                archive.drain()
            except tar.TarError as error:
                raise ImageError(f"{what} is broken: {error}") from error
            while blob.read(1 << 20):
                pass

    def _note(self, header: tar.Header, archive: tar.Reader) -> None:
        if len(self.entries) > _MOST_ENTRIES:
            raise PolicyError(
                f"a layer has more than {_MOST_ENTRIES} files",
                hint="it is a fixed limit: take a smaller image",
            )
        path = _clean(header.name)
        if path is None:
            return
        directory, name = posixpath.split(path)
        if name == _OPAQUE:
            self.opaque.add(directory)
            return
        if name.startswith(_WHITEOUT):
            self.removed.add(posixpath.join(directory, name.removeprefix(_WHITEOUT)))
            return
        if header.kind == tar.HARD_LINK:
            self.hard_links[path] = _clean(header.target) or ""
        self.entries[path] = Entry(
            _KINDS.get(header.kind, "other"),
            header.mode,
            header.uid,
            header.gid,
            header.size,
            _text(header.target) if header.kind == tar.SYMLINK else "",
            self._content(path, header, archive),
        )

    def _content(self, path: str, header: tar.Header, archive: tar.Reader) -> bytes | None:
        size = header.size
        if header.kind != tar.REGULAR or size > min(CONTENT_LIMIT, self.room):
            return None
        if not self._wanted(f"/{path}"):
            return None
        self.room -= size
        parts = []
        while part := archive.read(1 << 16):
            parts.append(part)
        return b"".join(parts)


def merge(below: Mapping[str, Entry], layer: _LayerReader) -> dict[str, Entry]:
    """The tree with one more layer on it."""
    gone = layer.removed | {
        path
        for path, entry in layer.entries.items()
        if entry.kind != "directory" and path in below and below[path].kind == "directory"
    }
    merged = {
        path: entry for path, entry in below.items() if not _is_hidden(path, gone, layer.opaque)
    }
    merged.update(layer.entries)
    for path, target in layer.hard_links.items():
        if (original := merged.get(target)) is not None:
            merged[path] = replace(original)
    return merged


def _is_hidden(path: str, gone: set[str], opaque: set[str]) -> bool:
    if not gone and not opaque:
        return False
    if path in gone:
        return True
    parent = path
    while parent:
        parent = posixpath.dirname(parent)
        if parent in opaque or (parent and parent in gone):
            return True
    return False


def _clean(name: bytes) -> str | None:
    """A path as it is in the image; `None` for the root itself and for what leads out of it."""
    parts = [part for part in _text(name).split("/") if part not in ("", ".")]
    return None if not parts or ".." in parts else "/".join(parts)


def _text(data: bytes) -> str:
    return data.decode(errors="surrogateescape")
