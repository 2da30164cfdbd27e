"""Source and destination pairs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import UsageError
from ocis2i.mappings import (
    FORBIDDEN,
    PathPair,
    check_artifact,
    parse_input_files,
    parse_mappings,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:b", PathPair("/a", "b")),
        ("/a", PathPair("/a", ".")),
        ("/a:", PathPair("/a", ".")),
        (":b", PathPair(".", "b")),
        ("/a:b:c", PathPair("/a:b", "c")),
        ("'/a b':\"c\"", PathPair("/a b", "c")),
        ("//a//b/../c/:./d//", PathPair("/a/c", "d")),
        ("a:../b", PathPair("a", "../b")),
        ("''", PathPair(".", ".")),
    ],
)
def test_pair_is_split_at_the_last_colon_and_cleaned(text: str, expected: PathPair) -> None:
    assert parse_mappings(text, "--inject") == (expected,)


def test_semicolons_separate_pairs() -> None:
    assert parse_mappings("/a:b;/c", "--inject") == (PathPair("/a", "b"), PathPair("/c", "."))


@pytest.mark.parametrize("text", ["", "/a:b;", ";/a", "/a;;/b"])
def test_empty_pair_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="`--inject` has an empty mapping"):
        parse_mappings(text, "--inject")


@pytest.mark.parametrize("character", sorted(FORBIDDEN - {";"}))
@pytest.mark.parametrize("form", ["/a{}b:c", "/a:b{}c"])
def test_forbidden_character_is_named(character: str, form: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mappings(form.format(character), "--runtime-artifact")
    assert f"{character}" in caught.value.message
    assert "`--runtime-artifact`" in caught.value.message
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("character", ["\0", "\n", "\x1b", "\udcff", "\u202e"])
def test_what_cannot_be_printed_is_refused_and_not_repeated(character: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_mappings(f"/a{character}b", "--inject")
    assert character not in caught.value.message


def test_label_is_read_as_the_flag() -> None:
    assert parse_input_files("/a;/b:c") == (PathPair("/a", "."), PathPair("/b", "c"))


@pytest.mark.parametrize("text", ["", "  "])
def test_empty_label_names_nothing(text: str) -> None:
    assert parse_input_files(text) == ()


@pytest.mark.parametrize("text", ["/a;", "/a*"])
def test_wrong_label_is_named_with_the_reason_of_s2i(text: str) -> None:
    with pytest.raises(UsageError, match="assemble-input-files") as caught:
        parse_input_files(text)
    assert caught.value.reason == "InvalidArtifactsMapping"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a:b", "source must be an absolute path"),
        ("/a:/b", "destination must be a relative path"),
        ("/a:../b", "destination cannot start with '..'"),
        ("/a:b/../../c", "destination cannot start with '..'"),
    ],
)
def test_artifact_rules_have_the_words_of_s2i(text: str, words: str) -> None:
    (pair,) = parse_mappings(text, "--runtime-artifact")
    with pytest.raises(UsageError) as caught:
        check_artifact(pair)
    assert words in caught.value.message
    assert (caught.value.reason, caught.value.exit_code) == ("InvalidArtifactsMapping", 2)


@pytest.mark.parametrize("text", ["/a", "/a:.", "/a:b/c", "/a/:b/../c"])
def test_good_artifact_passes(text: str) -> None:
    check_artifact(parse_mappings(text, "--runtime-artifact")[0])


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        pairs = parse_mappings(text, "--inject")
    except UsageError:
        return
    for pair in pairs:
        assert not FORBIDDEN & set(pair.source + pair.destination)
        assert pair == parse_mappings(f"{pair.source}:{pair.destination}", "--inject")[0]
