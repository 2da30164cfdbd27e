"""What is said of a script that failed: one screen for people, one object for programs."""

from __future__ import annotations

import os
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.fakes.bench import Bench, Maker, error, sh
from tests.fakes.images import HOME

pytestmark = [pytest.mark.sandbox, needs("busybox", "newuidmap")]


def screen(err: str) -> dict[str, str]:
    """The explanation behind the error and its hint: name and text, wrapped lines joined."""
    found: dict[str, str] = {}
    name = ""
    lines = err.splitlines()
    (start,) = [number for number, line in enumerate(lines) if line.startswith("error: ")]
    assert lines[start + 1].startswith("hint: ")
    for line in lines[start + 2 :]:
        assert line.startswith("  "), line
        if line.startswith("  | "):
            found["tail"] = found.get("tail", "") + line[4:] + "\n"
        elif line.startswith(" " * 13):
            found[name] += " " + line.strip()
        else:
            name = line[2:13].strip()
            found[name] = line[13:]
    return found


def test_one_screen_says_what_where_as_whom_and_how_to_go_on(bench: Bench, make: Maker) -> None:
    # By one pipe: two have no order.
    lines = ("exec 2>&1", "for n in $(seq 30); do echo line $n; done", "echo $KEY", "go build .")
    builder = make(sh(*lines))
    secret = ("--build-env", "KEY=very-much-hidden", "-e", "MODE=two words")
    done = bench.attempt(builder, *secret, "--isolation", "builtin")
    assert done.code == 7
    assert "exit code 127: the command `go` is missing in the builder" in error(done)
    told = screen(done.err)
    assert told["stage"] == "assemble"
    assert told["script"] == (
        "/usr/libexec/s2i/assemble (from the builder image's scripts URL: "
        "image:///usr/libexec/s2i/assemble)"
    )
    assert told["ran as"] == f"1001:0 (default) in {HOME}, isolation builtin"
    assert told["output"] == "the last 10 of 32 lines, again:"
    assert told["tail"].startswith("line 23\n")
    assert told["tail"].endswith("/usr/libexec/s2i/assemble: line 6: go: not found\n")
    assert done.err.count("line 22\n") == 1
    assert "very-much-hidden" not in done.err
    # The command can be typed as it is, with the variable that is secret in the environment.
    words = shlex.split(told["repeat"])
    assert words[:3] == ["ocis2i", "build", "--shell-on-failure"]
    assert ("--build-env", "KEY") in pairwise(words)
    assert "MODE=two words" in words
    again = bench.with_variables(KEY="very-much-hidden").ocis2i(
        *[word for word in words[1:] if word != "--shell-on-failure"]
    )
    assert screen(again.err)["tail"] == told["tail"]


def test_document_has_the_same_facts(bench: Bench, make: Maker) -> None:
    source = bench.source({".s2i/bin/assemble": "#!/bin/sh\necho said\nmkdir /var/mine\n"})
    done = bench.ocis2i("build", source, make(), bench.tag, "--json", "-q")
    document = done.document
    failure = document["failure"]
    assert (document["script_exit_code"], failure["exit_code"]) == (1, 1)
    assert failure["stage"] == "assemble"
    assert failure["script"] == "/tmp/scripts/assemble"
    assert failure["from"].startswith("from the source's .s2i/bin: ")
    assert (failure["user"], failure["cwd"]) == ("1001:0 (default)", HOME)
    assert failure["isolation"] in ("runc", "crun", "builtin")
    assert failure["meaning"].startswith("`/var/mine` is not for 1001:0")
    assert "--assemble-user" in failure["way_out"]
    assert "said" in failure["tail"]
    assert (Path(failure["kept"]) / "log/assemble.log").read_text().count("said\n") == 1
    assert screen(done.err)["kept"] == f"{failure['kept']}, with all that was printed"
    assert failure["repeat"].startswith("ocis2i build --shell-on-failure ")
    # A quiet program shows the output once, at the end.
    assert done.err.count("said\n") == 1
    assert screen(done.err)["output"] == "is above"


