"""What a builder can be told: its declared parameters, and values for them. Pure.

A builder image declares its parameters in JSON, in its label `io.ocis2i.parameters` or in the file
`parameters.json` beside its scripts. The form is `docs/schemas/parameters.schema.json`; this reader
is as strict, and checks besides what no schema says: that names differ, that a default is a value
of its type, that a pattern can be read. The image is untrusted: sizes are bounded, texts have no
characters that steer a terminal, and patterns match in linear time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import field, replace
from typing import Any, Literal, cast

from ocis2i.errors import ImageError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.patterns import LONGEST_PATTERN, Pattern, PatternError
from ocis2i.s2i import redact_url

VERSION = 1

SIZE_LIMIT = 64 << 10
MOST_PARAMETERS = 200
MOST_VALUES = 100
LONGEST_NAME = 128
LONGEST_TITLE = 200
LONGEST_TEXT = 2000
LONGEST_VALUE = 64 << 10
LARGEST_NUMBER = (1 << 53) - 1
MOST_WORK = 4_000_000  # steps of patterns, of a value and of all that is declared: a second or so

Kind = Literal["string", "integer", "boolean", "enum", "path", "url"]
KINDS: tuple[Kind, ...] = ("string", "integer", "boolean", "enum", "path", "url")
When = Literal["build", "run", "both"]
WHENS: tuple[When, ...] = ("build", "run", "both")

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})?\Z")
# Controls, and what turns the direction of a line or hides in it; the schema has the same.
CONTROLS = "\\u0000-\\u001f\\u007f-\\u009f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ufeff"
_CONTROL = re.compile(f"[{CONTROLS}]")
_INTEGER = re.compile(r"-?[0-9]{1,18}\Z")
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s/?#]+\S*\Z")
_TRUE = frozenset(("true", "yes", "on", "1", "t", "y"))
_FALSE = frozenset(("false", "no", "off", "0", "f", "n"))
_MASK = "********"

Texts = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter; its name is that of the environment variable which carries it.

    `default` and `example` are as the scripts get them. `title` and `description` are by language.
    A `secret` one of the time `run` is for whoever starts the image: no build takes it.
    """

    name: str
    kind: Kind = "string"
    when: When = "build"
    required: bool = False
    secret: bool = False
    default: str | None = None
    example: str | None = None
    pattern: Pattern | None = None
    minimum: int | None = None
    maximum: int | None = None
    values: tuple[str, ...] = ()
    true_value: str = "true"
    false_value: str = "false"
    title: Texts = field(default_factory=dict)
    description: Texts = field(default_factory=dict)

    @property
    def in_image(self) -> bool:
        """Whether the image's environment gets it."""
        return self.when != "build" and not self.secret

    @property
    def in_build(self) -> bool:
        """Whether assemble gets it."""
        return self.when != "run"

    def read(self, text: str) -> str:
        """The value as scripts get it; raises `ValueError` that says what is allowed."""
        if "\0" in text or not _is_text(text):
            raise ValueError("it is no UTF-8 text without zero bytes")
        if len(text) > LONGEST_VALUE:
            raise ValueError(f"it has over {LONGEST_VALUE} characters")
        value = _READERS[self.kind](self, text)
        if self.pattern and self.pattern.work(value) > MOST_WORK:
            raise ValueError(
                f"it is too long to be matched with a pattern that means so much: at most "
                f"{MOST_WORK * len(value) // self.pattern.work(value)} characters"
            )
        if self.pattern and not self.pattern.matches(value):
            raise ValueError(f"it must match `{self.pattern.text}`{_such_as(self)}")
        return value


@dataclass(frozen=True, slots=True)
class Declaration:
    """The parameters of a builder, in its order."""

    parameters: tuple[Parameter, ...] = ()

    def find(self, name: str) -> Parameter | None:
        """The parameter of that name."""
        return next((one for one in self.parameters if one.name == name), None)


@dataclass(frozen=True, slots=True)
class ParameterSpec:
    """What the user gave: values by name, and of these the `typed` ones, that everybody can see.

    `recorded` is what an earlier build was given (rebuild): it counts where nothing is `given`.
    """

    given: Mapping[str, str] = field(default_factory=dict, repr=False)
    typed: frozenset[str] = frozenset()
    recorded: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Applied:
    """Values for a build, by where they go: `build` and `secret` to its scripts alone.

    `run` is for the image alone, `both` for both. `given` is what a rebuild has to repeat.
    """

    build: Mapping[str, str] = field(default_factory=dict)
    run: Mapping[str, str] = field(default_factory=dict)
    both: Mapping[str, str] = field(default_factory=dict)
    secret: Mapping[str, str] = field(default_factory=dict, repr=False)
    given: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


