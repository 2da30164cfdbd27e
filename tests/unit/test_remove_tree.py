"""Trees are removed whole: whatever is in them, and by two processes where that pays."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ocis2i.agent import tree
from tests.fakes.processes import descendants


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Two hundred directories with files, links and directories, some named as the program does."""
    top = tmp_path / "wide"
    for number in range(200):
        inner = top / f"a/b/d{number}/inner/more"
        inner.mkdir(parents=True)
        (inner / "file").write_text("x")
        (inner.parent / "link").symlink_to("/")
    (top / f".ocis2i-{os.getpid()}-0/below").mkdir(parents=True)
    (top / "a/b/d7").chmod(0)
    return top


@pytest.fixture(autouse=True)
def _no_helper_is_left() -> Iterator[None]:
    before = descendants(os.getpid())
    yield
    assert descendants(os.getpid()) <= before


@pytest.mark.parametrize("by_two", [False, True])
def test_nothing_is_left(wide: Path, *, by_two: bool) -> None:
    with opened(wide.parent) as parent:
        tree.remove_tree(parent, "wide", by_two=by_two)
    assert not wide.exists()


def test_what_a_helper_leaves_is_removed_by_the_caller(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    helpers = []

    def fork(_: int, pending: list[str]) -> int:
        helpers.append(len(pending))
        child = os.fork()
        if child == 0:  # dies before it has done anything
            os._exit(1)
        return child

    monkeypatch.setattr(tree, "_fork", fork)
    with opened(wide.parent) as parent:
        tree.remove_tree(parent, "wide", by_two=True)
    assert helpers
    assert not wide.exists()


def test_without_room_for_a_process_one_does_it(
    wide: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fork() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", fork)
    with opened(wide.parent) as parent:
        tree.remove_tree(parent, "wide", by_two=True)
    assert not wide.exists()


def test_what_cannot_be_removed_is_said(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, stuck = os.rmdir, os.stat(wide / "a/b/d9/inner").st_ino

    def rmdir(name: str, *, dir_fd: int) -> None:
        if os.stat(name, dir_fd=dir_fd).st_ino == stuck:
            raise PermissionError(1, "Operation not permitted", name)
        real(name, dir_fd=dir_fd)

    monkeypatch.setattr(os, "rmdir", rmdir)
    with opened(wide.parent) as parent, pytest.raises(PermissionError):
        tree.remove_tree(parent, "wide", by_two=True)
    monkeypatch.undo()
    with opened(wide.parent) as parent:
        tree.remove_tree(parent, "wide")
    assert not wide.exists()
