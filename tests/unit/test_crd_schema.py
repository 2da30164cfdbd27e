"""Custom resources by their definition: each rule of an API server, kept and broken."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest

from tests.crd_schema import (
    DefinitionError,
    Judge,
    as_received,
    is_definition,
    parse_definition,
    place_of,
    unchecked,
)
from tests.fakes.kube_api import definitions

Json = dict[str, Any]
kubernetes = cache(definitions)
TEXT = {"type": "string"}
KEEP: Json = {"x-kubernetes-preserve-unknown-fields": True}
INT_OR_STRING = {"x-kubernetes-int-or-string": True}


def definition(spec: Json, *, scope: str = "Namespaced", **root: Any) -> Json:
    """The definition of Boats, whose field `spec` has a schema of its own."""
    schema = {
        "type": "object",
        "properties": {"metadata": {"type": "object"}, "spec": spec},
        **root,
    }
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "boats.harbour.example"},
        "spec": {
            "group": "harbour.example",
            "scope": scope,
            "names": {"kind": "Boat", "plural": "boats"},
            "versions": [
                {
                    "name": "v1",
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": schema},
                }
            ],
        },
    }


def boat(spec: Any = None, **fields: Any) -> Json:
    return {
        "apiVersion": "harbour.example/v1",
        "kind": "Boat",
        "metadata": {"name": "anna"},
        **({} if spec is None else {"spec": spec}),
        **fields,
    }


def faults(document: Json, of: Json) -> list[str]:
    parsed = parse_definition(of)
    judge = Judge(parsed, parsed.versions["v1"], kubernetes())
    return [str(one) for one in judge.faults(document)]


def judged(schema: Json, value: Any) -> list[str]:
    """What is wrong with a Boat whose `spec.a` is that value, by that schema."""
    return faults(boat({"a": value}), definition({"type": "object", "properties": {"a": schema}}))


def an_object(**properties: Any) -> Json:
    return {"type": "object", "properties": properties}


def a_list(items: Json, **more: Any) -> Json:
    return {"type": "array", "items": items, **more}


def a_map(*keys: str, **properties: Any) -> Json:
    return a_list(
        an_object(**properties),
        **{"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": list(keys)},
    )


A_SET = {"x-kubernetes-list-type": "set"}
EMBEDDED = {"type": "object", "x-kubernetes-embedded-resource": True}
POD = {"apiVersion": "v1", "kind": "Pod"}

# What a value is to be, one that is, one that is not, and what is said of that.
RULES: dict[str, tuple[Json, Any, Any, str]] = {
    "a type": (TEXT, "x", 1, "spec.a: is to be string; there is 1"),
    "true is no number": ({"type": "integer"}, 1, True, "spec.a: is to be integer; there is true"),
    "an unknown field": (
        an_object(b=TEXT), {"b": "x"}, {"b": "x", "c": 1}, "spec.a.c: no such field; there is 1"
    ),
    "an unknown field that is null": (
        an_object(b=TEXT), {}, {"c": None}, "spec.a.c: no such field; there is null"
    ),
    "an unknown field in a list": (
        a_list(an_object(b=TEXT)), [{}], [{}, {"c": 1}], "spec.a[1].c: no such field; there is 1"
    ),
    "an object without fields": ({"type": "object"}, {}, {"b": {}}, "spec.a.b: no such field"),
    "a list of things not described": (
        {"type": "array"}, [1, [2]], [1, [{"b": 1}]], "spec.a[1][0].b: no such field"
    ),
    "fields of any name": (
        {"type": "object", "additionalProperties": TEXT}, {"b/c": "x"}, {"b/c": 1},
        'spec.a["b/c"]: is to be string; there is 1',
    ),
    "unknown fields below fields of any name": (
        {"type": "object", "additionalProperties": an_object(c=TEXT)},
        {"b": {"c": "x"}}, {"b": {"d": "x"}}, "spec.a.b.d: no such field",
    ),
    "fields of any name and kind": (
        {"type": "object", "additionalProperties": True}, {"b": 1}, {"b": {"c": 1}},
        "spec.a.b.c: no such field",
    ),
    "a field that has to be": (
        {**an_object(b=TEXT), "required": ["b"]}, {"b": ""}, {}, "spec.a: lacks `b`; there is {}"
    ),
    "what is named beside fields that stay": (
        {**an_object(b=an_object(c=TEXT)), **KEEP}, {"x": {"y": 1}, "b": {"c": "x"}},
        {"x": 1, "b": {"d": 1}}, "spec.a.b.d: no such field",
    ),
    "the type where fields stay": (
        {**an_object(b=TEXT), **KEEP}, {"x": 1}, {"b": 1}, "spec.a.b: is to be string"
    ),
    "objects of a list whose fields stay": (
        {**a_list(an_object(b=an_object())), **KEEP}, [{"x": {"y": 1}}], [{"b": {"y": 1}}],
        "spec.a[0].b.y: no such field",
    ),
    "a number or a text": (
        {**INT_OR_STRING, "anyOf": [{"type": "integer"}, TEXT]}, 8080, 80.5,
        "spec.a: is to be integer or string; there is 80.5",
    ),
    "a number or a text, by the one word": (INT_OR_STRING, "http", [], "integer or string"),
    "the pattern of a number or a text": (
        {**INT_OR_STRING, "pattern": "^[0-9]+(Mi|Gi)?$"}, 5, "5 G", "spec.a: does not match `^[0-9]"
    ),
    "a text that is one, in a number or text": (INT_OR_STRING, "true", True, "integer or string"),
    "null in a list": (
        a_list(TEXT), ["x"], ["x", None], "spec.a[1]: is to be string; there is null"
    ),
    "null in a list that may have it": (
        a_list({**TEXT, "nullable": True}), [None, "x"], [None, 1], "is to be string or null"
    ),
    "an embedded object": (
        EMBEDDED, {**POD, "metadata": {"labels": {"a.example/b": "C"}}}, {"kind": "Pod"},
        "spec.a: lacks `apiVersion`",
    ),
    "the version of an embedded object": (
        EMBEDDED, POD, {**POD, "apiVersion": "a/b/c"}, "spec.a.apiVersion: does not match"
    ),
    "the kind of an embedded object": (
        EMBEDDED, POD, {**POD, "kind": "a kind"}, "spec.a.kind: does not match"
    ),
    "the metadata of an embedded object": (
        EMBEDDED, {**POD, "metadata": {}}, {**POD, "metadata": {"colour": "red"}},
        'spec.a.metadata.colour: no such field; there is "red"',
    ),
    "a label in an embedded object": (
        EMBEDDED, POD, {**POD, "metadata": {"labels": {"a": "b c"}}}, "spec.a.metadata.labels.a: d"
    ),
    "unknown fields of an embedded object": (
        EMBEDDED, POD, {**POD, "spec": {}}, "spec.a.spec: no such field"
    ),
    "known fields of an embedded object that keeps others": (
        {**EMBEDDED, **KEEP, "properties": {"spec": an_object(b=TEXT)}},
        {**POD, "data": {"x": 1}, "spec": {}}, {**POD, "spec": {"c": 1}}, "spec.a.spec.c: no such",
    ),
    "an int32": (
        {"type": "integer", "format": "int32"}, -(2**31), 2**31, "breaks `maximum` of 2147483647"
    ),
    "an int64": (
        {"type": "integer", "format": "int64"}, 2**63 - 1, -(2**63) - 1, "spec.a: breaks `minimum`"
    ),
    "an int32 with a bound of its own": (
        {"type": "integer", "format": "int32", "minimum": 1}, 1, 0, "spec.a: breaks `minimum` of 1"
    ),
    "an int32 with a rule of its own": (
        {"type": "integer", "format": "int32", "allOf": [{"enum": [1, 2**31]}]}, 1, 2**31, "maximum"
    ),
    "a bound": ({"type": "integer", "maximum": 5}, 5, 6, "spec.a: breaks `maximum` of 5"),
    "a bound that is outside": (
        {"type": "number", "minimum": 0, "exclusiveMinimum": True}, 0.1, 0, "exclusiveMinimum` of 0"
    ),
    "a length": ({**TEXT, "maxLength": 2}, "ab", "abc", 'breaks `maxLength` of 2; there is "abc"'),
    "one of some": (
        {**TEXT, "enum": ["a", "b"]}, "a", "c", 'is to be one of ["a", "b"]; there is "c"'
    ),
    "the end of a text in a pattern": (
        {**TEXT, "pattern": "^[a$]$"}, "$", "a\n", 'a: does not match `^[a$]$`; there is "a\\n"'
    ),
    "a set": (
        a_list(TEXT, **A_SET), ["a", "b"], ["a", "b", "a"], 'a[2]: is there twice; there is "a"'
    ),
    "a set knows kinds apart": (
        a_list({"type": "number"}, **A_SET), [1, 2], [1, 1], "spec.a[1]: is there twice; there is 1"
    ),
    "a map": (
        a_map("b", b=TEXT, c=TEXT), [{"b": "x"}, {"b": "y"}], [{"b": "x", "c": "1"}, {"b": "x"}],
        'spec.a[1]: has a key of before, {"b": "x"}; there is {"b": "x"}',
    ),
    "a map without its key": (
        a_map("b", b=TEXT), [{}], [{}, {}], "spec.a[1]: has a key of before, {}"
    ),
    "a map with a default in its key": (
        a_map("b", "c", b=TEXT, c={**TEXT, "default": "TCP"}),
        [{"b": "1"}, {"b": "1", "c": "UDP"}], [{"b": "1"}, {"b": "1", "c": "TCP"}],
        'spec.a[1]: has a key of before, {"b": "1", "c": "TCP"}',
    ),
    "a map of what is none": (a_map("b", b=TEXT), [], ["x"], "spec.a[0]: is to be an object"),
    "an atomic list": (
        a_list(TEXT, **{"x-kubernetes-list-type": "atomic"}), ["a", "a"], "a", "is to be array"
    ),
    "one of several rules": (
        {**an_object(b=TEXT, c=TEXT), "oneOf": [{"required": ["b"]}, {"required": ["c"]}]},
        {"b": ""}, {"b": "", "c": ""}, "spec.a: breaks `oneOf`",
    ),
    "a rule on a field, which names none": (
        {**an_object(b=TEXT), "allOf": [{"properties": {"b": {"minLength": 1}, "c": {}}}]},
        {"b": "x"}, {"c": 1}, "spec.a.c: no such field",
    ),
    "a rule on a field of a field": (
        {**an_object(b=an_object(c=TEXT)), "not": {"properties": {"b": {"required": ["c"]}}}},
        {"b": {}}, {"b": {"c": ""}}, 'spec.a: is forbidden; there is {"b": {"c": ""}}',
    ),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES)
def test_what_keeps_the_rule_is_taken_and_what_breaks_it_is_named(rule: str) -> None:
    schema, good, bad, said = RULES[rule]
    assert judged(schema, good) == []
    found = judged(schema, bad)
    assert any(said in one for one in found), found


def test_null_is_as_good_as_nothing_unless_it_is_allowed() -> None:
    assert judged(TEXT, None) == []
    assert judged({**TEXT, "nullable": True}, None) == []
    needed = {**an_object(b=TEXT), "required": ["b"]}
    assert judged(needed, {"b": None}) == ["spec.a: lacks `b`; there is {}"]
    nullable = {**an_object(b={**TEXT, "nullable": True}), "required": ["b"]}
    assert judged(nullable, {"b": None}) == []
    assert judged({**needed, "properties": {"b": {**TEXT, "default": "x"}}}, {"b": None}) == []


def test_defaults_are_filled_in_at_every_depth_and_the_document_stays_as_it_was() -> None:
    inner = an_object(c={"type": "integer", "default": 5}, d={**TEXT, "nullable": True})
    schema = an_object(a=a_list(inner), b={**inner, "default": {}}, e=TEXT)
    document = {"a": [{}, {"c": 1, "d": None}], "e": None}
    before = copy.deepcopy(document)
    assert as_received(document, schema) == {"a": [{"c": 5}, {"c": 1, "d": None}], "b": {"c": 5}}
    assert document == before


def test_every_fault_is_said_once_and_in_order() -> None:
    schema = an_object(b=INT_OR_STRING, c=a_list(an_object(d=TEXT)))
    assert judged(schema, {"x": 1, "b": [], "c": [{"d": 1, "e": 2}]}) == [
        "spec.a.b: is to be integer or string; there is []",
        "spec.a.c[0].d: is to be string; there is 1",
        "spec.a.c[0].e: no such field; there is 2",
        "spec.a.x: no such field; there is 1",
    ]


def test_a_long_value_is_cut() -> None:
    (said,) = judged({"type": "integer"}, "x" * 5000)
    assert len(said) < 200
    assert said.endswith("x…")


# --- the whole object -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"apiVersion": "harbour.example/v2"}, 'apiVersion: is to be "harbour.example/v1"'),
        ({"kind": "Ship"}, 'kind: is to be "Boat"; there is "Ship"'),
        ({"colour": "red"}, "colour: no such field"),
        ({"status": {}}, "status: no such field"),
        ({"metadata": {}}, "metadata: breaks `anyOf`"),
        ({"metadata": {"name": "Anna"}}, 'metadata.name: does not match'),
        ({"metadata": {"name": "a", "colour": "red"}}, "metadata.colour: no such field"),
        ({"metadata": {"name": "a", "namespace": "a.b"}}, "metadata.namespace: does not match"),
        ({"metadata": {"name": "a", "labels": {"a": "b" * 64}}}, "metadata.labels.a: does not"),
        ({"metadata": {"name": "a", "labels": {"a b": ""}}}, "metadata.labels: does not match"),
        ({"metadata": {"name": "a", "labels": {"a": 1}}}, "metadata.labels.a: is to be string"),
        ({"metadata": {"name": "a", "annotations": {"-": ""}}}, "metadata.annotations: does not"),
        ({"metadata": None}, "the whole of it: lacks `metadata`"),
    ],
)  # fmt: skip
def test_what_every_object_has_is_checked_too(fields: Json, said: str) -> None:
    found = faults(boat(**fields), definition({"type": "object"}))
    assert any(one.startswith(said) for one in found), found


def test_metadata_as_kubernetes_has_it_is_taken() -> None:
    metadata = {
        "generateName": "a-",
        "namespace": "builds",
        "labels": {"app.kubernetes.io/name": "A_b.c", "empty": ""},
        "annotations": {"Example.COM/note": "any text\n"},
    }
    assert faults(boat(metadata=metadata), definition({"type": "object"})) == []


def test_what_belongs_to_the_cluster_has_no_namespace() -> None:
    of = definition({"type": "object"}, scope="Cluster")
    assert faults(boat(), of) == []
    named = boat(metadata={"name": "a", "namespace": "builds"})
    assert faults(named, of) == ['metadata.namespace: is forbidden; there is "builds"']


def test_a_definition_can_ask_for_shorter_names() -> None:
    metadata = an_object(name={**TEXT, "maxLength": 3})
    of = definition({}, properties={"metadata": metadata})
    assert faults(boat(metadata={"name": "ann", "labels": {}}), of) == []
    assert faults(boat(), of) == ['metadata.name: breaks `maxLength` of 3; there is "anna"']


def test_an_object_of_which_all_stays_is_still_one_with_a_name() -> None:
    of = definition({}, scope="Namespaced", **KEEP)
    assert faults(boat(colour={"deep": [{"red": 1}]}), of) == []
    assert faults({**boat(), "metadata": {"labels": {}}}, of) != []


# --- definitions ------------------------------------------------------------------------------


def test_what_is_not_evaluated_is_counted() -> None:
    schema = an_object(
        format=TEXT,
        a={**TEXT, "format": "date-time"},
        b={"type": "integer", "format": "int32", "x-kubernetes-validations": [{}, {}]},
        c={"type": "string", "x-colour": "red"},
    )
    counted = {"rule in CEL": 2, "format `date-time`": 1, "extension `x-colour`": 1}
    assert unchecked(schema) == counted
    assert judged(schema, {"a": "no date", "b": 1, "c": ""}) == []


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ({"colour": "red"}, "spec has `colour`, which is not understood here"),
        ({"type": "text"}, "spec is of type `text`"),
        ({"type": "object", "properties": {"a": "string"}}, 'spec.a is to be an object; there'),
        (a_list(TEXT, **{"x-kubernetes-list-type": "bag"}), "spec is a list of type `bag`"),
        (a_list({}, **{"x-kubernetes-list-type": "map"}), "spec: x-kubernetes-list-map-keys "),
        (a_map("a", a=TEXT) | {"x-kubernetes-list-map-keys": [["a"]]}, "spec: x-kubernetes-list-m"),
        ({**TEXT, "pattern": "("}, "spec: Python has not the pattern `(`"),
        ({**TEXT, "pattern": r"\pL"}, "spec: Python has not"),
        ({**TEXT, "pattern": "[[:alpha:]]"}, "spec: for Python the pattern"),
        ({"anyOf": [{"a": 1}]}, "spec.anyOf[0] has `a`"),
        ({"anyOf": {"a": 1}}, "spec.anyOf is to be a list"),
        ({"properties": ["a"]}, "spec.properties is to be an object"),
        ({"additionalProperties": "no"}, "spec.additionalProperties is to be an object"),
        ({"items": [TEXT]}, "spec.items is to be an object"),
        ([], "spec is to be an object"),
    ],
)  # fmt: skip
def test_a_schema_that_is_not_understood_is_refused_with_its_place(schema: Json, said: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        parse_definition(definition(schema))
    assert f"boats.harbour.example, version v1: openAPIV3Schema.{said}" in str(raised.value)


@pytest.mark.parametrize(
    "schema", [{"required": "a"}, {"enum": 5}, {"maxLength": "5"}, {"minimum": "0"}]
)
def test_a_word_with_a_value_that_it_cannot_have_is_refused(schema: Json) -> None:
    with pytest.raises(DefinitionError, match=r"version v1: there is "):
        parse_definition(definition(schema))


def test_an_end_of_the_text_as_re2_writes_it_is_understood() -> None:
    assert judged({**TEXT, "pattern": r"\Aa\z"}, "a") == []
    assert judged({**TEXT, "pattern": r"\$\.[$]$"}, "$.$") == []


def test_a_definition_without_its_parts_is_refused() -> None:
    whole = definition({"type": "object"})
    assert is_definition(whole)
    assert parse_definition(whole).served == ("v1",)
    for part in ("group", "names", "scope", "versions"):
        broken = copy.deepcopy(whole)
        del broken["spec"][part]
        with pytest.raises(DefinitionError, match=part):
            parse_definition(broken)
    old = {**whole, "apiVersion": "apiextensions.k8s.io/v1beta1"}
    assert is_definition(old)
    with pytest.raises(DefinitionError, match=r"is of `apiextensions\.k8s\.io/v1beta1`"):
        parse_definition(old)
    assert not is_definition(boat())
    assert not is_definition([])


def test_a_version_that_is_not_served_is_none() -> None:
    whole = definition({"type": "object"})
    whole["spec"]["versions"].append(
        {**whole["spec"]["versions"][0], "name": "v2", "served": False}
    )
    assert parse_definition(whole).served == ("v1",)


def test_places_are_written_as_kubernetes_writes_them() -> None:
    assert place_of(["spec", "steps", 0, "a/b", "c-d"]) == 'spec.steps[0]["a/b"].c-d'
    assert place_of([]) == "the whole of it"
