"""Several transfers at a time: as many as wished, and none after the first error."""

from __future__ import annotations

import threading

import pytest

from ocis2i.errors import RegistryError
from ocis2i.transfer import in_parallel


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_as_many_as_wished_run_at_once_and_no_more(jobs: int) -> None:
    lock = threading.Lock()
    together = threading.Barrier(jobs)
    running = most = 0

    def move() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait(10)  # breaks, and with it the test, when fewer run
        with lock:
            running -= 1

    in_parallel([move] * (jobs * 3), jobs, threading.Event())
    assert most == jobs


def test_nothing_begins_after_an_error_and_that_error_is_raised() -> None:
    begun: list[int] = []
    cancel = threading.Event()

    def fail() -> None:
        begun.append(0)
        raise RegistryError("no")

    with pytest.raises(RegistryError, match="no"):
        in_parallel([fail, *[lambda: begun.append(1)] * 5], 1, cancel)
    assert begun == [0]
    assert cancel.is_set()
