"""Hosts that allow less than this one, each made out of it; used by tests.

    python hosts.py HOST PROGRAM [ARGUMENT…]

`HOST` is a `Host` as JSON. Nothing here takes root: every restriction is a real one, in namespaces
of the caller's own. With root it is another host still: one without a user namespace in between.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import subprocess
import sys
import sysconfig
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeAlias

from ocis2i import syscalls
from ocis2i.syscall_numbers import NUMBERS
from tests.fakes import nodes
from tests.fakes.images import LayoutImage
from tests.fakes.program import PROJECT

Ids: TypeAlias = Literal["host", "own", "range", "container"]
Filter: TypeAlias = Literal["none", "namespaces", "docker", "owners"]

# What OpenShift runs a pod as: a number that no image knows, in the group of root.
ARBITRARY = (1_000_660_000, 0)
ROOT = (0, 0)

# Docker's default set (moby, oci/caps/defaults.go).
DOCKER_CAPABILITIES = """
CAP_CHOWN CAP_DAC_OVERRIDE CAP_FSETID CAP_FOWNER CAP_MKNOD CAP_NET_RAW CAP_SETGID CAP_SETUID
CAP_SETFCAP CAP_SETPCAP CAP_NET_BIND_SERVICE CAP_SYS_CHROOT CAP_KILL CAP_AUDIT_WRITE
""".split()

_EPERM, _ENOSYS = 1, 38
_NEW_NAMESPACES = 0x7E020000
# What Docker's profile denies without CAP_SYS_ADMIN, as far as a builder could want it.
_DOCKER_DENIES = """
mount umount2 pivot_root unshare setns fsopen fsconfig fsmount fspick move_mount open_tree
mount_setattr keyctl add_key request_key bpf perf_event_open userfaultfd open_by_handle_at
init_module finit_module delete_module kexec_load reboot swapon swapoff syslog
""".split()

_KUBELET = "# Kubernetes-managed hosts file (host network).\n"
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
_MASKED = ("/proc/keys", "/proc/timer_list")
# Those that the launcher itself starts, whatever there is for what it launches.
_PROGRAMS = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_PR_CAP_AMBIENT, _RAISE = 47, 2

Mount: TypeAlias = tuple[str, str, str, int, str]


@dataclass(frozen=True, slots=True)
class Host:
    """A host to be.

    `ids`: those of this host; the caller's own and no others; those and the subordinate ones, which
    newuidmap can map again; or a container's: 0 to 65535 are subordinate ones, and the caller is
    `ARBITRARY`. `mounts` are the arguments of mount(2), `writes` files with a new content.

    With an `image` (layout and name) `/` is that image, as in a container of it; the directories
    `shared` are there under the same names, and so is this Python. `user` are the ids to take,
    `capabilities` those that are kept: without an id of one's own they are raised for programs too.
    In a user namespace `devices` can be made only with somebody's help (`tests/fakes/nodes.py`),
    and not with the filter `docker`. With the filter `owners` no file can be given to another id,
    as on NFS; it takes ids of one's own.
    """

    ids: Ids = "host"
    mounts: tuple[Mount, ...] = ()
    writes: tuple[tuple[str, str], ...] = ()
    image: tuple[str, str] | None = None
    shared: tuple[str, ...] = ()
    kubernetes: bool = False
    user: tuple[int, int] | None = None
    capabilities: tuple[str, ...] = ()
    no_new_privs: bool = False
    filter: Filter = "none"
    devices: bool = False

    @property
    def launcher(self) -> tuple[str, ...]:
        """What to put before a command line; it takes `PYTHONPATH` to be the project."""
        return (sys.executable, __file__, json.dumps(dataclasses.asdict(self)))


def hidden(names: Iterable[str], path: str) -> tuple[Mount, ...]:
    """Mounts that take programs away, wherever on a search path they are."""
    found = {
        os.path.realpath(f"{directory}/{name}")
        for name in names
        for directory in path.split(":")
        if os.path.exists(f"{directory}/{name}")
    }
    return tuple(bind("/dev/null", file) for file in sorted(found))


def bind(source: str | Path, target: str | Path) -> Mount:
    """A file or directory in the place of another."""
    return (str(source), str(target), "", syscalls.MS_BIND | syscalls.MS_REC, "")


def read_only(path: str | Path) -> tuple[Mount, Mount]:
    """A directory that cannot be written."""
    flags = syscalls.MS_BIND | syscalls.MS_REMOUNT | syscalls.MS_RDONLY
    return bind(path, path), ("", str(path), "", flags, "")


def fresh(kind: str, path: str | Path, flags: int = 0, options: str = "") -> Mount:
    """A new file system on a directory."""
    return (kind, str(path), kind, flags, options)


# --- becoming one -------------------------------------------------------------------------------


def main(host: Host, command: Sequence[str]) -> NoReturn:
    """Puts this process on the host and starts the command there, in its place."""
    if host.ids != "host":
        _enter_ids(host.ids)
    if host.ids != "host" or host.image:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
    if host.image:
        _be_process_one()
        _enter_image(LayoutImage(Path(host.image[0]), host.image[1]), host)
    for one in host.mounts:
        syscalls.mount(*one)
    for path, text in host.writes:
        Path(path).write_text(text)
    manager = nodes.Manager.start() if host.devices else None
    _give_up(host)
    if manager:
        manager.watch()
    os.execvp(command[0], list(command))


def _enter_ids(ids: Ids) -> None:
    uid, gid = os.getuid(), os.getgid()
    if ids == "own":
        syscalls.unshare(syscalls.CLONE_NEWUSER)
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
        Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
        return
    maps = [_map(ids, "subuid", uid), _map(ids, "subgid", gid)]
    ready, go = os.pipe()
    me = os.getpid()
    helper = os.fork()
    if helper == 0:
        os.close(go)
        os.read(ready, 1)
        os._exit(_map_ids(me, maps))
    os.close(ready)
    syscalls.unshare(syscalls.CLONE_NEWUSER)
    os.close(go)
    _, status = os.waitpid(helper, 0)
    if status:
        sys.exit("hosts: the ids cannot be mapped")


def _map(ids: Ids, kind: str, own: int) -> list[str]:
    """The arguments of newuidmap; root of the host has all ids, and gives the usual ones."""
    if own == 0:
        return ["0", "0", "65536"]
    first, count = _subordinate(kind)
    if ids == "container":
        numbers = [0, first, min(count, 65536), ARBITRARY[0], own, 1]
    else:
        # The same but for the caller, who keeps his number.
        numbers = [0, first, own, own, own, 1, own + 1, first + own, min(count, 65536) - own]
    return [str(number) for number in numbers]


def _subordinate(kind: str) -> tuple[int, int]:
    done = subprocess.run(["id", "-un"], env=_PROGRAMS, capture_output=True, text=True, check=True)
    name = done.stdout.strip()
    for line in Path("/etc", kind).read_text().splitlines():
        owner, first, count = line.split(":")
        if owner in (name, str(os.getuid())):
            return int(first), int(count)
    sys.exit(f"hosts: user `{name}` has no ids in /etc/{kind}")


def _map_ids(pid: int, maps: Sequence[Sequence[str]]) -> int:
    if os.getuid() == 0:
        for name, numbers in zip(("uid_map", "gid_map"), maps, strict=True):
            Path(f"/proc/{pid}/{name}").write_text(" ".join(numbers))
        return 0
    for tool, numbers in zip(("newuidmap", "newgidmap"), maps, strict=True):
        if subprocess.run([tool, str(pid), *numbers], env=_PROGRAMS, check=False).returncode:
            return 1
    return 0


def _be_process_one() -> None:
    """The caller stays outside and waits for a container's process 1, which waits for its own."""
    syscalls.unshare(
        syscalls.CLONE_NEWPID
        | syscalls.CLONE_NEWIPC
        | syscalls.CLONE_NEWUTS
        | syscalls.CLONE_NEWCGROUP
    )
    one = os.fork()
    if one:
        _wait_for(one)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    os.setsid()


