"""The verb that finishes a build whose image is in the store: resume."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from ocis2i import records
from ocis2i.build_rows import parse_moment
from ocis2i.commands.context import Context, context
from ocis2i.commands.flags import JsonFlags, RegistryFlags, TalkFlags, TransferFlags
from ocis2i.commands.recording import close_journal
from ocis2i.commands.state import State, print_json
from ocis2i.documents import resumed_document
from ocis2i.events import Event, OutputWritten
from ocis2i.images import Obtained
from ocis2i.journal import Journal
from ocis2i.lazy_dataclass import dataclass
from ocis2i.outputs.files import ResultFile
from ocis2i.record_files import reopen
from ocis2i.records import Record, check_own
from ocis2i.reference import Reference
from ocis2i.report import StageRecord
from ocis2i.resume import Missing, find_image, finish, missing_of, store_of, stored_digest
from ocis2i.settings import Settings

# What a build was given for its registries, if the user says nothing else now.
_AS_BEFORE = ("authfile", "cert_dir", "tls_verify", "upload", "registry_timeout", "jobs")


@dataclass(frozen=True, kw_only=True)
class ResumeFlags(RegistryFlags, TransferFlags, TalkFlags, JsonFlags):
    """`resume`."""

    build: Annotated[
        str,
        typer.Argument(
            help="An id of `ocis2i ps -a` or its beginning, the name of an image (its last build), "
            "or the directory of --record."
        ),
    ]


def resume_build(flags: ResumeFlags) -> None:
    State.as_json = flags.as_json
    settings = Settings.from_environ(os.environ, root=flags.root or State.root)
    record = records.find(settings.store_root, flags.build)
    check_own(record, "resumed")
    digest, stored = stored_digest(record)
    with context(_as_before(flags, record, settings.store_root)) as here:
        with here.store.in_use():
            found = find_image(record, digest, here.store)
            document = _resume(record, found, stored, here)
        if flags.as_json:
            print_json(document)
        else:
            print(document["reference"] or document["digest"])


def _as_before(flags: ResumeFlags, record: Record, store_root: Path) -> ResumeFlags:
    """The flags of the build where none are given now, and its store."""
    before = record.resume.get("registry")
    known: dict[str, Any] = before if isinstance(before, dict) else {}
    changes = {
        name: known[name]
        for name in _AS_BEFORE
        if name not in flags.given and name in known and _fits(known[name], getattr(flags, name))
    }
    root = flags.root or State.root or str(store_of(record) or store_root)
    return replace(flags, **{**changes, "root": root})


def _fits(value: object, default: object) -> bool:
    return isinstance(value, str if default is None else type(default))


def _resume(
    record: Record, found: Obtained, stored: dict[str, Any], here: Context
) -> dict[str, Any]:
    missing = missing_of(record)
    result = record.result
    if not missing and result and result.get("state") == "succeeded":
        sys.stderr.write(f"nothing is missing: the build `{record.id}` is finished\n")
        return result
    journal = Journal(
        reopen(record),
        None,
        name=record.id,
        started=parse_moment(record.text("started")) or datetime.now(UTC),
        now=lambda: datetime.now(UTC),
        warn=here.recorder.warn,
        durable=True,
    )
    State.journal = journal
    journal.resumed()
    here.recorder.listeners.append(_AsTyped(journal, missing))
    names = tuple(map(Reference.parse, record.names))
    finish(missing, found, names, here.tools)
    for key, value in (("digest_file", stored["digest"]), ("iidfile", stored.get("config"))):
        path = record.resume.get(key)
        if isinstance(path, str):
            ResultFile(Path(path), f"--{key.replace('_', '-')}").write(str(value))
    left_out = record.resume.get("not_repeated")
    if isinstance(left_out, list) and left_out:
        here.recorder.warn(f"{', '.join(map(str, left_out))}: `resume` leaves that out")
    document = resumed_document(
        record.document, stored, found.image, _stages(record), _ends(record)
    )
    return close_journal(document)


class _AsTyped:
    """Calls an output what the build called it, and not by its absolute place."""

    def __init__(self, journal: Journal, missing: Missing) -> None:
        self._journal = journal
        self._typed = {str(output): where for output, where in missing.outputs}

    def __call__(self, event: Event) -> None:
        if isinstance(event, OutputWritten):
            event = OutputWritten(self._typed.get(event.where, event.where))
        self._journal(event)


def _stages(record: Record) -> list[StageRecord]:
    """All stages that ended, those of the build and those of now."""
    begun: dict[str, datetime] = {}
    found = []
    for event in record.events():
        name, time = str(event.get("stage")), parse_moment(str(event.get("time")))
        if event.get("type") == "stage_started" and time:
            begun[name] = time
        elif event.get("type") == "stage_ended" and name in begun:
            seconds = event.get("seconds")
            took = float(seconds) if isinstance(seconds, int | float) else 0.0
            found.append(StageRecord(name, begun[name], took, event.get("ok") is True))
    return found


def _ends(record: Record) -> dict[str, Any]:
    """What its events say that was done outside of the store, and on the network."""
    ends: dict[str, Any] = {"outputs": [], "pushed": False, "network": None}
    for event in record.events():
        match event.get("type"):
            case "written":
                ends["outputs"].append(event.get("where"))
            case "pushed":
                ends["pushed"] = True
            case "network":
                ends["network"] = {key: event.get(key) for key in ("mode", "hosts", "more")}
            case _:
                pass
    return ends