# --- reading a declaration --------------------------------------------------------------------


class _WrongError(Exception):
    """What is wrong with a declaration, in words."""


def parse_declaration(text: str | bytes, what: str) -> Declaration:
    """Reads a declaration; raises `ImageError` naming `what`, which is where it was found."""
    try:
        return _declaration(_document(text))
    except _WrongError as error:
        raise ImageError(
            f"the parameters in {what} cannot be used: {error}",
            hint="their form is in docs/parameters.md; who made the builder has to mend them",
            reason="ParametersInvalid",
        ) from None


def _document(text: str | bytes) -> Any:
    data = text.encode(errors="surrogateescape") if isinstance(text, str) else text
    if len(data) > SIZE_LIMIT:
        raise _WrongError(f"they have {len(data)} bytes, at most {SIZE_LIMIT} are read")
    if data.startswith(b"\xef\xbb\xbf"):
        raise _WrongError("they begin with a byte order mark, which JSON does not have")
    try:
        value = json.loads(
            data.decode(),
            object_pairs_hook=_unique,
            parse_constant=_no_float,
            parse_float=_no_float,
        )
        json.dumps(value, ensure_ascii=False).encode()  # no halves of surrogate pairs
    except RecursionError:
        raise _WrongError("they are nested too deep") from None
    except UnicodeError:
        raise _WrongError("they are not UTF-8") from None
    except ValueError as error:
        raise _WrongError(f"they are not JSON: {error}") from None
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _WrongError(f"`{_short(name)}` is there twice in one object")
        found[name] = value
    return found


def _no_float(text: str) -> float:
    raise _WrongError(f"the number {_short(text)} is no whole number")


_FIELDS = frozenset(
    "name type when required secret default example pattern minimum maximum values trueValue "
    "falseValue title description".split()
)
_OF_KIND = {
    "pattern": ("string", "path", "url"),
    "minimum": ("integer",),
    "maximum": ("integer",),
    "values": ("enum",),
    "trueValue": ("boolean",),
    "falseValue": ("boolean",),
}


def _declaration(document: Any) -> Declaration:
    if not isinstance(document, dict):
        raise _WrongError("they are not a JSON object")
    _check_fields(document, frozenset(("version", "parameters", "$schema")), "the declaration")
    _text(document, "$schema", LONGEST_TEXT, "the declaration")
    version = document.get("version")
    if type(version) is not int or version != VERSION:
        raise _WrongError(f"their `version` is {_shown(version)}, and {VERSION} is known")
    entries = document.get("parameters")
    if not isinstance(entries, list) or len(entries) > MOST_PARAMETERS:
        raise _WrongError(f"`parameters` is no list of at most {MOST_PARAMETERS}")
    found: dict[str, Parameter] = {}
    work = 0
    for at, entry in enumerate(entries, start=1):
        one = _parameter(entry, at)
        if one.name in found:
            raise _WrongError(f"`{one.name}` is declared twice")
        found[one.name] = one
        work += one.pattern.work((one.default or "") + (one.example or "")) if one.pattern else 0
        if work > MOST_WORK:
            raise _WrongError("their patterns mean too much for defaults and examples so long")
    return Declaration(tuple(found.values()))


def _parameter(entry: Any, at: int) -> Parameter:
    if not isinstance(entry, dict):
        raise _WrongError(f"parameter {at} is not an object")
    name = entry.get("name")
    if not isinstance(name, str) or not _NAME.match(name) or len(name) > LONGEST_NAME:
        raise _WrongError(
            f"parameter {at} is called {_shown(name)}, which is no name of a variable: letters, "
            "digits and `_`, no digit first"
        )
    what = f"`{name}`"
    _check_fields(entry, _FIELDS, what)
    kind = cast(Kind, _word(entry, "type", KINDS, "string", what))
    for one, kinds in _OF_KIND.items():
        if one in entry and kind not in kinds:
            raise _WrongError(f"`{one}` of {what} has no meaning for the type `{kind}`")
    values = _values(entry, what)
    if (kind == "enum") != bool(values):
        raise _WrongError(f"{what} is an enum without `values`")
    plain = Parameter(
        name,
        kind,
        cast(When, _word(entry, "when", WHENS, "build", what)),
        _switch(entry, "required", what),
        _switch(entry, "secret", what),
        pattern=_pattern(entry, what),
        minimum=_number(entry, "minimum", what),
        maximum=_number(entry, "maximum", what),
        values=values,
        true_value=_boolean_word(entry, "trueValue", "true", what),
        false_value=_boolean_word(entry, "falseValue", "false", what),
        title=_texts(entry, "title", LONGEST_TITLE, what),
        description=_texts(entry, "description", LONGEST_TEXT, what),
    )
    _check_sense(plain, entry, what)
    return _with_values(plain, entry, what)


