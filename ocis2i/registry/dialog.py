"""The dialog with registries: one request, with credentials, and refusals in words."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urljoin, urlsplit

from ocis2i.auth import (
    Authorizer,
    Challenge,
    login_hint,
    parse_challenges,
    printable,
)
from ocis2i.endpoints import Place
from ocis2i.errors import RegistryError
from ocis2i.events import Notice, Report
from ocis2i.keychain import Keychain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import DOCUMENT_LIMIT
from ocis2i.net import (
    Http,
    Request,
    RequestError,
    check_foreign_address,
    origin,
    read_body,
    read_start,
    redacted,
    retry_after_seconds,
)
from ocis2i.reference import DEFAULT_REGISTRY, HUB_API, Reference
from ocis2i.retries import Retries

if TYPE_CHECKING:
    import requests

ERROR_LIMIT = 64 << 10

_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer with its body, and the address that it came from after all redirects."""

    status: int
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class _Endpoint:
    base: str
    challenges: tuple[Challenge, ...]


class Dialog:
    """Speaks to registries for one user; safe for several threads.

    How a registry wants to be spoken to and who we are to it is found out once.
    """

    def __init__(
        self,
        credentials: Keychain,
        http: Http,
        retries: Retries,
        *,
        clock: Callable[[], float] = time.monotonic,
        report: Report,
    ) -> None:
        self._credentials = credentials
        self._http = http
        self._retries = retries
        self._clock = clock
        self._report = report
        self._lock = threading.Lock()
        self._locks: dict[object, threading.Lock] = {}
        self._endpoints: dict[tuple[str, bool], _Endpoint] = {}
        self._authorizers: dict[Place, Authorizer] = {}
        self._warned: set[str] = set()

    def url(self, place: Place, path: str) -> str:
        """The address of something in the repository."""
        return f"{self.base(place)}/v2/{place.reference.repository}/{path}"

    def base(self, place: Place) -> str:
        """The address of the registry, which is asked for it the first time."""
        return self._endpoint(place).base

    def has_credentials(self, place: Place) -> bool:
        """Whether we come with a name."""
        return self._authorizer(place).has_credentials

    def source(self, place: Place) -> str:
        """Where the credentials were found; empty for none."""
        return self._authorizer(place).source

    def ask(
        self,
        place: Place,
        request: Request,
        scopes: Sequence[str],
        *,
        expected: Collection[int],
        what: str,
    ) -> Answer:
        """A request whose answer is small; its body is read, its connection free again."""
        response = self.open(place, request, scopes, expected=expected, what=what)
        body = read_body(response, DOCUMENT_LIMIT, partial(self._retries.check, None))
        return Answer(response.status_code, str(response.url), response.headers, body)

    def open(
        self,
        place: Place,
        request: Request,
        scopes: Sequence[str],
        *,
        expected: Collection[int],
        what: str,
    ) -> requests.Response:
        """The answer, its body unread; raises `RequestError`, which begins with `what`."""
        response = self.send(place, request, scopes)
        if response.status_code in expected:
            return response
        body = read_start(response, ERROR_LIMIT)
        answer = Answer(response.status_code, str(response.url), response.headers, body)
        known = self._authorizer(place).has_credentials
        raise _refusal(what, place.reference, request, answer, known=known)

    def send(self, place: Place, request: Request, scopes: Sequence[str]) -> requests.Response:
        """One exchange, repeated with another token if the registry answers 401.

        Only the registry itself gets to see an `Authorization`, and only its 401 counts.
        """
        request = replace(request, insecure=place.insecure)
        if origin(request.url) != origin(self.base(place)):
            return self._http.exchange(request)
        authorizer = self._authorizer(place)
        header = authorizer.header(scopes)
        response = self._http.exchange(replace(request, authorization=header))
        if response.status_code == 401 and origin(str(response.url)) == origin(request.url):
            challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
            renewed = authorizer.renewed(scopes, challenges, header)
            if renewed is not None:
                response.close()
                response = self._http.exchange(replace(request, authorization=renewed))
        self._pass_on_warnings(place.reference, response)
        return response

    def resolve(self, place: Place, location: str, asked: str = "") -> str:
        """The address that a registry sends us on to from `asked`, if we may go there."""
        url = urljoin(asked, location)
        check_foreign_address(url, self.base(place), "the next address")
        host = urlsplit(url).netloc
        if origin(url)[0] == "http" and not self._http.plain_http_allowed(host, place.insecure):
            raise RegistryError(
                f"registry `{place.reference.registry}` sends us to {redacted(url)}, without TLS",
                hint="a proxy in front of it hides its TLS; its `http.host` setting helps",
            )
        return url

    def _authorizer(self, place: Place) -> Authorizer:
        endpoint = self._endpoint(place)
        # Credentials may differ by repository, not by tag.
        key = replace(place, reference=replace(place.reference, tag=None, digest=None))
        with self._locked(key):
            if key not in self._authorizers:
                found = self._credentials.find(place.reference)
                if found and found.source:
                    name = place.reference.name
                    self._report(Notice("debug", f"credentials for {name}: {found.source}"))
                self._authorizers[key] = Authorizer(
                    self._http,
                    endpoint.base,
                    found,
                    endpoint.challenges,
                    clock=self._clock,
                    check=partial(self._retries.check, None),
                )
            return self._authorizers[key]

    def _endpoint(self, place: Place) -> _Endpoint:
        key = (place.reference.registry, place.insecure)
        with self._locked(key):
            if key not in self._endpoints:
                self._endpoints[key] = self._retries.call(partial(self._probe, *key))
            return self._endpoints[key]

    def _locked(self, key: object) -> threading.Lock:
        with self._lock:
            return self._locks.setdefault(key, threading.Lock())

    def _probe(self, registry: str, insecure: bool) -> _Endpoint:  # noqa: FBT001 - half of a key
        """Whether the registry speaks https or http, and how it wants to be convinced.

        Some registries challenge only here and not where the answer is 401.
        """
        host = HUB_API if registry == DEFAULT_REGISTRY else registry
        try:
            return self._ping(f"https://{host}", insecure=insecure)
        except RequestError as error:
            plain = self._http.plain_http_allowed(registry, insecure)
            if error.kind not in ("tls", "broken") or not plain:
                raise
            https_error = error
        try:
            return self._ping(f"http://{host}", insecure=insecure)
        except RequestError as error:
            # So answers a server that does speak TLS; then the first error was the true one.
            if error.status == 400:
                raise https_error from error
            raise

    def _ping(self, base: str, *, insecure: bool) -> _Endpoint:
        request = Request("GET", f"{base}/v2/", insecure=insecure)
        response = self._http.exchange(request)
        body = read_start(response, ERROR_LIMIT)
        answer = Answer(response.status_code, base, response.headers, body)
        if answer.status in (400, 429) or answer.status >= 500:
            host = urlsplit(base).netloc
            raise _refusal_of(f"registry `{host}` is not ready", request, answer, hint=None)
        header = answer.headers.get("WWW-Authenticate", "") if answer.status == 401 else ""
        return _Endpoint(base, tuple(parse_challenges(header)))

    def _pass_on_warnings(self, reference: Reference, response: requests.Response) -> None:
        for text in _WARNING.findall(response.headers.get("Warning", "")):
            message = f"registry `{reference.registry}` warns: {printable(text)}"
            with self._lock:
                told = message in self._warned
                self._warned.add(message)
            if not told:
                self._report(Notice("warning", message))


