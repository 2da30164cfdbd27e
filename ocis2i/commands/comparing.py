"""The verb that says what a build changed: diff."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from ocis2i.commands.context import context
from ocis2i.commands.flags import CredentialFlags, JsonFlags, PlatformFlags, TalkFlags, option
from ocis2i.commands.state import State, print_json
from ocis2i.differences import (
    NOTE_PATHS,
    NOTES,
    Change,
    Note,
    Row,
    Tree,
    largest,
    notes,
    owners,
    rows_of_depth,
    telling_rows,
    total,
)
from ocis2i.differences import State as ChangeState
from ocis2i.documents import difference_document
from ocis2i.errors import PolicyError, UsageError, shown
from ocis2i.layer_facts import ImageDifference, image_difference
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted, human_size, parse_size
from ocis2i.reference import parse_location
from ocis2i.report import printable, table

_ROWS = 12
_OFFENDERS = 5
_SIGNS: dict[ChangeState, str] = {"added": "+", "changed": "~", "removed": "-"}


@dataclass(frozen=True, kw_only=True)
class DiffFlags(CredentialFlags, PlatformFlags, TalkFlags, JsonFlags):
    """`diff`."""

    image: Annotated[
        str, typer.Argument(help="An image of the store, docker://NAME, oci:, oci-archive:, ...")
    ]
    base: Annotated[
        str | None,
        typer.Argument(help="What to hold it against. Default: the layers below ocis2i's own."),
    ] = None
    files: Annotated[bool, option("--files", help="List every path that changed.")] = False
    depth: Annotated[
        int | None,
        option(
            "--depth",
            min=1,
            max=100,
            metavar="NUMBER",
            help="Sum up all directories down to this depth. Default: the dozen that tell most.",
        ),
    ] = None
    size_budget: Annotated[
        str | None,
        option(
            "--size-budget",
            metavar="SIZE",
            help="End with exit code 9 when new and changed files are more than this, as 50MiB.",
        ),
    ] = None
    large: Annotated[
        str,
        option("--large", metavar="SIZE", help="Which files are noted for their size."),
    ] = "10MiB"


def show_difference(flags: DiffFlags) -> None:
    budget = parse_size(flags.size_budget, "--size-budget")
    large = parse_size(flags.large, "--large") or 0
    if flags.files and flags.depth:
        raise UsageError("--files and --depth exclude each other", hint="leave one of them out")
    with context(flags) as here, here.store.in_use():
        base = parse_location(flags.base) if flags.base else None
        found = image_difference(
            parse_location(flags.image), base, flags.wanted_platform, here.tools.places
        )
        tree = Tree(found.changes)
        rows = rows_of_depth(tree, flags.depth) if flags.depth else telling_rows(tree, _ROWS)
        noted = notes(found.changes, large_bytes=large)
        if flags.as_json:
            # The document is out then: a second one, of the budget, would make it unreadable.
            State.as_json = False
            print_json(
                difference_document(found, rows, noted, budget=budget, with_files=flags.files)
            )
        else:
            for line in _text(found, rows, noted, flags):
                print(line)
    if budget is not None:
        _hold_to(budget, found)


def _text(
    found: ImageDifference, rows: list[Row], noted: list[Note], flags: DiffFlags
) -> Iterator[str]:
    summed = total(found.changes)
    against = f"against {printable(found.base)}" if found.base else "what the build changed"
    yield f"{printable(found.name)}: {against}"
    counts = f"{summed.added} added, {summed.changed} changed, {summed.removed} removed"
    gone = f", {human_size(summed.bytes_removed)} gone" if summed.bytes_removed else ""
    yield f"{counts}; {human_size(summed.bytes_new)} new{gone}"
    if not found.changes:
        return
    yield ""
    if flags.files:
        yield from map(_file_line, found.changes)
    else:
        yield table(map(_directory_cells, rows), ("NEW", "+", "~", "-", "DIRECTORY"))
    yield ""
    owned = (
        (f"{uid}:{gid}", str(one.entries), human_size(one.bytes_new))
        for uid, gid, one in owners(found.changes)[:_ROWS]
    )
    yield table(owned, ("OWNER", "ENTRIES", "NEW"))
    for note in noted:
        yield ""
        yield from _note_lines(note)


def _directory_cells(row: Row) -> tuple[str, ...]:
    one = row.summed
    numbers = (str(number or "") for number in (one.added, one.changed, one.removed))
    return (human_size(one.bytes_new), *numbers, shown_directory(row))


def shown_directory(row: Row) -> str:
    """The name of a row: `/dir/` with all below, `/dir/*` what is in it without a row."""
    path = f"/{shown_path(row.path)}" if row.path else ""
    return f"{path}/*" if row.rest else f"{path}/"


def shown_path(path: bytes) -> str:
    """A path of an image, which may be anything, for a terminal."""
    return shown(path.decode(errors="backslashreplace"))


def _file_line(change: Change) -> str:
    facts = change.facts
    what = f"  ({', '.join(change.what)})" if change.what else ""
    owner = f"{facts.uid}:{facts.gid}"
    link = f" -> {shown_path(facts.target)}" if facts.target else ""
    return (
        f"{_SIGNS[change.state]} {facts.mode:04o} {owner:>11} {human_size(facts.size):>10}  "
        f"/{shown_path(change.path)}{link}{what}"
    )


def _note_lines(note: Note) -> Iterator[str]:
    entries = counted(note.count, "entry", "entries")
    size = f", {human_size(note.bytes_new)}" if note.bytes_new else ""
    yield f"note: {entries}{size}: {NOTES[note.kind]}"
    for path in note.paths:
        yield f"      /{shown_path(path)}"
    if note.kind != "cache" and note.count > NOTE_PATHS:
        yield f"      and {note.count - NOTE_PATHS} more"


def _hold_to(budget: int, found: ImageDifference) -> None:
    """Raises `PolicyError` when the new and changed files are more than the budget."""
    summed = total(found.changes)
    if summed.bytes_new <= budget:
        return
    biggest = ", ".join(
        f"`/{shown_path(one.path)}` ({human_size(one.size)})"
        for one in largest(found.changes, _OFFENDERS)
    )
    raise PolicyError(
        f"`{printable(found.name)}` adds {human_size(summed.bytes_new)}, "
        f"its size budget is {human_size(budget)}; the biggest are {biggest}",
        hint="leave files out by .s2iignore or in assemble, or raise --size-budget",
        reason="SizeBudgetExceeded",
    )
