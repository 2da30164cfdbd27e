"""Volumes as users write them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocis2i.errors import UsageError
from ocis2i.runner import BindMount
from ocis2i.volumes import parse_volume


def test_a_directory_is_mounted_writable(tmp_path: Path) -> None:
    mount = parse_volume(f"{tmp_path}:/data")
    assert mount == BindMount(str(tmp_path.resolve()), "/data", read_only=False, directory=True)


def test_a_file_is_mounted_as_a_file(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    assert not parse_volume(f"{tmp_path}/f:/etc/f").directory


def test_a_link_is_mounted_as_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert parse_volume(f"{tmp_path}/link:/x").source == str((tmp_path / "real").resolve())


@pytest.mark.parametrize(
    ("options", "read_only"),
    [
        ("ro", True),
        ("rw", False),
        ("z,ro", True),
        ("Z", False),
        ("ro,rw", False),
        ("rprivate", False),
        ("cached,ro", True),
    ],
)
def test_options_are_those_of_docker(tmp_path: Path, options: str, read_only: bool) -> None:
    assert parse_volume(f"{tmp_path}:/x:{options}").read_only is read_only


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("@", "write it as"),
        ("@:", "write it as"),
        (":/x", "write it as"),
        ("@:/x:", "write it as"),
        ("@:/x:ro:z", "write it as"),
        ("@:x", "must be an absolute path below"),
        ("@:/", "must be an absolute path below"),
        ("name:/x", "is not an absolute path"),
        ("./here:/x", "is not an absolute path"),
        ("@/none:/x", "there is no"),
        ("@:/x:shared", "option `shared` is not known"),
        ("@:/x:RO", "option `RO` is not known"),
    ],
)
def test_a_volume_that_cannot_be_is_refused_with_the_reason(
    tmp_path: Path, text: str, complaint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse_volume(text.replace("@", str(tmp_path)))
    assert complaint in f"{caught.value.message} {caught.value.hint}"
