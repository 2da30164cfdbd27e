"""What `ps` and `status` say of a build: its record as values for people and for `--json`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ocis2i.manifest import Json
from ocis2i.records import Record, exit_code_of, state_of


def build_row(record: Record) -> dict[str, Any]:
    """One build as an object of the `--json` documents, by what is so right now."""
    running = record.is_running
    result = None if running else record.result
    stages = record.open_stages()
    return {
        "id": record.id,
        "state": "running" if running else state_of(result),
        "name": record.name,
        "names": list(record.names),
        "source": record.text("source") or None,
        "builder": record.text("builder") or None,
        "stage": stages[-1] if stages and (running or result is None) else None,
        "started": record.text("started") or None,
        "ended": _text(result, "ended"),
        "reason": _text(result, "reason"),
        "message": _text(result, "message"),
        "digest": _text(result, "digest"),
        "exit_code": None if running else exit_code_of(result or record.ended_event),
        "pid": record.process if running else None,
        "record": str(record.path),
        "kept": str(record.kept or "") or None,
    }


def _text(document: Json | None, key: str) -> str | None:
    value = (document or {}).get(key)
    return value if isinstance(value, str) else None


def parse_moment(text: str | None) -> datetime | None:
    """A time of a record; `None` for what is none."""
    try:
        moment = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def seconds_of(row: dict[str, Any], now: datetime) -> float | None:
    """How long a build took, or has taken so far; `None` when nobody can say."""
    begun, ended = parse_moment(row["started"]), parse_moment(row["ended"])
    if row["state"] == "running":
        ended = now
    return max(0.0, (ended - begun).total_seconds()) if begun and ended else None


def human_seconds(seconds: float) -> str:
    """A time for people: `0.4s`, `12s`, `3m05s`, `2h10m`, `3d04h`."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    whole = round(seconds)
    for unit, name, below, small in (
        (86400, "d", 3600, "h"),
        (3600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if whole >= unit:
            return f"{whole // unit}{name}{whole % unit // below:02}{small}"
    return f"{whole}s"


def human_age(seconds: float) -> str:
    """How long ago something was, for people: the largest unit alone, as `40s`, `12m`, `3d`."""
    whole = int(seconds)
    for unit, name in ((86400, "d"), (3600, "h"), (60, "m")):
        if whole >= unit:
            return f"{whole // unit}{name}"
    return f"{max(whole, 0)}s"


def died_in(row: dict[str, Any], *, restarted: bool, lost: str | None = None) -> str:
    """What to say of a build whose process is gone without a word, or whose word is `lost`."""
    if lost:
        return f"how it ended cannot be read: {lost}"
    where = f" in the stage `{row['stage']}`" if row["stage"] else ""
    why = "the machine was restarted" if restarted else "it was killed, or the machine went down"
    return f"its process ended{where} without a result: {why}"
