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
    temporary = (scratch or target.parent) / f".tmp-{secrets.token_hex(8)}"
    # Readable and writable as the umask allows, unlike the files of `tempfile`.
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(temporary, flags, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    except BaseException:
        with suppress(FileNotFoundError):
            temporary.unlink()
        raise


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


def _followed(path: Path) -> Path:
    try:
        return path.resolve()
    except RuntimeError as error:  # what Python before 3.13 calls a circle of links
        raise OutputError(f"cannot write `{path}`: its links lead in a circle") from error


def sync_directory(path: Path) -> None:
    """Makes the names in a directory outlive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def copy(source: Readable, out: BinaryIO) -> int:
    """Copies a stream to its end; the number of bytes."""
    size = 0
    while data := source.read(CHUNK):
        out.write(data)
        size += len(data)
    return size
