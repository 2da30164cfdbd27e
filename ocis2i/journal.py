"""Writes the record of a build while it goes on (`ocis2i.records`), and the same for `--events`.

What is written is what people are told: secrets were taken out of it before. A line is handed to
the kernel at once, so that it outlives the process; only what `resume` counts on, and the result,
wait for the disk, where there are outputs or pushes. A build never fails because its record cannot
be written.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from ocis2i.errors import OutputError, UsageError
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
from ocis2i.fs import boot_id, explain, remove_tree
from ocis2i.manifest import Json
from ocis2i.records import (
    EVENTS,
    LOCK,
    LOGS,
    RECORD,
    RESULT,
    VERSION,
    Record,
    exit_code_of,
    home,
    ids,
    is_stage,
    process_started,
    state_of,
)

# A script that prints without end does not fill the disk by its log.
LOG_LIMIT_BYTES = 64 << 20
_TRANSFER_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Heading:
    """What a record says at its beginning. `command` has no secrets in it any more.

    `resume` is what a later `resume` has to know, see `ocis2i.resume`.
    """

    source: str
    builder: str
    names: tuple[str, ...]
    tag: str | None
    command: tuple[str, ...]
    cwd: str
    version: str
    resume: Json = field(default_factory=dict)

    def document(self, name: str, started: datetime) -> Json:
        """As `record.json` has it, by the process that asks."""
        return {
            "version": VERSION,
            "id": name,
            "name": self.names[0] if self.names else None,
            "names": list(self.names),
            "tag": self.tag,
            "source": self.source,
            "builder": self.builder,
            "command": list(self.command),
            "cwd": self.cwd,
            "started": moment(started),
            "ocis2i": self.version,
            **_this_process(),
            "resume": self.resume,
        }


def _this_process() -> Json:
    pid = os.getpid()
    return {"pid": pid, "pid_started": process_started(pid), "boot_id": boot_id()}


def moment(time: datetime) -> str:
    """RFC 3339 in UTC with milliseconds."""
    return time.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def new_id(started: datetime) -> str:
    """A name for the record of a build that begins now; names sort as builds began.

    Its last part begins with the fraction of the second, in 4096ths, and ends with chance.
    """
    fraction = started.microsecond * 4096 // 1_000_000
    return f"{started.astimezone(UTC):%Y%m%d-%H%M%S}-{fraction:03x}{secrets.randbelow(4096):03x}"


def as_line(event: Json) -> bytes:
    """One line of `events.jsonl`; all in ASCII, whatever an image has in its names."""
    return json.dumps(event, separators=(",", ":")).encode("ascii") + b"\n"


# --- what an event is on paper ----------------------------------------------------------------


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


class _Files:
    """The open files of one record. Raises `OSError` when one cannot be written."""

    def __init__(self, path: Path, lock: int, events: int, *, seq: int = 0) -> None:
        self.path = path
        self._lock = lock
        self._events = events
        self._seq = seq
        self._logs: dict[str, tuple[int, int]] = {}

    def event(self, fields: Json, time: datetime, *, safely: bool = False) -> None:
        """Adds a line; `safely`: it is on the disk afterwards."""
        self._seq += 1
        line = as_line({"seq": self._seq, "time": moment(time), **fields})
        _write(self._events, line)
        if safely:
            os.fdatasync(self._events)

    def log(self, stage: str, text: str) -> None:
        """Adds a line to the log of a stage, as far as it may grow."""
        descriptor, size = self._logs.get(stage) or self._open_log(stage)
        if size > LOG_LIMIT_BYTES:
            return
        line = text.encode(errors="backslashreplace") + b"\n"
        if size + len(line) > LOG_LIMIT_BYTES:
            line = b"(the log of this stage is longer, and not kept from here on)\n"
            size = LOG_LIMIT_BYTES
        self._logs[stage] = (descriptor, size + len(line))
        _write(descriptor, line)

    def _open_log(self, stage: str) -> tuple[int, int]:
        path = self.path / LOGS / f"{stage}.log"
        descriptor = os.open(path, _APPENDING | os.O_CREAT, 0o600)
        found = (descriptor, os.fstat(descriptor).st_size)
        self._logs[stage] = found
        return found

    def end_log(self, stage: str) -> None:
        """Closes the log of a stage; a stage of that name may come again."""
        descriptor, _ = self._logs.pop(stage, (-1, 0))
        if descriptor >= 0:
            os.close(descriptor)

    def write_document(self, name: str, document: Json, *, safely: bool = False) -> None:
        """Writes one of the documents, which is there whole or as it was before."""
        scratch = self.path / f".{name}"
        data = json.dumps(document, indent=1).encode("ascii") + b"\n"
        descriptor = os.open(scratch, _NEW | os.O_TRUNC, 0o600)
        try:
            _write(descriptor, data)
            if safely:
                os.fdatasync(descriptor)
        finally:
            os.close(descriptor)
        scratch.replace(self.path / name)

    def close(self) -> None:
        """The end: whoever asks from now on sees that nobody works on it."""
        for stage in tuple(self._logs):
            self.end_log(stage)
        os.close(self._events)
        os.close(self._lock)


_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


class Journal:
    """A listener of the build's events, from any thread; `close` has the last word.

    `files` are those of the record, `None` when there is only a stream. `durable`: somebody counts
    on the record after a power cut, because more is to be done than to store the image. `lasting`:
    the record outlives the end of the build.
    """

    def __init__(
        self,
        files: _Files | None,
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
        """The directory of the record, if it is there after the end."""
        return self._files.path if self._files and self._lasting else None

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

    def _to_files(self, files: _Files, fields: Json, now: datetime, *, safely: bool) -> None:
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


# --- beginning --------------------------------------------------------------------------------


def record_in_store(store_root: Path, heading: Heading, started: datetime) -> tuple[str, _Files]:
    """A new record among those of the store. Raises `OSError`."""
    name = new_id(started)
    records = home(store_root)
    records.mkdir(mode=0o700, exist_ok=True)
    # Nobody sees it before it is locked, or it would look like one of a build that died.
    scratch, path = records / f".{name}", records / name
    with _making(records, fcntl.LOCK_SH):
        scratch.mkdir(mode=0o700)
        try:
            files = _make(scratch, heading.document(name, started))
            scratch.rename(path)
        except BaseException:
            remove_tree(scratch)
            raise
    files.path = path
    return name, files


@contextmanager
def _making(records: Path, how: int) -> Iterator[None]:
    """Held shared by who makes a record, alone by who looks for what was left of one.

    Raises `BlockingIOError` where that is not to be waited for.
    """
    directory = os.open(records, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(directory, how)
        except BlockingIOError:
            raise
        except OSError:  # no locks on this file system
            pass
        yield
    finally:
        os.close(directory)


def record_at(path: Path, heading: Heading, started: datetime) -> tuple[str, _Files]:
    """A new record in a directory of the caller's: new, or empty.

    Raises `UsageError` for one that has something in it, `OutputError` for one that cannot be used.
    """
    name = new_id(started)
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = next(path.iterdir(), None)
        if found is None:
            return name, _make(path, heading.document(name, started))
        what = "has the record of another build" if (path / RECORD).exists() else "is not empty"
    except FileExistsError:
        what = "is no empty directory"
    except OSError as error:
        refused = explain(error, f"--record `{path}` cannot be written")
        refused.hint = refused.hint or "name a directory that can be made and written"
        raise refused from error
    raise UsageError(
        f"--record `{path}` {what}", hint="name a new directory; a record is kept, never replaced"
    )


def _make(path: Path, document: Json) -> _Files:
    lock = os.open(path / LOCK, _NEW | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):  # no locks on this file system: readers ask for the process
            _take(lock)
        (path / LOGS).mkdir(mode=0o700)
        events = os.open(path / EVENTS, _APPENDING | os.O_CREAT | os.O_EXCL, 0o600)
    except BaseException:
        os.close(lock)
        raise
    files = _Files(path, lock, events)
    try:
        files.write_document(RECORD, document)
    except BaseException:
        files.close()
        raise
    return files


def reopen(record: Record) -> _Files:
    """The files of a record that somebody goes on with, by this process now.

    Raises `UsageError` while another process works on it, or when it was forgotten meanwhile;
    `OutputError` when it cannot be written.
    """
    try:
        lock = os.open(record.path / LOCK, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            _take(lock)
            _check_there(record, lock)
            events = os.open(record.path / EVENTS, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except BaseException:
            os.close(lock)
            raise
        seq = max((_seq(event) for event in record.events()), default=0)
        files = _Files(record.path, lock, events, seq=seq)
        size = os.fstat(events).st_size
        if size and os.pread(events, 1, size - 1) != b"\n":
            _write(events, b"\n")  # what a killed writer left is a line of its own
        files.write_document(RECORD, {**record.document, **_this_process()})
    except BlockingIOError:
        raise UsageError(
            f"somebody works on the build `{record.id}` right now",
            hint=f"wait for it: ocis2i wait {record.id}",
        ) from None
    except OSError as error:
        if not record.path.exists():
            raise _forgotten(record) from error
        raise explain(error, f"the record of the build `{record.id}` cannot be written") from error
    return files


# Who only looks holds the lock for some microseconds.
_LOOKS = 200
_LOOK_SECONDS = 0.005


def _take(lock: int) -> None:
    """Locks a record for who writes it. Raises `BlockingIOError` while somebody else works on it.

    A reader that asks whether somebody does (`records`) holds the lock shared for a moment: that
    is waited for. Any other `OSError` where there are no locks.
    """
    for _ in range(_LOOKS):
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            # A writer is not shared with: then this raises.
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            fcntl.flock(lock, fcntl.LOCK_UN)
            threading.Event().wait(_LOOK_SECONDS)
        else:
            return
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _check_there(record: Record, lock: int) -> None:
    """Raises `UsageError` when the locked file is not the record's any more: `prune` was here."""
    try:
        there = (record.path / LOCK).stat()
    except FileNotFoundError:
        raise _forgotten(record) from None
    if not os.path.samestat(there, os.fstat(lock)):
        raise _forgotten(record)


