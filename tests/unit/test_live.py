"""The display on a terminal: what its lines say, in how many columns, and what is erased."""

from __future__ import annotations

import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.events import (
    ImagePushed,
    ImageStored,
    Notice,
    ScriptOutput,
    StageEnded,
    StageStarted,
    Transfer,
)
from ocis2i.live import (
    Live,
    Look,
    Moving,
    Running,
    cells,
    duration,
    frame,
    output_line,
    rows,
    shortened,
)

FANCY = Look.of("utf-8", colour=False)
DIGEST = "sha256:" + "0123456789abcdef" * 4


class Terminal(io.StringIO):
    encoding = "utf-8"


def live(terminal: Terminal, *, colour: bool = False, columns: int = 80) -> Live:
    # Its clock stands still: nothing is old enough to be painted.
    return Live(terminal, log_level=0, colour=colour, clock=lambda: 0.0, size=lambda: (columns, 24))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.04, "40 ms"),
        (0.35, "0.3 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.6, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3660, "1 h 01 min"),
    ],
)
def test_durations_are_short(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize("width", [80, 40, 20, 8])
def test_no_painted_line_is_wider_than_the_terminal(width: int) -> None:
    stages = [Running("assemble", "image:///usr/libexec/s2i/" + "日本" * 40, 0.0)]
    bars = [Moving("pulling 0123456789ab", 50 << 20, 120 << 20, 0.0)]
    for text, used in frame(stages, bars, 75.0, width, FANCY):
        assert cells(text) == used <= width


def test_a_wide_terminal_has_room_for_the_amount_and_the_rate() -> None:
    bars = [Moving("pulling 0123456789ab", 60 << 20, 120 << 20, 0.0)]
    ((line, _),) = frame([], bars, 10.0, 100, FANCY)
    assert re.fullmatch(
        r"  pulling 0123456789ab  ━+─+   50%  60.0 MiB of 120.0 MiB  6.0 MiB/s", line
    )
    ((line, _),) = frame([], bars, 10.0, 40, FANCY)
    assert re.fullmatch(r"  pulling 0123456789ab  ━+─+   50%", line)


def test_of_very_many_transfers_some_are_counted() -> None:
    bars = [Moving(f"pulling {number:012}", 1, 2, 0.0) for number in range(20)]
    lines = frame([], bars, 1.0, 80, FANCY)
    assert len(lines) == 9
    assert lines[-1][0] == "    and 12 more"


def test_a_terminal_without_such_letters_gets_plain_ones() -> None:
    lines = frame(
        [Running("assemble", "", 0.0)],
        [Moving("pulling a", 1, 2, 0.0)],
        1.0,
        80,
        Look.of("ascii", colour=False),
    )
    assert all(line.isascii() for line, _ in lines)


@given(st.text(st.characters(categories=["L", "Mn", "N", "P"]), max_size=60), st.integers(1, 70))
def test_shortened_text_fits(text: str, width: int) -> None:
    assert cells(shortened(text, width, "…")) <= max(width, 0)


def test_shortened_text_has_beginning_and_end() -> None:
    assert shortened("abcdefghij", 7, "…") == "abc…hij"


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("plain", "plain"),
        ("\tindented", "\tindented"),
        ("10%\r50%\r100%", "100%"),
        ("50%\r", "50%"),
        ("\x1b[32mgreen\x1b[0m", "green"),
        ("\x1b[2Jgone\x1b[10;10H", "gone"),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1bc reset \x1b(B", " reset "),
        ("a\x08\x08b\x07", "ab"),
        ("\x9b31mx", "x"),
        ("\x1bP unfinished", ""),
        ("naïve 日本", "naïve 日本"),
    ],
)
def test_output_does_not_steer_the_terminal(line: str, shown: str) -> None:
    assert output_line(line, colour=False) == shown


def test_colours_of_a_script_stay_and_end_with_the_line() -> None:
    assert output_line("\x1b[1;32mok", colour=True) == "\x1b[1;32mok\x1b[0m"


@given(st.text(max_size=40))
def test_nothing_but_text_is_left(line: str) -> None:
    shown = output_line(line, colour=False)
    assert all(char.isprintable() or char == "\t" for char in shown)


@pytest.mark.parametrize(
    ("widths", "columns", "number"), [([79], 80, 1), ([79], 40, 2), ([10, 41, 0], 40, 4)]
)
def test_lines_take_more_rows_in_a_terminal_that_became_narrow(
    widths: list[int], columns: int, number: int
) -> None:
    assert rows(widths, columns) == number