def _wait_for(child: int) -> NoReturn:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(child, number))
    while True:
        pid, status = os.wait()
        if pid == child:
            os._exit(os.waitstatus_to_exitcode(status) & 0xFF)


# --- a container of an image --------------------------------------------------------------------


def _enter_image(image: LayoutImage, host: Host) -> None:
    """Makes the image's tree the root: on an overlay, as in nearly every container."""
    if host.ids == "container":
        os.setgroups([])
        os.setresgid(0, 0, 0)
        os.setresuid(0, 0, 0)
    place = "/mnt"
    syscalls.mount("tmpfs", place, "tmpfs", 0, "mode=755")
    for name in ("lower", "upper", "work", "root"):
        os.mkdir(f"{place}/{name}", 0o755)
    times = _unpack(image, Path(f"{place}/lower"))
    root = f"{place}/root"
    options = f"userxattr,lowerdir={place}/lower,upperdir={place}/upper,workdir={place}/work"
    syscalls.mount("overlay", root, "overlay", 0, options)
    _furnish(root, host)
    for path, when in times.items():
        if os.stat(f"{root}/{path}").st_dev == os.stat(root).st_dev:  # nothing is mounted there
            os.utime(f"{root}/{path}", (when, when))
    os.chdir(root)
    syscalls.pivot_root(".", ".")
    syscalls.umount2(".", syscalls.MNT_DETACH)
    os.chdir("/")
    for path in _MASKED:
        syscalls.mount(*bind("/dev/null", path))


