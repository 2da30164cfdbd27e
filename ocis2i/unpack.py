"""Brings an image's layers into the store's unpacked form, each once for all builds.

Decompression and both digests happen here, in the unprivileged process; the agent gets a plain tar
through a pipe. A layer appears under its diff_id only after every digest was found right.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from ocis2i.blobs import CHUNK
from ocis2i.compression import DiffIdReader, open_decompressed
from ocis2i.errors import ImageError, Ocis2iError, OutputError, PolicyError
from ocis2i.events import Notice, Report
from ocis2i.isolation.agent import Agent
from ocis2i.manifest import Image, Layer
from ocis2i.store import LayerRecord, Store

ENTRY_LIMIT = 5_000_000


def unpack_layers(
    image: Image, store: Store, agent: Agent, report: Report, *, size_limit: int
) -> tuple[LayerRecord, ...]:
    """The unpacked layers of `image`, lowest first; those that are missing are unpacked.

    A layer of more than `size_limit` bytes is refused. Raises `ImageError` for a broken or hostile
    layer, `PolicyError` for one beyond the limits, `OutputError` when the store has layers that
    were unpacked with other subordinate ids.
    """
    return tuple(
        _ensure(layer, store, agent, report, size_limit=size_limit) for layer in image.layers
    )


def _ensure(
    layer: Layer, store: Store, agent: Agent, report: Report, *, size_limit: int
) -> LayerRecord:
    squashed = agent.ground.squashed
    record = _look_up(layer, store, agent)
    if record and record.boot_id == boot_id():
        return record
    with store.layer_lock(layer.diff_id):
        record = _look_up(layer, store, agent)  # by a build that had the lock before us
        if record and _is_whole(record, store, agent):
            return record
        # What a crash left of the layer, or of its record.
        place = store.layer_path(layer.diff_id, squashed=squashed)
        if place.exists():
            agent.request("remove", parent=str(place.parent), name=place.name)
        _unpack(layer, store, agent, report, size_limit=size_limit)
    record = store.layer(layer.diff_id, squashed=squashed)
    if record is None:
        raise ImageError(f"layer `{layer.diff_id}` vanished from the store")
    return record


def _look_up(layer: Layer, store: Store, agent: Agent) -> LayerRecord | None:
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


def boot_id() -> str:
    """Names this run of the kernel (proc_sys_kernel(5), random/boot_id)."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _is_whole(record: LayerRecord, store: Store, agent: Agent) -> bool:
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


def _unpack(layer: Layer, store: Store, agent: Agent, report: Report, *, size_limit: int) -> None:
    name = f"layer `{layer.descriptor.digest}`"
    scratch = store.new_scratch_directory()
    try:
        try:
            answer = _stream(layer, store, agent, scratch / "fs", size_limit)
        except (ImageError, PolicyError) as error:
            hint = error.hint
            if store.drop_if_damaged(layer.descriptor):
                hint = "the damaged blob was removed from the store; the next try gets it anew"
            raise type(error)(f"{name}: {error.message}", hint=hint) from error
        if answer["devices"]:
            report(Notice("info", f"{name}: {answer['devices']} device nodes left out"))
        measured = agent.request("measure", path=str(scratch / "fs"))
        record = LayerRecord(
            scratch / "fs",
            tuple(answer["implied"]),
            measured["entries"],
            measured["size"],
            boot_id(),
            agent.ground.map,
            answer["owners"],
            tuple(answer["whiteouts"]),
            tuple(answer["opaque"]),
        )
        store.publish_layer(scratch, layer.diff_id, record, squashed=agent.ground.squashed)
    except BaseException:
        _discard(scratch, agent)
        raise


def _stream(
    layer: Layer, store: Store, agent: Agent, into: Path, size_limit: int
) -> dict[str, Any]:
    """Sends the plain tar to the agent; returns its answer once all digests are right."""
    blob = store.open_blob(layer.descriptor)
    read_end, write_end = os.pipe()
    try:
        agent.post(
            "unpack", read_end, into=str(into), size_limit=size_limit, entry_limit=ENTRY_LIMIT
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    failure: Ocis2iError | None = None
    with blob, os.fdopen(write_end, "wb", buffering=0) as pipe:
        try:
            plain = open_decompressed(blob, layer.descriptor.media_type, what="its blob")
            tar = DiffIdReader(plain, what="its blob")
            while data := tar.read(CHUNK):
                _write(pipe.fileno(), data)
            while blob.read(CHUNK):
                pass
            tar.finish(layer.diff_id)
        except BrokenPipeError:
            pass  # the agent stopped reading: its answer says why
        except Ocis2iError as error:
            failure = error
    try:
        answer = agent.reply()
    except Ocis2iError:
        # Data that is broken below the tar level ends the tar too early as well: the first
        # cause is the one to tell.
        if failure:
            raise failure from None
        raise
    if failure:
        raise failure
    return answer


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _discard(scratch: Path, agent: Agent) -> None:
    try:
        agent.request("remove", parent=str(scratch.parent), name=scratch.name)
    except Ocis2iError:
        return  # the agent is gone; `prune` removes it
