"""Builds watched, ended and gone on with: ps, status, logs, wait, cancel, resume.

What the verbs say of a build that was killed is in test_killed_builds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ocis2i.records import Record, find
from tests.e2e.test_killed_builds import killed_at
from tests.e2e.test_killed_builds import killer as killer  # noqa: PLC0414 - a fixture
from tests.fakes.bench import Bench, Maker, error, sh
from tests.fakes.program import ARGV, Done, Program
from tests.fakes.record_schemas import check_against
from tests.fakes.registry import FakeRegistry

pytestmark = pytest.mark.sandbox

PATIENCE_SECONDS = 30.0
COPY = sh('cp -R /tmp/src/. "$HOME/"', "echo said by assemble")
SLOW = sh("echo said by assemble", "sleep 1000")


def until(so: Callable[[], Any]) -> Any:
    """Waits until something is so; what it is then."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := so()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return value


@contextmanager
def running(bench: Bench, builder: str, *words: str | Path) -> Iterator[subprocess.Popen[str]]:
    """A build whose assemble goes on until somebody ends it; it has begun."""
    process = bench.ocis2i.start("build", bench.source(), builder, bench.tag, *words)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "said by assemble\n":
                break
        yield process
    finally:
        process.kill()
        process.communicate()


def status(bench: Bench, build: str) -> dict[str, Any]:
    value = bench.ocis2i.ok("status", build, "--json").document["build"]
    assert isinstance(value, dict)
    return value


# --- killed -----------------------------------------------------------------------------------


def test_a_push_that_failed_is_pushed_by_resume_and_fails_again_in_words(
    bench: Bench, make: Maker, registry: FakeRegistry
) -> None:
    name = f"{registry.host}/{bench.tag}"
    registry.fail("PUT", r"/manifests/", times=50, status=403)
    failed = bench.ocis2i("build", bench.source(), make(COPY), name, "--push", "--json")
    assert failed.code == 5, failed.err
    check_against("result.schema.json", failed.document)
    record = find(bench.ocis2i.store, name)
    assert (record.state, record.result) == ("failed", failed.document)
    shown = bench.ocis2i.ok("status", name).out
    assert f"push {name}" in shown
    assert f"ocis2i resume {record.id}" in shown
    broken = bench.ocis2i("resume", name, "--json")
    assert (broken.code, broken.document["reason"]) == (5, failed.document["reason"])
    check_against("result.schema.json", broken.document)
    registry.faults.clear()
    assert bench.ocis2i.ok("resume", name).out.startswith(f"{registry.host}/")
    assert bench.ocis2i.ok("wait", name).out == f"{record.id} succeeded 0\n"
    log = bench.ocis2i.ok("logs", name).out
    assert log.count("---> resumed\n") == 2
    assert log.count("---> assembling") == 1


def test_a_name_that_another_build_took_is_not_pushed_with_the_old_image(
    bench: Bench, make: Maker, killer: Path, registry: FakeRegistry
) -> None:
    name = f"{registry.host}/{bench.tag}"
    first = killed_at(bench, killer, "push:begin", make(COPY), name, "--push")
    bench.ocis2i.ok("build", bench.source(), make(sh("echo other > $HOME/x")), name)
    refused = bench.ocis2i("resume", first.id)
    assert refused.code == 2
    assert "is another image by now" in error(refused)
    bench.ocis2i.ok("rm", name)
    gone = bench.ocis2i("resume", first.id)
    assert gone.code == 4
    assert "not in the store any more" in error(gone)
    assert "build again: cd " in gone.err


# --- watched ----------------------------------------------------------------------------------


def test_a_running_build_is_listed_followed_waited_for_and_cancelled(
    bench: Bench, make: Maker
) -> None:
    with running(bench, make(SLOW)) as build:
        (row,) = bench.ocis2i.ok("ps", "--json").document["builds"]
        assert (row["state"], row["stage"], row["pid"]) == ("running", "assemble", build.pid)
        listed = bench.ocis2i.ok("ps").out
        assert row["id"] in listed
        assert bench.tag in listed
        assert "said by assemble\n" in bench.ocis2i.ok("logs", bench.tag, "--stage", "assemble").out
        early = bench.ocis2i("wait", bench.tag, "--timeout", "0.1")
        assert early.code == 9
        assert "still running after 0.1" in error(early)
        unfinished = bench.ocis2i("resume", bench.tag)
        assert "is still running" in error(unfinished)
        with (
            bench.ocis2i.start("logs", "-f", row["id"]) as follower,
            bench.ocis2i.start("wait", row["id"]) as waiter,
        ):
            assert follower.stdout is not None
            assert follower.stderr is not None
            assert follower.stdout.readline() == "---> fetching the source\n"
            cancelled = bench.ocis2i.ok("cancel", row["id"])
            assert cancelled.out == f"{row['id']} cancelled\n"
            assert build.wait(PATIENCE_SECONDS) == 143
            waited, _ = waiter.communicate(timeout=PATIENCE_SECONDS)
            assert waited == f"{row['id']} cancelled 143\n"
            assert "said by assemble\n" in follower.stdout.read()
            assert follower.stderr.read() == "cancelled: stopped by termination\n"
        assert (waiter.returncode, follower.returncode) == (143, 0)
    assert bench.ocis2i.ok("ps", "--json").document["builds"] == []
    again = bench.ocis2i.ok("cancel", row["id"])
    assert "is over already" in again.err


