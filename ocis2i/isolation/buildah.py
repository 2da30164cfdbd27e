"""Runs a process by `buildah run`, for those who must or want to have it done by buildah.

buildah gets an image of one config and no layer, and on the mount point of the container that it
makes of it lies our rootfs: it stores nothing, commits nothing and never sees the image's layers.
Its storage is a tmpfs in the agent's mount namespace, which is gone with the agent.
"""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeAlias

from ocis2i.errors import IsolationError, UsageError
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.ground import check_one_id
from ocis2i.isolation.oci_runtime import runtime_config
from ocis2i.isolation.programs import (
    PROBE_SECONDS,
    PROGRAM_PATH,
    TRIAL,
    hybrid_view,
    is_hybrid,
    prepare_trial,
    raise_not_started,
)
from ocis2i.isolation.streams import Sink, carry
from ocis2i.proc import find_program
from ocis2i.reference import Digest
from ocis2i.runner import Availability, RootfsHandle, RunResult, RunSpec, Stdio

Mode: TypeAlias = Literal["oci", "rootless", "chroot"]

# What buildah mounts something on, whatever it is told: its own files, and not for the layer.
ITS_FILES = ("/etc/hostname", "/run/.containerenv")
_CONTAINER = "ocis2i"
_OCI = "application/vnd.oci.image"
# Making a container of nothing takes a tenth of a second; a slow disk may have to bring buildah.
_PREPARE_SECONDS = 60.0
_LOWEST_KERNEL_PATHS = ("/proc", "/dev", "/sys")


class Buildah:
    """A `Runner` by buildah (1.28 or later) in a storage of its own."""

    name = "buildah"

    def __init__(
        self, agent: Agent, *, search_path: str | None, directory: Path, mode: str | None
    ) -> None:
        """`directory` is the session's; `mode` one of buildah's isolation modes, `None`: try."""
        self._agent = agent
        self._program = find_program("buildah", search_path)
        self._runtime = find_program("runc", search_path) or find_program("crun", search_path)
        self._directory = directory
        self._wanted = mode
        self._checked: Availability | None = None
        self._mode: Mode = "oci"

    def check(self) -> Availability:
        """Whether buildah really runs something, in one of its isolation modes; tried once."""
        if self._checked is None:
            self._checked = self._try()
        return self._checked

    def _try(self) -> Availability:
        place = self._directory / "try"
        early = prepare_trial(self.name, self._program, self._agent, place)
        if early:
            return early
        reasons = []
        for mode in modes_to_try(self._wanted):
            reason = self._try_mode(mode, place)
            if reason is None:
                self._mode = mode
                return Availability(usable=True, reason=f"{self._program} --isolation {mode}")
            reasons.append(f"--isolation {mode}: {reason}")
        said = "; ".join(reasons)
        return Availability(usable=False, reason=f"`{self._program}` does not work here: {said}")

    def _try_mode(self, mode: Mode, place: Path) -> str | None:
        """Why the mode does not work; `None` when it does."""
        try:
            call = self._call(TRIAL, mode=mode, rootfs=str(place), build=self._directory)
            code, _, err = self._ask(call)
        except IsolationError as error:
            return error.message
        self._forget(self._directory)
        return None if code == 0 else last_line(err) or f"exit code {code}"

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        """Runs `spec` to its end; see `Runner`."""
        check_one_id(self.name, self._agent.ground, spec)
        build = Path(rootfs.build)
        call = self._call(spec, mode=self._mode, rootfs=rootfs.path, build=build)
        words = LastWords(self._mode)
        started = time.monotonic()
        code = carry(
            self._agent,
            lambda *fds, **more: self._agent.post("run", *fds, **call, **more),
            stdio,
            name=spec.argv[0],
            limits=spec.limits,
            terminal=spec.terminal is not None,
            stderr=words.before,
        )
        seconds = time.monotonic() - started
        self._forget(build)
        return RunResult(_exit_code(code, words.said, spec), seconds)

    # --- the container that buildah sees ---

    def _call(self, spec: RunSpec, *, mode: Mode, rootfs: str, build: Path) -> dict[str, Any]:
        """Has buildah make its container; the agent's request `run` for the process in it."""
        config = runtime_config(spec, rootfs, self._agent.ground)
        refuse(spec, mode, config)
        place = build / "buildah"
        if spec.terminal:
            refuse_terminal(place)
        self._forget(build)  # a run that was ended from outside leaves its container behind
        # In memory: it has the values of variables that are for the build alone. On a command
        # line every user of the host could read them.
        self._agent.request("keep", directory=str(place), files=settings_files(place, config))
        command = self._command(place)
        self._make(place, [*command, *from_options(place, config, spec)])
        onto = self._make(place, [*command, "mount", _CONTAINER]).strip()
        view: dict[str, Any] = {"tree": rootfs, "onto": onto, "mounts": _volumes(config)}
        if self._runtime and self._runtime.endswith("/crun") and is_hybrid():
            view |= hybrid_view(config, build)[0]
        if mode == "chroot":
            view["pid_namespace"] = True
        return {
            "argv": [*command, *run_options(mode, self._runtime, config, spec)],
            "environment": environment(place, mode),
            "view": view,
            "no_new_privileges": config["process"]["noNewPrivileges"],
            "tree": rootfs,
            "lent": list(ITS_FILES),
        }

    def _command(self, place: Path) -> list[str]:
        return [
            str(self._program),
            *("--log-level", "error", "--default-mounts-file", os.devnull),
            *("--root", str(place / "root"), "--runroot", str(place / "run")),
            *("--storage-driver", "vfs"),
        ]

    def _make(self, place: Path, argv: list[str]) -> str:
        # The place of an image must be in small letters (buildah 1.28), and without a colon.
        call = {"argv": argv, "environment": environment(place, "oci"), "cwd": str(place)}
        code, out, err = self._ask(call)
        if code:
            raise IsolationError(
                f"buildah cannot make a container: {last_line(err) or f'exit code {code}'}",
                hint="--isolation builtin does without buildah",
            )
        return out

    def _ask(self, call: Mapping[str, Any]) -> tuple[int, str, str]:
        """Has the agent run a program; its exit code, standard output and standard error."""
        null = os.open(os.devnull, os.O_RDONLY)
        out, err = (os.memfd_create(name) for name in ("stdout", "stderr"))
        try:
            limit = PROBE_SECONDS if "view" in call else _PREPARE_SECONDS
            code = self._agent.request("run", null, out, err, **call, limit_seconds=limit)["exit"]
            texts = [os.pread(fd, 1 << 16, 0).decode(errors="replace") for fd in (out, err)]
        finally:
            for fd in (null, out, err):
                os.close(fd)
        return int(code), texts[0], texts[1]

    def _forget(self, build: Path) -> None:
        """The end of buildah's storage: nothing of it is on a disk."""
        self._agent.request("release", build=str(build / "buildah"))


