"""Pull from and push to a registry, by the OCI distribution specification 1.1.

Whatever comes from a registry is checked against its digest before anybody sees it. What fails for
the moment is tried again: a request, the rest of a download, or the whole upload of a blob.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, TypeVar
from urllib.parse import quote, urljoin, urlsplit

from ocis2i.auth import (
    Authorizer,
    Challenge,
    Keychain,
    login_hint,
    parse_challenges,
    printable,
)
from ocis2i.blobs import Readable
from ocis2i.errors import ImageError, RegistryError, UsageError
from ocis2i.events import Notice, Report, Transfer, silent
from ocis2i.manifest import (
    DOCUMENT_LIMIT,
    INDEX_TYPES,
    MANIFEST_TYPES,
    Descriptor,
    Index,
    Manifest,
    decode_manifest,
)
from ocis2i.net import (
    BLOCK,
    CancelledError,
    Http,
    Request,
    RequestError,
    Retries,
    Sleep,
    check_cancelled,
    check_foreign_address,
    final_seconds,
    origin,
    read_blocks,
    read_body,
    redacted,
    retry_after_seconds,
)
from ocis2i.reference import DEFAULT_REGISTRY, Digest, Reference

if TYPE_CHECKING:
    import requests

HUB_API = "registry-1.docker.io"
ACCEPTED = ", ".join(MANIFEST_TYPES + INDEX_TYPES)
CANCEL_SECONDS = 5.0

Pushed = Literal["exists", "mounted", "sent"]
T = TypeVar("T")

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/")
_WARNING = re.compile(r'299 \S+ "((?:[^"\\]|\\.)*)"')


class _BadContentError(RegistryError):
    """Bytes that are not what they were said to be; a second try may bring better ones."""


@dataclass(frozen=True, slots=True)
class _Endpoint:
    base: str
    challenges: tuple[Challenge, ...]


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    url: str
    headers: Mapping[str, str]
    body: bytes


@dataclass(frozen=True, slots=True)
class Reached:
    """A registry that lets us in: its URL, the `Date` of its answer, whether by credentials."""

    url: str
    date: str
    with_credentials: bool


class Registry:
    """A client for all registries, with the credentials of one user; safe for several threads.

    `environment` gives proxies, certificate files and the home directory. `tls_verify=False` takes
    any certificate and, where there is no TLS, plain http; a registry on this machine may always do
    without TLS. All methods raise `RegistryError`.
    """

    def __init__(
        self,
        credentials: Keychain,
        *,
        environment: Mapping[str, str],
        tls_verify: bool = True,
        sleep: Sleep | None = None,
        clock: Callable[[], float] = time.monotonic,
        report: Report = silent,
    ) -> None:
        self._credentials = credentials
        self._http = Http(environment, tls_verify=tls_verify)
        self._retries = Retries(sleep or threading.Event().wait)
        self._clock = clock
        self._report_to = report
        self._lock = threading.Lock()
        self._registry_locks: dict[str, threading.Lock] = {}
        self._endpoints: dict[str, _Endpoint] = {}
        self._authorizers: dict[str, Authorizer] = {}
        self._warned: set[str] = set()

    def close(self) -> None:
        """Closes kept connections; the client may still be used."""
        self._http.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def credential_files(self) -> tuple[Path, ...]:
        """Files with credentials that whoever runs as this user may read."""
        return self._credentials.readable_files()

    def reach(self, reference: Reference, *, pull: bool = True) -> Reached:
        """Asks the registry of `reference` whether it lets us in, to `pull` that or at all."""
        url = f"{self._endpoint(reference.registry).base}/v2/"
        ask = partial(
            self._ask,
            reference,
            Request("HEAD", url),
            _pull_scopes(reference) if pull else (),
            expected=(200, 404, 405),  # the last two of those that know no HEAD here
            what=f"registry `{reference.registry}` does not let us in",
        )
        answer = self._retries.call(ask)
        known = self._authorizer(reference).has_credentials
        return Reached(redacted(url), answer.headers.get("Date", ""), known)

    # --- manifests ----------------------------------------------------------------------------

    def get_manifest(self, reference: Reference, target: str | None = None) -> Manifest | Index:
        """The manifest or index behind `reference`, or `target` (a tag or digest) beside it."""
        action = partial(self._get_manifest, reference, target or reference.target)
        return _twice(lambda: self._retries.call(action))

    def _get_manifest(self, reference: Reference, target: str) -> Manifest | Index:
        answer = self._ask(
            reference,
            Request("GET", self._url(reference, f"manifests/{target}"), {"Accept": ACCEPTED}),
            _pull_scopes(reference),
            expected=(200,),
            what=f"cannot get the manifest `{target}` of `{reference}`",
        )
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        where = f"the manifest `{target}` from {redacted(answer.url)}"
        for promised in (target, answer.headers.get("Docker-Content-Digest", "")):
            _check_digest(answer.body, promised, where)
        if media_type == "text/html":
            raise _BadContentError(f"{where} is a web page")
        known = media_type in MANIFEST_TYPES + INDEX_TYPES
        try:
            return decode_manifest(answer.body, media_type if known else "")
        except ImageError as error:
            raise _BadContentError(f"{where}: {error.message}", hint=error.hint) from error

    def head_manifest(self, reference: Reference, *, for_push: bool = False) -> Digest | None:
        """The digest that `reference` has now; `None` when it is not there.

        `None` too where a registry will not say (403 for what does not exist, as Artifactory
        does). `for_push` asks for the right to push at once, which saves a token.
        """
        scopes = _push_scopes(reference) if for_push else _pull_scopes(reference)
        target = (reference.tag if for_push else None) or reference.target
        url = self._url(reference, f"manifests/{target}")
        request = Request("HEAD", url, {"Accept": ACCEPTED})
        ask = partial(
            self._ask,
            reference,
            request,
            scopes,
            expected=(200, 403, 404, 405),
            what=f"cannot look up `{reference}`",
        )
        answer = self._retries.call(ask)
        if answer.status in (403, 404):
            return None
        digest = answer.headers.get("Docker-Content-Digest", "")
        if answer.status == 200 and digest:
            return _parse_digest(digest, redacted(answer.url))
        return self.get_manifest(reference, target).descriptor.digest

    def put_manifest(self, reference: Reference, raw: bytes, media_type: str) -> None:
        """Puts `raw` under the tag of `reference` (its digest, if it has no tag).

        All that it refers to must be there. Raises `RegistryError` when the registry says that it
        stored something else.
        """
        target = reference.tag or reference.target
        url = self._url(reference, f"manifests/{target}")
        request = Request("PUT", url, {"Content-Type": media_type}, raw)
        ask = partial(
            self._ask,
            reference,
            request,
            _push_scopes(reference),
            expected=(200, 201, 202),
            what=f"cannot push the manifest of `{reference}`",
        )
        answer = self._retries.call(ask)
        stored = answer.headers.get("Docker-Content-Digest", "")
        _check_digest(raw, stored, f"the manifest stored at {redacted(answer.url)}")

    # --- pulling blobs ------------------------------------------------------------------------

    def has_blob(self, reference: Reference, descriptor: Descriptor) -> bool:
        """Whether the repository of `reference` has the blob."""
        action = partial(self._exists, reference, descriptor, _pull_scopes(reference))
        return self._retries.call(action)

    def _exists(self, reference: Reference, descriptor: Descriptor, scopes: Sequence[str]) -> bool:
        # The length is not compared: Harbor's HEAD has been seen to give another than its GET.
        answer = self._ask(
            reference,
            Request("HEAD", self._url(reference, f"blobs/{descriptor.digest}")),
            scopes,
            expected=(200, 403, 404, 405),
            what=f"cannot look up blob `{descriptor.digest}`",
        )
        return answer.status == 200

    def fetch_blob(self, reference: Reference, descriptor: Descriptor, into: BinaryIO) -> None:
        """Writes the blob to `into`, a seekable file, from its start.

        A broken download goes on where it broke; wrong bytes are fetched once more. On return
        `into` holds exactly the verified bytes. An `OSError` of `into` is passed on.
        """
        _twice(partial(self._download, reference, descriptor, into))
        self._tell(descriptor, "done", descriptor.size)

    def read_blob(self, reference: Reference, descriptor: Descriptor) -> bytes:
        """A small blob (a config), whole and verified."""
        if descriptor.size > DOCUMENT_LIMIT:
            raise RegistryError(
                f"`{descriptor.digest}` of `{reference.name}` has {descriptor.size} bytes, "
                f"a manifest or config may have {DOCUMENT_LIMIT}"
            )
        buffer = io.BytesIO()
        self.fetch_blob(reference, descriptor, buffer)
        return buffer.getvalue()

    def _download(self, reference: Reference, descriptor: Descriptor, into: BinaryIO) -> None:
        sink = _Sink(into, descriptor, reference.name)
        failures = 0
        while sink.offset < descriptor.size:
            before = sink.offset
            try:
                self._receive(reference, sink)
            except RequestError as error:
                # A long way over a bad line may break often, as long as it gets on.
                failures = 1 if sink.offset - before >= BLOCK else failures + 1
                self._retries.wait(failures, error)
        sink.verify()

    def _receive(self, reference: Reference, sink: _Sink) -> None:
        descriptor, start = sink.descriptor, sink.offset
        url = self._url(reference, f"blobs/{descriptor.digest}")
        response = self._open(
            reference,
            Request("GET", url, {"Range": f"bytes={start}-"} if start else {}),
            _pull_scopes(reference),
            expected=(200, 206, 416) if start else (200,),
            what=f"cannot get blob `{descriptor.digest}` of `{reference.name}`",
        )
        with response:
            if start and not _continues_at(response, start):
                sink.restart()
                if response.status_code != 200:
                    return
            sink.check_announced(response)
            for block in read_blocks(response):
                sink.write(block)
                self._tell(descriptor, "pulling", sink.offset)
        if sink.offset < descriptor.size:
            raise RequestError(
                f"GET {redacted(url)} ended after {sink.offset} of {descriptor.size} bytes",
                kind="broken",
            )

    # --- pushing blobs ------------------------------------------------------------------------

    def push_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        mount_from: Sequence[Reference] = (),
        *,
        cancel: threading.Event | None = None,
    ) -> Pushed:
        """Sees to it that the repository of `reference` has the blob, and says how it got there.

        It is mounted from a repository of `mount_from` on the same registry if possible, else
        sent in one PUT. Success means that it is there. Raises `CancelledError` soon after
        `cancel` is set, and what reading `open_blob` raises.
        """
        sources = list(_mountable(reference, mount_from))
        action = partial(self._push_once, reference, descriptor, open_blob, sources, cancel)
        pushed = self._retries.call(action, cancel)
        self._tell(descriptor, "done" if pushed == "sent" else pushed, descriptor.size)
        return pushed

    def _push_once(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        sources: list[Reference],
        cancel: threading.Event | None,
    ) -> Pushed:
        # After a broken try this look tells whether only the answer was lost.
        if self._exists(reference, descriptor, _push_scopes(reference)):
            return "exists"
        location = None
        while sources:
            source = sources.pop(0)
            if location:
                self._abandon(reference, location)
            mounted, location = self._mount(reference, descriptor, source)
            if mounted:
                return "mounted"
        location = location or self._start_upload(reference, descriptor)
        body = _BlobBody(descriptor, open_blob, partial(self._tell, descriptor, "pushing"), cancel)
        try:
            self._finish_upload(reference, descriptor, location, body)
        except CancelledError:
            self._abandon(reference, location)
            raise
        return "sent"

    def _mount(
        self, reference: Reference, descriptor: Descriptor, source: Reference
    ) -> tuple[bool, str | None]:
        """Whether the blob was mounted, else perhaps where it may be uploaded instead.

        No error counts: registries refuse mounts with whatever status comes to their mind.
        """
        url = self._url(reference, "blobs/uploads/")
        query = f"mount={quote(str(descriptor.digest))}&from={quote(source.repository, safe='')}"
        scopes = (*_push_scopes(reference), *_pull_scopes(source))
        request = Request("POST", f"{url}?{query}")
        try:
            answer = self._ask(reference, request, scopes, expected=(201, 202), what="no mount")
            return answer.status == 201, (
                self._location(reference, answer) if answer.status == 202 else None
            )
        except RegistryError:
            return False, None

    def _start_upload(self, reference: Reference, descriptor: Descriptor) -> str:
        url = self._url(reference, "blobs/uploads/")
        answer = self._ask(
            reference,
            Request("POST", url),
            _push_scopes(reference),
            expected=(202,),
            what=f"cannot push blob `{descriptor.digest}` to `{reference.name}`",
        )
        return self._location(reference, answer)

    def _finish_upload(
        self, reference: Reference, descriptor: Descriptor, location: str, body: _BlobBody
    ) -> None:
        # The query of a location is the registry's own affair: nothing in it may be touched.
        joint = "&" if urlsplit(location).query else "?"
        self._ask(
            reference,
            Request(
                "PUT",
                f"{location}{joint}digest={quote(str(descriptor.digest), safe='')}",
                {"Content-Type": "application/octet-stream"},
                body,
                read_seconds=final_seconds(descriptor.size),
            ),
            _push_scopes(reference),
            expected=(200, 201, 204),
            what=f"cannot push blob `{descriptor.digest}` to `{reference.name}`",
        )

    def _abandon(self, reference: Reference, location: str) -> None:
        """Ends an upload that nobody will finish; the registry's own clean-up does it, too."""
        request = Request("DELETE", location, read_seconds=CANCEL_SECONDS)
        try:
            self._send(reference, request, _push_scopes(reference)).close()
        except RegistryError:
            return

    def _location(self, reference: Reference, answer: _Answer) -> str:
        location = answer.headers.get("Location")
        if not location:
            raise RegistryError(f"POST {redacted(answer.url)} answered without a `Location`")
        url = urljoin(answer.url, location)
        check_foreign_address(url, self._endpoint(reference.registry).base, "the upload address")
        if origin(url)[0] == "http" and not self._http.plain_http_allowed(urlsplit(url).netloc):
            raise RegistryError(
                f"registry `{reference.registry}` wants the upload at {redacted(url)}, without TLS",
                hint="a proxy in front of it hides its TLS; its `http.host` setting helps",
            )
        return url

    # --- one request --------------------------------------------------------------------------

    def _ask(
        self,
        reference: Reference,
        request: Request,
        scopes: Sequence[str],
        *,
        expected: Collection[int],
        what: str,
    ) -> _Answer:
        """A request whose answer is small; its body is read, its connection free again."""
        response = self._open(reference, request, scopes, expected=expected, what=what)
        body = read_body(response, DOCUMENT_LIMIT)
        return _Answer(response.status_code, str(response.url), response.headers, body)

    def _open(
        self,
        reference: Reference,
        request: Request,
        scopes: Sequence[str],
        *,
        expected: Collection[int],
        what: str,
    ) -> requests.Response:
        response = self._send(reference, request, scopes)
        if response.status_code in expected:
            return response
        body = read_body(response, DOCUMENT_LIMIT)
        answer = _Answer(response.status_code, str(response.url), response.headers, body)
        known = self._authorizer(reference).has_credentials
        raise _refusal(what, reference, request, answer, known=known)

    def _send(
        self, reference: Reference, request: Request, scopes: Sequence[str]
    ) -> requests.Response:
        """One exchange, repeated with another token if the registry answers 401.

        Only the registry itself gets to see an `Authorization`, and only its 401 counts.
        """
        if origin(request.url) != origin(self._endpoint(reference.registry).base):
            return self._http.exchange(request)
        authorizer = self._authorizer(reference)
        header = authorizer.header(scopes)
        response = self._http.exchange(replace(request, authorization=header))
        if response.status_code == 401 and origin(str(response.url)) == origin(request.url):
            challenges = parse_challenges(response.headers.get("WWW-Authenticate", ""))
            renewed = authorizer.renewed(scopes, challenges, header)
            if renewed is not None:
                response.close()
                response = self._http.exchange(replace(request, authorization=renewed))
        self._pass_on_warnings(reference, response)
        return response

    def _url(self, reference: Reference, path: str) -> str:
        return f"{self._endpoint(reference.registry).base}/v2/{reference.repository}/{path}"

    def _authorizer(self, reference: Reference) -> Authorizer:
        endpoint = self._endpoint(reference.registry)
        with self._lock:
            lock = self._registry_locks.setdefault(reference.name, threading.Lock())
        with lock:
            if reference.name not in self._authorizers:
                self._authorizers[reference.name] = Authorizer(
                    self._http,
                    endpoint.base,
                    self._credentials.find(reference),
                    endpoint.challenges,
                    clock=self._clock,
                )
            return self._authorizers[reference.name]

    def _endpoint(self, registry: str) -> _Endpoint:
        with self._lock:
            lock = self._registry_locks.setdefault(registry, threading.Lock())
        with lock:
            if registry not in self._endpoints:
                self._endpoints[registry] = self._retries.call(partial(self._probe, registry))
            return self._endpoints[registry]

    def _probe(self, registry: str) -> _Endpoint:
        """Whether the registry speaks https or http, and how it wants to be convinced.

        Some registries challenge only here and not where the answer is 401.
        """
        host = HUB_API if registry == DEFAULT_REGISTRY else registry
        try:
            return self._ping(f"https://{host}")
        except RequestError as error:
            not_tls = error.kind in ("tls", "broken") and self._http.plain_http_allowed(registry)
            if not not_tls:
                raise
            https_error = error
        try:
            return self._ping(f"http://{host}")
        except RequestError as error:
            # So answers a server that does speak TLS; then the first error was the true one.
            if error.status == 400:
                raise https_error from error
            raise

    def _ping(self, base: str) -> _Endpoint:
        request = Request("GET", f"{base}/v2/")
        response = self._http.exchange(request)
        answer = _Answer(
            response.status_code, base, response.headers, read_body(response, DOCUMENT_LIMIT)
        )
        if answer.status in (400, 429) or answer.status >= 500:
            host = urlsplit(base).netloc
            raise _refusal_of(f"registry `{host}` is not ready", request, answer, hint=None)
        header = answer.headers.get("WWW-Authenticate", "") if answer.status == 401 else ""
        return _Endpoint(base, tuple(parse_challenges(header)))

    # --- telling ------------------------------------------------------------------------------

    def tell_exists(self, descriptors: Sequence[Descriptor]) -> None:
        """Reports blobs that need no transfer."""
        for descriptor in descriptors:
            self._tell(descriptor, "exists", descriptor.size)

    def _tell(
        self,
        descriptor: Descriptor,
        state: Literal["pulling", "pushing", "exists", "mounted", "done"],
        done: int,
    ) -> None:
        with self._lock:
            self._report_to(Transfer(str(descriptor.digest), state, done, descriptor.size))

    def _pass_on_warnings(self, reference: Reference, response: requests.Response) -> None:
        for text in _WARNING.findall(response.headers.get("Warning", "")):
            message = f"registry `{reference.registry}` warns: {printable(text)}"
            with self._lock:
                if message not in self._warned:
                    self._warned.add(message)
                    self._report_to(Notice("warning", message))


