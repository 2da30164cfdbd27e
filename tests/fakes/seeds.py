"""Images that a registry has before a test begins, put there without a line of ocis2i."""

from __future__ import annotations

import http.client
import json
import os
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from tests.fakes.images import Layer, LayoutImage, make_layout

TAG = "1"


@dataclass(frozen=True, slots=True)
class Seed:
    """An image with the tag `TAG` of its repository; `layers` are digests, lowest first."""

    repository: str
    digest: str
    config: str
    layers: tuple[str, ...]

    @property
    def blobs(self) -> tuple[str, ...]:
        """All that a pull gets beside the manifest."""
        return (*self.layers, self.config)


def random_layer(size: int, name: str = "data") -> Layer:
    """One that no other image has, and that cannot be compressed."""
    return Layer().file(name, os.urandom(size))


def plant(
    host: str,
    repository: str,
    layers: Sequence[Layer],
    directory: Path,
    config: Mapping[str, Any] | None = None,
) -> Seed:
    """Puts an image of these layers into a registry that lets everybody in."""
    path = directory / repository.replace("/", "-")
    platform = {"x86_64": "linux/amd64", "aarch64": "linux/arm64"}[os.uname().machine]
    make_layout(path, TAG, layers, config, platform=platform)
    return plant_layout(host, repository, LayoutImage(path, TAG))


def plant_layout(host: str, repository: str, image: LayoutImage) -> Seed:
    """Puts an image of an OCI layout there."""
    manifest = image.manifest
    blobs = [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]
    for digest in dict.fromkeys(blobs):
        location = _ask(host, "POST", f"/v2/{repository}/blobs/uploads/", b"")
        joint = "&" if "?" in location else "?"
        path = image.blob(digest)
        with path.open("rb") as file:
            length = {"Content-Length": str(path.stat().st_size)}
            _ask(host, "PUT", f"{location}{joint}digest={digest}", file, length)
    entry = json.loads((image.layout / "index.json").read_bytes())["manifests"][0]
    raw = image.blob(entry["digest"]).read_bytes()
    url = f"/v2/{repository}/manifests/{TAG}"
    _ask(host, "PUT", url, raw, {"Content-Type": entry["mediaType"]})
    return Seed(repository, entry["digest"], blobs[0], tuple(blobs[1:]))


def _ask(
    host: str,
    method: str,
    url: str,
    body: bytes | BinaryIO,
    headers: Mapping[str, str] | None = None,
) -> str:
    """The `Location` that is answered."""
    with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        connection.request(method, url.removeprefix(f"http://{host}"), body, dict(headers or {}))
        answer = connection.getresponse()
        said = answer.read()
        assert answer.status in (201, 202), f"{method} {url}: {answer.status} {said!r}"
        return answer.getheader("Location", "")


def has(host: str, path: str) -> bool:
    """Whether a registry has something, which is a path below `/v2/`."""
    with closing(http.client.HTTPConnection(host, timeout=20)) as connection:
        accept = {"Accept": "application/vnd.oci.image.manifest.v1+json"}
        connection.request("HEAD", f"/v2/{path}", headers=accept)
        return connection.getresponse().status == 200
