"""A static program that makes given system calls, one after the other, and prints what they return.

No compiler is needed: the instructions are written here, for x86-64 and arm64. Its output are the
results as 64-bit numbers, little endian, as many as there are calls.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

Call = tuple[int, tuple[int, ...]]

_BASE = 0x400000
_HEADERS = 64 + 56
_WRITE_AND_EXIT = {"x86_64": (1, 231), "aarch64": (64, 94)}
_MACHINES = {"x86_64": 62, "aarch64": 183}


def machine() -> str:
    """This host's architecture, if a program can be made for it."""
    return os.uname().machine


def raw_calls(calls: Sequence[Call]) -> bytes:
    """An ELF program for this host."""
    write, leave = _WRITE_AND_EXIT[machine()]
    encode = {"x86_64": _x86_64, "aarch64": _aarch64}[machine()]
    size = sum(len(encode(number, arguments, 0)) for number, arguments in calls)
    size += len(encode(write, (1, 0, 0), 0)) + len(encode(leave, (0,), 0))
    results = _BASE + (_HEADERS + size + 15) // 16 * 16
    code = b"".join(
        encode(number, arguments, results + 8 * place)
        for place, (number, arguments) in enumerate(calls)
    )
    code += encode(write, (1, results, 8 * len(calls)), results + 8 * len(calls))
    code += encode(leave, (0,), results + 8 * len(calls))
    return _elf(code, results - _BASE, 8 * (len(calls) + 1))


def results_of(output: bytes) -> list[int]:
    """What the program printed: negative numbers are errors."""
    return list(struct.unpack(f"<{len(output) // 8}q", output))


def _x86_64(number: int, arguments: tuple[int, ...], result: int) -> bytes:
    # mov rdi, rsi, rdx, r10, r8, r9 and rax; syscall; mov [result], rax.
    values = (*arguments, *(0,) * (6 - len(arguments)))
    prefixes = (b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
    code = b"".join(
        prefix + struct.pack("<Q", value) for prefix, value in zip(prefixes, values, strict=True)
    )
    code += b"\x48\xb8" + struct.pack("<Q", number) + b"\x0f\x05"
    return code + b"\x48\xa3" + struct.pack("<Q", result)


def _aarch64(number: int, arguments: tuple[int, ...], result: int) -> bytes:
    # x0 to x5 and x8; svc 0; str x0, [x9].
    values = (*arguments, *(0,) * (6 - len(arguments)))
    words = [word for register, value in enumerate(values) for word in _load(register, value)]
    words += [*_load(8, number), 0xD4000001, *_load(9, result), 0xF9000120]
    return struct.pack(f"<{len(words)}I", *words)


def _load(register: int, value: int) -> list[int]:
    # movz, then three times movk: 16 bits each.
    codes = (0xD2800000, 0xF2A00000, 0xF2C00000, 0xF2E00000)
    return [
        code | (value >> 16 * place & 0xFFFF) << 5 | register for place, code in enumerate(codes)
    ]


def _elf(code: bytes, results: int, size: int) -> bytes:
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH",
        *(2, _MACHINES[machine()], 1, _BASE + _HEADERS, 64, 0, 0, 64, 56, 1, 0, 0, 0),
    )
    # One segment to read, write and run.
    length = _HEADERS + len(code)
    header += struct.pack("<IIQQQQQQ", 1, 7, 0, _BASE, _BASE, length, results + size, 0x1000)
    return header + code
