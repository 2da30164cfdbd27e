"""The command line: reads the environment, the clock and the arguments; prints; sets exit codes.

stdout carries the result and nothing else, stderr everything a person reads meanwhile.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ocis2i import __version__
from ocis2i.auth import Keychain
from ocis2i.build import BuildResult, Tools, build
from ocis2i.compression import Compression, check_level
from ocis2i.documents import (
    failure_document,
    image_row,
    inspect_document,
    result_document,
)
from ocis2i.errors import ImageError, Interrupted, Ocis2iError, UsageError, exit_code_of
from ocis2i.fs import explain, is_full
from ocis2i.images import Places, PullPolicy, from_store, inspect, obtain, push
from ocis2i.launch import LaunchSpec, launch
from ocis2i.outputs import Delivered, parse_output
from ocis2i.prune import prune
from ocis2i.reference import (
    Digest,
    PathLocation,
    Platform,
    Reference,
    RegistryLocation,
    StoredLocation,
    parse_location,
)
from ocis2i.registry import Registry
from ocis2i.report import Lines, Quiet, Recorder, human_size, table
from ocis2i.s2i import parse_variable
from ocis2i.settings import LAST_SECOND, Settings
from ocis2i.sources import DEFAULT_EXCLUDE, parse_source
from ocis2i.spec import BuildSpec, parse_volume
from ocis2i.store import Store

app = typer.Typer(
    name="ocis2i",
    help="Source-to-Image builds that write OCI images directly: no daemon, no root.",
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Root = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIR",
        help="The store's directory. Default: $OCIS2I_ROOT, else $XDG_DATA_HOME/ocis2i.",
    ),
]
LogLevel = Annotated[
    int, typer.Option("--loglevel", min=0, max=5, help="0 to 5: how much to tell on stderr.")
]
QuietFlag = Annotated[
    bool, typer.Option("--quiet", "-q", help="Show nothing but warnings and errors.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
TlsVerify = Annotated[
    bool,
    typer.Option(
        "--tls-verify/--no-tls-verify",
        help="Check certificates of registries; without, plain HTTP is allowed too.",
    ),
]
AuthFile = Annotated[
    str | None,
    typer.Option(
        "--authfile",
        "--dockercfg-path",
        metavar="FILE",
        help="Credentials of registries. Default: where podman and docker keep them.",
    ),
]
PlatformText = Annotated[
    str | None,
    typer.Option("--platform", metavar="OS/ARCH", help="Which image of an index. Default: ours."),
]
Environment = Annotated[
    list[str] | None,
    typer.Option("--env", "-e", metavar="NAME=VALUE", help="A variable; repeatable."),
]
Volume = Annotated[
    list[str] | None,
    typer.Option(
        "--volume",
        "-v",
        metavar="SRC:DST[:ro]",
        help="A directory or file of the host in the container, not in the image; repeatable.",
    ),
]
Isolation = Annotated[
    str | None,
    typer.Option(
        "--isolation", metavar="NAME", help="auto, runc or builtin. Default: the strongest here."
    ),
]
PullPolicyText = Annotated[
    str,
    typer.Option(
        "--pull-policy",
        "-p",
        metavar="POLICY",
        help="When to ask the registry for the builder: always, never or if-not-present.",
    ),
]


@dataclass(frozen=True, slots=True)
class _Context:
    """What every command works with, made of its common options."""

    tools: Tools
    recorder: Recorder
    show: Lines | Quiet

    @property
    def store(self) -> Store:
        return self.tools.store


@contextmanager
def _context(
    *,
    root: str | None,
    log_level: int = 0,
    quiet: bool = False,
    authfile: str | None = None,
    tls_verify: bool = True,
) -> Iterator[_Context]:
    cwd = _working_directory()
    settings = Settings.from_environ(os.environ, root=root or _State.root)
    show = Quiet(sys.stderr) if quiet else Lines(sys.stderr, log_level=log_level)
    recorder = Recorder(show, lambda: datetime.now(UTC))
    _State.recorder = recorder
    keychain = Keychain(settings.environment, authfile=Path(authfile) if authfile else None)
    store = Store.open(settings.store_root)
    with Registry(
        keychain, environment=settings.environment, tls_verify=tls_verify, report=recorder
    ) as registry:
        places = Places(store, registry, recorder)
        try:
            try:
                yield _Context(Tools(settings, places, recorder, cwd), recorder, show)
            finally:
                show.close()
            sys.stdout.flush()
        except BrokenPipeError as error:
            raise _ReaderGoneError from error


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except OSError as error:
        raise UsageError(
            f"there is no current directory: {error.strerror}", hint="change to one that exists"
        ) from error


class _ReaderGoneError(Exception):
    """Nobody reads our output any more. Typer would end with 1 for the operating system's own."""


