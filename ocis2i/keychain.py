"""Finds credentials where podman and docker keep them: containers-auth.json(5), config.json."""

from __future__ import annotations

import base64
import binascii
import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ocis2i.container_config import FILE_LIMIT
from ocis2i.credential_helpers import Helper
from ocis2i.credentials import PASSWORD_FILE, Credentials, Given, given_for
from ocis2i.errors import RegistryError, UsageError
from ocis2i.events import Notice, Report, silent
from ocis2i.lazy_dataclass import dataclass
from ocis2i.net import redacted
from ocis2i.reference import DEFAULT_REGISTRY, HUB_NAMES, Reference
from ocis2i.registries import AUTH_FILES

# What Docker calls its registry in files and to helpers.
HUB_KEY = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True)
class AuthFile:
    """A file of credentials; a `legacy` one has only hosts at its top."""

    path: Path
    legacy: bool = False


class Keychain:
    """Finds the credentials for a repository; safe to use from several threads.

    `given` ones come first, for their registries. Then `helpers` are asked in their order, where
    `containers-auth.json` stands for the files: `authfile` (which must exist, and then nothing
    else is asked), else `REGISTRY_AUTH_FILE`, else `DOCKER_CONFIG`/config.json, else, in this
    order, the auth.json of the runtime directory, that of the configuration directory,
    `~/.docker/config.json` and `~/.dockercfg`, where the first file with a match wins.
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        authfile: Path | None = None,
        given: Given | None = None,
        helpers: Sequence[str] = (AUTH_FILES,),
        report: Report = silent,
    ) -> None:
        self._environment = environment
        self._given = dict(given or {})
        if authfile is not None and not authfile.exists():
            raise UsageError(
                f"the credentials file `{authfile}` does not exist",
                hint="`ocis2i login --authfile FILE REGISTRY` writes one",
            )
        self._helpers = (AUTH_FILES,) if authfile else tuple(helpers)
        self._files = auth_files(environment, authfile)
        self._report = report
        self._warning = None if authfile else missing_runtime_directory(environment)
        self._lock = threading.Lock()

    def find(self, reference: Reference) -> Credentials | None:
        """The credentials for `reference`, `None` when there are none.

        Raises `RegistryError` naming a file that cannot be understood or a helper that fails,
        unless another one has them.
        """
        if found := given_for(reference, self._given):
            return found
        failure: RegistryError | None = None
        for name in self._helpers:
            try:
                found = self._asked(name, reference)
            except RegistryError as error:
                failure = failure or error
                continue
            if found is not None:
                return found
        if failure:
            raise failure
        self._warn()
        return None

    def readable_files(self) -> tuple[Path, ...]:
        """Files with credentials that this user may read, asked or not."""
        choosing = ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
        usual = {name: value for name, value in self._environment.items() if name not in choosing}
        files = (*self._files, *auth_files(usual, None))
        found = [file.path for file in files if _has_credentials(file)]
        if (given := self._environment.get(PASSWORD_FILE)) and os.access(given, os.R_OK):
            found.append(Path(given))
        return tuple(dict.fromkeys(found))

    def _asked(self, name: str, reference: Reference) -> Credentials | None:
        if name == AUTH_FILES:
            return self._in_files(reference)
        helper = Helper(name, "registries.conf", self._environment)
        return helper.get(server_name(reference.registry))

    def _in_files(self, reference: Reference) -> Credentials | None:
        for file in self._files:
            document = read_auth_file(file)
            found = self._in_document(document, file.path, reference) if document else None
            if found is not None:
                return found
        return None

    def _in_document(
        self, document: Mapping[str, Any], path: Path, reference: Reference
    ) -> Credentials | None:
        helpers = checked_object(document.get("credHelpers"), path, "credHelpers")
        for key in host_keys(reference.registry):
            if isinstance(name := helpers.get(key), str) and name:
                found = self._helper(name, path).get(server_name(reference.registry))
                if found is not None:
                    return found
        found = _in_auths(checked_object(document.get("auths"), path, "auths"), path, reference)
        store = document.get("credsStore")
        if found is None and isinstance(store, str) and store:
            return self._helper(store, path).get(server_name(reference.registry))
        return found

    def _helper(self, name: str, path: Path) -> Helper:
        return Helper(name, f"`{path}`", self._environment)

    def _warn(self) -> None:
        """Says once why there may be no credentials."""
        with self._lock:
            warning, self._warning = self._warning, None
        if warning:
            self._report(Notice("warning", warning))


# --- files --------------------------------------------------------------------------------------


def auth_files(environment: Mapping[str, str], authfile: Path | None) -> list[AuthFile]:
    """The files that are looked through, in their order."""
    if authfile is not None:
        return [AuthFile(authfile)]
    if path := environment.get("REGISTRY_AUTH_FILE"):
        return [AuthFile(Path(path))]
    if path := environment.get("DOCKER_CONFIG"):
        return [AuthFile(Path(path) / "config.json")]
    usable = missing_runtime_directory(environment) is None
    files = [AuthFile(runtime_file(environment))] if usable else []
    if home := environment.get("HOME"):
        files.append(AuthFile(config_file(environment, home)))
        files.append(AuthFile(Path(home) / ".docker/config.json"))
        files.append(AuthFile(Path(home) / ".dockercfg", legacy=True))
    return files


def runtime_file(environment: Mapping[str, str]) -> Path:
    """podman's file, which is gone when the user has logged out of the machine."""
    runtime = environment.get("XDG_RUNTIME_DIR")
    place = Path(runtime) / "containers" if runtime else Path(f"/run/containers/{os.getuid()}")
    return place / "auth.json"


