"""Flags as dataclasses: a field is an option, a base class the options that several verbs share.

`verb` turns a function of such a dataclass into a command of the Typer application.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, TypeVar, get_type_hints

import typer

from ocis2i.commands.words import Command
from ocis2i.container_options import parse_security_options
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

F = TypeVar("F", bound=Callable[..., None])


def verb(app: typer.Typer, name: str, **settings: Any) -> Callable[[F], F]:
    """Registers `function(flags)` as the command `name`; its docstring is the help.

    A function with a second parameter, `command`, gets Typer's context of the command there.
    """

    def register(function: F) -> F:
        kind = get_type_hints(function)["flags"]
        with_command = "command" in inspect.signature(function).parameters

        def command(context: typer.Context, **values: Any) -> None:
            given = [
                name
                for name in values
                if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
            ]
            flags = kind(**values, given=frozenset(given))
            function(flags, *([context] if with_command else []))

        parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
        parameters += _parameters(kind)
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        command.__doc__ = function.__doc__
        app.command(name, cls=Command, **settings)(command)
        return function

    return register


def _parameters(kind: type[Any]) -> list[inspect.Parameter]:
    """One parameter a field: those of the class itself before those of its bases."""
    hints = get_type_hints(kind, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "given"}
    own = [name for name in vars(kind).get("__annotations__", {}) if name in fields]
    names = [*own, *(name for name in fields if name not in own)]
    found = [_parameter(name, hints[name], _default(fields[name])) for name in names]
    return sorted(found, key=lambda one: one.default is not inspect.Parameter.empty)


def _default(field: dataclasses.Field[Any]) -> Any:
    return inspect.Parameter.empty if field.default is dataclasses.MISSING else field.default


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def option(*names: str, help: str, metavar: str | None = None, **more: Any) -> Any:  # noqa: A002
    """An option's declaration, short."""
    return typer.Option(*names, help=help, metavar=metavar, **more)


@dataclass(frozen=True, kw_only=True)
class StoreFlags:
    """What every verb has that works with the store; `given` names what the user wrote."""

    root: Annotated[
        str | None,
        option(
            "--root",
            metavar="DIR",
            help="The store's directory. Default: $OCIS2I_ROOT, else $XDG_DATA_HOME/ocis2i.",
        ),
    ] = None
    given: frozenset[str] = frozenset()

    def docker_only(self) -> tuple[str, ...]:
        """Flags that were given and mean nothing without a Docker daemon."""
        return ()


@dataclass(frozen=True, kw_only=True)
class TalkFlags(StoreFlags):
    """How much is told on standard error."""

    log_level: Annotated[
        int, option("--loglevel", min=0, max=5, help="0 to 5: how much to tell on stderr.")
    ] = 0
    quiet: Annotated[
        bool, option("--quiet", "-q", help="Show nothing but warnings and errors.")
    ] = False


@dataclass(frozen=True, kw_only=True)
class JsonFlags(StoreFlags):
    """Verbs that can answer with a document."""

    as_json: Annotated[bool, option("--json", help="Print one JSON document on stdout.")] = False


@dataclass(frozen=True, kw_only=True)
class RegistryFlags(StoreFlags):
    """How registries are spoken to."""

    authfile: Annotated[
        str | None,
        option(
            "--authfile",
            "--dockercfg-path",
            metavar="FILE",
            help="Credentials of registries. Default: where podman and docker keep them.",
        ),
    ] = None
    tls_verify: Annotated[
        bool,
        option(
            "--tls-verify/--no-tls-verify",
            help="Check certificates of registries; without, plain HTTP is allowed too.",
        ),
    ] = True


@dataclass(frozen=True, kw_only=True)
class PlatformFlags(StoreFlags):
    """Which image of an index is meant."""

    platform: Annotated[
        str | None,
        option(
            "--platform", metavar="OS/ARCH", help="Which image of an index. Default: this host's."
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
class RootfsFlags(StoreFlags):
    """What a container's tree is made of."""

    rootfs: Annotated[
        str | None,
        option(
            "--rootfs",
            metavar="KIND",
            help="overlay, copy or auto: a copy where overlayfs does not work. "
            "Default: $OCIS2I_ROOTFS, else auto.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class PullFlags(RegistryFlags):
    """When the registry is asked for the image that a verb works with."""

    pull_policy: Annotated[
        str,
        option(
            "--pull-policy",
            "-p",
            metavar="POLICY",
            help="When to ask the registry for it: always, never or if-not-present.",
        ),
    ] = "if-not-present"


_DOCKER = "Speaks of a Docker daemon: accepted and ignored."


@dataclass(frozen=True, kw_only=True)
class DockerFlags(StoreFlags):
    """Flags of s2i that only a Docker daemon gives a meaning."""

    url: Annotated[str | None, option("--url", "-U", metavar="URL", help=_DOCKER)] = None
    cert: Annotated[str | None, option("--cert", metavar="FILE", help=_DOCKER)] = None
    key: Annotated[str | None, option("--key", metavar="FILE", help=_DOCKER)] = None
    ca: Annotated[str | None, option("--ca", metavar="FILE", help=_DOCKER)] = None
    tls: Annotated[bool, option("--tls", help=_DOCKER)] = False
    tlsverify: Annotated[bool, option("--tlsverify", help=_DOCKER)] = False

    _docker_names: ClassVar[tuple[str, ...]] = ("url", "cert", "key", "ca", "tls", "tlsverify")

    def docker_only(self) -> tuple[str, ...]:
        """Flags that were given and mean nothing without a Docker daemon."""
        return tuple(f"--{name}" for name in self._docker_names if name in self.given)
