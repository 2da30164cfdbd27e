"""A private copy of an image's tree, for hosts whose file systems overlayfs refuses.

In the build's directory is then only `rootfs`: the layers merged by copying every file that shows,
with reflinks where the disk has them. Names of one file become files of their own, as overlayfs
makes them when one is written to: a copy of hard links would change under another name. What a
build changes is told by the tree's snapshot (`ocis2i.agent.snapshot`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.below import Contents, same_content
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.mounts import LowerLayer
from ocis2i.agent.owners import give, give_entry
from ocis2i.agent.placing import Target, make_targets
from ocis2i.agent.sides import Side, make_build
from ocis2i.agent.snapshot import Fact, Snapshot, Xattrs, settle, take
from ocis2i.agent.tree import DIRECTORY, OPAQUE_XATTR, image_xattrs, join, opened, opened_below

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409  # _IOW(0x94, 9, int) of include/uapi/linux/fs.h
_CHUNK = 1 << 30
# Why a file system does not copy for us: the next way is tried.
_NOT_SO = (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.ENOTTY, errno.EBADF)


class Copy(NamedTuple):
    """A build's tree: the `lowers` it was made of (lowest first), and how it was `before`.

    `ours` are the mount targets that only we made, relative paths.
    """

    ours: tuple[str, ...]
    lowers: tuple[LowerLayer, ...]
    before: Snapshot


def prepare(build: str, lowers: Sequence[LowerLayer], targets: Sequence[Target]) -> Copy:
    """Makes `rootfs` of `lowers` (lowest first), with places for `targets`; `build` when missing.

    Raises `AgentError`: kind `isolation` where nothing in it could be executed, `output` when the
    disk is full.
    """
    make_build(build, ("rootfs",))
    _check_executable(build)
    with opened(f"{build}/rootfs") as root:
        try:
            _Merger(lowers, root).merge()
            ours = make_targets(Side(root, root, -1), targets)
        except OSError as error:
            raise explain(error, "the image cannot be copied") from error
        before = take(root)
    with opened(build) as here:
        settle(here, before.latest_ns)
    return Copy(tuple(ours), tuple(lowers), before)


def _check_executable(build: str) -> None:
    if os.statvfs(build).f_flag & os.ST_NOEXEC:
        raise AgentError(
            "isolation",
            # As in `ocis2i.isolation.sentences`, which the agent does not have.
            f"nothing can be executed in the store: its file system is mounted noexec (`{build}`)",
            "put the store where programs may run with --root, or on a disk that overlayfs takes: "
            "through an overlay they run from a noexec one too",
        )


class LayerContents(Contents):
    """What the copied files were: the unpacked layers still have them."""

    def __init__(self, lowers: Sequence[LowerLayer]) -> None:
        self._lowers = lowers

    def links(self, path: bytes, fact: Fact) -> int:
        """In the layer; the copies have one name each."""
        with self._original(path) as (directory, name):
            if directory < 0:
                return fact.links
            return os.stat(name, dir_fd=directory, follow_symlinks=False).st_nlink

    def same_link(self, path: bytes, fact: Fact, target: bytes) -> bool:  # noqa: ARG002
        """See `Contents`."""
        with self._original(path) as (directory, name):
            return directory >= 0 and os.readlink(name, dir_fd=directory) == target

    def same_file(self, path: bytes, fact: Fact, fd: int, xattrs: Xattrs) -> bool:
        """See `Contents`."""
        with self._original(path) as (directory, name):
            if directory < 0:  # a mount target: we made it, and empty
                return fact.size == 0 and not xattrs
            other = os.open(name, _READ, dir_fd=directory)
        try:
            return image_xattrs(other) == xattrs and same_content(fd, other)
        finally:
            os.close(other)

    @contextlib.contextmanager
    def _original(self, path: bytes) -> Iterator[tuple[int, bytes]]:
        """The directory that the original is in, open, and its name there; -1: there is none.

        Of a path of the merged tree, the topmost layer that has it by directories alone shows.
        """
        above, _, name = path.rpartition(b"/")
        for layer in reversed(self._lowers):
            try:
                with opened(layer.path) as root:
                    directory = syscalls.open_in_root(root, above, DIRECTORY)
            except OSError:
                continue
            try:
                os.stat(name, dir_fd=directory, follow_symlinks=False)
            except FileNotFoundError:
                os.close(directory)
                continue
            try:
                yield directory, name
            finally:
                os.close(directory)
            return
        yield -1, b""


class _Level(NamedTuple):
    """The state of one directory: open in the copy, what it has already, what hides all below."""

    path: bytes
    into: int
    directories: dict[bytes, list[int]]
    closed: set[bytes]


class _Inside(NamedTuple):
    """A directory of the merged tree still to be filled: its layers, topmost first."""

    path: bytes
    layers: tuple[int, ...]


class _Merger:
    """Fills a root from layers: what a name shows is the topmost layer's, directories merge."""

    def __init__(self, lowers: Sequence[LowerLayer], root: int) -> None:
        self._lowers = lowers
        self._root = root
        self._implied = [frozenset(map(os.fsencode, one.implied)) for one in lowers]
        self._hidden = [_by_parent(one.whiteouts) for one in lowers]
        self._opaque = [frozenset(map(os.fsencode, one.opaque)) for one in lowers]
        self._copier = _Copier()

    def merge(self) -> None:
        """Copies everything that shows."""
        finished: list[_Inside] = []
        pending = [_Inside(b"", tuple(reversed(range(len(self._lowers)))))]
        while pending:
            here = pending.pop()
            finished.append(here)
            pending += self._fill(here)
        # From below, because making an entry sets the time of its directory, and last.
        for here in reversed(finished):
            self._finish(here)

    def _fill(self, here: _Inside) -> list[_Inside]:
        """Copies the files of one directory; the directories in it, empty."""
        into = syscalls.open_in_root(self._root, here.path, DIRECTORY)
        level = _Level(here.path, into, {}, set())
        try:
            for number in here.layers:
                with self._opened(number, here.path) as source:
                    for name in set(map(os.fsencode, os.listdir(source))) - level.closed:
                        self._take(number, source, name, level)
                level.closed.update(self._hidden[number].get(here.path, ()))
            for name in level.directories:
                os.mkdir(name, 0o700, dir_fd=into)
        finally:
            os.close(into)
        return [_Inside(join(here.path, name), tuple(of)) for name, of in level.directories.items()]

    def _take(self, number: int, source: int, name: bytes, level: _Level) -> None:
        """What one layer has under a name that no layer above it has closed."""
        facts = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISDIR(facts.st_mode):
            level.directories.setdefault(name, []).append(number)
            if self._is_opaque(number, source, level.path, name):
                level.closed.add(name)
            return
        level.closed.add(name)
        if name not in level.directories and not _is_whiteout(facts):
            self._copier.copy(source, name, level.into, facts)

    def _is_opaque(self, number: int, source: int, path: bytes, name: bytes) -> bool:
        if join(path, name) in self._opaque[number]:
            return True
        fd = os.open(name, DIRECTORY, dir_fd=source)
        try:
            return os.getxattr(fd, OPAQUE_XATTR) == b"y"
        except OSError:
            return False
        finally:
            os.close(fd)

    def _finish(self, here: _Inside) -> None:
        """Attributes of a directory: those of the topmost layer that describes it.

        A layer may hold `tmp/x` without an entry `tmp`, which keeps its `1777` from below then.
        """
        describing = [one for one in here.layers if here.path not in self._implied[one]]
        if not (describing or (here.path and here.layers)):
            return  # the root of an image that says nothing of it stays as we made it
        number = (describing or here.layers)[0]
        with (
            self._opened(number, here.path) as source,
            opened_below(self._root, here.path) as target,
        ):
            _give_attributes(source, target, os.fstat(source))

    @contextlib.contextmanager
    def _opened(self, number: int, path: bytes) -> Iterator[int]:
        with opened(self._lowers[number].path) as root:
            fd = syscalls.open_in_root(root, path, DIRECTORY)
        try:
            yield fd
        finally:
            os.close(fd)


