"""Large files are copied by two threads: as they are, and what goes wrong is told with its name."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ocis2i.sources import copying
from ocis2i.sources.copying import Copier, copy_file

MIB = 1 << 20


class FailureError(Exception):
    """What a caller makes of an error."""


def failure(path: str, error: OSError) -> Exception:
    return FailureError(f"{path}: {error.strerror}")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Five files of one to five MiB, and a small one."""
    directory = tmp_path / "source"
    directory.mkdir()
    for number in range(1, 6):
        (directory / f"f{number}").write_bytes(os.urandom(number * MIB))
        os.utime(directory / f"f{number}", ns=(number * 10**9, number * 10**9))
    (directory / "small").write_bytes(b"small")
    return directory


@contextmanager
def directory(path: Path) -> Iterator[int]:
    path.mkdir(exist_ok=True)
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def copy_all(source: Path, target: Path, copier: Copier) -> None:
    with directory(target) as into:
        for path in sorted(source.iterdir()):
            with path.open("rb") as file:
                copier.copy(file.fileno(), into, path.name, 0o640, path.name)


@contextmanager
def f5_begun(source: Path, target: Path) -> Iterator[None]:
    """The largest file is on its way; at the end the copier waits for it."""
    with (
        directory(target) as into,
        (source / "f5").open("rb") as file,
        Copier(failure) as copier,
    ):
        copier.copy(file.fileno(), into, "f5", 0o600, "f5")
        yield


def copiers() -> list[str]:
    """The threads of a copier; a test server that just ended may have left others."""
    return [one.name for one in threading.enumerate() if one.name == "copier"]


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_every_file_is_as_it_was(source: Path, tmp_path: Path) -> None:
    before = open_files()
    with Copier(failure) as copier:
        copy_all(source, tmp_path / "target", copier)
    for path in source.iterdir():
        made = tmp_path / "target" / path.name
        assert made.read_bytes() == path.read_bytes()
        assert made.stat().st_mtime_ns == path.stat().st_mtime_ns
        assert made.stat().st_mode & 0o7777 == 0o640
    assert open_files() == before


@pytest.mark.parametrize("broken", [f"f{number}" for number in range(1, 6)])
def test_one_that_cannot_be_read_is_named(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    before, inode = open_files(), (source / broken).stat().st_ino
    real = copying._copy_block

    def block(source: int, target: int, position: int, count: int) -> int:
        if os.fstat(source).st_ino == inode:
            raise OSError(errno.EIO, "the disk is broken")
        return real(source, target, position, count)

    monkeypatch.setattr(copying, "_copy_block", block)
    # By whichever of the threads: the caller's own gets the error as it is.
    with (
        pytest.raises((FailureError, OSError), match="the disk is broken"),
        Copier(failure) as copier,
    ):
        copy_all(source, tmp_path / "target", copier)
    assert not copiers()
    assert open_files() == before


def test_what_was_begun_last_is_told_at_the_end(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(*_: int) -> int:
        raise OSError(errno.EIO, "the disk is broken")

    monkeypatch.setattr(copying, "_copy_block", block)
    with (
        pytest.raises(FailureError, match=r"^f5: the disk is broken$"),
        f5_begun(source, tmp_path / "target"),
    ):
        pass


def test_an_interruption_ends_what_is_on_its_way(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, blocks = threading.Event(), []

    def block(_: int, __: int, position: int, ___: int) -> int:
        blocks.append(position)
        begun.set()
        return 1

    monkeypatch.setattr(copying, "_copy_block", block)
    with (
        pytest.raises(KeyboardInterrupt),
        f5_begun(source, tmp_path / "target"),
    ):
        assert begun.wait(10)
        assert copiers()
        raise KeyboardInterrupt
    assert not copiers()
    assert len(blocks) < 5 * MIB


def test_where_no_thread_can_be_started_the_caller_copies(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    before = open_files()
    monkeypatch.setattr(threading.Thread, "start", start)
    with Copier(failure) as copier:
        copy_all(source, tmp_path / "target", copier)
    for path in source.iterdir():
        assert (tmp_path / "target" / path.name).read_bytes() == path.read_bytes()
    assert open_files() == before


def test_whatever_ends_the_other_thread_no_half_file_passes_for_a_whole_one(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def block(*_: int) -> int:
        raise MemoryError

    monkeypatch.setattr(copying, "_copy_block", block)
    with (
        pytest.raises(MemoryError),
        f5_begun(source, tmp_path / "target"),
    ):
        pass


def test_an_interruption_while_the_end_is_waited_for_ends_the_rest(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads, join = [], threading.Thread.join

    def block(*_: int) -> int:
        return 1

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        threads.append(thread)
        raise KeyboardInterrupt

    monkeypatch.setattr(copying, "_copy_block", block)
    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with (
        pytest.raises(KeyboardInterrupt),
        f5_begun(source, tmp_path / "target"),
    ):
        pass
    join(threads[0], 10)
    assert not threads[0].is_alive()


@pytest.mark.parametrize(
    ("size", "left"), [(5, 0), (5, 3), (100_000, 1), (3 * MIB, 0), (3 * MIB, MIB), (3 * MIB, 4096)]
)
def test_a_file_that_shrinks_after_it_was_looked_at_is_no_file_of_zeros(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int, left: int
) -> None:
    path, real = tmp_path / "file", copying._create
    path.write_bytes(os.urandom(size))

    def create(target: int, name: str) -> int:
        os.truncate(path, left)  # as an editor does that saves it
        return real(target, name)

    monkeypatch.setattr(copying, "_create", create)
    with directory(tmp_path / "target") as into, path.open("rb") as file:
        looked_at = os.fstat(file.fileno())
        monkeypatch.setattr(os, "fstat", once(looked_at, os.fstat))
        with pytest.raises(OSError, match="shorter"):
            copy_file(file.fileno(), into, "file", 0o600)


def once(first: os.stat_result, real: Callable[[int], os.stat_result]) -> Callable[[int], object]:
    answers = [first]
    return lambda fd: answers.pop() if answers else real(fd)


def test_the_hole_at_the_end_of_a_file_is_no_shrinking(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * MIB)
    os.truncate(path, 64 * MIB)
    with (
        directory(tmp_path / "target") as into,
        path.open("rb") as file,
        Copier(failure) as copier,
    ):
        copier.copy(file.fileno(), into, "file", 0o600, "file")
        copy_file(file.fileno(), into, "again", 0o600)
    for name in ("file", "again"):
        made = tmp_path / "target" / name
        assert made.read_bytes() == path.read_bytes()
        assert made.stat().st_blocks == path.stat().st_blocks
