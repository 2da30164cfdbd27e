"""What a build says while it runs: values that a renderer turns into lines, bars or JSON."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import field
from typing import Any, Literal, NamedTuple

from ocis2i.lazy_dataclass import dataclass

# What a pipe holds (pipe(7)), and as much that its reader has taken out at once.
PIPE_BYTES = 128 << 10


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


@dataclass(frozen=True, slots=True)
class ImageStored:
    """The image is whole in the store: from now on only outputs and pushes can be missing.

    `facts` are those of the build that its document has, as `builder`, `changes` and `isolation`.
    """

    digest: str
    config: str
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class OutputWritten:
    """The image was written to a place outside of the store, as `oci:DIR`."""

    where: str


@dataclass(frozen=True, slots=True)
class ImagePushed:
    """The image is in its registries, by all these names."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContainerKept:
    """The container of the script that failed stays, in this directory."""

    where: str


Event = (
    StageStarted
    | StageEnded
    | ScriptOutput
    | Transfer
    | Notice
    | NetworkEnded
    | ImageStored
    | OutputWritten
    | ImagePushed
    | ContainerKept
)
Report = Callable[[Event], None]


class LastLines:
    """Passes events on, and remembers the last lines that a script printed, as they were shown.

    A script's two streams are two pipes, and nobody knows in which order they were written: what
    it complained of at its end may come before all that the other pipe still held. So the last
    lines of standard error that may be as late as the others are put behind them.
    """

    def __init__(self, report: Report, most: int = 20) -> None:
        self._report = report
        self._tail: deque[_Line] = deque(maxlen=most)
        self._complaints: deque[_Line] = deque(maxlen=most // 4)
        self._count = 0
        self._size = 0

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        if isinstance(event, ScriptOutput):
            self._count += 1
            self._size += len(event.line) + 1
            line = _Line(self._count, self._size, event.line)
            self._tail.append(line)
            if event.stream == "stderr":
                self._complaints.append(line)
        self._report(event)

    def forget(self) -> None:
        """Another script begins."""
        self._tail.clear()
        self._complaints.clear()
        self._count = self._size = 0

    @property
    def lines(self) -> tuple[str, ...]:
        """The last lines."""
        tail, most = list(self._tail), self._tail.maxlen or 0
        shown = tail[-(most // 2) :]
        oldest = self._size - PIPE_BYTES
        late = [one for one in self._complaints if one not in shown and one.end >= oldest]
        rest = [one for one in tail if one not in late]
        return tuple(one.text for one in [*rest, *late][-most:])

    @property
    def count(self) -> int:
        """How many there were in all."""
        return self._count


class _Line(NamedTuple):
    number: int
    end: int
    text: str


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
