"""Programs, jars and wars that were built elsewhere, in the builder of `fixtures/`."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import signal
import socket
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.fakes.bench import Bench, content, error, facts, warnings
from tests.fakes.images import BUSYBOX, FIXTURES, LayoutImage
from tests.fakes.program import Done
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.network,  # the packages of the builder
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
    needs("mmdebstrap", "newuidmap"),
]

HOSTILE = ("a b", "", "\"quoted\" 'twice'", "$HOME `id` \\\\", "x\ny", "\u00fc \u4e2d", "-rf", "*")
RUN = "/usr/libexec/s2i/run"
# public class Main { public static void main(String[] a) {
#     for (String s : a) System.out.println("[" + s + "]"); } }         (javac -g:none --release 8)
PRINTS_ARGUMENTS = base64.b64decode(
    "yv66vgAAADQAKgoAAgADBwAEDAAFAAYBABBqYXZhL2xhbmcvT2JqZWN0AQAGPGluaXQ+AQADKClWCQAIAAkHAAoM"
    "AAsADAEAEGphdmEvbGFuZy9TeXN0ZW0BAANvdXQBABVMamF2YS9pby9QcmludFN0cmVhbTsHAA4BABdqYXZhL2xh"
    "bmcvU3RyaW5nQnVpbGRlcgoADQADCAARAQABWwoADQATDAAUABUBAAZhcHBlbmQBAC0oTGphdmEvbGFuZy9TdHJp"
    "bmc7KUxqYXZhL2xhbmcvU3RyaW5nQnVpbGRlcjsIABcBAAFdCgANABkMABoAGwEACHRvU3RyaW5nAQAUKClMamF2"
    "YS9sYW5nL1N0cmluZzsKAB0AHgcAHwwAIAAhAQATamF2YS9pby9QcmludFN0cmVhbQEAB3ByaW50bG4BABUoTGph"
    "dmEvbGFuZy9TdHJpbmc7KVYHACMBAARNYWluAQAEQ29kZQEABG1haW4BABYoW0xqYXZhL2xhbmcvU3RyaW5nOylW"
    "AQANU3RhY2tNYXBUYWJsZQcAKQEAE1tMamF2YS9sYW5nL1N0cmluZzsAIQAiAAIAAAAAAAIAAQAFAAYAAQAkAAAA"
    "EQABAAEAAAAFKrcAAbEAAAAAAAkAJQAmAAEAJAAAAFYAAwAFAAAANypMK749Az4dHKIALSsdMjoEsgAHuwANWbcA"
    "DxIQtgASGQS2ABISFrYAErYAGLYAHIQDAaf/1LEAAAABACcAAAANAAL+AAcHACgBAfgALgAA"
)
SCRIPT = """#!/bin/sh
echo "I am $$"
for argument in "$@"; do printf '[%s]\\n' "$argument"; done
exit 3
"""
# It ends by itself after a signal.
SERVER = """#!/bin/sh
trap 'echo "TERM for $$"; exit 5' TERM
trap 'echo "INT for $$"; exit 6' INT
echo "ready: $*"
while :; do sleep 0.1; done
"""
CLASSES = "-Xlog:class+load=info:stdout:none"  # a JVM says which it loads, and so how far it is


@pytest.fixture(scope="module")
def builder(tmp_path_factory: pytest.TempPathFactory) -> str:
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    path = tmp_path_factory.mktemp("builders") / "binary"
    done = subprocess.run(
        [FIXTURES / "builders/binary/build", path, "latest"],
        env={**os.environ, "JAVA": "yes"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return f"oci:{path}:latest"


def put(bench: Bench, name: str, data: bytes, mode: int = 0o600) -> Path:
    """A file of the user, which nothing makes executable."""
    path = bench.directory / name
    path.write_bytes(data)
    path.chmod(mode)
    return path


def jar(path: Path, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name.replace("__", "/").replace("_DOT_", "."), data)
    return path


def lines(arguments: tuple[str, ...]) -> str:
    return "".join(f"[{one}]\n" for one in arguments)


def as_flags(arguments: tuple[str, ...]) -> list[str]:
    return [word for one in arguments for word in ("--args", one)]


def run(bench: Bench, *arguments: str, options: tuple[str, ...] = ()) -> Done:
    return bench.ocis2i("run", *options, bench.tag, *arguments)


# --- programs -----------------------------------------------------------------------------------


def test_script_gets_the_arguments_of_the_image_exactly(bench: Bench, builder: str) -> None:
    source = put(bench, "it's a\nprogram", SCRIPT.encode())
    bench.ocis2i.ok("build", source, builder, bench.tag, *as_flags(HOSTILE))
    image = bench.result()
    assert image.config["Cmd"] == [RUN, *HOSTILE]
    assert "Entrypoint" not in image.config
    ran = run(bench)
    # `run` makes way for the program: it is the first process, and its exit code the container's.
    assert (ran.out, ran.code) == ("I am 1\n" + lines(HOSTILE), 3)
    assert facts(image)["opt/app-root/program/it's a\nprogram"] == "0755 1001:0"
    assert run(bench, options=("--user", "12345:0")).out.startswith("I am 1\n")


def test_entrypoint_lets_arguments_of_the_moment_through(bench: Bench, builder: str) -> None:
    source = put(bench, "printf", BUSYBOX.read_bytes())
    how = ("--start", "entrypoint", "--args", "usual\\n")
    bench.ocis2i.ok("build", source, builder, bench.tag, *how)
    image = bench.result()
    assert (image.config["Entrypoint"], image.config["Cmd"]) == ([RUN], ["usual\\n"])
    assert run(bench).out == "usual\n"
    assert run(bench, "[%s]\\n", *HOSTILE).out == lines(HOSTILE)
    again = bench.ocis2i.ok("rebuild", bench.tag)
    assert "is built as it is now" in again.err
    assert bench.result().config["Entrypoint"] == [RUN]
    bench.ocis2i.ok("rebuild", bench.tag, "--start", "cmd", "--args", "now")
    assert bench.result().config["Cmd"] == [RUN, "now"]


def test_start_of_the_base_is_not_inherited(bench: Bench, builder: str) -> None:
    source = put(bench, "tool", SCRIPT.encode())
    layout = f"oci:{bench.directory / 'base'}:1"
    how = ("--start", "entrypoint", "--args", "x", "-o", layout)
    bench.ocis2i.ok("build", source, builder, bench.tag, *how)
    bench.ocis2i.ok(
        "build", bench.source(), layout, bench.tag, "--scripts-url", f"file://{_ours(bench)}"
    )
    image = bench.result()
    assert not {"Entrypoint"} & image.config.keys()
    assert len(image.config["Cmd"]) == 1
    assert [name for name in image.labels if name.startswith("io.ocis2i.")] == []


def _ours(bench: Bench) -> Path:
    directory = bench.directory / "scripts"
    directory.mkdir()
    for name in ("assemble", "run"):
        (directory / name).write_text("#!/bin/sh\n")
    return directory


def test_one_program_beside_other_files_is_found(bench: Bench, builder: str) -> None:
    source = bench.source({"server": SCRIPT, "settings.ini": "a=1\n"})
    bench.ocis2i.ok("build", source, builder, bench.tag)
    assert facts(bench.result())["opt/app-root/program/server"] == "0755 1001:0"
    assert content(bench.result(), "opt/app-root/src/settings.ini") == "a=1\n"
    (source / "other").write_text(SCRIPT)
    failed = bench.ocis2i("build", source, builder, bench.tag)
    assert failed.code == 7
    assert "several programs: name one with -e PROGRAM=NAME" in failed.err
    bench.ocis2i.ok("build", source, builder, bench.tag, "-e", "PROGRAM=other")
    assert "opt/app-root/program/other" in facts(bench.result())


def test_source_without_a_program_is_refused_by_assemble(bench: Bench, builder: str) -> None:
    failed = bench.ocis2i("build", bench.source(), builder, bench.tag)
    assert failed.code == 7
    assert "the source has no program at its top" in failed.err


@pytest.mark.parametrize("start", ["cmd", "entrypoint"])
def test_signals_reach_the_program(bench: Bench, builder: str, start: str) -> None:
    source = put(bench, "server", SERVER.encode())
    bench.ocis2i.ok("build", source, builder, bench.tag, "--start", start, "--args", "a b")
    for number, name in ((signal.SIGTERM, "TERM"), (signal.SIGINT, "INT")):
        with started(bench, "ready: a b") as running:
            running.send_signal(number)
            rest, err = running.communicate(timeout=60)
        assert (rest, running.returncode) == (f"{name} for 1\n", 128 + number)
        assert err.count("error: stopped by") == 1


@contextmanager
def started(bench: Bench, until: str, *options: str) -> Iterator[subprocess.Popen[str]]:
    """The image runs beside the test, and has printed a line that begins so."""
    with bench.ocis2i.start("run", *options, bench.tag) as running:
        try:
            wait_for(running, until)
            yield running
        finally:
            running.kill()


def wait_for(running: subprocess.Popen[str], beginning: str) -> None:
    """Reads standard output up to a line that begins so."""
    assert running.stdout is not None
    while not (line := running.stdout.readline()).startswith(beginning):
        assert line, "it ended before it was ready"


# --- where it comes from ------------------------------------------------------------------------


def test_program_comes_from_standard_input(bench: Bench, builder: str) -> None:
    given = put(bench, "x", SCRIPT.encode())
    bench.ocis2i.ok("build", "-", builder, bench.tag, "--source-name", "tool", stdin=given)
    image = bench.result()
    assert facts(image)["opt/app-root/program/tool"] == "0755 1001:0"
    digest = hashlib.sha256(SCRIPT.encode()).hexdigest()
    assert image.labels["io.ocis2i.source.sha256"] == digest
    assert image.manifest["annotations"] == {"io.ocis2i.source.sha256": digest}
    again = bench.ocis2i("rebuild", bench.tag)
    assert "came from standard input, which is not kept" in error(again)


def test_pinned_file_is_fetched_and_fetched_again(bench: Bench, builder: str, web: FakeWeb) -> None:
    digest = hashlib.sha256(SCRIPT.encode()).hexdigest()
    web.put("/dist/tool%20x", Answer(b"busy", 503), SCRIPT.encode())
    url = f"http://user:secret@{web.host}/dist/tool%20x#sha256={digest}"
    done = bench.ocis2i.ok("build", url, builder, bench.tag)
    image = bench.result()
    assert "opt/app-root/program/tool x" in facts(image)
    location = image.labels["io.openshift.s2i.build.source-location"]
    assert location == f"http://{web.host}/dist/tool%20x#sha256={digest}"
    assert "secret" not in done.err + str(image.config)
    assert web.log[-1].headers["authorization"].startswith("Basic ")
    assert warnings(bench.ocis2i.ok("rebuild", bench.tag)) == []
    web.put("/dist/tool%20x", b"#!/bin/sh\n# another one\n")
    failed = bench.ocis2i("rebuild", bench.tag)
    assert (failed.code, f"not sha256={digest}" in error(failed)) == (3, True)


def test_file_without_a_digest_tells_what_to_pin(bench: Bench, builder: str, web: FakeWeb) -> None:
    web.put("/tool", SCRIPT.encode())
    url = f"{web.url}/tool"
    done = bench.ocis2i.ok("build", url, builder, bench.tag, "--source-type", "file")
    digest = hashlib.sha256(SCRIPT.encode()).hexdigest()
    (warning,) = warnings(done)
    assert f"pin it: `{url}#sha256={digest}`" in warning


def test_uploaded_program_is_executable(bench: Bench, builder: str, registry: FakeRegistry) -> None:
    source = put(bench, "tool", SCRIPT.encode())
    name = f"{registry.host}/files/tool:1"
    bench.ocis2i.ok("upload", source, name)
    bench.ocis2i.ok("build", f"oci-artifact://{name}", builder, bench.tag)
    assert run(bench).out == "I am 1\n"
    assert bench.result().labels["io.ocis2i.source.kind"] == "script"


def test_file_is_uploaded_and_fetched_by_the_name_and_as_what_it_is_called(
    bench: Bench, registry: FakeRegistry, web: FakeWeb
) -> None:
    source = put(bench, "x", SCRIPT.encode())
    web.put("/tool", SCRIPT.encode())
    name = f"{registry.host}/files/tool"
    named, piped = ("--source-name", "tool"), ("--source-type", "file")
    bench.ocis2i.ok("upload", source, f"{name}:path", *named)
    bench.ocis2i.ok("upload", "-", f"{name}:piped", *named, stdin=source)
    bench.ocis2i.ok("upload", f"{web.url}/tool", f"{name}:web", *piped)
    for tag in ("path", "piped", "web"):
        into = bench.directory / tag
        bench.ocis2i.ok("fetch", f"oci-artifact://{name}:{tag}", into)
        (file,) = (into / "tree").iterdir()
        assert (file.name, file.read_text(), file.stat().st_mode & 0o777) == ("tool", SCRIPT, 0o755)
        assert json.loads((into / "source.json").read_bytes())["info"]["file_kind"] == "script"
    packed = bench.directory / "app.tar"
    with tarfile.open(packed, "w") as archive:
        archive.add(source, "inside/x")
    bench.ocis2i.ok("upload", packed, f"{name}:whole")
    bench.ocis2i.ok("upload", packed, f"{name}:tree", "--source-type", "archive")
    bench.ocis2i.ok("fetch", packed, bench.directory / "file", *piped, *named)
    assert [one.name for one in (bench.directory / "file" / "tree").iterdir()] == ["tool"]
    for tag, found in (("whole", "app.tar"), ("tree", "inside")):
        bench.ocis2i.ok("fetch", f"oci-artifact://{name}:{tag}", bench.directory / tag)
        assert [one.name for one in (bench.directory / tag / "tree").iterdir()] == [found]


@pytest.mark.parametrize("verb", ["upload", "fetch"])
def test_what_a_file_cannot_be_called_is_refused(bench: Bench, verb: str) -> None:
    source = put(bench, "x", SCRIPT.encode())
    target = "127.0.0.1:1/a:1" if verb == "upload" else bench.directory / "into"
    for words, text in (
        (("--source-name", "a/b"), "cannot be called `a/b`"),
        (("--source-type", "zip"), "--source-type is `zip`"),
        (("--source-type", "archive", "--source-name", "y"), "--source-name has no meaning"),
        (("--source-type", "archive"), "is no archive"),
    ):
        failed = bench.ocis2i(verb, source, target, *words)
        assert (failed.code in (2, 3), text in error(failed)) == (True, True), failed.err
    directory = bench.ocis2i(verb, bench.source(), target, "--source-name", "y")
    assert (directory.code, "no single file" in error(directory)) == (2, True)


# --- what is refused ----------------------------------------------------------------------------


def test_program_for_another_processor_is_refused(bench: Bench, builder: str) -> None:
    data = bytearray(BUSYBOX.read_bytes())
    data[18:20] = (0x16).to_bytes(2, "little")
    source = put(bench, "tool", bytes(data))
    failed = bench.ocis2i("build", source, builder, bench.tag)
    assert failed.code == 3
    assert "the program `tool` is for s390x" in error(failed)
    assert not bench.is_stored
    bench.ocis2i.ok("build", source, builder, bench.tag, "--source-type", "file")


def test_contradicting_flags_are_refused(bench: Bench) -> None:
    source = put(bench, "tool", SCRIPT.encode())
    both = bench.ocis2i("build", source, "x", "--keep-entrypoint", "--start", "entrypoint")
    assert (both.code, "exclude each other" in error(both)) == (2, True)
    other = bench.ocis2i("build", source, "x", "--start", "shell")
    assert (other.code, "must be cmd or entrypoint" in other.err) == (2, True)
    named = bench.ocis2i("build", bench.source(), "x", "--source-name", "a")
    assert (named.code, "no single file" in error(named)) == (2, True)


# --- Java ---------------------------------------------------------------------------------------


def test_jar_is_run_by_java_with_its_arguments(bench: Bench, builder: str) -> None:
    source = bench.directory / "app 1.jar"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("META-INF/MANIFEST.MF", "Manifest-Version: 1.0\nMain-Class: Main\n\n")
        archive.writestr("Main.class", PRINTS_ARGUMENTS)
    done = bench.ocis2i.ok("build", source, builder, bench.tag, *as_flags(HOSTILE[:4]))
    assert warnings(done) == []
    assert facts(bench.result())["opt/app-root/jar/app 1.jar"] == "0644 1001:0"
    assert run(bench, options=("--user", "12345:0")).out == lines(HOSTILE[:4])


@pytest.mark.parametrize(
    ("start", "number", "code"),
    [("cmd", signal.SIGTERM, 143), ("entrypoint", signal.SIGINT, 130)],
)
def test_signals_end_java_which_is_the_first_process(
    bench: Bench, builder: str, start: str, number: signal.Signals, code: int
) -> None:
    source = waiting_jar(bench)
    bench.ocis2i.ok("build", source, builder, bench.tag, "--start", start, "--args", "0")
    telling = ("-e", f"JDK_JAVA_OPTIONS={CLASSES}")
    with started(bench, "sun.rmi.registry.RegistryImpl source", *telling) as it:
        it.send_signal(number)
        _, err = it.communicate(timeout=60)
    assert it.returncode == code, err


def waiting_jar(bench: Bench) -> Path:
    """A jar whose main class, one of Java's own, waits for ever; its argument is a port."""
    path = bench.directory / "app.jar"
    with zipfile.ZipFile(path, "w") as archive:
        main = "Main-Class: sun.rmi.registry.RegistryImpl"
        archive.writestr("META-INF/MANIFEST.MF", f"Manifest-Version: 1.0\n{main}\n\n")
    return path


