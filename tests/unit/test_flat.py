"""The numbers and the plot that `benchmarks/flat` makes of what it measured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.chart import Panel, Point, chart, round_step
from tests.flat import Cost, large_file, many_files, per_each, plot, table

NONE = Cost("files", 0, 0.5, 0.4, 40 << 20)
COSTS = per_each(
    [Cost("files", 1000, 1.0, 0.5, 41 << 20), Cost("files", 200_000, 30.0, 20.4, 90 << 20)], NONE
) + per_each([Cost("MiB", 1024, 4.0, 3.472, 60 << 20)], NONE)


def test_the_build_of_nothing_is_taken_off() -> None:
    assert [round(cost.each * 1e6) for cost in COSTS] == [100, 100, 3000]
    (noise,) = per_each([Cost("MiB", 1, 0.4, 0.3, 1)], NONE)
    assert noise.each == 0.0


def test_the_table_has_units_for_each_series() -> None:
    rows = [row.split() for row in table(COSTS).splitlines()]
    assert rows[2] == ["files", "200000", "30.00", "20.40", "100.0", "µs", "90.0"]
    assert rows[3] == ["MiB", "1024", "4.00", "3.47", "3.0", "ms", "60.0"]


def test_the_plot_is_one_document_with_a_point_for_each_cost() -> None:
    text = plot(COSTS)
    found = ElementTree.fromstring(text)
    points = found.iter("{http://www.w3.org/2000/svg}circle")
    assert len(list(points)) == 2 * len(COSTS)
    assert "prefers-color-scheme: dark" in text
    for shown in ("per file", "per MiB", ">200k<", ">1 G<"):
        assert shown in text


def test_panels_without_spread_are_drawn_too() -> None:
    found = chart("a < b", [Panel("one", "s", [Point(1, 0.0, "x")]), Panel("none", "s", [])])
    assert "nan" not in found
    assert ElementTree.fromstring(found)[0].text == "a < b"


@pytest.mark.parametrize(
    ("highest", "step"), [(0.0, 1.0), (1.0, 0.2), (3.1, 1.0), (99.0, 20.0), (101.0, 20.0)]
)
def test_grid_lines_are_at_round_numbers(highest: float, step: float) -> None:
    assert round_step(highest) == pytest.approx(step)


def test_sources_are_as_large_as_was_asked_for(tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    many_files(tmp_path / "many", 250)
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 250
    (tmp_path / "large").mkdir()
    large_file(tmp_path / "large", 9)
    (found,) = (tmp_path / "large").iterdir()
    assert found.stat().st_size == 9 << 20
    assert found.stat().st_blocks * 512 < 4 << 20
