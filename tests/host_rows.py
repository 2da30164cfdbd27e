"""The hosts on which ocis2i is tried, what it does on each, and what scripts try in vain.

The tests take their expectations from here, and `tests/host_matrix.py` the page for people: so
there is no cell without a test. Imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Cell:
    """A host and the answer: a build by `by`, or the sentence and the way out of a `refusal`.

    `made` says how the test makes such a host, `flags` are given besides, `said` is a part of what
    a build that works says of it. `root`: it takes root of this host to make it.
    """

    id: str
    host: str
    made: str
    flags: tuple[str, ...] = ()
    by: str = ""
    said: str = ""
    code: int = 0
    refusal: str = ""
    way_out: str = ""
    root: bool = False


CELLS = (
    Cell(
        "unrestricted",
        "an ordinary one: subordinate ids, newuidmap, runc",
        "nothing is changed",
        by="runc",
    ),
    Cell(
        "no-subordinate-ids",
        "no subordinate ids",
        "other files stand on /etc/subuid and /etc/subgid",
        by="builtin",
        said="has no subordinate ids in /etc/subuid: one user id only",
    ),
    Cell(
        "no-newuidmap",
        "no `newuidmap`",
        "/dev/null stands on newuidmap and newgidmap",
        by="builtin",
        said="`newuidmap` is not installed: one user id only",
    ),
    Cell(
        "no-new-privs",
        "no_new_privs: no setuid program gains anything",
        "prctl(PR_SET_NO_NEW_PRIVS)",
        by="builtin",
        said="one user id only",
    ),
    Cell("no-runc", "no runc", "/dev/null stands on runc", by="crun"),
    Cell(
        "no-runtime",
        "neither runc nor crun",
        "/dev/null stands on both",
        by="builtin",
    ),
    Cell(
        "nothing-installed",
        "nothing but Python and git",
        "a `PATH` with only those; /dev/null stands on runc, crun, buildah and newuidmap",
        by="builtin",
        said="`newuidmap` is not installed: one user id only",
    ),
    Cell(
        "store-on-overlay",
        "overlay refused: the store is on an overlay itself, as in a container",
        "an overlay is mounted on the store",
        by="runc",
        said="each build gets a copy of the image",
    ),
    Cell(
        "store-without-attributes",
        "overlay refused: no attributes of users, as on NFS",
        "a ramfs is mounted on the store",
        by="runc",
        said="each build gets a copy of the image",
    ),
    Cell(
        "store-of-one-owner",
        "the store takes no files of other ids, as on NFS",
        "a filter answers EPERM to chown with another id than root's",
        by="builtin",
        said="the store's file system does not take files of subordinate ids",
    ),
    Cell(
        "store-on-tmpfs",
        "the store on a tmpfs",
        "a tmpfs is mounted on the store",
        by="runc",
    ),
    Cell(
        "noexec-store",
        "the store on a noexec file system",
        "a noexec tmpfs is mounted on the store",
        by="runc",
    ),
    Cell(
        "noexec-store-copy",
        "the store on a noexec file system, and no overlay",
        "a noexec tmpfs is mounted on the store",
        flags=("--rootfs", "copy"),
        code=6,
        refusal="nothing can be executed in the store: its file system is mounted noexec",
        way_out="put the store where programs may run with --root",
    ),
    Cell(
        "noexec-tmp",
        "a noexec directory for temporary files",
        "a noexec tmpfs is `TMPDIR`",
        by="runc",
    ),
    Cell(
        "full-disk",
        "1 MiB free",
        "a tmpfs of 1 MiB is mounted on the store",
        code=8,
        refusal="the store cannot be written: the disk is full",
        way_out="free some space (`ocis2i prune`), or use another disk with --root",
    ),
    Cell(
        "read-only-home",
        "a read-only home, the store elsewhere",
        "the home directory is bound on itself, read-only",
        by="runc",
    ),
    Cell(
        "read-only-home-and-store",
        "a read-only home, and the store in it",
        "the home directory is bound on itself, read-only",
        code=8,
        refusal="cannot be used: Read-only file system",
        way_out="use another directory with --root or OCIS2I_ROOT",
    ),
    Cell(
        "masked-proc",
        "parts of /proc hidden, as in a container",
        "/dev/null stands on some of its files",
        by="builtin",
        said="parts of /proc are hidden here: containers see that of the host",
    ),
    Cell(
        "no-namespaces-left",
        "user namespaces refused: limit 0",
        "user.max_user_namespaces is 0 in a user namespace around it",
        code=6,
        refusal="this host allows no (more) user namespaces",
        way_out="raise the sysctl: `sysctl user.max_user_namespaces=15000`",
    ),
    Cell(
        "namespaces-filtered",
        "user namespaces refused: by a seccomp filter",
        "a filter answers EPERM to unshare and clone with CLONE_NEWUSER",
        code=6,
        refusal="a seccomp filter forbids user namespaces",
        way_out="start ocis2i without the filter that its parent set",
    ),
    Cell(
        "restricted-pod",
        "a restricted pod: uid 1000660000, gid 0, no capabilities, no_new_privs, seccomp",
        "a container of the builder image with Docker's filter, uid 1000660000",
        code=6,
        refusal="a seccomp filter forbids user namespaces",
        way_out="give the pod the SCC `nested-container`",
    ),
    Cell(
        "restricted-pod-in-place",
        "the same, in place",
        "a container of the builder image with Docker's filter, uid 1000660000",
        flags=("--isolation", "in-place"),
        by="in-place",
    ),
    Cell(
        "ordinary-pod-in-place",
        "a pod of the image's own user, in place",
        "a container of the builder image with Docker's filter, uid 1001",
        flags=("--isolation", "in-place"),
        by="in-place",
    ),
    Cell(
        "pod-with-user-namespace",
        "a pod with `hostUsers: false`, root with SYS_ADMIN",
        "a container of the builder image with these rights, a tmpfs for the store",
        by="builtin",
    ),
    Cell(
        "container-root",
        "root in a Docker container",
        "a container of the builder image with Docker's capabilities and filter",
        code=6,
        refusal="ocis2i builds as an ordinary user, and you are root",
        way_out="--isolation chroot, which protects less",
        root=True,
    ),
    Cell(
        "container-root-chroot",
        "the same, by chroot, the store on the container's overlay",
        "a container of the builder image with Docker's capabilities and filter",
        flags=("--isolation", "chroot"),
        by="chroot",
        root=True,
    ),
    Cell(
        "rootless-container-root-chroot",
        "root in a rootless container, by chroot",
        "the same in a user namespace",
        flags=("--isolation", "chroot"),
        code=6,
        refusal="`/dev/null` cannot be made for the scripts: Operation not permitted",
        way_out="--isolation chroot takes the capability MKNOD",
    ),
)


@dataclass(frozen=True, slots=True)
class Attempt:
    """What a script tries.

    `open` names the rungs that do not keep it from that, and why not; on those of `unless` it
    fails as long as the script does not do this first.
    """

    id: str
    what: str
    open: Mapping[str, str] = field(default_factory=dict)
    unless: Mapping[str, str] = field(default_factory=dict)


# The names of the rungs for people.
RUNGS = {
    "runc": "runc",
    "crun": "crun",
    "builtin": "builtin",
    "single": "builtin, one user id",
    "nested": "builtin, nested",
    "buildah": "buildah",
    "chroot": "chroot",
    "chroot-root": "chroot, as root",
    "in-place": "in-place",
}
WEAK = ("chroot", "chroot-root", "in-place")
ISOLATED = tuple(rung for rung in RUNGS if rung not in WEAK)

_NETWORK = "the network is the container's; `--network none` is refused"
_ENDS_US = "it ends both ocis2i and its agent before, as it may"

ATTEMPTS = (
    Attempt(
        "write-outside",
        "write to the caller's home and to other places of the host",
        {"in-place": "what this user may write in the container it may write"},
    ),
    Attempt(
        "read-private-file",
        "read a file of the caller's with mode 0600",
        {"in-place": "the script is the same user"},
    ),
    Attempt(
        "registry-credentials",
        "find the caller's registry credentials",
        {"in-place": "the script is the same user; give them to `ocis2i push`, later"},
    ),
    Attempt(
        "list-processes",
        "see the command lines of other processes",
        {
            "nested": "/proc is that of the host; nothing but numbers and command lines is open",
            "in-place": "the processes are those of the container",
        },
    ),
    Attempt(
        "environment",
        "read the environment of ocis2i and of other processes",
        {"in-place": "the script is the same user"},
    ),
    Attempt(
        "signal",
        "kill a process of the host",
        {
            "chroot-root": "root may signal what it has the number of",
            "in-place": "the script is the same user",
        },
    ),
    Attempt(
        "ptrace",
        "trace a process of the host, or read its memory",
        {"in-place": "the script is the same user"},
    ),
    Attempt("mount", "mount something, or get a namespace where one can"),
    Attempt("module", "load a kernel module, another kernel or a BPF program"),
    Attempt("keyring", "use the caller's keyrings"),
    Attempt(
        "agent-socket",
        "connect to a socket of the host by its path: ssh-agent, a container daemon",
        {"in-place": "the script sees the files of the container"},
    ),
    Attempt(
        "abstract-socket",
        "connect to an abstract socket of the host, with `--network none`",
        dict.fromkeys(WEAK, _NETWORK),
    ),
    Attempt(
        "background",
        "leave a process behind that has left its session",
        unless={"chroot-root": _ENDS_US, "in-place": _ENDS_US},
    ),
    Attempt(
        "shared-memory",
        "fill the host's /dev/shm",
        {"in-place": "it is the container's, which has its own limit"},
    ),
    Attempt("descriptor", "write to a descriptor that ocis2i was started with"),
    Attempt("terminal", "push input into the caller's terminal (TIOCSTI)"),
    Attempt("setuid", "become another user by a setuid program, a file capability or setuid(2)"),
)
