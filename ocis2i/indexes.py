"""An index made of the images of several platforms (image-spec, image-index.md). Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from ocis2i.errors import ImageError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import (
    DOCKER_CONFIG,
    OCI_CONFIG,
    OCI_INDEX,
    Descriptor,
    Encoded,
    Index,
    Json,
    Manifest,
    encode_descriptor,
    encode_json,
    parse_json,
    same_platform,
)
from ocis2i.reference import Digest, Platform

# What attestations have for a platform: several of them may stand in one index.
_NO_PLATFORM = "unknown"
_FIELDS = ("os", "architecture", "variant", "os.version", "os.features")


@dataclass(frozen=True, slots=True)
class Member:
    """An image that goes into an index: its descriptor there, its bytes, and who named it."""

    entry: Descriptor
    manifest: Manifest
    config: bytes
    name: str

    @property
    def encoded(self) -> Encoded:
        """The image as bytes."""
        return Encoded.of(self.manifest, self.config)


def member_of(
    manifest: Manifest, config: bytes, name: str, entry: Descriptor | None = None
) -> Member:
    """An image as it will stand in an index; `entry` is how it stood in another one.

    What that one says is kept; without it, or its platform, the config says the platform. Raises
    `ImageError` for what has none.
    """
    if entry is None:
        artifact_type = parse_json(manifest.raw, "the manifest").get("artifactType")
        extra = {"artifactType": artifact_type} if artifact_type else {}
        entry = replace(manifest.descriptor, extra=extra)
    if entry.platform is None:
        document = _platform_document(manifest, config, name)
        platform = Platform(document["architecture"], document["os"], document.get("variant"))
        extra = {**entry.extra, "platform": document}
        entry = replace(entry, platform=platform, extra=extra)
    return Member(entry, manifest, config, name)


def _platform_document(manifest: Manifest, config: bytes, name: str) -> Json:
    """What an image config says of its platform, as an index says it."""
    kind = manifest.config.media_type
    if kind not in (OCI_CONFIG, DOCKER_CONFIG):
        raise ImageError(
            f"`{name}` is no image: its config has the type `{kind[:80]}`",
            hint="an index joins images; `ocis2i attach` is for what belongs to one",
        )
    document = parse_json(config, f"the config of `{name}`")
    found = {key: document[key] for key in _FIELDS if document.get(key)}
    texts = (value for key, value in found.items() if key != "os.features")
    if not {"os", "architecture"} <= found.keys() or not all(isinstance(one, str) for one in texts):
        raise ImageError(
            f"the config of `{name}` does not say its platform",
            hint="build the image with a tool that writes `os` and `architecture`",
        )
    return found


def check_platforms(members: Sequence[Member]) -> None:
    """Raises `UsageError` when two images are for one platform."""
    seen: list[Member] = []
    for member in members:
        platform = member.entry.platform
        if platform is None or platform.os == _NO_PLATFORM:
            continue
        for other in seen:
            if _alike(member.entry, other.entry):
                raise UsageError(
                    f"`{other.name}` and `{member.name}` are both for `{platform}`",
                    hint="an index has one image for each platform; leave one out",
                )
        seen.append(member)


def _alike(one: Descriptor, other: Descriptor) -> bool:
    if one.platform is None or other.platform is None:
        return False
    return same_platform(one.platform, other.platform) and _version(one) == _version(other)


def _version(entry: Descriptor) -> object:
    # Of Windows, images for several versions stand in one index.
    return (entry.extra.get("platform") or {}).get("os.version")


def encode_index(entries: Sequence[Descriptor], annotations: Mapping[str, str]) -> Index:
    """The index of these images, in their order; always OCI's, whatever type the images have."""
    document: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [encode_descriptor(entry) for entry in entries],
    }
    if annotations:
        document["annotations"] = dict(annotations)
    raw = encode_json(document)
    descriptor = Descriptor(OCI_INDEX, Digest.of(raw), len(raw))
    return Index(raw, descriptor, tuple(entries), dict(annotations))


def parse_annotations(texts: Sequence[str]) -> dict[str, str]:
    """Reads the values of `--annotation`; of one key the last counts. Raises `UsageError`."""
    found: dict[str, str] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not key.strip() or not equals:
            raise UsageError(
                f"--annotation `{text[:80]}` is not KEY=VALUE", hint="write --annotation KEY=VALUE"
            )
        found[key] = value
    return found


def platform_words(entries: Sequence[Descriptor]) -> str:
    """The platforms of some images of an index, for people."""
    named = (str(entry.platform) if entry.platform else str(entry.digest) for entry in entries)
    return ", ".join(dict.fromkeys(named))
