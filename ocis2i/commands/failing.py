"""The way back after a script failed: the command line that does the step again."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from ocis2i.command_words import MASK, masked_command, takes_pair, without_record
from ocis2i.failure import Failure

SHELL_FLAG = "--shell-on-failure"
_BUILDS = ("build", "rebuild")


def with_way_back(
    failure: Failure,
    arguments: Sequence[str],
    kept: Path | None = None,
    secrets: Sequence[str] = (),
    build: str = "",
) -> Failure:
    """The same with the command that repeats the step, if it has none, and what is `kept`; pure.

    `arguments` are those of the program that failed; `secrets` are values that must not be seen,
    wherever they stand; `build` is what the build is called.
    """
    failure = replace(failure, kept=str(kept) if kept else None)
    if failure.container:
        name = build if kept else failure.container
        words = ["ocis2i", "shell", *root_words(arguments), name]
        failure = replace(failure, enter=shlex.join(words))
    if failure.repeat:
        return failure
    return replace(failure, repeat=command_again(arguments, secrets))


def command_again(arguments: Sequence[str], secrets: Sequence[str] = ()) -> str:
    """The command line to type again, without secrets; a build with a shell after its failure."""
    words = without_secrets(without_record(arguments), secrets)
    verb = next((word for word in words if word in _BUILDS), None)
    # A shell reads standard input, which has the source then.
    if verb and SHELL_FLAG not in words and not _takes_input(words):
        words.insert(words.index(verb) + 1, SHELL_FLAG)
    return shlex.join(["ocis2i", *words])


def root_words(arguments: Sequence[str]) -> list[str]:
    """The words that name another store than the usual one, as they were typed last."""
    found: list[str] = []
    for before, word in pairwise(("", *arguments)):
        if before == "--root":
            found = [before, word]
        elif word.startswith("--root="):
            found = [word]
    return found


def _takes_input(words: Sequence[str]) -> bool:
    return any(word == "-" and before != "--events" for before, word in pairwise(("", *words)))


def without_secrets(arguments: Sequence[str], secrets: Sequence[str] = ()) -> list[str]:
    """The arguments without secrets (`masked_command`), as they can be typed again.

    Of a variable or a parameter the name stays alone: then the caller's variable of that name is
    taken. `***` stands where something has to be filled in.
    """
    words = masked_command(arguments, secrets)
    alone = f"={MASK}"
    return [
        word.removesuffix(alone) if takes_pair(before, word) else word
        for before, word in pairwise(("", *words))
    ]
