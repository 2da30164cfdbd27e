"""Layers come straight from the registry into the store's unpacked form, and nothing else stays."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocis2i.reference import Digest
from tests.fakes import mounted
from tests.fakes.bench import Bench, error, offer, sh
from tests.fakes.images import Layer, LayoutImage
from tests.fakes.program import Program, program
from tests.fakes.registry import FakeRegistry

PATIENCE_SECONDS = 20.0
HALF = 1_500_000
REPOSITORY = "team/builder"
KINDS = ("layers", "squashed")


class Builder:
    """A builder in a registry whose last layer is large; it says who its files are."""

    def __init__(self, bench: Bench, registry: FakeRegistry) -> None:
        # Its own bytes for each test: the module's store knows those of the others.
        self.content = os.urandom(3 << 20)
        more = [
            Layer().dir("data").file("data/old", "old").file("data/gone", os.urandom(64)),
            Layer().file("data/large", self.content).whiteout("data/gone").opaque("opt/hidden"),
        ]
        self.location = bench.image("builder", sh("cp /data/* ."), more_layers=more)
        self.layout = LayoutImage(bench.directory / "builder", "builder:1")
        self.name = offer(registry, self.location, REPOSITORY, "1")
        self.layers = [str(layer["digest"]) for layer in self.layout.manifest["layers"]]
        self.large = self.layers[-1]
        self.registry = registry

    @property
    def document(self) -> dict[str, Any]:
        """The whole config."""
        config = self.layout.blob(self.layout.manifest["config"]["digest"]).read_bytes()
        found = json.loads(config)
        assert isinstance(found, dict)
        return found

    @property
    def diff_ids(self) -> list[str]:
        return [str(diff_id) for diff_id in self.document["rootfs"]["diff_ids"]]

    def gets(self, digest: str) -> list[str]:
        """What was asked for of a layer: the `Range` of each request, empty for the whole."""
        found = self.registry.requests("GET", digest)
        return [entry.headers.get("range", "") for entry in found]


@pytest.fixture
def builder(bench: Bench, registry: FakeRegistry) -> Builder:
    return Builder(bench, registry)


@contextlib.contextmanager
def other_store(directory: Path) -> Iterator[Program]:
    directory.mkdir()
    with program(directory) as running:
        yield running


def place_of(store: Path, diff_id: str) -> Path:
    """An unpacked layer, of whichever kind the store has."""
    (found,) = [path for kind in KINDS if (path := store / kind / "sha256" / diff_id[7:]).exists()]
    return found


def unpacked(store: Path, diff_id: str) -> tuple[dict[str, Any], dict[str, tuple[int, str]]]:
    """The record of an unpacked layer, and mode and content of all that is in it."""
    place = place_of(store, diff_id)
    record = json.loads((place / "layer.json").read_text())
    tree = {}
    for path in sorted((place / "fs").rglob("*")):
        text = ""
        if path.is_symlink():
            text = str(path.readlink())
        elif path.is_file() and os.access(path, os.R_OK):
            text = str(Digest.of(path.read_bytes()))
        tree[str(path.relative_to(place))] = (path.lstat().st_mode, text)
    return record, tree


def blobs(store: Path) -> set[str]:
    return {f"sha256:{path.name}" for path in (store / "images/blobs/sha256").iterdir()}


def leftovers(ocis2i: Program) -> list[str]:
    return [path.name for path in (ocis2i.store / "tmp").iterdir()]


def test_layers_are_the_same_as_those_of_blobs_and_no_blob_is_kept(
    bench: Bench, builder: Builder, tmp_path: Path
) -> None:
    bench.built(builder.name)
    assert blobs(bench.ocis2i.store).isdisjoint(builder.layers)
    assert not leftovers(bench.ocis2i)
    assert [builder.gets(layer) for layer in builder.layers[2:]] == [[""], [""]]
    with other_store(tmp_path / "other") as other:
        beside = replace(bench, ocis2i=other)
        beside.built(builder.name, "--keep-blobs")
        assert blobs(other.store) >= set(builder.layers)
        for diff_id in builder.diff_ids:
            assert unpacked(bench.ocis2i.store, diff_id) == unpacked(other.store, diff_id)


def test_broken_connection_is_gone_on_with(bench: Bench, builder: Builder) -> None:
    builder.registry.fail("GET", builder.large, truncate=HALF)
    bench.built(builder.name)
    assert builder.gets(builder.large) == ["", f"bytes={HALF}-"]


def test_registry_that_ignores_ranges_is_read_again(bench: Bench, builder: Builder) -> None:
    whole = builder.layout.blob(builder.large).read_bytes()
    builder.registry.fail("GET", builder.large, truncate=HALF)
    builder.registry.fail("GET", builder.large, status=200, body=whole)
    bench.built(builder.name)
    assert builder.gets(builder.large) == ["", f"bytes={HALF}-"]


def test_layer_that_came_wrong_is_fetched_once_more(bench: Bench, builder: Builder) -> None:
    body = bytearray(builder.layout.blob(builder.large).read_bytes())
    body[2_000_000] ^= 0xFF
    builder.registry.fail("GET", builder.large, status=200, body=bytes(body))
    bench.built(builder.name)
    assert builder.gets(builder.large) == ["", ""]
    assert not leftovers(bench.ocis2i)


def test_layer_that_always_comes_wrong_leaves_nothing(bench: Bench, builder: Builder) -> None:
    body = bytearray(builder.layout.blob(builder.large).read_bytes())
    body[2_000_000] ^= 0xFF
    builder.registry.fail("GET", builder.large, times=-1, status=200, body=bytes(body))
    done = bench.attempt(builder.name)
    assert done.code != 0
    assert builder.large in error(done)
    assert "came with digest" in error(done)
    assert len(builder.gets(builder.large)) == 3
    with pytest.raises(ValueError, match="not enough values"):
        place_of(bench.ocis2i.store, builder.diff_ids[-1])
    assert not leftovers(bench.ocis2i)


def test_layer_with_another_diff_id_is_refused_and_not_fetched_again(
    bench: Bench, registry: FakeRegistry
) -> None:
    builder = Builder(bench, registry)
    _lie_about_the_last_layer(builder)
    done = bench.attempt(builder.name)
    assert done.code != 0
    assert f"layer `{builder.large}`: its blob unpacks to" in error(done)
    assert builder.gets(builder.large) == [""]
    assert not leftovers(bench.ocis2i)


def _lie_about_the_last_layer(builder: Builder) -> None:
    """Lets the config promise another diff_id."""
    config = builder.document
    config["rootfs"]["diff_ids"][-1] = str(Digest.of(b"something else"))
    raw = json.dumps(config).encode()
    about = builder.registry.put_blob(REPOSITORY, raw)
    manifest = builder.layout.manifest
    manifest["config"] |= {"digest": str(about.digest), "size": about.size}
    media_type = "application/vnd.oci.image.manifest.v1+json"
    builder.registry.put_manifest(REPOSITORY, "1", json.dumps(manifest).encode(), media_type)


def test_killed_in_the_middle_then_finished(bench: Bench, builder: Builder) -> None:
    builder.registry.fail("GET", builder.large, truncate=HALF, silent=True)
    with bench.ocis2i.start("build", bench.source(), builder.name, bench.tag) as running:
        _wait_for_the_others(bench.ocis2i, builder)
        running.send_signal(signal.SIGKILL)
        running.communicate(timeout=PATIENCE_SECONDS)
    with pytest.raises(ValueError, match="not enough values"):
        place_of(bench.ocis2i.store, builder.diff_ids[-1])
    builder.registry.log.clear()
    bench.built(builder.name)
    assert [len(builder.gets(layer)) for layer in builder.layers] == [0, 0, 0, 1]
    bench.ocis2i.ok("prune")
    assert not leftovers(bench.ocis2i)


def test_killed_while_layers_are_unpacked_side_by_side(
    bench: Bench, registry: FakeRegistry, tmp_path: Path
) -> None:
    # Large enough for the faster decompressor; each stops when most of its files are there.
    files = {f"l{number}/f{one}": os.urandom(50_000) for number in range(3) for one in range(100)}
    more = [_layer_of(files, f"l{number}/") for number in range(3)]
    location = bench.image("wide", sh("cat /l0/f1 /l1/f99 /l2/f50 >all"), more_layers=more)
    layout = LayoutImage(bench.directory / "wide", "wide:1")
    name = offer(registry, location, "wide", "1")
    wide = layout.layers[-3:]
    config = json.loads(layout.blob(layout.manifest["config"]["digest"]).read_bytes())
    diff_ids = config["rootfs"]["diff_ids"][-3:]
    for digest in wide:
        registry.fail("GET", digest, truncate=4_500_000, silent=True)
    with other_store(tmp_path / "other") as ocis2i:
        argv = ("build", bench.source(), name, bench.tag)
        with ocis2i.start(*argv) as running:
            end = time.monotonic() + PATIENCE_SECONDS
            while len(list((ocis2i.store / "tmp").glob("*/fs/l?/f80"))) < 3:
                assert time.monotonic() < end, "the layers do not come"
                time.sleep(0.02)
            running.send_signal(signal.SIGKILL)
            running.communicate(timeout=PATIENCE_SECONDS)
        for diff_id in diff_ids:
            with pytest.raises(ValueError, match="not enough values"):
                place_of(ocis2i.store, diff_id)
        damaged = bytearray(layout.blob(wide[1]).read_bytes())
        damaged[4_000_000] ^= 0xFF
        registry.fail("GET", wide[1], times=3, status=200, body=bytes(damaged))
        done = ocis2i(*argv)
        assert done.code == 5
        assert wide[1] in error(done)
        with pytest.raises(ValueError, match="not enough values"):
            place_of(ocis2i.store, diff_ids[1])
        ocis2i.ok(*argv)
        for number, diff_id in enumerate(diff_ids):
            record, tree = unpacked(ocis2i.store, diff_id)
            assert (record["entries"], record["size"]) == (101, 100 * 50_000)
            for one in range(100):
                path = f"l{number}/f{one}"
                assert tree[f"fs/{path}"][1] == str(Digest.of(files[path]))
        ocis2i.ok("prune")
        assert not leftovers(ocis2i)


def _layer_of(files: dict[str, bytes], start: str) -> Layer:
    layer = Layer().dir(start)
    for path, content in files.items():
        if path.startswith(start):
            layer.file(path, content)
    return layer


def _wait_for_the_others(ocis2i: Program, builder: Builder) -> None:
    """Until the large layer has begun to come, and all others are there."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not builder.gets(builder.large) or not all(
        any(
            (ocis2i.store / kind / "sha256" / diff_id[7:] / "layer.json").exists() for kind in KINDS
        )
        for diff_id in builder.diff_ids[:-1]
    ):
        assert time.monotonic() < end, "the layers do not come"
        time.sleep(0.02)


