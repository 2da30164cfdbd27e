"""Getting images into the store: from other places, from registries, by pull policy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import partial

from ocis2i.archives import open_image
from ocis2i.blobs import ImageSource, VerifiedReader, read_document
from ocis2i.errors import ImageError, RegistryError, UsageError
from ocis2i.events import Report
from ocis2i.manifest import (
    OCI_MANIFEST,
    Descriptor,
    Encoded,
    Image,
    Index,
    Manifest,
    choose_platform,
    decode_image,
    encode_image,
    layer_type_as_oci,
)
from ocis2i.outputs import Delivered, deliver, parse_output
from ocis2i.reference import (
    Digest,
    Location,
    PathLocation,
    Platform,
    Reference,
    RegistryLocation,
    StoredLocation,
)
from ocis2i.registry import Registry
from ocis2i.store import Store
from ocis2i.transfer import RegistryImage, in_parallel, push_image


class PullPolicy(Enum):
    """When a registry is asked for an image that has a name in the store."""

    ALWAYS = "always"
    NEVER = "never"
    IF_NOT_PRESENT = "if-not-present"

    @classmethod
    def parse(cls, text: str) -> PullPolicy:
        """Raises `UsageError`."""
        try:
            return cls(text)
        except ValueError:
            known = ", ".join(policy.value for policy in cls)
            raise UsageError(f"invalid pull policy `{text}`", hint=f"there are {known}") from None


@dataclass(frozen=True, slots=True)
class Obtained:
    """An image whose blobs are in the store, or can be had from `origin`.

    `name` is what it is called in labels and messages; `reference` the place in a registry that
    its layers may be mounted from, `None` when it came from a file. `origin` is the repository
    that has the layers which the store lacks.
    """

    image: Image
    manifest: Manifest
    name: str
    reference: Reference | None
    origin: Reference | None = None


@dataclass(frozen=True, slots=True)
class Places:
    """Where images are looked for and kept."""

    store: Store
    registry: Registry
    report: Report
    jobs: int = 4


class Blobs:
    """The blobs of the store; layers that it lacks are fetched from `origin` when they are read."""

    def __init__(self, places: Places, origin: Reference | None) -> None:
        self._places = places
        self._origin = origin

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """Opens a blob; raises `ImageError` when it is nowhere."""
        if self._origin and not self._places.store.has_blob(descriptor):
            with _completing(self._origin):
                _fetch(descriptor, self._origin, self._places)
        return self._places.store.open_blob(descriptor)


@contextmanager
def blamed_on(reason: str) -> Iterator[None]:
    """Gives an image that cannot be had the word of S2I for which image it was."""
    try:
        yield
    except (ImageError, RegistryError) as error:
        if error.reason in (ImageError.default_reason, RegistryError.default_reason):
            error.reason = reason
        raise


def complete(found: Obtained, places: Places) -> None:
    """Fetches the layers that the store lacks."""
    if found.origin:
        with _completing(found.origin):
            _fetch_layers(found.manifest, found.origin, places)


@contextmanager
def _completing(origin: Reference) -> Iterator[None]:
    """Says why a registry was asked that nobody has named."""
    try:
        yield
    except RegistryError as error:
        error.message = f"layers of the image are only in `{origin}`: {error.message}"
        error.hint = error.hint or "make that registry reachable, or build the image again"
        raise


def obtain(
    location: Location,
    platform: Platform | None,
    policy: PullPolicy,
    places: Places,
    *,
    layers: bool = True,
) -> Obtained:
    """The image of `location` for `platform` (default: this host's), its blobs in the store.

    Without `layers` those of a registry stay there, until `complete` or `Blobs` need them. Raises
    `ImageError`, or `RegistryError` when a registry has to be asked and fails.
    """
    wanted = platform or Platform.of_host()
    match location:
        case PathLocation():
            return _from_path(location, wanted, places)
        case StoredLocation(digest):
            stored = from_store(digest, places.store)
            if layers:
                complete(stored, places)
            return stored
        case RegistryLocation(reference):
            name = reference.with_default_tag()
            if policy is not PullPolicy.ALWAYS:
                found = _from_store(name, wanted, places.store)
                if found:
                    if layers and found.origin and policy is PullPolicy.NEVER:
                        raise ImageError(
                            f"layers of `{name}` are only in `{found.origin}`, and the pull "
                            "policy is `never`",
                            hint=f"fetch them with: ocis2i pull {found.origin}",
                        )
                    if layers:
                        complete(found, places)
                    return found
            if policy is PullPolicy.NEVER:
                raise ImageError(
                    f"image `{name}` is not in the store, and the pull policy is `never`",
                    hint=f"fetch it with: ocis2i pull {name}",
                )
            return pull(name, wanted, places, layers=layers)


def pull(
    reference: Reference, platform: Platform, places: Places, *, layers: bool = True
) -> Obtained:
    """Fetches an image from its registry; blobs that the store has are not fetched again.

    Without `layers`, manifest and config alone; the store gets no entry for it then.
    """
    manifest = _one_manifest(RegistryImage(places.registry, reference), platform)
    _check_layer_types(manifest)
    store = places.store
    config = places.registry.read_blob(reference, manifest.config)
    image = decode_image(manifest, config)
    _check_platform(image, platform, str(reference))
    if not layers:
        return Obtained(image, manifest, str(reference), reference, reference)
    store.add_document(config, manifest.config)
    _fetch_layers(manifest, reference, places)
    store.put_manifest(manifest.raw, manifest.descriptor, str(reference))
    return Obtained(image, manifest, str(reference), reference)


def _fetch_layers(manifest: Manifest, origin: Reference, places: Places) -> None:
    missing = _distinct([layer for layer in manifest.layers if not places.store.has_blob(layer)])
    cancel = threading.Event()
    in_parallel([partial(_fetch, layer, origin, places) for layer in missing],
                places.jobs, cancel)  # fmt: skip


def _fetch(layer: Descriptor, reference: Reference, places: Places) -> None:
    places.store.add_blob(layer, partial(places.registry.fetch_blob, reference, layer))


def from_store(name: Reference | Digest, store: Store) -> Obtained:
    """An image that has to be in the store already; raises `ImageError`."""
    found = _from_store(name, None, store)
    if found is None:
        shown = name if isinstance(name, Digest) else name.with_default_tag()
        raise ImageError(
            f"image `{shown}` is not in the store",
            hint="`ocis2i images` lists what is there",
        )
    return found


def _from_store(
    name: Reference | Digest, platform: Platform | None, store: Store
) -> Obtained | None:
    manifest = store.find(name)
    if isinstance(manifest, Index):
        manifest = store.manifest(choose_platform(manifest, platform or Platform.of_host()))
    if not isinstance(manifest, Manifest):
        return None
    origin = None
    if not all(store.has_blob(blob) for blob in (manifest.config, *manifest.layers)):
        origin = store.origin(manifest.descriptor.digest)
        if origin is None or not store.has_blob(manifest.config):
            return None
    image = decode_image(manifest, read_document(store, manifest.config))
    if platform:
        _check_platform(image, platform, str(name))
    if isinstance(name, Digest):
        return Obtained(image, manifest, str(name), None, origin)
    return Obtained(image, manifest, str(name.with_default_tag()), name, origin)


def _from_path(location: PathLocation, platform: Platform, places: Places) -> Obtained:
    with open_image(location) as source:
        manifest = _one_manifest(source, platform)
        _check_layer_types(manifest)
        image = decode_image(manifest, read_document(source, manifest.config))
        _check_platform(image, platform, str(location))
        for blob in _distinct([manifest.config, *manifest.layers]):
            places.store.copy_blob(source, blob)
    return Obtained(image, manifest, str(location), None)


def _one_manifest(source: ImageSource, platform: Platform) -> Manifest:
    manifest = source.manifest()
    # An index may point at an index; deeper nesting is nobody's honest image.
    for _ in range(3):
        if isinstance(manifest, Manifest):
            return manifest
        manifest = source.child(choose_platform(manifest, platform))
    raise ImageError("the image is an index of indexes of indexes")


def _check_layer_types(manifest: Manifest) -> None:
    for layer in manifest.layers:
        layer_type_as_oci(layer.media_type)


def _check_platform(image: Image, wanted: Platform, name: str) -> None:
    has = image.config.platform
    if has.os and has.os != wanted.os:
        raise ImageError(f"image `{name}` is for `{has}`, not for `{wanted}`")
    if has.architecture and has.architecture != wanted.architecture:
        raise ImageError(
            f"image `{name}` is for `{has}`, not for `{wanted}`",
            hint="choose its platform with --platform; programs of another architecture "
            "need an emulator that the kernel knows (binfmt_misc)",
        )


def _distinct(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    return list({blob.digest: blob for blob in blobs}.values())


def inspect(
    location: Location, platform: Platform | None, places: Places
) -> tuple[Manifest, bytes, str]:
    """Manifest, config bytes and name of an image, without fetching any layer.

    A bare name or a digest is looked up in the store; `docker://NAME` asks the registry.
    """
    wanted = platform or Platform.of_host()
    name: Reference | Digest
    match location:
        case PathLocation():
            with open_image(location) as source:
                manifest = _one_manifest(source, wanted)
                return manifest, read_document(source, manifest.config), str(location)
        case RegistryLocation(reference, explicit=True):
            reference = reference.with_default_tag()
            manifest = _one_manifest(RegistryImage(places.registry, reference), wanted)
            return manifest, places.registry.read_blob(reference, manifest.config), str(reference)
        case RegistryLocation(reference):
            name = reference.with_default_tag()
        case StoredLocation(digest):
            name = digest
    found = from_store(name, places.store)
    return found.manifest, read_document(places.store, found.manifest.config), found.name


def push(found: Obtained, target: Location, places: Places) -> Delivered:
    """Sends an image of the store to a registry or writes it to a path; where it is now.

    Pushed are the manifest's own bytes. Raises `RegistryError` or `OutputError`.
    """
    encoded = Encoded(
        found.manifest.raw,
        read_document(places.store, found.manifest.config),
        found.manifest.descriptor,
        found.manifest.config,
    )
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
    if reference.digest and reference.digest != encoded.descriptor.digest:
        raise UsageError(
            f"`{found.name}` is `{encoded.descriptor.digest}` and cannot be pushed as `{reference}`"
        )
    mount_from = tuple(one for one in (found.reference, found.origin) if one)
    push_image(
        places.registry,
        reference,
        encoded,
        found.manifest.layers,
        Blobs(places, found.origin),
        mount_from=mount_from,
        jobs=places.jobs,
    )
    return Delivered(reference.name, encoded.descriptor.digest)
