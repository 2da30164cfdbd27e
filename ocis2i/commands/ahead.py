"""The agent of a build, started before the command line is understood.

To load what understands it, and the build's own modules, takes as long as an agent takes to be
ready. Both happen side by side then.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from ocis2i import variables
from ocis2i.commands.state import State

# Their agents are started otherwise: see `ocis2i.session`.
WITHOUT_NAMESPACES = ("chroot", "in-place")
# Words after which no agent is asked for. Who writes one of them otherwise, or has it as the value
# of a flag, gets what is asked for, too: only not as fast.
_WITHOUT_AGENT = ("-h", "--help", "--as-dockerfile", *WITHOUT_NAMESPACES)


def wants_agent(arguments: Sequence[str]) -> bool:
    """Whether this looks like a build in a container of its own."""
    isolation = variables.ISOLATION.text(os.environ)
    if list(arguments[:1]) != ["build"] or isolation in WITHOUT_NAMESPACES:
        return False
    words = {part for word in arguments for part in word.split("=", 1)}
    return words.isdisjoint(_WITHOUT_AGENT)


@contextmanager
def agent_ahead(arguments: Sequence[str]) -> Iterator[None]:
    """Starts an agent for the command line that seems to need one: `State.ahead`.

    It is ended, unless somebody took it. It says nothing: what keeps it from working is the error
    of who takes it.
    """
    if not wants_agent(arguments):
        yield
        return
    from ocis2i.isolation.agent import ahead  # noqa: PLC0415 - most verbs do without

    with ahead(os.environ.get("PATH")) as started:
        State.ahead = started
        yield
