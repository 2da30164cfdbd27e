"""Words of a command line as source-to-image reads them (Go's pflag), made into ours (Typer).

Two forms differ: a switch may have a value (`--incremental=true`, which the tests of builder
images write), and `=` between a short flag and its value is no part of the value (`-n=app`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass

# Go's strconv.ParseBool
_VALUES = {
    **dict.fromkeys(("1", "t", "T", "true", "TRUE", "True"), True),
    **dict.fromkeys(("0", "f", "F", "false", "FALSE", "False"), False),
}


@dataclass(frozen=True, slots=True)
class Switch:
    """The words that turn a flag without a value on and off."""

    on: str
    off: str


def rewrite(
    words: Sequence[str],
    flags: Mapping[str, Switch | None],
    *,
    stops_at_arguments: bool = False,
) -> list[str]:
    """`words` with each flag in the form that Typer reads; unknown ones stay as they are.

    `flags` has every flag with its dashes, `None` for those that want a value. Raises `UsageError`
    for a switch with a value that is neither true nor false.
    """
    rest = iter(words)
    done: list[str] = []
    for word in rest:
        if word == "--" or (stops_at_arguments and not word.startswith("-")):
            return [*done, word, *rest]
        if word.startswith("--"):
            done += _long(word, flags, rest)
        elif word.startswith("-") and word != "-":
            done += _short(word, flags, rest)
        else:
            done.append(word)
    return done


def _long(word: str, flags: Mapping[str, Switch | None], rest: Iterator[str]) -> list[str]:
    name, equals, value = word.partition("=")
    flag = flags.get(name)
    if flag:
        return [_turned(flag, name, value)] if equals else [word]
    return [word] if equals or name not in flags else [word, *_next(rest)]


def _short(word: str, flags: Mapping[str, Switch | None], rest: Iterator[str]) -> list[str]:
    """The flags of one word: switches, and at last perhaps one with its value."""
    done: list[str] = []
    for place in range(1, len(word)):
        name, value = f"-{word[place]}", word[place + 1 :]
        flag = flags.get(name)
        if name not in flags:
            return [*done, f"-{word[place:]}"]
        if flag is None:
            if not value:
                return [*done, name, *_next(rest)]
            return [*done, name, value.removeprefix("=") if len(value) > 1 else value]
        if value.startswith("="):
            return [*done, _turned(flag, name, value[1:])]
        done.append(name)
    return done


def _next(rest: Iterator[str]) -> list[str]:
    """The value of a flag, whatever it looks like; none at the end of the line."""
    return [word for word in (next(rest, None),) if word is not None]


def _turned(flag: Switch, name: str, value: str) -> str:
    if value not in _VALUES:
        raise UsageError(f"`{name}` is `{value}`", hint="it is true or false")
    return flag.on if _VALUES[value] else flag.off


def is_on(word: str) -> bool:
    """Whether a switch as it was typed (`--json`, `--json=true`) is turned on by it."""
    _, equals, value = word.partition("=")
    return _VALUES.get(value, False) if equals else True


# --- Typer ------------------------------------------------------------------------------------


class _Words:
    """Mixed into Typer's own classes, it reads words as source-to-image does."""

    def get_params(self, ctx: Any) -> list[Any]:
        parameters: list[Any] = super().get_params(ctx)  # type: ignore[misc]
        for one in parameters:
            _convert_only_what_differs(one)
        return parameters

    def make_parser(self, ctx: Any) -> Any:
        parser = super().make_parser(ctx)  # type: ignore[misc]
        for one in _switches(self.get_params(ctx)):
            if not one.secondary_opts:
                parser.add_option(one, [_off(one)], one.name, action="store_const", const=False)
        return parser

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        # Half a line is completed as it is.
        if not ctx.resilient_parsing:
            args = rewrite(
                args,
                _flags(self.get_params(ctx)),
                stops_at_arguments=not ctx.allow_interspersed_args,
            )
        rest: list[str] = super().parse_args(ctx, args)  # type: ignore[misc]
        return rest


def _convert_only_what_differs(parameter: Any) -> None:
    """Typer converts every value by pydantic, which takes longer to load than most verbs to run.

    What is text and stays text, and what was not given, is left as it is.
    """
    if "process_value" in vars(parameter):  # done already
        return
    convert = parameter.process_value

    def process_value(ctx: Any, value: Any) -> Any:
        return value if _is_converted(parameter, value) else convert(ctx, value)

    parameter.process_value = process_value


def _is_converted(parameter: Any, value: Any) -> bool:
    kind = parameter.type_descriptor.annotation
    if parameter.required and parameter.value_is_missing(value):
        return False
    if kind == list[str]:
        return value is None or isinstance(value, list | tuple)
    return value is None or value is parameter.default or (kind is str and isinstance(value, str))


class Command(_Words, TyperCommand):
    """A verb."""


class Group(_Words, TyperGroup):
    """The program with the flags before its verbs."""


def _switches(parameters: Sequence[Any]) -> list[Any]:
    options = [one for one in parameters if one.param_type_name == "option"]
    # `--help` ends the command as soon as it is read, and has no false.
    return [one for one in options if one.is_flag and one.name != "help"]


def _flags(parameters: Sequence[Any]) -> dict[str, Switch | None]:
    found: dict[str, Switch | None] = {}
    for one in parameters:
        if one.param_type_name == "option" and not one.is_flag:
            found |= dict.fromkeys(one.opts)
    for one in _switches(parameters):
        switch = Switch(_longest(one), _off(one))
        found |= dict.fromkeys(one.opts, switch)
        found |= dict.fromkeys(one.secondary_opts, Switch(switch.off, switch.on))
    return found


def _longest(option: Any) -> str:
    return str(max(option.opts, key=len))


def _off(option: Any) -> str:
    # With a blank in it: no flag of anybody's.
    return str(next(iter(option.secondary_opts), f"{_longest(option)} off"))
