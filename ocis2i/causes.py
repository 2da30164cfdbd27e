"""Why a script failed: its exit code in words, and what the last lines of its output give away."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import field
from typing import Literal, TypeAlias

from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import DEFAULT_TASKS, Kind, Limits, show_seconds, show_size
from ocis2i.runner import Network

# Whose count of processes that were ended for want of memory went up while the script ran: that of
# the cgroup that we are in, or only that of the whole machine. `unknown`: the kernel tells neither.
MemoryKill: TypeAlias = Literal["cgroup", "machine", "none", "unknown"]


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known besides exit code and output.

    `limit` is the one that ocis2i or the kernel ended the script for; `path` its `PATH`.
    """

    script: str
    user: str = "0:0"
    is_root: bool = False
    path: str = ""
    network: Network = "host"
    limits: Limits = field(default_factory=Limits)
    limit: Kind | None = None
    memory_kill: MemoryKill = "unknown"


@dataclass(frozen=True, slots=True)
class Cause:
    """What happened, in words, and what can be done about it."""

    meaning: str
    way_out: str | None = None


def find_cause(code: int, tail: Sequence[str], around: Circumstances) -> Cause:
    """The most likely cause. Pure."""
    if around.limit:
        return _over_limit(around.limit, around.limits)
    for judge in (_from_output, _from_code):
        cause = judge(code, tail, around)
        if cause:
            return cause
    if tail:
        return Cause("the script says itself that it failed; its output says more")
    return Cause("the script says itself that it failed, and nothing else", _TRACE)


_TRACE = "let it say more: `set -x` at its beginning shows each command"


def describe_exit(code: int, tail: Sequence[str] = (), around: Circumstances | None = None) -> str:
    """An exit code in words, as the end of a sentence."""
    known = around or Circumstances("the script")
    cause = None if known.limit else _from_output(code, tail, known) or _from_code(code, (), known)
    return f"exit code {code}" + (f": {cause.meaning}" if cause else "")


# --- by what ended it ---------------------------------------------------------------------------


def _over_limit(kind: Kind, limits: Limits) -> Cause:
    match kind:
        case "memory":
            size = show_size(limits.memory_bytes or 0)
            return Cause(
                f"it was killed: it and what it started used more than the {size} of --memory",
                "raise --memory, or let it do less at once (`make -j1`, a smaller heap)",
            )
        case "tasks":
            return Cause(
                f"it was killed: it had more than the {limits.tasks} processes and threads of "
                "--pids-limit",
                "raise --pids-limit, or let it do less at once",
            )
        case "time":
            return Cause(
                f"it was killed: it took more than the {show_seconds(limits.seconds or 0)} of "
                "--timeout",
                "raise --timeout; what it waited for is in the last lines of its output",
            )
        case "output":
            size = show_size(limits.output_bytes or 0)
            return Cause(
                f"it was killed: it printed more than the {size} of --output-limit",
                "raise --output-limit, or let it print less",
            )


# Signals by number, where a shell or we show them as 128 + number (signal(7)).
_SIGNALS = {
    1: ("it ended by SIGHUP, as if its terminal had gone", None),
    2: ("it ended by SIGINT, as by Ctrl-C", None),
    3: ("it ended by SIGQUIT", None),
    4: (
        "an illegal instruction (SIGILL): a program in the builder is made for a newer processor",
        "take a builder for an older processor, or build on a newer one",
    ),
    6: ("a program gave up by itself (SIGABRT), as after a failed assertion", None),
    7: (
        "a bus error (SIGBUS), often a full disk or /dev/shm under a mapped file",
        "free some space, or put the store on another disk with --root",
    ),
    8: ("an arithmetic error such as a division by zero (SIGFPE)", None),
    11: (
        "a program crashed by a memory fault (SIGSEGV, segmentation fault)",
        "the last command in its output is the one; a stack that is too small looks the same",
    ),
    13: ("it wrote into a pipe that nobody read any more (SIGPIPE)", None),
    15: ("it was terminated (SIGTERM) by somebody, not by ocis2i", None),
    24: ("it used up its time on the processor (SIGXCPU, `ulimit -t`)", None),
    25: ("a file became larger than is allowed (SIGXFSZ, `ulimit -f`)", None),
    31: (
        "it made a system call that is forbidden here (SIGSYS)",
        "--security-opt seccomp=unconfined allows it",
    ),
}


