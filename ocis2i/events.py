"""What a build says while it runs: values that a renderer turns into lines, bars or JSON."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class StageStarted:
    """A stage begins; `detail` says with what, for people."""

    stage: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StageEnded:
    """A stage is over; `ok` is false when an error is on its way up."""

    stage: str
    ok: bool


@dataclass(frozen=True, slots=True)
class ScriptOutput:
    """One line that a script of the builder printed, without its line end."""

    stream: Literal["stdout", "stderr"]
    line: str


@dataclass(frozen=True, slots=True)
class Transfer:
    """`done` of `total` bytes of a blob have moved; `state` says which way, or why not."""

    digest: str
    state: Literal["pulling", "pushing", "exists", "mounted", "done"]
    done: int
    total: int


@dataclass(frozen=True, slots=True)
class Notice:
    """A sentence for people: `info` at higher log levels, `warning` always."""

    level: Literal["info", "warning", "debug"]
    message: str


@dataclass(frozen=True, slots=True)
class NetworkEnded:
    """What a build asked for on its network: host, port and fate of each; `more` were not kept."""

    network: str
    hosts: tuple[tuple[str, int, str], ...]
    more: int


Event = StageStarted | StageEnded | ScriptOutput | Transfer | Notice | NetworkEnded
Report = Callable[[Event], None]


@contextmanager
def stage(report: Report, name: str, detail: str = "") -> Iterator[None]:
    """Reports the start and the end of what happens inside."""
    report(StageStarted(name, detail))
    try:
        yield
    except BaseException:
        report(StageEnded(name, ok=False))
        raise
    report(StageEnded(name, ok=True))


def silent(event: Event) -> None:
    """A report that nobody reads."""
