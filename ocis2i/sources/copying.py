"""Copies the content of files inside the kernel, large ones by two threads.

While the kernel finds memory for one file, which on a virtual machine can take twice as long as the
copy itself, another one is copied.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable
from types import TracebackType

from ocis2i.sources.paths import NO_FOLLOW

BLOCK = 8 << 20
_SMALL = 128 << 10
# Of what is smaller starting a thread costs as much as it saves.
_LARGE = 1 << 20


def copy_file(source: int, target_directory: int, name: str, mode: int) -> None:
    """Copies an open file to a new one with `mode`; time of change and holes are kept.

    The data moves inside the kernel, so memory is flat. Raises `OSError`, also when the file
    shrinks meanwhile.
    """
    _fill(source, _create(target_directory, name), os.fstat(source), mode)


class Copier:
    """`copy_file`, but large files may still be on their way when `copy` returns.

    As a context it waits for them, or, when it is left by an error, ends them. What goes wrong
    with one is `failure` of its path and the `OSError`, raised by a later `copy` or the end.
    """

    def __init__(self, failure: Callable[[str, OSError], Exception]) -> None:
        self._failure = failure
        self._thread: threading.Thread | None = None
        self._cancel = threading.Event()
        self._failed: Exception | None = None

    def __enter__(self) -> Copier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: object, __: TracebackType | None
    ) -> None:
        if kind:
            self._cancel.set()
        try:
            if self._thread:
                self._thread.join()
        except BaseException:  # an interruption: nobody waits for the rest of it
            self._cancel.set()
            raise
        if self._failed and not kind:
            raise self._failed

    def copy(self, source: int, target_directory: int, name: str, mode: int, path: str) -> None:
        """Copies an open file; `path` is what it is called. The new one is there at once."""
        status = os.fstat(source)
        target = _create(target_directory, name)
        if status.st_blocks * 512 < _LARGE or (self._thread and self._thread.is_alive()):
            _fill(source, target, status, mode)
            return
        if self._failed:
            os.close(target)
            raise self._failed
        kept = os.dup(source)

        def fill() -> None:
            try:
                _fill(kept, target, status, mode, self._cancel)
            except OSError as error:
                self._failed = self._failure(path, error)
            except Exception as error:  # noqa: BLE001 - or half a file would pass for a whole one
                self._failed = error
            finally:
                os.close(kept)

        thread = threading.Thread(target=fill, daemon=True, name="copier")
        try:
            thread.start()
        except RuntimeError:  # this user, or this container, may have no more of them
            os.close(kept)
            _fill(source, target, status, mode)
        else:
            self._thread = thread


def _create(directory: int, name: str) -> int:
    return os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | NO_FOLLOW, 0o600, dir_fd=directory)


def _fill(
    source: int,
    target: int,
    status: os.stat_result,
    mode: int,
    cancel: threading.Event | None = None,
) -> None:
    """Copies content and time into the new file `target`, which is closed."""
    try:
        if 0 < status.st_size <= min(_SMALL, status.st_blocks * 512):
            _copy_at_once(source, target, status.st_size)
        else:
            _copy_extents(source, target, status.st_size, cancel)
        os.fchmod(target, mode)
        os.utime(target, ns=(status.st_mtime_ns, status.st_mtime_ns))
    finally:
        os.close(target)


def _copy_at_once(source: int, target: int, size: int) -> None:
    """A small file without holes: two calls, where looking for holes takes six."""
    data = os.pread(source, size, 0)
    if len(data) < size or os.write(target, data) < size:
        # Interrupted, or shorter than it was: the other way goes on, or says so.
        _copy_extents(source, target, size, None)


def _copy_extents(source: int, target: int, size: int, cancel: threading.Event | None) -> None:
    position = 0
    while extent := _next_extent(source, position, size):
        _copy_extent(source, target, *extent, cancel)
        position = extent[1]
    os.ftruncate(target, size)


def _next_extent(source: int, position: int, size: int) -> tuple[int, int] | None:
    """The next stretch of data, from and to in bytes; all that is left where holes are unknown."""
    if position >= size:
        return None
    try:
        begin = os.lseek(source, position, os.SEEK_DATA)
        end = os.lseek(source, begin, os.SEEK_HOLE)
    except OSError as error:
        if error.errno != errno.ENXIO:
            return (position, size)
        if not _is_hole(source, position):  # the end comes earlier than it did
            raise _shorter() from None
        return None
    return (begin, min(end, size)) if begin < size else None


def _is_hole(source: int, position: int) -> bool:
    # Not by its size: it may have grown again since, and there is data now.
    try:
        return os.lseek(source, position, os.SEEK_HOLE) == position
    except OSError:
        return False


def _copy_extent(
    source: int, target: int, begin: int, end: int, cancel: threading.Event | None
) -> None:
    position = begin
    while position < end:
        if cancel and cancel.is_set():
            raise OSError(errno.ECANCELED, os.strerror(errno.ECANCELED))
        moved = _copy_block(source, target, position, min(BLOCK, end - position))
        if not moved:
            raise _shorter()
        position += moved


def _shorter() -> OSError:
    return OSError(errno.ESTALE, "it became shorter while it was copied")


def _copy_block(source: int, target: int, position: int, count: int) -> int:
    try:
        moved = os.copy_file_range(source, target, count, position, position)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        moved = 0
    if moved:
        return moved
    # Between file systems, on older kernels, and for files that are made as they are read.
    os.lseek(target, position, os.SEEK_SET)
    return os.sendfile(target, source, position, count)
