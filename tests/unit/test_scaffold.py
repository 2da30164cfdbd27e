"""The files of a new builder repository."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from ocis2i import scaffold
from ocis2i.errors import OutputError, UsageError, exit_code_of
from ocis2i.scaffold import TEMPLATES, Created, create, plan_repository

PACKAGE = Path(scaffold.__file__).parent
PROGRAMS = "s2i/bin/assemble s2i/bin/run s2i/bin/save-artifacts s2i/bin/usage test/run".split()


def files_in(directory: Path) -> dict[str, Path]:
    found = (path for path in directory.rglob("*") if not path.is_dir() or path.is_symlink())
    return {str(path.relative_to(directory)): path for path in found}


def states(created: tuple[Created, ...], directory: Path) -> dict[str, str]:
    return {str(one.path.relative_to(directory)): one.state for one in created}


def test_every_template_is_written_and_every_file_has_a_template() -> None:
    assert set(files_in(PACKAGE / "templates")) == set(TEMPLATES)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_a_repository_is_written(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        created = create("acme/builder", tmp_path / "new" / "repository")
    finally:
        os.umask(before)
    found = files_in(tmp_path / "new" / "repository")
    assert states(created, tmp_path / "new" / "repository") == dict.fromkeys(found, "written")
    assert set(found) == set(TEMPLATES)
    modes = {path: stat.S_IMODE(file.stat().st_mode) for path, file in found.items()}
    assert modes == {path: 0o755 if path in PROGRAMS else 0o644 for path in TEMPLATES}


@pytest.mark.parametrize("name", ["builder", "acme/builder:1", "localhost:5000/a/b__c:x.y-z"])
def test_the_name_is_filled_in_and_no_mark_is_left(name: str) -> None:
    texts = {str(file.path): file.content.decode() for file in plan_repository(name)}
    assert not [path for path, text in texts.items() if scaffold.IMAGE_MARK in text]
    naming = {path for path, text in texts.items() if name in text}
    assert {"Dockerfile", "Makefile", "README.md", "s2i/bin/usage"} <= naming


@pytest.mark.parametrize(
    "name", ["", "UPPER", "a b", "a;rm -rf /", "$(id)", "a`id`", "a:b:c", "../a", "oci:/a", "a\nb"]
)
def test_a_bad_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError) as caught:
        create(name, tmp_path / "repository")
    assert exit_code_of(caught.value) == 2
    assert not (tmp_path / "repository").exists()


def test_a_name_with_a_digest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has a digest") as caught:
        create(f"acme/builder@sha256:{'0' * 64}", tmp_path / "repository")
    assert caught.value.hint == "name it acme/builder"


def test_files_that_exist_are_kept(tmp_path: Path) -> None:
    (tmp_path / "s2i" / "bin").mkdir(parents=True)
    (tmp_path / "s2i" / "bin" / "run").write_text("mine")
    (tmp_path / "Dockerfile").symlink_to("nowhere")
    found = states(create("builder", tmp_path), tmp_path)
    assert {path for path, state in found.items() if state == "kept"} == {
        "s2i/bin/run",
        "Dockerfile",
    }
    assert (tmp_path / "s2i" / "bin" / "run").read_text() == "mine"
    assert os.readlink(tmp_path / "Dockerfile") == "nowhere"
    assert not (tmp_path / "nowhere").exists()


def test_a_second_time_everything_is_kept(tmp_path: Path) -> None:
    create("builder", tmp_path)
    before = {path: file.read_bytes() for path, file in files_in(tmp_path).items()}
    found = states(create("other", tmp_path), tmp_path)
    assert set(found.values()) == {"kept"}
    assert {path: file.read_bytes() for path, file in files_in(tmp_path).items()} == before


@pytest.mark.parametrize("link", ["s2i", "s2i/bin", "test"])
def test_a_link_in_place_of_a_directory_is_not_followed(tmp_path: Path, link: str) -> None:
    outside, directory = tmp_path / "outside", tmp_path / "repository"
    outside.mkdir()
    (directory / link).parent.mkdir(parents=True)
    (directory / link).symlink_to(outside)
    with pytest.raises(OutputError) as caught:
        create("builder", directory)
    assert f"`{directory / link}`" in caught.value.message
    assert os.listdir(outside) == []


def test_a_file_in_place_of_a_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory, named in ((tmp_path / "file", "file"), (tmp_path / "file" / "x", "file/x")):
        with pytest.raises(OutputError) as caught:
            create("builder", directory)
        assert f"cannot write `{tmp_path / named}`" in caught.value.message
        assert exit_code_of(caught.value) == 8
    (tmp_path / "s2i").write_text("")
    with pytest.raises(OutputError, match=r"cannot write `.*/s2i`"):
        create("builder", tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o555)
    for directory in (tmp_path, tmp_path / "new"):
        with pytest.raises(OutputError, match="Permission denied") as caught:
            create("builder", directory)
        assert f"`{directory}" in caught.value.message
    assert os.listdir(tmp_path) == []


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full"):
        create("builder", tmp_path)
    assert files_in(tmp_path) == {}


def test_a_file_system_without_hard_links_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    create("builder", tmp_path)
    assert set(files_in(tmp_path)) == set(TEMPLATES)


# --- the scripts, as they are, by any shell ---------------------------------------------------


def run_script(
    text: str, directory: Path, *arguments: str, replace: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """Runs a script in `directory`; `replace` puts paths of the test in place of the image's."""
    for old, new in (replace or {}).items():
        text = text.replace(old, new)
    return subprocess.run(
        ["sh", "-c", text, "script", *arguments],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
        timeout=60,
    )


