"""Brings an image's layers into the store's unpacked form, each once for all builds.

A layer that the store has no blob of comes from its registry in one stream: download, digest,
decompression, diff_id and tar, and nothing of it is written twice. All but the tar happens here, in
the unprivileged process; the agent gets that through a pipe. A layer appears under its diff_id only
after every digest was found right.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ocis2i.blob_stream import BlobStream
from ocis2i.blobs import CHUNK, VerifiedReader
from ocis2i.errors import ImageError, Ocis2iError, OutputError, PolicyError
from ocis2i.events import Notice
from ocis2i.fs import boot_id, wide_pipe
from ocis2i.images import Obtained, Places, explaining, fetch_layer, origin_of
from ocis2i.isolation.agent import Agent, Answering
from ocis2i.manifest import Layer
from ocis2i.registry.downloads import BadContentError
from ocis2i.retries import check_cancelled
from ocis2i.store import LayerRecord, Store
from ocis2i.transfer import in_parallel

ENTRY_LIMIT = 5_000_000
# Above this a faster decompressor is worth loading.
_LARGE_BYTES = 4 << 20


def unpack_layers(
    image: Obtained, places: Places, agent: Agent, *, size_limit: int
) -> tuple[LayerRecord, ...]:
    """The unpacked layers of `image`, lowest first; those that are missing are unpacked.

    Several at once, each from its blob in the store, or else as it comes from the registry. A
    layer of more than `size_limit` bytes is refused. Raises `ImageError` for a broken or hostile
    layer or one that nobody may be asked for, `PolicyError` for one beyond the limits,
    `RegistryError` for one that cannot be had, `OutputError` when the store has layers that were
    unpacked with other subordinate ids.
    """
    store = places.store
    layers = {layer.diff_id: layer for layer in image.image.layers}
    todo = [layer for layer in layers.values() if not _is_ready(layer, store, agent)]
    with _workers(agent, min(len(todo), places.jobs)) as workers:
        cancel = threading.Event()
        unpacking = _Unpacking(image, places, workers, size_limit, cancel)
        in_parallel([partial(unpacking.ensure, layer) for layer in todo], len(workers), cancel)
    squashed = agent.ground.squashed
    return tuple(_known(layer, store, squashed=squashed) for layer in image.image.layers)


@contextmanager
def _workers(agent: Agent, number: int) -> Iterator[Sequence[Answering]]:
    """As many that can unpack at the same time; one can do it alone."""
    if number < 2:
        yield [agent]
        return
    with agent.helpers(number) as helpers:
        yield helpers


def _is_ready(layer: Layer, store: Store, agent: Answering) -> bool:
    record = _look_up(layer, store, agent)
    return record is not None and record.boot_id == boot_id()


def _known(layer: Layer, store: Store, *, squashed: bool) -> LayerRecord:
    record = store.layer(layer.diff_id, squashed=squashed)
    if record is None:
        raise ImageError(
            f"layer `{layer.diff_id}` vanished from the store",
            hint="somebody removed it meanwhile: build again",
        )
    return record


class _Unpacking:
    """What the unpacking of an image's layers has in common, in several threads."""

    def __init__(
        self,
        image: Obtained,
        places: Places,
        workers: Sequence[Answering],
        size_limit: int,
        cancel: threading.Event,
    ) -> None:
        self._image = image
        self._places = places
        self._store = places.store
        self._size_limit = size_limit
        self._cancel = cancel
        self._idle: queue.SimpleQueue[Answering] = queue.SimpleQueue()
        for worker in workers:
            self._idle.put(worker)

    def ensure(self, layer: Layer) -> None:
        """Unpacks a layer, unless another build does it meanwhile."""
        agent = self._idle.get()
        try:
            with self._store.layer_lock(layer.diff_id):
                record = _look_up(layer, self._store, agent)
                if record and _is_whole(record, self._store, agent):
                    return
                # What a crash left of the layer, or of its record.
                place = self._store.layer_path(layer.diff_id, squashed=agent.ground.squashed)
                if place.exists():
                    agent.request("remove", parent=str(place.parent), name=place.name)
                self._get(layer, agent)
        finally:
            self._idle.put(agent)

    def _get(self, layer: Layer, agent: Answering) -> None:
        descriptor, store = layer.descriptor, self._store
        origin = None if store.has_blob(descriptor) else origin_of(self._image)
        if origin is None:
            self._unpack(layer, agent, store.open_blob(descriptor))
            return
        self._places.policy.check_registry(origin)
        with explaining(self._image):
            registry = self._places.registry
            try:
                stream = BlobStream(registry, origin, descriptor, self._cancel)
                self._unpack(layer, agent, stream)
                store.whereabouts.note(descriptor.digest, origin)
            except BadContentError:
                # Once more, and slower: with all that the client can do to get it right.
                fetch_layer(descriptor, origin, self._places, self._cancel)
                self._unpack(layer, agent, store.open_blob(descriptor))

    def _unpack(self, layer: Layer, agent: Answering, blob: VerifiedReader) -> None:
        name = f"layer `{layer.descriptor.digest}`"
        scratch = self._store.new_scratch_directory()
        try:
            try:
                answer = self._stream(layer, agent, blob, scratch / "fs")
            except (ImageError, PolicyError) as error:
                hint = error.hint
                if self._store.drop_if_damaged(layer.descriptor):
                    hint = "the damaged blob was removed from the store; the next try gets it anew"
                raise type(error)(f"{name}: {error.message}", hint=hint) from error
            if answer["devices"]:
                text = f"{name}: {answer['devices']} device nodes left out"
                self._places.report(Notice("info", text))
            record = LayerRecord(
                scratch / "fs",
                tuple(answer["implied"]),
                answer["entries"],
                answer["size"],
                boot_id(),
                agent.ground.map,
                answer["owners"],
                tuple(answer["whiteouts"]),
                tuple(answer["opaque"]),
            )
            squashed = agent.ground.squashed
            self._store.publish_layer(scratch, layer.diff_id, record, squashed=squashed)
        except BaseException:
            _discard(scratch, agent)
            raise

    def _stream(
        self, layer: Layer, agent: Answering, blob: VerifiedReader, into: Path
    ) -> dict[str, Any]:
        """Sends the plain tar to the agent; returns its answer once all digests are right."""
        with blob:
            read_end, write_end = wide_pipe()
            try:
                limits = {"size_limit": self._size_limit, "entry_limit": ENTRY_LIMIT}
                agent.post("unpack", read_end, into=str(into), **limits)
            except BaseException:
                os.close(write_end)
                raise
            finally:
                os.close(read_end)
            answer: dict[str, Any] = {}
            failure: Ocis2iError | None = None
            with os.fdopen(write_end, "wb", buffering=0) as pipe:
                try:
                    self._pump(layer, blob, pipe.fileno())
                except BrokenPipeError:
                    pass  # the agent stopped reading: its answer says why
                except Ocis2iError as error:
                    failure = error
            try:
                answer = agent.reply()
            except Ocis2iError as error:
                # Data that is broken below the tar level ends the tar too early as well: the first
                # cause is the one to tell.
                failure = failure or error
            if isinstance(failure, ImageError) and isinstance(blob, BlobStream):
                _read_on(blob)
        if failure:
            raise failure
        return answer

    def _pump(self, layer: Layer, blob: VerifiedReader, pipe: int) -> None:
        # Most builds find their layers unpacked.
        from ocis2i.decompression import DiffIdReader, open_decompressed  # noqa: PLC0415

        descriptor = layer.descriptor
        large = descriptor.size > _LARGE_BYTES
        plain = open_decompressed(blob, descriptor.media_type, what="its blob", large=large)
        tar = DiffIdReader(plain, what="its blob")
        while data := tar.read1(CHUNK):
            _write(pipe, data)
            check_cancelled(self._cancel)
        _read_on(blob)
        tar.finish(layer.diff_id)