def _check_sense(one: Parameter, entry: Mapping[str, Any], what: str) -> None:
    if one.minimum is not None and one.maximum is not None and one.minimum > one.maximum:
        raise _WrongError(f"`minimum` of {what} is more than its `maximum`")
    if one.true_value == one.false_value:
        raise _WrongError(f"`trueValue` and `falseValue` of {what} are the same")
    if one.secret and ("default" in entry or "example" in entry):
        raise _WrongError(f"{what} is a secret: what stands in an image is none")
    if one.required and "default" in entry:
        raise _WrongError(f"{what} is required, so its default would never count")


def _with_values(plain: Parameter, entry: Mapping[str, Any], what: str) -> Parameter:
    """With default and example, which must be values of the type."""
    found: dict[str, str] = {}
    for place in ("default", "example"):
        if place not in entry:
            continue
        value = entry[place]
        wanted: type = {"integer": int, "boolean": bool}.get(plain.kind, str)
        if type(value) is not wanted:
            raise _WrongError(f"`{place}` of {what} is {_shown(value)}, not of type `{plain.kind}`")
        if isinstance(value, str) and (_CONTROL.search(value) or len(value) > LONGEST_TEXT):
            raise _WrongError(f"`{place}` of {what} is too long, or has control characters")
        text = str(value).lower() if isinstance(value, bool) else str(value)
        try:
            found[place] = plain.read(text)
        except ValueError as error:
            raise _WrongError(f"`{place}` of {what} is {_shown(value)}: {error}") from None
        if redact_url(text) != text:
            raise _WrongError(f"`{place}` of {what} holds a password")
    return replace(plain, default=found.get("default"), example=found.get("example"))


def _check_fields(entry: Mapping[str, Any], known: frozenset[str], what: str) -> None:
    for name in entry:
        if name not in known and not name.startswith("x-"):
            raise _WrongError(f"{what} has a field `{_short(name)}`, which there is not")


def _word(
    entry: Mapping[str, Any], name: str, known: Sequence[str], default: str, what: str
) -> str:
    value = entry.get(name, default)
    if value not in known:
        raise _WrongError(f"`{name}` of {what} is {_shown(value)}, not {_either(known)}")
    return str(value)


def _switch(entry: Mapping[str, Any], name: str, what: str) -> bool:
    value = entry.get(name, False)
    if not isinstance(value, bool):
        raise _WrongError(f"`{name}` of {what} is {_shown(value)}, not true or false")
    return value


def _number(entry: Mapping[str, Any], name: str, what: str) -> int | None:
    if name not in entry:
        return None
    value = entry[name]
    if type(value) is not int or abs(value) > LARGEST_NUMBER:
        raise _WrongError(f"`{name}` of {what} is {_shown(value)}, no whole number below 2**53")
    return value


def _text(entry: Mapping[str, Any], name: str, limit: int, what: str) -> str:
    value = entry.get(name, "")
    if not isinstance(value, str) or len(value) > limit or _CONTROL.search(value):
        raise _WrongError(
            f"`{name}` of {what} is no text of at most {limit} characters without control "
            "characters"
        )
    return value


def _boolean_word(entry: Mapping[str, Any], name: str, default: str, what: str) -> str:
    return _text(entry, name, LONGEST_TITLE, what) if name in entry else default


def _values(entry: Mapping[str, Any], what: str) -> tuple[str, ...]:
    values = entry.get("values", [])
    if (
        not isinstance(values, list)
        or len(values) > MOST_VALUES
        or ("values" in entry and not values)
        or not all(isinstance(one, str) and len(one) <= LONGEST_TITLE for one in values)
        or any(_CONTROL.search(one) for one in values)
        or len(set(values)) < len(values)
    ):
        raise _WrongError(f"`values` of {what} is no list of 1 to {MOST_VALUES} different texts")
    return tuple(values)


