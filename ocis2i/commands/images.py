"""The verbs for images of the store: pull, push, images, inspect, rm."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from ocis2i.commands.context import Context, context, digest_file
from ocis2i.commands.delivered import print_delivered
from ocis2i.commands.flags import (
    CredentialFlags,
    DigestFileFlags,
    JsonFlags,
    PlatformFlags,
    TalkFlags,
    TransferFlags,
    option,
)
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION, delivered_row, image_row, inspect_document
from ocis2i.errors import ImageError, UsageError
from ocis2i.images import (
    Layers,
    PullPolicy,
    from_store,
    inspect,
    obtain,
    pull_everything,
)
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import human_size
from ocis2i.manifest import Index
from ocis2i.outputs import Delivered
from ocis2i.publish import check_digest, push, send_all_tags, send_index
from ocis2i.reference import (
    Digest,
    PathLocation,
    Reference,
    RegistryLocation,
    StoredLocation,
    parse_location,
)
from ocis2i.report import table
from ocis2i.store import Store


@dataclass(frozen=True, kw_only=True)
class PullImageFlags(CredentialFlags, TransferFlags, PlatformFlags, TalkFlags, JsonFlags):
    """`pull`."""

    image: Annotated[str, typer.Argument(help="A name in a registry, or oci:, oci-archive:, ...")]
    all_platforms: Annotated[
        bool, option("--all-platforms", help="Fetch every image of an index.")
    ] = False


def pull_image(flags: PullImageFlags) -> None:
    if flags.all_platforms and flags.platform:
        raise UsageError(
            "--all-platforms and --platform exclude each other", hint="leave one of them out"
        )
    with context(flags) as here:
        location = parse_location(flags.image)
        if not isinstance(location, RegistryLocation):
            raise UsageError(
                f"`{flags.image}` is not in a registry",
                hint="builds read it from there; nothing has to be pulled",
            )
        places = here.tools.places
        with here.store.in_use():
            if flags.all_platforms:
                name, digest = pull_everything(location, places)
            else:
                found = obtain(
                    location,
                    flags.wanted_platform,
                    PullPolicy.ALWAYS,
                    places,
                    layers=Layers.BLOBS,
                )
                name = found.reference or location.reference
                digest = found.manifest.descriptor.digest
        print_delivered(Delivered(name.name, digest), as_json=flags.as_json)


@dataclass(frozen=True, kw_only=True)
class PushImageFlags(
    CredentialFlags, TransferFlags, PlatformFlags, DigestFileFlags, TalkFlags, JsonFlags
):
    """`push`."""

    image: Annotated[str, typer.Argument(help="An image of the store.")]
    destination: Annotated[
        str | None,
        typer.Argument(help="Another name, or oci:, oci-archive:, docker-archive:."),
    ] = None
    all_tags: Annotated[
        bool, option("--all-tags", help="Push all tags that the store has of a name.")
    ] = False
    platform: Annotated[
        str | None,
        option(
            "--platform",
            metavar="OS/ARCH[/VARIANT]",
            help="One image of an index. Default: the index with its images.",
        ),
    ] = None


def push_image(flags: PushImageFlags) -> None:
    if flags.all_tags:
        _push_all_tags(flags)
        return
    with context(flags) as here, here.store.in_use():
        file = digest_file(flags, here)
        place = _push(flags, here)
        if file:
            file.write(str(place.digest))
        print_delivered(place, as_json=flags.as_json)


def _push(flags: PushImageFlags, here: Context) -> Delivered:
    name = _stored_name(flags.image)
    target = parse_location(flags.destination or flags.image)
    places = here.tools.places
    index = here.store.find(name)
    # A file holds one image; to a registry goes what the name stands for.
    if isinstance(index, Index) and isinstance(target, RegistryLocation) and not flags.platform:
        reference = target.reference.with_default_tag()
        check_digest(reference, index.descriptor.digest, flags.image)
        send_index(index, [reference], places)
        return Delivered(reference.name, index.descriptor.digest)
    return push(from_store(name, here.store, flags.wanted_platform), target, places)


def _push_all_tags(flags: PushImageFlags) -> None:
    for flag, given in (("--platform", flags.platform), ("--digest-file", flags.digest_file)):
        if given:
            raise UsageError(
                f"--all-tags and {flag} exclude each other",
                hint="push the tags one by one, or leave it out",
            )
    if flags.destination:
        raise UsageError(
            f"--all-tags has no place for another name, and `{flags.destination}` is one",
            hint="write: ocis2i push --all-tags NAME",
        )
    location = parse_location(flags.image)
    if not isinstance(location, RegistryLocation):
        raise UsageError(
            f"`{flags.image}` is no name with tags", hint="write: ocis2i push --all-tags NAME"
        )
    with context(flags) as here, here.store.in_use():
        pushed = send_all_tags(location.reference, here.tools.places)
    if not flags.as_json:
        for place in pushed:
            print(f"{place.where}@{place.digest}")
        return
    rows = [delivered_row(one) for one in pushed]
    print_json({"version": VERSION, "state": "succeeded", "pushed": rows})


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
        heads = ("NAME", "DIGEST", "PLATFORM", "CREATED", "SIZE")
        lines = [
            (
                row["name"] or "<none>",
                row["digest"] if not row["name"] else row["digest"][:19],
                _platforms(row),
                row["created"] or "",
                human_size(row["size"]),
            )
            for row in rows
        ]
        print(table(lines, heads))


def _platforms(row: Mapping[str, Any]) -> str:
    """Of an index the platforms whose images are here, and how many it has."""
    if row["index"] is None:
        return row["platform"] or ""
    platforms = [one["platform"] for one in row["index"] if one["in_store"] and one["platform"]]
    return f"{','.join(platforms)} ({len(platforms)} of {len(row['index'])})".strip()


@dataclass(frozen=True, kw_only=True)
class InspectFlags(CredentialFlags, PlatformFlags, JsonFlags):
    """`inspect`."""

    image: Annotated[
        str, typer.Argument(help="An image of the store, docker://NAME, oci:, oci-archive:, ...")
    ]
    raw: Annotated[bool, option("--raw", help="Print the manifest's own bytes.")] = False
    config: Annotated[bool, option("--config", help="Print the image config instead.")] = False


def inspect_image(flags: InspectFlags) -> None:
    if flags.raw and flags.config:
        raise UsageError(
            "--raw and --config exclude each other",
            hint="--raw prints the manifest as it is, --config the image config",
        )
    with context(flags) as here, here.store.in_use():
        wanted = flags.wanted_platform
        seen = inspect(parse_location(flags.image), wanted, here.tools.places)
        shown = seen.manifest if wanted else seen.index or seen.manifest
        if flags.raw and shown:
            sys.stdout.write(shown.raw.decode(errors="replace"))
        elif flags.config:
            if seen.manifest is None:
                raise ImageError(
                    f"`{seen.name}` is an index, and has no image for this host here",
                    hint="choose one with --platform",
                )
            print_json(json.loads(seen.config))
        else:
            print_json(inspect_document(seen, here.store))


@dataclass(frozen=True, kw_only=True)
class RemoveFlags(JsonFlags):
    """`rm`."""

    images: Annotated[list[str], typer.Argument(help="Images of the store.")]


def remove_images(flags: RemoveFlags) -> None:
    with context(flags) as here, here.store.in_use():
        names = [_stored_name(image) for image in flags.images]
        for name in names:  # all or none
            if not here.store.entries(name):
                raise _no_entry(name, here.store)
        for name in names:
            here.store.remove(name)
            if not flags.as_json:
                print(name)
        if flags.as_json:
            print_json({"version": VERSION, "removed": [str(name) for name in names]})


def _no_entry(name: Reference | Digest, store: Store) -> ImageError:
    if store.find(name) is not None:
        return ImageError(
            f"`{name}` is an image of an index, and has no name of its own",
            hint="take out the index, which `ocis2i images` lists",
        )
    return ImageError(
        f"image `{name}` is not in the store", hint="`ocis2i images` lists what is there"
    )
