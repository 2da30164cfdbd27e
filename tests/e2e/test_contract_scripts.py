"""Section 3 of the S2I contract: which scripts a build uses, from where, and where they run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.contract import better, refused, same
from tests.fakes.bench import Bench, content, warnings
from tests.fakes.images import BUSYBOX, SCRIPTS, Layer
from tests.fakes.program import Done, Program
from tests.fakes.repositories import Repository
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

ASSEMBLED = "assembled by the "


def script(whose: str) -> str:
    """A script that says whose it is, and its own path."""
    return f'#!/bin/sh\necho "{ASSEMBLED}{whose} $0"\n'


OF_IMAGE = {"assemble": script("image"), "run": script("image")}
LABEL = "io.openshift.s2i.scripts-url"


@pytest.fixture(scope="module")
def plain(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A builder with assemble and run."""
    return Bench(shared, tmp_path_factory.mktemp("plain")).image("plain", OF_IMAGE)


def assembled(done: Done) -> str:
    """Whose assemble ran, and its path."""
    lines = [line for line in done.err.splitlines() if line.startswith(ASSEMBLED)]
    assert len(lines) == 1, done.err
    return lines[0].removeprefix(ASSEMBLED)


def own(*names: str, whose: str = "source") -> dict[str, str]:
    """The files of a source with these scripts."""
    return {f".s2i/bin/{name}": script(whose) for name in names}


def on_host(directory: Path, *names: str) -> Path:
    """A directory with these scripts of the user."""
    directory.mkdir()
    for name in names:
        (directory / name).write_text(script("flag"))
    return directory


def put(web: FakeWeb, at: str, *names: str) -> str:
    for name in names:
        web.put(f"{at}/{name}", script("web").encode())
    return f"{web.url}{at}"


def labelled(bench: Bench, labels: Mapping[str, str], env: tuple[str, ...] = ()) -> str:
    """A builder with these labels and no others."""
    path = ["PATH=/usr/bin:/bin", "HOME=/opt/app-root/src"]
    return bench.image("labelled", OF_IMAGE, {"Labels": dict(labels), "Env": [*path, *env]})


def uploaded(bench: Bench) -> dict[str, int]:
    """The scripts in the image's layer, with their modes."""
    below = "tmp/scripts/"
    members = bench.result().members().items()
    return {name.removeprefix(below): one.mode for name, one in members if name.startswith(below)}


def check_refused(done: Done, code: int, reason: str, *said: str) -> None:
    """One clear error with these words in it, its reason in the document, and no script ran."""
    assert done.code == code, done.err
    assert done.document["reason"] == reason
    for words in said:
        assert words in done.err
    assert "Traceback" not in done.err
    assert ASSEMBLED not in done.err


# --- 3.1 and 3.2: which scripts, in which order -----------------------------------------------


@better("scripts.required", "looked for in the image before anything runs")
@better("scripts.missing", "one error that names the path")
@pytest.mark.parametrize("missing", ["assemble", "run"])
def test_script_that_the_image_promises_has_to_be_there(bench: Bench, missing: str) -> None:
    builder = bench.image("half", OF_IMAGE | {missing: None})
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, "--json")
    check_refused(done, 4, "InstallScriptsFailed", f"{SCRIPTS}/{missing}")


@better("scripts.required", "looked for in the image before anything runs")
@better("scripts.missing", "one error that names the path")
@better("exit.missing-script", "4")
def test_builder_without_a_place_for_scripts_is_named(bench: Bench) -> None:
    done = bench.ocis2i("build", bench.source(), labelled(bench, {}), bench.tag, "--json")
    check_refused(done, 4, "InstallScriptsFailed", "no script `assemble`, `run`", LABEL)
    done = bench.ocis2i(
        "build", bench.source(own("assemble")), labelled(bench, {}), bench.tag, "--json"
    )
    check_refused(done, 4, "InstallScriptsFailed", "no script `run`; looked in `.s2i/bin`")


