"""Who looks at builds may be ended in the middle, and builds at their rim say what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, Maker, error, sh

pytestmark = pytest.mark.sandbox

PATIENCE_SECONDS = 60.0
OURS = "what was there before"
# Kills the program, or sends it what Ctrl-C sends, when it is about to give a file its name, or to
# say its first word.
KILLER = """
import builtins, os, pathlib, signal
number = int(os.environ["KILL_BY"])
replace = pathlib.Path.replace
def killed(self, target):
    if pathlib.Path(target).name == "report.html":
        os.kill(os.getpid(), number)
    return replace(self, target)
pathlib.Path.replace = killed
if "KILL_WORDS" in os.environ:
    builtins.print = lambda *_: os.kill(os.getpid(), number)
"""


def ended(process: subprocess.Popen[str], number: int) -> tuple[int, str, str]:
    """Sends a signal; how the process ended, and the rest of what it said."""
    os.kill(process.pid, number)
    out, err = process.communicate(timeout=PATIENCE_SECONDS)
    return process.returncode, out, err


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_who_follows_or_waits_may_be_ended_and_the_build_goes_on(
    bench: Bench, make: Maker, number: int, code: int
) -> None:
    gate = bench.directory / "gate"
    gate.mkdir(mode=0o777)
    builder = make(sh("echo begun", "until [ -e /gate/open ]; do sleep 0.1; done", "echo over"))
    command = ("build", bench.source(), builder, bench.tag, "--volume", f"{gate}:/gate")
    with bench.ocis2i.start(*command) as build:
        assert build.stderr is not None
        for line in build.stderr:
            if line == "begun\n":
                break
        with (
            bench.ocis2i.start("logs", "-f", bench.tag) as follower,
            bench.ocis2i.start("wait", bench.tag, "--json") as waiter,
        ):
            assert follower.stdout is not None
            for line in follower.stdout:
                if line == "begun\n":
                    break
            # Half of an answer is none.
            assert ended(follower, number)[:2] == (code, "")
            assert ended(waiter, number)[0] == code
        (gate / "open").touch()
        build.communicate(timeout=PATIENCE_SECONDS)
        assert build.returncode == 0
    assert "over\n" in bench.ocis2i.ok("logs", bench.tag).out
    assert bench.ocis2i.ok("wait", bench.tag).out.endswith(" succeeded 0\n")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)]
)
def test_a_page_is_there_whole_or_not_at_all(
    bench: Bench, make: Maker, number: int, code: int
) -> None:
    bench.built(make(sh("echo x > x")))
    pages = bench.directory / "pages"
    pages.mkdir()
    hook = bench.directory / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(KILLER)
    path = f"{hook}:{bench.ocis2i.environment['PYTHONPATH']}"
    killed = bench.with_variables(PYTHONPATH=path, KILL_BY=str(int(number))).ocis2i
    done = killed("report", bench.tag, "-o", pages / "report.html")
    assert done.code == code, done.err
    assert "Traceback" not in done.err
    said = killed("diff", bench.tag, KILL_WORDS="1")
    assert (said.code, said.out) == (code, "")
    assert os.listdir(bench.ocis2i.store / "tmp") == []
    # A file without its name may be left by a kill, and by nothing else.
    assert not (pages / "report.html").exists()
    if number == signal.SIGINT:
        assert os.listdir(pages) == []
    bench.ocis2i.ok("report", bench.tag, "-o", pages / "report.html")
    assert (pages / "report.html").read_text().endswith("</html>\n")


def test_a_damaged_record_is_told_of_and_what_is_left_is_shown(bench: Bench, make: Maker) -> None:
    place, page = bench.directory / "record", bench.directory / "report.html"
    bench.attempt(make(sh("echo said by assemble", "exit 3")), "--record", place)
    (place / "record.json").write_bytes(b"")
    said = f"warning: the record `{place}` is damaged: `record.json` is empty\n"
    assert said in bench.ocis2i.ok("report", place, "-o", page).err
    text = page.read_text()
    assert "the record is damaged: `record.json` is empty" in text
    assert "said by assemble" in text
    status = bench.ocis2i.ok("status", f"{place}/").out
    assert "damaged   `record.json` is empty\n" in status
    assert "next " not in status
    refused = bench.ocis2i("resume", f"{place}/")
    assert (refused.code, "there is nothing to resume" in error(refused)) == (2, True)
    assert "ocis2i\n" not in refused.err
    assert "hint: build again; its command is not known" in refused.err
    nowhere = bench.ocis2i("report", f"{bench.directory}/none", "-o", page)
    assert (nowhere.code, page.read_text()) == (2, text)
    (place / "record.json").unlink()
    gone = bench.ocis2i("report", place, "-o", page)
    assert (gone.code, "there is no build" in error(gone)) == (2, True)


def test_a_value_of_a_secret_is_in_no_command_that_is_shown(bench: Bench, make: Maker) -> None:
    words = ("--build-env", "TOKEN=s3cr3t-Zq81", "-e", "OTHER=s3cr3t-Zq81", "--allow-leaks")
    done = bench.attempt(make(sh("exit 3")), *words, "--json")
    assert done.code == 7
    assert "-e 'OTHER=***'" in done.document["failure"]["repeat"]
    status = bench.ocis2i.ok("status", bench.tag).out
    assert "s3cr3t" not in done.out + done.err + status


def test_a_directory_that_cannot_be_made_is_an_output_that_cannot_be_written(
    bench: Bench,
) -> None:
    closed = bench.directory / "closed"
    closed.mkdir(mode=0o000)
    try:
        done = bench.ocis2i("fetch", bench.source(), closed / "x")
    finally:
        closed.chmod(0o700)
    assert (done.code, "Permission denied" in error(done)) == (8, True)
    assert "hint: name a directory that this user can make or write" in done.err
    taken = bench.directory / "file"
    taken.write_text(OURS)
    assert bench.ocis2i("fetch", bench.source(), taken).code == 2
    assert taken.read_text() == OURS


def test_a_layer_over_the_budget_is_neither_stored_nor_pushed(bench: Bench, make: Maker) -> None:
    big = sh('cd "$HOME"; mkdir -p big/one two', "head -c 400000 /dev/zero > big/one/a",
             "head -c 100000 /dev/zero > two/b")  # fmt: skip
    builder = make(big)
    name = f"127.0.0.1:1/{bench.tag}"
    layout = bench.directory / "out"
    words = ("build", bench.source(), builder, name, "-o", f"oci:{layout}", "--size-budget")
    done = bench.ocis2i(*words, "300k", "--json")
    assert (done.code, done.document["reason"]) == (9, "SizeBudgetExceeded")
    assert f"`{name}` adds 488" in error(done)
    assert "most is in `/opt/app-root/src/big/one/` (390.6 KiB), `/opt/app-root/src/two/`" in (
        error(done)
    )
    assert not layout.exists()
    assert name not in bench.ocis2i.ok("images").out
    assert "there is nothing to resume" in error(bench.ocis2i("resume", name))
    assert bench.ocis2i(*words, "600k", OCIS2I_NO_CACHE="").code == 0
    # The image of the same input is held to it, too.
    again = bench.ocis2i(*words, "300k", OCIS2I_NO_CACHE="")
    assert (again.code, "fetching" in again.err) == (9, False)
    assert Path(layout / "index.json").exists()
