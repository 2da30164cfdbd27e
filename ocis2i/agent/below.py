"""Directories as they were before a build, for the walk over what they have become.

Below an overlay's upper directory that is the mounted image, for a tree of its own a snapshot.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from typing import Protocol

from ocis2i import syscalls
from ocis2i.agent.snapshot import ANY, BY_NUMBER, Fact, Snapshot, Xattrs, hash_file
from ocis2i.agent.tree import DIRECTORY, OPAQUE_XATTR, ORIGIN_XATTR, image_xattrs

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
_CHUNK = 1 << 20


class Below(Protocol):
    """A directory as it was before the build: what the one of that name now is compared with."""

    def names(self) -> Iterable[bytes]:
        """Entries to look at even when the changed tree does not list them."""

    def has(self, name: bytes) -> bool:
        """Whether there was such an entry."""

    def kept(self, name: bytes, facts: os.stat_result, fd: int) -> bool:
        """Whether the entry is still the one from before, and no other in its place.

        `fd` is a regular file, open, else -1.
        """

    def enter(self, name: bytes) -> Below | None:
        """The directory in it; `None` when it was none."""

    def replaced(self, fd: int) -> bool:
        """Whether the open directory is another one, that shows nothing of this."""

    def untouched(self, name: bytes, facts: os.stat_result) -> bool:
        """Whether nothing was done to the entry, as far as that can be told without its content."""

    def same_directory(self, fd: int, facts: os.stat_result) -> bool:
        """Whether the open directory has the attributes of this.

        The time alone is no change, making an entry in it sets that.
        """

    def same_link(self, name: bytes, facts: os.stat_result, target: bytes) -> bool:
        """Whether a symbolic link is as it was."""

    def same_file(self, name: bytes, facts: os.stat_result, fd: int, xattrs: Xattrs) -> bool:
        """Whether the open regular file is as it was, to its content."""

    def close(self) -> None:
        """The end of its use."""


class Lower(Below):
    """A directory of the base, mounted below the upper directory that is compared with it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def names(self) -> Iterable[bytes]:
        """None: the upper directory has an entry for whatever is gone."""
        return ()

    def has(self, name: bytes) -> bool:
        return self._stat(name) is not None

    def kept(self, name: bytes, facts: os.stat_result, fd: int) -> bool:
        below = self._stat(name)
        if below is None or stat.S_IFMT(below.st_mode) != stat.S_IFMT(facts.st_mode):
            return False
        # Links and pipes cannot have the mark that overlayfs gives what it copies up (xattr(7)),
        # and one of several names does not get it (`ovl_copy_up_one`, without an index).
        return fd < 0 or below.st_nlink > 1 or _has_origin(fd)

    def enter(self, name: bytes) -> Below | None:
        try:
            return Lower(os.open(name, DIRECTORY, dir_fd=self._fd))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None
            raise

    def replaced(self, fd: int) -> bool:
        return _is_opaque(fd)

    def untouched(self, name: bytes, facts: os.stat_result) -> bool:  # noqa: ARG002
        """Nothing is: it would not be in the upper directory."""
        return False

    def same_directory(self, fd: int, facts: os.stat_result) -> bool:
        return _access(facts) == _access(os.fstat(self._fd)) and image_xattrs(fd) == image_xattrs(
            self._fd, mounted=True
        )

    def same_link(self, name: bytes, facts: os.stat_result, target: bytes) -> bool:
        below = self._stat(name)
        return (
            below is not None
            and facts.st_nlink == 1
            and _facts(below) == _facts(facts)
            and os.readlink(name, dir_fd=self._fd) == target
        )

    def same_file(self, name: bytes, facts: os.stat_result, fd: int, xattrs: Xattrs) -> bool:
        below = self._stat(name)
        if below is None or facts.st_nlink != 1 or _facts(below) != _facts(facts):
            return False
        other = os.open(name, _FILE, dir_fd=self._fd)
        try:
            return image_xattrs(other, mounted=True) == xattrs and same_content(fd, other)
        finally:
            os.close(other)

    def close(self) -> None:
        os.close(self._fd)

    def _stat(self, name: bytes) -> os.stat_result | None:
        try:
            return os.stat(name, dir_fd=self._fd, follow_symlinks=False)
        except FileNotFoundError:
            return None


class Contents(Protocol):
    """What was in the files of a snapshot."""

    def links(self, path: bytes, fact: Fact) -> int:
        """How many names the file had in its image."""

    def same_link(self, path: bytes, fact: Fact, target: bytes) -> bool:
        """Whether the symbolic link had this target."""

    def same_file(self, path: bytes, fact: Fact, fd: int, xattrs: Xattrs) -> bool:
        """Whether the file had the content of the open one, and its attributes `xattrs`."""


