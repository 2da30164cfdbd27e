"""The other verbs of source-to-image: usage, create, generate, completion, version."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from ocis2i import __version__
from ocis2i.commands.context import State, context, print_json
from ocis2i.commands.exporting import write_dockerfile
from ocis2i.commands.flags import (
    DockerFlags,
    JsonFlags,
    LimitFlags,
    PlatformFlags,
    PullFlags,
    RootfsFlags,
    StoreFlags,
    TalkFlags,
    option,
)
from ocis2i.completion import completion_script
from ocis2i.errors import UsageError
from ocis2i.export import ExportSpec
from ocis2i.images import PullPolicy, obtain
from ocis2i.launch import show_usage as launch_usage
from ocis2i.reference import Platform, parse_location
from ocis2i.s2i import absolute_flag, parse_variable
from ocis2i.scaffold import create
from ocis2i.sources import DirSource
from ocis2i.spec import BuildSpec

_NO_EFFECT = "As in s2i: without effect here."


@dataclass(frozen=True, kw_only=True)
class UsageFlags(LimitFlags, RootfsFlags, PullFlags, PlatformFlags, TalkFlags, DockerFlags):
    """`usage`."""

    builder: Annotated[str, typer.Argument(help="An S2I builder image.")]
    scripts_url: Annotated[
        str | None,
        option("--scripts-url", "-s", metavar="URL", help="Where the builder's usage script is."),
    ] = None
    destination: Annotated[
        str | None,
        option("--destination", "-d", metavar="DIR", help="Where a script of a URL is put."),
    ] = None
    location: Annotated[
        str | None, option("--location", "-l", metavar="DIR", help="Deprecated: --destination.")
    ] = None
    env: Annotated[
        list[str] | None,
        option("--env", "-e", metavar="NAME=VALUE", help="A variable; repeatable."),
    ] = None
    isolation: Annotated[
        str | None,
        option("--isolation", metavar="NAME", help="auto, runc, crun, builtin or buildah, ..."),
    ] = None
    incremental: Annotated[bool, option("--incremental", help=_NO_EFFECT)] = False
    remove_previous: Annotated[bool, option("--rm", help=_NO_EFFECT)] = False
    save_temp_dir: Annotated[bool, option("--save-temp-dir", help=_NO_EFFECT)] = False
    callback_url: Annotated[
        str | None, option("--callback-url", metavar="URL", help=_NO_EFFECT)
    ] = None
    previous_policy: Annotated[
        str, option("--incremental-pull-policy", metavar="POLICY", help=_NO_EFFECT)
    ] = "if-not-present"
    runtime_policy: Annotated[
        str, option("--runtime-pull-policy", metavar="POLICY", help=_NO_EFFECT)
    ] = "if-not-present"


def show_usage(flags: UsageFlags) -> None:
    """Show what a builder image says about itself, by its usage script."""
    with context(flags) as here, here.web() as web:
        for policy in (flags.previous_policy, flags.runtime_policy):
            PullPolicy.parse(policy)
        if flags.location:
            here.recorder.warn("--location is deprecated, use --destination")
        with here.store.in_use():
            found = obtain(
                parse_location(flags.builder),
                Platform.parse(flags.platform) if flags.platform else None,
                PullPolicy.parse(flags.pull_policy),
                here.tools.places,
            )
            code = launch_usage(
                found,
                here.tools.places,
                here.tools.settings,
                scripts_url=flags.scripts_url,
                destination=absolute_flag(flags.location or flags.destination, "--destination"),
                environment=dict(map(parse_variable, flags.env or ())),
                isolation=flags.isolation,
                limits=flags.limits,
                hardening=flags.hardening,
                cwd=here.tools.cwd,
                download=web.download,
            )
    raise typer.Exit(code)


@dataclass(frozen=True, kw_only=True)
class CreateFlags(DockerFlags):
    """`create`."""

    name: Annotated[str, typer.Argument(help="The name of the new builder image.")]
    directory: Annotated[str, typer.Argument(help="Where its files are written.")]


def create_builder(flags: CreateFlags) -> None:
    """Write the files of a new builder image: scripts, Dockerfile, README and a test."""
    given = (*State.docker_only, *flags.docker_only())
    if given:
        sys.stderr.write(f"warning: {', '.join(given)}: ignored, there is no Docker daemon\n")
    for made in create(flags.name, Path(flags.directory)):
        print(f"{made.state}  {made.path}")


@dataclass(frozen=True, kw_only=True)
class GenerateFlags(PullFlags, PlatformFlags, TalkFlags, DockerFlags):
    """`generate`."""

    builder: Annotated[str, typer.Argument(help="An S2I builder image.")]
    output: Annotated[str, typer.Argument(help="The Dockerfile to write.")]
    env: Annotated[
        list[str] | None,
        option("--env", "-e", metavar="NAME=VALUE", help="A variable; repeatable."),
    ] = None
    assemble_user: Annotated[
        str | None, option("--assemble-user", metavar="USER", help="Who runs assemble.")
    ] = None
    assemble_runtime_user: Annotated[
        str | None, option("--assemble-runtime-user", metavar="USER", help=_NO_EFFECT)
    ] = None


def generate(flags: GenerateFlags) -> None:
    """Experimental: write a Dockerfile for a builder image; the source is put beside it later."""
    with context(flags) as here:
        wanted = BuildSpec(
            source=DirSource(here.tools.cwd, "."),  # not read: it comes later
            builder=parse_location(flags.builder),
            created=datetime.now(UTC),
            platform=Platform.parse(flags.platform) if flags.platform else None,
            pull_policy=PullPolicy.parse(flags.pull_policy),
            environment=dict(map(parse_variable, flags.env or ())),
            assemble_user=flags.assemble_user,
        )
        write_dockerfile(
            ExportSpec(wanted, source_later=True), flags.output, here, quiet=flags.quiet
        )


@dataclass(frozen=True, kw_only=True)
class CompletionFlags(StoreFlags):
    """`completion`."""

    shell: Annotated[str, typer.Argument(help="bash, zsh or fish.")]


def print_completion(flags: CompletionFlags) -> None:
    """Print the script that completes ocis2i's verbs and flags in a shell."""
    sys.stdout.write(completion_script(flags.shell))


@dataclass(frozen=True, kw_only=True)
class HelpFlags(StoreFlags):
    """`help`."""

    verb: Annotated[str | None, typer.Argument(help="The verb to tell about.")] = None


def show_help(flags: HelpFlags, command: typer.Context) -> None:
    """List the verbs, or the flags of one: `help build` is `build --help`."""
    program = command.find_root()
    if flags.verb is None:
        print(program.get_help())
        return
    found = program.command.get_command(program, flags.verb)  # type: ignore[attr-defined]
    if found is None:
        raise UsageError(f"there is no verb `{flags.verb}`", hint="`ocis2i help` lists them")
    with found.make_context(flags.verb, [], parent=program, resilient_parsing=True) as about:
        print(about.get_help())


@dataclass(frozen=True, kw_only=True)
class VersionFlags(JsonFlags):
    """`version`."""


def print_version(flags: VersionFlags) -> None:
    """Print the version."""
    if flags.as_json:
        print_json({"version": 1, "ocis2i": __version__, "python": sys.version.split()[0]})
    else:
        print(f"ocis2i {__version__}")