def test_two_builds_at_once_share_one_download(bench: Bench, builder: Builder) -> None:
    source = bench.source()
    running = [
        bench.ocis2i.start("build", source, builder.name, f"{number}-{bench.tag}")
        for number in range(2)
    ]
    ended = [one.communicate(timeout=60) for one in running]
    assert [one.returncode for one in running] == [0, 0], ended
    assert len(builder.gets(builder.large)) == 1


def test_builds_run_without_the_registry_once_the_layers_are_here(
    bench: Bench, builder: Builder
) -> None:
    bench.built(builder.name)
    builder.registry.fail("GET", "/v2/", times=-1, status=404)
    builder.registry.fail("HEAD", "/v2/", times=-1, status=404)
    bench.built(builder.name, "--pull-policy", "never")
    bench.ocis2i.ok("prune")
    bench.built(builder.name, "--pull-policy", "never")
    (row,) = [
        row
        for row in bench.ocis2i.ok("images", "--json").document["images"]
        if row["name"] == builder.name
    ]
    assert row["layers"] == {"total": 4, "blobs": 0, "unpacked": 4, "origin": builder.name}
    done = bench.attempt(builder.name, "--output", f"oci:{bench.directory}/out:1")
    assert done.code != 0
    assert "404" in error(done)


def test_missing_layers_are_not_fetched_against_the_pull_policy(
    bench: Bench, builder: Builder, tmp_path: Path
) -> None:
    with other_store(tmp_path / "other") as other:
        beside = replace(bench, ocis2i=other)
        builder.registry.fail("GET", builder.large, times=-1, status=404)
        assert beside.attempt(builder.name).code != 0
        done = beside.attempt(builder.name, "--pull-policy", "never")
        assert done.code != 0
        assert "are only in" in error(done)
        assert "the pull policy is `never`" in error(done)
        assert f"ocis2i pull {builder.name}" in done.err


