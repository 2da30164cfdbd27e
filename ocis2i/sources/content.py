"""What a directory would bring into a build, as one digest: the walk of `local`, without a copy.

Two trees with the same digest are copied into the same tree: names, modes, links and contents, by
the same rules of `.s2iignore`, `--exclude` and links. Times count only where the image would have
them (see `read_tree`).

Contents that were read once are known again by size, times and inode, as git's index does it, and
with its rule for what is too young to be known by its times (Documentation/technical/racy-git).
"""

from __future__ import annotations

import hashlib
import os
import stat
import threading
import time
from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import NamedTuple

from ocis2i.errors import SourceError
from ocis2i.events import silent
from ocis2i.lazy_dataclass import dataclass
from ocis2i.sources.ignore import Filter
from ocis2i.sources.local import (
    DEPTH_LIMIT,
    FOLLOWED_LIMIT,
    CopyOrder,
    DirSource,
    find_start,
    read_filter,
)
from ocis2i.sources.paths import DIRECTORY, NO_FOLLOW, find_real, open_directory, open_real

# Size, time of change, time of change of the inode (both nanoseconds), device, inode, digest.
Row = tuple[int, int, int, int, int, str]
Known = dict[str, Row]

_BLOCK = 1 << 20
# The kernel's times are those of its last tick (10 ms at most), some disks know seconds only.
_TICK_NS = 20_000_000
_COARSE_NS = 2_000_000_000
# Times of these say too little. Some are another machine's, whose clock may be behind ours; others
# are those that somebody wrote into an image, or have no time of the inode that cannot be set.
_UNTIMED = frozenset(
    "nfs nfs4 cifs smb3 smbfs ceph 9p virtiofs afs lustre glusterfs gfs2 ocfs2 vboxsf prl_fs "
    "vmhgfs fakeowner squashfs erofs cramfs romfs iso9660 udf vfat msdos exfat proc sysfs".split()
)


class _UnfitError(Exception):
    """A tree that a build would refuse, or that cannot be told by what is read here."""


@dataclass(frozen=True, slots=True)
class Content:
    """A source's `digest`, and when (nanoseconds since 1970) it changed last.

    `place` is the device and the inode that the source's path led to. `files` is what to pass as
    `known` the next time; `read` counts the files that were read.
    """

    digest: str
    changed_ns: int
    place: tuple[int, int] = (0, 0)
    files: Known = field(default_factory=dict, repr=False)
    read: int = 0

    def is_older_than(self, moment_ns: int) -> bool:
        """Whether all of it was surely the same at a moment as it is now."""
        return self.changed_ns < moment_ns


def read_tree(
    source: DirSource,
    known: Mapping[str, Row],
    *,
    clamp_seconds: int | None = None,
    cancel: threading.Event | None = None,
) -> Content | None:
    """The content of a directory as `fetch_directory` would copy it.

    With `clamp_seconds` the times count, as far as they are earlier: a layer with clamped times
    has them. Without, they do not: no two builds have the same times then. `None` for a tree that
    cannot be told so: one that a build refuses, or on a disk whose times say too little. Ends
    early, with `None`, after `cancel`.
    """
    follow = not source.keep_symlinks
    try:
        with open_directory(source.path) as root_fd:
            if _is_untimed(root_fd):
                return None
            order = CopyOrder(source.context_dir, source.exclude, own=source.own_inside)
            start = find_start(root_fd, source.context_dir)
            with open_real(root_fd, start, DIRECTORY) as start_fd:
                rules = read_filter(start_fd, order, silent)
                walk = _Walk(root_fd, known, rules, clamp_seconds, cancel, follow=follow)
                walk.begin(os.fstat(start_fd))
                walk.children(start_fd, _At("", start))
    except (_UnfitError, OSError, SourceError, UnicodeError, RecursionError):
        return None
    return walk.content()


def read_one(path: Path, known: Mapping[str, Row]) -> Content | None:
    """The content of one file, as `read_tree`."""
    try:
        with open_directory(path.parent) as directory:
            if _is_untimed(directory):
                return None
            # The user named it: links on the way are followed.
            status = os.stat(path.name, dir_fd=directory)
            if not stat.S_ISREG(status.st_mode):
                return None
            walk = _Walk(directory, known, Filter(), None, None, follow=True)
            walk.begin(status)
            walk.file(directory, path.name, "", status, follow=True)
    except (_UnfitError, OSError, SourceError):
        return None
    return walk.content()


