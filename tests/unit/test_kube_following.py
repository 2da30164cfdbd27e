"""A Job followed to its end, whatever becomes of its pod, of the API and of the connection."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.commands.kube_run import _failure
from ocis2i.errors import ScriptError, UsageError
from ocis2i.events import Notice, ScriptOutput
from ocis2i.kube.cluster import Cluster, ClusterError, LostError, open_cluster
from ocis2i.kube.following import Followed, Waiting, follow
from ocis2i.kube.kinds import job
from ocis2i.kube.loglines import LogPlace
from ocis2i.kube.outcome import (
    LONGEST_MESSAGE,
    MARK,
    ContainerState,
    mark_line,
    parse_mark,
    phase,
    termination_message,
    trouble_of,
    trouble_of_events,
    trouble_of_job,
    without_code,
)
from ocis2i.kube.plan import Order, Pod
from tests.fakes.kube_api import FakeKubeApi, PlayedPod

JOB = job(
    Order("oci-artifact://r.example/s:1", "r.example/b:1", ("r.example/a:1",)),
    Pod("app", "r.example/tool:1", namespace="builds"),
)
STEPS = ("tool", "fetch", "build", "push")
RESULT = {"state": "succeeded", "digest": "sha256:1"}


class Said:
    """What is shown of a build."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def __call__(self, event: object) -> None:
        if isinstance(event, ScriptOutput):
            self.lines.append(event.line)
        elif isinstance(event, Notice):
            self.warnings.append(event.message)


def cluster_of(api: FakeKubeApi, directory: Path, **how: Any) -> Cluster:
    path = api.kubeconfig(directory / "kubeconfig", **how)
    return open_cluster(context=None, namespace=None, config=str(path))


def run(
    play: Callable[[PlayedPod], None],
    directory: Path,
    said: Said | None = None,
    prepare: Callable[[FakeKubeApi], None] = lambda _: None,
) -> Followed:
    """Makes the Job and follows it; a minute passes with each look at it."""
    clock = itertools.count(0, 60)
    with FakeKubeApi(play) as api:
        prepare(api)
        cluster = cluster_of(api, directory)
        cluster.create_job(JOB)
        return follow(
            cluster,
            "app",
            waiting=Waiting(lambda: float(next(clock)), lambda _: None),
            pending_seconds=1200,
            report=said or Said(),
        )


def whole(pod: PlayedPod) -> None:
    """All goes well."""
    for name in STEPS:
        pod.start(name)
        pod.say(name, f"{name} begins", "", "  indented", mark_line({**RESULT, "step": name}))
        pod.end(name)
    pod.finish("Succeeded")


def all_but_tool(pod: PlayedPod) -> None:
    """The first step, which was played, ends; the others go well."""
    pod.end("tool")
    for name in STEPS[1:]:
        pod.runs(name)
    pod.finish("Succeeded")


def ended(pod: PlayedPod, **status: Any) -> None:
    pod.finish("Failed", **status)


def test_every_line_is_shown_once_and_in_order(tmp_path: Path) -> None:
    said = Said()
    followed = run(whole, tmp_path, said)
    assert said.lines == [line for name in STEPS for line in (f"{name} begins", "", "  indented")]
    assert followed.failed is None
    assert followed.documents["push"] == {**RESULT, "step": "push"}
    assert said.warnings == []


def test_a_broken_log_goes_on_where_it_broke(tmp_path: Path) -> None:
    def breaking(api: FakeKubeApi) -> None:
        api.broken_logs = [0, 1, 2, 3]
        api.faults["get pods/log"] = [(500, "etcd is busy"), (429, "too many requests")]

    said = Said()
    followed = run(whole, tmp_path, said, breaking)
    assert said.lines == [line for name in STEPS for line in (f"{name} begins", "", "  indented")]
    assert followed.documents["push"]["step"] == "push"


def test_a_log_that_the_node_rotates_repeats_no_line_and_loses_none(tmp_path: Path) -> None:
    """What is left begins anywhere: lines cannot be counted from the first."""

    def rotating(api: FakeKubeApi) -> None:
        api.broken_logs = [3]
        api.rotations = [0, 2]

    def play(pod: PlayedPod) -> None:
        pod.start("tool")
        pod.say("tool", "1", "2", "3", "same", "same", "6", mark_line(RESULT))
        all_but_tool(pod)

    said = Said()
    followed = run(play, tmp_path, said, rotating)
    assert said.lines == ["1", "2", "3", "same", "same", "6"]
    assert followed.documents["tool"] == RESULT