def test_failures_without_a_script_have_none(bench: Bench) -> None:
    done = bench.attempt("oci:/no/such:place", "--json")
    assert done.document["failure"] is None
    assert "\n  " not in done.err


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("#!/usr/bin/ruby9\n", 127, "`/usr/bin/ruby9`"),
        ("#!/bin/sh\nkill -SEGV $$\n", 139, "segmentation fault"),
        ("#!/bin/sh\nkill -9 $$\n", 137, "it was killed (SIGKILL)"),
        ("#!/bin/sh\necho > x; ./x\n", 126, "`./x` is not executable"),
        ("#!/bin/sh\nwget http://pypi.example/\n", 1, "`pypi.example` cannot be resolved"),
        ("#!/bin/sh\nexit 3\n", 3, "the script says itself that it failed, and nothing else"),
    ],
    ids=["interpreter", "crash", "kill", "mode", "name", "silent"],
)
def test_meaning_is_in_words(bench: Bench, make: Maker, script: str, code: int, said: str) -> None:
    source = bench.source({".s2i/bin/assemble": script})
    words = ("build", source, make(), bench.tag, "--json", "--network", "none")
    done = bench.ocis2i(*words, "--isolation", "builtin")
    failure = done.document["failure"]
    assert failure["exit_code"] == code
    assert said in failure["meaning"]
    assert failure["meaning"] in done.err.replace("\n             ", " ")


def test_program_for_another_processor_is_told_by_its_head(bench: Bench, make: Maker) -> None:
    other = 183 if os.uname().machine == "x86_64" else 62
    head = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00" + other.to_bytes(2, "little")
    source = bench.source()
    script = source / ".s2i/bin/assemble"
    script.parent.mkdir(parents=True)
    script.write_bytes(head + bytes(200))
    done = bench.ocis2i("build", source, make(), bench.tag, "--json", "--isolation", "builtin")
    assert done.code == 7
    meaning = done.document["failure"]["meaning"]
    assert "is a program for " in meaning
    assert f"this machine is {os.uname().machine}" in meaning


@pytest.mark.parametrize(
    ("flags", "line", "reason", "said"),
    [
        (("--timeout", "1s"), "sleep 60", "TimeLimitReached", "the 1 second of --timeout"),
        (
            ("--output-limit", "1k"),
            "seq 100000",
            "OutputLimitReached",
            "the 1 KiB of --output-limit",
        ),
        (
            ("--memory", "64m"),
            "dd if=/dev/zero of=/dev/shm/x bs=1M count=60; dd if=/dev/zero bs=60M | sleep 9",
            "MemoryLimitReached",
            "the 64 MiB of --memory",
        ),
    ],
    ids=["time", "output", "memory"],
)
def test_limit_is_the_meaning(
    bench: Bench, make: Maker, flags: tuple[str, ...], line: str, reason: str, said: str
) -> None:
    done = bench.attempt(make(sh(line)), *flags, "--json")
    assert (done.code, done.document["reason"]) == (9, reason)
    assert said in done.document["failure"]["meaning"]
    assert done.document["failure"]["exit_code"] == 137


def test_script_of_the_runtime_image_is_named(bench: Bench, make: Maker) -> None:
    scripts: dict[str, str | None] = {
        "run": "#!/bin/sh\n",
        "assemble-runtime": "#!/bin/sh\necho here\nexit 42\n",
    }
    runtime = bench.image("runtime", scripts, {"User": "7:8"})
    given = ("--runtime-image", runtime, "-a", "/tmp/made:.", "--json")
    done = bench.attempt(make(sh("echo > /tmp/made")), *given)
    failure = done.document["failure"]
    assert (failure["stage"], failure["exit_code"]) == ("assemble-runtime", 42)
    assert failure["user"] == "7:8"
    assert failure["tail"] == ["here"]


def test_save_artifacts_that_fails_says_why(bench: Bench, make: Maker) -> None:
    scripts = sh("echo fine") | {"save-artifacts": "#!/bin/sh\nrsync -a . /x\n"}
    builder = make(scripts)
    bench.built(builder)
    done = bench.built(builder, "--incremental")
    assert "exit code 127: the command `rsync` is missing in the builder" in done.err


def test_usage_that_fails_is_explained(bench: Bench, make: Maker) -> None:
    builder = make(sh("echo") | {"usage": "#!/bin/sh\nexit 139\n"})
    done = bench.ocis2i("usage", builder)
    assert done.code == 139
    told = screen(done.err)
    assert told["stage"] == "usage"
    assert "ran as" in told
