"""Sends what the store has to where others get it: an image, by many names, or an index."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ocis2i.blobs import BlobSource, read_document
from ocis2i.errors import ImageError, UsageError
from ocis2i.images import DEEPEST, Blobs, Obtained, PassingBlobs, Places
from ocis2i.indexes import platform_words
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import OCI_MANIFEST, Descriptor, Encoded, Index, Manifest, encode_image
from ocis2i.outputs import Delivered, deliver, parse_output
from ocis2i.reference import Digest, Location, PathLocation, Reference, StoredLocation
from ocis2i.store import Store
from ocis2i.transfer import is_foreign, push_image


@dataclass(frozen=True, slots=True)
class Sendable:
    """An image as bytes, and where its layers are, here and in registries."""

    encoded: Encoded
    layers: Sequence[Descriptor]
    blobs: BlobSource
    mount_from: tuple[Reference, ...]
    # Of its manifest and blobs, what nobody else can have: no registry is asked for it.
    new: frozenset[Digest] = frozenset()

    @classmethod
    def of(
        cls,
        encoded: Encoded,
        layers: Sequence[Descriptor],
        places: Places,
        *,
        known: Reference | None,
        origin: Reference | None,
    ) -> Sendable:
        """Layers may be mounted from `known` and `origin`; the latter has what the store lacks."""
        mount_from = tuple(one for one in (known, origin) if one)
        return cls(encoded, layers, PassingBlobs(places, origin), mount_from)


def push(found: Obtained, target: Location, places: Places) -> Delivered:
    """Sends an image of the store to a registry or writes it to a path; where it is now.

    Pushed are the manifest's own bytes. Raises `RegistryError` or `OutputError`.
    """
    encoded = Encoded.of(found.manifest, read_document(places.store, found.manifest.config))
    if isinstance(target, PathLocation):
        if found.manifest.descriptor.media_type != OCI_MANIFEST:
            encoded = encode_image(found.image)
        output = parse_output(str(target))
        blobs = Blobs(places, found.origin)
        return deliver(output, found.image, encoded, blobs, name=found.reference)
    if isinstance(target, StoredLocation):
        raise UsageError(
            f"`{found.name}` needs a name to be pushed to", hint="give it as second argument"
        )
    reference = target.reference.with_default_tag()
    check_digest(reference, encoded.descriptor.digest, found.name)
    image = Sendable.of(
        encoded, found.manifest.layers, places, known=found.reference, origin=found.origin
    )
    send(image, [reference], places)
    return Delivered(reference.name, encoded.descriptor.digest)


def check_digest(target: Reference, digest: Digest, name: str) -> None:
    """Raises `UsageError` when what has `digest` cannot be pushed to `target`."""
    if target.digest and target.digest != digest:
        raise UsageError(
            f"`{name}` is `{digest}` and cannot be pushed as `{target}`",
            hint="leave the digest out of the name: push NAME NAME:TAG",
        )


def send(image: Sendable, names: Sequence[Reference], places: Places) -> None:
    """Pushes one image by all `names`; its blobs go once to each repository.

    Raises `RegistryError`.
    """
    registry = places.registry
    for number, name in enumerate(names):
        before = names[:number]
        if name.name in {one.name for one in before}:
            # All that it refers to is there.
            made = image.encoded.descriptor.digest
            if made in image.new or registry.head_manifest(name, for_push=True) != made:
                kind = image.encoded.descriptor.media_type
                registry.put_manifest(name, image.encoded.manifest, kind)
            continue
        push_image(
            registry,
            name,
            image.encoded,
            image.layers,
            image.blobs,
            mount_from=(*before, *image.mount_from),
            whereabouts=places.store.whereabouts,
            jobs=places.jobs,
            # Another repository may mount them from the first one.
            new=frozenset() if before else image.new,
        )


# --- an index -----------------------------------------------------------------------------------


def send_index(index: Index, names: Sequence[Reference], places: Places) -> None:
    """Pushes an index of the store by all `names`, and first the images that it refers to.

    Nothing is sent where the tag has this very index already. Raises `ImageError` when images of
    it are not in the store and not in the repository either.
    """
    registry = places.registry
    for name in names:
        if registry.head_manifest(name, for_push=True) == index.descriptor.digest:
            continue
        for child in _wanted(index, name, places):
            pinned = replace(name, tag=None, digest=child.descriptor.digest)
            if isinstance(child, Index):
                registry.put_manifest(pinned, child.raw, child.descriptor.media_type)
            else:
                send(_sendable(child, name, places), [pinned], places)
        registry.put_manifest(name, index.raw, index.descriptor.media_type)


def _wanted(index: Index, name: Reference, places: Places) -> list[Manifest | Index]:
    """What has to be pushed before an index, the deepest first."""
    missing: list[Descriptor] = []
    found = list(_children(index, places.store, missing))
    absent = [one for one in missing if not _is_there(one, name, places)]
    if absent:
        raise ImageError(
            f"the index for `{name}` has images that are not in the store: "
            f"{platform_words(absent)}",
            hint="fetch all with `ocis2i pull --all-platforms NAME`, "
            "or push the image of one platform with --platform",
        )
    return found


def _children(
    index: Index, store: Store, missing: list[Descriptor], depth: int = 1
) -> Iterator[Manifest | Index]:
    for entry in index.manifests:
        child = store.manifest(entry) if store.has_blob(entry) else None
        if isinstance(child, Index):
            if depth < DEEPEST:
                yield from _children(child, store, missing, depth + 1)
            yield child
        elif child is None or not _is_whole(child, store):
            missing.append(entry)
        else:
            yield child


def _is_whole(manifest: Manifest, store: Store) -> bool:
    """Whether all of an image is here, or its layers can be had."""
    layers = [layer for layer in manifest.layers if not is_foreign(layer)]
    known = store.origin(manifest.descriptor.digest) is not None
    return store.has_blob(manifest.config) and (known or all(map(store.has_blob, layers)))


def _is_there(entry: Descriptor, name: Reference, places: Places) -> bool:
    pinned = replace(name, tag=None, digest=entry.digest)
    return places.registry.head_manifest(pinned, for_push=True) == entry.digest


def _sendable(
    manifest: Manifest,
    name: Reference,
    places: Places,
) -> Sendable:
    store = places.store
    encoded = Encoded.of(manifest, read_document(store, manifest.config))
    origin = store.origin(manifest.descriptor.digest)
    return Sendable.of(encoded, manifest.layers, places, known=name, origin=origin)


# --- all tags of a name -------------------------------------------------------------------------


def send_all_tags(repository: Reference, places: Places) -> list[Delivered]:
    """Pushes every image of the store that has a tag of this name; where they are now.

    Raises `UsageError` for a name with a tag, and `ImageError` when there is none.
    """
    if repository.tag or repository.digest:
        raise UsageError(
            f"`{repository}` names one image, and --all-tags means all",
            hint=f"write: ocis2i push --all-tags {repository.name}",
        )
    tagged: dict[Digest, list[Reference]] = {}
    for image in places.store.images():
        # Of names like this alone: other tools may have put some that we would refuse.
        name, colon, tag = image.name.rpartition(":")
        if colon and name == repository.name:
            tagged.setdefault(image.descriptor.digest, []).append(replace(repository, tag=tag))
    if not tagged:
        raise ImageError(
            f"the store has no tag of `{repository.name}`",
            hint="`ocis2i images` lists what is there",
        )
    delivered = []
    for digest, names in tagged.items():
        found = places.store.find(digest)
        if isinstance(found, Index):
            send_index(found, names, places)
        elif found is not None:
            send(_sendable(found, names[0], places), names, places)
        delivered += [Delivered(f"{one.name}:{one.tag}", digest) for one in names]
    return delivered