class _Copier:
    """Copies single files, in the fastest way that this disk has."""

    def __init__(self) -> None:
        self._ways = [_clone, _copy_range, _send]

    def copy(self, source: int, name: bytes, into: int, facts: os.stat_result) -> None:
        """Copies what is no directory; what cannot be in a layer is left out."""
        kind = stat.S_IFMT(facts.st_mode)
        if kind == stat.S_IFREG:
            self._file(source, name, into, facts)
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=into)
            give_entry(into, name, facts.st_uid, facts.st_gid)
            ns = (facts.st_mtime_ns, facts.st_mtime_ns)
            os.utime(name, ns=ns, dir_fd=into, follow_symlinks=False)
        elif kind == stat.S_IFIFO:
            _copy_pipe(source, name, into, facts)

    def _file(self, source: int, name: bytes, into: int, facts: os.stat_result) -> None:
        content = os.open(name, _READ, dir_fd=source)
        try:
            out = os.open(name, _CREATE, 0o600, dir_fd=into)
            try:
                if facts.st_size:
                    self._content(content, out)
                _give_attributes(content, out, facts)
            finally:
                os.close(out)
        finally:
            os.close(content)

    def _content(self, content: int, out: int) -> None:
        while len(self._ways) > 1:
            try:
                return self._ways[0](content, out)
            except OSError as error:
                if error.errno not in _NOT_SO:
                    raise
            del self._ways[0]
            os.ftruncate(out, 0)
        return self._ways[0](content, out)


