"""SIGKILL at any moment: nothing goes on running, the store stays valid, the next build works."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ocis2i.archives import open_image
from ocis2i.blobs import read_document
from ocis2i.keychain import Keychain
from ocis2i.manifest import Encoded, Manifest
from ocis2i.reference import Reference, parse_location
from ocis2i.registry import Registry
from ocis2i.transfer import push_image
from tests.conftest import RUNC
from tests.fakes.docker_registry import docker_registry, registry_program
from tests.fakes.images import Layer, busybox_builder
from tests.fakes.judges import LAYERS_FROM, schema_check, validate_layout
from tests.fakes.processes import (
    command,
    descendants,
    mounts_of,
    wait_for_sleepers,
    wait_until_alone,
)
from tests.fakes.program import Program

KILLS = 50
SEED = 20261123

# How each stage announces itself on stderr, and how long it lasts at least on a quick machine.
STAGES = {
    "---> getting the builder": 0.15,
    "---> unpacking": 0.25,
    "---> assembling": 0.3,
    "---> writing the layer": 0.4,
    "---> pushing": 0.15,
}
SECONDS_OF_A_BUILD = 1.5

# Some work of its own, and processes that leave their session and do not listen.
ASSEMBLE = """\
#!/bin/sh
set -e
trap '' TERM INT HUP
cp -R /tmp/src/. "$HOME/"
if [ -n "$SLOW" ]; then
    setsid sh -c 'trap "" TERM HUP; sleep 1000; sleep 1000' &
    (sleep 1000; true) &
    sleep 1000
