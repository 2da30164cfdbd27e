"""How a verb shows what happens: nothing but warnings, plain lines, or live ones on a terminal."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from ocis2i.report import Lines, Quiet

if TYPE_CHECKING:
    from ocis2i.live import Live


def display(*, quiet: bool, log_level: int) -> Quiet | Lines | Live:
    """What standard error can show: live lines need a terminal that knows control codes."""
    if quiet:
        return Quiet(sys.stderr)
    if not sys.stderr.isatty() or os.environ.get("TERM", "dumb") in ("", "dumb"):
        return Lines(sys.stderr, log_level=log_level)
    from ocis2i.live import Live  # noqa: PLC0415 - only for people who watch

    # https://no-color.org: set and not empty.
    colour = not os.environ.get("NO_COLOR")
    return Live(
        sys.stderr, log_level=log_level, colour=colour, clock=time.monotonic, size=_terminal_size
    )


def _terminal_size() -> tuple[int, int]:
    """Columns and rows of the terminal as it is now; 80 and 24 where it does not say."""
    try:
        columns, height = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        columns, height = 0, 0
    return columns or 80, height or 24
