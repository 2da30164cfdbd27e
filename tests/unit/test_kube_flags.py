"""The words of `kube render`: who gets which option of `build`, and what is refused by name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ocis2i.cli import invoke
from ocis2i.kube.hidden import looks_secret
from tests.fakes.images import Layer, make_layout
from tests.fakes.registry import FakeRegistry

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


# --- secrets ----------------------------------------------------------------------------------

CANARY = "s3cretX9pq"


@pytest.mark.parametrize("action", [("render", "job"), ("render", "gitlab-ci"), ("run",)])
@pytest.mark.parametrize(
    ("options", "way_out"),
    [
        (("-e", f"API_TOKEN={CANARY}"), "--build-env API_TOKEN --build-secret"),
        (("-e", f"npmAuthToken={CANARY}"), "--build-env npmAuthToken --build-secret"),
        (("-P", f"DB_PASSWORD={CANARY}"), "-P DB_PASSWORD --build-secret"),
        (("-P", f"NAME=@{CANARY}"), "--build-secret"),
        (("--build-env", f"ANY={CANARY}"), "--build-env ANY --build-secret"),
        (("-e", f"DATABASE=postgres://user:{CANARY}@host/db"), "leave it out"),
        (("-e", f"HTTPS_PROXY=http://user:{CANARY}@proxy:3128"), "leave it out"),
        (("-P", f"HOOK=https://host/x?token={CANARY}"), "leave it out"),
        (("--args", f"https://u:{CANARY}@host/"), "leave it out"),
        (("--description", f"see https://u:{CANARY}@host/"), "leave it out"),
        (("--callback-url", f"https://host/x?token={CANARY}"), "leave it out"),
        (("--scripts-url", f"https://u:{CANARY}@host/"), "leave it out; put the scripts into"),
        (("--image-scripts-url", f"https://u:{CANARY}@host/"), "leave it out; put the scripts"),
        (("--args", f"--db-password={CANARY}"), "a variable or a file that it gets when it"),
        (("--args", "--token", "--args", CANARY), "a variable or a file that it gets when it"),
        (("--args", f"API_KEY={CANARY}"), "a variable or a file that it gets when it is started"),
        (("--environment-file", "env"), "--build-env SECRET_KEY --build-secret"),
    ],
)
def test_no_secret_comes_into_a_manifest(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    action: tuple[str, ...],
    options: tuple[str, ...],
    way_out: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "env").write_text(f"SECRET_KEY={CANARY}\n")
    level = ("--pod-security", "baseline")
    assert invoke(["kube", *action, *PLACES, *TOOL, *level, *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert way_out in said.err.partition("hint: ")[2]
    assert CANARY not in said.err or "=@" in options[-1]


@pytest.mark.parametrize(
    "arguments",
    [
        ("token", "list"), ("--token",), ("--token", "--port=80"), ("--token-file=/run/secrets/t",),
        ("--token=",), ("--author", "me"), ("--no-password", "db"), ("--password-stdin", "db"),
        ("say: the password=x",), ("",),
        ("--use-token=true",),
    ],
)  # fmt: skip
def test_arguments_that_only_speak_of_secrets_are_none(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    words = [word for one in arguments for word in ("--args", one)]
    assert invoke(["kube", "render", "job", *PLACES, *TOOL, *words]) == 0
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("render", "job", PLACES[0], f"u:{CANARY}@r.example/b:1", PLACES[2]), 2),
        (("render", "job", *PLACES[:2], f"u:{CANARY}@r.example/a:1"), 2),
        (("render", "job", *PLACES, "--authfile", "x"), 2),
        (("render", "job", *PLACES, "--creds", f"u:{CANARY}"), 2),
    ],
)
def test_nor_by_another_door(
    capsys: pytest.CaptureFixture[str], words: tuple[str, ...], code: int
) -> None:
    assert invoke(["kube", *words, *TOOL]) == code
    assert CANARY not in capsys.readouterr().out


def test_a_value_out_of_a_secret_is_named_in_the_manifest_and_nothing_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["-P", "TOKEN", "--build-env", "KEY", "--build-secret", "for-assemble"]
    for kind in ("job", "tekton-task", "shipwright-strategy", "argo-template"):
        assert invoke(["kube", "render", kind, *PLACES, *TOOL, *words, "--json"]) == 0
        document = json.loads(capsys.readouterr().out)
        assert [(one["name"], *names) for one, names in holders_of("for-assemble", document)] == [
            ("build", "KEY", "TOKEN")
        ]


def holders_of(secret: str, part: Any) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """The containers that have values of a secret, and the names of these."""
    if isinstance(part, dict):
        names = [
            one["name"]
            for one in part.get("env") or ()
            if (one.get("valueFrom") or {}).get("secretKeyRef")
            == {"name": secret, "key": one["name"]}
        ]
        if names:
            yield part, names
        part = list(part.values())
    if isinstance(part, list):
        for one in part:
            yield from holders_of(secret, one)


def test_in_a_pipeline_the_values_are_those_of_its_system(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert invoke(["kube", "render", "github-actions", *PLACES, "-P", "npm_token"]) == 0
    (_, _, build, push) = yaml.safe_load(capsys.readouterr().out)["jobs"]["build"]["steps"]
    assert build["env"] == {"npm_token": "${{ secrets.NPM_TOKEN }}"}
    assert "npm_token" not in push["env"]
    level = ("--pod-security", "baseline", "-P", "A")
    assert invoke(["kube", "render", "gitlab-ci", *PLACES, *TOOL, *level]) == 0
    assert "--parameter=A " in capsys.readouterr().out
    for kind, tool in (("gitlab-ci", TOOL), ("github-actions", ())):
        more = (*level, *tool, "--build-secret", "x")
        assert invoke(["kube", "render", kind, *PLACES, *more]) == 2
        assert "-P NAME and --build-env NAME take" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "value", "is_secret"),
    [
        ("TOKEN", "x", True), ("GITHUB_TOKEN", "ghp", True), ("DB_PASSWORD", "1234", True),
        ("apiKey", "abc", True), ("AWS_SECRET_ACCESS_KEY", "a", True), ("PIN", "4711", True),
        ("DB_PASS", "x", True), ("DBPASSWORD", "x", True), ("AUTHTOKEN", "x", True),
        ("AUTH_HEADER", "Bearer abc", True), ("MAX_TOKENS", "4096", False),
        ("BYPASS", "x", False), ("TOKENIZER", "x", False),
        ("MYSQL_PWD", "root", True), ("PASSPHRASE", "a b", True), ("SSH_KEY", "ssh-rsa", True),
        ("TOKEN_LIMIT", "4096", False), ("PASSWORD_FILE", "x", False), ("PWD", "here", False),
        ("KEYBOARD", "de", False), ("AUTHOR", "me", False), ("COMPASS", "north", False),
        ("SECRET", "", False), ("USE_TOKEN", "true", False), ("TOKEN", "/run/secrets/x", False),
        ("MONKEY_KEY", "a", False), ("", "a", False), ("___", "a", False),
    ],
)  # fmt: skip
def test_a_secret_is_known_by_its_name(name: str, value: str, is_secret: bool) -> None:
    assert looks_secret(name, value) is is_secret


def test_a_secret_that_nothing_is_taken_out_of_is_a_mistake(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for options, said in (
        (("--build-secret", "x"), "nothing is taken out of"),
        (("-P", "A"), "is to come out of the environment"),
        (("--build-env", "A=", "--build-secret", "x"), "has its value with it"),
        (("--build-env", "a b", "--build-secret", "x"), "no name of a variable"),
        (("-P", "A", "--build-secret", "X Y"), "--build-secret"),
    ):
        assert invoke(["kube", "render", "job", *PLACES, *TOOL, *options]) == 2
        assert said in capsys.readouterr().err


def test_a_builder_that_cannot_be_asked_of_its_secrets_is_no_yes(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCIS2I_ROOT", str(tmp_path / "store"))
    places = (PLACES[0], "127.0.0.1:1/b:1", PLACES[2])
    code = invoke(["kube", "render", "job", *places, *TOOL, "-P", "A=1", "--no-tls-verify"])
    assert code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "cannot be asked whether `A` is a secret" in said.err
    assert "-P A" in said.err.partition("hint: ")[2]


def test_what_the_builder_declares_a_secret_is_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OCIS2I_ROOT", str(tmp_path / "store"))
    declared = {"version": 1, "parameters": [{"name": "LICENCE", "secret": True}, {"name": "A"}]}
    with FakeRegistry() as registry:
        labels = {"io.ocis2i.parameters": json.dumps(declared)}
        make_layout(tmp_path / "b", "b:1", [Layer()], {"Labels": labels})
        places = (PLACES[0], registry.put_layout("b", "1", tmp_path / "b"), PLACES[2])
        words = ["kube", "render", "job", *places, *TOOL, "--no-tls-verify", "-P"]
        assert invoke([*words, "A=1"]) == 0
        assert "--parameter=A=1" in capsys.readouterr().out
        assert invoke([*words, f"LICENCE={CANARY}"]) == 2
        said = capsys.readouterr()
    assert said.out == ""
    assert "`LICENCE` of -P is a secret for the builder" in said.err
    assert CANARY not in said.err
    assert "-P LICENCE --build-secret" in said.err


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("job", ("--keep-job",)), ("job", ("--context", "x")), ("argo-template", ("--keep-job",)),
        ("tekton-task", ("--push-secret", "x")), ("tekton-task", ("--deadline", "1h")),
        ("shipwright-strategy", ("--namespace", "x")), ("gitlab-ci", ("--disk", "1Gi")),
        ("gitlab-ci", ("--push-secret", "x")), ("github-actions", ("--tool-image", "r.example/t")),
    ],
)  # fmt: skip
def test_a_flag_that_would_change_nothing_is_refused(
    capsys: pytest.CaptureFixture[str], kind: str, options: tuple[str, ...]
) -> None:
    tool = () if kind == "github-actions" else TOOL
    level = ("--pod-security", "baseline")
    assert invoke(["kube", "render", kind, *PLACES, *tool, *level]) == 0
    capsys.readouterr()
    assert invoke(["kube", "render", kind, *PLACES, *tool, *level, *options]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: {options[0]} " in said.err
    assert "hint: leave it out" in said.err


# --- sources that are one file, and JSON ------------------------------------------------------


@pytest.mark.parametrize("kind", ["job", "argo-template", "tekton-task", "gitlab-ci"])
def test_standard_input_is_nowhere_else(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    level = ("--pod-security", "baseline")
    assert invoke(["kube", "render", kind, "-", *PLACES[1:], *TOOL, *level]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert "standard input is on this host" in said.err


def test_a_pinned_download_is_fetched_in_the_pod(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"https://h.example/app.jar#sha256={'0' * 64}"
    more = ("--source-name", "shop.jar", "--source-type", "file", "--json")
    assert invoke(["kube", "render", "job", url, *PLACES[1:], *TOOL, *more]) == 0
    spec = json.loads(capsys.readouterr().out)["spec"]["template"]["spec"]
    (fetch,) = [one["args"] for one in spec["initContainers"] if one["name"] == "fetch"]
    assert fetch[-2] == url
    assert {"--source-name=shop.jar", "--source-type=file"} <= set(fetch)


def test_json_is_the_same_manifest(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert invoke(["kube", "render", "job", *PLACES, *TOOL]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert invoke(["kube", "render", "job", *PLACES, *TOOL, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == written
    path = tmp_path / "job.json"
    assert invoke(["kube", "render", "job", *PLACES, *TOOL, "--json", "--file", str(path)]) == 0
    assert capsys.readouterr().out == ""
    assert json.loads(path.read_text()) == written
    assert invoke(["kube", "render", "pod", *PLACES, *TOOL, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["reason"] == "InvalidUsage"


def test_without_pyyaml_the_command_to_get_it_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert invoke(["kube", "render", "job", *PLACES, *TOOL]) == 2
    assert "hint: pip install 'ocis2i[kube]'" in capsys.readouterr().err
