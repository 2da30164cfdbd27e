"""Words of a command line as source-to-image reads them, made into ours."""

from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer
import typer.main
from typer.core import TyperCommand

from ocis2i.commands.words import Command, Switch, rewrite
from ocis2i.errors import UsageError

_SWITCH = Switch("--quiet", "--quiet off")
_PAIR = Switch("--tls-verify", "--no-tls-verify")
FLAGS = {
    "--quiet": _SWITCH,
    "-q": _SWITCH,
    "--copy": Switch("--copy", "--copy off"),
    "-c": Switch("--copy", "--copy off"),
    "--tls-verify": _PAIR,
    "--no-tls-verify": Switch("--no-tls-verify", "--tls-verify"),
    "--env": None,
    "-e": None,
}


@pytest.mark.parametrize(
    ("typed", "read"),
    [
        ("--quiet=true", "--quiet"),
        ("--quiet=1 --quiet=F", "--quiet|--quiet off"),
        ("--quiet a --quiet=false", "--quiet|a|--quiet off"),
        ("--tls-verify=false --no-tls-verify=f", "--no-tls-verify|--tls-verify"),
        ("-q=t", "--quiet"),
        ("-cq=0", "-c|--quiet off"),
        ("-qce=A=1", "-q|-c|-e|A=1"),
        ("-eA=1 -e=A=1 -e A=1", "-e|A=1|-e|A=1|-e|A=1"),
        ("-e=", "-e|="),
        ("--env=A=1 --env --quiet=true", "--env=A=1|--env|--quiet=true"),
        ("-e -q=true -q", "-e|-q=true|-q"),
        ("- -- --quiet=true", "-|--|--quiet=true"),
        ("--unknown=1 -x=1 -qx", "--unknown=1|-x=1|-q|-x"),
        ("-e", "-e"),
    ],
)
def test_words_are_read_as_go_reads_them(typed: str, read: str) -> None:
    assert rewrite(typed.split(), FLAGS) == read.split("|")


def test_words_of_the_command_that_is_run_stay_as_they_are() -> None:
    words = ["-q=true", "image", "-q=true", "--quiet=no"]
    assert rewrite(words, FLAGS, stops_at_arguments=True) == ["--quiet", *words[1:]]


@pytest.mark.parametrize("word", ["--quiet=maybe", "-q=", "-q=yes", "--quiet="])
def test_value_of_a_switch_is_true_or_false(word: str) -> None:
    with pytest.raises(UsageError, match=r"`-.*q.*` is `"):
        rewrite([word], FLAGS)


# --- values -----------------------------------------------------------------------------------


def read_by(kind: type[TyperCommand], words: str) -> dict[str, Any] | str:
    """What a verb gets of the `words`, or the complaint about them."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    got: dict[str, Any] = {}

    @app.command(cls=kind)
    def verb(
        image: str,
        more: Annotated[list[str] | None, typer.Argument()] = None,
        env: Annotated[list[str] | None, typer.Option("--env")] = None,
        tag: Annotated[str | None, typer.Option("--tag")] = None,
        policy: Annotated[str, typer.Option("--policy")] = "never",
        level: Annotated[int, typer.Option("--level", min=0, max=5)] = 0,
        depth: Annotated[int | None, typer.Option("--depth")] = None,
        quiet: Annotated[bool, typer.Option("--quiet")] = False,
        check: Annotated[bool, typer.Option("--check/--no-check")] = True,
    ) -> None:
        got.update(locals())

    try:
        app(args=words.split(), prog_name="program", standalone_mode=False)
    except typer.TyperException as error:
        return f"{type(error).__name__}: {error}"
    return {name: value for name, value in got.items() if name not in ("app", "got", "kind")}


@pytest.mark.parametrize(
    "words",
    [
        "image",
        "image --env A=1 --env B=2 one two",
        "image --tag x --policy always --quiet --no-check",
        "image --level 3 --depth 7",
        "image --level 0 --depth 0",
        "image --level 6",
        "image --depth seven",
        "--tag x",
        "image --unknown",
        "",
    ],
)
def test_values_are_what_typer_makes_of_them(words: str) -> None:
    assert read_by(Command, words) == read_by(TyperCommand, words)
