"""Names that Kubernetes accepts, and text that its substitutions leave alone. Pure."""

from __future__ import annotations

import hashlib
import re

from ocis2i.errors import UsageError

LONGEST_LABEL = 63
_SUFFIX = 8


class Placeholder(str):
    """Text that the cluster is to replace, as `$(params.IMAGE)`: never escaped."""

    __slots__ = ()


def label_name(text: str, *, longest: int = LONGEST_LABEL) -> str:
    """A name by RFC 1123, as close to `text` as one can be.

    What is cut off at `longest` characters is told apart by a hash of the whole.
    """
    name = re.sub(r"[^a-z0-9-]+", "-", text.lower()).strip("-") or "build"
    if len(name) <= longest:
        return name
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:_SUFFIX]
    return f"{name[: longest - _SUFFIX - 1].rstrip('-')}-{digest}"


def check_name(text: str, flag: str, *, dots: bool = True) -> str:
    """The name of an object of the cluster, as a flag gives it. Raises `UsageError`."""
    part = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?"
    pattern, longest = (rf"{part}(\.{part})*", 253) if dots else (part, LONGEST_LABEL)
    if len(text) > longest or not re.fullmatch(pattern, text):
        raise UsageError(
            f"{flag} is `{text[:80]}`, which is no name in Kubernetes",
            hint="small letters, digits and dashes, with a letter or digit at both ends",
        )
    return text


def check_text(word: str) -> str:
    """Refuses what no manifest can hold. Raises `UsageError`."""
    if any(ord(char) < 32 and char not in "\t\n" for char in word) or "\x7f" in word:
        raise UsageError(
            f"`{ascii(word)[1:-1][:80]}` has a control character, which no manifest can hold",
            hint="leave it out",
        )
    try:
        word.encode()
    except UnicodeEncodeError:
        raise UsageError(
            f"`{ascii(word)[1:-1][:80]}` is not UTF-8, as a manifest has to be",
            hint="write it in UTF-8",
        ) from None
    return word


def as_argument(word: str) -> str:
    """A word of `command` or `args`, where Kubernetes expands `$(NAME)` and makes `$$` one `$`."""
    return str(word) if isinstance(word, Placeholder) else check_text(word).replace("$", "$$")


def refuse_marks(words: tuple[str, ...], marks: tuple[str, ...], where: str) -> None:
    """Refuses words that `where` would replace parts of, and cannot be told not to.

    Raises `UsageError`.
    """
    for word in words:
        found = [mark for mark in marks if mark in word]
        if found and not isinstance(word, Placeholder):
            raise UsageError(
                f"`{word[:80]}` has `{found[0]}` in it, which {where} would replace",
                hint="leave it out, or render a `job`, which can hold it",
            )
