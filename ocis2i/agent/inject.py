"""Puts files of the host into a container for its run only: their content is in no layer.

The content is copied into a tmpfs that only the agent has, and bound from there. In the writable
side are empty files and directories to mount on, nothing else. What a script does to the mounts
(`rm`, `mv`, `>`) happens in the tmpfs.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.failure import AgentError
from ocis2i.agent.owners import give
from ocis2i.agent.tree import DIRECTORY, Attributes, clear_name, join, open_regular, opened, resolve
from ocis2i.agent.tree import write_file as copy_file

# Of all injections of a build.
SIZE_LIMIT = 64 << 20
FILE_LIMIT = 10_000
# Room for a script that edits what it got.
_SLACK_BYTES = 1 << 20
_SLACK_FILES = 1024
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Injected(NamedTuple):
    """The file `source` of the host that shall be `target` in the container, both absolute.

    `top` is the destination of the whole injection: the same for a single file, or the `directory`
    that the target is in. `keep`: it stays in the image, as a file like others.
    """

    source: str
    target: str
    top: str
    directory: bool
    keep: bool = False


class Mount(NamedTuple):
    """What the container has to mount: `source` of the host at `target`."""

    source: str
    target: str
    directory: bool


class Owner(NamedTuple):
    """Who may change what was injected."""

    uid: int
    gid: int


class Injection(NamedTuple):
    """The mounts for the run, and the places made for them, relative to the root."""

    mounts: tuple[Mount, ...]
    places: tuple[bytes, ...]


class Node(NamedTuple):
    """One name of an injection: a file, or a directory with names in it."""

    source: str
    inside: dict[str, Node] | None = None


def inject(
    build: str,
    items: Sequence[Injected],
    owner: Owner,
    *,
    keep_names: bool,
    occupied: Sequence[str] = (),
    reserved: Sequence[str] = (),
) -> Injection:
    """Prepares the mounts of `items` in the mounted rootfs of `build`.

    A directory that the image lacks becomes one mount, in which a script can remove and rename;
    in one that is there each file is a mount of its own. `keep_names`: the places get the names
    of everything that is mounted, for the layer. Nothing may be injected on what is `occupied`, by
    other mounts which hide it, or below; nor on what is `reserved`: ocis2i itself reads or runs it.
    Raises `AgentError`: kind `usage` for a destination that cannot be, `policy` for too much.
    """
    kept = [item for item in items if item.keep]
    mounted = [item for item in items if not item.keep]
    size = _check(items)
    mounts: list[Mount] = []
    with opened(f"{build}/rootfs") as root:
        taken = _Taken(_resolved(root, occupied), _resolved(root, reserved))
        placer = _Placer(root, owner, taken, keep_names=keep_names)
        for top, node in plan(kept):
            placer.write(top, node)
        if mounted:
            _mount_secrets(build, size, len(items))
        for number, (top, node) in enumerate(plan(mounted)):
            source = f"{build}/secrets/{number}"
            with opened(f"{build}/secrets") as secrets:
                _fill(secrets, str(number).encode(), node, owner)
            mounts += placer.attach(top, node, source)
    return Injection(tuple(mounts), tuple(placer.places))


def plan(items: Sequence[Injected]) -> list[tuple[str, Node]]:
    """The tree of each injection with the place of its top, in the order of the command line.

    Pure. Of two files with one name the later counts; what goes into a directory that another
    injection brings belongs to that one. Raises `AgentError` for a name that is a file and a
    directory, or outside of its own top.
    """
    trees: dict[str, Node] = {}
    tops = _outer_tops(items)
    for one in items:
        outer = tops[one.top]
        item = one if outer == one.top else one._replace(top=outer, directory=True)
        parts = _parts_below(item)
        if not parts:
            trees[item.top] = Node(item.source)
            continue
        node = trees.get(item.top)
        if node is None or node.inside is None:
            node = trees[item.top] = Node(_without(item.source, len(parts)), {})
        _hang(node, parts, item)
    return list(trees.items())


def _outer_tops(items: Sequence[Injected]) -> dict[str, str]:
    """For each top the one whose directories it goes into, most often itself."""
    tops: dict[str, str] = {}
    brought: dict[str, str] = {}
    for top in sorted({item.top for item in items}, key=len):
        tops[top] = outer = brought.get(posixpath.dirname(top), top)
        for item in items:
            if item.top == top and item.directory:
                parts = _parts_below(item)
                above = [posixpath.join(top, *parts[:depth]) for depth in range(len(parts))]
                brought |= dict.fromkeys(above, outer)
    return tops


def _parts_below(item: Injected) -> list[str]:
    if not item.directory:
        return []
    top = item.top.rstrip("/") + "/"
    parts = item.target.removeprefix(top).split("/")
    if not item.target.startswith(top) or {"", ".", ".."} & set(parts):
        raise AgentError("usage", f"`{item.target}` cannot be injected below `{item.top}`")
    return parts


def _hang(node: Node, parts: list[str], item: Injected) -> None:
    inside = node.inside
    for depth, part in enumerate(parts[:-1], start=1):
        assert inside is not None  # noqa: S101 - nodes on the way are directories
        below = inside.setdefault(part, Node(_without(item.source, len(parts) - depth), {}))
        inside = below.inside
        if inside is None:
            raise _both_kinds(item)
    assert inside is not None  # noqa: S101
    if parts[-1] in inside and inside[parts[-1]].inside is not None:
        raise _both_kinds(item)
    inside[parts[-1]] = Node(item.source)


def _both_kinds(item: Injected) -> AgentError:
    return AgentError(
        "usage", f"`{item.target}` would be injected as a file, and as a directory with files"
    )


def _without(source: str, levels: int) -> str:
    """The directory of the host that a file was found in, as far as its name tells."""
    for _ in range(levels):
        source = posixpath.dirname(source)
    return source


# --- content ---


def _check(items: Sequence[Injected]) -> int:
    """How many bytes the files need; raises `AgentError` for too many or for what is no file."""
    if len(items) > FILE_LIMIT:
        raise AgentError(
            "policy", f"there are {len(items)} files to inject, and {FILE_LIMIT} are allowed"
        )
    size = 0
    for item in items:
        fd = _open_source(item.source)
        size += os.fstat(fd).st_size
        os.close(fd)
        if size > SIZE_LIMIT:
            raise AgentError(
                "policy",
                f"the files to inject are larger than {SIZE_LIMIT >> 20} MiB; "
                f"`{item.source}` is beyond that",
                "give large files to the build with --volume",
            )
    return size


def _open_source(source: str) -> int:
    try:
        return open_regular(source)
    except OSError as error:
        raise AgentError(
            "usage", f"the file `{source}` cannot be injected: {error.strerror}"
        ) from error


def _mount_secrets(build: str, size: int, count: int) -> None:
    """A tmpfs of the agent's own: nobody of the host sees it, and no disk."""
    path = f"{build}/secrets"
    os.mkdir(path, 0o700)
    pages = size + count * 4096
    options = f"mode=0700,size={2 * pages + _SLACK_BYTES},nr_inodes={3 * count + _SLACK_FILES}"
    flags = syscalls.MS_NOSUID | syscalls.MS_NODEV
    syscalls.mount("ocis2i-secrets", path, "tmpfs", flags, options)


