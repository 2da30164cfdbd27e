"""What the program accepts, by its own declarations: verbs, flags, keys, variables, labels.

The reference pages are made of it, and their test compares with it.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args

import typer.main

from ocis2i import mirrors, settings, variables
from ocis2i.commands.application import VERBS, app
from ocis2i.errors import Interrupted, Ocis2iError
from ocis2i.s2i import generated_labels
from ocis2i.sources import SourceInfo

PROJECT = Path(__file__).parent.parent
PACKAGE = PROJECT / "ocis2i"
# Flags that stand before the verb.
BEFORE_THE_VERB = ""


@dataclass(frozen=True, slots=True)
class Parameter:
    """A flag or an argument of one verb, as the option parser has it."""

    verb: str
    name: str
    names: tuple[str, ...]
    off: tuple[str, ...]
    kind: str
    metavar: str | None
    default: Any
    help: str
    required: bool
    repeatable: bool
    hidden: bool
    smallest: float | None
    largest: float | None

    @property
    def is_flag(self) -> bool:
        """Whether it is a flag, and no argument."""
        return self.name.startswith("-")

    @property
    def deprecated(self) -> bool:
        """Whether it is an old name of another flag."""
        return self.help.startswith("Deprecated")


def _kind(annotation: Any) -> str:
    kinds = {bool: "switch", int: "number", float: "number", str: "text", Path: "path"}
    inner = get_args(annotation)
    return kinds.get(inner[0] if inner else annotation, "text")


def _parameter(verb: str, one: Any) -> Parameter:
    names = tuple(getattr(one, "opts", ()) or ()) if one.param_type_name == "option" else ()
    annotation = one.type_descriptor.annotation
    default = one.default
    return Parameter(
        verb=verb,
        # Its first long name as it was declared is what it is called.
        name=next((name for name in names if name.startswith("--")), one.name),
        names=names,
        off=tuple(getattr(one, "secondary_opts", ()) or ()),
        kind=_kind(annotation),
        metavar=one.metavar,
        default=None if default in ((), []) else default,
        help=one.help or "",
        required=bool(one.required),
        repeatable=bool(getattr(one, "multiple", False)) or one.nargs == -1,
        hidden=bool(getattr(one, "hidden", False)),
        smallest=getattr(one, "min", None),
        largest=getattr(one, "max", None),
    )


def _is_help(one: Any) -> bool:
    return bool(one.name == "help")


@cache
def program() -> Any:
    """The application as the option parser has it."""
    return typer.main.get_command(app)


def _walk(verb: str, command: Any) -> Iterator[Parameter]:
    """The parameters of a command and of the commands below it."""
    for one in command.params:
        if not _is_help(one):
            yield _parameter(verb, one)
    for name, below in (getattr(command, "commands", None) or {}).items():
        if verb:
            yield from _walk(f"{verb} {name}", below)


@cache
def parameters() -> tuple[Parameter, ...]:
    """All flags and arguments: those before the verb, then verb by verb."""
    found = [*_walk(BEFORE_THE_VERB, program())]
    for name in VERBS:
        found += _walk(name, program().verb(name))
    return tuple(found)


def flags() -> tuple[Parameter, ...]:
    """All flags of all verbs."""
    return tuple(one for one in parameters() if one.is_flag)


def values_of(where: str) -> tuple[str, ...]:
    """The words that a `module:NAME` of the program has: a tuple, a `Literal` or an `Enum`."""
    module, _, name = where.partition(":")
    found = getattr(importlib.import_module(module), name)
    if isinstance(found, type) and issubclass(found, Enum):
        return tuple(str(one.value) for one in found)
    return tuple(str(one) for one in (get_args(found) or tuple(found)))


# --- exit codes and reasons -------------------------------------------------------------------


def exit_codes() -> tuple[int, ...]:
    """Those that the classes of errors have, and those that are nobody's class."""
    kinds: list[type[Ocis2iError]] = [Ocis2iError]
    for kind in kinds:
        kinds += kind.__subclasses__()
    codes = {kind.exit_code for kind in kinds if kind is not Interrupted}
    return (0, *sorted(codes), 129, 130, 141, 143)


@cache
def reasons() -> dict[str, str]:
    """The words for what went wrong, with their English: docs/json.md, which a test compares."""
    _, _, text = (PROJECT / "docs/json.md").read_text().partition("\n### Reasons\n")
    table = re.findall(r"^\| `(\w+)` \| (\S.*?) \|", text.partition("\n## ")[0], re.MULTILINE)
    return dict(table)


@cache
def trees() -> dict[str, ast.Module]:
    """Every module of the program, parsed, by its path in the package."""
    return {
        str(path.relative_to(PACKAGE)): ast.parse(path.read_text())
        for path in sorted(PACKAGE.rglob("*.py"))
    }


