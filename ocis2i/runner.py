"""What running a script means: the plan, the outcome, and who can carry it out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import field
from typing import BinaryIO, Literal, Protocol, TypeAlias, get_args

from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import Limits
from ocis2i.s2i import Identity

# What a package manager needs that runs as the container's root: Docker's default set without
# NET_RAW, MKNOD and AUDIT_WRITE. Any other user gets none.
ROOT_CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)

# What a container calls itself, in its own UTS namespace.
HOSTNAME = "ocis2i"

# "none" is a network namespace of its own with nothing in it but the loopback device. So is
# "proxy", where a proxy of ours listens on that; in the others a program brings a second device.
Network: TypeAlias = Literal["host", "none", "proxy", "slirp4netns", "pasta"]
NETWORKS: tuple[Network, ...] = get_args(Network)

OutputLine = Callable[[Literal["stdout", "stderr"], str], None]


@dataclass(frozen=True, slots=True)
class BindMount:
    """A file or directory of the host (`source`, absolute) at `target` in the container."""

    source: str
    target: str
    read_only: bool = False
    directory: bool = True


@dataclass(frozen=True, slots=True)
class Hardening:
    """What the kernel is told to keep from a container's processes.

    `seccomp`: the system calls that no build needs (`ocis2i.seccomp`). `no_new_privs`: what setuid
    and file capabilities would give. `fake_ids`: changes of ids and owners seem to work and do
    nothing, for a root that has one user id alone.
    """

    seccomp: bool = True
    no_new_privs: bool = True
    fake_ids: bool = False


@dataclass(frozen=True, slots=True)
class RunSpec:
    """One process to run in a container: all that any executor has to know.

    `cap_drop` are names as `linux/capability.h` has them, or `ALL`. `netns` is the network
    namespace to be in, a path in the agent's mount namespace; without one `network` says which.
    With `terminal` (rows and columns) it gets one of its own, joined with ours (descriptors 0 and
    2), and `Stdio` counts for nothing.
    """

    argv: tuple[str, ...]
    environment: tuple[str, ...]
    cwd: str
    identity: Identity
    mounts: tuple[BindMount, ...] = ()
    hostname: str = HOSTNAME
    cap_drop: frozenset[str] = frozenset()
    network: Network = "host"
    netns: str | None = None
    limits: Limits = field(default_factory=Limits)
    hardening: Hardening = field(default_factory=Hardening)
    terminal: tuple[int, int] | None = None

    @property
    def capabilities(self) -> tuple[str, ...]:
        """What the process may do: only root may do anything, and less what was dropped."""
        if self.identity.uid != 0 or "ALL" in self.cap_drop:
            return ()
        return tuple(name for name in ROOT_CAPABILITIES if name not in self.cap_drop)


@dataclass(frozen=True, slots=True)
class RunResult:
    """How it ended; an `exit_code` of 128 + N stands for signal N, as in a shell."""

    exit_code: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Stdio:
    """Where a process's output goes: to `line`, or, when that is `None`, to our own streams.

    With `output` the bytes of standard output go there as they are, and only standard error to
    `line`. A process that writes more than `output_limit` bytes is killed.
    """

    line: OutputLine | None = None
    output: BinaryIO | None = None
    output_limit: int | None = None


@dataclass(frozen=True, slots=True)
class Availability:
    """Whether an executor can work here, and the sentence for people."""

    usable: bool
    reason: str


class RootfsHandle(Protocol):
    """A mounted, writable tree, as a runner needs it (see `ocis2i.rootfs.Rootfs`)."""

    @property
    def path(self) -> str:
        """Where it is mounted, in the agent's mount namespace."""

    @property
    def build(self) -> str:
        """The build's own directory, for files that the executor needs."""


class Runner(Protocol):
    """Runs a process in a mounted rootfs."""

    @property
    def name(self) -> str:
        """The name that `--isolation` takes."""

    def check(self) -> Availability:
        """Whether this host has what the runner needs."""

    def run(self, rootfs: RootfsHandle, spec: RunSpec, stdio: Stdio) -> RunResult:
        """Runs the process to its end.

        Raises `IsolationError` when it cannot be started, `PolicyError` when it goes over one of
        `spec.limits` or writes more than `stdio.output_limit`, `OutputError` when `stdio.output`
        does not take what it writes. After the last two the process is gone, and the runner can be
        used again.
        """
