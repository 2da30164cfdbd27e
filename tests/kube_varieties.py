"""The manifests that are held against schemas: one list, for the tests and scripts/check_published.

Each variety is an order and a pod that together make the renderers write something of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import yaml

from ocis2i.kube.kinds import argo_template, job, shipwright_strategy, tekton_task
from ocis2i.kube.plan import Level, Order, Pod, check, check_variables
from ocis2i.kube.text import as_yaml

Json = dict[str, Any]
Render = Callable[[Order, Pod], Json]

LEVELS: tuple[Level, ...] = ("restricted", "baseline", "user-namespace")

ORDER = Order(
    "oci-artifact://registry.example/src@sha256:" + "0" * 64,
    "registry.example/builders/python:3",
    ("registry.example/team/app:1", "registry.example/team/app:latest"),
    build=("--env=A=yes", "--timeout=10m"),
    push=("--jobs=2",),
)
PODS = {
    level: Pod(
        "ocis2i-app",
        "registry.example/tools/ocis2i:1",
        level,
        namespace="builds",
        service_account="builder",
        push_secret="push-here",
        image_pull_secret="nodes",
    )
    for level in LEVELS
}
SECRETIVE = replace(ORDER, variables=("KEY",))

# Those of `kube render` that an API server takes.
OBJECTS: Mapping[str, Render] = {
    "job": job,
    "tekton-task": tekton_task,
    "shipwright-strategy": shipwright_strategy,
    "argo-template": argo_template,
}

_LOOSE = PODS["user-namespace"]
VARIETIES: Mapping[str, tuple[Order, Pod]] = {
    **{level: (ORDER, PODS[level]) for level in LEVELS},
    **{
        f"{level}, with values of a Secret": (
            SECRETIVE,
            replace(PODS[level], build_secret="for-assemble"),
        )
        for level in LEVELS
    },
    "nothing but what is needed": (
        Order("https://git.example/app.git", "registry.example/b", ("registry.example/a",)),
        Pod("a", "registry.example/tools/ocis2i:1"),
    ),
    "a user of the cluster's choice": (ORDER, replace(PODS["restricted"], user=None)),
    "a seccomp profile of the node": (ORDER, replace(_LOOSE, seccomp_profile="ocis2i.json")),
    "two secrets, and sizes": (
        ORDER,
        replace(
            PODS["baseline"],
            pull_secret="pull-here",
            cpu="500m",
            memory="1.5Gi",
            disk="21474836480",
        ),
    ),
    "words that YAML has a meaning for": (
        replace(ORDER, build=("--env=A=1e3", "--env=B=yes\nno\n", "--label=c=ü: #[*", "--env=D=")),
        replace(PODS["restricted"], name="a" * 63, user=65534),
    ),
}


def rendered(kind: str) -> Iterator[tuple[str, Json]]:
    """The manifests of a kind as a reader of YAML has them, each with the name of its variety."""
    for name in VARIETIES:
        yield name, variety(kind, name)


def variety(kind: str, name: str) -> Json:
    """One manifest, by its kind and the name of its variety."""
    order, pod = VARIETIES[name]
    check(order, pod)
    check_variables(order, pod)
    return read_again(OBJECTS[kind](order, pod))


def read_again(document: Json) -> Json:
    """A document as it is after it was written as YAML."""
    found: Json = yaml.safe_load(as_yaml([document]))
    return found