class _State:
    """What the outermost function has to know of the command that ran: for its failure."""

    root: str | None = None
    recorder: Recorder | None = None
    as_json = False


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    root: Root = None,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    _State.root = root
    if version:
        print(f"ocis2i {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(UsageError.exit_code)


# --- building ---------------------------------------------------------------------------------


@app.command("build")
def _build(
    source: Annotated[str, typer.Argument(help="A directory or git URL; #REF chooses a ref.")],
    builder: Annotated[
        str, typer.Argument(help="The S2I builder image: a name, or oci:, oci-archive:, ...")
    ],
    tag: Annotated[str | None, typer.Argument(help="The name of the result.")] = None,
    *,
    env: Environment = None,
    ref: Annotated[
        str | None, typer.Option("--ref", "-r", help="Branch, tag or commit to build.")
    ] = None,
    context_dir: Annotated[
        str | None, typer.Option("--context-dir", metavar="DIR", help="Directory in the source.")
    ] = None,
    copy: Annotated[
        bool, typer.Option("--copy", "-c", help="Copy a local directory even if it is a clone.")
    ] = False,
    exclude: Annotated[
        str,
        typer.Option("--exclude", metavar="REGEX", help="Files of the source to leave out."),
    ] = DEFAULT_EXCLUDE,
    keep_symlinks: Annotated[
        bool, typer.Option("--keep-symlinks", help="When copying, copy links as links.")
    ] = False,
    ignore_submodules: Annotated[
        bool, typer.Option("--ignore-submodules", help="Leave git submodules out.")
    ] = False,
    volume: Volume = None,
    scripts_url: Annotated[
        str | None,
        typer.Option("--scripts-url", "-s", metavar="URL", help="image:///DIR or file:///DIR."),
    ] = None,
    destination: Annotated[
        str | None,
        typer.Option("--destination", "-d", metavar="DIR", help="Where source and scripts go."),
    ] = None,
    assemble_user: Annotated[
        str | None, typer.Option("--assemble-user", metavar="USER", help="Who runs assemble.")
    ] = None,
    description: Annotated[
        str | None, typer.Option("--description", help="Label io.k8s.description.")
    ] = None,
    application_name: Annotated[
        str | None,
        typer.Option("--application-name", "-n", help="Label io.k8s.display-name."),
    ] = None,
    push_it: Annotated[bool, typer.Option("--push", help="Push the result to its registry.")] = (
        False
    ),
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="TRANSPORT:PATH",
            help="Write the result to oci:, oci-archive: or docker-archive: too; repeatable.",
        ),
    ] = None,
    pull_policy: PullPolicyText = "if-not-present",
    platform: PlatformText = None,
    timestamp: Annotated[
        str | None,
        typer.Option(
            "--timestamp",
            metavar="SECONDS",
            help="Latest time in the image, for repeatable digests; beats SOURCE_DATE_EPOCH.",
        ),
    ] = None,
    compression: Annotated[
        str, typer.Option("--compression", metavar="NAME", help="gzip, zstd or none.")
    ] = "gzip",
    compression_level: Annotated[
        int | None,
        typer.Option("--compression-level", help="0 to 9 for gzip, 1 to 19 for zstd."),
    ] = None,
    isolation: Isolation = None,
    authfile: AuthFile = None,
    tls_verify: TlsVerify = True,
    root: Root = None,
    log_level: LogLevel = 0,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Build an image from a source and an S2I builder image."""
    _State.as_json = as_json
    with _context(
        root=root, log_level=log_level, quiet=quiet, authfile=authfile, tls_verify=tls_verify
    ) as context:
        clamp = _seconds(timestamp, context.tools.settings)
        created = datetime.now(UTC) if clamp is None else datetime.fromtimestamp(clamp, UTC)
        kind, level = _compression(compression, compression_level)
        spec = BuildSpec(
            source=parse_source(
                source,
                cwd=context.tools.cwd,
                ref=ref,
                context_dir=context_dir,
                copy=copy,
                exclude=exclude,
                keep_symlinks=keep_symlinks,
                ignore_submodules=ignore_submodules,
            ),
            builder=parse_location(builder),
            created=created,
            tag=tag,
            name=Reference.parse(tag).with_default_tag() if tag else None,
            push=push_it,
            outputs=tuple(map(parse_output, output or ())),
            platform=Platform.parse(platform) if platform else None,
            pull_policy=PullPolicy.parse(pull_policy),
            environment=dict(map(parse_variable, env or ())),
            mounts=tuple(map(parse_volume, volume or ())),
            scripts_url=scripts_url,
            destination=_absolute(destination, "--destination"),
            assemble_user=assemble_user,
            description=description,
            application_name=application_name,
            clamp_seconds=clamp,
            compression=kind,
            compression_level=level,
            isolation=isolation,
        )
        result = build(spec, context.tools)
        _print_build(result, spec, context, as_json=as_json)


def _print_build(result: BuildResult, spec: BuildSpec, context: _Context, *, as_json: bool) -> None:
    digest = result.encoded.descriptor.digest
    if as_json:
        _print_json(result_document(result, spec, context.recorder.stages))
    else:
        print(f"{spec.name.name}@{digest}" if spec.name else digest)


def _seconds(timestamp: str | None, settings: Settings) -> int | None:
    if timestamp is None:
        return settings.source_date_epoch
    if not timestamp.isascii() or not timestamp.isdigit() or int(timestamp) > LAST_SECOND:
        raise UsageError(
            f"--timestamp is `{timestamp}`", hint="it must be a number of seconds since 1970"
        )
    return int(timestamp)


def _compression(name: str, level: int | None) -> tuple[Compression, int | None]:
    try:
        kind = Compression(name)
    except ValueError:
        known = ", ".join(one.value for one in Compression)
        raise UsageError(f"unknown compression `{name}`", hint=f"there are {known}") from None
    check_level(kind, level)
    return kind, level


def _absolute(path: str | None, flag: str) -> str | None:
    if path is None:
        return None
    if not path.startswith("/") or "\0" in path:
        raise UsageError(f"{flag} is `{path}`", hint="it must be an absolute path in the image")
    try:
        path.encode()
    except UnicodeEncodeError:
        raise UsageError(f"{flag} is `{path}`", hint="an image config holds UTF-8 alone") from None
    return path.rstrip("/") or "/"


# --- images -----------------------------------------------------------------------------------


@app.command("pull")
def _pull(
    image: Annotated[str, typer.Argument(help="A name in a registry, or oci:, oci-archive:, ...")],
    platform: PlatformText = None,
    authfile: AuthFile = None,
    tls_verify: TlsVerify = True,
    root: Root = None,
    log_level: LogLevel = 0,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Fetch an image from its registry into the store."""
    _State.as_json = as_json
    with _context(
        root=root, log_level=log_level, quiet=quiet, authfile=authfile, tls_verify=tls_verify
    ) as context:
        location = parse_location(image)
        wanted = Platform.parse(platform) if platform else None
        if not isinstance(location, RegistryLocation):
            raise UsageError(
                f"`{image}` is not in a registry",
                hint="builds read it from there; nothing has to be pulled",
            )
        with context.store.in_use():
            found = obtain(location, wanted, PullPolicy.ALWAYS, context.tools.places)
        place = Delivered(location.reference.name, found.manifest.descriptor.digest)
        _print_place(place, as_json=as_json)


