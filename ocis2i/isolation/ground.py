"""What an agent stands on: the ids that it has, and what the kernel lets it mount."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, TypeAlias

from ocis2i.errors import IsolationError
from ocis2i.lazy_dataclass import dataclass

if TYPE_CHECKING:  # takes long to load, and the agent is started first
    from ocis2i.runner import RunSpec

# `full`: 65536 ids by newuidmap; `single`: the caller's alone; `native`: those of the user
# namespace that the caller is root of already; `none`: no namespaces.
Ids: TypeAlias = Literal["full", "single", "native", "none"]


@dataclass(frozen=True, slots=True)
class Ground:
    """How an agent runs. `map` are both id maps as one word, `reason` why it is not `full`.

    Without a `fresh_proc` the outer /proc stays: its numbers are other ones, and it shows more.
    When `squashed`, all files belong to the caller, whoever owns them in the image.
    """

    ids: Ids = "full"
    fresh_proc: bool = True
    can_mount: bool = True
    squashed: bool = False
    map: str = ""
    reason: str = ""


FULL = Ground()


def check_one_id(name: str, ground: Ground, spec: RunSpec) -> None:
    """Raises `IsolationError` for a user that the executor `name` cannot start: it knows no second
    user namespace, by which the only id could have another number."""
    user = (spec.identity.uid, spec.identity.gid)
    if ground.squashed and user != (0, 0):
        raise IsolationError(
            f"{name} cannot run anything as {user[0]}:{user[1]}: there is one user id only "
            f"({ground.reason})",
            hint="--isolation builtin can",
        )
