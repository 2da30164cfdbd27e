"""What is known of a script that failed, as one screen for people and one object for programs."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from typing import Any

from ocis2i.lazy_dataclass import dataclass

# What a screen shows of a line; the document has it whole.
_LONGEST_LINE = 400
# How many of the last lines are shown again, where all of them were shown as they came.
_AGAIN_LINES = 10
WIDTH = 100
LEAST_WIDTH = 40
_MAY_BE_SAID = ("meaning", "way out")
_INDENT = " " * 13


@dataclass(frozen=True, slots=True)
class Failure:
    """A script that failed in a container.

    `origin` says where the script came from, `exit_code` is its own, `None` when it never began.
    `tail` are the last lines of its output, of `lines` in all. `kept` is the directory of the
    build's record, with all that was printed, `repeat` the command that does the step again.
    `container` is the directory of the script's container where it stays, `enter` the command that
    goes into it.
    """

    stage: str
    script: str
    origin: str
    user: str
    cwd: str
    isolation: str
    exit_code: int | None
    meaning: str
    way_out: str | None = None
    tail: tuple[str, ...] = ()
    lines: int = 0
    kept: str | None = None
    repeat: str | None = None
    container: str | None = None
    enter: str | None = None

    def masked(self, mask: Callable[[str], str]) -> Failure:
        """The same with every text gone through `mask`."""
        texts: dict[str, Any] = {
            one.name: mask(value)
            for one in fields(self)
            if isinstance(value := getattr(self, one.name), str)
        }
        return replace(self, **texts, tail=tuple(map(mask, self.tail)))

    def document(self) -> dict[str, Any]:
        """As `failure` of the `--json` document; see docs/json.md."""
        return {
            "stage": self.stage,
            "script": self.script,
            "from": self.origin,
            "user": self.user,
            "cwd": self.cwd,
            "isolation": self.isolation,
            "exit_code": self.exit_code,
            "meaning": self.meaning,
            "way_out": self.way_out,
            "tail": list(self.tail),
            "kept": self.kept,
            "repeat": self.repeat,
            "container": self.container,
            "enter": self.enter,
        }


def screen(
    failure: Failure, *, said: str = "", quiet: bool = False, width: int = WIDTH
) -> Iterator[str]:
    """The lines of the explanation, each indented, without what was `said` already.

    Sentences are cut into lines of `width` columns, of `LEAST_WIDTH` to `WIDTH`.
    The end of the output is there again, unless that was all and is still above. A `quiet` program
    has shown nothing but the end, and just now.
    """
    code = f"exit code {failure.exit_code}: " if failure.exit_code else ""
    facts = (
        ("stage", failure.stage),
        ("script", f"{failure.script} ({failure.origin})"),
        ("ran as", f"{failure.user} in {failure.cwd}, isolation {failure.isolation}"),
        ("meaning", code + failure.meaning),
        ("way out", failure.way_out),
        ("kept", f"{failure.kept}, with all that was printed" if failure.kept else None),
    )
    for name, text in facts:
        if text and not (name in _MAY_BE_SAID and text in said):
            yield from _wrapped(name, text, max(LEAST_WIDTH, min(width, WIDTH)))
    # Never cut into lines: they are there to be copied.
    copied = (
        ("container", failure.container),
        ("enter", failure.enter),
        ("repeat", failure.repeat),
    )
    for name, text in copied:
        if text:
            yield f"  {name:<11}{_one_line(text)}"
    yield from _output(failure, quiet=quiet)


def _output(failure: Failure, *, quiet: bool) -> Iterator[str]:
    if not failure.lines:
        yield f"  {'output':<11}it printed nothing"
    elif not failure.tail or quiet or failure.lines <= _AGAIN_LINES:
        yield f"  {'output':<11}is above"
    else:
        last = failure.tail[-_AGAIN_LINES:]
        yield f"  {'output':<11}the last {len(last)} of {failure.lines} lines, again:"
        for line in last:
            more = " ..." if len(line) > _LONGEST_LINE else ""
            yield f"  | {_one_line(line[:_LONGEST_LINE])}{more}"


def _wrapped(name: str, text: str, width: int) -> Iterator[str]:
    yield from textwrap.wrap(
        _one_line(text),
        width,
        initial_indent=f"  {name:<11}",
        subsequent_indent=_INDENT,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _one_line(text: str) -> str:
    return text.replace("\n", "\\n")