def modes_to_try(mode: str | None) -> tuple[Mode, ...]:
    """buildah's isolation modes, the best first. `chroot` needs its name.

    It shares the host's /dev and devices, and a root assemble could signal what is in its way.
    """
    match mode:
        case None | "" | "auto":
            return ("oci", "rootless")
        case "oci" | "rootless" | "chroot":
            return (mode,)
        case _:
            raise UsageError(
                f"`OCIS2I_BUILDAH_ISOLATION` is `{mode}`", hint="it can be oci, rootless or chroot"
            )


def refuse(spec: RunSpec, mode: Mode, config: Mapping[str, Any]) -> None:
    """Raises `IsolationError` for what buildah cannot be told, rather than leave it out."""
    if mode == "chroot" and _network(config) != "host":
        raise IsolationError(
            "`buildah run --isolation chroot` has no network of its own",
            hint="leave out OCIS2I_BUILDAH_ISOLATION, or use --isolation builtin",
        )
    for mount in spec.mounts:
        if any(f"{mount.target}/".startswith(f"{top}/") for top in _LOWEST_KERNEL_PATHS):
            raise IsolationError(
                f"buildah cannot mount anything on `{mount.target}`: it makes that itself",
                hint="choose another place, or use --isolation builtin",
            )


# What sockaddr_un(7) takes, and what buildah puts behind its directory for the socket that brings
# a terminal: `/buildah1234567890/console.sock`. It ends by a panic when that does not fit.
_LONGEST_SOCKET, _SOCKET_NAME = 107, 31


def refuse_terminal(place: Path) -> None:
    """Raises `IsolationError` where the path to buildah's directory `place` is too long."""
    longest = _LONGEST_SOCKET - _SOCKET_NAME
    if len(os.fsencode(place)) > longest:
        raise IsolationError(
            f"buildah cannot give a terminal: the path `{place}` has more than {longest} bytes",
            hint="put the store into a directory with a shorter name with --root, or use "
            "--isolation builtin",
        )