def _forgotten(record: Record) -> UsageError:
    return UsageError(
        f"the record of the build `{record.id}` was removed meanwhile",
        hint="`ocis2i ps -a` lists the builds that are there",
    )


def _seq(event: Json) -> int:
    value = event.get("seq")
    return value if isinstance(value, int) else 0


def write_result(record: Record, document: Json) -> None:
    """Says how a build ended that could not say it itself. Nobody works on the record any more."""
    files = reopen(record)
    try:
        with suppress(OSError):
            files.write_document(RESULT, document, safely=True)
    finally:
        files.close()


# --- retention --------------------------------------------------------------------------------


def to_retire(states: list[tuple[str, bool]], keep: int) -> list[str]:
    """Which records go, so that the last `keep` finished ones stay. Pure.

    `states` are the names, the oldest first, and whether their builds are finished.
    """
    finished = [name for name, is_finished in states if is_finished]
    return finished[: max(0, len(finished) - keep)]


def retire(store_root: Path, keep: int, *, before: datetime | None = None) -> int:
    """Removes records of builds that are over, and how many.

    The last `keep` of them stay, and of these those that began `before` go as well. What cannot be
    removed is left to another time.
    """
    names = ids(store_root)
    if len(names) <= keep and before is None:
        return 0
    records = home(store_root)
    states = [(name, not Record(records / name).is_running) for name in names]
    gone = to_retire(states, keep)
    if before is not None:
        first = f"{before.astimezone(UTC):%Y%m%d-%H%M%S}"
        gone += [name for name, finished in states if finished and name < first]
    return sum(forget(records / name) for name in dict.fromkeys(gone))