@same("scripts.optional")
@better("scripts.optional-missing", "nothing is said, for nothing is wrong")
def test_optional_scripts_need_not_be_there(bench: Bench) -> None:
    source = bench.source(own("assemble", "run"))
    done = bench.ocis2i.ok("build", source, labelled(bench, {}), bench.tag)
    assert assembled(done) == "source /tmp/scripts/assemble"
    assert warnings(done) == []
    assert uploaded(bench) == {"assemble": 0o755, "run": 0o755}


@same("scripts.order")
@same("scripts.url-file")
@pytest.mark.parametrize(
    ("flag", "source", "expected", "command"),
    [
        ((), (), f"image {SCRIPTS}/assemble", f"{SCRIPTS}/run"),
        ((), ("run",), f"image {SCRIPTS}/assemble", "/tmp/scripts/run"),
        ((), ("assemble",), "source /tmp/scripts/assemble", f"{SCRIPTS}/run"),
        (("run",), ("assemble", "run"), "source /tmp/scripts/assemble", "/tmp/scripts/run"),
        (("assemble",), ("assemble", "run"), "flag /tmp/scripts/assemble", "/tmp/scripts/run"),
        (("assemble",), (), "flag /tmp/scripts/assemble", f"{SCRIPTS}/run"),
        (("assemble", "run"), (), "flag /tmp/scripts/assemble", "/tmp/scripts/run"),
    ],
)
def test_each_script_is_the_users_the_sources_or_the_builders(
    bench: Bench,
    plain: str,
    flag: tuple[str, ...],
    source: tuple[str, ...],
    expected: str,
    command: str,
) -> None:
    url = on_host(bench.directory / "scripts", *flag).as_uri()
    flags = ("--scripts-url", url) if flag else ()
    done = bench.ocis2i.ok("build", bench.source(own(*source)), plain, bench.tag, *flags)
    assert assembled(done) == expected
    assert bench.result().config["Cmd"] == [command]
    if command == "/tmp/scripts/run":
        whose = "flag" if "run" in flag else "source"
        assert content(bench.result(), "tmp/scripts/run") == script(whose)


@same("scripts.image-url-hides-source")
@same("scripts.url-image")
@same("--scripts-url")
def test_place_in_the_image_hides_scripts_of_the_source(bench: Bench) -> None:
    other = Layer().dir("opt/other")
    for name in ("assemble", "run"):
        other.file(f"opt/other/{name}", script("image"), mode=0o755)
    builder = bench.image("builder", OF_IMAGE, more_layers=[other])
    source = bench.source(own("assemble", "run"))
    flags = ("--scripts-url", "image:///opt/other")
    done = bench.ocis2i.ok("build", source, builder, bench.tag, *flags)
    assert assembled(done) == "image /opt/other/assemble"
    assert bench.result().config["Cmd"] == ["/opt/other/run"]
    assert uploaded(bench) == {}
    assert "tmp/src/.s2i/bin/assemble" in bench.result().members()


@same("--scripts")
@pytest.mark.parametrize("both", [False, True])
def test_outdated_name_of_the_flag_wins_with_a_warning(
    bench: Bench, plain: str, *, both: bool
) -> None:
    url = on_host(bench.directory / "scripts", "assemble").as_uri()
    flags = ("--scripts", url, *(("--scripts-url", "image:///absent") if both else ()))
    done = bench.ocis2i.ok("build", bench.source(), plain, bench.tag, *flags)
    assert assembled(done) == "flag /tmp/scripts/assemble"
    assert any("--scripts-url" in line for line in warnings(done))


# --- 3.3: kinds of URLs -----------------------------------------------------------------------


