"""One image by many names: built, pushed once, and written down by its digest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ocis2i.reference import Digest
from tests.conftest import needs, needs_registry
from tests.fakes.bench import Bench, error, warnings
from tests.fakes.docker_registry import docker_registry
from tests.fakes.images import BUSYBOX, busybox_builder
from tests.fakes.judges import skopeo_raw
from tests.fakes.program import Program
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.registry,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("builder")
    busybox_builder(path, "builder:1")
    return f"oci:{path}:builder:1"


@pytest.fixture(scope="module")
def built(shared: Program, builder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small image in the store of the module."""
    bench = Bench(shared, tmp_path_factory.mktemp("built"))
    shared.ok("build", bench.source(), builder, "built:1")
    return "built:1"


def uploads(registry: FakeRegistry) -> list[str]:
    """The digests of all blobs that were sent."""
    return [entry.query["digest"][0] for entry in registry.requests("PUT", "/blobs/uploads/")]


def written(registry: FakeRegistry) -> list[str]:
    """The tags and digests that manifests were put under."""
    return [entry.path.partition("/v2/")[2] for entry in registry.requests("PUT", "/manifests/")]


# --- several names ------------------------------------------------------------------------------


def test_build_by_several_names_sends_its_blobs_once(
    bench: Bench, builder: str, registry: FakeRegistry
) -> None:
    names = [f"{registry.host}/{one}" for one in ("team/app:1", "team/app:2", "mirror/app:1")]
    digest, iid = bench.directory / "digest", bench.directory / "iid"
    flags = ("-t", names[1], "--tag", names[2], "-t", names[0], "--json", "--push")
    source = bench.source()
    done = bench.ocis2i.ok(
        "build", source, builder, names[0], *flags, "--digest-file", digest, "--iidfile", iid
    )
    result = done.document
    assert result["names"] == names
    assert result["name"] == names[0]
    assert digest.read_text() == result["digest"]
    assert iid.read_text() == result["config"]
    config = json.loads(bench.result(names[1]).blob(iid.read_text()).read_bytes())
    assert config["rootfs"]["diff_ids"]
    assert {bench.result(one).manifest["config"]["digest"] for one in names} == {iid.read_text()}
    # The second repository is on the same registry: it mounts what the first one has.
    layers = bench.result(names[0]).layers
    assert sorted(uploads(registry)) == sorted([*layers, result["config"], result["config"]])
    assert written(registry) == [
        "team/app/manifests/1", "team/app/manifests/2", "mirror/app/manifests/1",
    ]  # fmt: skip


def test_first_tag_flag_stands_for_the_argument(bench: Bench, builder: str) -> None:
    first = bench.tag
    done = bench.ocis2i.ok("build", bench.source(), builder, "-t", first, "-t", f"other-{first}")
    reference = f"docker.io/library/{first.partition(':')[0]}@"
    assert done.out.startswith(reference)
    assert bench.result(first).layers == bench.result(f"other-{first}").layers
    again = bench.ocis2i.ok(
        "build", bench.source(), builder, "-t", first, "-t", "b", "--as-dockerfile",
        f"{bench.directory}/out/",
    )  # fmt: skip
    assert "more than one --tag has no meaning with --as-dockerfile" in warnings(again)


# --- pushing again ------------------------------------------------------------------------------


def test_push_of_what_is_there_is_one_question(
    bench: Bench, built: str, registry: FakeRegistry
) -> None:
    target = f"{registry.host}/app:1"
    pushed = bench.ocis2i.ok("push", built, target).out.strip()
    for again in (target, pushed):
        registry.log.clear()
        bench.ocis2i.ok("push", built, again)
        # And before it the one whether there is TLS.
        assert [one.path for one in registry.log if one.method != "HEAD"] == ["/v2/"]
        assert len(registry.requests("HEAD", "/manifests/")) == 1


def test_push_to_a_digest_writes_no_tag(bench: Bench, built: str, registry: FakeRegistry) -> None:
    digest = bench.ocis2i.ok("inspect", built).document["digest"]
    target = f"{registry.host}/app@{digest}"
    assert bench.ocis2i.ok("push", built, target).out.strip() == target
    assert written(registry) == [f"app/manifests/{digest}"]
    done = bench.ocis2i("push", built, f"{registry.host}/app@sha256:{'0' * 64}")
    assert done.code == 2
    assert "cannot be pushed as" in error(done)


