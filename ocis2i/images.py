"""Getting images into the store: from other places, from registries, by pull policy."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import field, replace
from enum import Enum
from functools import partial

from ocis2i.archives import open_image
from ocis2i.blob_stream import BlobStream
from ocis2i.blobs import ImageSource, VerifiedReader, read_document
from ocis2i.errors import ImageError, RegistryError, UsageError
from ocis2i.events import Report
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import (
    Descriptor,
    Image,
    Index,
    Manifest,
    choose_platform,
    decode_image,
    layer_type_as_oci,
)
from ocis2i.policy import Policy
from ocis2i.reference import (
    Digest,
    Location,
    PathLocation,
    Platform,
    Reference,
    RegistryLocation,
    StoredLocation,
)
from ocis2i.registries import Registries
from ocis2i.registry import Registry
from ocis2i.store import Store
from ocis2i.transfer import SMALL_BYTES, RegistryImage, in_parallel, is_foreign, waiting_threads


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


class Layers(Enum):
    """What is wanted of an image's layers.

    `ELSEWHERE`: nothing, they stay where they are, and the store gets no entry for the image.
    `UNPACKED`: what `unpack_layers` makes of them; as blobs they are not kept. `BLOBS`: they are
    fetched into the store.
    """

    ELSEWHERE = "elsewhere"
    UNPACKED = "unpacked"
    BLOBS = "blobs"


@dataclass(frozen=True, slots=True)
class Obtained:
    """An image whose blobs are in the store, or can be had from `origin`.

    `name` is what it is called in labels and messages; `reference` the place in a registry that
    its layers may be mounted from, `None` when it came from a file. `origin` is the repository
    that has the layers which the store lacks; `offline`: nobody wants it to be asked for them.
    """

    image: Image
    manifest: Manifest
    name: str
    reference: Reference | None
    origin: Reference | None = None
    offline: bool = False


@dataclass(frozen=True, slots=True)
class Places:
    """Where images are looked for and kept."""

    store: Store
    registry: Registry
    report: Report
    jobs: int = 4
    registries: Registries = field(default_factory=Registries)
    policy: Policy = field(default_factory=Policy)


class Blobs:
    """The blobs of the store; layers that it lacks are fetched from `origin` when they are read."""

    def __init__(self, places: Places, origin: Reference | None) -> None:
        self._places = places
        self._origin = origin

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """Opens a blob; raises `ImageError` when it is nowhere."""
        if self._origin is None or self._places.store.has_blob(descriptor):
            return self._places.store.open_blob(descriptor)
        self._places.policy.check_registry(self._origin)
        with completing(self._origin):
            return self._from_origin(descriptor, self._origin)

    def _from_origin(self, descriptor: Descriptor, origin: Reference) -> VerifiedReader:
        fetch_layer(descriptor, origin, self._places)
        return self._places.store.open_blob(descriptor)


class PassingBlobs(Blobs):
    """The same for a copy to another registry: what the store lacks does not come into it."""

    def _from_origin(self, descriptor: Descriptor, origin: Reference) -> VerifiedReader:
        return _Passing(self._places.registry, origin, descriptor)


class _Passing(BlobStream):
    def __init__(self, registry: Registry, origin: Reference, descriptor: Descriptor) -> None:
        super().__init__(registry, origin, descriptor)
        self._origin = origin

    def read(self, size: int = -1, /) -> bytes:
        with completing(self._origin):
            return super().read(size)


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
    if origin := origin_of(found):
        places.policy.check_registry(origin)
        with explaining(found):
            _fetch_layers(found.manifest, origin, places)


def origin_of(found: Obtained) -> Reference | None:
    """Where layers that the store lacks are; raises `ImageError` when nobody may be asked."""
    if found.origin and found.offline:
        raise ImageError(
            f"layers of `{found.name}` are only in `{found.origin}`, "
            "and the pull policy is `never`",
            hint=f"fetch them with: ocis2i pull {found.origin}",
        )
    return found.origin


@contextmanager
def completing(origin: Reference) -> Iterator[None]:
    """Says why a registry was asked that nobody has named."""
    try:
        yield
    except RegistryError as error:
        error.message = f"layers of the image are only in `{origin}`: {error.message}"
        error.hint = error.hint or "make that registry reachable, or build the image again"
        raise


def explaining(found: Obtained) -> AbstractContextManager[None]:
    """`completing`, unless the image's own name says where its layers are."""
    if found.origin is None or found.origin == found.reference:
        return nullcontext()
    return completing(found.origin)


