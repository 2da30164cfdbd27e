"""A table for a terminal that is narrower than it: what may be shortened is, down to a few letters.

Without a terminal nothing is shortened: who reads it there wants all of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from ocis2i.live import cells

# Which part of a text tells most: of a path and of an image's name it is the end.
Telling: TypeAlias = Literal["beginning", "end"]

_GAP = 2  # between two columns, as `ocis2i.report.table` has it
_LEAST = 5


def narrowed(
    lines: Sequence[tuple[str, ...]], columns: int, flexible: Mapping[int, Telling], cut: str
) -> list[tuple[str, ...]]:
    """The lines of a table, heads and all, so that they fit in `columns`; `cut` is for what is not.

    Of the `flexible` columns (by number, with what tells most in them) the widest gives way first,
    and the first named of those that are alike. No other loses a letter: where they alone are too
    wide, the terminal wraps the lines.
    """
    if not lines:
        return []
    widths = [max(map(cells, column)) for column in zip(*lines, strict=True)]
    over = sum(widths) + _GAP * (len(widths) - 1) - columns
    least = {number: max(_LEAST, cells(lines[0][number])) for number in flexible}
    while over > 0:
        givers = [number for number in flexible if widths[number] > least[number]]
        if not givers:
            break
        widths[max(givers, key=lambda number: widths[number])] -= 1
        over -= 1
    return [
        tuple(
            _cut(cell, widths[number], flexible[number], cut) if number in flexible else cell
            for number, cell in enumerate(line)
        )
        for line in lines
    ]


def _cut(text: str, width: int, telling: Telling, cut: str) -> str:
    if cells(text) <= width:
        return text
    room = width - cells(cut)
    if telling == "beginning":
        return _taken(text, room) + cut
    end = _taken(text[::-1], room)[::-1]
    # A part that is whole reads better than one letter more, unless little were left.
    slash = end.find("/")
    return cut + (end[slash:] if 0 < slash <= len(end) // 2 else end)


def _taken(text: str, width: int) -> str:
    """As much of the beginning as fits in `width` columns."""
    taken = text[: max(width, 0)]
    while cells(taken) > width:
        taken = taken[:-1]
    return taken
