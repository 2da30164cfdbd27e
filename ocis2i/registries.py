"""registries.conf, version 2: where images really are, what is blocked, and what short names mean.

The part of containers-registries.conf(5) that says where to go: `[[registry]]` with mirrors,
`unqualified-search-registries`, `[aliases]`, `short-name-mode` and `credential-helpers`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import field, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

from ocis2i.container_config import (
    SYSTEM_DIRECTORY,
    decode_toml,
    directories,
    read_settings,
    user_directory,
)
from ocis2i.endpoints import Place
from ocis2i.errors import PolicyError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import DEFAULT_REGISTRY, HUB_NAMES, Reference

_WHAT = "the registries file"
# The name that stands for the auth.json files in `credential-helpers`.
AUTH_FILES = "containers-auth.json"

Pulls: TypeAlias = Literal["all", "digest-only", "tag-only"]
ShortNames: TypeAlias = Literal["enforcing", "permissive", "disabled"]

_LOCATION = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9.:\[\]_-]*(?:/[a-z0-9._-]+)*\Z")
_WILDCARD = re.compile(r"\*\.[A-Za-z0-9.-]+\Z")
# What follows `docker-credential-` in the name of a program.
HELPER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")


@dataclass(frozen=True, slots=True)
class Mirror:
    """Another place for the images of a registry; `pulls` says which it is asked for."""

    location: str
    insecure: bool = False
    pulls: Pulls = "all"


@dataclass(frozen=True, slots=True)
class Rule:
    """One `[[registry]]` of the file `path`: what holds for the names that begin with `prefix`."""

    prefix: str
    location: str = ""
    insecure: bool = False
    blocked: bool = False
    mirrors: tuple[Mirror, ...] = ()
    path: Path = field(default=Path("registries.conf"), compare=False)


@dataclass(frozen=True, slots=True)
class Registries:
    """All files as one; the `Endpoints` of a registry client."""

    rules: tuple[Rule, ...] = ()
    search: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    short_names: ShortNames = "permissive"
    credential_helpers: tuple[str, ...] = (AUTH_FILES,)

    @classmethod
    def load(cls, environment: Mapping[str, str], *, system: Path = SYSTEM_DIRECTORY) -> Registries:
        """Reads the files that count, see `registries_files`. Raises `UsageError`."""
        parts = []
        for path in registries_files(environment, system):
            data = read_settings(path, _WHAT)
            if data is not None:
                parts.append(parse(data, path))
            elif str(path) in (environment.get(name) for name in _VARIABLES):
                raise UsageError(
                    f"{_WHAT} `{path}` does not exist",
                    hint="name a file that is there, or unset the variable",
                )
        return merge(parts)

    def rule(self, name: str) -> Rule | None:
        """What holds for `registry/repository`: the rule with the longest prefix."""
        matching = [rule for rule in self.rules if _matched(name, rule.prefix)]
        return max(matching, key=lambda rule: len(rule.prefix), default=None)

    def to_pull(self, reference: Reference) -> tuple[Place, ...]:
        """The places to pull `reference` from, in this order: mirrors, then where it belongs.

        Raises `PolicyError` when it is blocked.
        """
        rule = self._allowed(reference)
        if rule is None:
            return (Place(reference),)
        left_out = "tag-only" if reference.digest else "digest-only"
        mirrors = [
            Place(_moved(reference, rule, mirror.location), mirror.insecure)
            for mirror in rule.mirrors
            if mirror.pulls != left_out
        ]
        return (*mirrors, Place(_moved(reference, rule, rule.location), rule.insecure))

    def to_push(self, reference: Reference) -> Place:
        """The place to push `reference` to: no mirror, and never moved, as podman has it.

        Raises `PolicyError` when it is blocked.
        """
        rule = self._allowed(reference)
        return Place(reference, insecure=rule is not None and rule.insecure)

    def _allowed(self, reference: Reference) -> Rule | None:
        rule = self.rule(reference.name)
        if rule is not None and rule.blocked:
            raise PolicyError(
                f"registry `{reference.registry}` is blocked for `{reference.name}`",
                hint=f"`{rule.path}` says so, for the prefix `{rule.prefix}`",
            )
        return rule

    def resolve(self, short: str, reference: Reference) -> Reference | None:
        """What the short name `short` means, with tag and digest of `reference`.

        An alias, or the name in the only registry that is to be searched; `None` when neither
        says anything. Raises `PolicyError` where names must not be guessed and several registries
        could be meant.
        """
        found = self.aliases.get(short)
        if not found and self.short_names == "enforcing" and len(self.search) > 1:
            raise PolicyError(
                f"`{short}` is a short name, and may mean an image of {_listed(self.search)}",
                hint=f"write the registry, too: {self.search[0]}/{short}",
            )
        if not found and len(self.search) == 1:
            found = f"{self.search[0]}/{short}"
        if not found:
            return None
        try:
            resolved = Reference.parse(found)
        except UsageError as error:
            raise UsageError(
                f"the short name `{short}`: {error.message}",
                hint="write the whole name, with its registry",
            ) from error
        return replace(resolved, tag=reference.tag, digest=reference.digest)


# --- files --------------------------------------------------------------------------------------

_VARIABLES = ("CONTAINERS_REGISTRIES_CONF", "CONTAINERS_REGISTRIES_CONF_OVERRIDE")


def registries_files(environment: Mapping[str, str], system: Path) -> list[Path]:
    """The files to read, those that win last; not all of them have to exist.

    `$CONTAINERS_REGISTRIES_CONF` alone, or the user's file with the user's drop-ins, or the
    system's with the drop-ins of both; then the aliases that podman has learnt, and at last
    `$CONTAINERS_REGISTRIES_CONF_OVERRIDE`.
    """
    main, override = (environment.get(name) for name in _VARIABLES)
    files = [Path(main)] if main else _usual_files(environment, system)
    if learnt := _learnt_aliases(environment):
        files.append(learnt)
    return [*files, Path(override)] if override else files


def _usual_files(environment: Mapping[str, str], system: Path) -> list[Path]:
    user = user_directory(environment)
    if user and (user / "registries.conf").exists():
        return [user / "registries.conf", *_drop_ins(user)]
    found = [system / "registries.conf"]
    for directory in reversed(directories(environment, system)):
        found += _drop_ins(directory)
    return found


def _drop_ins(directory: Path) -> list[Path]:
    return sorted((directory / "registries.conf.d").glob("*.conf"))


def _learnt_aliases(environment: Mapping[str, str]) -> Path | None:
    cache, home = environment.get("XDG_CACHE_HOME"), environment.get("HOME")
    if not cache and not home:
        return None
    return Path(cache or f"{home}/.cache") / "containers/short-name-aliases.conf"


# --- text to values -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Part:
    """What one file says; `None`: nothing."""

    rules: tuple[Rule, ...] = ()
    search: tuple[str, ...] | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    short_names: ShortNames | None = None
    credential_helpers: tuple[str, ...] | None = None


def merge(parts: Iterable[Part]) -> Registries:
    """The parts as one: a later one wins, rule by rule and alias by alias."""
    merged = Registries()
    rules: dict[str, Rule] = {}
    aliases: dict[str, str] = {}
    for part in parts:
        rules |= {rule.prefix: rule for rule in part.rules}
        aliases |= part.aliases
        merged = replace(
            merged,
            search=merged.search if part.search is None else part.search,
            short_names=part.short_names or merged.short_names,
            credential_helpers=part.credential_helpers or merged.credential_helpers,
        )
    return replace(merged, rules=tuple(rules.values()), aliases=aliases)


def parse(data: bytes, path: Path) -> Part:
    """Reads the content of the file `path`; raises `UsageError`. Unknown keys are passed over."""
    document = decode_toml(data, path, _WHAT)
    reader = _Reader(path)
    if isinstance(document.get("registries"), dict):
        raise UsageError(
            f"{_WHAT} `{path}` has the old form with `[registries.…]` tables",
            hint="write it with `[[registry]]` tables: see containers-registries.conf(5)",
        )
    tables = reader.tables(document, "registry")
    modes = get_args(ShortNames)
    search = reader.texts(document, "unqualified-search-registries")
    helpers = reader.texts(document, "credential-helpers")
    for name in search or ():
        if "/" in name or not _LOCATION.match(name):
            raise reader.error("unqualified-search-registries", f"`{name}` is not a registry")
    for name in helpers or ():
        if not HELPER_NAME.match(name):
            raise reader.error("credential-helpers", f"`{name}` is not the name of a helper")
    return Part(
        tuple(_rule(table, reader) for table in tables),
        search,
        reader.aliases(document),
        reader.one_of(document, "short-name-mode", modes) or None,
        helpers,
    )


def _rule(table: Mapping[str, Any], reader: _Reader) -> Rule:
    location = reader.location(table, "location")
    prefix = reader.prefix(table) or location
    if not prefix:
        raise reader.error("registry", "it has neither a `prefix` nor a `location`")
    if not location and not prefix.startswith("*."):
        raise reader.error("registry", f"`{prefix}` has no `location`")
    by_digest = reader.switch(table, "mirror-by-digest-only")
    mirrors = []
    for one in reader.tables(table, "mirror"):
        place = reader.location(one, "location")
        pulls = reader.one_of(one, "pull-from-mirror", get_args(Pulls))
        if not place:
            raise reader.error("registry.mirror", f"a mirror of `{prefix}` has no `location`")
        if by_digest and pulls:
            raise reader.error(
                "registry",
                f"`mirror-by-digest-only` of `{prefix}` and `pull-from-mirror` of its mirror "
                f"`{place}` exclude each other",
            )
        wanted: Pulls = "digest-only" if by_digest else pulls or "all"
        mirrors.append(Mirror(place, reader.switch(one, "insecure"), wanted))
    insecure, blocked = reader.switch(table, "insecure"), reader.switch(table, "blocked")
    return Rule(prefix, location, insecure, blocked, tuple(mirrors), reader.path)


class _Reader:
    """Values of one file, and the errors that name it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def error(self, key: str, said: str) -> UsageError:
        return UsageError(
            f"`{key}` in {_WHAT} `{self.path}`: {said}",
            hint="put it right there (containers-registries.conf(5))",
        )

    def tables(self, table: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
        value = table.get(key, [])
        if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
            raise self.error(key, f"write it as `[[{key}]]`")
        return value

    def texts(self, table: Mapping[str, Any], key: str) -> tuple[str, ...] | None:
        value = table.get(key)
        if value is None:
            return None
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self.error(key, "it must be a list of texts")
        return tuple(value)

    def text(self, table: Mapping[str, Any], key: str) -> str:
        value = table.get(key, "")
        if not isinstance(value, str):
            raise self.error(key, "it must be a text")
        return value

    def switch(self, table: Mapping[str, Any], key: str) -> bool:
        value = table.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, "it must be true or false")
        return value

    def one_of(self, table: Mapping[str, Any], key: str, known: tuple[Any, ...]) -> Any:
        """One of the `known` words; empty when there is none."""
        value = self.text(table, key)
        if value and value not in known:
            raise self.error(key, f"`{value}` is not known; there are {', '.join(known)}")
        return value

    def location(self, table: Mapping[str, Any], key: str) -> str:
        value = self.text(table, key).rstrip("/")
        if "://" in value:
            raise self.error(key, f"`{value}` must have no scheme")
        if value and not _LOCATION.match(value):
            raise self.error(key, f"`{value}` is not HOST[:PORT][/PATH]")
        return value

    def prefix(self, table: Mapping[str, Any]) -> str:
        value = self.text(table, "prefix")
        if value.startswith("*"):
            if not _WILDCARD.match(value):
                raise self.error("prefix", f"`{value}` is not *.DOMAIN")
            return value
        return self.location(table, "prefix")

    def aliases(self, document: Mapping[str, Any]) -> dict[str, str]:
        value = document.get("aliases", {})
        texts = isinstance(value, dict) and all(isinstance(one, str) for one in value.values())
        if not texts:
            raise self.error("aliases", 'write it as a table of "short" = "registry/name"')
        return dict(value)


# --- names --------------------------------------------------------------------------------------


def _matched(name: str, prefix: str) -> int:
    """How much of `registry/repository` the `prefix` stands for; 0 when it does not match.

    A registry with a port is another one than that without.
    """
    if prefix.startswith("*."):
        host = re.split(r"[:/]", name, maxsplit=1)[0]
        return len(host) if host.endswith(prefix[1:]) else 0
    same = name == prefix or name.startswith(f"{prefix}/")
    return len(prefix) if same else 0


def _moved(reference: Reference, rule: Rule, location: str) -> Reference:
    """`reference` at the `location` that stands for the prefix of `rule`; empty: where it is."""
    if not location:
        return reference
    name = location + reference.name[_matched(reference.name, rule.prefix) :]
    registry, _, repository = name.partition("/")
    if not repository:
        raise UsageError(
            f"`{rule.path}` moves `{reference.name}` to `{name}`, which is no repository",
            hint="put the prefix and the location right there",
        )
    registry = DEFAULT_REGISTRY if registry in HUB_NAMES else registry
    return Reference(registry, repository, reference.tag, reference.digest)


def _listed(names: tuple[str, ...]) -> str:
    return " or ".join(f"`{name}`" for name in names)
