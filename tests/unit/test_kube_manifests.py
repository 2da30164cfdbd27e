"""What `kube render` writes: valid for its schema, with the walls that it promises, and quoted."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hera.workflows import models as argo_models
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from ocis2i.commands.kube import KINDS, PIPELINES
from ocis2i.errors import UsageError
from ocis2i.kube.kinds import argo_template, job, shipwright_strategy, tekton_task
from ocis2i.kube.names import LONGEST_LABEL, Placeholder, as_argument, check_name, label_name
from ocis2i.kube.pipelines import github_actions, gitlab_ci
from ocis2i.kube.plan import AUTH, Level, Order, Pod, check, steps
from ocis2i.kube.text import as_yaml, is_plain
from tests.fakes.kube_api import check_object, definitions
from tests.fakes.kubelet import expanded
from tests.kube_varieties import (
    LEVELS,
    OBJECTS,
    ORDER,
    PODS,
    SECRETIVE,
    VARIETIES,
    read_again,
    variety,
)

SCHEMAS = Path(__file__).parent.parent / "schemas"


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [*spec["initContainers"], *spec["containers"]]


# --- schemas ----------------------------------------------------------------------------------


def test_the_varieties_are_of_all_kinds_that_an_api_server_takes() -> None:
    assert {*OBJECTS, *PIPELINES} == set(KINDS)


@pytest.mark.parametrize("name", VARIETIES)
def test_a_job_is_one_by_the_api_of_kubernetes(name: str) -> None:
    document = variety("job", name)
    check_object(document)
    template = document["spec"]["template"]
    check_object({"apiVersion": "v1", "kind": "Pod", **template})


_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"


@cache
def excerpt(name: str) -> Any:
    text = (SCHEMAS / name).read_text()
    text = text.replace('"kubernetes:ObjectMeta"', f'"#/$defs/{_META}"')
    text = re.sub(r'"kubernetes:(\w+)"', r'"#/$defs/io.k8s.api.core.v1.\1"', text)
    return jsonschema.Draft202012Validator({**json.loads(text), "$defs": definitions()})


def check_excerpt(document: Any, name: str) -> None:
    excerpt(name).validate(document)


@pytest.mark.parametrize("name", VARIETIES)
def test_a_task_has_the_fields_of_tekton(name: str) -> None:
    check_excerpt(variety("tekton-task", name), "tekton-task.json")


@pytest.mark.parametrize("name", VARIETIES)
def test_a_strategy_has_the_fields_of_shipwright(name: str) -> None:
    check_excerpt(variety("shipwright-strategy", name), "shipwright-strategy.json")


# Their keys are anybody's.
MAPS = ("labels", "requests", "limits")


def objects(part: Any, name: str = "") -> Iterator[dict[str, Any]]:
    """All objects of a document whose fields have names of their own."""
    if isinstance(part, dict) and name not in MAPS:
        yield part
        for key, value in part.items():
            yield from objects(value, key)
    if isinstance(part, list):
        for one in part:
            yield from objects(one)


@pytest.mark.parametrize(
    ("render", "name"),
    [(tekton_task, "tekton-task.json"), (shipwright_strategy, "shipwright-strategy.json")],
)
def test_our_schemas_refuse_every_field_that_they_do_not_name(render: Any, name: str) -> None:
    document = read_again(render(SECRETIVE, replace(PODS["restricted"], build_secret="x")))
    check_excerpt(document, name)
    found = list(objects(document))
    assert len(found) > 50
    # Of objects with the same fields one stands for all.
    for one in {tuple(one): one for one in found}.values():
        one["colour"] = "red"
        with pytest.raises(jsonschema.ValidationError):
            check_excerpt(document, name)
        del one["colour"]
    check_excerpt(document, name)


@pytest.mark.parametrize("name", VARIETIES)
def test_a_template_is_one_by_the_models_of_argo(name: str) -> None:
    document = variety("argo-template", name)
    model = argo_models.WorkflowTemplate.model_validate(document)
    # What the models do not know is lost in them.
    kept = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    assert missing(document, kept) == []


def missing(written: Any, kept: Any, path: str = "") -> list[str]:
    """What of one document is not in the other."""
    if isinstance(written, dict):
        return [
            one
            for key, value in written.items()
            for one in (
                missing(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}"]
            )
        ]
    if isinstance(written, list):
        return [
            one
            for number, value in enumerate(written)
            for one in missing(value, kept[number], f"{path}[{number}]")
        ]
    return []


def builtin_schema(name: str) -> Any:
    package = resources.files("check_jsonschema") / "builtin_schemas" / "vendor"
    return json.loads((package / name).read_text())


def test_a_workflow_is_one_of_github() -> None:
    document = read_again(github_actions(SECRETIVE, PODS["restricted"]))
    jsonschema.Draft7Validator(builtin_schema("github-workflows.json")).validate(document)


def test_a_job_of_gitlab_is_one() -> None:
    document = read_again(gitlab_ci(ORDER, PODS["baseline"]))
    jsonschema.Draft7Validator(builtin_schema("gitlab-ci.json")).validate(document)


# --- walls ------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", LEVELS)
def test_foreign_code_runs_beside_no_secret(level: Level) -> None:
    spec = job(ORDER, PODS[level])["spec"]["template"]["spec"]
    holders = {
        one["name"]
        for one in containers(spec)
        if any(mount["mountPath"] == AUTH for mount in one["volumeMounts"])
    }
    assert holders == {"fetch", "push-1", "push"}
    assert spec["automountServiceAccountToken"] is False
    for one in containers(spec):
        assert ("REGISTRY_AUTH_FILE" in str(one["env"])) == (one["name"] in holders)


def test_a_step_of_tekton_sees_the_credentials_that_it_lists() -> None:
    spec = tekton_task(ORDER, PODS["restricted"])["spec"]
    seen = {one["name"]: [w["name"] for w in one.get("workspaces", [])] for one in spec["steps"]}
    assert seen == {
        "tool": [], "fetch": ["source", "pull"], "build": [], "push-1": ["push"], "push": ["push"]
    }  # fmt: skip
    declared = {one["name"]: one["mountPath"] for one in spec["workspaces"]}
    for one in spec["steps"]:
        for used in one.get("workspaces", []):
            assert used["mountPath"] == declared[used["name"]]
    assert "secret" not in json.dumps(spec["volumes"])


def test_the_restricted_job_keeps_every_rule_of_pod_security() -> None:
    """https://kubernetes.io/docs/concepts/security/pod-security-standards/."""
    spec = job(ORDER, PODS["restricted"])["spec"]["template"]["spec"]
    assert spec["securityContext"] == {
        "runAsUser": 1001, "runAsGroup": 0, "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    }  # fmt: skip
    for one in containers(spec):
        context = one["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert "privileged" not in context
        assert "procMount" not in context
    assert {key for one in spec["volumes"] for key in one} == {"name", "emptyDir", "secret"}
    assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & set(spec)


def test_the_baseline_job_adds_only_what_baseline_lets_it() -> None:
    allowed = set(
        "AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID KILL MKNOD NET_BIND_SERVICE SETFCAP SETGID "
        "SETPCAP SETUID SYS_CHROOT".split()
    )
    spec = job(ORDER, PODS["baseline"])["spec"]["template"]["spec"]
    for one in containers(spec):
        context = one["securityContext"]
        assert set(context["capabilities"].get("add", [])) <= allowed
        assert context["allowPrivilegeEscalation"] is False
        assert ("add" in context["capabilities"]) == (one["name"] == "build")


def test_only_the_container_that_builds_is_let_loose_in_its_user_namespace() -> None:
    spec = job(ORDER, PODS["user-namespace"])["spec"]["template"]["spec"]
    assert spec["hostUsers"] is False
    for one in containers(spec):
        loose = one["securityContext"].get("capabilities", {}).get("add") == ["SYS_ADMIN"]
        assert loose == (one["name"] == "build")


@pytest.mark.parametrize("level", LEVELS)
def test_everything_has_a_bound(level: Level) -> None:
    spec = job(ORDER, PODS[level])["spec"]
    assert spec["backoffLimit"] == 0
    assert spec["activeDeadlineSeconds"] > 0
    assert spec["ttlSecondsAfterFinished"] > 0
    pod = spec["template"]["spec"]
    for one in containers(pod):
        assert set(one["resources"]["requests"]) == {"cpu", "memory", "ephemeral-storage"}
        assert set(one["resources"]["limits"]) == {"memory", "ephemeral-storage"}
    assert all(one["emptyDir"]["sizeLimit"] for one in pod["volumes"] if "emptyDir" in one)


def test_only_a_build_in_place_takes_the_builder_as_its_image() -> None:
    images = {
        level: {one.image for one in steps(ORDER, PODS[level]) if one.kind == "build"}
        for level in LEVELS
    }
    assert images["restricted"] == {ORDER.builder}
    assert images["baseline"] == images["user-namespace"] == {PODS["baseline"].tool_image}


@pytest.mark.parametrize("render", [job, tekton_task, shipwright_strategy, argo_template])
def test_the_builder_is_pulled_as_it_is_now(render: Any) -> None:
    """What is fetched is its manifest of now: another tree under that would be a broken image."""
    document = render(ORDER, PODS["restricted"])
    (build,) = [one for one in objects(document) if one.get("name") == "build" and "args" in one]
    assert build["imagePullPolicy"] == "Always"


def test_root_is_refused_where_the_cluster_would() -> None:
    with pytest.raises(UsageError, match="--run-as-user 0"):
        check(ORDER, Pod("a", "tool", user=0))
    with pytest.raises(UsageError, match="needs a name"):
        check(Order("a", "b", ()), Pod("a", "tool"))


def test_on_openshift_the_cluster_chooses_the_user() -> None:
    spec = job(ORDER, Pod("a", "tool", user=None))["spec"]["template"]["spec"]
    assert "runAsUser" not in spec["securityContext"]


# --- text -------------------------------------------------------------------------------------

WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]) | st.just("\n"))


