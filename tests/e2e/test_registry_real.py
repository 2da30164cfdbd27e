"""The registry client against the real registry program, cross-checked with skopeo."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ocis2i.blobs import VerifiedReader
from ocis2i.credentials import Credentials
from ocis2i.errors import RegistryError
from ocis2i.events import Event, Transfer
from ocis2i.keychain import Keychain
from ocis2i.manifest import (
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    Encoded,
    Manifest,
    encode_descriptor,
    encode_json,
)
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.transfer import push_image
from tests.conftest import needs_registry
from tests.fakes.docker_registry import (
    PASSWORD,
    USER,
    RegistryUnderTest,
)

pytestmark = [
    pytest.mark.registry,
    needs_registry,
]

LAYERS = {Digest.of(data): data for data in (os.urandom(5 << 20), os.urandom(100), b"third")}


class Memory:
    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        return VerifiedReader(io.BytesIO(LAYERS[descriptor.digest]), descriptor, "memory")


class Nothing:
    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        raise AssertionError(f"{descriptor.digest} was opened")


def image() -> tuple[Encoded, list[Descriptor]]:
    layers = [Descriptor(OCI_LAYER_GZIP, digest, len(data)) for digest, data in LAYERS.items()]
    config = encode_json(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Labels": {"made-by": "a test"}},
            "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in LAYERS]},
        }
    )
    config_descriptor = Descriptor(OCI_CONFIG, Digest.of(config), len(config))
    manifest = encode_json(
        {
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": encode_descriptor(config_descriptor),
            "layers": [encode_descriptor(layer) for layer in layers],
        }
    )
    descriptor = Descriptor(OCI_MANIFEST, Digest.of(manifest), len(manifest))
    return Encoded(manifest, config, descriptor, config_descriptor), layers


def states(events: list[Event]) -> set[str]:
    return {event.state for event in events if isinstance(event, Transfer)}


def test_pushed_image_comes_back_byte_for_byte(server: RegistryUnderTest) -> None:
    encoded, layers = image()
    reference = Reference.parse(f"{server.host}/team/round-trip:1")
    with Registry(Keychain({}), environment={}) as registry:
        push_image(registry, reference, encoded, layers, Memory())
        manifest = registry.get_manifest(reference)
        assert isinstance(manifest, Manifest)
        assert manifest.raw == encoded.manifest
        assert registry.read_blob(reference, manifest.config) == encoded.config
        for layer in manifest.layers:
            into = io.BytesIO()
            registry.fetch_blob(reference, layer, into)
            assert into.getvalue() == LAYERS[layer.digest]


def test_second_push_sends_nothing(server: RegistryUnderTest) -> None:
    encoded, layers = image()
    reference = Reference.parse(f"{server.host}/twice:1")
    events: list[Event] = []
    with Registry(Keychain({}), environment={}, report=events.append) as registry:
        push_image(registry, reference, encoded, layers, Memory())
        assert states(events) == {"pushing", "done"}
        events.clear()
        push_image(registry, reference, encoded, layers, Nothing())
        assert states(events) == {"exists"}
        events.clear()
        other_tag = Reference.parse(f"{server.host}/twice:2")
        push_image(registry, other_tag, encoded, layers, Nothing())
        assert states(events) == {"exists"}


def test_layers_are_mounted_across_repositories(server: RegistryUnderTest) -> None:
    encoded, layers = image()
    base = Reference.parse(f"{server.host}/mount/base:1")
    reference = Reference.parse(f"{server.host}/mount/app:1")
    events: list[Event] = []
    with Registry(Keychain({}), environment={}, report=events.append) as registry:
        push_image(registry, base, encoded, layers, Memory())
        events.clear()
        push_image(registry, reference, encoded, layers, Nothing(), mount_from=[base])
        mounted = [e for e in events if isinstance(e, Transfer) and e.state == "mounted"]
        assert {e.digest for e in mounted} == {str(layer.digest) for layer in layers}
        assert registry.head_manifest(reference) == encoded.descriptor.digest


def test_missing_image_is_said_in_one_line(server: RegistryUnderTest) -> None:
    reference = Reference.parse(f"{server.host}/absent:1")
    with Registry(Keychain({}), environment={}) as registry:
        assert registry.head_manifest(reference) is None
        with pytest.raises(RegistryError, match="404 MANIFEST_UNKNOWN: manifest unknown"):
            registry.get_manifest(reference)


def test_password_is_accepted(guarded: RegistryUnderTest) -> None:
    encoded, layers = image()
    reference = Reference.parse(f"{guarded.host}/app:1")
    keychain = Keychain({}, given={guarded.host: Credentials(USER, PASSWORD)})
    with Registry(keychain, environment={}) as registry:
        push_image(registry, reference, encoded, layers, Memory())
        assert registry.get_manifest(reference).raw == encoded.manifest


@pytest.mark.parametrize("given", [None, Credentials(USER, "wr0ng")])
def test_wrong_password_and_none_fail_at_once(
    guarded: RegistryUnderTest, given: Credentials | None
) -> None:
    encoded, layers = image()
    keychain = Keychain({}, given={guarded.host: given} if given else {})
    started = time.monotonic()
    with Registry(keychain, environment={}) as registry:
        with pytest.raises(RegistryError, match="answered 401") as caught:
            push_image(
                registry, Reference.parse(f"{guarded.host}/app:2"), encoded, layers, Nothing()
            )
        assert time.monotonic() - started < 1
        assert caught.value.hint
        assert "wr0ng" not in caught.value.message


def test_skopeo_sees_the_same_image(server: RegistryUnderTest, tmp_path: Path) -> None:
    skopeo = shutil.which("skopeo")
    if skopeo is None:
        pytest.skip("skopeo is not installed")
    encoded, layers = image()
    reference = Reference.parse(f"{server.host}/seen/by-skopeo:1")
    with Registry(Keychain({}), environment={}) as registry:
        push_image(registry, reference, encoded, layers, Memory())
    seen = json.loads(
        subprocess.run(
            [skopeo, "inspect", "--tls-verify=false", f"docker://{reference}"],
            check=True,
            capture_output=True,
        ).stdout
    )
    assert seen["Digest"] == str(encoded.descriptor.digest)
    assert seen["Layers"] == [str(layer.digest) for layer in layers]
    assert seen["Labels"] == {"made-by": "a test"}


def test_chunks_are_taken_by_the_real_one(
    server: RegistryUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ocis2i.registry.uploads.CHUNK_BYTES", 2 << 20)
    encoded, layers = image()
    reference = Reference.parse(f"{server.host}/chunked:1")
    with Registry(Keychain({}), environment={}, upload="chunked") as registry:
        push_image(registry, reference, encoded, layers, Memory())
        for layer in layers:
            into = io.BytesIO()
            registry.fetch_blob(reference, layer, into)
            assert into.getvalue() == LAYERS[layer.digest]


def test_rest_of_a_layer_is_had_from_the_real_one(server: RegistryUnderTest) -> None:
    encoded, layers = image()
    reference = Reference.parse(f"{server.host}/resumed:1")
    with Registry(Keychain({}), environment={}) as registry:
        push_image(registry, reference, encoded, layers, Memory())
        data = LAYERS[layers[0].digest]
        into = io.BytesIO(data[:1_000_000])
        registry.fetch_blob(reference, layers[0], into, resume=True)
        assert into.getvalue() == data


# Run in a process of its own: what the tests have in memory does not count.
MOVER = """\
import re, sys, tempfile
from functools import partial
from ocis2i.blobs import VerifiedReader
from ocis2i.keychain import Keychain
from ocis2i.manifest import Descriptor
from ocis2i.reference import Digest, Reference
from ocis2i.registry import Registry
from ocis2i.transfer import in_parallel
import threading
host, mode, *blobs = sys.argv[1:]
reference = Reference.parse(f"{host}/big:1")
wanted = [(Descriptor("", Digest.parse(f"sha256:{name.rpartition('/')[2]}"), SIZE), name)
          for name in blobs]
with Registry(Keychain({}), environment={}, upload=mode) as registry:
    for verb in ("push", "pull"):
        def move(blob, name):
            if verb == "push":
                registry.push_blob(reference, blob, lambda: open(name, "rb", buffering=0))
            else:
                with tempfile.TemporaryFile() as file:
                    registry.fetch_blob(reference, blob, file)
        in_parallel([partial(move, blob, name) for blob, name in wanted], 4, threading.Event())
# Of this program alone; getrusage(2) would count what it was before exec, too.
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("mode", ["auto", "chunked"])
def test_memory_does_not_grow_with_the_layers(
    server: RegistryUnderTest, tmp_path: Path, mode: str
) -> None:
    size = 32 << 20
    names = []
    for number in range(4):
        data = bytes([number]) * size
        path = tmp_path / Digest.of(data).hex
        path.write_bytes(data)
        names.append(str(path))
    script = MOVER.replace("SIZE", str(size))
    done = subprocess.run(
        [sys.executable, "-c", script, server.host, mode, *names],
        check=True,
        capture_output=True,
        text=True,
    )
    assert int(done.stdout) < 64 << 10  # in KiB
