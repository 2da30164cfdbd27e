"""The table of failures: no reason lacks a row, it is current, and rows without a command hold."""

from __future__ import annotations

import errno
import signal
from collections.abc import Callable
from dataclasses import replace

import pytest

from ocis2i.errors import Interrupted, Ocis2iError, exit_code_of
from ocis2i.failure import Failure, screen
from ocis2i.fs import explain
from ocis2i.limits import Limits, exceeded
from tests.failure_rows import EVERY, Row
from tests.failure_table import PAGE, render
from tests.pages import PROJECT
from tests.unit.test_reasons import reasons_of

_LIMITS = Limits(memory_bytes=64 << 20, tasks=20, seconds=1, output_bytes=1 << 10)

PROVOKED: dict[str, Callable[[], Ocis2iError]] = {
    "memory": lambda: exceeded("memory", _LIMITS, "assemble"),
    "tasks": lambda: exceeded("tasks", _LIMITS, "assemble"),
    "time": lambda: exceeded("time", _LIMITS, "assemble"),
    "output": lambda: exceeded("output", _LIMITS, "assemble"),
    "full": lambda: explain(OSError(errno.ENOSPC, "full"), "the layer cannot be written"),
    "signal": lambda: Interrupted(signal.SIGTERM),
}


def test_page_is_current() -> None:
    assert PAGE.read_text() == render(), "run scripts/failure_table"


def test_every_reason_in_the_code_has_a_row_and_no_other() -> None:
    used = {one for path in (PROJECT / "ocis2i").rglob("*.py") for one in reasons_of(path)}
    assert {row.reason for row in EVERY} == used


def test_rows_have_names_of_their_own() -> None:
    assert len({row.id for row in EVERY}) == len(EVERY)


@pytest.mark.parametrize(
    "row", [row for row in EVERY if not row.words and not row.cluster], ids=lambda row: row.id
)
def test_a_row_without_a_command_is_brought_about_by_a_function(row: Row) -> None:
    if row.raised_in:
        text = (PROJECT / row.raised_in).read_text()
        assert all(words in text for words in (row.reason, row.thing, row.way_out))
        return
    error = PROVOKED[row.id]()
    assert (error.reason, exit_code_of(error)) == (row.reason, row.code)
    assert row.thing in error.message
    assert row.way_out in (error.hint or "")
    assert bool(error.hint) == bool(row.way_out)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOENT, errno.EIO])
def test_a_file_that_cannot_be_written_has_a_way_out(number: int) -> None:
    error = explain(OSError(number, "said", "/x"), "the result cannot be written")
    assert error.message == "the result cannot be written: said (`/x`)"
    assert error.hint


# --- the screen -----------------------------------------------------------------------------------

FAILURE = Failure(
    stage="assemble",
    script="/tmp/scripts/assemble",
    origin="from --scripts-url: https://host/scripts/assemble",
    user="1001:0 (default)",
    cwd="/opt/app",
    isolation="runc",
    exit_code=127,
    meaning="a command is missing",
    way_out="add it",
    tail=tuple(f"line {number}" for number in range(20)),
    lines=300,
    kept="/store/records/1",
    repeat="ocis2i build x",
)


def test_the_screen_has_all_and_repeats_the_last_lines() -> None:
    assert list(screen(FAILURE, said="error")) == [
        "  stage      assemble",
        "  script     /tmp/scripts/assemble (from --scripts-url: https://host/scripts/assemble)",
        "  ran as     1001:0 (default) in /opt/app, isolation runc",
        "  meaning    exit code 127: a command is missing",
        "  way out    add it",
        "  kept       /store/records/1, with all that was printed",
        "  repeat     ocis2i build x",
        "  output     the last 10 of 300 lines, again:",
        *(f"  | line {number}" for number in range(10, 20)),
    ]


def test_what_was_said_is_not_said_again() -> None:
    lines = list(screen(FAILURE, said="exit code 127: a command is missing\nadd it", quiet=True))
    assert [line.split()[0] for line in lines] == [
        "stage",
        "script",
        "ran",
        "kept",
        "repeat",
        "output",
    ]
    assert lines[-1].endswith("is above")


def test_every_text_is_masked() -> None:
    masked = FAILURE.masked(lambda text: "*" if text else text)
    texts = [value for value in masked.document().values() if isinstance(value, str)]
    assert set(texts) == {"*"}
    assert set(masked.tail) == {"*"}


def test_lines_of_any_length_stay_lines() -> None:
    long = replace(FAILURE, tail=("x" * 70_000,), script="a\nb" * 100)
    assert all(len(line) < 1000 and "\n" not in line for line in screen(long))


@pytest.mark.parametrize("width", [0, 40, 80, 100, 500])
def test_sentences_are_as_wide_as_the_terminal_and_commands_whole(width: int) -> None:
    lines = list(screen(replace(FAILURE, repeat="ocis2i " + "word " * 40), width=width))
    sentences = [line for line in lines if not line.startswith(("  repeat", "  output"))]
    # A word is never broken.
    long = [line for line in sentences if len(line) > max(40, min(width, 100))]
    assert all(len(line[13:].split()) == 1 for line in long)
    assert all(line.startswith("  ") for line in lines)
    assert len([line for line in lines if "word word" in line]) == 1