class _Sink:
    """A file that a blob is downloaded into, and how far it has come."""

    def __init__(self, into: BinaryIO, descriptor: Descriptor, name: str) -> None:
        self.descriptor = descriptor
        self.offset = 0
        self._into = into
        self._name = f"blob `{descriptor.digest}` of `{name}`"
        self._hash = hashlib.new(descriptor.digest.algorithm)
        self.restart()

    def restart(self) -> None:
        self.offset = 0
        self._hash = hashlib.new(self.descriptor.digest.algorithm)
        self._into.seek(0)
        self._into.truncate()

    def check_announced(self, response: requests.Response) -> None:
        """Refuses a body that cannot be the rest of the blob before it is read."""
        length = response.headers.get("Content-Length", "")
        left = self.descriptor.size - self.offset
        if length.isdigit() and int(length) != left:
            kind = response.headers.get("Content-Type", "of no type")
            raise _BadContentError(
                f"{self._name} came with {length} bytes ({printable(kind, 60)}) instead of {left}"
            )

    def write(self, block: bytes) -> None:
        if self.offset + len(block) > self.descriptor.size:
            raise _BadContentError(f"{self._name} is longer than {self.descriptor.size} bytes")
        self._into.write(block)
        self._hash.update(block)
        self.offset += len(block)

    def verify(self) -> None:
        found = self._hash.hexdigest()
        if found != self.descriptor.digest.hex:
            raise _BadContentError(
                f"{self._name} came with digest `{self.descriptor.digest.algorithm}:{found}`"
            )


