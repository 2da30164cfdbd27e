"""Builds on a real terminal: what a person sees while they go on, and what is left afterwards."""

from __future__ import annotations

import random
import re
import time
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, Maker, offer, sh
from tests.fakes.images import Layer, LayoutImage
from tests.fakes.program import ARGV, Program
from tests.fakes.registry import FakeRegistry
from tests.fakes.tmux import Terminal, terminal

SPINNING = re.compile(r"^[⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏] ")
# It waits for a file of the host, so that the test says how long it takes.
WAITING = sh(
    'i=0; while [ $i -lt 30 ]; do echo "line $i of the script"; i=$((i+1)); done',
    'printf "\\033[31mred\\033[0m \\033[2J\\033[5Aafter\\n"',
    "echo wide $(printf '%0100d' 7)",
    "while [ ! -e /gate/open ]; do sleep 0.05; done",
    "echo last line",
)


def building(
    bench: Bench, builder: str, *arguments: str | Path, columns: int, **variables: str
) -> AbstractContextManager[Terminal]:
    """A build in a terminal; its script goes on when `gate/open` is there."""
    gate = bench.directory / "gate"
    gate.mkdir(exist_ok=True)
    environment = {**bench.ocis2i.environment, "TERM": "xterm", "LC_ALL": "C.UTF-8", **variables}
    mount = ("-v", f"{gate}:/gate:ro")
    # What another test built before is not to be found in the store.
    words = ("--no-cache", *mount, *arguments)
    command = [*ARGV, "build", bench.source(), builder, bench.tag, *words]
    return terminal(bench.directory, command, environment, columns=columns)


def repainted(seen: Terminal, columns: int) -> None:
    """Waits until the live line is one for a terminal of so many columns, cut or whole."""
    end = time.monotonic() + 60
    while True:
        last = seen.screen()[-1]
        known = seen.columns() == columns and SPINNING.match(last) is not None
        if known and min(columns, 50) - 12 < len(last) < columns:
            return
        assert time.monotonic() < end, seen.screen()
        time.sleep(0.05)


def go_on(bench: Bench) -> None:
    (bench.directory / "gate" / "open").touch()


@pytest.mark.parametrize("columns", [80, 40])
def test_a_build_is_watched_and_summed_up(bench: Bench, make: Maker, columns: int) -> None:
    with building(bench, make(WAITING), columns=columns) as seen:
        seen.until("0" * 30)
        screen = seen.until("assembling: ", at_the_end=True)
        # The live line is the last one, as wide as the terminal at most; above it is the output.
        assert SPINNING.match(screen[-1]), screen
        assert "assembling: " in screen[-1]
        assert re.search(r"  \d+(\.\d)? s$", screen[-1])
        assert sum(bool(SPINNING.match(line)) for line in screen) == 1
        assert "line 29 of the script" in screen
        assert "red after" in screen
        # A terminal that becomes narrower, and wide again, has one live line still.
        for width in (30, columns):
            seen.resize(width)
            repainted(seen, width)
        go_on(bench)
        seen.until("ended 0")
        lines = seen.everything()
    assert not any(SPINNING.match(line) for line in lines), lines
    text = "\n".join(lines)
    assert re.search(r"^✓ fetching the source  \d+ ms$", text, re.MULTILINE)
    assert "---> assembling: image:///usr/libexec/s2i/assemble\nline 0 of the script\n" in text
    assert re.search(r"^last line\n✓ assembling  .* s\n✓ writing the layer  ", text, re.MULTILINE)
    assert [line for line in lines if line.startswith("line ")] == [
        f"line {number} of the script" for number in range(30)
    ]
    summary = text.partition("\nbuilt ")[2].splitlines()
    assert summary[0].startswith(f"docker.io/library/{bench.tag}  ")
    digest = str(bench.ocis2i.ok("inspect", bench.tag).document["digest"])
    assert summary[1] == f"  digest   {digest[:19]}"
    assert summary[2].startswith("  layer    ")
    assert summary[3].startswith("  stages   assemble ")
    assert summary[4] == f"docker.io/library/{bench.tag.rpartition(':')[0]}@{digest}"


def test_a_terminal_of_20_columns_has_one_live_line_that_fits(bench: Bench, make: Maker) -> None:
    builder = make(sh("echo begin", "while [ ! -e /gate/open ]; do sleep 0.05; done", "echo end"))
    with building(bench, builder, columns=20) as seen:
        seen.until("begin")
        screen = seen.until("assembling", at_the_end=True)
        assert SPINNING.match(screen[-1]), screen
        # It becomes too narrow for anything but the beginning of a name, and wide.
        for width in (6, 80, 20):
            seen.resize(width)
            end = time.monotonic() + 60
            while not (seen.columns() == width and _one_live_line(seen.screen(), width)):
                assert time.monotonic() < end, seen.screen()
                time.sleep(0.05)
        go_on(bench)
        seen.until("ended 0")
        lines = seen.everything()
    assert not any(SPINNING.match(line) for line in lines), lines
    # What the script has written is there, whatever the terminal did to the line below it.
    assert lines.index("begin") + 1 == lines.index("end")
    assert any(line.startswith("built ") for line in lines)


