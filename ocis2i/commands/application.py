"""The application: its verbs, the flags before them, and what it says to wrong words.

A verb's module is loaded when the verb is on the command line. Until then there are its name and
its help, which are all that a list of verbs and the completion of their names take.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Annotated, Any, NamedTuple

import typer
import typer.main

from ocis2i import __version__
from ocis2i.commands.flags import DockerFlags, command_of
from ocis2i.commands.state import ReaderGoneError, State
from ocis2i.commands.words import Command, Group, is_on
from ocis2i.errors import Interrupted, UsageError


class Verb(NamedTuple):
    """Where a verb is: the `function` of a `module` of `ocis2i.commands`."""

    module: str
    function: str
    help: str
    settings: Mapping[str, Any] = {}


VERBS = {
    "build": Verb(
        "building", "build_image", "Build an image from a source and an S2I builder image."
    ),
    "rebuild": Verb(
        "rebuilding",
        "rebuild_image",
        "Build an image again, from the commit and the builder that its labels name.",
    ),
    "usage": Verb(
        "usage", "show_usage", "Show what a builder image says about itself, by its usage script."
    ),
    "explain": Verb(
        "explaining",
        "explain_builder",
        "Say what a builder image is and which parameters it takes, in English or Chinese.",
    ),
    "lint": Verb(
        "linting",
        "lint_builder",
        "Find faults in the S2I scripts of a directory or of a builder image.",
    ),
    "create": Verb(
        "creating",
        "create_builder",
        "Write the files of a new builder image: scripts, Dockerfile, README and a test.",
    ),
    "generate": Verb(
        "generating",
        "generate",
        "Experimental: write a Dockerfile for a builder image; the source is put beside it later.",
    ),
    "ps": Verb("builds", "list_builds", "List the builds that are running, with -a all."),
    "status": Verb("builds", "show_status", "Say what has become of a build, and what is next."),
    "logs": Verb("builds", "show_logs", "Show what was said in a build, with -f until its end."),
    "wait": Verb(
        "builds", "wait_for_builds", "Wait until builds are over; the exit code is the build's."
    ),
    "cancel": Verb("builds", "cancel_build", "End a running build, and wait until it is gone."),
    "resume": Verb(
        "resuming",
        "resume_build",
        "Push or write the image of a build that broke off after assemble; nothing runs again.",
    ),
    "shell": Verb(
        "entering",
        "open_kept",
        "Open a shell, or run a command, in the container of a build that --keep-failed kept.",
        {"context_settings": {"allow_interspersed_args": False}},
    ),
    "pull": Verb("images", "pull_image", "Fetch an image from its registry into the store."),
    "push": Verb(
        "images", "push_image", "Send an image of the store to a registry, or write it to a path."
    ),
    "login": Verb(
        "login", "log_in", "Check a user's password at a registry and keep it where podman does."
    ),
    "logout": Verb("login", "log_out", "Forget the credentials of a registry."),
    "upload": Verb(
        "upload",
        "upload_source",
        "Put a source or a file into a registry, for `build oci-artifact://...`.",
    ),
    "fetch": Verb(
        "fetching",
        "fetch_source",
        "Put a source into a directory, and its builder into the store, for a build without "
        "credentials.",
    ),
    "kube": Verb(
        "kube",
        "kube",
        "Build in a cluster: kube render KIND SOURCE BUILDER TAG, kube run SOURCE BUILDER TAG.",
    ),
    "attach": Verb(
        "upload", "attach_file", "Attach a file, such as an SBOM, to an image in its registry."
    ),
    "referrers": Verb(
        "upload", "list_referrers", "List what is attached to an image in its registry."
    ),
    "index": Verb(
        "index",
        "index_images",
        "Join images of several platforms in an index: index create NAME IMAGE...",
    ),
    "images": Verb("images", "list_images", "List the images of the store."),
    "inspect": Verb("images", "inspect_image", "Show what an image is, as JSON."),
    "diff": Verb(
        "comparing",
        "show_difference",
        "Show what a build added, changed and removed: by directory, owner and size.",
    ),
    "report": Verb(
        "reporting", "write_report", "Write a page about a build, for a browser: one HTML file."
    ),
    "rm": Verb(
        "images", "remove_images", "Take images out of the store; `prune` frees their space."
    ),
    "prune": Verb(
        "pruning",
        "prune_store",
        "Remove what nothing refers to: dead builds, blobs and layers out of use.",
    ),
    "run": Verb(
        "running",
        "run_image",
        "Run an image rootless in the foreground; its exit code is ours. What it writes is lost.",
        {"context_settings": {"allow_interspersed_args": False}},
    ),
    "doctor": Verb(
        "doctor",
        "examine_host",
        "Say what builds can have on this host, and what would give them more.",
    ),
    "completion": Verb(
        "program",
        "print_completion",
        "Print the script that completes ocis2i's verbs and flags in a shell.",
    ),
    "help": Verb(
        "program",
        "show_help",
        "List the verbs, or the flags of one: `help build` is `build --help`.",
    ),
    "version": Verb("program", "print_version", "Print the version."),
}


class Program(Group):
    """The group of all verbs; its `commands` know no more than their help."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.commands = {name: Command(name, help=verb.help) for name, verb in VERBS.items()}
        self._loaded: dict[str, Any] = {}

    def verb(self, name: str) -> Any:
        """The command `name` with its flags; `None` for an unknown one."""
        if name in VERBS and name not in self._loaded:
            module, function, text, settings = VERBS[name]
            called = getattr(import_module(f"ocis2i.commands.{module}"), function)
            self._loaded[name] = command_of(name, called, text, **settings)
        return self._loaded.get(name)

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        name, known, rest = super().resolve_command(ctx, args)
        return name, self.verb(name) if name and known else None, rest


