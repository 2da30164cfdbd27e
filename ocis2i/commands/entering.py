"""The verb that goes into the container of a build that failed: shell."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ocis2i import records
from ocis2i.commands.context import context
from ocis2i.commands.flags import TalkFlags
from ocis2i.errors import UsageError
from ocis2i.kept import Kept, enter, load
from ocis2i.lazy_dataclass import dataclass


@dataclass(frozen=True, kw_only=True)
class ShellFlags(TalkFlags):
    """`shell`."""

    build: Annotated[
        str,
        typer.Argument(
            help="A build that failed with --keep-failed: its id, its image, or ./DIR of --record."
        ),
    ]
    command: Annotated[list[str] | None, typer.Argument(help="What to run instead of a shell.")] = (
        None
    )


def open_kept(flags: ShellFlags) -> None:
    with context(flags) as here:
        kept = _find(flags.build, here.store.root)
        tools = here.tools
        words = tuple(flags.command or ())
        # `kubectl exec POD -- COMMAND` has taught people to write it so.
        words = words[1:] if words[:1] == ("--",) else words
        code = enter(kept, words, here.store, tools.settings, tools.report)
    raise typer.Exit(code)


def _find(text: str, store_root: Path) -> Kept:
    """The kept container of a build, or that in a directory; raises `UsageError`."""
    directory = Path(text) if "/" in text else None
    if directory and (kept := load(directory)):
        return kept
    record = records.find(store_root, text)
    records.check_own(record, "entered")
    directory = record.kept
    if directory and (kept := load(directory)):
        return kept
    raise UsageError(
        f"the container of the build `{record.id}` was not kept, or is not there any more",
        hint="--keep-failed keeps that of a script that fails, until `ocis2i prune`",
    )
