"""One container of a build: who runs in an image's tree, where, and with which environment."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Iterator, Mapping
from dataclasses import field, replace
from typing import TYPE_CHECKING

from ocis2i import seccomp
from ocis2i.errors import ImageError, Ocis2iError, PolicyError, ScriptError, ScriptsError
from ocis2i.events import LastLines, Notice, Report, ScriptOutput, silent, stage
from ocis2i.images import Obtained, Places
from ocis2i.isolation.cgroups import MemoryKills, memory_kills
from ocis2i.isolation.ids import MAPPED_IDS
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import Limits, mention
from ocis2i.rootfs import Rootfs
from ocis2i.runner import (
    HOSTNAME,
    BindMount,
    Hardening,
    Network,
    Runner,
    RunResult,
    RunSpec,
    Stdio,
)
from ocis2i.s2i import Identity, resolve_user
from ocis2i.scripts import ScriptPlace
from ocis2i.session import Session
from ocis2i.settings import Settings
from ocis2i.store import LayerRecord
from ocis2i.unpack import unpack_layers

if TYPE_CHECKING:
    from ocis2i.proxy import ProxyVariables

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SHELL = "/bin/sh"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What all containers of a build have alike."""

    mounts: tuple[BindMount, ...] = ()
    cap_drop: frozenset[str] = frozenset()
    network: Network = "host"
    limits: Limits = field(default_factory=Limits)
    hardening: Hardening = field(default_factory=Hardening)
    apt_settings: BindMount | None = None
    netns: str | None = None
    proxied: ProxyVariables | None = None

    def fitted(self, here: Session) -> Surroundings:
        """With what the session's ground asks for: a root with one id is to think it has more."""
        if not here.agent.ground.squashed:
            return self
        hardening = replace(self.hardening, fake_ids=True)
        if here.weak:  # where nothing is mounted
            return replace(self, hardening=hardening)
        settings = here.directory / "apt.conf"
        settings.write_bytes(_NO_SANDBOX)
        settings.chmod(0o644)
        mount = BindMount(str(settings), _APT_TARGET, read_only=True, directory=False)
        return replace(self, hardening=hardening, apt_settings=mount)


# apt checks that it really became another user (`DropPrivileges`). On a tmpfs of the container's
# own: nothing of it is in the layer.
_APT_TARGET = "/dev/ocis2i-apt.conf"
_NO_SANDBOX = b'APT::Sandbox::User "root";\n'


@dataclass(frozen=True, slots=True)
class Job:
    """A script to run in a container: its command line, as whom, where, and with what.

    `place` is where it came from.
    """

    argv: tuple[str, ...]
    identity: Identity
    cwd: str
    environment: tuple[str, ...]
    more: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[BindMount, ...] = ()
    place: ScriptPlace | None = None

    def spec(self, around: Surroundings) -> RunSpec:
        """As an executor takes it."""
        mounts, more = (*around.mounts, *self.mounts), self.more
        fakes = around.hardening.fake_ids and self.identity.uid == 0
        if fakes and around.apt_settings:
            mounts = (*mounts, around.apt_settings)
            more = {"APT_CONFIG": _APT_TARGET, **more}
        if around.proxied:
            known = dict(entry.partition("=")[::2] for entry in self.environment)
            more = {**more, **around.proxied.beside({**known, **more})}
        return RunSpec(
            argv=self.argv,
            environment=process_environment(self.environment, self.identity, more),
            cwd=self.cwd,
            identity=self.identity,
            mounts=mounts,
            cap_drop=around.cap_drop,
            network=around.network,
            netns=around.netns,
            limits=around.limits,
            hardening=replace(around.hardening, fake_ids=fakes),
        )


@dataclass(frozen=True, slots=True)
class Site:
    """Where a build happens: its session, its executor, and what all its containers share.

    `tail` has what a script printed last, masked; `on_failure` is what to do with the tree of one
    that failed before it goes.
    """

    here: Session
    runner: Runner
    around: Surroundings
    places: Places
    settings: Settings
    report: Report
    tail: LastLines = field(default_factory=lambda: LastLines(silent))
    on_failure: Callable[[Failed], None] | None = None

    def unpack(self, image: Obtained) -> tuple[LayerRecord, ...]:
        """The unpacked layers of an image."""
        limit = self.settings.layer_limit
        return unpack_layers(image, self.places, self.here.agent, size_limit=limit)


@dataclass(frozen=True, slots=True)
class Failed:
    """A script that failed, in the tree that it left; `error.failure` says what is known of it."""

    site: Site
    rootfs: Rootfs
    job: Job
    error: Ocis2iError


