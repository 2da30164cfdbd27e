"""The environment as settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocis2i.errors import UsageError
from ocis2i.settings import DEFAULT_LAYER_LIMIT, LAST_SECOND, Settings


@pytest.mark.parametrize(
    ("environ", "root", "expected"),
    [
        ({"HOME": "/h"}, None, "/h/.local/share/ocis2i"),
        ({"HOME": "/h", "XDG_DATA_HOME": "/d"}, None, "/d/ocis2i"),
        ({"HOME": "/h", "XDG_DATA_HOME": ""}, None, "/h/.local/share/ocis2i"),
        ({"HOME": "/h", "XDG_DATA_HOME": "/d", "OCIS2I_ROOT": "/r"}, None, "/r"),
        ({"OCIS2I_ROOT": "/r"}, "/flag", "/flag"),
        ({"XDG_DATA_HOME": "/d"}, None, "/d/ocis2i"),
    ],
)
def test_the_store_is_where_the_nearest_word_puts_it(
    environ: dict[str, str], root: str | None, expected: str
) -> None:
    assert Settings.from_environ(environ, root=root).store_root == Path(expected)


@pytest.mark.parametrize("environ", [{}, {"HOME": ""}, {"XDG_DATA_HOME": "relative"}])
def test_without_a_home_the_ways_to_name_a_store_are_told(environ: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="no place for the store: HOME is not set") as caught:
        Settings.from_environ(environ)
    assert caught.value.hint == "name a directory with --root or OCIS2I_ROOT, or set HOME"


def test_a_relative_store_is_made_absolute() -> None:
    assert Settings.from_environ({}, root="here").store_root.is_absolute()


@pytest.mark.parametrize("text", ["0", "1700000000", str(LAST_SECOND)])
def test_an_epoch_is_a_number(text: str) -> None:
    assert Settings.from_environ(
        {"HOME": "/h", "SOURCE_DATE_EPOCH": text}
    ).source_date_epoch == int(text)


@pytest.mark.parametrize("name", ["SOURCE_DATE_EPOCH", "OCIS2I_LAYER_LIMIT"])
@pytest.mark.parametrize("text", ["-1", "1.5", "today", " 1", "1 ", "+1", "٣", "1e3", "9" * 30])
def test_what_is_no_number_is_refused_by_name(name: str, text: str) -> None:
    with pytest.raises(UsageError, match=name):
        Settings.from_environ({"HOME": "/h", name: text})


def test_a_second_after_the_last_year_is_refused() -> None:
    with pytest.raises(UsageError, match="SOURCE_DATE_EPOCH"):
        Settings.from_environ({"HOME": "/h", "SOURCE_DATE_EPOCH": str(LAST_SECOND + 1)})


def test_empty_variables_count_for_nothing() -> None:
    settings = Settings.from_environ(
        {"HOME": "/h", "SOURCE_DATE_EPOCH": "", "OCIS2I_LAYER_LIMIT": ""}
    )
    assert settings.source_date_epoch is None
    assert settings.layer_limit == DEFAULT_LAYER_LIMIT


def test_the_layer_limit_may_be_nothing() -> None:
    assert Settings.from_environ({"HOME": "/h", "OCIS2I_LAYER_LIMIT": "0"}).layer_limit == 0


def test_helpers_see_what_they_need_and_no_secrets() -> None:
    environ = {
        "PATH": "/p",
        "HOME": "/h",
        "HTTPS_PROXY": "http://proxy",
        "GIT_SSL_CAINFO": "/ca",
        "SSH_AUTH_SOCK": "/s",
        "LC_ALL": "de_DE",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "PYTHONPATH": "/evil",
        "LD_PRELOAD": "/evil.so",
    }
    seen = Settings.from_environ(environ).program_environment(EXTRA="1")
    assert seen == {
        "PATH": "/p",
        "HOME": "/h",
        "HTTPS_PROXY": "http://proxy",
        "GIT_SSL_CAINFO": "/ca",
        "SSH_AUTH_SOCK": "/s",
        "LC_ALL": "de_DE",
        "LANG": "C.UTF-8",
        "EXTRA": "1",
    }


def test_helpers_find_programs_without_a_path() -> None:
    assert "/usr/bin" in Settings.from_environ({"HOME": "/h"}).program_environment()["PATH"].split(
        ":"
    )


def test_the_environment_is_not_shown_in_a_trace() -> None:
    assert "hidden" not in repr(Settings.from_environ({"HOME": "/h", "TOKEN": "hidden"}))


def test_relative_data_directories_do_not_count(tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "XDG_DATA_HOME": "data"}
    assert Settings.from_environ(environ).store_root == tmp_path / ".local/share/ocis2i"
    assert Settings.from_environ({"HOME": "home"}).store_root.is_absolute()


@pytest.mark.parametrize(
    ("environ", "flag", "wanted"),
    [
        ({}, None, "auto"),
        ({"OCIS2I_ROOTFS": ""}, None, "auto"),
        ({"OCIS2I_ROOTFS": "copy"}, None, "copy"),
        ({"OCIS2I_ROOTFS": "copy"}, "overlay", "overlay"),
        ({"OCIS2I_ROOTFS": "copy"}, "auto", "auto"),
    ],
)
def test_the_rootfs_is_what_the_flag_says_and_else_the_environment(
    environ: dict[str, str], flag: str | None, wanted: str
) -> None:
    assert Settings.from_environ({"HOME": "/h", **environ}, rootfs=flag).rootfs == wanted


@pytest.mark.parametrize(
    ("environ", "flag", "name"),
    [({"OCIS2I_ROOTFS": "fuse"}, None, "OCIS2I_ROOTFS"), ({}, "fuse", "--rootfs")],
)
def test_an_unknown_rootfs_is_refused_by_the_name_of_who_said_it(
    environ: dict[str, str], flag: str | None, name: str
) -> None:
    with pytest.raises(UsageError, match=f"{name} is `fuse`") as caught:
        Settings.from_environ({"HOME": "/h", **environ}, rootfs=flag)
    assert caught.value.hint == "it must be auto, overlay or copy"
