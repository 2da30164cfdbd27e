"""The verb that begins a builder image: create."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from ocis2i.commands.flags import DockerFlags
from ocis2i.commands.state import State
from ocis2i.lazy_dataclass import dataclass
from ocis2i.scaffold import create


@dataclass(frozen=True, kw_only=True)
class CreateFlags(DockerFlags):
    """`create`."""

    name: Annotated[str, typer.Argument(help="The name of the new builder image.")]
    directory: Annotated[str, typer.Argument(help="Where its files are written.")]


def create_builder(flags: CreateFlags) -> None:
    given = (*State.docker_only, *flags.docker_only())
    if given:
        sys.stderr.write(f"warning: {', '.join(given)}: ignored, there is no Docker daemon\n")
    for made in create(flags.name, Path(flags.directory)):
        print(f"{made.state}  {made.path}")
