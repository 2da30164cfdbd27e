"""Holds what a build adds to an image to a size, and says which directories are too much."""

from __future__ import annotations

from ocis2i.blobs import BlobSource
from ocis2i.differences import Tree, telling_rows
from ocis2i.errors import PolicyError, shown
from ocis2i.layer_facts import changes_of_layer
from ocis2i.limits import human_size
from ocis2i.manifest import Layer

_ROWS = 5


def hold_to_budget(budget: int, size: int, layer: Layer, blobs: BlobSource, name: str) -> None:
    """Raises `PolicyError` when the `size` of the files in a `layer` is more than the `budget`.

    Both in bytes, without compression. The blob is read for that alone; `name` is the image's.
    """
    if size <= budget:
        return
    rows = telling_rows(Tree(changes_of_layer(layer, blobs)), _ROWS)
    largest = [(row.path, row.rest, row.summed.bytes_new) for row in rows if row.summed.bytes_new]
    told = ", ".join(
        f"`{_directory(path)}{'*' if rest else ''}` ({human_size(bytes_new)})"
        for path, rest, bytes_new in largest
    )
    raise PolicyError(
        f"`{name}` adds {human_size(size)}, its size budget is {human_size(budget)}; "
        f"most is in {told}",
        hint="leave files out by .s2iignore or in assemble, or raise --size-budget",
        reason="SizeBudgetExceeded",
    )


def _directory(path: bytes) -> str:
    """A directory of an image, which may be anything, for a terminal: `/opt/app/`."""
    text = shown(path.decode(errors="backslashreplace"))
    return f"/{text}/" if text else "/"
