"""Challenges are read as servers mean them."""

from __future__ import annotations

import pytest

from ocis2i.auth import choose_challenge, parse_challenges, printable

# --- challenges -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Basic realm="x"', [("basic", {"realm": "x"})]),
        (
            'BASIC realm="Sonatype Nexus, Repository Manager"',
            [("basic", {"realm": "Sonatype Nexus, Repository Manager"})],
        ),
        (
            'Bearer realm="https://a/token",service="s",scope="repository:a/b:pull,push"',
            [
                (
                    "bearer",
                    {
                        "realm": "https://a/token",
                        "service": "s",
                        "scope": "repository:a/b:pull,push",
                    },
                )
            ],
        ),
        (
            'bearer  Realm = "r" , Service=plain,Basic realm="b"',
            [("bearer", {"realm": "r", "service": "plain"}), ("basic", {"realm": "b"})],
        ),
        (
            'Negotiate, NTLM TlRMTVNTUAAB==, Basic realm="quoted \\" here"',
            [("negotiate", {}), ("ntlm", {}), ("basic", {"realm": 'quoted " here'})],
        ),
        ("", []),
        ('="', []),
    ],
)
def test_challenges_are_read(header: str, expected: list[tuple[str, dict[str, str]]]) -> None:
    assert [(one.scheme, one.parameters) for one in parse_challenges(header)] == expected


def test_bearer_is_preferred_and_unknown_schemes_are_passed_over() -> None:
    chosen = choose_challenge(parse_challenges('Negotiate, Basic realm="b", Bearer realm="r"'))
    assert chosen is not None
    assert chosen.scheme == "bearer"
    assert choose_challenge(parse_challenges("Negotiate")) is None


def test_foreign_text_becomes_one_harmless_line() -> None:
    assert printable("a\n\x1b[31mb\t c") == "a [31mb c"
    assert len(printable("x" * 1000)) == 300
