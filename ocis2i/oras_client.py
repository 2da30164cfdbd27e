"""Artifacts by `oras` on our own connection: it makes the manifests, we take care of the wire.

`oras.provider.Registry` is kept as the type that other programs know. What it does on the wire is
replaced: its own requests lose a registry's token to others, and hold whole files in memory.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, field
from pathlib import Path
from typing import Any, BinaryIO

import oras.container
import oras.oci
import oras.provider
import requests
from requests.structures import CaseInsensitiveDict

from ocis2i.auth import printable
from ocis2i.errors import RegistryError, SourceError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import OCI_MANIFEST, Descriptor, Json, encode_json
from ocis2i.oci_artifacts import EMPTY, EMPTY_CONFIG, EMPTY_TYPE
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry

# A look may find nothing; what is put has to arrive.
_EXPECTED = {"HEAD": (200, 404), "GET": (200, 404), "PUT": (200, 201, 202), "POST": (201, 202)}


@dataclass(frozen=True, slots=True)
class Part:
    """A file that goes into an artifact as one blob."""

    path: Path
    media_type: str
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PushedArtifact:
    """An artifact that is in the registry now.

    `listed`: the registry itself lists it among the referrers of its subject.
    """

    descriptor: Descriptor
    listed: bool = False


class OrasRegistry(oras.provider.Registry):
    """`oras` for pushing to the one repository of `reference`.

    Credentials, retries, redirects and TLS are those of `registry`; the credential files that
    `oras` would read do not count.
    """

    def __init__(self, registry: Registry, reference: Reference) -> None:
        super().__init__(hostname=reference.registry)
        self._ours = registry
        self._reference = reference
        self.auth.load_configs = lambda *_, **__: None

    def get_container(self, name: object) -> oras.container.Container:
        """Our reference: the grammar of `oras` takes other words for the registry and the tag."""
        if isinstance(name, oras.container.Container):
            return name
        container = oras.container.Container.__new__(oras.container.Container)
        container.registry = self._reference.registry
        container.namespace = None
        container.repository = self._reference.repository
        container.tag = self._reference.tag
        container.digest = None if self._reference.tag else str(self._reference.digest)
        return container

    def do_request(  # noqa: PLR0917 - as oras has it
        self,
        url: str,
        method: str = "GET",
        data: dict[str, Any] | bytes | None = None,
        headers: dict[str, str] | None = None,
        json: dict[str, Any] | None = None,
        stream: bool = False,  # noqa: FBT001, FBT002, ARG002 - likewise
    ) -> requests.Response:
        """One request, by our client. Raises `RegistryError` for a refusal."""
        body = encode_json(json) if json is not None else data or b""
        if isinstance(body, dict):
            raise TypeError("the registry API knows no forms")
        base = f"{self.prefix}://{self._reference.registry}/v2/{self._reference.repository}/"
        answer = self._ours.request(
            self._reference,
            method,
            url.removeprefix(base),
            headers=headers or {},
            body=body,
            push=True,
            expected=_EXPECTED.get(method, ()),
            what=f"cannot push to `{self._reference}`",
        )
        response = requests.Response()
        response.status_code, response.url = answer.status, answer.url
        response.headers = CaseInsensitiveDict(answer.headers)
        response.raw = io.BytesIO(answer.body)
        return response

    def upload_blob(
        self,
        blob: str,
        container: object,  # noqa: ARG002 - there is one repository
        layer: Json,
        *_: object,
        **__: object,
    ) -> requests.Response:
        """Sees to it that the blob is there; read as it is sent, however large it is."""

        def open_blob() -> BinaryIO:
            return Path(blob).open("rb")

        descriptor = Descriptor(layer["mediaType"], Digest.parse(layer["digest"]), layer["size"])
        self._ours.push_blob(self._reference, descriptor, open_blob)
        response = requests.Response()
        response.status_code = 201
        return response


def push_artifact(
    registry: Registry,
    reference: Reference,
    kind: str,
    parts: Sequence[Part],
    *,
    annotations: Mapping[str, str] | None = None,
    subject: Descriptor | None = None,
) -> PushedArtifact:
    """Pushes an artifact of `kind` to the tag of `reference`, to its digest when it has no tag.

    Nothing is sent when it is there already. Raises `RegistryError`.
    """
    layers = [_layer(part) for part in parts]
    manifest = _manifest(kind, layers, annotations or {}, subject)
    raw = encode_json(manifest)
    descriptor = Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw), extra={"artifactType": kind})
    if reference.tag is None:
        reference = reference.with_digest(descriptor.digest)
    # Of a referrer it has to be known who lists it, and only the answer to a push tells.
    there = None if subject else registry.head_manifest(reference, for_push=True)
    if there == descriptor.digest:
        return PushedArtifact(descriptor)
    client = OrasRegistry(registry, reference)
    container = client.get_container(str(reference))
    for part, layer in zip(parts, layers, strict=True):
        client.upload_blob(str(part.path), container, layer)
    registry.push_blob(reference, EMPTY_CONFIG, lambda: io.BytesIO(EMPTY))
    answer = client.upload_manifest(manifest, container)
    return PushedArtifact(descriptor, listed=_is_listed(answer, subject, reference))


def _layer(part: Part) -> Json:
    try:
        layer: Json = oras.oci.NewLayer(str(part.path), part.media_type)
    except OSError as error:
        raise SourceError(f"cannot read `{part.path}`: {error.strerror}") from error
    return layer | ({"annotations": dict(part.annotations)} if part.annotations else {})


def _manifest(
    kind: str, layers: list[Json], annotations: Mapping[str, str], subject: Descriptor | None
) -> Json:
    manifest: Json = oras.oci.NewManifest()
    config, _ = oras.oci.ManifestConfig(media_type=EMPTY_TYPE)
    manifest |= {"artifactType": kind, "config": config, "layers": layers}
    if annotations:
        manifest["annotations"] = dict(annotations)
    else:
        del manifest["annotations"]
    if subject:
        # Of the bytes that the registry has: the digest of JSON written anew is another one.
        pointer = oras.oci.Subject(subject.media_type, str(subject.digest), subject.size)
        manifest["subject"] = asdict(pointer)
    return manifest


def _is_listed(answer: requests.Response, subject: Descriptor | None, reference: Reference) -> bool:
    """Whether the registry took note of the subject (distribution-spec, `OCI-Subject`)."""
    noted = answer.headers.get("OCI-Subject")
    if noted is None or subject is None:
        return False
    if noted != str(subject.digest):
        raise RegistryError(
            f"registry `{reference.registry}` lists the artifact at `{printable(noted)}` and not "
            f"at its subject `{subject.digest}`"
        )
    return True