def _copy_pipe(source: int, name: bytes, into: int, facts: os.stat_result) -> None:
    os.mkfifo(name, 0o600, dir_fd=into)
    old = os.open(name, _READ, dir_fd=source)  # does not wait for a writer
    try:
        new = os.open(name, _READ, dir_fd=into)
        try:
            _give_attributes(old, new, facts)
        finally:
            os.close(new)
    finally:
        os.close(old)


def _clone(content: int, out: int) -> None:
    fcntl.ioctl(out, _FICLONE, content)


def _copy_range(content: int, out: int) -> None:
    done = 0
    while count := os.copy_file_range(content, out, _CHUNK, done, done):
        done += count


def _send(content: int, out: int) -> None:
    done = os.lseek(out, 0, os.SEEK_SET)
    while count := os.sendfile(out, content, done, _CHUNK):
        done += count


def _give_attributes(source: int, target: int, facts: os.stat_result) -> None:
    """Owner, extended attributes, mode and time of an original that is open in its layer."""
    # chown clears setuid bits and capabilities, so it comes first.
    if facts.st_uid or facts.st_gid:
        give(target, facts.st_uid, facts.st_gid)
    for name, value in image_xattrs(source):
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.EACCES):
                raise
    os.fchmod(target, stat.S_IMODE(facts.st_mode))
    os.utime(target, ns=(facts.st_mtime_ns, facts.st_mtime_ns))


def _by_parent(paths: Sequence[str]) -> dict[bytes, frozenset[bytes]]:
    """The names in each directory that a layer hides without a mark on the disk."""
    found: dict[bytes, set[bytes]] = {}
    for path in map(os.fsencode, paths):
        parent, _, name = path.rpartition(b"/")
        found.setdefault(parent, set()).add(name)
    return {parent: frozenset(names) for parent, names in found.items()}


def _is_whiteout(facts: os.stat_result) -> bool:
    return stat.S_ISCHR(facts.st_mode) and facts.st_rdev == 0
