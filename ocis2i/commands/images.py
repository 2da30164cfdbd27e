"""The verbs for images of the store: pull, push, images, inspect, rm, prune, run."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Annotated

import typer

from ocis2i.commands.context import context, print_json
from ocis2i.commands.flags import (
    ContainerFlags,
    JsonFlags,
    LimitFlags,
    PlatformFlags,
    PullFlags,
    RegistryFlags,
    TalkFlags,
    option,
)
from ocis2i.documents import image_row, inspect_document
from ocis2i.errors import ImageError, UsageError
from ocis2i.images import PullPolicy, from_store, inspect, obtain, push
from ocis2i.launch import LaunchSpec, launch
from ocis2i.outputs import Delivered
from ocis2i.prune import prune
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
from ocis2i.runner import Stdio
from ocis2i.s2i import absolute_flag, parse_variable
from ocis2i.volumes import parse_volume


@dataclass(frozen=True, kw_only=True)
class PullImageFlags(RegistryFlags, PlatformFlags, TalkFlags, JsonFlags):
    """`pull`."""

    image: Annotated[str, typer.Argument(help="A name in a registry, or oci:, oci-archive:, ...")]


def pull_image(flags: PullImageFlags) -> None:
    """Fetch an image from its registry into the store."""
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
    """Send an image of the store to a registry, or write it to a path."""
    with context(flags) as here, here.store.in_use():
        found = from_store(_stored_name(flags.image), here.store)
        target = parse_location(flags.destination or flags.image)
        _print_place(push(found, target, here.tools.places), as_json=flags.as_json)


def _print_place(place: Delivered, *, as_json: bool) -> None:
    reference = f"{place.where}@{place.digest}"
    if as_json:
        print_json(
            {
                "version": 1,
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
    """List the images of the store."""
    with context(flags) as here, here.store.in_use():
        rows = [image_row(image, here.store) for image in here.store.images()]
        if flags.as_json:
            print_json({"version": 1, "images": rows})
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
    """Show what an image is, as JSON."""
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
    """Take images out of the store; `prune` frees their space."""
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
            print_json({"version": 1, "removed": [str(name) for name in names]})


@dataclass(frozen=True, kw_only=True)
class PruneFlags(JsonFlags):
    """`prune`."""

    everything: Annotated[
        bool, option("--all", help="Remove all images first: empties the store.")
    ] = False


def prune_store(flags: PruneFlags) -> None:
    """Remove what nothing refers to: dead builds, blobs and layers out of use."""
    with context(flags) as here:
        done = prune(here.store, here.tools.settings, everything=flags.everything)
        if done.busy:
            here.recorder.warn(
                "the store is in use: only dead builds were removed; try again later"
            )
        if flags.as_json:
            print_json(
                {
                    "version": 1,
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


@dataclass(frozen=True, kw_only=True)
class RunFlags(LimitFlags, ContainerFlags, PullFlags):
    """`run`."""

    image: Annotated[str, typer.Argument(help="An image of the store, or oci:, oci-archive:, ...")]
    command: Annotated[
        list[str] | None, typer.Argument(help="What to run instead of the image's Cmd.")
    ] = None
    user: Annotated[str | None, option("--user", "-u", help="Who runs it.")] = None
    workdir: Annotated[
        str | None, option("--workdir", "-w", metavar="DIR", help="Where to run it.")
    ] = None
    entrypoint: Annotated[
        str | None, option("--entrypoint", help="Instead of the image's Entrypoint.")
    ] = None
    log_level: Annotated[
        int, option("--loglevel", min=0, max=5, help="0 to 5: how much to tell on stderr.")
    ] = 0

    @property
    def quiet(self) -> bool:
        """The image's own output is what the user wants to see."""
        return True


def run_image(flags: RunFlags) -> None:
    """Run an image rootless in the foreground; its exit code is ours. What it writes is lost."""
    with context(flags) as here:
        spec = LaunchSpec(
            command=tuple(flags.command or ()),
            entrypoint=flags.entrypoint,
            environment=dict(map(parse_variable, flags.env or ())),
            mounts=tuple(map(parse_volume, flags.volume or ())),
            user=flags.user,
            working_dir=absolute_flag(flags.workdir, "--workdir"),
            isolation=flags.isolation,
            limits=flags.limits,
            hardening=flags.hardening,
        )
        tools = here.tools
        with here.store.in_use():
            policy = PullPolicy.parse(flags.pull_policy)
            found = obtain(parse_location(flags.image), None, policy, tools.places)
            result = launch(found, spec, here.store, tools.settings, here.recorder, stdio=Stdio())
    raise typer.Exit(result.exit_code)