def settings_files(place: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """All that buildah reads: its settings instead of the host's, and the image, by file name."""
    process = config["process"]
    names = [name.removeprefix("CAP_") for name in process["capabilities"]["bounding"]]
    limits = [
        f"{limit['type'].removeprefix('RLIMIT_').lower()}={limit['soft']}:{limit['hard']}"
        for limit in process["rlimits"]
    ]
    files = {
        # JSON lists of such words are TOML as well.
        "containers.conf": "[containers]\n"
        f"default_capabilities = {json.dumps(names)}\n"
        f"default_ulimits = {json.dumps(limits)}\n",
        "storage.conf": f'[storage]\ndriver = "vfs"\nrunroot = {json.dumps(str(place / "run"))}\n'
        f"graphroot = {json.dumps(str(place / 'root'))}\n",
        "policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}',
        "registries.conf": "",
        **image_files(process["env"]),
    }
    if "seccomp" in config["linux"]:
        files["seccomp.json"] = json.dumps(config["linux"]["seccomp"])
    return files


def image_files(variables: Sequence[str]) -> dict[str, str]:
    """An OCI layout with an image that has these variables and not a single layer."""
    files: dict[str, str] = {}

    def put(document: Mapping[str, Any], kind: str) -> dict[str, Any]:
        text = json.dumps(document)
        digest = Digest.of(text.encode())
        files[f"image/blobs/{digest.algorithm}/{digest.hex}"] = text
        return {"mediaType": f"{_OCI}.{kind}.v1+json", "digest": str(digest), "size": len(text)}

    image = {"architecture": _architecture(), "os": "linux", "config": {"Env": list(variables)}}
    described = put(image | {"rootfs": {"type": "layers", "diff_ids": []}}, "config")
    manifest = put({"schemaVersion": 2, "config": described, "layers": []}, "manifest")
    files["image/index.json"] = json.dumps({"schemaVersion": 2, "manifests": [manifest]})
    files["image/oci-layout"] = '{"imageLayoutVersion": "1.0.0"}'
    return files


def _architecture() -> str:
    machine = os.uname().machine
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)


def from_options(place: Path, config: Mapping[str, Any], spec: RunSpec) -> list[str]:
    """`buildah from`, of an image of ours."""
    profile = "unconfined"
    if "seccomp" in config["linux"]:
        profile = str(place / "seccomp.json")
    elif spec.hardening.seccomp:
        profile = ""  # no profile of ours for this architecture: buildah's own
    return [
        *("from", "--quiet", "--dns", "none", "--name", _CONTAINER),
        *("--signature-policy", str(place / "policy.json")),
        *(("--security-opt", f"seccomp={profile}") if profile else ()),
        "oci:image",
    ]


def run_options(
    mode: Mode, runtime: str | None, config: Mapping[str, Any], spec: RunSpec
) -> list[str]:
    """`buildah run` of the process."""
    identity = spec.identity
    return [
        *("run", "--isolation", mode, f"--terminal={str(spec.terminal is not None).lower()}"),
        *(("--runtime", runtime) if runtime else ()),
        *("--network", _network(config), "--no-hosts", "--hostname", spec.hostname),
        *("--user", f"{identity.uid}:{identity.gid}", "--workingdir", spec.cwd),
        *(_CONTAINER, "--", *spec.argv),
    ]


def _network(config: Mapping[str, Any]) -> str:
    for namespace in config["linux"]["namespaces"]:
        if namespace["type"] == "network":
            return f"ns:{namespace['path']}" if namespace.get("path") else "none"
    return "host"