@needs("skopeo")
@needs_registry
def test_all_tags_of_a_name_are_pushed(
    bench: Bench, built: str, builder: str, tmp_path: Path
) -> None:
    with docker_registry(tmp_path / "registry") as server:
        name = f"{server.host}/team/all"
        source = bench.source()
        first = ("-t", f"{name}:1", "-t", f"{name}:latest")
        digest = bench.ocis2i.ok("build", source, builder, *first, "--json").document["digest"]
        (source / "index.html").write_text("another\n")
        other = bench.ocis2i.ok("build", source, builder, f"{name}:2", "--json").document["digest"]
        done = bench.ocis2i.ok("push", "--all-tags", name, "--json").document
        assert [(one["where"], one["digest"]) for one in done["pushed"]] == [
            (f"{name}:1", digest), (f"{name}:latest", digest), (f"{name}:2", other),
        ]  # fmt: skip
        again = bench.ocis2i.ok("push", "--all-tags", name).out.splitlines()
        assert again == [one["reference"] for one in done["pushed"]]
        for one in done["pushed"]:
            assert str(Digest.of(skopeo_raw(one["where"]))) == one["digest"]


# --- files --------------------------------------------------------------------------------------


def test_failing_push_leaves_no_file(
    bench: Bench, built: str, builder: str, registry: FakeRegistry
) -> None:
    registry.fail("PUT", "/manifests/", times=-1, status=403)
    path = bench.directory / "digest"
    for words in (
        ("push", built, f"{registry.host}/app:1"),
        ("build", bench.source(), builder, f"{registry.host}/app:1", "--push"),
        ("upload", bench.source(), f"{registry.host}/app:1"),
    ):
        path.write_text("of an earlier one")
        done = bench.ocis2i(*words, "--digest-file", path)
        assert done.code == 5, done.err
        assert not path.exists()


def test_file_that_cannot_be_written_is_said_before_the_work(
    bench: Bench, built: str, registry: FakeRegistry
) -> None:
    nowhere, target = bench.directory / "no/file", f"{registry.host}/app:1"
    build = ("build", bench.source(), "oci:/no/builder:1", target)
    for words, flag in (
        ((*build, "--push", "--digest-file", nowhere), "--digest-file"),
        ((*build, "--iidfile", nowhere), "--iidfile"),
        (("push", built, target, "--digestfile", nowhere), "--digest-file"),
        (("upload", bench.source(), target, "--digest-file", nowhere), "--digest-file"),
    ):
        done = bench.ocis2i(*words)
        assert done.code == 8, done.err
        assert f"{flag}: cannot write `{nowhere}`: No such file or directory" in error(done)
        assert "create the directory first" in done.err
    assert registry.log == []


def test_wrong_words_are_explained(bench: Bench, built: str, registry: FakeRegistry) -> None:
    name = f"{registry.host}/app"
    build = ("build", ".", "b")
    for words, code, said in (
        ((*build, "-t", f"x@sha256:{'0' * 64}"), 2, "its digest is not known yet"),
        ((*build, "app", "--digest-file", "x"), 2, "--digest-file has no meaning without --push"),
        ((*build, "app", "--iidfile", ""), 2, "--iidfile is empty"),
        (("push", "--all-tags", f"{name}:1"), 2, "names one image"),
        (("push", "--all-tags", name), 4, "has no tag of"),
        (("push", "--all-tags", name, f"{name}2"), 2, "no place for another name"),
        (("push", "--all-tags", name, "--digest-file", "x"), 2, "exclude each other"),
        (("pull", name, "--all-platforms", "--platform", "linux/arm64"), 2, "exclude each other"),
        (("push", built, name, "--platform", "linux"), 2, "invalid platform"),
    ):
        done = bench.ocis2i(*words, cwd=bench.directory)
        assert done.code == code, done.err
        assert said in error(done)
    assert registry.log == []
