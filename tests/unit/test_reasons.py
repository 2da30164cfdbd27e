"""The words for what went wrong: those in the code are those in `docs/json.md`."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

PROJECT = Path(__file__).parent.parent.parent
# Availability has a `reason`, too, which is a sentence or a path.
WORD = re.compile(r"[A-Z][A-Za-z0-9]+")


def given(node: ast.AST) -> Iterator[ast.expr | None]:
    """What a piece of code gives as the reason of an error."""
    match node:
        case ast.keyword(arg="reason", value=value):
            yield value
        case ast.AnnAssign(target=ast.Name(id="default_reason"), value=value):
            yield value
        case ast.Assign(targets=[ast.Name(id="default_reason")], value=value):
            yield value
        case ast.Assign(targets=[ast.Attribute(attr="reason")], value=value):
            yield value
        case ast.Call(func=ast.Name(id="blamed_on"), args=[value]):
            yield value
        case ast.arguments():
            for argument, default in zip(node.kwonlyargs, node.kw_defaults, strict=True):
                if argument.arg == "reason":
                    yield default
        case _:
            pass


def reasons_of(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    constants = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = set()
    for node in ast.walk(tree):
        for value in given(node):
            known = constants.get(value.id) if isinstance(value, ast.Name) else value
            if isinstance(known, ast.Constant) and WORD.fullmatch(str(known.value or "")):
                found.add(str(known.value))
    return found


def test_every_reason_is_in_the_page_of_documents_and_no_other() -> None:
    used = {one for path in (PROJECT / "ocis2i").rglob("*.py") for one in reasons_of(path)}
    assert {"AssembleFailed", "InvalidArtifactsMapping", "PullRuntimeImageFailed"} <= used
    _, _, text = (PROJECT / "docs/json.md").read_text().partition("\n### Reasons\n")
    table = re.findall(r"^\| `(\w+)` \| \S", text.partition("\n## ")[0], re.MULTILINE)
    assert table == sorted(used)
