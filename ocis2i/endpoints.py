"""Where images really are: the seam between names and the registries that are spoken to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import Reference


@dataclass(frozen=True, slots=True)
class Place:
    """One repository of one registry; `reference` has the tag and digest that were asked for.

    An `insecure` one may show any certificate and, where there is no TLS, speak plain http.
    """

    reference: Reference
    insecure: bool = False


class Endpoints(Protocol):
    """Says for a name which places stand for it."""

    def to_pull(self, reference: Reference) -> Sequence[Place]:
        """The places to try in order, mirrors first; at least one.

        Raises `PolicyError` when nothing may be pulled from there.
        """

    def to_push(self, reference: Reference) -> Place:
        """The place to push to, never a mirror. Raises `PolicyError` like `to_pull`."""


class AsNamed:
    """Every name means itself."""

    def to_pull(self, reference: Reference) -> Sequence[Place]:
        """The place of that name."""
        return (Place(reference),)

    def to_push(self, reference: Reference) -> Place:
        """The place of that name."""
        return Place(reference)
