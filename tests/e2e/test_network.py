"""A build whose only way out is the proxy, or a program: what it reaches, and what it leaves."""

from __future__ import annotations

import base64
import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ocis2i.errors import IsolationError
from ocis2i.isolation.agent import agent
from tests.conftest import CRUN, RUNC, needs
from tests.e2e.test_mirrors import NAME, page, python, wheel
from tests.e2e.test_mirrors import Python as PythonImage
from tests.fakes.bench import RUN, Bench, facts, told, warnings
from tests.fakes.hosts import Host, Mount, bind, hidden, read_only
from tests.fakes.images import BUSYBOX
from tests.fakes.processes import descendants, mounts_of, wait_until_alone
from tests.fakes.program import Done, Program
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]
__all__ = ["python"]  # a fixture, for pytest to find

EXECUTORS = [
    RUNC,
    CRUN,
    "builtin",
    pytest.param("buildah", marks=needs("buildah")),
]
PROXY = ("--network", "proxy")
SECRET = "Qx83nqKz-71cb-eR5"
TUN = Path("/dev/net/tun")


def sh(*lines: str) -> dict[str, str | None]:
    """Scripts of a builder whose assemble runs these lines of shell."""
    return {"assemble": "\n".join(["#!/bin/sh", *lines, ""]), "run": RUN}


def build(bench: Bench, builder: str, *flags: str | Path) -> Done:
    return bench.ocis2i.ok("build", bench.source(), builder, bench.tag, *flags)


def hosts(document: dict[str, Any]) -> list[tuple[str, int, str]]:
    """The hosts of a result in their order."""
    return [(one["host"], one["port"], one["state"]) for one in document["network"]["hosts"]]


# --- the way out ------------------------------------------------------------------------------

TRY = """\
#!/bin/sh
echo "plain: $(wget -q -O - http://near.example:PORT/plain 2>&1)"
printf 'CONNECT near.example:PORT HTTP/1.1\\r\\n\\r\\nGET /tunnel HTTP/1.0\\r\\n\\r\\n' |
    nc 127.0.0.1 3128 | tr -d '\\r' | sed 's/^/tunnel /'
printf 'GET http://far.example/x HTTP/1.1\\r\\n\\r\\n' | nc 127.0.0.1 3128 | tail -n 1
echo "metadata: $(wget -q -O - http://169.254.169.254/latest 2>&1)"
echo "direct: $(nc -w 2 192.0.2.1 80 </dev/null 2>&1)"
echo "local: $(nc -w 2 127.0.0.1 PORT </dev/null 2>&1)"
echo "devices: $(tail -n +3 /proc/net/dev | cut -d: -f1 | xargs) $(ls /sys/class/net)"
echo "servers: $(cat /etc/resolv.conf)"
echo "names: $(cut -f2- /etc/hosts | xargs)"
"""


@pytest.mark.parametrize("executor", EXECUTORS)
def test_a_build_reaches_what_is_allowed_and_nothing_else(
    bench: Bench, web: FakeWeb, executor: str
) -> None:
    web.put("/plain", b"plain text")
    web.put("/tunnel", b"through the tunnel\n")
    builder = bench.image("builder", {"assemble": TRY.replace("PORT", str(web.port)), "run": RUN})
    done = build(
        bench,
        builder,
        *(*PROXY, "--isolation", executor, "--json"),
        *("--allow-host", f"near.example:{web.port}", "--add-host", "near.example:127.0.0.1"),
    )
    said = told(done)
    assert said["plain"] == "plain text"
    assert "tunnel HTTP/1.1 200 Connection established\n" in done.err
    assert "tunnel through the tunnel\n" in done.err
    assert said["ocis2i"] == (
        "far.example:80 is not among the allowed hosts; "
        "to allow it, add --allow-host far.example:80"
    )
    assert "403 Forbidden by ocis2i, add --allow-host 169.254.169.254:80" in said["metadata"]
    assert "Network is unreachable" in said["direct"]
    assert "Connection refused" in said["local"]
    # buildah binds the host's /sys where the network namespace is not one of its own making.
    seen = {"lo", *os.listdir("/sys/class/net")} if executor == "buildah" else {"lo"}
    assert said["devices"].startswith("lo ")
    assert set(said["devices"].split()) <= seen
    assert said["servers"] == "# no network, no name servers"
    assert said["names"] == "near.example localhost localhost ip6-localhost ip6-loopback ocis2i"
    assert web.asked == ["/plain", "/tunnel"]
    assert done.document["network"]["mode"] == "proxy"
    assert hosts(done.document) == [
        ("near.example", web.port, "reached"),
        ("far.example", 80, "refused"),
        ("169.254.169.254", 80, "refused"),
    ]
    assert [one for one in warnings(done) if one.startswith("network: ")] == [
        f"network: reached near.example:{web.port}; refused far.example:80, 169.254.169.254:80"
    ]


