"""What an image's layers change, read from their tars, or of layers below from the unpacked ones.

The base of an image that was pulled for a build is only there unpacked. What matters of it are the
few paths that the layers above touch: these are looked up, one by one, and nothing is followed.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from ocis2i import tar
from ocis2i.agent.tree import ESCAPED_XATTR, OPAQUE_XATTR, OVERLAY_XATTR
from ocis2i.archives import open_image
from ocis2i.blobs import CHUNK, BlobSource
from ocis2i.decompression import DiffIdReader, open_decompressed
from ocis2i.differences import (
    CAPABILITY,
    Change,
    Facts,
    LayerFacts,
    ancestors,
    compare,
    compare_trees,
    interest,
    marks_of,
    merge,
)
from ocis2i.errors import ImageError, Ocis2iError, PolicyError
from ocis2i.images import PassingBlobs, Places, inspect
from ocis2i.layers import WHITEOUT_PREFIX
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Image, Layer, decode_image
from ocis2i.reference import (
    Digest,
    Location,
    PathLocation,
    Platform,
    RegistryLocation,
)
from ocis2i.store import LayerRecord, Store
from ocis2i.transfer import RegistryImage

# What the history of an image calls a layer of ours (`ocis2i.result`).
MADE_BY_US = "ocis2i build"
# Some 400 bytes of memory each; ten times what a big application has.
ENTRY_LIMIT = 2_000_000

_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

Wanted = Callable[[bytes], bool]


@dataclass(frozen=True, slots=True)
class Opened:
    """An image whose blobs can be read; `local` where an unpacked layer of the store may stand."""

    name: str
    digest: Digest
    image: Image
    blobs: BlobSource
    local: Store | None


@dataclass(frozen=True, slots=True)
class ImageDifference:
    """What `layers`, the lowest first, make of the image below them.

    `base` is the name of the image it was held against; `None` for the layers below our own.
    """

    name: str
    digest: Digest
    base: str | None
    layers: tuple[Layer, ...]
    changes: list[Change]


@contextmanager
def opened(
    location: Location, platform: Platform | None, places: Places, *, offline: bool = False
) -> Iterator[Opened]:
    """The image at `location`, readable until the end of the `with`. Raises `ImageError`."""
    seen = inspect(location, platform, places)
    if seen.manifest is None:
        raise ImageError(
            f"`{seen.name}` is an index, and has no image for this host here",
            hint="choose one with --platform",
        )
    image = decode_image(seen.manifest, seen.config)
    digest = seen.manifest.descriptor.digest
    with ExitStack() as cleanup:
        blobs: BlobSource
        local = None
        match location:
            case PathLocation():
                blobs = cleanup.enter_context(open_image(location))
            case RegistryLocation(reference, explicit=True):
                reference = reference.with_default_tag()
                places.policy.check_registry(reference)
                blobs = RegistryImage(places.registry, reference)
            case _:
                local = places.store
                blobs = PassingBlobs(places, None if offline else local.origin(digest))
        yield Opened(seen.name, digest, image, blobs, local)


def image_difference(
    location: Location,
    base: Location | None,
    platform: Platform | None,
    places: Places,
    *,
    offline: bool = False,
) -> ImageDifference:
    """What an image changes of its `base`; without one, what the layer that ocis2i made does.

    Where the base's layers are the lower ones of the image, only those above are read whole; else
    both images are. `offline`: no registry is asked for what the store lacks. Raises `ImageError`
    when nothing says where the base ends, or for a broken layer, `PolicyError` for more entries
    than a diff can hold.
    """
    with ExitStack() as cleanup:
        image = cleanup.enter_context(opened(location, platform, places, offline=offline))
        other = cleanup.enter_context(opened(base, platform, places)) if base else None
        if other is None:
            below = _below_ours(image)
        elif (shared := _shared(image.image, other.image)) == len(other.image.layers):
            below = shared
        else:
            changes = compare_trees(_tree(other), _tree(image))
            layers = image.image.layers[shared:]
            return ImageDifference(image.name, image.digest, other.name, layers, changes)
        upper = image.image.layers[below:]
        changes = _changes(image, below)
    return ImageDifference(image.name, image.digest, other.name if other else None, upper, changes)


def unheld_changes(location: Location, places: Places) -> list[Change]:
    """All that is in the layer of ocis2i, as if it were new; for when its base cannot be read."""
    with opened(location, None, places, offline=True) as image:
        below = _below_ours(image)
        budget = _Budget()
        read = [_read(image.blobs, layer, None, budget) for layer in image.image.layers[below:]]
    return compare(merge(read), {})


def changes_of_layer(layer: Layer, blobs: BlobSource) -> list[Change]:
    """All that is in one layer, as if it were new. Raises `ImageError` for a broken one."""
    return compare(merge([_read(blobs, layer, None, _Budget())]), {})


def _below_ours(opened: Opened) -> int:
    """How many layers lie below the one of our own."""
    lines = [line for line in opened.image.config.history if not line.empty_layer]
    layers = opened.image.layers
    if not layers or len(lines) != len(layers) or lines[-1].fields.get("comment") != MADE_BY_US:
        raise ImageError(
            f"`{opened.name}` was not built by ocis2i: nothing says where its base ends",
            hint="name the base too: ocis2i diff IMAGE BASE",
        )
    return len(layers) - 1


def _shared(one: Image, other: Image) -> int:
    """How many layers two images have alike, counted from the lowest."""
    number = 0
    for left, right in zip(one.diff_ids, other.diff_ids, strict=False):
        if left != right:
            break
        number += 1
    return number


def _changes(image: Opened, below: int) -> list[Change]:
    layers = image.image.layers
    budget = _Budget()
    top = merge([_read(image.blobs, layer, None, budget) for layer in layers[below:]])
    wanted = interest(top)
    lower = [_lower(image, layer, top, wanted, budget) for layer in layers[:below]]
    return compare(top, merge(lower).entries)


def _tree(image: Opened) -> dict[bytes, Facts]:
    budget = _Budget()
    layers = image.image.layers
    read = [_read(image.blobs, layer, None, budget, with_content=True) for layer in layers]
    return merge(read).entries


class _Budget:
    """Counts what is kept of all layers, so that no image fills the memory."""

    def __init__(self) -> None:
        self._left = ENTRY_LIMIT

    def spend(self, what: str) -> None:
        self._left -= 1
        if self._left < 0:
            raise PolicyError(
                f"{what} brings the entries to compare to more than {ENTRY_LIMIT}",
                hint="name a base that has its lower layers, so that only the upper ones are read",
            )


def _read(
    blobs: BlobSource,
    layer: Layer,
    wanted: Wanted | None,
    budget: _Budget,
    *,
    with_content: bool = False,
) -> LayerFacts:
    """The members of a layer's blob: all, or those that are `wanted`."""
    facts = LayerFacts()
    what = f"layer `{layer.descriptor.digest}`"
    with (
        blobs.open_blob(layer.descriptor) as blob,
        open_decompressed(blob, layer.descriptor.media_type, what=what) as plain,
    ):
        stream = DiffIdReader(plain, what=what)
        # A header is 512 bytes: buffered, small reads do not go down to the decoder.
        reader = tar.Reader(io.BufferedReader(_Raw(stream), CHUNK))
        try:
            while (header := reader.next()) is not None:
                name = header.name.strip(b"/").removeprefix(b"./")
                if wanted is None or wanted(name) or WHITEOUT_PREFIX in name or b"./" in name:
                    budget.spend(what)
                    content = _digest(reader) if with_content and header.size else b""
                    facts.take(header, content)
        except tar.TarError as error:
            raise ImageError(f"{what} has a broken tar archive: {error}") from error
        stream.finish(layer.diff_id)
        while blob.read(CHUNK):  # so that its own digest is seen right, too
            pass
    return facts