def test_a_build_that_does_not_end_is_killed_and_counts_as_cancelled(
    bench: Bench, make: Maker
) -> None:
    with running(bench, make(SLOW)) as build:
        os.kill(build.pid, signal.SIGSTOP)
        done = bench.ocis2i.ok("cancel", bench.tag, "--timeout", "0.2s")
        assert "did not end within 0.2s" in done.err
        assert done.out.endswith(" cancelled\n")
        assert build.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    assert status(bench, bench.tag)["exit_code"] == 137
    assert bench.ocis2i.ok("prune", "--json").document["builds"] >= 1


def test_two_builds_at_once_have_a_record_each(bench: Bench, make: Maker) -> None:
    builder = make(SLOW)
    with running(bench, builder) as one, running(bench, builder) as two:
        rows = bench.ocis2i.ok("ps", "--json").document["builds"]
        assert {row["pid"] for row in rows} == {one.pid, two.pid}
        newest = bench.ocis2i.ok("cancel", bench.tag, "--json").document["build"]
        assert newest["id"] == max(row["id"] for row in rows)
        (left,) = bench.ocis2i.ok("ps", "--json").document["builds"]
        assert left["id"] != newest["id"]
        bench.ocis2i.ok("cancel", left["id"])


# --- for CI -----------------------------------------------------------------------------------


def test_record_and_events_are_as_published_and_have_no_secrets(bench: Bench, make: Maker) -> None:
    secret = "s3cr3t-Zq81-value"
    builder = make(sh('cp -R /tmp/src/. "$HOME/"', "echo token=$TOKEN", "echo aside >&2"))
    place = bench.directory / "ci/record"
    done = bench.attempt(
        *(builder, "--record", place, "--events", "-", "--build-env", f"TOKEN={secret}"),
        *("-e", "API_KEY=visible-in-image", "--allow-leaks"),
    )
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    for event in events:
        check_against("event.schema.json", event)
    lines = {(e["stage"], e["stream"]): e["line"] for e in events if e["type"] == "output"}
    assert lines["assemble", "stderr"] == "aside"
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    document = events[-1]["result"]
    check_against("result.schema.json", document)
    record = Record.load(place)
    check_against("record.schema.json", dict(record.document))
    assert record.result == document
    assert record.id == document["id"] == events[0]["id"]
    assert bench.ocis2i.ok("status", f"{place}/", "--json").document["build"]["result"] == document
    shown = bench.ocis2i.ok("logs", place, "--stage", "assemble").out
    assert sorted(shown.splitlines()) == ["aside", "token=***"]
    everything = b"".join(one.read_bytes() for one in place.rglob("*") if one.is_file())
    assert secret.encode() not in everything + done.out.encode()
    assert {path.stat().st_mode & 0o077 for path in (place, *place.rglob("*"))} == {0}
    used = bench.attempt(builder, "--record", place)
    assert used.code == 2
    assert "has the record of another build" in error(used)


def test_record_and_events_in_the_source_do_not_get_into_the_image(
    bench: Bench, make: Maker
) -> None:
    source = bench.source()
    builder = make(sh('cp -R /tmp/src/. "$HOME/"', "find /tmp/src", "exit 3"))
    words = ("--record", source / "record", "--events", source / "events.jsonl")
    wanted: tuple[str | Path, ...] = ("build", source, builder, bench.tag)
    done = bench.ocis2i(*wanted, *words, OCIS2I_KEEP_BUILDS="0")
    assert done.code == 7, done.err
    assert "/tmp/src/record" not in done.err and "/tmp/src/events" not in done.err
    assert f"kept       {source / 'record'}" in done.err
    assert " --record" not in done.err.partition("  repeat ")[2]
    # And one that nobody keeps is not said to be kept.
    assert "  kept " not in bench.ocis2i(*wanted, OCIS2I_KEEP_BUILDS="0").err


