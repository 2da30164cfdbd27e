"""Whom a registry lets in: everybody, users with a password, or whoever has a token.

The tokens are strict: one for pulling does not push, and one for a repository opens no other.
"""

from __future__ import annotations

import base64
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import parse_qs

_REPOSITORY = re.compile(r"/v2/(?P<name>.+)/(?:blobs/uploads|blobs|manifests|tags|referrers)/")


@dataclass
class Token:
    """An issued token: what it is good for, until when and how often (-1: always)."""

    scopes: frozenset[str]
    expires_at: float
    uses: int


class Gate:
    """The gate of a registry and its token service; all knobs are open attributes."""

    def __init__(
        self,
        auth: Literal["none", "basic", "bearer"] = "none",
        users: Mapping[str, str] | None = None,
    ) -> None:
        self.auth = auth
        self.users = dict(users or {})
        self.identity_tokens: set[str] = set()
        self.refuse_oauth_status = 0
        self.token_uses = -1
        self.token_seconds = 300
        self.realm: str | None = None
        self.grant: Callable[[str], bool] = lambda scope: True
        self.tokens: dict[str, Token] = {}
        self._gate_lock = threading.Lock()

    def challenge(self, method: str, path: str, authorization: str, host: str) -> str | None:
        """What to answer a request with that may not be; `None` lets it in."""
        if self.auth == "basic":
            return None if self._user(authorization) else 'Basic realm="a fake, with a comma"'
        if self.auth == "bearer":
            scope = needed_scope(method, path)
            if self.allows(authorization, scope):
                return None
            realm = self.realm or f"http://{host}/token"
            return f'Bearer realm="{realm}",service="fake"' + (f',scope="{scope}"' if scope else "")
        return None

    def allows(self, authorization: str, scope: str) -> bool:
        """Whether the token is good for `scope` now; that is one of its uses."""
        with self._gate_lock:
            token = self.tokens.get(authorization.removeprefix("Bearer "))
            if token is None or token.expires_at < time.monotonic() or token.uses == 0:
                return False
            name, _, actions = scope.rpartition(":")
            granted = {one for one in token.scopes if one.rpartition(":")[0] == name}
            have = {action for one in granted for action in one.rpartition(":")[2].split(",")}
            if scope and not set(actions.split(",")) <= have:
                return False
            token.uses -= 1
            return True

    def issue(
        self, method: str, query: Mapping[str, list[str]], authorization: str, body: bytes
    ) -> tuple[int, dict[str, Any]]:
        """The answer of the token service, to its GET form and the POST of OAuth2."""
        asked = query.get("scope", [])
        if method == "POST":
            form = parse_qs(body.decode())
            asked = form.get("scope", [""])[0].split()
            if self.refuse_oauth_status:
                return self.refuse_oauth_status, _error("UNSUPPORTED")
            known = form.get("refresh_token", [""])[0] in self.identity_tokens
        else:
            user = self._user(authorization)
            known = (user is None and not self.users) or bool(user)
        if not known:
            return 401, _error("UNAUTHORIZED")
        value = secrets.token_hex(8)
        granted = frozenset(scope for scope in asked if self.grant(scope))
        until = time.monotonic() + self.token_seconds
        self.tokens[value] = Token(granted, until, self.token_uses)
        return 200, {"token": value, "expires_in": self.token_seconds}

    def _user(self, authorization: str) -> str | None:
        """The user of basic authentication: empty for a wrong password, `None` for none at all."""
        scheme, _, value = authorization.partition(" ")
        if scheme != "Basic":
            return None
        user, _, password = base64.b64decode(value).decode().partition(":")
        known = self.users.get(user) == password or password in self.identity_tokens
        return user if known else ""


def needed_scope(method: str, path: str) -> str:
    """The scope that a request takes; empty for none in particular."""
    match = _REPOSITORY.match(path)
    if not match:
        return ""
    return f"repository:{match['name']}:{'pull' if method in ('GET', 'HEAD') else 'pull,push'}"


def _error(code: str) -> dict[str, Any]:
    return {"errors": [{"code": code, "message": code.replace("_", " ").lower()}]}
