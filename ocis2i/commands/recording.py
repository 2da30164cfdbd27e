"""Opens the record of a build and its stream of events, and closes them with how it ended."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from ocis2i import __version__
from ocis2i.command_words import masked_command
from ocis2i.commands.build_flags import CommonBuildFlags
from ocis2i.commands.context import Context
from ocis2i.commands.state import State
from ocis2i.errors import UsageError
from ocis2i.journal import Journal, open_stream
from ocis2i.manifest import Json
from ocis2i.record_files import Heading, record_at, record_in_store, retire
from ocis2i.s2i import redact_url
from ocis2i.sources import DirSource, Source
from ocis2i.spec import BuildSpec

# What `resume` leaves out, by the flag that asks for it.
_NOT_REPEATED = {
    "callback_url": "--callback-url",
    "cache_to": "--cache-to",
    "remove_previous": "--rm",
    "run": "--run",
}


def check_events(flags: CommonBuildFlags) -> None:
    """Raises `UsageError` for wishes that contradict each other."""
    for name, value in (("--record", flags.record), ("--events", flags.events)):
        if value == "":
            raise UsageError(f"{name} is empty", hint="name a place, or leave it out")
    if flags.events == "-" and flags.as_json:
        raise UsageError(
            "--json and `--events -` exclude each other: both want standard output",
            hint="the last event has the document; or write the events to a file",
        )


def without_own(source: Source, flags: CommonBuildFlags, cwd: Path) -> Source:
    """The source without the record and the events that this build writes into it."""
    places = (flags.record, None if flags.events == "-" else flags.events)
    own = tuple((cwd / place).resolve() for place in places if place)
    return replace(source, own=own) if own and isinstance(source, DirSource) else source


def open_journal(spec: BuildSpec, flags: CommonBuildFlags, here: Context) -> None:
    """From now on the build is recorded. Raises `UsageError` or `OutputError`.

    Without a wish of the user's for it, a record that cannot be written is no more than a warning.
    """
    check_events(flags)
    started = datetime.now(UTC)
    State.secrets = spec.secrets.telling
    heading = _heading(spec, flags, here)
    stream: TextIO | None = None
    if flags.events:
        cwd = here.tools.cwd
        stream = sys.stdout if flags.events == "-" else open_stream(cwd / flags.events)
    files = None
    if flags.record:
        name, files = record_at(here.tools.cwd / flags.record, heading, started)
    else:
        try:
            name, files = record_in_store(here.store.root, heading, started)
        except OSError as error:
            name = ""
            here.recorder.warn(f"the build has no record: {error.strerror} (`{error.filename}`)")
    journal = Journal(
        files,
        stream,
        name=name,
        started=started,
        now=lambda: datetime.now(UTC),
        warn=here.recorder.warn,
        durable=bool(spec.push or spec.outputs),
        lasting=bool(flags.record or here.tools.settings.keep_builds),
    )
    State.journal = journal
    if not flags.record:
        State.when_recorded = _retention(here)
    journal.begin(heading)
    here.recorder.listeners.append(journal)


def close_journal(document: dict[str, Any]) -> dict[str, Any]:
    """Writes down how the build ended, if one was recorded; its document with that in it."""
    if State.journal is None:
        return document
    full = State.journal.close(document)
    if State.when_recorded:
        State.when_recorded()
        State.when_recorded = None
    return full


def _retention(here: Context) -> Callable[[], None]:
    root, keep = here.store.root, here.tools.settings.keep_builds

    def keep_the_last() -> None:
        with suppress(OSError):  # it is tried again after the next build
            retire(root, keep)

    return keep_the_last


def _heading(spec: BuildSpec, flags: CommonBuildFlags, here: Context) -> Heading:
    return Heading(
        source=source_text(spec.source),
        builder=redact_url(str(spec.builder)),
        names=tuple(map(str, spec.names)),
        tag=spec.tag,
        command=masked_command(State.arguments, State.secrets),
        cwd=str(here.tools.cwd),
        version=__version__,
        resume=_wishes(spec, flags, here),
    )


def source_text(source: object) -> str:
    """A source as it is written on a command line, without secrets."""
    text = getattr(source, "typed", None) or getattr(source, "url", None) or str(source)
    return redact_url(str(text))


def _wishes(spec: BuildSpec, flags: CommonBuildFlags, here: Context) -> Json:
    """What has to be known to do what may be missing at the end."""
    cwd = here.tools.cwd
    outputs = []
    for output in spec.outputs:
        text = str(output)
        transport, _, rest = text.partition(":")
        outputs.append({"place": f"{transport}:{_absolute(cwd, rest)}", "where": text})
    given = {
        "authfile": _absolute(cwd, flags.authfile),
        "cert_dir": _absolute(cwd, flags.cert_dir),
        "tls_verify": flags.tls_verify,
        "upload": flags.upload,
        "registry_timeout": flags.registry_timeout,
        "jobs": flags.jobs,
    }
    return {
        "store": str(here.store.root),
        "push": spec.push,
        "network": spec.network,
        "outputs": outputs,
        "digest_file": _absolute(cwd, flags.digest_file),
        "iidfile": _absolute(cwd, flags.iidfile),
        "registry": given,
        "not_repeated": [name for key, name in _NOT_REPEATED.items() if getattr(flags, key, None)],
    }


def _absolute(cwd: Path, text: str | None) -> str | None:
    return str(cwd / text) if text else None
