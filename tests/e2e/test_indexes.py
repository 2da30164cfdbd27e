"""Images of several platforms under one name, with the real registry and other programs' eyes."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i.manifest import DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST
from ocis2i.reference import Digest, Platform
from tests.conftest import needs, needs_registry
from tests.fakes.bench import Bench, error
from tests.fakes.docker_registry import docker_registry
from tests.fakes.images import BUSYBOX, Layer, busybox_builder, make_index, make_layout
from tests.fakes.judges import schema_check, skopeo_copy, skopeo_raw
from tests.fakes.program import Program, program

pytestmark = [
    pytest.mark.registry,
    needs_registry,
    needs("skopeo"),
]

HERE = str(Platform.of_host())
# One that this host is not, and another one.
THERE, ELSEWHERE = [one for one in ("linux/s390x", "linux/arm/v7", "linux/ppc64le") if one != HERE][
    :2
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with docker_registry(tmp_path_factory.mktemp("registry")) as running:
        yield running.host


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Another registry, from which nothing can be mounted."""
    with docker_registry(tmp_path_factory.mktemp("other")) as running:
        yield running.host


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of three platforms, one of Docker's types; an index, and one with an attestation."""
    path = tmp_path_factory.mktemp("layout")
    found = {
        platform: make_layout(
            path,
            platform.replace("/", "-"),
            [Layer().file("shared", "the same"), Layer().file("platform", platform)],
            platform=platform,
            docker=platform == ELSEWHERE,
        )
        for platform in (HERE, THERE, ELSEWHERE)
    }
    make_index(path, "all", found)
    found["unknown/unknown"] = make_layout(
        path, None, [Layer().file("proof")], platform="unknown/unknown", listed=False
    )
    make_index(path, "attested", found)
    return path


@pytest.fixture
def fresh(tmp_path: Path, shared: Program) -> Iterator[Program]:
    """A store of its own; `shared` is what refuses root."""
    (tmp_path / "own").mkdir()
    with program(tmp_path / "own") as running:
        yield running


def put(layout: Path, name: str, target: str) -> str:
    """Copies an index of the layout to a registry with skopeo; its name with the digest."""
    options = ("--all", "--dest-tls-verify=false", "--preserve-digests")
    skopeo_copy(f"oci:{layout}:{name}", f"docker://{target}", *options)
    return f"{target.rpartition(':')[0]}@{Digest.of(skopeo_raw(target))}"


def native(layout: Path, target: str) -> list[str]:
    """The names, by digest, of one image for each platform in a registry."""
    put(layout, "all", target)
    entries = json.loads(skopeo_raw(target))["manifests"]
    return [f"{target.rpartition(':')[0]}@{entry['digest']}" for entry in entries]


# --- pull, push, inspect, rm --------------------------------------------------------------------


def test_pull_keeps_the_index_with_the_images_of_some_platforms(
    fresh: Program, server: str, layout: Path
) -> None:
    name = f"{server}/kept:1"
    index = put(layout, "attested", name)
    pulled = fresh.ok("pull", name).out.strip()
    fresh.ok("pull", name, "--platform", THERE)
    (row,) = fresh.ok("images", "--json").document["images"]
    assert row["digest"] == index.partition("@")[2]
    assert [one["platform"] for one in row["index"] if one["in_store"]] == [HERE, THERE]
    assert f"{HERE},{THERE} (2 of 4)" in fresh.ok("images").out
    # An image of it is found by its own digest, and has no other name.
    digest = pulled.partition("@")[2]
    assert fresh.ok("inspect", digest).document["platform"] == HERE
    assert "is an image of an index" in error(fresh("rm", digest))
    fresh.ok("rm", name)
    assert fresh.ok("prune", "--json").document["blobs"] > 5
    assert list((fresh.layout / "blobs/sha256").iterdir()) == []


def test_inspect_shows_the_image_and_the_index(bench: Bench, server: str, layout: Path) -> None:
    name = f"{server}/shown:1"
    index = put(layout, "all", name)
    bench.ocis2i.ok("pull", name)
    document = bench.ocis2i.ok("inspect", name).document
    assert document["platform"] == HERE
    assert document["index"]["digest"] == index.partition("@")[2]
    offered = [one["platform"] for one in document["index"]["manifests"]]
    assert offered == [HERE, THERE, ELSEWHERE]
    assert bench.ocis2i.ok("inspect", "--raw", name).out.encode() == skopeo_raw(name)
    there = ("inspect", f"docker://{name}", "--config", "--platform", THERE)
    assert bench.ocis2i.ok(*there).document["architecture"] == THERE.split("/")[1]
    assert "it is there for" in bench.ocis2i("inspect", name, "--platform", "plan9/386").err


