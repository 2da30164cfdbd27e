"""Holds what a build wrote against the schemas that are published for its readers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import jsonschema
from referencing import Registry, Resource

SCHEMAS = Path(__file__).parent.parent.parent / "docs/schemas"
Kind = Literal["record.schema.json", "event.schema.json", "result.schema.json"]


def schema(kind: Kind) -> dict[str, Any]:
    value = json.loads((SCHEMAS / kind).read_bytes())
    assert isinstance(value, dict)
    return value


def check_against(kind: Kind, document: dict[str, Any]) -> None:
    """Raises when the document is not as the schema says, or has what it does not speak of.

    What readers have to bear, an event of an unknown type, is no excuse for who writes one.
    """
    own = schema(kind)
    found = faults(kind, document)
    assert not found, f"{found} in {document}"
    assert set(document) - known(own) == set()
    if kind == "event.schema.json":
        assert document["type"] in event_types()


def event_types() -> list[str]:
    """The types that the schema of events knows."""
    listed = schema("event.schema.json")["properties"]["type"]["anyOf"][0]["enum"]
    assert isinstance(listed, list)
    return listed


def faults(kind: Kind, document: dict[str, Any]) -> list[str]:
    """What in the document is not as the schema says: all that a reader of it asks for."""
    others: tuple[Kind, ...] = ("result.schema.json",)
    # attrs hides these arguments from mypy.
    registry: Registry[Any] = Registry().with_resources(
        [(name, Resource.from_contents(schema(name))) for name in others]
    )
    validator = jsonschema.Draft202012Validator(schema(kind), registry=registry)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def known(part: dict[str, Any]) -> set[str]:
    """All names of fields that a schema speaks of, for whichever kind."""
    names = set(part.get("properties", ()))
    for branch in [*part.get("allOf", ()), part.get("then", {}), part.get("else", {})]:
        names |= set(branch.get("properties", ())) | (known(branch) if branch else set())
    return names
