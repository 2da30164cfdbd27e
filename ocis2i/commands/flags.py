"""Flags as dataclasses: a field is an option, a base class the options that several verbs share.

`command_of` turns a function of such a dataclass into a command.
"""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Annotated, Any, ClassVar, cast, get_args, get_type_hints

import typer
import typer.main

from ocis2i.commands.signals import signals_raise
from ocis2i.commands.words import Command
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Platform
from ocis2i.settings import UploadMode

DEFAULT_JOBS = 4

Verb = Callable[..., None]


def command_of(name: str, function: Verb, help: str, **settings: Any) -> Any:  # noqa: A002
    """The command `name` that calls `function(flags)`, with the flags that its dataclass has.

    A function with a second parameter, `command`, gets Typer's context of the command there.
    """
    kind = get_type_hints(function)["flags"]
    with_command = "command" in inspect.signature(function).parameters

    def command(context: typer.Context, **values: Any) -> None:
        given = [
            name
            for name in values
            if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
        ]
        flags = kind(**values, given=frozenset(given))
        with signals_raise():
            function(flags, *([context] if with_command else []))

    parameters = [_parameter("context", typer.Context, inspect.Parameter.empty)]
    parameters += _parameters(kind)
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {one.name: one.annotation for one in parameters}
    # Typer makes a command of an application that has only one.
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command(name, cls=Command, help=help, **settings)(command)
    return typer.main.get_command(alone)


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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TalkFlags(StoreFlags):
    """How much is told on standard error."""

    log_level: Annotated[
        int, option("--loglevel", min=0, max=5, help="0 to 5: how much to tell on stderr.")
    ] = 0
    quiet: Annotated[
        bool, option("--quiet", "-q", help="Show nothing but warnings and errors.")
    ] = False


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class JsonFlags(StoreFlags):
    """Verbs that can answer with a document."""

    as_json: Annotated[bool, option("--json", help="Print one JSON document on stdout.")] = False


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ConnectionFlags(StoreFlags):
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
    cert_dir: Annotated[
        str | None,
        option(
            "--cert-dir",
            metavar="DIR",
            help="Certificates: *.crt to trust, *.cert with *.key to show. Default: certs.d.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RegistryFlags(ConnectionFlags):
    """Verbs that take images from registries."""

    signature_policy: Annotated[
        str | None,
        option(
            "--signature-policy",
            metavar="FILE",
            help="Which images may be taken. Default: policy.json of the user or the system.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CredentialFlags(RegistryFlags):
    """Verbs that work with one image of one registry."""

    creds: Annotated[
        str | None,
        option(
            "--creds",
            metavar="USER:PASSWORD",
            help="For the registry of the image; everybody on this host can see it.",
        ),
    ] = None

    @property
    def named_image(self) -> str:
        """The image whose registry they are for."""
        return str(getattr(self, "destination", None) or getattr(self, "image", ""))


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TimeFlags(StoreFlags):
    """Verbs that ask registries for small things."""

    registry_timeout: Annotated[
        str | None,
        option(
            "--registry-timeout",
            metavar="TIME",
            help="How long all work with registries may take, as 90s or 10m. Default: no end.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SendFlags(TimeFlags):
    """Verbs that send blobs to registries."""

    upload: Annotated[
        str,
        option(
            "--upload",
            metavar="KIND",
            help="How a layer is sent: monolithic, chunked, or auto: chunked where it must be.",
        ),
    ] = "auto"

    @property
    def upload_mode(self) -> UploadMode:
        """How layers are sent; raises `UsageError`."""
        for mode in get_args(UploadMode):
            if mode == self.upload:
                return cast(UploadMode, mode)
        raise UsageError(
            f"`--upload` is `{self.upload[:40]}`", hint="it must be auto, monolithic or chunked"
        )


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class TransferFlags(SendFlags):
    """Verbs that move whole images."""

    jobs: Annotated[
        int,
        option("--jobs", min=1, max=16, metavar="NUMBER", help="How many layers move at a time."),
    ] = DEFAULT_JOBS


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class PlatformFlags(StoreFlags):
    """Which image of an index is meant."""

    platform: Annotated[
        str | None,
        option(
            "--platform",
            metavar="OS/ARCH[/VARIANT]",
            help="Which image of an index. Default: this host's.",
        ),
    ] = None

    @property
    def wanted_platform(self) -> Platform | None:
        """The platform that was asked for; raises `UsageError`."""
        return Platform.parse(self.platform) if self.platform else None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class DigestFileFlags(StoreFlags):
    """Verbs that push: where the digest of what was pushed is written."""

    digest_file: Annotated[
        str | None,
        option(
            "--digest-file",
            "--digestfile",
            metavar="FILE",
            help="Write the digest of what was pushed there; a failure leaves no file.",
        ),
    ] = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
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
