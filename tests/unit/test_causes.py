"""What a script's exit code and last lines give away, in words."""

from __future__ import annotations

from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.causes import Circumstances, MemoryKill, describe_exit, find_cause
from ocis2i.events import LastLines, ScriptOutput, silent
from ocis2i.limits import Kind, Limits
from ocis2i.runner import Network

PATH = "/usr/bin:/bin"
SCRIPT = "/tmp/scripts/assemble"


def around(
    network: Network = "host",
    limits: Limits | None = None,
    limit: Kind | None = None,
    memory_kill: MemoryKill = "unknown",
    *,
    is_root: bool = False,
) -> Circumstances:
    return Circumstances(
        SCRIPT,
        user="1001:0",
        is_root=is_root,
        path=PATH,
        network=network,
        limits=limits or Limits(),
        limit=limit,
        memory_kill=memory_kill,
    )


@pytest.mark.parametrize(
    ("code", "line"),
    [
        (127, f"{SCRIPT}: line 3: go: not found"),
        (127, f"{SCRIPT}: 3: go: not found"),
        (127, "x: line 3: go: command not found"),
        (127, "env: can't execute 'go': No such file or directory"),
        (127, "/usr/bin/env: \u2018go\u2019: No such file or directory"),
        (127, "exec: go: not found"),
        (127, "zsh: command not found: go"),
        (2, "make: go: No such file or directory"),
        (2, "make: go: Command not found"),
        (1, f"{SCRIPT}: line 3: go: not found"),
    ],
)
def test_the_missing_command_is_named(code: int, line: str) -> None:
    cause = find_cause(code, ["before", line, "make: *** [all] Error 127"], around())
    assert (
        cause.meaning
        == f"the command `go` is missing in the builder, in no directory of PATH ({PATH})"
    )
    assert cause.way_out
    assert "take a builder that has `go`" in cause.way_out


@pytest.mark.parametrize(
    ("code", "line", "meaning", "way_out"),
    [
        (127, "sh: 1: ./mvnw: not found", "`./mvnw` cannot be started", "first line"),
        (126, "x: ./b.sh: Permission denied", "`./b.sh` is not executable", "chmod +x"),
        (
            126,
            "/a/b: cannot execute binary file: Exec format error",
            "`/a/b` is made for another processor",
            "--platform",
        ),
        (127, "./p: line 1: \x7fELF\x02\x01: not found", "`./p` is made for another", "--platform"),
        (2, "/s: 1: ELF\x02: not found", "`/s` is made for another processor", "--platform"),
        (126, "Exec format error", "a program in it is made for another", "--platform"),
        (
            126,
            "./x: /usr/bin/perl9: bad interpreter: No such file",
            "`/usr/bin/perl9`",
            "that line",
        ),
        (127, "x: line 2: $'\\r': command not found", "lines that end with \\r\\n", "dos2unix"),
        (127, "x: line 2: foo\r: not found", "lines that end with \\r\\n", "dos2unix"),
        (
            1,
            "mkdir: can't create directory '/var/x': Permission denied",
            "`/var/x` is not for 1001:0",
            "--assemble-user 0",
        ),
        (
            1,
            "Error: EACCES: permission denied, mkdir '/opt/y'",
            "`/opt/y` is not for 1001:0",
            "chgrp",
        ),
        (
            1,
            "PermissionError: [Errno 13] Permission denied: '/opt/a b'",
            "`/opt/a b` is not",
            "chgrp",
        ),
        (1, "git@host: Permission denied (publickey).", "wants an SSH key", "--inject"),
        (1, "cp: write error: No space left on device", "the disk is full", "--root"),
        (1, "tee: Disk quota exceeded", "quota", "--root"),
        (1, "touch: /etc/x: Read-only file system", "`/etc/x` is on a read-only", ":ro"),
        (
            60,
            "curl: (60) SSL certificate problem: unable to get local issuer certificate",
            "not trusted",
            "--host-mirrors",
        ),
        (1, "x509: certificate signed by unknown authority", "not trusted", "--host-mirrors"),
        (1, "PKIX path building failed", "not trusted", "--host-mirrors"),
        (1, "npm ERR! code CERT_HAS_EXPIRED", "has expired", "clock"),
        (1, "java.lang.OutOfMemoryError: Java heap space", "no more memory", "JAVA_TOOL_OPTIONS"),
        (
            1,
            "sh: can't fork: Resource temporarily unavailable",
            "no more processes",
            "--pids-limit",
        ),
        (1, 'sudo: The "no new privileges" flag is set', "sudo", "--assemble-user 0"),
        (
            22,
            "curl: 403 Forbidden by ocis2i, add --allow-host a.example:443",
            "`a.example:443`",
            "add --allow-host a.example:443",
        ),
        (1, "connect: Network is unreachable", "cannot be reached", "--host-mirrors"),
    ],
)
def test_a_well_known_complaint_has_a_way_out(
    code: int, line: str, meaning: str, way_out: str
) -> None:
    cause = find_cause(code, [line], around())
    assert meaning in cause.meaning
    assert way_out in (cause.way_out or "")


