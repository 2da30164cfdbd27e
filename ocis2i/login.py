"""Where a login is kept and forgotten: a file of credentials, or the helper that the file names."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ocis2i.credential_helpers import Helper
from ocis2i.credentials import Credentials
from ocis2i.errors import Ocis2iError, RegistryError, UsageError
from ocis2i.fs import explain, locked_directory, write_atomic
from ocis2i.keychain import (
    HUB_KEY,
    AuthFile,
    checked_object,
    config_file,
    host_keys,
    keys_of,
    missing_runtime_directory,
    read_auth_file,
    runtime_file,
    server_name,
)
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import DEFAULT_REGISTRY
from ocis2i.registries import AUTH_FILES

_DOCKER_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class LoginPlace:
    """Where logins go: the helpers of registries.conf in their order, and one file among them."""

    path: Path
    environment: Mapping[str, str]
    helpers: Sequence[str] = (AUTH_FILES,)

    def keep(self, key: str, credentials: Credentials) -> str:
        """Keeps the credentials for `registry[/namespace]`; says where they are now.

        The first of the helpers that can takes them. Raises the first one's error.
        """
        failure: Ocis2iError | None = None
        for name in self.helpers:
            try:
                if name == AUTH_FILES:
                    return self._keep_in_file(key, credentials)
                return _give(Helper(name, "registries.conf", self.environment), key, credentials)
            except Ocis2iError as error:
                failure = failure or error
        raise failure or UsageError(
            "registries.conf has no `credential-helpers`",
            hint="put one into registries.conf, or name a file with --authfile",
        )

    def forget(self, key: str) -> bool:
        """Forgets the credentials of `registry[/namespace]`; whether there were any."""
        known = [self._forgotten_by(name, key) for name in self.helpers]
        return any(known)

    def forget_all(self) -> list[str]:
        """Forgets what the file has, and the helpers that it names; the keys that were there."""
        with _changing(self.path) as document:
            helpers = checked_object(document.get("credHelpers"), self.path, "credHelpers")
            auths = checked_object(document.get("auths"), self.path, "auths")
            keys = sorted(auths)
            for registry, name in helpers.items():
                if self._helper(name).erase(server_name(registry)):
                    keys.append(registry)
            if auths:
                document["auths"] = {}
        return keys

    def _keep_in_file(self, key: str, credentials: Credentials) -> str:
        with _changing(self.path) as document:
            auths = checked_object(document.get("auths"), self.path, "auths")
            helper = self._helper_for(document, key)
            # What an older login left would come before the helper's, or beside the new entry.
            kept = {name: auths[name] for name in auths if name not in self._keys(auths, key)}
            if helper:
                where = _give(helper, key, credentials)
            else:
                kept[self._key(key)] = {"auth": _pair(credentials)}
                where = f"`{self.path}`"
            if kept or "auths" in document:
                document["auths"] = kept
        return where

    def _forgotten_by(self, name: str, key: str) -> bool:
        if name != AUTH_FILES:
            return _erased(Helper(name, "registries.conf", self.environment), key)
        with _changing(self.path) as document:
            auths = checked_object(document.get("auths"), self.path, "auths")
            known = self._keys(auths, key)
            if known:
                document["auths"] = {one: auths[one] for one in auths if one not in known}
            helper = self._helper_for(document, key)
            return _erased(helper, key) if helper else bool(known)

    def _helper_for(self, document: Mapping[str, Any], key: str) -> Helper | None:
        """The helper that the file wants for this registry, or for all."""
        helpers = checked_object(document.get("credHelpers"), self.path, "credHelpers")
        names = [helpers.get(one) for one in host_keys(key)] + [document.get("credsStore")]
        found = next((name for name in names if isinstance(name, str) and name), None)
        return self._helper(found) if found else None

    def _helper(self, name: str) -> Helper:
        return Helper(name, f"`{self.path}`", self.environment)

    def _key(self, key: str) -> str:
        """As the tools that read this file write it: Docker has a name of its own for its Hub."""
        is_dockers = self.path.name == _DOCKER_FILE
        return HUB_KEY if key == DEFAULT_REGISTRY and is_dockers else key

    def _keys(self, auths: Mapping[str, Any], key: str) -> list[str]:
        return [key] if "/" in key and key in auths else keys_of(auths, key)


def login_file(environment: Mapping[str, str], authfile: Path | None) -> tuple[Path, str | None]:
    """The file that a login is written to, as podman chooses it, and what is odd about it."""
    if authfile is not None:
        return authfile, None
    if path := environment.get("REGISTRY_AUTH_FILE"):
        return Path(path), None
    if path := environment.get("DOCKER_CONFIG"):
        return Path(path) / _DOCKER_FILE, None
    warning = missing_runtime_directory(environment)
    runtime = runtime_file(environment)
    usable = environment.get("XDG_RUNTIME_DIR") and not warning
    home = environment.get("HOME")
    if usable or runtime.exists() or not home:
        return runtime, warning
    # Without a runtime directory of the user's own nobody but root could write there.
    return config_file(environment, home), warning


# --- helpers ------------------------------------------------------------------------------------


def _give(helper: Helper, key: str, credentials: Credentials) -> str:
    if "/" in key:
        raise UsageError(
            f"the credential helper `{helper.program}` keeps credentials of whole registries, "
            f"not of `{key}`",
            hint=f"log in to {key.partition('/')[0]}, or name a file with --authfile",
        )
    helper.store(server_name(key), credentials)
    return f"the helper `{helper.program}`"


def _erased(helper: Helper, key: str) -> bool:
    # `erase` may succeed for what was never there.
    if "/" in key or helper.get(server_name(key)) is None:
        return False
    return helper.erase(server_name(key))


def _pair(credentials: Credentials) -> str:
    return base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


# --- one change of a file -----------------------------------------------------------------------


@contextmanager
def _changing(path: Path) -> Iterator[dict[str, Any]]:
    """The document of a file, to be changed; written at the end, if it was, at once and private.

    Nobody else who does it this way gets in between. What is not ours in it stays as it is.
    """
    real = path.resolve()  # a link leads to where the user keeps the file
    try:
        real.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        _check_owner(path, real)
        with locked_directory(real.parent):
            document = read_auth_file(AuthFile(real)) or {}
            before = json.dumps(document)
            yield document
            if json.dumps(document) != before:
                text = json.dumps(document, indent="\t", ensure_ascii=False) + "\n"
                write_atomic(real, text.encode(), scratch=real.parent, mode=0o600)
    except OSError as error:
        raise explain(error, f"the credentials file `{path}` cannot be written") from error


def _check_owner(path: Path, real: Path) -> None:
    """Refuses places where somebody else could read or replace what is written."""
    for one in (path, real):
        with contextlib.suppress(FileNotFoundError):
            if one.lstat().st_uid != os.geteuid():
                raise RegistryError(
                    f"the credentials file `{one}` belongs to somebody else",
                    hint="name a file of your own with --authfile",
                )
    mode = real.parent.stat().st_mode
    if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
        raise RegistryError(
            f"everybody may write in `{real.parent}`: credentials are not kept there",
            hint=f"chmod o-w {real.parent}",
        )