def find_place(source: DirSource | Path) -> tuple[int, int] | None:
    """The device and the inode that a path leads to now, as `Content.place`."""
    try:
        if isinstance(source, Path):
            status = source.stat()
        else:
            with (
                open_directory(source.path) as root_fd,
                open_real(root_fd, find_start(root_fd, source.context_dir), DIRECTORY) as start_fd,
            ):
                status = os.fstat(start_fd)
    except (OSError, ValueError, SourceError):
        return None
    return status.st_dev, status.st_ino


class _At(NamedTuple):
    """A place of the walk: as the result has it, and where it really is below the root."""

    path: str
    real: str
    above: tuple[tuple[int, int], ...] = ()
    dropped: bool = False
    followed: bool = False


class _Walk:
    """One walk; see `ocis2i.sources.local._Copy`, whose decisions it repeats."""

    def __init__(
        self,
        root_fd: int,
        known: Mapping[str, Row],
        rules: Filter,
        clamp_seconds: int | None,
        cancel: threading.Event | None,
        *,
        follow: bool,
    ) -> None:
        self._root_fd = root_fd
        self._known = known
        self._rules = rules
        self._clamp_seconds = clamp_seconds
        self._cancel = cancel
        self._follow = follow
        # Of all lines at once: they would take more memory than all else that grows with the files.
        self._hash_of_lines = hashlib.sha256()
        self._between = b""
        self._changed_ns = 0
        self._followed = 0
        self._read = 0
        self._files: Known = {}
        self._now_ns = time.time_ns()
        self._place = (0, 0)
        self._devices: set[int] = set()

    def begin(self, status: os.stat_result) -> None:
        """Notes where the walk starts."""
        self._place = (status.st_dev, status.st_ino)
        self._devices.add(status.st_dev)
        self.note_change(status)

    def content(self) -> Content:
        """What was found."""
        digest = self._hash_of_lines.hexdigest()
        return Content(digest, self._changed_ns, self._place, self._files, self._read)

    def children(self, source: int, at: _At) -> None:
        """Reads what is in one directory."""
        own = os.fstat(source)
        if own.st_dev not in self._devices:  # another disk is mounted here
            if _is_untimed(source):
                raise _UnfitError
            self._devices.add(own.st_dev)
        identity = (own.st_dev, own.st_ino)
        if identity in at.above or len(at.above) > DEPTH_LIMIT:
            raise _UnfitError
        above = (*at.above, identity)
        with os.scandir(source) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            path = f"{at.path}/{entry.name}" if at.path else entry.name
            dropped = at.dropped or self._rules.drops(path)
            if dropped and path not in self._rules.spared:
                continue
            self._count(followed=at.followed)
            status = entry.stat(follow_symlinks=False)
            kind = stat.S_IFMT(status.st_mode)
            if kind == stat.S_IFREG:
                self.file(source, entry.name, path, status)
                continue
            below = _At(path, f"{at.real}/{entry.name}", above, dropped, at.followed)
            if kind == stat.S_IFDIR:
                descriptor = os.open(entry.name, DIRECTORY | os.O_NOFOLLOW, dir_fd=source)
                try:
                    self._directory(descriptor, below)
                finally:
                    os.close(descriptor)
            elif kind == stat.S_IFLNK:
                self._link(source, entry.name, below, status)
            else:
                raise _UnfitError

    def _directory(self, descriptor: int, at: _At) -> None:
        status = os.fstat(descriptor)
        self.note_change(status)
        self._line("d", at.path, status)
        self.children(descriptor, at)

    def _link(self, source: int, name: str, at: _At, status: os.stat_result) -> None:
        self.note_change(status)
        target = os.readlink(name, dir_fd=source)
        found = find_real(self._root_fd, at.real) if self._follow else None
        if found and not found.inside:
            raise _UnfitError  # refused, or a link to what may be there the next time
        if not found or found.path is None or self._rules.excludes_within(found.path):
            self._line("l", at.path, status, target)
            return
        # The way to what it leads to may be outside of what is walked.
        parents = found.path.split("/")[:-1]
        for length in range(1, len(parents) + 1):
            self.note_change(os.stat("/".join(parents[:length]), dir_fd=self._root_fd))
        with open_real(self._root_fd, found.path, os.O_RDONLY) as descriptor:
            led = os.fstat(descriptor)
            self._count(followed=True)
            if stat.S_ISDIR(led.st_mode):
                self._directory(descriptor, at._replace(real=found.path, followed=True))
            else:
                self._file(descriptor, at.path, led)

    def file(
        self,
        directory: int,
        name: str,
        path: str,
        status: os.stat_result,
        *,
        follow: bool = False,
    ) -> None:
        """Notes a regular file; it is read only where its times do not say that it is known."""
        if (digest := self._digest_known(path, status)) is not None:
            self._note_file(path, status, digest)
            return
        flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(name, flags if follow else flags | NO_FOLLOW, dir_fd=directory)
        try:
            self._file(descriptor, path, os.fstat(descriptor))
        finally:
            os.close(descriptor)

    def _file(self, descriptor: int, path: str, status: os.stat_result) -> None:
        if not stat.S_ISREG(status.st_mode):
            raise _UnfitError
        digest = self._digest_known(path, status)
        if digest is None:
            digest = self._hash(descriptor)
            after = os.fstat(descriptor)
            if _identity(after) != _identity(status):
                raise _UnfitError  # it changed while it was read
        self._note_file(path, status, digest)

    def _hash(self, descriptor: int) -> str:
        self._read += 1
        found = hashlib.sha256()
        while data := os.read(descriptor, _BLOCK):
            found.update(data)
            if self._cancel and self._cancel.is_set():
                raise _UnfitError
        return found.hexdigest()

    def _digest_known(self, path: str, status: os.stat_result) -> str | None:
        row = self._known.get(path)
        return row[5] if row is not None and tuple(row[:5]) == _identity(status) else None

    def _note_file(self, path: str, status: os.stat_result, digest: str) -> None:
        self.note_change(status)
        if _last_change(status) < self._now_ns:
            self._files[path] = (*_identity(status), digest)
        self._line("f", path, status, digest)

    def _line(self, kind: str, path: str, status: os.stat_result, more: str = "") -> None:
        # A link has no mode of its own, and none of them counts the owner: all are made new.
        mode = 0 if kind == "l" else stat.S_IMODE(status.st_mode)
        line = f"{kind}\0{path}\0{mode:o}\0{more}"
        if self._clamp_seconds is not None:
            line += f"\0{min(status.st_mtime_ns // 10**9, self._clamp_seconds)}"
        self._hash_of_lines.update(self._between + line.encode(errors="surrogateescape"))
        self._between = b"\0"

    def note_change(self, status: os.stat_result) -> None:
        """Remembers the latest change of all."""
        self._changed_ns = max(self._changed_ns, _last_change(status))

    def _count(self, *, followed: bool) -> None:
        self._followed += followed
        if self._followed > FOLLOWED_LIMIT or (self._cancel and self._cancel.is_set()):
            raise _UnfitError


def _identity(status: os.stat_result) -> tuple[int, int, int, int, int]:
    return (
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
        status.st_dev,
        status.st_ino,
    )


def _last_change(status: os.stat_result) -> int:
    """The latest moment at which it may have changed; nanoseconds since 1970."""
    # The time of change (mtime) can be set to anything, that of the inode (ctime) cannot.
    last = status.st_ctime_ns
    return last + (_TICK_NS if last % 1_000_000_000 else _COARSE_NS)


def _is_untimed(descriptor: int) -> bool:
    device = os.fstat(descriptor).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(errors="replace").splitlines()
    except OSError:
        return True
    # proc_pid_mountinfo(5): the third field is the device, after ` - ` comes the kind.
    for line in lines:
        before, _, after = line.partition(" - ")
        if before.split(" ", 3)[2] == wanted:
            kind = after.partition(" ")[0]
            return kind in _UNTIMED or kind.startswith("fuse")
    return False
