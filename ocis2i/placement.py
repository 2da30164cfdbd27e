"""New directories where the file system makes files quickly.

ext4 without a journal, which many virtual machines for CI have, does not give an inode again that
was deleted less than some minutes ago. For each file that is made it looks at one after another
from the beginning of the group (`find_inode_bit` and `recently_deleted` in fs/ext4/ialloc.c). A
build deletes at its end what the container wrote. In the next build, in the same group, a file then
takes half a millisecond rather than 15 µs, which is ten seconds for 20,000 files.

Directories in one that has the flag `T` of chattr(1) are put into groups of their own, as far from
each other as those of the root directory (`find_group_orlov`). Some files tell whether a group
begins as a quick one; if not, the next directory is in another. The store remembers where our own
builds deleted much.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import sys
import time
from collections.abc import Collection
from pathlib import Path

from ocis2i.fs import write_atomic

# include/uapi/linux/fs.h; the numbers of x86, arm and most others. Where they are not known, or the
# file system has no such flag, the call is refused and nothing is lost.
_GET_FLAGS = 0x80086601  # FS_IOC_GETFLAGS
_SET_FLAGS = 0x40086602  # FS_IOC_SETFLAGS
_TOP_DIRECTORY = 0x00020000  # FS_TOPDIR_FL
_TRIES = 6
# Inodes of groups that ext4 fills together: 16 of 8192 as mke2fs(8) makes them (-G, -i).
_GROUP = 1 << 17
_SAMPLES = 12
# For how long what was deleted counts, if it was much.
_EMPTIED_SECONDS = 300
_EMPTIED_KEPT = 100
_MANY_ENTRIES = 1000
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
# Of processor time for a file. Usual are 12 to 20 µs; passing over a thousand inodes doubles it.
_QUICK_NS = 25_000


def new_directory(parent: Path, emptied: Collection[int] = ()) -> Path:
    """Makes a directory (mode 0700) with a name of its own in `parent`; raises `OSError`.

    Not near those of the inodes `emptied`, if that can be.
    """
    made = [_make(parent)]
    if not _spread(parent):
        return made[0]
    best, least = made[0], _cost(made[0], emptied)
    while least > _QUICK_NS and len(made) < _TRIES:
        made.append(_make(parent))
        cost = _cost(made[-1], emptied)
        if cost < least:
            best, least = made[-1], cost
    for path in made:
        if path != best:
            with contextlib.suppress(OSError):  # an empty one more does no harm
                path.rmdir()
    return best


def _make(parent: Path) -> Path:
    path = parent / secrets.token_hex(6)
    path.mkdir(mode=0o700)
    return path


def _cost(directory: Path, emptied: Collection[int]) -> int:
    """Nanoseconds for a file there, as far as can be told."""
    if _is_near(directory.stat().st_ino, emptied):
        return sys.maxsize
    return _time_of_a_file(directory)


def _is_near(inode: int, others: Collection[int]) -> bool:
    return any(abs(inode - other) < _GROUP for other in others)


def _time_of_a_file(directory: Path) -> int:
    """Nanoseconds of processor time to make a file there: the median of some."""
    above = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    names = [f"try-{number}" for number in range(_SAMPLES)]
    times = []
    try:
        for name in names:
            start = time.thread_time_ns()
            descriptor = os.open(name, _NEW, 0o600, dir_fd=above)
            times.append(time.thread_time_ns() - start)
            os.close(descriptor)
        for name in names:
            os.unlink(name, dir_fd=above)
    finally:
        os.close(above)
    return sorted(times)[_SAMPLES // 2]


def _spread(parent: Path) -> bool:
    """Lets the file system put each directory in `parent` elsewhere; false where it cannot."""
    descriptor = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flags = bytearray(4)
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        known = int.from_bytes(flags[:4], sys.byteorder)
        if not known & _TOP_DIRECTORY:
            fcntl.ioctl(descriptor, _SET_FLAGS, (known | _TOP_DIRECTORY).to_bytes(4, sys.byteorder))
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return True


class Emptied:
    """The file `path` with the directories from which many files were deleted a short time ago.

    `scratch` is a directory on the same file system. Nothing is lost with the file.
    """

    def __init__(self, path: Path, scratch: Path) -> None:
        self._path = path
        self._scratch = scratch

    def note(self, directory: Path, entries: int) -> None:
        """Remembers that so many files of a directory are about to be deleted."""
        if entries < _MANY_ENTRIES:
            return
        with contextlib.suppress(OSError):
            known = [*self._rows(), (directory.stat().st_ino, time.time())]
            data = json.dumps(known[-_EMPTIED_KEPT:]).encode()
            write_atomic(self._path, data, scratch=self._scratch, mode=0o600, durable=False)

    def inodes(self) -> list[int]:
        """The inodes of these directories."""
        return [inode for inode, _ in self._rows()]

    def _rows(self) -> list[tuple[int, float]]:
        try:
            rows = json.loads(self._path.read_bytes())
            known = [(int(inode), float(when)) for inode, when in rows]
        except (OSError, ValueError, TypeError, OverflowError, RecursionError):
            return []
        return [one for one in known if 0 <= time.time() - one[1] < _EMPTIED_SECONDS]