def obtain(
    location: Location,
    platform: Platform | None,
    policy: PullPolicy,
    places: Places,
    *,
    layers: Layers = Layers.UNPACKED,
) -> Obtained:
    """The image of `location` for `platform` (default: this host's).

    Its `layers` may stay in a registry until they are needed. Raises `ImageError`, or
    `RegistryError` when a registry has to be asked and fails.
    """
    wanted = platform or Platform.of_host()
    match location:
        case PathLocation():
            return _from_path(location, wanted, places)
        case StoredLocation(digest):
            stored = from_store(digest, places.store, platform)
            if layers is Layers.BLOBS:
                complete(stored, places)
            return stored
        case RegistryLocation():
            known = _known(location, wanted, policy, places, layers=layers)
            return known or pull(meant(location, places), wanted, places, layers=layers)


def _known(
    location: RegistryLocation,
    wanted: Platform,
    policy: PullPolicy,
    places: Places,
    *,
    layers: Layers,
) -> Obtained | None:
    """The image as the store has it; `None` when its registry is to be asked."""
    if policy is PullPolicy.ALWAYS:
        return None
    name = location.reference.with_default_tag()
    found = _from_store(name, wanted, places.store)
    if found is None:
        name = meant(location, places)
        found = _from_store(name, wanted, places.store)
    if found is None:
        if policy is PullPolicy.NEVER:
            absent = _absent(name, wanted, places.store)
            raise ImageError(
                f"{absent.message}, and the pull policy is `never`", hint=_fetch_hint(name, wanted)
            )
        return None
    if policy is PullPolicy.NEVER:
        found = replace(found, offline=True)
    if layers is Layers.BLOBS:
        complete(found, places)
    return found


def meant(location: RegistryLocation, places: Places) -> Reference:
    """The name in a registry: what the user's registries.conf says of one that was short."""
    name = location.reference.with_default_tag()
    if location.short is None:
        return name
    return places.registries.resolve(location.short, name) or name


def pull(
    reference: Reference,
    platform: Platform,
    places: Places,
    *,
    layers: Layers = Layers.BLOBS,
) -> Obtained:
    """Fetches an image from its registry, as far as its `layers` are wanted now.

    Where the name stands for an index, the store keeps that, with the image for `platform`. Blobs
    that the store has are not fetched again.
    """
    places.policy.check_registry(reference)
    manifest, indexes = _choose(RegistryImage(places.registry, reference), platform)
    _check_layer_types(manifest)
    store = places.store
    config = places.registry.read_blob(reference, manifest.config)
    image = decode_image(manifest, config)
    _check_platform(image, platform, str(reference))
    found = Obtained(image, manifest, str(reference), reference, reference)
    if layers is Layers.ELSEWHERE:
        return found
    store.add_document(config, manifest.config)
    if layers is Layers.BLOBS:
        complete(found, places)
    documents: tuple[Manifest | Index, ...] = (*indexes, manifest)
    for document in documents:
        store.add_document(document.raw, document.descriptor)
    named = documents[0]
    store.put_manifest(named.raw, named.descriptor, str(reference), reference)
    return replace(found, origin=None) if layers is Layers.BLOBS else found


def pull_everything(location: RegistryLocation, places: Places) -> tuple[Reference, Digest]:
    """Fetches an index from its registry with all its images; its name and digest.

    An image that is no part of an index is fetched whatever its platform is.
    """
    reference = meant(location, places)
    places.policy.check_registry(reference)
    source = RegistryImage(places.registry, reference)
    found = source.manifest()
    keep(found, source, places, reference)
    places.store.put_manifest(found.raw, found.descriptor, str(reference))
    return reference, found.descriptor.digest


