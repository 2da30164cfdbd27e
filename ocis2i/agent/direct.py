"""Runs a process without any namespace: in a tree by chroot(2), or right where the agent is.

For hosts that allow neither user namespaces nor mounts. What keeps the process from the rest is its
user, that it can gain no other, and the tree that it is in; processes and network are the host's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, NoReturn

from ocis2i import syscalls
from ocis2i.agent.container import LINKS, started, turn_into
from ocis2i.agent.failure import AgentError, explain
from ocis2i.agent.tree import (
    DIRECTORY,
    Attributes,
    open_regular,
    opened,
    remove_tree,
    resolve,
    times_kept,
    write_file,
)

Config = dict[str, Any]

# What containers have something mounted on, and so nothing of it in their layers.
KERNELS_PLACES = frozenset((b"dev", b"proc", b"sys"))

# Documentation/admin-guide/devices.txt: harmless, and the same everywhere.
_DEVICES = {
    "null": (1, 3),
    "zero": (1, 5),
    "full": (1, 7),
    "random": (1, 8),
    "urandom": (1, 9),
    "tty": (5, 0),
}
_SET_CAPABILITIES = 1 << syscalls.CAPABILITIES.index("CAP_SETPCAP")


def start(config: Config, stdio: list[int], *, root: str | None, console: int | None = None) -> int:
    """Starts the process of an OCI runtime config in the tree `root`; `None`: where the agent is.

    Of the config its `process` counts, and the filter; without a tree the user stays who it is.
    Returns its pid. `console`, and the `AgentError` that is raised, are as in
    `ocis2i.agent.container.start`.
    """
    # A filter takes no_new_privs, or rights that nobody has here.
    config = {**config, "process": {**config["process"], "noNewPrivileges": True}}
    agent = os.getpid()
    become = _staying(agent) if root is None else _entering(root, agent)

    def child(errors: int) -> NoReturn:
        for number, fd in enumerate(stdio):
            os.dup2(fd, number, inheritable=True)
        turn_into(config, errors, become, console=console)

    return started(child)


def _staying(agent: int) -> Callable[[Config], None]:
    """Keeps the user and gives up what a user of containers has not."""

    def become(process: Config) -> None:
        _drop(_mask(process) & _permitted())
        _die_with(agent)

    return become


def _entering(root: str, agent: int) -> Callable[[Config], None]:
    """Goes into the tree for good, then becomes the user."""

    def become(process: Config) -> None:
        user = process["user"]
        mask = _mask(process) & _permitted()  # which /proc tells: there is none in the tree
        os.chroot(root)
        os.chdir("/")
        _drop_bounding(mask)
        os.setgroups(user["additionalGids"])
        os.setresgid(user["gid"], user["gid"], user["gid"])
        os.setresuid(user["uid"], user["uid"], user["uid"])
        _set(mask if user["uid"] == 0 else 0)
        # After the change of ids, which clears it (prctl(2)).
        _die_with(agent)

    return become


def _die_with(agent: int) -> None:
    """The end of the agent is the end of this process: there is no pid namespace to see to it."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != agent:  # it was faster
        os._exit(1)


def _mask(process: Config) -> int:
    names = process["capabilities"]["bounding"]
    return sum(1 << syscalls.CAPABILITIES.index(name) for name in names)


def _permitted() -> int:
    with open("/proc/self/status", "rb") as status:
        for line in status:
            if line.startswith(b"CapPrm:"):
                return int(line.split()[1], 16)
    return 0


def _drop(mask: int) -> None:
    if _permitted() & _SET_CAPABILITIES:
        _drop_bounding(mask)
    _set(mask)


def _set(mask: int) -> None:
    syscalls.capset(mask, mask, 0)


def _drop_bounding(mask: int) -> None:
    for number in range(len(syscalls.CAPABILITIES)):
        if mask & 1 << number:
            continue
        try:
            syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
        except OSError as error:
            # A capability that this kernel does not know; or that we may not drop, and then
            # no_new_privs keeps the process from ever getting it.
            if error.errno not in (errno.EINVAL, errno.EPERM):
                raise


# --- what stands in a tree for the mounts of a container ----------------------------------------


class _Kept(NamedTuple):
    """A name in an open directory that holds a file of ours; the image's own is at `aside`."""

    directory: int
    name: bytes
    aside: str


@contextmanager
def furnished(root: str, files: Sequence[Sequence[str]]) -> Iterator[None]:
    """Devices in the tree's /dev, and the `files` (source, target) in place of its own.

    At the end those are as they were before, whatever the process has made of them: elsewhere they
    are mounts, and nothing of them is in the layer. The devices stay; /dev never is in it.
    """
    with opened(root) as fd, contextlib.ExitStack() as stack:
        _make_devices(fd)
        for number, (source, target) in enumerate(files):
            kept = _put(fd, source, target, f"{os.path.dirname(root)}/kept-{number}")
            if kept is not None:
                stack.callback(_put_back, kept)
        yield


def _make_devices(root: int) -> None:
    try:
        dev = syscalls.open_in_root(root, b"dev", os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise explain(error, "the image's /dev cannot be used") from error
    try:
        for name, number in _DEVICES.items():
            _make_device(dev, name, os.makedev(*number))
        for name, target in LINKS.items():
            with contextlib.suppress(FileExistsError):
                os.symlink(target, name, dir_fd=dev)
        with contextlib.suppress(FileExistsError):
            os.mkdir("shm", 0o1777, dir_fd=dev)
    finally:
        os.close(dev)


def _make_device(dev: int, name: str, number: int) -> None:
    try:
        facts = os.stat(name, dir_fd=dev, follow_symlinks=False)
        if stat.S_ISCHR(facts.st_mode) and facts.st_rdev == number:
            return
        remove_tree(dev, name)
    except FileNotFoundError:
        pass
    try:
        os.mknod(name, stat.S_IFCHR | 0o666, number, dir_fd=dev)
        if name == "null":
            os.close(os.open(name, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dev))
    except PermissionError as error:
        raise AgentError(
            "isolation",
            f"`/dev/{name}` cannot be made for the scripts: {error.strerror}",
            "--isolation chroot takes the capability MKNOD, which Docker and Kubernetes give by "
            "default, no user namespace, and a store (--root) that is not mounted nodev",
        ) from error


def _put(root: int, source: str, target: str, aside: str) -> _Kept | None:
    found, missing = resolve(root, os.fsencode(target))
    if missing:
        return None  # an earlier script has taken it away
    parent, _, name = found.rpartition(b"/")
    directory = syscalls.open_in_root(root, parent, DIRECTORY)
    content = open_regular(source)
    try:
        with times_kept(directory):
            os.rename(name, aside, src_dir_fd=directory)
            mtime_ns = os.fstat(content).st_mtime_ns
            write_file(directory, name, content, Attributes(0, 0, 0o644, mtime_ns))
    except BaseException:
        os.close(directory)
        raise
    finally:
        os.close(content)
    return _Kept(directory, name, aside)


def _put_back(kept: _Kept) -> None:
    try:
        # A directory that is gone takes nothing back, and there is nothing in it to be put right.
        with times_kept(kept.directory), contextlib.suppress(FileNotFoundError):
            remove_tree(kept.directory, kept.name)
            os.rename(kept.aside, kept.name, dst_dir_fd=kept.directory)
    finally:
        os.close(kept.directory)
