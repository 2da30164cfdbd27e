"""Paths below an open directory: found without leaving it, opened without following a link.

`find_real` is the only place where links are followed.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ocis2i.errors import SourceError, shown
from ocis2i.lazy_dataclass import dataclass

LINK_LIMIT = 40  # as many as the kernel follows (path_resolution(7))

DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
NO_FOLLOW = os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True, slots=True)
class Real:
    """Where a path leads: `path` below the root without any link, None when nothing is there."""

    path: str | None
    inside: bool = True


def find_real(root_fd: int, path: str) -> Real:
    """Resolves the links of `path` inside the directory `root_fd`, never beyond it.

    An absolute link leads out, as does `..` in the root. More than 40 links lead nowhere.
    """
    done: list[str] = []
    ahead = path.split("/")[::-1]
    links = 0
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        if part == "..":
            if not done:
                return Real(None, inside=False)
            done.pop()
            continue
        here = "/".join((*done, part))
        try:
            status = os.stat(here, dir_fd=root_fd, follow_symlinks=False)
            target = os.readlink(here, dir_fd=root_fd) if stat.S_ISLNK(status.st_mode) else None
        except (FileNotFoundError, NotADirectoryError):
            return Real(None)
        if target is None:
            done.append(part)
            continue
        links += 1
        if target.startswith("/"):
            return Real(None, inside=False)
        if links > LINK_LIMIT:
            return Real(None)
        ahead += target.split("/")[::-1]
    return Real("/".join(done) or ".")


@contextmanager
def open_directory(path: Path) -> Iterator[int]:
    """A descriptor of a directory that the user named; raises `SourceError`."""
    try:
        descriptor = os.open(path, DIRECTORY)
    except OSError as error:
        raise SourceError(
            f"cannot open directory `{shown(str(path))}`: {error.strerror}",
            hint="let this user read it, or leave it out by .s2iignore",
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


@contextmanager
def open_real(root_fd: int, path: str, flags: int) -> Iterator[int]:
    """A descriptor of a path that `find_real` gave; a link that came since is an `OSError`."""
    current = os.open(".", DIRECTORY, dir_fd=root_fd)
    try:
        *parents, last = path.split("/")
        for parent in parents:
            below = os.open(parent, DIRECTORY | os.O_NOFOLLOW, dir_fd=current)
            os.close(current)
            current = below
        # O_NONBLOCK: should a FIFO have taken the file's place, opening it must not wait.
        found = os.open(last, flags | NO_FOLLOW | os.O_NONBLOCK, dir_fd=current)
    finally:
        os.close(current)
    try:
        yield found
    finally:
        os.close(found)


def read_text(root_fd: int, path: str, limit: int) -> str | None:
    """A small UTF-8 file below `root_fd`; None when there is none, or no regular file.

    Raises `SourceError` when a link leads out of the source, for more than `limit` bytes, and for
    other encodings.
    """
    real = find_real(root_fd, path)
    if not real.inside:
        raise SourceError(f"`{path}` is a link that leaves the source", hint="copy the file there")
    if real.path is None or not stat.S_ISREG(status_of(root_fd, real.path).st_mode):
        return None
    with (
        open_real(root_fd, real.path, os.O_RDONLY) as descriptor,
        open(descriptor, "rb", closefd=False) as stream,
    ):
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise SourceError(
            f"`{path}` is larger than {limit} bytes",
            hint="look whether it is the right file: it is a list of patterns or variables",
        )
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SourceError(
            f"`{path}` is not UTF-8 text: {error.reason}", hint="write it in UTF-8"
        ) from error


def status_of(directory: int, name: str) -> os.stat_result:
    """What `name` itself is, in an open directory."""
    return os.stat(name, dir_fd=directory, follow_symlinks=False)


def identity_of(descriptor: int) -> tuple[int, int]:
    """The device and the inode of what is open: no two files at one time have the same."""
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino
