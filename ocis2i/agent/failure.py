"""How the agent tells its parent that something went wrong."""

from __future__ import annotations

import errno
import os


class AgentError(Exception):
    """An expected failure. `kind` is the family of the parent's error: image, isolation, output,
    policy or usage."""

    def __init__(self, kind: str, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.hint = hint


_DISK = (errno.ENOSPC, errno.EDQUOT)


def explain(error: OSError, what: str) -> AgentError:
    """An operating system's error as a sentence; a full disk is named for what it is."""
    named = isinstance(error.filename, str | bytes)  # calls by descriptor give its number
    place = os.fsdecode(error.filename) if named else ""
    said = error.strerror or str(error)
    if error.errno in _DISK:
        return AgentError(
            "output",
            f"{what}: the disk is full",
            "free some space, or put the store on another disk with --root",
        )
    return AgentError("isolation", f"{what}: {said}" + (f" (`{place}`)" if place else ""))
