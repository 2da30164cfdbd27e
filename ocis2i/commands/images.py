"""The verbs for images of the store: pull, push, images, inspect, rm."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from ocis2i.commands.context import context
from ocis2i.commands.flags import JsonFlags, PlatformFlags, RegistryFlags, TalkFlags, option
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION, image_row, inspect_document
from ocis2i.errors import ImageError, UsageError
from ocis2i.images import PullPolicy, from_store, inspect, obtain, push
from ocis2i.outputs import Delivered
from ocis2i.reference import (
    Digest,
    PathLocation,
    Platform,
    Reference,
    RegistryLocation,
    StoredLocation,
    parse_location,
)
from ocis2i.report import human_size, table


@dataclass(frozen=True, kw_only=True)
class PullImageFlags(RegistryFlags, PlatformFlags, TalkFlags, JsonFlags):
    """`pull`."""

    image: Annotated[str, typer.Argument(help="A name in a registry, or oci:, oci-archive:, ...")]


def pull_image(flags: PullImageFlags) -> None:
    with context(flags) as here:
        location = parse_location(flags.image)
        wanted = Platform.parse(flags.platform) if flags.platform else None
        if not isinstance(location, RegistryLocation):
            raise UsageError(
                f"`{flags.image}` is not in a registry",
                hint="builds read it from there; nothing has to be pulled",
            )
        with here.store.in_use():
            found = obtain(location, wanted, PullPolicy.ALWAYS, here.tools.places)
        place = Delivered(location.reference.name, found.manifest.descriptor.digest)
        _print_place(place, as_json=flags.as_json)


@dataclass(frozen=True, kw_only=True)
class PushImageFlags(RegistryFlags, TalkFlags, JsonFlags):
    """`push`."""

    image: Annotated[str, typer.Argument(help="An image of the store.")]
    destination: Annotated[
        str | None,
        typer.Argument(help="Another name, or oci:, oci-archive:, docker-archive:."),
    ] = None


def push_image(flags: PushImageFlags) -> None:
    with context(flags) as here, here.store.in_use():
        found = from_store(_stored_name(flags.image), here.store)
        target = parse_location(flags.destination or flags.image)
        _print_place(push(found, target, here.tools.places), as_json=flags.as_json)


def _print_place(place: Delivered, *, as_json: bool) -> None:
    reference = f"{place.where}@{place.digest}"
    if as_json:
        print_json(
            {
                "version": VERSION,
                "state": "succeeded",
                "where": place.where,
                "digest": str(place.digest),
                "reference": reference,
            }
        )
    else:
        print(reference)


def _stored_name(text: str) -> Reference | Digest:
    """A name of the store, or a digest; raises `UsageError` for a place outside of it."""
    match parse_location(text):
        case RegistryLocation(reference):
            return reference.with_default_tag()
        case StoredLocation(digest):
            return digest
        case PathLocation():
            raise UsageError(f"`{text}` is not a name of the store", hint="see `ocis2i images`")


@dataclass(frozen=True, kw_only=True)
class ListFlags(JsonFlags):
    """`images`."""


def list_images(flags: ListFlags) -> None:
    with context(flags) as here, here.store.in_use():
        rows = [image_row(image, here.store) for image in here.store.images()]
        if flags.as_json:
            print_json({"version": VERSION, "images": rows})
            return
        heads = ("NAME", "DIGEST", "CREATED", "SIZE")
        lines = [
            (
                row["name"] or "<none>",
                row["digest"] if not row["name"] else row["digest"][:19],
                row["created"] or "",
                human_size(row["size"]),
            )
            for row in rows
        ]
        print(table(lines, heads))


@dataclass(frozen=True, kw_only=True)
class InspectFlags(RegistryFlags, PlatformFlags, JsonFlags):
    """`inspect`."""

    image: Annotated[
        str, typer.Argument(help="An image of the store, docker://NAME, oci:, oci-archive:, ...")
    ]
    raw: Annotated[bool, option("--raw", help="Print the manifest's own bytes.")] = False
    config: Annotated[bool, option("--config", help="Print the image config instead.")] = False


def inspect_image(flags: InspectFlags) -> None:
    with context(flags) as here, here.store.in_use():
        wanted = Platform.parse(flags.platform) if flags.platform else None
        manifest, raw_config, name = inspect(parse_location(flags.image), wanted, here.tools.places)
        if flags.raw:
            sys.stdout.write(manifest.raw.decode(errors="replace"))
        elif flags.config:
            print_json(json.loads(raw_config))
        else:
            print_json(inspect_document(name, manifest, raw_config))


@dataclass(frozen=True, kw_only=True)
class RemoveFlags(JsonFlags):
    """`rm`."""

    images: Annotated[list[str], typer.Argument(help="Images of the store.")]


def remove_images(flags: RemoveFlags) -> None:
    with context(flags) as here, here.store.in_use():
        names = [_stored_name(image) for image in flags.images]
        for name in names:  # all or none
            if here.store.find(name) is None:
                raise ImageError(
                    f"image `{name}` is not in the store",
                    hint="`ocis2i images` lists what is there",
                )
        for name in names:
            here.store.remove(name)
            if not flags.as_json:
                print(name)
        if flags.as_json:
            print_json({"version": VERSION, "removed": [str(name) for name in names]})
