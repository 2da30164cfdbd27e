"""Where each script of a build comes from."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.download import ScriptDownloads
from ocis2i.errors import ScriptsError, SourceError, UsageError
from ocis2i.events import Event, Notice
from ocis2i.manifest import ImageConfig, RuntimeConfig
from ocis2i.net import Http
from ocis2i.reference import Platform
from ocis2i.s2i import SourceInfo, read_contract
from ocis2i.scripts import (
    SCRIPT_LIMIT,
    ScriptPlace,
    ScriptSet,
    read_environment,
    resolve,
    script_url,
)
from ocis2i.sources import SourceTree
from tests.fakes.web import Answer, FakeWeb

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
        notices = [event for event in self.events if isinstance(event, Notice)]
        return [notice.message for notice in notices if notice.level == "warning"]

    def resolve(
        self, contract: str | None = IMAGE, flag: str | None = None, **options: object
    ) -> ScriptSet:
        given = {"source": self.tree, "into": self.into, "report": self.events.append, **options}
        return resolve(contract, scripts_url_flag=flag, **given)  # type: ignore[arg-type]


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


@pytest.fixture
def web() -> Iterator[FakeWeb]:
    with FakeWeb() as running:
        yield running


@pytest.fixture
def download(desk: Desk) -> Iterator[ScriptDownloads]:
    http = Http({})
    yield ScriptDownloads(http, desk.events.append, sleep=lambda _: None)
    http.close()


def origins(scripts: ScriptSet) -> dict[str, str]:
    return {place.name: place.origin for place in scripts.places.values()}


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
        ("https://host/dir", "nothing is fetched over HTTP"),
        ("http:///dir", "malformed"),
        ("https:host", "malformed"),
        ("https://host:port/", "malformed"),
        ("ftp://host/dir", "unknown kind `ftp:`"),
        ("../scripts", "not a URL"),
        ("scripts", "not a URL"),
        ("file://relative", "relative"),
        ("file://", "names no directory"),
        ("file:///a%00b", "names no directory"),
    ],
)
@pytest.mark.parametrize("option", ["--scripts-url", "--image-scripts-url"])
def test_scripts_url_that_cannot_work_is_refused(
    desk: Desk, option: str, flag: str, words: str
) -> None:
    more = {"image_scripts_url": flag} if option == "--image-scripts-url" else {"flag": flag}
    with pytest.raises(UsageError, match=f"^{option} .*{words}"):
        desk.resolve(**more)


@pytest.mark.parametrize("url", ["file:///etc", "https://me:secret@host/x", "/usr/libexec/s2i"])
def test_builder_image_may_only_name_its_own_directory(desk: Desk, url: str) -> None:
    with pytest.raises(ScriptsError, match="only image:// is") as caught:
        desk.resolve(url)
    assert "secret" not in caught.value.message


def test_promise_that_is_refused_is_no_matter_when_nobody_needs_it(desk: Desk) -> None:
    assert origins(desk.resolve("file:///etc", "image:///s2i"))["run"] == "flag"
    assert desk.warnings == []
    for name in ("assemble", "run"):
        desk.write(f".s2i/bin/{name}")
    assert set(origins(desk.resolve("file:///etc"))) == {"assemble", "run"}
    assert len(desk.warnings) == 1
    assert "`file:///etc` of the builder image is not supported" in desk.warnings[0]


@pytest.mark.parametrize(
    ("url", "directory"),
    [
        ("image:///usr/libexec/s2i", "/usr/libexec/s2i"),
        ("image:///usr/libexec/s2i//", "/usr/libexec/s2i"),
        ("image://usr/libexec/s2i", "/usr/libexec/s2i"),
        ("image:////a/../b/.", "/b"),
        ("image:///../../etc", "/etc"),
        ("image://", ""),
    ],
)
def test_image_urls_are_cleaned(desk: Desk, url: str, directory: str) -> None:
    for scripts in (desk.resolve(url), desk.resolve(None, url)):
        assert scripts["run"].path_in_image == f"{directory}/run"
        assert scripts["run"].url == f"image://{directory}/run"


@pytest.mark.parametrize("form", ["file://{}///", "file:{}", "FILE://{}", "file://{}/x/.."])
def test_directory_of_the_user_may_be_written_in_many_ways(
    desk: Desk, tmp_path: Path, form: str
) -> None:
    (tmp_path / "dir/x").mkdir(parents=True)
    (tmp_path / "dir/run").write_text("mine")
    scripts = desk.resolve(flag=form.format(tmp_path / "dir"))
    assert origins(scripts) == {"assemble": "image", "run": "flag", "save-artifacts": "image"}
    assert (desk.into / "run").read_text() == "mine"
    assert stat.S_IMODE((desk.into / "run").stat().st_mode) == 0o755


@pytest.mark.parametrize("kind", ["directory", "fifo"])
def test_script_of_the_user_that_is_no_file_is_an_error(
    desk: Desk, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "run"
    path.mkdir() if kind == "directory" else os.mkfifo(path)
    with pytest.raises(ScriptsError, match=f"`{path}` is not a file") as caught:
        desk.resolve(flag=f"file://{tmp_path}")
    assert caught.value.reason == "FetchScriptsFailed"


# --- what the image says ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "env", "url", "warned"),
    [
        ({"io.openshift.s2i.scripts-url": "image:///new", "io.s2i.scripts-url": "x"}, (), "new", 0),
        ({"io.s2i.scripts-url": "image:///old"}, ("STI_SCRIPTS_URL=image:///env",), "old", 1),
        ({"io.openshift.s2i.scripts-url": " "}, ("STI_SCRIPTS_URL= image:///env ",), "env", 1),
    ],
)
def test_both_generations_of_promises_lead_to_scripts(
    desk: Desk, labels: dict[str, str], env: tuple[str, ...], url: str, warned: int
) -> None:
    runtime = RuntimeConfig(labels=labels, env=env)
    contract = read_contract(ImageConfig(Platform("amd64"), runtime=runtime))
    assert desk.resolve(contract.scripts_url)["run"].path_in_image == f"/{url}/run"
    assert len(contract.deprecated) == warned


def test_usage_needs_no_source(desk: Desk) -> None:
    scripts = desk.resolve(wanted=("usage",), optional=(), source=None)
    assert dict(scripts.places) == {"usage": image_place("usage")}
    with pytest.raises(ScriptsError, match="no script `usage`; looked in the builder") as caught:
        desk.resolve(None, wanted=("usage",), optional=(), source=None)
    assert ".s2i/bin" not in str(caught.value.hint)


def test_export_takes_what_there_is(desk: Desk) -> None:
    desk.write(".s2i/bin/run")
    names = ("assemble", "run", "save-artifacts")
    assert origins(desk.resolve(None, wanted=(), optional=names)) == {"run": "source"}


def test_image_scripts_url_is_the_last_place(desk: Desk) -> None:
    desk.write(".s2i/bin/run")
    scripts = desk.resolve(None, image_scripts_url="image:///fallback")
    assert [place.origin for place in scripts.places.values()] == ["fallback", "source", "fallback"]
    assert scripts["assemble"].path_in_image == "/fallback/assemble"
    assert origins(desk.resolve(image_scripts_url="image:///fallback"))["run"] == "image"


def test_runtime_image_is_named_when_it_has_no_run(desk: Desk) -> None:
    with pytest.raises(
        ScriptsError, match=r"no script `run`.* the runtime image, which has no label"
    ) as caught:
        desk.resolve(None, wanted=("run",), optional=(), whose="the runtime image")
    assert "the runtime image" in str(caught.value.hint)
    with pytest.raises(ScriptsError, match="`file:///x` of the runtime image is not supported"):
        desk.resolve("file:///x", wanted=("run",), optional=(), whose="the runtime image")


def test_scripts_that_are_taken_already_serve_a_second_image(desk: Desk, tmp_path: Path) -> None:
    for name in ("run", "assemble-runtime"):
        desk.write(f".s2i/bin/{name}", name)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/assemble").write_text("mine")
    flag = f"file://{tmp_path}/mine"
    first = desk.resolve(flag=flag)
    (tmp_path / "second").mkdir()
    second = desk.resolve(
        "image:///runtime",
        flag,
        into=tmp_path / "second",
        wanted=("run",),
        optional=("assemble-runtime", "usage"),
        destination="/opt",
        known=first,
    )
    assert origins(second) == {"run": "source", "assemble-runtime": "source", "usage": "image"}
    assert second["run"].path_in_image == "/opt/scripts/run"
    assert (tmp_path / "second/run").read_text() == "run"
    assert (desk.into / "run").read_text() == "run"
    assert os.listdir(desk.src / ".s2i/bin") == []


def test_script_of_the_first_image_is_none_of_the_second(desk: Desk) -> None:
    first = desk.resolve()
    second = desk.resolve("image:///runtime", known=first)
    assert second["run"].path_in_image == "/runtime/run"


# --- over HTTP --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", "http://h/run"),
        ("http://h/", "http://h/run"),
        ("https://h/dir//", "https://h/dir/run"),
        ("http://h/dir?x=1", "http://h/dir/run?x=1"),
        ("http://h/dir/?x=/&y=#part", "http://h/dir/run?x=/&y="),
        ("http://a:b@h:1/%20", "http://a:b@h:1/%20/run"),
    ],
)
def test_script_is_below_its_url(url: str, expected: str) -> None:
    assert script_url(url, "run") == expected


@given(st.lists(st.sampled_from(["a", "%2F", ".."])), st.text("ab=&/", max_size=9))
def test_query_stays_behind_the_script(parts: list[str], query: str) -> None:
    path = "/".join(parts)
    end = f"?{query}" if query else ""
    base = f"http://h/{path}" if path else "http://h"
    assert script_url(f"{base}{end}", "run") == f"{base}/run{end}"


def test_scripts_of_the_user_come_over_http(
    desk: Desk, web: FakeWeb, download: ScriptDownloads
) -> None:
    web.put("/dir/assemble?key=s3cret", b"#!/bin/sh\n")
    desk.write(".s2i/bin/assemble", "source")
    desk.write(".s2i/bin/run", "source")
    flag = f"http://ann:s3cret@{web.host}/dir/?key=s3cret"
    scripts = desk.resolve(flag=flag, download=download, destination="/opt")
    assert origins(scripts) == {"assemble": "flag", "run": "source", "save-artifacts": "image"}
    assert scripts["assemble"] == ScriptPlace(
        "assemble",
        "flag",
        f"{web.url}/dir/assemble",
        "/opt/scripts/assemble",
        desk.into / "assemble",
    )
    assert scripts["save-artifacts"] == image_place("save-artifacts")
    assert (desk.into / "assemble").read_bytes() == b"#!/bin/sh\n"
    assert stat.S_IMODE((desk.into / "assemble").stat().st_mode) == 0o755
    assert (desk.src / ".s2i/bin/assemble").exists()
    assert len([text for text in desk.warnings if "not encrypted" in text]) == 1
    assert "s3cret" not in str(desk.events)


def test_scripts_of_the_label_come_over_http(
    desk: Desk, web: FakeWeb, download: ScriptDownloads
) -> None:
    for name in ("assemble", "run"):
        web.put(f"/{name}", name.encode())
    desk.write(".s2i/bin/run", "source")
    scripts = desk.resolve(web.url, download=download)
    assert origins(scripts) == {"assemble": "image", "run": "source"}
    assert scripts["assemble"].path_in_image == "/tmp/scripts/assemble"
    assert scripts["assemble"].file == desk.into / "assemble"
    assert web.asked == ["/assemble", "/save-artifacts"]


def test_label_still_may_not_name_files_of_this_host(desk: Desk, download: ScriptDownloads) -> None:
    with pytest.raises(ScriptsError, match="only image:// and https:// are"):
        desk.resolve("file:///etc", download=download)


def test_url_without_any_script_is_an_error(
    desk: Desk, web: FakeWeb, download: ScriptDownloads
) -> None:
    with pytest.raises(ScriptsError, match=f"`{web.url}/dir` has none of the scripts") as caught:
        desk.resolve(flag=f"http://ann:s3cret@{web.host}/dir?token=s3cret", download=download)
    assert "s3cret" not in caught.value.message
    assert caught.value.reason == "FetchScriptsFailed"


def test_label_without_the_script_is_among_the_places(
    desk: Desk, web: FakeWeb, download: ScriptDownloads
) -> None:
    web.put("/assemble", b"x")
    with pytest.raises(ScriptsError) as caught:
        desk.resolve(f"{web.url}/?token=s3cret", web.url, download=download)
    assert caught.value.message == (
        f"no script `run`; looked in `{web.url}`, `.s2i/bin` of the source, "
        f"`.sti/bin` of the source, `{web.url}/` of the builder image"
    )
    assert caught.value.reason == "InstallScriptsFailed"


@pytest.mark.parametrize("answer", [Answer(status=503), Answer(b"<html>"), Answer(drop=True)])
def test_server_in_trouble_is_not_passed_over(
    desk: Desk, web: FakeWeb, download: ScriptDownloads, answer: Answer
) -> None:
    web.put("/run", answer)
    with pytest.raises(ScriptsError, match=f"{web.url}/run") as caught:
        desk.resolve(flag=web.url, download=download)
    assert caught.value.reason == "FetchScriptsFailed"
    assert os.listdir(desk.into) == []


def test_script_over_http_has_a_limit(desk: Desk, web: FakeWeb, download: ScriptDownloads) -> None:
    web.put("/assemble", b"#" * (SCRIPT_LIMIT + 1))
    with pytest.raises(ScriptsError, match=f"more than {SCRIPT_LIMIT} bytes"):
        desk.resolve(flag=web.url, download=download)


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


def test_chain_of_links_through_directories_is_resolved(desk: Desk) -> None:
    desk.write("deep/er/script", "deep")
    (desk.src / "tools").symlink_to("deep/er")
    (desk.src / "one").symlink_to("tools/script")
    (desk.src / "s2i/bin").mkdir(parents=True)
    (desk.src / ".s2i").symlink_to("s2i")
    (desk.src / "s2i/bin/run").symlink_to("../../one")
    scripts = desk.resolve()
    assert scripts["run"].url == "<source-dir>/.s2i/bin/run"
    assert (desk.into / "run").read_text() == "deep"
    assert stat.S_IMODE((desk.into / "run").stat().st_mode) == 0o755
    assert (desk.src / "deep/er/script").exists()
    assert not (desk.src / "s2i/bin/run").is_symlink()


@pytest.mark.parametrize(
    ("target", "words"), [("../../one", "leads nowhere"), ("../../../x", "leaves the source")]
)
def test_chain_of_links_that_gives_no_script_is_an_error(
    desk: Desk, tmp_path: Path, target: str, words: str
) -> None:
    (tmp_path / "x").write_text("password")
    (desk.src / "one").symlink_to("two")
    (desk.src / "two").symlink_to("one")
    (desk.src / ".s2i/bin").mkdir(parents=True)
    (desk.src / ".s2i/bin/run").symlink_to(target)
    with pytest.raises(ScriptsError, match=words):
        desk.resolve()


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
