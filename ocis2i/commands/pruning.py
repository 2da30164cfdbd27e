"""The verb that frees the store's space: prune."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated

from ocis2i.commands.context import context
from ocis2i.commands.flags import JsonFlags, option
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted, human_size, parse_duration
from ocis2i.prune import OldRecords, prune


@dataclass(frozen=True, kw_only=True)
class PruneFlags(JsonFlags):
    """`prune`."""

    everything: Annotated[
        bool, option("--all", help="Remove all images first: empties the store.")
    ] = False
    builds: Annotated[
        bool, option("--builds", help="Forget all builds that are over, with their logs.")
    ] = False
    older: Annotated[
        str | None,
        option("--older", metavar="TIME", help="Forget builds that began before that, as 48h."),
    ] = None


def prune_store(flags: PruneFlags) -> None:
    with context(flags) as here:
        settings = here.tools.settings
        keep = 0 if flags.builds or flags.everything else settings.keep_builds
        seconds = parse_duration(flags.older, "--older")
        before = None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)
        done = prune(
            here.store, settings, everything=flags.everything, old=OldRecords(keep, before)
        )
        if done.busy:
            here.recorder.warn(
                "the store is in use: only dead builds were removed; try again later"
            )
        if flags.as_json:
            print_json(
                {
                    "version": VERSION,
                    "builds": done.builds,
                    "blobs": done.blobs,
                    "layers": done.layers,
                    "leftovers": done.leftovers,
                    "bytes": done.blob_bytes,
                    "busy": done.busy,
                    "records": done.records,
                    "kept": done.kept,
                }
            )
        else:
            forgotten = f", forgot {counted(done.records, 'build')}" if done.records else ""
            kept = f", {counted(done.kept, 'kept container')}" if done.kept else ""
            print(
                f"removed {counted(done.builds, 'dead build')}, "
                f"{counted(done.layers, 'unpacked layer')} and "
                f"{counted(done.blobs, 'blob')} ({human_size(done.blob_bytes)}){kept}{forgotten}"
            )
