"""The log of a build, stage by stage as it was said, also while it is being said."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from ocis2i.manifest import Json
from ocis2i.records import EVENTS, LOGS, Record, is_stage, open_plainly, parse_line
from ocis2i.report import STAGE_WORDS, printable

POLL_SECONDS = 0.1
_PIECE = 1 << 16


class _Growing:
    """A file that somebody else appends to; it may not be there yet."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO | None = None
        self._rest = b""

    def pieces(self) -> Iterator[bytes]:
        """What has come since the last time."""
        if self._file is None:
            with suppress(OSError):
                self._file = open_plainly(self._path)
        while self._file and (data := self._file.read(_PIECE)):
            yield data

    def lines(self) -> Iterator[bytes]:
        """The whole lines that have come; the beginning of one waits for its end."""
        for data in self.pieces():
            *lines, self._rest = (self._rest + data).split(b"\n")
            yield from (line + b"\n" for line in lines)

    def close(self) -> None:
        """Nothing is read any more."""
        if self._file:
            self._file.close()


class Story:
    """Reads the log of a build; every call of `more` goes on where the last one ended.

    With `only`, what one stage said and nothing else.
    """

    def __init__(self, record: Record, only: str | None = None) -> None:
        self._events = _Growing(record.path / EVENTS)
        self._directory = record.path / LOGS
        self._only = only
        self._logs: dict[str, _Growing] = {}
        self._current: list[str] = []

    def more(self) -> Iterator[bytes]:
        """What was said since the last call, in order."""
        for line in self._events.lines():
            event = parse_line(line)
            if event is not None:
                yield from self._told(event)
        for stage in self._current:
            yield from self._said(stage)

    def close(self) -> None:
        """The end."""
        for file in (self._events, *self._logs.values()):
            file.close()

    def _told(self, event: Json) -> Iterator[bytes]:
        kind, stage = event.get("type"), event.get("stage")
        if kind == "stage_started" and isinstance(stage, str):
            for other in self._current:
                yield from self._said(other)
            self._current.append(stage)
            if self._only is None:
                yield _heading(stage, str(event.get("detail") or ""))
        elif kind == "stage_ended" and isinstance(stage, str):
            yield from self._said(stage)
            if stage in self._current:
                self._current.remove(stage)
        elif kind == "notice" and stage is None and self._only is None:
            warning = "warning: " if event.get("level") == "warning" else ""
            yield _line(f"{warning}{event.get('message')}")
        elif kind == "resumed" and self._only is None:
            yield _line("---> resumed")

    def _said(self, stage: str) -> Iterator[bytes]:
        if (self._only is None or self._only == stage) and is_stage(stage):
            if stage not in self._logs:
                self._logs[stage] = _Growing(self._directory / f"{stage}.log")
            yield from self._logs[stage].pieces()


def _heading(stage: str, detail: str) -> bytes:
    words = STAGE_WORDS.get(stage, stage)
    return _line(f"---> {words}: {detail}" if detail else f"---> {words}")


def _line(text: str) -> bytes:
    return printable(text).encode(errors="backslashreplace") + b"\n"


def follow(
    record: Record,
    write: Callable[[bytes], None],
    pause: Callable[[], None] | None,
    *,
    only: str | None,
) -> None:
    """Writes the log as it is now; with `pause`, which waits a moment, until the build is over."""
    story = Story(record, only)
    try:
        while True:
            # Asked first: what is said until the end is then there to be read.
            over = not record.is_running
            for piece in story.more():
                write(piece)
            if over or pause is None:
                return
            pause()
    finally:
        story.close()
