"""Writes the record of a build while it goes on (`ocis2i.records`), and the same for `--events`.

What is written is what people are told: secrets were taken out of it before. Only what `resume`
counts on, and the result, wait for the disk, where there are outputs or pushes. A build never fails
because its record cannot be written. Its files are those of `ocis2i.record_files`.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import TextIO

from ocis2i.errors import OutputError
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
from ocis2i.manifest import Json
from ocis2i.record_files import Heading, RecordFiles, as_line, moment
from ocis2i.records import RESULT, exit_code_of, is_stage, state_of

_TRANSFER_SECONDS = 1.0


def fields_of(event: Event) -> Json | None:  # noqa: C901, PLR0912 - a line for each kind
    """The fields of an event, `type` among them; `None` for what only developers read."""
    if isinstance(event, Notice) and event.level == "debug":
        return None
    fields: Json
    match event:
        case StageStarted(stage, detail):
            fields = {"type": "stage_started", "stage": stage, "detail": detail}
        case StageEnded(stage, ok):
            fields = {"type": "stage_ended", "stage": stage, "ok": ok}
        case ScriptOutput(stream, line):
            fields = {"type": "output", "stream": stream, "line": line}
        case Transfer(digest, state, done, total):
            moved = {"digest": digest, "state": state, "done": done, "total": total}
            fields = {"type": "transfer", **moved}
        case Notice(level, message):
            fields = {"type": "notice", "level": level, "message": message}
        case NetworkEnded(network, hosts, more):
            named = [{"host": host, "port": port, "state": fate} for host, port, fate in hosts]
            fields = {"type": "network", "mode": network, "hosts": named, "more": more}
        case ImageStored(digest, config, facts):
            fields = {"type": "stored", "digest": digest, "config": config, "facts": dict(facts)}
        case OutputWritten(where):
            fields = {"type": "written", "where": where}
        case ImagePushed(names):
            fields = {"type": "pushed", "names": list(names)}
        case ContainerKept(where):
            fields = {"type": "kept", "where": where}
    return fields


class Journal:
    """A listener of the build's events, from any thread; `close` has the last word.

    `files` are those of the record, `None` when there is only a stream. `durable`: somebody counts
    on the record after a power cut, because more is to be done than to store the image. `lasting`:
    the record outlives the end of the build.
    """

    def __init__(
        self,
        files: RecordFiles | None,
        stream: TextIO | None,
        *,
        name: str,
        started: datetime,
        now: Callable[[], datetime],
        warn: Callable[[str], None],
        durable: bool = False,
        lasting: bool = True,
    ) -> None:
        self.id = name
        self._lasting = lasting
        self._durable = durable
        self._files = files
        self._stream = stream
        self._started = started
        self._now = now
        self._warn = warn
        self._guard = threading.Lock()
        self._stages: dict[str, datetime] = {}
        self._moved: dict[str, tuple[str, datetime]] = {}
        self._seq = 0
        self._broken: set[str] = set()
        self._closed = False

    @property
    def kept(self) -> Path | None:
        """The directory of the record, if it is there after the end, with all that was told."""
        whole = self._lasting and "record" not in self._broken
        return self._files.path if self._files and whole else None

    @property
    def name(self) -> str:
        """What to call the build on a command line: of a record elsewhere the directory."""
        path = self._files.path if self._files else Path(self.id)
        return self.id if path.name == self.id else str(path.absolute())

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        fields = fields_of(event)
        if fields is not None:
            self._tell(fields, safely=self._durable and isinstance(event, ImageStored))

    def begin(self, heading: Heading) -> None:
        """The first event: what is to be built."""
        self._tell(
            {
                "type": "started",
                "id": self.id,
                "source": heading.source,
                "builder": heading.builder,
                "names": list(heading.names),
            }
        )

    def resumed(self) -> None:
        """Somebody goes on where the build broke off."""
        self._tell({"type": "resumed", "pid": os.getpid()})

    def close(self, document: Json) -> Json:
        """Writes the result, once: the document of the end, with what only the record knows.

        Later calls change nothing on paper.
        """
        ended = self._now()
        full = {
            **document,
            "id": self.id,
            "started": moment(self._started),
            "ended": moment(ended),
        }
        fields: Json = {
            "type": "ended",
            "state": state_of(full),
            "reason": full.get("reason"),
            "exit_code": exit_code_of(full),
            "digest": full.get("digest"),
        }
        with self._guard:
            # A signal in between leaves it open: then its own document is the last one.
            if not self._closed:
                self._close_files(full, fields, ended)
                self._to_stream({**fields, "result": full}, ended)
                self._closed = True
        return full

    def _close_files(self, document: Json, fields: Json, ended: datetime) -> None:
        if self._files:
            with suppress(OSError):  # whoever asks is told that the build died
                self._files.write_document(RESULT, document, safely=self._durable)
            with suppress(OSError):
                self._files.event(fields, ended)
            with suppress(OSError):
                self._files.close()

    def _tell(self, fields: Json, *, safely: bool = False) -> None:
        trouble: list[str] = []
        with self._guard:
            if self._closed:
                return
            now = self._now()
            told = self._placed(fields, now)
            if told is None:
                return
            if self._files and "record" not in self._broken:
                try:
                    self._to_files(self._files, told, now, safely=safely)
                except OSError as error:
                    self._broken.add("record")
                    trouble.append(f"the build's record cannot be written: {error.strerror}")
            trouble += self._to_stream(told, now)
        for sentence in trouble:
            self._warn(f"{sentence}; the build goes on without it")

    def _placed(self, fields: Json, now: datetime) -> Json | None:
        """With the stage that it belongs to; `None` for a transfer that was just told of."""
        kind = fields["type"]
        if kind == "stage_started":
            self._stages[fields["stage"]] = now
            return fields
        if kind == "stage_ended":
            begun = self._stages.pop(fields["stage"], now)
            return {**fields, "seconds": round((now - begun).total_seconds(), 3)}
        if kind == "transfer":
            state, last = self._moved.get(fields["digest"], ("", now))
            if state == fields["state"] and (now - last).total_seconds() < _TRANSFER_SECONDS:
                return None
            self._moved[fields["digest"]] = (fields["state"], now)
        if kind in ("output", "notice", "transfer"):
            fields = {**fields, "stage": next(reversed(self._stages), None)}
        return fields

    def _to_files(self, files: RecordFiles, fields: Json, now: datetime, *, safely: bool) -> None:
        kind, stage = fields["type"], fields.get("stage")
        if kind != "output":
            files.event(fields, now, safely=safely)
        if not isinstance(stage, str) or not is_stage(stage):
            return
        if kind == "output":
            files.log(stage, fields["line"])
        elif kind == "notice":
            warning = "warning: " if fields["level"] == "warning" else ""
            files.log(stage, warning + fields["message"])
        elif kind == "stage_ended":
            files.end_log(stage)

    def _to_stream(self, fields: Json, now: datetime) -> list[str]:
        if self._stream is None or "stream" in self._broken:
            return []
        self._seq += 1
        line = as_line({"seq": self._seq, "time": moment(now), **fields}).decode("ascii")
        try:
            self._stream.write(line)
            self._stream.flush()
        except (OSError, ValueError) as error:  # nobody reads it any more, or the disk is full
            self._broken.add("stream")
            return [f"--events cannot be written: {getattr(error, 'strerror', None) or error}"]
        return []


def open_stream(path: Path) -> TextIO:
    """The file of `--events`; raises `OutputError`."""
    try:
        return path.open("w", encoding="ascii")
    except OSError as error:
        raise OutputError(
            f"--events `{path}` cannot be written: {error.strerror}",
            hint="name another file, or - for standard output",
        ) from error