class _Raw(io.RawIOBase):
    """A stream of ours as one of Python's."""

    def __init__(self, stream: DiffIdReader) -> None:
        super().__init__()
        self._stream = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        data = self._stream.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _digest(reader: tar.Reader) -> bytes:
    found = hashlib.sha256()
    while data := reader.read(CHUNK):
        found.update(data)
    return found.digest()[:16]


# --- layers below -----------------------------------------------------------------------------


def _lower(
    image: Opened, layer: Layer, top: LayerFacts, wanted: Wanted, budget: _Budget
) -> LayerFacts:
    """What a layer of the base has at the paths that the layers above touch."""
    record = None
    if image.local:
        found = (image.local.layer(layer.diff_id, squashed=kind) for kind in (False, True))
        record = next((one for one in found if one), None)
    if record is None:
        return _read(image.blobs, layer, wanted, budget)
    try:
        return _Unpacked(record, budget).facts(top)
    except _ClosedError as closed:
        try:
            return _read(image.blobs, layer, wanted, budget)
        except Ocis2iError as error:
            shown = closed.path.decode(errors="backslashreplace")
            raise ImageError(
                f"layer `{layer.descriptor.digest}` of `{image.name}` cannot be looked into: "
                f"`/{shown}` belongs to another id, and is closed to you",
                hint=f"its blob cannot be had either: {error.message}",
            ) from error


