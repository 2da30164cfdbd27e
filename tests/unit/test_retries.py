"""When something is tried again and when it is given up, by clocks that nobody waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from ocis2i.net import RequestError
from ocis2i.retries import CancelledError, Deadline, DeadlineError, Retries, RetryPolicy


def broken() -> RequestError:
    """Fresh: an error remembers that it was given up."""
    return RequestError("broken", kind="broken")


def pauses(error: RequestError, jitter: float = 0.0) -> list[float | None]:
    policy = RetryPolicy()
    return [policy.pause_seconds(failures, error, jitter) for failures in range(1, 6)]


def test_pauses_grow_up_to_a_cap_and_end() -> None:
    assert pauses(broken()) == [
        pytest.approx(0.3),
        pytest.approx(0.9),
        pytest.approx(2.7),
        pytest.approx(8.0),
        None,
    ]
    assert pauses(broken(), jitter=1.0)[0] == pytest.approx(0.15)


def test_host_that_is_not_there_is_given_up_sooner() -> None:
    error = RequestError("refused", kind="unreachable")
    assert [pause is None for pause in pauses(error)] == [False, False, True, True, True]


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 413, 416, 501])
def test_refusals_are_not_tried_again(status: int) -> None:
    assert pauses(RequestError("no", kind="status", status=status)) == [None] * 5


def test_certificates_and_redirects_are_not_tried_again() -> None:
    assert pauses(RequestError("no", kind="certificate")) == [None] * 5
    assert pauses(RequestError("no", kind="redirect")) == [None] * 5


def test_retry_after_is_honoured_up_to_a_minute() -> None:
    for asked, waited in ((0.0, 0.0), (7.0, 7.0), (3600.0, 60.0)):
        error = RequestError("busy", kind="status", status=429, retry_after_seconds=asked)
        assert pauses(error)[0] == waited


def test_cancelled_wait_is_cut_short() -> None:
    cancel = threading.Event()
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        cancel.set()

    def busy() -> None:
        raise RequestError("busy", kind="status", status=429, retry_after_seconds=60)

    with pytest.raises(CancelledError):
        Retries(sleep).call(busy, cancel)
    assert slept == [0.25]


class Time:
    """A clock that moves when somebody sleeps or works."""

    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds

    def retries(self, total_seconds: float | None = None) -> Retries:
        deadline = Deadline(total_seconds, self.clock)
        return Retries(self.pass_by, jitter=lambda: 0.5, clock=self.clock, deadline=deadline)

    def failing(self, seconds: float, error: RequestError) -> Callable[[], None]:
        def action() -> None:
            self.pass_by(seconds)
            raise error

        return action


@pytest.mark.parametrize(
    ("try_seconds", "error"),
    [
        (0.0, broken()),
        (0.0, RequestError("busy", kind="status", status=503)),
        (0.0, RequestError("slow", kind="status", status=429, retry_after_seconds=7)),
        (0.0, RequestError("slower", kind="status", status=429, retry_after_seconds=25)),
        (5.0, RequestError("slow to fail", kind="status", status=502)),
        (10.0, RequestError("no answer to a connect", kind="unreachable")),
    ],
)
def test_what_always_fails_is_given_up_within_half_a_minute(
    try_seconds: float, error: RequestError
) -> None:
    time = Time()
    with pytest.raises(RequestError) as caught:
        time.retries().call(time.failing(try_seconds, error))
    assert caught.value is error
    assert time.now - 100 <= 30


def test_one_more_try_there_is_after_a_stall() -> None:
    time = Time()
    tries = []

    def stalls_once() -> str:
        tries.append(time.now)
        if len(tries) == 1:
            time.pass_by(60)
            raise broken()
        return "done"

    assert time.retries().call(stalls_once) == "done"


def test_loops_around_loops_do_not_multiply() -> None:
    time = Time()
    retries = time.retries()
    tries: list[float] = []

    def inner() -> None:
        tries.append(time.now)
        raise broken()

    with pytest.raises(RequestError):
        retries.call(lambda: retries.call(lambda: retries.call(inner)))
    assert len(tries) == 5


def test_moving_on_begins_a_new_row() -> None:
    time = Time()
    series = time.retries().series()
    for _ in range(20):
        time.pass_by(9)
        series.failed(broken(), moved=True)
    with pytest.raises(RequestError):
        for _ in range(5):
            series.failed(broken())


def test_deadline_counts_only_while_something_runs() -> None:
    time = Time()
    deadline = Deadline(10, time.clock)
    with deadline.running(), deadline.running():
        time.pass_by(6)
    time.pass_by(1000)
    with deadline.running():
        assert deadline.cut(60) == pytest.approx(4)
        assert deadline.cut(1) == 1
        time.pass_by(4)
        with pytest.raises(DeadlineError, match="longer than 10 seconds"):
            deadline.cut(60)


def test_pause_that_the_deadline_has_no_time_for_is_not_begun() -> None:
    time = Time()
    error = RequestError("busy", kind="status", status=429, retry_after_seconds=30)
    with pytest.raises(RequestError) as caught:
        time.retries(total_seconds=20).call(time.failing(1, error))
    assert caught.value is error
    assert "--registry-timeout" in (error.hint or "")
    assert time.now - 100 == 1


def test_work_after_the_deadline_is_not_begun() -> None:
    time = Time()
    deadline = Deadline(5, time.clock)
    retries = Retries(time.pass_by, clock=time.clock, deadline=deadline)
    begun = []
    with deadline.running():
        time.pass_by(6)
        with pytest.raises(DeadlineError):
            retries.call(lambda: begun.append(1))
    assert not begun
