"""Begins a builder repository: the four S2I scripts, a Dockerfile, a test with an application.

The files are those of source-to-image's `create`; the texts, in `templates/`, are ours. What is
there already is kept.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Literal

from ocis2i.errors import UsageError
from ocis2i.fs import explain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Reference

# What stands in the templates for the name of the builder image. A name has no character that
# means anything to a shell, to make, in a Dockerfile or in Markdown.
IMAGE_MARK = "@IMAGE@"

_PROGRAM, _TEXT = 0o755, 0o644
TEMPLATES = {
    "s2i/bin/assemble": _PROGRAM,
    "s2i/bin/run": _PROGRAM,
    "s2i/bin/save-artifacts": _PROGRAM,
    "s2i/bin/usage": _PROGRAM,
    "Dockerfile": _TEXT,
    "Makefile": _TEXT,
    "README.md": _TEXT,
    "test/run": _PROGRAM,
    "test/test-app/index.html": _TEXT,
}

_NO_HARD_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file of the repository: `path` is relative to its root."""

    path: PurePosixPath
    mode: int
    content: bytes


@dataclass(frozen=True, slots=True)
class Created:
    """What became of one file."""

    path: Path
    state: Literal["written", "kept"]


def plan_repository(image_name: str) -> tuple[PlannedFile, ...]:
    """The files for the builder image of that name; raises `UsageError` when it cannot be one."""
    if Reference.parse(image_name).digest is not None:
        raise UsageError(
            f"`{image_name}` has a digest, which an image has only once it is built",
            hint=f"name it {image_name.partition('@')[0]}",
        )
    templates = files("ocis2i") / "templates"
    return tuple(
        PlannedFile(
            PurePosixPath(path),
            mode,
            templates.joinpath(path).read_bytes().replace(IMAGE_MARK.encode(), image_name.encode()),
        )
        for path, mode in TEMPLATES.items()
    )


def create(image_name: str, directory: Path) -> tuple[Created, ...]:
    """Writes a repository for the builder `image_name` into `directory`, which is made if missing.

    Each file is there as a whole or not at all, and one that exists is kept. Raises `UsageError`
    for a name that is none, and `OutputError` naming what cannot be written; a link in place of a
    directory of the repository is such a thing.
    """
    planned = plan_repository(image_name)
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        root = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return tuple(_create_file(root, directory, file) for file in planned)
    finally:
        os.close(root)


def _create_file(root: int, directory: Path, file: PlannedFile) -> Created:
    path = directory / file.path
    with _opened(root, directory, file.path.parent) as parent, _explained(path):
        written = not _exists(parent, file.path.name) and _write_new(parent, file)
    return Created(path, "written" if written else "kept")


@contextmanager
def _opened(root: int, directory: Path, path: PurePosixPath) -> Iterator[int]:
    """The directory `path` below `root`, made if missing; a link would lead out of it."""
    current = os.dup(root)
    try:
        for number, name in enumerate(path.parts, start=1):
            with _explained(directory.joinpath(*path.parts[:number])):
                below = _open_directory(current, name)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _open_directory(parent: int, name: str) -> int:
    with suppress(FileExistsError):  # opening it tells whether it is a directory
        os.mkdir(name, dir_fd=parent)
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.open(name, flags, dir_fd=parent)


def _exists(parent: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _write_new(parent: int, file: PlannedFile) -> bool:
    """False when there is such a file by now. Its name appears when all of it is on the disk."""
    scratch = f".{file.path.name}-{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(scratch, flags, 0o600, dir_fd=parent)
    try:
        with os.fdopen(fd, "wb") as opened:
            opened.write(file.content)
            opened.flush()
            os.fchmod(opened.fileno(), file.mode)
            os.fsync(opened.fileno())
        return _publish(parent, scratch, file.path.name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(scratch, dir_fd=parent)


def _publish(parent: int, scratch: str, name: str) -> bool:
    try:
        # Unlike a rename it does not replace.
        os.link(scratch, name, src_dir_fd=parent, dst_dir_fd=parent, follow_symlinks=False)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        os.rename(scratch, name, src_dir_fd=parent, dst_dir_fd=parent)
    return True


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        # Its own file name is that of the scratch file, or of a part of the path.
        raise explain(OSError(error.errno, error.strerror), f"cannot write `{path}`") from error