def _from_code(code: int, _: Sequence[str], around: Circumstances) -> Cause | None:
    if code == 126:
        return Cause(
            "something in it is not executable: it lacks the permission, or is made for another "
            "processor",
            "its output says which: `chmod +x` it, or take a builder for this processor "
            "(--platform)",
        )
    if code == 127:
        return Cause(
            "a command that it uses is missing in the builder"
            + (f" (PATH is {around.path})" if around.path else ""),
            "its output says which: take a builder that has it, or correct the script or PATH",
        )
    if code == 128 + 9:
        return _killed(around)
    found = _SIGNALS.get(code - 128)
    return Cause(*found) if found else None


def _killed(around: Circumstances) -> Cause:
    said = "it was killed (SIGKILL)"
    if around.memory_kill == "cgroup":
        return Cause(
            f"{said} by the kernel for want of memory: the container or cgroup that ocis2i is in "
            "has no more",
            "raise that one's limit, or let the script do less at once (`make -j1`, a smaller "
            "heap)",
        )
    if around.memory_kill == "machine":
        return Cause(
            f"{said} while this machine had too little memory: the kernel ended a process then",
            "free some memory, or let the script do less at once (`make -j1`, a smaller heap)",
        )
    if around.memory_kill == "unknown":
        return Cause(
            f"{said}, but not by ocis2i: by the kernel for want of memory, or by a `kill -9`",
            "free some memory, or let the script do less at once (`make -j1`, a smaller heap)",
        )
    limit = around.limits.memory_bytes
    known = f"the {show_size(limit)} of --memory were not reached" if limit else "no limit of ours"
    return Cause(
        f"{said}, but not by ocis2i: {known}, and the kernel ended nothing for want of memory",
        "look for a `kill -9` in it, or for who may end its processes on this machine",
    )


# --- by what it printed -------------------------------------------------------------------------

_Judge: TypeAlias = Callable[[re.Match[str], int, Circumstances], Cause | None]
_QUOTES = str.maketrans(dict.fromkeys("\u2018\u2019\u201c\u201d`", "'"))
_NUMBER = r"[0-9]+"
_WORD = r"['\"]?([^\s:'\"]+)['\"]?"
# What is said to be "not found" and is no command.
_NO_WORDS = frozenset({"command", "not", "sh", "bash", "error", "line", "file", "module", "page"})


def _missing(found: re.Match[str], code: int, around: Circumstances) -> Cause | None:
    name = next((one for one in found.groups() if one), "")
    if not name or name.lower() in _NO_WORDS or (code != 127 and "/" in name):
        return None
    if name.endswith("\r") or name == "$\\r":
        return _carriage_return(found, code, around)
    if "/" in name:
        return Cause(
            f"`{name}` cannot be started: it, or the interpreter in its first line, is missing in "
            "the builder",
            "look at its first line and at its path, or take a builder that has what it needs",
        )
    where = f", in no directory of PATH ({around.path})" if around.path else ""
    return Cause(
        f"the command `{name}` is missing in the builder{where}",
        f"take a builder that has `{name}`, let assemble install it, or correct the script or PATH",
    )


def _surely_missing(found: re.Match[str], code: int, around: Circumstances) -> Cause | None:
    return _missing(found, code, around) if code == 127 else None


def _bad_interpreter(found: re.Match[str], _: int, __: Circumstances) -> Cause:
    script, program = found[1].rpartition(" ")[2], found[2]
    if program.endswith(("\r", "^M", "\\r")):
        return _CARRIAGE_RETURN
    return Cause(
        f"`{script}` names the interpreter `{program}` in its first line, which is missing in the "
        "builder",
        "change that line, or take a builder that has it",
    )


_CARRIAGE_RETURN = Cause(
    "a script has lines that end with \\r\\n, and the shell takes the \\r for a part of its words",
    "let its lines end with \\n (`dos2unix`, `git config core.autocrlf input`)",
)