def test_a_log_is_asked_for_from_its_last_second_on(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        pod.start("tool")
        with pod.api.changed:
            pod.api.logs[f"{pod.name}/tool"] = [
                "2026-01-01T00:00:01.5Z old",
                "2026-01-01T00:00:09.000000001Z one",
                "2026-01-01T00:00:08.999999999Z late",
                "2026-01-01T00:00:10Z two",
            ]
        all_but_tool(pod)

    def breaking(api: FakeKubeApi) -> None:
        api.broken_logs = [2]
        seen.append(api)

    seen: list[FakeKubeApi] = []
    said = Said()
    run(play, tmp_path, said, breaking)
    assert said.lines == ["old", "one", "late", "two"]
    assert seen[0].since[:2] == [None, "2026-01-01T00:00:08+00:00"]


TIMES = st.integers(0, 30).map(lambda one: f"2026-01-01T00:00:{one // 10:02}.{one % 10}Z")


@given(
    st.lists(st.tuples(TIMES, st.sampled_from("ab")), max_size=30).map(sorted),
    st.lists(st.integers(0, 30), max_size=4),
)
def test_every_line_is_new_once_however_often_it_breaks(
    log: list[tuple[str, str]], breaks: list[int]
) -> None:
    place = LogPlace()
    shown = []
    for length in [*breaks, len(log)]:
        place.connected()
        since = datetime.fromisoformat(place.since) if place.since else None
        sent = [one for one in log if since is None or datetime.fromisoformat(one[0]) >= since]
        shown += [one for one in sent[:length] if place.is_new(*one)]
    assert shown == log


def test_lines_without_a_time_are_told_apart_all_the_same() -> None:
    place = LogPlace()
    place.connected()
    lines = [("", "a"), ("yesterday", "b"), ("2026-01-01T00:00:00", "c"), ("", "a")]
    assert [place.is_new(*one) for one in lines] == [True] * 4
    assert place.since is None
    place.connected()
    assert [place.is_new(*one) for one in [*lines, ("", "a")]] == [False] * 4 + [True]


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00+23:00"])
def test_a_time_before_which_there_is_none_is_no_crash(time: str) -> None:
    place = LogPlace()
    assert place.is_new(time, "line")
    assert place.is_new("2026-01-01T00:00:05Z", "another")
    assert place.since == "2026-01-01T00:00:04+00:00"
    place.connected()
    assert not place.is_new(time, "line")


def test_a_log_that_ends_before_its_container_is_read_again(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        pod.start("tool")
        pod.say("tool", "one", "two", "three")
        with pod.api.changed:
            pod.api.changed.wait_for(lambda: pod.api.calls.count("get pods/log") > 1, timeout=10)
        pod.say("tool", "four", mark_line({"state": "succeeded"}))
        all_but_tool(pod)

    def short(api: FakeKubeApi) -> None:
        api.short_logs = [1]

    said = Said()
    followed = run(play, tmp_path, said, short)
    assert said.lines == ["one", "two", "three", "four"]
    assert followed.documents["tool"] == {"state": "succeeded"}


def test_a_log_that_went_with_its_pod_is_no_error_of_its_own(tmp_path: Path) -> None:
    with FakeKubeApi() as api:
        assert list(cluster_of(api, tmp_path).log("gone", "build")) == []


def test_a_lost_connection_and_a_busy_server_are_asked_again(tmp_path: Path) -> None:
    def breaking(api: FakeKubeApi) -> None:
        api.faults["list pods"] = [(0, ""), (503, "no leader"), (429, "slow down"), (0, "")]

    assert run(whole, tmp_path, None, breaking).failed is None


def test_a_lost_connection_is_an_error_in_the_end(tmp_path: Path) -> None:
    def gone(api: FakeKubeApi) -> None:
        api.faults["list pods"] = [(503, "no leader")] * 50

    with pytest.raises(ClusterError, match=r"the connection to .* is lost") as caught:
        run(whole, tmp_path, None, gone)
    assert caught.value.hint is not None
    assert "kubectl get jobs" in caught.value.hint


def test_a_container_that_fails_ends_it(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        pod.runs("tool")
        pod.runs("fetch")
        pod.runs("build", "no", mark_line({"state": "failed", "reason": "AssembleFailed"}), code=7)
        ended(pod)

    followed = run(play, tmp_path)
    assert followed.failed is not None
    assert (followed.failed.name, followed.failed.exit_code) == ("build", 7)
    assert followed.documents["build"]["reason"] == "AssembleFailed"


def test_the_last_marked_line_counts(tmp_path: Path) -> None:
    """A script can print such a line, but none after that of ocis2i."""

    def play(pod: PlayedPod) -> None:
        for name in ("tool", "fetch"):
            pod.runs(name)
        forged = mark_line({"state": "succeeded", "digest": "sha256:forged"})
        pod.runs("build", forged, mark_line({"state": "failed"}), forged + "}", code=7)
        ended(pod)

    assert run(play, tmp_path).documents["build"] == {"state": "failed"}


# --- what keeps a pod from going on ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("reason", "said", "way_out"),
    [
        ("ImagePullBackOff", "cannot pull its image", "--image-pull-secret"),
        ("InvalidImageName", "no valid name", ""),
        ("CreateContainerConfigError", "names what is not there", "--push-secret"),
        ("RunContainerError", "cannot start it", "/ocis2i/tool"),
    ],
)
def test_a_container_that_never_starts_is_not_waited_for(
    tmp_path: Path, reason: str, said: str, way_out: str
) -> None:
    def play(pod: PlayedPod) -> None:
        pod.state("tool", waiting={"reason": reason, "message": "Back-off pulling image x"})

    with pytest.raises(ClusterError, match=said) as caught:
        run(play, tmp_path)
    assert "`tool`" in caught.value.message
    assert "Back-off pulling image x" in caught.value.message
    assert way_out in (caught.value.hint or "")
    assert caught.value.reason == reason


def test_a_pod_that_no_node_takes_is_waited_for_and_told_of_once(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        condition = {
            "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
            "message": "0/3 nodes are available: 3 Insufficient memory.",
        }  # fmt: skip
        pod.status(conditions=[condition])

    shown = Said()
    with pytest.raises(ClusterError, match="3 Insufficient memory") as caught:
        run(play, tmp_path, shown)
    assert caught.value.reason == "Unschedulable"
    assert "--pod-memory" in (caught.value.hint or "")
    assert len(shown.warnings) == 1


@pytest.mark.parametrize(
    ("message", "way_out"),
    [
        ('pods "app-x" is forbidden: exceeded quota: compute, requested: cpu=1', "ask for less"),
        ('pods "app-x" is forbidden: violates PodSecurity "restricted:latest"', "--pod-security"),
        ('error looking up service account builds/x: serviceaccount "x" not found', "--service-a"),
    ],
)
def test_a_job_without_a_pod_says_why(tmp_path: Path, message: str, way_out: str) -> None:
    def without_pod(api: FakeKubeApi) -> None:
        api.with_pod = False
        api.events = [{"reason": "FailedCreate", "message": message}]

    with pytest.raises(ClusterError, match="makes no pod") as caught:
        run(whole, tmp_path, None, without_pod)
    assert message in caught.value.message
    assert way_out in (caught.value.hint or "")


def test_the_latest_event_counts_in_whatever_order_they_are_listed() -> None:
    events = [
        {"reason": "FailedCreate", "message": "quota", "lastTimestamp": "2026-01-01T00:00:02Z"},
        {"reason": "FailedCreate", "message": "old", "lastTimestamp": "2026-01-01T00:00:01Z"},
    ]
    found = trouble_of_events(events)
    assert found is not None
    assert found.message.endswith("quota")


def test_a_pod_in_the_place_of_one_that_was_lost_is_followed_from_its_beginning(
    tmp_path: Path,
) -> None:
    def play(pod: PlayedPod) -> None:
        pod.runs("tool", "first")
        pod.start("fetch")
        with pod.api.changed:
            pod.api.changed.wait_for(lambda: pod.api.calls.count("get pods/log") > 1, timeout=10)
            del pod.api.pods[pod.name]
            pod.name = f"{pod.job}-again"
            pod.document["metadata"]["name"] = pod.name
            pod.document["status"] = {"phase": "Pending"}
            pod.api.pods[pod.name] = pod.document
            pod.api.changed.notify_all()
        whole(pod)

    said = Said()
    followed = run(play, tmp_path, said)
    assert said.lines[0] == "first"
    assert said.lines[1:] == [line for one in STEPS for line in (f"{one} begins", "", "  indented")]
    assert followed.pod_name == "app-again"


def test_events_that_we_may_not_read_are_done_without(tmp_path: Path) -> None:
    def without_pod(api: FakeKubeApi) -> None:
        api.with_pod = False
        api.faults["list events"] = [(403, "events is forbidden")] * 500

    with pytest.raises(ClusterError, match="has no pod yet"):
        run(whole, tmp_path, None, without_pod)


def test_an_evicted_pod_says_so(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        pod.start("tool")
        ended(pod, reason="Evicted", message="The node was low on resource: ephemeral-storage.")

    with pytest.raises(ClusterError, match=r"low on resource: ephemeral-storage") as caught:
        run(play, tmp_path)
    assert "--disk" in (caught.value.hint or "")


def test_a_job_that_took_too_long_says_so(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        pod.start("tool")
        ended(pod, job_reason="DeadlineExceeded")

    with pytest.raises(ClusterError, match="longer than it may") as caught:
        run(play, tmp_path)
    assert "--deadline" in (caught.value.hint or "")


def test_a_job_that_somebody_deleted_is_not_waited_for(tmp_path: Path) -> None:
    def play(pod: PlayedPod) -> None:
        pod.start("tool")
        pod.api.delete("app")

    with pytest.raises(ClusterError, match="deleted by somebody else"):
        run(play, tmp_path)


# --- what the API refuses -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "message", "said", "way_out"),
    [
        (403, 'jobs.batch is forbidden: User "u" cannot create', "you may not `create` `jobs`",
         "resources: [jobs], verbs: [create, get, delete]"),
        (403, "exceeded quota: jobs", "quota of namespace `builds`", "--pod-memory"),
        (401, "Unauthorized", "does not know who asks", "whoami"),
        (404, 'namespaces "builds" not found', "has no namespace", "--namespace"),
        (409, "already exists", "such a job already", "--name"),
        (422, "spec.x: unknown", "refuses to create jobs", ""),
    ],
)  # fmt: skip
def test_a_refusal_is_explained(
    tmp_path: Path, status: int, message: str, said: str, way_out: str
) -> None:
    with FakeKubeApi() as api:
        api.faults["create jobs"] = [(status, message)]
        cluster = cluster_of(api, tmp_path)
        with pytest.raises(ClusterError) as caught:
            cluster.create_job(JOB)
    assert said in caught.value.message
    assert message in caught.value.message
    assert way_out in (caught.value.hint or "")
    assert caught.value.exit_code == 6


def test_the_stand_in_refuses_what_is_no_field() -> None:
    with FakeKubeApi() as api, pytest.raises(jsonschema.ValidationError, match="colour"):
        api.create({**JOB, "spec": {**JOB["spec"], "colour": "red"}})


def test_a_token_that_nobody_knows_is_told_of(tmp_path: Path) -> None:
    with FakeKubeApi() as api, pytest.raises(ClusterError, match="does not know who asks"):
        cluster_of(api, tmp_path, token="old").create_job(JOB)


def test_what_is_gone_needs_no_deletion(tmp_path: Path) -> None:
    with FakeKubeApi() as api:
        api.faults["get jobs"] = [(410, "gone")]
        cluster = cluster_of(api, tmp_path)
        cluster.delete_job("app")
        assert cluster.job("app") is None


def test_a_server_that_is_not_there_is_a_lost_connection(tmp_path: Path) -> None:
    with FakeKubeApi() as api:
        cluster = cluster_of(api, tmp_path)
    with pytest.raises(LostError):
        cluster.create_job(JOB)


def test_without_a_cluster_the_way_out_is_told(tmp_path: Path) -> None:
    for text in ("", "{", "apiVersion: v1\nkind: Config\n"):
        (tmp_path / "config").write_text(text)
        with pytest.raises(ClusterError, match="no cluster is known") as caught:
            open_cluster(context=None, namespace=None, config=str(tmp_path / "config"))
        assert "KUBECONFIG" in (caught.value.hint or "")
    with pytest.raises(ClusterError, match="no-such-file"):
        open_cluster(context=None, namespace=None, config=str(tmp_path / "no-such-file"))


def test_without_the_client_the_command_to_get_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "kubernetes", None)
    with pytest.raises(UsageError, match="not installed") as caught:
        open_cluster(context=None, namespace=None, config=None)
    assert caught.value.hint == "pip install 'ocis2i[kube]'"


KEYS = st.sampled_from(
    "metadata spec status name phase reason message conditions type initContainers containers "
    "initContainerStatuses state terminated running waiting exitCode".split()
)


# --- answers of what is no cluster ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"<html>log in</html>", "no JSON object"),
        (b"[]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"[" * 100_000, "no JSON object"),
        (b" " * 2000, "over 0 MiB"),
    ],
)
def test_an_answer_of_something_else_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answer: bytes, said: str
) -> None:
    if said.startswith("over"):
        monkeypatch.setattr("ocis2i.kube.cluster.ANSWER_LIMIT", 1000)
    with FakeKubeApi() as api:
        api.raw = answer
        with pytest.raises(ClusterError, match=said) as caught:
            cluster_of(api, tmp_path).pods("a=b")
    assert "kubeconfig" in (caught.value.hint or "")


def test_a_line_without_end_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ocis2i.kube.cluster.LINE_LIMIT", 1000)

    def play(pod: PlayedPod) -> None:
        pod.runs("tool", "x" * 300_000, "next")
        ended(pod)

    said = Said()
    with pytest.raises(ClusterError):
        run(play, tmp_path, said)
    assert max(map(len, said.lines)) < 200_000
    assert said.lines[-1] == "next"
    assert sum("xxx" in line for line in said.lines) == 1


JUNK = st.recursive(
    st.none() | st.just("x") | st.just(7),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, JUNK, max_size=5))
def test_an_object_of_another_form_is_no_crash(junk: dict[str, Any]) -> None:
    ended_pod = Followed(junk)
    assert isinstance(ended_pod.pod_name, str)
    assert ended_pod.failed is None or ended_pod.failed.state == "ended"
    assert isinstance(phase(junk), str)
    for trouble in (trouble_of(junk), trouble_of_job(junk), trouble_of_events([junk])):
        assert trouble is None or isinstance(trouble.message, str)


# --- what a step says -----------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


@given(st.dictionaries(st.text(), JSON))
def test_a_document_is_one_line_and_comes_back(document: dict[str, Any]) -> None:
    line = mark_line(document)
    assert len(line.splitlines()) == 1
    assert parse_mark(line) == document


def test_a_line_that_a_script_forged_is_no_crash() -> None:
    assert parse_mark(MARK + "[" * 100_000) is None
    assert parse_mark(MARK + "[]") is None
    forged = {"exit_code": 7, "script_exit_code": "x", "hint": {"a": 1}, "message": None}
    error = _failure(forged, ContainerState("build", "ended", 137))
    assert isinstance(error, ScriptError)
    assert error.script_exit_code == 137
    assert error.hint == "{'a': 1}"
    codes: tuple[object, ...] = (0, "5", None, [], 1e9)
    for code in codes:
        assert isinstance(_failure({"exit_code": code}, ContainerState("build")), ClusterError)


@given(st.dictionaries(st.sampled_from(["message", "hint", "reason", "name"]), st.text()))
def test_a_termination_message_is_never_too_long(document: dict[str, Any]) -> None:
    document["message"] = "ü" * 5000
    assert len(termination_message({"state": "failed", **document}).encode()) <= LONGEST_MESSAGE


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [
        (ContainerState("build", "ended", 137, "OOMKilled"), "OutOfMemory", 9),
        (ContainerState("build", "ended", 137, "Error"), "BuildContainerDied", 6),
        (ContainerState("tool", "ended", 128, "StartError", "no such file"), "StartError", 6),
        (ContainerState("push", "ended", 5, "Error"), "BuildContainerDied", 5),
    ],
)
def test_a_container_without_a_document_is_judged_by_its_end(
    state: ContainerState, reason: str, code: int
) -> None:
    found, message, exit_code = without_code(state)
    assert (found, exit_code) == (reason, code)
    assert f"`{state.name}`" in message
