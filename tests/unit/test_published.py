"""scripts/check_published, with definitions that are made here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.kube_varieties import VARIETIES
from tests.pages import PROJECT
from tests.published import main, ours

Json = dict[str, Any]
Write = Callable[..., str]

# Everything goes in a Task of this one, but for names of its steps that are longer than 5.
STEPS = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["name"],
    "items": {
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": True,
        "required": ["name"],
        "properties": {"name": {"type": "string", "maxLength": 5}},
    },
}
KEPT = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


def definition(
    kind: str, group: str, version: str, spec: Json, *, served: bool = True, scope: str = "Cluster"
) -> Json:
    schema = {"type": "object", "properties": {"spec": spec}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{kind.lower()}s.{group}"},
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind},
            "versions": [
                {"name": version, "served": served, "schema": {"openAPIV3Schema": schema}}
            ],
        },
    }


def task(spec: Json, **more: Any) -> Json:
    return definition(
        "Task", "tekton.dev", **{"version": "v1", "scope": "Namespaced", **more}, spec=spec
    )


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(*documents: Any, name: str = "release.yaml") -> str:
        path = tmp_path / name
        path.write_text(yaml.safe_dump_all(documents))
        return str(path)

    return written


def test_the_kinds_are_those_that_others_define() -> None:
    assert list(map(str, ours())) == [
        "Task of tekton.dev/v1",
        "ClusterBuildStrategy of shipwright.io/v1beta1",
        "WorkflowTemplate of argoproj.io/v1alpha1",
    ]


def test_a_release_with_definitions_that_fit(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {"apiVersion": "v1", "kind": "ConfigMap", "data": {"sign": "="}}
    broken = definition("Other", "tekton.dev", "v1", {"type": "text"})
    rules = {**KEPT, "x-kubernetes-validations": [{"rule": "true"}]}
    strategy = definition("ClusterBuildStrategy", "shipwright.io", "v1beta1", rules)
    first = write(others, None, broken, task(KEPT))
    second = write(strategy, name="strategy.yaml")
    assert main([first, second]) == 0
    said = capsys.readouterr()
    assert said.err == ""
    count = len(VARIETIES)
    strategies = (
        "strategy.yaml: clusterbuildstrategys.shipwright.io, "
        "ClusterBuildStrategy of shipwright.io/v1beta1"
    )
    assert said.out.splitlines() == [
        f"release.yaml: tasks.tekton.dev, Task of tekton.dev/v1: {count} manifests, all fit",
        f"{strategies}: {count} manifests, all fit",
        f"{strategies}: not evaluated: rule in CEL (1)",
    ]


def test_definitions_as_kubectl_prints_several(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    strategy = definition("ClusterBuildStrategy", "shipwright.io", "v1beta1", KEPT)
    several = {"apiVersion": "v1", "kind": "List", "items": [task(KEPT), strategy]}
    assert main([write(several)]) == 0
    assert capsys.readouterr().out.count("all fit") == 2


def test_each_fault_is_named_with_manifest_place_and_value(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    properties = {"description": {"type": "string"}, "steps": STEPS, "params": {"type": "array"}}
    spec = {"type": "object", "properties": {**properties, "results": KEPT, "volumes": KEPT}}
    assert main([write(task(spec))]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert 'tekton-task (all): spec.params[0].name: no such field; there is "SOURCE"' in lines
    (least,) = [one for one in lines if "git.example" in one]
    assert least.startswith("tekton-task (nothing but what is needed): spec.params[0].default: no")
    (workspaces,) = [one for one in lines if "spec.workspaces" in one]
    assert 'no such field; there is [{"name": "source"' in workspaces
    (results,) = [one for one in lines if "spec.results" in one]
    assert "is to be object; there is [{" in results
    (step,) = [one for one in lines if "spec.steps[3].name: breaks `maxLength` of 5" in one]
    assert step.endswith('there is "push-1"')
    assert "nothing but what is needed" not in step
    assert lines[-1].endswith(f"{len(VARIETIES)} manifests, faults: {len(lines) - 1}")


def test_a_strategy_is_of_the_cluster_and_a_task_need_not_be(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(task(KEPT, scope="Cluster"))]) == 1
    assert 'metadata.namespace: is forbidden; there is "builds"' in capsys.readouterr().out


@pytest.mark.parametrize("more", [{"version": "v2"}, {"served": False}])
def test_a_version_that_is_not_served_is_a_fault(
    write: Write, capsys: pytest.CaptureFixture[str], more: Json
) -> None:
    assert main([write(task(KEPT, **more))]) == 1
    said = capsys.readouterr().out
    served = "none" if "served" in more else "v2"
    assert f"tekton-task (all): the version v1 is not served; served is {served}\n" in said
    assert "faults: 1" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\n", "has no CustomResourceDefinition of ours"),
        ("", "has no CustomResourceDefinition of ours"),
        ("- a\n", "has no CustomResourceDefinition of ours"),
        ("kind: List\n", "has no CustomResourceDefinition of ours"),
        ("a: 2026-13-45\n", "is no YAML: month must be in"),
        (
            "{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, "
            "spec: {group: [a]}}\n",
            "has 1 CustomResourceDefinitions, but none of ours",
        ),
        ("a: [\n", "is no YAML"),
        ("\0", "is no YAML"),
        ("<!DOCTYPE html>\n<p class=a: b: c>", "is no YAML"),
        (None, "cannot be read: No such file or directory"),
    ],
)
def test_a_file_that_is_of_no_use_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, said: str
) -> None:
    path = tmp_path / "task.yaml"
    if text is not None:
        path.write_text(text)
    assert main([str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"error: `{path}` {said}")
    assert "\nhint: " in printed.err


def test_a_definition_of_somebody_else_is_no_help(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(definition("Task", "other.example", "v1", KEPT), {"kind": "Task"})]) == 2
    said = capsys.readouterr().err
    assert "has 1 CustomResourceDefinitions, but none of ours" in said
    assert "hint: wanted is one of: Task of tekton.dev/v1, ClusterBuildStrategy of" in said


def test_a_definition_that_is_not_understood_is_an_error(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(task({"type": "object", "colour": "red"}))]) == 2
    said = capsys.readouterr().err
    assert "tasks.tekton.dev, version v1: openAPIV3Schema.spec has `colour`" in said
    old = {**task(KEPT), "apiVersion": "apiextensions.k8s.io/v1beta1"}
    assert main([write(old)]) == 2
    assert "is of `apiextensions.k8s.io/v1beta1`" in capsys.readouterr().err


def test_nothing_is_said_of_a_file_when_another_is_of_no_use(
    write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([write(task(KEPT)), write({}, name="empty.yaml")]) == 2
    assert capsys.readouterr().out == ""


def test_the_script_is_there_and_says_what_it_wants() -> None:
    argv = [sys.executable, str(PROJECT / "scripts/check_published")]
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "usage: check_published" in ran.stderr
