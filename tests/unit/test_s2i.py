"""The S2I contract as values."""

from __future__ import annotations

import pytest

from ocis2i.errors import ImageError, PolicyError, ScriptsError, SourceError, UsageError
from ocis2i.manifest import ImageConfig, RuntimeConfig
from ocis2i.reference import Platform
from ocis2i.s2i import (
    Contract,
    Identity,
    SourceInfo,
    UserSpec,
    check_label_size,
    generated_labels,
    image_directory,
    merge_environment,
    parse_environment_file,
    parse_image_metadata,
    parse_user,
    parse_variable,
    read_contract,
    redact_url,
    resolve_user,
    result_config,
    user_flag,
)


def contract_of(
    labels: dict[str, str] | None = None, env: tuple[str, ...] = (), working_dir: str = ""
) -> Contract:
    runtime = RuntimeConfig(labels=labels or {}, env=env, working_dir=working_dir)
    return read_contract(ImageConfig(Platform("amd64"), runtime))


# --- contract ---------------------------------------------------------------------------------


def test_image_without_labels_promises_only_the_default_destination() -> None:
    assert contract_of() == Contract(None, "/tmp", None, ())


def test_current_labels_win_over_old_ones_and_variables() -> None:
    contract = contract_of(
        {
            "io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i",
            "io.s2i.scripts-url": "image:///old",
            "io.openshift.s2i.destination": "/opt/app",
            "io.openshift.s2i.assemble-user": "1001:0",
        },
        ("STI_SCRIPTS_URL=image:///older", "STI_LOCATION=/older"),
    )
    assert contract == Contract("image:///usr/libexec/s2i", "/opt/app", "1001:0", ())


def test_old_labels_count_and_are_reported() -> None:
    contract = contract_of({"io.s2i.scripts-url": "image:///x", "io.s2i.destination": "/d"})
    assert (contract.scripts_url, contract.destination) == ("image:///x", "/d")
    assert len(contract.deprecated) == 2
    assert "io.s2i.scripts-url" in contract.deprecated[0]


def test_variables_count_last_and_are_trimmed() -> None:
    contract = contract_of(env=("STI_SCRIPTS_URL= image:///x ", "STI_LOCATION=/d"))
    assert (contract.scripts_url, contract.destination) == ("image:///x", "/d")
    assert len(contract.deprecated) == 2


@pytest.mark.parametrize(
    "written",
    [
        "image:///usr/s2i",
        "image:///usr/s2i/",
        "image://usr/s2i",
        "image:////usr//s2i",
        "IMAGE:///usr/s2i",
    ],
)
def test_image_urls_are_cleaned_to_an_absolute_directory(written: str) -> None:
    assert contract_of({"io.openshift.s2i.scripts-url": written}).scripts_url == (
        "image:///usr/s2i"
    )
    assert image_directory(written) == "/usr/s2i"


def test_other_urls_are_kept_as_they_are() -> None:
    url = "https://host/dir/?x=1"
    assert contract_of({"io.openshift.s2i.scripts-url": url}).scripts_url == url
    assert image_directory(url) is None


def test_relative_destination_is_below_the_working_directory() -> None:
    contract = contract_of({"io.openshift.s2i.destination": "in/../up/"}, working_dir="/app")
    assert contract.destination == "/app/up"


# --- environment ------------------------------------------------------------------------------


def test_environment_file_keeps_quotes_and_export_and_trims_both_sides() -> None:
    parsed = parse_environment_file(
        "# comment\nA = 1 \nB='two'\nexport C=3\r\nA=4\n\nD=a=b\n E=5\n"
    )
    assert parsed.values == {"A": "4", "B": "'two'", "export C": "3", "D": "a=b", "E": "5"}
    assert parsed.skipped == ()


def test_environment_file_lists_lines_that_are_no_variable() -> None:
    parsed = parse_environment_file(" # not in the first column\nword\n =x\nA=1\n")
    assert parsed.values == {"A": "1"}
    assert parsed.skipped == ("# not in the first column", "word", "=x")


def test_environment_file_with_nul_is_refused() -> None:
    with pytest.raises(SourceError, match="NUL"):
        parse_environment_file("A=\0")


