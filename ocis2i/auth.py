"""Who we are to a registry: credentials as podman and docker keep them, challenges and tokens.

Files: containers-auth.json(5) and Docker's config.json. Tokens: distribution's token specification
(`spec/auth/token`, `spec/auth/oauth`).
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ocis2i import proc
from ocis2i.errors import RegistryError, UsageError
from ocis2i.net import (
    Http,
    Request,
    RequestError,
    check_foreign_address,
    origin,
    read_body,
    redacted,
    retry_after_seconds,
)
from ocis2i.reference import DEFAULT_REGISTRY, Reference

HELPER_SECONDS = 60.0
TOKEN_LIMIT = 64 << 10
FILE_LIMIT = 4 << 20
# A token without `expires_in` lives this long (token specification).
DEFAULT_TOKEN_SECONDS = 60.0
LONGEST_MARGIN_SECONDS = 30.0

HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = (DEFAULT_REGISTRY, "index.docker.io", "registry-1.docker.io")
_IDENTITY_USER = "<token>"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What proves who we are: a password, an identity (refresh) token or a ready bearer token."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str | None:
        """The `Authorization` header of HTTP's Basic scheme, if there is a user name."""
        if not self.username:
            return None
        pair = f"{self.username}:{self.password or self.identity_token}"
        return "Basic " + base64.b64encode(pair.encode()).decode()


# --- where credentials are kept -----------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _AuthFile:
    path: Path
    legacy: bool = False


class Keychain:
    """Finds the credentials for a repository; safe to use from several threads.

    Only the first of these that applies is read: `given` for its registries; the file `authfile`,
    which must exist; `REGISTRY_AUTH_FILE`; `DOCKER_CONFIG`/config.json; else, in this order, the
    auth.json of the runtime directory, that of the configuration directory,
    `~/.docker/config.json` and `~/.dockercfg`, where the first file with a match wins
    (containers-auth.json(5)).
    """

    def __init__(
        self,
        environment: Mapping[str, str],
        *,
        authfile: Path | None = None,
        given: Mapping[str, Credentials] | None = None,
    ) -> None:
        self._environment = environment
        self._given = dict(given or {})
        if authfile is not None and not authfile.exists():
            raise UsageError(
                f"the credentials file `{authfile}` does not exist",
                hint="`podman login --authfile FILE REGISTRY` writes one",
            )
        self._files = _auth_files(environment, authfile)

    def find(self, reference: Reference) -> Credentials | None:
        """The credentials for `reference`, `None` when there are none.

        Raises `RegistryError` naming a file that cannot be understood or a helper that fails.
        """
        if reference.registry in self._given:
            return self._given[reference.registry]
        for file in self._files:
            document = _read_auth_file(file)
            if document is not None:
                found = self._in_document(document, file.path, reference)
                if found is not None:
                    return found
        return None

    def readable_files(self) -> tuple[Path, ...]:
        """Files with credentials that this user may read, asked or not."""
        choosing = ("REGISTRY_AUTH_FILE", "DOCKER_CONFIG")
        usual = {name: value for name, value in self._environment.items() if name not in choosing}
        files = (*self._files, *_auth_files(usual, None))
        return tuple(dict.fromkeys(file.path for file in files if _has_credentials(file)))

    def _in_document(
        self, document: Mapping[str, Any], path: Path, reference: Reference
    ) -> Credentials | None:
        helpers = _object(document.get("credHelpers"), path, "credHelpers")
        for key in _host_keys(reference.registry):
            if isinstance(name := helpers.get(key), str) and name:
                return self._ask_helper(name, reference.registry, path)
        found = _in_auths(_object(document.get("auths"), path, "auths"), path, reference)
        store = document.get("credsStore")
        if found is None and isinstance(store, str) and store:
            return self._ask_helper(store, reference.registry, path)
        return found

    def _ask_helper(self, name: str, registry: str, path: Path) -> Credentials | None:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
            raise RegistryError(f"`{path}` names the credential helper `{name}`, which is no name")
        program = f"docker-credential-{name}"
        found = proc.find_program(program, self._environment.get("PATH"))
        if found is None:
            raise RegistryError(
                f"`{path}` wants the credential helper `{program}` for `{registry}`, "
                "but there is no such program",
                hint="install it, or remove it from the file",
            )
        server = HUB_KEY if registry == DEFAULT_REGISTRY else registry
        # A helper finds its cloud session in variables that nobody can list beforehand, and it is
        # the user's own program: it sees the user's own environment.
        finished = proc.run(
            [found, "get"],
            environment=self._environment,
            timeout_seconds=HELPER_SECONDS,
            stdin=f"{server}\n".encode(),
        )
        if finished.exit_code != 0:
            _check_helper_failure(program, registry, finished)
            return None
        return _helper_answer(program, finished.stdout)


