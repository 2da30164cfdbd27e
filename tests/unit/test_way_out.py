"""Every failure says what to try: by a hint of its own, or at least by that of its kind."""

from __future__ import annotations

import ast
import io
from pathlib import Path

import pytest

from ocis2i import errors
from ocis2i.documents import failure_document
from ocis2i.errors import Interrupted, Ocis2iError, ScriptError
from ocis2i.report import tell
from tests.pages import PROJECT

# What the user can put right himself is known where it is found to be wrong.
OWN = {"UsageError", "PolicyError", "ScriptsError"}
# Passed on from a place that has said it, or a warning after which the build goes on.
PASSED_ON = {"error.message", "f'{what} has {blob.size} bytes, the limit is {size_limit}'"}
PASSED_ON |= {"f'the cache `{source}` has expired: it counted until {written}'"}

KINDS = sorted(
    (one for one in vars(errors).values() if isinstance(one, type)), key=lambda one: one.__name__
)


def without_hint(path: Path) -> list[str]:
    """The messages of errors that are made without a hint, though they are of such a kind."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OWN:
            named = {keyword.arg for keyword in node.keywords}
            if not named & {"hint", None} and ast.unparse(node.args[0]) not in PASSED_ON:
                found.append(f"{path.name}:{node.lineno} {ast.unparse(node.args[0])}")
    return found


def test_who_can_put_it_right_is_told_how() -> None:
    paths = sorted((PROJECT / "ocis2i").rglob("*.py"))
    assert [one for path in paths for one in without_hint(path)] == []


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_of_failure_has_a_last_way_out(kind: type[Ocis2iError]) -> None:
    # A script's output, a signal and a traceback say it themselves.
    assert bool(kind.last_hint) == (kind not in (Ocis2iError, ScriptError, Interrupted))


def test_the_last_way_out_is_told_only_where_there_is_no_better_one() -> None:
    told = io.StringIO()
    tell(errors.ImageError("broken"), told, quiet=False)
    assert told.getvalue() == f"error: broken\nhint: {errors.ImageError.last_hint}\n"
    better = errors.ImageError("broken", hint="mend it")
    assert failure_document(better, 4, [])["hint"] == "mend it"
    assert failure_document(errors.ImageError("x"), 4, [])["hint"] == errors.ImageError.last_hint