def _carriage_return(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return _CARRIAGE_RETURN


def _no_space(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return Cause(
        "the disk is full (no space left on device)",
        "free some space (`ocis2i prune`), or put the store on another disk with --root",
    )


def _quota(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return Cause(
        "this user's disk quota is used up",
        "free some space (`ocis2i prune`), or put the store on another disk with --root",
    )


def _other_processor(found: re.Match[str], _: int, __: Circumstances) -> Cause:
    path = next((one for one in found.groups() if one), "") or _path_before(found)
    what = f"`{path}`" if path else "a program in it"
    return Cause(
        f"{what} is made for another processor (exec format error)",
        "take a builder for this machine's processor (--platform), or rebuild that program",
    )


def _no_new_privileges(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return Cause(
        "it uses a program that becomes another user (sudo, su), and that is switched off",
        "run assemble as root with --assemble-user 0; --security-opt no-new-privileges=false "
        "allows such programs",
    )


def _host_refused(found: re.Match[str], _: int, __: Circumstances) -> Cause:
    return Cause(
        f"`{found[1]}` is not among the hosts that --network proxy lets it reach",
        f"add --allow-host {found[1]}",
    )


def _no_name(found: re.Match[str], _: int, around: Circumstances) -> Cause:
    host = next((one.rstrip(".,;)'\"") for one in found.groups() if one), "")
    what = f"the host `{host}`" if host else "a host's name"
    if around.network == "none":
        return Cause(
            f"{what} cannot be resolved: the build has no network (--network none)",
            "choose --network proxy or host, or put what it fetches into the source or builder",
        )
    if around.network == "proxy":
        return Cause(
            f"{what} cannot be resolved: with --network proxy only programs that use the proxy "
            "reach anything",
            "let it use $http_proxy and $https_proxy, or choose --network host, slirp4netns or "
            "pasta",
        )
    return Cause(
        f"{what} cannot be resolved with this host's name servers (/etc/resolv.conf)",
        "check the name and the network; --add-host NAME:IP makes one known, --host-mirrors gives "
        "the build this host's mirrors and proxies",
    )


def _unreachable(_: re.Match[str], __: int, around: Circumstances) -> Cause | None:
    if around.network == "none":
        return Cause(
            "it wants to reach a host, and the build has no network (--network none)",
            "choose --network proxy or host, or put what it fetches into the source or builder",
        )
    if around.network == "proxy":
        return Cause(
            "it wants to reach a host without the proxy, and there is no other way (--network "
            "proxy)",
            "let it use $http_proxy and $https_proxy, or choose --network host, slirp4netns or "
            "pasta",
        )
    return Cause(
        "a host that it wants to reach cannot be reached from here",
        "check the address and the network; --host-mirrors gives the build this host's mirrors "
        "and proxies",
    )


def _expired(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return Cause(
        "a server's certificate has expired, or this machine's clock is wrong",
        "check the clock with `date`; a builder with old certificates needs a newer version",
    )


def _certificate(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return Cause(
        "a server's certificate is not trusted in the builder",
        "--host-mirrors gives the build, not the image, this host's CA certificates; or add the "
        "CA to the builder",
    )


def _memory(_: re.Match[str], __: int, around: Circumstances) -> Cause:
    limit = around.limits.memory_bytes
    if limit:
        return Cause(
            f"a program got no more memory; --memory gives it {show_size(limit)}",
            "raise --memory, or let it do less at once",
        )
    return Cause(
        "a program got no more memory",
        "give its heap more room (JAVA_TOOL_OPTIONS, NODE_OPTIONS), or free memory on this machine",
    )


def _tasks(_: re.Match[str], __: int, around: Circumstances) -> Cause:
    most = around.limits.tasks or DEFAULT_TASKS
    return Cause(
        f"no more processes can be started; --pids-limit gives it {most}",
        "raise --pids-limit, or let it do less at once",
    )


def _read_only(found: re.Match[str], _: int, __: Circumstances) -> Cause:
    path = _path_before(found)
    return Cause(
        f"{f'`{path}`' if path else 'a place that it writes to'} is on a read-only file system",
        "a volume without `:ro`, or another place",
    )


def _denied(found: re.Match[str], code: int, around: Circumstances) -> Cause | None:
    path = _path_before(found)
    if code == 126:
        return Cause(
            f"{f'`{path}`' if path else 'something in it'} is not executable, or not for "
            f"{around.user}",
            "`chmod +x` it (in git: `git update-index --chmod=+x`), or start it by its interpreter",
        )
    if around.is_root:
        return Cause(
            f"{f'`{path}`' if path else 'something'} is forbidden even to root in the container",
            "root there has few capabilities; `ocis2i doctor` tells what this host allows",
        )
    return Cause(
        f"{f'`{path}` is' if path else 'some path is'} not for {around.user}: it belongs to "
        "another user or group",
        "let it write below its home or the source; in the builder `chgrp -R 0` and `chmod -R "
        "g=u` open a directory; --assemble-user 0 runs assemble as root",
    )


def _ssh_key(_: re.Match[str], __: int, ___: Circumstances) -> Cause:
    return Cause(
        "a server wants an SSH key or password that the build does not have",
        "give the key to assemble alone with --inject, or fetch over https with a token in "
        "--build-env",
    )


def _path_before(found: re.Match[str]) -> str:
    """The path that a complaint names before its reason, or behind it."""
    text = found.string[: found.start()].rstrip(": ")
    paths = re.findall(r"(?:^|[\s'\":=])((?:/|\./|\.\./)[^\s:'\",]+)", text)
    if paths:
        return str(paths[-1])
    behind = re.search(r"['\"]((?:/|\./)[^'\"]+)['\"]", found.string[found.end() :])
    return behind[1] if behind else ""


_SIGNS: tuple[tuple[re.Pattern[str], _Judge], ...] = tuple(
    (re.compile(pattern), judge)
    for pattern, judge in (
        (r"No space left on device|ENOSPC", _no_space),
        (r"Disk quota exceeded|EDQUOT", _quota),
        (r"403 Forbidden by ocis2i, add --allow-host (\S+)", _host_refused),
        (r"\$'\\r': command not found|\r: (?:command )?not found", _carriage_return),
        (r"^(.*?): (\S+): bad interpreter", _bad_interpreter),
        (r"(?i)exec format error|cannot execute binary file", _other_processor),
        # dash and busybox read what the kernel does not start as a script of theirs.
        (r"(?<!\S)(\S+): (?:line )?[0-9]+: (?:\x7f|\\x7f)?ELF", _other_processor),
        (r"no new privileges|sudo: effective uid is not 0", _no_new_privileges),
        (
            r"(?i)could not resolve host:? ?(\S+)?|bad address '([^']+)'|"
            r"temporary failure resolving '([^']+)'|lookup (\S+)(?: on \S+)?: no such host|"
            r"unable to resolve host address '([^']+)|getaddrinfo (?:ENOTFOUND|EAI_AGAIN) "
            r"(\S+)|UnknownHostException: (\S+)|"
            r"name or service not known|temporary failure in name resolution|name does not "
            r"resolve|nodename nor servname|lookup \S+.*(?:server misbehaving|connection refused)",
            _no_name,
        ),
        (
            r"(?i)certificate has expired|CERT_HAS_EXPIRED|certificate is not yet valid",
            _expired,
        ),
        (
            r"(?i)certificate verif(?:y|ication) failed|self.signed certificate|unable to get "
            r"(?:local )?issuer certificate|unknown authority|PKIX path building failed|SSL "
            r"certificate problem|SELF_SIGNED_CERT|UNABLE_TO_(?:GET|VERIFY)\w*|invalid peer "
            r"certificate|certificate is not trusted",
            _certificate,
        ),
        (r"(?i)network is unreachable|no route to host|ENETUNREACH", _unreachable),
        (
            r"OutOfMemoryError|heap out of memory|Cannot allocate memory|MemoryError\b|virtual "
            r"memory exhausted|out of memory|ENOMEM",
            _memory,
        ),
        (
            r"(?i)fork: (?:retry: )?resource temporarily unavailable|can't fork|cannot fork|"
            r"unable to create (?:new )?native thread|can't start new thread",
            _tasks,
        ),
        (r"Read-only file system|EROFS", _read_only),
        (
            rf"(?:exec|env|execvp|execvpe)[:]? (?:can't execute )?{_WORD}: No such file or "
            r"directory|command not found: (\S+)|executable file not found in \$PATH: (\S+)",
            _missing,
        ),
        (rf"make(?:\[\d+\])?: {_WORD}: No such file or directory", _missing),
        (rf"(?:^|[\s:]){_WORD}: [Cc]ommand not found\s*$", _missing),
        # dash and busybox: `FILE: 3: NAME: not found`, `FILE: line 3: NAME: not found`.
        (rf"(?:line |: ){_NUMBER}: {_WORD}: not found\s*$", _missing),
        (rf"(?:^|[\s:]){_WORD}: not found\s*$", _surely_missing),
        (rf"exec: \"{_WORD}\": executable file not found", _missing),
        (r"Permission denied \((?:publickey|password)", _ssh_key),
        (r"(?i)permission denied|EACCES|operation not permitted|EPERM", _denied),
    )
)


def _from_output(code: int, tail: Sequence[str], around: Circumstances) -> Cause | None:
    """What one of the last lines complains of; the last one that says something counts."""
    if code > 128 and code != 255:
        return None  # a signal ended it: that is the cause
    return next(_complaints(code, tail, around), None)


def _complaints(code: int, tail: Sequence[str], around: Circumstances) -> Iterator[Cause]:
    for line in reversed(tail):
        for sign, judge in _SIGNS:
            found = sign.search(line[:2000].translate(_QUOTES))
            cause = judge(found, code, around) if found else None
            # 127 says that a command was missing, and 126 that it could not be executed.
            if cause and (code not in (126, 127) or judge in _OF_START):
                yield cause


_OF_START = (
    _missing,
    _surely_missing,
    _bad_interpreter,
    _carriage_return,
    _other_processor,
    _denied,
)
