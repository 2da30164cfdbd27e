"""The file of `--use-config`: the arguments of one build, kept for the next.

`.s2ifile` has the shape that source-to-image gives it (`pkg/config`), and its files can be read.
Ours hold no secrets: of a variable the name alone, of a URL what is left without its credentials;
both are told to the user. They are private (0600) and written at once. Flags that may be repeated
are numbered (`volume-0`, `volume-1`), as source-to-image does it for `env` only.
"""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Any, Literal

from ocis2i.errors import ImageError, UsageError, shown
from ocis2i.fs import explain, write_atomic
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import parse_json
from ocis2i.rebuild import lost_secret
from ocis2i.s2i import redact_url

FILE = ".s2ifile"
OLD_FILE = ".stifile"
SIZE_LIMIT = 1 << 20

# Their values stay out of the file: `-e` is the usual way for passwords into a build, and which
# parameter is a secret is only known once the builder is.
SECRET_FLAGS = ("env", "build-env", "parameter")
# It says that there is a file, and is no part of what the file says.
_OWN_FLAG = "use-config"
# Old names that win over the new ones: a stored one must not win over what was typed.
_OLD_NAMES = {"location": "destination", "scripts": "scripts-url"}

_NUMBERED = re.compile(r"(.+)-[0-9]+\Z")
_AGAIN = "write it on the command line, or correct the file, or remove it"


@dataclass(frozen=True, slots=True)
class Flag:
    """A flag of the verb: its long names without dashes, the first is the one that is written.

    A `switch` is on or off, and `off` the long name that turns it off; a `list` may be repeated.
    """

    names: tuple[str, ...]
    shape: Literal["switch", "value", "list"] = "value"
    off: str | None = None

    @property
    def name(self) -> str:
        """What the file and messages call it."""
        return self.names[0]


