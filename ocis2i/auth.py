"""Proving to a registry who we are: its challenges, and tokens for its parts.

By distribution's token specification (`spec/auth/token`, `spec/auth/oauth`).
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import field
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from ocis2i.credentials import Credentials
from ocis2i.errors import RegistryError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import json_object
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

TOKEN_LIMIT = 64 << 10
# A token without `expires_in` lives this long (token specification).
DEFAULT_TOKEN_SECONDS = 60.0
LONGEST_TOKEN_SECONDS = 86400.0
LONGEST_MARGIN_SECONDS = 30.0

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
    scopes that were *asked* for: some registries name others in their challenge. `check` raises
    when there is no more time for an answer that is on its way.
    """

    def __init__(
        self,
        http: Http,
        base: str,
        credentials: Credentials | None,
        challenges: Sequence[Challenge],
        *,
        clock: Callable[[], float] = time.monotonic,
        check: Callable[[], object] = lambda: None,
    ) -> None:
        self._http = http
        self._check = check
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

    @property
    def source(self) -> str:
        """Where our credentials were found; empty for none."""
        return self._credentials.source if self._credentials else ""

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
            raise RegistryError(
                f"the token service {redacted(realm)} answered without a token",
                hint="log in again (`ocis2i login`), or ask the registry's operator",
            )
        lifetime = answer.get("expires_in")
        seconds = 0.0
        if isinstance(lifetime, int | float) and lifetime > 0:
            # Capped: an integer of JSON may be larger than any float.
            seconds = float(min(lifetime, LONGEST_TOKEN_SECONDS))
        seconds = seconds or DEFAULT_TOKEN_SECONDS
        margin = min(LONGEST_MARGIN_SECONDS, seconds / 4)
        return _Token(f"Bearer {token}", asked_at + seconds - margin)

    def _checked_realm(self, challenge: Challenge) -> str:
        """Where to ask for tokens; credentials go there, so a registry must not choose freely."""
        realm = challenge.parameters.get("realm", "")
        if not realm.startswith(("http://", "https://")):
            raise RegistryError(
                f"registry `{urlsplit(self._base).netloc}` names no usable token service",
                hint="look at the registry's name; its operator can put that right",
            )
        if origin(realm)[0] == "http" and origin(self._base)[0] == "https":
            raise RegistryError(
                f"the token service {redacted(realm)} of registry "
                f"`{urlsplit(self._base).netloc}` has no TLS, credentials are not sent there",
                hint="its operator has to let the token service have TLS",
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
        body = read_body(response, TOKEN_LIMIT, self._check)
        if status != 200:
            raise self._refusal(request, status, retry_after_seconds(headers))
        answer = json_object(body)
        if answer is None:
            raise RegistryError(
                f"the token service {redacted(request.url)} did not answer JSON",
                hint="look at the registry's name, and for a proxy between here and there",
            )
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
        return f"check user name, password and rights: ocis2i login {registry}"
    return f"log in first: ocis2i login {registry}"


def printable(text: str, limit: int = 300) -> str:
    """Foreign `text` as one line without control characters, cut after `limit` characters."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"