@same("scripts.url-http")
@better("scripts.mixed-places", "each script remembers its own place")
@same("scripts.some-at-url")
@pytest.mark.parametrize("way", ["plain", "created", "redirect", "trailing slash"])
def test_scripts_of_a_web_server(bench: Bench, plain: str, web: FakeWeb, way: str) -> None:
    url = put(web, "/real", "assemble")
    if way == "created":
        web.put("/real/assemble", Answer(script("web").encode(), 201))
    if way == "redirect":
        url = f"{web.url}/old"
        web.put("/old/assemble", Answer(b"", 302, {"Location": "/real/assemble"}))
    if way == "trailing slash":
        url += "/"
    source = bench.source(own("assemble"))
    done = bench.ocis2i.ok("build", source, plain, bench.tag, "--scripts-url", url)
    assert assembled(done) == "web /tmp/scripts/assemble"
    # The web server has no `run`, so that of the image counts, at its own place.
    assert bench.result().config["Cmd"] == [f"{SCRIPTS}/run"]
    assert uploaded(bench) == {"assemble": 0o755}
    assert content(bench.result(), "tmp/scripts/assemble") == script("web")
    # A script that comes by URL leaves the source's own where it is.
    assert content(bench.result(), "tmp/src/.s2i/bin/assemble") == script("source")
    assert any("are not encrypted" in line for line in warnings(done))


@same("scripts.url-http")
@same("HTTP_PROXY")
def test_proxy_of_the_environment_counts(bench: Bench, plain: str, web: FakeWeb) -> None:
    url = "http://scripts.example/s2i"
    for name in ("assemble", "run"):
        web.put(f"{url}/{name}", script("web").encode())
    arguments = ("build", bench.source(), plain, bench.tag, "--scripts-url", url)
    done = bench.ocis2i.ok(*arguments, HTTP_PROXY=web.url, NO_PROXY="other.example")
    assert assembled(done) == "web /tmp/scripts/assemble"
    assert web.asked[:2] == [f"{url}/assemble", f"{url}/run"]


@same("scripts.url-http")
@same("io.openshift.s2i.scripts-url")
def test_label_of_the_builder_may_name_a_web_server(bench: Bench, web: FakeWeb) -> None:
    url = put(web, "/s2i", "assemble", "run")
    builder = labelled(bench, {LABEL: url})
    done = bench.ocis2i.ok("build", bench.source(), builder, bench.tag)
    assert assembled(done) == "web /tmp/scripts/assemble"
    assert bench.result().config["Cmd"] == ["/tmp/scripts/run"]


@better("scripts.url-query", "the script's name goes before it")
def test_query_stays_where_queries_are(bench: Bench, plain: str, web: FakeWeb) -> None:
    for name in ("assemble", "run"):
        web.put(f"/s2i/{name}?version=2&x=/y", script("web").encode())
    url = f"{web.url}/s2i?version=2&x=/y"
    done = bench.ocis2i.ok("build", bench.source(), plain, bench.tag, "--scripts-url", url)
    assert assembled(done) == "web /tmp/scripts/assemble"
    assert web.asked[0] == "/s2i/assemble?version=2&x=/y"


@same("scripts.url-file")
@pytest.mark.parametrize("url", ["file://my%20scripts", "file:my scripts", "file://./my scripts/"])
def test_file_url_may_be_relative(bench: Bench, plain: str, url: str) -> None:
    on_host(bench.directory / "my scripts", "assemble")
    arguments = ("build", bench.source(), plain, bench.tag, "-s", url)
    done = bench.ocis2i.ok(*arguments, cwd=bench.directory)
    assert assembled(done) == "flag /tmp/scripts/assemble"


@refused("scripts.url-other-scheme", "an error before anything is done")
@refused("scripts.url-invalid", "an error before anything is done")
@pytest.mark.parametrize(
    "url", ["ftp://host/scripts", "data:text/plain,x", "../scripts", "scripts", "/scripts", "http:"]
)
def test_url_that_cannot_work_is_a_usage_error(bench: Bench, plain: str, url: str) -> None:
    arguments = ("build", bench.source(own("assemble")), plain, bench.tag, "--json")
    done = bench.ocis2i(*arguments, "--scripts-url", url)
    check_refused(done, 2, "InvalidUsage", f"--scripts-url `{url}`", "file:///directory")


