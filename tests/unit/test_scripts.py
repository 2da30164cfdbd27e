"""Where each script of a build comes from."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from ocis2i.errors import ScriptsError, SourceError, UsageError
from ocis2i.events import Event, Notice
from ocis2i.s2i import SourceInfo
from ocis2i.scripts import ScriptPlace, ScriptSet, read_environment, resolve
from ocis2i.sources import SourceTree

IMAGE = "image:///usr/libexec/s2i"


class Desk:
    """A source, a directory for scripts, and what was reported."""

    def __init__(self, directory: Path) -> None:
        self.src = directory / "src"
        self.into = directory / "scripts"
        self.src.mkdir()
        self.into.mkdir()
        self.events: list[Event] = []

    def write(self, name: str, text: str = "x", mode: int = 0o644) -> Path:
        path = self.src / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    @property
    def tree(self) -> SourceTree:
        return SourceTree(self.src, SourceInfo())

    @property
    def warnings(self) -> list[str]:
        return [event.message for event in self.events if isinstance(event, Notice)]

    def resolve(
        self, contract: str | None = IMAGE, flag: str | None = None, **options: object
    ) -> ScriptSet:
        return resolve(
            contract,
            scripts_url_flag=flag,
            source=self.tree,
            into=self.into,
            report=self.events.append,
            **options,  # type: ignore[arg-type]
        )


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def image_place(name: str, directory: str = "/usr/libexec/s2i") -> ScriptPlace:
    path = f"{directory}/{name}"
    return ScriptPlace(name, "image", f"image://{path}", path)


def test_scripts_of_the_image_are_named_only(desk: Desk) -> None:
    scripts = desk.resolve()
    assert dict(scripts.places) == {
        name: image_place(name) for name in ("assemble", "run", "save-artifacts")
    }
    assert scripts.files == ()
    assert os.listdir(desk.into) == []


def test_scripts_mix_and_those_of_the_source_are_moved(desk: Desk) -> None:
    desk.write(".s2i/bin/assemble", "mine")
    desk.write(".s2i/bin/other", "stays")
    scripts = desk.resolve(destination="/opt/s2i")
    assert scripts["assemble"] == ScriptPlace(
        "assemble",
        "source",
        "<source-dir>/.s2i/bin/assemble",
        "/opt/s2i/scripts/assemble",
        desk.into / "assemble",
    )
    assert scripts["run"] == image_place("run")
    assert scripts.files == (scripts["assemble"],)
    assert (desk.into / "assemble").read_text() == "mine"
    assert stat.S_IMODE((desk.into / "assemble").stat().st_mode) == 0o755
    assert os.listdir(desk.src / ".s2i/bin") == ["other"]


def test_scripts_leave_a_read_only_directory(desk: Desk) -> None:
    desk.write(".s2i/bin/run")
    (desk.src / ".s2i/bin").chmod(0o555)
    desk.resolve()
    assert os.listdir(desk.src / ".s2i/bin") == []
    assert stat.S_IMODE((desk.src / ".s2i/bin").stat().st_mode) == 0o555


def test_old_directory_counts_with_a_warning(desk: Desk) -> None:
    desk.write(".sti/bin/run", "old")
    scripts = desk.resolve()
    assert scripts["run"].origin == "source"
    assert (desk.into / "run").read_text() == "old"
    assert desk.warnings == ["`.sti/bin/run` is deprecated, move it to `.s2i/bin/run`"]


def test_image_url_of_the_user_hides_the_scripts_of_the_source(desk: Desk) -> None:
    desk.write(".s2i/bin/run")
    scripts = desk.resolve(flag="image://my//s2i/")
    assert scripts["run"] == ScriptPlace("run", "flag", "image:///my/s2i/run", "/my/s2i/run")
    assert (desk.src / ".s2i/bin/run").exists()


def test_directory_of_the_user_wins_script_by_script(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "my dir").mkdir()
    (tmp_path / "my dir/assemble").write_text("flag")
    desk.write(".s2i/bin/assemble", "source")
    desk.write(".s2i/bin/run", "source")
    for url in (f"file://{tmp_path}/my%20dir", "file://my dir"):
        for path in desk.into.iterdir():
            path.unlink()
        desk.write(".s2i/bin/run", "source")
        scripts = desk.resolve(flag=url, cwd=tmp_path)
        assert [place.origin for place in scripts.places.values()] == ["flag", "source", "image"]
        assert scripts["assemble"].path_in_image == "/tmp/scripts/assemble"
        assert scripts["assemble"].url == (tmp_path / "my dir/assemble").as_uri()
        assert (desk.into / "assemble").read_text() == "flag"
        assert (desk.src / ".s2i/bin/assemble").read_text() == "source"


def test_directory_of_the_user_without_any_script_is_an_error(desk: Desk, tmp_path: Path) -> None:
    with pytest.raises(ScriptsError, match="none of the scripts") as caught:
        desk.resolve(flag=f"file://{tmp_path}")
    assert caught.value.reason == "FetchScriptsFailed"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("https://host/dir", "over HTTP yet"),
        ("ftp://host/dir", "unknown kind `ftp:`"),
        ("../scripts", "not a URL"),
        ("file://relative", "relative"),
    ],
)
def test_scripts_url_that_cannot_work_is_refused(desk: Desk, flag: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        desk.resolve(flag=flag)


@pytest.mark.parametrize("url", ["file:///etc", "https://me:secret@host/x", "/usr/libexec/s2i"])
def test_builder_image_may_only_name_its_own_directory(desk: Desk, url: str) -> None:
    with pytest.raises(ScriptsError, match="only image:// is") as caught:
        desk.resolve(url)
    assert "secret" not in caught.value.message


def test_missing_scripts_are_listed_with_the_places(desk: Desk) -> None:
    desk.write(".s2i/bin/run")
    with pytest.raises(
        ScriptsError, match=r"no script `assemble`; looked in .*\.s2i/bin"
    ) as caught:
        desk.resolve(None)
    assert caught.value.reason == "InstallScriptsFailed"


def test_missing_optional_script_is_absent(desk: Desk) -> None:
    desk.write(".s2i/bin/run")
    desk.write(".s2i/bin/assemble")
    scripts = desk.resolve(None)
    assert scripts.get("save-artifacts") is None
    assert set(scripts.places) == {"assemble", "run"}


def test_link_inside_the_source_is_resolved_and_copied(desk: Desk) -> None:
    desk.write("tools/build.sh", "tool")
    desk.write(".s2i/bin/assemble", "assemble")
    (desk.src / ".s2i/bin/run").symlink_to("../../tools/build.sh")
    (desk.src / ".s2i/bin/save-artifacts").symlink_to("assemble")
    scripts = desk.resolve()
    assert {place.origin for place in scripts.places.values()} == {"source"}
    assert (desk.into / "run").read_text() == "tool"
    assert (desk.into / "save-artifacts").read_text() == "assemble"
    assert not (desk.into / "run").is_symlink()
    assert (desk.src / "tools/build.sh").exists()
    assert os.listdir(desk.src / ".s2i/bin") == []


@pytest.mark.parametrize(
    ("target", "words"), [("/etc/passwd", "leaves the source"), ("missing", "leads nowhere")]
)
def test_link_that_gives_no_script_is_an_error(desk: Desk, target: str, words: str) -> None:
    (desk.src / ".s2i/bin").mkdir(parents=True)
    (desk.src / ".s2i/bin/assemble").symlink_to(target)
    with pytest.raises(ScriptsError, match=f"`.s2i/bin/assemble` is a link that {words}"):
        desk.resolve()
    assert os.listdir(desk.into) == []


def test_directory_link_that_leaves_the_source_is_an_error(desk: Desk, tmp_path: Path) -> None:
    (tmp_path / "outside/bin").mkdir(parents=True)
    (tmp_path / "outside/bin/run").write_text("password")
    (desk.src / ".s2i").symlink_to("../outside")
    with pytest.raises(SourceError, match="leaves the source"):
        desk.resolve()
    assert (tmp_path / "outside/bin/run").exists()


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_script_that_is_no_file_is_an_error(desk: Desk, kind: str) -> None:
    path = desk.src / ".s2i/bin/run"
    path.parent.mkdir(parents=True)
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(ScriptsError, match="is not a file"):
        desk.resolve()


# --- .s2i/environment -------------------------------------------------------------------------


def test_environment_of_the_source_is_read(desk: Desk) -> None:
    desk.write(".s2i/environment", "# note\nA=1\nsecret word\n")
    environment = read_environment(desk.tree, desk.events.append)
    assert environment.values == {"A": "1"}
    assert desk.warnings == ["`.s2i/environment`: 1 line without NAME=VALUE left out"]


def test_source_without_environment_has_none(desk: Desk) -> None:
    (desk.src / ".s2i/environment").mkdir(parents=True)
    assert read_environment(desk.tree, desk.events.append).values == {}


@pytest.mark.parametrize("target", ["/etc/passwd", "../../outside"])
def test_environment_that_leaves_the_source_is_refused(
    desk: Desk, tmp_path: Path, target: str
) -> None:
    (tmp_path / "outside").write_text("A=password")
    (desk.src / ".s2i").mkdir()
    (desk.src / ".s2i/environment").symlink_to(target)
    with pytest.raises(SourceError, match="leaves the source"):
        read_environment(desk.tree, desk.events.append)


def test_environment_that_is_no_text_or_too_large_is_refused(desk: Desk) -> None:
    path = desk.write(".s2i/environment")
    path.write_bytes(b"A=\xff")
    with pytest.raises(SourceError, match="not UTF-8"):
        read_environment(desk.tree, desk.events.append)
    path.write_bytes(b"A=" + b"x" * (1 << 20))
    with pytest.raises(SourceError, match="larger than"):
        read_environment(desk.tree, desk.events.append)
