"""The verb that makes an image: build."""

from __future__ import annotations

import sys

import typer

from ocis2i.commands.ahead import WITHOUT_NAMESPACES
from ocis2i.commands.build_flags import BuildFlags
from ocis2i.commands.state import State
from ocis2i.errors import UsageError


def build_image(flags: BuildFlags, command: typer.Context) -> None:
    if flags.use_config:
        _build_as_saved(command)
        return
    if flags.source is None or flags.builder is None:
        missing = "SOURCE" if flags.source is None else "BUILDER"
        raise UsageError(
            f"missing argument {missing}", hint="write: ocis2i build SOURCE BUILDER [TAG]"
        )
    _check_conflicts(flags)
    if State.ahead and flags.isolation in WITHOUT_NAMESPACES:
        State.ahead.end()
    from ocis2i.commands.build_work import make_image  # noqa: PLC0415 - not for wrong words

    make_image(flags, State.ahead)


def _build_as_saved(command: typer.Context) -> None:
    """Runs the command again with what `.s2ifile` adds to its arguments, and saves them."""
    from ocis2i.commands.context import working_directory  # noqa: PLC0415 - few want it
    from ocis2i.report import printable  # noqa: PLC0415
    from ocis2i.s2ifile import command_line, merge, restore, save  # noqa: PLC0415

    known, given = command_line(command)
    directory = working_directory()
    merged = merge(restore(directory), given, known)
    for sentence in merged.warnings:
        sys.stderr.write(f"warning: {printable(sentence)}\n")

    def keep() -> None:
        for sentence in save(directory, merged.arguments, known):
            sys.stderr.write(f"warning: {printable(sentence)}\n")

    State.when_valid = keep
    words = merged.arguments.argv(known)
    with command.command.make_context(command.info_name, words, parent=command.parent) as again:
        command.command.invoke(again)


def _check_conflicts(flags: BuildFlags) -> None:
    if flags.as_dockerfile is not None and flags.run:
        raise UsageError(
            "--run and --as-dockerfile exclude each other", hint="build the Dockerfile, then run it"
        )
    if flags.as_dockerfile is not None and (flags.record or flags.events):
        raise UsageError(
            "--record and --events have no meaning with --as-dockerfile: nothing is built",
            hint="leave them out, or build directly",
        )
    if flags.runtime_image == "":
        raise UsageError("--runtime-image is empty", hint="name an image, or leave it out")
    if flags.as_dockerfile is not None and (flags.cache_from or flags.cache_to):
        raise UsageError(
            "--cache-from and --cache-to have no meaning with --as-dockerfile",
            hint="leave them out, or build directly",
        )
    if flags.as_dockerfile == "":
        raise UsageError("--as-dockerfile is empty", hint="name the Dockerfile to write")
    if flags.callback_url:
        from ocis2i.callback import check_callback_url  # noqa: PLC0415 - few want it

        check_callback_url(flags.callback_url)
