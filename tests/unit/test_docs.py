"""What the documents say is there, and what is there is in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ocis2i.commands.application import VERBS, app
from ocis2i.errors import Ocis2iError

PROJECT = Path(__file__).parent.parent.parent
USAGE = (PROJECT / "docs/usage.md").read_text()
PROGRAM: Any = typer.main.get_command(app)
COMMANDS = {name: PROGRAM.verb(name) for name in VERBS}


@pytest.mark.parametrize("verb", sorted(COMMANDS))
def test_every_verb_and_flag_has_help_and_is_in_the_usage_page(verb: str) -> None:
    command = COMMANDS[verb]
    assert command.help
    assert re.search(rf"`(ocis2i )?{verb}\b", USAGE), f"`{verb}` is not in docs/usage.md"
    for parameter in command.params:
        names = [name for name in parameter.opts if name.startswith("-")]
        if not names or names == ["--help"]:
            continue
        assert parameter.help, f"{verb} {names[0]} has no help"
        mentioned = [name for name in names if f"{name}" in USAGE]
        assert mentioned, f"{verb} {names[0]} is not in docs/usage.md"


def test_every_exit_code_is_in_the_usage_page() -> None:
    kinds: list[type[Ocis2iError]] = [Ocis2iError, *Ocis2iError.__subclasses__()]
    for code in {kind.exit_code for kind in kinds}:
        assert f"\n| {code} |" in USAGE


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *sorted(
    str(path.relative_to(PROJECT)) for path in (PROJECT / "docs").rglob("*.md"))])  # fmt: skip
def test_links_between_the_pages_lead_somewhere(page: str) -> None:
    text = (PROJECT / page).read_text()
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (PROJECT / page).parent.joinpath(target).exists(), f"{page} links to {target}"
