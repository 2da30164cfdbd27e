"""Reads a build's writable side as entries of a layer and writes their tar into a descriptor.

With overlayfs the upper directory is the change set (Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories"). What was copied up but is as it was is left out again.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ocis2i import tar
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.tree import (
    DIRECTORY,
    ESCAPED_XATTR,
    OPAQUE_XATTR,
    OVERLAY_XATTR,
    read_xattrs,
)
from ocis2i.layers import Entry, Member, ReservedNameError, TarPolicy, Whiteout, encode_entry

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CHUNK = 1 << 20
_DEEPEST = 1000
_KEPT = (b"user.", b"system.posix_acl_", b"security.capability")


class Change(NamedTuple):
    """One entry of the layer and, for a regular file, its open descriptor."""

    entry: Entry
    fd: int = -1


class Written(NamedTuple):
    """What the layer holds: number of entries, bytes of content, and sockets left out."""

    entries: int
    size_bytes: int
    sockets: int


class Marks(NamedTuple):
    """Paths of which the layer tells less than is there, without leading slash.

    `ours` only the shim has: their whiteouts are none. For the directories `unlisted` no entry is
    written, but what is in them is. `left_out` are empty places for mounts.
    """

    ours: frozenset[bytes] = frozenset()
    unlisted: frozenset[bytes] = frozenset()
    left_out: frozenset[bytes] = frozenset()


def write_changes(build: str, out: BinaryIO, policy: TarPolicy, marks: Marks) -> Written:
    """Writes the tar of `build`'s changes.

    Raises `AgentError` of kind `output`.
    """
    scanner = Scanner(build, marks)
    entries = size = 0
    try:
        for change in scanner.scan():
            out.write(encode_entry(change.entry, policy))
            entries += 1
            if change.fd >= 0:
                size += _write_content(change, out)
        out.write(tar.END)
        out.flush()
    except ReservedNameError as error:
        raise AgentError(
            "output",
            f"the file `{error}` cannot be in a layer: names that begin with `.wh.` are reserved",
            "remove or rename it at the end of the assemble script",
        ) from error
    except BrokenPipeError:
        raise
    except OSError as error:
        raise explain(error, "the changed files cannot be read") from error
    return Written(entries, size, scanner.sockets)


def _write_content(change: Change, out: BinaryIO) -> int:
    entry = change.entry
    left = entry.size if isinstance(entry, Member) else 0
    try:
        while left:
            data = os.read(change.fd, min(left, _CHUNK))
            if not data:
                raise AgentError(
                    "output", f"`{os.fsdecode(entry.path)}` became shorter while it was read"
                )
            out.write(data)
            left -= len(data)
    finally:
        os.close(change.fd)
    size = entry.size if isinstance(entry, Member) else 0
    out.write(tar.padding(size))
    return size


class _Directory(NamedTuple):
    """A directory of the walk: open in the upper and, where it merges, in the base."""

    path: bytes
    fd: int
    base: int  # -1: nothing below is in the base


class Scanner:
    """Walks the upper directory, names in byte order, and compares with the base."""

    def __init__(self, build: str, marks: Marks) -> None:
        self._build = build
        self._marks = marks
        self._links: dict[tuple[int, int], bytes] = {}
        self._waiting: list[Entry] = []
        self.sockets = 0

    def scan(self) -> Iterator[Change]:
        """The changes, directories before what is in them, every ancestor of a change included."""
        upper = os.open(f"{self._build}/upper", DIRECTORY)
        base = os.open(f"{self._build}/base", DIRECTORY)
        root = _Directory(b"", upper, base)
        # The root is there in every image; it is an entry only when it was changed itself.
        if b"" not in self._marks.unlisted and not self._same_as_base(root.fd, root.base):
            yield Change(self._directory_entry(root))
        yield from self._walk(root)
        os.close(upper)
        os.close(base)

    def _walk(self, directory: _Directory) -> Iterator[Change]:
        if directory.path.count(b"/") >= _DEEPEST:
            raise AgentError("output", f"directories lie deeper than {_DEEPEST} levels below `/`")
        for name in sorted(os.fsencode(name) for name in os.listdir(directory.fd)):
            path = directory.path + b"/" + name if directory.path else name
            facts = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                yield from self._visit_directory(directory, name, path)
                continue
            change = self._change_of(directory, name, path, facts)
            if change:
                yield from self._flush()
                yield change

    def _flush(self) -> Iterator[Change]:
        for entry in self._waiting:
            yield Change(entry)
        self._waiting.clear()

    # --- directories ---

    def _visit_directory(self, parent: _Directory, name: bytes, path: bytes) -> Iterator[Change]:
        fd = os.open(name, DIRECTORY, dir_fd=parent.fd)
        base = _open_directory(parent.base, name)
        opaque = _is_opaque(fd)
        here = _Directory(path, fd, -1 if opaque else base)
        try:
            kept = len(self._waiting)
            if path not in self._marks.unlisted:
                yield from self._list_directory(here, base)
            yield from self._walk(here)
            # Nothing in it had changed: the entry that waited is not needed.
            del self._waiting[kept:]
        finally:
            os.close(fd)
            if base >= 0:
                os.close(base)

    def _list_directory(self, here: _Directory, base: int) -> Iterator[Change]:
        """The directory's own entry, at once or waiting for a change in it."""
        entry = self._directory_entry(here)
        opaque = here.base != base
        as_it_was = base >= 0 and not opaque and self._same_as_base(here.fd, base)
        if as_it_was or here.path in self._marks.left_out:
            self._waiting.append(entry)
            return
        yield from self._flush()
        yield Change(entry)
        if opaque:
            yield Change(Whiteout(here.path, opaque=True))

    def _directory_entry(self, directory: _Directory) -> Member:
        facts = os.fstat(directory.fd)
        return Member(
            directory.path,
            tar.DIRECTORY,
            stat.S_IMODE(facts.st_mode),
            facts.st_uid,
            facts.st_gid,
            facts.st_mtime_ns,
            xattrs=image_xattrs(directory.fd),
        )

    def _same_as_base(self, fd: int, base: int) -> bool:
        """Directories: the time alone is no change, making an entry in it sets that."""
        one, other = os.fstat(fd), os.fstat(base)
        return (one.st_mode, one.st_uid, one.st_gid) == (
            other.st_mode,
            other.st_uid,
            other.st_gid,
        ) and image_xattrs(fd) == image_xattrs(base, mounted=True)

    # --- everything else ---

    def _change_of(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        kind = stat.S_IFMT(facts.st_mode)
        if kind == stat.S_IFCHR:
            return self._whiteout(directory, name, path, facts)
        if kind == stat.S_IFSOCK:
            self.sockets += 1
            return None
        if kind == stat.S_IFLNK:
            return self._symlink(directory, name, path, facts)
        if kind == stat.S_IFIFO:
            first = self._first_link(path, facts)
            return Change(_member(path, tar.HARD_LINK if first else tar.FIFO, facts, target=first))
        if kind == stat.S_IFREG:
            return self._regular(directory, name, path, facts)
        return None  # block devices cannot be made in a user namespace

    def _whiteout(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        if facts.st_rdev != 0 or path in self._marks.ours or directory.base < 0:
            return None
        try:
            os.stat(name, dir_fd=directory.base, follow_symlinks=False)
        except FileNotFoundError:
            return None
        return Change(Whiteout(path))

    def _symlink(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        target = os.readlink(name, dir_fd=directory.fd)
        first = self._first_link(path, facts)
        if first:
            return Change(_member(path, tar.HARD_LINK, facts, target=first))
        below = _stat_base(directory.base, name)
        if (
            below
            and facts.st_nlink == 1
            and _facts(below) == _facts(facts)
            and os.readlink(name, dir_fd=directory.base) == target
        ):
            return None
        return Change(_member(path, tar.SYMLINK, facts, target=target))

    def _regular(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        if path in self._marks.left_out and not facts.st_size:
            return None
        first = self._first_link(path, facts)
        if first:
            return Change(_member(path, tar.HARD_LINK, facts, target=first))
        fd = os.open(name, _FILE, dir_fd=directory.fd)
        xattrs = image_xattrs(fd)
        if facts.st_nlink == 1 and self._as_it_was(directory.base, name, fd, facts, xattrs):
            os.close(fd)
            return None
        member = _member(path, tar.REGULAR, facts, xattrs=xattrs)._replace(size=facts.st_size)
        return Change(member, fd)

    def _first_link(self, path: bytes, facts: os.stat_result) -> bytes:
        """The first path seen of the same file, empty when this is the first."""
        if facts.st_nlink == 1:
            return b""
        key = (facts.st_dev, facts.st_ino)
        if key in self._links:
            return self._links[key]
        self._links[key] = path
        return b""

    def _as_it_was(
        self,
        base: int,
        name: bytes,
        fd: int,
        facts: os.stat_result,
        xattrs: tuple[tuple[bytes, bytes], ...],
    ) -> bool:
        below = _stat_base(base, name)
        if not below or _facts(below) != _facts(facts):
            return False
        other = os.open(name, _FILE, dir_fd=base)
        try:
            if image_xattrs(other, mounted=True) != xattrs:
                return False
            same = _same_content(fd, other)
        finally:
            os.close(other)
        os.lseek(fd, 0, os.SEEK_SET)
        return same


def image_xattrs(fd: int, *, mounted: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """The extended attributes that belong into an image, sorted.

    Overlayfs' own marks are left out; those it escaped for the container get their name back.
    `mounted` is seen through overlayfs, which did both already.
    """
    found = []
    for name, value in read_xattrs(fd):
        if name.startswith(ESCAPED_XATTR) and not mounted:
            found.append((OVERLAY_XATTR + name[len(ESCAPED_XATTR) :], value))
        elif name.startswith(_KEPT) and (mounted or not name.startswith(OVERLAY_XATTR)):
            found.append((name, value))
    return tuple(sorted(found))


def _member(
    path: bytes,
    kind: bytes,
    facts: os.stat_result,
    *,
    target: bytes = b"",
    xattrs: tuple[tuple[bytes, bytes], ...] = (),
) -> Member:
    return Member(
        path,
        kind,
        stat.S_IMODE(facts.st_mode),
        facts.st_uid,
        facts.st_gid,
        facts.st_mtime_ns,
        target=target,
        xattrs=xattrs,
    )


def _facts(facts: os.stat_result) -> tuple[int, ...]:
    # The number of links too: a name that was copied up is no longer one of the base's links.
    return (
        facts.st_mode,
        facts.st_nlink,
        facts.st_uid,
        facts.st_gid,
        facts.st_size,
        facts.st_mtime_ns,
    )


def _stat_base(base: int, name: bytes) -> os.stat_result | None:
    if base < 0:
        return None
    try:
        return os.stat(name, dir_fd=base, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _open_directory(base: int, name: bytes) -> int:
    """The same directory in the base, -1 when it is none there."""
    if base < 0:
        return -1
    try:
        return os.open(name, DIRECTORY, dir_fd=base)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return -1
        raise


def _same_content(one: int, other: int) -> bool:
    while True:
        left, right = os.read(one, _CHUNK), os.read(other, _CHUNK)
        if left != right:
            return False
        if not left:
            return True


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE_XATTR) == b"y"
    except OSError:
        return False


def raise_file_limit() -> None:
    """One descriptor is open for each level of a walk."""
    import resource  # noqa: PLC0415 - only a walk needs it, starting must be fast

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