@same("scripts.moved-and-executable")
@pytest.mark.parametrize("mode", [0o644, 0o400, 0o777])
def test_scripts_of_the_source_move_and_become_executable(
    bench: Bench, plain: str, mode: int
) -> None:
    source = bench.source(own("assemble", "run", "helper"))
    for one in (source / ".s2i/bin").iterdir():
        one.chmod(mode)
    done = bench.ocis2i.ok("build", source, plain, bench.tag)
    assert assembled(done) == "source /tmp/scripts/assemble"
    members = bench.result().members()
    assert uploaded(bench) == {"assemble": 0o755, "run": 0o755}
    in_source = {name for name in members if name.startswith("tmp/src/.s2i/bin/")}
    assert in_source == {"tmp/src/.s2i/bin/helper"}
    assert members["tmp/src/.s2i/bin/helper"].mode == mode
    # What the user has is not touched.
    assert (source / ".s2i/bin/assemble").exists()


@better("scripts.links", "what the link leads to inside the source is the script")
@needs("git")
@pytest.mark.parametrize("way", ["clone", "copy"])
def test_script_that_is_a_link(bench: Bench, plain: str, way: str) -> None:
    source = bench.source({"tools/build.sh": script("source"), ".s2i/bin/run": script("source")})
    (source / ".s2i/bin/assemble").symlink_to("../../tools/build.sh")
    (source / ".s2i/bin/save-artifacts").symlink_to("run")
    if way == "clone":
        Repository(source).commit("all")
    done = bench.ocis2i.ok("build", source, plain, bench.tag)
    assert assembled(done) == "source /tmp/scripts/assemble"
    assert uploaded(bench) == dict.fromkeys(("assemble", "run", "save-artifacts"), 0o755)
    members = bench.result().members()
    assert members["tmp/scripts/assemble"].isreg()
    assert content(bench.result(), "tmp/scripts/save-artifacts") == script("source")
    assert content(bench.result(), "tmp/src/tools/build.sh") == script("source")
    assert "tmp/src/.s2i/bin/assemble" not in members


@better("scripts.links", "one that leads nowhere is an error")
@needs("git")
@pytest.mark.parametrize("way", ["clone", "copy"])
def test_script_that_is_a_dangling_link(bench: Bench, plain: str, way: str) -> None:
    source = bench.source({".s2i/bin/run": script("source")})
    (source / ".s2i/bin/assemble").symlink_to("../absent")
    if way == "clone":
        Repository(source).commit("all")
    done = bench.ocis2i("build", source, plain, bench.tag, "--json")
    check_refused(
        done, 4, "InstallScriptsFailed", "the script `.s2i/bin/assemble` is a link that leads"
    )


# --- 3.4: what is told ------------------------------------------------------------------------


@same("scripts.nothing-at-url")
@same("FetchScriptsFailed")
@pytest.mark.parametrize("kind", ["file", "web"])
def test_place_without_any_script_is_an_error(
    bench: Bench, plain: str, web: FakeWeb, kind: str
) -> None:
    empty = on_host(bench.directory / "empty")
    url = empty.as_uri() if kind == "file" else f"{web.url}/empty"
    source = bench.source(own("assemble", "run"))
    done = bench.ocis2i("build", source, plain, bench.tag, "--scripts-url", url, "--json")
    check_refused(
        done,
        4,
        "FetchScriptsFailed",
        f"`{url}` has none of the scripts `assemble`, `run`, `save-artifacts`",
    )


@better("scripts.some-at-url", "but a server that fails is an error")
@pytest.mark.parametrize("status", [204, 301, 501])
def test_server_that_answers_neither_yes_nor_no(
    bench: Bench, plain: str, web: FakeWeb, status: int
) -> None:
    url = put(web, "/s2i", "assemble")
    web.put("/s2i/run", Answer(b"", status))
    done = bench.ocis2i("build", bench.source(), plain, bench.tag, "--scripts-url", url, "--json")
    check_refused(done, 4, "FetchScriptsFailed", f"{url}/run")


@same("scripts.order")
def test_origin_of_a_script_is_told_at_level_4(bench: Bench, plain: str) -> None:
    done = bench.ocis2i.ok("build", bench.source(own("assemble")), plain, bench.tag, "--loglevel=4")
    assert "script `assemble` from `<source-dir>/.s2i/bin/assemble`" in done.err
    assert f"script `run` from `image://{SCRIPTS}/run`" in done.err


# --- 3.5: where they run ----------------------------------------------------------------------


