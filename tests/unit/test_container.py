"""Which programs start a script."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.container import named_interpreter, needs_shell


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
