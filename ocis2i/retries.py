"""Trying again what failed for the moment: how often, after which pause, and when to stop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

from ocis2i.errors import RegistryError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.net import RequestError

Sleep = Callable[[float], object]
T = TypeVar("T")


class CancelledError(RegistryError):
    """A transfer that was asked to stop because another one failed or the user interrupted."""


class DeadlineError(RequestError):
    """All work with registries has taken longer than the user wants to wait."""

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"registries took longer than {seconds:g} seconds in all",
            kind="other",
            hint="give them more time with --registry-timeout",
        )


class Deadline:
    """What everything may take together that runs inside; `None` for no end.

    Time in which nothing runs, as when a script works between a pull and a push, does not count.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float]) -> None:
        self._seconds = seconds
        self._clock = clock
        self._spent = 0.0
        self._since = 0.0
        self._running = 0
        self._lock = threading.Lock()

    @contextmanager
    def running(self) -> Iterator[None]:
        """Lets the time run; several threads at once spend it once."""
        with self._lock:
            if not self._running:
                self._since = self._clock()
            self._running += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1
                if not self._running:
                    self._spent += self._clock() - self._since

    def cut(self, seconds: float) -> float:
        """`seconds`, or what is left if that is less; raises `DeadlineError` when nothing is."""
        if self._seconds is None:
            return seconds
        with self._lock:
            now = self._clock() - self._since if self._running else 0.0
            left = self._seconds - self._spent - now
        if left <= 0:
            raise DeadlineError(self._seconds)
        return min(seconds, left)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and when to try again; all times in seconds.

    A host that cannot be reached at all is given up sooner, a typing error is likelier there.
    Whatever the count, no try begins that would likely end later than `longest` after the first
    failure; but one more there always is.
    """

    tries: int = 5
    tries_unreachable: int = 3
    first_pause: float = 0.3
    factor: float = 3.0
    longest_pause: float = 8.0
    longest_retry_after: float = 60.0
    longest: float = 20.0

    def pause_seconds(
        self,
        failures: int,
        error: RequestError,
        jitter: float,
        *,
        spent: float = 0.0,
        last_try: float = 0.0,
    ) -> float | None:
        """The pause after the `failures`-th failure in a row; `None` means give up.

        `jitter` in 0..1 takes up to a half off. A server's `Retry-After` is honoured up to
        `longest_retry_after` (the cap of containers/image). `spent` has gone by since the first
        failure, and the `last_try` took so long.
        """
        tries = self.tries_unreachable if error.kind == "unreachable" else self.tries
        if not error.retryable or failures >= tries:
            return None
        pause = min(self.first_pause * self.factor ** (failures - 1), self.longest_pause)
        pause *= 1 - jitter / 2
        if error.retry_after_seconds is not None:
            pause = min(error.retry_after_seconds, self.longest_retry_after)
        late = spent + pause + last_try > self.longest
        return None if failures > 1 and late else pause


class Retries:
    """A `RetryPolicy` with the means to wait."""

    def __init__(
        self,
        sleep: Sleep,
        *,
        policy: RetryPolicy | None = None,
        jitter: Callable[[], float] | None = None,
        clock: Callable[[], float] = time.monotonic,
        deadline: Deadline | None = None,
    ) -> None:
        self._sleep = sleep
        self._policy = policy or RetryPolicy()
        self._jitter = jitter or random.SystemRandom().random
        self._clock = clock
        self._deadline = deadline or Deadline(None, clock)

    def call(
        self,
        action: Callable[[], T],
        cancel: threading.Event | None = None,
        *,
        failed_for: float | None = None,
    ) -> T:
        """The value of `action()`, tried by the policy; raises its last error.

        `failed_for`: it was tried once before, and failed after so many seconds.
        """
        series = self.series(cancel, failed_for=failed_for)
        while True:
            self.check(cancel)
            try:
                return action()
            except RequestError as error:
                series.failed(error)

    def series(
        self, cancel: threading.Event | None = None, *, failed_for: float | None = None
    ) -> Series:
        """The tries of one thing that begin now, or go on: see `call`."""
        pause = partial(self._pause, cancel)
        return Series(self._policy, self._jitter, self._clock, pause, failed_for=failed_for)

    def timed(self, action: Callable[[], T], note: Callable[[float], object]) -> T:
        """`action()`, tried once; `note` hears after how many seconds it failed, if it may not have
        to fail again.
        """
        began = self._clock()
        try:
            return action()
        except RequestError as error:
            if error.retryable:
                note(self._clock() - began)
            raise

    def check(self, cancel: threading.Event | None) -> None:
        """Raises when it is no use to go on: what was cancelled, or has taken too long."""
        check_cancelled(cancel)
        self._deadline.cut(0.0)

    def _pause(self, cancel: threading.Event | None, error: RequestError, pause: float) -> None:
        if self._deadline.cut(pause) < pause:
            error.given_up = True
            error.hint = "there was no time for another try; --registry-timeout gives more"
            raise error
        # A pause of up to a minute must not hold up the user's interrupt.
        while cancel is not None and pause > 0.25 and not cancel.is_set():
            self._sleep(0.25)
            pause -= 0.25
        if cancel is None or not cancel.is_set():
            self._sleep(pause)


class Series:
    """Tries of one thing in a row, until it works or is given up; made by `Retries.series`."""

    def __init__(
        self,
        policy: RetryPolicy,
        jitter: Callable[[], float],
        clock: Callable[[], float],
        pause: Callable[[RequestError, float], None],
        *,
        failed_for: float | None = None,
    ) -> None:
        self._policy = policy
        self._jitter = jitter
        self._clock = clock
        self._pause = pause
        self._failures = 0 if failed_for is None else 1
        self._spent = failed_for or 0.0
        self._began = clock()

    def failed(self, error: RequestError, *, moved: bool = False) -> None:
        """Waits before the next try, or raises `error` when there must be none.

        One that has `moved` on before it failed is the first of a new row.
        """
        last_try = self._clock() - self._began
        self._failures = 1 if moved else self._failures + 1
        self._spent = 0.0 if self._failures == 1 else self._spent + last_try
        pause = self._policy.pause_seconds(
            self._failures, error, self._jitter(), spent=self._spent, last_try=last_try
        )
        if pause is None:
            error.given_up = True
            raise error
        self._pause(error, pause)
        self._spent += pause
        self._began = self._clock()


def check_cancelled(cancel: threading.Event | None) -> None:
    """Raises `CancelledError` once `cancel` is set."""
    if cancel is not None and cancel.is_set():
        raise CancelledError("the transfer was cancelled")
