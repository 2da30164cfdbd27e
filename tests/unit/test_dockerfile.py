"""The text of an exported build: what stands in it, and what no input can make it say."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.container_options import HostEntry
from ocis2i.dockerfile import (
    LINE_LIMIT,
    MARK,
    Artifact,
    DockerfilePlan,
    Names,
    RuntimeStage,
    SecretFile,
    build_command,
    build_flags,
    image_name,
    owner,
    render,
)
from ocis2i.errors import UsageError
from ocis2i.manifest import RuntimeConfig
from ocis2i.runner import BindMount
from ocis2i.s2i import Start
from ocis2i.scripts import ScriptPlace, ScriptSet

INSTRUCTIONS = ("ARG", "CMD", "COPY", "ENTRYPOINT", "ENV", "FROM", "LABEL", "RUN", "USER")


def script(name: str, *, taken: bool = False, directory: str = "/usr/libexec/s2i") -> ScriptPlace:
    if taken:
        directory = "/tmp/scripts"
        return ScriptPlace(name, "source", f"x/{name}", f"{directory}/{name}", Path(f"/x/{name}"))
    return ScriptPlace(name, "image", f"image://{directory}/{name}", f"{directory}/{name}")


def scripts(*places: ScriptPlace) -> ScriptSet:
    return ScriptSet({place.name: place for place in places})


PLAN = DockerfilePlan(
    builder="docker.io/library/builder:latest",
    base=RuntimeConfig(user="1001"),
    scripts=scripts(script("assemble"), script("run", taken=True)),
    assemble_user="1001",
)


def body(plan: DockerfilePlan) -> list[str]:
    """The lines that are no comment and not empty."""
    return [line for line in render(plan).split("\n") if line and not line.startswith("#")]


def one(plan: DockerfilePlan, instruction: str) -> str:
    """The only line with an instruction."""
    (line,) = (line for line in body(plan) if line.startswith(instruction))
    return line


# --- the whole ---------------------------------------------------------------------------------


def test_plain_build() -> None:
    plan = replace(PLAN, tag="app:1", environment={"B": "2", "A": "1"}, labels={"z": "1", "a": "2"})
    assert render(plan).split("\n") == [
        "# Made by ocis2i (experimental): the steps of an S2I build. In this directory, run",
        "#",
        "#   buildah bud --identity-label=false --file Dockerfile --tag app:1 .",
        "#",
        "# Labels that assemble writes to /tmp/.s2i/image_metadata.json do not reach the image.",
        "",
        "FROM docker.io/library/builder:latest",
        'ENV B="2" \\',
        '    A="1"',
        'COPY --chown=1001:0 ["upload/src", "/tmp/src"]',
        'COPY --chown=1001:0 ["upload/scripts", "/tmp/scripts"]',
        'RUN ["/usr/libexec/s2i/assemble"]',
        'LABEL "a"="2" \\',
        '      "z"="1"',
        'CMD ["/tmp/scripts/run"]',
        "",
    ]


def test_head_is_the_mark_and_no_parser_directive() -> None:
    first = render(PLAN).split("\n")[0]
    assert first.startswith(MARK)
    assert not re.match(r"#\s*[a-zA-Z][a-zA-Z0-9]*\s*=", first)


def test_runtime_image_is_a_second_stage() -> None:
    runtime = RuntimeStage(
        "docker.io/library/runtime:latest",
        RuntimeConfig(user="5", entrypoint=("/e",)),
        (Artifact("/opt/out", "/srv/bin/out"), Artifact("/opt/a", "/srv/a")),
        scripts(script("run", directory="/r"), script("assemble-runtime", taken=True)),
        user="7:8",
    )
    plan = replace(PLAN, runtime=runtime, environment={"A": "1"}, labels={"l": "1"})
    assert body(plan) == [
        "FROM docker.io/library/builder:latest AS builder",
        'ENV A="1"',
        'COPY --chown=1001:0 ["upload/src", "/tmp/src"]',
        'COPY --chown=1001:0 ["upload/scripts", "/tmp/scripts"]',
        'RUN ["/usr/libexec/s2i/assemble"]',
        "USER 0",
        'RUN ["chmod", "-R", "a+rX,u+w,go-w,ug-s,-t", "/opt/out", "/opt/a"]',
        "FROM docker.io/library/runtime:latest",
        'ENV A="1"',
        'COPY --chown=7:8 ["upload/runtime-scripts/assemble-runtime", '
        '"/tmp/scripts/assemble-runtime"]',
        'COPY --from=builder --chown=7:8 ["/opt/out", "/srv/bin/out"]',
        'COPY --from=builder --chown=7:8 ["/opt/a", "/srv/a"]',
        "USER 7:8",
        'RUN ["/tmp/scripts/assemble-runtime"]',
        "USER 5",
        'LABEL "l"="1"',
        "ENTRYPOINT []",
        'CMD ["/r/run"]',
    ]


def test_scripts_that_only_a_shell_can_start_are_started_by_one() -> None:
    places = scripts(script("assemble", taken=True), script("run", taken=True))
    plan = replace(PLAN, scripts=places, shell_scripts=frozenset({"assemble", "run"}))
    assert 'RUN ["/bin/sh", "/tmp/scripts/assemble"]' in body(plan)
    assert 'CMD ["/tmp/scripts/run"]' in body(plan)
    runtime = RuntimeStage(
        "runtime",
        RuntimeConfig(),
        (Artifact("/a", "/a"),),
        scripts(script("run"), script("assemble-runtime", taken=True)),
    )
    plan = replace(PLAN, runtime=runtime, shell_scripts=frozenset({"assemble-runtime"}))
    assert 'RUN ["/bin/sh", "/tmp/scripts/assemble-runtime"]' in body(plan)
    assert 'RUN ["/usr/libexec/s2i/assemble"]' in body(plan)


def test_incremental_build_begins_with_the_previous_image() -> None:
    saves = scripts(*PLAN.scripts.places.values(), script("save-artifacts", taken=True))
    lines = body(replace(PLAN, scripts=saves, previous="app:1", platform="linux/arm64"))
    assert lines[:4] == [
        "ARG PREVIOUS=app:1",
        "FROM --platform=linux/arm64 ${PREVIOUS} AS cached",
        'COPY --chown=1001:0 ["upload/scripts/save-artifacts", "/tmp/scripts/save-artifacts"]',
        "USER 1001",
    ]
    assert lines[5] == "FROM --platform=linux/arm64 docker.io/library/builder:latest"
    assert (
        'COPY --from=cached --chown=1001:0 ["/tmp/ocis2i-saved/artifacts", "/tmp/artifacts"]'
        in lines
    )


def test_without_save_artifacts_there_is_no_previous_image() -> None:
    assert body(replace(PLAN, previous="app:1")) == body(PLAN)


# --- users, entrypoint, destination --------------------------------------------------------------


@pytest.mark.parametrize(
    ("user", "expected"),
    [
        ("", "0:0"),
        ("0", "0:0"),
        ("1001", "1001:0"),
        ("1001:7", "1001:7"),
        ("default", "default"),
        ("default:users", "default:users"),
        (":users", None),
        ("a b", None),
        ("a\nRUN x", None),
        ("$USER", None),
        ("a:b:c", None),
    ],
)
def test_owner_of_what_is_copied(user: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(UsageError):
            owner(user)
    else:
        assert owner(user) == expected


def test_user_of_the_builder_comes_back() -> None:
    users = [line for line in body(replace(PLAN, assemble_user="0")) if line.startswith("USER")]
    assert users == ["USER 0", "USER 1001"]


def test_builder_without_a_user_has_none_again() -> None:
    plan = replace(PLAN, base=RuntimeConfig())
    users = [line for line in body(plan) if line.startswith("USER")]
    assert users == ["USER 1001", 'USER ""']


def test_root_by_default_needs_no_word() -> None:
    plan = replace(PLAN, base=RuntimeConfig(), assemble_user="")
    assert not [line for line in body(plan) if line.startswith("USER")]


def test_entrypoint_is_cleared_kept_or_run() -> None:
    plan = replace(PLAN, base=replace(PLAN.base, entrypoint=("/e", "x")))
    assert one(plan, "ENTRYPOINT") == "ENTRYPOINT []"
    kept = replace(plan, keep_entrypoint=True, via_entrypoint=True)
    assert not [line for line in body(kept) if line.startswith("ENTRYPOINT")]
    assert one(kept, "RUN") == 'RUN ["/e", "x", "/usr/libexec/s2i/assemble"]'


def test_run_script_stands_where_it_is_wanted_with_its_arguments() -> None:
    words = ("a b", "", "x\ny", '$HOME "q" \\', "ü\u2028")
    told = replace(PLAN, start=Start("cmd", words))
    (line,) = [line for line in body(told) if line.startswith("CMD")]
    assert json.loads(line.removeprefix("CMD ")) == ["/tmp/scripts/run", *words]
    started = replace(PLAN, base=replace(PLAN.base, entrypoint=("/e",)), start=Start("entrypoint"))
    assert one(started, "ENTRYPOINT") == 'ENTRYPOINT ["/tmp/scripts/run"]'
    assert one(started, "CMD") == "CMD []"


def test_destination_is_the_users_and_what_is_above_it_is_roots() -> None:
    copies = [line for line in body(replace(PLAN, destination="/a/$b/c")) if line[:4] == "COPY"]
    assert copies[:3] == [
        'COPY --chown=0:0 ["upload/empty", "/a/\\\\$b"]',
        'COPY --chown=1001:0 ["upload/empty", "/a/\\\\$b/c"]',
        'COPY --chown=1001:0 ["upload/src", "/a/\\\\$b/c/src"]',
    ]


# --- secrets -------------------------------------------------------------------------------------

TOKEN = SecretFile("injection-1", "/home/me/my token", "/opt/token")


def test_injected_files_are_secrets_of_one_run() -> None:
    names = (Names("upload/injections/1/file", "/opt/token"),)
    plan = replace(PLAN, secret_files=(TOKEN,), names=names)
    lines = body(plan)
    copy = 'COPY --chown=1001:0 ["upload/injections/1/file", "/opt/token"]'
    run = one(plan, "RUN")
    assert run == (
        "RUN --mount=type=secret,id=injection-1,target=/opt/token,required=true,mode=0666,"
        'uid=1001,gid=0 ["/usr/libexec/s2i/assemble"]'
    )
    assert [line for line in lines if line in (copy, run)] == [copy, run, copy]


def test_owner_of_a_secret_is_left_out_for_a_name() -> None:
    run = one(replace(PLAN, secret_files=(TOKEN,), assemble_user="default"), "RUN")
    assert "uid" not in run
    assert "mode=0666" in run


def test_build_variables_are_secrets_too() -> None:
    plan = replace(PLAN, secret_variables=("TOKEN",))
    words = json.loads(one(plan, "RUN").partition("mode=0444,uid=1001,gid=0 ")[2])
    assert words[:2] == ["/bin/sh", "-c"]
    assert words[2] == ('TOKEN="$(cat /run/secrets/build-env-TOKEN)" && export TOKEN && exec "$@"')
    assert words[3:] == ["sh", "/usr/libexec/s2i/assemble"]


@pytest.mark.parametrize("name", ["A-B", "1A", "", "A=$(x)", "A\n"])
def test_build_variable_must_have_a_name_that_a_shell_takes(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be set by a shell"):
        render(replace(PLAN, secret_variables=(name,)))


@pytest.mark.parametrize("target", ["/a,b", "/a b", "/a\nb", '/a"', "a", "/$HOME"])
def test_secret_at_a_place_that_no_mount_can_have_is_refused(target: str) -> None:
    with pytest.raises(UsageError, match="cannot be mounted"):
        render(replace(PLAN, secret_files=(replace(TOKEN, target=target),)))


# --- the command ---------------------------------------------------------------------------------


def test_command_has_all_that_the_text_cannot_say() -> None:
    mounts = (BindMount("/h", "/c", read_only=True), BindMount("/i", "/d"))
    hosts = (HostEntry("db", "::1"),)
    plan = replace(
        PLAN,
        base=RuntimeConfig(extra={"Healthcheck": {}}),
        name="My file",
        tag="app",
        flags=build_flags(mounts, {"CAP_KILL", "CAP_CHOWN"}, "none", hosts),
        secret_files=(TOKEN,),
        secret_variables=("A",),
    )
    assert shlex.split(build_command(plan)) == [
        *("buildah", "bud", "--identity-label=false", "--format", "docker"),
        *("--volume", "/h:/c:ro", "--volume", "/i:/d"),
        *("--cap-drop", "CAP_CHOWN", "--cap-drop", "CAP_KILL", "--network", "none"),
        *("--add-host", "db:::1"),
        *("--secret", "id=injection-1,src=/home/me/my token"),
        *("--secret", "id=build-env-A,env=A"),
        *("--file", "My file", "--tag", "app", "."),
    ]
    assert build_command(plan) in render(plan)


def test_network_of_the_host_needs_no_word() -> None:
    assert build_flags() == ()


# --- hostile and impossible values ---------------------------------------------------------------


def unquote(text: str) -> Iterator[str]:
    """Words in double quotes as Docker's parser reads them (`shell/lex.go`)."""
    for quoted in re.findall(r'"((?:\\.|[^"\\])*)"', text, re.DOTALL):
        assert not re.search(r"(?<!\\)(?:\\\\)*\$", quoted), "an unescaped dollar sign"
        yield re.sub(r"\\([\"$\\])", r"\1", quoted)


