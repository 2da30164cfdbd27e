"""The verbs for builds, running or past: ps, status, logs, wait, cancel."""

from __future__ import annotations

import os
import select
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ocis2i import records
from ocis2i.build_rows import (
    build_row,
    died_in,
    human_age,
    human_seconds,
    parse_moment,
    seconds_of,
)
from ocis2i.commands.failing import root_words
from ocis2i.commands.flags import JsonFlags, StoreFlags, option
from ocis2i.commands.state import ReaderGoneError, State, print_json
from ocis2i.errors import Interrupted, Ocis2iError, OutputError, PolicyError, UsageError
from ocis2i.following import POLL_SECONDS, follow
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import parse_duration
from ocis2i.records import DIED_CODE, Record, check_own
from ocis2i.report import columns_of, printable, table
from ocis2i.settings import Settings

VERSION = 1

_BUILD = (
    "An id of `ocis2i ps -a` or its beginning, the name of an image (its last build), "
    "or the directory of --record."
)
_NEWEST = f"{_BUILD} Default: the last build."


@contextmanager
def _answering(flags: StoreFlags) -> Iterator[Path]:
    """The store's place; nothing in it is made or opened, so that it may be read-only."""
    State.as_json = bool(getattr(flags, "as_json", False))
    settings = Settings.from_environ(os.environ, root=flags.root or State.root)
    try:
        yield settings.store_root
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ReaderGoneError from error


def _chosen(store_root: Path, build: str | None) -> Record:
    return records.find(store_root, build) if build is not None else records.newest(store_root)


def _pause() -> None:
    threading.Event().wait(POLL_SECONDS)


# --- ps ---------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class ListBuildsFlags(JsonFlags):
    """`ps`."""

    everything: Annotated[bool, option("--all", "-a", help="Those that are over, too.")] = False


def list_builds(flags: ListBuildsFlags) -> None:
    with _answering(flags) as store_root:
        told = [(record, build_row(record)) for record in records.all_records(store_root)]
        # What is not there any more was removed while it was read.
        rows = [row for record, row in told if record.path.exists()]
        shown = [row for row in rows if flags.everything or row["state"] == "running"]
        if flags.as_json:
            print_json({"version": VERSION, "builds": shown})
            return
        now = datetime.now(UTC)
        heads, *lines = _fitting([_HEADS, *(_listed(row, now) for row in shown)])
        print(table(lines, heads))


_HEADS = ("BUILD", "STATE", "STAGE", "STARTED", "TOOK", "IMAGE", "SOURCE")