@given(WORDS | st.sampled_from(["yes", "1e3", "0o17", "12:30", "~", "", "- a", "a: b", "1_000"]))
def test_a_text_stays_what_it_is_in_every_yaml(text: str) -> None:
    written = as_yaml([{"key": text, "list": [text]}])
    assert yaml.safe_load(written) == {"key": text, "list": [text]}
    assert YAML(typ="safe", pure=True).load(written) == {"key": text, "list": [text]}


def test_what_a_reader_could_take_for_something_else_is_quoted() -> None:
    for text in ("yes", "No", "1e3", "0x1f", "null", "1.0", "", "12:30", "a b", "*a", "Off", ".5"):
        assert not is_plain(text), text
        assert f'"{text}"' in as_yaml([text])
    assert is_plain("registry.example/team") is True


@given(st.text(st.sampled_from("$()AB {}")))
def test_kubernetes_expands_nothing_of_a_users_words(text: str) -> None:
    assert expanded(as_argument(text), {"A": "1", "B": "2", "AB": "3"}) == text


def test_a_control_character_is_refused() -> None:
    for text in ("a\0b", "\x1b[0m", "\udc80"):
        with pytest.raises(UsageError):
            as_argument(text)
    assert as_argument(Placeholder("$(params.A)")) == "$(params.A)"


