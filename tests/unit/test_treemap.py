"""The map of sizes: its rectangles fill it, and their areas are the sizes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import tar
from ocis2i.differences import Change, Facts, Tree
from ocis2i.treemap import GROUPS, Box, squarified, treemap

BOX = Box(0, 0, 1000, 400)


def tree(sizes: dict[str, int]) -> Tree:
    return Tree(
        [
            Change(path.encode(), "added", None, Facts(tar.REGULAR, 0o644, 0, 0, size))
            for path, size in sizes.items()
        ]
    )


def overlap(one: Box, other: Box) -> float:
    width = min(one.left + one.width, other.left + other.width) - max(one.left, other.left)
    height = min(one.top + one.height, other.top + other.height) - max(one.top, other.top)
    return max(width, 0.0) * max(height, 0.0)


sizes = st.lists(st.integers(1, 10**5), min_size=1, max_size=40).map(
    lambda found: sorted(map(float, found), reverse=True)
)


@given(sizes)
def test_areas_are_in_proportion_and_inside(found: list[float]) -> None:
    boxes = squarified(found, BOX)
    scale = BOX.width * BOX.height / sum(found)
    for size, box in zip(found, boxes, strict=True):
        assert box.width * box.height == pytest.approx(size * scale, rel=1e-3, abs=1e-3)
        assert box.left >= -1e-6
        assert box.top >= -1e-6
        assert box.left + box.width <= BOX.width + 1e-6
        assert box.top + box.height <= BOX.height + 1e-6


@given(st.lists(st.integers(1, 1000), min_size=2, max_size=12))
def test_rectangles_do_not_lie_on_each_other(found: list[int]) -> None:
    boxes = squarified(sorted(map(float, found), reverse=True), BOX)
    for at, one in enumerate(boxes):
        for other in boxes[at + 1 :]:
            assert overlap(one, other) < 1e-3


def test_equal_sizes_become_squares() -> None:
    for box in squarified([1.0] * 4, Box(0, 0, 100, 100)):
        assert (box.width, box.height) == pytest.approx((50, 50))


def test_directories_of_one_parent_lie_together_and_have_a_colour() -> None:
    cells = treemap(tree({"a/x/f": 50, "a/y/f": 40, "b/f": 30, "c/f": 20}), BOX)
    assert sorted(cell.row.path for cell in cells) == [b"a/x", b"a/y", b"b", b"c"]
    whole = sum(cell.box.width * cell.box.height for cell in cells)
    assert whole == pytest.approx(BOX.width * BOX.height)
    assert {cell.group for cell in cells} <= set(range(GROUPS))


def test_what_is_too_small_to_be_seen_is_left_out() -> None:
    cells = treemap(tree({"a/f": 10**9, "b/f": 1}), BOX)
    assert [cell.row.path for cell in cells] == [b"a"]


@pytest.mark.parametrize("found", [{}, {"a": 0}])
def test_without_a_size_there_is_no_map(found: dict[str, int]) -> None:
    assert treemap(tree(found), BOX) == []


def test_many_directories_have_few_rectangles() -> None:
    found = {f"d{one}/e{two}/f": one + two + 1 for one in range(40) for two in range(40)}
    assert 0 < len(treemap(tree(found), BOX)) <= 60