def test_a_stage_is_one_line_when_it_is_over() -> None:
    terminal = Terminal()
    display = live(terminal)
    display(StageStarted("fetch", "src\x1b[31m\n"))
    display(StageEnded("fetch", ok=True))
    display(StageStarted("layer"))
    display(StageEnded("layer", ok=False))
    display.close()
    assert terminal.getvalue() == (
        "✓ fetching the source: src\\x1b[31m   0 ms\n✗ writing the layer  0 ms\n"
    )


def test_output_stands_below_the_name_of_its_stage() -> None:
    terminal = Terminal()
    display = live(terminal)
    display(StageStarted("assemble", "image:///s2i"))
    display(ScriptOutput("stdout", "  one"))
    display(Notice("warning", "mind\x1b[5m this"))
    display(ScriptOutput("stderr", "two"))
    display(StageEnded("assemble", ok=True))
    display.close()
    assert terminal.getvalue().splitlines() == [
        "---> assembling: image:///s2i",
        "  one",
        "warning: mind\\x1b[5m this",
        "two",
        "✓ assembling  0 ms",
    ]


def test_output_outside_of_a_stage_has_no_head() -> None:
    terminal = Terminal()
    display = live(terminal)
    display(ScriptOutput("stdout", "serving"))
    assert terminal.getvalue() == "serving\n"


def test_what_was_painted_is_erased_before_a_line() -> None:
    terminal = Terminal()
    clock = [0.0]
    display = Live(
        terminal, log_level=0, colour=False, clock=lambda: clock[0], size=lambda: (80, 24)
    )
    display(StageStarted("pull", "builder"))
    display(Transfer(DIGEST, "pulling", 10, 100))
    clock[0] = 5.0
    display(ScriptOutput("stdout", "first"))  # painted below it are two lines
    display(ScriptOutput("stdout", "second"))
    assert "\r\x1b[1A\x1b[Jsecond\n" in terminal.getvalue()
    display(StageEnded("pull", ok=True))
    display.close()
    assert terminal.getvalue().endswith("\r\x1b[1A\x1b[J✓ getting the builder  5.0 s\n")


@pytest.mark.parametrize(("columns", "up"), [(80, 1), (40, 1), (20, 2), (6, 5)])
def test_a_terminal_that_became_narrow_loses_no_line_above(columns: int, up: int) -> None:
    terminal = Terminal()
    clock, width = [0.0], [30]
    display = Live(
        terminal, log_level=0, colour=False, clock=lambda: clock[0], size=lambda: (width[0], 24)
    )
    display(StageStarted("pull", "a builder with a long name"))
    display(Transfer(DIGEST, "pulling", 10, 100))
    clock[0] = 5.0
    display(ScriptOutput("stdout", "first"))
    width[0] = columns
    display(ScriptOutput("stdout", "second"))
    # The cursor stands at the beginning of the last painted line, which is not counted: of the
    # one above it are as many rows as it takes now.
    assert f"\r\x1b[{up}A\x1b[Jsecond\n" in terminal.getvalue()
    display.close()


def test_without_colour_no_colour_is_written() -> None:
    terminal = Terminal()
    display = live(terminal)
    display(StageStarted("assemble"))
    display(ScriptOutput("stdout", "\x1b[31mred"))
    display(StageEnded("assemble", ok=False))
    display.close()
    assert "\x1b" not in terminal.getvalue()


@pytest.mark.parametrize("columns", [80, 40])
def test_the_summary_says_what_came_of_it(columns: int) -> None:
    terminal = Terminal()
    display = live(terminal, columns=columns)
    facts = {"changes": {"entries": 12, "bytes": 5 << 20}}
    display(ImageStored(DIGEST, DIGEST, facts))
    display(ImagePushed(("registry.example.com/team/app:1",)))
    display.conclude("app:1")
    lines = terminal.getvalue().splitlines()
    assert lines[:3] == [
        "built app:1  0 ms",
        "  digest   sha256:0123456789ab",
        "  layer    5.0 MiB in 12 entries",
    ]
    assert lines[-1].startswith("  pushed   registry.exa")
    assert all(cells(line) < columns for line in lines)


def test_without_an_image_there_is_no_summary() -> None:
    terminal = Terminal()
    live(terminal).conclude("app:1")
    assert terminal.getvalue() == ""
