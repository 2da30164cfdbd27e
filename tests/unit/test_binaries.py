"""What a file is taken for, where it comes from, and how an image is told to start it."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from pathlib import Path

import pytest

from ocis2i.binaries import Binary, check_name, foreign_format, recognise_program, runs_on
from ocis2i.errors import ImageError, PolicyError, SourceError, UsageError
from ocis2i.events import Event, Notice
from ocis2i.manifest import RuntimeConfig
from ocis2i.net import Http
from ocis2i.rebuild import plan_rebuild
from ocis2i.s2i import Start, generated_labels, parse_start, read_start, result_config
from ocis2i.settings import Settings
from ocis2i.sources import ArchiveSource, GitSource, SingleSource, SourceTree, fetch, parse_source
from ocis2i.web_files import WebFiles, name_in_url
from tests.fakes.web import Answer, FakeWeb

HEX = "0123456789abcdef" * 4
SCRIPT = b"#!/bin/sh\necho hello\n"


def elf(kind: int = 2, machine: int = 0x3E, order: str = "little") -> bytes:
    data = 1 if order == "little" else 2
    parts = [number.to_bytes(2, order) for number in (kind, machine)]  # type: ignore[arg-type]
    return b"\x7fELF\x02" + bytes([data, 1]) + bytes(9) + parts[0] + parts[1] + bytes(44)


def zipped(**members: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, text in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), text)
    return buffer.getvalue()


JAR = zipped(**{"META-INF__MANIFEST_DOT_MF": "Main-Class: Main\n"})
LIBRARY = zipped(**{"META-INF__MANIFEST_DOT_MF": "Manifest-Version: 1.0\n"})
WAR = zipped(**{"WEB-INF__web_DOT_xml": "<web-app/>"})
PLAIN_ZIP = zipped(app_DOT_py="print()\n")


# --- by content ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "kind", "architecture"),
    [
        (elf(), "program", "amd64"),
        (elf(3, 0xB7), "program", "arm64"),
        (elf(2, 0x16, "big"), "program", "s390x"),
        (elf(2, 0x15), "program", "ppc64le"),
        (elf(2, 0x15, "big"), "program", "ppc64"),
        (elf(2, 0x999), "program", "machine 2457"),
        (SCRIPT, "script", ""),
    ],
)
def test_programs_are_known_by_their_beginning(head: bytes, kind: str, architecture: str) -> None:
    found = recognise_program(head)
    assert found is not None
    assert (found.kind, found.architecture, found.mode) == (kind, architecture, 0o755)


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"MZ\x90\0" + bytes(60), "a program for Windows"),
        (b"\xcf\xfa\xed\xfe" + bytes(60), "a program for macOS"),
        (b"\xca\xfe\xba\xbe\0\0\0\x02" + bytes(60), "a program for macOS"),
        (b"\xca\xfe\xba\xbe\0\0\0\x3d" + bytes(60), "a compiled Java class"),
        (elf(1), "an object file"),
        (elf(4), "a core dump"),
    ],
)
def test_what_no_container_runs_is_named(tmp_path: Path, head: bytes, what: str) -> None:
    (tmp_path / "app").write_bytes(head)
    with pytest.raises(SourceError, match=f"`app` is {what}") as caught:
        parse_source("app", cwd=tmp_path)
    assert "--source-type file" in (caught.value.hint or "")
    forced = parse_source("app", cwd=tmp_path, type="file")
    assert isinstance(forced, SingleSource)


def test_short_and_broken_beginnings_are_nothing() -> None:
    whole = elf()
    for size in range(20):
        assert recognise_program(whole[:size]) is None
        assert foreign_format(whole[:size]) is None


def test_processors_run_their_smaller_brothers() -> None:
    assert runs_on("386", "amd64")
    assert runs_on("arm", "arm64")
    assert runs_on("", "amd64")
    assert not runs_on("arm64", "amd64")
    assert not runs_on("amd64", "386")


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\0b", "x" * 256, "ü" * 128])
def test_names_that_no_file_has_are_refused(name: str) -> None:
    with pytest.raises(SourceError, match="the source cannot be called"):
        check_name(name)


# --- what the user typed ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "data", "single"),
    [
        ("app.jar", JAR, True),
        ("APP.JAR", JAR, True),
        ("lib.jar", LIBRARY, True),
        ("app.war", WAR, True),
        ("app.jar", SCRIPT + JAR, True),
        ("app.jar", PLAIN_ZIP, False),
        ("app.war", JAR, False),
        ("app.zip", JAR, False),
        ("app", WAR, False),
        ("-rf", SCRIPT, True),
        ("a b\n", elf(), True),
        ("program.tar", elf(), True),
    ],
)
def test_zip_is_a_source_by_itself_by_name_and_content(
    tmp_path: Path, name: str, data: bytes, single: bool
) -> None:
    (tmp_path / name).write_bytes(data)
    found = parse_source(name, cwd=tmp_path)
    assert isinstance(found, SingleSource if single else ArchiveSource)
    assert isinstance(parse_source(name, cwd=tmp_path, type="archive"), ArchiveSource)
    assert parse_source(name, cwd=tmp_path, type="file", name="x") == SingleSource(
        tmp_path / name, name, "x", type="file"
    )


def test_name_that_is_given_counts(tmp_path: Path) -> None:
    (tmp_path / "download").write_bytes(JAR)
    found = parse_source("download", cwd=tmp_path, name="app.jar")
    assert found == SingleSource(tmp_path / "download", "download", "app.jar")


def test_url_with_a_digest_is_a_file_and_others_are_git(tmp_path: Path) -> None:
    url = "https://u:p@h.example/d/my%20app.tgz?sig=1"
    assert parse_source(f"{url}#SHA256={HEX.upper()}", cwd=tmp_path) == SingleSource(
        None, f"{url}#SHA256={HEX.upper()}", "my app.tgz", url, HEX
    )
    assert isinstance(parse_source("https://h.example/app.git#v1", cwd=tmp_path), GitSource)
    assert isinstance(parse_source("https://h.example/tool", cwd=tmp_path), GitSource)
    jar = parse_source("https://h.example/a/app.jar", cwd=tmp_path)
    assert jar == SingleSource(
        None, "https://h.example/a/app.jar", "app.jar", "https://h.example/a/app.jar"
    )
    tool = parse_source("https://h.example/", cwd=tmp_path, type="file")
    assert isinstance(tool, SingleSource)
    assert tool.name == "app"


@pytest.mark.parametrize(
    "text",
    [f"#sha256={HEX[:-1]}", f"#sha256={HEX}0", "#sha256=", "#sha256=x", "#md5=0a", "#SHA512=1f"],
)
def test_digest_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is no digest"):
        parse_source(f"https://h.example/app{text}", cwd=tmp_path)


def test_flags_that_a_source_has_no_use_for_are_refused(tmp_path: Path) -> None:
    (tmp_path / "app").write_bytes(SCRIPT)
    (tmp_path / "tree").mkdir()
    with pytest.raises(SourceError, match="ref `v1`"):
        parse_source("app", cwd=tmp_path, ref="v1")
    with pytest.raises(SourceError, match="directory `sub`"):
        parse_source("app", cwd=tmp_path, context_dir="sub")
    with pytest.raises(UsageError, match="--source-name"):
        parse_source("tree", cwd=tmp_path, name="x")
    with pytest.raises(UsageError, match="--source-type archive"):
        parse_source("tree", cwd=tmp_path, type="archive")
    with pytest.raises(UsageError, match="--source-type is `zip`"):
        parse_source("app", cwd=tmp_path, type="zip")
    with pytest.raises(SourceError, match="cannot be called `a/b`"):
        parse_source("app", cwd=tmp_path, name="a/b")
    with pytest.raises(SourceError, match="has no meaning for"):
        parse_source("https://h.example/app.jar#v1", cwd=tmp_path)


# --- into the build -----------------------------------------------------------------------------


def taken(
    tmp_path: Path,
    text: str,
    *,
    stdin: bytes | None = None,
    limit: int = 1 << 20,
    type: str = "auto",  # noqa: A002
    name: str | None = None,
) -> tuple[SourceTree, list[str]]:
    into = tmp_path / "work" / "src"
    into.mkdir(parents=True)
    said: list[Event] = []
    tree = fetch(
        parse_source(text, cwd=tmp_path, type=type, name=name),
        into,
        settings=Settings(tmp_path, tmp_path, layer_limit=limit),
        report=said.append,
        stdin=None if stdin is None else io.BytesIO(stdin),
    )
    assert sorted(into.parent.iterdir()) == [into]
    return tree, [one.message for one in said if isinstance(one, Notice)]


@pytest.mark.parametrize(("data", "mode"), [(SCRIPT, 0o755), (elf(), 0o755), (JAR, 0o644)])
def test_mode_is_that_of_the_kind_whatever_the_file_had(
    tmp_path: Path, data: bytes, mode: int
) -> None:
    path = tmp_path / "app.jar"
    path.write_bytes(data)
    path.chmod(0o400 if mode == 0o755 else 0o777)
    tree, _ = taken(tmp_path, "app.jar")
    (found,) = tree.root.iterdir()
    assert (found.name, stat.S_IMODE(found.stat().st_mode)) == ("app.jar", mode)
    assert found.read_bytes() == data
    assert found.stat().st_mtime_ns == path.stat().st_mtime_ns
    assert tree.info.file_sha256 == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize(
    ("data", "name", "kind"),
    [
        (SCRIPT, None, "script"),
        (JAR, "x.jar", "jar"),
        (WAR, "x.war", "war"),
        (elf(), "t", "program"),
    ],
)
def test_standard_input_is_a_file_by_its_content(
    tmp_path: Path, data: bytes, name: str | None, kind: str
) -> None:
    tree, _ = taken(tmp_path, "-", stdin=data, name=name)
    assert (tree.info.file_name, tree.info.file_kind) == (name or "app", kind)
    assert tree.info.location == "-"
    assert (tree.root / (name or "app")).read_bytes() == data


@pytest.mark.parametrize("name", [None, "app.jar"])
def test_zip_on_standard_input_is_unpacked_unless_it_is_a_jar(
    tmp_path: Path, name: str | None
) -> None:
    tree, _ = taken(tmp_path, "-", stdin=PLAIN_ZIP, name=name)
    assert [one.name for one in tree.root.iterdir()] == ["app.py"]
    assert tree.info.file_name == ""


def test_data_is_taken_as_it_is_on_request(tmp_path: Path) -> None:
    tree, _ = taken(tmp_path, "-", stdin=b"MZ\0", type="file", name="setup.exe")
    assert stat.S_IMODE((tree.root / "setup.exe").stat().st_mode) == 0o644
    assert tree.info.file_kind == "other"


@pytest.mark.parametrize("type_", ["auto", "file"])
def test_nothing_on_standard_input_is_an_error(tmp_path: Path, type_: str) -> None:
    with pytest.raises(SourceError, match="standard input is empty"):
        taken(tmp_path, "-", stdin=b"", type=type_)


def test_empty_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "app").touch()
    with pytest.raises(SourceError, match="`app` is empty"):
        parse_source("app", cwd=tmp_path, type="file")


@pytest.mark.parametrize("text", ["-", "app"])
def test_file_over_the_limit_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "app").write_bytes(SCRIPT * 10)
    with pytest.raises(PolicyError, match="has more than 100 bytes"):
        taken(tmp_path, text, stdin=SCRIPT * 10, limit=100)


def test_jar_that_starts_nothing_is_warned_of(tmp_path: Path) -> None:
    (tmp_path / "lib.jar").write_bytes(LIBRARY)
    _, said = taken(tmp_path, "lib.jar")
    assert said == ["`lib.jar`: its manifest names no Main-Class: `java -jar` will not start it"]


# --- over HTTP ----------------------------------------------------------------------------------


def test_archive_of_a_server_is_unpacked(tmp_path: Path) -> None:
    digest = hashlib.sha256(PLAIN_ZIP).hexdigest()
    with FakeWeb() as web:
        web.put("/app.zip", PLAIN_ZIP)
        url = f"{web.url}/app.zip#sha256={digest}"
        tree, said = taken(tmp_path, url)
    assert [one.name for one in tree.root.iterdir()] == ["app.py"]
    assert tree.info.location == url
    assert all("pin it" not in one for one in said)


PAGE = Answer(b"<!DOCTYPE html><p>Log in", headers={"Content-Type": "text/html"})


@pytest.mark.parametrize(
    ("answer", "pinned", "words"),
    [
        (Answer(b"no", 404), True, "is not there"),
        (Answer(b"no", 403), True, "is refused"),
        (Answer(b"", 200), True, "is empty"),
        (PAGE, False, "is a web page and no file"),
        (Answer(b" <html>"), False, "is a web page and no file"),
        (PAGE, True, "and looks like a web page, not sha256="),
        (Answer(b"other"), True, "has the digest sha256="),
        (Answer(SCRIPT, headers={"Content-Encoding": "gzip"}), True, "comes compressed"),
        (Answer(b"no", 500), True, "status 500"),
        (Answer(SCRIPT, announced=1000), True, "cannot fetch the source"),
        (Answer(drop=True), True, "cannot fetch the source"),
        (Answer(b"no", 202), True, "status 202"),
    ],
)
def test_answer_that_is_not_the_file_is_refused(answer: Answer, pinned: bool, words: str) -> None:
    with FakeWeb() as web:
        web.put("/app?sig=secret", answer)
        files = WebFiles(Http({}), sleep=lambda _: None)
        with pytest.raises(SourceError, match=words) as caught:
            files.fetch(
                f"http://user:secret@{web.host}/app?sig=secret",
                io.BytesIO(),
                digest=HEX if pinned else None,
                limit_bytes=1000,
            )
    assert "secret" not in caught.value.message


def test_broken_download_goes_on_where_it_broke() -> None:
    half, whole = SCRIPT[:7], SCRIPT
    rest = Answer(
        whole[7:], 206, headers={"Content-Range": f"bytes 7-{len(whole) - 1}/{len(whole)}"}
    )
    into = io.BytesIO()
    with FakeWeb() as web:
        web.put("/app", Answer(half, announced=len(whole)), Answer(b"busy", 503), rest)
        files = WebFiles(Http({}), sleep=lambda _: None)
        digest = hashlib.sha256(whole).hexdigest()
        found = files.fetch(f"{web.url}/app", into, digest=digest, limit_bytes=1000)
        asked = [one.headers.get("range") for one in web.log]
    assert (found, into.getvalue()) == (digest, whole)
    assert asked[:2] == [None, "bytes=7-"]


def test_file_that_changed_on_the_way_is_fetched_anew() -> None:
    rest = Answer(b"another", 206, headers={"Content-Range": "bytes 7-13/14"})
    into = io.BytesIO()
    with FakeWeb() as web:
        web.put("/app", Answer(b"#!/bin/", announced=14), rest, SCRIPT)
        files = WebFiles(Http({}), sleep=lambda _: None)
        digest = hashlib.sha256(SCRIPT).hexdigest()
        files.fetch(f"{web.url}/app", into, digest=digest, limit_bytes=1000)
    assert into.getvalue() == SCRIPT


def test_unpinned_file_is_fetched_from_the_start_again() -> None:
    into = io.BytesIO()
    with FakeWeb() as web:
        web.put("/app", Answer(b"#!/bin/", announced=14), SCRIPT)
        files = WebFiles(Http({}), sleep=lambda _: None)
        files.fetch(f"{web.url}/app", into, digest=None, limit_bytes=1000)
        assert [one.headers.get("range") for one in web.log] == [None, None]
    assert into.getvalue() == SCRIPT


def test_download_over_the_limit_is_refused() -> None:
    with FakeWeb() as web:
        web.put("/app", bytes(2000))
        with pytest.raises(PolicyError, match="has more than 1000 bytes"):
            WebFiles(Http({})).fetch(f"{web.url}/app", io.BytesIO(), digest=None, limit_bytes=1000)


def test_name_is_the_last_of_the_path() -> None:
    assert name_in_url("https://h/a/b%2Fc.jar?x=/y") == "c.jar"
    assert name_in_url("https://h/") == ""
    assert name_in_url("https://h/%2e%2e") == ".."


# --- how it starts ------------------------------------------------------------------------------


def config(start: Start, *, keep: bool = False) -> tuple[object, object]:
    base = RuntimeConfig(entrypoint=("/entry",), cmd=("old",))
    made = result_config(
        base, run_script="/s2i/run", environment=(), labels={}, keep_entrypoint=keep, start=start
    )
    return made.entrypoint, made.cmd


def test_run_script_is_command_or_entrypoint() -> None:
    words = ("a b", "")
    assert config(Start()) == (None, ("/s2i/run",))
    assert config(Start(arguments=words)) == (None, ("/s2i/run", "a b", ""))
    assert config(Start(arguments=words), keep=True) == (("/entry",), ("/s2i/run", "a b", ""))
    assert config(Start("entrypoint")) == (("/s2i/run",), None)
    assert config(Start("entrypoint", words)) == (("/s2i/run",), words)


def test_start_survives_its_labels() -> None:
    for start in (Start(), Start("entrypoint"), Start("cmd", ("a\nb", "ü", ""))):
        assert read_start(start.labels) == start
    assert Start().labels == {}


@pytest.mark.parametrize("text", ["[1]", "{}", "nonsense", "[" * 100000, '["a\\u0000"]', '"a"'])
def test_labels_that_are_no_start_are_an_error(text: str) -> None:
    with pytest.raises(ImageError, match="do not say how an image starts"):
        read_start({"io.ocis2i.build.args": text})


@pytest.mark.parametrize("argument", ["a\0b", "\udce4"])
def test_arguments_that_no_image_can_hold_are_refused(argument: str) -> None:
    with pytest.raises(UsageError, match="--args"):
        parse_start(None, [argument])


def test_rebuild_of_a_file_knows_name_digest_and_start(tmp_path: Path) -> None:
    (tmp_path / "app").write_bytes(SCRIPT)
    tree, _ = taken(tmp_path, "app", name="tool")
    labels = generated_labels(tree.info, builder="registry.example/b:1")
    labels |= Start("entrypoint", ("x",)).labels
    assert json.loads(labels["io.ocis2i.build.args"]) == ["x"]
    plan = plan_rebuild("image", RuntimeConfig(labels=labels))
    assert (plan.source, plan.file_name, plan.is_local) == ("app", "tool", True)
    assert plan.start == Start("entrypoint", ("x",))
    location = f"https://h.example/app#sha256={HEX}"
    labels["io.openshift.s2i.build.source-location"] = location
    plan = plan_rebuild("image", RuntimeConfig(labels=labels))
    assert (plan.source, plan.is_local, plan.warnings) == (location, False, ())


def test_kinds_that_are_not_run_are_not_executable() -> None:
    assert [Binary(kind).mode for kind in ("jar", "war", "other")] == [0o644] * 3
