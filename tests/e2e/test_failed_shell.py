"""A shell in the container of a script that failed, at a real terminal."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import BUILDAH, CRUN, RUNC, needs
from tests.e2e.test_chroot import Jobs
from tests.e2e.test_chroot import jobs as jobs  # noqa: PLC0414 - a fixture
from tests.fakes.bench import Bench, Maker, error, sh
from tests.fakes.images import HOME
from tests.fakes.processes import command_lines
from tests.fakes.program import ARGV, PROJECT, program
from tests.fakes.typist import Typist, typing

pytestmark = [pytest.mark.sandbox, needs("busybox", "newuidmap")]

SHELL = "--shell-on-failure"
FAILS = sh("echo half > half-done", "cat /etc/token > /dev/null", "no-such-program --build")
EXECUTORS = [RUNC, CRUN, "builtin", BUILDAH]


def build(bench: Bench, builder: str, *more: str | Path) -> list[str]:
    """A build that opens a shell where it fails."""
    words = ("build", bench.source(), builder, bench.tag, SHELL, *more)
    return [*ARGV, *map(str, words)]


def begin(typist: Typist) -> str:
    """Reads to the shell's first prompt; what was told before."""
    return typist.read("this is a shell in the failed container") + typist.read("$ ")


def assert_over(typist: Typist, bench: Bench, code: int = 7) -> None:
    """The build has ended with its failure, and the terminal is as it was."""
    ended, out = typist.leave()
    assert (ended, out) == (code, ""), typist.seen
    assert typist.is_as_before
    assert list((bench.ocis2i.store / "builds").iterdir()) == []


@pytest.fixture
def bench(bench: Bench, request: pytest.FixtureRequest) -> Iterator[Bench]:
    """One whose store has a short name where buildah is to give a terminal: it takes that."""
    if "buildah" not in request.node.name:
        yield bench
        return
    with tempfile.TemporaryDirectory(prefix="o") as short, program(Path(short)) as running:
        yield replace(bench, ocis2i=running)


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_shell_is_where_the_script_was_with_all_that_it_had(
    bench: Bench, make: Maker, isolation: str
) -> None:
    token = bench.directory / "token"
    token.write_text("very-much-hidden\n")
    token.chmod(0o644)
    given = ("-e", "COLOUR=blue", "--build-env", "KEY=also-hidden", "-i", f"{token}:/etc/token")
    argv = build(bench, make(FAILS), *given, "--isolation", isolation)
    with typing(argv, bench.ocis2i.environment) as typist:
        told = begin(typist)
        assert "the command `no-such-program` is missing in the builder" in told
        assert f"ran as     1001:0 (default) in {HOME}, isolation {isolation}" in told
        assert typist.run("id -u; id -g; pwd; cat half-done") == f"1001\n0\n{HOME}\nhalf\n"
        assert typist.run("echo $COLOUR $KEY; cat /etc/token") == "blue also-hidden\n" + (
            "very-much-hidden\n"
        )
        assert typist.run("stty size; echo seen > /dev/stderr") == "30 100\nseen\n"
        assert typist.run("tty").startswith("/dev/pts/")
        # Ctrl-C is for what runs in the shell, and jobs can be stopped and brought back.
        typist.start("sleep 500")
        typist.type("\x03")
        typist.read("$ ")
        assert typist.run("echo code $?") == "code 130\n"
        assert "no-such-program: not found" in typist.run("/usr/libexec/s2i/assemble")
        typist.type("exit 3\n")
        assert_over(typist, bench)
    end = typist.seen.partition("exit 3\n")[2]
    assert end.startswith("error: `/usr/libexec/s2i/assemble` failed with exit code 127")
    assert "very-much-hidden" not in end


@pytest.mark.parametrize("isolation", [RUNC, "builtin"])
def test_jobs_are_controlled_and_the_window_may_change(
    bench: Bench, make: Maker, isolation: str
) -> None:
    argv = build(bench, make(sh("sleep 60")), "--timeout", "1s", "--isolation", isolation)
    with typing(argv, bench.ocis2i.environment) as typist:
        # A limit that killed the script is not one of the shell.
        assert "raise --timeout" in begin(typist)
        typist.resize(40, 132)
        assert typist.run("sleep 1; stty size") == "40 132\n"
        typist.start("sleep 500")
        typist.type("\x1a")
        typist.read("$ ")
        assert "Stopped" in typist.run("jobs")
        assert typist.run("kill -9 %1; wait; seq 20000 | tail -1").endswith("20000\n")
        typist.start("cat > pasted")
        typist.type("".join(f"line {number}\n" for number in range(500)) + "\x04")
        typist.read("$ ")
        assert typist.run("wc -l < pasted").strip() == "500"
        typist.type("\x04")
        assert_over(typist, bench, code=9)


