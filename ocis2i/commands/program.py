"""The verbs about the program itself: completion, help, version."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ocis2i import __version__
from ocis2i.commands.flags import JsonFlags, StoreFlags
from ocis2i.commands.state import print_json
from ocis2i.completion import completion_script
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass


@dataclass(frozen=True, kw_only=True)
class CompletionFlags(StoreFlags):
    """`completion`."""

    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]


def print_completion(flags: CompletionFlags) -> None:
    sys.stdout.write(completion_script(flags.shell))


@dataclass(frozen=True, kw_only=True)
class HelpFlags(StoreFlags):
    """`help`."""

    verb: Annotated[str | None, typer.Argument(help="The verb to tell about.")] = None


def show_help(flags: HelpFlags, command: typer.Context) -> None:
    program = command.find_root()
    if flags.verb is None:
        print(program.get_help())
        return
    found = program.command.verb(flags.verb)  # type: ignore[attr-defined]
    if found is None:
        raise UsageError(f"there is no verb `{flags.verb}`", hint="`ocis2i help` lists them")
    print(found.get_help(typer.Context(found, info_name=flags.verb, parent=program)))


@dataclass(frozen=True, kw_only=True)
class VersionFlags(JsonFlags):
    """`version`."""


def print_version(flags: VersionFlags) -> None:
    if flags.as_json:
        from ocis2i.documents import VERSION  # noqa: PLC0415 - no other verb here needs it

        print_json({"version": VERSION, "ocis2i": __version__, "python": sys.version.split()[0]})
    else:
        print(f"ocis2i {__version__}")
