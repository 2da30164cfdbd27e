"""The program as a process: what it makes of `--json`, and how a signal ends it at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import tomllib
from pathlib import Path

import pytest

from tests.contract import same
from tests.fakes.bench import Maker, sh
from tests.fakes.images import BUSYBOX
from tests.fakes.program import PROJECT, Program
from tests.fakes.web import FakeWeb

# --- --json -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "before", ["", "--loglevel 3", "--root store --loglevel=3", "--tls -U tcp://x", "--cert build"]
)
def test_complaint_of_a_verb_is_json_whatever_stands_before_it(
    shared: Program, before: str
) -> None:
    done = shared(*before.split(), "build", "--no-such-flag", "--json")
    assert done.code == 2
    assert done.document["state"] == "failed"
    assert done.document["reason"] == "InvalidUsage"
    assert "--no-such-flag" in done.document["message"]


@pytest.mark.parametrize(
    "line",
    [
        "run --isolation",
        "run --no-such-flag image:1 command --json",
        "--loglevel 3 run --no-such-flag image:1 command --json",
        "--root run run --no-such-flag image:1 --json",
        "build --no-such-flag --description --json",
        "build --no-such-flag -- --json",
        "build --no-such-flag --json --json=false",
        "--root --json build --no-such-flag",
    ],
)
def test_json_of_others_makes_no_document(shared: Program, line: str) -> None:
    done = shared(*line.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")


@pytest.mark.parametrize("switch", ["--json=true", "--json=false --json=1", "-q --json=T"])
def test_complaint_is_json_for_a_switch_with_a_value(shared: Program, switch: str) -> None:
    done = shared("build", "--no-such-flag", *switch.split())
    assert done.document["reason"] == "InvalidUsage"


@pytest.mark.parametrize("line", ["--json", "nonsense --json", "--loglevel 3 nonsense --json"])
def test_complaint_without_a_verb_is_json_too(shared: Program, line: str) -> None:
    done = shared(*line.split())
    assert done.code == 2
    assert done.document["state"] == "failed"


# --- signals ----------------------------------------------------------------------------------


def wait_until_it_handles(process: subprocess.Popen[str], number: signal.Signals) -> None:
    """Until the program has its handlers; before that it is Python that is starting."""
    while process.poll() is None:
        status = Path(f"/proc/{process.pid}/status").read_text()
        (caught,) = [line for line in status.splitlines() if line.startswith("SigCgt:")]
        if int(caught.split()[1], 16) >> (number - 1) & 1:
            return
    pytest.fail(f"it ended before: {process.communicate()}")


@pytest.fixture
def slow(shared: Program, tmp_path: Path) -> list[str | Path]:
    """A command line that waits for good once it is understood: nobody writes into the pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    return ["build", "--environment-file", pipe, tmp_path, "no/builder:1"]


@pytest.mark.parametrize("milliseconds", [0, 5, 20, 80, 320, 1280])
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGINT, "interrupt"),
        (signal.SIGTERM, "termination"),
        (signal.SIGHUP, "hang-up"),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_signal_at_any_moment_is_one_line_and_its_exit_code(
    shared: Program,
    slow: list[str | Path],
    number: signal.Signals,
    words: str,
    milliseconds: int,
) -> None:
    process = shared.start(*slow)
    # Python has a handler of its own for the first.
    wait_until_it_handles(process, signal.SIGTERM if number == signal.SIGINT else number)
    time.sleep(milliseconds / 1000)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, "", f"error: stopped by {words}\n")


def test_nohup_stays_in_force_while_it_starts(shared: Program, slow: list[str | Path]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        process = shared.start(*slow)
    finally:
        signal.signal(signal.SIGHUP, before)
    wait_until_it_handles(process, signal.SIGTERM)
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM


def test_the_installed_program_begins_with_the_handlers() -> None:
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]
    assert project["scripts"] == {"ocis2i": "ocis2i.__main__:main"}


@pytest.mark.sandbox
@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@same("callback.failure")
def test_build_that_is_stopped_calls_nobody_back(
    shared: Program, make: Maker, source: Path, web: FakeWeb, number: signal.Signals
) -> None:
    """As upstream, which ends at once; three attempts of half a minute are not what Ctrl-C asks."""
    web.put("/done", b"thanks\n")
    builder = make(sh("echo it runs", "sleep 1000"))
    words = ("build", source, builder, "--callback-url", f"{web.url}/done", "--json")
    process = shared.start(*words)
    assert process.stderr is not None
    while (line := process.stderr.readline()) and "it runs" not in line:
        pass
    assert line
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 128 + number
    assert "Traceback" not in err
    assert json.loads(out)["reason"] == "Interrupted"
    assert web.log == []