LINE = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"))


@given(st.dictionaries(LINE.filter(bool), LINE, min_size=1, max_size=4))
def test_labels_read_back_as_they_were(labels: dict[str, str]) -> None:
    text = "\n".join(body_of_label(replace(PLAN, labels=labels)))
    words = list(unquote(text))
    assert dict(zip(words[::2], words[1::2], strict=True)) == labels
    assert words[::2] == sorted(labels)


def body_of_label(plan: DockerfilePlan) -> list[str]:
    text = render(plan)
    begin = text.index("\nLABEL ") + 1
    return text[begin : text.rindex("\nCMD ")].split("\n")


@given(
    st.fixed_dictionaries(
        {
            "builder": st.text(),
            "destination": st.text(),
            "assemble_user": st.text(),
            "tag": st.text(),
            "platform": st.text(),
            "previous": st.text(),
            "name": st.text(),
        }
    ),
    st.sampled_from(["builder", "destination", "assemble_user", "tag", "platform", "previous"]),
    st.text() | st.sampled_from(["x\nRUN evil", "x\\", "x\rRUN evil", "x\u2028RUN evil", "x RUN"]),
)
def test_no_value_begins_an_instruction(values: dict[str, str], field: str, text: str) -> None:
    """One field at a time is strange; the text stays of its few instructions, or there is none."""
    saves = scripts(*PLAN.scripts.places.values(), script("save-artifacts"))
    plan = replace(PLAN, scripts=saves, previous="app")
    for change in ({field: text}, values):
        try:
            rendered = render(replace(plan, **change))  # type: ignore[arg-type]
        except UsageError:
            continue
        lines = [line for line in rendered.split("\n") if line and line[0] != "#"]
        assert all(line.startswith(INSTRUCTIONS) for line in lines)
        assert sum(line.startswith("RUN") for line in lines) == 2
        assert "\r" not in rendered


@pytest.mark.parametrize("break_", ["\n", "\r", "\0"])
def test_line_breaks_are_refused(break_: str) -> None:
    for plan in (
        replace(PLAN, labels={"l": f"a{break_}b"}),
        replace(PLAN, labels={f"l{break_}": ""}),
        replace(PLAN, environment={"A": f"a{break_}b"}),
    ):
        with pytest.raises(UsageError, match="line break"):
            render(plan)


def test_too_long_a_line_is_refused() -> None:
    assert render(replace(PLAN, environment={"A": "x" * (LINE_LIMIT - 10)}))
    with pytest.raises(UsageError, match="bytes"):
        render(replace(PLAN, environment={"A": "é" * (LINE_LIMIT // 2)}))


def test_variable_with_a_strange_name_is_quoted() -> None:
    assert one(replace(PLAN, environment={"export D": "1"}), "ENV") == 'ENV "export D"="1"'


@pytest.mark.parametrize("name", ["", "a b", "a$b", "oci:/a/b\n", 'a"', "oci:/é"])
def test_image_that_from_cannot_name_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="cannot be written in a Dockerfile"):
        image_name(name)