def _check_helper_failure(program: str, registry: str, finished: proc.Finished) -> None:
    # By the protocol a failing helper says why on stdout.
    said = finished.text or finished.complaint
    if "credentials not found" in said.lower():
        return
    reason = (
        f"no answer in {HELPER_SECONDS:.0f} seconds"
        if finished.exit_code == 124
        else printable(said) or f"exit code {finished.exit_code}"
    )
    raise RegistryError(
        f"the credential helper `{program}` failed for `{registry}`: {reason}",
        hint=f"try it: echo {registry} | {program} get",
    )


def _helper_answer(program: str, stdout: bytes) -> Credentials | None:
    try:
        answer = json.loads(stdout)
        username, secret = answer.get("Username", ""), answer.get("Secret", "")
    except (ValueError, AttributeError):
        # Not quoted, and no cause attached: what it printed may be the secret.
        raise RegistryError(f"the credential helper `{program}` did not answer with JSON") from None
    if not isinstance(username, str) or not isinstance(secret, str):
        raise RegistryError(f"the credential helper `{program}` answered with something else")
    if not secret:
        return None
    if username == _IDENTITY_USER:
        return Credentials(identity_token=secret)
    return Credentials(username, secret)


def _auth_files(environment: Mapping[str, str], authfile: Path | None) -> list[_AuthFile]:
    if authfile is not None:
        return [_AuthFile(authfile)]
    if path := environment.get("REGISTRY_AUTH_FILE"):
        return [_AuthFile(Path(path))]
    if path := environment.get("DOCKER_CONFIG"):
        return [_AuthFile(Path(path) / "config.json")]
    runtime = environment.get("XDG_RUNTIME_DIR")
    place = Path(runtime) / "containers" if runtime else Path(f"/run/containers/{os.getuid()}")
    files = [_AuthFile(place / "auth.json")]
    if home := environment.get("HOME"):
        config = environment.get("XDG_CONFIG_HOME") or f"{home}/.config"
        files.append(_AuthFile(Path(config) / "containers/auth.json"))
        files.append(_AuthFile(Path(home) / ".docker/config.json"))
        files.append(_AuthFile(Path(home) / ".dockercfg", legacy=True))
    return files


def _read_auth_file(file: _AuthFile) -> dict[str, Any] | None:
    try:
        with file.path.open("rb") as stream:
            data = stream.read(FILE_LIMIT)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise RegistryError(
            f"the credentials file `{file.path}` cannot be read: {error.strerror}"
        ) from error
    try:
        document = json.loads(data) if data.strip() else {}
    except (ValueError, RecursionError):
        # The error would quote the document, and that is full of secrets.
        raise RegistryError(f"the credentials file `{file.path}` is not JSON") from None
    checked = _object(document, file.path, "the document")
    return {"auths": checked} if file.legacy else checked


def _has_credentials(file: _AuthFile) -> bool:
    try:
        document = _read_auth_file(file) or {}
    except RegistryError:  # whoever needs the file is told of it
        return False
    return any(document.get(key) for key in ("auths", "credHelpers", "credsStore"))


