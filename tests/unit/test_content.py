"""When a source counts as the same: what is in it, and what its files' times have to do with it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from ocis2i.sources import content
from ocis2i.sources.content import Content, find_place, read_one, read_tree
from ocis2i.sources.local import DirSource


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A source with a bit of everything."""
    root = tmp_path / "source"
    (root / "lib/deep").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "app.py").write_text("print(1)\n")
    (root / "lib/deep/data").write_bytes(b"\0" * 1000)
    (root / "link").symlink_to("app.py")
    (root / "libs").symlink_to("lib")
    (root / "dangling").symlink_to("nowhere")
    (root / ".s2iignore").write_text("*.log\nbuilt\n")
    (root / "x.log").write_text("ignored")
    return root


def read(
    root: Path, before: Content | None = None, clamp: int | None = None, **how: object
) -> Content:
    source = DirSource(root, "source", **how)  # type: ignore[arg-type]
    found = read_tree(source, before.files if before else {}, clamp_seconds=clamp)
    assert found is not None
    return found


def _rewrite(path: Path, text: str) -> None:
    times = path.stat()
    path.write_text(text)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def _relink(link: Path, target: str) -> None:
    link.unlink()
    link.symlink_to(target)


def _make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _swap(root: Path) -> None:
    (root / "app.py").rename(root / "t")
    (root / "lib/deep/data").rename(root / "app.py")
    (root / "t").rename(root / "lib/deep/data")


CHANGES: dict[str, Callable[[Path], object]] = {
    "a byte of the same length and time": lambda root: _rewrite(root / "app.py", "print(2)\n"),
    "the mode of a file": lambda root: (root / "app.py").chmod(0o755),
    "the mode of a directory": lambda root: (root / "lib").chmod(0o700),
    "a new empty directory": lambda root: (root / "more").mkdir(),
    "an empty directory that is gone": lambda root: (root / "empty").rmdir(),
    "a name": lambda root: (root / "app.py").rename(root / "main.py"),
    "contents of two files swapped": _swap,
    "where a dangling link leads": lambda root: _relink(root / "dangling", "nothing"),
    "a link that leads to another file": lambda root: _relink(root / "link", "lib/deep/data"),
    "a file behind a link to its directory": lambda root: (root / "lib/new").write_text("x"),
    "what is ignored": lambda root: (root / ".s2iignore").write_text("*.log\nbuilt\napp.py\n"),
    "a file made a directory": lambda root: _make_directory(root / "app.py"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_everything_that_would_be_copied_counts(tree: Path, change: str) -> None:
    before = read(tree)
    CHANGES[change](tree)
    assert read(tree, before).digest != before.digest


def test_what_stays_out_does_not_count(tree: Path) -> None:
    before = read(tree)
    (tree / "x.log").write_text("more")
    (tree / "built").mkdir()
    (tree / ".git").mkdir()
    assert read(tree, before).digest == before.digest
    assert read(tree, before, exclude="").digest != before.digest


def test_s2i_scripts_count_although_they_are_ignored(tree: Path) -> None:
    (tree / ".s2i/bin").mkdir(parents=True)
    (tree / ".s2i/bin/assemble").write_text("1")
    (tree / ".s2iignore").write_text(".s2i\n")
    before = read(tree)
    (tree / ".s2i/bin/assemble").write_text("2")
    assert read(tree, before).digest != before.digest


def test_times_count_only_where_the_layer_would_have_them(tree: Path) -> None:
    plain, early, late = read(tree), read(tree, clamp=1_000), read(tree, clamp=1 << 40)
    os.utime(tree / "app.py", (5_000, 5_000))
    assert read(tree, plain).digest == plain.digest
    assert read(tree, early, 1_000).digest == early.digest
    assert read(tree, late, 1 << 40).digest != late.digest


def test_the_place_does_not_count(tree: Path, tmp_path: Path) -> None:
    before = read(tree)
    tree.rename(tmp_path / "elsewhere")
    assert read(tmp_path / "elsewhere").digest == before.digest


def test_links_that_stay_links_count_as_such(tree: Path) -> None:
    kept = read(tree, keep_symlinks=True)
    assert kept.digest != read(tree).digest
    (tree / "lib/deep/data").write_text("seen once, not behind `libs` as well")
    assert read(tree, kept, keep_symlinks=True).digest != kept.digest


def test_a_known_file_is_not_read_again(tree: Path) -> None:
    time.sleep(0.05)  # what is younger than a tick of the clock is not known by its times
    before = read(tree)
    assert before.read > 0
    assert read(tree, before).read == 0
    (tree / "app.py").touch()
    again = read(tree, before)
    assert again.read == 2  # by its name, and by the link to it
    assert again.digest == before.digest


def test_a_file_that_is_too_young_is_read_again(tree: Path) -> None:
    (tree / "app.py").write_text("print(3)\n")
    assert "app.py" not in read(tree).files


def test_a_source_is_older_than_what_came_after_it(tree: Path) -> None:
    time.sleep(0.05)
    moment = time.time_ns()
    assert read(tree).is_older_than(moment)
    os.utime(tree / "app.py", (1, 1))  # whoever sets the one time changes the other
    assert not read(tree).is_older_than(moment)


@pytest.mark.parametrize("kind", ["fifo", "out", "loop", "unreadable", "absent"])
def test_a_tree_that_a_build_would_refuse_has_no_content(tree: Path, kind: str) -> None:
    match kind:
        case "fifo":
            os.mkfifo(tree / "fifo")
        case "out":
            (tree / "out").symlink_to("../../..")
        case "loop":
            (tree / "lib/up").symlink_to("../lib")
        case "unreadable":
            (tree / ".s2iignore").write_text("../../x\n")
        case _:
            tree = tree / "absent"
    assert read_tree(DirSource(tree, "source"), {}) is None


def test_reading_ends_when_nobody_wants_it(tree: Path) -> None:
    cancel = threading.Event()
    cancel.set()
    assert read_tree(DirSource(tree, "source"), {}, cancel=cancel) is None


def test_an_archive_is_its_bytes(tmp_path: Path) -> None:
    path = tmp_path / "app.tar"
    path.write_bytes(b"one")
    before = read_one(path, {})
    _rewrite(path, "two")
    after = read_one(path, before.files if before else {})
    assert before and after and before.digest != after.digest
    assert read_one(tmp_path, {}) is None
    assert read_one(tmp_path / "absent", {}) is None


def test_the_place_is_what_the_path_leads_to(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    link = tmp_path / "current"
    for to in (tree, other):
        link.unlink(missing_ok=True)
        link.symlink_to(to)
        source = DirSource(link, "current")
        found = read_tree(source, {})
        assert found and find_place(source) == find_place(to) == found.place
    assert find_place(tree) != find_place(other)
    assert find_place(DirSource(tree, "source", "libs")) == find_place(tree / "lib")
    found = read_one(tree / "app.py", {})
    assert found and found.place == find_place(tree / "link")
    assert find_place(tmp_path / "absent") is None
    assert find_place(DirSource(tree, "source", "absent")) is None


def test_a_disk_whose_times_say_too_little_is_not_believed(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_tree(DirSource(Path("/proc/self/net"), "net"), {}) is None
    assert read_one(Path("/proc/version"), {}) is None
    monkeypatch.setattr(content, "_is_untimed", lambda _: True)
    assert read_tree(DirSource(tree, "source"), {}) is None