def pull_scopes(reference: Reference) -> tuple[str, ...]:
    """The right to read the repository."""
    return (f"repository:{reference.repository}:pull",)


def push_scopes(reference: Reference) -> tuple[str, ...]:
    """The right to write it."""
    return (f"repository:{reference.repository}:pull,push",)


def _refusal(
    what: str, reference: Reference, request: Request, answer: Answer, *, known: bool
) -> RequestError:
    hints = {
        401: f"{login_hint(reference.registry, known=known)}; check the name, too: "
        "some registries answer so for what does not exist",
        403: f"the user may lack the right for `{reference.repository}`",
        404: "check the name, the tag and who may see it",
        413: "the registry, or a proxy in front of it, limits the size of an upload",
        429: "the registry limits requests; a login often raises the limit",
    }
    if answer.status == 401:
        refused = "does not let these credentials in" if known else "wants a login"
        what = f"registry `{reference.registry}` {refused}"
    hint = hints.get(answer.status)
    if answer.status >= 500:
        hint = "the registry has trouble of its own; try again later"
    return _refusal_of(what, request, answer, hint=hint)


def _refusal_of(what: str, request: Request, answer: Answer, *, hint: str | None) -> RequestError:
    code, message = _registry_words(answer.body)
    words = ": ".join(word for word in (code, message) if word)
    return RequestError(
        f"{what}: {request} answered {answer.status}{' ' if words else ''}{words}",
        # An upload that the registry has forgotten can be begun anew.
        kind="broken" if code.startswith("BLOB_UPLOAD_") else "status",
        status=answer.status,
        code=code,
        retry_after_seconds=retry_after_seconds(answer.headers),
        hint=hint,
    )


def _registry_words(body: bytes) -> tuple[str, str]:
    """The first error of an error document (distribution-spec, error codes); empty if none."""
    try:
        first = json.loads(body)["errors"][0]
        code, message = first.get("code"), first.get("message")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return "", ""
    return printable(str(code or ""), 60), printable(str(message or ""), 200)