def _texts(entry: Mapping[str, Any], name: str, limit: int, what: str) -> Texts:
    value = entry.get(name, {})
    if isinstance(value, str):
        return {"en": _text(entry, name, limit, what)}
    if not isinstance(value, dict) or not all(_LANGUAGE.match(one) for one in value):
        raise _WrongError(f'`{name}` of {what} is no text, and no object of texts as {{"en": ""}}')
    if len(value) > MOST_VALUES:
        raise _WrongError(f"`{name}` of {what} is in more than {MOST_VALUES} languages")
    return {one: _text(value, one, limit, f"`{name}` of {what}") for one in value}


def _pattern(entry: Mapping[str, Any], what: str) -> Pattern | None:
    if "pattern" not in entry:
        return None
    text = _text(entry, "pattern", LONGEST_PATTERN, what)
    try:
        return Pattern.parse(text)
    except PatternError as error:
        raise _WrongError(f"the pattern of {what} cannot be read: {error}") from None


# --- values -----------------------------------------------------------------------------------


def _read_text(_: Parameter, text: str) -> str:
    return text


def _read_integer(one: Parameter, text: str) -> str:
    number = int(text) if _INTEGER.match(text) else None
    low, high = one.minimum, one.maximum
    if number is None or (low is not None and number < low) or (high is not None and number > high):
        bounds = [f"of at least {low}"] if low is not None else []
        bounds += [f"of at most {high}"] if high is not None else []
        raise ValueError(" ".join(["it must be a whole number", " and ".join(bounds)]).strip())
    return str(number)


def _read_boolean(one: Parameter, text: str) -> str:
    word = text.lower()
    if word in _TRUE or text == one.true_value:
        return one.true_value
    if word in _FALSE or text == one.false_value:
        return one.false_value
    raise ValueError("it must be true or false")


def _read_enum(one: Parameter, text: str) -> str:
    if text not in one.values:
        raise ValueError(f"it must be {_either(one.values)}{_nearest(text, one.values)}")
    return text


def _read_path(_: Parameter, text: str) -> str:
    if not text or _CONTROL.search(text) or ".." in text.split("/"):
        raise ValueError("it must be a path without `..`")
    return text


def _read_url(_: Parameter, text: str) -> str:
    if not _URL.match(text) or _CONTROL.search(text):
        raise ValueError("it must be a URL, as https://host/path")
    return text


_READERS: Mapping[str, Callable[[Parameter, str], str]] = {
    "string": _read_text,
    "integer": _read_integer,
    "boolean": _read_boolean,
    "enum": _read_enum,
    "path": _read_path,
    "url": _read_url,
}


def apply(
    declaration: Declaration, spec: ParameterSpec, chosen: Iterable[str], builder: str
) -> Applied:
    """Values for one build: those given, those recorded, and the defaults.

    `chosen` are the names that have a value already (`--env`, `.s2i/environment`, the image): of
    these no default counts, and none is missing. Raises `UsageError` that names all that is wrong.
    """
    values: dict[str, str] = {}
    faults, warnings = _take_given(declaration, spec, values)
    more_faults, more_warnings = _take_recorded(declaration, spec, values)
    given = tuple(values)
    faults += more_faults
    faults += _fill(declaration, frozenset((*chosen, *spec.given, *spec.recorded)), values)
    if faults:
        raise UsageError(
            f"parameters of `{builder}`: {'; '.join(faults)}",
            hint=f"`ocis2i explain {builder}` lists them",
            reason="ParametersInvalid",
        )
    return _sorted_out(declaration, values, given, (*warnings, *more_warnings))


_Said = tuple[list[str], list[str]]


def _take_given(declaration: Declaration, spec: ParameterSpec, values: dict[str, str]) -> _Said:
    """Adds what the user gave to `values`; faults and warnings."""
    faults: list[str] = []
    warnings: list[str] = []
    for name, text in spec.given.items():
        one = declaration.find(name)
        if one is None:
            known = [parameter.name for parameter in declaration.parameters]
            faults.append(f"there is no parameter `{_short(name)}`{_nearest(name, known)}")
        elif fault := _fault(one, text, values):
            faults.append(fault)
        elif one.secret and name in spec.typed:
            warnings.append(
                f"the secret `{name}` stands on the command line, where everybody on this host "
                f"sees it: write -P {name}=@FILE, or -P {name} to take it from the environment"
            )
    return faults, warnings


def _take_recorded(declaration: Declaration, spec: ParameterSpec, values: dict[str, str]) -> _Said:
    """The same for what an earlier build was given, where nothing else is."""
    faults: list[str] = []
    warnings: list[str] = []
    for name, text in spec.recorded.items():
        one = declaration.find(name)
        if one is None or one.secret:
            warnings.append(f"the builder has no parameter `{_short(name)}` any more: left out")
        elif name not in spec.given and (fault := _fault(one, text, values)):
            faults.append(f"{fault} (it was given for the image that is built again)")
    return faults, warnings