def test_the_hosts_own_services_are_not_public(bench: Bench, web: FakeWeb) -> None:
    own = socket.gethostname()
    builder = bench.image(
        "builder",
        sh(
            *(f"wget -O - http://{name}:{web.port}/ 2>&1" for name in ("127.1", own, "[::1]")),
            "true",
        ),
    )
    done = build(bench, builder, *PROXY, "--json")
    assert web.asked == []
    assert "refused" in {state for _, _, state in hosts(done.document)}
    assert "reached" not in {state for _, _, state in hosts(done.document)}


def test_a_network_that_nobody_watches_has_no_record(bench: Bench) -> None:
    builder = bench.image("builder", sh("true"))
    for mode in ("host", "none"):
        found = build(bench, builder, "--network", mode, "--json").document["network"]
        assert found == {"mode": mode, "hosts": None, "more": 0}


def test_every_script_of_a_build_goes_the_same_way(bench: Bench, web: FakeWeb) -> None:
    line = f"wget -q -O - http://near.example:{web.port}/$(basename $0) 2>/dev/null >&2; true"
    scripts = dict.fromkeys(("assemble", "assemble-runtime"), f"#!/bin/sh\n{line}\n")
    scripts["save-artifacts"] = f"#!/bin/sh\n{line}\ncd /tmp && echo x >x && tar cf - x\n"
    builder = bench.image("builder", {**scripts, "run": RUN})
    around = (*PROXY, "--allow-host", "near.example", "--add-host", "near.example:127.0.0.1")
    build(bench, builder, *around)
    build(bench, builder, *around, "--incremental")
    runtime = ("--runtime-image", builder, "--runtime-artifact", "/opt/app-root/src")
    build(bench, builder, *around, *runtime)
    names = ["assemble", "save-artifacts", "assemble", "assemble", "assemble-runtime"]
    assert web.asked == [f"/{name}" for name in names]


# --- what stays of it -------------------------------------------------------------------------


def test_nothing_of_the_network_is_in_the_image(bench: Bench) -> None:
    builder = bench.image("builder", sh("cp -R /tmp/src/. $HOME/", "mkdir $HOME/made"))
    found = []
    for network in ("host", "none", "proxy"):
        build(bench, builder, "--network", network, "--timestamp", "1577836800")
        image = bench.result()
        assert not [name for name in facts(image) if name.startswith(("etc", "proc", "sys"))]
        config = image.blob(image.manifest["config"]["digest"]).read_text()
        assert "3128" not in config
        assert "proxy" not in config.lower()
        found.append(image.manifest)
    assert found[0] == found[1] == found[2]


