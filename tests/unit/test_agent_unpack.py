"""Unpacking a layer without a namespace: what is counted, modes, names, and what gives way."""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i.agent import unpack as module
from ocis2i.agent.failure import AgentError
from ocis2i.agent.tree import measure
from ocis2i.agent.unpack import Limits, Unpacked, unpack
from tests.fakes.images import Layer

LIMITS = Limits(1 << 30, 100_000)


@pytest.fixture
def closed_umask() -> Iterator[None]:
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)


def unpacked(layer: Layer, root: Path) -> Unpacked:
    root.mkdir()
    return unpack(io.BytesIO(mine(layer).tar()), str(root), LIMITS)


def mine(layer: Layer) -> Layer:
    """The same, of files that belong to whoever runs the tests."""
    for info, _ in layer.members:
        info.uid, info.gid = (0, 0) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
    return layer


@pytest.mark.parametrize(
    "layer",
    [
        Layer(),
        Layer().dir("./").dir("a").file("a/f", "1234").file("a/empty").symlink("l", "a"),
        Layer().file("not/described/f", "12").file("not/described/g", "345"),
        Layer().file("f", "12345").hardlink("g", "f").symlink("s", "f").hardlink("t", "s"),
        Layer().file("f", "first").file("f", "the second"),
        Layer().dir("d").file("d/inside", "123").file("d", "a file instead"),
        Layer().file("f", "a directory instead").dir("f").file("f/inside", "1"),
        Layer().dir("twice").dir("twice"),
        Layer().whiteout("gone").whiteout("gone"),
        Layer().opaque("hidden").file("hidden/f", "1"),
        Layer().file("kept", "1").whiteout("kept"),
    ],
    ids=[
        "empty",
        "plain",
        "implied directories",
        "hard links",
        "a file twice",
        "a file for a directory",
        "a directory for a file",
        "a directory twice",
        "whiteouts",
        "opaque",
        "whiteout of its own",
    ],
)
def test_what_was_made_is_what_a_look_at_the_tree_finds(layer: Layer, tmp_path: Path) -> None:
    done = unpacked(layer, tmp_path / "fs")
    assert (done.made, done.made_bytes) == measure(str(tmp_path / "fs"))


@pytest.mark.usefixtures("closed_umask")
@pytest.mark.parametrize("mode", [0o000, 0o400, 0o644, 0o666, 0o777, 0o1644, 0o4755, 0o7777])
def test_modes_are_the_layers_whatever_the_umask_is(mode: int, tmp_path: Path) -> None:
    unpacked(Layer().file("f", "x", mode=mode).dir("d", mode=0o777), tmp_path / "fs")
    assert stat.S_IMODE((tmp_path / "fs/f").stat().st_mode) == mode
    assert stat.S_IMODE((tmp_path / "fs/d").stat().st_mode) == 0o777
    assert os.umask(0o077) == 0o077


@pytest.mark.usefixtures("closed_umask")
def test_directories_that_nobody_described_can_be_entered_by_all(tmp_path: Path) -> None:
    done = unpacked(Layer().file("a/b/f"), tmp_path / "fs")
    assert stat.S_IMODE((tmp_path / "fs/a/b").stat().st_mode) == 0o755
    assert done.implied == (b"", b"a", b"a/b")


def test_group_of_the_place_is_not_that_of_its_files(tmp_path: Path) -> None:
    # A store below a directory with the setgid bit, as groups share them.
    tmp_path.chmod(0o2755)
    (tmp_path / "fs").mkdir()
    (tmp_path / "fs").chmod(0o2755)
    layer = mine(Layer().file("f", "x", mode=0o640).dir("d", mode=0o750))
    unpack(io.BytesIO(layer.tar()), str(tmp_path / "fs"), LIMITS)
    assert stat.S_IMODE((tmp_path / "fs/f").stat().st_mode) == 0o640
    assert stat.S_IMODE((tmp_path / "fs/d").stat().st_mode) == 0o750
    assert (tmp_path / "fs/f").stat().st_gid == layer.members[0][0].gid


def test_names_are_cleaned_each_by_its_own_parent(tmp_path: Path) -> None:
    layer = Layer()
    for name in ("a/f", "a/./g", "a//h", "./a/i", "/a/j", "a/../b/k", "a/c/../l", "b/k/../m"):
        layer.file(name, name)
    unpacked(layer, tmp_path / "fs")
    found = {
        str(path.relative_to(tmp_path / "fs")): path.read_text()
        for path in (tmp_path / "fs").rglob("*")
        if path.is_file()
    }
    assert found == {
        "a/f": "a/f",
        "a/g": "a/./g",
        "a/h": "a//h",
        "a/i": "./a/i",
        "a/j": "/a/j",
        "b/k": "a/../b/k",
        "a/l": "a/c/../l",
        "b/m": "b/k/../m",
    }


@pytest.mark.parametrize("name", ["../out", "a/../../out", "a/b/../../../out", ".."])
def test_names_that_climb_are_refused_also_after_honest_ones(name: str, tmp_path: Path) -> None:
    layer = Layer().file("a/b/f").file("a/b/g").file(name, "hostile")
    with pytest.raises(AgentError, match="leads out of the image"):
        unpacked(layer, tmp_path / "fs")
    assert not (tmp_path / "out").exists()


def test_file_is_made_by_four_calls_or_nearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid() != 0:
        monkeypatch.setattr(module, "squashed", lambda: False)
    calls: list[str] = []

    def counted(name: str) -> None:
        real = getattr(os, name)

        def call(*arguments: object, **options: object) -> object:
            calls.append(name)
            return real(*arguments, **options)

        monkeypatch.setattr(os, name, call)

    layer = mine(Layer().file("f", "x", mode=0o640)).tar()
    (tmp_path / "fs").mkdir()
    for name in ("open", "write", "utime", "close", "fchmod", "fstat", "stat", "fchown", "chmod"):
        counted(name)
    unpack(io.BytesIO(layer), str(tmp_path / "fs"), LIMITS)
    start = calls.index("write") - 1
    made = [name for name in calls[start : start + 5] if name != "fchown"]
    assert made[:4] == ["open", "write", "utime", "close"]
