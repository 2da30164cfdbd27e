"""The verb that runs an image: run."""

from __future__ import annotations

from typing import Annotated

import typer

from ocis2i.commands.container_flags import ContainerFlags, LimitFlags
from ocis2i.commands.context import context
from ocis2i.commands.flags import CredentialFlags, PlatformFlags, PullFlags, option
from ocis2i.images import PullPolicy, obtain
from ocis2i.launch import LaunchSpec, launch
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import parse_location
from ocis2i.runner import Stdio
from ocis2i.s2i import absolute_flag, parse_variable, user_flag
from ocis2i.volumes import parse_volume


@dataclass(frozen=True, kw_only=True)
class RunFlags(LimitFlags, ContainerFlags, PullFlags, CredentialFlags, PlatformFlags):
    """`run`."""

    image: Annotated[str, typer.Argument(help="An image of the store, or oci:, oci-archive:, ...")]
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run instead of the image's Cmd.")
    ] = None
    user: Annotated[str | None, option("--user", "-u", help="Who runs it.")] = None
    workdir: Annotated[
        str | None, option("--workdir", "-w", metavar="DIR", help="Where to run it.")
    ] = None
    entrypoint: Annotated[
        str | None, option("--entrypoint", help="Instead of the image's Entrypoint.")
    ] = None
    log_level: Annotated[
        int, option("--loglevel", min=0, max=5, help="0 to 5: how much to tell on stderr.")
    ] = 0

    @property
    def quiet(self) -> bool:
        """The image's own output is what the user wants to see."""
        return True


def run_image(flags: RunFlags) -> None:
    with context(flags) as here:
        spec = LaunchSpec(
            command=tuple(flags.command or ()),
            entrypoint=flags.entrypoint,
            environment=dict(map(parse_variable, flags.env or ())),
            mounts=tuple(map(parse_volume, flags.volume or ())),
            user=user_flag(flags.user, "--user"),
            working_dir=absolute_flag(flags.workdir, "--workdir"),
            isolation=flags.wanted_isolation,
            limits=flags.limits,
            hardening=flags.hardening,
        )
        tools = here.tools
        with here.store.in_use():
            policy = PullPolicy.parse(flags.pull_policy)
            location = parse_location(flags.image)
            found = obtain(location, flags.wanted_platform, policy, tools.places)
            result = launch(found, spec, tools.places, tools.settings, stdio=Stdio())
    raise typer.Exit(result.exit_code)
