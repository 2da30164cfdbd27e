"""What an image is: descriptors, manifests, indexes and configs as values. No input or output.

Read are OCI image manifests and indexes (image-spec 1.1) and Docker's schema 2 and manifest list;
written is OCI only. Bytes that were hashed are kept; unknown fields survive.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import field, replace
from datetime import UTC, datetime
from typing import Any

from ocis2i.errors import ImageError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Digest, Platform

Json = dict[str, Any]

# Of an entry of a layout's index: the name of the image (image-spec, annotations.md).
REF_NAME = "org.opencontainers.image.ref.name"

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
OCI_LAYER_GZIP = OCI_LAYER + "+gzip"
OCI_LAYER_ZSTD = OCI_LAYER + "+zstd"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar"
DOCKER_LAYER_GZIP = DOCKER_LAYER + ".gzip"

MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_INDEX)

# A manifest or config is read whole; registries accept 4 MiB at the least (distribution-spec).
DOCUMENT_LIMIT = 8 << 20

_LAYER_AS_OCI = {
    DOCKER_LAYER_GZIP: OCI_LAYER_GZIP,
    DOCKER_LAYER: OCI_LAYER,
    "application/vnd.docker.image.rootfs.diff.tar.zstd": OCI_LAYER_ZSTD,
    OCI_LAYER: OCI_LAYER,
    OCI_LAYER_GZIP: OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD: OCI_LAYER_ZSTD,
}
_FOREIGN = ("nondistributable", "foreign")


@dataclass(frozen=True, slots=True)
class Descriptor:
    """What points at a blob: type, digest and size in bytes (image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Layer:
    """A blob and the digest of the tar inside it, inseparable."""

    descriptor: Descriptor
    diff_id: Digest


@dataclass(frozen=True, slots=True)
class History:
    """One line of an image's history, as its JSON object."""

    fields: Mapping[str, Any]

    @classmethod
    def of(cls, *, created: datetime, created_by: str, comment: str) -> History:
        """A line for one new layer."""
        return cls({"created": format_time(created), "created_by": created_by, "comment": comment})

    @property
    def empty_layer(self) -> bool:
        """Whether this step added no layer."""
        return bool(self.fields.get("empty_layer"))


@dataclass(frozen=True, slots=True)
class RuntimeConfig:
    """The `config` object of an image config: how a container of it starts."""

    user: str = ""
    env: tuple[str, ...] = ()
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    working_dir: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[str, ...] = ()
    on_build: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def environment(self) -> dict[str, str]:
        """`env` as a mapping; of a name written twice the last value counts."""
        pairs = (entry.partition("=") for entry in self.env)
        return {name: value for name, _, value in pairs}


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """An image config (image-spec, config.md); `extra` holds its unknown fields."""

    platform: Platform
    runtime: RuntimeConfig
    created: str | None = None
    author: str | None = None
    history: tuple[History, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Image:
    """A config with its layers, lowest first; `annotations` are those of the manifest."""

    config: ImageConfig
    layers: tuple[Layer, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @property
    def diff_ids(self) -> tuple[Digest, ...]:
        """The diff_ids of all layers, lowest first."""
        return tuple(layer.diff_id for layer in self.layers)


@dataclass(frozen=True, slots=True)
class Manifest:
    """A manifest as it was read: its own bytes and the descriptors in it."""

    raw: bytes
    descriptor: Descriptor
    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Index:
    """An index (or Docker manifest list) as it was read."""

    raw: bytes
    descriptor: Descriptor
    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Encoded:
    """An image as bytes: what is hashed, stored and pushed."""

    manifest: bytes
    config: bytes
    descriptor: Descriptor
    config_descriptor: Descriptor

    @classmethod
    def of(cls, manifest: Manifest, config: bytes) -> Encoded:
        """An image as it was read, byte for byte."""
        return cls(manifest.raw, config, manifest.descriptor, manifest.config)


# --- reading ----------------------------------------------------------------------------------


def parse_json(data: bytes, what: str) -> Json:
    """The JSON object in `data`; raises `ImageError` naming `what`.

    Only what can be written again is read: UTF-8, no `NaN`, no infinite numbers and no halves of
    surrogate pairs, all of which Python would take and other readers of the image would not.
    """
    try:
        value = json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)
        if b"\\ud" in data.lower():
            encode_json(value)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{what} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ImageError(f"{what} is not a JSON object")
    return value


def json_object(data: bytes | str) -> Json | None:
    """The JSON object in what anybody may have written; `None` where there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"the number {text} is not finite")
    return number


def decode_descriptor(value: object, what: str) -> Descriptor:
    """Reads one descriptor object; raises `ImageError` naming `what`."""
    if not isinstance(value, dict):
        raise ImageError(f"{what}: a descriptor must be an object")
    fields = dict(value)
    media_type = fields.pop("mediaType", "")
    size = fields.pop("size", None)
    if not isinstance(media_type, str):
        raise ImageError(f"{what}: `mediaType` must be text")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ImageError(f"{what}: `size` must be a number of bytes, it is `{size}`")
    try:
        digest = Digest.parse(str(fields.pop("digest", "")))
    except UsageError as error:
        raise ImageError(f"{what}: {error.message}") from error
    annotations = _text_mapping(fields.pop("annotations", None), f"{what}: annotations")
    platform = _decode_platform(fields.get("platform"))
    return Descriptor(media_type, digest, size, annotations, platform, fields)


def decode_manifest(raw: bytes, media_type: str = "") -> Manifest | Index:
    """Reads a manifest or an index from its bytes.

    `media_type` is what the transport said it is; the document's own word has to agree with it.
    Raises `ImageError` for anything that is neither.
    """
    document = parse_json(raw, "the manifest")
    kind = _document_type(document, media_type)
    descriptor = Descriptor(kind, Digest.of(raw), len(raw))
    annotations = _text_mapping(document.get("annotations"), "annotations of the manifest")
    if kind in INDEX_TYPES:
        entries = _array(document, "manifests")
        manifests = tuple(decode_descriptor(entry, "the index") for entry in entries)
        return Index(raw, descriptor, manifests, annotations)
    config = decode_descriptor(document.get("config"), "`config` of the manifest")
    layers = tuple(
        decode_descriptor(entry, "a layer of the manifest") for entry in _array(document, "layers")
    )
    return Manifest(raw, descriptor, config, layers, annotations)


def _document_type(document: Json, announced: str) -> str:
    if document.get("schemaVersion") == 1:
        raise ImageError(
            "the manifest is Docker schema 1, which is obsolete",
            hint="pull and push the image with a current tool first",
        )
    written = document.get("mediaType", "")
    kind = written or announced
    if not kind:
        kind = OCI_INDEX if "manifests" in document else OCI_MANIFEST
    if kind not in MANIFEST_TYPES + INDEX_TYPES:
        raise ImageError(f"`{kind}` is not the type of an image manifest or index")
    # Two readers could see two images in it (CVE-2021-41190; image-spec, manifest.md).
    foreign = {"config", "layers"} if kind in INDEX_TYPES else {"manifests"}
    if foreign & document.keys():
        raise ImageError("the manifest is an image manifest and an index at once")
    if written and announced in MANIFEST_TYPES + INDEX_TYPES and written != announced:
        raise ImageError(f"the manifest says it is `{written}`, but came as `{announced}`")
    return str(kind)


def decode_image(manifest: Manifest, raw_config: bytes) -> Image:
    """The image of a manifest and its config bytes.

    Raises `ImageError` when the digests disagree, the config is malformed, or the number of
    diff_ids is not the number of layers.
    """
    if Digest.of(raw_config) != manifest.config.digest and manifest.config.digest.algorithm == (
        "sha256"
    ):
        raise ImageError(
            f"the config has digest `{Digest.of(raw_config)}`, "
            f"but the manifest says `{manifest.config.digest}`"
        )
    document = parse_json(raw_config, "the image config")
    rootfs = document.pop("rootfs", None)
    diff_ids = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(diff_ids, list):
        raise ImageError(
            "the image config has no `rootfs.diff_ids`", hint="is it an artifact and not an image?"
        )
    if len(diff_ids) != len(manifest.layers):
        raise ImageError(
            f"the image has not as many layers ({len(manifest.layers)}) as diff_ids "
            f"({len(diff_ids)})"
        )
    try:
        digests = [Digest.parse(str(text)) for text in diff_ids]
    except UsageError as error:
        raise ImageError(f"the image config: {error.message}") from error
    layers = tuple(Layer(*pair) for pair in zip(manifest.layers, digests, strict=True))
    return Image(_decode_config(document), layers, manifest.annotations)


def _decode_config(document: Json) -> ImageConfig:
    fields = dict(document)
    platform = Platform(
        architecture=_text(fields.pop("architecture", ""), "architecture"),
        os=_text(fields.pop("os", ""), "os"),
        variant=_text(fields.pop("variant", ""), "variant") or None,
    )
    history = fields.pop("history", None) or []
    if not isinstance(history, list) or not all(isinstance(line, dict) for line in history):
        raise ImageError("the image config: `history` must be a list of objects")
    return ImageConfig(
        platform=platform,
        created=_optional_text(fields.pop("created", None), "created"),
        author=_optional_text(fields.pop("author", None), "author"),
        runtime=_decode_runtime(fields.pop("config", None)),
        history=tuple(History(line) for line in history),
        extra=fields,
    )


def _decode_runtime(value: object) -> RuntimeConfig:
    if value is None:
        return RuntimeConfig()
    if not isinstance(value, dict):
        raise ImageError("the image config: `config` must be an object")
    fields = dict(value)
    volumes = fields.pop("Volumes", None) or {}
    if not isinstance(volumes, dict):
        raise ImageError("the image config: `Volumes` must be an object")
    return RuntimeConfig(
        user=_text(fields.pop("User", "") or "", "User"),
        env=_texts(fields.pop("Env", None), "Env"),
        # An empty list says the same as none.
        entrypoint=_texts(fields.pop("Entrypoint", None), "Entrypoint") or None,
        cmd=_texts(fields.pop("Cmd", None), "Cmd") or None,
        working_dir=_text(fields.pop("WorkingDir", "") or "", "WorkingDir"),
        labels=_text_mapping(fields.pop("Labels", None), "Labels"),
        volumes=tuple(volumes),
        on_build=_texts(fields.pop("OnBuild", None), "OnBuild"),
        extra=fields,
    )


def _decode_platform(value: object) -> Platform | None:
    if not isinstance(value, dict) or not value.get("architecture"):
        return None
    variant = value.get("variant")
    return Platform(
        str(value["architecture"]),
        str(value.get("os") or "linux"),
        str(variant) if variant else None,
    )


def _array(document: Json, name: str) -> list[object]:
    value = document.get(name)
    if value is None and name == "layers":
        raise ImageError("the manifest has no `layers`", hint="is it an artifact and not an image?")
    if not isinstance(value, list):
        raise ImageError(f"`{name}` of the manifest must be a list")
    return value


def _text(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise ImageError(f"the image config: `{name}` must be text")
    return value


def _optional_text(value: object, name: str) -> str | None:
    return None if value is None else _text(value, name)


def _texts(value: object, name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ImageError(f"the image config: `{name}` must be a list of texts")
    return tuple(value)


def _text_mapping(value: object, name: str) -> dict[str, str]:
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise ImageError(f"{name} must map text to text")
    return dict(value)


# --- choosing ---------------------------------------------------------------------------------

# What a processor also runs, best first (the order of containerd's platforms.Only).
_RUNS = {
    Platform("arm", variant="v7"): ("v7", "v6", "v5"),
    Platform("arm", variant="v6"): ("v6", "v5"),
    Platform("arm", variant="v8"): ("v8", "v7", "v6", "v5"),
    Platform("arm64"): ("v8", None),
    Platform("amd64"): (None, "v1"),
}
_MISSING_VARIANT = {"arm": "v7", "arm64": "v8"}


def choose_platform(index: Index, wanted: Platform) -> Descriptor:
    """The manifest of `index` for `wanted`; raises `ImageError` that lists what is there.

    Nested attestations (`unknown/unknown`) never match. Of equal entries the first one counts.
    """
    variants: Sequence[str | None] = _RUNS.get(wanted, (wanted.variant,))
    for variant in (*variants, wanted.variant):
        for entry in index.manifests:
            if entry.platform and same_platform(entry.platform, replace(wanted, variant=variant)):
                return entry
    if len(index.manifests) == 1 and index.manifests[0].platform is None:
        return index.manifests[0]
    offered = sorted({str(entry.platform) for entry in index.manifests if entry.platform})
    raise ImageError(
        f"the image is not there for `{wanted}`",
        hint=f"it is there for {', '.join(offered) or 'no named platform'}; "
        "choose one with --platform",
    )


def same_platform(one: Platform, other: Platform) -> bool:
    """Whether two names mean one platform: some architectures have a variant unsaid."""
    return (one.os, one.architecture) == (other.os, other.architecture) and (
        one.variant or _MISSING_VARIANT.get(one.architecture)
    ) == (other.variant or _MISSING_VARIANT.get(other.architecture))


# --- writing ----------------------------------------------------------------------------------


def layer_type_as_oci(media_type: str) -> str:
    """The OCI name of a layer's media type; raises `ImageError` for one that is no layer."""
    if any(word in media_type for word in _FOREIGN):
        raise ImageError(
            f"a layer of type `{media_type}` may not be distributed",
            hint="use a builder image without foreign layers",
        )
    try:
        return _LAYER_AS_OCI[media_type]
    except KeyError:
        raise ImageError(f"a layer of type `{media_type}` cannot be read") from None


def append_layer(base: Image, layer: Layer, history: History, runtime: RuntimeConfig) -> Image:
    """A new image: `base` with one layer, one line of history and the given start settings."""
    config = replace(
        base.config,
        runtime=runtime,
        created=str(history.fields["created"]),
        author=None,
        history=(*_complete_history(base), history),
        extra={key: base.config.extra[key] for key in base.config.extra if key not in _DROPPED},
    )
    return Image(config, (*base.layers, layer), {})


# Docker's words about the container that made the base and the tool that wrote it; they would be
# untrue of the new image. Everything else that ocis2i does not know is passed on.
_DROPPED = frozenset({"container", "container_config", "docker_version", "id", "parent", "Size"})


def _complete_history(base: Image) -> Iterable[History]:
    # A history is optional, but where there is one its non-empty lines must match the layers.
    lines = [line for line in base.config.history if not line.empty_layer]
    if len(lines) == len(base.layers):
        return base.config.history
    return [History({"comment": "history of the base image is not known"}) for _ in base.layers]


def encode_image(image: Image) -> Encoded:
    """Bytes of config and manifest: sorted keys, fixed separators, encoded once."""
    config = encode_json(_config_document(image))
    config_descriptor = Descriptor(OCI_CONFIG, Digest.of(config), len(config))
    document: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": encode_descriptor(config_descriptor),
        "layers": [
            encode_descriptor(
                replace(layer.descriptor, media_type=layer_type_as_oci(layer.descriptor.media_type))
            )
            for layer in image.layers
        ],
    }
    if image.annotations:
        document["annotations"] = dict(image.annotations)
    manifest = encode_json(document)
    return Encoded(
        manifest,
        config,
        Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest)),
        config_descriptor,
    )


