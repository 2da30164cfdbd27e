"""A place to try builds: one store for many tests, small images, and what came out of them."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.fakes.images import (
    REF_NAME,
    Layer,
    LayoutImage,
    _architecture,
    _busybox_layer,
    _scripts_layer,
    busybox_config,
    make_layout,
)
from tests.fakes.program import Done, Program
from tests.fakes.registry import FakeRegistry

RUN = '#!/bin/sh\necho "run: $0"\n'


@dataclass(frozen=True)
class Bench:
    """A store that the tests of a module share, and a directory for each of them."""

    ocis2i: Program
    directory: Path

    @property
    def tag(self) -> str:
        """A name for the test's result."""
        return f"{self.directory.name.lower().replace('_', '-').strip('-')}:1"

    def image(
        self,
        name: str,
        scripts: Mapping[str, str | None],
        config: Mapping[str, Any] | None = None,
        more_layers: Sequence[Layer] = (),
    ) -> str:
        """A busybox image with these S2I scripts and nothing else; its `oci:` location.

        What `config` says stands in place of the usual; `None` takes it away.
        """
        merged = {
            key: value
            for key, value in (busybox_config() | dict(config or {})).items()
            if value is not None
        }
        path = self.directory / name
        layers = [_busybox_layer(), _scripts_layer(scripts), *more_layers]
        make_layout(path, f"{name}:1", layers, merged, platform=f"linux/{_architecture()}")
        return f"oci:{path}:{name}:1"

    def source(self, files: Mapping[str, str] | None = None) -> Path:
        """A source directory; nothing in it is executable, as git without modes has it."""
        path = self.directory / "source"
        for name, text in ({"index.html": "hello\n"} | dict(files or {})).items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_text(text)
        return path

    def result(self, tag: str = "") -> LayoutImage:
        """What was built under the tag, as it is in the store."""
        name = tag or self.tag
        full = name if name.startswith("127.0.0.1:") else f"docker.io/library/{name}"
        return LayoutImage(self.ocis2i.layout, full)


def told(done: Done) -> dict[str, str]:
    """The lines `KEY: VALUE` of a build's log; of several with one key the last."""
    pairs = (line.partition(": ") for line in done.err.splitlines())
    return {key: value for key, colon, value in pairs if colon}


def warnings(done: Done) -> list[str]:
    """What a build warned of."""
    lines = done.err.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def content(image: LayoutImage, path: str) -> str:
    """The text of a file in the image's last layer."""
    with tarfile.open(image.blob(image.layers[-1]), "r:gz") as archive:
        for member in archive:
            if member.name.removeprefix("./") == path:
                file = archive.extractfile(member)
                assert file is not None, path
                return file.read().decode()
    raise AssertionError(f"no `{path}` in the layer")


def facts(image: LayoutImage) -> dict[str, str]:
    """The last layer: `MODE UID:GID` of everything in it, links with their targets."""
    found = {}
    for name, member in image.members().items():
        words = f"{member.mode:04o} {member.uid}:{member.gid}"
        if member.issym():
            words = f"-> {member.linkname}"
        elif member.islnk():
            words = f"= {member.linkname}"
        found[name] = words
    return found


def offer(registry: FakeRegistry, location: str, repository: str, tag: str) -> str:
    """Puts an image of an `oci:` location into a registry; its name there."""
    path, _, name = location.removeprefix("oci:").partition(":")
    layout = Path(path)
    image = LayoutImage(layout, name)
    manifest = image.manifest
    for descriptor in (manifest["config"], *manifest["layers"]):
        registry.put_blob(repository, image.blob(descriptor["digest"]).read_bytes())
    index = json.loads((layout / "index.json").read_bytes())
    (entry,) = (one for one in index["manifests"] if one["annotations"][REF_NAME] == name)
    raw = image.blob(entry["digest"]).read_bytes()
    registry.put_manifest(repository, tag, raw, entry["mediaType"])
    return f"{registry.host}/{repository}:{tag}"
