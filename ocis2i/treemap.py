"""A treemap of the sums by directory: rectangles whose areas are sizes. Pure.

Squarified: rows are filled so that the rectangles come out as near to squares as they can (Bruls,
Huizing, van Wijk: Squarified Treemaps, 2000).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from ocis2i.differences import Row, Tree, telling_rows

# More are too small to be seen.
_MOST_CELLS = 60
_LEAST_SHARE = 0.002
GROUPS = 8


class Box(NamedTuple):
    """A rectangle; what the unit is, is the caller's choice."""

    left: float
    top: float
    width: float
    height: float


class Cell(NamedTuple):
    """One rectangle of the map; cells of one `group` lie together, 0 is the largest."""

    row: Row
    box: Box
    group: int


def squarified(sizes: Sequence[float], box: Box) -> list[Box]:
    """Rectangles that fill `box`, of areas in proportion to `sizes`, the largest first."""
    total = sum(sizes)
    if not sizes or total <= 0 or box.width <= 0 or box.height <= 0:
        return [Box(box.left, box.top, 0.0, 0.0) for _ in sizes]
    scale = box.width * box.height / total
    areas = [size * scale for size in sizes]
    boxes: list[Box] = []
    while areas:
        side = min(box.width, box.height)
        count = 1
        while count < len(areas) and _worst(areas[: count + 1], side) <= _worst(
            areas[:count], side
        ):
            count += 1
        boxes += _strip(areas[:count], box)
        box = _without(box, sum(areas[:count]))
        areas = areas[count:]
    return boxes


def _worst(areas: Sequence[float], side: float) -> float:
    """The largest ratio of sides among rectangles that share one strip along `side`."""
    depth = sum(areas) / side if side else 0.0
    if not depth:
        return float("inf")
    return max(max(depth * depth / area, area / (depth * depth)) for area in areas)


def _strip(areas: Sequence[float], box: Box) -> list[Box]:
    found = []
    if box.width >= box.height:
        depth = sum(areas) / box.height if box.height else 0.0
        at = box.top
        for area in areas:
            length = area / depth if depth else 0.0
            found.append(Box(box.left, at, depth, length))
            at += length
    else:
        depth = sum(areas) / box.width if box.width else 0.0
        at = box.left
        for area in areas:
            length = area / depth if depth else 0.0
            found.append(Box(at, box.top, length, depth))
            at += length
    return found


def _without(box: Box, area: float) -> Box:
    if box.width >= box.height:
        depth = min(area / box.height if box.height else 0.0, box.width)
        return Box(box.left + depth, box.top, box.width - depth, box.height)
    depth = min(area / box.width if box.width else 0.0, box.height)
    return Box(box.left, box.top + depth, box.width, box.height - depth)


def treemap(tree: Tree, box: Box) -> list[Cell]:
    """The directories that tell most, as rectangles that fill `box`; none when nothing has a size.

    Directories with a parent in common lie together. What is too small to be seen is left out.
    """
    total = tree.below[b""].bytes_new
    rows = [
        row
        for row in telling_rows(tree, _MOST_CELLS)
        if row.summed.bytes_new > max(0, total * _LEAST_SHARE)
    ]
    colours = _coloured(rows)
    filled = _fill(rows, box) if rows else ()
    return [Cell(row, part, colours[row.path, row.rest]) for row, part in filled]


def _coloured(rows: Sequence[Row]) -> dict[tuple[bytes, bool], int]:
    """A group for each row: the largest directories are split as long as there are few groups."""
    groups = [list(rows)] if rows else []
    while groups:
        parts = _split(groups[0])
        if len(parts) == 1 or len(groups) - 1 + len(parts) > GROUPS:
            break
        groups = sorted([*groups[1:], *parts], key=lambda group: -_size(group))
    return {(row.path, row.rest): number for number, group in enumerate(groups) for row in group}


def _fill(rows: Sequence[Row], box: Box) -> Iterator[tuple[Row, Box]]:
    if len(rows) == 1:
        yield rows[0], box
        return
    groups = _split(rows)
    sizes = [float(_size(group)) for group in groups]
    for group, part in zip(groups, squarified(sizes, box), strict=True):
        yield from _fill(group, part)


def _split(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows by the first part of their paths in which they differ."""
    return _grouped(rows, _common_depth(rows))


def _size(rows: Sequence[Row]) -> int:
    return sum(row.summed.bytes_new for row in rows)


def _parts(row: Row) -> tuple[bytes, ...]:
    parts = tuple(part for part in row.path.split(b"/") if part)
    # Files in a directory are a child of it, beside its directories.
    return (*parts, b"/") if row.rest else parts


def _common_depth(rows: Sequence[Row]) -> int:
    """How many directories the paths of all have alike."""
    depth = 0
    for level in zip(*map(_parts, rows), strict=False):
        if len(set(level)) > 1:
            break
        depth += 1
    return depth


def _grouped(rows: Sequence[Row], depth: int) -> list[list[Row]]:
    """The rows by the part of their path at `depth`, the largest group first."""
    groups: dict[tuple[bytes, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(_parts(row)[depth : depth + 1], []).append(row)
    return sorted(groups.values(), key=lambda group: (-_size(group), group[0].path))
