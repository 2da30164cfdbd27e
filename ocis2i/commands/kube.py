"""The verb for clusters: kube render, kube run, and what the containers of a pod do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any

from ocis2i.commands.context import working_directory
from ocis2i.commands.kube_flags import KubeFlags, order_of, pod_of, refuse_useless
from ocis2i.commands.state import State
from ocis2i.errors import UsageError
from ocis2i.kube.hidden import refuse_secrets
from ocis2i.kube.plan import Order, Pod, check, check_variables

Render = Callable[[Order, Pod], dict[str, Any]]

KINDS = (
    "job",
    "tekton-task",
    "shipwright-strategy",
    "argo-template",
    "gitlab-ci",
    "github-actions",
)
# What these run is no pod of ours.
PIPELINES = KINDS[-2:]


def kube(flags: KubeFlags) -> None:
    State.as_json = flags.as_json and flags.action in ("render", "run")
    words = list(flags.words or ())
    match flags.action:
        case "render":
            _render(flags, words)
        case "run":
            from ocis2i.commands.kube_run import run_in_cluster  # noqa: PLC0415 - few want it

            run_in_cluster(flags, words)
        case "step":
            from ocis2i.commands.kube_step import run_step  # noqa: PLC0415

            run_step(flags, words)
        case "copy":
            from ocis2i.commands.kube_step import copy_tool  # noqa: PLC0415

            copy_tool(words)
        case _:
            raise UsageError(
                f"`kube {flags.action[:40]}` is not there",
                hint="there are: ocis2i kube render KIND SOURCE BUILDER TAG, "
                "and: ocis2i kube run SOURCE BUILDER TAG",
            )


def _render(flags: KubeFlags, words: list[str]) -> None:
    from ocis2i.kube.text import as_json, as_yaml  # noqa: PLC0415 - for this alone

    kind = words.pop(0) if words else ""
    render = _renderer(kind)
    cwd = working_directory()
    refuse_useless(flags, kind)
    order = order_of(flags, words, cwd)
    pod = pod_of(flags, order, os.environ, needs_tool=kind != "github-actions")
    check(order, pod)
    if kind not in PIPELINES:
        check_variables(order, pod)
    refuse_secrets(order)
    _check_source(order, kind)
    if names := flags.typed_parameters:
        from ocis2i.commands.context import context  # noqa: PLC0415 - the builder is asked
        from ocis2i.commands.kube_secrets import refuse_declared  # noqa: PLC0415

        with context(flags) as here:
            refuse_declared(names, order, flags, here)
    document = render(order, pod)
    # YAML 1.2 has JSON in it: `kubectl apply` takes either.
    text = as_json(document) if flags.as_json else as_yaml([document])
    if flags.file is None:
        sys.stdout.write(text)
        return
    from ocis2i.outputs.files import ResultFile  # noqa: PLC0415 - few want it

    if not flags.file:
        raise UsageError("--file is empty", hint="name a file, or leave it out")
    ResultFile(cwd / flags.file, "--file").write(text)


def _renderer(kind: str) -> Render:
    from ocis2i.kube import kinds, pipelines  # noqa: PLC0415

    found: tuple[Render, ...] = (
        kinds.job,
        kinds.tekton_task,
        kinds.shipwright_strategy,
        kinds.argo_template,
        pipelines.gitlab_ci,
        pipelines.github_actions,
    )
    if kind not in KINDS:
        raise UsageError(
            f"there is no kind `{kind[:40]}` to render", hint=f"there are {', '.join(KINDS)}"
        )
    return found[KINDS.index(kind)]


def _check_source(order: Order, kind: str) -> None:
    """A pod has no directory of this host, and nobody's standard input. Raises `UsageError`."""
    from ocis2i.oci_artifacts import SCHEME  # noqa: PLC0415
    from ocis2i.rebuild import is_remote  # noqa: PLC0415

    has_workspace = kind not in ("job", "argo-template")
    if order.source.startswith(SCHEME) or is_remote(order.source):
        return
    if has_workspace and order.source != "-":
        return
    what = "standard input" if order.source == "-" else f"`{order.source[:80]}`"
    raise UsageError(
        f"the source {what} is on this host, and what runs elsewhere does not have it",
        hint="upload it: ocis2i upload SOURCE REGISTRY/NAME:TAG, and name "
        f"{SCHEME}REGISTRY/NAME:TAG; or let `ocis2i kube run` do that",
    )
