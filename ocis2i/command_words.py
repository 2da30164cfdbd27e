"""A command line as it may be written down: without its secrets. Pure.

Who reads it sees every flag, and which values are missing: `***` stands for each of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ocis2i.s2i import redact_url

MASK = "***"

# Flags with a value that nobody else must see, whatever it is.
_SECRET = frozenset({"--creds"})
# Of those with NAME=VALUE the name stays. Which parameter is a secret is known when the builder is.
_SECRET_PAIRS = frozenset({"--build-env", "--parameter", "-P"})
_PAIR = re.compile(
    r"(?P<head>(?:--?[\w-]+=|-[A-Za-z])?(?P<name>[A-Za-z_][\w.-]*)=)(?P<value>.+)", re.DOTALL
)
_TELLING = re.compile(r"pass|pwd|token|secret|key|auth|credential", re.IGNORECASE)


def masked_command(words: Sequence[str], secrets: Iterable[str] = ()) -> tuple[str, ...]:
    """The words, without the values of secret flags, of variables with a telling name, without
    passwords and tokens in URLs, and without any of the `secrets`.
    """
    known = sorted({one for one in secrets if one}, key=len, reverse=True)
    masked = []
    before = ""
    for word in words:
        masked.append(_masked(before, word, known))
        before = word
    return tuple(masked)


def without_record(words: Sequence[str]) -> tuple[str, ...]:
    """The words without `--record`: there is a record by now, and it is never replaced."""
    return tuple(
        word
        for before, word in pairwise(("", *words))
        if "--record" not in (before, word) and not word.startswith("--record=")
    )


def takes_pair(before: str, word: str) -> bool:
    """Whether `word`, which stands after `before`, is a NAME=VALUE with a value that is secret."""
    flag, equals, _ = word.partition("=")
    attached = bool(equals) and flag in _SECRET_PAIRS
    return before in _SECRET_PAIRS or attached or (word.startswith("-P") and word != "-P")


def _masked(flag: str, word: str, secrets: Sequence[str]) -> str:
    own, equals, rest = word.partition("=")
    if flag in _SECRET and not word.startswith("-"):
        return MASK
    if own in _SECRET and equals:
        return f"{own}={MASK}"
    if (flag in _SECRET_PAIRS or word.startswith("-P")) and equals:
        return word if flag != "--build-env" and _is_place(rest) else f"{own}={MASK}"
    if own in _SECRET_PAIRS and "=" in rest:
        name, _, value = rest.partition("=")
        place = own != "--build-env" and _is_place(value)
        return word if place else f"{own}={name}={MASK}"
    pair = _PAIR.fullmatch(word)
    if pair and _TELLING.search(pair["name"]) and not pair["name"].startswith("-"):
        return pair["head"] + (pair["value"] if _is_place(pair["value"]) else MASK)
    for secret in secrets:
        word = word.replace(secret, MASK)
    return redact_url(word)


def _is_place(value: str) -> bool:
    """Whether it says where a secret is, and not what it is: `@FILE`."""
    return value.startswith("@") and not value.startswith("@@")
