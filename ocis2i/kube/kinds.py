"""Objects of the cluster that build: a Job, and what Tekton, Shipwright and Argo run. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ocis2i.kube.names import Placeholder, as_argument, label_name, refuse_marks
from ocis2i.kube.plan import (
    AUTH,
    PROGRAM,
    Order,
    Pod,
    Step,
    steps,
    with_options,
)
from ocis2i.kube.pods import (
    container,
    ids,
    image_pull_secrets,
    mounts,
    pod_security,
    pod_spec,
    pull_policy,
    resources,
    secret_variables,
    security,
    volumes,
)

Json = dict[str, Any]

LABELS = {
    "app.kubernetes.io/name": "ocis2i-build",
    "app.kubernetes.io/managed-by": "ocis2i",
}
NAME_LABEL = "ocis2i.io/build"


def _metadata(pod: Pod) -> Json:
    found: Json = {"name": pod.name, "labels": {**LABELS, NAME_LABEL: pod.name}}
    return {**found, "namespace": pod.namespace} if pod.namespace else found


# --- Kubernetes ---------------------------------------------------------------------------------


def job(order: Order, pod: Pod) -> Json:
    """A Job (`batch/v1`): one pod, tried once."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": _metadata(pod),
        "spec": {
            "backoffLimit": 0,
            "completions": 1,
            "parallelism": 1,
            "activeDeadlineSeconds": pod.deadline_seconds,
            "ttlSecondsAfterFinished": pod.keep_seconds,
            "template": {
                "metadata": {"labels": {**LABELS, NAME_LABEL: pod.name}},
                "spec": pod_spec(order, pod),
            },
        },
    }


# --- Tekton -------------------------------------------------------------------------------------

_NO_DOLLAR = ("$",)


def tekton_task(order: Order, pod: Pod) -> Json:
    """A Task (`tekton.dev/v1`), with the names of the catalogue's s2i task where they fit.

    Credentials come by workspaces, which a step sees only when it lists them: those of a service
    account would be in each step.
    """
    refuse_marks(order.words, _NO_DOLLAR, "Tekton")
    given = replace(
        order,
        source=Placeholder("$(params.SOURCE)"),
        builder=Placeholder("$(params.BUILDER_IMAGE)"),
        names=(Placeholder("$(params.IMAGE)"), *order.names[1:]),
        build=(*order.build, Placeholder("$(params.BUILD_ARGS[*])")),
    )
    report = (
        Placeholder("--result-url=$(results.IMAGE_URL.path)"),
        Placeholder("--result-digest=$(results.IMAGE_DIGEST.path)"),
    )
    named = replace(pod, push_secret="push", pull_secret="pull")  # noqa: S106 - workspaces
    return {
        "apiVersion": "tekton.dev/v1",
        "kind": "Task",
        "metadata": _metadata(pod),
        "spec": {
            "description": "Builds an image from a source and an S2I builder image, without root.",
            "params": [
                _parameter("SOURCE", "A git URL or an artifact, or a directory.", order.source),
                _parameter("BUILDER_IMAGE", "The S2I builder image.", order.builder),
                _parameter("IMAGE", "The name of the result.", order.names[0]),
                {
                    "name": "BUILD_ARGS",
                    "type": "array",
                    "description": "More options of `ocis2i build`, each one word: --env=A=1.",
                    "default": [],
                },
            ],
            "workspaces": [
                _workspace("source", "The source, where SOURCE is $(workspaces.source.path)."),
                _workspace("pull", "config.json with what may read source and builder."),
                _workspace("push", "config.json with what may push the result."),
            ],
            "results": [
                {"name": "IMAGE_URL", "type": "string", "description": "Where the result is."},
                {"name": "IMAGE_DIGEST", "type": "string", "description": "Its digest."},
            ],
            "steps": [_tekton_step(step, named) for step in steps(given, named, report=report)],
            "volumes": [one for one in volumes((), pod) if "secret" not in one],
        },
    }


def _parameter(name: str, text: str, default: str) -> Json:
    return {"name": name, "type": "string", "description": text, "default": default}


# The source lies where Tekton itself would put it.
_WORKSPACES = {"source": "/workspace/source", "pull": f"{AUTH}/pull", "push": f"{AUTH}/push"}


def _workspace(name: str, text: str) -> Json:
    where = {"mountPath": _WORKSPACES[name], "readOnly": True}
    return {"name": name, "description": text, "optional": True, **where}


def _tekton_step(step: Step, pod: Pod) -> Json:
    held = {"fetch": ["source", "pull"], "push": ["push"]}.get(step.kind, [])
    words = step.words
    if held:
        words = with_options(words, f"--auth-file={_WORKSPACES[held[-1]]}/config.json")
    found: Json = {
        "name": step.name,
        "image": str(step.image),
        "imagePullPolicy": pull_policy(step),
        "command": [PROGRAM],
        "args": [as_argument(word) for word in words],
        "computeResources": resources(step.kind, pod),
        "securityContext": {**ids(pod), **security(step.kind, pod)},
        "volumeMounts": [one for one in mounts(step, pod) if not one["name"].endswith("-auth")],
    }
    if step.values:
        found["env"] = secret_variables(step)
    if held:
        # Tekton's schema wants the path of a step's own workspace, too.
        found["workspaces"] = [{"name": one, "mountPath": _WORKSPACES[one]} for one in held]
    return found


