"""What the processes of a container may use up: read from text, and told when it is too much."""

from __future__ import annotations

import re
from typing import Literal, TypeAlias

from ocis2i.errors import PolicyError, UsageError
from ocis2i.lazy_dataclass import dataclass

# More than any build has at once, and few enough that a fork bomb is seen before it hurts: the
# host's own limit is that of the whole machine.
DEFAULT_TASKS = 4096
# What the kernel counts beside the container's own: the agent, and the threads of runc. Its limit
# stops what grows faster than the agent looks (`ocis2i.agent.confine`).
TASKS_BESIDE = 64
# With less a container cannot even start: its runtime itself needs some.
LEAST_MEMORY_BYTES = 32 << 20

Kind: TypeAlias = Literal["memory", "tasks", "time", "output"]


@dataclass(frozen=True, slots=True)
class Limits:
    """`None` is no limit. `tasks` are processes and threads, `seconds` of wall-clock time.

    `output_bytes` are those of standard output and standard error together.
    """

    memory_bytes: int | None = None
    processors: float | None = None
    tasks: int | None = DEFAULT_TASKS
    seconds: float | None = None
    output_bytes: int | None = None


_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?([bkmgt]?)(?:i?b)?", re.IGNORECASE)
_DURATION = re.compile(r"(?:([0-9]{1,9})h)?(?:([0-9]{1,9})m)?(?:([0-9]{1,9}(?:\.[0-9]{1,9})?)s)?")
_SECONDS = re.compile(r"[0-9]{1,9}(?:\.[0-9]{1,9})?")


def parse_size(text: str | None, flag: str) -> int | None:
    """Reads `512m`, `2g`, `1.5GiB` as Docker does: units are powers of 1024, no unit is bytes."""
    if text is None:
        return None
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].lower()]) if found else 0
    if not 0 < size < 1 << 62:
        raise UsageError(f"`{flag}` is `{text[:40]}`", hint="write a size as 512m or 2g")
    return size


def parse_memory(text: str | None) -> int | None:
    """Reads `--memory`."""
    size = parse_size(text, "--memory")
    if size is not None and size < LEAST_MEMORY_BYTES:
        raise UsageError(
            f"`--memory` is `{text}`: no container starts with less than "
            f"{show_size(LEAST_MEMORY_BYTES)}",
            hint="give it more",
        )
    return size


def parse_duration(text: str | None, flag: str) -> float | None:
    """Reads `90`, `90s`, `10m` or `1h30m`: seconds."""
    if text is None:
        return None
    if _SECONDS.fullmatch(text):
        seconds = float(text)
    else:
        found = _DURATION.fullmatch(text)
        hours, minutes, rest = found.groups(default="0") if found else ("0", "0", "0")
        seconds = int(hours) * 3600 + int(minutes) * 60 + float(rest)
    if not 0 < seconds < 1 << 31:
        raise UsageError(f"`{flag}` is `{text[:40]}`", hint="write a time as 90s, 10m or 1h30m")
    return seconds


def parse_processors(text: str | None) -> float | None:
    """Reads `--cpus`: a number of processors, which may have a fraction."""
    if text is None:
        return None
    # The kernel's least quota, and the most processors that it can have.
    processors = float(text) if _SECONDS.fullmatch(text) else 0.0
    if not 0.01 <= processors <= 8192:
        raise UsageError(f"`--cpus` is `{text[:40]}`", hint="write a number as 2 or 1.5")
    return processors


def parse_tasks(text: str | None) -> int | None:
    """Reads `--pids-limit`; `0` and `-1` are no limit, as Docker has it."""
    if text is None:
        return DEFAULT_TASKS
    if text in ("0", "-1", "unlimited"):
        return None
    if not text.isascii() or not text.isdigit() or not 0 < int(text[:10]) <= 1 << 22:
        raise UsageError(
            f"`--pids-limit` is `{text[:40]}`", hint="write a number as 512, or -1 for no limit"
        )
    return int(text)


def show_size(size: int) -> str:
    """A size in the largest unit that divides it."""
    for name, unit in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if size % unit == 0:
            return f"{size // unit} {name}"
    return f"{size} bytes"


def human_size(size: int) -> str:
    """Bytes for people, in powers of 1024."""
    amount = float(size)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def show_seconds(seconds: float) -> str:
    """A time in words."""
    return f"{seconds:g} {plural(seconds, 'second')}"


def plural(number: float, one: str, many: str | None = None) -> str:
    """The form of a word that goes with `number`; `many` where that is not `one` with an `s`."""
    return one if number == 1 else many or f"{one}s"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with its word, as `1 layer` and `3 layers`."""
    return f"{number} {plural(number, one, many)}"


def exceeded(kind: Kind, limits: Limits, name: str) -> PolicyError:
    """What to raise when a container was killed for going over a limit; `name` is its program."""
    match kind:
        case "memory":
            size = show_size(limits.memory_bytes or 0)
            said = f"`{name}` and what it started use more than {size} of memory"
            return PolicyError(
                f"{said}, and were killed",
                hint="raise --memory if that is right",
                reason="MemoryLimitReached",
            )
        case "tasks":
            said = f"`{name}` has more than {limits.tasks} processes and threads at once"
            return PolicyError(
                f"{said}, and was killed",
                hint="raise --pids-limit if that is right",
                reason="ProcessLimitReached",
            )
        case "time":
            said = f"`{name}` runs for more than {show_seconds(limits.seconds or 0)}"
            return PolicyError(
                f"{said}, and was killed",
                hint="raise --timeout if that is right",
                reason="TimeLimitReached",
            )
        case "output":
            size = show_size(limits.output_bytes or 0)
            return PolicyError(
                f"`{name}` prints more than {size}, and was killed",
                hint="raise --output-limit if that is right",
                reason="OutputLimitReached",
            )


def mention(limits: Limits) -> str | None:
    """For the hint of a script that failed by itself: the limits that it may have met."""
    said = []
    if limits.memory_bytes is not None:
        said.append(f"{show_size(limits.memory_bytes)} of memory")
    # The default is none that an honest script meets.
    if limits.tasks not in (None, DEFAULT_TASKS):
        said.append(f"{limits.tasks} processes")
    return f"it may use {' and '.join(said)}" if said else None
