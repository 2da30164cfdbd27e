"""The directories of records: made, written, opened again, and removed when they are old.

Who writes one holds its lock (`ocis2i.records` says what is in it, and reads it). A line is handed
to the kernel at once, so that it outlives the process.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import shlex
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import field
from datetime import UTC, datetime
from pathlib import Path

from ocis2i.errors import UsageError
from ocis2i.fs import boot_id, explain, remove_tree
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Json
from ocis2i.records import (
    EVENTS,
    LOCK,
    LOGS,
    RECORD,
    RESULT,
    VERSION,
    Record,
    home,
    ids,
    process_started,
)

# A script that prints without end does not fill the disk by its log.
LOG_LIMIT_BYTES = 64 << 20

_APPENDING = os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
_NEW = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


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


class RecordFiles:
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


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


# --- making one, and going on with it ----------------------------------------------------------


def record_in_store(
    store_root: Path, heading: Heading, started: datetime
) -> tuple[str, RecordFiles]:
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


def record_at(path: Path, heading: Heading, started: datetime) -> tuple[str, RecordFiles]:
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


def _make(path: Path, document: Json) -> RecordFiles:
    lock = os.open(path / LOCK, _NEW | os.O_EXCL, 0o600)
    try:
        with suppress(OSError):  # no locks on this file system: readers ask for the process
            _take(lock)
        (path / LOGS).mkdir(mode=0o700)
        events = os.open(path / EVENTS, _APPENDING | os.O_CREAT | os.O_EXCL, 0o600)
    except BaseException:
        os.close(lock)
        raise
    files = RecordFiles(path, lock, events)
    try:
        files.write_document(RECORD, document)
    except BaseException:
        files.close()
        raise
    return files


def reopen(record: Record) -> RecordFiles:
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
        files = RecordFiles(record.path, lock, events, seq=seq)
        size = os.fstat(events).st_size
        if size and os.pread(events, 1, size - 1) != b"\n":
            _write(events, b"\n")  # what a killed writer left is a line of its own
        files.write_document(RECORD, {**record.document, **_this_process()})
    except BlockingIOError:
        raise UsageError(
            f"somebody works on the build `{record.id}` right now",
            hint=f"wait for it: {shlex.join(['ocis2i', 'wait', record.called])}",
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


# --- removing them ------------------------------------------------------------------------------


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
