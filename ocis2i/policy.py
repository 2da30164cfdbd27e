"""policy.json: from where images may be taken at all, by containers-policy.json(5).

Of its requirements `insecureAcceptAnything` and `reject` are understood. Where a signature is
required, the answer is no: ocis2i verifies none.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import field
from pathlib import Path
from typing import Any, NoReturn

from ocis2i.container_config import SYSTEM_DIRECTORY, directories, read_settings
from ocis2i.errors import PolicyError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import PathLocation, Reference

_WHAT = "the signature policy"
_ACCEPT = "insecureAcceptAnything"
_REJECT = "reject"
_WITH_SIGNATURE = ("signedBy", "signedBaseLayer", "sigstoreSigned")
_HINT = "verify the image with cosign or skopeo, then name another policy with --signature-policy"

# The types of the requirements for one scope; all of them have to be fulfilled.
Requirements = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Policy:
    """What the file `path` requires; without a file everything is accepted."""

    path: Path | None = None
    default: Requirements = (_ACCEPT,)
    transports: Mapping[str, Mapping[str, Requirements]] = field(default_factory=dict)

    @classmethod
    def load(
        cls,
        environment: Mapping[str, str],
        *,
        path: Path | None = None,
        system: Path = SYSTEM_DIRECTORY,
    ) -> Policy:
        """Reads `path`, else the first of the user's and the system's file.

        Raises `UsageError` for a `path` that is not there and a file that says nothing clear: a
        policy must not be ignored.
        """
        if path is not None:
            data = read_settings(path, _WHAT)
            if data is None:
                raise UsageError(
                    f"{_WHAT} `{path}` does not exist", hint="name a file that is there"
                )
            return parse_policy(data, path)
        for directory in directories(environment, system):
            data = read_settings(directory / "policy.json", _WHAT)
            if data is not None:
                return parse_policy(data, directory / "policy.json")
        return cls()

    def check_registry(self, reference: Reference) -> None:
        """Raises `PolicyError` unless `reference` may be pulled."""
        self._check("docker", registry_scopes(reference.with_default_tag()), str(reference))

    def check_path(self, location: PathLocation) -> None:
        """Raises `PolicyError` unless the image of a directory or file may be taken."""
        self._check(location.transport, path_scopes(location), str(location))

    def _check(self, transport: str, scopes: Iterator[str], name: str) -> None:
        for requirement in self._requirements(transport, scopes):
            if requirement == _REJECT:
                raise PolicyError(
                    f"image `{name}` is rejected by {_WHAT} `{self.path}`",
                    hint="take it from a place that the policy accepts",
                )
            if requirement != _ACCEPT:
                raise PolicyError(
                    f"{_WHAT} `{self.path}` wants `{requirement}` for image `{name}`, and "
                    "ocis2i verifies no signatures",
                    hint=_HINT,
                )

    def _requirements(self, transport: str, scopes: Iterator[str]) -> Requirements:
        known = self.transports.get(transport, {})
        found = next((known[scope] for scope in scopes if scope in known), None)
        if found is None:
            found = known.get("")
        return self.default if found is None else found


def registry_scopes(reference: Reference) -> Iterator[str]:
    """The scopes of an image in a registry, the most specific first (transport `docker`)."""
    name = reference.name
    # Beside a digest the tag is only said: nobody checks that it is that image's.
    if reference.digest:
        yield f"{name}@{reference.digest}"
    elif reference.tag:
        yield f"{name}:{reference.tag}"
    parts = name.split("/")
    for length in range(len(parts), 0, -1):
        yield "/".join(parts[:length])
    labels = reference.registry.partition(":")[0].split(".")
    for first in range(1, len(labels)):
        yield "*." + ".".join(labels[first:])


def path_scopes(location: PathLocation) -> Iterator[str]:
    """The scopes of an image in a directory or file: its path, and the directories above it.

    A docker-archive has none: only what holds for its whole transport counts.
    """
    if location.transport == "docker-archive":
        return
    # Links are followed, or one could lead around what the policy says of a place.
    path = Path(location.path).resolve()
    for parent in (path, *path.parents):
        if parent != Path("/"):
            yield str(parent)


# --- text to values -----------------------------------------------------------------------------


def parse_policy(data: bytes, path: Path) -> Policy:
    """Reads the content of the file `path`; raises `UsageError` for all that is not understood."""
    try:
        document = json.loads(data, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{_WHAT} `{path}` is not JSON: {error}",
            hint="put it right at that place (containers-policy.json(5))",
        ) from error
    if not isinstance(document, dict) or "default" not in document:
        _refuse(path, "it has no `default`")
    if unknown := sorted(set(document) - {"default", "transports"}):
        _refuse(path, f"it has the unknown key `{unknown[0]}`")
    transports = document.get("transports", {})
    if not isinstance(transports, dict):
        _refuse(path, "`transports` must be an object")
    default = _parse_requirements(document["default"], path, "default")
    return Policy(
        path, default, {name: _scopes(scopes, path, name) for name, scopes in transports.items()}
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        # Readers differ on which of two counts: one could hide a rejection from us.
        raise ValueError("a key stands twice in one object")
    return found


def _scopes(value: object, path: Path, transport: str) -> dict[str, Requirements]:
    if not isinstance(value, dict):
        _refuse(path, f"`{transport}` must be an object of scopes")
    return {
        scope: _parse_requirements(wanted, path, f"{transport}` `{scope}")
        for scope, wanted in value.items()
    }


def _parse_requirements(value: object, path: Path, where: str) -> Requirements:
    if not isinstance(value, list) or not value:
        _refuse(path, f"`{where}` must be a list of requirements")
    types = tuple(str(one.get("type")) if isinstance(one, dict) else "" for one in value)
    if not {_ACCEPT, _REJECT, *_WITH_SIGNATURE}.issuperset(types):
        _refuse(path, f"`{where}` has a requirement of an unknown type")
    return types


def _refuse(path: Path, said: str) -> NoReturn:
    raise UsageError(f"{_WHAT} `{path}` is malformed: {said}", hint="see containers-policy.json(5)")
