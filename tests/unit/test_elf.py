"""What the first bytes of a program tell."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import elf

LOADER = "/lib64/ld-linux-x86-64.so.2"


def program(machine: int, order: Literal["little", "big"] = "little") -> bytes:
    """The beginning of a program of 64 bits with one program header, for its loader."""

    def number(value: int, size: int) -> bytes:
        return value.to_bytes(size, order)

    head = b"\x7fELF\x02" + (b"\x01" if order == "little" else b"\x02") + b"\x01" + bytes(9)
    head += number(2, 2) + number(machine, 2) + bytes(12) + number(64, 8)
    head += bytes(14) + number(56, 2) + number(1, 2)
    head = head.ljust(64, b"\0") + number(3, 4) + bytes(4)
    head += number(120, 8) + bytes(16) + number(len(LOADER) + 1, 8)
    return head.ljust(120, b"\0") + LOADER.encode() + b"\0"


@pytest.mark.parametrize(
    ("number", "order", "machine", "architecture"),
    [
        (62, "little", "x86_64", "amd64"),
        (183, "little", "aarch64", "arm64"),
        (9, "little", "machine 9", "machine 9"),
        (21, "little", "ppc64le", "ppc64le"),
        (21, "big", "ppc64", "ppc64"),
        (8, "little", "mips", "mipsle"),
        (8, "big", "mips", "mips"),
        (22, "big", "s390x", "s390x"),
    ],
)
def test_a_program_says_what_it_is_made_for(
    number: int, order: Literal["little", "big"], machine: str, architecture: str
) -> None:
    head = program(number, order)
    assert (elf.machine(head), elf.architecture(head)) == (machine, architecture)
    assert elf.loader(head) == LOADER
    assert elf.file_type(head) == 2


@given(st.binary(max_size=200))
def test_any_bytes_are_looked_at_safely(data: bytes) -> None:
    for look in (elf.file_type, elf.machine, elf.architecture, elf.loader):
        look(b"\x7fELF\x02\x01" + data)
        assert look(b"#!/bin/sh\n" + data) is None
