"""Copies of an image on disks that share blocks between files: no data is written twice.

The disks are made here, out of files, which takes root; ocis2i is root of a user namespace only.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.e2e.test_copy_rootfs import ASSEMBLE, data_layer
from tests.e2e.test_doctor import examined, facility
from tests.fakes.bench import Bench
from tests.fakes.hosts import Host
from tests.fakes.images import BUSYBOX, Layer
from tests.fakes.program import Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.as_root,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

# What the tools take: xfs wants 300 MiB.
DISK_BYTES = 320 << 20
DATA_BYTES = 32 << 20
# Less than the data, and enough for all that a build writes besides.
FREE_BYTES = 20 << 20
BUILD = ("--isolation", "builtin", "--timestamp", "1600000000", "--json")


@pytest.fixture(
    params=[pytest.param(kind, marks=needs(f"mkfs.{kind}")) for kind in ("xfs", "btrfs")]
)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A new file system of a kind that shares blocks."""
    if subprocess.run(["losetup", "--find"], capture_output=True, check=False).returncode:
        pytest.skip("this host has no loop device")
    image, place = tmp_path / "disk.img", tmp_path / "disk"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(DISK_BYTES)
    subprocess.run([f"mkfs.{request.param}", "-q", image], check=True, capture_output=True)
    mount = ["mount", "-o", "loop", str(image), str(place)]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    if "unknown filesystem type" in mounted.stderr:
        pytest.skip(f"this kernel has no {request.param}")
    assert mounted.returncode == 0, mounted.stderr
    try:
        yield place
    finally:
        # The loop device goes with the mount, and that with whoever is still in it.
        subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def ocis2i(tmp_path: Path) -> Iterator[Program]:
    """The program as root of a namespace with all ids, and nobody outside of it."""
    with program(tmp_path) as running:
        yield replace(running, launcher=Host(ids="container").launcher)


def test_a_copy_shares_its_blocks_with_the_layers(
    ocis2i: Program, disk: Path, tmp_path: Path
) -> None:
    on_disk = replace(
        ocis2i, environment={**ocis2i.environment, "OCIS2I_ROOT": str(disk / "store")}
    )
    bench = Bench(ocis2i, tmp_path)
    large = Layer().file("large", os.urandom(DATA_BYTES), uid=12, gid=34)
    scripts = {"assemble": ASSEMBLE, "run": "#!/bin/sh\n"}
    builder = bench.image("all", scripts, {"User": "0"}, [data_layer(), large])
    given = ("build", bench.source(), builder, bench.tag, *BUILD)
    reference = ocis2i.ok(*given).document
    copied = on_disk.ok(*given, "--rootfs", "copy").document
    assert copied["digest"] == reference["digest"]
    # The doctor tries FICLONE and nothing else; copy_file_range may share blocks too.
    said = facility(examined(on_disk), "rootfs: copy")["said"]
    assert said == "shares blocks with the layers"
    # Now the layers are there, and there is no room for their data once more.
    leave(disk, FREE_BYTES)
    copied = on_disk.ok(*given, "--rootfs", "copy").document
    assert copied["digest"] == reference["digest"]


def leave(disk: Path, free_bytes: int) -> None:
    """Takes all of a disk but this."""
    os.sync()
    status = os.statvfs(disk)
    with (disk / "ballast").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, status.f_bavail * status.f_frsize - free_bytes)