def _fill(directory: int, name: bytes, node: Node, owner: Owner) -> None:
    """Copies an injection, everything writable for everybody as source-to-image has it."""
    if node.inside is None:
        _copy(directory, name, node.source, Owner(*owner), 0o666)
        return
    inner = _make_directory(directory, name, owner, 0o777)
    try:
        for below, child in node.inside.items():
            _fill(inner, os.fsencode(below), child, owner)
    finally:
        os.close(inner)


def _copy(directory: int, name: bytes, source: str, owner: Owner, mode: int) -> None:
    fd = _open_source(source)
    try:
        attributes = Attributes(*owner, mode, os.fstat(fd).st_mtime_ns)
        copy_file(directory, name, fd, attributes, SIZE_LIMIT)
    finally:
        os.close(fd)


def _make_directory(directory: int, name: bytes, owner: Owner, mode: int) -> int:
    os.mkdir(name, mode, dir_fd=directory)
    fd = os.open(name, DIRECTORY, dir_fd=directory)
    give(fd, *owner)
    return fd


# --- places in the container ---


class _Taken(NamedTuple):
    """Real paths that are not free: what is mounted on, and what ocis2i reads or runs."""

    occupied: Sequence[bytes]
    reserved: Sequence[bytes]


def _resolved(root: int, paths: Sequence[str]) -> list[bytes]:
    found = []
    for path in paths:
        # Of what is below a file nothing can be injected either.
        with contextlib.suppress(NotADirectoryError):
            found.append(join(*resolve(root, os.fsencode(path))))
    return found


class _Place(NamedTuple):
    """Where a target leads: its real path, and whether it is a directory; `None`: nothing yet."""

    path: bytes
    is_directory: bool | None


