"""The verb that writes a Dockerfile for a builder: generate."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import typer

from ocis2i.commands.context import context
from ocis2i.commands.exporting import write_dockerfile
from ocis2i.commands.flags import DockerFlags, PlatformFlags, PullFlags, TalkFlags, option
from ocis2i.export import ExportSpec
from ocis2i.images import PullPolicy
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Platform, parse_location
from ocis2i.s2i import parse_variable, user_flag
from ocis2i.sources import DirSource
from ocis2i.spec import BuildSpec


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
        str | None,
        option("--assemble-runtime-user", metavar="USER", help="As in s2i: without effect here."),
    ] = None


def generate(flags: GenerateFlags) -> None:
    with context(flags) as here:
        wanted = BuildSpec(
            source=DirSource(here.tools.cwd, "."),  # not read: it comes later
            builder=parse_location(flags.builder),
            created=datetime.now(UTC),
            platform=Platform.parse(flags.platform) if flags.platform else None,
            pull_policy=PullPolicy.parse(flags.pull_policy),
            environment=dict(map(parse_variable, flags.env or ())),
            assemble_user=user_flag(flags.assemble_user, "--assemble-user"),
        )
        write_dockerfile(
            ExportSpec(wanted, source_later=True), flags.output, here, quiet=flags.quiet
        )