def test_variables_of_the_user_are_for_the_image_and_ours_for_the_run(bench: Bench) -> None:
    names = "http_proxy HTTPS_PROXY no_proxy MAVEN_OPTS GRADLE_OPTS"
    show = f'for n in {names}; do eval echo "$n: \\$$n"; done'
    builder = bench.image("builder", sh(show), {"Env": ["PATH=/bin", "GRADLE_OPTS=-Xmx9m"]})
    variables = {"http_proxy": "http://corp.example:8080", "MAVEN_OPTS": "-Xmx7m"}
    given = [word for name, value in variables.items() for word in ("-e", f"{name}={value}")]
    said = told(build(bench, builder, *PROXY, *given))
    assert said["http_proxy"] == said["HTTPS_PROXY"] == "http://127.0.0.1:3128"
    assert said["no_proxy"] == "localhost,127.0.0.1,::1"
    assert said["MAVEN_OPTS"] == "-Xmx7m"
    assert said["GRADLE_OPTS"].startswith("-Xmx9m -Dhttp.proxyHost=127.0.0.1")
    environment = dict(one.split("=", 1) for one in bench.result().config["Env"])
    assert {name: environment[name] for name in variables} == variables
    assert environment["GRADLE_OPTS"] == "-Xmx9m"
    assert not {"HTTPS_PROXY", "no_proxy", "NO_PROXY", "https_proxy"} & set(environment)


@pytest.mark.parametrize("end", [0, 3], ids=["succeeded", "failed"])
def test_a_refused_host_is_told_of_without_the_secret_in_its_name(bench: Bench, end: int) -> None:
    line = 'printf "CONNECT $TOKEN.example:443 HTTP/1.1\\r\\n\\r\\n" | nc 127.0.0.1 3128 >/dev/null'
    builder = bench.image("builder", sh(line, f"exit {end}"))
    flags = (*PROXY, "--allow-host", "none.example", "--build-env", f"TOKEN={SECRET.lower()}")
    done = bench.attempt(builder, *flags, "--json")
    assert done.document["script_exit_code"] == end
    assert [state for _, _, state in hosts(done.document)] == ["refused"]
    assert SECRET.lower() not in done.err + done.out


# --- through the host's own proxy -------------------------------------------------------------


def test_the_hosts_proxy_is_used_and_its_password_stays_outside(bench: Bench, web: FakeWeb) -> None:
    web.put("http://far.example/x", b"from afar")
    builder = bench.image("builder", sh('echo "got: $(wget -q -O - http://far.example/x)"', "env"))
    variables = {"http_proxy": f"http://me:{SECRET}@{web.host}"}
    ocis2i = replace(bench.ocis2i, environment={**bench.ocis2i.environment, **variables})
    here = replace(bench, ocis2i=ocis2i)
    for more in ((), ("--host-mirrors",)):
        done = build(here, builder, *PROXY, "--allow-host", "far.example", "--json", *more)
        assert told(done)["got"] == "from afar"
        assert hosts(done.document) == [("far.example", 80, "reached")]
        assert SECRET not in done.err + done.out
        assert web.host not in done.err + done.out
    basic = base64.b64encode(f"me:{SECRET}".encode()).decode()
    assert {one.headers["proxy-authorization"] for one in web.log} == {f"Basic {basic}"}


# --- a real pip -------------------------------------------------------------------------------


@contextmanager
def index(directory: Path) -> Iterator[FakeWeb]:
    """A package index with one package."""
    file = wheel(directory)
    with FakeWeb() as running:
        html = Answer(page(f"/files/{file.name}"), headers={"Content-Type": "text/html"})
        running.put(NAME, html)
        running.put(f"/files/{file.name}", file.read_bytes())
        yield running


@needs("runc")
def test_pip_installs_through_the_proxy(bench: Bench, python: PythonImage) -> None:
    with index(bench.directory) as running:
        url = f"http://pypi.example:{running.port}/simple"
        settings = ("--build-env", f"PIP_INDEX_URL={url}", "--build-env", "PIP_NO_INPUT=1")
        trusted = ("--build-env", "PIP_TRUSTED_HOST=pypi.example")
        names = ("--add-host", "pypi.example:127.0.0.1", *PROXY)
        around = (*python.volumes, *settings, *trusted, *names)
        refused = bench.ocis2i("build", bench.source(), python.location, bench.tag, *around)
        assert refused.code == 7
        assert "refused pypi.example" in refused.err
        allowed = ("--allow-host", f"pypi.example:{running.port}")
        done = build(bench, python.location, *around, *allowed, "--json")
        assert told(done)["the package"] == "works"
        assert hosts(done.document) == [("pypi.example", running.port, "reached")]


