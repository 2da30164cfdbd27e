"""The environment variables of ocis2i's own, each declared once: whoever reads one reads it here.

The reference page is made from this list, and a test looks through the code for a variable that
is read and is not in it. An empty variable counts as one that is not set.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass

Kind: TypeAlias = Literal["text", "path", "switch", "number", "duration", "choice"]


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable: what its value may be, and the flag that it stands for, which wins over it.

    `unit` and `largest` belong to numbers, `values` to choices; without them those of the flag
    count.
    """

    name: str
    kind: Kind = "text"
    values: tuple[str, ...] = ()
    unit: str = ""
    largest: int = (1 << 63) - 1
    flag: str | None = None
    secret: bool = False

    def text(self, environ: Mapping[str, str]) -> str | None:
        """What it says, as it is."""
        return environ.get(self.name) or None

    def is_on(self, environ: Mapping[str, str]) -> bool:
        """Whether a switch is `1`; raises `UsageError` for anything but `1` and `0`."""
        said = self.text(environ) or "0"
        if said not in ("0", "1"):
            raise UsageError(f"{self.name} is `{said[:40]}`", hint="it must be 1 or 0")
        return said == "1"

    def number(self, environ: Mapping[str, str]) -> int | None:
        """A number from 0 to `largest`; raises `UsageError`."""
        said = self.text(environ)
        if said is None:
            return None
        plain = said.isascii() and said.isdigit() and len(said) <= 20
        if not plain or int(said) > self.largest:
            raise UsageError(
                f"{self.name} is `{said[:40]}`",
                hint=f"it must be a number of {self.unit}, {self.largest} at most",
            )
        return int(said)


ROOT = Variable("OCIS2I_ROOT", "path", flag="--root")
LAYER_LIMIT = Variable("OCIS2I_LAYER_LIMIT", "number", unit="bytes", largest=1 << 62)
KEEP_BUILDS = Variable("OCIS2I_KEEP_BUILDS", "number", unit="builds", largest=100000)
KEEP_BLOBS = Variable("OCIS2I_KEEP_BLOBS", "switch", flag="--keep-blobs")
NO_CACHE = Variable("OCIS2I_NO_CACHE", "switch", flag="--no-cache")
ISOLATION = Variable("OCIS2I_ISOLATION", "choice", flag="--isolation")
ROOTFS = Variable("OCIS2I_ROOTFS", "choice", flag="--rootfs")
ALLOW_WEAK_ISOLATION = Variable("OCIS2I_ALLOW_WEAK_ISOLATION", "switch")
BUILDAH_ISOLATION = Variable(
    "OCIS2I_BUILDAH_ISOLATION", "choice", values=("oci", "rootless", "chroot")
)
REGISTRY = Variable("OCIS2I_REGISTRY")
REGISTRY_USER = Variable("OCIS2I_REGISTRY_USER")
REGISTRY_PASSWORD = Variable("OCIS2I_REGISTRY_PASSWORD", secret=True)
REGISTRY_PASSWORD_FILE = Variable("OCIS2I_REGISTRY_PASSWORD_FILE", "path")
REGISTRY_TOKEN = Variable("OCIS2I_REGISTRY_TOKEN", secret=True)
REGISTRY_TIMEOUT = Variable("OCIS2I_REGISTRY_TIMEOUT", "duration", flag="--registry-timeout")
TOOL_IMAGE = Variable("OCIS2I_TOOL_IMAGE", flag="--tool-image")
STALL_TIMEOUT = Variable("OCIS2I_STALL_TIMEOUT", "duration")
HELPER_TIMEOUT = Variable("OCIS2I_HELPER_TIMEOUT", "duration")
# 9999-12-31T23:59:59Z is the last time that RFC 3339 can write.
SOURCE_DATE_EPOCH = Variable(
    "SOURCE_DATE_EPOCH",
    "number",
    unit="seconds since 1970",
    largest=253402300799,
    flag="--timestamp",
)
# `ocis2i.completion` has the name for itself: a start of the program loads nothing to look at it.
COMPLETE = Variable("_OCIS2I_COMPLETE")

OWN = tuple(value for value in list(globals().values()) if isinstance(value, Variable))