@same("scripts.destination")
@same("io.openshift.s2i.destination")
@same("io.s2i.destination")
@same("STI_LOCATION")
@pytest.mark.parametrize(
    ("flag", "new", "old", "variable"),
    [
        ("/flag", "/new", "/old", "/variable"),
        ("", "/new", "/old", "/variable"),
        ("", "", "/old", "/variable"),
        ("", "", "", "/variable"),
        ("", "", "", ""),
    ],
)
def test_destination_is_the_first_that_says_one(
    bench: Bench, flag: str, new: str, old: str, variable: str
) -> None:
    both = {"io.openshift.s2i.destination": new, "io.s2i.destination": old}
    labels = {name: value for name, value in both.items() if value}
    labels[LABEL] = f"image://{SCRIPTS}"
    builder = labelled(bench, labels, (f"STI_LOCATION={variable}",) if variable else ())
    flags = ("--destination", flag) if flag else ()
    done = bench.ocis2i.ok("build", bench.source(own("assemble")), builder, bench.tag, *flags)
    place = flag or new or old or variable or "/tmp"
    assert assembled(done) == f"source {place}/scripts/assemble"
    assert content(bench.result(), f"{place[1:]}/src/index.html") == "hello\n"
    deprecated = {"/old": "io.s2i.destination", "/variable": "STI_LOCATION"}
    if place in deprecated:
        assert any(deprecated[place] in line for line in warnings(done))


@same("io.s2i.scripts-url")
@same("STI_SCRIPTS_URL")
@pytest.mark.parametrize(
    ("new", "old", "variable"),
    [(True, True, True), (False, True, True), (False, False, True)],
)
def test_place_in_the_image_is_the_first_that_says_one(
    bench: Bench, *, new: bool, old: bool, variable: bool
) -> None:
    places = Layer()
    for name in ("new", "old", "variable"):
        places.dir(name)
        for one in ("assemble", "run"):
            places.file(f"{name}/{one}", script(name), mode=0o755)
    labels = {LABEL: "image:///new"} if new else {}
    labels |= {"io.s2i.scripts-url": "image:///old"} if old else {}
    env = ["PATH=/bin", "HOME=/", *(["STI_SCRIPTS_URL= image:///variable "] if variable else [])]
    builder = bench.image("builder", {}, {"Labels": labels, "Env": env}, [places])
    done = bench.ocis2i.ok("build", bench.source(), builder, bench.tag)
    expected = "new" if new else "old" if old else "variable"
    assert assembled(done) == f"{expected} /{expected}/assemble"
    assert bench.result().config["Cmd"] == [f"/{expected}/run"]
    outdated = {"old": "io.s2i.scripts-url", "variable": "STI_SCRIPTS_URL"}
    assert len(warnings(done)) == (0 if new else 1)
    assert outdated.get(expected, "") in "".join(warnings(done))


@better("scripts.mixed-places", "each script remembers its own place")
def test_mixed_places_work_with_a_directory_of_the_host(bench: Bench, plain: str) -> None:
    url = on_host(bench.directory / "scripts", "run").as_uri()
    done = bench.ocis2i.ok("build", bench.source(), plain, bench.tag, "--scripts-url", url)
    assert assembled(done) == f"image {SCRIPTS}/assemble"
    assert bench.result().config["Cmd"] == ["/tmp/scripts/run"]


@better("scripts.careless-urls", "`image://usr/x` means `/usr/x`")
@pytest.mark.parametrize(
    "url",
    [
        f"image://{SCRIPTS}/",
        f"image:/{SCRIPTS}",
        "image://usr/libexec/s2i",
        f"image:///{SCRIPTS}//",
    ],
)
@pytest.mark.parametrize("how", ["label", "flag"])
def test_slashes_of_an_image_url_do_not_matter(bench: Bench, url: str, how: str) -> None:
    builder = labelled(bench, {LABEL: url} if how == "label" else {})
    flags = ("--scripts-url", url) if how == "flag" else ()
    done = bench.ocis2i.ok("build", bench.source(), builder, bench.tag, *flags)
    assert assembled(done) == f"image {SCRIPTS}/assemble"
    assert bench.result().config["Cmd"] == [f"{SCRIPTS}/run"]