class Hashed(Contents):
    """Contents that the snapshot has itself, for what it was told to hash."""

    def links(self, path: bytes, fact: Fact) -> int:  # noqa: ARG002
        return fact.links

    def same_link(self, path: bytes, fact: Fact, target: bytes) -> bool:  # noqa: ARG002
        return fact.content == target

    def same_file(self, path: bytes, fact: Fact, fd: int, xattrs: Xattrs) -> bool:  # noqa: ARG002
        return bool(fact.content) and fact.xattrs == xattrs and fact.content == hash_file(fd)


class Before(Below):
    """A directory of a snapshot."""

    def __init__(self, snapshot: Snapshot, contents: Contents, path: bytes, fact: Fact) -> None:
        self._snapshot = snapshot
        self._contents = contents
        self._path = path
        self._fact = fact
        self._entries = snapshot.directories.get(path, {})

    def names(self) -> Iterable[bytes]:
        return self._entries

    def has(self, name: bytes) -> bool:
        return name in self._entries

    def kept(self, name: bytes, facts: os.stat_result, fd: int) -> bool:  # noqa: ARG002
        fact = self._entries.get(name)
        return fact is not None and (fact.device, fact.inode, stat.S_IFMT(fact.mode)) == (
            facts.st_dev,
            facts.st_ino,
            stat.S_IFMT(facts.st_mode),
        )

    def enter(self, name: bytes) -> Below | None:
        fact = self._entries.get(name)
        if fact is None or not stat.S_ISDIR(fact.mode):
            return None
        return Before(self._snapshot, self._contents, self._join(name), fact)

    def replaced(self, fd: int) -> bool:
        """A number may be given to a new directory, but not the time when it was made.

        Where the file system does not tell that, what is gone may have whiteouts of its own, which
        is as right.
        """
        if self._fact.birth_ns == ANY:
            return False
        facts = os.fstat(fd)
        if self._fact.birth_ns == BY_NUMBER:
            return (self._fact.device, self._fact.inode) != (facts.st_dev, facts.st_ino)
        before = (self._fact.device, self._fact.inode, self._fact.birth_ns)
        return before != (facts.st_dev, facts.st_ino, syscalls.birth_ns(fd))

    def untouched(self, name: bytes, facts: os.stat_result) -> bool:
        fact = self._entries.get(name)
        return fact is not None and fact.same_inode(facts)

    def same_directory(self, fd: int, facts: os.stat_result) -> bool:
        before = (self._fact.mode, self._fact.uid, self._fact.gid)
        return before == _access(facts) and self._fact.xattrs == image_xattrs(fd, mounted=True)

    def same_link(self, name: bytes, facts: os.stat_result, target: bytes) -> bool:
        fact = self._alike(name, facts)
        return fact is not None and self._contents.same_link(self._join(name), fact, target)

    def same_file(self, name: bytes, facts: os.stat_result, fd: int, xattrs: Xattrs) -> bool:
        fact = self._alike(name, facts)
        return fact is not None and self._contents.same_file(self._join(name), fact, fd, xattrs)

    def close(self) -> None:
        """Nothing is open."""

    def _alike(self, name: bytes, facts: os.stat_result) -> Fact | None:
        """What was there, if all that `stat` tells is as it was, but for when it changed."""
        fact = self._entries.get(name)
        if fact is None:
            return None
        now = (*_access(facts), facts.st_size, facts.st_mtime_ns, facts.st_nlink)
        before = (fact.mode, fact.uid, fact.gid, fact.size, fact.mtime_ns, fact.links)
        # In the layer it would be a file of its own, and no more one of the image's links.
        linked = self._contents.links(self._join(name), fact) != fact.links
        return None if now != before or linked else fact

    def _join(self, name: bytes) -> bytes:
        return self._path + b"/" + name if self._path else name


def _access(facts: os.stat_result) -> tuple[int, int, int]:
    return facts.st_mode, facts.st_uid, facts.st_gid


def _facts(facts: os.stat_result) -> tuple[int, ...]:
    # The number of links too: a name that was copied up is no longer one of the base's links.
    return (*_access(facts), facts.st_nlink, facts.st_size, facts.st_mtime_ns)


def same_content(one: int, other: int) -> bool:
    """Whether two open files hold the same; the first is at its beginning afterwards."""
    same = more = True
    while same and more:
        data = os.read(one, _CHUNK)
        same, more = data == os.read(other, _CHUNK), bool(data)
    os.lseek(one, 0, os.SEEK_SET)
    return same


def _has_origin(fd: int) -> bool:
    try:
        os.getxattr(fd, ORIGIN_XATTR)
    except OSError:
        return False
    return True


def _is_opaque(fd: int) -> bool:
    try:
        return os.getxattr(fd, OPAQUE_XATTR) == b"y"
    except OSError:
        return False