def _unpack(image: LayoutImage, tree: Path) -> dict[str, float]:
    """Writes an image's files, which has to be one of ours; the times of its directories."""
    times = {}
    for number in range(len(image.layers)):
        with tarfile.open(image.blob(image.layers[number]), "r:gz") as archive:
            for member in archive:
                archive.extract(member, tree, numeric_owner=True)
                if member.isdir():
                    times[member.name] = float(member.mtime)
    return times


def _furnish(root: str, host: Host) -> None:
    """What an engine mounts into every container, and what the tests need."""
    _mount_below(root, fresh("proc", "/proc", _NOTHING_RUNS))
    _mount_below(root, fresh("tmpfs", "/dev", 0, "mode=755"))
    for name in _DEVICES:
        Path(root, "dev", name).touch()
        _mount_below(root, bind(f"/dev/{name}", f"/dev/{name}"))
    os.mkdir(f"{root}/dev/shm", 0o1777)
    os.mkdir(f"{root}/dev/pts")
    _mount_below(root, fresh("devpts", "/dev/pts", 0, "newinstance,ptmxmode=0666,mode=0620"))
    os.symlink("pts/ptmx", f"{root}/dev/ptmx")
    for name, target in {"fd": "", "stdin": "/0", "stdout": "/1", "stderr": "/2"}.items():
        os.symlink(f"/proc/self/fd{target}", f"{root}/dev/{name}")
    Path(root, "run").mkdir(exist_ok=True)
    if host.kubernetes:
        Path(root, "dev", "hosts").write_text(_KUBELET + "127.0.0.1\tlocalhost\n")
        _mount_below(root, bind(f"{root}/dev/hosts", "/etc/hosts"))
    else:
        Path(root, ".dockerenv").touch()
    for path in (*_python(), *host.shared):
        _share(root, path)


_NOTHING_RUNS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC


def _mount_below(root: str, one: Mount) -> None:
    source, target, kind, flags, options = one
    syscalls.mount(source, root + target, kind, flags, options)


def _python() -> list[str]:
    """Where this Python and its libraries are."""
    libraries = [sysconfig.get_config_var("LIBDIR"), sysconfig.get_path("stdlib")]
    loader = [path for path in ("/lib", "/lib64", "/usr/lib", "/usr/lib64") if os.path.exists(path)]
    program = Path(sys.executable)
    chain = [str(program)]
    while program.is_symlink():
        program = program.parent / os.readlink(program)
        chain.append(os.path.normpath(program))
    found = [*loader, *map(str, filter(None, libraries)), sys.prefix, str(PROJECT), *chain]
    return [path for path in dict.fromkeys(found) if not _is_below(path, found)]


