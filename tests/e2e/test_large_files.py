"""Large files are removed once they are in the layer: nobody may notice, whatever comes after."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, Maker, error, sh
from tests.fakes.images import BUSYBOX, Layer, LayoutImage
from tests.fakes.program import program
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

MIB = 1 << 20
TAR = "#!/bin/sh\ncd /opt && tar -cf - plain one two left\n"

# Files of every kind that a layer can have, and of a size that goes at once.
ASSEMBLE = (
    "large() { yes $1 | head -c ${2:-3000000} >$1; }",
    "cd /opt",
    "if [ -d /tmp/artifacts ]; then (cd /tmp/artifacts && wc -c plain one two left) >&2; fi",
    f"large plain; large edge {MIB}; large below {MIB - 1}",
    "large one; ln one two; mkdir d; ln one d/three",
    "large left; ln left other; rm other",
    "truncate -s 5000000 sparse; printf x | dd of=sparse bs=1 seek=3000000 conv=notrunc 2>&1",
    "large setuid; chmod 4711 setuid; large closed; chmod 000 closed",
    "mkdir shut dark; (cd shut; large in); (cd dark; large in); chmod 555 shut; chmod 0 dark",
    "echo more >>was; chmod 600 same; chmod 644 same; rm gone",
    "rm -r replaced; mkdir replaced; (cd replaced; large in)",
)


def builder(make: Maker, *more: str) -> str:
    base = Layer().dir("opt").dir("opt/replaced").file("opt/replaced/old", b"o" * 2 * MIB)
    for name in ("was", "same", "gone"):
        base.file(f"opt/{name}", name.encode() * MIB)
    scripts = {**sh(*ASSEMBLE, *more), "save-artifacts": TAR}
    return make(scripts, user="0", more_layers=[base])


def digests(image: LayoutImage) -> dict[str, str]:
    """What each file of the last layer has, by its name."""
    found = {}
    with tarfile.open(image.blob(image.layers[-1])) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isreg() else None
            data = file.read() if file else b""
            assert len(data) == member.size
            found[member.name.lstrip("./")] = hashlib.sha256(data).hexdigest()
    return found


def made_of(word: str, size: int = 3_000_000) -> str:
    line = f"{word}\n".encode()
    return hashlib.sha256((line * (size // len(line) + 1))[:size]).hexdigest()


def test_the_layer_is_that_of_a_build_whose_files_stay(
    bench: Bench, make: Maker, registry: FakeRegistry
) -> None:
    image, cache = builder(make), f"{registry.host}/cache:1"
    bench.built(image, "--timestamp", "1")
    swept = bench.result()
    found = digests(swept)
    for name in ("plain", "left", "setuid", "closed"):
        assert found[f"opt/{name}"] == made_of(name), name
    for name in ("shut", "dark", "replaced"):
        assert found[f"opt/{name}/in"] == made_of("in"), name
    assert found["opt/d/three"] == made_of("one")
    assert found["opt/edge"] == made_of("edge", MIB)
    assert found["opt/below"] == made_of("below", MIB - 1)
    sparse = bytearray(5_000_000)
    sparse[3_000_000] = ord("x")
    assert found["opt/sparse"] == hashlib.sha256(sparse).hexdigest()
    assert found["opt/was"] == hashlib.sha256(b"was" * MIB + b"more\n").hexdigest()
    assert "opt/same" not in found
    assert {"opt/.wh.gone", "opt/replaced/.wh..wh..opq"} <= found.keys()
    links = {name: one.linkname for name, one in swept.members().items() if one.islnk()}
    assert {name.lstrip("./"): to.lstrip("./") for name, to in links.items()} == {
        "opt/one": "opt/d/three",
        "opt/two": "opt/d/three",
    }
    # In a copy nothing is removed, nor where artifacts are saved from the tree afterwards.
    bench.built(image, "--timestamp", "1", "--rootfs", "copy", "--tag", "copied:1")
    bench.built(image, "--timestamp", "1", "--cache-to", cache, "--tag", "saved:1")
    assert bench.result("copied:1").layers[-1] == swept.layers[-1]
    assert bench.result("saved:1").layers[-1] == swept.layers[-1]
    again = bench.built(image, "--cache-from", cache)
    assert again.err.count("3000000 ") == 4


def test_a_runtime_image_gets_them_whole_and_so_does_the_next_build(
    bench: Bench, make: Maker
) -> None:
    image = builder(make)
    moved = [f"/opt/{name}:srv" for name in ("plain", "d", "sparse", "left")]
    flags = ("--runtime-image", image, *(word for one in moved for word in ("-a", one)))
    bench.built(image, *flags, "--incremental", "--timestamp", "1")
    first = bench.result()
    found = digests(first)
    place = next(name for name in found if name.endswith("/plain")).removesuffix("plain")
    assert found[f"{place}plain"] == made_of("plain")
    assert found[f"{place}left"] == made_of("left")
    assert found[f"{place}d/three"] == made_of("one")
    again = bench.built(image, *flags, "--incremental", "--timestamp", "1")
    assert again.err.count("3000000 ") == 4
    assert bench.result().layers[-1] == first.layers[-1]


def test_a_layer_that_is_refused_leaves_nothing_behind_and_no_half_container(
    make: Maker, tmp_path: Path
) -> None:
    image = builder(make, "printf %s $TOKEN >>plain")
    source = tmp_path / "source"
    source.mkdir()
    with program(tmp_path) as ocis2i:
        command = ("build", source, image, "app:1", "--keep-failed")
        over = ocis2i(*command, "--size-budget", "1M")
        assert over.code == 9
        assert "/opt/" in error(over)
        told = ocis2i(*command, "--build-env", "TOKEN=hunter2-hunter2")
        assert told.code == 9
        assert "opt/plain" in told.err
        assert "hunter2" not in told.err + told.out
        assert list((ocis2i.store / "builds").iterdir()) == []
        assert ocis2i("images").out.count("app") == 0
        ocis2i.ok(*command)
