"""The builder is asked which of its parameters are secrets, before a manifest is written."""

from __future__ import annotations

from collections.abc import Sequence

from ocis2i.commands.context import Context
from ocis2i.commands.explaining import declaration_of
from ocis2i.commands.kube_flags import KubeFlags
from ocis2i.errors import Ocis2iError, UsageError
from ocis2i.images import Layers, PullPolicy, obtain
from ocis2i.kube.hidden import in_clear
from ocis2i.kube.plan import Order
from ocis2i.parameters import Declaration
from ocis2i.reference import parse_location


def refuse_declared(names: Sequence[str], order: Order, flags: KubeFlags, here: Context) -> None:
    """Refuses values for parameters that the builder declares to be secrets.

    `names` are those whose values would stand in the manifest, one at least. Raises `UsageError`,
    also where the builder cannot be asked.
    """
    try:
        declaration = _declaration(order, flags, here)
    except Ocis2iError as error:
        raise UsageError(
            f"the builder cannot be asked whether `{names[0]}` is a secret: {error.message}",
            hint="log in to the builder's registry; or leave the value out: "
            f"-P {names[0]} --build-secret SECRET",
        ) from error
    for name in names:
        one = declaration.find(name) if declaration else None
        if one is not None and one.secret:
            raise in_clear("-P", name, "is a secret for the builder")


def _declaration(order: Order, flags: KubeFlags, here: Context) -> Declaration | None:
    with here.store.in_use():
        found = obtain(
            parse_location(order.builder),
            flags.wanted_platform,
            # The pod asks its registry too: what is in the store may be another one.
            PullPolicy.ALWAYS,
            here.tools.places,
            layers=Layers.ELSEWHERE,
        )
        return declaration_of(found, here)
