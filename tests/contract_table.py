"""Makes `docs/s2i.md` out of the rows of the contract and the tests that say they show them.

The tests are read as syntax trees and not imported: no pytest, no ocis2i is needed for it.
"""

from __future__ import annotations

import ast
import difflib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.contract_rows import FLAGS, GROUPS, LABELS, Group, Row
from tests.pages import PROJECT, cell, check_parser, write_or_check

TESTS = PROJECT / "tests" / "e2e"
PAGE = PROJECT / "docs" / "s2i.md"

MODULE = "tests.contract"
VERDICTS = {
    "same": "same",
    "better": "better",
    "refused": "refused",
    "ignored": "accepted and ignored",
}

INTRODUCTION = """\
# source-to-image, row by row

What [source-to-image](https://github.com/openshift/source-to-image) v1.6.3 does, and what ocis2i
does in its place. Each row names the end-to-end tests that show it.

| verdict | meaning |
| --- | --- |
| same | ocis2i does what is said in the row |
| better | ocis2i does it otherwise, and says how |
| refused | ocis2i ends with an error, and says why |
| accepted and ignored | ocis2i warns and goes on without |

This page is written by `scripts/contract_table` from the marks on the tests; a test says when it
is not current.
"""


class ContractError(Exception):
    """A mark that says nothing that the table could use; the message names file and line."""


@dataclass(frozen=True, slots=True)
class Mark:
    """What one mark on one test says. `file` is relative to the project."""

    verdict: str
    row: str
    words: str
    section: str
    file: str
    line: int
    test: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A row of the table: the row of the contract and all marks for it."""

    row: Row
    marks: tuple[Mark, ...]

    @property
    def verdict(self) -> str:
        """The verdict in words; the differences that tests name, each once; empty if untested."""
        kinds = {mark.verdict for mark in self.marks}
        if not kinds:
            return ""
        words = dict.fromkeys(mark.words for mark in self.marks if mark.words)
        kind = next(kind for kind in ("refused", "ignored", "better", "same") if kind in kinds)
        return f"{VERDICTS[kind]}: {'; '.join(words)}" if words else VERDICTS[kind]


# --- reading the tests ----------------------------------------------------------------------------


def read_marks(source: str, file: str) -> list[Mark]:
    """The marks of one file of tests, in its order.

    Raises `ContractError` for a mark that stands on no test, or whose words are no literals.
    """
    tree = ast.parse(source, file)
    names = _names_of(tree)
    if not names:
        return []
    found = list(_marks_below(tree.body, names, [], file))
    seen = {(mark.line, mark.row) for mark in found}
    for call in _calls(tree, names):
        if (call.lineno, _literals(call, names, file)[1]) not in seen:
            raise ContractError(f"{file}:{call.lineno}: the mark is on no test")
    return found


def _names_of(tree: ast.Module) -> dict[str, str]:
    """What a file calls the marks: its own name to the mark's."""
    return {
        alias.asname or alias.name: alias.name
        for node in tree.body
        if isinstance(node, ast.ImportFrom) and node.module == MODULE
        for alias in node.names
        if alias.name in VERDICTS
    }


def _marks_below(
    body: Iterable[ast.stmt], names: Mapping[str, str], above: Sequence[ast.Call], file: str
) -> Iterator[Mark]:
    for node in body:
        if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            calls = [*above, *_decorator_calls(node, names)]
            yield from _marks_below(node.body, names, calls, file)
        elif isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
            for call in (*above, *_decorator_calls(node, names)):
                verdict, row, words, section = _literals(call, names, file)
                yield Mark(verdict, row, words, section, file, call.lineno, node.name)


def _decorator_calls(
    node: ast.ClassDef | ast.FunctionDef, names: Mapping[str, str]
) -> list[ast.Call]:
    found = (_calls(decorator, names) for decorator in node.decorator_list)
    return list(itertools.chain.from_iterable(found))


def _calls(node: ast.AST, names: Mapping[str, str]) -> Iterator[ast.Call]:
    for one in ast.walk(node):
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in names:
            yield one