def keep(
    found: Manifest | Index,
    source: ImageSource,
    places: Places,
    origin: Reference | None,
    depth: int = 0,
) -> None:
    """Puts a manifest or an index of `source` into the store, with all that it refers to.

    Layers come from the repository `origin`, where there is one.
    """
    if isinstance(found, Manifest):
        config = read_document(source, found.config)
        places.store.add_document(config, found.config)
        if origin:
            _fetch_layers(found, origin, places)
    elif depth == DEEPEST:
        raise ImageError(TOO_DEEP)
    else:
        for child in children(found):
            keep(source.child(child), source, places, origin, depth + 1)
    places.store.add_document(found.raw, found.descriptor)


def children(index: Index) -> list[Descriptor]:
    """What an index has, each once; raises `ImageError` for more than anybody honest puts there."""
    distinct = _distinct(index.manifests)
    if len(distinct) > WIDEST:
        raise ImageError(
            f"the index has {len(distinct)} images, {WIDEST} are the most",
            hint="choose one of its images by its digest",
        )
    return distinct


def _fetch_layers(manifest: Manifest, origin: Reference, places: Places) -> None:
    missing = _distinct(
        [
            layer
            for layer in manifest.layers
            if not places.store.has_blob(layer) and not is_foreign(layer)
        ]
    )
    cancel = threading.Event()
    turns = threading.Semaphore(places.jobs)

    def fetch(layer: Descriptor) -> None:
        with turns if layer.size > SMALL_BYTES else nullcontext():
            fetch_layer(layer, origin, places, cancel)

    actions = [partial(fetch, layer) for layer in missing]
    in_parallel(actions, waiting_threads(places.jobs), cancel)


def fetch_layer(
    layer: Descriptor,
    reference: Reference,
    places: Places,
    cancel: threading.Event | None = None,
) -> None:
    """Fetches a layer into the store, as a blob."""
    fetch = partial(places.registry.fetch_blob, reference, layer, resume=True, cancel=cancel)
    places.store.fetch_blob(layer, fetch)
    places.store.whereabouts.note(layer.digest, reference)


def from_store(
    name: Reference | Digest, store: Store, platform: Platform | None = None
) -> Obtained:
    """An image that has to be in the store already; raises `ImageError`."""
    found = _from_store(name, platform, store)
    if found is None:
        raise _absent(name, platform or Platform.of_host(), store)
    return found


def _absent(name: Reference | Digest, platform: Platform, store: Store) -> ImageError:
    """What to say of an image that is not in the store, or whose index is there alone."""
    shown = name if isinstance(name, Digest) else name.with_default_tag()
    if isinstance(store.find(name), Index):
        entry = next(iter(store.entries(name)), None)
        known = entry.name if entry and entry.name else shown
        return ImageError(
            f"the image of `{shown}` for `{platform}` is not in the store",
            hint=_fetch_hint(known, platform),
        )
    return ImageError(
        f"image `{shown}` is not in the store", hint="`ocis2i images` lists what is there"
    )


def _fetch_hint(name: object, platform: Platform) -> str:
    flag = "" if platform == Platform.of_host() else f"--platform {platform} "
    return f"fetch it with: ocis2i pull {flag}{name}"


def _from_store(
    name: Reference | Digest, platform: Platform | None, store: Store
) -> Obtained | None:
    manifest = _stored_manifest(name, platform or Platform.of_host(), store)
    if manifest is None:
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


def _stored_manifest(name: Reference | Digest, platform: Platform, store: Store) -> Manifest | None:
    """The manifest that a name stands for; of an index, that for `platform`, if it is there."""
    found = store.find(name)
    for _ in range(DEEPEST):
        if not isinstance(found, Index):
            break
        child = choose_platform(found, platform)
        found = store.manifest(child) if store.has_blob(child) else None
    return found if isinstance(found, Manifest) else None


