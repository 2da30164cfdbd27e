"""The records of builds, as anybody reads them: one directory each, in the store or elsewhere.

    record.json   what was asked for, and by which process; written once, before the build begins
    events.jsonl  what happened, one JSON object a line, in the order of `seq`
    log/          what scripts printed and what was said about them, one file for each stage
    result.json   how it ended, as `--json` prints it; there is none while the build goes on
    lock          locked by the process of the build for as long as it lives

Nothing says `running`: the state is computed. The lock tells of a process that lives, whatever
was killed and whenever the machine was restarted; where a file system has no locks, the process
ID tells it, together with the start of the process and the run of the kernel. `docs/builds.md`
and `docs/schemas/` are for other readers. `ocis2i.record_files` is who writes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ocis2i.command_words import without_record
from ocis2i.errors import Ocis2iError, UsageError
from ocis2i.fs import boot_id
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Json, json_object
from ocis2i.reference import Reference

VERSION = 1

RECORD = "record.json"
EVENTS = "events.jsonl"
RESULT = "result.json"
LOCK = "lock"
LOGS = "log"
# Of a container that is kept, in its own directory: see `ocis2i.kept`.
KEPT = "kept.json"

State: TypeAlias = Literal["running", "succeeded", "failed", "cancelled", "died"]
STATES: tuple[State, ...] = get_args(State)
# The exit code of a build that says none any more: a shell's for a process that was killed.
DIED_CODE = 137

# Time of the start in UTC, so that names sort as builds began, with its fraction of a second.
ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{6}\Z")
_BEGINNING = re.compile(r"[0-9]{4}[0-9a-f-]{0,18}\Z")
_TAIL = re.compile(r"[0-9a-f]{4,6}\Z")
# A record is as small as its writer, but a directory that somebody names may hold anything.
_DOCUMENT_LIMIT = 16 << 20
_LINE_LIMIT = 1 << 20
_STAGE = re.compile(r"[a-z][a-z0-9-]{0,63}\Z")


@dataclass(frozen=True, slots=True)
class Record:
    """The record of one build. `document` is its `record.json`, empty when that is not readable.

    What a property says is of the moment in which it is asked.
    """

    path: Path
    document: Json = field(default_factory=dict, compare=False)

    @classmethod
    def load(cls, path: Path) -> Record:
        """The record in a directory. Raises `UsageError` for one of a version that is unknown."""
        document = _read(path / RECORD) or {}
        version = document.get("version", VERSION)
        if version != VERSION:
            raise UsageError(
                f"the build record `{path}` has version {str(version)[:20]}, "
                f"this ocis2i knows {VERSION}",
                hint="read it with the ocis2i that wrote it",
            )
        return cls(path, document)

    @property
    def id(self) -> str:
        """The build's name of its own; of a record that cannot be read, its directory's."""
        return self.text("id") or self.path.name

    @property
    def called(self) -> str:
        """What to call the build on a command line; a record that `--record` put is at its path."""
        return self.id if self.path.name == self.id else str(self.path.absolute())

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the image is to have, normalised; the first is the build's."""
        names = self.document.get("names")
        return tuple(map(str, names)) if isinstance(names, list) else ()

    @property
    def name(self) -> str | None:
        """The first of the `names`."""
        return self.names[0] if self.names else None

    def text(self, key: str) -> str:
        """A text of `record.json`; empty when there is none."""
        value = self.document.get(key)
        return value if isinstance(value, str) else ""

    def number(self, key: str) -> int | None:
        """A number of `record.json`."""
        value = self.document.get(key)
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    @property
    def command(self) -> tuple[str, ...]:
        """The arguments of the program, without what was secret in them."""
        words = self.document.get("command")
        return tuple(map(str, words)) if isinstance(words, list) else ()

    @property
    def build_again(self) -> str | None:
        """The command of the build, to be typed again; `***` stands for what was secret in it.

        `None`: the record does not say it, because it is damaged.
        """
        if not self.command:
            return None
        words = shlex.join(["ocis2i", *without_record(self.command)])
        cwd = self.text("cwd")
        return f"cd {shlex.quote(cwd)} && {words}" if cwd else words

    @property
    def way_back(self) -> str:
        """What to do for a build that cannot be gone on with."""
        command = self.build_again
        if command:
            return f"build again: {command}"
        return f"build again; its command is not known: {next(self.damage(), 'it is not written')}"

    def damage(self) -> Iterator[str]:
        """What of the record is there and cannot be read, or should be there and is not."""
        if not self.document:
            yield _damaged(self.path / RECORD) or f"`{RECORD}` is empty"
        if not self.is_running and self.result is None and (said := _damaged(self.path / RESULT)):
            yield said
        for path in (self.path / EVENTS, *self.log_files().values()):
            try:
                open_plainly(path).close()
            except OSError as error:
                yield f"`{path.relative_to(self.path)}` cannot be read: {error.strerror}"
            else:
                if path.name == EVENTS and self.result and next(self.events(), None) is None:
                    yield f"`{EVENTS}` has no event in it"

    @property
    def resume(self) -> Json:
        """What `resume` has to know of the build's wishes; empty when that is not readable."""
        value = self.document.get("resume")
        return value if isinstance(value, dict) else {}

    @property
    def result(self) -> Json | None:
        """The document of the end, `None` when there is none, or none that can be read."""
        return _read(self.path / RESULT)

    @property
    def lost_result(self) -> str | None:
        """What is wrong with a document of the end that was written; `None`: nothing, or no end."""
        if self.is_running or self.result is not None:
            return None
        said, ended = _damaged(self.path / RESULT), self.ended_event
        if ended is None:
            return said
        words = ", ".join(str(ended[key]) for key in ("state", "reason") if ended.get(key))
        said = said or f"`{RESULT}` is missing"
        return f"{said}; `{EVENTS}` says: {words[:80] or 'nothing'}"

    @property
    def ended_event(self) -> Json | None:
        """The last event, which says how it ended; `None`: it has not, or was killed."""
        ended: Json | None = None
        for event in self.events():
            if event.get("type") in ("ended", "resumed"):
                ended = event if event["type"] == "ended" else None
        return ended

    @property
    def is_running(self) -> bool:
        """Whether a process works on it: the build's own, or that of a `resume`."""
        held = _is_locked(self.path / LOCK)
        return self.process is not None if held is None else held

    @property
    def process(self) -> int | None:
        """The process ID of the build, `None` unless it is to be seen from here and the same."""
        pid, started = self.number("pid"), self.number("pid_started")
        if not pid or pid < 2 or started is None or self.text("boot_id") != boot_id():
            return None
        return pid if process_started(pid) == started else None

    @property
    def state(self) -> State:
        """What has become of the build."""
        # In this order: who gives up the lock has written the result before.
        return "running" if self.is_running else state_of(self.result)

    @property
    def exit_code(self) -> int | None:
        """The exit code that the build's process had; `None` while it is running."""
        if self.is_running:
            return None
        # The document of the end may be lost, as where the disk was full.
        return exit_code_of(self.result or self.ended_event)

    @property
    def was_restarted(self) -> bool:
        """Whether the kernel is another one than the build's, as after a restart."""
        return self.text("boot_id") not in ("", boot_id())

    def events(self) -> Iterator[Json]:
        """What happened, in order. A line that is not whole is left out, as is a broken one."""
        try:
            with open_plainly(self.path / EVENTS) as file:
                for line in iter(lambda: file.readline(_LINE_LIMIT), b""):
                    event = parse_line(line)
                    if event is not None:
                        yield event
        except OSError:
            return

    def log_files(self) -> dict[str, Path]:
        """The logs by stage, in the order in which the stages began."""
        try:
            there = {path.stem: path for path in (self.path / LOGS).glob("*.log")}
        except OSError:
            return {}
        begun = [str(event.get("stage")) for event in self.events() if _begins(event)]
        order = [*dict.fromkeys(begun), *sorted(there)]
        return {stage: there[stage] for stage in dict.fromkeys(order) if stage in there}

    def open_stages(self) -> tuple[str, ...]:
        """Stages that began and have not ended: where the build is, or where it died."""
        open_now: dict[str, None] = {}
        for event in self.events():
            stage = str(event.get("stage"))
            if event.get("type") == "resumed":
                open_now.clear()
            elif _begins(event):
                open_now[stage] = None
            elif event.get("type") == "stage_ended":
                open_now.pop(stage, None)
        return tuple(open_now)

    @property
    def kept(self) -> Path | None:
        """Where the container of the script that failed is; `None` unless it is there."""
        found = [event.get("where") for event in self.events() if event.get("type") == "kept"]
        return Path(str(found[-1])) if found and _is_kept(found[-1]) else None

    def stored(self) -> Json | None:
        """The event that says that the image is whole in the store; `None` when it never was."""
        found = None
        for event in self.events():
            if event.get("type") == "stored":
                found = event
        return found


