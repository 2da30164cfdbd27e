"""The values of a builder's parameters as the user gives them: words, files, standard input."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocis2i.commands.build_flags import CommonBuildFlags
from ocis2i.commands.context import Context
from ocis2i.errors import ImageError, UsageError, shown
from ocis2i.manifest import parse_json
from ocis2i.parameters import LONGEST_VALUE, ParameterSpec, is_name
from ocis2i.s2i import parse_variable_file

_FILE_LIMIT = 1 << 20
_FILE_FLAG = "--parameters-file"
_FORMS = "write it as TOML, JSON or lines of NAME=VALUE, and let its name end accordingly"


def read_parameters(
    flags: CommonBuildFlags, here: Context, chosen: Mapping[str, str]
) -> ParameterSpec:
    """`--parameters-file`, then `-P`, which wins. Raises `UsageError`.

    `chosen` are names that another flag gives a value, with that flag: two for one is a mistake.
    """
    given = _from_file(flags.parameters_file, here) if flags.parameters_file else {}
    typed: set[str] = set()
    source = getattr(flags, "source", None)
    for text in flags.parameter or ():
        name, equals, value = text.partition("=")
        name = name.strip()
        _check_name(name, "-P")
        if not equals:
            value = _from_environment(name, here)
        elif value == "@-":
            value = _from_stdin(name, is_source=source == "-")
        elif value.startswith("@@"):
            typed.add(name)
            value = value[1:]
        elif value.startswith("@"):
            value = _without_newline(_read(value[1:], here, f"-P {name}", LONGEST_VALUE))
        else:
            typed.add(name)
        given[name] = value
    for name in given:
        if name in chosen:
            raise UsageError(
                f"`{name}` is given by -P and by {chosen[name]}",
                hint=f"-P checks it by what the builder says: leave out {chosen[name]}",
            )
    return ParameterSpec(given, frozenset(typed))


def _check_name(name: str, where: str) -> None:
    if not is_name(name):
        raise UsageError(
            f"{where}: `{shown(name[:80])}` is no name of a parameter",
            hint="write -P NAME=VALUE; a name has letters, digits and `_`, and no digit first",
        )


def _from_environment(name: str, here: Context) -> str:
    value = here.tools.settings.environment.get(name)
    if value is None:
        raise UsageError(
            f"-P {name}: there is no such variable here",
            hint=f"set it, or write -P {name}=VALUE or -P {name}=@FILE",
        )
    return value


def _from_stdin(name: str, *, is_source: bool) -> str:
    if is_source:
        raise UsageError(
            f"-P {name}=@-: standard input is the source already",
            hint=f"write -P {name}=@FILE, or -P {name} to take it from the environment",
        )
    data = sys.stdin.buffer.read(LONGEST_VALUE + 1) if sys.stdin else b""
    return _without_newline(_decode(data, f"-P {name}: standard input", LONGEST_VALUE))


def _without_newline(text: str) -> str:
    """Of a value in a file: editors and `echo` end the last line."""
    return text.removesuffix("\n").removesuffix("\r")


def _read(path: str, here: Context, what: str, limit: int) -> str:
    place = here.tools.cwd / path
    try:
        if not path:
            raise UsageError(
                f"{what}=@ names no file", hint="write =@FILE, or =@- for standard input"
            )
        if not (place.is_file() or place.is_fifo()):  # a pipe is what <(command) makes
            raise UsageError(
                f"{what}: `{shown(path)}` is no file that is there",
                hint="name a file that is there"
                + (", or =@- for standard input" if what != _FILE_FLAG else ""),
            )
        with place.open("rb") as file:
            data = file.read(limit + 1)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "it is no path"
        raise UsageError(
            f"{what}: `{shown(path)}` cannot be read: {why}", hint="name a file that you may read"
        ) from error
    return _decode(data, f"{what}: `{shown(path)}`", limit)


def _decode(data: bytes, what: str, limit: int) -> str:
    if len(data) > limit:
        raise UsageError(
            f"{what} has over {limit} bytes",
            hint="give large values in a file, with --volume or --inject",
        )
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8", hint="write it in UTF-8") from None


def _from_file(path: str, here: Context) -> dict[str, str]:
    what = _FILE_FLAG
    text = _read(path, here, what, _FILE_LIMIT)
    name = f"`{shown(path)}`"
    match Path(path).suffix.lower():
        case ".json":
            values = _json(text, f"{what} {name}")
        case ".toml":
            values = _toml(text, f"{what} {name}")
        case _:
            values = dict(parse_variable_file(text, path))
    for one in values:
        _check_name(one, f"{what} {name}")
    return {one: _scalar(one, value, name) for one, value in values.items()}


def _json(text: str, what: str) -> dict[str, Any]:
    try:
        return parse_json(text.encode(), what)
    except ImageError as error:
        raise UsageError(error.message, hint=_FORMS) from None


def _toml(text: str, what: str) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(
            f"{what} is not TOML: {error}",
            hint=_FORMS,
        ) from None


def _scalar(name: str, value: Any, where: str) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int):
        return str(value)
    raise UsageError(
        f"`{name}` in {where} is no text, whole number, true or false",
        hint="a value of another kind is written as text",
    )