def _object(value: object, path: Path, what: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise RegistryError(
            f"the credentials file `{path}` is malformed: `{what}` must be an object"
        )
    return value


def _host_keys(registry: str) -> tuple[str, ...]:
    return (*_HUB_HOSTS, HUB_KEY) if registry == DEFAULT_REGISTRY else (registry,)


def _in_auths(auths: dict[str, Any], path: Path, reference: Reference) -> Credentials | None:
    for key in _matching_keys(auths, reference):
        entry = _object(auths[key], path, f"auths of {redacted(key)}")
        found = _decode_entry(entry, path, key)
        if found is not None:
            return found
    return None


def _matching_keys(auths: Mapping[str, Any], reference: Reference) -> Iterator[str]:
    """The keys for `reference`, most specific first, then those that only name its host.

    A key written as a URL, as old tools did, stands for its host; a path without a scheme is a
    namespace and must not be taken for the whole host.
    """
    parts = reference.repository.split("/")
    hosts = _HUB_HOSTS if reference.registry == DEFAULT_REGISTRY else (reference.registry,)
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


# --- challenges ---------------------------------------------------------------------------------

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"  # noqa: S105 - a token of RFC 9110's grammar
_SCHEME = re.compile(rf"[\s,]*({_TOKEN})(?:[ \t]+(?:[A-Za-z0-9._~+/-]+=*(?=\s*(?:,|$)))?|(?=,|$))")
_PARAMETER = re.compile(rf'[\s,]*({_TOKEN})\s*=\s*(?:"((?:[^"\\]|\\.)*)"|({_TOKEN}))')


@dataclass(frozen=True, slots=True)
class Challenge:
    """One way to authenticate that a server offers; the scheme and names are lower case."""

    scheme: str
    parameters: Mapping[str, str]


def parse_challenges(header: str) -> list[Challenge]:
    """The challenges of a `WWW-Authenticate` header, several joined by commas or not.

    (RFC 9110, 11.6.1.) What cannot be understood ends the list.
    """
    challenges: list[Challenge] = []
    parameters: dict[str, str] = {}
    position = 0
    while position < len(header):
        if challenges and (match := _PARAMETER.match(header, position)):
            name, quoted, plain = match.groups()
            value = re.sub(r"\\(.)", r"\1", quoted) if quoted is not None else plain
            parameters.setdefault(name.lower(), value)
        elif match := _SCHEME.match(header, position):
            parameters = {}
            challenges.append(Challenge(match.group(1).lower(), parameters))
        else:
            break
        position = match.end()
    return challenges


def choose_challenge(challenges: Sequence[Challenge]) -> Challenge | None:
    """Bearer if it is offered, else Basic; others are unknown to us."""
    for scheme in ("bearer", "basic"):
        for challenge in challenges:
            if challenge.scheme == scheme:
                return challenge
    return None


# --- proving it -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Token:
    header: str = field(repr=False)
    fresh_until: float


class Authorizer:
    """The `Authorization` headers for one repository of one registry; safe for threads.

    `base` is the registry's URL and `challenges` what its `/v2/` answered. Tokens are kept by the
    scopes that were *asked* for: some registries name others in their challenge.
    """

    def __init__(
        self,
        http: Http,
        base: str,
        credentials: Credentials | None,
        challenges: Sequence[Challenge],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._http = http
        self._base = base
        self._credentials = credentials
        self._challenge = choose_challenge(challenges)
        self._clock = clock
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._lock = threading.Lock()

    @property
    def has_credentials(self) -> bool:
        """Whether we come with a name; without, everything is asked for anonymously."""
        return self._credentials is not None

    def header(self, scopes: Sequence[str]) -> str | None:
        """The header to send with a request that needs `scopes`; `None` for none.

        Raises `RequestError` when the token service refuses, and `RegistryError` when its address
        must not be trusted.
        """
        with self._lock:
            return self._header(tuple(scopes), ())

    def renewed(
        self, scopes: Sequence[str], challenges: Sequence[Challenge], refused: str | None
    ) -> str | None:
        """Another header after the server answered 401 to `refused`; `None` when there is none.

        A credential that was refused is never sent again; a token is fetched once more, with the
        scope of the challenge in front, unless another thread has just done so.
        """
        key = tuple(scopes)
        with self._lock:
            self._challenge = choose_challenge(challenges) or self._challenge
            known = self._tokens.get(key)
            if known is not None and known.header == refused:
                del self._tokens[key]
            more = self._challenge.parameters.get("scope", "") if self._challenge else ""
            header = self._header(key, tuple(more.split()))
            return header if header != refused else None

    def _header(self, scopes: tuple[str, ...], more: tuple[str, ...]) -> str | None:
        if self._credentials and self._credentials.registry_token:
            return f"Bearer {self._credentials.registry_token}"
        if self._challenge is None:
            return None
        if self._challenge.scheme == "basic":
            return self._credentials.basic if self._credentials else None
        known = self._tokens.get(scopes)
        if known is None or known.fresh_until <= self._clock():
            known = self._fetch(self._challenge, tuple(dict.fromkeys((*more, *scopes))))
            self._tokens[scopes] = known
        return known.header

    def _fetch(self, challenge: Challenge, scopes: tuple[str, ...]) -> _Token:
        realm = self._checked_realm(challenge)
        service = challenge.parameters.get("service", "")
        asked_at = self._clock()
        answer = None
        if self._credentials and self._credentials.identity_token:
            answer = self._refresh(realm, service, scopes, self._credentials.identity_token)
        if answer is None:
            answer = self._get(realm, service, scopes)
        token = answer.get("token") or answer.get("access_token")
        if not isinstance(token, str) or not token:
            raise RegistryError(f"the token service {redacted(realm)} answered without a token")
        lifetime = answer.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, int | float) and lifetime > 0 else 0.0
        seconds = seconds or DEFAULT_TOKEN_SECONDS
        margin = min(LONGEST_MARGIN_SECONDS, seconds / 4)
        return _Token(f"Bearer {token}", asked_at + seconds - margin)

    def _checked_realm(self, challenge: Challenge) -> str:
        """Where to ask for tokens; credentials go there, so a registry must not choose freely."""
        realm = challenge.parameters.get("realm", "")
        if not realm.startswith(("http://", "https://")):
            raise RegistryError(
                f"registry `{urlsplit(self._base).netloc}` names no usable token service"
            )
        if origin(realm)[0] == "http" and origin(self._base)[0] == "https":
            raise RegistryError(
                f"the token service {redacted(realm)} of registry "
                f"`{urlsplit(self._base).netloc}` has no TLS, credentials are not sent there"
            )
        check_foreign_address(realm, self._base, "the token service")
        return realm

    def _get(self, realm: str, service: str, scopes: Sequence[str]) -> dict[str, Any]:
        pairs = [("service", service)] if service else []
        pairs += [("scope", scope) for scope in scopes]
        query = urlencode(pairs, quote_via=quote)
        url = f"{realm}{'&' if urlsplit(realm).query else '?'}{query}" if query else realm
        basic = self._credentials.basic if self._credentials else None
        request = Request("GET", url, authorization=basic)
        return self._answer(request)

    def _refresh(
        self, realm: str, service: str, scopes: Sequence[str], identity_token: str
    ) -> dict[str, Any] | None:
        form = {
            "grant_type": "refresh_token",
            "service": service,
            "client_id": "ocis2i",
            "scope": " ".join(scopes),
            "refresh_token": identity_token,
        }
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        # A redirect would carry the body, and with it the token, to wherever it points.
        request = Request("POST", realm, headers, urlencode(form).encode(), follow_redirects=False)
        try:
            return self._answer(request)
        except RequestError as error:
            # Who does not know the OAuth2 form answers with one of these; then GET may do.
            if (
                error.status in (400, 401, 404, 405)
                and self._credentials
                and (self._credentials.basic)
            ):
                return None
            raise

    def _answer(self, request: Request) -> dict[str, Any]:
        response = self._http.exchange(request)
        status, headers = response.status_code, response.headers
        body = read_body(response, TOKEN_LIMIT)
        if status != 200:
            raise self._refusal(request, status, retry_after_seconds(headers))
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            raise RegistryError(f"the token service {redacted(request.url)} did not answer JSON")
        return answer

    def _refusal(self, request: Request, status: int, retry_after: float | None) -> RequestError:
        host = urlsplit(self._base).netloc
        who = "with credentials" if self._credentials else "without credentials"
        if self._credentials and self._credentials.username:
            who = f"as `{self._credentials.username}`"
        return RequestError(
            f"login to registry `{host}` {who} failed: {request} answered {status}",
            kind="status",
            status=status,
            retry_after_seconds=retry_after,
            hint=login_hint(host, known=self.has_credentials) if status in (401, 403) else None,
        )


def login_hint(registry: str, *, known: bool) -> str:
    """What to try when a registry does not let us in."""
    if known:
        return f"check user name, password and rights: podman login {registry}"
    return f"log in first: podman login {registry}"


def printable(text: str, limit: int = 300) -> str:
    """Foreign `text` as one line without control characters, cut after `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
