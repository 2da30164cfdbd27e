"""What a file is that was built elsewhere: a program, a script, a jar or a war. No input or output.

A program is known by its first bytes. A jar is a zip, as many a source is one: it takes the name
and the content together. The formats: elf(5), PE and Mach-O by their magic numbers, and the jar
file specification.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Literal

from ocis2i.errors import SourceError, shown
from ocis2i.lazy_dataclass import dataclass

Kind = Literal["program", "script", "jar", "war", "other"]
SourceType = Literal["auto", "file", "archive"]

# So much of a file's beginning says what it is.
HEAD_SIZE = 64
MANIFEST = "META-INF/MANIFEST.MF"
WEB_DIRECTORY = "WEB-INF/"

NAME_LIMIT_BYTES = 255  # of one name in a directory, on every usual file system
DEFAULT_NAME = "app"

# What a processor runs besides its own.
_ALSO_RUNS = {"amd64": ("386",), "arm64": ("arm",)}

_MACH_O = (b"\xfe\xed\xfa\xce", b"\xfe\xed\xfa\xcf", b"\xce\xfa\xed\xfe", b"\xcf\xfa\xed\xfe")
_FAT_OR_CLASS = b"\xca\xfe\xba\xbe"
_FIRST_CLASS_VERSION = 45  # a fat Mach-O has fewer parts than that

_MAIN_CLASS = re.compile(rb"^(?:Main-Class|Launcher-Agent-Class):", re.IGNORECASE | re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Binary:
    """What a file is; `architecture` of a program in Go's words, empty where it has none.

    `warnings` are sentences about what will not run.
    """

    kind: Kind
    architecture: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def mode(self) -> int:
        """The mode that the file gets in an image, whatever it had."""
        return 0o755 if self.kind in ("program", "script") else 0o644


def recognise_program(head: bytes) -> Binary | None:
    """The program or script that a file begins like; `None` for anything else."""
    if head.startswith(b"#!"):
        return Binary("script")
    from ocis2i import elf  # noqa: PLC0415 - few sources are one file

    kind = elf.file_type(head)
    if not kind or kind in (elf.OBJECT, elf.CORE):
        return None
    return Binary("program", elf.architecture(head) or "")


def foreign_format(head: bytes) -> tuple[str, str] | None:
    """What a file is that no container runs, and the way out; `None` for what may be fine."""
    mac = ("a program for macOS", "build it for Linux (Go: GOOS=linux)")
    if head.startswith(b"MZ") and b"\0" in head:
        return "a program for Windows", mac[1]
    if head.startswith(_MACH_O):
        return mac
    if head.startswith(_FAT_OR_CLASS) and len(head) >= 8:
        is_fat = int.from_bytes(head[4:8], "big") & 0xFFFF < _FIRST_CLASS_VERSION
        return mac if is_fat else ("a compiled Java class", "pack it in a jar with a Main-Class")
    from ocis2i import elf  # noqa: PLC0415 - few sources are one file

    no_programs = {
        elf.OBJECT: ("an object file", "link it to a program"),
        elf.CORE: ("a core dump", "name the program that dumped it"),
    }
    return no_programs.get(elf.file_type(head) or 0)


def has_java_name(name: str) -> bool:
    """Whether a zip of that name may be a jar or a war."""
    return name.lower().endswith((".jar", ".war"))


def recognise_java(name: str, members: Collection[str], manifest: bytes | None) -> Binary | None:
    """The jar or war that a zip is; `None` for one that is an archive of other files.

    `members` are the names in it, `manifest` is its META-INF/MANIFEST.MF.
    """
    lower = name.lower()
    if lower.endswith(".war") and any(one.startswith(WEB_DIRECTORY) for one in members):
        return Binary("war")
    if not lower.endswith(".jar") or manifest is None:
        return None
    if _MAIN_CLASS.search(manifest):
        return Binary("jar")
    text = "its manifest names no Main-Class: `java -jar` will not start it"
    return Binary("jar", warnings=(text,))


def runs_on(architecture: str, platform: str) -> bool:
    """Whether a program of `architecture` runs in an image for `platform`, both in Go's words."""
    return (
        not architecture or architecture == platform or architecture in _ALSO_RUNS.get(platform, ())
    )


def check_name(name: str) -> str:
    """A name that the file can have in the source; raises `SourceError`."""
    if not name or name in (".", "..") or "/" in name or "\0" in name:
        why = "it must be one name, without `/`"
    elif len(name.encode(errors="surrogateescape")) > NAME_LIMIT_BYTES:
        why = f"it has more than {NAME_LIMIT_BYTES} bytes"
    else:
        return name
    raise SourceError(
        f"the source cannot be called `{shown(name[:80])}`: {why}",
        hint="give it a name with --source-name, such as app.jar",
    )
