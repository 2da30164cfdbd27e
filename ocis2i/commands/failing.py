"""The way back after a script failed: the command line that does the step again."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ocis2i.errors import Ocis2iError
from ocis2i.failure import Failure, screen
from ocis2i.report import printable
from ocis2i.s2i import redact_url

SHELL_FLAG = "--shell-on-failure"
_BUILDS = ("build", "rebuild")
# Their values are secret, or may be; without one `--build-env` takes the caller's variable.
_SECRET_VALUES = ("--build-env", "--parameter", "-P")


def with_way_back(failure: Failure, arguments: Sequence[str], kept: Path | None = None) -> Failure:
    """The same with the command that repeats the step, if it has none, and what is `kept`; pure.

    `arguments` are those of the program that failed.
    """
    failure = replace(failure, kept=str(kept) if kept else None)
    if failure.repeat:
        return failure
    return replace(failure, repeat=command_again(arguments))


def tell(error: Ocis2iError, arguments: Sequence[str], *, quiet: bool) -> None:
    """Writes an error, its hint and what is known of its script to standard error."""
    if error.failure:
        error.failure = with_way_back(error.failure, arguments)
    said = f"{error.message}\n{error.hint or ''}"
    lines = [f"error: {error.message}"]
    lines += [f"hint: {error.hint}"] if error.hint else []
    lines += screen(error.failure, said=said, quiet=quiet) if error.failure else []
    sys.stderr.write("".join(f"{printable(line)}\n" for line in lines))


def command_again(arguments: Sequence[str]) -> str:
    """The command line to type again, without secrets; a build with a shell after its failure."""
    words = list(without_secrets(arguments))
    verb = next((word for word in words if word in _BUILDS), None)
    if verb and SHELL_FLAG not in words:
        words.insert(words.index(verb) + 1, SHELL_FLAG)
    return shlex.join(["ocis2i", *words])


def without_secrets(arguments: Sequence[str]) -> list[str]:
    """The arguments with the values of secret variables, and passwords in URLs, taken out.

    The caller's variable of the same name stands in for a value that was there.
    """
    words: list[str] = []
    for word in arguments:
        before = words[-1] if words else ""
        flag, equals, value = word.partition("=")
        of_parameter = before in ("--parameter", "-P") or word.startswith(("--parameter=", "-P"))
        if of_parameter and "=@" in word and "=@@" not in word:  # the value is elsewhere
            words.append(word)
        elif before in _SECRET_VALUES or (word.startswith("-P") and equals):
            words.append(word.partition("=")[0])
        elif equals and flag in _SECRET_VALUES:
            words.append(f"{flag}={value.partition('=')[0]}")
        else:
            words.append(redact_url(word))
    return words
