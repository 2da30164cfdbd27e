"""The verb for indexes: index create."""

from __future__ import annotations

from typing import Annotated

import typer

from ocis2i.commands.context import context, digest_file
from ocis2i.commands.flags import (
    CredentialFlags,
    DigestFileFlags,
    JsonFlags,
    TalkFlags,
    TransferFlags,
    option,
)
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION, index_rows
from ocis2i.errors import UsageError
from ocis2i.events import stage
from ocis2i.indexes import parse_annotations
from ocis2i.joins import join
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import parse_location, parse_registry_name


@dataclass(frozen=True, kw_only=True)
class IndexFlags(CredentialFlags, TransferFlags, DigestFileFlags, TalkFlags, JsonFlags):
    """`index`."""

    action: Annotated[str, typer.Argument(metavar="create", help="What to do.")]
    name: Annotated[str, typer.Argument(help="The name of the index.")]
    images: Annotated[
        list[str],
        typer.Argument(help="Images, or indexes of images, in a registry or in the store."),
    ]
    push: Annotated[
        bool, option("--push", help="Put the index into its registry, and not into the store.")
    ] = False
    annotation: Annotated[
        list[str] | None,
        option("--annotation", metavar="KEY=VALUE", help="Say this of the index; repeatable."),
    ] = None

    @property
    def named_image(self) -> str:
        """The index, whose registry `--creds` is for."""
        return self.name


def index_images(flags: IndexFlags) -> None:
    if flags.action != "create":
        raise UsageError(
            f"`index {flags.action[:40]}` is not there",
            hint="write: ocis2i index create NAME IMAGE...; `ocis2i inspect` shows an index",
        )
    if flags.digest_file and not flags.push:
        raise UsageError(
            "--digest-file has no meaning without --push", hint="add --push, or leave it out"
        )
    annotations = parse_annotations(flags.annotation or ())
    target = parse_registry_name(flags.name).with_default_tag()
    locations = [parse_location(text) for text in flags.images]
    with context(flags) as here, here.store.in_use():
        file = digest_file(flags, here)
        with stage(here.recorder, "push" if flags.push else "store", str(target)):
            index = join(
                locations, target, here.tools.places, annotations=annotations, push=flags.push
            )
        digest = index.descriptor.digest
        if file:
            file.write(str(digest))
        rows = index_rows(index, here.store)
    reference = f"{target.name}@{digest}"
    if not flags.as_json:
        print(reference)
        return
    print_json(
        {
            "version": VERSION,
            "state": "succeeded",
            "name": str(target),
            "digest": str(digest),
            "reference": reference,
            "pushed": flags.push,
            "manifests": rows,
        }
    )