@cache
def _constants() -> frozenset[str]:
    """Every text in the code."""
    return frozenset(
        node.value
        for tree in trees().values()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


# --- labels and annotations -------------------------------------------------------------------

_LABEL = re.compile(
    r"(?:io\.(?:openshift|s2i|k8s|ocis2i|deis\.oras)|org\.opencontainers)\.[\w.-]*[\w-]"
)


@cache
def labels() -> frozenset[str]:
    """Every label and annotation whose key is in the code, or that a build generates."""
    found = {text for text in _constants() if _LABEL.fullmatch(text)}
    info = SourceInfo(
        location="l", context_dir="d", commit_id="c", ref="r", author="a", date="d", message="m"
    )
    return frozenset(found | {*generated_labels(info, builder="b", tag="t", description="d")})


# --- variables --------------------------------------------------------------------------------

# Functions that look for names which are no constants, and where these names come from.
ELSEWHERE: dict[tuple[str, str], Sequence[str]] = {
    ("mirrors.py", "_take_bundle"): (*mirrors._BUNDLE_SETTINGS, "NODE_EXTRA_CA_CERTS"),
    ("mirrors.py", "_take_proxies"): (
        *mirrors._PROXIES,
        *(one.upper() for one in mirrors._PROXIES),
    ),
    ("mirrors.py", "_take_variables"): [
        one for names in mirrors._VARIABLES.values() for one in names
    ],
    ("mirrors.py", "_take_go"): mirrors._GO,
    # What `.npmrc` and `settings.xml` name is the user's own choice.
    ("mirrors.py", "_parse_npm"): (),
    ("mirrors.py", "_take_maven"): (),
    ("certificates.py", "__call__"): ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    ("registries.py", "registries_files"): (
        "CONTAINERS_REGISTRIES_CONF",
        "CONTAINERS_REGISTRIES_CONF_OVERRIDE",
    ),
    ("registries.py", "load"): (),
    ("net/__init__.py", "proxy_for"): (
        "http_proxy",
        "https_proxy",
        "all_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "ALL_PROXY",
    ),
    ("explain.py", "choose_language"): ("LC_ALL", "LC_MESSAGES", "LANG"),
    # `--build-env NAME` and `-P NAME`: the user names it.
    ("commands/given.py", "_from_environment"): (),
    ("commands/build_spec.py", "_build_environment"): (),
    ("variables.py", "text"): (),
    ("keychain.py", "readable_files"): ("OCIS2I_REGISTRY_PASSWORD_FILE",),
    ("cli.py", "main"): ("_OCIS2I_COMPLETE",),
    ("cli.py", "_run"): ("_OCIS2I_COMPLETE",),
}
# Environments of images and containers, and of programs that are started: not the caller's.
NOT_THE_CALLERS = {
    ("in_place.py", "differences"),
    ("proxy.py", "beside"),
    ("s2i.py", "_promise"),
    ("build.py", "_names"),
}
_PASSED_ON = (*settings._PASSED_ON, "GIT_*", "SSH_*", "LC_*")


@dataclass(frozen=True, slots=True)
class Read:
    """A place in the code that looks a variable up; `name` is `None` if it is no constant."""

    file: str
    function: str
    line: int
    name: str | None


def reads(tree: ast.Module, file: str) -> Iterator[Read]:
    """Each look into an environment in a module."""
    constants = {
        target.id: node.value.value
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def walk(node: ast.AST, function: str) -> Iterator[Read]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        for key in _looked_up(node):
            known = constants.get(key.id) if isinstance(key, ast.Name) else None
            name = key.value if isinstance(key, ast.Constant) else known
            yield Read(file, function, key.lineno, str(name) if name is not None else None)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function)

    yield from walk(tree, "")


def _looked_up(node: ast.AST) -> Iterator[ast.expr]:
    """The key of a look-up whose container is called an environment."""
    match node:
        case ast.Call(
            func=ast.Attribute(value=place, attr="get" | "pop" | "setdefault"), args=[key, *_]
        ):
            pass
        case ast.Call(func=ast.Attribute(attr="getenv", value=place), args=[key, *_]):
            yield key
            return
        case ast.Subscript(value=place, slice=key, ctx=ast.Load()):
            pass
        case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[place]):
            pass
        case _:
            return
    words = ast.unparse(place).lower()
    if re.search(r"(^|[._])env(iron(ment)?)?$", words):
        yield key


@cache
def all_reads() -> tuple[Read, ...]:
    """The look-ups of the whole program but the agent, whose environment is a built one."""
    found: list[Read] = []
    for name, tree in trees().items():
        if not name.startswith("agent/"):
            found += reads(tree, name)
    return tuple(found)


@cache
def variables_of_code() -> frozenset[str]:
    """Every variable of the caller that the program reads or passes on; `*` stands for anything."""
    found = {one.name for one in variables.OWN} | {*_PASSED_ON}
    for one in all_reads():
        if (one.file, one.function) not in NOT_THE_CALLERS and one.name:
            found.add(one.name)
    return frozenset(found | {name for names in ELSEWHERE.values() for name in names})


def unexplained_reads() -> list[Read]:
    """Look-ups with a name that no constant is, in functions that `ELSEWHERE` does not know."""
    known = {*ELSEWHERE} | NOT_THE_CALLERS
    return [
        one for one in all_reads() if one.name is None and (one.file, one.function) not in known
    ]


@cache
def own_names_in_code() -> frozenset[str]:
    """Every whole constant that looks like a variable of ocis2i's own."""
    own = re.compile(r"_?OCIS2I_[A-Z0-9_]+")
    return frozenset(text for text in _constants() if own.fullmatch(text))