def _is_kept(where: object) -> bool:
    """Whether a failed container is there, and ours."""
    try:
        return isinstance(where, str) and Path(where, KEPT).stat().st_uid == os.geteuid()
    except (OSError, ValueError):
        return False


def _damaged(path: Path) -> str | None:
    """What is wrong with a document of a record; `None`: nothing, or it is not there yet."""
    try:
        with open_plainly(path) as file:
            data = file.read(_DOCUMENT_LIMIT)
    except FileNotFoundError:
        return f"`{path.name}` is missing" if path.name == RECORD else None
    except OSError as error:
        return f"`{path.name}` cannot be read: {error.strerror}"
    if json_object(data):
        return None
    return f"`{path.name}` is {'no JSON object' if data.strip() else 'empty'}"


def _begins(event: Json) -> bool:
    return event.get("type") == "stage_started"


def state_of(result: Json | None) -> State:
    """The state of a build that nobody works on any more."""
    if result is None:
        return "died"
    if result.get("state") == "succeeded":
        return "succeeded"
    return "cancelled" if result.get("reason") == "Interrupted" else "failed"


def exit_code_of(result: Json | None) -> int:
    """The exit code that belongs to the document of the end, or to the event of it."""
    if result is None:
        return DIED_CODE
    code = result.get("exit_code", 0 if result.get("state") == "succeeded" else 1)
    return code if isinstance(code, int) and 0 <= code <= 255 else 1


