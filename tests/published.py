"""Holds what `kube render` writes against definitions as Tekton and Shipwright publish them.

Their text is under licences of its own and not in this project: whoever has a release at hand gives
its file to scripts/check_published. The ordinary tests use tests/schemas/ instead.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.crd_schema import (
    Definition,
    DefinitionError,
    Judge,
    is_definition,
    parse_definition,
    unchecked,
)
from tests.fakes.kube_api import definitions
from tests.kube_varieties import OBJECTS, VARIETIES, rendered

Faults = Mapping[str, Sequence[str]]

ABOUT = "Holds what `ocis2i kube render` writes against CustomResourceDefinitions out of files."


class UnusableError(Exception):
    """A file that nothing can be held against; the second argument is the way out."""


@dataclass(frozen=True, slots=True)
class Ours:
    """What `kube render` calls a kind, and what Kubernetes does."""

    name: str
    group: str
    version: str
    kind: str

    def __str__(self) -> str:
        return f"{self.kind} of {self.group}/{self.version}"


def ours() -> tuple[Ours, ...]:
    """The kinds that a CustomResourceDefinition can be of: those whose group is somebody's own."""
    return tuple(
        Ours(name, group, version, document["kind"])
        for name in OBJECTS
        for document in (next(rendered(name))[1],)
        for group, _, version in (document["apiVersion"].rpartition("/"),)
        if "." in group
    )


def read(path: Path) -> list[tuple[Ours, Definition]]:
    """The definitions of a file that are of our kinds. Raises `UnusableError`."""
    documents = _documents(path)
    wanted = {(one.group, one.kind): one for one in ours()}
    named = ", ".join(map(str, wanted.values()))
    found = []
    for document in filter(is_definition, documents):
        one = wanted.get(_kind_of(document))
        if one is None:
            continue
        try:
            found.append((one, parse_definition(document)))
        except DefinitionError as error:
            raise UnusableError(
                f"`{path}` has a definition that cannot be used: {error}",
                "take the file of a release as it is",
            ) from error
    if found:
        return found
    count = sum(map(is_definition, documents))
    what = (
        f"{count} CustomResourceDefinitions, but none" if count else "no CustomResourceDefinition"
    )
    raise UnusableError(f"`{path}` has {what} of ours", f"wanted is one of: {named}")


def _documents(path: Path) -> list[Any]:
    try:
        with path.open("rb") as file:
            return [one for whole in yaml.load_all(file, _Loader) for one in _items(whole)]
    except OSError as error:
        raise UnusableError(
            f"`{path}` cannot be read: {error.strerror}", "name a file that was downloaded"
        ) from error
    except (yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        raise UnusableError(f"`{path}` is no YAML: {problem}", "download it again") from error


def _items(document: Any) -> list[Any]:
    """What `kubectl get` prints of several objects is one, a List."""
    if isinstance(document, dict) and document.get("kind") == "List":
        found = document.get("items")
        return found if isinstance(found, list) else []
    return [document]


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # C, if there
    """Takes `=` for a text, as everybody does but YAML 1.1."""


_Loader.add_constructor(
    "tag:yaml.org,2002:value", lambda loader, node: loader.construct_scalar(node)
)


def _kind_of(document: dict[str, Any]) -> tuple[str, str]:
    spec = document.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    names = spec.get("names")
    kind = names.get("kind") if isinstance(names, dict) else None
    return str(spec.get("group")), str(kind)


def compare(one: Ours, definition: Definition) -> dict[str, list[str]]:
    """Everything that is wrong with the manifests of a kind, and the varieties that have it."""
    if one.version not in definition.served:
        there = ", ".join(definition.served) or "none"
        return {f"the version {one.version} is not served; served is {there}": []}
    judge = Judge(definition, definition.versions[one.version], definitions())
    found: dict[str, list[str]] = {}
    for variety, document in rendered(one.name):
        for fault in judge.faults(document):
            found.setdefault(str(fault), []).append(variety)
    return found


def report(path: Path, one: Ours, definition: Definition, faults: Faults) -> Iterator[str]:
    """What is to be said of one kind in one file: a line for each fault, and the sum of them."""
    for text, varieties in faults.items():
        whose = "all" if len(varieties) in (0, len(VARIETIES)) else "; ".join(varieties)
        yield f"{one.name} ({whose}): {text}"
    verdict = f"faults: {len(faults)}" if faults else "all fit"
    about = f"{path.name}: {definition.name}, {one}"
    yield f"{about}: {len(VARIETIES)} manifests, {verdict}"
    if version := definition.versions.get(one.version):
        for what, count in unchecked(version.schema).items():
            yield f"{about}: not evaluated: {what} ({count})"


def main(arguments: Sequence[str] | None = None) -> int:
    """0 if all fits, 1 if something does not, 2 if there is nothing to hold anything against."""
    parser = argparse.ArgumentParser(prog="check_published", description=ABOUT)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="YAML of a release")
    options = parser.parse_args(arguments)
    try:
        given = [(path, *pair) for path in options.files for pair in read(path)]
    except UnusableError as error:
        what, way_out = error.args
        sys.stderr.write(f"error: {what}\nhint: {way_out}\n")
        return 2
    code = 0
    for path, one, definition in given:
        faults = compare(one, definition)
        code = 1 if faults else code
        for text in report(path, one, definition, faults):
            sys.stdout.write(f"{text}\n")
    return code
