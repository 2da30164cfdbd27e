"""A private registry, a builder in it, and a node of a cluster that reaches both; used by tests."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from tests.fakes.docker_registry import HTPASSWD, PASSWORD, USER, docker_registry
from tests.fakes.images import busybox_builder
from tests.fakes.kube_api import FakeKubeApi
from tests.fakes.kubelet import Node, mount_points
from tests.fakes.program import PROJECT, Program

STAMP = ("--timestamp", "1577836800")
TOOL_IMAGE = "registry.example/tools/ocis2i:1"
ASSEMBLE = """\
#!/bin/sh
set -e
echo "assembling as $(id -u), it says: $SAYING"
[ -z "$KEY" ] || echo "its key has ${#KEY} bytes"
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
    stamp: tuple[str, ...] = STAMP

    def source(self, **files: str) -> Path:
        path = self.directory / "source"
        path.mkdir(exist_ok=True)
        for name, text in ({"index.html": "hello\n"} | files).items():
            (path / name).write_text(text)
        return path

    def script(self, name: str) -> Path:
        """A source that is one file, a script."""
        path = self.directory / name
        path.write_text("#!/bin/sh\necho hello\n")
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


def make_tool(path: Path) -> Path:
    """What scripts/tool-image puts into its image."""
    subprocess.run(
        [sys.executable, PROJECT / "scripts/tool-image", "--tree", path], check=True, timeout=120
    )
    return path


@contextmanager
def furnished(shared: Program, tool: Path, tmp_path: Path) -> Iterator[Site]:
    """A site in an empty directory; the program is that of who runs builds there."""
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
            {"for-assemble": {"KEY": "s3cretX9pq"}},
        )
        yield Site(shared, tmp_path, registry.host, name, node)


def inspected(site: Site, tag: str) -> dict[str, dict[str, dict[str, str]]]:
    """The config of an image in the registry, by a program that is not ours."""
    out = subprocess.run(
        ["skopeo", "inspect", "--config", "--tls-verify=false", f"--creds={USER}:{PASSWORD}",
         f"docker://{site.registry}/{tag}"],
        check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    found: dict[str, dict[str, dict[str, str]]] = json.loads(out.stdout)
    return found
