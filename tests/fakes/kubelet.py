"""A stand-in for a node: runs the containers of a pod as processes, as the manifest has them.

Each container is a `Host` (tests/fakes/hosts.py): a process in the tree of its image, as its user,
with its volumes, with the capabilities that are left and under the seccomp filter that it asks for.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ocis2i import syscalls
from tests.fakes.hosts import DOCKER_CAPABILITIES, Filter, Host, Mount, bind
from tests.fakes.images import Layer, LayoutImage
from tests.fakes.kube_api import PlayedPod
from tests.fakes.program import PROJECT

Json = dict[str, Any]

# A runtime makes these itself, before the container's first process is there.
MOUNT_POINTS = ("copy", "work", "auth", "tool")


def mount_points() -> Layer:
    """A layer with the places that volumes are mounted at."""
    layer = Layer().dir("ocis2i", mode=0o755)
    for name in MOUNT_POINTS:
        layer.dir(f"ocis2i/{name}", mode=0o755)
    return layer


_FILTERS: Mapping[str, Filter] = {"RuntimeDefault": "docker", "Unconfined": "none"}


def _capabilities(given: Json) -> tuple[str, ...]:
    """What is left of the runtime's own set, which is Docker's."""
    kept = () if given.get("drop") == ["ALL"] else DOCKER_CAPABILITIES
    return (*kept, *(f"CAP_{name}" for name in given.get("add", ())))


def expanded(text: str, environment: Mapping[str, str]) -> str:
    """What Kubernetes makes of a word of `command` or `args` (its golang/expansion)."""

    def replaced(found: re.Match[str]) -> str:
        if found[0] == "$$":
            return "$"
        return environment.get(found[1], found[0])

    return re.sub(r"\$\$|\$\(([^)]*)\)", replaced, text)


@dataclass(frozen=True)
class Node:
    """A node with a `directory` of its own.

    `images` are layouts by the name that a manifest gives; `tool` is what the image of that name
    has in /ocis2i/tool. `secrets` are the files of credentials by name, `values` those that have
    variables. What ran is in `ran`: the container, and whether it had anything in /ocis2i/auth.

    Root in a container is the host's, if the caller is; else it is root of a user namespace, as
    with `hostUsers: false`.
    """

    directory: Path
    images: Mapping[str, tuple[str, str]]
    tool_image: str
    tool: Path
    secrets: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ran: list[tuple[str, bool]] = field(default_factory=list)

    def play(self, pod: PlayedPod) -> None:
        """Runs the containers one after the other, as far as they end well."""
        volumes = {one["name"]: self._volume(pod, one) for one in pod.spec["volumes"]}
        containers = [*pod.spec["initContainers"], *pod.spec["containers"]]
        for one in containers:
            pod.start(one["name"])
            code = self._run(pod, one, volumes)
            pod.end(one["name"], code)
            if code:
                pod.finish("Failed")
                return
        pod.finish("Succeeded")

    def _volume(self, pod: PlayedPod, volume: Json) -> Path:
        path: Path = self.directory / "pods" / pod.name / volume["name"]
        path.mkdir(parents=True)
        if "secret" in volume:
            secret = volume["secret"]
            (item,) = secret["items"]
            (path / item["path"]).write_text(self.secrets[secret["secretName"]])
            (path / item["path"]).chmod(0o644)
            path.chmod(0o755)
        else:
            assert volume["emptyDir"]["sizeLimit"]
            path.chmod(0o777)
        return path

    def _run(self, pod: PlayedPod, container: Json, volumes: Mapping[str, Path]) -> int:
        layout = self.images[container["image"]]
        # What is on /tmp hides the directories that others are bound from.
        mounts = sorted(self._mounts(container, volumes), key=lambda one: one[1] == "/tmp")
        self.ran.append((container["name"], any("/ocis2i/auth" in one[1] for one in mounts)))
        security = {**pod.spec["securityContext"], **container["securityContext"]}
        if security.get("readOnlyRootFilesystem"):
            flags = syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY
            mounts.append(("", "/", "", flags, ""))
        host = Host(
            ids="container" if os.geteuid() else "host",
            image=layout,
            shared=(str(self.directory), str(self.tool)),
            kubernetes=True,
            user=(security["runAsUser"], security["runAsGroup"]),
            capabilities=_capabilities(security["capabilities"]),
            no_new_privs=security.get("allowPrivilegeEscalation") is False,
            filter=_FILTERS[security["seccompProfile"]["type"]],
            mounts=tuple(mounts),
        )
        # What the kubelet refuses to start.
        assert not security["runAsNonRoot"] or security["runAsUser"]
        # What a node without user namespaces would give to whom it runs.
        assert not pod.spec.get("hostUsers", True) or "SYS_ADMIN" not in str(security)
        environment = dict(
            one.partition("=")[::2] for one in LayoutImage(Path(layout[0]), layout[1]).config
            .get("config", {}).get("Env", [])
        )  # fmt: skip
        environment |= {one["name"]: self._value(one) for one in container.get("env", [])}
        command = [*container["command"], *container["args"]]
        process = subprocess.Popen(
            [*host.launcher, *(expanded(word, environment) for word in command)],
            env={**environment, "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        with process:
            for line in process.stdout:
                pod.say(container["name"], line.rstrip("\n"))
                if not pod.is_there:  # deleted meanwhile
                    process.kill()
        return process.returncode if process.returncode >= 0 else 128 - process.returncode

    def _value(self, variable: Json) -> str:
        if "value" in variable:
            return str(variable["value"])
        reference = variable["valueFrom"]["secretKeyRef"]
        return self.values[reference["name"]][reference["key"]]

    def _mounts(self, container: Json, volumes: Mapping[str, Path]) -> list[Mount]:
        found = [bind(volumes[one["name"]], one["mountPath"]) for one in container["volumeMounts"]]
        if container["image"] == self.tool_image:
            found.append(bind(self.tool, "/ocis2i/tool"))
        return found