def forget(path: Path) -> bool:
    """Removes the record of a build that nobody works on; false when it is still there."""
    hidden = path.with_name(f".{path.name.lstrip('.')}-gone")
    try:
        lock = os.open(path / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        lock = -1
    except OSError:
        return False
    try:
        if lock >= 0 and not _try_lock(lock):
            return False
        # No reader sees half of it.
        path.rename(hidden)
        return remove_tree(hidden)
    except OSError:
        return False
    finally:
        if lock >= 0:
            os.close(lock)


def _try_lock(descriptor: int) -> bool:
    """False when somebody else works on it; where there are no locks, nobody does."""
    try:
        _take(descriptor)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def leftovers(store_root: Path) -> list[Path]:
    """Records of which only a part is there: their builds were killed while they made them."""
    try:
        # Between its first moment and its lock nobody can tell that a record is being made.
        with _making(home(store_root), fcntl.LOCK_EX | fcntl.LOCK_NB):
            found = [path for path in home(store_root).iterdir() if path.name.startswith(".")]
    except (FileNotFoundError, BlockingIOError):
        return []
    return sorted(path for path in found if not Record(path).is_running)


def open_stream(path: Path) -> TextIO:
    """The file of `--events`; raises `OutputError`."""
    try:
        return path.open("w", encoding="ascii")
    except OSError as error:
        raise OutputError(
            f"--events `{path}` cannot be written: {error.strerror}",
            hint="name another file, or - for standard output",
        ) from error
