"""Runs a process in a container of our own: the executor for hosts where no runc is installed.

It takes the same OCI runtime config that runc gets (runtime-spec `config.json`, the subset that
`ocis2i.isolation.oci_runtime` writes) and does with system calls what runc does.
"""

from __future__ import annotations

import base64
import contextlib
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import stat
import struct
from collections.abc import Callable
from typing import Any, NoReturn

from ocis2i import syscalls
from ocis2i.agent.console import take
from ocis2i.agent.failure import AgentError
from ocis2i.agent.namespaces import be_alone_as
from ocis2i.agent.owners import ROOT, give, squashed
from ocis2i.agent.tree import join, opened, resolve

_NAMESPACES = {
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "cgroup": syscalls.CLONE_NEWCGROUP,
    "network": syscalls.CLONE_NEWNET,
}
# include/uapi/linux/{sockios,if}.h: the same on every architecture.
_SIOCGIFFLAGS = 0x8913
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1
_IFREQ = struct.Struct("16sh22x")
_FLAGS = {
    "ro": syscalls.MS_RDONLY,
    "rro": syscalls.MS_RDONLY,
    "nosuid": syscalls.MS_NOSUID,
    "nodev": syscalls.MS_NODEV,
    "noexec": syscalls.MS_NOEXEC,
    "bind": syscalls.MS_BIND,
    "rbind": syscalls.MS_BIND | syscalls.MS_REC,
}
_PROPAGATION = ("rprivate", "private")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    "ptmx": "pts/ptmx",
}

Config = dict[str, Any]


def start(config: Config, rootfs: str, stdio: list[int], *, console: int | None = None) -> int:
    """Starts the config's process; returns the pid whose end is the container's end.

    With a `console` it gets a terminal, whose other side goes through that socket.

    Raises `AgentError` of kind `isolation` when the container cannot be set up, of kind
    `not-found` or `not-executable` when its program cannot be started.
    """
    return started(lambda errors: _outer(config, rootfs, stdio, errors, console))


def started(child: Callable[[int], NoReturn]) -> int:
    """Forks, and calls `child` with a pipe for what goes wrong until an exec closes it; its pid."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        child(send)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        complaint = pipe.read()
    if complaint:
        os.waitpid(pid, 0)
        error = json.loads(complaint)
        raise AgentError(error["kind"], error["message"], error["hint"])
    return pid


def _outer(
    config: Config, rootfs: str, stdio: list[int], errors: int, console: int | None
) -> NoReturn:
    """Between the agent and the container's init: owns the new pid namespace, waits."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        os.setsid()
        for number, fd in enumerate(stdio):
            os.dup2(fd, number, inheritable=True)
        _leave(config["linux"]["namespaces"])
        init = os.fork()
        if init == 0:
            _init(config, rootfs, errors, console)
        os.close(errors)
        _close_stdio()
        _, status = os.waitpid(init, 0)
        _exit_like(status)
    except Exception as error:  # noqa: BLE001 - a forked child never returns into the agent's loop
        _explain(errors, "the container cannot be set up", error)


def _init(config: Config, rootfs: str, errors: int, console: int | None) -> NoReturn:
    """Process 1 of the container: builds its world, starts the payload, reaps."""
    try:
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        syscalls.sethostname(config["hostname"])
        _enter(config, rootfs)
        payload = os.fork()
        if payload == 0:
            turn_into(config, errors, console=console)
        os.close(errors)
        _close_stdio()
        while True:
            pid, status = os.wait()
            if pid == payload:
                _exit_like(status)
    except Exception as error:  # noqa: BLE001 - a forked child never returns into the agent's loop
        _explain(errors, "the container cannot be set up", error)


def _leave(namespaces: list[dict[str, str]]) -> None:
    """Into new namespaces, and into those that are there already, by their path."""
    new = [one["type"] for one in namespaces if not one.get("path")]
    for one in namespaces:
        if one.get("path"):
            fd = os.open(one["path"], os.O_RDONLY | os.O_CLOEXEC)
            syscalls.setns(fd, _NAMESPACES[one["type"]])
            os.close(fd)
    syscalls.unshare(sum(_NAMESPACES[kind] for kind in new))
    if "network" in new:
        raise_loopback()