class _BlobBody:
    """A blob as the body of a request; iterated again, it is read again."""

    def __init__(
        self,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        tell: Callable[[int], None],
        cancel: threading.Event | None,
    ) -> None:
        self._descriptor = descriptor
        self._open_blob = open_blob
        self._tell = tell
        self._cancel = cancel

    def __len__(self) -> int:
        return self._descriptor.size

    def __iter__(self) -> Iterator[bytes]:
        done, size = 0, self._descriptor.size
        stream = self._open_blob()
        try:
            while done < size:
                check_cancelled(self._cancel)
                block = self._read(stream, min(BLOCK, size - done))
                done += len(block)
                yield block
                self._tell(done)
        finally:
            stream.close()

    def _read(self, stream: Readable, wanted: int) -> bytes:
        try:
            block = stream.read(wanted)
        except OSError as error:
            # Told apart from errors of the connection, after which one would try again.
            raise ImageError(
                f"blob `{self._descriptor.digest}` cannot be read: {error.strerror}"
            ) from error
        if not block:
            raise ImageError(f"blob `{self._descriptor.digest}` ends too early")
        return block


def _twice(action: Callable[[], T]) -> T:
    try:
        return action()
    except _BadContentError:
        return action()


def _pull_scopes(reference: Reference) -> tuple[str, ...]:
    return (f"repository:{reference.repository}:pull",)