def script(name: str) -> str:
    planned = {str(file.path): file for file in plan_repository("builder")}
    return planned[f"s2i/bin/{name}"].content.decode()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The working directory of the builder."""
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def assemble(tmp_path: Path, home: Path) -> bytes:
    replace = {"/tmp/src": f"{tmp_path}/src", "/tmp/artifacts": f"{tmp_path}/artifacts"}
    done = run_script(script("assemble"), home, replace=replace)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_assemble_takes_dotfiles_and_restores_artifacts(tmp_path: Path, home: Path) -> None:
    (tmp_path / "src" / ".s2i").mkdir(parents=True)
    (tmp_path / "src" / ".s2i" / "environment").write_text("A=1")
    (tmp_path / "src" / "index.html").write_text("hello")
    (tmp_path / "artifacts" / ".cache").mkdir(parents=True)
    (tmp_path / "artifacts" / ".cache" / "kept").write_text("from before")
    assert b"Restoring build artifacts" in assemble(tmp_path, home)
    assert set(files_in(home)) == {".cache/kept", ".s2i/environment", "index.html"}
    assert not (tmp_path / "artifacts").exists()


def test_assemble_takes_an_empty_source_and_empty_artifacts(tmp_path: Path, home: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "artifacts").mkdir()
    assemble(tmp_path, home)
    assert os.listdir(home) == []


def test_assemble_fails_without_a_source(tmp_path: Path, home: Path) -> None:
    replace = {"/tmp/src": f"{tmp_path}/missing", "/tmp/artifacts": f"{tmp_path}/artifacts"}
    assert run_script(script("assemble"), home, replace=replace).returncode != 0


def test_save_artifacts_prints_nothing_or_a_tar(tmp_path: Path, home: Path) -> None:
    done = run_script(script("save-artifacts"), home)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    (home / ".cache").mkdir()
    (home / ".cache" / "one").write_text("kept")
    done = run_script(script("save-artifacts"), home)
    assert (done.returncode, done.stderr) == (0, b"")
    (tmp_path / "unpacked").mkdir()
    subprocess.run(["tar", "-x", "-C", tmp_path / "unpacked"], input=done.stdout, check=True)
    assert set(files_in(tmp_path / "unpacked")) == {".cache/one"}


def test_usage_names_the_builder(home: Path) -> None:
    assert b"builder builder." in run_script(script("usage"), home).stdout
    replace = {"/usr/libexec/s2i/usage": "echo usage"}
    assert run_script(script("assemble"), home, "-h", replace=replace).stdout == b"usage\n"
