"""Makes `docs/host-matrix.md` out of the hosts and attempts of `tests/host_rows.py`.

The tests take what they expect from the same rows; here they are only told. Neither pytest nor
ocis2i is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.host_rows import ATTEMPTS, CELLS, RUNGS, Attempt, Cell
from tests.pages import PROJECT, line, write_page

PAGE = PROJECT / "docs" / "host-matrix.md"

INTRODUCTION = """\
# Where it runs, and what scripts cannot do there

This page is written by `scripts/host_matrix` from `tests/host_rows.py`, and so is what the tests
expect; a test says when it is not current. What each rung of the ladder needs is in
[isolation.md](isolation.md), what is a threat and what is not in [security.md](security.md).

## Hosts

On each of them the same build is done: [test_host_matrix.py](../tests/e2e/test_host_matrix.py).
Where it works the image has the same layers, byte for byte, as on an unrestricted host. Where it
does not, it ends with the exit code and the sentence given here. The restrictions are real ones,
made by the user who runs the tests in namespaces of their own; those marked with ¹ take root.

| host | how the test makes it | answer |
| --- | --- | --- |
"""

ATTEMPTS_INTRODUCTION = """
## What a script tries

Each attempt is made by an assemble script on each rung: root in the container where that is nobody
outside (runc, crun, builtin, buildah), uid 1001 or root in a tree (chroot, by root in a Docker
container), uid 1000660000 (in-place, in a restricted pod). *One user id* is a host that gives no
others, *nested* such a one whose /proc has hidden parts. What counts is the effect outside, and not
what the script is told: [test_escapes.py](../tests/e2e/test_escapes.py).

"""


def answer(cell: Cell) -> str:
    """What ocis2i does on a host, in words."""
    flags = f" (`{' '.join(cell.flags)}`)" if cell.flags else ""
    if cell.by:
        return f"builds by {cell.by}{flags}" + (f": “{cell.said}”" if cell.said else "")
    way_out = f" Way out: “{cell.way_out}”" if cell.way_out else ""
    return f"exit code {cell.code}{flags}: “{cell.refusal}”.{way_out}"


def render(cells: Sequence[Cell] = CELLS, attempts: Sequence[Attempt] = ATTEMPTS) -> str:
    """The page."""
    parts = [INTRODUCTION]
    parts += (line(one.host + "¹" * one.root, one.made, answer(one)) for one in cells)
    parts.append(ATTEMPTS_INTRODUCTION)
    parts.append(line("attempt", *RUNGS.values()) + line("---", *("---" for _ in RUNGS)))
    notes = list(dict.fromkeys(note for one in attempts for note in _notes(one).values()))
    for one in attempts:
        verdicts = (_verdict(one, rung, notes) for rung in RUNGS)
        parts.append(line(one.what, *verdicts))
    parts.append("\n")
    parts += (f"{number}. {note}.\n" for number, note in enumerate(notes, 1))
    return "".join(parts)


def _notes(attempt: Attempt) -> dict[str, str]:
    """What is to be said of rungs that are not wholly closed."""
    notes = {rung: f"Not protected here: {why}" for rung, why in attempt.open.items()}
    return notes | {rung: f"Unless {what}" for rung, what in attempt.unless.items()}


def _verdict(attempt: Attempt, rung: str, notes: Sequence[str]) -> str:
    note = _notes(attempt).get(rung)
    if note is None:
        return "fails"
    verdict = "not protected here" if rung in attempt.open else "fails"
    return f"{verdict} ({notes.index(note) + 1})"


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or with `--check` only says whether it is current; the exit code."""
    return write_page(PAGE, render, "host_matrix", arguments)
