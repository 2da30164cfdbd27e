"""Builds by a Job, whose containers are run here as the manifest has them."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.fakes.images import LayoutImage, busybox_builder
from tests.fakes.kube_api import FakeKubeApi, PlayedPod
from tests.fakes.kube_site import STAMP, Site, furnished, inspected, make_tool
from tests.fakes.kubelet import mount_points
from tests.fakes.program import Program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.registry,
    needs("busybox", "docker-registry", "newuidmap", "patchelf", "skopeo"),
]


@pytest.fixture(scope="module")
def tool(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tool(tmp_path_factory.mktemp("tool") / "tool")


@pytest.fixture
def site(shared: Program, tool: Path, tmp_path: Path) -> Iterator[Site]:
    with furnished(shared, tool, tmp_path) as made:
        yield made


def test_the_cluster_builds_what_this_machine_builds(site: Site) -> None:
    with FakeKubeApi(site.node.play) as api:
        given = site.arguments(api, site.source(), "team/app:1")
        saying = "yes $(HOME) ${HOME} $$ {{x}} 1e3"
        other = f"{site.registry}/team/app:latest"
        done = site.user(*given, "--tag", other, "--json", "-e", f"SAYING={saying}", timeout=25)
        assert done.code == 0, done.err
        assert api.jobs == api.pods == {}
    assert f"it says: {saying}" in done.err
    document = done.document
    assert document["state"] == "succeeded"
    assert document["pushed"] is True
    assert document["isolation"] == "in-place"
    assert {"fetch", "assemble", "push"} <= {one["name"] for one in document["stages"]}
    assert document["kube"]["namespace"] == "builds"
    # Foreign code ran in the one container that had no credentials.
    assert site.node.ran == [
        ("tool", False), ("fetch", True), ("build", False), ("push-1", True), ("push", True)
    ]  # fmt: skip
    assert inspected(site, "team/app:latest") == inspected(site, "team/app:1")
    # The very image, in the registry.
    labels = inspected(site, "team/app:1")["config"]["Labels"]
    source = labels["io.openshift.s2i.build.source-location"]
    assert source.startswith("oci-artifact://")
    local = site.user.ok(
        "build", source, site.builder, f"{site.registry}/team/app:1", "--no-tls-verify", *STAMP,
        "-e", f"SAYING={saying}", "--tag", other, "--json"
    ).document  # fmt: skip
    assert local["digest"] == document["digest"]
    assert set(local) | {"kube"} == set(document)


def test_a_script_that_fails_there_fails_here(site: Site) -> None:
    with FakeKubeApi(site.node.play) as api:
        given = site.arguments(api, site.source(fail=""), "team/app:2")
        done = site.user(*given, "--json", "--keep-job", timeout=25)
        assert len(api.jobs) == 1
    assert done.code == 7
    assert done.document["state"] == "failed"
    assert done.document["reason"] == "AssembleFailed"
    assert done.document["script_exit_code"] == 3
    assert "error: " in done.err
    assert [name for name, _ in site.node.ran] == ["tool", "fetch", "build"]


def test_an_interrupt_deletes_the_job(site: Site) -> None:
    def play(pod: PlayedPod) -> None:
        pod.runs("tool")
        pod.start("fetch")
        pod.say("fetch", "now")

    with FakeKubeApi(play) as api:
        given = site.arguments(api, site.source(), "team/app:3")
        with site.user.start(*given, "--keep-job") as started:
            assert started.stderr is not None
            for line in started.stderr:
                if line == "now\n":
                    break
            assert len(api.jobs) == 1
            started.send_signal(signal.SIGINT)
            _, err = started.communicate(timeout=60)
        assert started.returncode == 130, err
        assert api.jobs == {}
        assert "delete jobs" in api.calls


def test_kube_run_that_is_killed_leaves_a_job_that_ends_by_itself(site: Site) -> None:
    """Nobody can delete it then; the next run is not in its way, and it not in that of the next."""
    pods: list[PlayedPod] = []

    def play(pod: PlayedPod) -> None:
        pods.append(pod)
        if len(pods) > 1:
            site.node.play(pod)
            return
        pod.runs("tool")
        pod.start("fetch")
        pod.say("fetch", "now")

    with FakeKubeApi(play) as api:
        given = site.arguments(api, site.source(), "team/app:4")
        with site.user.start(*given) as started:
            assert started.stderr is not None
            said = next(line for line in started.stderr if " cluster" in line or "job " in line)
            assert any(line == "now\n" for line in started.stderr)
            started.kill()
        (job,) = api.jobs.values()
        name = job["metadata"]["name"]
        assert name in said
        assert "delete jobs" not in api.calls
        # What the cluster ends and removes without us.
        assert job["spec"]["activeDeadlineSeconds"] == 3600
        assert job["spec"]["ttlSecondsAfterFinished"] == 86400
        assert job["metadata"]["labels"]["app.kubernetes.io/managed-by"] == "ocis2i"
        # It was no build of this host: there is nothing to show or to resume.
        builds = site.user.ok("ps", "--all", "--json").document["builds"]
        assert f"{site.registry}/team/app:4" not in [build["name"] for build in builds]
        # The uploaded source is in the registry, under the job's name.
        source = f"oci-artifact://{site.registry}/team/app:source-{name}"
        site.user.ok("fetch", source, site.directory / "again", "--no-tls-verify")
        (page,) = (site.directory / "again").rglob("index.html")
        assert page.read_text() == "hello\n"
        done = site.user(*given, "--json", timeout=25)
        assert done.code == 0, done.err
        assert done.document["kube"]["job"] != name
        assert list(api.jobs) == [name]


def test_a_program_is_uploaded_as_one_and_a_secret_reaches_assemble_alone(site: Site) -> None:
    with FakeKubeApi(site.node.play) as api:
        given = site.arguments(api, site.script("greet"), "team/greet:1")
        secrets = ("--build-env", "KEY", "--build-secret", "for-assemble")
        done = site.user(*given, *secrets, "--json", timeout=25)
        assert done.code == 0, done.err
        written = json.dumps(api.created)
    assert site.node.values["for-assemble"]["KEY"] not in written + done.err + done.out
    assert "its key has 10 bytes" in done.err
    labels = inspected(site, "team/greet:1")["config"]["Labels"]
    assert labels["io.ocis2i.source.file"] == "greet"
    assert labels["io.ocis2i.source.kind"] == "script"
    assert "KEY" not in json.dumps(inspected(site, "team/greet:1"))


def test_the_tool_runs_where_no_python_is(tool: Path, tmp_path: Path) -> None:
    """In the tree of a busybox alone, entered by an ordinary user."""
    image = tmp_path / "image"
    busybox_builder(image, "b:1", more_layers=[mount_points()])
    root = tmp_path / "root"
    script = (
        'mount --bind "$1" "$2/ocis2i/tool" && mount --rbind /proc "$2/proc" && '
        'exec chroot "$2" /ocis2i/tool/bin/ocis2i --root /tmp/store images --json'
    )
    _unpack(LayoutImage(image, "b:1"), root)
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh", tool, root],
        env={"PATH": "/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"version": 1, "images": []}


def _unpack(image: LayoutImage, root: Path) -> None:
    root.mkdir()
    for digest in image.layers:
        subprocess.run(
            ["tar", "-xzf", image.blob(digest), "-C", root, "--no-same-owner"], check=True
        )
