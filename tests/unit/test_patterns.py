"""Patterns of builders: they mean what they do elsewhere, and never take long."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocis2i.patterns import LONGEST_PATTERN, Pattern, PatternError

_ATOMS = st.sampled_from(["a", "b", "0", "_", ".", "[ab]", "[^a]", "[a-c0]", r"\d", r"\w", r"\S"])


def _more(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    repeat = st.sampled_from(["*", "+", "?", "{2}", "{0,2}", "{1,}", "{0}"])
    return st.one_of(
        st.lists(inner, min_size=1, max_size=3).map("".join),
        st.tuples(inner, inner).map(lambda two: f"({two[0]}|{two[1]})"),
        st.tuples(inner, repeat).map(lambda two: f"(?:{two[0]}){two[1]}"),
    )


@settings(max_examples=400, deadline=None)
@given(st.recursive(_ATOMS, _more, max_leaves=6), st.text("ab0_ \nc", max_size=6))
def test_a_pattern_means_what_it_does_to_python(pattern: str, value: str) -> None:
    try:
        read = Pattern.parse(pattern)
    except PatternError:
        return  # longer than what is read
    assert read.matches(value) == bool(re.fullmatch(pattern, value, re.ASCII))


@pytest.mark.parametrize(
    ("pattern", "value"),
    [
        ("(a+)+b", "a" * 5000),
        ("(a|a)*b", "a" * 5000),
        ("(a*)*(a*)*b", "a" * 5000),
        ("(.*,){11}P", "1," * 2000),
        ("(a?){64}a{64}b", "a" * 64),
    ],
)
def test_no_pattern_takes_long(pattern: str, value: str) -> None:
    assert not Pattern.parse(pattern).matches(value)


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("(", "not closed"),
        (")", "closes nothing"),
        ("[a", "not closed"),
        ("[]", "must be written"),
        ("a**", "repeats a repetition"),
        ("a+?", "repeats a repetition"),
        ("*", "must be written"),
        ("a{2", "must begin a repetition"),
        ("a{,3}", "must begin a repetition"),
        ("a{3,2}", "is empty"),
        ("a{9999}", "more than 256"),
        ("(a{200}){200}", "says too much"),
        ("(((a{99}){99}){99}){99}", "says too much"),
        (r"(a)\1", r"`\1` is not known"),
        (r"\bword", r"`\b` is not known"),
        ("(?=a)", "not known"),
        ("(?P<name>a)", "not known"),
        ("a^b", "must be written"),
        ("a$b", "must be written"),
        ("[z-a]", "is empty"),
        ("a\\", "last character"),
        ("(" * 40 + ")" * 40, "deeper"),
        ("a" * (LONGEST_PATTERN + 1), "at most"),
    ],
)
def test_what_is_no_pattern_of_ours_is_refused(pattern: str, why: str) -> None:
    with pytest.raises(PatternError, match=re.escape(why)):
        Pattern.parse(pattern)


def test_anchors_at_the_ends_mean_nothing() -> None:
    assert Pattern.parse("^ab$").matches("ab")
    assert not Pattern.parse("^ab$").matches("ab\n")
    assert Pattern.parse("").matches("")
