"""The numbers that `benchmarks/registry` makes of what it measured."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from tests.fakes.images import LayoutImage
from tests.registry_speed import Cost, compared, medians, table, write_large

COSTS = [
    Cost("push", "ocis2i", seconds, 1.0, peak, 7)
    for seconds, peak in ((3.0, 30 << 20), (1.0, 50 << 20), (2.0, 40 << 20))
]


def test_median_of_seconds_and_peak_of_memory() -> None:
    assert medians(COSTS) == [Cost("push", "ocis2i", 2.0, 1.0, 50 << 20, 7)]


def test_tools_are_compared_task_by_task() -> None:
    costs = [*medians(COSTS), Cost("pull", "ocis2i", 9.0, 1, 1), Cost("push", "other", 4.0, 1, 1)]
    found = compared(costs)
    assert [(one.task, one.tool, one.times) for one in found] == [
        ("push", "ocis2i", 1.0),
        ("push", "other", 2.0),
        ("pull", "ocis2i", 1.0),
    ]
    assert table(found).splitlines()[2].split() == "push other 4.00 2.00 1.00 0.0 -".split()


def test_large_image_is_a_sound_layout(tmp_path: Path) -> None:
    write_large(tmp_path, 100_000)
    image = LayoutImage(tmp_path, "1")
    (layer,) = image.manifest["layers"]
    data = image.blob(layer["digest"]).read_bytes()
    assert layer["size"] == len(data) > 100_000
    assert layer["digest"] == f"sha256:{hashlib.sha256(data).hexdigest()}"
    config = json.loads(image.blob(image.manifest["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"] == [layer["digest"]]