class _ClosedError(Exception):
    """A directory of an unpacked layer that belongs to another id, and is closed to us."""

    def __init__(self, path: bytes) -> None:
        super().__init__(path)
        self.path = path


class _Unpacked:
    """Looks things up in an unpacked layer, which a hostile image may have filled with links."""

    def __init__(self, record: LayerRecord, budget: _Budget) -> None:
        self._record = record
        self._budget = budget
        self._uids, self._gids = parse_id_maps(record.ids)
        self._facts = LayerFacts()
        self._open: list[tuple[bytes, int]] = []

    def facts(self, top: LayerFacts) -> LayerFacts:
        """At the paths of `top`, and all that is below those which `top` hides."""
        record = self._record
        self._facts.whiteouts = set(map(os.fsencode, record.whiteouts))
        self._facts.opaque = set(map(os.fsencode, record.opaque))
        hiding = top.whiteouts | top.opaque
        for path, facts in top.entries.items():
            if facts.kind != tar.DIRECTORY:
                hiding.add(path)
        path = b""
        try:
            self._open = [(b"", _open(os.fspath(record.tree), None))]
            wanted = {*top.entries, *hiding}
            wanted |= {above for path in tuple(wanted) for above in ancestors(path)}
            for path in sorted(wanted - {b""}, key=lambda path: path.split(b"/")):
                self._take(path, whole=path in hiding)
        except PermissionError as error:
            raise _ClosedError(path) from error
        finally:
            self._close_down_to(0)
        return self._facts

    def _take(self, path: bytes, *, whole: bool) -> None:
        parent, _, name = path.rpartition(b"/")
        directory = self._enter(parent)
        if directory is None:
            return
        try:
            found = os.stat(name, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return
        self._note(path, found, directory, name)
        if whole and stat.S_ISDIR(found.st_mode):
            self._take_below(path, _open(name, directory))

    def _take_below(self, path: bytes, top: int) -> None:
        """Everything in a directory that is gone; depth first, with one open at each depth."""
        levels = [(path, top, _names(top))]
        try:
            while levels:
                path, directory, names = levels[-1]
                if not names:
                    os.close(directory)
                    levels.pop()
                    continue
                name = os.fsencode(names.pop())
                found = os.stat(name, dir_fd=directory, follow_symlinks=False)
                inside = path + b"/" + name
                self._note(inside, found, directory, name)
                if stat.S_ISDIR(found.st_mode):
                    below = _open(name, directory)
                    levels.append((inside, below, _names(below)))
        finally:
            for _, directory, _ in levels:
                os.close(directory)

    def _enter(self, path: bytes) -> int | None:
        """The directory `path`, with those above it kept open for its neighbours."""
        kept = 0
        for kept in range(len(self._open), 0, -1):
            known = self._open[kept - 1][0]
            if not known or path == known or path.startswith(known + b"/"):
                break
        self._close_down_to(kept)
        known, directory = self._open[-1]
        missing = path[len(known) :].strip(b"/")
        for name in missing.split(b"/") if missing else ():
            try:
                directory = _open(name, directory)
            except (FileNotFoundError, NotADirectoryError):
                return None
            known = known + b"/" + name if known else name
            self._open.append((known, directory))
        return directory

    def _close_down_to(self, kept: int) -> None:
        for _, directory in self._open[kept:]:
            os.close(directory)
        del self._open[kept:]

    def _note(self, path: bytes, found: os.stat_result, directory: int, name: bytes) -> None:
        mode = found.st_mode
        if stat.S_ISCHR(mode) and found.st_rdev == 0:
            self._facts.whiteouts.add(path)
            return
        if path in self._facts.entries:
            return
        self._budget.spend(f"unpacked layer `{self._record.tree.parent.name}`")
        target = b""
        if stat.S_ISLNK(mode):
            target = os.readlink(name, dir_fd=directory)
        marks: tuple[bytes, ...] = ()
        if stat.S_ISDIR(mode) or stat.S_ISREG(mode):
            names = _attributes(directory, name)
            if stat.S_ISDIR(mode) and OPAQUE_XATTR in names:
                self._facts.opaque.add(path)
            marks = marks_of(_image_attributes(directory, name, names)) if names else ()
        uid, gid = self._owner(path, found)
        size = found.st_size if stat.S_ISREG(mode) else 0
        self._facts.entries[path] = Facts(
            _kind(mode), stat.S_IMODE(mode), uid, gid, size, target, b"", *marks
        )

    def _owner(self, path: bytes, found: os.stat_result) -> tuple[int, int]:
        if "squashed" in self._record.tree.parts[-4:]:
            uid, gid = self._record.owners.get(os.fsdecode(path), (0, 0))
            return uid, gid
        return inside_id(found.st_uid, self._uids), inside_id(found.st_gid, self._gids)


def _names(directory: int) -> list[str]:
    # Opened only as a place; the name in /proc opens it for reading. The last is taken first.
    return sorted(os.listdir(_place(directory)), reverse=True)  # noqa: PTH208 - names alone


def _place(directory: int) -> str:
    return f"/proc/self/fd/{directory}"


def _open(name: bytes | str, directory: int | None) -> int:
    return os.open(name, _DIRECTORY, dir_fd=directory)


def _attributes(directory: int, name: bytes) -> Sequence[str]:
    path = os.fsencode(_place(directory)) + b"/" + name
    try:
        return os.listxattr(path, follow_symlinks=False)
    except OSError:  # a disk without them
        return ()


def _image_attributes(
    directory: int, name: bytes, names: Sequence[str]
) -> Iterator[tuple[bytes, bytes]]:
    """Those of an unpacked file that its image gave it: see `agent.tree.image_xattrs`.

    Raises `PermissionError` for those of a file that is not ours to read.
    """
    path = os.fsencode(_place(directory)) + b"/" + name
    for one in map(os.fsencode, names):
        called = one
        if one.startswith(ESCAPED_XATTR):
            called = OVERLAY_XATTR + one[len(ESCAPED_XATTR) :]
        elif one.startswith(OVERLAY_XATTR):
            continue
        value = b""
        if one == CAPABILITY or one.startswith(b"user."):
            value = os.getxattr(path, one, follow_symlinks=False)
        yield called, value


IdMap = tuple[tuple[int, int, int], ...]


def parse_id_maps(text: str) -> tuple[IdMap, IdMap]:
    """The id maps of whoever unpacked a layer, `inside:outside:count,…/…` (`LayerRecord.ids`)."""
    maps = []
    for part in text.split("/"):
        words = part.replace(":", " ").replace(",", " ").split()
        numbers = [int(word) for word in words if word.isdigit()]
        maps.append(tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=False)))
    return (maps[0], maps[-1])


def inside_id(number: int, id_map: IdMap) -> int:
    """An id of the host as the image knows it; one that is not in the map stays as it is."""
    for inside, outside, count in id_map:
        if outside <= number < outside + count:
            return inside + number - outside
    return number


_KINDS = {
    stat.S_IFREG: tar.REGULAR,
    stat.S_IFDIR: tar.DIRECTORY,
    stat.S_IFLNK: tar.SYMLINK,
    stat.S_IFCHR: tar.CHARACTER,
    stat.S_IFBLK: tar.BLOCK_DEVICE,
}


def _kind(mode: int) -> bytes:
    return _KINDS.get(stat.S_IFMT(mode), tar.FIFO)