def choose_runner(
    here: Session, wanted: str | None, hardening: Hardening, report: Report
) -> Runner:
    """The session's executor; tells what it does not keep a script from, as the others do.

    Raises as `Session.runner`.
    """
    runner = here.runner(wanted)
    mode = here.buildah_mode if runner.name == "buildah" else None
    for sentence in gaps(runner.name, mode, hardening, os.uname().machine):
        report(Notice("warning", sentence))
    return runner


def gaps(
    executor: str, buildah_mode: str | None, hardening: Hardening, machine: str
) -> Iterator[str]:
    """What is missing on processors of this kind, or with buildah in this mode, and the way out."""
    if executor == "buildah" and buildah_mode == "chroot":
        yield (
            "OCIS2I_BUILDAH_ISOLATION is `chroot`: scripts see this host's /dev and its devices; "
            "leave the variable out for containers of their own"
        )
    # buildah has a profile of its own, for more processors than we have.
    if hardening.seccomp and executor != "buildah" and not seccomp.is_known(machine):
        yield (
            f"there is no seccomp profile for `{machine}`: scripts may make every system call; "
            "--isolation buildah has one, --security-opt seccomp=unconfined says that it is right"
        )


def identify(user: str, rootfs: Rootfs) -> Identity:
    """Looks a user up in the image's own passwd and group files.

    Raises `ImageError` for one that is not there, or whose ids no container here can have.
    """
    found = resolve_user(
        user, rootfs.read_text("/etc/passwd") or "", rootfs.read_text("/etc/group") or ""
    )
    largest = max(found.uid, found.gid, *found.groups)
    # One id can have any number, and without namespaces the numbers are the host's.
    if largest >= MAPPED_IDS and rootfs.ground.ids in ("full", "native"):
        raise ImageError(
            f"user `{user}` has the id {largest}, and containers have those up to {MAPPED_IDS - 1}",
            hint="choose another user with --assemble-user, or with --user of `ocis2i run`",
        )
    return found


def make_working_directory(cwd: str, rootfs: Rootfs) -> None:
    """Makes a `WORKDIR` that the image lacks, as Docker does when it makes a container."""
    if "\0" in cwd:
        raise ImageError(
            f"the working directory `{cwd}` of the image has a zero byte",
            hint="put WORKDIR right in the builder image",
        )
    mode = rootfs.modes([cwd])[0]
    if mode is None:
        rootfs.make_directory(cwd)
    elif not stat.S_ISDIR(mode):
        raise ImageError(
            f"the working directory `{cwd}` is no directory in the image",
            hint="put WORKDIR right in the builder image",
        )


def process_environment(
    environment: tuple[str, ...], identity: Identity, more: Mapping[str, str]
) -> tuple[str, ...]:
    """`environment` with what an engine adds: `PATH`, `HOME` and `HOSTNAME` where missing.

    `more` is for this process alone and wins. What an image has as a name alone is not set, as
    Docker has it.
    """
    entries = {
        name: entry
        for entry in environment
        if (name := entry.partition("=")[0]) and "=" in entry and name not in more
    }
    added = {"PATH": DEFAULT_PATH, "HOME": identity.home, "HOSTNAME": HOSTNAME}
    defaults = tuple(f"{name}={value}" for name, value in added.items() if name not in entries)
    extra = tuple(f"{name}={value}" for name, value in more.items())
    kept = tuple(entries.values())
    return (*kept, *(one for one in defaults if one.partition("=")[0] not in more), *extra)


def check_script(place: ScriptPlace, image: str, rootfs: Rootfs) -> None:
    """A script that `image` is said to bring must be in it; raises `ScriptsError`."""
    if place.file is not None:
        return
    mode = rootfs.modes([place.path_in_image])[0]
    if mode is None or not stat.S_ISREG(mode):
        raise ScriptsError(
            f"the image `{image}` has no script `{place.path_in_image}`",
            hint=f"put one into .s2i/bin/{place.name} of the source, or name the place of the "
            "image's scripts with --scripts-url image:///DIRECTORY",
        )
    if not mode & 0o111:
        raise ScriptsError(
            f"the script `{place.path_in_image}` of the image `{image}` is not executable",
            hint="`chmod +x` it where the image is built",
        )


def runnable(run: RunSpec, rootfs: Rootfs) -> RunSpec:
    """`run` as the kernel can start it: a script that names no interpreter goes through /bin/sh.

    So it does in source-to-image, where a shell starts it (`pkg/build/strategies/sti/sti.go`).
    Raises `ScriptError` for an interpreter that is not there: that fails without a word why.
    """
    before, script = run.argv[:-1], run.argv[-1]
    if before:
        _check_interpreter(before[0], named_interpreter(_head(before[0], rootfs)), run, rootfs)
    head = _head(script, rootfs)
    if needs_shell(head):
        _check_interpreter(script, SHELL, run, rootfs)
        return replace(run, argv=(*before, SHELL, script))
    _check_interpreter(script, named_interpreter(head), run, rootfs)
    return run


