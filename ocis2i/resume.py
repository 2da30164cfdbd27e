"""Finishes a build whose image is in the store: writes the outputs and pushes what is missing.

Nothing is built again. What was wished for stands in the build's record, what was done in its
events; so a push that broke, or a process that was killed, costs no more than what it had left.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from ocis2i.blobs import read_document
from ocis2i.errors import ImageError, UsageError
from ocis2i.images import Blobs, Obtained, from_store
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Encoded, Json
from ocis2i.outputs import Output, parse_output
from ocis2i.publish import Sendable
from ocis2i.records import Record
from ocis2i.reference import Digest, Reference
from ocis2i.result import push_result, write_output
from ocis2i.store import Store
from ocis2i.tools import Tools


@dataclass(frozen=True, slots=True)
class Missing:
    """What a build has left to do. `push` are the names that the image is to be pushed by.

    An output goes to an absolute place, and is called `where` as it was typed.
    """

    outputs: tuple[tuple[Output, str], ...] = ()
    push: tuple[Reference, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.outputs or self.push)


def missing_of(record: Record) -> Missing:
    """What was wished for and is not said to be done. Pure but for reading the record."""
    written: set[str] = set()
    pushed = False
    for event in record.events():
        if event.get("type") == "written":
            written.add(str(event.get("where")))
        elif event.get("type") == "pushed":
            pushed = True
    listed = record.resume.get("outputs")
    # The directory that somebody names may hold anything.
    wanted = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    outputs = [
        (parse_output(str(one.get("place"))), str(one.get("where")))
        for one in wanted
        if not {str(one.get("where")), str(one.get("place"))} & written
    ]
    push = record.resume.get("push") is True and not pushed
    names = tuple(map(Reference.parse, record.names)) if push else ()
    return Missing(tuple(outputs), names)


def stored_digest(record: Record) -> tuple[Digest, Json]:
    """The image that the build left in the store, and what its event says of it.

    Raises `UsageError` for a build that is still going on, or never came so far.
    """
    if record.is_running:
        raise UsageError(
            f"the build `{record.id}` is still running",
            hint=f"wait for it: {shlex.join(['ocis2i', 'wait', record.called])}",
        )
    stored = record.stored()
    if stored is not None and not record.document:
        raise UsageError(
            f"the record of the build `{record.id}` is damaged: {next(record.damage())}, "
            "so nobody knows where its image was to go",
            hint=f"its image may be in the store: ocis2i inspect {stored.get('digest')}",
        )
    if stored is None:
        raise UsageError(
            f"the build `{record.id}` has no finished image{_stopped_in(record)}: "
            "there is nothing to resume",
            hint=record.way_back,
        )
    return Digest.parse(str(stored.get("digest"))), stored


def _stopped_in(record: Record) -> str:
    begun = [event for event in record.events() if event.get("type") == "stage_started"]
    # One that was over when it stopped, where no other had begun yet.
    last = next(reversed(record.open_stages()), str(begun[-1].get("stage")) if begun else "")
    return f", it stopped in the stage `{last}`" if last else ""


def find_image(record: Record, digest: Digest, store: Store) -> Obtained:
    """The image in the store; raises what tells that it is gone, or that its name has moved on.

    A name that another build has taken since must not be pushed with the old image.
    """
    for name in map(Reference.parse, record.names):
        for entry in store.entries(name):
            if entry.descriptor.digest != digest:
                raise UsageError(
                    f"`{name}` is another image by now, `{entry.descriptor.digest}`: "
                    f"the build `{record.id}` made `{digest}`",
                    hint="push the one that you want with `ocis2i push`, or build again",
                )
    try:
        return from_store(digest, store)
    except ImageError:
        raise ImageError(
            f"the image `{digest}` of the build `{record.id}` is not in the store any more",
            hint=record.way_back,
        ) from None


def finish(
    missing: Missing,
    found: Obtained,
    names: tuple[Reference, ...],
    tools: Tools,
) -> None:
    """Does what is missing. Raises as a build does: `OutputError`, `RegistryError`."""
    encoded = Encoded.of(found.manifest, read_document(tools.store, found.manifest.config))
    blobs = Blobs(tools.places, found.origin)
    first = names[0] if names else None
    for output, _ in missing.outputs:
        write_output(output, found.image, encoded, blobs, name=first, report=tools.report)
    if missing.push:
        layers = found.manifest.layers
        sendable = Sendable.of(
            encoded, layers, tools.places, known=found.reference, origin=found.origin
        )
        push_result(sendable, missing.push, tools)


def store_of(record: Record) -> Path | None:
    """The store that the build worked with, if it is still there."""
    text = record.resume.get("store")
    path = Path(text) if isinstance(text, str) and text.startswith("/") else None
    return path if path and (path / "store.json").is_file() else None
