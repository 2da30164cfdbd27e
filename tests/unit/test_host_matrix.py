"""The page of hosts and attempts: that it is current, and that each row is tried."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_matrix import PAGE, PROJECT, answer, render
from tests.host_rows import ATTEMPTS, CELLS, RUNGS, Attempt, Cell

TESTS = PROJECT / "tests" / "e2e"


def test_page_is_current() -> None:
    assert PAGE.read_text() == render(), "run scripts/host_matrix"


def test_program_notices_an_old_page(tmp_path: Path) -> None:
    script = PROJECT / "scripts" / "host_matrix"
    command = [sys.executable, str(script), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_every_host_is_made() -> None:
    text = (TESTS / "test_host_matrix.py").read_text()
    places = text.partition("PLACES: ")[2].partition("\n}")[0]
    assert re.findall('^    "([a-z-]+)": ', places, re.MULTILINE) == [one.id for one in CELLS]


def test_every_attempt_is_made_once() -> None:
    text = (TESTS / "test_escapes.py").read_text()
    marks = re.findall(r'^@rungs\("([a-z-]+)"\)$', text, re.MULTILINE)
    assert sorted(marks) == sorted(one.id for one in ATTEMPTS)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
def test_cell_builds_or_names_the_sentence(cell: Cell) -> None:
    assert bool(cell.by) != bool(cell.refusal)
    assert cell.code in ((0,) if cell.by else (6, 8))
    assert bool(cell.way_out) == bool(cell.refusal)


@pytest.mark.parametrize("attempt", ATTEMPTS, ids=lambda attempt: attempt.id)
def test_only_weak_rungs_leave_something_open(attempt: Attempt) -> None:
    assert set(attempt.open) <= set(RUNGS[4:])


def test_sentences_and_notes_are_told() -> None:
    cells = (
        Cell("a", "a host", "made", by="runc", said="with | words", flags=("--x", "y")),
        Cell("b", "another", "made", code=6, refusal="no", way_out="yes", root=True),
    )
    assert answer(cells[0]) == "builds by runc (`--x y`): “with | words”"
    attempts = (Attempt("c", "do harm", {"in-place": "it may"}), Attempt("d", "do more"))
    page = render(cells, attempts)
    assert "| a host | made | builds by runc (`--x y`): “with \\| words” |\n" in page
    assert "| another¹ | made | exit code 6: “no”. Way out: “yes” |\n" in page
    fails = "| fails " * (len(RUNGS) - 1)
    assert f"| do harm {fails}| not protected here (1) |\n" in page
    assert f"| do more {fails}| fails |\n" in page
    assert page.endswith("1. Not protected here: it may.\n")