# --- finding them -----------------------------------------------------------------------------


def home(store_root: Path) -> Path:
    """Where the records of a store are."""
    return store_root / "records"


def ids(store_root: Path) -> list[str]:
    """The names of all records of a store, the oldest first."""
    try:
        found = [path.name for path in home(store_root).iterdir()]
    except FileNotFoundError:
        return []
    return sorted(name for name in found if ID.match(name))


def all_records(store_root: Path) -> list[Record]:
    """All records of a store, the oldest first; those of another version are left out."""
    found = []
    for name in ids(store_root):
        record = _load(home(store_root) / name)
        if record:
            found.append(record)
    return found


def _load(path: Path) -> Record | None:
    try:
        return Record.load(path)
    except UsageError:
        return None


def find(store_root: Path, text: str) -> Record:
    """The build that `text` means: its id or the one that begins so, or the last one of an image.

    An id may be written by its last part alone, four characters of it at least. A directory with a
    record, as `--record` makes it, is named with a slash in it. Raises `UsageError`, also for what
    is the name of one build's image and short for the id of another: who cancels must not guess.
    """
    names = ids(store_root)
    if text in names:
        return Record.load(home(store_root) / text)
    named = [record for record in all_records(store_root) if _is_of(record, text)]
    matching = [name for name in names if is_short_for(text, name)]
    if named:
        others = [name for name in matching if name != named[-1].path.name]
        if others:
            raise UsageError(
                f"`{text}` is the image of the build {named[-1].id}, and may be the build "
                f"{others[-1]}",
                hint=f"write `{named[-1].name}` for the image, or more of the id",
            )
        return named[-1]
    if len(matching) == 1:
        return Record.load(home(store_root) / matching[0])
    if matching:
        raise UsageError(
            f"`{text}` may be {len(matching)} builds: {', '.join(matching[-3:])}",
            hint="write more of the id; `ocis2i ps -a` lists them",
        )
    path = Path(text)
    if ("/" in text or text in (".", "..")) and "\0" not in text and _is_record(path):
        return Record.load(path)
    raise UsageError(
        f"there is no build `{text[:100]}`",
        hint="`ocis2i ps -a` lists them; the directory of --record is written with a /, as ./DIR",
    )


