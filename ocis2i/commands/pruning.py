"""The verb that frees the store's space: prune."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from ocis2i.commands.context import context
from ocis2i.commands.flags import JsonFlags, option
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION
from ocis2i.prune import prune
from ocis2i.report import human_size


@dataclass(frozen=True, kw_only=True)
class PruneFlags(JsonFlags):
    """`prune`."""

    everything: Annotated[
        bool, option("--all", help="Remove all images first: empties the store.")
    ] = False


def prune_store(flags: PruneFlags) -> None:
    with context(flags) as here:
        done = prune(here.store, here.tools.settings, everything=flags.everything)
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
                }
            )
        else:
            print(
                f"removed {done.builds} dead builds, {done.layers} unpacked layers and "
                f"{done.blobs} blobs ({human_size(done.blob_bytes)})"
            )
