"""What a user wants without saying it each time: `config.toml`, and variables that stand for flags.

A flag wins over its variable, a variable over the file, the file over what ocis2i does by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ocis2i import variables
from ocis2i.allowed_hosts import parse_allow_host
from ocis2i.container_options import parse_network
from ocis2i.errors import UsageError
from ocis2i.limits import (
    parse_duration,
    parse_memory,
    parse_processors,
    parse_size,
    parse_tasks,
)
from ocis2i.settings import ISOLATIONS, ROOTFS_KINDS

# Values as the flags of these names take them.
Defaults = dict[str, str | list[str]]

# A file of settings is small; this one is read by every build.
_SIZE_LIMIT = 1 << 20


def _one_of(names: tuple[str, ...]) -> Callable[[str], object]:
    def check(text: str) -> None:
        if text not in names:
            raise UsageError(f"`{text[:40]}` is not known", hint=f"there are {', '.join(names)}")

    return check


_KEYS: Mapping[str, Callable[[str], object]] = {
    "isolation": _one_of(ISOLATIONS),
    "rootfs": _one_of(ROOTFS_KINDS),
    "network": parse_network,
    "memory": parse_memory,
    "cpus": parse_processors,
    "pids-limit": parse_tasks,
    "timeout": lambda text: parse_duration(text, "timeout"),
    "output-limit": lambda text: parse_size(text, "output-limit"),
}
_LISTS: Mapping[str, Callable[[str], object]] = {"allow-host": parse_allow_host}
KEYS = (*_KEYS, *_LISTS)
# The names of the parameters that can have a default from here.
PARAMETERS = frozenset(name.replace("-", "_") for name in KEYS)
_VARIABLES = {"isolation": variables.ISOLATION, "rootfs": variables.ROOTFS}


def defaults(environ: Mapping[str, str]) -> Defaults:
    """Reads the file and the variables, as parameter names and values. Raises `UsageError`."""
    path = config_path(environ)
    found = _read(path)
    for key, variable in _VARIABLES.items():
        if text := variable.text(environ):
            _checked(key, text, variable.name)
            found[key] = text
    return {name.replace("-", "_"): value for name, value in found.items()}


def config_path(environ: Mapping[str, str]) -> Path:
    """`$XDG_CONFIG_HOME/ocis2i/config.toml`, by default below `~/.config`."""
    directory = Path(environ.get("XDG_CONFIG_HOME") or "")
    if not directory.is_absolute():  # then it does not count (XDG Base Directory Specification)
        directory = Path(environ.get("HOME") or "/") / ".config"
    return directory / "ocis2i/config.toml"


def _read(path: Path) -> Defaults:
    try:
        with path.open("rb") as file:
            data = file.read(_SIZE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise UsageError(
            f"`{path}` cannot be read: {error.strerror}", hint="let this user read it, or remove it"
        ) from error
    if len(data) > _SIZE_LIMIT:
        raise UsageError(
            f"`{path}` is larger than {_SIZE_LIMIT} bytes",
            hint="look whether it is the right file: settings are small",
        )
    return parse(data, str(path))


def parse(data: bytes, where: str) -> Defaults:
    """The settings in a file's content; `where` names it. Raises `UsageError`."""
    import tomllib  # noqa: PLC0415 - most users have no such file

    try:
        document = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"`{where}` is not TOML: {error}", hint="put it right at that place"
        ) from error
    return {key: _value(key, value, where) for key, value in document.items()}


def _value(key: str, value: Any, where: str) -> str | list[str]:
    if key not in KEYS:
        raise UsageError(
            f"`{where}` has the unknown key `{key}`", hint=f"there are {', '.join(KEYS)}"
        )
    if key in _LISTS:
        texts = value if isinstance(value, list) else [value]
        return [_text(key, one, where) for one in texts]
    return _text(key, value, where)


def _text(key: str, value: Any, where: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        kind = "a list of texts" if key in _LISTS else "a text or a number"
        raise UsageError(
            f"`{key}` in `{where}` must be {kind}",
            hint="docs/reference.md has the keys and what they take",
        )
    text = str(value)
    _checked(key, text, f"`{key}` in `{where}`")
    return text


def _checked(key: str, text: str, what: str) -> None:
    check = _KEYS.get(key) or _LISTS[key]
    try:
        check(text)
    except UsageError as error:
        raise UsageError(f"{what}: {error.message}", hint=error.hint) from error
