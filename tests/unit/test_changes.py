"""An upper directory that is read for the last time: what goes at once, and what the layer has."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from ocis2i.agent.changes import Marks, overlay_scanner, write_changes
from ocis2i.agent.owners import Owners
from ocis2i.layers import TarPolicy

LARGE = 1 << 20


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    """The writable side of a build above an image of nothing."""
    (tmp_path / "base").mkdir()
    inside = tmp_path / "upper/d"
    inside.mkdir(parents=True)
    (inside / "large").write_bytes(os.urandom(LARGE))
    (inside / "small").write_bytes(b"small")
    (inside / "one").write_bytes(bytes(LARGE))
    os.link(inside / "one", inside / "two")
    return tmp_path / "upper"


def packed(upper: Path, *, sweep: bool) -> bytes:
    out = io.BytesIO()
    scanner = overlay_scanner(str(upper.parent), Marks(), Owners(), sweep=sweep)
    write_changes(scanner, out, TarPolicy(clamp_mtime=1))
    return out.getvalue()


def names(upper: Path) -> list[str]:
    return sorted(path.name for path in (upper / "d").iterdir())


def test_large_files_go_once_they_are_in_the_layer(upper: Path) -> None:
    data = (upper / "d/large").read_bytes()
    tar = packed(upper, sweep=True)
    with tarfile.open(fileobj=io.BytesIO(tar)) as archive:
        content = archive.extractfile("d/large")
        assert content is not None
        assert content.read() == data
    assert names(upper) == ["one", "small", "two"]


def test_the_layer_is_the_same_whether_files_go_or_not(upper: Path) -> None:
    kept = packed(upper, sweep=False)
    assert names(upper) == ["large", "one", "small", "two"]
    assert packed(upper, sweep=True) == kept


def test_of_a_file_with_two_names_the_second_stays_a_link(upper: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(packed(upper, sweep=True))) as archive:
        assert archive.getmember("d/one").isreg()
        assert archive.getmember("d/two").islnk()
        assert archive.getmember("d/two").linkname.lstrip("/") == "d/one"