def raise_loopback() -> None:
    """In a new network namespace even 127.0.0.1 is down (network_namespaces(7))."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as control:
        name, flags = _IFREQ.unpack(fcntl.ioctl(control, _SIOCGIFFLAGS, _IFREQ.pack(b"lo", 0)))
        fcntl.ioctl(control, _SIOCSIFFLAGS, _IFREQ.pack(name, flags | _IFF_UP))


def _close_stdio() -> None:
    """Whoever only waits must not hold the payload's pipes open."""
    null = os.open("/dev/null", os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.close(null)


def _exit_like(status: int) -> NoReturn:
    code = os.waitstatus_to_exitcode(status)
    os._exit(code if code >= 0 else 128 - code)


# user_namespaces(7), namespaces(7): also for those that are nested too deep.
_NO_MORE = (errno.ENOSPC, errno.EUSERS)


def _explain(errors: int, what: str, error: Exception) -> NoReturn:
    if isinstance(error, OSError) and error.errno in _NO_MORE and error.filename == "unshare":
        said = "this host allows no (more) namespaces, and a container takes some"
        # As in `ocis2i.isolation.sentences`, which the agent does not have.
        hint = "raise the sysctls user.max_*_namespaces, or start ocis2i further out where user "
        _complain(errors, "isolation", f"{what}: {said}", f"{hint}namespaces are nested")
    _complain(errors, "isolation", f"{what}: {error}")


def _complain(errors: int, kind: str, message: str, hint: str | None = None) -> NoReturn:
    os.write(errors, json.dumps({"kind": kind, "message": message, "hint": hint}).encode())
    os._exit(1)


# --- the container's file systems ---


def _enter(config: Config, rootfs: str) -> None:
    syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    syscalls.mount(rootfs, rootfs, "", syscalls.MS_BIND | syscalls.MS_REC)
    with opened(rootfs) as root:
        for mount in config["mounts"]:
            mount_into(root, rootfs, mount)
        _fill_dev(root, rootfs)
    os.chdir(rootfs)
    # pivot_root(2), "pivot_root(".", ".")": the old root lies over the new one and is detached.
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    for path in config["linux"]["readonlyPaths"]:
        if os.path.exists(path):
            syscalls.mount(path, path, "", syscalls.MS_BIND | syscalls.MS_REC)
            _make_read_only(path)
    for path in config["linux"]["maskedPaths"]:
        _mask(path)


def mount_into(root: int, rootfs: str, mount: Config) -> None:
    """Mounts one entry of an OCI runtime config inside the tree `rootfs` (open as `root`)."""
    found, missing = resolve(root, os.fsencode(mount["destination"]))
    if missing and not _is_below_dev(mount["destination"]):
        raise OSError(errno.ENOENT, "no such mount target", mount["destination"])
    target = f"{rootfs}/{os.fsdecode(join(found, missing))}"
    if missing:
        _make_place(target, directory=not os.path.isfile(mount["source"]))
    flags = 0
    options = []
    for option in mount["options"]:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        elif option not in _PROPAGATION:
            options.append(option)
    if not flags & syscalls.MS_BIND:
        syscalls.mount(mount["source"], target, mount["type"], flags, ",".join(options))
        return
    syscalls.mount(mount["source"], target, "", flags & (syscalls.MS_BIND | syscalls.MS_REC))
    try:
        syscalls.mount_setattr(target, flags & syscalls.MOUNT_ATTRIBUTES)
    except OSError as error:
        if error.errno != errno.ENOSYS:  # before 5.12
            raise
        if flags & syscalls.MS_RDONLY:
            _make_read_only(target)


def _make_place(target: str, *, directory: bool) -> None:
    if directory:
        os.makedirs(target, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o644))


def _is_below_dev(path: str) -> bool:
    return path.startswith("/dev/")


def _fill_dev(root: int, rootfs: str) -> None:
    found, _ = resolve(root, b"dev")
    dev = f"{rootfs}/{os.fsdecode(found)}"
    for name in _DEVICES:
        # A user namespace cannot make device nodes; the host's own are bound.
        os.close(os.open(f"{dev}/{name}", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o666))
        syscalls.mount(f"/dev/{name}", f"{dev}/{name}", "", syscalls.MS_BIND)
    for name, target in LINKS.items():
        os.symlink(target, f"{dev}/{name}")