def _literals(call: ast.Call, names: Mapping[str, str], file: str) -> tuple[str, str, str, str]:
    """Verdict, row, words and section of a mark."""
    assert isinstance(call.func, ast.Name)
    verdict = names[call.func.id]
    parameters = ["row"] if verdict == "same" else ["row", {"better": "how"}.get(verdict, "why")]
    given = dict(zip(parameters, call.args, strict=False))
    given |= {keyword.arg or "**": keyword.value for keyword in call.keywords}
    values = {
        name: node.value
        for name, node in given.items()
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    wanted = set(parameters)
    if (
        len(call.args) > len(parameters)
        or len(values) != len(given)
        or not wanted <= values.keys() <= wanted | {"section"}
        or not all(values[name].strip() for name in wanted)
    ):
        expected = ", ".join(parameters)
        raise ContractError(f"{file}:{call.lineno}: `{verdict}` wants literal texts: {expected}")
    words = values[parameters[1]] if len(parameters) > 1 else ""
    return verdict, values["row"], words, values.get("section", "")


def all_marks(directory: Path = TESTS) -> list[Mark]:
    """The marks of all files of tests below a directory, by file and line."""
    return [
        mark
        for path in sorted(directory.rglob("test_*.py"))
        for mark in read_marks(path.read_text(), str(path.relative_to(PROJECT)))
    ]


# --- rows and marks -------------------------------------------------------------------------------


def row_of(mark: Mark, rows: Mapping[str, Row]) -> Row:
    """The row that a mark means: its id, or the longest id that its words begin with.

    Raises `ContractError` for a row that is not there and for another section.
    """
    words = mark.row.split(" ")
    for count in range(len(words), 0, -1):
        row = rows.get(" ".join(words[:count]))
        if row is not None and (count == len(words) or row.id.startswith("--")):
            break
    else:
        near = difflib.get_close_matches(mark.row, rows, n=1)
        hint = f"; is it `{near[0]}`?" if near else ""
        raise ContractError(f"{mark.file}:{mark.line}: no row `{mark.row}`{hint}")
    if mark.section not in ("", row.section):
        raise ContractError(
            f"{mark.file}:{mark.line}: `{row.id}` is in section {row.section}, not {mark.section}"
        )
    return row


def collect(marks: Iterable[Mark], groups: Sequence[Group] = GROUPS) -> dict[str, Shown]:
    """Every row with its marks, by id, in the order of the groups.

    Raises `ContractError` for marks without a row and for two that contradict each other: a part
    of a flag may be refused, but not what another test shows to work.
    """
    rows = {row.id: row for group in groups for row in group.rows}
    found: dict[str, list[Mark]] = {name: [] for name in rows}
    verdicts: dict[str, Mark] = {}
    for mark in marks:
        row = row_of(mark, rows)
        found[row.id].append(mark)
        first = verdicts.setdefault(mark.row, mark)
        if _works(first) != _works(mark):
            raise ContractError(
                f"{mark.file}:{mark.line}: `{mark.row}` is {mark.verdict} here, "
                f"and {first.verdict} in {first.file}:{first.line}"
            )
    return {name: Shown(row, tuple(found[name])) for name, row in rows.items()}


def _works(mark: Mark) -> bool:
    return mark.verdict in ("same", "better")


def untested(shown: Mapping[str, Shown], groups: Sequence[Group] = GROUPS) -> list[str]:
    """The ids of those rows of the groups that no test shows."""
    return [row.id for group in groups for row in group.rows if not shown[row.id].marks]


# --- writing the page -----------------------------------------------------------------------------


def render(shown: Mapping[str, Shown], groups: Sequence[Group] = GROUPS) -> str:
    """The page."""
    parts = [INTRODUCTION]
    for group in groups:
        parts.append(f"\n## {group.title}\n\n")
        parts.append("| | what it is about | ocis2i | shown by |\n| --- | --- | --- | --- |\n")
        parts.extend(_line(shown[row.id]) for row in group.rows)
    return "".join(parts)


def _line(shown: Shown) -> str:
    cells = [f"`{shown.row.id}`", shown.row.text, _verdicts(shown), _tests(shown.marks)]
    return "".join(f"| {one}" + " " * bool(one) for one in map(cell, cells)) + "|\n"


def _verdicts(shown: Shown) -> str:
    """The verdict on the row itself, then those on parts of it."""
    whole = tuple(mark for mark in shown.marks if mark.row == shown.row.id)
    texts = [Shown(shown.row, whole).verdict] if whole else []
    parts = dict.fromkeys(mark.row for mark in shown.marks if mark.row != shown.row.id)
    for part in parts:
        marks = tuple(mark for mark in shown.marks if mark.row == part)
        texts.append(f"`{part}` {Shown(shown.row, marks).verdict}")
    return " · ".join(texts) or "not shown yet"


def _tests(marks: Iterable[Mark]) -> str:
    links = (f"[{mark.test}](../{mark.file})" for mark in marks)
    return ", ".join(dict.fromkeys(links))


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes the page, or with `--check` only says whether it is current; the exit code."""
    parser = check_parser("contract_table")
    parser.add_argument("--missing", action="store_true", help="name the rows without a test")
    options = parser.parse_args(arguments)
    try:
        shown = collect(all_marks())
    except ContractError as error:
        sys.stderr.write(f"error: {error}\n")
        return 1
    if options.missing:
        flags = set(untested(shown, (*FLAGS, *LABELS)))
        for name in untested(shown):
            row = shown[name].row
            sys.stdout.write(f"{'!' if name in flags else ' '} {row.section:5} {name}\n")
        return 0
    page = render(shown)
    return write_or_check(PAGE, page, program="contract_table", check=options.check)
