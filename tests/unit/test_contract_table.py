"""The table of the S2I contract: how marks on tests are read, and that the page is current."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import contract
from tests.contract_rows import FLAGS, GROUPS, LABELS, Group, Row, parse_rows
from tests.contract_table import (
    PAGE,
    VERDICTS,
    ContractError,
    Mark,
    all_marks,
    collect,
    read_marks,
    render,
    untested,
)
from tests.pages import PROJECT

HEAD = "import pytest\nfrom tests.contract import same, better as nicer, refused, ignored\n"


def read(text: str) -> list[Mark]:
    return read_marks(HEAD + text, "tests/e2e/test_x.py")


def told(text: str) -> list[tuple[str, str, str, str]]:
    return [(mark.verdict, mark.row, mark.words, mark.test) for mark in read(text)]


# --- what is true of the project ----------------------------------------------------------------


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == render(collect(all_marks())), "run scripts/contract_table"


def test_every_flag_and_label_has_a_test() -> None:
    assert untested(collect(all_marks()), (*FLAGS, *LABELS)) == []


def test_every_row_has_a_test() -> None:
    assert untested(collect(all_marks())) == []


def test_rows_have_ids_of_their_own() -> None:
    names = [row.id for group in GROUPS for row in group.rows]
    assert sorted(names) == sorted(set(names))


def test_rows_are_sentences_of_known_sections() -> None:
    for row in (row for group in GROUPS for row in group.rows):
        assert re.fullmatch(r"\d+(\.\d+)?", row.section), row
        assert row.text.endswith("."), row


@pytest.mark.parametrize("verdict", sorted(VERDICTS))
def test_marks_are_those_that_the_table_knows(verdict: str) -> None:
    words = () if verdict == "same" else ("so",)
    mark = getattr(contract, verdict)("--env", *words, section="1.3").mark
    assert (mark.name, mark.args) == ("contract", (verdict, "--env", "".join(words), "1.3"))


def test_the_program_finds_what_we_find() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-W", "error", PROJECT / "scripts/contract_table", "--missing"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert [line.split()[-1] for line in done.stdout.splitlines()] == [
        name.split()[-1] for name in untested(collect(all_marks()))
    ]


# --- reading ------------------------------------------------------------------------------------


def test_marks_are_read_from_functions() -> None:
    text = '@same("a")\n@nicer("b", "how" " so")\n@refused("c", why="no")\ndef test_one(): ...\n'
    assert told(text) == [
        ("same", "a", "", "test_one"),
        ("better", "b", "how so", "test_one"),
        ("refused", "c", "no", "test_one"),
    ]


def test_marks_of_a_class_are_those_of_all_its_tests() -> None:
    text = '@same("a")\nclass TestIt:\n    @same("b")\n    def test_one(self): ...\n'
    text += "    def test_two(self): ...\n"
    assert [(row, test) for _, row, _, test in told(text)] == [
        ("a", "test_one"), ("b", "test_one"), ("a", "test_two")
    ]  # fmt: skip


def test_marks_of_parameters_are_read() -> None:
    cases = (
        'pytest.param(1, marks=ignored("--url", "no daemon")), pytest.param(2, marks=[same("b")])'
    )
    text = f'@pytest.mark.parametrize("x", [{cases}])\ndef test_one(x): ...\n'
    assert [(verdict, row) for verdict, row, _, _ in told(text)] == [
        ("ignored", "--url"), ("same", "b")
    ]  # fmt: skip


def test_others_of_the_same_name_are_no_marks() -> None:
    assert read_marks('@same("a")\ndef test_one(): ...\n', "x.py") == []
    assert told('@other("a")\ndef test_one(): ...\n') == []


@pytest.mark.parametrize(
    "mark",
    [
        *("same()", "same(name)", 'same(f"a")', 'same("a", "b")', 'same("")', 'same("a", **more)'),
        *('nicer("a")', 'nicer("a", "")', 'nicer("a", why="b")', 'same("a", section=2.7)'),
        *("same(1)", 'refused("a", "b", "2.7")'),
    ],
)
def test_a_mark_that_cannot_be_read_is_an_error(mark: str) -> None:
    with pytest.raises(ContractError, match=r"^tests/e2e/test_x.py:3: .* literal texts: row"):
        read(f"@{mark}\ndef test_one(): ...\n")


@pytest.mark.parametrize(
    "text",
    [
        '@same("a")\ndef helper(): ...\n',
        'CASES = [pytest.param(1, marks=same("a"))]\n',
        'def test_one():\n    same("a")\n',
        '@same("a")\nclass Helper:\n    def test_one(self): ...\n',
    ],
)
def test_a_mark_on_no_test_is_an_error(text: str) -> None:
    with pytest.raises(ContractError, match="the mark is on no test"):
        read(text)


# --- rows and verdicts --------------------------------------------------------------------------


ROWS = (Group("All", (Row("--net", "1.3", "A net."), Row("labels", "8.4", "Some | more."))),)


def mark(verdict: str, row: str, words: str = "", section: str = "", test: str = "test_x") -> Mark:
    return Mark(verdict, row, words, section, "tests/e2e/test_x.py", 7, test)


def test_several_tests_of_a_row_make_one_verdict() -> None:
    marks = [mark("same", "labels"), mark("better", "labels", "x"), mark("better", "labels", "x")]
    shown = collect([*marks, mark("better", "labels", "y")], ROWS)
    assert shown["labels"].verdict == "better: x; y"
    assert shown["--net"].verdict == ""
    assert untested(shown, ROWS) == ["--net"]


def test_a_part_of_a_flag_may_be_refused() -> None:
    marks = [mark("same", "--net"), mark("refused", "--net container:", "no daemon")]
    page = render(collect(marks, ROWS), ROWS)
    assert "| same · `--net container:` refused: no daemon |" in page


def test_the_page_links_to_tests_and_escapes_bars() -> None:
    page = render(collect([mark("same", "labels"), mark("same", "labels")], ROWS), ROWS)
    assert "| `--net` | A net. | not shown yet | |\n" in page
    line = "| `labels` | Some \\| more. | same | [test_x](../tests/e2e/test_x.py) |\n"
    assert page.endswith(line)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (mark("same", "lables"), "no row `lables`; is it `labels`?"),
        (mark("same", "labels of all"), "no row `labels of all`"),
        (mark("same", "--network"), "no row `--network`"),
        (mark("same", "labels", section="8.5"), "`labels` is in section 8.4, not 8.5"),
    ],
)
def test_a_mark_without_a_row_is_an_error(wrong: Mark, message: str) -> None:
    with pytest.raises(ContractError, match=re.escape(f"tests/e2e/test_x.py:7: {message}")):
        collect([wrong], ROWS)


def test_tests_that_contradict_each_other_are_an_error() -> None:
    with pytest.raises(ContractError, match="`labels` is refused here, and same in"):
        collect([mark("same", "labels"), mark("refused", "labels", "no")], ROWS)


@pytest.mark.parametrize(
    "text", ["    a text.\n", "1.2 name\n", "1.2 \n    Text.\n", "x\n    T.\n"]
)
def test_rows_that_are_not_whole_are_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="row"):
        parse_rows(text)


def test_rows_of_several_lines_are_one_text() -> None:
    assert parse_rows("2.7 a b\n    One\n    two.\n") == (Row("a b", "2.7", "One two."),)


def test_the_page_is_one_of_the_documents() -> None:
    assert PAGE.parent == Path(PROJECT, "docs")
