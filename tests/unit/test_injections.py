"""What an injection brings, and what it refuses."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from ocis2i import injections
from ocis2i.agent.inject import FILE_LIMIT
from ocis2i.errors import UsageError
from ocis2i.injections import (
    RESERVED,
    InjectedFile,
    check_injections,
    read_content,
    read_injections,
)
from ocis2i.mappings import parse_mappings


def write(path: Path, text: str = "x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    directory = tmp_path.resolve() / "secrets"
    directory.mkdir()
    return directory


def read(cwd: Path, text: str, workdir: str = "/opt/app") -> tuple[InjectedFile, ...]:
    return read_injections(parse_mappings(text, "--inject"), workdir=workdir, cwd=cwd)


def targets(cwd: Path, text: str, workdir: str = "/opt/app") -> list[str]:
    return [item.target for item in read(cwd, text, workdir)]


def refusal(cwd: Path, text: str) -> str:
    with pytest.raises(UsageError) as caught:
        read(cwd, text)
    assert "--inject" in caught.value.message
    return caught.value.message


# --- where things go --------------------------------------------------------------------------


def test_directory_brings_its_files_sorted(tmp_path: Path, secrets: Path) -> None:
    write(secrets / "b")
    write(secrets / "a/deep")
    (secrets / "empty").mkdir()
    assert read(tmp_path, f"{secrets}:/etc/creds") == (
        InjectedFile(str(secrets / "a/deep"), "/etc/creds/a/deep", "/etc/creds", directory=True),
        InjectedFile(str(secrets / "b"), "/etc/creds/b", "/etc/creds", directory=True),
    )


def test_file_becomes_the_destination(tmp_path: Path, secrets: Path) -> None:
    file = write(secrets / "token")
    assert read(tmp_path, f"{file}:/run/t") == (
        InjectedFile(str(file), "/run/t", "/run/t", directory=False),
    )


def test_source_is_relative_to_where_the_user_is(secrets: Path) -> None:
    write(secrets / "token")
    assert read(secrets.parent, "secrets/token:/t")[0].source == str(secrets / "token")


@pytest.mark.parametrize(
    ("destination", "workdir", "expected"),
    [
        ("conf", "/opt/app", "/opt/app/conf/f"),
        ("", "/opt/app", "/opt/app/f"),
        ("", "", "/f"),
        ("../up", "/opt/app", "/opt/up/f"),
        ("/", "/opt/app", "/f"),
    ],
)
def test_relative_destination_is_below_the_workdir(
    secrets: Path, destination: str, workdir: str, expected: str
) -> None:
    write(secrets / "f")
    assert targets(secrets, f"{secrets}:{destination}", workdir) == [expected]


def test_file_without_destination_keeps_its_name(secrets: Path) -> None:
    write(secrets / "real")
    (secrets / "token").symlink_to("real")
    assert targets(secrets, "token") == ["/opt/app/token"]


def test_later_injection_wins(secrets: Path) -> None:
    write(secrets / "one/f")
    write(secrets / "two/f")
    found = read(secrets, "one:/d;two:/d")
    assert [item.source for item in found] == [str(secrets / "two/f")]


def test_file_and_directory_in_one_place_are_refused(secrets: Path) -> None:
    write(secrets / "file")
    write(secrets / "tree/x/y")
    assert "`/d/x`" in refusal(secrets, "tree:/d;file:/d/x")


def test_git_is_left_out(secrets: Path) -> None:
    write(secrets / ".git/config")
    write(secrets / "sub/.git/config")
    write(secrets / ".gitignore")
    (secrets / "alias").symlink_to(".git/config")
    assert targets(secrets, f"{secrets}:/d") == ["/d/.gitignore"]


# --- links ------------------------------------------------------------------------------------


def kubernetes_volume(directory: Path) -> None:
    write(directory / "..2024_05_06_07_08_09.123456/password", "pw")
    write(directory / "..2024_05_06_07_08_09.123456/sub/ca.crt", "ca")
    (directory / "..data").symlink_to("..2024_05_06_07_08_09.123456")
    (directory / "password").symlink_to("..data/password")
    (directory / "sub").symlink_to("..data/sub")


def test_kubernetes_secret_brings_each_file_once(secrets: Path) -> None:
    kubernetes_volume(secrets)
    found = read(secrets, f"{secrets}:/d")
    assert [item.target for item in found] == ["/d/password", "/d/sub/ca.crt"]
    assert [read_content(item) for item in found] == [b"pw", b"ca"]
    assert "..2024" in found[0].source


def test_kubernetes_secrets_in_one_directory_too(secrets: Path) -> None:
    (secrets / "one").mkdir()
    kubernetes_volume(secrets / "one")
    assert targets(secrets, f"{secrets}:/d") == ["/d/one/password", "/d/one/sub/ca.crt"]


def test_names_with_two_dots_are_ordinary_elsewhere(secrets: Path) -> None:
    write(secrets / "..rc")
    assert targets(secrets, f"{secrets}:/d") == ["/d/..rc"]


def test_source_itself_may_be_a_link(tmp_path: Path, secrets: Path) -> None:
    write(secrets / "f")
    (tmp_path / "link").symlink_to(secrets)
    assert read(tmp_path, "link:/d")[0].source == str(secrets / "f")


@pytest.mark.parametrize("target", ["/etc/hostname", "../canary", "sub/../../canary", "out"])
def test_link_that_leaves_is_named(tmp_path: Path, secrets: Path, target: str) -> None:
    canary = write(tmp_path / "canary", "CANARY")
    write(secrets / "sub/x")
    (secrets / "out").symlink_to(canary)
    (secrets / "a-link").symlink_to(target)
    assert f"{secrets}/a-link` leads out" in refusal(secrets, f"{secrets}:/d")


def test_directory_link_that_leaves_is_named(tmp_path: Path, secrets: Path) -> None:
    write(tmp_path / "other/canary")
    (secrets / "dir").symlink_to("../other")
    assert "secrets/dir` leads out" in refusal(secrets, f"{secrets}:/d")


@pytest.mark.parametrize("target", ["nowhere", "self", "d/self"])
def test_link_to_nothing_is_refused(secrets: Path, target: str) -> None:
    (secrets / "self").symlink_to(target)
    assert "leads nowhere" in refusal(secrets, f"{secrets}:/d")


@pytest.mark.parametrize("target", [".", "..", "../sub"])
def test_directory_in_itself_is_refused(secrets: Path, target: str) -> None:
    write(secrets / "sub/x")
    (secrets / "sub/loop").symlink_to(target)
    assert "directory that contains it" in refusal(secrets, f"{secrets}:/d")


# --- refused ----------------------------------------------------------------------------------


def test_missing_source_is_named(secrets: Path) -> None:
    assert "`nothing`: No such file" in refusal(secrets, "nothing:/d")


def test_source_link_in_circles_is_an_error(secrets: Path) -> None:
    (secrets / "a").symlink_to("b")
    (secrets / "b").symlink_to("a")
    assert "`a`" in refusal(secrets, "a:/d")


@pytest.mark.parametrize("whole", [True, False])
def test_fifo_is_refused_without_waiting(secrets: Path, whole: bool) -> None:
    os.mkfifo(secrets / "pipe")
    assert "is a FIFO" in refusal(secrets, "pipe:/d" if whole else f"{secrets}:/d")


def test_socket_is_refused(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(secrets)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("sock")
        assert "is a socket" in refusal(secrets, f"{secrets}:/d")


def test_device_is_refused(tmp_path: Path) -> None:
    assert "is a device" in refusal(tmp_path, "/dev/null:/d")


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_unreadable_file_is_named(secrets: Path) -> None:
    write(secrets / "f").chmod(0)
    assert "secrets/f`: Permission denied" in refusal(secrets, f"{secrets}:/d")


def test_name_that_is_no_text_is_refused(secrets: Path) -> None:
    (Path(os.fsdecode(os.fsencode(secrets) + b"/\xff"))).write_text("x")
    assert "not UTF-8" in refusal(secrets, f"{secrets}:/d")


def test_terminal_escapes_are_not_repeated(secrets: Path) -> None:
    (secrets / "\x1b[2J").symlink_to("nowhere")
    assert "\x1b" not in refusal(secrets, f"{secrets}:/d")


def test_sizes_are_bounded_over_all_injections(secrets: Path) -> None:
    for name in ("a", "b"):
        with (secrets / name).open("wb") as file:
            file.truncate((32 << 20) + 1)
    assert len(read(secrets, "a:/a")) == 1
    assert "more than 64 MiB" in refusal(secrets, "a:/a;b:/b")


def test_links_that_multiply_are_bounded(secrets: Path) -> None:
    for level in range(20):
        below = secrets / f"{level}"
        below.mkdir()
        if level:
            (below / "x").symlink_to(f"../{level - 1}")
            (below / "y").symlink_to(f"../{level - 1}")
    assert f"more than {FILE_LIMIT}" in refusal(secrets, f"{secrets}:/d")


def test_content_that_became_a_link_is_not_read(tmp_path: Path, secrets: Path) -> None:
    file = write(secrets / "f")
    (item,) = read(secrets, "f:/f")
    file.unlink()
    file.symlink_to(write(tmp_path / "canary"))
    with pytest.raises(UsageError, match="cannot read"):
        read_content(item)


def test_content_that_grew_is_bounded(secrets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(secrets / "f", "12345")
    (item,) = read(secrets, "f:/f")
    monkeypatch.setattr(injections, "SIZE_LIMIT", 4)
    with pytest.raises(UsageError, match="more than"):
        read_content(item)


# --- before an image is known -------------------------------------------------------------------


def early(cwd: Path, text: str) -> None:
    check_injections(parse_mappings(text, "--inject"), cwd=cwd)


@pytest.mark.parametrize("text", ["none:/x", "none", "secrets/none:x"])
def test_what_is_not_there_is_told_before_the_image_is_known(
    tmp_path: Path, secrets: Path, text: str
) -> None:
    with pytest.raises(UsageError, match=r"cannot read `(secrets/)?none`: No such file"):
        early(tmp_path, text)


@pytest.mark.parametrize("target", sorted(RESERVED))
def test_what_ocis2i_itself_needs_is_no_destination(
    tmp_path: Path, secrets: Path, target: str
) -> None:
    text = f"{write(secrets / 'file')}:{target}"
    with pytest.raises(UsageError, match=f"as `{target}`") as caught:
        read(tmp_path, text)
    assert caught.value.hint == RESERVED[target]
    with pytest.raises(UsageError, match=f"as `{target}`"):
        early(tmp_path, text)


def test_file_of_a_directory_is_told_by_its_destination(tmp_path: Path, secrets: Path) -> None:
    write(secrets / "hosts")
    with pytest.raises(UsageError, match=r"secrets/hosts` cannot be injected as `/etc/hosts`"):
        early(tmp_path, f"{secrets}:/etc")


def test_relative_destination_is_judged_when_the_workdir_is_known(
    tmp_path: Path, secrets: Path
) -> None:
    text = f"{write(secrets / 'file')}:etc/hosts"
    early(tmp_path, text)
    assert targets(tmp_path, text, "/opt/app") == ["/opt/app/etc/hosts"]
    with pytest.raises(UsageError, match="as `/etc/hosts`"):
        read(tmp_path, text, "/")