def _fitting(lines: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """The lines as wide as the terminal, if there is one."""
    width = columns_of(sys.stdout)
    if not width:
        return lines
    from ocis2i.live import Look  # noqa: PLC0415 - few lists are for a terminal
    from ocis2i.narrowing import Telling, narrowed  # noqa: PLC0415

    telling: dict[str, Telling] = {"SOURCE": "end", "IMAGE": "end", "STAGE": "beginning"}
    flexible = {_HEADS.index(head): part for head, part in telling.items()}
    return narrowed(lines, width, flexible, Look.of(sys.stdout.encoding, colour=False).cut)


def _listed(row: dict[str, Any], now: datetime) -> tuple[str, ...]:
    begun, took = parse_moment(row["started"]), seconds_of(row, now)
    cells = (
        row["id"],
        row["state"] + (", kept" if row["kept"] else ""),
        row["stage"] or row["reason"] or "",
        f"{human_age((now - begun).total_seconds())} ago" if begun else "",
        human_seconds(took) if took is not None else "",
        row["name"] or "<none>",
        row["source"] or "",
    )
    return tuple(printable(cell) for cell in cells)


# --- status -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class StatusFlags(JsonFlags):
    """`status`."""

    build: Annotated[str | None, typer.Argument(help=_NEWEST)] = None


def show_status(flags: StatusFlags) -> None:
    with _answering(flags) as store_root:
        record = _chosen(store_root, flags.build)
        row = build_row(record)
        left = _left(record, row)
        if flags.as_json:
            print_json({"version": VERSION, "build": _status_document(record, row, left)})
            return
        for name, text in _status_lines(record, row, left):
            print(f"{name:<10}{printable(text)}".rstrip())


def _left(record: Record, row: dict[str, Any]) -> list[str] | None:
    """What `resume` would do, in words; `None` when there is nothing that it could go on from."""
    if row["state"] in ("running", "succeeded") or record.stored() is None or not record.document:
        return None
    from ocis2i.resume import missing_of  # noqa: PLC0415 - only for builds that stopped late

    try:
        missing = missing_of(record)
    except Ocis2iError:  # a record that somebody has changed
        return None
    pushes = [f"push {name}" for name in missing.push]
    return [*(f"write {where}" for _, where in missing.outputs), *pushes]


def _status_document(record: Record, row: dict[str, Any], left: list[str] | None) -> dict[str, Any]:
    ended = [event for event in record.events() if event.get("type") == "stage_ended"]
    stages = [{key: event.get(key) for key in ("stage", "ok", "seconds")} for event in ended]
    return {
        **row,
        "command": list(record.command),
        "cwd": record.text("cwd") or None,
        "stages": stages,
        "logs": {stage: str(path) for stage, path in record.log_files().items()},
        "resumable": left is not None,
        "missing": left or [],
        "result": record.result,
    }


def _status_lines(
    record: Record, row: dict[str, Any], left: list[str] | None
) -> Iterator[tuple[str, str]]:
    yield "build", row["id"]
    code = f", exit code {row['exit_code']}" if row["reason"] else ""
    yield "state", row["state"] + (f" ({row['reason']}{code})" if row["reason"] else "")
    if row["state"] == "running":
        yield "stage", f"{row['stage'] or 'none yet'} (process {row['pid'] or 'not seen here'})"
    if row["state"] == "died":
        yield "died", _last_words(record, row)
    for key in ("name", "source", "builder", "started", "digest", "message"):
        if row[key]:
            yield ("image" if key == "name" else key), row[key]
    hint = (record.result or {}).get("hint") if row["state"] != "running" else None
    if isinstance(hint, str):
        yield "hint", hint
    took = seconds_of(row, datetime.now(UTC))
    if took is not None:
        yield "took", human_seconds(took)
    yield "stages", ", ".join(_stage_words(record))
    yield "record", row["record"]
    yield from (("damaged", said) for said in record.damage())
    name, root = record.called, root_words(State.arguments)
    if row["kept"]:
        yield "container", row["kept"]
        yield "enter", shlex.join(["ocis2i", "shell", *root, name])
    if left is not None:
        yield "missing", ", ".join(left) or "only its result"
        yield "next", shlex.join(["ocis2i", "resume", *root, name])
    elif row["state"] in ("failed", "cancelled", "died") and record.build_again:
        yield "next", record.build_again


def _last_words(record: Record, row: dict[str, Any]) -> str:
    return died_in(row, restarted=record.was_restarted, lost=record.lost_result)


def _stage_words(record: Record) -> Iterator[str]:
    for event in record.events():
        if event.get("type") == "stage_ended":
            seconds = event.get("seconds")
            took = f" {human_seconds(seconds)}" if isinstance(seconds, int | float) else ""
            yield f"{event.get('stage')}{took}{'' if event.get('ok') else ' (failed)'}"
    for stage in record.open_stages():
        yield f"{stage}…"


# --- logs -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class LogsFlags(StoreFlags):
    """`logs`."""

    build: Annotated[str | None, typer.Argument(help=_NEWEST)] = None
    following: Annotated[
        bool, option("--follow", "-f", help="Go on until a running build is over.")
    ] = False
    stage: Annotated[
        str | None, option("--stage", metavar="NAME", help="One stage alone, as assemble.")
    ] = None


def show_logs(flags: LogsFlags) -> None:
    with _answering(flags) as store_root:
        record = _chosen(store_root, flags.build)
        running = record.is_running
        there = record.log_files()
        if flags.stage and flags.stage not in there and not (running and flags.following):
            known = ", ".join(there) or "none"
            raise UsageError(
                f"the build `{record.id}` has no log of a stage `{flags.stage[:60]}`",
                hint=f"there are: {known}",
            )
        follow(record, _write, _pause if flags.following else None, only=flags.stage)
        _say_end(record)


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _say_end(record: Record) -> None:
    """What became of it, for people: the log has what was said before."""
    row = build_row(record)
    if row["state"] == "died":
        sys.stderr.write(f"{printable(_last_words(record, row))}\n")
    elif row["state"] in ("failed", "cancelled"):
        sys.stderr.write(f"{row['state']}: {printable(row['message'] or '')}\n")


# --- wait -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class WaitFlags(JsonFlags):
    """`wait`."""

    builds: Annotated[list[str], typer.Argument(metavar="BUILD...", help=_BUILD)]
    patience: Annotated[
        str | None,
        option("--timeout", metavar="TIME", help="How long to wait, as 90s or 10m. Default: on."),
    ] = None


def wait_for_builds(flags: WaitFlags) -> None:
    with _answering(flags) as store_root:
        seconds = parse_duration(flags.patience, "--timeout")
        # All of them are looked for before any is waited for.
        chosen = [records.find(store_root, build) for build in flags.builds]
        deadline = None if seconds is None else time.monotonic() + seconds
        rows = []
        for record in chosen:
            _wait(record, deadline, flags.patience)
            row = build_row(record)
            rows.append(row)
            if not flags.as_json:
                print(f"{row['id']} {row['state']} {row['exit_code']}", flush=True)
            if row["state"] == "died":
                sys.stderr.write(f"{row['id']}: {printable(_last_words(record, row))}\n")
        if flags.as_json:
            print_json({"version": VERSION, "builds": rows})
        code = next((row["exit_code"] for row in rows if row["exit_code"]), 0)
    raise typer.Exit(code)


def _wait(record: Record, deadline: float | None, shown: str | None) -> None:
    while record.is_running:
        if deadline is not None and time.monotonic() >= deadline:
            follow = shlex.join(["ocis2i", "logs", "-f", record.called])
            raise PolicyError(
                f"the build `{record.id}` is still running after {shown}",
                hint=f"it goes on; follow it: {follow}",
                reason="TimeLimitReached",
            )
        _pause()
    if not record.path.exists():
        raise UsageError(
            f"the record of the build `{record.id}` was removed before its end was read",
            hint="keep more of them (OCIS2I_KEEP_BUILDS), or wait for one with --record DIR",
        )


# --- cancel -----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CancelFlags(JsonFlags):
    """`cancel`."""

    build: Annotated[str, typer.Argument(help=_BUILD)]
    patience: Annotated[
        str, option("--timeout", metavar="TIME", help="After that it is killed. Default: 20s.")
    ] = "20s"


def cancel_build(flags: CancelFlags) -> None:
    with _answering(flags) as store_root:
        seconds = parse_duration(flags.patience, "--timeout") or 0.0
        record = records.find(store_root, flags.build)
        check_own(record, "cancelled")
        if record.is_running:
            _cancel(record, seconds, flags.patience)
        else:
            sys.stderr.write(f"the build `{record.id}` is over already\n")
        row = build_row(record)
        if flags.as_json:
            print_json({"version": VERSION, "build": row})
        else:
            print(f"{row['id']} {row['state']}")


def _cancel(record: Record, seconds: float, shown: str) -> None:
    """Asks the build's process to end, and kills it when it does not."""
    pid = record.process
    try:
        # From here on the number stands for this one process, whoever gets it afterwards.
        handle = os.pidfd_open(pid) if pid else -1
    except ProcessLookupError:
        handle = -1
    try:
        if handle < 0 or record.process != pid:
            if not record.is_running:
                return  # it has ended meanwhile
            raise OutputError(
                f"the process of the build `{record.id}` is not to be seen from here",
                hint="it runs in another container or as another user: cancel it there",
            )
        _signal(handle, signal.SIGTERM, record)
        if select.select([handle], [], [], seconds)[0]:
            return
        sys.stderr.write(f"it did not end within {shown}: it is killed\n")
        _signal(handle, signal.SIGKILL, record)
        select.select([handle], [], [])
    finally:
        if handle >= 0:
            os.close(handle)
    _say_killed(record)


def _signal(handle: int, number: signal.Signals, record: Record) -> None:
    try:
        signal.pidfd_send_signal(handle, number)
    except ProcessLookupError:
        return
    except PermissionError as error:
        raise OutputError(
            f"the build `{record.id}` is of another user: it cannot be cancelled",
            hint="do it as that user",
        ) from error


def _say_killed(record: Record) -> None:
    """A process that was killed cannot write its result itself."""
    from ocis2i.documents import failure_document  # noqa: PLC0415 - few builds are killed
    from ocis2i.record_files import write_result  # noqa: PLC0415

    if record.result is not None:
        return
    error = Interrupted(signal.SIGKILL)
    document = failure_document(error, DIED_CODE, [])
    with suppress(Ocis2iError):
        write_result(record, {**document, "id": record.id, "started": record.text("started")})
