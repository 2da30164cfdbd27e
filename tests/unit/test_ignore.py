"""What `.s2iignore` and `--exclude` leave out."""

from __future__ import annotations

import time

import pytest

from ocis2i.errors import SourceError, UsageError
from ocis2i.sources.ignore import (
    DEFAULT_EXCLUDE,
    Filter,
    compile_exclude,
    compile_glob,
    parse_ignore,
)


# The vectors of Go's path/filepath/match_test.go; None stands for ErrBadPattern.
@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("abc", "abc", True),
        ("*", "abc", True),
        ("*c", "abc", True),
        ("a*", "a", True),
        ("a*", "abc", True),
        ("a*", "ab/c", False),
        ("a*/b", "abc/b", True),
        ("a*/b", "a/c/b", False),
        ("a*b*c*d*e*/f", "axbxcxdxe/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/f", True),
        ("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", False),
        ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", False),
        ("a*b?c*x", "abxbbxdbxebxczzx", True),
        ("a*b?c*x", "abxbbxdbxebxczzy", False),
        ("ab[c]", "abc", True),
        ("ab[b-d]", "abc", True),
        ("ab[e-g]", "abc", False),
        ("ab[^c]", "abc", False),
        ("ab[^b-d]", "abc", False),
        ("ab[^e-g]", "abc", True),
        ("a\\*b", "a*b", True),
        ("a\\*b", "ab", False),
        ("a?b", "a☺b", True),
        ("a[^a]b", "a☺b", True),
        ("a???b", "a☺b", False),
        ("a[^a][^a][^a]b", "a☺b", False),
        ("[a-ζ]*", "\u03b1", True),
        ("*[a-ζ]", "A", False),
        ("a?b", "a/b", False),
        ("a*b", "a/b", False),
        ("[\\]a]", "]", True),
        ("[\\-]", "-", True),
        ("[x\\-]", "x", True),
        ("[x\\-]", "-", True),
        ("[x\\-]", "z", False),
        ("[\\-x]", "a", False),
        ("[]a]", "]", None),
        ("[-]", "-", None),
        ("[x-]", "x", None),
        ("[-x]", "x", None),
        ("\\", "a", None),
        ("[a-b-c]", "a", None),
        ("[", "a", None),
        ("[^", "a", None),
        ("[^bc", "a", None),
        ("a[", "a", None),
        ("a[", "ab", None),
        ("*x", "xxx", True),
        ("[z-a]", "m", False),
        ("[!a]", "!", True),
        (".h*", ".hidden", True),
        ("*", ".hidden", True),
        ("**/*.md", "a/x.md", True),
        ("**/*.md", "a/b/x.md", False),
        ("**/*.md", "x.md", False),
        ("a.c", "abc", False),
    ],
)
def test_globs_are_those_of_go(pattern: str, path: str, fits: bool | None) -> None:
    compiled = compile_glob(pattern)
    found = None if compiled is None else compiled.fullmatch(path) is not None
    assert found is fits


def test_many_stars_cost_no_exponential_time() -> None:
    pattern = compile_glob("*a" * 60 + "b")
    assert pattern
    begin = time.perf_counter()
    assert pattern.fullmatch("a" * 255) is None
    assert time.perf_counter() - begin < 1


@pytest.mark.parametrize(
    ("text", "ignored", "kept"),
    [
        ("*.log", ["a.log"], ["d/a.log", "a.txt"]),
        ("  build  \r\n# note\n\n", ["build"], ["build/x", "# note"]),
        ("/rooted\n./dotted//twice/", ["rooted", "dotted/twice"], ["d/rooted"]),
        ("\ttab", ["\ttab"], ["tab"]),
        ("*.md\n!README.md", ["a.md"], ["README.md"]),
        ("*.md\n!README.md\nREADME.*", ["README.md"], []),
        ("!x\nx", ["x"], []),
        ("x\n! x", ["x"], []),
        ("/", ["anything"], []),
        ("d/../e", ["e"], ["d"]),
    ],
)
def test_lines_of_the_ignore_file_count_in_their_order(
    text: str, ignored: list[str], kept: list[str]
) -> None:
    rules = parse_ignore(text)
    assert [path for path in [*ignored, *kept] if rules.ignores(path)] == ignored


@pytest.mark.parametrize("line", ["../x", "/../../x", "!../x", "a/../../x", ".."])
def test_pattern_that_leaves_the_source_is_refused(line: str) -> None:
    with pytest.raises(SourceError, match="leads out"):
        parse_ignore(line)


def test_malformed_patterns_are_listed_and_ignore_nothing() -> None:
    rules = parse_ignore("[\nok\n![x")
    assert rules.malformed == ("[", "![x")
    assert rules.ignores("ok")


@pytest.mark.parametrize(
    ("path", "dropped"),
    [(".git", True), ("sub/.git", True), (".gitignore", False), ("a.git", False), ("x", False)],
)
def test_default_exclude_is_git_at_every_depth(path: str, dropped: bool) -> None:
    assert Filter(compile_exclude(DEFAULT_EXCLUDE)).drops(path) is dropped


def test_empty_exclude_excludes_nothing() -> None:
    assert compile_exclude("") is None
    assert not Filter(compile_exclude("")).drops(".git")


@pytest.mark.parametrize(
    ("expression", "path", "dropped"),
    [
        (r"^x[[:digit:]]$", "x1", True),
        (r"^x[[:digit:]]$", "x:", False),
        (r"^x[^[:digit:]_]$", "xa", True),
        (r"^x[^[:digit:]_]$", "x1", False),
        (r"^[:alpha:]$", "p", True),
        (r"^[:alpha:]$", "z", False),
        (r"^[[]$", "[", True),
        (r"^[]a]$", "]", True),
        (r"^\[[[:upper:]]\]\z", "[A]", True),
        (r"\.log\z", "a.log", True),
        (r"\.log\z", "a.log\n", False),
        (r"^a\\z", "a\\z", True),
    ],
)
@pytest.mark.filterwarnings("error")
def test_exclude_is_read_as_go_reads_it(expression: str, path: str, dropped: bool) -> None:
    assert Filter(compile_exclude(expression)).drops(path) is dropped


def test_bad_exclude_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match=r"--exclude `\(`"):
        compile_exclude("(")
