"""The user's own settings: where they are read, what they may say, and who wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocis2i.errors import UsageError
from ocis2i.preferences import KEYS, config_path, defaults, parse
from ocis2i.settings import Settings


def written(tmp_path: Path, text: str) -> dict[str, str]:
    """An environment with that config.toml."""
    path = tmp_path / "ocis2i/config.toml"
    path.parent.mkdir()
    path.write_text(text)
    return {"XDG_CONFIG_HOME": str(tmp_path)}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"HOME": "/h"}, "/h/.config/ocis2i/config.toml"),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "/c"}, "/c/ocis2i/config.toml"),
        ({"HOME": "/h", "XDG_CONFIG_HOME": ""}, "/h/.config/ocis2i/config.toml"),
        ({"HOME": "/h", "XDG_CONFIG_HOME": "c"}, "/h/.config/ocis2i/config.toml"),
    ],
)
def test_the_file_is_where_the_specification_has_it(environ: dict[str, str], expected: str) -> None:
    assert config_path(environ) == Path(expected)


def test_without_a_file_nothing_is_said(tmp_path: Path) -> None:
    assert defaults({"XDG_CONFIG_HOME": str(tmp_path)}) == {}


def test_values_are_those_of_the_flags(tmp_path: Path) -> None:
    text = """\
isolation = "builtin"
rootfs = "copy"
network = "proxy"
allow-host = ["example.org", "*.example.com:443"]
memory = "2g"
cpus = 1.5
pids-limit = 512
timeout = "10m"
output-limit = "100m"
"""
    found = defaults(written(tmp_path, text))
    assert found == {
        "isolation": "builtin",
        "rootfs": "copy",
        "network": "proxy",
        "allow_host": ["example.org", "*.example.com:443"],
        "memory": "2g",
        "cpus": "1.5",
        "pids_limit": "512",
        "timeout": "10m",
        "output_limit": "100m",
    }
    assert len(found) == len(KEYS)


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    environ = written(tmp_path, 'isolation = "builtin"\nrootfs = "copy"\n')
    environ |= {"OCIS2I_ISOLATION": "crun", "OCIS2I_ROOTFS": "overlay"}
    assert defaults(environ) == {"isolation": "crun", "rootfs": "overlay"}
    assert defaults(environ | {"OCIS2I_ISOLATION": ""})["isolation"] == "builtin"


def test_an_unknown_key_is_refused_by_file_and_key(tmp_path: Path) -> None:
    environ = written(tmp_path, 'isolaton = "builtin"\n')
    with pytest.raises(UsageError, match=r"config\.toml` has the unknown key `isolaton`") as caught:
        defaults(environ)
    assert caught.value.hint == f"there are {', '.join(KEYS)}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('isolation = "docker"', "`isolation` in `f`: `docker` is not known"),
        ('memory = "much"', "`memory` in `f`: `--memory` is `much`"),
        ("timeout = 0", "`timeout` in `f`: "),
        ("cpus = true", "`cpus` in `f` must be a text or a number"),
        ("cpus = [1]", "`cpus` in `f` must be a text or a number"),
        ("allow-host = [1, true]", "`allow-host` in `f` must be a list of texts"),
        ('network = "vpn"', "`network` in `f`: "),
        ("[isolation]\nname = 1", "`isolation` in `f` must be a text or a number"),
        ("isolation = ", "`f` is not TOML: "),
        ('isolation = "\udcff"', "`f` is not TOML: "),
    ],
)
def test_values_that_cannot_be_are_refused_by_name(text: str, said: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(text.encode(errors="surrogateescape"), "f")
    assert said in caught.value.message


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    (tmp_path / "ocis2i/config.toml").mkdir(parents=True)
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        defaults({"XDG_CONFIG_HOME": str(tmp_path)})


def test_a_file_without_end_is_not_read_to_it(tmp_path: Path) -> None:
    (tmp_path / "ocis2i").mkdir()
    (tmp_path / "ocis2i/config.toml").symlink_to("/dev/zero")
    with pytest.raises(UsageError, match="is larger than"):
        defaults({"XDG_CONFIG_HOME": str(tmp_path)})


def test_an_unknown_isolation_of_the_environment_is_refused_by_its_name() -> None:
    with pytest.raises(UsageError, match="OCIS2I_ISOLATION: `docker` is not known"):
        defaults({"HOME": "/nowhere", "OCIS2I_ISOLATION": "docker"})


@pytest.mark.parametrize(("text", "allowed"), [("", False), ("0", False), ("1", True)])
def test_weak_isolation_is_allowed_by_one(text: str, allowed: bool) -> None:
    environ = {"HOME": "/h", "OCIS2I_ALLOW_WEAK_ISOLATION": text}
    assert Settings.from_environ(environ).allow_weak is allowed


def test_weak_isolation_is_not_allowed_by_anything_else() -> None:
    with pytest.raises(UsageError, match="OCIS2I_ALLOW_WEAK_ISOLATION is `yes`"):
        Settings.from_environ({"HOME": "/h", "OCIS2I_ALLOW_WEAK_ISOLATION": "yes"})
