"""Where a builder's declaration of parameters is, and what a build makes of it.

A label is read without any layer. A file is beside the scripts that the label of their place names,
in the image; the source has no say in what its builder takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ocis2i.events import Notice, Report
from ocis2i.images import Obtained
from ocis2i.parameters import (
    SIZE_LIMIT,
    Applied,
    Declaration,
    ParameterSpec,
    apply,
    parse_declaration,
    undeclared,
)
from ocis2i.rootfs import prepare
from ocis2i.s2i import PARAMETERS_LABEL
from ocis2i.session import Session
from ocis2i.store import LayerRecord


def label_declaration(builder: Obtained) -> Declaration | None:
    """What the label says; raises `ImageError`."""
    text = builder.image.config.runtime.labels.get(PARAMETERS_LABEL)
    if text is None:
        return None
    return parse_declaration(text, f"the label `{PARAMETERS_LABEL}` of `{builder.name}`")


def file_declaration(
    builder: Obtained, path: str, here: Session, layers: Sequence[LayerRecord]
) -> Declaration | None:
    """What the file `path` in the unpacked image says; raises `ImageError`."""
    if here.in_place:
        answer = here.agent.request("read", root="/", path=path, limit=SIZE_LIMIT, head=False)
        text = answer["text"]
    else:
        place = here.directory / "declared"
        rootfs = prepare(here.agent, place, layers, (), session=here.directory, kind=here.rootfs)
        text = rootfs.read_text(path, limit=SIZE_LIMIT)
    if text is None:
        return None
    return parse_declaration(str(text), f"`{path}` of `{builder.name}`")


def applied(
    builder: Obtained,
    declaration: Declaration | None,
    spec: ParameterSpec | None,
    chosen: Iterable[str],
    report: Report,
) -> Applied:
    """The values for a build; `chosen` are names that have one. Raises `UsageError`."""
    wanted = spec or ParameterSpec()
    if declaration is None:
        if wanted.given:
            raise undeclared(wanted, builder.name)
        for name in wanted.recorded:
            report(Notice("warning", f"the builder has no parameter `{name[:80]}` any more"))
        return Applied()
    images = builder.image.config.runtime.environment
    found = apply(declaration, wanted, (*chosen, *images), builder.name)
    for sentence in found.warnings:
        report(Notice("warning", sentence))
    return found
