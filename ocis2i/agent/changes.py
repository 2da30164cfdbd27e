"""Reads a build's writable side as entries of a layer and writes their tar into a descriptor.

With overlayfs the upper directory is the change set (Documentation/filesystems/overlayfs.rst,
"whiteouts and opaque directories"). A tree without it is compared with its snapshot. Either way
the same changes are the same bytes: what was touched but is as it was is left out again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

from ocis2i import tar
from ocis2i.agent.below import Before, Below, Contents, Lower
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.owners import Owner, Owners
from ocis2i.agent.snapshot import Snapshot, Xattrs
from ocis2i.agent.tree import DIRECTORY, image_xattrs, open_to_walk, readable
from ocis2i.layers import Entry, Member, ReservedNameError, TarPolicy, Whiteout, encode_entry

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CHUNK = 1 << 18
_MOST = 1 << 30  # sendfile(2) takes no more than 2 GiB at once
_DEEPEST = 1000
_LARGE = 1 << 20


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


def write_changes(scanner: Scanner, out: BinaryIO, policy: TarPolicy) -> Written:
    """Writes the tar of the changes that `scanner` finds.

    Raises `AgentError` of kind `output`.
    """
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
    except PermissionError as error:  # by a user who is not root: in place
        raise AgentError(
            "isolation",
            explain(error, "the changed files cannot be read").message,
            "let their owner read them at the end of assemble (`chmod -R u+rX`), or choose a "
            "stronger --isolation",
        ) from error
    except OSError as error:
        raise explain(error, "the changed files cannot be read") from error
    return Written(entries, size, scanner.sockets)


def _write_content(change: Change, out: BinaryIO) -> int:
    size = left = _size(change.entry)
    try:
        if left >= _CHUNK:
            left -= _send(change.fd, out, left)
        while left:
            data = os.read(change.fd, min(left, _CHUNK))
            if not data:
                raise AgentError(
                    "output", f"`{os.fsdecode(change.entry.path)}` became shorter while it was read"
                )
            out.write(data)
            left -= len(data)
    finally:
        os.close(change.fd)
    out.write(tar.padding(size))
    return size


def _size(entry: Entry) -> int:
    return entry.size if isinstance(entry, Member) else 0


def _send(source: int, out: BinaryIO, size: int) -> int:
    """Lets the kernel move a large file into the pipe; how many bytes it moved, from the start.

    It takes a twentieth of the processor time of reading and writing. Fewer than `size` where a
    file system or what `out` is does not take part: whoever reads on goes on after them.
    """
    sent = 0
    try:
        out.flush()
        target = out.fileno()
        while sent < size and (count := os.sendfile(target, source, None, min(size - sent, _MOST))):
            sent += count
    except BrokenPipeError:
        raise
    except OSError:  # also of what has no descriptor (io.UnsupportedOperation)
        return sent
    return sent


class _Directory(NamedTuple):
    """A directory of the walk: open, what is said of it, and what it merges with, or nothing.

    The `facts` are those from before its mode was changed to get into it.
    """

    path: bytes
    fd: int
    facts: os.stat_result
    below: Below | None


class _Link(NamedTuple):
    """The first name met of a file that has several."""

    path: bytes
    owner: Owner


class Scanner:
    """Walks a changed tree, names in byte order, and compares with what was there before.

    `tree` is the open tree and `below` what it was, both closed after the scan. `mounted` trees
    show extended attributes as a container sees them, an upper directory does not. Of the paths
    `skipped` nothing is said. With `sweep` nobody looks at the tree after this: large files are
    removed once they were read.
    """

    def __init__(
        self,
        tree: int,
        below: Below,
        marks: Marks,
        owners: Owners,
        *,
        mounted: bool,
        skipped: frozenset[bytes] = frozenset(),
        sweep: bool = False,
    ) -> None:
        self._tree = tree
        self._below = below
        self._marks = marks
        self._owners = owners
        self._mounted = mounted
        self._skipped = skipped
        self._sweep = sweep
        self._links: dict[tuple[int, int], _Link] = {}
        self._waiting: list[Entry] = []
        self.sockets = 0

    def scan(self) -> Iterator[Change]:
        """The changes, directories before what is in them, every ancestor of a change included."""
        root = _Directory(b"", self._tree, os.fstat(self._tree), self._below)
        try:
            # The root is there in every image; it is an entry only when it was changed itself.
            as_it_was = self._below.same_directory(root.fd, root.facts)
            if b"" not in self._marks.unlisted and not as_it_was:
                yield Change(self._directory_entry(root, new=False))
            yield from self._walk(root)
        finally:
            os.close(self._tree)
            self._below.close()

    def _walk(self, directory: _Directory) -> Iterator[Change]:
        if directory.path.count(b"/") >= _DEEPEST:
            raise AgentError("output", f"directories lie deeper than {_DEEPEST} levels below `/`")
        names = set(map(os.fsencode, os.listdir(directory.fd)))
        if directory.below is not None:
            names.update(directory.below.names())
        for name in sorted(names):
            path = directory.path + b"/" + name if directory.path else name
            if path not in self._skipped:
                yield from self._visit(directory, name, path)

    def _visit(self, directory: _Directory, name: bytes, path: bytes) -> Iterator[Change]:
        try:
            facts = os.stat(name, dir_fd=directory.fd, follow_symlinks=False)
        except FileNotFoundError:
            change = self._gone(directory, name, path)
        else:
            if stat.S_ISDIR(facts.st_mode):
                yield from self._visit_directory(directory, name, path, facts)
                return
            if directory.below is not None and directory.below.untouched(name, facts):
                return
            change = self._change_of(directory, name, path, facts)
        if change:
            yield from self._flush()
            yield change
            if self._sweep and change.fd >= 0 and _size(change.entry) >= _LARGE:
                _let_go(directory.fd, name)

    def _flush(self) -> Iterator[Change]:
        for entry in self._waiting:
            yield Change(entry)
        self._waiting.clear()

    # --- directories ---

    def _visit_directory(
        self, parent: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Iterator[Change]:
        try:
            fd = open_to_walk(parent.fd, name)
        except PermissionError:
            # Who may not look into it did not change it either.
            if parent.below is not None and parent.below.untouched(name, facts):
                return
            with readable(parent.fd, name, facts):
                fd = open_to_walk(parent.fd, name)
                yield from self._enter(parent, name, _Directory(path, fd, facts, None))
            return
        yield from self._enter(parent, name, _Directory(path, fd, facts, None))

    def _enter(self, parent: _Directory, name: bytes, directory: _Directory) -> Iterator[Change]:
        path, fd = directory.path, directory.fd
        below = parent.below.enter(name) if parent.below else None
        try:
            opaque = below is not None and below.replaced(fd)
            here = directory._replace(below=None if opaque else below)
            kept = len(self._waiting)
            if path not in self._marks.unlisted:
                new = opaque or below is None
                yield from self._list_directory(here, new=new, opaque=opaque)
            yield from self._walk(here)
            # Nothing in it had changed: the entry that waited is not needed.
            del self._waiting[kept:]
        finally:
            os.close(fd)
            if below is not None:
                below.close()

    def _list_directory(self, here: _Directory, *, new: bool, opaque: bool) -> Iterator[Change]:
        """The directory's own entry, at once or waiting for a change in it."""
        entry = self._directory_entry(here, new=new)
        as_it_was = here.below is not None and here.below.same_directory(here.fd, here.facts)
        if as_it_was or here.path in self._marks.left_out:
            self._waiting.append(entry)
            return
        yield from self._flush()
        yield Change(entry)
        if opaque:
            yield Change(Whiteout(here.path, opaque=True))

    def _directory_entry(self, directory: _Directory, *, new: bool) -> Member:
        facts = directory.facts
        owner = self._owners.real(directory.path, facts.st_uid, facts.st_gid, new=new)
        xattrs = image_xattrs(directory.fd, mounted=self._mounted)
        return _member(directory.path, tar.DIRECTORY, facts, owner, xattrs=xattrs)

    # --- everything else ---

    def _change_of(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        kind = stat.S_IFMT(facts.st_mode)
        if kind == stat.S_IFSOCK:
            self.sockets += 1
        if kind == stat.S_IFREG:
            return self._regular(directory, name, path, facts)
        if kind == stat.S_IFLNK:
            return self._symlink(directory, name, path, facts)
        if kind == stat.S_IFIFO:
            return self._pipe(directory, name, path, facts)
        # Overlayfs' whiteouts, which anybody may make in a plain tree too (mknod of 0:0), sockets
        # and devices: none can be in a layer, and what was there before is gone.
        return self._gone(directory, name, path)

    def _gone(self, directory: _Directory, name: bytes, path: bytes) -> Change | None:
        if path in self._marks.ours or directory.below is None or not directory.below.has(name):
            return None
        return Change(Whiteout(path))

    def _symlink(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        target = os.readlink(name, dir_fd=directory.fd)
        if directory.below is not None and directory.below.same_link(name, facts, target):
            return None
        return self._named(directory, name, path, facts, tar.SYMLINK, target=target)

    def _pipe(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change:
        fd, xattrs = self._open(directory, name, facts)  # does not wait for a writer
        os.close(fd)
        return self._named(directory, name, path, facts, tar.FIFO, xattrs=xattrs)

    def _regular(
        self, directory: _Directory, name: bytes, path: bytes, facts: os.stat_result
    ) -> Change | None:
        if path in self._marks.left_out and not facts.st_size:
            return None
        if (facts.st_dev, facts.st_ino) in self._links:
            return self._named(directory, name, path, facts, tar.REGULAR)
        fd, xattrs = self._open(directory, name, facts)
        below = directory.below
        if below is not None and below.same_file(name, facts, fd, xattrs):
            os.close(fd)
            return None
        return self._named(directory, name, path, facts, tar.REGULAR, xattrs=xattrs, fd=fd)

    def _open(
        self, directory: _Directory, name: bytes, facts: os.stat_result
    ) -> tuple[int, Xattrs]:
        """A regular file, also one that its owner, who is us, may not read."""
        try:
            fd = os.open(name, _FILE, dir_fd=directory.fd)
        except PermissionError:
            with readable(directory.fd, name, facts):
                fd = os.open(name, _FILE, dir_fd=directory.fd)
                return fd, image_xattrs(fd, mounted=self._mounted)
        return fd, image_xattrs(fd, mounted=self._mounted)

    def _named(
        self,
        directory: _Directory,
        name: bytes,
        path: bytes,
        facts: os.stat_result,
        kind: bytes,
        *,
        target: bytes = b"",
        xattrs: Xattrs = (),
        fd: int = -1,
    ) -> Change:
        """One name of a file: the file itself or, when it has been met before, a link to it."""
        key = (facts.st_dev, facts.st_ino)
        if facts.st_nlink > 1 and key in self._links:
            first = self._links[key]
            return Change(_member(path, tar.HARD_LINK, facts, first.owner, target=first.path))
        new = directory.below is None or not directory.below.kept(name, facts, fd)
        owner = self._owners.real(path, facts.st_uid, facts.st_gid, new=new)
        if facts.st_nlink > 1:
            self._links[key] = _Link(path, owner)
        return Change(_member(path, kind, facts, owner, target=target, xattrs=xattrs), fd)


def _let_go(directory: int, name: bytes) -> None:
    """Removes a large file that was read: its memory is for the layer's blob, and no disk waits.

    Memory that was in use a moment ago costs a fraction of what the host of a virtual machine must
    find first; what is removed soon is never written. One with several names stays, by their
    number another name is known for one.
    """
    with contextlib.suppress(OSError):  # then it is removed with all the rest
        if os.stat(name, dir_fd=directory, follow_symlinks=False).st_nlink == 1:
            os.unlink(name, dir_fd=directory)


def overlay_scanner(build: str, marks: Marks, owners: Owners, *, sweep: bool = False) -> Scanner:
    """Reads the upper directory of `build`, whose base is mounted."""
    upper = os.open(f"{build}/upper", DIRECTORY)
    base = Lower(os.open(f"{build}/base", DIRECTORY))
    return Scanner(upper, base, marks, owners, mounted=False, sweep=sweep)


def tree_scanner(
    root: str, before: Snapshot, contents: Contents, marks: Marks, owners: Owners
) -> Scanner:
    """Compares the tree at `root` with its snapshot; `contents` are those from before."""
    below = Before(before, contents, b"", before.root)
    tree = os.open(root, DIRECTORY)
    return Scanner(tree, below, marks, owners, mounted=True, skipped=before.skipped)


def _member(
    path: bytes,
    kind: bytes,
    facts: os.stat_result,
    owner: Owner,
    *,
    target: bytes = b"",
    xattrs: Xattrs = (),
) -> Member:
    mode = stat.S_IMODE(facts.st_mode)
    size = facts.st_size if kind == tar.REGULAR else 0
    return Member(path, kind, mode, *owner, facts.st_mtime_ns, size, target, xattrs)


def raise_file_limit() -> None:
    """One descriptor is open for each level of a walk."""
    import resource  # noqa: PLC0415 - only a walk needs it, starting must be fast

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