def _read_on(blob: VerifiedReader) -> None:
    """Reads to the end, where the blob is found right or wrong."""
    while blob.read(CHUNK):
        pass


def _look_up(layer: Layer, store: Store, agent: Answering) -> LayerRecord | None:
    """The layer as an agent with the same ids unpacked it: the disk has the host's numbers.

    To one with other ids they would be other owners, or nobody's files.
    """
    ground = agent.ground
    record = store.layer(layer.diff_id, squashed=ground.squashed)
    if record is None or ground.squashed or record.ids == ground.map:
        return record
    raise OutputError(
        f"the layers in the store `{store.root}` were unpacked with the ids {record.ids}, "
        f"and this user has {ground.map} now",
        hint="use another store with --root; `ocis2i prune --all` can empty this one as long as "
        "/etc/subuid and /etc/subgid have the old ids",
    )


def _is_whole(record: LayerRecord, store: Store, agent: Answering) -> bool:
    """Whether a layer survived the crash or reboot since it was unpacked.

    File systems that order data before sizes (ext4, xfs) show an unwritten file as too short.
    """
    if record.boot_id == boot_id():
        return True
    found = agent.request("measure", path=str(record.tree))
    if (found["entries"], found["size"]) == (record.entries, record.size_bytes):
        store.confirm_layer(replace(record, boot_id=boot_id()))
        return True
    return False


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _discard(scratch: Path, agent: Answering) -> None:
    try:
        agent.request("remove", parent=str(scratch.parent), name=scratch.name)
    except Ocis2iError:
        return  # the agent is gone; `prune` removes it