@needs("runc")
def test_mirrors_of_the_host_are_allowed_by_themselves(bench: Bench, python: PythonImage) -> None:
    with index(bench.directory) as running:
        # Also where they are on this host, and other hosts are named.
        variables = {"PIP_INDEX_URL": f"http://me:{SECRET}@{running.host}/simple"}
        ocis2i = replace(bench.ocis2i, environment={**bench.ocis2i.environment, **variables})
        here = replace(bench, ocis2i=ocis2i)
        flags = (*PROXY, "--host-mirrors", "--allow-host", "other.example", "--json")
        done = build(here, python.location, *python.volumes, *flags)
        assert told(done)["the package"] == "works"
        assert hosts(done.document) == [("127.0.0.1", running.port, "reached")]
        assert SECRET not in done.err + done.out


# --- the end ----------------------------------------------------------------------------------


@contextmanager
def endless_server() -> Iterator[tuple[int, threading.Event]]:
    """A server that begins an answer and never ends it; the event is set once it was asked."""
    asked = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            client, _ = listener.accept()
            with client:
                client.recv(65536)
                client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\nbeginning")
                asked.set()
                with contextlib.suppress(ConnectionError):
                    while client.recv(65536):
                        pass

        threading.Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1], asked


@pytest.mark.parametrize("executor", EXECUTORS[:3])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["int", "kill"])
def test_a_transfer_does_not_hold_up_the_end(
    bench: Bench, executor: str, number: signal.Signals, _orphans: None
) -> None:
    before = descendants(os.getpid())
    with endless_server() as (port, asked):
        builder = bench.image("builder", sh(f"wget -q -O - http://near.example:{port}/", "true"))
        process = bench.ocis2i.start(
            *("build", bench.source(), builder, bench.tag, *PROXY, "--isolation", executor),
            *("--allow-host", "near.example", "--add-host", "near.example:127.0.0.1"),
        )
        arrived = asked.wait(120)
        process.send_signal(number)
        _, err = process.communicate(timeout=120)
    assert arrived, err
    assert process.returncode == (130 if number == signal.SIGINT else -9), err
    assert "Traceback" not in err
    wait_until_alone(before)
    assert mounts_of(bench.ocis2i.store) == []
    bench.ocis2i.ok("prune")
    assert os.listdir(bench.ocis2i.store / "builds") == []


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "proxy", "sentence"),
    [
        (("--allow-host", "a"), "", "--allow-host has no meaning with --network host"),
        ((*PROXY, "--allow-host", "http://a/"), "", "`--allow-host` is `http://a/`"),
        (PROXY, "socks5://p:1", "cannot go through this host's proxy"),
        (("--network", "prox"), "", "there are host, none, proxy, slirp4netns, pasta"),
    ],
)
def test_what_cannot_be_meant_is_an_error(
    bench: Bench, flags: tuple[str, ...], proxy: str, sentence: str
) -> None:
    builder = bench.image("builder", sh("echo never"))
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, *flags, https_proxy=proxy)
    assert done.code == 2, done.err
    assert sentence in done.err
    assert "---> assembling" not in done.err


def fake(directory: Path, name: str, script: str) -> Path:
    """A program of that name which is a shell script."""
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def elsewhere(bench: Bench, *mounts: Mount) -> Program:
    """The program on a host with these mounts."""
    return replace(bench.ocis2i, launcher=Host(ids="own", mounts=mounts).launcher)


@pytest.mark.parametrize("name", ["slirp4netns", "pasta"])
def test_a_program_that_is_not_there_is_named(bench: Bench, name: str) -> None:
    builder = bench.image("builder", sh("echo never"))
    host = elsewhere(bench, *hidden([name], bench.ocis2i.environment["PATH"]))
    done = host("build", bench.source(), builder, bench.tag, "--network", name)
    assert done.code == 6
    assert f"`{name}` is not installed" in done.err
    assert "--network proxy" in done.err


