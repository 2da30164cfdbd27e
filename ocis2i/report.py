"""Events as text for people: plain lines, as logs want them. `ocis2i.live` is for terminals."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, TextIO

from ocis2i.errors import Ocis2iError, shown
from ocis2i.events import (
    ContainerKept,
    Event,
    ImagePushed,
    ImageStored,
    NetworkEnded,
    Notice,
    OutputWritten,
    ScriptOutput,
    StageEnded,
    StageStarted,
    Transfer,
)
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import format_time


@dataclass(frozen=True, slots=True)
class StageRecord:
    """A stage that is over: when it began and how long it took, in seconds."""

    name: str
    started: datetime
    seconds: float
    ok: bool

    def document(self) -> dict[str, Any]:
        """As an object of the `--json` document."""
        return {
            "name": self.name,
            "started": format_time(self.started),
            "seconds": round(self.seconds, 3),
            "ok": self.ok,
        }


class Recorder:
    """Passes events on and remembers the stages, and what was asked for on the network."""

    def __init__(self, show: Callable[[Event], None], now: Callable[[], datetime]) -> None:
        self._show = show
        self._now = now
        self._open: dict[str, datetime] = {}
        self.stages: list[StageRecord] = []
        self.network: NetworkEnded | None = None
        # Who wants to know as well: the build's record.
        self.listeners: list[Callable[[Event], None]] = []

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        if isinstance(event, StageStarted):
            self._open[event.stage] = self._now()
        elif isinstance(event, StageEnded):
            started = self._open.pop(event.stage)
            seconds = (self._now() - started).total_seconds()
            self.stages.append(StageRecord(event.stage, started, seconds, event.ok))
        elif isinstance(event, NetworkEnded):
            self.network = event
        self._tell(event)

    def warn(self, message: str) -> None:
        """Shows a warning."""
        self._tell(Notice("warning", message))

    def _tell(self, event: Event) -> None:
        for listener in self.listeners:
            listener(event)
        self._show(event)


_TAIL_LINES = 40

STAGE_WORDS = {
    "unchanged": "unchanged",
    "check-push": "checking that the result may be pushed",
    "fetch": "fetching the source",
    "pull": "getting the builder",
    "unpack": "unpacking its layers",
    "pull-runtime": "getting the runtime image",
    "pull-previous": "getting the previous image",
    "restore": "restoring artifacts",
    "prepare": "preparing the container",
    "assemble": "assembling",
    "save": "saving artifacts",
    "unpack-runtime": "unpacking the runtime image",
    "artifacts": "copying the artifacts",
    "assemble-runtime": "assembling at the runtime image",
    "layer": "writing the layer",
    "store": "storing the image",
    "output": "writing",
    "push": "pushing",
}


class Quiet:
    """Shows nothing but warnings, and the last lines of a script that failed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._tail: deque[str] = deque(maxlen=_TAIL_LINES)

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        match event:
            case Notice("warning", message):
                self._write(f"warning: {printable(message)}")
            case ScriptOutput(_, line):
                self._tail.append(line)
            case StageStarted():
                self._tail.clear()
            case StageEnded("assemble" | "assemble-runtime", False):
                for line in self._tail:
                    self._write(line)
            case _:
                pass

    def close(self) -> None:
        """Nothing is open."""

    def conclude(self, name: str | None) -> None:
        """Nobody wants to read it."""

    def _write(self, line: str) -> None:
        self._stream.write(line + "\n")
        self._stream.flush()


class Lines:
    """Shows events as lines; a script's output is shown as it came."""

    def __init__(self, stream: TextIO, *, log_level: int) -> None:
        self._stream = stream
        self._level = log_level
        self._lock = threading.Lock()

    def __call__(self, event: Event) -> None:
        """Takes one event; from any thread."""
        with self._lock:
            match event:
                case StageStarted(name, detail):
                    words = STAGE_WORDS.get(name, name)
                    self._line(f"---> {words}" + (f": {printable(detail)}" if detail else ""))
                case ScriptOutput(_, line):
                    self._line(line)
                case Notice():
                    self._notice(event)
                case Transfer():
                    self._transfer(event)
                case StageEnded() | NetworkEnded():
                    pass
                case ImageStored() | OutputWritten() | ImagePushed() | ContainerKept():
                    pass  # notices and stages say it in words

    def close(self) -> None:
        """Nothing is open."""

    def conclude(self, name: str | None) -> None:
        """The stages were said one by one, and the result goes to standard output."""

    def _line(self, text: str) -> None:
        self._stream.write(text + "\n")
        self._stream.flush()

    def _notice(self, notice: Notice) -> None:
        if notice.level == "warning":
            self._line(f"warning: {printable(notice.message)}")
        elif self._level >= (1 if notice.level == "info" else 2):
            self._line(printable(notice.message))

    def _transfer(self, event: Transfer) -> None:
        if event.state in ("exists", "mounted", "done") and self._level >= 1:
            self._line(f"     {event.state} {event.digest[7:19]}")


def printable(text: str) -> str:
    """Text of ours that may quote an image: nothing in it steers a terminal."""
    return "\n".join(map(shown, text.split("\n")))


def tell(error: Ocis2iError, stream: TextIO, *, quiet: bool) -> None:
    """Writes an error, its hint, and what is known of its script.

    A `quiet` program has shown nothing but the end of the script's output.
    """
    lines = [f"error: {error.message}"]
    lines += [f"hint: {error.way_out}"] if error.way_out else []
    if error.failure:
        from ocis2i.failure import WIDTH, screen  # noqa: PLC0415 - few builds load it

        said = f"{error.message}\n{error.way_out or ''}"
        width = columns_of(stream) or WIDTH
        lines += screen(error.failure, said=said, quiet=quiet, width=width)
    stream.write("".join(f"{printable(line)}\n" for line in lines))


def columns_of(stream: TextIO) -> int:
    """How wide the terminal is that `stream` goes to; 0 where it is none, or nobody knows."""
    try:
        return os.get_terminal_size(stream.fileno()).columns if stream.isatty() else 0
    except (OSError, ValueError):
        return 0


def table(rows: Iterable[tuple[str, ...]], heads: tuple[str, ...]) -> str:
    """Columns of text, as wide as they need; no trailing white space."""
    lines = [heads, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )
