"""The report of a build: what is taken from its record, and that nothing of it becomes markup."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ocis2i import build_facts
from ocis2i.build_facts import read_facts, read_log
from ocis2i.build_page import Changes, build_page
from ocis2i.differences import Change, Facts
from ocis2i.markup import Markup, escaped, tag
from ocis2i.records import Record

NOW = datetime(2026, 1, 2, 3, 4, 30, tzinfo=UTC)
START = datetime(2026, 1, 2, 3, 4, 0, tzinfo=UTC)
HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\x1b[31m\x07"
DIGEST = "sha256:" + "ab" * 32


def record(
    path: Path,
    events: list[dict[str, Any]],
    result: dict[str, Any] | None = None,
    logs: dict[str, bytes] | None = None,
    **more: Any,
) -> Record:
    """A record of a build that nobody works on; `at` of an event is in seconds from the start."""
    document = {
        "version": 1,
        "id": "20260102-030400-abcdef",
        "tag": "app:1",
        "names": ["docker.io/library/app:1"],
        "source": "src",
        "builder": "builder",
        "command": ["build", "src", "builder", "app:1"],
        "cwd": "/work",
        "started": START.isoformat(),
    } | more
    path.mkdir(exist_ok=True)
    (path / "record.json").write_text(json.dumps(document))
    lines = []
    for number, event in enumerate(events, 1):
        time = (START + timedelta(seconds=event.pop("at", 0))).isoformat()
        lines.append(json.dumps({"seq": number, "time": time, **event}) + "\n")
    (path / "events.jsonl").write_text("".join(lines))
    if result is not None:
        (path / "result.json").write_text(json.dumps(result))
    (path / "log").mkdir(exist_ok=True)
    for stage, data in (logs or {}).items():
        (path / "log" / f"{stage}.log").write_bytes(data)
    return Record.load(path)


def began(stage: str, at: float, detail: str = "") -> dict[str, Any]:
    return {"type": "stage_started", "stage": stage, "detail": detail, "at": at}


def ended(stage: str, at: float, *, ok: bool = True) -> dict[str, Any]:
    return {"type": "stage_ended", "stage": stage, "ok": ok, "at": at}


def page(found: Record, changes: Changes | None = None) -> str:
    return build_page(read_facts(found, NOW), changes or Changes(), now=NOW, version="9.9")


class Text(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def test_stages_lie_on_one_time_line(tmp_path: Path) -> None:
    events = [began("fetch", 0), ended("fetch", 2), began("assemble", 3), ended("assemble", 9)]
    found = read_facts(record(tmp_path, events, {"state": "succeeded"}), NOW)
    assert [(one.name, one.start, one.seconds, one.end) for one in found.stages] == [
        ("fetch", 0, 2, "ok"),
        ("assemble", 3, 6, "ok"),
    ]
    assert found.seconds == 9


def test_time_in_which_nobody_worked_on_it_does_not_count(tmp_path: Path) -> None:
    events = [
        began("push", 0),
        {"type": "resumed", "at": 90_000, "pid": 1},
        began("push", 90_001),
        ended("push", 90_003),
    ]
    found = read_facts(record(tmp_path, events, {"state": "succeeded"}), NOW)
    assert [(one.start, one.seconds, one.end) for one in found.stages] == [
        (0, 0, "died"),
        (1, 2, "ok"),
    ]


def test_a_clock_that_was_set_back_does_no_harm(tmp_path: Path) -> None:
    events = [began("fetch", 5), ended("fetch", -50), began("layer", 6), ended("layer", 7)]
    found = read_facts(record(tmp_path, events, {"state": "succeeded"}), NOW)
    assert [one.seconds for one in found.stages] == [0, 1]


def test_a_build_that_died_says_where(tmp_path: Path) -> None:
    found = record(tmp_path, [began("assemble", 0)], logs={"assemble": b"last words\n"})
    text = Text(page(found)).text
    assert "The build died" in text
    assert "It happened while it was assembling." in text
    assert "build it again" in text


def test_a_build_whose_result_is_lost_is_not_said_to_be_killed(tmp_path: Path) -> None:
    end = {"type": "ended", "state": "failed", "reason": "AssembleFailed", "at": 2}
    text = Text(page(record(tmp_path, [began("assemble", 0), end]))).text
    assert "The result of the build is lost" in text
    assert "`result.json` is missing; `events.jsonl` says: failed, AssembleFailed" in text
    assert "killed" not in text


def test_a_build_that_died_after_its_image_was_stored_can_go_on(tmp_path: Path) -> None:
    stored = {"type": "stored", "digest": DIGEST, "config": DIGEST, "facts": {"isolation": "crun"}}
    text = Text(page(record(tmp_path, [stored, began("push", 1)]))).text
    # It is not among the records of a store, and so it is found by its path alone.
    assert f"ocis2i resume {tmp_path}" in text
    assert DIGEST in text
    assert "crun" in text


def test_a_failure_is_explained(tmp_path: Path) -> None:
    result = {
        "state": "failed",
        "reason": "AssembleFailed",
        "message": "`assemble` failed with exit code 127",
        "hint": "look above",
        "script_exit_code": 127,
        "exit_code": 7,
        "failure": {"meaning": "`mvn` is not in the image", "repeat": "ocis2i build --again"},
    }
    events = [began("assemble", 0), ended("assemble", 1, ok=False)]
    log = "".join(f"line {number}\n" for number in range(30)).encode()
    text = Text(page(record(tmp_path, events, result, {"assemble": log}))).text
    assert "AssembleFailed" in text
    assert "`mvn` is not in the image" in text
    assert "ocis2i build --again" in text
    assert "line 10\nline 11\n" in text


@pytest.mark.parametrize("result", [{}, {"state": 7, "failure": [], "layers": "x", "changes": 3}])
def test_a_result_that_makes_no_sense_is_no_crash(tmp_path: Path, result: dict[str, Any]) -> None:
    events: list[dict[str, Any]] = [
        {"type": "stage_started"},
        {"type": "stage_ended", "stage": []},
        {"type": "pushed", "names": 5},
        {"type": "stored", "digest": 5, "facts": []},
        {"type": "notice", "level": "warning"},
        {"type": []},
    ]
    found = record(tmp_path, events, result, command=5, names="x", started=7)
    assert "app:1" in Text(page(found)).text


def test_nothing_of_a_build_becomes_markup(tmp_path: Path) -> None:
    events = [
        began("assemble", 0, HOSTILE),
        {"type": "notice", "level": "warning", "message": HOSTILE},
        {"type": "pushed", "names": [HOSTILE]},
        {"type": "written", "where": HOSTILE},
        {"type": "stored", "digest": HOSTILE, "config": "", "facts": {"isolation": HOSTILE}},
        ended("assemble", 1, ok=False),
    ]
    result = {"state": "failed", "message": HOSTILE, "hint": HOSTILE, "reason": HOSTILE}
    harmless = page(record(tmp_path / "a", [began("assemble", 0)], {"state": "failed"}))
    name = HOSTILE.encode()
    changes = [
        Change(name, "added", None, Facts(b"2", 0o777, 0, 0, 5, target=name)),
        Change(name + b"/" + name, "added", None, Facts(b"0", 0o4777, 0, 0, 1 << 30)),
    ]
    facts = dict.fromkeys(("tag", "source", "builder", "cwd"), HOSTILE)
    hostile = page(
        record(
            tmp_path / "b",
            events,
            result,
            {"assemble": HOSTILE.encode() + b"\xff\0\n"},
            names=[HOSTILE],
            command=[HOSTILE],
            **facts,
        ),
        Changes(changes, HOSTILE),
    )
    seen = Text(hostile)
    assert "img" not in seen.elements
    assert not any(name.startswith("on") for name in seen.attributes)
    assert seen.elements.count("script") == Text(harmless).elements.count("script") == 1
    assert not any(ord(char) < 32 and char not in "\t\n" for char in hostile)


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path: Path) -> None:
    html = page(record(tmp_path, [], {"state": "succeeded"}, {"assemble": b"x\n"}))
    assert "default-src &#x27;none&#x27;" in html
    assert not {"src", "href", "action", "style"} & Text(html).attributes
    assert "url(" not in html
    assert "@import" not in html


def test_text_is_escaped_and_markup_is_not() -> None:
    assert tag("b", "<", tag("i", "x"), class_='"') == '<b class="&quot;">&lt;<i>x</i></b>'
    assert escaped(Markup("<b>")) == "<b>"
    assert tag("input", hidden=True, disabled=False) == "<input hidden>"
    assert escaped("right\u202eleft\0") == "right\\u202eleft\\x00"


# --- long logs --------------------------------------------------------------------------------


def test_a_short_log_is_whole(tmp_path: Path) -> None:
    log = tmp_path / "assemble.log"
    log.write_bytes(b"one\n\nthree\nno end")
    found = read_log("assemble", log)
    assert found.first == ("one", "", "three", "no end")
    assert (found.last, found.missing_lines, found.missing_bytes) == ((), 0, 0)


def test_of_many_lines_the_middle_is_left_out(tmp_path: Path) -> None:
    log = tmp_path / "assemble.log"
    log.write_text("".join(f"{number}\n" for number in range(1, 8001)))
    found = read_log("assemble", log)
    assert found.first[-1] == str(build_facts.LINES_AT_THE_START)
    assert found.missing_lines == 2000
    assert (found.last[0], found.last[-1]) == ("3501", "8000")


def test_of_a_huge_log_both_ends_are_read(tmp_path: Path) -> None:
    log = tmp_path / "assemble.log"
    with log.open("w") as file:
        for number in range(400_000):
            file.write(f"{number:07} {'x' * 120}\n")
    found = read_log("assemble", log)
    assert found.first[0].startswith("0000000 ")
    assert found.last[-1].startswith("0399999 ")
    assert found.missing_bytes > 45 << 20
    assert all(len(line) == 128 for line in (*found.first, *found.last))


def test_a_line_without_end_is_cut(tmp_path: Path) -> None:
    log = tmp_path / "assemble.log"
    log.write_bytes(b"x" * (3 << 20))
    found = read_log("assemble", log)
    assert sum(len(line) for line in (*found.first, *found.last)) < 6000


def test_a_log_that_is_no_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("secret")
    (tmp_path / "assemble.log").symlink_to("real")
    assert read_log("assemble", tmp_path / "assemble.log").first == ()


def test_a_page_of_a_long_log_is_small(tmp_path: Path) -> None:
    log = b"".join(b"compiling module %d\n" % number for number in range(1_000_000))
    found = record(tmp_path, [began("assemble", 0)], {"state": "failed"}, {"assemble": log})
    html = page(found)
    assert len(html) < 2 << 20
    assert "are left out here" in html
