"""Pages of `docs/` that are made out of rows which the tests take what they expect from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

PROJECT = Path(__file__).parent.parent


def line(*cells: str) -> str:
    """A line of a table."""
    return "".join(f"| {cell(one)} " for one in cells) + "|\n"


def cell(text: str) -> str:
    """Text as a cell of a table has it."""
    return text.replace("|", "\\|").replace("\n", " ")


def check_parser(program: str) -> argparse.ArgumentParser:
    """What the scripts that write pages understand."""
    about = "Writes the page, or with `--check` only says whether it is current; the exit code."
    parser = argparse.ArgumentParser(prog=program, description=about)
    parser.add_argument("--check", action="store_true", help="write nothing; 1 if not current")
    return parser


def write_or_check(path: Path, page: str, *, program: str, check: bool) -> int:
    """Writes a page, or says that it is not what `program` would write; the exit code."""
    if not check:
        path.write_text(page)
    elif not path.exists() or path.read_text() != page:
        where = path.relative_to(PROJECT)
        sys.stderr.write(f"error: {where} is not current\nhint: run scripts/{program}\n")
        return 1
    return 0


def write_page(
    path: Path, render: Callable[[], str], program: str, arguments: Sequence[str] | None = None
) -> int:
    """The command line of a script that writes one page; its exit code."""
    options = check_parser(program).parse_args(arguments)
    return write_or_check(path, render(), program=program, check=options.check)
