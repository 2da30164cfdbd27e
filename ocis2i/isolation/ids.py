"""Which ids a user may map into a user namespace: /etc/subuid, /etc/subgid and newuidmap."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from ocis2i.errors import IsolationError
from ocis2i.proc import find_program, run

MAPPED_IDS = 65536


@dataclass(frozen=True, slots=True)
class IdRange:
    """`count` ids from `first` on."""

    first: int
    count: int


def parse_ranges(text: str, *names: str) -> tuple[IdRange, ...]:
    """The ranges that belong to one of `names` (subuid(5)); malformed lines count for nothing."""
    found = []
    for line in text.splitlines():
        owner, _, numbers = line.strip().partition(":")
        first, _, count = numbers.partition(":")
        if owner in names and first.isdigit() and count.isdigit() and int(count):
            found.append(IdRange(int(first), int(count)))
    return tuple(found)


def map_arguments(own: int, ranges: tuple[IdRange, ...]) -> list[str]:
    """Arguments of newuidmap: container 0 is `own`, 1 and up are the subordinate ids in order."""
    arguments = ["0", str(own), "1"]
    inside = 1
    for piece in ranges:
        count = min(piece.count, MAPPED_IDS - inside)
        if count <= 0:
            break
        arguments += [str(inside), str(piece.first), str(count)]
        inside += count
    return arguments


def subordinate_ids(kind: str, name: str, number: int) -> tuple[IdRange, ...]:
    """The caller's ranges in /etc/`kind`; raises `IsolationError` that says how to get some."""
    path = Path("/etc") / kind
    try:
        text = path.read_text()
    except OSError:
        text = ""
    ranges = parse_ranges(text, name, str(number))
    if not ranges:
        raise IsolationError(
            f"user `{name}` has no subordinate ids in {path}",
            hint="ask an administrator for: usermod --add-subuids 100000-165535 "
            f"--add-subgids 100000-165535 {name}",
        )
    return ranges


def map_ids(pid: int, *, search_path: str | None) -> None:
    """Maps the caller's ids into the user namespace of `pid` by newuidmap and newgidmap.

    They are the only setuid programs that ocis2i ever starts. Raises `IsolationError`.
    """
    name = user_name()
    for tool, kind, own in (
        ("newuidmap", "subuid", os.getuid()),
        ("newgidmap", "subgid", os.getgid()),
    ):
        program = find_program(tool, search_path)
        if program is None:
            raise IsolationError(
                f"`{tool}` is not installed",
                hint="it is in the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)",
            )
        arguments = map_arguments(own, subordinate_ids(kind, name, os.getuid()))
        done = run([program, str(pid), *arguments], environment={}, timeout_seconds=20)
        if done.exit_code:
            raise IsolationError(
                f"`{tool}` failed: {done.complaint or f'exit code {done.exit_code}'}",
                hint="it must be setuid root or have file capabilities, and no_new_privs "
                "(allowPrivilegeEscalation: false) must not be set",
            )


def user_name() -> str:
    """The caller's login name, or the number where the system knows none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
