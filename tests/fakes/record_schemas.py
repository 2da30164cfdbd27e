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
    """Raises when the document is not as the schema says, or has what it does not speak of."""
    others: tuple[Kind, ...] = ("result.schema.json",)
    # attrs hides these arguments from mypy.
    registry: Registry[Any] = Registry().with_resources(
        [(name, Resource.from_contents(schema(name))) for name in others]
    )
    own = schema(kind)
    validator = jsonschema.Draft202012Validator(own, registry=registry)
    faults = [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]
    assert not faults, f"{faults} in {document}"
    assert set(document) - known(own) == set()


def known(part: dict[str, Any]) -> set[str]:
    """All names of fields that a schema speaks of, for whichever kind."""
    names = set(part.get("properties", ()))
    for branch in [*part.get("allOf", ()), part.get("then", {}), part.get("else", {})]:
        names |= set(branch.get("properties", ())) | (known(branch) if branch else set())
    return names