@pytest.mark.parametrize("name", ["slirp4netns", "pasta"])
def test_a_device_that_does_not_open_is_named(bench: Bench, name: str) -> None:
    builder = bench.image("builder", sh("echo never"))
    fake(bench.directory, name, "exit 0")
    closed = bench.directory / "closed"
    closed.touch()
    mounts = (*read_only(closed), bind(closed, TUN)) if TUN.exists() else ()
    host = elsewhere(bench, *mounts)
    path = f"{bench.directory}:{bench.ocis2i.environment['PATH']}"
    done = host("build", bench.source(), builder, bench.tag, "--network", name, PATH=path)
    assert done.code == 6
    assert f"`--network {name}` needs `/dev/net/tun`, which cannot be opened" in done.err


@pytest.mark.parametrize("executor", EXECUTORS[:3])
@pytest.mark.parametrize(
    ("name", "resolver"),
    [
        pytest.param("slirp4netns", "10.0.2.3", marks=needs("slirp4netns")),
        pytest.param("pasta", "169.254.1.1", marks=needs("pasta")),
    ],
)
def test_a_program_connects_a_build_and_not_to_localhost(
    bench: Bench, name: str, resolver: str, executor: str, _orphans: None
) -> None:
    if not os.access(TUN, os.R_OK | os.W_OK):
        pytest.skip("/dev/net/tun does not open here")
    before = descendants(os.getpid())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        script = sh(
            'echo "devices: $(ls /sys/class/net | wc -l)"',
            "gateway=$(ip route | sed -n 's/^default via \\([^ ]*\\).*/\\1/p')",
            f"for host in $gateway 127.0.0.1; do nc -w 2 $host {port} </dev/null; done",
            'echo "servers: $(cat /etc/resolv.conf)"',
            'echo "gateway: ${gateway:+there}"',
        )
        builder = bench.image("builder", script)
        done = build(bench, builder, "--network", name, "--isolation", executor, "--json")
        listener.settimeout(0.1)
        with pytest.raises(TimeoutError):
            listener.accept()
    said = told(done)
    assert (said["devices"], said["gateway"]) == ("2", "there")
    assert said["servers"] == f"nameserver {resolver}"
    assert done.document["network"]["mode"] == name
    wait_until_alone(before)


@pytest.mark.parametrize(
    ("script", "waits", "sentence"),
    [
        ("echo first >&2; echo no tap for you >&2; exit 1", True, "no tap for you"),
        ("exit 0", True, "exit code 0"),
        ("exit 3", False, "exit code 3"),
        ("kill -9 $$", True, "exit code -9"),
        ("sleep 1000", True, "it was not ready in 1 seconds"),
        ("sleep 1000", False, "it was not ready in 1 seconds"),
        ('eval "printf 1 >&$1"; exec sleep 1000', True, None),
        ("sleep 1000 >/dev/null 2>&1 & exit 0", False, None),
    ],
)
def test_a_program_that_brings_a_device_gets_some_seconds(
    bench: Bench, script: str, waits: bool, sentence: str | None, _orphans: None
) -> None:
    before = descendants(os.getpid())
    program_path = fake(bench.directory, "slirp4netns", script)
    argv = [str(program_path), *(["{ready}"] if waits else [])]
    helper = {"argv": argv, "environment": {"PATH": "/bin"}, "limit_seconds": 1.0}
    with agent(search_path=bench.ocis2i.environment["PATH"]) as running:
        path = str(bench.directory / "netns")
        call = {"path": path, "helper": {**helper, "device": os.devnull}}
        if sentence is None:
            running.request("network", **call)
        else:
            with pytest.raises(IsolationError, match="cannot connect the container") as caught:
                running.request("network", **call)
            assert sentence in caught.value.message
        # The agent goes on.
        assert running.request("release", build=path) is not None
    wait_until_alone(before)