@pytest.mark.parametrize(
    ("render", "word"),
    [
        (tekton_task, "--env=A=$(params.IMAGE)"),
        (shipwright_strategy, "--env=A=$(params.shp-output-image)"),
        (argo_template, "--env=A={{workflow.name}}"),
        (github_actions, "--env=A=${{ secrets.GITHUB_TOKEN }}"),
        (gitlab_ci, "--env=A=$[[ inputs.a ]]"),
    ],
)
def test_what_an_engine_would_replace_is_refused(render: Any, word: str) -> None:
    order = Order(ORDER.source, ORDER.builder, ORDER.names, build=(word,))
    with pytest.raises(UsageError, match="would replace"):
        render(order, PODS["baseline"])


@pytest.mark.parametrize("render", [job, tekton_task, shipwright_strategy, argo_template])
def test_every_name_is_in_the_store_before_it_is_pushed(render: Any) -> None:
    spec = render(ORDER, PODS["baseline"])["spec"]
    spec = spec.get("template", {}).get("spec", spec)
    spec = spec.get("templates", [spec])[0]
    found = [*spec.get("initContainers", ()), *spec.get("containers", ()), *spec.get("steps", ())]
    found += [spec["container"]] if "container" in spec else []
    (build,) = [one["args"] for one in found if one.get("name") == "build"]
    pushed = [one["args"][-1] for one in found if "push" in one["args"]]
    assert [build[-1], build[build.index("--tag") + 1]] == pushed


@pytest.mark.parametrize("render", [gitlab_ci, github_actions])
def test_a_pipeline_builds_every_name_that_it_pushes(render: Any) -> None:
    text = as_yaml([render(ORDER, PODS["baseline"])])
    assert f"--tag {ORDER.names[1]} " in text
    assert all(f"-- {name}" in text for name in ORDER.names)


def test_a_shell_sees_one_word_where_the_user_wrote_one() -> None:
    order = Order(".", "b:1", ("r.example/a:1",), build=("--env=A=$HOME `id` '\"; rm -rf / #",))
    (line, *_) = gitlab_ci(order, PODS["baseline"])["ocis2i-app"]["script"]
    assert "'--env=A=$HOME `id` '\"'\"'\"; rm -rf / #'" in line


# --- names ------------------------------------------------------------------------------------


@given(st.text())
def test_every_text_becomes_a_name_by_rfc_1123(text: str) -> None:
    name = label_name(text)
    assert len(name) <= LONGEST_LABEL
    assert check_name(name, "--name", dots=False) == name


def test_long_names_that_differ_at_the_end_stay_apart() -> None:
    one, other = label_name("a" * 80 + "1"), label_name("a" * 80 + "2")
    assert one != other
    assert len(one) == LONGEST_LABEL


@pytest.mark.parametrize("name", ["", "A", "a_b", "-a", "a-", "a.b", "a" * 64, "a\n"])
def test_a_name_that_the_cluster_would_refuse_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="no name in Kubernetes"):
        check_name(name, "--name", dots=False)