def _from_path(location: PathLocation, platform: Platform, places: Places) -> Obtained:
    places.policy.check_path(location)
    with open_image(location) as source:
        manifest = _one_manifest(source, platform)
        _check_layer_types(manifest)
        image = decode_image(manifest, read_document(source, manifest.config))
        _check_platform(image, platform, str(location))
        for blob in _distinct([manifest.config, *manifest.layers]):
            places.store.copy_blob(source, blob)
    return Obtained(image, manifest, str(location), None)


# An index may point at an index; deeper nesting is nobody's honest image.
DEEPEST = 3
WIDEST = 1000
TOO_DEEP = "the image is an index of indexes of indexes"


def _one_manifest(source: ImageSource, platform: Platform) -> Manifest:
    return _choose(source, platform)[0]


def _choose(source: ImageSource, platform: Platform) -> tuple[Manifest, tuple[Index, ...]]:
    """The manifest for `platform`, and the indexes above it, the highest first."""
    found = source.manifest()
    above: list[Index] = []
    for _ in range(DEEPEST):
        if isinstance(found, Manifest):
            return found, tuple(above)
        above.append(found)
        found = source.child(choose_platform(found, platform))
    raise ImageError(TOO_DEEP)


def _check_layer_types(manifest: Manifest) -> None:
    for layer in manifest.layers:
        layer_type_as_oci(layer.media_type)


def _check_platform(image: Image, wanted: Platform, name: str) -> None:
    has = image.config.platform
    if has.os and has.os != wanted.os:
        raise ImageError(
            f"image `{name}` is for `{has}`, not for `{wanted}`",
            hint="choose with --platform, or pull the image of this platform",
        )
    if has.architecture and has.architecture != wanted.architecture:
        raise ImageError(
            f"image `{name}` is for `{has}`, not for `{wanted}`",
            hint="choose its platform with --platform; programs of another architecture "
            "need an emulator that the kernel knows (binfmt_misc)",
        )


def _distinct(blobs: Sequence[Descriptor]) -> list[Descriptor]:
    return list({blob.digest: blob for blob in blobs}.values())


@dataclass(frozen=True, slots=True)
class Inspected:
    """What is known of an image without its layers.

    `index` is what the name stands for, where that is an index. It may have no image for the
    platform: then `manifest` is `None`, and `config` empty.
    """

    name: str
    manifest: Manifest | None
    config: bytes
    index: Index | None


class StoredSource:
    """What is in the store under a name or a digest, as a source for reading."""

    def __init__(self, name: Reference | Digest, store: Store) -> None:
        self._name = name
        self._store = store

    def manifest(self) -> Manifest | Index:
        """What the name stands for; raises `ImageError`."""
        found = self._store.find(self._name)
        if found is None:
            raise _absent(self._name, Platform.of_host(), self._store)
        return found

    def child(self, descriptor: Descriptor) -> Manifest | Index:
        """A manifest of the index."""
        return self._store.manifest(descriptor)

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """The blob's bytes."""
        return self._store.open_blob(descriptor)


def inspect(location: Location, platform: Platform | None, places: Places) -> Inspected:
    """What an image is, without fetching any layer; default platform: this host's, if it has one.

    A bare name or a digest is looked up in the store; `docker://NAME` asks the registry.
    """
    match location:
        case PathLocation():
            with open_image(location) as source:
                return _inspected(str(location), source, platform)
        case RegistryLocation(reference, explicit=True):
            reference = reference.with_default_tag()
            registry_image = RegistryImage(places.registry, reference)
            return _inspected(str(reference), registry_image, platform)
        case RegistryLocation(reference):
            reference = reference.with_default_tag()
            return _inspected(str(reference), StoredSource(reference, places.store), platform)
        case StoredLocation(digest):
            return _inspected(str(digest), StoredSource(digest, places.store), platform)


def _inspected(name: str, source: ImageSource, platform: Platform | None) -> Inspected:
    top = source.manifest()
    index = top if isinstance(top, Index) else None
    try:
        manifest = _one_manifest(source, platform or Platform.of_host())
    except ImageError:
        if platform or index is None:
            raise
        return Inspected(name, None, b"", index)
    return Inspected(name, manifest, read_document(source, manifest.config), index)
