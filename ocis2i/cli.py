"""The door: what every start does first and last, and the exit code the program ends with.

stdout carries the result and nothing else, stderr everything a person reads meanwhile. What the
command line means is found by `ocis2i.commands.application`, which takes longer to load.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ocis2i import __version__, completion
from ocis2i.commands.signals import SIGNALS
from ocis2i.commands.state import ReaderGoneError, State, print_json
from ocis2i.errors import Interrupted, Ocis2iError, exit_code_of


def main() -> NoReturn:
    """The console script."""
    _open_standard_streams()
    if completion.VARIABLE in os.environ:
        completion.enable()
    code = invoke(sys.argv[1:])
    if _settle():
        # Python would take every object apart first, which takes longer than many a verb.
        os._exit(code)
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


def _settle() -> bool:
    """The exit code is decided: a signal from now on changes nothing. Whether all was written.

    Python's own end gives signals back to the kernel's default, which would show another code.
    """
    written = True
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # who reads a full pipe slowly can still be left
            written = False
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return written


def invoke(arguments: Sequence[str]) -> int:
    """Runs one command line; returns its exit code. Prints every expected error."""
    State.reset()
    State.arguments = tuple(arguments)
    try:
        return _run(arguments)
    except Ocis2iError as error:
        return _fail(error)
    except (ReaderGoneError, BrokenPipeError):
        _record(Interrupted(signal.SIGPIPE), 128 + signal.SIGPIPE)
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        return 128 + signal.SIGPIPE
    except OSError as error:
        # Every file that is made can be the one too many.
        from ocis2i.fs import explain, is_full  # noqa: PLC0415 - takes long to load

        if not is_full(error):
            _record_bug(error)
            raise
        what = f"`{error.filename}`" if error.filename else "the store, or standard output,"
        return _fail(explain(error, f"{what} cannot be written"))
    except KeyboardInterrupt:
        return _fail(Interrupted(signal.SIGINT))
    except Exception as error:
        _record_bug(error)
        raise


def _run(arguments: Sequence[str]) -> int:
    # Asked for by scripts again and again: it is not worth to load an application.
    if [*arguments] == ["version"] and completion.VARIABLE not in os.environ:
        print(f"ocis2i {__version__}")
        return 0
    from ocis2i.commands.ahead import agent_ahead  # noqa: PLC0415 - takes long to load

    with agent_ahead(arguments):
        from ocis2i.commands import application  # noqa: PLC0415 - takes longest to load

        return application.run(arguments)


def _fail(error: Ocis2iError) -> int:
    from ocis2i.report import tell  # noqa: PLC0415 - takes long to load

    code = exit_code_of(error)
    if error.failure:
        from ocis2i.commands.failing import with_way_back  # noqa: PLC0415 - few builds load it

        kept = State.journal.kept if State.journal else None
        build = State.journal.name if State.journal else ""
        error.failure = with_way_back(
            error.failure, State.arguments, kept, State.secrets, build=build
        )
    document = _record(error, code)
    if State.as_json and document:
        with suppress(OSError):  # it may be what failed; standard error still says so
            print_json(document)
    with suppress(OSError):  # its terminal may be closed; the exit code still says so
        tell(error, sys.stderr, quiet=State.quiet)
    return code


def _record(error: Ocis2iError, code: int) -> dict[str, Any] | None:
    """The document of a failure, where somebody wants it, after it was written down."""
    if not State.as_json and State.journal is None:
        return None
    from ocis2i.documents import failure_document  # noqa: PLC0415 - takes long to load

    stages = State.recorder.stages if State.recorder else []
    network = State.recorder.network if State.recorder else None
    document = failure_document(error, code, stages, network)
    if State.journal is None:
        return document
    from ocis2i.commands.recording import close_journal  # noqa: PLC0415 - takes long to load

    return close_journal(document)


def _record_bug(error: BaseException) -> None:
    """Only the record is told: for people there is the traceback."""
    _record(Ocis2iError(f"a bug in ocis2i: {type(error).__name__}: {error}"), 1)