def _make_read_only(path: str) -> None:
    # Flags that the outer mount carries are locked in a user namespace and must be repeated.
    kept = os.statvfs(path).f_flag & (os.ST_NOSUID | os.ST_NODEV | os.ST_NOEXEC)
    syscalls.mount("", path, "", syscalls.MS_REMOUNT | syscalls.MS_BIND | syscalls.MS_RDONLY | kept)


def _mask(path: str) -> None:
    try:
        directory = stat.S_ISDIR(os.stat(path).st_mode)
    except OSError:
        return
    if directory:
        syscalls.mount("tmpfs", path, "tmpfs", syscalls.MS_RDONLY, "size=0k")
    else:
        syscalls.mount("/dev/null", path, "", syscalls.MS_BIND)


# --- the payload ---

# Python ignores the first two, the agent the others; an exec keeps that, and a shell cannot even
# trap what was ignored when it started (POSIX `trap`).
NOT_INHERITED = (
    signal.SIGPIPE,
    signal.SIGXFSZ,
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
)


def turn_into(
    config: Config,
    errors: int,
    become: Callable[[Config], None] | None = None,
    *,
    console: int | None = None,
) -> NoReturn:
    """Turns this process into the config's; `become` is another way to its user than usual.

    With a `console` it gets a terminal of its own (`ocis2i.agent.console.take`).
    """
    process = config["process"]
    # With one user id there is nothing that setuid could give.
    no_new_privileges = process["noNewPrivileges"] or squashed()
    argv, environment = process["args"], dict(v.split("=", 1) for v in process["env"])
    try:
        os.setsid()
        if console is not None:
            take(console, process["user"])
        for limit in process["rlimits"]:
            number = getattr(resource, limit["type"])
            resource.setrlimit(number, (limit["soft"], limit["hard"]))
        _give_pipes(process["user"])
        if not no_new_privileges:
            set_filter(config)  # which now takes a capability that the payload has not
        if become is None:
            _become(process["user"], process["capabilities"]["bounding"])
        else:
            become(process)
        for number in NOT_INHERITED:
            signal.signal(number, signal.SIG_DFL)
        os.umask(0o022)
        os.chdir(process["cwd"])
        if no_new_privileges:
            syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
            set_filter(config)
    except Exception as error:  # noqa: BLE001 - likewise
        _explain(errors, "the payload cannot be prepared", error)
    try:
        os.execvpe(argv[0], argv, environment)
    except OSError as error:
        kind = "not-executable" if error.errno == errno.EACCES else "not-found"
        _complain(errors, kind, f"`{argv[0]}` cannot be started: {error.strerror}")
    except ValueError as error:  # what no kernel takes: a zero byte, a variable without a name
        _complain(errors, "isolation", f"`{argv[0]}` cannot be started: {error}")


def set_filter(config: Config) -> None:
    """From here on the config's seccomp filter judges every system call of this process."""
    program = config["linux"].get("filter")
    if program:
        syscalls.set_filter(base64.b64decode(program))


def _give_pipes(user: Config) -> None:
    """Scripts write to /dev/stderr by name: its pipe must be the user's own, as runc has it."""
    for number in range(3):
        # Anonymous pipes alone: a file or terminal belongs to whoever started us, and stays so.
        if os.readlink(f"/proc/self/fd/{number}").startswith("pipe:"):
            # One that another user of the host made (`su`, a service manager) is not ours to give.
            with contextlib.suppress(PermissionError):
                give(number, user["uid"], user["gid"])


def _become(user: Config, names: list[str]) -> None:
    if squashed() and (user["uid"], user["gid"]) != ROOT:
        # The agent has no number but 0 to give: this user is it, one namespace further in. Before
        # the capabilities are dropped, since a new namespace comes with all of them.
        be_alone_as(user["uid"], user["gid"])
    mask = sum(1 << syscalls.CAPABILITIES.index(name) for name in names)
    for number in range(len(syscalls.CAPABILITIES)):
        if not mask & 1 << number:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno != errno.EINVAL:  # a capability that this kernel does not know
                    raise
    if not squashed():  # there setgroups(2) is forbidden for good, and the caller's groups stay
        os.setgroups(user["additionalGids"])
    os.setresgid(user["gid"], user["gid"], user["gid"])
    os.setresuid(user["uid"], user["uid"], user["uid"])
    if user["uid"] == 0:
        syscalls.capset(mask, mask, 0)
    else:
        syscalls.capset(0, 0, 0)
