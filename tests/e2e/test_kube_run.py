"""Builds by a Job, whose containers are run here as the manifest has them."""

from __future__ import annotations

import base64
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.fakes.docker_registry import HTPASSWD, PASSWORD, USER, docker_registry
from tests.fakes.images import LayoutImage, busybox_builder
from tests.fakes.kube_api import FakeKubeApi, PlayedPod
from tests.fakes.kubelet import Node, mount_points
from tests.fakes.program import PROJECT, Program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.registry,
    needs("busybox", "docker-registry", "newuidmap", "patchelf", "skopeo"),
]

STAMP = ("--timestamp", "1577836800")
TOOL_IMAGE = "registry.example/tools/ocis2i:1"
ASSEMBLE = """\
#!/bin/sh
set -e
echo "assembling as $(id -u), it says: $SAYING"
[ ! -e /ocis2i/auth/config.json ]
cp -R /tmp/src/. "$HOME/"
[ ! -e /tmp/src/fail ] || exit 3
"""


@dataclass(frozen=True)
class Site:
    """A private registry with a builder in it, and the node of a cluster that reaches it."""

    ocis2i: Program
    directory: Path
    registry: str
    builder: str
    node: Node

    def source(self, **files: str) -> Path:
        path = self.directory / "source"
        path.mkdir(exist_ok=True)
        for name, text in ({"index.html": "hello\n"} | files).items():
            (path / name).write_text(text)
        return path

    def arguments(self, api: FakeKubeApi, source: Path, tag: str) -> list[str]:
        given = ["kube", "run", str(source), self.builder, f"{self.registry}/{tag}"]
        more = ["--tool-image", TOOL_IMAGE, "--push-secret", "push", "--no-tls-verify", *STAMP]
        api.kubeconfig(self.directory / "kubeconfig")
        return [*given, *more]

    @property
    def user(self) -> Program:
        """ocis2i of somebody who knows the cluster, and the registry's password."""
        more = {
            "KUBECONFIG": str(self.directory / "kubeconfig"),
            "REGISTRY_AUTH_FILE": str(self.directory / "auth.json"),
        }
        return replace(self.ocis2i, environment={**self.ocis2i.environment, **more})


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What scripts/tool-image puts into its image."""
    path = tmp_path_factory.mktemp("tool") / "tool"
    subprocess.run(
        [sys.executable, PROJECT / "scripts/tool-image", "--tree", path], check=True, timeout=120
    )
    return path


@pytest.fixture
def site(shared: Program, tool: Path, tmp_path: Path) -> Iterator[Site]:
    with docker_registry(tmp_path / "registry", htpasswd=HTPASSWD) as registry:
        builder = tmp_path / "builder"
        scripts = {"assemble": ASSEMBLE}
        busybox_builder(builder, "b:1", scripts=scripts, more_layers=[mount_points()])
        name = f"{registry.host}/builders/busybox:1"
        subprocess.run(
            ["skopeo", "copy", "-q", "--dest-tls-verify=false", f"--dest-creds={USER}:{PASSWORD}",
             f"oci:{builder}:b:1", f"docker://{name}"],
            check=True, timeout=60,
        )  # fmt: skip
        small = tmp_path / "small"
        busybox_builder(small, "t:1", more_layers=[mount_points()])
        token = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
        credentials = json.dumps({"auths": {registry.host: {"auth": token}}})
        (tmp_path / "auth.json").write_text(credentials)
        (tmp_path / "node").mkdir()
        node = Node(
            tmp_path,
            {name: (str(builder), "b:1"), TOOL_IMAGE: (str(small), "t:1")},
            TOOL_IMAGE,
            tool,
            {"push": credentials},
        )
        yield Site(shared, tmp_path, registry.host, name, node)


def test_the_cluster_builds_what_this_machine_builds(site: Site) -> None:
    with FakeKubeApi(site.node.play) as api:
        given = site.arguments(api, site.source(), "team/app:1")
        saying = "yes $(HOME) ${HOME} $$ {{x}} 1e3"
        other = f"{site.registry}/team/app:latest"
        done = site.user(*given, "--tag", other, "--json", "-e", f"SAYING={saying}", timeout=25)
        assert done.code == 0, done.err
        assert api.jobs == api.pods == {}
    assert f"it says: {saying}" in done.err
    document = done.document
    assert document["state"] == "succeeded"
    assert document["pushed"] is True
    assert document["isolation"] == "in-place"
    assert {"fetch", "assemble", "push"} <= {one["name"] for one in document["stages"]}
    assert document["kube"]["namespace"] == "builds"
    # Foreign code ran in the one container that had no credentials.
    assert site.node.ran == [
        ("tool", False), ("fetch", True), ("build", False), ("push-1", True), ("push", True)
    ]  # fmt: skip
    assert _inspected(site, "team/app:latest") == _inspected(site, "team/app:1")
    # The very image, in the registry.
    labels = _inspected(site, "team/app:1")["config"]["Labels"]
    source = labels["io.openshift.s2i.build.source-location"]
    assert source.startswith("oci-artifact://")
    local = site.user.ok(
        "build", source, site.builder, f"{site.registry}/team/app:1", "--no-tls-verify", *STAMP,
        "-e", f"SAYING={saying}", "--tag", other, "--json"
    ).document  # fmt: skip
    assert local["digest"] == document["digest"]
    assert set(local) | {"kube"} == set(document)


def _inspected(site: Site, tag: str) -> dict[str, dict[str, dict[str, str]]]:
    out = subprocess.run(
        ["skopeo", "inspect", "--config", "--tls-verify=false", f"--creds={USER}:{PASSWORD}",
         f"docker://{site.registry}/{tag}"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    found: dict[str, dict[str, dict[str, str]]] = json.loads(out.stdout)
    return found


def test_a_script_that_fails_there_fails_here(site: Site) -> None:
    with FakeKubeApi(site.node.play) as api:
        given = site.arguments(api, site.source(fail=""), "team/app:2")
        done = site.user(*given, "--json", "--keep-job", timeout=25)
        assert len(api.jobs) == 1
    assert done.code == 7
    assert done.document["state"] == "failed"
    assert done.document["reason"] == "AssembleFailed"
    assert done.document["script_exit_code"] == 3
    assert "error: " in done.err
    assert [name for name, _ in site.node.ran] == ["tool", "fetch", "build"]


def test_an_interrupt_deletes_the_job(site: Site) -> None:
    def play(pod: PlayedPod) -> None:
        pod.runs("tool")
        pod.start("fetch")
        pod.say("fetch", "now")

    with FakeKubeApi(play) as api:
        given = site.arguments(api, site.source(), "team/app:3")
        with site.user.start(*given, "--keep-job") as started:
            assert started.stderr is not None
            for line in started.stderr:
                if line == "now\n":
                    break
            assert len(api.jobs) == 1
            started.send_signal(signal.SIGINT)
            _, err = started.communicate(timeout=60)
        assert started.returncode == 130, err
        assert api.jobs == {}
        assert "delete jobs" in api.calls


def test_the_tool_runs_where_no_python_is(tool: Path, tmp_path: Path) -> None:
    """In the tree of a busybox alone, entered by an ordinary user."""
    image = tmp_path / "image"
    busybox_builder(image, "b:1", more_layers=[mount_points()])
    root = tmp_path / "root"
    script = (
        'mount --bind "$1" "$2/ocis2i/tool" && mount --rbind /proc "$2/proc" && '
        'exec chroot "$2" /ocis2i/tool/bin/ocis2i --root /tmp/store images --json'
    )
    _unpack(LayoutImage(image, "b:1"), root)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", tool, root],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"version": 1, "images": []}


def _unpack(image: LayoutImage, root: Path) -> None:
    root.mkdir()
    for digest in image.layers:
        subprocess.run(
            ["tar", "-xzf", image.blob(digest), "-C", root, "--no-same-owner"], check=True
        )
