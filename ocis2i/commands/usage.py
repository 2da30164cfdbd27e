"""The verb that lets a builder image speak: usage."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from ocis2i.commands.container_flags import LimitFlags, known_isolation
from ocis2i.commands.context import context
from ocis2i.commands.failing import with_way_back
from ocis2i.commands.flags import (
    DockerFlags,
    PlatformFlags,
    PullFlags,
    RootfsFlags,
    TalkFlags,
    option,
)
from ocis2i.commands.state import State
from ocis2i.commands.web import web
from ocis2i.images import PullPolicy, obtain
from ocis2i.launch import show_usage as launch_usage
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Platform, parse_location
from ocis2i.report import tell
from ocis2i.s2i import absolute_flag, parse_variable

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
    with context(flags) as here, web(here) as servers:
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
            failed = launch_usage(
                found,
                here.tools.places,
                here.tools.settings,
                scripts_url=flags.scripts_url,
                destination=absolute_flag(flags.location or flags.destination, "--destination"),
                environment=dict(map(parse_variable, flags.env or ())),
                isolation=known_isolation(flags.isolation),
                limits=flags.limits,
                hardening=flags.hardening,
                cwd=here.tools.cwd,
                download=servers.download,
            )
    if failed:
        if failed.failure:
            failed.failure = with_way_back(failed.failure, State.arguments)
        tell(failed, sys.stderr, quiet=flags.quiet)
    raise typer.Exit(failed.script_exit_code if failed else 0)
