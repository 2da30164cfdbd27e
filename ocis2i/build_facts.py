"""What a report says of a build, taken from its record; bounded, however long the log is."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted
from ocis2i.manifest import Json
from ocis2i.records import Record, State, open_plainly

LINES_AT_THE_START = 1500
LINES_AT_THE_END = 4500
LINE_LENGTH = 2000
_START_BYTES = 256 << 10
_END_BYTES = 768 << 10
_WARNINGS = 200
_STAGES = 1000


@dataclass(frozen=True, slots=True)
class Stage:
    """A stage of the build: `start` and `seconds` on the time line of all, in seconds.

    `end` is how it ended: `ok`, `failed`, `running`, or `died` with the process.
    """

    name: str
    detail: str
    start: float
    seconds: float
    end: str


@dataclass(frozen=True, slots=True)
class Log:
    """What a stage printed: the first lines, and the last ones where there were too many.

    `missing_lines` and `missing_bytes` are what is left out between them; the lines are known
    only where the whole log was read.
    """

    stage: str
    first: tuple[str, ...]
    last: tuple[str, ...] = ()
    missing_lines: int = 0
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BuildFacts:
    """A build as its record has it at this moment.

    `called` is what it is called on a command line. `lost` says what is wrong with its result.
    """

    id: str
    called: str
    state: State
    record: Json
    result: Json | None
    started: datetime | None
    seconds: float
    stages: tuple[Stage, ...]
    warnings: tuple[str, ...]
    more_warnings: int
    logs: tuple[Log, ...]
    digest: str | None
    pushed: tuple[str, ...]
    outputs: tuple[str, ...]
    facts: Json
    process: int | None
    lost: str | None

    def told(self, key: str) -> Any:
        """What the result says, and of a build without one what it said on its way."""
        value = (self.result or {}).get(key)
        return self.facts.get(key) if value is None else value


def read_facts(record: Record, now: datetime) -> BuildFacts:
    """Reads a record; `now` is where the time line of a running build ends."""
    state = record.state
    story = _Story(state)
    for said in record.damage():
        story.warn(f"the record is damaged: {said}")
    for event in record.events():
        story.take(event)
    story.end(now)
    result = record.result
    digest = (result or {}).get("digest") or story.stored.get("digest")
    facts = story.stored.get("facts")
    return BuildFacts(
        id=record.id,
        called=record.called,
        state=state,
        record=record.document,
        result=result,
        started=moment(record.text("started")),
        seconds=story.seconds,
        stages=tuple(story.stages[:_STAGES]),
        warnings=tuple(story.warnings),
        more_warnings=story.more_warnings,
        logs=tuple(read_log(stage, path) for stage, path in record.log_files().items()),
        digest=digest if isinstance(digest, str) else None,
        pushed=tuple(story.pushed),
        outputs=tuple(story.outputs),
        facts=facts if isinstance(facts, dict) else {},
        process=record.process,
        lost=record.lost_result,
    )


def moment(text: object) -> datetime | None:
    """A time of a record; `None` for what is none."""
    try:
        found = datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return found if found.tzinfo else None


class _Story:
    """The events of a build, put together. Time in which nobody worked on it does not count."""

    def __init__(self, state: State) -> None:
        self._state = state
        self._zero: datetime | None = None
        self._last = 0.0
        self._idle = 0.0
        self._open: list[Stage] = []
        self.stages: list[Stage] = []
        self.warnings: list[str] = []
        self.more_warnings = 0
        self.stored: Json = {}
        self.pushed: list[str] = []
        self.outputs: list[str] = []

    @property
    def seconds(self) -> float:
        return self._last

    def take(self, event: Json) -> None:
        kind = event.get("type")
        at = self._at(moment(event.get("time")), resumed=kind == "resumed")
        match kind:
            case "stage_started":
                name, detail = str(event.get("stage")), str(event.get("detail") or "")
                self._open.append(Stage(name, detail, at, 0.0, "running"))
            case "stage_ended":
                self._close(str(event.get("stage")), at, "ok" if event.get("ok") else "failed")
            case "resumed":
                self._close_all(at, "died")
            case "notice" if event.get("level") == "warning":
                self.warn(str(event.get("message")))
            case "stored":
                self.stored = event
            case "written":
                self.outputs.append(str(event.get("where")))
            case "pushed" if isinstance(event.get("names"), list):
                self.pushed += map(str, event["names"])
            case _:
                pass

    def end(self, now: datetime) -> None:
        running = self._state == "running"
        if running:
            self._at(now)
        self._close_all(self._last, "running" if running else "died")
        self.stages.sort(key=lambda stage: stage.start)

    def _at(self, time: datetime | None, *, resumed: bool = False) -> float:
        """Where on the time line a moment is; a clock that was set back stands still."""
        if time is None:
            return self._last
        if self._zero is None:
            self._zero = time
        at = (time - self._zero).total_seconds() - self._idle
        if resumed:
            self._idle += max(at - self._last, 0.0)
            at = self._last
        self._last = max(at, self._last)
        return self._last

    def _close(self, name: str, at: float, end: str) -> None:
        for stage in reversed(self._open):
            if stage.name == name:
                self._open.remove(stage)
                self.stages.append(Stage(name, stage.detail, stage.start, at - stage.start, end))
                return

    def _close_all(self, at: float, end: str) -> None:
        for stage in tuple(self._open):
            self._close(stage.name, at, end)

    def warn(self, message: str) -> None:
        """One more warning."""
        if len(self.warnings) < _WARNINGS:
            self.warnings.append(message)
        else:
            self.more_warnings += 1


def read_log(stage: str, path: Path) -> Log:
    """The log of a stage, without its middle where it is long; empty when it cannot be read."""
    try:
        with open_plainly(path) as file:
            start = file.read(_START_BYTES + _END_BYTES)
            size = file.seek(0, 2)
            if size <= len(start):
                return _short_log(stage, start)
            file.seek(size - _END_BYTES)
            end = file.read(_END_BYTES)
    except OSError:
        return Log(stage, ())
    # Both ends are cut where a line ends.
    start = start[:_START_BYTES]
    start = start[: start.rfind(b"\n") + 1] or start
    end = end[end.find(b"\n") + 1 :]
    first = _lines(start)[:LINES_AT_THE_START]
    last = _lines(end)[-LINES_AT_THE_END:]
    shown = sum(len(line) + 1 for line in (*first, *last))
    return Log(stage, first, last, missing_bytes=max(size - shown, 1))


def _short_log(stage: str, data: bytes) -> Log:
    lines = _lines(data)
    missing = len(lines) - LINES_AT_THE_START - LINES_AT_THE_END
    if missing <= 0:
        return Log(stage, lines)
    return Log(stage, lines[:LINES_AT_THE_START], lines[-LINES_AT_THE_END:], missing_lines=missing)


def _lines(data: bytes) -> tuple[str, ...]:
    text = data.decode(errors="backslashreplace")
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return tuple(map(_cut, lines))


def _cut(line: str) -> str:
    more = len(line) - LINE_LENGTH
    return f"{line[:LINE_LENGTH]} … and {counted(more, 'character')} more" if more > 0 else line
