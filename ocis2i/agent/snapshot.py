"""What a tree is like at one moment, so that it can be told later what has changed in it.

A process may set a file's time to whatever it likes, but not the moment of its last change, which
the kernel writes down (`st_ctim`, inode(7)): a second edit in the same second, of the same size and
with the old time put back, is seen without reading any content.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from ocis2i import syscalls
from ocis2i.agent.tree import DIRECTORY, image_xattrs, open_to_walk

Xattrs = tuple[tuple[bytes, bytes], ...]
HashIf = Callable[[bytes, os.stat_result], bool]

# In place of a directory's birth: it is not told apart from another one, or by its number alone.
ANY = -1
BY_NUMBER = -2

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_CHUNK = 1 << 20
# How long a file system's clock may stand still: two seconds of FAT, a second of old NFS servers,
# ten milliseconds of kernels before 6.13.
_LONGEST_TICK_SECONDS = 2.1
_PAUSE_SECONDS = 0.004


class Fact(NamedTuple):
    """One entry of the tree, times in nanoseconds.

    `links` counts the names of a file. `birth_ns` is a directory's, 0 when the file system does
    not tell it; `ANY` and `BY_NUMBER` stand in its place. `content` is a file's hash or a link's
    target, and with `xattrs` only there when they were asked for; directories have their `xattrs`
    always.
    """

    mode: int
    uid: int
    gid: int
    size: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    links: int
    birth_ns: int = 0
    content: bytes = b""
    xattrs: Xattrs = ()

    def same_inode(self, facts: os.stat_result) -> bool:
        """Whether it is the same inode, and nothing was done to it: not even a link made."""
        return (self.device, self.inode, self.ctime_ns, self.mode) == (
            facts.st_dev,
            facts.st_ino,
            facts.st_ctime_ns,
            facts.st_mode,
        )


class Snapshot(NamedTuple):
    """A tree: the `root`, and what is in each of its directories, by paths without leading slash.

    A directory that could not be listed is among the entries, and not among the `directories`.
    `skipped` are paths that nothing is known of; `latest_ns` is the last change of anything.
    """

    root: Fact
    directories: dict[bytes, dict[bytes, Fact]]
    skipped: frozenset[bytes]
    latest_ns: int


def take(
    root_fd: int,
    skip: Collection[bytes] = (),
    *,
    hash_if: HashIf | None = None,
    births: bool = True,
) -> Snapshot:
    """The snapshot of the tree `root_fd`, without the paths `skip` and what is below them.

    For files and links of which `hash_if(path, facts)` is true the content is kept, so that it can
    be told later that a changed one is as it was. Without `births` a directory is not told apart
    from one that has its name later. What this process may not see is left out: the payload, which
    may not do more, cannot change it.
    """
    taker = _Taker(frozenset(skip), hash_if, births=births)
    facts = os.fstat(root_fd)
    # Opened anew: btrfs lists for a descriptor what was there when it was opened (Linux 6.5).
    root = taker.directory(os.open(b".", DIRECTORY, dir_fd=root_fd), b"", facts)
    return Snapshot(root, taker.directories, taker.skipped, taker.latest_ns)


def settle(directory: int, latest_ns: int) -> None:
    """Waits until a change in `directory`'s file system gets a later time than `latest_ns`.

    Kernels before 6.13 take the time of the last timer tick: what is changed in the same one as
    the snapshot would look unchanged. Without permission to write there it just waits for a tick.
    """
    name = b".ocis2i-clock"
    patience = time.monotonic() + _LONGEST_TICK_SECONDS
    try:
        fd = os.open(
            name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory
        )
    except OSError:
        time.sleep(5 * _PAUSE_SECONDS)
        return
    try:
        while os.fstat(fd).st_ctime_ns <= latest_ns and time.monotonic() < patience:
            time.sleep(_PAUSE_SECONDS)
            os.fchmod(fd, 0o600)
    finally:
        os.close(fd)
        os.unlink(name, dir_fd=directory)


def hash_file(fd: int) -> bytes:
    """A hash of an open file's content, from where it is read; afterwards at its beginning."""
    import hashlib  # noqa: PLC0415 - few snapshots hash, and starting must be fast

    digest = hashlib.blake2b(digest_size=32)
    while data := os.read(fd, _CHUNK):
        digest.update(data)
    os.lseek(fd, 0, os.SEEK_SET)
    return digest.digest()


class _Taker:
    """The state of one walk."""

    def __init__(self, skipped: frozenset[bytes], hash_if: HashIf | None, *, births: bool) -> None:
        self.skipped = skipped
        self.directories: dict[bytes, dict[bytes, Fact]] = {}
        self.latest_ns = 0
        self._hash_if = hash_if
        self._births = births

    def directory(self, fd: int, path: bytes, facts: os.stat_result) -> Fact:
        """Lists the open directory, which is closed afterwards."""
        try:
            entries: dict[bytes, Fact] = {}
            self.directories[path] = entries
            for name in map(os.fsencode, os.listdir(fd)):
                below = path + b"/" + name if path else name
                fact = None if below in self.skipped else self._entry(fd, name, below)
                if fact is not None:
                    entries[name] = fact
            birth_ns = syscalls.birth_ns(fd) if self._births else ANY
            return self._fact(facts, birth_ns=birth_ns, xattrs=image_xattrs(fd, mounted=True))
        finally:
            os.close(fd)

    def _entry(self, parent: int, name: bytes, path: bytes) -> Fact | None:
        try:
            facts = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(facts.st_mode):
                return self._enter(parent, name, path, facts)
            if self._hash_if is not None and self._hash_if(path, facts):
                return self._with_content(parent, name, facts)
        except FileNotFoundError:  # somebody else's, and gone meanwhile
            return None
        return self._fact(facts)

    def _enter(self, parent: int, name: bytes, path: bytes, facts: os.stat_result) -> Fact:
        try:
            fd = open_to_walk(parent, name)
        except PermissionError:
            return self._fact(facts)
        return self.directory(fd, path, facts)

    def _with_content(self, parent: int, name: bytes, facts: os.stat_result) -> Fact:
        if stat.S_ISLNK(facts.st_mode):
            return self._fact(facts, content=os.readlink(name, dir_fd=parent))
        if not stat.S_ISREG(facts.st_mode):
            return self._fact(facts)
        try:
            fd = os.open(name, _FILE, dir_fd=parent)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                raise
            return self._fact(facts)
        try:
            return self._fact(facts, content=hash_file(fd), xattrs=image_xattrs(fd, mounted=True))
        finally:
            os.close(fd)

    def _fact(
        self,
        facts: os.stat_result,
        *,
        birth_ns: int = 0,
        content: bytes = b"",
        xattrs: Xattrs = (),
    ) -> Fact:
        self.latest_ns = max(self.latest_ns, facts.st_ctime_ns)
        return Fact(
            facts.st_mode,
            facts.st_uid,
            facts.st_gid,
            facts.st_size,
            facts.st_mtime_ns,
            facts.st_ctime_ns,
            facts.st_dev,
            facts.st_ino,
            facts.st_nlink,
            birth_ns,
            content,
            xattrs,
        )