@pytest.mark.parametrize(
    ("network", "meaning", "way_out"),
    [
        ("none", "the build has no network (--network none)", "--network proxy or host"),
        ("proxy", "only programs that use the proxy", "$https_proxy"),
        ("host", "this host's name servers", "--add-host"),
    ],
)
@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("wget: bad address 'pypi.example'", "pypi.example"),
        ("curl: (6) Could not resolve host: pypi.example", "pypi.example"),
        ("Temporary failure resolving 'pypi.example'", "pypi.example"),
        ("dial tcp: lookup pypi.example on 10.0.0.1:53: no such host", "pypi.example"),
        ("getaddrinfo ENOTFOUND pypi.example", "pypi.example"),
        ("java.net.UnknownHostException: pypi.example", "pypi.example"),
        ("[Errno -3] Temporary failure in name resolution", "a host's name"),
    ],
)
def test_a_name_that_is_not_resolved_is_told_by_the_network(
    network: Network, meaning: str, way_out: str, line: str, host: str
) -> None:
    cause = find_cause(1, [line], around(network))
    assert host in cause.meaning
    assert meaning in cause.meaning
    assert way_out in (cause.way_out or "")


@pytest.mark.parametrize(
    "line", ["page: not found", "npm ERR! 404 Not Found", "BUILD FAILED", "module: not found"]
)
def test_what_only_looks_like_it_is_no_cause(line: str) -> None:
    cause = find_cause(1, [line], around())
    assert cause.meaning == "the script says itself that it failed; its output says more"
    assert describe_exit(1, [line], around()) == "exit code 1"


@pytest.mark.parametrize(
    ("kind", "limits", "flag"),
    [
        ("memory", Limits(memory_bytes=64 << 20), "64 MiB of --memory"),
        ("tasks", Limits(tasks=20), "20 processes and threads of --pids-limit"),
        ("time", Limits(seconds=90), "90 seconds of --timeout"),
        ("output", Limits(output_bytes=1 << 20), "1 MiB of --output-limit"),
    ],
)
def test_a_limit_that_was_reached_is_the_cause(kind: Kind, limits: Limits, flag: str) -> None:
    cause = find_cause(137, ["x: go: not found"], around(limits=limits, limit=kind))
    assert flag in cause.meaning
    assert f"raise --{flag.rpartition('--')[2]}" in (cause.way_out or "")


@pytest.mark.parametrize(
    ("kill", "limits", "meaning"),
    [
        ("cgroup", Limits(), "by the kernel for want of memory: the container or cgroup"),
        ("machine", Limits(), "while this machine had too little memory"),
        ("none", Limits(), "not by ocis2i: no limit of ours"),
        ("none", Limits(memory_bytes=1 << 30), "the 1 GiB of --memory were not reached"),
        ("unknown", Limits(), "by the kernel for want of memory, or by a `kill -9`"),
    ],
)
def test_137_says_who_killed(kill: MemoryKill, limits: Limits, meaning: str) -> None:
    said = describe_exit(137, ["Killed"], around(limits=limits, memory_kill=kill))
    assert said.startswith("exit code 137: it was killed")
    assert meaning in said
    assert find_cause(137, [], around(limits=limits, memory_kill=kill)).way_out


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (126, "not executable"),
        (127, f"missing in the builder (PATH is {PATH})"),
        (132, "SIGILL"),
        (134, "SIGABRT"),
        (139, "SIGSEGV, segmentation fault"),
        (141, "SIGPIPE"),
        (143, "SIGTERM"),
        (159, "SIGSYS"),
    ],
)
def test_exit_codes_have_words(code: int, words: str) -> None:
    assert words in find_cause(code, [], around()).meaning


def test_root_is_not_told_to_become_root() -> None:
    cause = find_cause(1, ["mount: permission denied"], around(is_root=True))
    assert "even to root" in cause.meaning
    assert "--assemble-user" not in (cause.way_out or "")


@given(st.integers(1, 255), st.lists(st.text(max_size=300), max_size=20))
def test_every_end_has_a_meaning(code: int, tail: list[str]) -> None:
    assert find_cause(code, tail, around()).meaning
    assert describe_exit(code, tail).startswith(f"exit code {code}")


# --- the last lines of two pipes ------------------------------------------------------------------


def printed(*lines: tuple[Literal["stdout", "stderr"], str]) -> tuple[str, ...]:
    tail = LastLines(silent)
    for stream, line in lines:
        tail(ScriptOutput(stream, line))
    return tail.lines


def test_a_complaint_is_last_though_the_other_pipe_was_longer() -> None:
    rest: list[tuple[Literal["stdout"], str]]
    rest = [("stdout", f"line {number}") for number in range(300)]
    lines = printed(*rest[:200], ("stderr", "mvn: not found"), *rest[200:])
    assert lines[-2:] == ("line 299", "mvn: not found")
    assert len(lines) == 20


def test_lines_keep_their_order_where_all_of_them_are_shown() -> None:
    lines = printed(("stderr", "one"), ("stdout", "two"), ("stderr", "three"), ("stdout", "four"))
    assert lines == ("one", "two", "three", "four")


def test_a_complaint_of_long_ago_is_not_the_cause() -> None:
    rest: list[tuple[Literal["stdout"], str]] = [("stdout", "x" * 1000)] * 200
    lines = printed(("stderr", "early: not found"), *rest)
    assert "early: not found" not in lines