def encode_json(value: object) -> bytes:
    """JSON with sorted keys and no white space: the same value gives the same bytes."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def encode_descriptor(descriptor: Descriptor) -> Json:
    """The JSON object of a descriptor, unknown fields included."""
    document: Json = dict(descriptor.extra)
    document |= {
        "mediaType": descriptor.media_type,
        "digest": str(descriptor.digest),
        "size": descriptor.size,
    }
    if descriptor.annotations:
        document["annotations"] = dict(descriptor.annotations)
    if descriptor.platform and "platform" not in document:
        document["platform"] = _encode_platform(descriptor.platform)
    return document


def _encode_platform(platform: Platform) -> Json:
    document = {"os": platform.os, "architecture": platform.architecture}
    if platform.variant:
        document["variant"] = platform.variant
    return document


def _config_document(image: Image) -> Json:
    config = image.config
    document: Json = dict(config.extra)
    document |= _encode_platform(config.platform)
    document |= {
        "config": _runtime_document(config.runtime),
        "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in image.diff_ids]},
        "history": [dict(line.fields) for line in config.history],
    }
    for key, value in (("created", config.created), ("author", config.author)):
        if value is not None:
            document[key] = value
    return document


def _runtime_document(runtime: RuntimeConfig) -> Json:
    document: Json = dict(runtime.extra)
    fields: Json = {
        "User": runtime.user,
        "Env": list(runtime.env),
        "Entrypoint": None if runtime.entrypoint is None else list(runtime.entrypoint),
        "Cmd": None if runtime.cmd is None else list(runtime.cmd),
        "WorkingDir": runtime.working_dir,
        "Labels": dict(runtime.labels),
        "Volumes": {path: {} for path in runtime.volumes},
        "OnBuild": list(runtime.on_build),
    }
    return document | {key: value for key, value in fields.items() if value}


def format_time(moment: datetime) -> str:
    """RFC 3339 in UTC with whole seconds, as image-spec wants its times."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
