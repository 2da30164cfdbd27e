"""The documents of `--json` that are made of stages."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from ocis2i.documents import build_info, failure_document
from ocis2i.errors import ScriptError
from ocis2i.events import NetworkEnded
from ocis2i.report import StageRecord

START = datetime(2020, 1, 1, tzinfo=UTC)


def record(name: str, after: float, seconds: float, *, ok: bool = True) -> StageRecord:
    return StageRecord(name, START + timedelta(seconds=after), seconds, ok)


def step(name: str, started: str, milliseconds: int) -> dict[str, Any]:
    return {"name": name, "startTime": started, "durationMilliseconds": milliseconds}


def test_a_stage_lasts_from_its_first_step_to_the_end_of_its_last() -> None:
    info = build_info(
        [
            record("fetch", 0, 0.1),
            record("pull", 1, 0.5),
            record("unpack", 2, 3),
            record("pull-previous", 5, 0.25),
        ]
    )
    assert info == {
        "stages": [
            step("PullImages", "2020-01-01T00:00:01Z", 4250)
            | {
                "steps": [
                    step("PullBuilderImage", "2020-01-01T00:00:01Z", 500),
                    step("PullPreviousImage", "2020-01-01T00:00:05Z", 250),
                ]
            }
        ],
        "failureReason": {"reason": "", "message": ""},
    }


def test_stages_that_s2i_does_not_know_are_left_out() -> None:
    assert build_info([record("fetch", 0, 1), record("push", 1, 1)])["stages"] == []


def test_a_failure_tells_reason_message_and_both_exit_codes() -> None:
    error = ScriptError("assemble failed", script_exit_code=13, hint="look")
    document = failure_document(error, 7, [record("assemble", 0, 1, ok=False)])
    assert document["reason"] == "AssembleFailed"
    assert (document["exit_code"], document["script_exit_code"]) == (7, 13)
    assert document["build_info"]["failureReason"] == {
        "reason": "AssembleFailed",
        "message": "assemble failed",
    }
    assert [one["name"] for one in document["build_info"]["stages"]] == ["Assemble"]


def test_a_failure_tells_what_was_asked_for_through_the_proxy() -> None:
    error = ScriptError("assemble failed", script_exit_code=13)
    ended = NetworkEnded("proxy", (("far.example", 443, "refused"),), 2)
    assert failure_document(error, 7, [], ended)["network"] == {
        "mode": "proxy",
        "hosts": [{"host": "far.example", "port": 443, "state": "refused"}],
        "more": 2,
    }
    assert failure_document(error, 7, [])["network"] is None
