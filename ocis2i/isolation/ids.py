"""Which ids a user may map into a user namespace: /etc/subuid, /etc/subgid and newuidmap."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

from ocis2i.errors import IsolationError
from ocis2i.isolation.place import find_place
from ocis2i.isolation.sentences import Place, Refusal, refusal
from ocis2i.lazy_dataclass import dataclass
from ocis2i.proc import find_program

MAPPED_IDS = 65536


class NoIdsError(IsolationError):
    """The caller has no subordinate ids, or cannot get them mapped: one id is left."""

    def __init__(self, why: Refusal) -> None:
        super().__init__(why.text, hint=why.way_out.hint)
        self.why = why


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


def subordinate_ids(
    kind: str, name: str, number: int, *, place: Place | None = None
) -> tuple[IdRange, ...]:
    """The caller's ranges in /etc/`kind`; raises `NoIdsError` that says how to get some."""
    path = Path("/etc") / kind
    try:
        text = path.read_text()
    except OSError:
        text = ""
    ranges = parse_ranges(text, name, str(number))
    if not ranges:
        raise NoIdsError(refusal("no-ids", place or find_place(), name=name, path=str(path)))
    return ranges


def mappers(*, search_path: str | None, place: Place | None = None) -> list[list[str]]:
    """The commands that map the caller's ids into the user namespace of the process `PID`.

    newuidmap and newgidmap are the only setuid programs that ocis2i ever starts. Raises
    `NoIdsError`; its way out is the one at this `place`.
    """
    name = user_name()
    commands = []
    for tool, kind, own in (
        ("newuidmap", "subuid", os.getuid()),
        ("newgidmap", "subgid", os.getgid()),
    ):
        program = find_program(tool, search_path)
        if program is None:
            raise NoIdsError(refusal("no-mapper", place or find_place(), tool=tool))
        ranges = subordinate_ids(kind, name, os.getuid(), place=place)
        commands.append([program, "PID", *map_arguments(own, ranges)])
    return commands


def mapper_refusal(tool: str, said: str, place: Place) -> Refusal:
    """Why newuidmap or newgidmap did not do it."""
    if place.no_new_privs:
        return refusal("no-new-privs", place, tool=tool)
    return refusal("mapper-fails", place, tool=tool, said=said)


def is_whole_host(uid_map: str) -> bool:
    """Whether /proc/self/uid_map is that of the first user namespace: every id is itself."""
    return uid_map.split() == ["0", "0", str(2**32 - 1)]


def user_name() -> str:
    """The caller's login name, or the number where the system knows none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