def test_image_that_the_store_lacks_of_its_index_is_fetched_or_named(
    fresh: Program, server: str, layout: Path
) -> None:
    name = f"{server}/lacking:1"
    index = put(layout, "all", name)
    fresh.ok("pull", name, "--platform", THERE)
    assert fresh.ok("inspect", name).document["digest"] == index.partition("@")[2]
    done = fresh("run", "--pull-policy", "never", name)
    assert done.code == 4
    assert f"for `{HERE}` is not in the store, and the pull policy is `never`" in error(done)
    assert f"ocis2i pull {name}" in done.err
    # It has nothing to run: what it says then shows that it was fetched.
    assert "has no command" in error(fresh("run", name))


def test_index_goes_on_with_all_its_images(
    fresh: Program, server: str, other: str, layout: Path, tmp_path: Path
) -> None:
    name, target, file = f"{server}/whole:1", f"{other}/copied:1", tmp_path / "digest"
    put(layout, "attested", name)
    fresh.ok("pull", name)
    file.write_text("of an earlier push")
    done = fresh("push", name, target, "--digest-file", file)
    assert done.code == 4
    assert f"{THERE}, {ELSEWHERE}, unknown/unknown" in error(done)
    assert "--all-platforms" in done.err
    assert not file.exists()
    fresh.ok("pull", name, "--all-platforms")
    pushed = fresh.ok("push", name, target, "--digest-file", file).out.strip()
    assert skopeo_raw(target) == skopeo_raw(name)
    assert pushed == f"{other}/copied@{file.read_text()}"
    # Every image of it can be had, whole.
    back = f"oci:{tmp_path}/back"
    skopeo_copy(f"docker://{target}", back, "--all", "--src-tls-verify=false")
    fresh.ok("push", name, f"{other}/copied:one", "--platform", THERE)
    assert json.loads(skopeo_raw(f"{other}/copied:one"))["mediaType"] == OCI_MANIFEST


def test_index_goes_alone_to_where_its_images_are(bench: Bench, server: str, layout: Path) -> None:
    name = f"{server}/promoted:1"
    put(layout, "all", name)
    bench.ocis2i.ok("pull", name)
    bench.ocis2i.ok("push", name, f"{server}/promoted:2")
    assert skopeo_raw(f"{server}/promoted:2") == skopeo_raw(name)


@pytest.mark.sandbox
@pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed")
def test_index_is_a_builder_also_without_its_registry(
    bench: Bench, server: str, other: str, tmp_path: Path
) -> None:
    path = tmp_path / "builder"
    busybox_builder(path, None)
    (entry,) = json.loads((path / "index.json").read_bytes())["manifests"]
    make_index(path, "all", {HERE: Digest.parse(entry["digest"])})
    name = f"{server}/builder:1"
    put(path, "all", name)
    first = bench.ocis2i.ok("build", bench.source(), name, f"{other}/app:1", "--json").document
    assert first["builder"]["digest"] == entry["digest"]
    # Of the image, not of the index: so it is what a rebuild takes.
    assert bench.result(f"{other}/app:1").labels["io.openshift.s2i.build.image"] == name
    never = ("--pull-policy", "never", "--json")
    again = bench.ocis2i.ok("build", bench.source(), name, f"{other}/app:2", *never).document
    assert again["layers"][:-1] == first["layers"][:-1]
    bench.ocis2i.ok("push", f"{other}/app:1")
    back = f"oci:{tmp_path}/back"
    skopeo_copy(f"docker://{other}/app:1", back, "--src-tls-verify=false")


# --- index create -------------------------------------------------------------------------------