def _fill(declaration: Declaration, known: frozenset[str], values: dict[str, str]) -> list[str]:
    """Adds the defaults of what is not `known`; faults for what is missing."""
    faults: list[str] = []
    for one in declaration.parameters:
        if one.name in known:
            continue
        if one.default is not None:
            values[one.name] = one.default
        elif one.required and not (one.secret and one.when == "run"):
            faults.append(f"`{one.name}` is missing{_about(one)}")
    return faults


def _fault(one: Parameter, text: str, values: dict[str, str]) -> str | None:
    """Adds the value to `values`, or says what is wrong with it."""
    if one.secret and one.when == "run":
        return f"`{one.name}` is a secret of the running image: give it when the image is started"
    shown = _MASK if one.secret else _shown(redact_url(text))
    try:
        value = one.read(text)
    except ValueError as error:
        return f"`{one.name}` is {shown}: {error}"
    if not one.secret and redact_url(value) != value:
        return (
            f"`{one.name}` is {shown} with a password in it, and it is no secret for the builder: "
            f"the image would have it (--build-env {one.name} keeps it out)"
        )
    values[one.name] = value
    return None


def _sorted_out(
    declaration: Declaration,
    values: Mapping[str, str],
    given: Sequence[str],
    warnings: tuple[str, ...],
) -> Applied:
    places: dict[str, dict[str, str]] = {"build": {}, "run": {}, "both": {}, "secret": {}}
    for one in declaration.parameters:
        if one.name in values:
            places["secret" if one.secret else one.when][one.name] = values[one.name]
    repeated = {name: values[name] for name in given if name not in places["secret"]}
    return Applied(**places, given=repeated, warnings=warnings)


def undeclared(spec: ParameterSpec, builder: str) -> UsageError:
    """The error for values that a builder without a declaration was given."""
    names = ", ".join(f"`{_short(name)}`" for name in spec.given)
    return UsageError(
        f"the builder `{builder}` declares no parameters, and was given {names}",
        hint="-e NAME=VALUE sets a variable for assemble and the image, --build-env one for "
        "assemble alone",
        reason="ParametersInvalid",
    )


def encode_given(given: Mapping[str, str]) -> str:
    """The content of `GIVEN_PARAMETERS_LABEL`."""
    return json.dumps(dict(sorted(given.items())), ensure_ascii=False, separators=(",", ":"))


def decode_given(text: str) -> dict[str, str]:
    """What `encode_given` wrote; an image may have anything there, which counts as nothing."""
    try:
        value = _document(text)
    except _WrongError:
        return {}
    if not isinstance(value, dict):
        return {}
    return {name: one for name, one in value.items() if _NAME.match(name) and isinstance(one, str)}


# --- words ------------------------------------------------------------------------------------


def in_language(texts: Texts, language: str) -> str:
    """The text in that language, else in English, else in any."""
    return texts.get(language) or texts.get("en") or next(iter(texts.values()), "")


def is_name(text: str) -> bool:
    """Whether a parameter can have that name."""
    return bool(_NAME.match(text)) and len(text) <= LONGEST_NAME


def _is_text(text: str) -> bool:
    return text.encode(errors="replace").decode() == text


def _about(one: Parameter) -> str:
    title = in_language(one.title, "en")
    return f" ({title})" if title else _such_as(one)


def _such_as(one: Parameter) -> str:
    return f", as `{one.example}`" if one.example else ""


def _nearest(name: str, known: Sequence[str]) -> str:
    from difflib import get_close_matches  # noqa: PLC0415 - only for who is wrong

    found = get_close_matches(name[:LONGEST_NAME], known, 1, 0.6)
    if not found:
        by_case = {one.lower(): one for one in known}
        found = [by_case[name.lower()]] if name.lower() in by_case else []
    return f", did you mean `{found[0]}`?" if found else ""


def _either(words: Sequence[str]) -> str:
    quoted = [f"`{word}`" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} or {quoted[-1]}"


def _shown(value: Any) -> str:
    return f"`{_short(value)}`" if isinstance(value, str) else _short(json.dumps(value))


def _short(text: str) -> str:
    plain = _CONTROL.sub("?", text.encode(errors="replace").decode())
    return plain if len(plain) <= 80 else f"{plain[:77]}..."
