"""The page of hosts and attempts: that it is current, and that each row is tried."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.host_matrix import PAGE, answer, render
from tests.host_rows import ATTEMPTS, CELLS, ISOLATED, RUNGS, WEAK, Attempt, Cell
from tests.pages import PROJECT

TESTS = PROJECT / "tests" / "e2e"
SECURITY = PROJECT / "docs" / "security.md"

# The columns of the table in docs/security.md, and the rungs that each of them speaks of.
COLUMNS = (
    tuple(rung for rung in ISOLATED if rung != "nested"),
    ("nested",),
    ("chroot", "chroot-root"),
    ("in-place",),
)
# Its rows, and the attempts that show them.
ROWS = {
    "write to files outside of the image": ("write-outside", "descriptor"),
    "read files outside of the image, credentials too": (
        "read-private-file",
        "registry-credentials",
    ),
    "see other processes": ("list-processes",),
    "signal other processes": ("signal",),
    "trace other processes, or read their memory": ("ptrace",),
    "read the environment of other processes": ("environment",),
    "connect to sockets of other programs by their path": ("agent-socket",),
    "mount, make namespaces, load modules, use keyrings": ("mount", "module", "keyring"),
    "gain rights by a setuid program": ("setuid",),
    "leave a process behind": ("background",),
    "fill the host's /dev/shm": ("shared-memory",),
    "push input into your terminal": ("terminal",),
    "reach the network": ("abstract-socket",),
}
# Of this row `test_hardening.py` tells.
LIMITS = "use up memory, processes, time"


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
    may_be_seen = {"nested"} if attempt.id == "list-processes" else set()
    assert set(attempt.open) | set(attempt.unless) <= {*WEAK, *may_be_seen}
    assert not set(attempt.open) & set(attempt.unless)


def promises() -> dict[str, list[str]]:
    """The rows of the table of rungs in docs/security.md."""
    table = SECURITY.read_text().partition("\n## Rungs\n")[2].partition("| --- |")[2]
    lines = table.partition("\n\n")[0].splitlines()[1:]
    rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    return {what: cells for what, *cells in rows}


def test_each_row_of_the_security_page_is_tried() -> None:
    assert set(promises()) == {*ROWS, LIMITS}
    assert sorted(one for row in ROWS.values() for one in row) == sorted(a.id for a in ATTEMPTS)


@pytest.mark.parametrize("what", ROWS)
def test_the_security_page_promises_what_is_tried(what: str) -> None:
    attempts = [one for one in ATTEMPTS if one.id in ROWS[what]]
    for said, rungs in zip(promises()[what], COLUMNS, strict=True):
        is_open = any(rung in one.open for one in attempts for rung in rungs)
        has_limit = any(rung in one.unless for one in attempts for rung in rungs)
        kept = "yes, unless" if has_limit else "by `--network`" if "network" in what else "yes"
        assert said.startswith("no" if is_open else kept), (rungs, said)


def test_sentences_and_notes_are_told() -> None:
    cells = (
        Cell("a", "a host", "made", by="runc", said="with | words", flags=("--x", "y")),
        Cell("b", "another", "made", code=6, refusal="no", way_out="yes", root=True),
    )
    assert answer(cells[0]) == "builds by runc (`--x y`): “with | words”"
    attempts = (
        Attempt("c", "do harm", {"in-place": "it may"}),
        Attempt("d", "do more"),
        Attempt("e", "do worse", unless={"in-place": "it waits"}),
    )
    page = render(cells, attempts)
    assert "| a host | made | builds by runc (`--x y`): “with \\| words” |\n" in page
    assert "| another¹ | made | exit code 6: “no”. Way out: “yes” |\n" in page
    fails = "| fails " * (len(RUNGS) - 1)
    assert f"| do harm {fails}| not protected here (1) |\n" in page
    assert f"| do more {fails}| fails |\n" in page
    assert f"| do worse {fails}| fails (2) |\n" in page
    assert page.endswith("1. Not protected here: it may.\n2. Unless it waits.\n")