def _is_below(path: str, others: Iterable[str]) -> bool:
    return any(path != one and path.startswith(one + "/") for one in others)


def _share(root: str, path: str) -> None:
    """Shows a path of this host at the same place in the container."""
    target = Path(root + path)
    target.parent.mkdir(parents=True, exist_ok=True)
    if os.path.islink(path):
        if not target.is_symlink():
            target.symlink_to(os.readlink(path))
        return
    if os.path.isdir(path):
        target.mkdir(exist_ok=True)
    else:
        target.touch()
    syscalls.mount(*bind(path, target))


# --- less rights --------------------------------------------------------------------------------


def _give_up(host: Host) -> None:
    mask = sum(1 << syscalls.CAPABILITIES.index(name) for name in host.capabilities)
    if host.filter == "owners":  # as root, so that newuidmap still gains rights
        syscalls.set_filter(_program_of_owners())
    if host.user:
        _drop_bounding(mask)
        uid, gid = host.user
        os.setgroups([])
        os.setresgid(gid, gid, gid)
        # The capabilities of others go with this; root keeps those in the bounding set.
        os.setresuid(uid, uid, uid)
        syscalls.capset(mask, mask, 0)
    elif host.ids != "host":
        syscalls.capset(mask, mask, mask)
        for name in host.capabilities:
            syscalls.prctl(_PR_CAP_AMBIENT, _RAISE, syscalls.CAPABILITIES.index(name))
    if host.no_new_privs or host.filter in ("namespaces", "docker"):
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)
    if host.filter in ("namespaces", "docker"):
        syscalls.set_filter(_program(host.filter))


def _drop_bounding(mask: int) -> None:
    for number in range(len(syscalls.CAPABILITIES)):
        if not mask & 1 << number:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)


def _program(kind: Filter) -> bytes:
    """Classic BPF over `struct seccomp_data`: the number at byte 0, the first argument at 16."""
    numbers = NUMBERS[os.uname().machine]
    flags = {"namespaces": 0x10000000, "docker": _NEW_NAMESPACES}[kind]
    code = [(0x20, 0, 0, 0)]
    for name in _DOCKER_DENIES if kind == "docker" else []:
        code += [(0x15, 0, 1, numbers[name]), _answer(_EPERM)]
    # What it makes is behind a pointer, where no filter sees it.
    code += [(0x15, 0, 1, numbers["clone3"]), _answer(_ENOSYS)]
    for name in ("unshare", "clone"):
        code += [(0x15, 0, 4, numbers[name]), (0x20, 0, 0, 16), (0x45, 0, 1, flags)]
        code += [_answer(_EPERM), (0x06, 0, 0, 0x7FFF0000)]
    code.append((0x06, 0, 0, 0x7FFF0000))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def _program_of_owners() -> bytes:
    """Lets chown(2) give files to root of a namespace or to nobody new, and to no other id."""
    numbers = NUMBERS[os.uname().machine]
    code = [(0x20, 0, 0, 0)]
    for name, user in (("chown", 24), ("lchown", 24), ("fchown", 24), ("fchownat", 32)):
        if name in numbers:
            code += [(0x15, 0, 5, numbers[name]), (0x20, 0, 0, user)]
            code += [(0x15, 2, 0, 0), (0x15, 1, 0, 0xFFFFFFFF), _answer(_EPERM)]
            code.append((0x06, 0, 0, 0x7FFF0000))
    code.append((0x06, 0, 0, 0x7FFF0000))
    return b"".join(struct.pack("=HBBI", *one) for one in code)


def _answer(number: int) -> tuple[int, int, int, int]:
    return (0x06, 0, 0, 0x00050000 | number)


def _parse(text: str) -> Host:
    fields: dict[str, Any] = json.loads(text)
    for name in ("mounts", "writes", "shared", "capabilities"):
        fields[name] = tuple(tuple(one) if isinstance(one, list) else one for one in fields[name])
    return Host(**fields)


if __name__ == "__main__":
    main(_parse(sys.argv[1]), sys.argv[2:])
