"""What verbs answer that have put one thing somewhere."""

from __future__ import annotations

from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION, delivered_row
from ocis2i.outputs import Delivered


def print_delivered(place: Delivered, *, as_json: bool, **more: str) -> None:
    """Its reference on a line, or a document that has `more`, too."""
    row = delivered_row(place)
    if as_json:
        print_json({"version": VERSION, "state": "succeeded", **row, **more})
    else:
        print(row["reference"])
