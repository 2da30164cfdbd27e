"""The words of `kube render`: who gets which option of `build`, and what is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from ocis2i.cli import invoke

PLACES = ("oci-artifact://r.example/s:1", "r.example/b:1", "r.example/a:1")
TOOL = ("--tool-image", "r.example/tool:1")


def rendered(capsys: pytest.CaptureFixture[str], *options: str) -> dict[str, list[str]]:
    """The words of each container."""
    code = invoke(["kube", "render", "job", *PLACES, *TOOL, *options])
    said = capsys.readouterr()
    assert code == 0, said.err
    spec: Any = yaml.safe_load(said.out)["spec"]["template"]["spec"]
    return {one["name"]: one["args"] for one in spec["initContainers"] + spec["containers"]}


def test_each_container_gets_what_it_has_a_use_for(capsys: pytest.CaptureFixture[str]) -> None:
    words = rendered(
        capsys, "-e", "A=1", "--env=B=2", "--context-dir", "web", "--no-tls-verify", "--jobs", "2",
        "--timeout", "9m", "--upload", "chunked", "--tag", "r.example/a:2",
    )  # fmt: skip
    assert {"--context-dir=web", "--no-tls-verify", "--jobs=2"} <= set(words["fetch"])
    assert {"--env=A=1", "--env=B=2", "--timeout=9m", "--no-tls-verify"} <= set(words["build"])
    assert {"--upload=chunked", "--jobs=2", "--no-tls-verify"} <= set(words["push"])
    assert not {"--env=A=1", "--context-dir=web"} & set(words["push"])
    assert words["push-1"][-1] == "r.example/a:1"
    assert words["push"][-1] == "r.example/a:2"


def test_an_environment_file_of_this_host_becomes_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "env").write_text("A=of file\nB=of file\n")
    words = rendered(capsys, "--environment-file", str(tmp_path / "env"), "-e", "A=of flag")
    assert [one for one in words["build"] if one.startswith("--env")] == [
        "--env=B=of file",
        "--env=A=of flag",
    ]


@pytest.mark.parametrize(
    "options",
    [
        ("--volume", "/a:/b"), ("--inject", "/a"), ("--build-env", "A=b"), ("--isolation", "auto"),
        ("--output", "oci:x"), ("--incremental",), ("--runtime-image", "r.example/x"),
        ("--authfile", "x"), ("--cache-to", "r.example/c"), ("--as-dockerfile", "x"),
        ("--scripts-url", "file:///x"), ("--run",), ("--host-mirrors",),
    ],
)  # fmt: skip
def test_what_no_cluster_can_grant_is_refused_by_name(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    assert invoke(["kube", "render", "job", *PLACES, *TOOL, *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert options[0] in said.err
    assert "hint: " in said.err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["kube", "render", "pod", *PLACES, *TOOL], "no kind `pod`"),
        (["kube", "render"], "no kind ``"),
        (["kube", "fly"], "`kube fly`"),
        (["kube", "render", "job", *PLACES], "--tool-image"),
        (["kube", "render", "job", ".", *PLACES[1:], *TOOL], "is on this host"),
        (
            ["kube", "render", "job", "https://u:s3cretX9@h/x.git", *PLACES[1:], *TOOL],
            "of the source",
        ),
        (
            ["kube", "render", "job", *PLACES, *TOOL, "--scripts-url", "https://u:s3cretX9@h/s"],
            "--scripts-url has a password",
        ),
        (
            ["kube", "run", ".", *PLACES[1:], *TOOL, "--scripts-url", "https://u:s3cretX9@h/s"],
            "--scripts-url has a password",
        ),
        (["kube", "render", "job", PLACES[0], "oci:x", PLACES[2], *TOOL], "builder `oci:x`"),
        (["kube", "render", "job", *PLACES[:2], *TOOL], "SOURCE, BUILDER and TAG"),
        (["kube", "render", "job", *PLACES, *TOOL, "--pod-security", "x"], "--pod-security"),
        (["kube", "render", "job", *PLACES, *TOOL, "--disk", "many"], "--disk"),
        (["kube", "render", "job", *PLACES, *TOOL, "--pod-cpu", "0"], "--pod-cpu"),
        (["kube", "render", "job", *PLACES, *TOOL, "--run-as-user", "0"], "--run-as-user 0"),
        (["kube", "render", "job", *PLACES, *TOOL, "--name", "A_b"], "--name"),
        (["kube", "render", "job", *PLACES, *TOOL, "-e", "A=\x1b"], "control character"),
        (["kube", "render", "gitlab-ci", *PLACES, *TOOL], "--pod-security baseline"),
    ],
)
def test_words_that_mean_nothing_are_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], named: str
) -> None:
    assert invoke(words) == 2 or "is on this host" in named
    said = capsys.readouterr()
    assert said.out == ""
    assert named in said.err
    assert "hint: " in said.err or "control" in named
    assert "s3cretX9" not in said.err


def test_without_pyyaml_the_command_to_get_it_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert invoke(["kube", "render", "job", *PLACES, *TOOL]) == 2
    assert "hint: pip install 'ocis2i[kube]'" in capsys.readouterr().err