def config_file(environment: Mapping[str, str], home: str) -> Path:
    """The file below the user's configuration, which stays."""
    config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
    return Path(config) / "containers/auth.json"


def missing_runtime_directory(environment: Mapping[str, str]) -> str | None:
    """What to say where the runtime directory of the environment is none, or somebody else's.

    After `su` it is that of the user before.
    """
    runtime = environment.get("XDG_RUNTIME_DIR")
    elsewhere = environment.get("REGISTRY_AUTH_FILE") or environment.get("DOCKER_CONFIG")
    if not runtime or elsewhere or os.access(runtime, os.R_OK | os.X_OK):
        return None
    what = "is not for us" if os.path.lexists(runtime) else "does not exist"
    return f"XDG_RUNTIME_DIR is `{runtime}`, which {what}: no credentials are looked for there"


def read_auth_file(file: AuthFile) -> dict[str, Any] | None:
    """The document in a file, `None` when it is not there. Raises `RegistryError`."""
    try:
        with file.path.open("rb") as stream:
            data = stream.read(FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryError(
            f"the credentials file `{file.path}` cannot be read: {error.strerror}",
            hint="let this user read it, or name another file with --authfile",
        ) from error
    try:
        document = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        # The error would quote the document, and that is full of secrets.
        raise RegistryError(
            f"the credentials file `{file.path}` is not JSON",
            hint="put it right, or name another file with --authfile",
        ) from None
    checked = checked_object(document, file.path, "the document")
    return {"auths": checked} if file.legacy else checked


def _has_credentials(file: AuthFile) -> bool:
    try:
        document = read_auth_file(file) or {}
    except RegistryError:  # whoever needs the file is told of it
        return False
    return any(document.get(key) for key in ("auths", "credHelpers", "credsStore"))


def checked_object(value: object, path: Path, what: str) -> dict[str, Any]:
    """`value` as an object, empty for none. Raises `RegistryError`."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RegistryError(
            f"the credentials file `{path}` is malformed: `{what}` must be an object",
            hint="put it right, or name another file with --authfile",
        )
    return value


# --- keys ---------------------------------------------------------------------------------------


def server_name(registry: str) -> str:
    """What helpers call a registry."""
    return HUB_KEY if registry == DEFAULT_REGISTRY else registry


def host_keys(registry: str) -> tuple[str, ...]:
    """The keys that stand for a registry in `credHelpers` and, as they are, in `auths`."""
    return (*HUB_NAMES, HUB_KEY) if registry == DEFAULT_REGISTRY else (registry,)


def keys_of(auths: Mapping[str, Any], registry: str) -> list[str]:
    """The keys of `auths` that stand for a whole registry, by whatever name."""
    hosts = HUB_NAMES if registry == DEFAULT_REGISTRY else (registry,)
    return [key for key in auths if key in hosts or _host_of_url(key) in hosts]


def _in_auths(auths: dict[str, Any], path: Path, reference: Reference) -> Credentials | None:
    for key in _matching_keys(auths, reference):
        entry = checked_object(auths[key], path, f"auths of {redacted(key)}")
        found = _decode_entry(entry, path, key)
        if found is not None:
            return replace(found, source=f"`{path}`")
    return None


def _matching_keys(auths: Mapping[str, Any], reference: Reference) -> Iterator[str]:
    """The keys for `reference`, most specific first, then those that only name its host.

    A key written as a URL, as old tools did, stands for its host; a path without a scheme is a
    namespace and must not be taken for the whole host.
    """
    parts = reference.repository.split("/")
    hosts = HUB_NAMES if reference.registry == DEFAULT_REGISTRY else (reference.registry,)
    for depth in range(len(parts), -1, -1):
        for host in hosts:
            key = "/".join((host, *parts[:depth]))
            if key in auths:
                yield key
    for key in auths:
        if _host_of_url(key) in hosts:
            yield key


def _host_of_url(key: str) -> str | None:
    try:
        return urlsplit(key).netloc if key.startswith(("http://", "https://")) else None
    except ValueError:
        return None


def _decode_entry(entry: Mapping[str, Any], path: Path, key: str) -> Credentials | None:
    fields = ("auth", "username", "password", "identitytoken", "registrytoken")
    texts = {name: entry.get(name) or "" for name in fields}
    if not all(isinstance(text, str) for text in texts.values()):
        raise _bad_entry(path, key)
    username, password = texts["username"], texts["password"]
    if texts["auth"]:
        try:
            pair = base64.b64decode(texts["auth"], validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            raise _bad_entry(path, key) from None
        username, colon, password = pair.partition(":")
        if not colon:
            raise _bad_entry(path, key)
        password = password.rstrip("\0")
    found = Credentials(username, password, texts["identitytoken"], texts["registrytoken"])
    # An empty entry is what a login through a helper leaves behind.
    return found if found != Credentials() else None


def _bad_entry(path: Path, key: str) -> RegistryError:
    return RegistryError(
        f"the credentials file `{path}` has a malformed entry for `{redacted(key) or key}`",
        hint="log in again, that writes it anew",
    )
