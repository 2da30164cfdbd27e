"""The rows of the table of failures that take a cluster: `kube run`, with a stand-in of its API."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ocis2i.cli import invoke
from ocis2i.commands import kube_run
from ocis2i.errors import Interrupted
from ocis2i.kube.cluster import Cluster
from ocis2i.kube.following import Waiting
from ocis2i.kube.outcome import mark_line
from tests.failure_rows import EVERY, Row
from tests.fakes.kube_api import FakeKubeApi, PlayedPod

RUN = ("kube", "run", "oci-artifact://r.example/s:1", "r.example/b:1", "r.example/a:1",
       "--tool-image", "r.example/t:1", "--name", "app")  # fmt: skip
STEPS = ("tool", "fetch", "build", "push")
ROWS = {row.id: row for row in EVERY if row.cluster}


def silent(pod: PlayedPod) -> None:
    for name in STEPS:
        pod.runs(name, f"{name} works")
    pod.finish("Succeeded")


def deleted(pod: PlayedPod) -> None:
    pod.runs("tool")
    pod.api.delete(pod.job)


def busy(api: FakeKubeApi) -> None:
    api.faults["list pods"] = [(503, "no leader")] * 50


@dataclass(frozen=True)
class Scene:
    """What the pod does, what is wrong with the API, and what the caller has."""

    play: Callable[[PlayedPod], None] = silent
    prepare: Callable[[FakeKubeApi], None] = lambda _: None
    given: dict[str, str] = field(default_factory=dict)
    is_there: bool = True


SCENES = {
    "cluster": Scene(given={"token": "that of yesterday"}),
    "no-cluster": Scene(is_there=False),
    "lost-cluster": Scene(prepare=busy),
    "deleted": Scene(play=deleted),
    "no-result": Scene(),
}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Time passes only where something is waited for."""
    now = [0.0]

    def pause(seconds: float) -> None:
        now[0] += seconds

    monkeypatch.setattr(kube_run, "_waiting", lambda: Waiting(lambda: now[0], pause))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("OCIS2I_ROOT", str(tmp_path / "store"))


def test_every_row_has_a_scene_and_no_other() -> None:
    assert set(ROWS) == set(SCENES)


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize("row", ROWS.values(), ids=lambda row: row.id)
def test_a_cluster_that_fails_is_told_of(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], row: Row, as_json: bool
) -> None:
    scene = SCENES[row.id]
    words = [*RUN, *(["--json"] if as_json else [])]
    with FakeKubeApi(scene.play) as api:
        scene.prepare(api)
        api.kubeconfig(tmp_path / "kubeconfig", **scene.given)
        code = invoke(words) if scene.is_there else 0
    if not scene.is_there:
        code = invoke(words)
    said = capsys.readouterr()
    assert code == row.code
    assert row.thing in said.err.partition("error: ")[2]
    assert row.way_out in said.err.partition("hint: ")[2]
    if as_json:
        document = json.loads(said.out)
        assert (document["reason"], document["exit_code"]) == (row.reason, row.code)
    else:
        assert said.out == ""
    # Nothing is left of it where it could be reached.
    assert api.jobs == {}


def test_what_steers_a_terminal_comes_through_no_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steering = "\x1b]0;title\x07\x1b[2J"

    def play(pod: PlayedPod) -> None:
        pod.state("tool", waiting={"reason": "ImagePullBackOff", "message": f"no {steering} image"})

    with FakeKubeApi(play) as api:
        api.kubeconfig(tmp_path / "kubeconfig")
        assert invoke([*RUN]) == 6
    said = capsys.readouterr()
    assert "cannot pull its image" in said.err
    assert "\x1b" not in said.err
    assert "\x07" not in said.err


@pytest.mark.parametrize(
    "unanswered",
    [["create jobs"], ["create jobs", "get jobs"], ["create jobs", "get jobs", "delete jobs"]],
    ids=len,
)
def test_a_job_whose_answer_is_lost_is_made_once_and_followed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], unanswered: list[str]
) -> None:
    def play(pod: PlayedPod) -> None:
        for name in STEPS:
            pod.runs(name, mark_line({"state": "succeeded", "digest": "sha256:1"}))
        pod.finish("Succeeded")

    with FakeKubeApi(play) as api:
        api.kubeconfig(tmp_path / "kubeconfig")
        api.unanswered = list(unanswered)
        assert invoke([*RUN]) == 0
        assert len(api.created) == 1
        assert api.jobs == {}
    assert capsys.readouterr().out == "sha256:1\n"


def test_a_job_that_is_interrupted_while_it_is_made_is_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def created_and_stopped(cluster: Cluster, job: Any) -> Any:
        create(cluster, job)
        raise Interrupted(signal.SIGINT)

    create = Cluster.create_job
    monkeypatch.setattr(Cluster, "create_job", created_and_stopped)
    with FakeKubeApi(lambda _: None) as api:
        api.kubeconfig(tmp_path / "kubeconfig")
        assert invoke([*RUN, "--keep-job"]) == 130
        assert len(api.created) == 1
        assert api.jobs == {}
    assert "stopped by interrupt" in capsys.readouterr().err