def test_war_answers_at_the_root_whatever_it_is_called(bench: Bench, builder: str) -> None:
    source = bench.directory / "shop-1.2.war"
    with zipfile.ZipFile(source, "w") as archive:
        archive.writestr("index.html", "hello from a war\n")
        archive.writestr("WEB-INF/web.xml", "<web-app/>")
    bench.ocis2i.ok("build", source, builder, bench.tag)
    port = free_port()
    with bench.ocis2i.start("run", "-e", f"PORT={port}", "--user", "12345:0", bench.tag) as running:
        try:
            assert _page(f"http://127.0.0.1:{port}/") == "hello from a war\n"
        finally:
            running.terminate()
            _, said = running.communicate(timeout=60)
    assert "Server startup in" in said
    assert running.returncode == 143


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _page(url: str) -> str:
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + 60
    while True:
        try:
            with direct.open(url, timeout=60) as answer:  # a JSP is compiled first
                return str(answer.read().decode())
        except urllib.error.URLError as error:
            assert not isinstance(error, urllib.error.HTTPError), error
            assert time.monotonic() < end
            time.sleep(0.1)


# --- on a root filesystem that is read-only -----------------------------------------------------


@pytest.fixture(scope="module")
def bundle(builder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The builder unpacked by umoci as a bundle for runc, as clusters run images."""
    path = tmp_path_factory.mktemp("read-only") / "bundle"
    layout, _, tag = builder.removeprefix("oci:").rpartition(":")
    subprocess.run(
        ["umoci", "--log=error", "unpack", "--rootless", "--image", f"{layout}:{tag}", path],
        capture_output=True,
        check=True,
        timeout=300,
    )
    return path


@needs("umoci", "runc")
def test_every_kind_runs_on_a_read_only_root(bench: Bench, builder: str, bundle: Path) -> None:
    program = put(bench, "server", SERVER.encode())
    war = bench.directory / "app.war"
    with zipfile.ZipFile(war, "w") as archive:
        archive.writestr("sum.jsp", "<%= 20 + 22 %>")  # compiled when it is asked for
        archive.writestr("WEB-INF/web.xml", "<web-app/>")
    for source, words, options, ready, code in (
        (program, ["--args", "0"], "", "ready: 0", 5),
        (waiting_jar(bench), ["--args", "0"], CLASSES, "sun.rmi.registry.RegistryImpl source", 143),
        (war, [], "", "", 143),
    ):
        bench.ocis2i.ok("build", source, builder, bench.tag, *words)
        image = bench.result()
        lay_over(bundle / "rootfs", image)
        port = free_port()
        variables = {"PORT": str(port), "JDK_JAVA_OPTIONS": options}
        with read_only(bundle, bench.directory, image.config["Cmd"], variables) as running:
            if ready:
                wait_for(running, ready)
            else:
                assert _page(f"http://127.0.0.1:{port}/sum.jsp").strip() == "42"
            runc(bench.directory, "kill", "it", "TERM")
            _, err = running.communicate(timeout=60)
        assert running.returncode == code, err
        assert "SEVERE" not in err, err


def lay_over(rootfs: Path, image: LayoutImage) -> None:
    """Puts the image's own layer into the builder's tree, in place of another image's."""
    for old in ("program", "jar", "war"):
        subprocess.run(["rm", "-rf", rootfs / "opt/app-root" / old], check=True)
    with tarfile.open(image.blob(image.layers[-1]), "r:gz") as layer:
        layer.extractall(rootfs)


def runc(directory: Path, *words: str) -> None:
    subprocess.run(["runc", "--root", directory / "runc", *words], check=True, timeout=60)


@contextmanager
def read_only(
    bundle: Path, directory: Path, argv: list[str], variables: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """The container `it` of the bundle: of all its places only /tmp can be written to."""
    place = bundle / "config.json"
    config = json.loads(place.read_bytes())
    config["root"]["readonly"] = True
    kept = [one for one in config["process"]["env"] if one.partition("=")[0] not in variables]
    config["process"].update(
        terminal=False,
        user={"uid": 0, "gid": 0},
        args=argv,
        env=[*kept, *(f"{name}={value}" for name, value in variables.items() if value)],
    )
    mounts = [one for one in config["mounts"] if one["destination"] != "/tmp"]
    config["mounts"] = [*mounts, {"destination": "/tmp", "type": "tmpfs", "source": "tmpfs"}]
    linux = config["linux"]
    linux["namespaces"] = [one for one in linux["namespaces"] if one["type"] != "network"]
    linux.pop("resources", None)  # no cgroup is the tester's
    place.write_text(json.dumps(config))
    with subprocess.Popen(
        ["runc", "--root", directory / "runc", "run", "-b", bundle, "it"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            yield running
        finally:
            with suppress(subprocess.CalledProcessError):
                runc(directory, "delete", "-f", "it")
            running.kill()
