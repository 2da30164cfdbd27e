"""The flags of all verbs that run a container."""

from typing import Annotated

from ocis2i.commands.flags import RootfsFlags, StoreFlags, option
from ocis2i.container_options import parse_security_options
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import (
    DEFAULT_TASKS,
    Limits,
    parse_duration,
    parse_memory,
    parse_processors,
    parse_size,
    parse_tasks,
)
from ocis2i.runner import Hardening
from ocis2i.settings import ISOLATIONS


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ContainerFlags(RootfsFlags):
    """What a container gets."""

    env: Annotated[
        list[str] | None,
        option("--env", "-e", metavar="NAME=VALUE", help="A variable; repeatable."),
    ] = None
    volume: Annotated[
        list[str] | None,
        option(
            "--volume",
            "-v",
            metavar="SRC:DST[:ro]",
            help="A directory or file of the host in the container, not in the image; repeatable.",
        ),
    ] = None
    isolation: Annotated[
        str | None,
        option(
            "--isolation",
            metavar="NAME",
            help="auto, runc, crun, builtin, buildah, chroot or in-place. Default: the strongest.",
        ),
    ] = None

    @property
    def wanted_isolation(self) -> str | None:
        """The way that was asked for; raises `UsageError` before anything is fetched."""
        return known_isolation(self.isolation)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LimitFlags(StoreFlags):
    """What a container may use up, and what it is kept from."""

    memory: Annotated[
        str | None,
        option("--memory", metavar="SIZE", help="The most memory, as 512m or 2g."),
    ] = None
    cpus: Annotated[
        str | None, option("--cpus", metavar="NUMBER", help="How many processors, as 2 or 1.5.")
    ] = None
    pids_limit: Annotated[
        str | None,
        option(
            "--pids-limit",
            metavar="NUMBER",
            help=f"The most processes and threads; -1: no limit. Default: {DEFAULT_TASKS}.",
        ),
    ] = None
    timeout: Annotated[
        str | None,
        option("--timeout", metavar="TIME", help="How long it may run, as 90s, 10m or 1h30m."),
    ] = None
    security_opt: Annotated[
        list[str] | None,
        option(
            "--security-opt",
            metavar="NAME=VALUE",
            help="seccomp=unconfined or no-new-privileges=false; repeatable.",
        ),
    ] = None

    @property
    def limits(self) -> Limits:
        """The limits; raises `UsageError`."""
        return Limits(
            memory_bytes=parse_memory(self.memory),
            processors=parse_processors(self.cpus),
            tasks=parse_tasks(self.pids_limit),
            seconds=parse_duration(self.timeout, "--timeout"),
            output_bytes=parse_size(getattr(self, "output_limit", None), "--output-limit"),
        )

    @property
    def hardening(self) -> Hardening:
        """What it is kept from; raises `UsageError`."""
        return parse_security_options(self.security_opt or ())


def known_isolation(name: str | None) -> str | None:
    """The value of `--isolation`; raises `UsageError`."""
    if name is not None and name not in ISOLATIONS:
        raise UsageError(f"unknown isolation `{name}`", hint=f"there are {', '.join(ISOLATIONS)}")
    return name