@dataclass(frozen=True, slots=True)
class Arguments:
    """A command line; `flags` are by name, in text, a switch is `true` or `false`."""

    source: str | None = None
    builder: str | None = None
    tag: str | None = None
    flags: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def argv(self, known: Sequence[Flag]) -> list[str]:
        """The words after the verb that mean the same."""
        by_name = {flag.name: flag for flag in known}
        words = [
            word
            for name, values in self.flags.items()
            for value in values
            for word in _word(by_name[name], value)
        ]
        places = [place for place in (self.source, self.builder, self.tag) if place is not None]
        return [*words, "--", *places]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a file holds; `entries` are its flags as they were written. Empty without a file."""

    path: Path | None = None
    source: str | None = None
    builder: str | None = None
    tag: str | None = None
    entries: Mapping[str, str] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Merged:
    """The arguments that count, and sentences for the user."""

    arguments: Arguments
    warnings: tuple[str, ...] = ()


def _word(flag: Flag, value: str) -> list[str]:
    if flag.shape != "switch":
        return [f"--{flag.name}={value}"]
    name = flag.name if value == "true" else flag.off
    return [f"--{name}"] if name else []


# --- the command line -------------------------------------------------------------------------


def command_line(context: Any) -> tuple[tuple[Flag, ...], Arguments]:
    """The flags that a Typer context's command has, and the arguments that were typed.

    The positional parameters of the command must be called `source`, `builder` and `tag`.
    """
    options = [
        one
        for one in context.command.params
        if one.param_type_name == "option" and any(name.startswith("--") for name in one.opts)
    ]
    typed = {
        name
        for name in context.params
        if getattr(context.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
    flags = {one.name: _flag(one) for one in options}
    given = {
        flags[name].name: _texts(context.params[name])
        for name in flags
        if name in typed and flags[name].name != _OWN_FLAG
    }
    places = {name: context.params.get(name) for name in ("source", "builder", "tag")}
    return tuple(flags.values()), Arguments(**places, flags=given)


def _flag(option: Any) -> Flag:
    names = tuple(name[2:] for name in option.opts if name.startswith("--"))
    off = next((name[2:] for name in option.secondary_opts if name.startswith("--")), None)
    shape: Literal["switch", "value", "list"] = "list" if option.multiple else "value"
    return Flag(names, "switch" if option.is_flag else shape, off)


def _texts(value: Any) -> tuple[str, ...]:
    values = value if isinstance(value, list | tuple) else [value]
    return tuple(str(one).lower() if isinstance(one, bool) else str(one) for one in values)


# --- reading ----------------------------------------------------------------------------------


def restore(directory: Path) -> Saved:
    """Reads `.s2ifile` in `directory`, else `.stifile` with a warning; empty without either.

    Raises `UsageError` for what is no such file.
    """
    for name in (FILE, OLD_FILE):
        path = directory / name
        data = _read(path)
        if data is not None:
            old = f"`{OLD_FILE}` is deprecated, use `{FILE}` instead"
            return parse(data, path, warnings=(old,) if name == OLD_FILE else ())
    return Saved()


def _read(path: Path) -> bytes | None:
    try:
        # A link could lead to any file, whose content an error would show; a FIFO never ends.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        what = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise UsageError(
            f"`{path}` cannot be read: {what}",
            hint="let this user read it, or build without --use-config",
        ) from error
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise UsageError(
                f"`{path}` cannot be read: it is not a regular file",
                hint="remove it, or build without --use-config",
            )
        with os.fdopen(fd, "rb", closefd=False) as file:
            data = file.read(SIZE_LIMIT + 1)
    finally:
        os.close(fd)
    if len(data) > SIZE_LIMIT:
        raise UsageError(
            f"`{path}` is over {SIZE_LIMIT} bytes, which no `{FILE}` is",
            hint="remove the file, or build without --use-config",
        )
    return data


def parse(data: bytes, path: Path, *, warnings: tuple[str, ...] = ()) -> Saved:
    """What the content of a file says; raises `UsageError` naming `path`."""
    try:
        document = parse_json(data, f"`{path}`")
    except ImageError as error:
        raise UsageError(error.message, hint=_AGAIN) from error
    entries = document.get("flags", {})
    if not isinstance(entries, dict):
        raise UsageError(f"`flags` in `{path}` is not an object", hint=_AGAIN)
    return Saved(
        path,
        _text(document, "source", path),
        _text(document, "builderImage", path),
        _text(document, "tag", path),
        {name: _text(entries, name, path) or "" for name in entries},
        warnings,
    )


def _text(document: Mapping[str, Any], name: str, path: Path) -> str | None:
    value = document.get(name)
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise UsageError(f"`{shown(name)}` in `{path}` is not text", hint=_AGAIN)
    return value or None


# --- merging ----------------------------------------------------------------------------------


def merge(saved: Saved, given: Arguments, known: Sequence[Flag]) -> Merged:
    """What was typed wins: source, builder and tag as a whole, flags one by one.

    A variable whose value was not stored is left out with a warning; with any `--env` none of the
    stored ones is used. Raises `UsageError` for a stored flag that is not `known`, a stored secret
    that would be needed, and when source or builder are nowhere.
    """
    source, builder, tag = _places(saved, given)
    stored = {
        name: values
        for name, values in _stored_flags(saved, known).items()
        if name not in given.flags and _OLD_NAMES.get(name) not in given.flags
    }
    warnings = (*saved.warnings, *_warn_of_missing(stored, saved))
    flags = {name: _usable(name, values, saved) for name, values in stored.items()}
    used = {name: values for name, values in flags.items() if values}
    return Merged(Arguments(source, builder, tag, used | dict(given.flags)), warnings)


def _warn_of_missing(stored: Mapping[str, tuple[str, ...]], saved: Saved) -> Iterator[str]:
    secrets = ((name, value) for name in SECRET_FLAGS for value in stored.get(name, ()))
    missing = [f"--{name} {shown(value)}" for name, value in secrets if "=" not in value]
    if missing:
        yield f"`{saved.path}` does not hold the values of {', '.join(missing)}: give them again"


def _usable(name: str, values: tuple[str, ...], saved: Saved) -> tuple[str, ...]:
    if name in SECRET_FLAGS:
        return tuple(value for value in values if "=" in value)
    for value in values:
        _refuse_lost_secret(f"`--{name}`", value, saved)
    return values


def _places(saved: Saved, given: Arguments) -> tuple[str, str, str | None]:
    if given.source is not None and given.builder is not None:
        return given.source, given.builder, given.tag
    if given.source is not None:
        raise UsageError(
            f"the builder is missing after the source `{shown(redact_url(given.source))}`",
            hint=f"give both, or neither to take them from `{FILE}`",
        )
    if saved.source is None or saved.builder is None:
        raise UsageError(
            f"`{saved.path}` does not hold both a source and a builder"
            if saved.path
            else f"there is no `{FILE}` here to take the source and the builder from",
            hint="give SOURCE and BUILDER",
        )
    _refuse_lost_secret("the source", saved.source, saved)
    return saved.source, saved.builder, saved.tag


def _refuse_lost_secret(what: str, value: str, saved: Saved) -> None:
    if lost_secret(value):
        raise UsageError(
            f"{what} in `{saved.path}` had a secret in its URL, which is not stored", hint=_AGAIN
        )


def _stored_flags(saved: Saved, known: Sequence[Flag]) -> dict[str, tuple[str, ...]]:
    by_name = {name: flag for flag in known for name in flag.names}
    found: dict[str, tuple[str, ...]] = {}
    for entry in sorted(saved.entries, key=_natural):
        if entry == _OWN_FLAG:
            continue
        value = saved.entries[entry]
        numbered = _NUMBERED.match(entry)
        flag = by_name.get(entry)
        if flag is not None:
            values = _values(flag, value, saved)
        elif numbered and (flag := by_name.get(numbered[1])) and flag.shape == "list":
            values = (value,)
        else:
            raise UsageError(
                f"`{saved.path}` holds the flag `--{shown(entry)}`, which there is not", hint=_AGAIN
            )
        found[flag.name] = (*found.get(flag.name, ()), *values)
    return found


def _values(flag: Flag, value: str, saved: Saved) -> tuple[str, ...]:
    if flag.shape == "switch" and value not in ("true", "false"):
        raise UsageError(
            f"`--{flag.name}` in `{saved.path}` is `{shown(value)}`, not `true` or `false`",
            hint=_AGAIN,
        )
    if flag.shape != "list":
        return (value,)
    # A list as source-to-image's flags print it: `[a,b]`, or `a,b`.
    inner = value[1:-1] if value.startswith("[") and value.endswith("]") else value
    return tuple(one for row in csv.reader(inner.splitlines()) for one in row if one)


def _natural(name: str) -> tuple[str, int, str]:
    """So that `env-10` comes after `env-9`."""
    stem, _, number = name.rpartition("-")
    is_number = re.fullmatch("[0-9]{1,9}", number) is not None
    return (stem, int(number), name) if is_number else (name, -1, name)


# --- writing ----------------------------------------------------------------------------------


def save(directory: Path, arguments: Arguments, known: Sequence[Flag]) -> tuple[str, ...]:
    """Writes `.s2ifile` in `directory`; sentences for the user about what was not written.

    Raises `UsageError` for an argument that is no UTF-8 text, and `OutputError`.
    """
    document, warnings = encode(arguments, known)
    path = directory / FILE
    data = json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    try:
        write_atomic(path, data.encode(), scratch=directory, mode=0o600)
    except UnicodeEncodeError as error:
        raise UsageError(
            f"an argument is not UTF-8 text, which `{FILE}` holds",
            hint="write it in UTF-8, or build without --use-config",
        ) from error
    except OSError as error:
        raise explain(error, f"cannot write `{path}`") from error
    return warnings


def encode(arguments: Arguments, known: Sequence[Flag]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The document of a file, without secrets, and what was left out."""
    warnings: list[str] = []
    lists = {flag.name for flag in known if flag.shape == "list"}
    flags: dict[str, str] = {}
    for name, values in arguments.flags.items():
        written = _writable(name, values, warnings)
        flags |= _numbered(name, written) if name in lists else {name: written[-1]}
    places = {"source": arguments.source, "builderImage": arguments.builder, "tag": arguments.tag}
    document: dict[str, Any] = {
        key: _without_credentials(f"the {key}", value, warnings)
        for key, value in places.items()
        if value
    }
    return document | ({"flags": flags} if flags else {}), tuple(warnings)


def _writable(name: str, values: Sequence[str], warnings: list[str]) -> list[str]:
    if name not in SECRET_FLAGS:
        return [_without_credentials(f"`--{name}`", value, warnings) for value in values]
    names = [value.partition("=")[0] for value in values]
    warnings.append(
        f"`{FILE}` does not hold the values of --{name}: {', '.join(map(shown, names))}"
    )
    return names


def _numbered(name: str, values: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((f"{name}-{number}", value) for number, value in enumerate(values))


def _without_credentials(what: str, value: str, warnings: list[str]) -> str:
    redacted = redact_url(value)
    if redacted != value:
        warnings.append(f"`{FILE}` does not hold the credentials in the URL of {what}")
    return redacted