fi
"""


# --- what is in the store ---------------------------------------------------------------------


@dataclass
class Inspector:
    """Looks through a layout again and again; a blob that did not change is read only once."""

    layout: Path
    _good: dict[tuple[str, int, int, int], bool] = field(default_factory=dict)

    def check(self) -> None:
        """Every blob has its digest, and all that the index leads to is there."""
        for blob in self.layout.glob("blobs/*/*"):
            facts = blob.stat()
            key = (blob.name, facts.st_ino, facts.st_size, facts.st_mtime_ns)
            if key not in self._good:
                with blob.open("rb") as stream:
                    self._good[key] = (
                        hashlib.file_digest(stream, blob.parent.name).hexdigest() == blob.name
                    )
            assert self._good[key], f"{blob} has another digest"
        if not (self.layout / "index.json").exists():
            assert not any(self.layout.glob("blobs/*/*"))
            return
        index = json.loads((self.layout / "index.json").read_bytes())
        schema_check("index", index)
        for entry in index["manifests"]:
            manifest = json.loads(self._blob(entry).read_bytes())
            schema_check("manifest", manifest)
            here = [one for one in manifest["layers"] if self._blob(one).exists()]
            assert here == manifest["layers"] or LAYERS_FROM in entry["annotations"]
            for descriptor in (manifest["config"], *here):
                assert self._blob(descriptor).stat().st_size == descriptor["size"]

    def _blob(self, descriptor: dict[str, Any]) -> Path:
        return self.layout / "blobs" / Path(*descriptor["digest"].split(":"))


# --- the place of the deed --------------------------------------------------------------------


@dataclass
class Scene:
    """A registry with builders, each with a layer that no other has, and a source."""

    path: Path
    host: str
    builders: int = 0

    def cold_builder(self) -> str:
        """A builder in the registry of which no store has everything."""
        self.builders += 1
        layout = self.path / f"builder-{self.builders}"
        layer = Layer().dir("srv").file("srv/noise", os.urandom(3 << 20))
        for number in range(200):
            layer.file(f"srv/{number}", str(number))
        busybox_builder(layout, "b:1", scripts={"assemble": ASSEMBLE}, more_layers=[layer])
        name = Reference.parse(f"{self.host}/builder:{self.builders}")
        _send(f"oci:{layout}:b:1", name)
        shutil.rmtree(layout)
        return str(name)


def _send(place: str, name: Reference) -> None:
    keychain = Keychain({}, authfile=None)
    with (
        open_image(parse_location(place)) as source,  # type: ignore[arg-type]
        Registry(keychain, environment={}, tls_verify=True, report=lambda _: None) as registry,
    ):
        manifest = source.manifest()
        assert isinstance(manifest, Manifest)
        config = read_document(source, manifest.config)
        encoded = Encoded.of(manifest, config)
        push_image(registry, name, encoded, manifest.layers, source)


@pytest.fixture
def scene(tmp_path: Path, _orphans: None) -> Iterator[Scene]:
    if registry_program() is None:
        pytest.skip("no registry program on PATH")
    source = tmp_path / "source"
    source.mkdir()
    (source / "noise").write_bytes(os.urandom(6 << 20))
    for number in range(300):
        (source / f"file-{number}").write_text(str(number))
    with docker_registry(tmp_path / "registry") as running:
        yield Scene(tmp_path, running.host)


def _kill_at(
    process: subprocess.Popen[str], moment: str | None, delay: float, also: Callable[[], None]
) -> bool:
    """Kills the process `delay` seconds after it said `moment`; false when it was too late."""
    assert process.stderr is not None
    if moment:
        for line in process.stderr:
            if line.startswith(moment):
                break
    time.sleep(delay)
    alive = process.poll() is None
    process.kill()
    also()
    process.communicate()
    return alive


@pytest.mark.sandbox
@pytest.mark.registry
def test_fifty_kills_leave_a_valid_store(ocis2i: Program, scene: Scene) -> None:
    chance = random.Random(SEED)
    executors = ["builtin", *(["runc"] if _have_runc(ocis2i) else [])]
    inspector = Inspector(ocis2i.layout)
    warm = scene.cold_builder()
    before = descendants(os.getpid())
    moments = list(STAGES)
    killed = tries = 0
    while killed < KILLS:
        tries += 1
        assert tries < 3 * KILLS, f"only {killed} builds could be killed in time"
        # Nine kills in each stage, and five anywhere, which finds start and end too.
        at = moments[killed % 5] if killed < 45 else None
        delay = chance.uniform(0, STAGES[at] if at else SECONDS_OF_A_BUILD)
        cold = at in moments[:2]
        process = ocis2i.start(
            *("build", scene.path / "source", scene.cold_builder() if cold else warm),
            *(f"{scene.host}/app:{tries}", "--push", "--isolation", chance.choice(executors)),
            *(["-e", "SLOW=1"] if at == moments[2] else []),
        )
        killed += _kill_at(process, at, delay, lambda: wait_until_alone(before))
        inspector.check()
    assert mounts_of(ocis2i.store) == []

    done = ocis2i.ok("build", scene.path / "source", warm, f"{scene.host}/app:end", "--push")
    assert done.out.startswith(f"{scene.host}/app@sha256:")
    ocis2i.ok("prune")
    wait_until_alone(before)
    assert mounts_of(ocis2i.store) == []
    assert os.listdir(ocis2i.store / "tmp") == []
    assert os.listdir(ocis2i.store / "builds") == []
    names = {entry["annotations"]["org.opencontainers.image.ref.name"]
             for entry in validate_layout(ocis2i.layout)}  # fmt: skip
    assert f"{scene.host}/app:end" in names
    page = ocis2i.ok("run", f"{scene.host}/app:end", "cat", "file-299")
    assert page.out == "299"


def _have_runc(ocis2i: Program) -> bool:
    return shutil.which("runc", path=ocis2i.environment["PATH"]) is not None


# --- the agent is killed ----------------------------------------------------------------------

EXECUTORS = [RUNC, "builtin"]


@pytest.mark.sandbox
@pytest.mark.parametrize("isolation", EXECUTORS)
@pytest.mark.parametrize("which", ["outer", "first"])
def test_a_killed_agent_is_an_error_and_leaves_nothing(
    ocis2i: Program, tmp_path: Path, source: Path, _orphans: None, which: str, isolation: str
) -> None:
    busybox_builder(tmp_path / "builder", "b:1", scripts={"assemble": ASSEMBLE})
    before = descendants(os.getpid())
    process = ocis2i.start(
        *("build", source, f"oci:{tmp_path}/builder:b:1", "app:1", "-e", "SLOW=1"),
        *("--isolation", isolation),
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("---> assembling"):
            break
    wait_for_sleepers(process.pid)
    agents = sorted(pid for pid in descendants(process.pid) if "agent/__main__.py" in command(pid))
    # The process that made the namespaces, and its child, the first of the pid namespace.
    os.kill(agents[0] if which == "outer" else agents[1], signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    wait_until_alone(before)
    assert process.returncode == 6, err
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "the build agent ended unexpectedly" in errors[0]
    assert "Traceback" not in err
    assert os.listdir(ocis2i.store / "builds") == []
    assert os.listdir(ocis2i.store / "tmp") == []
    assert mounts_of(ocis2i.store) == []
    assert ocis2i.ok("images", "--json").document["images"] == []
