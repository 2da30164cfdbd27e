"""A tree compared with its snapshot, as any user: what became of it, and what is left out."""

from __future__ import annotations

import io
import os
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from ocis2i.agent.below import Hashed
from ocis2i.agent.changes import Marks, tree_scanner, write_changes
from ocis2i.agent.owners import Owners
from ocis2i.agent.snapshot import ANY, Snapshot, settle, take
from ocis2i.layers import TarPolicy

AS_USER = pytest.mark.skipif(os.geteuid() == 0, reason="no mode stands in the way of root")
OLD = 1_577_836_800 * 10**9


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Some files, all of the same time."""
    root = tmp_path / "tree"
    (root / "d/inner").mkdir(parents=True)
    for name in ("d/one", "d/two", "d/inner/deep", "alone"):
        (root / name).write_text(name)
    (root / "link").symlink_to("alone")
    for path in [*root.rglob("*"), root]:
        os.utime(path, ns=(OLD, OLD), follow_symlinks=False)
    return root


def snapshot(root: Path, **wishes: object) -> Snapshot:
    """Taken, and safe to be compared with."""
    fd = os.open(root, os.O_RDONLY)
    try:
        taken = take(fd, **wishes)  # type: ignore[arg-type]
        settle(fd, taken.latest_ns)
    finally:
        os.close(fd)
    return taken


def everything(_: bytes, __: os.stat_result) -> bool:
    return True


def changed(root: Path, before: Snapshot, marks: Marks = Marks()) -> list[str]:  # noqa: B008
    """The names in the layer of what happened since."""
    return [one.name for one in layer(root, before, marks)]


def layer(root: Path, before: Snapshot, marks: Marks = Marks()) -> list[tarfile.TarInfo]:  # noqa: B008
    """The layer of what happened since."""
    out = io.BytesIO()
    scanner = tree_scanner(str(root), before, Hashed(), marks, Owners())
    write_changes(scanner, out, TarPolicy())
    out.seek(0)
    with tarfile.open(fileobj=out) as archive:
        return archive.getmembers()


def test_a_large_file_goes_through_a_pipe_as_it_is(tree: Path) -> None:
    before = snapshot(tree)
    data = os.urandom(1 << 20) + b"end"
    (tree / "large").write_bytes(data)
    (tree / "sparse").touch()
    os.truncate(tree / "sparse", 3 << 20)
    scanner = tree_scanner(str(tree), before, Hashed(), Marks(), Owners())
    read_end, write_end = os.pipe()

    def write() -> None:
        with os.fdopen(write_end, "wb", buffering=1 << 18) as out:
            write_changes(scanner, out, TarPolicy())

    writer = threading.Thread(target=write)
    writer.start()
    found: dict[str, bytes] = {}
    with os.fdopen(read_end, "rb") as pipe, tarfile.open(fileobj=pipe, mode="r|") as archive:
        for member in archive:
            content = archive.extractfile(member)
            found[member.name] = content.read() if content else b""
    writer.join()
    assert found["large"] == data
    assert found["sparse"] == bytes(3 << 20)


def test_nothing_has_changed(tree: Path) -> None:
    assert changed(tree, snapshot(tree)) == []


def test_what_its_owner_may_not_read_is_in_the_layer_with_its_mode(tree: Path) -> None:
    before = snapshot(tree)
    (tree / "d/one").write_text("changed")
    (tree / "d/inner/new").write_text("new")
    modes = {"d/one": 0o000, "d/inner/new": 0o200, "d/inner": 0o000, "d": 0o400}
    for name, mode in modes.items():
        os.utime(tree / name, ns=(OLD, OLD))
        (tree / name).chmod(mode)
    try:
        found = layer(tree, before)
    finally:
        kept = {}
        for name in reversed(modes):
            kept[name] = (tree / name).stat().st_mode & 0o777
            (tree / name).chmod(0o755)
    assert {one.name: one.mode for one in found} == modes
    assert {one.mtime for one in found} == {OLD // 10**9}
    assert kept == modes


@AS_USER
def test_a_directory_that_may_be_listed_and_not_entered_is_left_out(tree: Path) -> None:
    (tree / "d").chmod(0o400)
    before = snapshot(tree)
    (tree / "alone").write_text("changed")
    try:
        assert changed(tree, before) == ["alone"]
    finally:
        (tree / "d").chmod(0o755)


def test_it_does_not_matter_what_the_open_directory_was_read_for_before(tree: Path) -> None:
    fd = os.open(tree, os.O_RDONLY)
    try:
        os.lseek(fd, 2**63 - 1, os.SEEK_SET)
        taken = take(fd)
    finally:
        os.close(fd)
    assert set(taken.directories[b""]) == {b"d", b"alone", b"link"}


def test_a_time_that_is_put_back_hides_no_edit(tree: Path) -> None:
    for _ in range(20):
        before = snapshot(tree)
        (tree / "d/one").write_text("d/eno")
        os.utime(tree / "d/one", ns=(OLD, OLD))
        assert changed(tree, before) == ["d", "d/one"]


def rewrite(path: Path) -> None:
    """A new file with the old content."""
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data)
    os.utime(path, ns=(OLD, OLD))


@pytest.mark.parametrize(
    "touch",
    [
        lambda tree: os.chmod(tree / "alone", 0o644),
        lambda tree: os.utime(tree / "alone", ns=(OLD, OLD)),
        lambda tree: rewrite(tree / "alone"),
        lambda tree: rewrite(tree / "d/inner/deep"),
    ],
)
def test_what_is_as_it_was_is_left_out_when_its_content_is_known(
    tree: Path, touch: Callable[[Path], object]
) -> None:
    (tree / "alone").chmod(0o644)
    hashed, plain = snapshot(tree, hash_if=everything), snapshot(tree)
    touch(tree)
    assert changed(tree, hashed) == []
    assert len(changed(tree, plain)) in {1, 3}


def test_a_link_with_another_target_is_another_link(tree: Path) -> None:
    before = snapshot(tree, hash_if=everything)
    (tree / "link").unlink()
    (tree / "link").symlink_to("d/one")
    os.utime(tree / "link", ns=(OLD, OLD), follow_symlinks=False)
    assert changed(tree, before) == ["link"]


def test_what_is_gone_has_a_whiteout(tree: Path) -> None:
    before = snapshot(tree)
    (tree / "d/one").unlink()
    (tree / "alone").unlink()
    assert changed(tree, before) == [".wh.alone", "d", "d/.wh.one"]


def test_a_directory_that_is_made_anew_is_opaque(tree: Path) -> None:
    before = snapshot(tree)
    (tree / "d/inner/deep").unlink()
    (tree / "d/inner").rmdir()
    (tree / "d/inner").mkdir()
    assert changed(tree, before) == ["d", "d/inner", "d/inner/.wh..wh..opq"]


def test_without_births_what_was_in_it_is_gone_one_by_one(tree: Path) -> None:
    before = snapshot(tree, births=False)
    assert before.root.birth_ns == ANY
    (tree / "d/inner/deep").unlink()
    (tree / "d/inner").rmdir()
    (tree / "d/inner").mkdir()
    assert changed(tree, before) == ["d", "d/inner", "d/inner/.wh.deep"]


def test_of_skipped_paths_nothing_is_said(tree: Path) -> None:
    before = snapshot(tree, skip=(b"d/inner", b"later"))
    (tree / "d/inner/more").write_text("")
    (tree / "d/inner/deep").unlink()
    (tree / "later").mkdir()
    (tree / "d/two").write_text("changed")
    assert changed(tree, before) == ["d", "d/two"]


def test_names_of_one_file_stay_links(tree: Path) -> None:
    os.link(tree / "d/one", tree / "again")
    before = snapshot(tree, hash_if=everything)
    (tree / "d/one").chmod(0o600)
    assert changed(tree, before) == ["again", "d", "d/one"]


def test_links_that_were_only_touched_are_left_out(tree: Path) -> None:
    os.link(tree / "d/one", tree / "again")
    mode = (tree / "d/one").stat().st_mode
    before = snapshot(tree, hash_if=everything)
    (tree / "d/one").chmod(mode & 0o777)
    assert changed(tree, before) == []


def test_a_new_name_of_what_was_there_brings_the_old_one_along(tree: Path) -> None:
    before = snapshot(tree, hash_if=everything)
    os.link(tree / "alone", tree / "z")
    assert changed(tree, before) == ["alone", "z"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may look into everything")
def test_a_directory_that_is_closed_to_us_is_taken_as_it_is(tree: Path) -> None:
    (tree / "d").chmod(0)
    try:
        before = snapshot(tree)
        (tree / "new").write_text("")
        assert changed(tree, before) == ["new"]
    finally:
        (tree / "d").chmod(0o755)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_it_settles_where_nothing_can_be_written(tree: Path) -> None:
    tree.chmod(0o555)
    assert changed(tree, snapshot(tree)) == []


def test_settling_leaves_nothing(tree: Path) -> None:
    snapshot(tree)
    assert sorted(path.name for path in tree.iterdir()) == ["alone", "d", "link"]