def _volumes(config: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is mounted inside the rootfs, and comes with it: a path may hold any character."""
    return [mount for mount in config["mounts"] if mount["type"] == "bind"]


def environment(place: Path, mode: Mode) -> dict[str, str]:
    """buildah's own environment: nothing of the image's or the caller's gets into it."""
    return {
        "PATH": PROGRAM_PATH,
        "HOME": str(place),
        "TMPDIR": str(place),
        "XDG_RUNTIME_DIR": str(place),
        "CONTAINERS_CONF": str(place / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
        "CONTAINERS_REGISTRIES_CONF": str(place / "registries.conf"),
        "BUILDAH_ISOLATION": mode,
        # The agent is root of a user namespace; without this buildah would make one more.
        "_CONTAINERS_USERNS_CONFIGURED": "done",
    }


# --- what buildah says at the end -----------------------------------------------------------------

_OF_RUNTIME = re.compile(
    rb"error running container: .*|container exited on [a-z0-9 ]+|"
    rb"Error: while running runtime: exit status [0-9]+"
)
_OF_CHROOT = re.compile(
    rb"process failed to start with error: .*|(subprocess exited with status [0-9]+)+|"
    rb"Error: exit status [0-9]+"
)
_ENDS = {"oci": _OF_RUNTIME, "rootless": _OF_RUNTIME, "chroot": _OF_CHROOT}
_MARKS = (
    b"error running container: ",
    b"container exited on ",
    b"process failed to start with error: ",
    b"subprocess exited with status ",
    b"Error: ",
)
_LONGEST_WORDS = 16 << 10


class LastWords:
    """A sink for standard error that keeps buildah's own last lines from the script's.

    buildah writes them to the stream that it gave the script. What could be the beginning of them
    waits for the next bytes; everything else is passed on at once.
    """

    def __init__(self, mode: Mode) -> None:
        self._sink: Sink | None = None
        self._ends = _ENDS[mode]
        self._held = b""
        self.said = ""

    def before(self, sink: Sink) -> Sink:
        """This, in front of the one that the rest is for."""
        self._sink = sink
        return self

    def feed(self, data: bytes) -> None:
        """Takes the next bytes."""
        self._held += data
        cut = held_from(self._held, self._ends)
        if cut and self._sink:
            self._sink.feed(self._held[:cut])
        self._held = self._held[cut:]

    def close(self) -> None:
        """Passes on what was not buildah's after all."""
        last = self._held.removesuffix(b"\n").rpartition(b"\n")[2]
        if last.startswith(b"Error: ") and self._ends.fullmatch(last):
            self.said = self._held.decode(errors="replace")
        elif self._held and self._sink:
            self._sink.feed(self._held)
        self._held = b""
        if self._sink:
            self._sink.close()


def held_from(data: bytes, ends: re.Pattern[bytes]) -> int:
    """Where in `data` buildah's last words may begin; its length when they cannot."""
    places = sorted(
        found.start() for mark in _MARKS for found in re.finditer(re.escape(mark), data)
    )
    for place in places:
        if len(data) - place <= _LONGEST_WORDS and _may_be_last(data[place:], ends):
            return place
    longest = max(map(len, _MARKS))
    for size in range(min(longest, len(data)), 0, -1):
        if any(mark.startswith(data[-size:]) for mark in _MARKS):
            return len(data) - size
    return len(data)


def _may_be_last(data: bytes, ends: re.Pattern[bytes]) -> bool:
    if data.startswith(b"error running container: "):
        return True  # what follows is the runtime's log, of any form
    *lines, rest = data.split(b"\n")
    begins = not rest or any(rest.startswith(mark) or mark.startswith(rest) for mark in _MARKS)
    return begins and all(ends.fullmatch(line) for line in lines)


def _exit_code(code: int, said: str, spec: RunSpec) -> int:
    """The process's own exit code; raises when it was buildah that failed, and not the process."""
    if not code:
        return 0
    complaint = complaint_in(said)
    if complaint is not None:
        raise_not_started(complaint, spec.argv[0])
        raise IsolationError(
            f"buildah cannot run the container: {complaint}",
            hint="--isolation builtin does without buildah",
        )
    killed = re.match("container exited on (.+)", said)
    return 128 + signal_number(killed[1]) if killed else code


def complaint_in(said: str) -> str | None:
    """Why the process was never started; `None` when it was."""
    if said.startswith("process failed to start with error: "):
        return "exec: " + said.partition("error: ")[2].partition("process exited")[0].strip()
    if not said.startswith("error running container: "):
        return None
    messages = re.findall(r'level=(?:error|fatal) msg="((?:[^"\\]|\\.)*)"', said)
    if messages:
        return str(messages[-1]).replace('\\"', '"')
    return said.splitlines()[0].removeprefix("error running container: ")


def signal_number(words: str) -> int:
    """The number of a signal by what Go calls it, which is what C does in small letters."""
    for number in signal.valid_signals():
        if (signal.strsignal(number) or "").lower() == words.lower():
            return int(number)
    return int(signal.SIGKILL)


def last_line(text: str) -> str:
    """What a program complained of at last."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("Error: ") if lines else ""
