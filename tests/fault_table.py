"""Makes `docs/registry-faults.md` out of the rows of `tests/fault_rows.py`.

The tests take what they expect from the same rows; here they are only told. Neither pytest nor
ocis2i is imported.
"""

from __future__ import annotations

from collections.abc import Sequence

from tests.fault_rows import BUILDS, PULLS, PUSHES, Row
from tests.pages import PROJECT, line, write_page

PAGE = PROJECT / "docs" / "registry-faults.md"

INTRODUCTION = """\
# What registries do wrong, and what ocis2i makes of it

This page is written by `scripts/fault_table` from `tests/fault_rows.py`, and so is what the tests
expect; a test says when it is not current. How registries are found and logged in to is in
[registries.md](registries.md).

Each row is tried with the program, a real registry and a proxy between them that lets this go wrong
(`tests/fakes/fault_proxy.py`): [test_fault_table.py](../tests/e2e/test_fault_table.py). The proxy
wants tokens, and they are good for one repository and for what they were asked for, no more. What
is not said to be *always* happens once. Then the program ends with 0, with the default settings.
What happens always ends it within 30 seconds with another exit code and the one line that is
quoted; then no tag points to a part of an image, and the store has no part of a blob under its
digest.
"""

CHAPTERS = (("Pushing", PUSHES), ("Pulling", PULLS), ("Building", BUILDS))


def answer(row: Row) -> str:
    """What ocis2i does, in words."""
    if row.recovers:
        flags = f" (`{' '.join(row.flags)}`)" if row.flags else ""
        return f"{row.recovers}{flags}"
    return f"ends: “{row.said}”"


def render(chapters: Sequence[tuple[str, Sequence[Row]]] = CHAPTERS) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for title, rows in chapters:
        parts.append(f"\n## {title}\n\n" + line("fault", "what ocis2i does") + line("---", "---"))
        parts += (line(row.fault, answer(row)) for row in rows)
    return "".join(parts)


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or with `--check` only says whether it is current; the exit code."""
    return write_page(PAGE, render, "fault_table", arguments)