def test_events_go_to_a_file_as_well_and_a_failure_is_their_end(bench: Bench, make: Maker) -> None:
    file = bench.directory / "events.jsonl"
    done = bench.attempt(make(sh("echo no", "exit 3")), "--events", file, "--json")
    assert done.code == 7
    ended = json.loads(file.read_text().splitlines()[-1])
    assert (ended["type"], ended["state"], ended["exit_code"]) == ("ended", "failed", 7)
    assert ended["result"] == done.document
    check_against("result.schema.json", done.document)
    row = bench.ocis2i.ok("ps", "-a", "--json").document["builds"][-1]
    assert (row["id"], row["reason"]) == (done.document["id"], "AssembleFailed")
    logs = bench.ocis2i.ok("logs")
    assert "\nno\n" in logs.out
    assert logs.err.startswith("failed: ")
    (Path(row["record"]) / "result.json").write_text("")
    waited = bench.ocis2i("wait", row["id"])
    assert (waited.code, waited.out) == (7, f"{row['id']} died 7\n")
    said = "`result.json` is empty; `events.jsonl` says: failed, AssembleFailed"
    assert waited.err == f"{row['id']}: how it ended cannot be read: {said}\n"
    assert said in bench.ocis2i.ok("status", row["id"]).out


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--events", "-", "--json"), 2, "exclude each other"),
        (("--events", ""), 2, "--events is empty"),
        (("--record", ""), 2, "--record is empty"),
        (("--events", "no/such/place"), 8, "cannot be written: No such file"),
        (("--record", "/proc/1/x"), 8, "cannot be written"),
    ],
)
def test_places_that_cannot_be_are_refused_before_anything_runs(
    bench: Bench, make: Maker, words: tuple[str, ...], code: int, said: str
) -> None:
    done = bench.attempt(make(COPY), *words)
    assert done.code == code
    assert said in error(done)
    assert "hint: " in done.err
    assert "fetching" not in done.err


@pytest.mark.parametrize("verb", ["status", "logs", "wait", "cancel", "resume"])
def test_a_build_that_is_not_there_is_said_so(shared: Program, verb: str) -> None:
    done = shared(verb, "../x")  # worse names are in the unit tests
    assert done.code == 2
    assert "there is no build `../x`" in error(done)


def test_a_list_that_finds_no_place_is_an_error_without_a_traceback(bench: Bench) -> None:
    program = bench.ocis2i
    for words in (("ps",), ("ps", "--json"), ("status", "none", "--json")):
        with Path("/dev/full").open("w") as full:
            done = subprocess.run(
                [*ARGV, *words],
                env=program.environment,
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
            )
        assert done.stderr.startswith("error: ") and "Traceback" not in done.stderr
        assert done.returncode == (2 if "none" in words else 8)


def test_a_build_does_not_fail_because_it_cannot_be_recorded(bench: Bench, make: Maker) -> None:
    records = bench.ocis2i.store / "records"
    records.mkdir(parents=True, exist_ok=True)
    records.chmod(0o500)
    try:
        done = bench.built(make(COPY), "--json")
    finally:
        records.chmod(0o700)
    assert "warning: the build has no record: Permission denied" in done.err
    assert done.document["id"] == ""


# --- kept and forgotten -----------------------------------------------------------------------


def ids(ocis2i: Program) -> list[str]:
    return [row["id"] for row in ocis2i.ok("ps", "-a", "--json").document["builds"]]


def test_the_last_builds_are_kept_and_prune_forgets_them(
    ocis2i: Program, make: Maker, source: Path
) -> None:
    def build(keep: str) -> Done:
        return ocis2i("build", source, f"oci:{source}/none", "app:1", OCIS2I_KEEP_BUILDS=keep)

    for _ in range(3):
        assert build("2").code == 4
    kept = ids(ocis2i)
    assert len(kept) == 2
    leftover = ocis2i.store / "records/.20200101-000000-abcdef"
    leftover.mkdir()
    assert ocis2i.ok("prune", "--older", "1h", "--json").document["records"] == 0
    assert not leftover.exists()
    assert ids(ocis2i) == kept
    assert ocis2i.ok("prune", OCIS2I_KEEP_BUILDS="1").out.endswith(", forgot 1 build\n")
    assert ids(ocis2i) == kept[1:]
    assert ocis2i.ok("prune", "--builds", "--json").document["records"] == 1
    assert ids(ocis2i) == []
    bad = build("many")
    assert bad.code == 2
    assert "OCIS2I_KEEP_BUILDS" in error(bad)
