"""The verb that gets ready what a build without network or credentials takes: fetch."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from ocis2i.commands.context import Context, context
from ocis2i.commands.flags import (
    JsonFlags,
    PlatformFlags,
    RegistryFlags,
    TalkFlags,
    TransferFlags,
    option,
)
from ocis2i.commands.source_flags import SourceFlags
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION
from ocis2i.events import stage
from ocis2i.fs import remove_tree
from ocis2i.images import Layers, PullPolicy, blamed_on, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.outputs.files import writing_to
from ocis2i.prepare_source import prepare_source
from ocis2i.reference import parse_location
from ocis2i.sources.prepared import FACTS, SCHEME, TREE, check_empty


@dataclass(frozen=True, kw_only=True)
class FetchFlags(RegistryFlags, TransferFlags, PlatformFlags, TalkFlags, JsonFlags, SourceFlags):
    """`fetch`."""

    source: Annotated[
        str, typer.Argument(help="What `build` takes as well: a directory, URL or artifact.")
    ]
    directory: Annotated[str, typer.Argument(help="An empty or a new directory.")]
    builder: Annotated[
        str | None,
        option(
            "--builder",
            metavar="IMAGE",
            help="Put the manifest and the config of this builder into the store, too.",
        ),
    ] = None
    with_layers: Annotated[
        bool, option("--with-layers", help="And its layers: all but a build in place wants them.")
    ] = False
    depth: Annotated[
        int | None,
        option("--depth", metavar="N", min=1, help="Clone no more than the last N commits."),
    ] = None


def fetch_source(flags: FetchFlags) -> None:
    with context(flags) as here:
        tools = here.tools
        directory = (tools.cwd / flags.directory).absolute()
        check_empty(directory)
        source = flags.parsed(flags.source, tools.cwd, depth=flags.depth)
        with _whole_or_nothing(directory):
            info = prepare_source(source, directory, tools)
            digest = _fetch_builder(flags, here) if flags.builder else None
    name = f"{SCHEME}{directory}"
    if not flags.as_json:
        print(name)
        return
    print_json(
        {
            "version": VERSION,
            "state": "succeeded",
            "source": name,
            "location": info.location,
            "commit": info.commit_id or None,
            "builder": digest,
        }
    )


@contextmanager
def _whole_or_nothing(directory: Path) -> Iterator[None]:
    """Makes the empty directory; what fails leaves it as it was, for another attempt."""
    was_there = directory.exists()
    with writing_to(directory):
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        for name in (FACTS, TREE):
            remove_tree(directory / name)
        if not was_there:
            with suppress(OSError):
                directory.rmdir()
        raise


def _fetch_builder(flags: FetchFlags, here: Context) -> str:
    """Puts the builder into the store; the digest of its manifest."""
    builder = flags.builder or ""
    layers = Layers.BLOBS if flags.with_layers else Layers.UNPACKED
    with (
        here.store.in_use(),
        stage(here.recorder, "pull", builder),
        blamed_on("PullBuilderImageFailed"),
    ):
        found = obtain(
            parse_location(builder),
            flags.wanted_platform,
            PullPolicy.ALWAYS,
            here.tools.places,
            layers=layers,
        )
    return str(found.manifest.descriptor.digest)
