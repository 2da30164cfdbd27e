"""`--keep-failed`: the container of a script that failed stays, can be entered, and is removed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BUILDAH, CRUN, RUNC, needs
from tests.e2e.test_chroot import Jobs
from tests.e2e.test_chroot import jobs as jobs  # noqa: PLC0414 - a fixture
from tests.fakes.bench import Bench, Maker, error, sh, told, warnings
from tests.fakes.images import HOME
from tests.fakes.program import ARGV, PROJECT, Done
from tests.fakes.record_schemas import check_against
from tests.fakes.typist import typing

pytestmark = [pytest.mark.sandbox, needs("busybox", "newuidmap")]

SECRET = "s3cr3t-Zq81-value"
FILE_SECRET = "very-much-hidden-17"
FAILS = sh("echo half > half-done", "cat /etc/token > /dev/null", "exit 3")
EXECUTORS = [RUNC, CRUN, "builtin", BUILDAH]


def failed(bench: Bench, builder: str, *more: str | Path, code: int = 7) -> Done:
    """A build whose script fails, with its container kept."""
    done = bench.attempt(builder, "--keep-failed", *more)
    assert done.code == code, done.err
    return done


def line(done: Done, name: str) -> str:
    """What the screen of a failure says after a name."""
    (found,) = [one for one in done.err.splitlines() if one.startswith(f"  {name} ")]
    return found[13:]


def left(bench: Bench) -> list[Path]:
    return list((bench.ocis2i.store / "builds").iterdir())


@pytest.mark.parametrize("isolation", EXECUTORS)
def test_a_failed_container_stays_as_it_was_and_has_no_secrets(
    bench: Bench, make: Maker, isolation: str
) -> None:
    token = bench.directory / "token"
    token.write_text(FILE_SECRET)
    given = ("--build-env", f"KEY={SECRET}", "-e", "COLOUR=blue", "-i", f"{token}:/etc/token")
    builder = make(FAILS)
    done = failed(bench, builder, *given, "--isolation", isolation)
    directory = Path(line(done, "container"))
    words = shlex.split(line(done, "enter"))
    assert words[:2] == ["ocis2i", "shell"]
    (row,) = [one for one in bench.ocis2i.ok("ps", "-a", "--json").document["builds"]
              if one["id"] == words[2]]  # fmt: skip
    assert row["kept"] == str(directory)
    kept = b"".join(one.read_bytes() for one in directory.rglob("*") if readable(one))
    assert SECRET.encode() not in kept
    assert FILE_SECRET.encode() not in kept
    look = "id -u; pwd; cat half-done; echo $COLOUR:$KEY; cat /etc/token"
    script = f"{look}; echo more >> half-done; exit 5"
    # Again and again, and changes stay.
    assert bench.ocis2i("shell", bench.tag, "--", "sh", "-c", script).code == 5
    entered = bench.ocis2i("shell", bench.tag, "sh", "-c", script)
    assert entered.code == 5, entered.err
    assert entered.out == f"1001\n{HOME}\nhalf\nmore\nblue:\n"
    assert (
        "not kept with the container: the variable KEY, the content of `/etc/token`" in entered.err
    )
    pruned = bench.ocis2i.ok("prune", "--json").document
    assert (pruned["kept"], pruned["builds"]) == (1, 0)
    assert left(bench) == []


def readable(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)


def test_a_shell_is_opened_at_a_terminal_and_nobody_else_gets_in_meanwhile(
    bench: Bench, make: Maker
) -> None:
    done = failed(bench, make(FAILS), "--isolation", "builtin")
    directory = Path(line(done, "container"))
    argv = [*ARGV, "shell", bench.tag]
    with typing(argv, bench.ocis2i.environment) as typist:
        typist.read("$ ")
        assert typist.run("cat half-done; echo more > more") == "half\n"
        other = bench.ocis2i("shell", bench.tag, "true")
        assert (other.code, "somebody is in the container" in error(other)) == (2, True)
        # Who is in it keeps it from being removed.
        pruned = bench.ocis2i.ok("prune", "--json").document
        assert (pruned["kept"], pruned["busy"]) == (0, True)
        os.kill(typist.process.pid, signal.SIGKILL)
        typist.process.wait(30)
    again = bench.ocis2i.ok("shell", f"{directory}/", "cat", "more")
    assert again.out == "more\n"
    assert bench.ocis2i.ok("prune").out.count(", 1 kept container") == 1
    gone = bench.ocis2i("shell", bench.tag, "true")
    assert (gone.code, "is not there any more" in error(gone)) == (2, True)
    assert "--keep-failed" in gone.err
    assert " container " not in bench.ocis2i.ok("status", bench.tag).out


def test_one_of_an_image_with_odd_variables_is_opened_as_well(bench: Bench) -> None:
    builder = bench.image("odd", FAILS, {"Env": ["PATH=/bin", "BROKEN", "=weird"]})
    done = failed(bench, builder)
    words = shlex.split(line(done, "enter"))[1:]
    assert bench.ocis2i.ok(*words, "cat", f"{HOME}/half-done").out == "half\n"
    bench.ocis2i.ok("prune")


def test_it_is_named_wherever_the_build_is(bench: Bench, make: Maker) -> None:
    place = bench.directory / "record"
    events = bench.directory / "events"
    done = failed(bench, make(FAILS), "--record", place, "--events", events, "--json")
    failure = done.document["failure"]
    check_against("result.schema.json", done.document)
    for one in events.read_text().splitlines():
        check_against("event.schema.json", json.loads(one))
    assert failure["enter"] == f"ocis2i shell {place}"
    status = bench.ocis2i.ok("status", f"{place}/").out
    assert f"container {failure['container']}\n" in status
    assert f"enter     {failure['enter']}\n" in status
    listed = failed(bench, make(FAILS))
    assert "failed, kept" in bench.ocis2i.ok("ps", "-a").out
    # And where no record is kept, by the directory itself.
    unkept = bench.with_variables(OCIS2I_KEEP_BUILDS="0")
    alone = failed(unkept, make(FAILS))
    words = shlex.split(line(alone, "enter"))
    assert words == ["ocis2i", "shell", line(alone, "container")]
    assert bench.ocis2i.ok(*words[1:], "cat", "half-done").out == "half\n"
    assert line(listed, "enter") != line(alone, "enter")
    assert bench.ocis2i.ok("prune", "--json").document["kept"] == 3


def test_the_runtime_images_tree_and_that_of_a_limit_are_kept_as_well(
    bench: Bench, make: Maker
) -> None:
    scripts = {"run": "#!/bin/sh\n", "assemble-runtime": "#!/bin/sh\necho on it > mark\nexit 42\n"}
    runtime = bench.image("runtime", scripts)
    builder = make(sh("echo made > /tmp/made"))
    failed(bench, builder, "--runtime-image", runtime, "-a", "/tmp/made:.")
    assert bench.ocis2i.ok("shell", bench.tag, "cat", "made", "mark").out == "made\non it\n"
    slow = make(sh("echo begun > begun", "sleep 60"))
    failed(bench, slow, "--timeout", "1s", "--rootfs", "copy", "--network", "proxy", code=9)
    inside = bench.ocis2i.ok("shell", bench.tag, "sh", "-c", "cat begun; ls /sys/class/net")
    assert inside.out == "begun\nlo\n"
    assert "not kept with the container: the network" in warnings(inside)


def test_what_works_or_fails_elsewhere_keeps_nothing(bench: Bench, make: Maker) -> None:
    bench.ocis2i.ok("prune")
    bench.built(make(sh("true")), "--keep-failed")
    bench.attempt("oci:nowhere:b:1", "--keep-failed")
    assert left(bench) == []
    never = bench.ocis2i("shell", bench.tag, "true")
    assert (never.code, "was not kept" in error(never)) == (2, True)
    refused = failed(bench, make(sh("exit 1")))
    nobody = bench.ocis2i("shell", bench.tag)
    assert (nobody.code, "a shell needs a terminal" in error(nobody)) == (2, True)
    assert "shell BUILD COMMAND" in nobody.err
    assert told(refused)["error"]


def test_without_namespaces_a_copy_is_kept_and_ones_own_container_is_not(jobs: Jobs) -> None:
    builder = jobs.builder("#!/bin/sh\necho half > /opt/app-root/src/half-done\nexit 5\n")
    ocis2i = shlex.join(ARGV)
    build = f"{ocis2i} build {jobs.directory}/source {builder} app:1 --keep-failed --isolation"
    # All in one container: its store is gone with it.
    script = (
        f"{build} in-place; echo code $?; {build} chroot; echo code $?;"
        f"{ocis2i} shell app:1 cat half-done"
    )
    done = subprocess.run(
        [*jobs.host().launcher, "/bin/sh", "-c", script],
        env={
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OCIS2I_ROOT": "/var/tmp/store",
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "--keep-failed: --isolation in-place builds in the container" in done.stderr
    assert done.returncode == 0, done.stderr
    assert done.stdout == "code 6\ncode 7\nhalf\n"
