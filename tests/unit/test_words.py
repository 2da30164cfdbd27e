"""Words of a command line as source-to-image reads them, made into ours."""

from __future__ import annotations

import pytest

from ocis2i.commands.words import Switch, rewrite
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