@app.command("push")
def _push(
    image: Annotated[str, typer.Argument(help="An image of the store.")],
    destination: Annotated[
        str | None,
        typer.Argument(help="Another name, or oci:, oci-archive:, docker-archive:."),
    ] = None,
    authfile: AuthFile = None,
    tls_verify: TlsVerify = True,
    root: Root = None,
    log_level: LogLevel = 0,
    quiet: QuietFlag = False,
    as_json: AsJson = False,
) -> None:
    """Send an image of the store to a registry, or write it to a path."""
    _State.as_json = as_json
    with (
        _context(
            root=root, log_level=log_level, quiet=quiet, authfile=authfile, tls_verify=tls_verify
        ) as context,
        context.store.in_use(),
    ):
        found = from_store(_stored_name(image), context.store)
        target = parse_location(destination or image)
        _print_place(push(found, target, context.tools.places), as_json=as_json)


def _print_place(place: Delivered, *, as_json: bool) -> None:
    reference = f"{place.where}@{place.digest}"
    if as_json:
        _print_json(
            {
                "version": 1,
                "state": "succeeded",
                "where": place.where,
                "digest": str(place.digest),
                "reference": reference,
            }
        )
    else:
        print(reference)


def _stored_name(text: str) -> Reference | Digest:
    """A name of the store, or a digest; raises `UsageError` for a place outside of it."""
    match parse_location(text):
        case RegistryLocation(reference):
            return reference.with_default_tag()
        case StoredLocation(digest):
            return digest
        case PathLocation():
            raise UsageError(f"`{text}` is not a name of the store", hint="see `ocis2i images`")