def test_output_of_a_result_fetches_what_is_not_here(
    bench: Bench, builder: Builder, tmp_path: Path
) -> None:
    bench.built(builder.name)
    bench.ocis2i.ok("push", bench.tag, f"oci:{tmp_path}/out:1")
    out = LayoutImage(tmp_path / "out", "1")
    assert [out.blob(layer["digest"]).exists() for layer in out.manifest["layers"]] == [True] * 5
    builder.registry.fail("GET", "blobs", times=-1, status=404)
    for layer in builder.layers:
        (bench.ocis2i.layout / "blobs/sha256" / layer[7:]).unlink()
    done = bench.ocis2i("push", bench.tag, f"oci:{tmp_path}/more:1")
    assert done.code != 0
    assert f"layers of the image are only in `{builder.name}`" in error(done)


def test_full_disk_is_said_and_leaves_nothing(
    bench: Bench, builder: Builder, tmp_path: Path
) -> None:
    launcher = (sys.executable, mounted.__file__, "tiny", str(tmp_path / "small"))
    listing = '"$@"; code=$?; ls -A "$OCIS2I_ROOT/tmp"; exit $code'
    launched = replace(bench.ocis2i, launcher=(*launcher, "sh", "-c", listing, "sh"))
    build = ("build", bench.source(), builder.name, bench.tag, "--isolation", "builtin")
    done = launched(*build, OCIS2I_ROOT=str(tmp_path / "small"))
    assert done.code == 8, done.err
    assert "the disk is full" in error(done)
    assert done.out == ""