def _push_scopes(reference: Reference) -> tuple[str, ...]:
    return (f"repository:{reference.repository}:pull,push",)


def _mountable(reference: Reference, sources: Sequence[Reference]) -> list[Reference]:
    """The repositories of the same registry that a blob may be mounted from, each once."""
    others = {
        source.repository: source for source in sources if source.registry == reference.registry
    }
    others.pop(reference.repository, None)
    return list(others.values())


def _continues_at(response: requests.Response, offset: int) -> bool:
    """Whether the answer to a `Range` request is the rest from `offset` on, not the whole."""
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    return response.status_code == 206 and match is not None and int(match.group(1)) == offset


def _parse_digest(text: str, where: str) -> Digest:
    try:
        return Digest.parse(text)
    except UsageError as error:
        raise RegistryError(f"{where}: {error.message}") from error


def _check_digest(data: bytes, promised: str, where: str) -> None:
    """Raises unless `promised`, where it is a digest at all, is that of `data`."""
    if ":" not in promised:
        return
    digest = _parse_digest(promised, where)
    found = hashlib.new(digest.algorithm, data).hexdigest()
    if found != digest.hex:
        raise _BadContentError(f"{where} has digest `{digest.algorithm}:{found}`, not `{digest}`")


def _refusal(
    what: str, reference: Reference, request: Request, answer: _Answer, *, known: bool
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


def _refusal_of(what: str, request: Request, answer: _Answer, *, hint: str | None) -> RequestError:
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