def named_interpreter(head: str) -> str | None:
    """The program that the beginning of a script names in its first line."""
    # Blanks and tabs alone separate (fs/binfmt_script.c): a carriage return is part of the name.
    found = re.match(r"#![ \t]*([^ \t\n\0]+)", head)
    return found[1] if found else None


def needs_shell(head: str) -> bool:
    """Whether a file that begins like this is text that no kernel starts, but a shell does.

    What has a zero byte in its first line is a program, as bash has it. An empty file is no script:
    it would do nothing and succeed.
    """
    if not head or named_interpreter(head) or head.startswith("\x7fELF"):
        return False
    first, _, _ = head.partition("\n")
    return "\0" not in first


def _head(path: str, rootfs: Rootfs) -> str:
    return rootfs.read_head(path, 256) or ""


def _check_interpreter(path: str, program: str | None, run: RunSpec, rootfs: Rootfs) -> None:
    if program is None:
        return
    if rootfs.modes([program])[0] is None and not _is_mounted(program, run, rootfs):
        hint = "change its first line, or add the program to the image"
        if program.endswith("\r"):
            program, hint = program.replace("\r", "\\r"), "its lines end with \\r\\n: make them \\n"
        raise ScriptError(
            f"the script `{path}` needs `{program}`, which the image does not have",
            script_exit_code=127,
            started=False,
            hint=hint,
        )


def _is_mounted(path: str, run: RunSpec, rootfs: Rootfs) -> bool:
    """Whether `path` is in something that is mounted for the run alone, and so not there yet."""
    path, *targets = rootfs.places([path, *(mount.target for mount in run.mounts)])
    return any(f"{path}/".startswith(f"{target}/") for target in targets)


def run_stage(
    site: Site,
    rootfs: Rootfs,
    job: Job,
    name: str,
    *,
    detail: str,
    reason: str = "AssembleFailed",
) -> RunResult:
    """Runs a script whose failure ends the build, as the stage `name`; raises as `run_script`.

    Where it failed, what was asked for that case is done before the tree goes.
    """
    try:
        with stage(site.report, name, detail):
            return run_script(site, rootfs, job, name, reason=reason)
    except (ScriptError, PolicyError) as error:
        if site.on_failure and error.failure:
            site.on_failure(Failed(site, rootfs, job, error))
        raise


def run_script(
    site: Site, rootfs: Rootfs, job: Job, name: str, *, reason: str = "AssembleFailed"
) -> RunResult:
    """Runs a script to its end; `name` is that of the stage, for the explanation of a failure.

    Raises `ScriptError` with its exit code, `PolicyError` when it went over a limit.
    """
    stdio = Stdio(lambda stream, line: site.report(ScriptOutput(stream, line)))
    return run_explained(site, rootfs, job, name, stdio, reason=reason)


def run_explained(
    site: Site, rootfs: Rootfs, job: Job, name: str, stdio: Stdio, *, reason: str
) -> RunResult:
    """The same with another destination for its output."""
    run = job.spec(site.around)
    site.tail.forget()
    kills = memory_kills()
    try:
        run = runnable(run, rootfs)
        result = site.runner.run(rootfs, run, stdio)
        if not result.exit_code:
            return result
        raise _failed(result.exit_code, run, reason, site, kills)
    except (ScriptError, PolicyError) as error:
        from ocis2i.script_failure import explained  # noqa: PLC0415 - few builds load it

        if isinstance(error, ScriptError):
            error.reason = reason
        error.failure = explained(
            error,
            run,
            job.place,
            stage=name,
            isolation=site.runner.name,
            tree=rootfs,
            tail=site.tail.lines,
            lines=site.tail.count,
            memory_kill=memory_kills().since(kills),
        )
        raise


def _failed(code: int, run: RunSpec, reason: str, site: Site, kills: MemoryKills) -> ScriptError:
    """What to raise for a script that ended with `code`."""
    from ocis2i.causes import describe_exit, find_cause  # noqa: PLC0415 - few builds load them
    from ocis2i.script_failure import circumstances  # noqa: PLC0415

    around = circumstances(run, memory_kill=memory_kills().since(kills))
    cause = find_cause(code, site.tail.lines, around)
    limits = mention(run.limits)
    hints = (
        cause.way_out,
        f"it ran as {run.identity.uid}:{run.identity.gid} in `{run.cwd}`",
        limits,
        None if cause.way_out else "its output above says more",
    )
    return ScriptError(
        f"`{run.argv[-1]}` failed with {describe_exit(code, site.tail.lines, around)}",
        script_exit_code=code,
        hint="; ".join(one for one in hints if one),
        reason=reason,
    )
