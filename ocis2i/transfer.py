"""Whole images over a registry: reading one as a source, pushing one, several blobs at a time."""

from __future__ import annotations

import io
import queue
import tempfile
import threading
from collections.abc import Callable, Container, Sequence
from functools import partial
from typing import BinaryIO

from ocis2i.blobs import BlobSource, Readable, VerifiedReader
from ocis2i.errors import RegistryError
from ocis2i.manifest import DOCUMENT_LIMIT, Descriptor, Encoded, Index, Manifest
from ocis2i.net import POOL_SIZE, RequestError
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.registry.downloads import twice
from ocis2i.whereabouts import Whereabouts

STOP_SECONDS = 2.0
# To fetch less is to wait for an answer, as to look a blob up.
SMALL_BYTES = 1 << 20


class RegistryImage:
    """The image (or index) behind one reference, as a source for reading."""

    def __init__(self, registry: Registry, reference: Reference) -> None:
        self._registry = registry
        self._reference = reference

    def manifest(self) -> Manifest | Index:
        """What the reference points at now."""
        try:
            return self._registry.get_manifest(self._reference)
        except RegistryError as error:
            # Of a registry that cannot be reached, or takes its time, the host alone is named.
            if self._reference.repository not in error.message:
                error.message = f"cannot get the image `{self._reference}`: {error.message}"
            raise

    def child(self, descriptor: Descriptor) -> Manifest | Index:
        """A manifest of the index."""
        return self._registry.get_manifest(self._reference, str(descriptor.digest))

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """The blob's bytes; a big one is fetched into a temporary file before this returns."""
        small = descriptor.size <= DOCUMENT_LIMIT
        # The reader closes it.
        stream: BinaryIO = io.BytesIO() if small else tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._registry.fetch_blob(self._reference, descriptor, stream)
            stream.seek(0)
        except BaseException:
            stream.close()
            raise
        return VerifiedReader(stream, descriptor, f"`{self._reference.name}`")


def push_image(
    registry: Registry,
    reference: Reference,
    encoded: Encoded,
    layers: Sequence[Descriptor],
    source: BlobSource,
    *,
    mount_from: Sequence[Reference] = (),
    whereabouts: Whereabouts | None = None,
    jobs: int = 4,
    new: Container[Digest] = (),
) -> None:
    """Pushes an image: what is missing of its blobs, `jobs` at a time, then the manifest.

    Nothing is sent, and no blob looked up, when the tag has this very manifest already. Blobs and
    manifests that are `new`, so that nobody can have them, are not looked for. Layers are mounted
    from `mount_from` and where they were seen, if that is on the same registry; those that may not
    be distributed stay where they are. Raises the first error of any blob; then, and when
    interrupted, the others are stopped.
    """
    made = encoded.descriptor.digest
    if made not in new and registry.head_manifest(reference, for_push=True) == made:
        registry.tell_exists((*layers, encoded.config_descriptor))
        return
    cancel = threading.Event()
    wanted = {layer.digest: layer for layer in layers if not is_foreign(layer)}
    turns = threading.Semaphore(jobs)

    def bring(
        blob: Descriptor, read: Callable[[], Readable], sources: Sequence[Reference] = ()
    ) -> None:
        is_new = blob.digest in new
        registry.push_blob(
            reference, blob, read, sources, cancel=cancel, is_new=is_new, turns=turns
        )

    def send(layer: Descriptor) -> None:
        seen = whereabouts.of(layer.digest) if whereabouts else ()
        read = partial(source.open_blob, layer)
        sources = (*mount_from, *seen)
        # A source may be another registry, whose bytes are seen to be wrong only at their end.
        twice(partial(bring, layer, read, sources))
        if whereabouts:
            whereabouts.note(layer.digest, reference)

    def send_config() -> None:
        bring(encoded.config_descriptor, partial(io.BytesIO, encoded.config))

    def send_all() -> None:
        sending = [partial(send, layer) for layer in wanted.values()]
        in_parallel([*sending, send_config], waiting_threads(jobs), cancel)
        registry.put_manifest(reference, encoded.manifest, encoded.descriptor.media_type)

    try:
        send_all()
    except RequestError as error:
        # Somebody may have cleaned up in the registry while the image was made. It says so by
        # MANIFEST_BLOB_UNKNOWN (distribution-spec, error codes), or by less.
        if error.status not in (400, 404) or not registry.forget_early(reference):
            raise
        cancel, turns = threading.Event(), threading.Semaphore(jobs)
        send_all()


_Waiting = queue.SimpleQueue[Callable[[], object]]
_Ended = queue.SimpleQueue[BaseException | None]


def waiting_threads(jobs: int) -> int:
    """How many threads wait for answers where `jobs` move many bytes: one where one does all."""
    return min(2 * jobs, POOL_SIZE) if jobs > 1 else 1


def in_parallel(
    actions: Sequence[Callable[[], object]], jobs: int, cancel: threading.Event
) -> None:
    """Runs all actions, `jobs` at a time; on an error or an interrupt the rest is cancelled.

    The threads are daemons: one that waits minutes for a registry's answer must not keep a process
    alive whose user has asked for its end.
    """
    waiting: _Waiting = queue.SimpleQueue()
    ended: _Ended = queue.SimpleQueue()
    for action in actions:
        waiting.put(action)
    threads = [
        threading.Thread(target=_work, args=(waiting, ended, cancel), daemon=True)
        for _ in range(min(jobs, len(actions)))
    ]
    for thread in threads:
        thread.start()
    try:
        for _ in actions:
            error = ended.get()
            if error is not None:
                raise error
    finally:
        cancel.set()
        for thread in threads:
            thread.join(STOP_SECONDS / len(threads))


def _work(waiting: _Waiting, ended: _Ended, cancel: threading.Event) -> None:
    while not cancel.is_set():
        try:
            action = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised by the thread that waits
            ended.put(error)
            # First told, then stopped: it is this error that the caller raises.
            cancel.set()
        else:
            ended.put(None)


def is_foreign(layer: Descriptor) -> bool:
    """Whether a layer may not be distributed: its registry does not have it."""
    return "nondistributable" in layer.media_type or "foreign" in layer.media_type