def test_variable_is_split_at_its_first_equals_sign() -> None:
    assert parse_variable(" A = b=c ") == ("A", "b=c")


@pytest.mark.parametrize(("text", "shown"), [("", ""), ("A", "A"), ("=x", "="), (" =x", "=")])
def test_variable_without_name_or_value_is_refused(text: str, shown: str) -> None:
    with pytest.raises(UsageError, match=f"`{shown}`"):  # the value may be a password
        parse_variable(text)


def test_users_variables_come_first_and_each_name_once() -> None:
    merged = merge_environment(
        ("PATH=/bin", "A=image", "PATH=/usr/bin", "ODD"), {"B": "1", "A": "file"}, {"B": "flag"}
    )
    assert merged == ("B=flag", "A=file", "PATH=/usr/bin", "ODD")


# --- result -----------------------------------------------------------------------------------


def test_result_starts_the_run_script_alone() -> None:
    base = RuntimeConfig(
        user="1001",
        env=("A=1",),
        entrypoint=("/entry",),
        cmd=("old", "words"),
        working_dir="/app",
        labels={"x": "y"},
        volumes=("/data",),
        on_build=("RUN x",),
        extra={
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["NONE"]},
            "Unknown": 1,
            "Shell": ["sh"],
            "StopTimeout": 3,
            "ArgsEscaped": True,
            "Hostname": "h",
            "Domainname": "d",
            "AttachStdin": False,
            "AttachStdout": False,
            "AttachStderr": False,
            "Tty": False,
            "OpenStdin": False,
            "StdinOnce": False,
            "Image": "sha256:1",
        },
    )
    result = result_config(base, run_script="/s2i/run", environment=("B=2",), labels={"l": "v"})
    assert result == RuntimeConfig(
        user="1001",
        env=("B=2",),
        entrypoint=None,
        cmd=("/s2i/run",),
        working_dir="/app",
        labels={"l": "v"},
        volumes=("/data",),
        on_build=(),
        extra={
            "ExposedPorts": {"80/tcp": {}},
            "StopSignal": "SIGINT",
            "Healthcheck": {"Test": ["NONE"]},
            "Unknown": 1,
        },
    )


def test_relative_run_script_is_refused() -> None:
    with pytest.raises(ScriptsError, match="s2i/run"):
        result_config(RuntimeConfig(), run_script="s2i/run", environment=(), labels={})


def test_generated_labels_say_where_the_image_comes_from() -> None:
    info = SourceInfo(
        location="https://me:secret@host/app.git",
        ref="main",
        commit_id="abc",
        author="Ann <ann@x>",
        date="Mon Nov 23 04:09:43 2026 +0000",
        message="one",
        context_dir="sub",
        commit_time=1,
    )
    labels = generated_labels(
        info, builder="docker.io/library/b:latest", tag="out/app:1", description="text"
    )
    assert labels == {
        "io.k8s.description": "text",
        "io.k8s.display-name": "out/app:1",
        "io.openshift.s2i.build.image": "docker.io/library/b:latest",
        "io.openshift.s2i.build.commit.author": "Ann <ann@x>",
        "io.openshift.s2i.build.commit.date": "Mon Nov 23 04:09:43 2026 +0000",
        "io.openshift.s2i.build.commit.id": "abc",
        "io.openshift.s2i.build.commit.ref": "main",
        "io.openshift.s2i.build.commit.message": "one",
        "io.openshift.s2i.build.source-location": "https://host/app.git",
        "io.openshift.s2i.build.source-context-dir": "sub",
    }


def test_labels_without_a_value_are_left_out() -> None:
    assert generated_labels(None, builder="b", application_name="App", tag="t") == {
        "io.k8s.display-name": "App",
        "io.openshift.s2i.build.image": "b",
    }


def test_label_limit_counts_bytes_of_keys_and_values() -> None:
    check_label_size({"k": "v" * 10239})
    with pytest.raises(PolicyError, match="10241 bytes") as caught:
        check_label_size({"k": "ä" * 5120})
    assert "`k`" in (caught.value.hint or "")


def test_image_metadata_gives_labels() -> None:
    data = b'{"labels": [{"a": "1"}, {"b": "2", "a": "3"}]}'
    assert parse_image_metadata(data) == {"a": "3", "b": "2"}