app = typer.Typer(
    name="ocis2i",
    help="Source-to-Image builds that write OCI images directly: no daemon, no root.",
    cls=Program,
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _common(
    context: typer.Context,
    root: Annotated[
        str | None,
        typer.Option("--root", metavar="DIR", help="The store's directory, for every verb."),
    ] = None,
    log_level: Annotated[
        int,
        typer.Option("--loglevel", min=0, max=5, help="0 to 5: how much to tell on stderr."),
    ] = 0,
    url: Annotated[str | None, typer.Option("--url", "-U", hidden=True)] = None,
    cert: Annotated[str | None, typer.Option("--cert", hidden=True)] = None,
    key: Annotated[str | None, typer.Option("--key", hidden=True)] = None,
    ca: Annotated[str | None, typer.Option("--ca", hidden=True)] = None,
    tls: Annotated[bool, typer.Option("--tls", hidden=True)] = False,
    tlsverify: Annotated[bool, typer.Option("--tlsverify", hidden=True)] = False,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    State.root, State.log_level = root, log_level
    docker = {"url": url, "cert": cert, "key": key, "ca": ca, "tls": tls, "tlsverify": tlsverify}
    State.docker_only = DockerFlags(
        given=frozenset(name for name, value in docker.items() if value)
    ).docker_only()
    if version:
        print(f"ocis2i {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        sys.stderr.write(context.get_help() + "\n")
        raise typer.Exit(UsageError.exit_code)
    _set_defaults(context, context.invoked_subcommand)


def _set_defaults(context: typer.Context, name: str) -> None:
    """What the user's own settings say in place of the flags of the verb `name`."""
    takes = {one.name for one in context.command.verb(name).params}  # type: ignore[attr-defined]
    # Verbs that take none of the settings need not load what reads them.
    if "rootfs" not in takes:
        return
    from ocis2i import preferences  # noqa: PLC0415 - see above

    if takes & preferences.PARAMETERS:
        context.default_map = {name: preferences.defaults(os.environ)}


def run(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code.

    Raises every expected error: `UsageError` for what is no command line.
    """
    # A complaint of the option parser comes before any flag is read.
    State.as_json = _wants_json(arguments)
    try:
        code = app(args=list(arguments), prog_name="ocis2i", standalone_mode=False)
    except typer.TyperException as error:
        raise _usage_error(error) from error
    except typer.Abort as error:
        raise Interrupted(signal.SIGINT) from error
    except SystemExit as error:
        # Typer ends with 1 where nobody reads any more what is written, as its own help.
        if isinstance(error.__context__, BrokenPipeError):
            raise ReaderGoneError from error
        raise
    return code if isinstance(code, int) else 0


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` is a flag of the verb, and not a value or an argument.

    Never for `run`: there it belongs to the command that is run.
    """
    if not _asks_for_json(arguments):
        return False
    group: Any = typer.main.get_command(app)
    words = list(arguments)
    if _asks_for_json(_flags(group, words)):
        return True
    verb_name = words.pop(0) if words else ""
    command = group.verb(verb_name)
    if command is None:
        return _asks_for_json(words)
    return verb_name != "run" and _asks_for_json(_flags(command, words))


def _asks_for_json(words: Iterable[str]) -> bool:
    """Whether the last `--json` among them turns it on."""
    said = [word for word in words if word.partition("=")[0] == "--json"]
    return bool(said) and is_on(said[-1])


def _flags(command: Any, words: list[str]) -> Iterator[str]:
    """Takes the flags of `command` out of `words`, with their values, and yields them.

    As far as its own go: to `--`, or to the verb.
    """
    with_value = {
        name
        for parameter in command.params
        if not getattr(parameter, "is_flag", True)
        for name in parameter.opts
    }
    while words:
        if not words[0].startswith("-") and not command.allow_interspersed_args:
            return
        word = words.pop(0)
        if word == "--":
            return
        if word.startswith("-"):
            yield word
            if word in with_value and words:
                words.pop(0)


# --- what is not there ------------------------------------------------------------------------

_NOT_YET_FLAGS = frozenset({"--layers"})


def _usage_error(error: typer.TyperException) -> UsageError:
    """A complaint of the option parser in our own form; flags of s2i that are not there named."""
    format_message = getattr(error, "format_message", None)
    message = str(format_message() if format_message else error).strip().rstrip(".")
    option = getattr(error, "option_name", None)
    if option in _NOT_YET_FLAGS:
        return UsageError(
            f"`{option}` is not there yet in ocis2i {__version__}",
            hint="`ocis2i build --help` lists what is",
        )
    context = getattr(error, "ctx", None)
    path = context.command_path if context else "ocis2i"
    return UsageError(message[:1].lower() + message[1:], hint=f"see `{path} --help`")
