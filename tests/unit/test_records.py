"""The records of builds: how they are found, what state they are in, and what a writer leaves."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import kept, kept_document, record_files, records
from ocis2i.build_facts import read_facts
from ocis2i.build_rows import build_row, died_in, human_age, human_seconds
from ocis2i.command_words import masked_command
from ocis2i.commands import builds
from ocis2i.commands.failing import command_again, with_way_back
from ocis2i.errors import OutputError, UsageError
from ocis2i.events import (
    ImagePushed,
    ImageStored,
    Notice,
    ScriptOutput,
    StageEnded,
    StageStarted,
    Transfer,
    stage,
)
from ocis2i.following import Story, follow
from ocis2i.fs import boot_id
from ocis2i.journal import Journal
from ocis2i.record_files import (
    Heading,
    record_at,
    record_in_store,
    reopen,
    retire,
    to_retire,
)
from ocis2i.records import DIED_CODE, Record, all_records, find, newest, process_started
from ocis2i.resume import missing_of, stored_digest
from tests.fakes.record_schemas import check_against, event_types, faults
from tests.unit.test_failure_table import FAILURE

START = datetime(2026, 11, 23, 20, 15, 30, tzinfo=UTC)
DIGEST = "sha256:" + "a" * 64
GOOD: dict[str, Any] = {"version": 1, "state": "succeeded"}
BAD: dict[str, Any] = {"version": 1, "state": "failed", "reason": "AssembleFailed", "exit_code": 7}


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now

    def forward(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def heading(name: str = "docker.io/library/app:1", **more: Any) -> Heading:
    names = (name,) if name else ()
    return Heading("src", "builder", names, "app:1", ("build", "src"), "/work", "1.0", **more)


class Written:
    """A record that a test writes, with its clock and what its writer warned of."""

    def __init__(self, root: Path, head: Heading, stream: Any = None) -> None:
        self.clock = Clock()
        self.warnings: list[str] = []
        root.mkdir(exist_ok=True)
        self.name, self.files = record_in_store(root, head, START)
        self.journal = Journal(
            self.files,
            stream,
            name=self.name,
            started=START,
            now=self.clock,
            warn=self.warnings.append,
        )

    @property
    def record(self) -> Record:
        return Record.load(self.files.path)


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Callable[..., Written]]:
    made: list[Written] = []

    def new(name: str = "docker.io/library/app:1", **more: Any) -> Written:
        stream = more.pop("stream", None)
        made.append(Written(tmp_path, heading(name, **more), stream))
        return made[-1]

    yield new
    for one in made:
        one.journal.close(BAD)


def dead(path: Path, **fields: Any) -> Record:
    """A record that nobody holds, as a killed process leaves it."""
    path.mkdir(parents=True)
    document = heading().document(path.name, START)
    (path / "record.json").write_text(json.dumps({**document, **fields}))
    (path / "lock").touch()
    return Record(path, {**document, **fields})


# --- states -----------------------------------------------------------------------------------


def test_a_build_is_running_until_its_journal_is_closed(write: Callable[..., Written]) -> None:
    one = write()
    assert (one.record.state, one.record.exit_code) == ("running", None)
    assert one.record.process == os.getpid()
    one.journal.close(GOOD)
    assert (one.record.state, one.record.exit_code) == ("succeeded", 0)


@pytest.mark.parametrize(
    ("document", "state", "code"),
    [
        (GOOD, "succeeded", 0),
        (BAD, "failed", 7),
        ({**BAD, "reason": "Interrupted", "exit_code": 143}, "cancelled", 143),
        ({"state": "failed", "exit_code": "seven"}, "failed", 1),
    ],
)
def test_the_result_says_how_it_ended(
    write: Callable[..., Written], document: dict[str, Any], state: str, code: int
) -> None:
    one = write()
    one.journal.close(document)
    assert (one.record.state, one.record.exit_code) == (state, code)


def test_the_first_word_about_the_end_is_the_last_one(write: Callable[..., Written]) -> None:
    one = write()
    one.journal.close(GOOD)
    one.journal.close(BAD)
    one.journal(Notice("info", "nobody hears this"))
    assert one.record.state == "succeeded"
    assert one.warnings == []


def test_a_build_without_result_and_process_has_died(tmp_path: Path) -> None:
    record = dead(tmp_path / "records/20200101-000000-aaaaaa")
    assert (record.state, record.exit_code) == ("died", DIED_CODE)
    assert "was killed" in died_in(build_row(record), restarted=record.was_restarted)


def test_a_process_of_another_start_or_another_boot_is_not_the_builds(tmp_path: Path) -> None:
    started = process_started(os.getpid())
    assert started is not None
    same = dead(tmp_path / "a", pid=os.getpid(), pid_started=started)
    reused = dead(tmp_path / "b", pid=os.getpid(), pid_started=started - 1)
    restarted = dead(tmp_path / "c", pid=os.getpid(), pid_started=started, boot_id="another")
    assert same.process == os.getpid()
    assert (reused.process, restarted.process) == (None, None)
    assert restarted.was_restarted
    assert "restarted" in died_in(build_row(restarted), restarted=True)


@pytest.mark.parametrize("pid", [None, 0, 1, -1, True, "1", 1 << 40])
def test_what_is_no_process_is_none(tmp_path: Path, pid: object) -> None:
    assert dead(tmp_path / "a", pid=pid, pid_started=1).process is None


def test_where_there_are_no_locks_the_process_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    started = process_started(os.getpid())
    alive = dead(tmp_path / "a", pid=os.getpid(), pid_started=started)
    gone = dead(tmp_path / "b", pid=os.getpid(), pid_started=0)
    assert (alive.state, gone.state) == ("running", "died")


def test_a_process_that_is_only_waited_for_has_ended() -> None:
    done = subprocess.Popen([sys.executable, "-c", "pass"])
    os.waitid(os.P_PID, done.pid, os.WEXITED | os.WNOWAIT)
    assert process_started(done.pid) is None
    done.wait()


@pytest.mark.parametrize(
    "text", [b"", b"{", b'{"version": 1', b"[]", b"\xff", b"null", b"[" * 9999]
)
def test_a_record_that_a_power_cut_left_is_still_listed(tmp_path: Path, text: bytes) -> None:
    path = tmp_path / "records/20200101-000000-aaaaaa"
    dead(path)
    (path / "record.json").write_bytes(text)
    (path / "result.json").write_bytes(text)
    (record,) = all_records(tmp_path)
    row = build_row(record)
    assert (row["id"], row["state"], row["name"]) == (path.name, "died", None)
    assert find(tmp_path, "20200101") == record
    with pytest.raises(UsageError, match="no finished image"):
        stored_digest(record)


def test_a_record_of_a_later_program_is_not_guessed_at(tmp_path: Path) -> None:
    dead(tmp_path / "records/20200101-000000-aaaaaa", version=2)
    assert all_records(tmp_path) == []
    with pytest.raises(UsageError, match="has version 2") as caught:
        find(tmp_path, "20200101-000000-aaaaaa")
    assert caught.value.hint


# --- finding ----------------------------------------------------------------------------------


@pytest.fixture
def three(tmp_path: Path) -> Path:
    for name, image in (("0101-000000-aaaaaa", "app:1"), ("0102-000000-aabbbb", "app:1")):
        names = [f"docker.io/library/{image}", "docker.io/library/also:1"]
        dead(tmp_path / f"records/2020{name}", names=names)
    dead(tmp_path / "records/20200103-000000-cccccc", names=["example.com/team/x:2"])
    (tmp_path / "records/.20200104-000000-dddddd").mkdir()
    (tmp_path / "records/notes").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("20200101-000000-aaaaaa", "aaaaaa"),
        ("20200103", "cccccc"),
        ("cccc", "cccccc"),
        ("aabb", "aabbbb"),
        ("app:1", "aabbbb"),
        ("docker.io/library/app:1", "aabbbb"),
        ("also:1", "aabbbb"),
        ("example.com/team/x:2", "cccccc"),
    ],
)
def test_a_build_is_found_by_id_beginning_tail_or_image(three: Path, text: str, found: str) -> None:
    assert find(three, text).id.endswith(found)


@pytest.mark.parametrize("text", ["2020", "202001"])
def test_what_may_be_several_builds_names_them(three: Path, text: str) -> None:
    with pytest.raises(UsageError, match=r"may be 3 builds.*cccccc"):
        find(three, text)


@pytest.mark.parametrize(
    "text",
    [
        *("", ".", "..", "../x", "../records/20200101-000000-aaaaaa", "/", "a", "aaa", "notes"),
        *("records", "\0", "a/\0", "x" * 5000, "/" * 5000, "*", "20200104", "app", "app:2", "-"),
        *("20200101-000000-aaaaaa/", "./20200101-000000-aaaaaa", "20200101-000000-aaaaaa\n", "é"),
    ],
)
def test_what_is_no_build_is_said_so(three: Path, text: str) -> None:
    with pytest.raises(UsageError, match="no build") as caught:
        find(three, text)
    assert caught.value.hint


@given(text=st.text(max_size=40))
def test_law_any_text_is_a_build_or_a_usage_error(text: str) -> None:
    with pytest.raises(UsageError):
        find(Path("/nonexistent"), text)


def test_a_directory_is_named_with_a_slash(tmp_path: Path) -> None:
    record = dead(tmp_path / "here")
    assert find(tmp_path, str(tmp_path / "here")) == record
    assert find(tmp_path, f"{tmp_path}/./here/") == record


def test_the_newest_is_the_one_that_began_last(three: Path, tmp_path: Path) -> None:
    assert newest(three).id.endswith("cccccc")
    with pytest.raises(UsageError, match="has no build"):
        newest(tmp_path / "empty")


def test_a_record_with_devices_or_links_in_it_is_not_followed(tmp_path: Path) -> None:
    record = dead(tmp_path / "a")
    (tmp_path / "secret").write_text('{"type": "stage_started", "stage": "x"}\n')
    (record.path / "events.jsonl").symlink_to(tmp_path / "secret")
    os.mkfifo(record.path / "result.json")
    assert (list(record.events()), record.result) == ([], None)


# --- writing ----------------------------------------------------------------------------------


def test_what_happened_is_read_again_as_it_was_told(write: Callable[..., Written]) -> None:
    one = write()
    with stage(one.journal, "fetch", "from there"):
        one.clock.forward(1.5)
    with stage(one.journal, "assemble"):
        one.journal(ScriptOutput("stdout", "line\u2028one"))
        one.journal(ScriptOutput("stderr", "\ud800 \x1b[31m"))
        one.journal(Notice("warning", "look"))
        one.journal(Notice("debug", "for developers"))
    one.journal(ImageStored(DIGEST, DIGEST, {"isolation": "runc"}))
    one.journal(ImagePushed(("a:1",)))
    one.journal.close(GOOD)
    events = list(one.record.events())
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5, 6, 7, 8]
    kinds = "stage_started stage_ended stage_started notice stage_ended stored pushed ended"
    assert [event["type"] for event in events] == kinds.split()
    assert events[1] | {"seconds": 1.5, "ok": True} == events[1]
    log = one.record.log_files()["assemble"].read_text()
    assert log == "line\u2028one\n\\ud800 \x1b[31m\nwarning: look\n"
    for event in events:
        check_against("event.schema.json", event)
    check_against("record.schema.json", json.loads((one.record.path / "record.json").read_bytes())
                  | {"resume": full_wishes()})  # fmt: skip


@pytest.mark.parametrize(
    ("told", "valid"),
    [
        ({"type": "paused"}, True),
        ({"type": "paused", "stage": None, "state": ["whatever"], "seconds": "many"}, True),
        ({"type": "notice", "stage": None, "level": "info", "message": "", "new": 1}, True),
        ({"type": "notice", "stage": None, "level": "info"}, False),
        ({"type": "notice", "stage": None, "level": "paused", "message": ""}, False),
        ({"type": "Paused!"}, False),
        ({"type": None}, False),
        ({}, False),
        ({"type": "paused", "seq": 0}, False),
    ],
)
def test_a_strict_reader_bears_events_of_types_to_come(told: dict[str, Any], valid: bool) -> None:
    event = {"seq": 1, "time": "2026-11-24T01:02:03.456Z", **told}
    assert (faults("event.schema.json", event) == []) == valid
    # Whoever writes one has to put it into the schema.
    if told.get("type") not in event_types() or "new" in told or not valid:
        with pytest.raises(AssertionError):
            check_against("event.schema.json", event)


def test_a_record_with_events_of_types_to_come_is_read_as_ever(
    write: Callable[..., Written],
) -> None:
    one = write()
    with stage(one.journal, "assemble"):
        one.files.event({"type": "paused", "stage": "assemble", "state": []}, START)
        assert one.record.open_stages() == ("assemble",)
    one.journal.close(GOOD)
    assert (one.record.state, one.record.exit_code) == ("succeeded", 0)
    story = Story(one.record)
    assert b"".join(story.more()) == b"---> assembling\n"
    story.close()
    assert read_facts(one.record, START).warnings == ()


def full_wishes() -> dict[str, Any]:
    return {
        "store": "/s", "push": True, "network": "host", "outputs": [], "digest_file": None,
        "iidfile": None, "registry": {}, "not_repeated": [],
    }  # fmt: skip


def test_a_transfer_is_told_when_it_changes_or_once_a_second(write: Callable[..., Written]) -> None:
    one = write()
    one.journal(StageStarted("push"))
    for done in range(100):
        one.clock.forward(0.02)
        one.journal(Transfer(DIGEST, "pushing", done, 100))
    one.journal(Transfer(DIGEST, "done", 100, 100))
    moved = [event for event in one.record.events() if event["type"] == "transfer"]
    assert [event["done"] for event in moved] == [0, 50, 100]
    assert {event["stage"] for event in moved} == {"push"}


def test_a_log_does_not_grow_without_end(
    write: Callable[..., Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(record_files, "LOG_LIMIT_BYTES", 1000)
    one = write()
    with stage(one.journal, "assemble"):
        for _ in range(100):
            one.journal(ScriptOutput("stdout", "x" * 99))
    log = one.record.log_files()["assemble"].read_text().splitlines()
    assert len(log) == 11
    assert "not kept" in log[-1]


def test_many_threads_make_whole_lines(write: Callable[..., Written]) -> None:
    one = write()

    def tell() -> None:
        for number in range(50):
            one.journal(Notice("info", f"{number} {'x' * 200}"))

    threads = [threading.Thread(target=tell) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [event["seq"] for event in one.record.events()] == list(range(1, 201))


def test_half_a_line_at_the_end_is_left_out(write: Callable[..., Written]) -> None:
    one = write()
    one.journal(Notice("info", "whole"))
    one.journal.close(GOOD)
    with (one.record.path / "events.jsonl").open("ab") as file:
        file.write(b'{"seq":3,"type":"notice","message":"hal')
    assert [event["type"] for event in one.record.events()] == ["notice", "ended"]
    files = reopen(one.record)
    files.event({"type": "resumed", "pid": 1}, START)
    files.close()
    assert [event["seq"] for event in one.record.events()] == [1, 2, 3]


def test_a_full_disk_is_told_once_and_ends_nothing(write: Callable[..., Written]) -> None:
    one = write()
    full = os.open("/dev/full", os.O_WRONLY)
    os.dup2(full, one.files._events)
    os.close(full)
    for _ in range(3):
        one.journal(Notice("info", "x"))
    (warning,) = one.warnings
    assert "record cannot be written: No space left" in warning
    # No failure says that all which was printed is there.
    assert one.journal.kept is None
    one.journal.close(GOOD)
    assert one.record.state == "succeeded"


def test_a_record_that_is_removed_meanwhile_is_told_once(write: Callable[..., Written]) -> None:
    one = write()
    assert not record_files.forget(one.files.path), "nobody removes what is in use"
    for path in sorted(one.files.path.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    one.files.path.rmdir()
    with stage(one.journal, "assemble"):
        one.journal(ScriptOutput("stdout", "x"))
        one.journal(ScriptOutput("stdout", "y"))
    one.journal.close(GOOD)
    assert len(one.warnings) == 1


def test_a_stream_whose_reader_is_gone_is_told_once(write: Callable[..., Written]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as stream:
        one = write(stream=stream)
        for _ in range(3):
            one.journal(Notice("info", "x"))
        one.journal.close(GOOD)
        assert len(one.warnings) == 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    assert one.record.state == "succeeded"


def test_a_directory_that_has_something_in_it_is_refused(tmp_path: Path) -> None:
    _, files = record_at(tmp_path / "a/b", heading(), START)
    files.close()
    (tmp_path / "file").touch()
    for path, words in ((tmp_path / "a/b", "record of another build"), (tmp_path, "not empty"),
                        (tmp_path / "file", "no empty directory")):  # fmt: skip
        with pytest.raises(UsageError, match=words) as caught:
            record_at(path, heading(), START)
        assert caught.value.hint


def test_two_do_not_go_on_with_one_build(write: Callable[..., Written]) -> None:
    one = write()
    with pytest.raises(UsageError, match="somebody works on"):
        reopen(one.record)


# --- what is kept -----------------------------------------------------------------------------


@given(
    states=st.lists(st.booleans(), max_size=30),
    keep=st.integers(min_value=0, max_value=30),
)
def test_law_the_last_finished_builds_stay_and_the_running_ones(
    states: list[bool], keep: int
) -> None:
    named = [(f"{number:03}", finished) for number, finished in enumerate(states)]
    gone = to_retire(named, keep)
    left = [(name, finished) for name, finished in named if name not in gone]
    assert [one for one in left if not one[1]] == [one for one in named if not one[1]]
    finished = [name for name, is_finished in named if is_finished]
    kept = [name for name, is_finished in left if is_finished]
    assert kept == finished[max(0, len(finished) - keep) :]


def test_old_records_go_and_running_ones_stay(
    three: Path, write: Callable[..., Written], tmp_path: Path
) -> None:
    running = write()
    assert retire(three, 5, before=datetime(2020, 1, 2, tzinfo=UTC)) == 1
    assert retire(three, 1) == 1
    assert retire(three, 0) == 1
    assert records.ids(three) == [running.name]
    assert record_files.leftovers(three) == [three / "records/.20200104-000000-dddddd"]


# --- logs -------------------------------------------------------------------------------------


def said(record: Record, only: str | None = None) -> str:
    parts: list[bytes] = []
    follow(record, parts.append, None, only=only)
    return b"".join(parts).decode()


def test_the_log_is_told_stage_by_stage(write: Callable[..., Written]) -> None:
    one = write()
    one.journal(Notice("warning", "before"))
    with stage(one.journal, "fetch", "a\x1b[2Jb"):
        pass
    for number in (1, 2):
        with stage(one.journal, "output", f"oci:{number}"):
            one.journal(Notice("info", f"writing {number}"))
    text = said(one.record)
    assert text.splitlines() == [
        "warning: before",
        "---> fetching the source: a\\x1b[2Jb",
        "---> writing: oci:1",
        "writing 1",
        "writing 2",
        "---> writing: oci:2",
    ]
    assert said(one.record, "output") == "writing 1\nwriting 2\n"


def test_who_follows_reads_each_line_once_as_it_comes(write: Callable[..., Written]) -> None:
    one = write()
    story = Story(one.record)
    assert list(story.more()) == []
    one.journal(StageStarted("assemble"))
    one.journal(ScriptOutput("stdout", "one"))
    assert b"".join(story.more()) == b"---> assembling\none\n"
    assert list(story.more()) == []
    one.journal(ScriptOutput("stdout", "two"))
    one.journal(StageEnded("assemble", ok=True))
    assert b"".join(story.more()) == b"two\n"
    story.close()


def test_following_ends_with_the_build(write: Callable[..., Written]) -> None:
    one = write()
    parts: list[bytes] = []
    steps: list[Callable[[], object]] = [
        lambda: one.journal(StageStarted("push")),
        lambda: one.journal.close(GOOD),
    ]

    def pause() -> None:
        steps.pop(0)()

    follow(one.record, parts.append, pause, only=None)
    assert parts == [b"---> pushing\n"]


# --- resume -----------------------------------------------------------------------------------


def wishes(**more: Any) -> dict[str, Any]:
    outputs = [{"place": "oci:/work/out", "where": "oci:out"}]
    return {**full_wishes(), "outputs": outputs, **more}


def test_only_what_is_not_done_is_missing(write: Callable[..., Written]) -> None:
    one = write(resume=wishes())
    assert [where for _, where in missing_of(one.record).outputs] == ["oci:out"]
    assert [str(name) for name in missing_of(one.record).push] == ["docker.io/library/app:1"]
    one.journal._tell({"type": "written", "where": "oci:out"})
    one.journal(ImagePushed(("docker.io/library/app:1",)))
    assert not missing_of(one.record)


@pytest.mark.parametrize("listed", [5, 1.5, True, "oci:x", {"place": "oci:x"}, [5, None], None])
def test_outputs_that_are_no_list_are_none(tmp_path: Path, listed: Any) -> None:
    assert not missing_of(dead(tmp_path / "a", resume={"outputs": listed}))


@pytest.mark.parametrize("flag", ["--record out", "--record=out"])
def test_the_command_that_builds_again_does_not_name_the_same_record(
    tmp_path: Path, flag: str
) -> None:
    record = dead(tmp_path / "a", command=["build", ".", *flag.split(), "b", "a:1"], cwd="/w")
    assert record.build_again == "cd /w && ocis2i build . b a:1"


@pytest.mark.parametrize(
    ("typed", "again"),
    [
        ("build . b a:1 --record out", "ocis2i build --shell-on-failure . b a:1"),
        ("build . b a:1 --events -", "ocis2i build --shell-on-failure . b a:1 --events -"),
        ("build - b a:1", "ocis2i build - b a:1"),
    ],
)
def test_the_command_of_a_failure_can_be_typed_again(typed: str, again: str) -> None:
    assert command_again(typed.split()) == again


def test_a_running_build_cannot_be_resumed(write: Callable[..., Written]) -> None:
    one = write()
    with pytest.raises(UsageError, match="still running") as caught:
        stored_digest(one.record)
    assert caught.value.hint == f"wait for it: ocis2i wait {one.record.id}"


def test_a_record_that_is_not_among_the_stores_is_called_by_its_path(tmp_path: Path) -> None:
    elsewhere = dead(tmp_path / "record", id="20200101-000000-aaaaaa")
    assert elsewhere.called == str(tmp_path / "record")
    assert dead(tmp_path / "20200101-000000-aaaaaa").called == "20200101-000000-aaaaaa"


def test_a_build_without_image_names_the_command_that_builds_again(tmp_path: Path) -> None:
    record = dead(tmp_path / "a", command=["build", "my src", "b"], cwd="/w o")
    with pytest.raises(UsageError, match="nothing to resume") as caught:
        stored_digest(record)
    assert caught.value.hint == "build again: cd '/w o' && ocis2i build 'my src' b"


# --- words ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        ("build . b -e A=1", "build . b -e A=1"),
        ("-e NPM_TOKEN=abc", "-e NPM_TOKEN=***"),
        ("-eNPM_TOKEN=abc", "-eNPM_TOKEN=***"),
        ("--env=DB_PASSWORD=a=b", "--env=DB_PASSWORD=***"),
        ("--build-env ANY=abc", "--build-env ANY=***"),
        ("--build-env=ANY=abc", "--build-env=ANY=***"),
        ("--build-env HOME", "--build-env HOME"),
        ("-P name=abc", "-P name=***"),
        ("-Pname=abc", "-Pname=***"),
        ("-P key=@file", "-P key=@file"),
        ("--creds me:pw x", "--creds *** x"),
        ("--creds=me:pw", "--creds=***"),
        ("https://me:pw@host/x.git#main", "https://host/x.git#main"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("xx-hush-xx", "xx-***-xx"),
        ("--authfile f", "--authfile f"),
        ("--keep-blobs --tls-verify", "--keep-blobs --tls-verify"),
    ],
)
def test_a_command_is_written_down_without_its_secrets(words: str, shown: str) -> None:
    assert " ".join(masked_command(words.split(), ["hush", ""])) == shown


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        *((0, "0.0s"), (0.44, "0.4s"), (12.4, "12s"), (59.6, "1m00s"), (185, "3m05s")),
        *((3600, "1h00m"), (7800, "2h10m"), (3 * 86400 + 4 * 3600 + 59, "3d04h")),
    ],
)
def test_times_are_short(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_this_process_is_what_a_record_names(write: Callable[..., Written]) -> None:
    document = write().record.document
    assert document["pid"] == os.getpid()
    assert (document["pid_started"], document["boot_id"]) == (
        process_started(os.getpid()),
        boot_id(),
    )


# --- damage, and who looks while others write -------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("record.json", None, "`record.json` is missing"),
        ("record.json", b"", "`record.json` is empty"),
        ("record.json", b'{"id": ', "`record.json` is no JSON object"),
        ("result.json", b"[1]", "`result.json` is no JSON object"),
        ("events.jsonl", None, "`events.jsonl` cannot be read: No such file or directory"),
        ("events.jsonl", b"junk\n", "`events.jsonl` has no event in it"),
    ],
)
def test_a_damaged_record_says_what_of_it_cannot_be_read(
    write: Callable[..., Written], name: str, content: bytes | None, said: str
) -> None:
    one = write()
    one.journal.close(BAD)
    assert list(one.record.damage()) == []
    path = one.files.path / name
    path.unlink() if content is None else path.write_bytes(content)
    assert list(one.record.damage()) == [said]
    damaged = read_facts(one.record, START)
    assert damaged.warnings == (f"the record is damaged: {said}",)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "`result.json` is empty; `events.jsonl` says: failed, AssembleFailed"),
        (b"[1]", "`result.json` is no JSON object; `events.jsonl` says: failed, AssembleFailed"),
        (None, "`result.json` is missing; `events.jsonl` says: failed, AssembleFailed"),
    ],
)
def test_a_build_whose_result_is_lost_is_not_said_to_be_killed(
    write: Callable[..., Written], content: bytes | None, said: str
) -> None:
    one = write()
    one.journal.close(BAD)
    assert not one.record.lost_result
    path = one.files.path / "result.json"
    path.unlink() if content is None else path.write_bytes(content)
    assert one.record.lost_result == said
    row = build_row(one.record)
    assert row["state"] == "died"
    assert row["exit_code"] == one.record.exit_code == 7
    told = died_in(row, restarted=False, lost=one.record.lost_result)
    assert told == f"how it ended cannot be read: {said}"
    (one.files.path / "events.jsonl").write_bytes(
        record_files.as_line({"type": "resumed", "pid": 1})
    )
    assert bool(one.record.lost_result) == (content is not None)
    assert build_row(one.record)["exit_code"] == one.record.exit_code == DIED_CODE


def test_an_event_of_the_end_may_hold_anything(tmp_path: Path) -> None:
    record = dead(tmp_path / "records/20200101-000000-aaaaaa")
    for told, code in (({"exit_code": "x"}, 1), ({"state": "succeeded"}, 0), ({}, 1)):
        line = record_files.as_line({"type": "ended", **told})
        (record.path / "events.jsonl").write_bytes(line)
        assert (record.state, record.exit_code) == ("died", code)
    assert record.lost_result == "`result.json` is missing; `events.jsonl` says: nothing"


def test_how_long_ago_is_told_in_one_unit() -> None:
    ages = {0.4: "0s", 59.9: "59s", 60: "1m", 7199: "1h", 86399: "23h", 1e6: "11d", -3: "0s"}
    assert {seconds: human_age(seconds) for seconds in ages} == ages


def test_without_its_record_no_build_is_repeated_by_an_empty_command(tmp_path: Path) -> None:
    record = dead(tmp_path / "records/20200101-000000-aaaaaa")
    (record.path / "record.json").write_bytes(b"")
    damaged = Record.load(record.path)
    assert damaged.build_again is None
    with pytest.raises(UsageError, match="there is nothing to resume") as caught:
        stored_digest(damaged)
    hint = caught.value.hint or ""
    assert hint == "build again; its command is not known: `record.json` is empty"


def test_an_image_whose_record_is_damaged_is_not_said_to_be_delivered(tmp_path: Path) -> None:
    record = dead(tmp_path / "records/20200101-000000-aaaaaa")
    line = {"type": "stored", "digest": DIGEST, "config": DIGEST, "facts": {}}
    (record.path / "events.jsonl").write_bytes(record_files.as_line(line))
    assert stored_digest(record)[0].hex == "a" * 64
    (record.path / "record.json").write_bytes(b"")
    with pytest.raises(UsageError, match="nobody knows where its image was to go") as caught:
        stored_digest(Record.load(record.path))
    assert DIGEST in (caught.value.hint or "")


def test_names_sort_as_builds_began_also_within_a_second() -> None:
    moments = [START + timedelta(microseconds=300 * number) for number in range(3000)]
    names = [record_files.new_id(moment) for moment in moments]
    assert names == sorted(names)
    assert all(records.ID.match(name) for name in names)


def test_what_names_one_build_and_is_short_for_another_is_refused(
    write: Callable[..., Written],
) -> None:
    first = write()
    tail = first.name.rpartition("-")[2]
    second = write(f"docker.io/library/{tail}:latest")
    root = first.files.path.parent.parent
    with pytest.raises(UsageError, match=f"`{tail}` is the image of the build {second.name}"):
        find(root, tail)
    assert find(root, f"{tail}:latest").id == second.name
    assert find(root, first.name).id == first.name


def test_who_looks_keeps_nobody_from_writing(write: Callable[..., Written]) -> None:
    one = write()
    one.journal.close(BAD)
    lock = os.open(one.files.path / "lock", os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_SH)
    looked = threading.Timer(0.05, os.close, [lock])
    looked.start()
    reopen(one.record).close()
    looked.join()
    # And many who look, all the time.
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            state = one.record.state
            assert state in ("failed", "running") or not one.files.path.exists()

    lookers = [threading.Thread(target=look) for _ in range(3)]
    for looker in lookers:
        looker.start()
    try:
        for _ in range(20):
            reopen(one.record).close()
        assert record_files.forget(one.files.path)
    finally:
        over.set()
        for looker in lookers:
            looker.join()


def test_a_record_that_prune_takes_meanwhile_is_said_to_be_gone(
    write: Callable[..., Written], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = write()
    one.journal.close(BAD)
    record = one.record
    take = record_files._take

    def pruned(lock: int) -> None:
        monkeypatch.setattr(record_files, "_take", take)
        assert record_files.forget(record.path)
        take(lock)

    monkeypatch.setattr(record_files, "_take", pruned)
    with pytest.raises(UsageError, match="was removed meanwhile"):
        reopen(record)
    with pytest.raises(UsageError, match="was removed meanwhile"):
        reopen(record)


def test_a_record_that_is_being_made_is_no_leftover(tmp_path: Path) -> None:
    (tmp_path / "records/.20200101-000000-abcdef").mkdir(parents=True)
    assert len(record_files.leftovers(tmp_path)) == 1
    made = os.open(tmp_path / "records", os.O_RDONLY)
    fcntl.flock(made, fcntl.LOCK_SH)
    assert record_files.leftovers(tmp_path) == []
    os.close(made)


@pytest.mark.parametrize(("durable", "waits"), [(False, 0), (True, 2)])
def test_a_record_costs_few_calls_and_waits_for_the_disk_only_where_it_is_counted_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool, waits: int
) -> None:
    calls: dict[str, int] = {}

    def count(name: str) -> None:
        real = getattr(os, name)

        def counted(*arguments: Any, **named: Any) -> Any:
            calls[name] = calls.get(name, 0) + 1
            return real(*arguments, **named)

        monkeypatch.setattr(os, name, counted)

    for name in ("open", "write", "close", "fsync", "fdatasync"):
        count(name)
    name, files = record_in_store(tmp_path, heading(), START)
    told = Journal(files, None, name=name, started=START, now=Clock(), warn=print, durable=durable)
    told.begin(heading())
    stages = ("fetch", "pull", "unpack", "prepare", "assemble", "layer", "store")
    for one in stages:
        told(StageStarted(one))
        told(StageEnded(one, ok=True))
    told(ImageStored(DIGEST, DIGEST))
    told.close(GOOD)
    assert calls.get("fsync", 0) + calls.get("fdatasync", 0) == waits
    # Two documents, and a line for each event.
    assert calls["write"] == 2 + len(stages) * 2 + 3
    assert calls["open"] <= 6
    assert calls["close"] <= 6


@pytest.mark.parametrize(
    ("typed", "kept", "enter"),
    [
        ("build . b a:1", Path("/r/1"), "ocis2i shell ID"),
        ("--root /s build . b a:1", Path("/r/1"), "ocis2i shell --root /s ID"),
        ("build --root=/s . b a:1", Path("/r/1"), "ocis2i shell --root=/s ID"),
        ("build . b a:1", None, "ocis2i shell /s/builds/1"),
    ],
)
def test_the_way_into_a_kept_container_names_its_store(
    typed: str, kept: Path | None, enter: str
) -> None:
    failure = replace(FAILURE, container="/s/builds/1")
    assert with_way_back(failure, typed.split(), kept, build="ID").enter == enter


KEPT_WHOLE: dict[str, Any] = {
    "version": 1,
    "script": "/usr/libexec/s2i/assemble",
    "tree": "runtime",
    "environment": ["PATH=/bin", "EMPTY="],
    "cwd": "/",
    "identity": {"uid": 1001, "gid": 0, "groups": [1, 2], "home": "/", "name": ""},
    "volumes": [["/src", "/mnt", True, True]],
    "add_hosts": ["db:10.0.0.1", "six:::1"],
    "cap_drop": ["CAP_NET_RAW", "ALL"],
    "network": "none",
    "seccomp": True,
    "no_new_privs": False,
    "isolation": "runc",
    "weak": None,
    "ids": "full",
    "rootfs": "copy",
    "buildah_mode": None,
    "left_out": ["the variable TOKEN"],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("version", True),
        ("script", "assemble"),
        ("tree", "/etc"),
        ("tree", "../.."),
        ("environment", ["A=\0"]),
        ("environment", [1]),
        ("cwd", None),
        ("identity", {**KEPT_WHOLE["identity"], "uid": "0"}),
        ("identity", {**KEPT_WHOLE["identity"], "uid": True}),
        ("identity", {**KEPT_WHOLE["identity"], "gid": -1}),
        ("identity", {**KEPT_WHOLE["identity"], "groups": [1 << 40]}),
        ("volumes", [["/src", "/mnt", True]]),
        ("volumes", [["/src", "mnt", True, True]]),
        ("volumes", [["/src", "/mnt", "yes", True]]),
        ("add_hosts", ["db"]),
        ("cap_drop", ["CAP_EVERYTHING"]),
        ("network", "proxy"),
        ("network", ["host"]),
        ("seccomp", None),
        ("isolation", "in-place"),
        ("isolation", "docker"),
        ("weak", "in-place"),
        ("ids", "all"),
        ("rootfs", "fuse"),
        ("buildah_mode", 1),
        ("left_out", "the variable TOKEN"),
    ],
)
def test_a_kept_container_is_not_opened_by_values_that_cannot_be(name: str, value: object) -> None:
    assert kept_document.faults(KEPT_WHOLE) == []
    assert kept_document.faults({**KEPT_WHOLE, name: value}) == [name]
    missing = {key: value for key, value in KEPT_WHOLE.items() if key != name}
    assert kept_document.faults(missing) == [name]


def test_what_an_image_may_have_among_its_variables_is_no_damage() -> None:
    """Neither the image specification nor any runtime asks for `NAME=VALUE` in each entry."""
    odd = ["PATH=/bin", "BROKEN", "=weird", ""]
    assert kept_document.faults({**KEPT_WHOLE, "environment": odd}) == []


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"version": 1}',
        json.dumps(KEPT_WHOLE | {"version": 2}).encode(),
        json.dumps(KEPT_WHOLE | {"identity": {}}).encode(),
        json.dumps(KEPT_WHOLE | {"environment": None}).encode(),
        json.dumps(KEPT_WHOLE | {"weak": 1}).encode(),
    ],
)
def test_a_kept_container_that_cannot_be_understood_is_told_of(
    tmp_path: Path, damaged: bytes
) -> None:
    assert kept.load(tmp_path) is None
    (tmp_path / records.KEPT).write_text(json.dumps(KEPT_WHOLE))
    assert kept.load(tmp_path)
    (tmp_path / records.KEPT).write_bytes(damaged)
    with pytest.raises(OutputError, match="is damaged, or of another ocis2i"):
        kept.load(tmp_path)


def test_the_command_of_a_failure_has_no_value_of_a_secret() -> None:
    words = ("build", ".", "b", "--build-env", "A=hidden-1", "-e", "B=hidden-1", "-e", "C=seen")
    again = "ocis2i build --shell-on-failure . b --build-env A -e 'B=***' -e C=seen"
    assert command_again(words, ["hidden-1"]) == again


def test_who_waits_does_not_guess_the_end_of_a_build_whose_record_is_gone(tmp_path: Path) -> None:
    record = dead(tmp_path / "records/20200101-000000-aaaaaa")
    builds._wait(record, None, None)
    assert record_files.forget(record.path)
    with pytest.raises(UsageError, match="was removed before its end was read"):
        builds._wait(record, None, None)
