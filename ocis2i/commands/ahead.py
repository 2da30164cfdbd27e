"""The agent of a verb, started before the verb's modules: both take long, and side by side half."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from ocis2i.isolation.agent import Ahead, ahead

# Their agents are started otherwise: see `ocis2i.session`.
_WITHOUT_NAMESPACES = ("chroot", "in-place")


@contextmanager
def agent_ahead(isolation: str | None, *, wanted: bool = True) -> Iterator[Ahead]:
    """Starts an agent where one is `wanted`; it is ended, unless somebody took it.

    It says nothing. What keeps it from working is the error of who takes it.
    """
    if not wanted or isolation in _WITHOUT_NAMESPACES:
        yield Ahead(None)
        return
    with ahead(os.environ.get("PATH")) as started:
        yield started
