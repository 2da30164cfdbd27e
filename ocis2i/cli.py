"""The command line: the application, what it refuses, and the exit code it ends with.

stdout carries the result and nothing else, stderr everything a person reads meanwhile.
"""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer

from ocis2i import __version__, completion, preferences
from ocis2i.commands import building, doctor, images, s2i_verbs
from ocis2i.commands.context import ReaderGoneError, State, print_json
from ocis2i.commands.flags import DockerFlags, verb
from ocis2i.commands.words import Group
from ocis2i.documents import failure_document
from ocis2i.errors import Interrupted, Ocis2iError, UsageError, exit_code_of
from ocis2i.fs import explain, is_full
from ocis2i.report import printable

app = typer.Typer(
    name="ocis2i",
    help="Source-to-Image builds that write OCI images directly: no daemon, no root.",
    cls=Group,
    no_args_is_help=False,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

verb(app, "build")(building.build_image)
verb(app, "rebuild")(building.rebuild_image)
verb(app, "usage")(s2i_verbs.show_usage)
verb(app, "create")(s2i_verbs.create_builder)
verb(app, "generate")(s2i_verbs.generate)
verb(app, "pull")(images.pull_image)
verb(app, "push")(images.push_image)
verb(app, "images")(images.list_images)
verb(app, "inspect")(images.inspect_image)
verb(app, "rm")(images.remove_images)
verb(app, "prune")(images.prune_store)
verb(app, "run", context_settings={"allow_interspersed_args": False})(images.run_image)
verb(app, "doctor")(doctor.examine_host)
verb(app, "completion")(s2i_verbs.print_completion)
verb(app, "help")(s2i_verbs.show_help)
verb(app, "version")(s2i_verbs.print_version)


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
    commands = getattr(context.command, "commands", {})
    takes = {one.name for one in commands[name].params} if name in commands else set()
    if takes & preferences.PARAMETERS:
        context.default_map = {name: preferences.defaults(os.environ)}


# --- the door ---------------------------------------------------------------------------------

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_NOT_YET_VERBS = frozenset(
    "diff ps status logs wait cancel resume login logout upload explain lint".split()
)
_NOT_YET_FLAGS = frozenset("--start --layers".split())


def main() -> NoReturn:
    """The console script."""
    _open_standard_streams()
    if completion.VARIABLE in os.environ:
        completion.enable()
    code = invoke(sys.argv[1:])
    _settle()
    sys.exit(code)


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


def _settle() -> None:
    """The exit code is decided: a signal from now on changes nothing.

    Python's own end gives signals back to the kernel's default, which would show another code.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # who reads a full pipe slowly can still be left
            stream.flush()
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code. Prints every expected error."""
    State.reset()
    # A complaint of the option parser comes before any flag is read.
    State.as_json = _wants_json(arguments)
    try:
        with _signals_raise():
            code = app(args=list(arguments), prog_name="ocis2i", standalone_mode=False)
    except Ocis2iError as error:
        return _fail(error)
    except typer.TyperException as error:
        return _fail(_usage_error(error))
    except (ReaderGoneError, BrokenPipeError):
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


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Signals raise `Interrupted` meanwhile; afterwards they do what they did before.

    So a second one finds no half-told error to break into.
    """
    before = {}
    try:
        for number in _SIGNALS:
            # A shell's background jobs ignore the first; nohup(1) means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, _interrupt)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(number: int, _: FrameType | None) -> None:
    raise Interrupted(number)


def _wants_json(arguments: Sequence[str]) -> bool:
    """Whether `--json` is a flag of the verb, and not a value or an argument.

    Never for `run`: there it belongs to the command that is run.
    """
    if "--json" not in arguments:
        return False
    group = typer.main.get_command(app)
    words = list(arguments)
    if "--json" in list(_flags(group, words)):
        return True
    verb_name = words.pop(0) if words else ""
    command = getattr(group, "commands", {}).get(verb_name)
    if command is None:
        return "--json" in words
    return verb_name != "run" and "--json" in list(_flags(command, words))


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


def _fail(error: Ocis2iError) -> int:
    code = exit_code_of(error)
    if State.as_json:
        stages = State.recorder.stages if State.recorder else []
        print_json(failure_document(error, code, stages))
    sys.stderr.write(f"error: {printable(error.message)}\n")
    if error.hint:
        sys.stderr.write(f"hint: {printable(error.hint)}\n")
    return code


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
    verb_name = _unknown_verb(message)
    if verb_name in _NOT_YET_VERBS:
        return UsageError(
            f"`{verb_name}` is not there yet in ocis2i {__version__}",
            hint="`ocis2i --help` lists what is",
        )
    return UsageError(message[:1].lower() + message[1:], hint="see `ocis2i --help`")


def _unknown_verb(message: str) -> str | None:
    found = re.match(r"No such command '([^']*)'", message)
    return found[1] if found else None
