"""Says of a script that failed who it was, where it came from and as whom it ran, and why it did.

The words for causes are in `ocis2i.causes`; here is what is looked at for them.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Protocol

from ocis2i import elf
from ocis2i.causes import Cause, Circumstances, MemoryKill, find_cause
from ocis2i.errors import Ocis2iError, ScriptError
from ocis2i.failure import Failure
from ocis2i.limits import Kind
from ocis2i.runner import RunSpec
from ocis2i.scripts import ScriptPlace

_LIMITS: dict[str, Kind] = {
    "MemoryLimitReached": "memory",
    "ProcessLimitReached": "tasks",
    "TimeLimitReached": "time",
    "OutputLimitReached": "output",
}
# Enough for the headers of a program, and the name of its loader behind them.
_HEAD_BYTES = 4096
_SIGKILL_CODE = 128 + 9


class Tree(Protocol):
    """The failed tree, as far as it is looked at."""

    def read_head(self, path: str, size: int) -> str | None:
        """The first bytes of a file, surrogate-escaped; `None`: there is none."""

    def modes(self, paths: Sequence[str]) -> list[int | None]:
        """The mode of each path, `None` where there is nothing."""


def origin_of(place: ScriptPlace | None) -> str:
    """Where a script came from, in words."""
    if place is None:
        return "the command of the image"
    whose: dict[str, str] = {
        "flag": "from --scripts-url",
        "source": "from the source's .s2i/bin",
        "image": "from the builder image's scripts URL",
        "fallback": "from the usual place in an image without a scripts URL",
    }
    return f"{whose[place.origin]}: {place.url}"


def who(run: RunSpec) -> str:
    """The user that a script ran as: numbers, and the name where the image has one."""
    identity = run.identity
    name = f" ({identity.name})" if identity.name else ""
    return f"{identity.uid}:{identity.gid}{name}"


def circumstances(
    run: RunSpec,
    *,
    limit: Kind | None = None,
    memory_kill: MemoryKill = "unknown",
) -> Circumstances:
    """What is known of a run besides how it ended."""
    variables = dict(entry.partition("=")[::2] for entry in run.environment)
    return Circumstances(
        script=run.argv[-1],
        user=who(run),
        is_root=run.identity.uid == 0,
        path=variables.get("PATH", ""),
        network=run.network,
        limits=run.limits,
        limit=limit,
        memory_kill=memory_kill,
    )


def explained(
    error: Ocis2iError,
    run: RunSpec,
    place: ScriptPlace | None,
    *,
    stage: str,
    isolation: str,
    tree: Tree,
    tail: tuple[str, ...] = (),
    lines: int = 0,
    memory_kill: MemoryKill = "unknown",
) -> Failure:
    """What is known of the script of `run`, which ended with `error`."""
    limit = _LIMITS.get(error.reason)
    code = error.script_exit_code if isinstance(error, ScriptError) else None
    around = circumstances(run, limit=limit, memory_kill=memory_kill)
    started = not isinstance(error, ScriptError) or error.started
    if limit:
        code = _SIGKILL_CODE
        cause = find_cause(code, tail, around)
    elif started and code is not None:
        cause = find_cause(code, tail, around)
    elif not started:
        cause = not_started(error, run, tree)
    else:
        cause = Cause(error.message, error.hint)
    return Failure(
        stage=stage,
        script=run.argv[-1],
        origin=origin_of(place),
        user=who(run),
        cwd=run.cwd,
        isolation=isolation,
        exit_code=code,
        meaning=cause.meaning,
        way_out=cause.way_out,
        tail=tail,
        lines=lines,
    )


def not_started(error: Ocis2iError, run: RunSpec, tree: Tree) -> Cause:
    """Why the first program of a run could not be started, by a look at it."""
    program = run.argv[0]
    head = _head(program, tree)
    machine = os.uname().machine
    made_for = elf.machine(head)
    if made_for and made_for != machine and (made_for, machine) != ("i386", "x86_64"):
        return Cause(
            f"`{program}` is a program for {made_for}, and this machine is {machine}",
            "take a builder for this machine's processor (--platform), or build on such a machine",
        )
    loader = elf.loader(head)
    if loader and tree.modes([loader])[0] is None:
        return Cause(
            f"`{program}` needs the loader `{loader}`, which the builder does not have: it is "
            "linked for another C library",
            "take a builder with that C library, or link the program statically",
        )
    return Cause(f"it was not started: {error.message}", error.hint)


def _head(path: str, tree: Tree) -> bytes:
    return (tree.read_head(path, _HEAD_BYTES) or "").encode(errors="surrogateescape")
