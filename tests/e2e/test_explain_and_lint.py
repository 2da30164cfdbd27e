"""`explain` and `lint` on real images and directories."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, error, offer, sh
from tests.fakes.images import Layer
from tests.fakes.program import Program
from tests.fakes.registry import FakeRegistry

PROJECT = Path(__file__).parents[2]
DECLARED = json.dumps(
    {
        "version": 1,
        "parameters": [
            {
                "name": "GOALS",
                "required": True,
                "example": "test",
                "title": {"en": "Goals", "zh": "目标"},
            }
        ],
    }
)
LABELS = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i"}


def test_a_label_is_explained_without_any_layer(bench: Bench, registry: FakeRegistry) -> None:
    image = bench.image("b", sh("true"), {"Labels": {**LABELS, "io.ocis2i.parameters": DECLARED}})
    name = offer(registry, image, "builder", "1")
    registry.log.clear()
    done = bench.ocis2i.ok("explain", name, "--no-tls-verify", LC_ALL="zh_CN.UTF-8", PYTHONUTF8="1")
    assert "GOALS  (文本, 必填)" in done.out
    assert "目标" in done.out
    line = next(one.strip() for one in done.out.splitlines() if one.startswith("  ocis2i build"))
    assert line == f"ocis2i build SOURCE {name} NAME -P GOALS=test"
    asked = [path for method, path in blobs_asked(registry) if method == "GET"]
    assert len(asked) == 1, "the config alone"
    known = bench.ocis2i.ok("explain", name, "--no-tls-verify", "--files", "--json").document
    assert known["scripts"] == {
        "assemble": "/usr/libexec/s2i/assemble", "run": "/usr/libexec/s2i/run"
    }  # fmt: skip
    assert known["parameters_from"] == "label io.ocis2i.parameters"


def blobs_asked(registry: FakeRegistry) -> list[tuple[str, str]]:
    return [(one.method, one.path) for one in registry.log if "/blobs/" in one.path]


def test_a_file_is_found_in_the_layers(bench: Bench) -> None:
    layer = Layer().file("usr/libexec/s2i/parameters.json", DECLARED)
    builder = bench.image("f", sh("true"), more_layers=[layer])
    text = bench.ocis2i.ok("explain", builder, "--lang", "en").out
    assert "GOALS  (text, required)" in text
    assert "In the image: assemble, run" in text
    assert "declares no parameters" in bench.ocis2i.ok("explain", builder, "--no-files").out
    large = bench.image("l", sh("true"), more_layers=[
        Layer().file("usr/libexec/s2i/parameters.json", " " * (2 << 20))
    ])  # fmt: skip
    done = bench.ocis2i("explain", large)
    assert done.code == 4
    assert "at most 65536 are read" in error(done)


@pytest.mark.parametrize("where", ["fixtures/builders", "ocis2i/templates"])
def test_our_own_scripts_have_no_faults(shared: Program, where: str) -> None:
    done = shared("lint", PROJECT / where, "--strict")
    assert (done.code, done.out) == (0, "")


def test_a_new_builder_has_no_faults(shared: Program, tmp_path: Path) -> None:
    shared.ok("create", "my-builder", tmp_path / "new")
    assert shared("lint", tmp_path / "new", "--strict").code == 0


def test_faults_of_an_image_are_found_with_their_places(bench: Bench) -> None:
    scripts: dict[str, str | None] = {
        "assemble": "#!/bin/bash\nset -e\ncp -R /tmp/src/. ./\n",
        "run": "#!/bin/sh -e\n./app\n",
        "save-artifacts": "#!/bin/sh -e\npushd /go\ntar cf - src\ntar cf - pkg\ncd -\n",
    }
    builder = bench.image("bad", scripts, {"Cmd": ["/usr/libexec/s2i/bin/usage"]})
    done = bench.ocis2i("lint", builder)
    assert done.code == 9
    found = {tuple(line.split(": ")[:2]) for line in done.out.splitlines() if line[0] != " "}
    scripts_at = "/usr/libexec/s2i"
    assert found == {
        ("image", "error S2I033"),
        (scripts_at, "warning S2I008"),
        (f"{scripts_at}/assemble:1", "error S2I006"),
        (f"{scripts_at}/run:2", "warning S2I012"),
        (f"{scripts_at}/run:2", "warning S2I013"),
        (f"{scripts_at}/save-artifacts:2", "error S2I011"),
        (f"{scripts_at}/save-artifacts:2", "error S2I018"),
        (f"{scripts_at}/save-artifacts:4", "warning S2I019"),
        (f"{scripts_at}/save-artifacts:5", "error S2I017"),
    }
    ignored = [
        word for code in "033 006 011 018 017".split() for word in ("--ignore", f"S2I{code}")
    ]
    assert bench.ocis2i("lint", builder, *ignored).code == 0
    strict = bench.ocis2i("lint", builder, *ignored, "--strict", "--json")
    assert strict.code == 9
    assert (strict.document["state"], strict.document["warnings"]) == ("failed", 4)
    assert strict.document["findings"][0]["mend"]


def test_what_cannot_be_looked_at(shared: Program, tmp_path: Path) -> None:
    nothing = shared("lint", tmp_path)
    assert nothing.code == 4
    assert "there are no S2I scripts" in error(nothing)
    for path in (tmp_path / "absent", "absent/", Path(__file__)):
        absent = shared("lint", path)
        assert absent.code == 3
        assert f"`{path}` is no directory" in error(absent)
    (tmp_path / "assemble").write_bytes(b"#!/bin/sh\n" + b"#" * (1 << 20))
    assert shared("lint", tmp_path).code == 3
    (tmp_path / "assemble").unlink()
    (tmp_path / "assemble").symlink_to("/dev/zero")
    (tmp_path / "run").write_text('#!/bin/sh -e\nexec ./a "$@"\n')
    done = shared("lint", tmp_path, "--json")
    assert done.code == 9
    assert {one["code"] for one in done.document["findings"]} == {"S2I001", "S2I002"}
    assert shared("lint", tmp_path, "--ignore", "S2I9").code == 2
