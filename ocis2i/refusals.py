"""What a build without namespaces cannot have: refused by its name, before anything runs."""

from __future__ import annotations

import os
from collections.abc import Iterator

from ocis2i.errors import IsolationError
from ocis2i.session import Weak
from ocis2i.spec import BuildSpec

_STRONGER = "leave it out, or choose a stronger --isolation"


def refuse(weak: Weak, spec: BuildSpec) -> None:
    """Raises `IsolationError` for the first wish of `spec` that `weak` cannot grant."""
    refused = [*_without_mounts(spec), *(_in_place(spec) if weak == "in-place" else ())]
    for flag, why, hint in refused[:1]:
        raise IsolationError(f"{flag}: --isolation {weak} {why}", hint=hint)


def _without_mounts(spec: BuildSpec) -> Iterator[tuple[str, str, str]]:
    if spec.mounts:
        yield (
            f"--volume for `{spec.mounts[0].target}`",
            "cannot mount anything",
            "mount it into the container that ocis2i runs in, or copy it into the source",
        )
    if spec.secrets.injections:
        yield (
            f"--inject of `{spec.secrets.injections[0].source}`",
            "has no place for a file that is not in the layer",
            "give its content in a variable, by --build-env, or choose a stronger --isolation",
        )
    if spec.secrets.host_mirrors:
        yield (
            "--host-mirrors",
            "cannot mount the settings of this host's mirrors",
            "give the variables that the package managers read by --build-env",
        )
    if spec.network != "host":
        yield f"--network {spec.network}", "has no network but that of the host", _STRONGER
    if not spec.hardening.no_new_privs:
        yield (
            "--security-opt no-new-privileges=false",
            "lets nobody gain what the script has not",
            _STRONGER,
        )


def _in_place(spec: BuildSpec) -> Iterator[tuple[str, str, str]]:
    # Whomever the image names, its scripts run as this user.
    if spec.allowed_uids and not spec.allowed_uids.allow(str(os.geteuid())):
        yield (
            f"--allowed-uids {spec.allowed_uids}",
            f"runs everything as the current user, and that is {os.geteuid()}",
            "start the container as a user that is allowed (`runAsUser` in Kubernetes)",
        )
    if spec.add_hosts:
        yield (
            f"--add-host {spec.add_hosts[0].name}",
            "leaves /etc/hosts to the container that it runs in",
            "in Kubernetes, write it into the pod's hostAliases",
        )
    if spec.runtime:
        yield (
            f"--runtime-image {spec.runtime.image}",
            "has one tree, that of the builder",
            "build the result, and copy from it by a Dockerfile or a build with a stronger "
            "--isolation",
        )
    if spec.keep_failed:
        yield (
            "--keep-failed",
            "builds in the container that it runs in, which stays anyway",
            "leave it out, and look into that container",
        )
    if spec.incremental or spec.cache:
        yield (
            "--incremental" if spec.incremental else "--cache-from or --cache-to",
            "cannot run anything in the previous image",
            "leave it out; caches can be in a volume of the pod",
        )
