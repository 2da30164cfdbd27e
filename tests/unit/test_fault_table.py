"""The page of faults: that it is current, and what it says of a row."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.fault_rows import ROWS, Row
from tests.fault_table import PAGE, answer, render
from tests.pages import PROJECT


def test_page_is_current() -> None:
    assert PAGE.read_text() == render(), "run scripts/fault_table"


def test_program_notices_an_old_page(tmp_path: Path) -> None:
    command = [sys.executable, str(PROJECT / "scripts" / "fault_table"), "--check"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in ROWS}) == len(ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)
def test_row_recovers_or_names_the_sentence(row: Row) -> None:
    assert bool(row.recovers) != bool(row.said)


def test_rows_are_told() -> None:
    once = Row("a", "a | fault", "push", (), "asks again", flags=("--x", "y"))
    always = Row("b", "another", "pull", (), said="it broke")
    assert answer(once) == "asks again (`--x y`)"
    page = render([("Pushing", [once]), ("Pulling", [always])])
    assert "## Pushing\n\n| fault | what ocis2i does |\n| --- | --- |\n| a \\| fault |" in page
    assert page.endswith("| another | ends: “it broke” |\n")
