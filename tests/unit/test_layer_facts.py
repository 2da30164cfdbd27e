"""What an unpacked layer has at the paths that others touch: looked up, and nothing followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ocis2i import layer_facts
from ocis2i.differences import Facts, LayerFacts, compare, merge
from ocis2i.errors import PolicyError
from ocis2i.store import LayerRecord
from ocis2i.tar import DIRECTORY, REGULAR, SYMLINK

FILE = Facts(REGULAR, 0o644, 0, 0, 1)
MADE = Facts(DIRECTORY, 0o755, 0, 0, 0)


def record(tmp_path: Path, kind: str = "layers", **more: object) -> LayerRecord:
    """An unpacked layer whose tree is to be filled; its owner is root inside."""
    tree = tmp_path / kind / "sha256" / "0" / "fs"
    tree.mkdir(parents=True)
    ids = f"0:{os.geteuid()}:1/0:{os.getegid()}:1"
    return LayerRecord(tree, (), 0, 0, "", ids, **more)  # type: ignore[arg-type]


def looked_up(found: LayerRecord, top: LayerFacts) -> LayerFacts:
    return layer_facts._Unpacked(found, layer_facts._Budget()).facts(top)


def test_only_what_is_touched_is_looked_at(tmp_path: Path) -> None:
    found = record(tmp_path)
    for name in ("a/b/c", "a/b/d", "a/e", "z"):
        (found.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (found.tree / name).write_text("12345")
    below = looked_up(found, LayerFacts({b"a": MADE, b"a/b": MADE, b"a/b/c": FILE, b"x/y": FILE}))
    assert set(below.entries) == {b"a", b"a/b", b"a/b/c"}
    one = below.entries[b"a/b/c"]
    assert (one.kind, one.size, one.uid, one.gid) == (REGULAR, 5, 0, 0)


def test_of_what_is_hidden_everything_is_looked_at(tmp_path: Path) -> None:
    found = record(tmp_path)
    (found.tree / "d/e/f").mkdir(parents=True)
    (found.tree / "d/e/1").write_text("1")
    (found.tree / "d/e/f/2").symlink_to("/etc")
    expected = {b"d", b"d/e", b"d/e/1", b"d/e/f", b"d/e/f/2"}
    for top in (
        LayerFacts({}, {b"d"}),
        LayerFacts({b"d": MADE}, set(), {b"d"}),
        LayerFacts({b"d": FILE}),
    ):
        below = looked_up(found, top)
        assert set(below.entries) == expected
        assert below.entries[b"d/e/f/2"] == Facts(SYMLINK, 0o777, 0, 0, 0, b"/etc")


def test_a_link_out_of_the_layer_is_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "passwd").write_text("x" * 99)
    found = record(tmp_path)
    (found.tree / "link").symlink_to(secret)
    (found.tree / "d").mkdir()
    (found.tree / "d/up").symlink_to("../../../../../secret")
    top = LayerFacts({b"link/passwd": FILE, b"d/up/passwd": FILE, b"new": FILE}, {b"d"})
    below = looked_up(found, top)
    assert set(below.entries) == {b"link", b"d", b"d/up"}


def test_neighbours_with_names_alike_are_told_apart(tmp_path: Path) -> None:
    found = record(tmp_path)
    for name in ("a/x", "a-b/x", "ab/x", "a/b/x"):
        (found.tree / name).parent.mkdir(parents=True, exist_ok=True)
        (found.tree / name).write_text(name)
    top = LayerFacts(dict.fromkeys((b"a/x", b"a-b/x", b"ab/x", b"a/b/x", b"a-b/none"), FILE))
    sizes = {path: one.size for path, one in looked_up(found, top).entries.items() if one.size}
    assert sizes == {b"a/x": 3, b"a-b/x": 5, b"ab/x": 4, b"a/b/x": 5}


def test_names_that_are_no_text_are_found(tmp_path: Path) -> None:
    found = record(tmp_path)
    Path(os.fsdecode(os.fsencode(found.tree) + b"/\xff")).write_text("1")
    assert set(looked_up(found, LayerFacts({b"\xff": FILE})).entries) == {b"\xff"}


def test_of_a_squashed_layer_the_record_knows_owners_and_what_is_hidden(tmp_path: Path) -> None:
    found = record(
        tmp_path, "squashed", owners={"a": [1001, 5]}, whiteouts=("gone",), opaque=("d",)
    )
    (found.tree / "a").write_text("1")
    (found.tree / "b").write_text("1")
    below = looked_up(found, LayerFacts({b"a": FILE, b"b": FILE}))
    assert (below.entries[b"a"].uid, below.entries[b"a"].gid) == (1001, 5)
    assert (below.entries[b"b"].uid, below.entries[b"b"].gid) == (0, 0)
    assert (below.whiteouts, below.opaque) == ({b"gone"}, {b"d"})


def test_a_lower_layer_shows_through_what_an_unpacked_one_does_not_hide(tmp_path: Path) -> None:
    found = record(tmp_path, whiteouts=("gone",))
    top = LayerFacts({b"gone": FILE, b"kept": FILE})
    lowest = LayerFacts({b"gone": FILE, b"kept": FILE})
    changes = compare(top, merge([lowest, looked_up(found, top)]).entries)
    assert [(one.path, one.state) for one in changes] == [(b"gone", "added"), (b"kept", "changed")]


def test_more_entries_than_fit_in_memory_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layer_facts, "ENTRY_LIMIT", 3)
    found = record(tmp_path)
    for number in range(5):
        (found.tree / str(number)).touch()
    with pytest.raises(PolicyError, match="more than 3"):
        looked_up(found, LayerFacts({str(number).encode(): FILE for number in range(5)}))


def test_no_descriptor_stays_open(tmp_path: Path) -> None:
    found = record(tmp_path)
    (found.tree / "a/b/c").mkdir(parents=True)
    before = len(os.listdir("/proc/self/fd"))
    looked_up(found, LayerFacts({b"a/b/c/d": FILE}, {b"a"}))
    assert len(os.listdir("/proc/self/fd")) == before
