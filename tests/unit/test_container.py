"""Which programs start a script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.container import gaps, named_interpreter, needs_shell
from ocis2i.runner import Hardening


@pytest.mark.parametrize(
    ("head", "program"),
    [
        ("#!/bin/sh\n", "/bin/sh"),
        ("#! /usr/bin/env bash -e\nrest", "/usr/bin/env"),
        ("#!\t/bin/x", "/bin/x"),
        ("#!/bin/sh\r\n", "/bin/sh\r"),
        ("#!\n/bin/sh", None),
        (" #!/bin/sh\n", None),
        ("echo\n#!/bin/sh\n", None),
        ("#!/bin/sh\0x\n", "/bin/sh"),
        ("\x7fELF\x02\x01\x01\0", None),
        ("", None),
    ],
)
def test_first_line_names_the_interpreter(head: str, program: str | None) -> None:
    assert named_interpreter(head) == program


@pytest.mark.parametrize("head", ["echo\n", "\n", "#!\n", "# a comment", "\udcff\udcfe", "a\n\0"])
def test_text_without_an_interpreter_goes_to_the_shell(head: str) -> None:
    assert needs_shell(head)


@pytest.mark.parametrize("head", ["", "#!/bin/sh\n", "\x7fELF\x02\x01\x01", "MZ\0\0\n", "\0"])
def test_what_no_shell_can_read_does_not(head: str) -> None:
    assert not needs_shell(head)


@given(st.binary(max_size=256))
def test_what_names_an_interpreter_needs_no_shell(head: bytes) -> None:
    text = head.decode(errors="surrogateescape")
    assert not (needs_shell(text) and named_interpreter(text))


@pytest.mark.parametrize("executor", ["runc", "builtin", "chroot"])
def test_processors_without_a_seccomp_profile_are_told_of(executor: str) -> None:
    (sentence,) = gaps(executor, None, Hardening(), "riscv64")
    assert "no seccomp profile for `riscv64`" in sentence
    assert "--isolation buildah" in sentence


@pytest.mark.parametrize(
    ("executor", "hardening", "machine"),
    [
        ("runc", Hardening(), "x86_64"),
        ("builtin", Hardening(), "aarch64"),
        ("buildah", Hardening(), "riscv64"),
        ("runc", Hardening(seccomp=False), "riscv64"),
    ],
)
def test_where_nothing_is_missing_nothing_is_told(
    executor: str, hardening: Hardening, machine: str
) -> None:
    assert list(gaps(executor, None, hardening, machine)) == []


@pytest.mark.parametrize(("executor", "told"), [("buildah", 1), ("runc", 0)])
def test_buildah_by_chroot_is_told_of(executor: str, told: int) -> None:
    found = list(gaps(executor, "chroot", Hardening(), "x86_64"))
    assert len(found) == told
    assert all("leave the variable out" in sentence for sentence in found)
