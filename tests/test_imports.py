"""What a start of the program loads: a module that takes long is loaded by who needs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from ocis2i import preferences
from ocis2i.commands.application import VERBS, app
from ocis2i.commands.words import Command

PROJECT = Path(__file__).parent.parent

# Each of them takes longer to load than what most verbs do.
NETWORK = {"requests", "urllib3", "ssl", "http.client", "http.cookiejar", "email.parser"}
DISPLAY = {"rich", "pygments"}
VALIDATION = {"pydantic", "pydantic_core"}
OTHERS = {"asyncio", "zstandard", "importlib.metadata", "argparse", "logging", "yaml", "oras"}
HEAVY = NETWORK | DISPLAY | VALIDATION | OTHERS
# What `version` is asked by scripts again and again without.
FRAMEWORK = {"typer", "dataclasses", "inspect", "json", "pathlib", "subprocess"}


def loaded(home: Path, *words: str) -> set[str]:
    """The names of all modules that one start imports."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "ocis2i", *words],
        env={"PATH": os.defpath, "HOME": str(home), "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    names = re.findall(r"^import time:.*\| +(\S+)$", done.stderr, re.MULTILINE)
    assert "ocis2i.cli" in names
    return set(names)


@pytest.mark.parametrize(
    "words",
    [["version"], ["version", "--json"], ["--help"], ["build", "--help"], ["help", "run"]],
    ids=" ".join,
)
def test_answers_about_the_program_load_nothing_heavy(tmp_path: Path, words: list[str]) -> None:
    assert loaded(tmp_path, *words) & HEAVY == set()


def test_the_help_of_a_build_starts_no_agent(tmp_path: Path) -> None:
    names = loaded(tmp_path, "build", "--help")
    assert names & {"ocis2i.isolation.agent", "ocis2i.build", "tomllib"} == set()


@pytest.mark.parametrize("verb", ["images", "prune"])
def test_the_store_is_looked_at_without_the_network(tmp_path: Path, verb: str) -> None:
    names = loaded(tmp_path, verb, "--root", str(tmp_path / "store"))
    assert names & HEAVY == set()
    assert "ocis2i.build" not in names


def test_the_version_is_said_without_an_application(tmp_path: Path) -> None:
    names = loaded(tmp_path, "version")
    assert names & FRAMEWORK == set()
    assert "ocis2i.commands.application" not in names


def test_a_list_of_the_verbs_loads_none_of_them(tmp_path: Path) -> None:
    modules = {f"ocis2i.commands.{verb.module}" for verb in VERBS.values()}
    assert loaded(tmp_path, "--help") & modules == set()


def test_verbs_without_a_container_need_no_settings() -> None:
    """The application asks for `--rootfs` before it loads what reads them."""
    program: Any = typer.main.get_command(app)
    verbs = {name: {one.name for one in program.verb(name).params} for name in VERBS}
    assert all("rootfs" in flags for flags in verbs.values() if flags & preferences.PARAMETERS)


@pytest.mark.parametrize("name", VERBS)
def test_a_verb_has_the_help_of_its_line_in_the_list(name: str) -> None:
    program: Any = typer.main.get_command(app)
    listed, command = program.commands[name], program.verb(name)
    assert isinstance(command, Command)
    assert (command.name, command.help) == (listed.name, listed.help) == (name, VERBS[name].help)