class _Placer:
    """Makes what is mounted on, and remembers it."""

    def __init__(self, root: int, owner: Owner, taken: _Taken, *, keep_names: bool) -> None:
        self._root = root
        self._owner = owner
        self._taken = taken
        self._keep_names = keep_names
        self.places: list[bytes] = []

    def attach(self, target: str, node: Node, source: str) -> Iterator[Mount]:
        """The mounts of one injection, whose copy is at `source`."""
        place = self._locate(target, node)
        if node.inside is not None and place.is_directory:
            for name, child in node.inside.items():
                yield from self.attach(posixpath.join(target, name), child, f"{source}/{name}")
            return
        self._check_free(place, target, node)
        if place.is_directory is None:
            self._make_place(place.path, node)
        yield Mount(source, f"/{os.fsdecode(place.path)}", node.inside is not None)

    def write(self, target: str, node: Node) -> None:
        """Puts an injection that is to stay into the tree."""
        place = self._locate(target, node)
        self._check_free(place, target, node)
        above, _, name = place.path.rpartition(b"/")
        fd = syscalls.open_in_root(self._root, above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            if node.inside is None:
                clear_name(fd, name)
                _copy(fd, name, node.source, self._owner, 0o644)
            elif place.is_directory is None:
                os.close(_make_directory(fd, name, self._owner, 0o755))
        finally:
            os.close(fd)
        for below, child in (node.inside or {}).items():
            self.write(posixpath.join(target, below), child)

    def _locate(self, target: str, node: Node) -> _Place:
        """Follows links inside the root; the directory above must be there, the kinds the same."""
        try:
            found, missing = resolve(self._root, os.fsencode(target))
            mode = 0 if missing else _mode(self._root, found)
        except NotADirectoryError:
            raise _no_destination(target, node) from None
        if b"/" in missing:
            raise _no_destination(target, node)
        if missing:
            return _Place(join(found, missing), None)
        is_directory = stat.S_ISDIR(mode)
        if is_directory != (node.inside is not None):
            what = "directory" if is_directory else "file"
            raise AgentError(
                "usage",
                f"`{node.source}` cannot be injected: `{target}` is a {what} in the container",
            )
        return _Place(found, is_directory)

    def _check_free(self, place: _Place, target: str, node: Node) -> None:
        for other in self._taken.occupied:
            on_it = place.path == other and node.inside is None
            if on_it or place.path.startswith(other + b"/"):
                raise AgentError(
                    "usage",
                    f"`{target}` cannot be injected: "
                    f"something else is mounted on `/{os.fsdecode(other)}`",
                )
        for other in self._taken.reserved:
            # A new directory is one mount: it would take in what a script makes there later.
            if place.path == other or (
                place.is_directory is None and other.startswith(place.path + b"/")
            ):
                raise AgentError(
                    "usage",
                    f"`{target}` cannot be injected: "
                    f"ocis2i itself needs `/{os.fsdecode(other)}` of the container",
                    "choose another destination",
                )

    def _make_place(self, path: bytes, node: Node) -> None:
        above, _, name = path.rpartition(b"/")
        fd = syscalls.open_in_root(self._root, above, os.O_RDONLY | os.O_DIRECTORY)
        try:
            before = os.fstat(fd)
            self._make_twin(fd, name, path, node)
            if not self._keep_names:  # the layer shows nothing of it, so no new time either
                os.utime(fd, ns=(before.st_atime_ns, before.st_mtime_ns))
        finally:
            os.close(fd)

    def _make_twin(self, fd: int, name: bytes, path: bytes, node: Node) -> None:
        """An empty file or directory; with all names in it when they are to be in the layer."""
        self.places.append(path)
        if node.inside is None:
            made = os.open(name, _NEW, 0o644, dir_fd=fd)
            give(made, *self._owner)
        else:
            made = _make_directory(fd, name, self._owner, 0o755)
        try:
            for below, child in (node.inside or {}).items() if self._keep_names else ():
                inner = os.fsencode(below)
                self._make_twin(made, inner, join(path, inner), child)
        finally:
            os.close(made)


def _mode(root: int, path: bytes) -> int:
    fd = syscalls.open_in_root(root, path, os.O_PATH)
    try:
        return os.fstat(fd).st_mode
    finally:
        os.close(fd)


def _no_destination(target: str, node: Node) -> AgentError:
    return AgentError(
        "usage",
        f'The destination directory for "{node.source}" injection must exist in container '
        f'("{target}")',
        f"make `{posixpath.dirname(target)}` in the builder image, or inject to another place",
    )
