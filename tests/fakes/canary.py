"""A file that nobody may touch: it notices being opened, and its words are looked for elsewhere."""

from __future__ import annotations

import contextlib
import ctypes
import gzip
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

# linux/inotify.h
_IN_ACCESS, _IN_MODIFY, _IN_ATTRIB, _IN_OPEN = 0x1, 0x2, 0x4, 0x20
_IN_DELETE_SELF, _IN_MOVE_SELF = 0x400, 0x800
_TOUCHED = _IN_ACCESS | _IN_MODIFY | _IN_ATTRIB | _IN_OPEN | _IN_DELETE_SELF | _IN_MOVE_SELF

# Nothing else has these words.
WORDS = "the canary sings qZ7vK2xW9"


class Canary:
    """A file with words of its own, in a directory that is not part of any source."""

    def __init__(self, directory: Path, name: str = "canary", *, mode: int = 0o644) -> None:
        directory.mkdir(parents=True)
        self.path = directory / name
        self.path.write_text(WORDS + "\n")
        self.path.chmod(mode)
        self._state = _state(self.path)

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Fails when anybody opened, read, changed, moved or removed the file meanwhile."""
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert descriptor >= 0, os.strerror(ctypes.get_errno())
        try:
            watch = libc.inotify_add_watch(descriptor, os.fsencode(self.path), _TOUCHED)
            assert watch >= 0, os.strerror(ctypes.get_errno())
            yield
            try:
                events = os.read(descriptor, 4096)
            except BlockingIOError:
                events = b""
        finally:
            os.close(descriptor)
        assert not events, f"the canary was touched: {events!r}"
        assert _state(self.path) == self._state
        assert self.path.read_text() == WORDS + "\n"
        assert os.listdir(self.path.parent) == [self.path.name]


def _state(path: Path) -> tuple[int, ...]:
    status = path.stat()
    return status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_nlink


def files_with(words: str, directory: Path) -> list[str]:
    """The files below `directory` that have these words in them, also in compressed form."""
    return [str(file) for file in _files(directory) if words.encode() in _content(file)]


def assert_nowhere(store: Path, *secrets: str) -> None:
    """None of the secrets is in any file of the store, by content or by name."""
    for name, data in _written(store).items():
        for secret in secrets:
            assert secret.encode() not in data, name
            assert secret not in name


def _written(store: Path) -> dict[str, bytes]:
    """Everything that a store holds and this user may read, blobs without their compression.

    Unpacked layers are left out: they belong to subordinate ids, and are made of those blobs.
    """
    found = {}
    for path in sorted(store.rglob("*")):
        if (store / "layers") not in path.parents and path.is_file() and not path.is_symlink():
            data = path.read_bytes()
            with contextlib.suppress(gzip.BadGzipFile):
                data = gzip.decompress(data)
            found[str(path.relative_to(store))] = data
    assert any(name.startswith("images/blobs/") for name in found)
    return found


def _files(directory: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(directory):
        yield from (Path(parent) / name for name in names)


def _content(file: Path) -> bytes:
    try:
        data = b"" if file.is_symlink() or not file.is_file() else file.read_bytes()
    except PermissionError:
        return b""  # a file of an image, which belongs to a subordinate user
    if not data.startswith(b"\x1f\x8b"):
        return data
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error):
        return data
