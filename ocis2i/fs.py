"""Files on the host: atomic writes, locks, and explaining a full disk."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ocis2i.errors import Ocis2iError, OutputError

_PIPE_BYTES = 1 << 20


def is_full(error: OSError) -> bool:
    """Whether it says that a disk is full: then no input is to blame, whatever was being done."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def explain(error: OSError, what: str, *, reason: str = "FileSystemOperationFailed") -> Ocis2iError:
    """The `OutputError` for an operating system's error; a full disk is named for what it is."""
    if is_full(error):
        return OutputError(
            f"{what}: the disk is full",
            hint="free some space (`ocis2i prune`), or use another disk with --root",
            reason=reason,
        )
    named = isinstance(error.filename, str | bytes)  # calls by descriptor give its number
    where = f" (`{os.fsdecode(error.filename)}`)" if named else ""
    return OutputError(
        f"{what}: {error.strerror or error}{where}", hint=_way_out(error), reason=reason
    )


def _way_out(error: OSError) -> str:
    match error.errno:
        case errno.EACCES | errno.EPERM:
            return "let this user write there, or name another place"
        case errno.EROFS:
            return "it is on a read-only file system: name another place"
        case _:
            return "name a place that is there and can be written"


def wide_pipe() -> tuple[int, int]:
    """A pipe that takes as much at once as an ordinary user may have (pipe(7)), or less.

    Through the usual 64 KiB its two ends wait for each other 16 times as often.
    """
    read_end, write_end = os.pipe()
    with contextlib.suppress(OSError):  # its user has many wide ones already, or a small limit
        fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return read_end, write_end


def sync_directory(path: Path) -> None:
    """Makes a rename in `path` survive a power cut (fsync(2), NOTES)."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_atomic(
    path: Path, data: bytes, *, scratch: Path, mode: int = 0o644, durable: bool = True
) -> None:
    """Replaces `path` by `data` at once; `scratch` is a directory on the same file system.

    What is not `durable` may be torn when the machine crashes, and waits for no disk.
    """
    fd, name = tempfile.mkstemp(dir=scratch)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), mode)
            if durable:
                os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


class Lock:
    """An advisory lock on a file (flock(2)); gone when its holder is, however it ends."""

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
        self._fd = os.open(path, flags, 0o600)

    def fileno(self) -> int:
        """The descriptor that holds the lock; a child that inherits it holds it too."""
        return self._fd

    def acquire(self, *, shared: bool = False, wait: bool = True) -> bool:
        """Takes the lock; false when it would have to wait and `wait` is false."""
        flags = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.flock(self._fd, flags)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        """Gives the lock back."""
        os.close(self._fd)


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[Lock]:
    """Holds the lock of `path`, waiting for it."""
    lock = Lock(path)
    try:
        lock.acquire(shared=shared)
        yield lock
    finally:
        lock.release()


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Holds a lock on the directory itself: a lock file would stay where it is not wanted."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def remove_tree(path: Path) -> bool:
    """Removes a tree (or file) of our own; false when something in it is not ours to remove."""
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return True
        _open_up(path)
        for directory, _, files in os.walk(path, topdown=False, followlinks=False):
            for name in files:
                Path(directory, name).unlink()
            _remove_directories(Path(directory))
        path.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def _open_up(path: Path) -> None:
    """Lets us into the directories of our own in a tree: a source may have read-only ones."""
    _let_in(path)
    for directory, names, _ in os.walk(path):
        for name in names:
            _let_in(Path(directory, name))


def _let_in(directory: Path) -> None:
    if not directory.is_symlink():
        with contextlib.suppress(PermissionError):  # somebody else's
            directory.chmod(0o700)


def _remove_directories(directory: Path) -> None:
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_symlink():
                Path(entry.path).unlink()
            else:
                Path(entry.path).rmdir()


def boot_id() -> str:
    """Names this run of the kernel (proc_sys_kernel(5), random/boot_id)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
