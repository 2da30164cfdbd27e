"""Volumes of the command line: what of the host a container sees."""

from __future__ import annotations

from pathlib import Path

from ocis2i.errors import UsageError
from ocis2i.runner import BindMount
from ocis2i.s2i import absolute_path

_RESERVED = frozenset({"/proc", "/sys", "/dev"})
_ACCESS = {"ro": True, "rw": False}
# SELinux labels and propagation: nothing to do without SELinux, and private is the only way here.
# Docker's `cached`, `delegated` and `consistent` mean nothing on Linux at all.
_MEANINGLESS = frozenset(
    "z Z private rprivate rbind bind nosuid nodev cached delegated consistent".split()
)


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
    if not target.startswith("/") or (target := absolute_path(target)) == "/":
        raise UsageError(
            f"invalid volume `{text}`: `{target}` must be an absolute path below `/`",
            hint="write SOURCE:TARGET, the target as /data",
        )
    if target in _RESERVED or target.startswith("/proc/"):
        raise UsageError(
            f"invalid volume `{text}`: the container has its own `{target}`",
            hint="choose another place in the container",
        )
    if not source.is_absolute():
        raise UsageError(
            f"invalid volume `{text}`: `{source}` is not an absolute path",
            hint="there are no named volumes without a daemon; name a directory or file",
        )
    if not source.exists():
        raise UsageError(
            f"invalid volume `{text}`: there is no `{source}` on this host",
            hint="make it first: a volume is never made",
        )
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
