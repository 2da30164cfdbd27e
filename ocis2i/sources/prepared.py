"""A source that `ocis2i fetch` has put into a directory, for a build that may reach nothing.

Such a directory has the tree, `tree/`, and what is known of it, `source.json`. A build of it
has the same labels as one of the source itself.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from ocis2i.errors import OutputError, SourceError, UsageError, shown
from ocis2i.events import Report
from ocis2i.lazy_dataclass import dataclass
from ocis2i.s2i import SourceInfo
from ocis2i.sources.local import CopyOrder, Fetched, copy_tree

SCHEME = "fetched:"
TREE = "tree"
FACTS = "source.json"
VERSION = 1
_SIZE_LIMIT = 16 << 20


@dataclass(frozen=True, slots=True)
class PreparedSource:
    """A directory of `ocis2i fetch`."""

    path: Path

    def __str__(self) -> str:
        return f"{SCHEME}{self.path}"


def encode_facts(info: SourceInfo, ignored: tuple[str, ...]) -> bytes:
    """What stands in `source.json`. Pure."""
    document = {"version": VERSION, "info": dataclasses.asdict(info), "ignored": list(ignored)}
    # ASCII: names that are no UTF-8 survive, too.
    return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode("ascii")


def decode_facts(data: bytes, name: str) -> Fetched:
    """Reads `source.json` of the source `name`. Pure. Raises `SourceError`."""
    try:
        # Names that are no UTF-8 are in it, which documents from elsewhere must not have.
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _broken(name) from error
    if not isinstance(document, dict) or document.get("version") != VERSION:
        raise SourceError(
            f"{name} was written by another version of ocis2i",
            hint="fetch and build with the same version",
        )
    try:
        return Fetched(_info(document["info"]), _names(document["ignored"]))
    except (KeyError, TypeError) as error:
        raise _broken(name) from error


def _info(document: dict[str, Any]) -> SourceInfo:
    texts = {field.name: document[field.name] for field in dataclasses.fields(SourceInfo)}
    when = texts.pop("commit_time")
    if not all(isinstance(text, str) for text in texts.values()):
        raise TypeError
    if when is not None and (not isinstance(when, int) or isinstance(when, bool)):
        raise TypeError
    return SourceInfo(**texts, commit_time=when)


def _names(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise TypeError
    # `scripts.resolve` removes what these name: nothing outside of the tree.
    if any(not one or one.startswith("/") or ".." in one.split("/") for one in found):
        raise TypeError
    return tuple(found)


def _broken(name: str) -> SourceError:
    return SourceError(f"{name} is damaged", hint="fetch the source again, by `ocis2i fetch`")


def check_empty(directory: Path) -> None:
    """Raises `UsageError` where `ocis2i fetch` would mix with what is there already.

    `OutputError` where this user may not even look.
    """
    try:
        taken = any(directory.iterdir())
    except FileNotFoundError:
        return
    except NotADirectoryError as error:
        raise UsageError(
            f"`{shown(str(directory))}` is no directory",
            hint="name an empty directory, or a new one",
        ) from error
    except OSError as error:
        raise OutputError(
            f"cannot write `{shown(str(directory))}`: {error.strerror}",
            hint="name a directory that this user can make or write",
        ) from error
    if taken:
        raise UsageError(
            f"`{shown(str(directory))}` is not empty", hint="name a directory that is, or a new one"
        )


def fetch_prepared(
    source: PreparedSource, into: Path, report: Report, *, followed_limit_bytes: int
) -> Fetched:
    """Copies what was fetched into the empty directory `into`. Raises `SourceError`."""
    name = f"`{shown(str(source))}`"
    try:
        with (source.path / FACTS).open("rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except OSError as error:
        raise SourceError(
            f"{name} is no fetched source: `{FACTS}` cannot be read: {error.strerror}",
            hint="`ocis2i fetch SOURCE DIRECTORY` makes one",
        ) from error
    if len(data) > _SIZE_LIMIT:
        raise _broken(name)
    facts = decode_facts(data, name)
    # Everything was left out that is to be: no rule counts any more.
    order = CopyOrder(exclude="", links="keep", followed_limit_bytes=followed_limit_bytes)
    copy_tree(source.path / TREE, into, order, report)
    return facts
