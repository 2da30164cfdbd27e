"""Files that appear whole or not at all, and what to say when they cannot be written."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from ocis2i.blobs import CHUNK, Readable
from ocis2i.errors import OutputError
from ocis2i.fs import sync_directory

_HINTS = {
    errno.ENOSPC: "free some space or write to another file system",
    errno.EDQUOT: "your disk quota is used up",
    errno.EACCES: "you need the permission to write there",
    errno.EPERM: "you need the permission to write there",
    errno.EROFS: "the file system is read-only",
    errno.ENOENT: "create the directory first",
    errno.ENOTDIR: "a file is where a directory should be",
    errno.EEXIST: "a file is where a directory should be",
    errno.EFBIG: "the file system or a limit does not allow files of that size",
}


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turns what the operating system says about `path` into an `OutputError`."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"cannot write `{path}`: {error.strerror}", hint=_HINTS.get(error.errno or 0)
        ) from error


@contextmanager
def whole_file(target: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """A new file that becomes `target` at the end of the `with`, if nothing was raised.

    It is written under another name in `scratch` (default: the directory of `target`; it must be
    on the same file system), reaches the disk and is renamed, so that nobody ever sees a part.
    """
    directory = scratch or target.parent
    temporary = directory / f".tmp-{secrets.token_hex(8)}"
    descriptor, named = _new_file(directory, temporary)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            if not named:
                _give_name(file.fileno(), temporary)
        temporary.replace(target)
        sync_directory(target.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


def _new_file(directory: Path, temporary: Path) -> tuple[int, bool]:
    """A new file and whether it has a name; one without (O_TMPFILE, open(2)) dies with us.

    Readable and writable as the umask allows, unlike the files of `tempfile`.
    """
    try:
        return os.open(directory, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o666), False
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(temporary, flags, 0o666), True


def _give_name(descriptor: int, name: Path) -> None:
    # With a directory descriptor Python calls linkat(2), which follows the link in /proc.
    here = os.open(name.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.link(f"/proc/self/fd/{descriptor}", name, src_dir_fd=here, follow_symlinks=True)
    finally:
        os.close(here)


@contextmanager
def whole_archive(path: Path) -> Iterator[BinaryIO]:
    """`whole_file` for an archive that the user named; raises `OutputError`.

    A link is followed; a directory, a device or a fifo is not replaced.
    """
    with writing_to(path):
        target = _followed(path)
        if target.exists() and not target.is_file():
            kind = "directory" if target.is_dir() else "device or pipe"
            raise OutputError(
                f"cannot write `{path}`: it is a {kind}", hint="name a file that may be replaced"
            )
        with whole_file(target) as file:
            yield file


class ResultFile:
    """A small file that says what came of a command: after a failure it says nothing.

    It appears whole, but where only its content may be changed: a pipe, or a file that something
    else has mounted (as /dev/termination-log).
    """

    def __init__(self, path: Path, flag: str) -> None:
        """Tries whether the file can be written, and takes away what an earlier command wrote.

        Raises `OutputError`, which names the `flag`.
        """
        self._path = path
        self._flag = flag
        with self._blamed():
            self._target = _followed(path)
            if self._target.is_dir():
                raise OutputError(
                    f"cannot write `{path}`: it is a directory", hint="name a file in it"
                )
            self._replaced = self._try()

    def _try(self) -> bool:
        """Whether the file can be replaced; there is nothing in it afterwards."""
        target = self._target
        if target.exists() and not target.is_file():
            return False
        try:
            with whole_file(target) as file:
                file.write(b"")
            target.unlink()
        except OSError:
            if not target.is_file():
                raise
            with target.open("wb"):
                return False
        return True

    def write(self, text: str) -> None:
        """Makes the file; raises `OutputError`."""
        with self._blamed():
            opened = whole_file(self._target) if self._replaced else self._target.open("wb")
            with opened as file:
                file.write(text.encode())

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            with writing_to(self._path):
                yield
        except OutputError as error:
            raise OutputError(f"{self._flag}: {error.message}", hint=error.hint) from error


def _followed(path: Path) -> Path:
    circle = OutputError(
        f"cannot write `{path}`: its links lead in a circle",
        hint="remove the link, or name another file",
    )
    try:
        target = path.resolve()
    except RuntimeError as error:  # Python before 3.13
        raise circle from error
    if target.is_symlink():
        raise circle
    return target


def copy(source: Readable, out: BinaryIO) -> int:
    """Copies a stream to its end; the number of bytes."""
    size = 0
    while data := source.read(CHUNK):
        out.write(data)
        size += len(data)
    return size
