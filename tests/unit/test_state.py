"""What verbs print is whole JSON that steers no terminal."""

from __future__ import annotations

import json

import pytest

from ocis2i.commands.state import print_json


@pytest.mark.parametrize("text", ["\x1b[31m", "\x9b31m", "a\u202eb", "\U000e0001", "\x7f", "a\nb"])
def test_control_characters_are_escaped_and_mean_the_same(
    text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    print_json({"label": f"é{text}"})
    shown = capsys.readouterr().out
    assert shown.replace("\n", "").isprintable()
    assert json.loads(shown) == {"label": f"é{text}"}
    assert "é" in shown
