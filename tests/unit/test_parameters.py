"""A builder's declaration of parameters: read as strictly as the schema says, and its values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ocis2i.command_words import masked_command
from ocis2i.commands.failing import without_secrets
from ocis2i.errors import ImageError, UsageError
from ocis2i.parameters import (
    _OF_KIND,
    CONTROLS,
    KINDS,
    LONGEST_VALUE,
    MOST_PARAMETERS,
    SIZE_LIMIT,
    WHENS,
    Applied,
    Declaration,
    ParameterSpec,
    apply,
    decode_given,
    encode_given,
    in_language,
    parse_declaration,
)

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/schemas/parameters.schema.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def read(*parameters: Any, **more: Any) -> Declaration:
    document = {"version": 1, "parameters": list(parameters)} | more
    return parse_declaration(json.dumps(document), "the test")


def refused(*parameters: Any, **more: Any) -> str:
    with pytest.raises(ImageError) as caught:
        read(*parameters, **more)
    return caught.value.message


def given_for(declaration: Declaration, *chosen: str, **values: str) -> Applied:
    return apply(declaration, ParameterSpec(values), chosen, "b:1")


# --- reader and schema ------------------------------------------------------------------------

_TEXT = st.one_of(
    st.sampled_from(
        ["", "a", "true", "3", "/srv", "http://h/p", "注释", "a\u202eb", "x\x1b[1m", "[a-z]+"]
    ),
    st.text(max_size=5).filter(lambda text: "\n" not in text),
)
_ANY = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.just(1 << 60), _TEXT)
_LANGUAGES = st.dictionaries(st.sampled_from(["en", "zh", "zh-Hans", "EN", "e"]), _ANY, max_size=2)
_FIELDS = {
    "name": st.one_of(st.sampled_from(["A", "B_1", "1A", "A B", "Ä", ""]), _ANY),
    "type": st.one_of(st.sampled_from(KINDS), st.just("float"), _ANY),
    "when": st.one_of(st.sampled_from(WHENS), _ANY),
    "required": st.one_of(st.booleans(), _ANY),
    "secret": st.one_of(st.booleans(), _ANY),
    "default": _ANY,
    "example": _ANY,
    "pattern": st.one_of(st.just("[a-z]*"), _ANY),
    "minimum": _ANY,
    "maximum": _ANY,
    "values": st.one_of(st.lists(_TEXT, max_size=3), st.lists(_ANY, max_size=2), _ANY),
    "trueValue": _ANY,
    "falseValue": _ANY,
    "title": st.one_of(_LANGUAGES, _ANY),
    "description": st.one_of(_LANGUAGES, _ANY),
    "x-mine": _ANY,
    "requried": _ANY,
}


@st.composite
def _parameters(draw: st.DrawFn) -> dict[str, Any]:
    names = draw(st.lists(st.sampled_from(sorted(_FIELDS)), max_size=4, unique=True))
    entry = {name: draw(_FIELDS[name]) for name in names}
    if draw(st.integers(0, 9)):
        entry["name"] = "A"
    return entry


# What no schema can say, and where the reader alone refuses.
_BEYOND = (
    "`default` of",
    "`example` of",
    "the pattern of",
    "is more than its `maximum`",
    "are the same",
)


@settings(max_examples=800, deadline=None)
@given(_parameters())
def test_reader_and_schema_agree(entry: dict[str, Any]) -> None:
    document = {"version": 1, "parameters": [entry]}
    valid = VALIDATOR.is_valid(document)
    try:
        parse_declaration(json.dumps(document), "the test")
    except ImageError as error:
        assert not valid or any(one in error.message for one in _BEYOND), error.message
    else:
        assert valid, [one.message for one in VALIDATOR.iter_errors(document)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("field", _OF_KIND)
def test_fields_of_one_type_are_refused_for_others(kind: str, field: str) -> None:
    value = {"pattern": "a*", "values": ["a"], "trueValue": "1", "falseValue": "0"}.get(field, 3)
    entry = {"name": "A", "type": kind, field: value} | (
        {"values": ["a"]} if kind == "enum" else {}
    )
    document = {"version": 1, "parameters": [entry]}
    fits = kind in _OF_KIND[field]
    assert VALIDATOR.is_valid(document) == fits
    if fits:
        read(entry)
    else:
        assert "has no meaning for the type" in refused(entry)


def test_the_schema_is_one_and_has_the_same_limits() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["properties"]["parameters"]["maxItems"] == MOST_PARAMETERS
    assert CONTROLS in SCHEMA["$defs"]["text200"]["pattern"]


# --- hostile declarations ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b"\xff\xfe{\x00", "not UTF-8"),
        (b"[" * 60000, "nested too deep"),
        (b" " * (SIZE_LIMIT + 1), "at most"),
        (b"[]", "not a JSON object"),
        (b'{"version":1,"version":1,"parameters":[]}', "`version` is there twice"),
        (b'{"version":1,"parameters":[{"name":"A","name":"B"}]}', "`name` is there twice"),
        (b'{"version":1.0,"parameters":[]}', "no whole number"),
        (b'{"version":true,"parameters":[]}', "`version` is true"),
        (b'{"version":2,"parameters":[]}', "`version` is 2"),
        (b'{"parameters":[]}', "`version` is null"),
        (b'{"version":1}', "no list"),
        (b'{"version":1,"parameters":{}}', "no list"),
        (b'{"version":1,"parameters":[1]}', "is not an object"),
        (b'{"version":1,"parameters":[{"name":"A","default":NaN}]}', "no whole number"),
        (b'{"version":1,"parameters":[],"x":1}', "a field `x`"),
        (b'{"a":' * 9000 + b"1" + b"}" * 9000, "nested too deep"),
        (b'{"version":1,"x-a":' + b"[" * 500 + b"]" * 500 + b"}", "no list"),
        (
            json.dumps({str(one): 1 for one in range(6000)})[:-1].encode() + b',"5999":1}',
            "`5999` is there",
        ),
        (b'{"version":1,"parameters":[{"name":"A","default":"\\ud800"}]}', "not UTF-8"),
        (b'{"version":1,"parameters":[{"name":"A","minimum":' + b"9" * 5000 + b"}]}", "not JSON"),
    ],
)
def test_what_is_no_declaration_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ImageError, match=r"^the parameters in the test cannot be used: ") as caught:
        parse_declaration(data, "the test")
    assert why in caught.value.message
    assert caught.value.reason == "ParametersInvalid"


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ({"name": "A=B"}, "no name of a variable"),
        ({"name": "A\nB"}, "no name of a variable"),
        ({"name": "A\n"}, "no name of a variable"),
        ({"name": "A" * 129}, "no name of a variable"),
        ({"name": None}, "no name of a variable"),
        ({"name": "A", "title": "\x1b]0;mine\x07"}, "without control"),
        ({"name": "A", "title": {"en": "\u202e"}}, "without control"),
        ({"name": "A", "title": {"English": "x"}}, "no object of texts"),
        ({"name": "A", "requried": True}, "a field `requried`"),
        ({"name": "A", "pattern": "(a+)\\1"}, "cannot be read"),
        ({"name": "A", "pattern": "a", "default": "b"}, "must match `a`"),
        ({"name": "A", "type": "enum"}, "without `values`"),
        ({"name": "A", "type": "enum", "values": ["a", "a"]}, "different texts"),
        ({"name": "A", "type": "enum", "values": ["a"], "default": "b"}, "it must be `a`"),
        ({"name": "A", "type": "integer", "default": "3"}, "not of type `integer`"),
        ({"name": "A", "type": "integer", "default": True}, "not of type `integer`"),
        ({"name": "A", "type": "integer", "minimum": 4, "maximum": 3}, "more than its `maximum`"),
        ({"name": "A", "type": "boolean", "default": "true"}, "not of type `boolean`"),
        ({"name": "A", "type": "boolean", "trueValue": "false"}, "are the same"),
        ({"name": "A", "secret": True, "default": "s"}, "what stands in an image is none"),
        ({"name": "A", "required": True, "default": "s"}, "never count"),
        ({"name": "A", "default": "http://me:secret@h/"}, "holds a password"),
        ({"name": "A", "when": "later"}, "not `build`, `run` or `both`"),
    ],
)
def test_a_parameter_that_makes_no_sense_is_refused(entry: dict[str, Any], why: str) -> None:
    message = refused(entry)
    assert why in message
    assert message.isprintable()


def test_no_more_than_some_hundred_parameters() -> None:
    many = [{"name": f"A{n}"} for n in range(MOST_PARAMETERS + 1)]
    assert "at most 200" in refused(*many)
    assert len(read(*many[1:]).parameters) == MOST_PARAMETERS


# --- values -----------------------------------------------------------------------------------

EVERY = read(
    {"name": "TEXT", "pattern": "[a-z]+", "example": "abc"},
    {"name": "NUMBER", "type": "integer", "minimum": 1, "maximum": 9},
    {"name": "FLAG", "type": "boolean"},
    {"name": "YARN", "type": "boolean", "trueValue": "x", "falseValue": ""},
    {"name": "KIND", "type": "enum", "values": ["jar", "war"]},
    {"name": "DIR", "type": "path"},
    {"name": "MIRROR", "type": "url"},
    {"name": "KEY", "secret": True},
    {"name": "PORT", "type": "integer", "when": "run"},
)


@pytest.mark.parametrize(
    ("name", "value", "read_as"),
    [
        ("TEXT", "abc", "abc"),
        ("NUMBER", "007", "7"),
        ("FLAG", "Yes", "true"),
        ("FLAG", "0", "false"),
        ("YARN", "on", "x"),
        ("YARN", "false", ""),
        ("YARN", "", ""),
        ("KIND", "war", "war"),
        ("DIR", "target/a", "target/a"),
        ("MIRROR", "https://h/p?q=1", "https://h/p?q=1"),
    ],
)
def test_a_value_is_read_by_its_type(name: str, value: str, read_as: str) -> None:
    assert given_for(EVERY, **{name: value}).build == {name: read_as}


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("TEXT", "ABC", "must match `[a-z]+`, as `abc`"),
        ("TEXT", "abc\n", "must match"),
        ("NUMBER", "10", "of at least 1 and of at most 9"),
        ("NUMBER", "1.5", "whole number"),
        ("NUMBER", "9" * 5000, "whole number"),
        ("NUMBER", "\u0663", "whole number"),
        ("FLAG", "maybe", "true or false"),
        ("KIND", "jars", "`jar` or `war`, did you mean `jar`?"),
        ("DIR", "../../etc", "without `..`"),
        ("DIR", "", "without `..`"),
        ("MIRROR", "h/p", "as https://host/path"),
        ("MIRROR", "https://me:secret@h/p", "the image would have it"),
        ("TEXT", "a\0b", "zero bytes"),
        ("TEXT", "\udcff", "UTF-8"),
        ("KEY", "\0", "`KEY` is ********"),
        ("NUMBR", "3", "did you mean `NUMBER`?"),
        ("number", "3", "did you mean `NUMBER`?"),
    ],
)
def test_a_wrong_value_is_told_with_what_is_allowed(name: str, value: str, why: str) -> None:
    with pytest.raises(UsageError) as caught:
        given_for(EVERY, **{name: value})
    assert why in caught.value.message
    assert "secret@" not in caught.value.message
    assert caught.value.message.isprintable()
    assert caught.value.hint == "`ocis2i explain b:1` lists them"


def test_values_go_where_they_are_declared_for() -> None:
    found = given_for(EVERY, KEY="k", PORT="80", TEXT="abc")
    assert (found.build, found.run, found.secret) == ({"TEXT": "abc"}, {"PORT": "80"}, {"KEY": "k"})
    assert found.given == {"PORT": "80", "TEXT": "abc"}
    assert decode_given(encode_given(found.given)) == dict(found.given)


def test_defaults_count_where_nothing_else_does() -> None:
    some = read({"name": "A", "default": "a"}, {"name": "B", "required": True})
    assert given_for(some, "A", B="b").build == {"B": "b"}
    assert given_for(some, "B").build == {"A": "a"}
    with pytest.raises(UsageError, match="`B` is missing"):
        given_for(some)


def test_a_value_that_is_not_allowed_is_not_missing_as_well() -> None:
    some = read({"name": "N", "type": "integer", "required": True})
    with pytest.raises(UsageError) as caught:
        given_for(some, N="many")
    assert "missing" not in caught.value.message


def test_no_command_line_that_is_kept_has_a_value_that_may_be_secret() -> None:
    words = ["build", "-P", "A=s3cr", "-PB=s3cr", "--parameter=C=s3cr", "--parameter", "D=s3cr"]
    words += ["-P", "E=@@s3cr", "-P", "F=@file", "-P", "G", "--build-env", "H=@s3cr"]
    words += ["--creds", "ann:s3cr", "-e", "API_TOKEN=s3cr", "https://ann:s3cr@host/app.git"]
    for kept in (masked_command(words), without_secrets(words)):
        assert "s3cr" not in " ".join(kept)
        assert "F=@file" in kept
        assert "G" in kept


def test_what_was_recorded_counts_less_and_may_be_gone() -> None:
    some = read({"name": "A"}, {"name": "K", "secret": True}, {"name": "N", "type": "integer"})
    spec = ParameterSpec({"A": "new"}, recorded={"A": "old", "GONE": "x", "K": "k"})
    found = apply(some, spec, (), "b:1")
    assert found.build == {"A": "new"}
    assert not found.secret
    assert [one.partition(" any more")[0] for one in found.warnings] == [
        "the builder has no parameter `GONE`",
        "the builder has no parameter `K`",
    ]
    with pytest.raises(UsageError, match="built again"):
        apply(some, ParameterSpec(recorded={"N": "many"}), (), "b:1")


@pytest.mark.parametrize("text", ["", "[]", "{", '{"A":1}', '{"A B":"1"}', "[" * 50000])
def test_a_label_that_is_none_of_ours_says_nothing(text: str) -> None:
    assert decode_given(text) == {}


def test_a_text_is_in_the_best_language() -> None:
    assert in_language({"en": "port", "zh": "端口"}, "zh") == "端口"
    assert in_language({"en": "port"}, "zh") == "port"
    assert in_language({"de": "Port"}, "zh") == "Port"
    assert in_language({}, "en") == ""


# Places for all of 250 characters, and as many again and again.
MEANS_MUCH = "(?:[ab]*a?[ab]{220})*[ab]*"


def test_a_declaration_cannot_make_its_readers_busy() -> None:
    entries = [
        {"name": f"P{one}", "pattern": MEANS_MUCH, "example": "ab" * 990} for one in range(30)
    ]
    text = json.dumps({"version": 1, "parameters": entries})
    assert len(text) < SIZE_LIMIT
    with pytest.raises(ImageError) as caught:
        parse_declaration(text, "the test")
    assert "their patterns mean too much" in caught.value.message


def test_a_value_too_long_for_its_pattern_is_refused_and_not_matched() -> None:
    document = {"version": 1, "parameters": [{"name": "A", "pattern": MEANS_MUCH}]}
    (one,) = parse_declaration(json.dumps(document), "the test").parameters
    with pytest.raises(ValueError, match=r"too long to be matched .*: at most \d+ characters$"):
        one.read("a" * LONGEST_VALUE)
    simple = {"version": 1, "parameters": [{"name": "A", "pattern": "[a-z0-9.-]+"}]}
    (one,) = parse_declaration(json.dumps(simple), "the test").parameters
    assert one.read("a" * LONGEST_VALUE) == "a" * LONGEST_VALUE


@pytest.mark.parametrize(
    "steering",
    [
        "\x1b]8;;http://evil\x07",
        "\x1b[2J",
        "\r",
        "\x08",
        "\x9b31m",
        "\u202e",
        "\u2066",
        "\ufeff",
        "\x7f",
    ],
)
@pytest.mark.parametrize("place", ["title", "default", "example", "values", "pattern", "trueValue"])
def test_no_text_of_a_builder_steers_a_terminal(place: str, steering: str) -> None:
    kind = {"values": "enum", "trueValue": "boolean"}.get(place, "string")
    text = f"a{steering}b"
    entry = {"name": "A", "type": kind, place: [text] if place == "values" else text}
    with pytest.raises(ImageError) as caught:
        parse_declaration(json.dumps({"version": 1, "parameters": [entry]}), "the test")
    # And the message of it does not either.
    assert steering not in caught.value.message
