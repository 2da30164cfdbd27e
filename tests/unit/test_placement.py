"""Where the store's new directories are made."""

from __future__ import annotations

import fcntl
import stat
import sys
from pathlib import Path

import pytest

from ocis2i import placement


def flags(kept: dict[str, int]) -> object:
    """Stands for ioctl(2) of a file system with flags."""

    def ioctl(_descriptor: int, request: int, data: bytes | bytearray) -> int:
        if isinstance(data, bytearray):
            data[:] = kept["flags"].to_bytes(4, sys.byteorder)
        else:
            kept["flags"] = int.from_bytes(data, sys.byteorder)
            kept["set"] = request
        return 0

    return ioctl


def test_a_new_directory_is_empty_and_for_its_owner_alone(tmp_path: Path) -> None:
    made = placement.new_directory(tmp_path)
    assert made.parent == tmp_path
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert list(made.iterdir()) == []
    assert list(tmp_path.iterdir()) == [made]


def test_every_directory_has_a_name_of_its_own(tmp_path: Path) -> None:
    assert len({placement.new_directory(tmp_path) for _ in range(5)}) == 5


def test_its_parent_keeps_its_other_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {"flags": 0x80000}
    monkeypatch.setattr(fcntl, "ioctl", flags(kept))
    placement.new_directory(tmp_path)
    assert kept["flags"] == 0x80000 | 0x20000
    assert kept.pop("set") == 0x40086602
    placement.new_directory(tmp_path)
    assert "set" not in kept  # they are there already


def test_the_quickest_of_some_places_is_taken_where_files_are_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", flags({"flags": 0}))
    times = iter([500_000, 90_000, 400_000, 300_000, 200_000, 100_000])
    asked: list[Path] = []

    def time_of_a_file(directory: Path) -> int:
        asked.append(directory)
        return next(times)

    monkeypatch.setattr(placement, "_time_of_a_file", time_of_a_file)
    assert placement.new_directory(tmp_path) == asked[1]
    assert len(asked) == 6
    assert list(tmp_path.iterdir()) == [asked[1]]


def test_the_first_quick_place_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", flags({"flags": 0}))
    times = iter([500_000, 15_000])
    monkeypatch.setattr(placement, "_time_of_a_file", lambda _: next(times))
    placement.new_directory(tmp_path)
    assert next(times, None) is None


def test_a_file_system_without_such_flags_gets_one_directory_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> int:
        raise OSError(25, "Inappropriate ioctl for device")

    monkeypatch.setattr(fcntl, "ioctl", refused)
    monkeypatch.setattr(placement, "_time_of_a_file", pytest.fail)
    made = placement.new_directory(tmp_path)
    assert list(tmp_path.iterdir()) == [made]


def test_a_parent_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        placement.new_directory(tmp_path / "nowhere")


def test_no_place_is_near_one_where_much_was_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", flags({"flags": 0}))
    monkeypatch.setattr(placement, "_time_of_a_file", lambda _: 15_000)
    asked: list[int] = []

    def near(made: int, emptied: list[int]) -> bool:
        assert emptied == [7]
        asked.append(made)
        return len(asked) < 3

    monkeypatch.setattr(placement, "_is_near", near)
    made = placement.new_directory(tmp_path, [7])
    assert made.stat().st_ino == asked[2]
    assert list(tmp_path.iterdir()) == [made]


def test_where_all_places_are_near_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", flags({"flags": 0}))
    monkeypatch.setattr(placement, "_is_near", lambda *_: True)
    made = placement.new_directory(tmp_path, [7])
    assert list(tmp_path.iterdir()) == [made]


def test_near_is_what_ext4_fills_together() -> None:
    assert placement._is_near(1, [131072])
    assert not placement._is_near(1, [131073, 262145])
    assert not placement._is_near(1, [])