def test_images_of_native_jobs_are_joined(
    fresh: Program, server: str, layout: Path, tmp_path: Path
) -> None:
    images = native(layout, f"{server}/joined:source")
    target, file = f"{server}/joined:all", tmp_path / "digest"
    words = ("index", "create", target, *images, "--push", "--annotation", "org.example=yes")
    done = fresh.ok(*words, "--digest-file", file)
    index = skopeo_raw(target)
    assert done.out.strip() == f"{server}/joined@{Digest.of(index)}"
    assert file.read_text() == str(Digest.of(index))
    schema_check("index", index)
    document = json.loads(index)
    assert document["mediaType"] == OCI_INDEX
    assert document["annotations"] == {"org.example": "yes"}
    entries = document["manifests"]
    assert [one["mediaType"] for one in entries] == [OCI_MANIFEST, OCI_MANIFEST, DOCKER_MANIFEST]
    assert [f"{server}/joined@{one['digest']}" for one in entries] == images
    assert [one["size"] for one in entries] == [len(skopeo_raw(one)) for one in images]
    said = ["/".join(one["platform"].values()) for one in entries]
    assert sorted(map(sorted, (one.split("/") for one in said))) == sorted(
        map(sorted, (one.split("/") for one in (HERE, THERE, ELSEWHERE)))
    )
    # Nothing came into the store for it.
    assert list((fresh.layout / "blobs/sha256").iterdir()) == []
    assert fresh.ok("pull", target, "--platform", THERE).out.strip() == images[1]


def test_images_from_elsewhere_are_copied_into_the_repository(
    bench: Bench, server: str, other: str, layout: Path
) -> None:
    near, *_ = native(layout, f"{server}/near:1")
    far = put(layout, "attested", f"{other}/far:1")
    split = f"{other}/far@{json.loads(skopeo_raw(far))['manifests'][1]['digest']}"
    bench.ocis2i.ok("index", "create", f"{server}/target:1", near, split, "--push")
    # An index counts as its images, and what it says of them stays.
    bench.ocis2i.ok("index", "create", f"{server}/target:2", far, "--push")
    joined = json.loads(skopeo_raw(f"{server}/target:2"))["manifests"]
    assert joined == json.loads(skopeo_raw(far))["manifests"]
    for tag, number in (("1", 2), ("2", 4)):
        back = bench.directory / tag
        place = f"docker://{server}/target:{tag}"
        skopeo_copy(place, f"oci:{back}", "--all", "--src-tls-verify=false")
        assert len(json.loads(skopeo_raw(f"{server}/target:{tag}"))["manifests"]) == number


@needs("buildah")
def test_buildah_finds_the_image_of_an_architecture(
    bench: Bench, server: str, layout: Path, tmp_path: Path
) -> None:
    here, there, _ = native(layout, f"{server}/seen:source")
    bench.ocis2i.ok("index", "create", f"{server}/seen:all", here, there, "--push")
    architecture = THERE.split("/")[1]
    storage = ("--root", f"{tmp_path}/root", "--runroot", f"{tmp_path}/run")
    command = ["buildah", *storage, "--storage-driver", "vfs"]
    wanted = ("pull", "--quiet", "--arch", architecture, "--tls-verify=false", f"{server}/seen:all")
    pulled = subprocess.run([*command, *wanted], capture_output=True, text=True, check=False)
    assert pulled.returncode == 0, pulled.stderr
    inspect = [*command, "inspect", "--type", "image", pulled.stdout.strip()]
    seen = json.loads(subprocess.run(inspect, capture_output=True, check=True).stdout)
    assert seen["OCIv1"]["architecture"] == architecture
    subprocess.run([*command, "rmi", "--all"], capture_output=True, check=True)


def test_index_of_the_store_is_pushed_later(bench: Bench, server: str, layout: Path) -> None:
    here, there, _ = native(layout, f"{server}/later:source")
    bench.ocis2i.ok("pull", here)
    name = f"{server}/later/joined:1"
    made = bench.ocis2i.ok("index", "create", name, here, there, "--json").document
    assert not made["pushed"]
    assert [one["in_store"] for one in made["manifests"]] == [True, True]
    assert bench.ocis2i.ok("push", name).out.strip() == made["reference"]
    assert str(Digest.of(skopeo_raw(name))) == made["digest"]


def test_wrong_words_about_indexes_are_explained(bench: Bench, server: str, layout: Path) -> None:
    here, *_ = native(layout, f"{server}/wrong:1")
    new = f"{server}/wrong:new"
    for words, code, said in (
        (("add", new, here), 2, "`index add` is not there"),
        (("create", here, here), 2, "its digest is not known yet"),
        (("create", new, here, f"docker://{here}"), 2, "are both for"),
        (("create", new, here, "--digest-file", "x"), 2, "--digest-file has no meaning"),
        (("create", new, f"oci:{layout}"), 2, "neither in a registry nor in the store"),
        (("create", new, f"{server}/wrong:none", "--push"), 5, "MANIFEST_UNKNOWN"),
    ):
        done = bench.ocis2i("index", *words)
        assert done.code == code, done.err
        assert said in error(done)
