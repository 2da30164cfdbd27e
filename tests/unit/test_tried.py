"""What a store remembers as working: container programs, and its own disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from ocis2i.isolation.ground import FULL, Ground
from ocis2i.isolation.tried import Tried, disk_refusal


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "runc"
    path.write_text("one")
    return path


def test_what_worked_is_known_to_the_next_build(tmp_path: Path, program: Path) -> None:
    file = tmp_path / "tried.json"
    assert not Tried(file).knows(str(program), FULL)
    Tried(file).note(str(program), FULL)
    assert Tried(file).knows(str(program), FULL)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["runc", "tried.json"]


def test_another_program_or_ground_is_tried_again(tmp_path: Path, program: Path) -> None:
    tried = Tried(tmp_path / "tried.json")
    tried.note(str(program), FULL)
    assert not tried.knows(str(program), Ground(ids="single"))
    assert not tried.knows(str(program), Ground(fresh_proc=False))
    program.write_text("another")
    assert not tried.knows(str(program), FULL)


def test_a_program_that_is_gone_is_not_known(tmp_path: Path, program: Path) -> None:
    tried = Tried(tmp_path / "tried.json")
    tried.note(str(program), FULL)
    program.unlink()
    assert not tried.knows(str(program), FULL)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"runc": 1}', "\x00"])
def test_a_file_that_is_no_sense_says_nothing(tmp_path: Path, program: Path, content: str) -> None:
    file = tmp_path / "tried.json"
    file.write_text(content)
    assert not Tried(file).knows(str(program), FULL)
    Tried(file).note(str(program), FULL)
    assert Tried(file).knows(str(program), FULL)


def test_a_place_that_takes_no_file_is_no_error(tmp_path: Path, program: Path) -> None:
    tried = Tried(tmp_path / "missing" / "tried.json")
    tried.note(str(program), FULL)
    assert not tried.knows(str(program), FULL)


def test_what_the_disk_did_is_known_to_the_next_build(tmp_path: Path) -> None:
    (tmp_path / "builds").mkdir()
    file = tmp_path / "tried.json"
    assert not Tried(file).knows_disk("overlay", FULL)
    Tried(file).note_disk("overlay", FULL)
    assert Tried(file).knows_disk("overlay", FULL)
    assert not Tried(file).knows_disk("owners", FULL)


def test_a_disk_is_tried_again_with_other_ids(tmp_path: Path) -> None:
    (tmp_path / "builds").mkdir()
    tried = Tried(tmp_path / "tried.json")
    tried.note_disk("overlay", Ground(ids="full", map="0:1000:1"))
    assert not tried.knows_disk("overlay", Ground(ids="single", map="0:1000:1"))
    assert not tried.knows_disk("overlay", Ground(ids="full", map="0:1001:1"))


def test_a_store_that_was_copied_is_tried_again(tmp_path: Path) -> None:
    (tmp_path / "store" / "builds").mkdir(parents=True)
    Tried(tmp_path / "store" / "tried.json").note_disk("overlay", FULL)
    shutil.copytree(tmp_path / "store", tmp_path / "copy")
    assert not Tried(tmp_path / "copy" / "tried.json").knows_disk("overlay", FULL)


def test_a_program_and_the_disk_are_remembered_side_by_side(tmp_path: Path, program: Path) -> None:
    (tmp_path / "builds").mkdir()
    tried = Tried(tmp_path / "tried.json")
    tried.note(str(program), FULL)
    tried.note_disk("owners", FULL)
    assert tried.knows(str(program), FULL)
    assert tried.knows_disk("owners", FULL)


class Asked:
    """An agent that answers what it is told to."""

    ground = FULL

    def __init__(self, refusal: str | None) -> None:
        self.refusal = refusal
        self.asked: list[str] = []

    def request(self, operation: str, *_: int, **fields: object) -> dict[str, Any]:
        self.asked.append(f"{operation} {fields['directory']}")
        return {"refusal": self.refusal}


def test_a_disk_is_asked_until_it_does_what_is_wanted(tmp_path: Path) -> None:
    build = tmp_path / "builds" / "one"
    build.mkdir(parents=True)
    refusing, willing, idle = Asked("no xattrs"), Asked(None), Asked("never asked")
    assert disk_refusal("overlay", build, refusing) == "no xattrs"
    assert disk_refusal("overlay", build, willing) is None
    assert disk_refusal("overlay", build, idle) is None
    assert refusing.asked == willing.asked == [f"overlay {build}"]
    assert idle.asked == []
