"""What the document of a kept container may say: whatever else it says is not acted upon. Pure.

It chooses what is mounted, as whom a process runs and what it may do. Its owner is checked by who
reads it (`ocis2i.kept`); this is for a file that was damaged, or edited by hand.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, get_args

from ocis2i.container_options import parse_add_host, parse_cap_drop
from ocis2i.errors import UsageError
from ocis2i.isolation.ground import Ids
from ocis2i.manifest import Json
from ocis2i.runner import NETWORKS
from ocis2i.s2i import ID_LIMIT
from ocis2i.settings import ISOLATIONS, RootfsKind

VERSION = 1

_Judge: TypeAlias = Callable[[Any], bool]


def faults(document: Json) -> list[str]:
    """The names of fields that are missing or have a value that cannot be; none: it is whole."""
    if document.get("version") != VERSION or isinstance(document["version"], bool):
        return ["version"]
    return _faults(document, _FIELDS)


def _faults(document: Mapping[str, Any], fields: Mapping[str, _Judge]) -> list[str]:
    return [
        name for name, fits in fields.items() if name not in document or not fits(document[name])
    ]


# --- values -----------------------------------------------------------------------------------


def _is_text(value: object) -> bool:
    # What no process and no file can be given (execve(2), open(2)).
    return isinstance(value, str) and "\0" not in value


def _is_path(value: object) -> bool:
    return _is_text(value) and str(value).startswith("/")


def _is_tree(value: object) -> bool:
    """A directory inside the build's own."""
    return _is_text(value) and not str(value).startswith("/") and ".." not in str(value).split("/")


def _is_switch(value: object) -> bool:
    return isinstance(value, bool)


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ID_LIMIT


def _is_volume(value: object) -> bool:
    """Source, target, whether it is read-only, whether it is a directory: `runner.BindMount`."""
    judges = (_is_path, _is_path, _is_switch, _is_switch)
    return (
        isinstance(value, list)
        and len(value) == len(judges)
        and all(fits(one) for fits, one in zip(judges, value, strict=True))
    )


def _is_host(value: object) -> bool:
    return _is_text(value) and _parses(parse_add_host, value)


def _is_capability(value: object) -> bool:
    return _is_text(value) and _parses(lambda text: parse_cap_drop([text]), value)


def _parses(parse: Callable[[Any], object], value: object) -> bool:
    try:
        parse(value)
    except UsageError:
        return False
    return True


def _list_of(fits: _Judge) -> _Judge:
    return lambda value: isinstance(value, list) and all(map(fits, value))


def _one_of(*known: str | None) -> _Judge:
    return lambda value: value in known and (value is None or isinstance(value, str))


_IDENTITY: Mapping[str, _Judge] = {
    "uid": _is_id,
    "gid": _is_id,
    "groups": _list_of(_is_id),
    "home": _is_text,
    "name": _is_text,
}


def _is_identity(value: object) -> bool:
    return isinstance(value, dict) and not _faults(value, _IDENTITY)


_FIELDS: Mapping[str, _Judge] = {
    "script": _is_path,
    "tree": _is_tree,
    "environment": _list_of(_is_text),  # an image may have entries without a name, or `=`
    "cwd": _is_text,  # some executors take a relative one, from the container's root
    "identity": _is_identity,
    "volumes": _list_of(_is_volume),
    "add_hosts": _list_of(_is_host),
    "cap_drop": _list_of(_is_capability),
    "network": _one_of(*(one for one in NETWORKS if one != "proxy")),
    "seccomp": _is_switch,
    "no_new_privs": _is_switch,
    "isolation": _one_of(*(one for one in ISOLATIONS if one not in ("auto", "in-place"))),
    "weak": _one_of(None, "chroot"),
    "ids": _one_of(*get_args(Ids)),
    "rootfs": _one_of(*get_args(RootfsKind)),
    "buildah_mode": lambda value: value is None or _is_text(value),
    "left_out": _list_of(_is_text),
}
