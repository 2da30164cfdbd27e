"""The smallest program: it ends at once, with success, and needs nothing of the image.

What an executor is tried out with: whether a host's own programs and their libraries can be found
in an empty tree is another question than whether containers work.
"""

from __future__ import annotations

import struct

# What `exit(0)` is for each processor: the ELF machine number, and the instructions.
_EXIT: dict[str, tuple[int, bytes]] = {
    # xor edi, edi; mov eax, 60; syscall
    "x86_64": (62, bytes.fromhex("31ff b83c000000 0f05")),
    # mov x0, 0; mov x8, 93; svc 0
    "aarch64": (183, struct.pack("<3I", 0xD2800000, 0xD2800BA8, 0xD4000001)),
}
_ADDRESS = 0x400000
_HEADER = struct.Struct("<16s2HI3QI6H")
_SEGMENT = struct.Struct("<2I6Q")


def smallest_program(machine: str) -> bytes | None:
    """An ELF executable (elf(5)) for `machine` as uname(1) names it; `None`: not for that one."""
    if machine not in _EXIT:
        return None
    number, code = _EXIT[machine]
    start = _HEADER.size + _SEGMENT.size
    size = start + len(code)
    identity = b"\x7fELF" + bytes([2, 1, 1])  # 64 bits, little-endian, version 1
    header = _HEADER.pack(
        identity,
        *(2, number, 1),  # ET_EXEC, the machine, EV_CURRENT
        *(_ADDRESS + start, _HEADER.size, 0),  # entry, program headers, no section headers
        *(0, _HEADER.size, _SEGMENT.size, 1, 0, 0, 0),
    )
    # PT_LOAD, readable and executable: the whole file.
    segment = _SEGMENT.pack(1, 5, 0, _ADDRESS, _ADDRESS, size, size, 0x1000)
    return header + segment + code