@pytest.mark.parametrize(
    "data",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"labels": {}}',
        b'{"labels": ["x"]}',
        b'{"labels": [{"a": 1}]}',
        b'{"labels": [{"": "x"}]}',
        b" " * (2 << 20),
    ],
)
def test_malformed_image_metadata_is_a_clear_error(data: bytes) -> None:
    with pytest.raises(ImageError, match=r"image_metadata\.json"):
        parse_image_metadata(data)


@pytest.mark.parametrize(
    ("url", "clean"),
    [
        ("https://host/x", "https://host/x"),
        ("https://token@host/x", "https://host/x"),
        ("https://me:p@ss@host/x#main", "https://host/x#main"),
        ("HTTPS://me:pw@host/x", "HTTPS://host/x"),
        ("ssh://git@host/x", "ssh://git@host/x"),
        ("ssh://git:pw@host/x", "ssh://git@host/x"),
        ("git@host:org/x", "git@host:org/x"),
        ("git:pw@host:org/x", "git@host:org/x"),
        ("https://host/x?private_token=abc&a=b", "https://host/x?private_token=redacted&a=b"),
        (
            "fatal: unable to access 'https://me:pw@h/': no",
            "fatal: unable to access 'https://h/': no",
        ),
        ("/a/b@c:d", "/a/b@c:d"),
    ],
)
def test_credentials_leave_urls(url: str, clean: str) -> None:
    assert redact_url(url) == clean


# --- users ------------------------------------------------------------------------------------

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
broken:x:no:0::/:/bin/sh
app:x:1001:0:App:/opt/app:/sbin/nologin
homeless:x:1002:1002::
huge:x:4294967294:0::/:/bin/sh
"""
GROUP = """\
root:x:0:
wheel:x:10:app,root
broken:x:no:app
data:x:20:app
data2:x:20:app
"""


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("app", UserSpec("app")),
        ("1001:0", UserSpec("1001", "0")),
        ("", UserSpec("")),
        (":5", UserSpec("", "5")),
    ],
)
def test_user_and_group_are_told_apart(text: str, spec: UserSpec) -> None:
    assert parse_user(text) == spec


@pytest.mark.parametrize("text", ["a b", "a:b:c", "a:", "a\0", "2147483648", "1:2147483648"])
def test_malformed_user_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="invalid user"):
        parse_user(text)


def test_malformed_user_of_an_image_is_the_fault_of_the_image() -> None:
    with pytest.raises(ImageError, match="the image has an invalid user `a b`"):
        resolve_user("a b", "", "")


def test_malformed_user_of_a_flag_is_named_with_the_flag() -> None:
    with pytest.raises(UsageError, match="--assemble-user: invalid user `a:`"):
        user_flag("a:", "--assemble-user")
    assert user_flag(None, "--assemble-user") is None


@pytest.mark.parametrize(
    ("text", "identity"),
    [
        ("app", Identity(1001, 0, (10, 20), "/opt/app", "app")),
        ("1001", Identity(1001, 0, (10, 20), "/opt/app", "app")),
        ("app:data", Identity(1001, 20, (), "/opt/app", "app")),
        ("app:77", Identity(1001, 77, (), "/opt/app", "app")),
        ("5000", Identity(5000, 0)),
        ("5000:6", Identity(5000, 6)),
        ("homeless", Identity(1002, 1002, (), "/", "homeless")),
        ("", Identity(0, 0, (10,), "/root", "root")),
        ("2147483647", Identity(2147483647, 0)),
    ],
)
def test_users_resolve_by_dockers_rules(text: str, identity: Identity) -> None:
    assert resolve_user(text, PASSWD, GROUP) == identity


def test_image_without_passwd_takes_numbers_and_root() -> None:
    assert resolve_user("7:8", "", "") == Identity(7, 8)
    assert resolve_user("", "", "") == Identity(0, 0)


@pytest.mark.parametrize("text", ["nobody", "broken", "-1", "app:nogroup", "huge"])
def test_unknown_user_or_group_is_an_image_error(text: str) -> None:
    with pytest.raises(ImageError, match=text.partition(":")[2] or text):
        resolve_user(text, PASSWD, GROUP)
