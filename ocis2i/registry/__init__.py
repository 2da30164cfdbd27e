"""Pull from and push to a registry, by the OCI distribution specification 1.1.

Whatever comes from a registry is checked against its digest before anybody sees it. What fails for
the moment is tried again: a request, the rest of a download, or the whole upload of a blob.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, TypeVar

from ocis2i.blobs import Readable
from ocis2i.endpoints import AsNamed, Endpoints, Place
from ocis2i.errors import ImageError, PolicyError, RegistryError, UsageError
from ocis2i.events import Event, Notice, Report, Transfer, silent
from ocis2i.growing import Growing
from ocis2i.keychain import Keychain
from ocis2i.lazy_dataclass import dataclass
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
    RETRYABLE_STATUS,
    STALL_SECONDS,
    Body,
    Http,
    Request,
    RequestError,
    TlsContexts,
    redacted,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry.dialog import Answer, Dialog, pull_scopes, push_scopes
from ocis2i.registry.downloads import BadContentError, Downloads, Sink, twice
from ocis2i.registry.uploads import Pushed, Uploads, answer_seconds
from ocis2i.retries import CancelledError, Deadline, DeadlineError, Retries, Sleep
from ocis2i.settings import UploadMode

__all__ = ["Answer", "Pushed", "Reached", "Registry"]

ACCEPTED = ", ".join(MANIFEST_TYPES + INDEX_TYPES)
# What a request that somebody else understands may be answered with.
ANSWERS = frozenset(range(200, 600)) - RETRYABLE_STATUS - {401}
_GLANCE_SECONDS = 0.5

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reached:
    """A registry that lets us in: its URL, the `Date` of its answer, and by which credentials."""

    url: str
    date: str
    with_credentials: bool
    source: str = ""


class Registry:
    """A client for all registries, with the credentials of one user; safe for several threads.

    `environment` gives proxies, certificate files and the home directory. `tls_verify=False` takes
    any certificate and, where there is no TLS, plain http; a registry on this machine may always do
    without TLS. `endpoints` says where images are to be had, `tls` what a host is trusted by. A
    transfer breaks after `stall_seconds` without a byte; `total_seconds` is what all work with
    registries may take together. All methods raise `RegistryError`, and `PolicyError` for what is
    blocked.
    """

    def __init__(
        self,
        credentials: Keychain,
        *,
        environment: Mapping[str, str],
        tls_verify: bool = True,
        endpoints: Endpoints | None = None,
        tls: TlsContexts | None = None,
        upload: UploadMode = "auto",
        stall_seconds: float = STALL_SECONDS,
        total_seconds: float | None = None,
        sleep: Sleep | None = None,
        clock: Callable[[], float] = time.monotonic,
        report: Report = silent,
    ) -> None:
        self._credentials = credentials
        self._deadline = Deadline(total_seconds, clock)
        self._http = Http(
            environment,
            tls_verify=tls_verify,
            tls=tls,
            stall_seconds=stall_seconds,
            longest_wait=self._deadline.cut,
        )
        self._retries = Retries(
            sleep or threading.Event().wait, clock=clock, deadline=self._deadline
        )
        self._endpoints = endpoints or AsNamed()
        self._report_to = report
        self._lock = threading.Lock()
        self._served: dict[str, Place] = {}
        self._dialog = Dialog(
            credentials, self._http, self._retries, clock=clock, report=self._report
        )
        self._downloads = Downloads(self._dialog, self._retries, self._tell_pulling)
        self._uploads = Uploads(self._dialog, self._retries, self._tell_pushing, mode=upload)
        self._early = self._uploads.beside(self._tell_pushing_early)
        self._early_is_told = False

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
        with self._deadline.running():
            place = self._endpoints.to_push(reference)
            ask = partial(
                self._dialog.ask,
                place,
                Request("HEAD", f"{self._dialog.base(place)}/v2/"),
                pull_scopes(place.reference) if pull else (),
                expected=(200, 404, 405),  # the last two of those that know no HEAD here
                what=f"registry `{place.reference.registry}` does not let us in",
            )
            answer = self._retries.call(ask)
            known = self._dialog.has_credentials(place)
            source = self._dialog.source(place)
            return Reached(redacted(answer.url), answer.headers.get("Date", ""), known, source)

    def request(
        self,
        reference: Reference,
        method: str,
        path: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | Body = b"",
        push: bool = False,
        expected: Collection[int] = ANSWERS,
        what: str = "",
    ) -> Answer:
        """Any request about the repository of `reference`, tried again where that may help.

        `path` is below the repository's address (`referrers/DIGEST`), or an absolute one that a
        registry has sent us on to. `push` asks for the right to push, too. Every status is an
        answer but 401 and those of passing trouble, or those alone that are `expected`; `what`
        begins the message of another.
        """

        def ask(place: Place) -> Answer:
            url = self._address(place, path)
            scopes = push_scopes(place.reference) if push else pull_scopes(place.reference)
            return self._retries.call(
                partial(
                    self._dialog.ask,
                    place,
                    Request(method, url, headers or {}, body),
                    scopes,
                    expected=expected,
                    what=what or f"cannot ask `{place.reference.name}`",
                )
            )

        if push or method not in ("GET", "HEAD"):
            with self._deadline.running():
                return ask(self._endpoints.to_push(reference))
        return self._from_places(reference, ask)

    def _address(self, place: Place, path: str) -> str:
        if path.startswith(("http://", "https://")):
            return self._dialog.resolve(place, path)
        return self._dialog.url(place, path)

    # --- manifests ----------------------------------------------------------------------------

    def get_manifest(self, reference: Reference, target: str | None = None) -> Manifest | Index:
        """The manifest or index behind `reference`, or `target` (a tag or digest) beside it."""

        def get(place: Place) -> Manifest | Index:
            return self._get_manifest(place, target or place.reference.target)

        return self._from_places(reference, get)

    def _get_manifest(self, place: Place, target: str) -> Manifest | Index:
        ask = partial(self._ask_for_manifest, place, target)
        return twice(lambda: self._retries.call(ask))

    def _ask_for_manifest(self, place: Place, target: str) -> Manifest | Index:
        url = self._dialog.url(place, f"manifests/{target}")
        answer = self._dialog.ask(
            place,
            Request("GET", url, {"Accept": ACCEPTED}),
            pull_scopes(place.reference),
            expected=(200,),
            what=f"cannot get the manifest `{target}` of `{place.reference}`",
        )
        media_type = answer.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        where = f"the manifest `{target}` from {redacted(answer.url)}"
        for promised in (target, answer.headers.get("Docker-Content-Digest", "")):
            _check_digest(answer.body, promised, where)
        if media_type == "text/html":
            raise BadContentError(f"{where} is a web page")
        known = media_type in MANIFEST_TYPES + INDEX_TYPES
        try:
            return decode_manifest(answer.body, media_type if known else "")
        except ImageError as error:
            raise BadContentError(f"{where}: {error.message}", hint=error.hint) from error

    def head_manifest(self, reference: Reference, *, for_push: bool = False) -> Digest | None:
        """The digest that `reference` has now; `None` when it is not there.

        `None` too where a registry will not say (403 for what does not exist, as Artifactory
        does). `for_push` asks for the right to push at once, which saves a token.
        """
        if not for_push:
            return self._from_places(reference, partial(self._head_manifest, scopes=pull_scopes))
        with self._deadline.running():
            place = self._endpoints.to_push(reference)
            if place.reference.tag:
                place = replace(place, reference=replace(place.reference, digest=None))
            return self._head_manifest(place, push_scopes)

    def _head_manifest(
        self, place: Place, scopes: Callable[[Reference], Sequence[str]]
    ) -> Digest | None:
        target = place.reference.target
        url = self._dialog.url(place, f"manifests/{target}")
        ask = partial(
            self._dialog.ask,
            place,
            Request("HEAD", url, {"Accept": ACCEPTED}),
            scopes(place.reference),
            expected=(200, 403, 404, 405),
            what=f"cannot look up `{place.reference}`",
        )
        answer = self._retries.call(ask)
        if answer.status in (403, 404):
            return None
        digest = answer.headers.get("Docker-Content-Digest", "")
        if answer.status == 200 and digest:
            return _parse_digest(digest, redacted(answer.url))
        try:
            return self._get_manifest(place, target).descriptor.digest
        except RequestError as error:
            if error.status in (403, 404):  # of one that knows no HEAD
                return None
            raise

    def put_manifest(self, reference: Reference, raw: bytes, media_type: str) -> None:
        """Puts `raw` under the tag of `reference` (its digest, if it has no tag).

        All that it refers to must be there. Raises `RegistryError` when the registry says that it
        stored something else.
        """
        with self._deadline.running():
            place = self._endpoints.to_push(reference)
            target = place.reference.tag or place.reference.target
            url = self._dialog.url(place, f"manifests/{target}")
            ask = partial(
                self._dialog.ask,
                place,
                Request("PUT", url, {"Content-Type": media_type}, raw),
                push_scopes(place.reference),
                expected=(200, 201, 202),
                what=f"cannot push the manifest of `{place.reference}`",
            )
            answer = self._retries.call(ask)
            stored = answer.headers.get("Docker-Content-Digest", "")
            _check_digest(raw, stored, f"the manifest stored at {redacted(answer.url)}")

    # --- blobs --------------------------------------------------------------------------------

    def has_blob(self, reference: Reference, descriptor: Descriptor) -> bool:
        """Whether the repository of `reference` has the blob."""

        def look(place: Place) -> bool:
            scopes = pull_scopes(place.reference)
            return self._retries.call(partial(self._uploads.exists, place, descriptor, scopes))

        return self._from_places(reference, look)

    def fetch_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        into: BinaryIO,
        *,
        resume: bool = False,
        hashed: bool = True,
        cancel: threading.Event | None = None,
    ) -> None:
        """Writes the blob to `into`, a seekable file, from its start, or from its end to `resume`.

        A broken download goes on where it broke; wrong bytes are fetched once more. On return
        `into` holds exactly the verified bytes; after an error, the beginning that came, if any of
        it may be right. An `OSError` of `into` is passed on. Raises `CancelledError` soon after
        `cancel` is set. What is not `hashed` here is verified by who reads it.
        """
        sink = Sink(into, descriptor, resume=resume, hashed=hashed)

        def fetch(place: Place) -> None:
            twice(partial(self._downloads.fetch, place, sink, cancel))

        self._from_places(reference, fetch)
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

    def push_blob(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        mount_from: Sequence[Reference] = (),
        *,
        cancel: threading.Event | None = None,
        is_new: bool = False,
        turns: threading.Semaphore | None = None,
    ) -> Pushed:
        """Sees to it that the repository of `reference` has the blob, and says how it got there.

        It is mounted from a repository of `mount_from` on the same registry if possible, else
        sent, when one of the `turns` is free. What `is_new`, made a moment ago and unlike all that
        was made before, is sent without such a look. Success means that it is there. Raises
        `CancelledError` soon after `cancel` is set, and what reading `open_blob` raises.
        """
        with self._deadline.running():
            place = self._endpoints.to_push(reference)
            sources = self._reachable(mount_from)
            pushed = self._uploads.push(
                place, descriptor, open_blob, sources, cancel, is_new=is_new, turns=turns
            )
        self._tell(descriptor, "done" if pushed == "sent" else pushed, descriptor.size)
        return pushed

    def push_early(
        self,
        reference: Reference,
        descriptor: Descriptor,
        open_blob: Callable[[], Readable],
        mount_from: Sequence[Reference] = (),
        *,
        cancel: threading.Event,
    ) -> None:
        """`push_blob` for an image that is to come, beside other work, whose time does not count.

        Nothing is told of it before `finish_early`.
        """
        place = self._endpoints.to_push(reference)
        sources = self._reachable(mount_from)
        self._early.push_early(place, descriptor, open_blob, sources, cancel)

    def push_growing(self, reference: Reference, growing: Growing) -> None:
        """Likewise sends a blob while it is written; an error where the registry refuses that."""
        self._early.push_growing(self._endpoints.to_push(reference), growing)

    def finish_early(self, threads: Sequence[threading.Thread]) -> None:
        """Waits for what `threads` began early; from now on it is told how far that is."""
        self._early_is_told = True
        with self._deadline.running():
            for thread in threads:
                while thread.is_alive():
                    thread.join(self._deadline.cut(_GLANCE_SECONDS))

    def finish_growing(
        self, reference: Reference, growing: Growing, thread: threading.Thread
    ) -> bool:
        """Likewise for the `thread` of `push_growing`; false when its answer was given up.

        That takes no more than half of the time that is left: then there is some for the push.
        """
        self._early_is_told = True
        waited, patience = 0.0, 0.0
        with self._deadline.running():
            while thread.is_alive():
                glance = self._deadline.cut(_GLANCE_SECONDS)
                thread.join(glance)
                descriptor = growing.known
                if not growing.is_awaited or descriptor is None:
                    waited = 0.0
                elif not waited:
                    patience = self._deadline.cut(2 * answer_seconds(descriptor.size)) / 2
                    waited = glance
                elif waited < patience:
                    waited += glance
                else:
                    place = self._endpoints.to_push(reference)
                    self._uploads.give_up_growing(place, growing, waited)
                    return False
        return True

    def forget_early(self, reference: Reference) -> bool:
        """Believes no more that the repository has what was sent early; false: nothing was."""
        return self._uploads.forget_early(self._endpoints.to_push(reference))

    def check_push(self, reference: Reference) -> None:
        """Raises `RegistryError` unless the repository of `reference` lets us upload to it."""
        with self._deadline.running():
            self._uploads.try_out(self._endpoints.to_push(reference))

    # --- places -------------------------------------------------------------------------------

    def _reachable(self, references: Sequence[Reference]) -> list[Reference]:
        """Where the repositories really are, without those that are blocked."""
        found = []
        for reference in references:
            with contextlib.suppress(RegistryError, PolicyError):
                found.append(self._endpoints.to_push(reference).reference)
        return found

    def _from_places(self, reference: Reference, action: Callable[[Place], T]) -> T:
        """The value of `action` at the first place that has one; raises the error of the last."""
        with self._deadline.running():
            *mirrors, last = self._places(reference)
            failed: list[str] = []
            for place in mirrors:
                try:
                    value = action(place)
                except (CancelledError, DeadlineError):
                    raise
                except RegistryError as error:
                    failed.append(f"`{place.reference.name}` did not serve: {error.message}")
                    self._report(Notice("info", failed[-1]))
                else:
                    self._remember(reference, place)
                    return value
            try:
                value = action(last)
            except (CancelledError, DeadlineError):
                raise
            except RegistryError as error:
                error.message = "; ".join((error.message, *failed))
                raise
            self._remember(reference, last)
            return value

    def _places(self, reference: Reference) -> list[Place]:
        places = list(self._endpoints.to_pull(reference))
        with self._lock:
            served = self._served.get(reference.name)
        # Who had the manifest is likely to have the blobs.
        return sorted(places, key=lambda place: _repository(place) != served)

    def _remember(self, reference: Reference, place: Place) -> None:
        with self._lock:
            known = self._served.get(reference.name)
            self._served[reference.name] = _repository(place)
        if known != _repository(place) and place.reference.name != reference.name:
            self._report(Notice("info", f"`{reference}` came from `{place.reference.name}`"))

    # --- telling ------------------------------------------------------------------------------

    def tell_exists(self, descriptors: Sequence[Descriptor]) -> None:
        """Reports blobs that need no transfer."""
        for descriptor in descriptors:
            self._tell(descriptor, "exists", descriptor.size)

    def _tell_pulling(self, descriptor: Descriptor, done: int) -> None:
        self._tell(descriptor, "pulling", done)

    def _tell_pushing(self, descriptor: Descriptor, done: int) -> None:
        self._tell(descriptor, "pushing", done)

    def _tell_pushing_early(self, descriptor: Descriptor, done: int) -> None:
        if self._early_is_told:
            self._tell_pushing(descriptor, done)

    def _tell(
        self,
        descriptor: Descriptor,
        state: Literal["pulling", "pushing", "exists", "mounted", "done"],
        done: int,
    ) -> None:
        self._report(Transfer(str(descriptor.digest), state, done, descriptor.size))

    def _report(self, event: Event) -> None:
        with self._lock:
            self._report_to(event)


def _repository(place: Place) -> Place:
    """The place without tag and digest."""
    return replace(place, reference=replace(place.reference, tag=None, digest=None))


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
        raise BadContentError(f"{where} has digest `{digest.algorithm}:{found}`, not `{digest}`")
