"""Makes an index of images that are in registries or in the store, and keeps or pushes it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from ocis2i.blobs import ImageSource, read_document
from ocis2i.errors import ImageError, UsageError
from ocis2i.images import (
    DEEPEST,
    TOO_DEEP,
    Places,
    StoredSource,
    children,
    keep,
    meant,
)
from ocis2i.indexes import Member, check_platforms, encode_index, member_of
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Descriptor, Index, Manifest
from ocis2i.publish import Sendable, send
from ocis2i.reference import (
    Digest,
    Location,
    PathLocation,
    Reference,
    RegistryLocation,
    StoredLocation,
)
from ocis2i.transfer import RegistryImage


@dataclass(frozen=True, slots=True)
class Found:
    """An image to be joined, where it is read, and the repository that has its layers."""

    member: Member
    source: ImageSource
    origin: Reference | None


def join(
    locations: Sequence[Location],
    target: Reference,
    places: Places,
    *,
    annotations: Mapping[str, str],
    push: bool,
) -> Index:
    """Makes an index of images and names it `target`: in its registry to `push`, else in the store.

    An index among them counts as the images in it. What the target's place lacks of the images goes
    there first. Raises `UsageError` for two images of one platform, `ImageError`, `RegistryError`.
    """
    if target.digest:
        raise UsageError(
            f"the index cannot be named `{target}`: its digest is not known yet",
            hint="leave out the part from `@` on",
        )
    found = [one for location in locations for one in _find(location, places)]
    check_platforms([one.member for one in found])
    index = encode_index([one.member.entry for one in found], annotations)
    for one in found:
        if push:
            _copy(one, target, places)
        else:
            keep(one.member.manifest, one.source, places, one.origin)
    if push:
        places.registry.put_manifest(target, index.raw, index.descriptor.media_type)
    else:
        places.store.put_manifest(index.raw, index.descriptor, str(target))
    return index


def _copy(found: Found, target: Reference, places: Places) -> None:
    member = found.member
    pinned = replace(target, tag=None, digest=member.manifest.descriptor.digest)
    image = Sendable.of(
        member.encoded, member.manifest.layers, places, known=None, origin=found.origin
    )
    send(image, [pinned], places)


# --- what is to be joined -----------------------------------------------------------------------


def _find(location: Location, places: Places) -> Iterator[Found]:
    """The images that one argument stands for."""
    source, origin, name = _source(location, places)
    for manifest, entry in _manifests(source.manifest(), None, source):
        shown = f"{name} ({entry.platform or entry.digest})" if entry else name
        config = read_document(source, manifest.config)
        yield Found(member_of(manifest, config, shown, entry), source, origin)


def _source(location: Location, places: Places) -> tuple[ImageSource, Reference | None, str]:
    known: Reference | Digest
    match location:
        case PathLocation():
            raise UsageError(
                f"`{location}` is neither in a registry nor in the store",
                hint="push the image first, and give its name with the digest",
            )
        case StoredLocation(digest):
            known = digest
        case RegistryLocation(reference, explicit=explicit):
            known = reference.with_default_tag()
            if explicit or places.store.find(known) is None:
                there = meant(location, places)
                places.policy.check_registry(there)
                return RegistryImage(places.registry, there), there, str(there)
    source = StoredSource(known, places.store)
    return source, places.store.origin(source.manifest().descriptor.digest), str(known)


def _manifests(
    found: Manifest | Index, entry: Descriptor | None, source: ImageSource, depth: int = 0
) -> Iterator[tuple[Manifest, Descriptor | None]]:
    """An image, or all of an index, each with what the index says of it."""
    if isinstance(found, Manifest):
        yield found, entry
        return
    if depth == DEEPEST:
        raise ImageError(TOO_DEEP)
    for child in children(found):
        yield from _manifests(source.child(child), child, source, depth + 1)