@app.command("images")
def _images(root: Root = None, as_json: AsJson = False) -> None:
    """List the images of the store."""
    _State.as_json = as_json
    with _context(root=root) as context, context.store.in_use():
        rows = [image_row(image, context.store) for image in context.store.images()]
        if as_json:
            _print_json({"version": 1, "images": rows})
            return
        heads = ("NAME", "DIGEST", "CREATED", "SIZE")
        lines = [
            (
                row["name"] or "<none>",
                row["digest"] if not row["name"] else row["digest"][:19],
                row["created"] or "",
                human_size(row["size"]),
            )
            for row in rows
        ]
        print(table(lines, heads))


@app.command("inspect")
def _inspect(
    image: Annotated[
        str, typer.Argument(help="An image of the store, docker://NAME, oci:, oci-archive:, ...")
    ],
    raw: Annotated[bool, typer.Option("--raw", help="Print the manifest's own bytes.")] = False,
    config: Annotated[
        bool, typer.Option("--config", help="Print the image config instead.")
    ] = False,
    platform: PlatformText = None,
    authfile: AuthFile = None,
    tls_verify: TlsVerify = True,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Show what an image is, as JSON."""
    _State.as_json = as_json
    with (
        _context(root=root, authfile=authfile, tls_verify=tls_verify) as context,
        context.store.in_use(),
    ):
        wanted = Platform.parse(platform) if platform else None
        manifest, raw_config, name = inspect(parse_location(image), wanted, context.tools.places)
        if raw:
            sys.stdout.write(manifest.raw.decode(errors="replace"))
        elif config:
            _print_json(json.loads(raw_config))
        else:
            _print_json(inspect_document(name, manifest, raw_config))


@app.command("rm")
def _rm(
    images: Annotated[list[str], typer.Argument(help="Images of the store.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Take images out of the store; `prune` frees their space."""
    _State.as_json = as_json
    with _context(root=root) as context, context.store.in_use():
        names = [_stored_name(image) for image in images]
        for name in names:  # all or none
            if context.store.find(name) is None:
                raise ImageError(
                    f"image `{name}` is not in the store",
                    hint="`ocis2i images` lists what is there",
                )
        for name in names:
            context.store.remove(name)
            if not as_json:
                print(name)
        if as_json:
            _print_json({"version": 1, "removed": [str(name) for name in names]})


@app.command("prune")
def _prune(
    everything: Annotated[
        bool, typer.Option("--all", help="Remove all images first: empties the store.")
    ] = False,
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Remove what nothing refers to: dead builds, blobs and layers out of use."""
    _State.as_json = as_json
    with _context(root=root) as context:
        done = prune(context.store, context.tools.settings, everything=everything)
        if done.busy:
            context.recorder.warn(
                "the store is in use: only dead builds were removed; try again later"
            )
        if as_json:
            _print_json(
                {
                    "version": 1,
                    "builds": done.builds,
                    "blobs": done.blobs,
                    "layers": done.layers,
                    "leftovers": done.leftovers,
                    "bytes": done.blob_bytes,
                    "busy": done.busy,
                }
            )
        else:
            print(
                f"removed {done.builds} dead builds, {done.layers} unpacked layers and "
                f"{done.blobs} blobs ({human_size(done.blob_bytes)})"
            )


@app.command("run", context_settings={"allow_interspersed_args": False})
def _run(
    image: Annotated[str, typer.Argument(help="An image of the store, or oci:, oci-archive:, ...")],
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run instead of the image's Cmd.")
    ] = None,
    env: Environment = None,
    volume: Volume = None,
    user: Annotated[str | None, typer.Option("--user", "-u", help="Who runs it.")] = None,
    workdir: Annotated[
        str | None, typer.Option("--workdir", "-w", metavar="DIR", help="Where to run it.")
    ] = None,
    entrypoint: Annotated[
        str | None, typer.Option("--entrypoint", help="Instead of the image's Entrypoint.")
    ] = None,
    isolation: Isolation = None,
    pull_policy: PullPolicyText = "if-not-present",
    authfile: AuthFile = None,
    tls_verify: TlsVerify = True,
    root: Root = None,
    log_level: LogLevel = 0,
) -> None:
    """Run an image rootless in the foreground; its exit code is ours. What it writes is lost."""
    with _context(
        root=root, log_level=log_level, quiet=True, authfile=authfile, tls_verify=tls_verify
    ) as context:
        spec = LaunchSpec(
            command=tuple(command or ()),
            entrypoint=entrypoint,
            environment=dict(map(parse_variable, env or ())),
            mounts=tuple(map(parse_volume, volume or ())),
            user=user,
            working_dir=_absolute(workdir, "--workdir"),
            isolation=isolation,
        )
        tools = context.tools
        with context.store.in_use():
            policy = PullPolicy.parse(pull_policy)
            found = obtain(parse_location(image), None, policy, tools.places)
            result = launch(found, spec, context.store, tools.settings, context.recorder)
    raise typer.Exit(result.exit_code)


@app.command("version")
def _version(as_json: AsJson = False) -> None:
    """Print the version."""
    if as_json:
        _print_json({"version": 1, "ocis2i": __version__, "python": sys.version.split()[0]})
    else:
        print(f"ocis2i {__version__}")


# --- the door ---------------------------------------------------------------------------------

_NOT_YET_VERBS = frozenset(
    "rebuild create generate usage diff ps status logs wait cancel resume doctor login logout "
    "upload explain lint completion".split()
)
_NOT_YET_FLAGS = frozenset(
    "--incremental --rm --callback-url --incremental-pull-policy --runtime-pull-policy "
    "--save-temp-dir --run --environment-file -E --assemble-runtime-user --image-scripts-url "
    "--use-config --allowed-uids -u --inject -i --cap-drop --runtime-image --runtime-artifact -a "
    "--network --as-dockerfile --add-host --scripts --location -l --keep-entrypoint "
    "--start --via-entrypoint --layers --prune-upload".split()
)
_DOCKER_ONLY_FLAGS = frozenset("--url -U --cert --key --ca --tls --tlsverify".split())


def main() -> NoReturn:
    """The console script."""
    _open_standard_streams()
    sys.exit(invoke(sys.argv[1:]))


def _open_standard_streams() -> None:
    """Opens those that the caller closed, or a blob would get the number that output is sent to."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
    # Python has none for a closed descriptor, whatever its stubs say.
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code. Prints every expected error."""
    _State.root, _State.recorder, _State.as_json = None, None, False
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A shell's background jobs ignore the first; nohup(1) means it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _interrupt)
    try:
        code = app(args=list(arguments), prog_name="ocis2i", standalone_mode=False)
    except Ocis2iError as error:
        return _fail(error)
    except typer.TyperException as error:
        # The command itself has not read its flags.
        _State.as_json = "--json" in arguments and arguments[0] != "run"
        return _fail(_usage_error(error))
    except (_ReaderGoneError, BrokenPipeError):
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        return 128 + signal.SIGPIPE
    except OSError as error:
        if not is_full(error):
            raise
        # Every file that is made can be the one too many.
        return _fail(explain(error, f"`{error.filename or 'the store'}` cannot be written"))
    except (KeyboardInterrupt, typer.Abort):
        return _fail(Interrupted(signal.SIGINT))
    return code if isinstance(code, int) else 0


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def _fail(error: Ocis2iError) -> int:
    code = exit_code_of(error)
    if _State.as_json:
        stages = _State.recorder.stages if _State.recorder else []
        _print_json(failure_document(error, code, stages))
    sys.stderr.write(f"error: {error.message}\n")
    if error.hint:
        sys.stderr.write(f"hint: {error.hint}\n")
    return code


def _usage_error(error: typer.TyperException) -> UsageError:
    """A complaint of the option parser in our own form; flags of s2i that are not there named."""
    format_message = getattr(error, "format_message", None)
    message = str(format_message() if format_message else error).strip().rstrip(".")
    option = getattr(error, "option_name", None)
    if option in _NOT_YET_FLAGS:
        return UsageError(
            f"`{option}` of s2i is not there yet in ocis2i {__version__}",
            hint="`ocis2i build --help` lists what is",
        )
    if option in _DOCKER_ONLY_FLAGS:
        return UsageError(
            f"`{option}` speaks of a Docker daemon, and ocis2i uses none", hint="leave it out"
        )
    verb = _unknown_verb(message)
    if verb in _NOT_YET_VERBS:
        return UsageError(
            f"`{verb}` is not there yet in ocis2i {__version__}",
            hint="`ocis2i --help` lists what is",
        )
    return UsageError(message[:1].lower() + message[1:], hint="see `ocis2i --help`")


def _unknown_verb(message: str) -> str | None:
    found = re.match(r"No such command '([^']*)'", message)
    return found[1] if found else None


def _print_json(document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, ensure_ascii=False)
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:  # a path that is no UTF-8, or a terminal that is not
        text = json.dumps(document, indent=2)
    sys.stdout.write(text + "\n")
