"""What the outermost function has to know of a verb, and the form of its answers.

Every start of the program loads this module: what takes long stays out of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ocis2i.isolation.agent import Ahead
    from ocis2i.journal import Journal
    from ocis2i.report import Recorder


class ReaderGoneError(Exception):
    """Nobody reads our output any more. Typer would end with 1 for the operating system's own."""


class State:
    """What the outermost function has to know of the command that ran: for its failure."""

    root: str | None = None
    log_level: int = 0
    docker_only: tuple[str, ...] = ()
    recorder: Recorder | None = None
    as_json = False
    quiet = False
    # The command line, after the program's name.
    arguments: tuple[str, ...] = ()
    # Values that are in the command line and must not be seen.
    secrets: tuple[str, ...] = ()
    # What is to be done once the arguments were found to be right.
    when_valid: Callable[[], None] | None = None
    # The record of the build, and what is to be done once it is closed.
    journal: Journal | None = None
    # The agent that was started for this command before its words were understood.
    ahead: Ahead | None = None
    when_recorded: Callable[[], None] | None = None

    @classmethod
    def reset(cls) -> None:
        """As before any command."""
        cls.root, cls.log_level, cls.docker_only = None, 0, ()
        cls.recorder, cls.as_json, cls.when_valid = None, False, None
        cls.journal, cls.when_recorded, cls.ahead = None, None, None
        cls.arguments, cls.secrets, cls.quiet = (), (), False


def print_json(document: dict[str, Any]) -> None:
    """One JSON document on standard output."""
    import json  # noqa: PLC0415 - see above

    text = json.dumps(document, indent=2, ensure_ascii=False)
    # An image's own words do not steer a terminal; JSON itself escapes only the old controls.
    text = "".join(
        char if char.isprintable() or char == "\n" else json.dumps(char)[1:-1] for char in text
    )
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # a path that is no UTF-8, or a terminal that is not
        text = json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")