def newest(store_root: Path) -> Record:
    """The build that began last; raises `UsageError` when there is none."""
    for name in reversed(ids(store_root)):
        record = _load(home(store_root) / name)
        if record:
            return record
    raise UsageError(f"the store `{store_root}` has no build", hint="build something first")


def is_short_for(text: str, name: str) -> bool:
    """Whether `text` is the beginning of an id, or of its last part."""
    if _BEGINNING.match(text) and name.startswith(text):
        return True
    return bool(_TAIL.match(text)) and name.rpartition("-")[2].startswith(text)


def _is_of(record: Record, text: str) -> bool:
    """Whether an image of that name is what the build makes."""
    try:
        return str(Reference.parse(text).with_default_tag()) in record.names
    except Ocis2iError:
        return False


def _is_record(path: Path) -> bool:
    try:
        return (path / RECORD).is_file()
    except (OSError, ValueError):
        return False


def check_own(record: Record, what: str) -> None:
    """Raises `UsageError` for a record of another user's: what it names is not to be trusted."""
    try:
        owner = record.path.stat().st_uid
    except OSError as error:
        raise UsageError(
            f"the record `{record.path}` cannot be read: {error.strerror}",
            hint="`ocis2i ps -a` lists the builds that are there",
        ) from error
    if owner != os.geteuid():
        raise UsageError(
            f"the record `{record.path}` belongs to another user (uid {owner}): "
            f"it cannot be {what}",
            hint="do it as that user",
        )


# --- reading them -----------------------------------------------------------------------------


def open_plainly(path: Path) -> Any:
    """Opens a file of a record for reading as bytes, and nothing else that may be in its place."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no file", str(path))
    return os.fdopen(descriptor, "rb")


def _read(path: Path) -> Json | None:
    try:
        with open_plainly(path) as file:
            return json_object(file.read(_DOCUMENT_LIMIT))
    except OSError:
        return None


def parse_line(line: bytes) -> Json | None:
    """One line of the events, `None` for what a killed writer left, or is none."""
    return json_object(line) if line.endswith(b"\n") else None


def _is_locked(path: Path) -> bool | None:
    """Whether somebody holds the lock; `None` where that cannot be said."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no locks on this file system
        return None
    finally:
        os.close(descriptor)
    return False


def process_started(pid: int) -> int | None:
    """When a process began, in clock ticks since the start of the kernel (proc_pid_stat(5), 22).

    `None`: there is none of that number, or only what is left of it until its parent asks.
    """
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    # The name of a program, in brackets, may have any character in it.
    fields = line.rpartition(b")")[2].split()
    return int(fields[19]) if len(fields) > 19 and fields[0] not in (b"Z", b"X") else None


def is_stage(text: str) -> bool:
    """Whether it can be the name of a stage, and so of a log."""
    return bool(_STAGE.match(text))