def test_the_end_of_the_build_is_the_end_of_the_shell(bench: Bench, make: Maker) -> None:
    argv = build(bench, make(FAILS), "--build-env", "A=b")
    with typing(argv, bench.ocis2i.environment) as typist:
        begin(typist)
        typist.start("trap '' TERM HUP INT; sleep 500")
        os.kill(typist.process.pid, signal.SIGTERM)
        assert_over(typist, bench, code=128 + signal.SIGTERM)


@pytest.mark.parametrize("isolation", [RUNC, "builtin"])
def test_a_killed_build_leaves_no_shell_and_nothing_that_prune_does_not_take(
    bench: Bench, make: Maker, isolation: str
) -> None:
    argv = build(bench, make(FAILS), "--isolation", isolation)
    mark = f"{os.getpid()}.7654321"
    with typing(argv, bench.ocis2i.environment) as typist:
        begin(typist)
        typist.start(f"sleep {mark}")
        assert eventually(lambda: sleeping(mark))  # the shell has said that it begins
        os.kill(typist.process.pid, signal.SIGKILL)
        typist.process.wait(30)
        assert eventually(lambda: not sleeping(mark))
    bench.ocis2i.ok("prune")
    assert list((bench.ocis2i.store / "builds").iterdir()) == []


def eventually(holds: Callable[[], bool]) -> bool:
    """Whether it holds after some time."""
    for _ in range(100):
        if holds():
            return True
        time.sleep(0.05)
    return False


def sleeping(mark: str) -> bool:
    """Whether a process sleeps for so long, whatever else its command line says."""
    return any(f"sleep\0{mark}".encode() in line for _, line in command_lines())


def test_a_failed_assemble_runtime_has_a_shell_in_the_runtime_image(
    bench: Bench, make: Maker
) -> None:
    runtime = bench.image(
        "runtime",
        {"run": "#!/bin/sh\n", "assemble-runtime": "#!/bin/sh\necho on it > mark\nexit 42\n"},
    )
    builder = make(sh("echo made > /tmp/made"))
    given = ("--runtime-image", runtime, "-a", "/tmp/made:.")
    with typing(build(bench, builder, *given), bench.ocis2i.environment) as typist:
        begin(typist)
        assert typist.run("cat made mark") == "made\non it\n"
        typist.type("exit\n")
        assert_over(typist, bench)


def test_where_nobody_sits_it_is_said_before_anything_is_done(bench: Bench, make: Maker) -> None:
    done = bench.attempt(make(FAILS), SHELL)
    assert done.code == 2
    assert "--shell-on-failure needs a terminal" in error(done)
    assert "--->" not in done.err


def test_a_build_that_works_opens_no_shell(bench: Bench, make: Maker) -> None:
    with typing(build(bench, make(sh("echo fine"))), bench.ocis2i.environment) as typist:
        code, out = typist.leave()
    assert code == 0
    assert "this is a shell" not in typist.seen
    assert out.startswith("docker.io/library/")


@pytest.mark.parametrize("isolation", ["chroot", "in-place"])
def test_weak_ways_have_one_too(jobs: Jobs, isolation: str) -> None:
    builder = jobs.builder("#!/bin/sh\necho half > /opt/app-root/src/half-done\nexit 5\n")
    host = jobs.host() if isolation == "chroot" else jobs.host((1001, 0), devices=False)
    words = ("build", jobs.directory / "source", builder, "app:1", SHELL, "--isolation", isolation)
    environment = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "PYTHONPATH": str(PROJECT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OCIS2I_ROOT": "/var/tmp/store",
    }
    with typing([*host.launcher, *ARGV, *map(str, words)], environment) as typist:
        begin(typist)
        assert typist.run("id -u; cat half-done; stty size") == "1001\nhalf\n30 100\n"
        typist.start("sleep 500")
        typist.type("\x03")
        typist.read("$ ")
        assert typist.run("echo code $?") == "code 130\n"
        typist.type("exit\n")
        code, out = typist.leave()
        assert (code, out) == (7, ""), typist.seen
        assert typist.is_as_before
