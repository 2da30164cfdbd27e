"""Custom resources, judged by their definition as an API server does that refuses unknown fields.

A CustomResourceDefinition (`apiextensions.k8s.io/v1`) says by `openAPIV3Schema` what its objects
look like. That is no JSON Schema: fields that it does not name are unknown (and refused where
`fieldValidation` is `Strict`, as `kubectl` asks for) unless it says otherwise, `null` counts as
absent, defaults are filled in, lists can be maps or sets. Here it becomes a JSON Schema (draft
2020-12) that says the same. The rules are those of Kubernetes' documentation on
CustomResourceDefinitions and, where that is silent, of the packages pruning, defaulting, listtype
and objectmeta in `apiextensions-apiserver`.

Not evaluated, but counted by `unchecked`: rules in CEL, and formats of texts. Pure.
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError

Json = dict[str, Any]

API_VERSION = "apiextensions.k8s.io/v1"
KIND = "CustomResourceDefinition"
OBJECT_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


class DefinitionError(Exception):
    """A definition that no API server would take, or that is not understood here; says where."""


# --- a definition ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Version:
    """One version of a custom resource, and its schema as it is published."""

    name: str
    served: bool
    schema: Json


@dataclass(frozen=True, slots=True)
class Definition:
    """A CustomResourceDefinition, as far as it decides what objects look like."""

    name: str
    group: str
    kind: str
    scope: str
    versions: Mapping[str, Version]

    @property
    def served(self) -> tuple[str, ...]:
        """The names of the versions that objects can have."""
        return tuple(name for name, one in self.versions.items() if one.served)


def is_definition(document: object) -> bool:
    """Whether a document calls itself a CustomResourceDefinition, of whatever version."""
    return (
        isinstance(document, dict)
        and document.get("kind") == KIND
        and str(document.get("apiVersion")).startswith("apiextensions.k8s.io/")
    )


def parse_definition(document: Json) -> Definition:
    """Raises `DefinitionError` for what is not one of `apiextensions.k8s.io/v1`."""
    name = str(_at(document, "metadata", "name"))
    if (found := document.get("apiVersion")) != API_VERSION:
        raise DefinitionError(f"{name} is of `{found}`, and not of {API_VERSION}")
    versions = _at(document, "spec", "versions")
    if not isinstance(versions, list):
        raise DefinitionError(f"{name}: spec.versions is to be a list")
    parsed = [_parse_version(one, name) for one in versions]
    return Definition(
        name,
        str(_at(document, "spec", "group")),
        str(_at(document, "spec", "names", "kind")),
        str(_at(document, "spec", "scope")),
        {one.name: one for one in parsed},
    )


def _parse_version(version: object, definition: str) -> Version:
    name = str(_at(version, "name"))
    schema = _at(version, "schema", "openAPIV3Schema")
    try:
        # What is not understood would be let through.
        to_json_schema(schema)
    except DefinitionError as error:
        raise DefinitionError(f"{definition}, version {name}: {error}") from error
    return Version(name, bool(_at(version, "served")), schema)


def _at(document: object, *keys: str) -> Any:
    found = document
    for number, key in enumerate(keys):
        if not isinstance(found, dict) or key not in found:
            where = ".".join(keys[: number + 1])
            raise DefinitionError(f"it lacks `{where}`, which every definition has")
        found = found[key]
    return found


# --- what is wrong with an object -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Fault:
    """Where an object is not what its definition says, and why; `value` is what stands there."""

    place: str
    why: str
    value: str

    def __str__(self) -> str:
        return f"{self.place}: {self.why}; there is {self.value}"


class Judge:
    """One version of a definition, ready for objects; `definitions` are those of Kubernetes."""

    def __init__(self, definition: Definition, version: Version, definitions: Json) -> None:
        self._schema = version.schema
        own: Json = {
            "properties": {
                "apiVersion": {"const": f"{definition.group}/{version.name}"},
                "kind": {"const": definition.kind},
                "metadata": _root_metadata(definition.scope),
            },
            "required": ["metadata"],
        }
        both = [to_json_schema(version.schema), own]
        self._validator = _Validator({"allOf": both, "$defs": {**definitions, **_DEFINITIONS}})

    def faults(self, document: Json) -> list[Fault]:
        """All that the API server would refuse of an object, by their places."""
        errors = self._validator.iter_errors(as_received(document, self._schema))
        found = dict.fromkeys(fault for error in errors for fault in _faults_of(error))
        return sorted(found, key=lambda one: (one.place, one.why))


def _faults_of(error: ValidationError) -> Iterator[Fault]:
    path, value, schema = list(error.absolute_path), _any(error.instance), _any(error.schema)
    if error.validator != "additionalProperties":
        yield Fault(place_of(path), _why(error), _shown(value))
        return
    for name in value:
        if name not in schema.get("properties", {}):
            yield Fault(place_of([*path, name]), "no such field", _shown(value[name]))


def _why(error: ValidationError) -> str:
    """The rule that is broken; the messages of jsonschema begin with the value, however long."""
    rule, asked = str(error.validator), _any(error.validator_value)
    match rule:
        case "required":
            # One error for each that is missing.
            missing = [name for name in asked if error.message.startswith(f"{name!r} ")]
            return f"lacks `{missing[0]}`"
        case "type":
            return f"is to be {' or '.join([asked] if isinstance(asked, str) else asked)}"
        case "const":
            return f"is to be {_shown(asked)}"
        case "enum":
            return f"is to be one of {_shown(asked)}"
        case "pattern":
            return f"does not match `{asked}`"
        case "not":
            return "is forbidden"
        case _ if rule == _LIST_TYPE:
            return error.message
        case _:
            return f"breaks `{rule}` of {_shown(asked)}"


def _any(value: Any) -> Any:
    # jsonschema's types say of each that it may not be set yet.
    return value


_PLAIN_KEY = re.compile(r"[A-Za-z_$][A-Za-z0-9_$-]*")
_LONGEST_SHOWN = 120


def place_of(path: Sequence[str | int]) -> str:
    """A place in a document as Kubernetes writes it: `spec.steps[0].name`."""
    text = ""
    for one in path:
        if isinstance(one, int):
            text += f"[{one}]"
        else:
            text += f".{one}" if _PLAIN_KEY.fullmatch(one) else f"[{json.dumps(one)}]"
    return text.removeprefix(".") or "the whole of it"


def _shown(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}…"


# --- what becomes of an object before it is validated ---------------------------------------------


def as_received(document: Json, schema: Json) -> Any:
    """A copy without the fields that are `null` and may not be, and with the defaults."""
    return _received(copy.deepcopy(document), schema)


def _received(value: Any, schema: Any) -> Any:
    if not isinstance(schema, dict):
        return value
    if isinstance(value, list):
        # Only in an object `null` is as good as nothing.
        return [_received(one, schema.get("items")) for one in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties") or {}
    found: Json = {}
    for name, one in value.items():
        known = properties.get(name, schema.get("additionalProperties"))
        if one is None and isinstance(known, dict) and not known.get("nullable"):
            continue
        found[name] = _received(one, known)
    for name, known in properties.items():
        if name not in found and known.get("default") is not None:
            found[name] = _received(copy.deepcopy(known["default"]), known)
    return found


# --- the schema -----------------------------------------------------------------------------------

_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_INT_OR_STRING = "x-kubernetes-int-or-string"
_EMBEDDED = "x-kubernetes-embedded-resource"
_LIST_TYPE = "x-kubernetes-list-type"
_MAP_KEYS = "x-kubernetes-list-map-keys"
_CEL = "x-kubernetes-validations"
_JUNCTORS = ("allOf", "anyOf", "oneOf")
_COPIED = (
    "enum", "maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties",
    "multipleOf", "pattern", "required", "uniqueItems",
)  # fmt: skip
_KNOWN = frozenset([
    *_COPIED, *_JUNCTORS, "not", "additionalProperties", "exclusiveMaximum", "exclusiveMinimum",
    "format", "items", "maximum", "minimum", "nullable", "properties", "type",
    _PRESERVE, _INT_OR_STRING, _EMBEDDED, _LIST_TYPE, _MAP_KEYS, _CEL,
    # These decide nothing when an object is created, but for the default, which `_received` knows.
    "default", "description", "example", "externalDocs", "title", "x-kubernetes-map-type",
])  # fmt: skip
_TYPES = ("array", "boolean", "integer", "number", "object", "string")
_RANGES = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}
# Every number is one of these.
_NUMBERS = ("float", "double")

# By RFC 1123, as Kubernetes has it; Python's `\Z` is the end of the text, and `$` is not.
_LABEL = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
_SUBDOMAIN = rf"{_LABEL}(\.{_LABEL})*"
_NAME_PART = r"([A-Za-z0-9][-A-Za-z0-9_.]{0,61})?[A-Za-z0-9]"
_QUALIFIED = rf"\A({_SUBDOMAIN}/)?{_NAME_PART}\Z"

# What is not specified at all has no fields, at no depth.
_NO_FIELDS = {"$ref": "#/$defs/no-fields"}
_DEFINITIONS: Json = {"no-fields": {"additionalProperties": False, "items": _NO_FIELDS}}


def to_json_schema(schema: Json) -> Json:
    """The schema of a whole object as JSON Schema; `$defs` are to be put beside it.

    Raises `DefinitionError` for what is not understood, and names its place.
    """
    for where, part in _parts(schema, "openAPIV3Schema"):
        _check_part(part, where)
    found = _specifying({**schema, _EMBEDDED: True}, keeps=False)
    try:
        # Not the patterns, which are those of RE2.
        _Validator.check_schema(found, format_checker=jsonschema.FormatChecker(()))
    except jsonschema.SchemaError as error:
        raise DefinitionError(f"there is {_shown(error.instance)}: {error.message}") from error
    return found


def unchecked(schema: Json) -> Mapping[str, int]:
    """What of a schema is not evaluated, in words, and how often it is there."""
    found: Counter[str] = Counter()
    for _, part in _parts(schema, ""):
        if isinstance(rules := part.get(_CEL), list):
            found["rule in CEL"] += len(rules)
        if (name := part.get("format")) and name not in (*_RANGES, *_NUMBERS):
            found[f"format `{name}`"] += 1
        # The API server, too, passes over what it does not know.
        found.update(f"extension `{name}`" for name in part if name not in _KNOWN)
    return found


def _parts(schema: Any, where: str) -> Iterator[tuple[str, Json]]:
    """A schema and all in it, with their places."""
    _expect(schema, dict, where)
    yield where, schema
    properties = schema.get("properties") or {}
    _expect(properties, dict, f"{where}.properties")
    for name, one in properties.items():
        yield from _parts(one, f"{where}.{name}")
    for name in _JUNCTORS:
        several = schema.get(name) or []
        _expect(several, list, f"{where}.{name}")
        for number, one in enumerate(several):
            yield from _parts(one, f"{where}.{name}[{number}]")
    for name in ("items", "not"):
        if name in schema:
            yield from _parts(schema[name], f"{where}.{name}")
    if not isinstance(schema.get("additionalProperties"), bool | None):
        yield from _parts(schema["additionalProperties"], f"{where}.additionalProperties")


def _expect(value: object, kind: type[dict[Any, Any] | list[Any]], where: str) -> None:
    if not isinstance(value, kind):
        wanted = "a list" if kind is list else "an object"
        raise DefinitionError(f"{where} is to be {wanted}; there is {_shown(value)}")


def _check_part(part: Json, where: str) -> None:
    for name in part:
        if name not in _KNOWN and not str(name).startswith("x-"):
            raise DefinitionError(f"{where} has `{name}`, which is not understood here")
    if part.get("type", "object") not in _TYPES:
        raise DefinitionError(f"{where} is of type `{part['type']}`, which Kubernetes has not")
    if (kind := part.get(_LIST_TYPE, "atomic")) not in ("atomic", "map", "set"):
        raise DefinitionError(f"{where} is a list of type `{kind}`, which Kubernetes has not")
    keys = part.get(_MAP_KEYS) or []
    _expect(keys, list, f"{where}.{_MAP_KEYS}")
    if (kind == "map") != bool(keys) or not all(isinstance(one, str) for one in keys):
        raise DefinitionError(f"{where}: {_MAP_KEYS} names the keys of lists that are maps")
    try:
        _compiled(str(part.get("pattern", "")))
    except DefinitionError as error:
        raise DefinitionError(f"{where}: {error}") from error


def _specifying(schema: Json, *, keeps: bool) -> Json:
    """What names fields, so that all others are unknown.

    With `keeps` they stay nonetheless: x-kubernetes-preserve-unknown-fields of a list holds for the
    objects in it, while what is named in an object is as strict as ever.
    """
    keeps = keeps or bool(schema.get(_PRESERVE))
    found = _demanding(schema)
    if properties := schema.get("properties"):
        found["properties"] = {
            name: _specifying(one, keeps=False) for name, one in properties.items()
        }
    others = schema.get("additionalProperties")
    if isinstance(others, dict):
        found["additionalProperties"] = _specifying(others, keeps=False)
    elif others:
        found["additionalProperties"] = _NO_FIELDS
    elif not keeps:
        found["additionalProperties"] = False
    if "items" in schema:
        found["items"] = _specifying(schema["items"], keeps=keeps)
    elif not keeps:
        found["items"] = _NO_FIELDS
    return _embedding(schema, found) if schema.get(_EMBEDDED) else found


def _embedding(schema: Json, found: Json) -> Json:
    """An object with the three fields that every object of Kubernetes has, named or not."""
    given = schema.get("properties") or {}
    rules = {
        "apiVersion": {"type": "string", "pattern": r"\A[^/]+(/[^/]+)?\Z"},
        "kind": {"type": "string", "pattern": r"\A[A-Za-z]([-A-Za-z0-9]{0,61}[A-Za-z0-9])?\Z"},
        "metadata": {"allOf": [{"$ref": f"#/$defs/{OBJECT_META}"}, _LABELLED]},
    }
    fields = {name: {"allOf": [_open(given.get(name, {})), rule]} for name, rule in rules.items()}
    required = dict.fromkeys([*found.get("required", ()), "apiVersion", "kind"])
    properties = {**found.get("properties", {}), **fields}
    return {**found, "properties": properties, "required": list(required)}


_LABELLED: Json = {
    "properties": {
        "annotations": {"propertyNames": {"pattern": rf"(?i){_QUALIFIED}"}},
        "labels": {
            "propertyNames": {"pattern": _QUALIFIED},
            "additionalProperties": {"pattern": rf"\A({_NAME_PART})?\Z"},
        },
    }
}


def _root_metadata(scope: str) -> Json:
    """What the metadata of an object has to be in a cluster, beyond its types."""
    namespace = (
        {"pattern": rf"\A{_LABEL}\Z", "maxLength": 63} if scope != "Cluster" else {"not": {}}
    )
    name = {"pattern": rf"\A{_SUBDOMAIN}\Z", "maxLength": 253}
    return {
        "anyOf": [{"required": ["name"]}, {"required": ["generateName"]}],
        "properties": {"name": name, "namespace": namespace},
    }


def _open(schema: Json) -> Json:
    """What only demands something of fields, and names none: no field is unknown by it."""
    found = _demanding(schema)
    if properties := schema.get("properties"):
        found["properties"] = {name: _open(one) for name, one in properties.items()}
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            found[name] = _open(schema[name])
    return found


def _demanding(schema: Json) -> Json:
    """What a schema demands of the value itself."""
    found: Json = {name: schema[name] for name in _COPIED if name in schema}
    found |= _type(schema) | _bounds(schema)
    if schema.get(_LIST_TYPE, "atomic") != "atomic":
        found[_LIST_TYPE] = schema[_LIST_TYPE]
        found[_MAP_KEYS] = schema.get(_MAP_KEYS, [])
    for name in _JUNCTORS:
        if schema.get(name):
            found[name] = [_open(one) for one in schema[name]]
    if "not" in schema:
        found["not"] = _open(schema["not"])
    if schema.get("type") == "integer" and (bounds := _RANGES.get(str(schema.get("format")))):
        lowest, highest = bounds
        found.setdefault("allOf", []).append({"minimum": lowest, "maximum": highest})
    return found


def _type(schema: Json) -> Json:
    kinds = ["integer", "string"] if schema.get(_INT_OR_STRING) else [schema.get("type")]
    if kinds == [None]:
        return {}
    if schema.get("nullable"):
        kinds.append("null")
    return {"type": kinds if len(kinds) > 1 else kinds[0]}


def _bounds(schema: Json) -> Json:
    """In OpenAPI 3.0 a bound is exclusive by a second word that is true."""
    found: Json = {}
    for name, exclusive in (("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")):
        if name in schema:
            found[exclusive if schema.get(exclusive) else name] = schema[name]
    return found


_IN_PATTERNS = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\$", re.DOTALL)
# These Python reads as something else, or warns that it will.
_OTHERWISE = ("[[:", r"\C", "(?m")


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    r"""A pattern of RE2, whose `$` is the end of the text; Python's is also before a last newline.

    Raises `DefinitionError` for what Python has not, or has otherwise.
    """
    text = _IN_PATTERNS.sub(lambda one: r"\Z" if one[0] in ("$", r"\z") else one[0], pattern)
    if any(part in text for part in _OTHERWISE):
        raise DefinitionError(f"for Python the pattern `{pattern}` is another")
    try:
        return re.compile(text)
    except re.error as error:
        raise DefinitionError(f"Python has not the pattern `{pattern}`: {error}") from error


def _check_pattern(
    validator: Any,
    pattern: str,
    instance: object,
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    if isinstance(instance, str) and not _compiled(pattern).search(instance):
        yield ValidationError("does not match")


def _check_list(
    validator: Any,
    kind: str,
    instance: object,
    schema: Mapping[str, Any],
) -> Iterator[ValidationError]:
    """Of a set no two are the same, of a map no two keys."""
    if not isinstance(instance, list):
        return
    seen: set[str] = set()
    for number, one in enumerate(instance):
        key = one
        if kind == "map":
            if not isinstance(one, dict):
                yield ValidationError("is to be an object", path=[number], instance=one)
                continue
            key = {name: one[name] for name in schema[_MAP_KEYS] if name in one}
        text = json.dumps(key, sort_keys=True)
        if text in seen:
            what = f"has a key of before, {text}" if kind == "map" else "is there twice"
            yield ValidationError(what, path=[number], instance=one)
        seen.add(text)


_extend: Any = jsonschema.validators.extend
_Validator: Any = _extend(
    jsonschema.Draft202012Validator, {_LIST_TYPE: _check_list, "pattern": _check_pattern}
)
