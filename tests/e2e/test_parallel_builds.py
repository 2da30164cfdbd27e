"""Several builds in one store at the same moment."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from tests.conftest import needs, needs_registry
from tests.fakes.docker_registry import docker_registry
from tests.fakes.images import BUSYBOX, Layer, busybox_builder
from tests.fakes.judges import have, skopeo_copy, validate_layout
from tests.fakes.program import Done, Program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]


@pytest.fixture
def slow_builder(tmp_path: Path) -> str:
    """A builder that takes a while to copy and to unpack, so that builds meet while they do."""
    layer = Layer().dir("many")
    for number in range(1500):
        layer.file(f"many/{number}", f"{number}\n" * 20)
    path = tmp_path / "slow-builder"
    busybox_builder(path, more_layers=[layer, Layer().dir("many").whiteout("many/7")])
    return f"oci:{path}:builder:latest"


def together(
    ocis2i: Program, commands: Sequence[Sequence[str | Path]], **variables: str
) -> list[Done]:
    """Starts all command lines at once and waits for the last."""
    running = [ocis2i.start(*command, **variables) for command in commands]
    done = []
    try:
        for process in running:
            out, err = process.communicate(timeout=240)
            done.append(Done(process.returncode, out, err))
    finally:
        for process in running:
            process.kill()
            process.wait()
    return done


def all_ok(done: Sequence[Done]) -> None:
    assert [(one.code, one.err) for one in done if one.code] == []


def names_in(ocis2i: Program) -> set[str]:
    index = json.loads((ocis2i.layout / "index.json").read_bytes())
    return {
        entry["annotations"]["org.opencontainers.image.ref.name"] for entry in index["manifests"]
    }


def layer_records(ocis2i: Program) -> Mapping[str, tuple[int, int]]:
    """The mark of each unpacked layer that it is complete: inode and time of its making."""
    marks = (ocis2i.store / "layers").glob("*/*/layer.json")
    return {mark.parent.name: (mark.stat().st_ino, mark.stat().st_ctime_ns) for mark in marks}


def assert_tidy(ocis2i: Program) -> None:
    """Nothing half done is left, and all that is there is whole."""
    for name in ("tmp", "builds"):
        assert list((ocis2i.store / name).iterdir()) == []
    for tree in (ocis2i.store / "layers").glob("*/*"):
        assert (tree / "layer.json").is_file()
        assert (tree / "fs").is_dir()
    validate_layout(ocis2i.layout, strict=False)


def sources(directory: Path, count: int) -> list[Path]:
    made = [directory / f"source-{number}" for number in range(count)]
    for path in made:
        path.mkdir()
        (path / "index.html").write_text(f"page of {path.name}\n")
    return made


@pytest.mark.parametrize("count", [2, 4])
def test_cold_builds_at_once_share_the_layers_of_their_builder(
    ocis2i: Program, slow_builder: str, tmp_path: Path, count: int
) -> None:
    commands = [
        ("build", source, slow_builder, f"app-{number}:1")
        for number, source in enumerate(sources(tmp_path, count))
    ]
    all_ok(together(ocis2i, commands))
    assert names_in(ocis2i) == {f"docker.io/library/app-{number}:1" for number in range(count)}
    assert_tidy(ocis2i)
    records = layer_records(ocis2i)
    assert len(records) == 4
    for number in range(count):
        page = ocis2i.ok("run", f"app-{number}:1", "cat", "/opt/app-root/src/index.html")
        assert page.out == f"page of source-{number}\n"
    # `run` unpacked the top layers, and left the others as they were.
    assert records.items() <= layer_records(ocis2i).items()


def test_each_layer_is_unpacked_by_one_of_the_builds_only(
    ocis2i: Program, slow_builder: str, tmp_path: Path
) -> None:
    """A layer is unpacked in a new directory of `tmp/`, which then becomes the layer.

    Watched from outside: the number of different directories with a tree in `tmp/` is the number
    of layers. What is missed between two looks cannot make the test fail.
    """
    running = [
        ocis2i.start("build", source, slow_builder, f"app-{number}:1", "-q")
        for number, source in enumerate(sources(tmp_path, 3))
    ]
    unpacked: set[int] = set()
    try:
        while any(process.poll() is None for process in running):
            for tree in (*ocis2i.store.glob("tmp/*/fs"), *ocis2i.store.glob("layers/*/*/fs")):
                with contextlib.suppress(FileNotFoundError):
                    unpacked.add(tree.stat().st_ino)
        assert [process.wait() for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
            process.communicate()
    assert len(unpacked) == 4


def test_builds_of_one_name_leave_one_image_under_it(
    ocis2i: Program, builder: str, tmp_path: Path
) -> None:
    commands = [("build", source, builder, "app:1") for source in sources(tmp_path, 3)]
    done = together(ocis2i, commands)
    all_ok(done)
    assert names_in(ocis2i) == {"docker.io/library/app:1"}
    digest = ocis2i.ok("inspect", "app:1").document["digest"]
    assert digest in {one.out.strip().rpartition("@")[2] for one in done}
    assert_tidy(ocis2i)


def test_same_build_twice_at_once_gives_one_digest(
    ocis2i: Program, slow_builder: str, source: Path
) -> None:
    command = ("build", source, slow_builder, "app:1", "--timestamp", "1000000000")
    done = together(ocis2i, [command, command])
    all_ok(done)
    assert done[0].out == done[1].out
    assert_tidy(ocis2i)


@needs("runc")
def test_executors_can_work_side_by_side(
    ocis2i: Program, slow_builder: str, tmp_path: Path
) -> None:
    commands = [
        ("build", source, slow_builder, f"app-{number}:1", "--isolation", isolation)
        for number, (source, isolation) in enumerate(
            zip(sources(tmp_path, 2), ("runc", "builtin"), strict=True)
        )
    ]
    all_ok(together(ocis2i, commands))
    assert_tidy(ocis2i)


def test_build_that_fails_does_not_disturb_the_other(
    ocis2i: Program, slow_builder: str, tmp_path: Path
) -> None:
    one, other = sources(tmp_path, 2)
    (one / ".s2i/bin").mkdir(parents=True)
    (one / ".s2i/bin/assemble").write_text("#!/bin/sh\nexit 3\n")
    failed, built = together(
        ocis2i, [("build", path, slow_builder, f"{path.name}:1") for path in (one, other)]
    )
    assert (failed.code, built.code) == (7, 0)
    assert names_in(ocis2i) == {"docker.io/library/source-1:1"}
    assert_tidy(ocis2i)


def test_prune_leaves_a_running_build_alone(
    ocis2i: Program, slow_builder: str, tmp_path: Path
) -> None:
    """The build waits in assemble until `prune` was there."""
    (source,) = sources(tmp_path, 1)
    (source / ".s2i/bin").mkdir(parents=True)
    (source / ".s2i/bin/assemble").write_text(
        "#!/bin/sh\necho waiting\nwhile [ ! -e /go/on ]; do sleep 0.05; done\n"
        'cp /many/100 /tmp/src/index.html "$HOME"\n'
    )
    go = tmp_path / "go"
    go.mkdir()
    process = ocis2i.start("build", source, slow_builder, "app:1", "-v", f"{go}:/go")
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if line == "waiting\n":
                break
        pruned = ocis2i.ok("prune", "--all", "--json")
        assert pruned.document["busy"] is True
        assert pruned.document["builds"] == pruned.document["layers"] == 0
        assert "the store is in use" in pruned.err
        (go / "on").touch()
        process.stderr.read()
        assert process.wait(timeout=120) == 0
    finally:
        process.kill()
        process.communicate()
    page = ocis2i.ok("run", "app:1", "cat", "/opt/app-root/src/index.html")
    assert page.out == "page of source-0\n"
    assert_tidy(ocis2i)


def test_prunes_and_builds_in_a_row_of_races(ocis2i: Program, builder: str, tmp_path: Path) -> None:
    for round_number in range(2):
        directory = tmp_path / str(round_number)
        directory.mkdir()
        builds: list[tuple[str | Path, ...]] = [
            ("build", source, builder, f"app-{number}:{round_number}")
            for number, source in enumerate(sources(directory, 2))
        ]
        all_ok(together(ocis2i, [("prune",), *builds, ("prune",)]))
        assert {
            f"docker.io/library/app-{number}:{round_number}" for number in range(2)
        } <= names_in(ocis2i)
    assert len(names_in(ocis2i)) == 4
    ocis2i.ok("prune")
    assert_tidy(ocis2i)
    page = ocis2i.ok("run", "app-1:0", "cat", "/opt/app-root/src/index.html")
    assert page.out == "page of source-1\n"


def test_build_while_images_are_listed_inspected_and_removed(
    ocis2i: Program, builder: str, tmp_path: Path
) -> None:
    (first, second) = sources(tmp_path, 2)
    ocis2i.ok("build", first, builder, "old:1")
    commands: list[tuple[str | Path, ...]] = [
        ("build", second, builder, "new:1"),
        ("images", "--json"),
        ("inspect", "--config", "old:1"),
        ("images",),
    ]
    all_ok(together(ocis2i, commands))
    all_ok(together(ocis2i, [("rm", "old:1"), ("build", first, builder, "newer:1")]))
    assert names_in(ocis2i) == {"docker.io/library/new:1", "docker.io/library/newer:1"}


@pytest.mark.registry
@needs_registry
def test_builds_that_pull_and_push_at_once(
    ocis2i: Program, slow_builder: str, tmp_path: Path
) -> None:
    if not have("skopeo"):
        pytest.skip("skopeo is not installed")
    with docker_registry(tmp_path / "registry") as registry:
        name = f"{registry.host}/builders/slow:1"
        skopeo_copy(slow_builder, f"docker://{name}", "--dest-tls-verify=false")
        commands = [
            ("build", source, name, f"{registry.host}/team/app-{number}:1", "--push")
            for number, source in enumerate(sources(tmp_path, 2))
        ]
        all_ok(together(ocis2i, commands))
        assert_tidy(ocis2i)
        for number in range(2):
            source, copy = f"docker://{registry.host}/team/app-{number}:1", tmp_path / f"c{number}"
            skopeo_copy(source, copy, "--src-tls-verify=false")
            validate_layout(copy)