def _one_live_line(screen: list[str], width: int) -> bool:
    words = "".join(screen[-1].split()[:2])
    return 0 < len(screen[-1]) <= width and words.lstrip("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏").startswith("as")


def test_an_interrupt_leaves_the_terminal_as_it_was(bench: Bench, make: Maker) -> None:
    with building(bench, make(WAITING), columns=80) as seen:
        seen.until("wide 0")
        seen.until("assembling: ", at_the_end=True)
        assert seen.value("cursor_flag") == "1"
        seen.press("C-c")
        screen = seen.until("ended 130")
        assert seen.value("cursor_flag") == "1"
        assert seen.value("alternate_on") == "0"
    assert not any(SPINNING.match(line) for line in screen)
    assert any(line.startswith("✗ assembling  ") for line in screen)
    assert any("stopped by interrupt" in line for line in screen)


@pytest.mark.parametrize(
    ("variables", "live", "colours"),
    [({"NO_COLOR": "1"}, True, False), ({"TERM": "dumb"}, False, True), ({}, True, True)],
    ids=["no-color", "dumb", "usual"],
)
def test_the_terminal_gets_what_it_can_show(
    bench: Bench, make: Maker, variables: dict[str, str], live: bool, colours: bool
) -> None:
    go = {"assemble": '#!/bin/sh\nprintf "\\033[31mred\\033[0m\\n"\n'}
    with building(bench, make(go), columns=80, **variables) as seen:
        seen.until("ended 0")
        lines, raw = seen.everything(), seen.raw()
    assert ("---> fetching the source" in lines) is not live
    assert any(line.startswith("✓ fetching the source") for line in lines) is live
    assert any(line.startswith("built ") for line in lines) is live
    assert bool(re.search(r"\x1b\[31m(\x1b\[\d+m)*red", raw)) is colours


def test_the_log_of_a_build_without_a_terminal_is_plain_lines(bench: Bench, make: Maker) -> None:
    done = bench.built(make(sh("echo out", "echo err >&2")))
    assert "\x1b" not in done.err
    assert "✓" not in done.err
    assert "built " not in done.err
    assert done.err.startswith("---> fetching the source\n")
    assert "---> assembling: image:///usr/libexec/s2i/assemble\n" in done.err


@pytest.mark.parametrize(
    ("columns", "shown"),
    [
        (80, r"^  pulling [0-9a-f]{12}  ━+─+   7\d%  3\.0 MiB of 4\.\d MiB  [\d.]+ .?i?B/s$"),
        (40, r"^  pulling [0-9a-f]{12}  ━+─+   7\d%$"),
    ],
)
def test_a_transfer_has_a_bar_and_leaves_nothing_behind(
    bench: Bench, make: Maker, registry: FakeRegistry, columns: int, shown: str
) -> None:
    big = Layer().file("opt/big", random.Random(columns).randbytes(4 << 20))  # its own blob
    location = make(sh("true"), more_layers=[big])
    name = offer(registry, location, "builder", "1")
    blob = LayoutImage(Path(location.split(":")[1]), "b:1").layers[-1]
    registry.fail("GET", blob, truncate=3 << 20, silent=True, times=-1)
    with building(bench, name, "--no-tls-verify", columns=columns) as seen:
        screen = seen.until("─  ", at_the_end=True)
        assert re.match(shown, screen[-1]), screen
        seen.press("C-c")
        screen = seen.until("ended 130")
    assert not any("━" in line or SPINNING.match(line) for line in screen), screen


def test_a_list_of_builds_is_as_narrow_as_the_terminal(bench: Bench) -> None:
    own = bench.directory / "store"  # other tests build in that of the bench
    environment = {**bench.ocis2i.environment, "OCIS2I_ROOT": str(own)}
    program = Program(own, environment)
    name = "registry.example.com:5000/some-team/some-application:v1.22.3"
    source = bench.directory / "a-directory-with-a-long-name" / "that-ends-so"
    source.mkdir(parents=True)
    (source / "file").touch()
    for builder, words in (("oci:/none", name), ("docker-archive:/none", "app:1")):
        assert program("build", source, builder, words).code == 4
    plain = program.ok("ps", "-a").out.splitlines()
    ids = [line.split()[0] for line in plain[1:]]
    assert len(ids) == 2 and name in plain[1] and str(source) in plain[1]
    environment |= {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
    with terminal(bench.directory, [*ARGV, "ps", "-a"], environment, columns=80) as seen:
        lines = seen.until("ended 0")
    assert [line.split()[:2] for line in lines[1:3]] == [[one, "failed"] for one in ids]
    assert lines[3] == "ended 0"
    assert re.search(r" PullB\w*…  \d+s ago +\S+ +…\S*v1\.22\.3  …\S*so$", lines[1]), lines
    assert re.search(r" …?/?\S*app:1 ", lines[2]), lines
