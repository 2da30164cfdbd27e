"""Signals while a verb runs: they end it by an error, so that it cleans up."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from ocis2i.errors import Interrupted

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def signals_raise() -> Iterator[None]:
    """Signals raise `Interrupted` meanwhile; afterwards they do what they did before.

    So a second one finds no half-told error to break into.
    """
    before = {}
    try:
        for number in SIGNALS:
            # A shell's background jobs ignore the first; nohup(1) means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)
