"""What the user asked for: a build as a value, complete before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from ocis2i.compression import Compression
from ocis2i.errors import UsageError
from ocis2i.images import PullPolicy
from ocis2i.outputs import Output
from ocis2i.reference import Location, Platform, Reference
from ocis2i.runner import BindMount
from ocis2i.sources import Source

_ACCESS = {"ro": True, "rw": False}
# SELinux labels and propagation: nothing to do without SELinux, and private is the only way here.
_MEANINGLESS = frozenset({"z", "Z", "private", "rprivate", "rbind", "bind", "nosuid", "nodev"})


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """One build. `tag` is the result's name as typed, `name` the same as a reference.

    `created` is the time of the image, `clamp_seconds` (since 1970) the latest time in it, `None`
    when files keep their own.
    """

    source: Source
    builder: Location
    created: datetime
    tag: str | None = None
    name: Reference | None = None
    push: bool = False
    outputs: tuple[Output, ...] = ()
    platform: Platform | None = None
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    environment: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[BindMount, ...] = ()
    scripts_url: str | None = None
    destination: str | None = None
    assemble_user: str | None = None
    description: str | None = None
    application_name: str | None = None
    clamp_seconds: int | None = None
    compression: Compression = Compression.GZIP
    compression_level: int | None = None
    isolation: str | None = None


def parse_volume(text: str) -> BindMount:
    """Reads `SOURCE:TARGET[:OPTIONS]` as `docker run -v` has it; `SOURCE` must exist.

    Raises `UsageError`.
    """
    parts = text.split(":")
    if len(parts) not in (2, 3) or not all(parts):
        raise UsageError(
            f"invalid volume `{text}`", hint="write it as /on/the/host:/in/the/container[:ro]"
        )
    source, target = Path(parts[0]), parts[1]
    if not target.startswith("/") or target == "/":
        raise UsageError(f"invalid volume `{text}`: `{target}` must be an absolute path below `/`")
    if not source.is_absolute():
        raise UsageError(
            f"invalid volume `{text}`: `{source}` is not an absolute path",
            hint="there are no named volumes without a daemon; name a directory or file",
        )
    if not source.exists():
        raise UsageError(f"invalid volume `{text}`: there is no `{source}` on this host")
    read_only = False
    for option in parts[2].split(",") if len(parts) == 3 else ():
        if option in _ACCESS:
            read_only = _ACCESS[option]
        elif option not in _MEANINGLESS:
            raise UsageError(
                f"invalid volume `{text}`: the option `{option}` is not known",
                hint="there are ro, rw, and z and Z, which mean nothing here",
            )
    return BindMount(str(source.resolve()), target, read_only, source.is_dir())
