"""HTML made of values: what is not markup already is escaped, so nothing can be forgotten."""

from __future__ import annotations

import html
from collections.abc import Iterable

from ocis2i.report import printable

_EMPTY = frozenset("meta br input".split())


class Markup(str):
    """Text that is HTML."""

    __slots__ = ()


Part = str | Markup


def escaped(text: Part) -> Markup:
    """Text as HTML; characters that cannot be seen, or turn the others around, are written out."""
    if isinstance(text, Markup):
        return text
    plain = text if text.isprintable() else _visible(text)
    return Markup(html.escape(plain))


def _visible(text: str) -> str:
    return "".join(char if char in "\t\n" else printable(char) for char in text)


def tag(name: str, /, *children: Part | Iterable[Part], **attributes: str | float | bool) -> Markup:
    """An element. `class_` is `class`, other underscores are hyphens; a false attribute is none."""
    written = "".join(_attribute(key, value) for key, value in attributes.items())
    if name in _EMPTY:
        return Markup(f"<{name}{written}>")
    return Markup(f"<{name}{written}>{joined(children)}</{name}>")


def _attribute(key: str, value: str | float | bool) -> str:  # noqa: FBT001 - HTML has such
    name = key.rstrip("_").replace("_", "-")
    if value is False:
        return ""
    if value is True:
        return f" {name}"
    if isinstance(value, float):
        value = f"{value:.3f}".rstrip("0").rstrip(".")
    return f' {name}="{escaped(str(value))}"'


def joined(parts: Iterable[Part | Iterable[Part]]) -> Markup:
    """Several parts, one after the other."""
    return Markup(
        "".join(escaped(part) if isinstance(part, str) else joined(part) for part in parts)
    )