# --- Shipwright -----------------------------------------------------------------------------------


def shipwright_strategy(order: Order, pod: Pod) -> Json:
    """A ClusterBuildStrategy (`shipwright.io/v1beta1`) that pushes by itself.

    Shipwright gives the credentials of a build to every step of it, the builder's too.
    """
    refuse_marks(order.words, _NO_DOLLAR, "Shipwright")
    given = replace(
        order,
        source=Placeholder("$(params.shp-source-context)"),
        builder=Placeholder("$(params.builder-image)"),
        names=(Placeholder("$(params.shp-output-image)"), *order.names[1:]),
        fetch=(*order.fetch, "--copy"),
        build=(*order.build, Placeholder("$(params.build-args[*])")),
    )
    report = (
        Placeholder("--result-digest=$(results.shp-image-digest.path)"),
        Placeholder("--result-size=$(results.shp-image-size.path)"),
    )
    bare = replace(pod, push_secret=None, pull_secret=None, service_account=None)
    who = ids(pod)
    numbers = {name: who[name] for name in ("runAsUser", "runAsGroup") if name in who}
    return {
        "apiVersion": "shipwright.io/v1beta1",
        "kind": "ClusterBuildStrategy",
        "metadata": {"name": pod.name, "labels": {**LABELS, NAME_LABEL: pod.name}},
        "spec": {
            "parameters": [
                {
                    "name": "builder-image",
                    "description": "The S2I builder image.",
                    "type": "string",
                    "default": order.builder,
                },
                {
                    "name": "build-args",
                    "description": "More options of `ocis2i build`, each one word: --env=A=1.",
                    "type": "array",
                    "defaults": [],
                },
            ],
            **({"securityContext": numbers} if len(numbers) == 2 else {}),
            "steps": [_shipwright_step(one, bare) for one in steps(given, bare, report=report)],
            "volumes": volumes((), bare),
        },
    }


# Where Tekton, which Shipwright runs on, copies the credentials of the service account.
_TEKTON_HOME = "/tekton/home"


def _shipwright_step(step: Step, pod: Pod) -> Json:
    words = step.words
    if step.kind in ("fetch", "push"):
        words = with_options(words, f"--auth-file={_TEKTON_HOME}/.docker/config.json")
    return {
        "name": step.name,
        "image": str(step.image),
        "imagePullPolicy": pull_policy(step),
        "command": [PROGRAM],
        "args": [as_argument(word) for word in words],
        "env": [{"name": "HOME", "value": _TEKTON_HOME}, *secret_variables(step)],
        "resources": resources(step.kind, pod),
        "securityContext": {**ids(pod), **security(step.kind, pod)},
        "volumeMounts": mounts(step, pod),
    }


# --- Argo -----------------------------------------------------------------------------------------

_BRACES = ("{{", "}}")
_DIGEST_FILE = "/tmp/digest"  # noqa: S108 - the container's own


def argo_template(order: Order, pod: Pod) -> Json:
    """A WorkflowTemplate (`argoproj.io/v1alpha1`) with one template, `build`."""
    refuse_marks(order.words, _BRACES, "Argo")
    given = replace(
        order,
        source=Placeholder("{{inputs.parameters.source}}"),
        builder=Placeholder("{{inputs.parameters.builder}}"),
        names=(Placeholder("{{inputs.parameters.image}}"), *order.names[1:]),
    )
    report = (f"--result-digest={_DIGEST_FILE}",)
    all_steps = steps(given, pod, report=report)
    defaults = {"source": order.source, "builder": order.builder, "image": order.names[0]}
    inputs = [{"name": name, "value": f"{{{{workflow.parameters.{name}}}}}"} for name in defaults]
    main = _argo_container(all_steps[-1], pod)
    del main["name"]
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "WorkflowTemplate",
        "metadata": _metadata(pod),
        "spec": {
            "entrypoint": "build",
            "automountServiceAccountToken": False,
            # Argo's own container reports the outputs; the builder's does not get its token.
            "executor": {"serviceAccountName": pod.service_account or "argo-workflow-executor"},
            "activeDeadlineSeconds": pod.deadline_seconds,
            "ttlStrategy": {"secondsAfterCompletion": pod.keep_seconds},
            "podGC": {"strategy": "OnWorkflowSuccess"},
            **image_pull_secrets(pod),
            "securityContext": pod_security(pod),
            "arguments": {
                "parameters": [
                    {"name": name, "value": as_argument(value)} for name, value in defaults.items()
                ]
            },
            "templates": [
                {
                    "name": "build",
                    "inputs": {"parameters": inputs},
                    "outputs": {
                        "parameters": [{"name": "digest", "valueFrom": {"path": _DIGEST_FILE}}]
                    },
                    "activeDeadlineSeconds": pod.deadline_seconds,
                    "retryStrategy": {"limit": 0},
                    "initContainers": [_argo_container(one, pod) for one in all_steps[:-1]],
                    "container": main,
                    "volumes": volumes(all_steps, pod),
                    **_argo_patch(pod),
                }
            ],
        },
    }


def _argo_patch(pod: Pod) -> Json:
    # Argo's template has no field for it.
    return {"podSpecPatch": '{"hostUsers": false}'} if pod.level == "user-namespace" else {}


def _argo_container(step: Step, pod: Pod) -> Json:
    made = {**container(step, pod), "name": label_name(step.name)}
    del made["terminationMessagePolicy"]
    return made
