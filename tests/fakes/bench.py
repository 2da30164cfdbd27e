"""A place to try builds: one store for many tests, small images, and what came out of them."""

from __future__ import annotations

import json
import signal
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from tests.fakes.images import (
    REF_NAME,
    Layer,
    LayoutImage,
    _architecture,
    _busybox_layer,
    _scripts_layer,
    busybox_builder,
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

    @property
    def is_stored(self) -> bool:
        """Whether the store has something under the tag."""
        index = self.ocis2i.layout / "index.json"
        text = index.read_text() if index.exists() else ""
        return f'"{self.tag}"' in text or f'/{self.tag}"' in text

    def attempt(self, builder: str, *arguments: str | Path) -> Done:
        """A build of the source to the tag, however it ends."""
        return self.ocis2i("build", self.source(), builder, self.tag, *arguments)

    def built(self, builder: str, *arguments: str | Path) -> Done:
        """A build of the source to the tag that has to succeed."""
        return self.ocis2i.ok("build", self.source(), builder, self.tag, *arguments)

    def killed(self, builder: str, *arguments: str | Path) -> Path:
        """Kills a build when its assemble says `now`; the build's directory, which is left."""
        command = ("build", self.source(), builder, self.tag, *arguments)
        with self.ocis2i.start(*command) as started:
            assert started.stderr is not None
            for line in started.stderr:
                if line == "now\n":
                    break
            started.kill()
            started.communicate(timeout=60)
        assert started.returncode == -signal.SIGKILL
        (left,) = (self.ocis2i.store / "builds").iterdir()
        assert (left / "upper").is_dir()
        return left

    def with_variables(self, **variables: str) -> Self:
        """The same for a program that has these variables as well."""
        environment = {**self.ocis2i.environment, **variables}
        return replace(self, ocis2i=replace(self.ocis2i, environment=environment))


@dataclass(frozen=True)
class Maker:
    """Makes builders in a directory of one test."""

    directory: Path

    def __call__(self, scripts: Mapping[str, str | None] | None = None, **how: Any) -> str:
        """One like `busybox_builder`; its `oci:` location."""
        path = self.directory / f"builder-{len(list(self.directory.iterdir()))}"
        busybox_builder(path, "b:1", scripts=scripts, **how)
        return f"oci:{path}:b:1"


def sh(*lines: str) -> dict[str, str | None]:
    """Scripts of a builder whose assemble runs these lines of shell."""
    return {"assemble": "\n".join(["#!/bin/sh", "set -e", *lines, ""]), "run": RUN}


def told(done: Done) -> dict[str, str]:
    """The lines `KEY: VALUE` of a build's log; of several with one key the last."""
    pairs = (line.partition(": ") for line in done.err.splitlines())
    return {key: value for key, colon, value in pairs if colon}


def warnings(done: Done) -> list[str]:
    """What a build warned of."""
    lines = done.err.splitlines()
    return [line.removeprefix("warning: ") for line in lines if line.startswith("warning: ")]


def error(done: Done) -> str:
    """The one line that says what went wrong."""
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in done.err
    return line


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
