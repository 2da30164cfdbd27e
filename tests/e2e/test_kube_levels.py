"""The manifests for namespaces that allow more, run as they are: root in the container builds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.fakes.kube_api import FakeKubeApi
from tests.fakes.kube_site import Site, furnished, inspected, make_tool
from tests.fakes.program import program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.registry,
    needs("busybox", "docker-registry", "newuidmap", "patchelf", "skopeo"),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "caller").mkdir()
    tool = make_tool(tmp_path / "tool")
    (tmp_path / "site").mkdir()
    with program(tmp_path / "caller") as caller, furnished(caller, tool, tmp_path / "site") as made:
        yield made


@pytest.mark.parametrize(
    ("level", "isolation"),
    [
        # Where root may make devices, as in every container that is in no user namespace.
        pytest.param("baseline", "chroot", marks=pytest.mark.as_root),
        pytest.param("user-namespace", "builtin", marks=pytest.mark.as_user),
    ],
)
def test_root_of_a_pod_builds_and_what_it_runs_sees_no_credentials(
    site: Site, level: str, isolation: str
) -> None:
    with FakeKubeApi(site.node.play) as api:
        given = site.arguments(api, site.source(), "team/app:1")
        done = site.user(*given, "--pod-security", level, "--json", timeout=60)
        assert done.code == 0, done.err
    document = done.document
    assert document["isolation"] == isolation
    assert document["pushed"] is True
    # As the builder's user, whoever the container is.
    assert "assembling as 1001," in done.err
    assert site.node.ran == [("fetch", True), ("build", False), ("push", True)]
    image = inspected(site, "team/app:1")
    assert image["config"]["Labels"]["io.openshift.s2i.build.source-location"]
    if os.geteuid():
        # The same image as of a build on this machine.
        source = image["config"]["Labels"]["io.openshift.s2i.build.source-location"]
        local = site.user.ok(
            "build", source, site.builder, f"{site.registry}/team/app:1", "--no-tls-verify",
            *site.stamp, "--json"
        ).document  # fmt: skip
        assert local["digest"] == document["digest"]
