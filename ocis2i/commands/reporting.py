"""The verb that writes the page about a build: report."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from typing import Annotated

import typer

from ocis2i import __version__
from ocis2i.build_facts import BuildFacts, read_facts
from ocis2i.build_page import Changes, build_page
from ocis2i.commands.context import Context, context
from ocis2i.commands.flags import JsonFlags, TalkFlags, option
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION
from ocis2i.errors import Ocis2iError, UsageError
from ocis2i.layer_facts import image_difference, unheld_changes
from ocis2i.lazy_dataclass import dataclass
from ocis2i.outputs.files import ResultFile
from ocis2i.records import find, newest
from ocis2i.reference import Digest, StoredLocation


@dataclass(frozen=True, kw_only=True)
class ReportFlags(TalkFlags, JsonFlags):
    """`report`."""

    build: Annotated[
        str | None,
        typer.Argument(help="A build: its id, its image, or ./DIR of --record. Default: the last."),
    ] = None
    output: Annotated[
        str | None,
        option("--output", "-o", metavar="FILE", help="Where to write the page; - for stdout."),
    ] = None


def write_report(flags: ReportFlags) -> None:
    if not flags.output:
        raise UsageError("report needs a file to write", hint="add: -o report.html")
    if flags.output == "-" and flags.as_json:
        raise UsageError("--json and -o - both want stdout", hint="name a file for the page")
    with context(flags) as here, here.store.in_use():
        root = here.store.root
        record = find(root, flags.build) if flags.build else newest(root)
        for said in record.damage():
            here.recorder.warn(f"the record `{record.path}` is damaged: {said}")
        now = datetime.now(UTC)
        facts = read_facts(record, now)
        page = build_page(facts, _changes(facts, here), now=now, version=__version__)
        if flags.output == "-":
            sys.stdout.write(page)
            return
        file = here.tools.cwd / flags.output
        ResultFile(file, "--output").write(page)
    if flags.as_json:
        print_json({"version": VERSION, "build": facts.id, "state": facts.state, "page": str(file)})
    else:
        print(flags.output)


def _changes(build: BuildFacts, here: Context) -> Changes:
    """What the build changed, as far as the store can tell without any registry."""
    if build.digest is None:
        return Changes(note="The build stored no image.")
    try:
        place = StoredLocation(Digest.parse(build.digest))
        try:
            found = image_difference(place, None, None, here.tools.places, offline=True)
        except Ocis2iError:
            alone = unheld_changes(place, here.tools.places)
            note = (
                "New and changed files are not told apart: the layers below are not in the store."
            )
            return Changes(alone, note, by_state=False)
    except Ocis2iError as error:
        return Changes(note=f"What is in the layer is not known: {error.message}.")
    return Changes(found.changes)
