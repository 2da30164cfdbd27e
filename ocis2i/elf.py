"""What a program for Linux says of itself in the first bytes of its file (elf(5)). Pure.

`head` is those bytes, as many as there are; each answer is `None` for what is no such file.
"""

from __future__ import annotations

from typing import Literal

# e_type: what the compiler makes of one source, and what is left of a program that crashed.
OBJECT, CORE = 1, 4

_MAGIC = b"\x7fELF"
# As far as e_machine; a header of 64 bits.
_SHORTEST, _HEADER = 20, 64
# e_machine (include/uapi/linux/elf-em.h), as uname(1) and as Go (go.dev/src/debug/elf) calls it.
_MACHINES = {
    3: ("i386", "386"),
    8: ("mips", "mips"),
    20: ("ppc", "ppc"),
    21: ("ppc64", "ppc64"),
    22: ("s390x", "s390x"),
    40: ("arm", "arm"),
    62: ("x86_64", "amd64"),
    183: ("aarch64", "arm64"),
    243: ("riscv64", "riscv64"),
    258: ("loongarch64", "loong64"),
}
_PT_INTERP = 3


def file_type(head: bytes) -> int | None:
    """Its `e_type`, `OBJECT` for one; zero is none of them."""
    return _number(head, 16, 2) if _is_elf(head) else None


def machine(head: bytes) -> str | None:
    """The processor that the program is for, as uname(1) calls it."""
    return _name(head, 0, both_orders=("ppc64",))


def architecture(head: bytes) -> str | None:
    """The same as Go, and thus an image, calls it."""
    return _name(head, 1, both_orders=("ppc64", "mips"))


def loader(head: bytes) -> str | None:
    """The dynamic loader (`PT_INTERP`) that a program of 64 bits names.

    `None` for a static one too, or when its name is further behind.
    """
    if not _is_elf(head) or head[4] != 2 or len(head) < _HEADER:
        return None
    start, size, count = _number(head, 32, 8), _number(head, 54, 2), _number(head, 56, 2)
    for at in range(start, start + size * min(count, 64), size or 1):
        if at + 40 <= len(head) and _number(head, at, 4) == _PT_INTERP:
            name = head[_number(head, at + 8, 8) :][: _number(head, at + 32, 8)]
            return name.rstrip(b"\0").decode(errors="replace") or None
    return None


def _name(head: bytes, column: int, *, both_orders: tuple[str, ...]) -> str | None:
    if not _is_elf(head):
        return None
    number = _number(head, 18, 2)
    if number not in _MACHINES:
        return f"machine {number}"
    name = _MACHINES[number][column]
    return f"{name}le" if name in both_orders and _order(head) == "little" else name


def _is_elf(head: bytes) -> bool:
    return head.startswith(_MAGIC) and len(head) >= _SHORTEST


def _order(head: bytes) -> Literal["big", "little"]:
    return "big" if head[5] == 2 else "little"


def _number(head: bytes, at: int, size: int) -> int:
    return int.from_bytes(head[at : at + size], _order(head))
