"""The OCI runtime config of a run (runtime-spec `config.json`), written by ourselves.

runc reads it as a file; the agent's builtin executor takes the same object.
"""

from __future__ import annotations

import base64
import os
import re
import resource
from dataclasses import replace
from typing import Any

from ocis2i import seccomp
from ocis2i.errors import ImageError, PolicyError
from ocis2i.isolation.ground import FULL, Ground
from ocis2i.limits import TASKS_BESIDE, Limits
from ocis2i.runner import BindMount, Hardening, Network, RunSpec

# Docker's lists (moby `oci/defaults.go`): what tells or changes too much about the host.
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
)
READ_ONLY_PATHS = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
# Directories that every container has something mounted on; images may lack them.
MOUNT_TARGETS = ("/proc", "/dev", "/sys")

_OPEN_FILES = 1 << 20
# RLIMIT_DATA counts what a process has reserved, stacks of threads and all, and not what it uses.
# It bounds what can be taken between two looks of the agent.
_DATA_FACTOR = 2
# runc itself, which is under the limit already when it makes the seccomp filter, reserves more.
_LEAST_DATA_BYTES = 256 << 20
# MAX_ARG_STRLEN of the kernel (include/uapi/linux/binfmts.h), its zero byte included.
_LONGEST_TEXT = 128 << 10


def runtime_config(spec: RunSpec, rootfs: str, ground: Ground = FULL) -> dict[str, Any]:
    """The config for `spec` in the mounted tree `rootfs`. Pure but for the kernel's version and our
    own limits.

    No user namespace: the agent is in one already. No cgroup settings: without delegation they are
    an error (runc).
    """
    _check_texts(spec)
    capabilities = list(spec.capabilities)
    namespaces = [{"type": kind} for kind in ("mount", "pid", "ipc", "uts", "cgroup")]
    if spec.netns:
        namespaces.append({"type": "network", "path": spec.netns})
    elif spec.network != "host":
        namespaces.append({"type": "network"})  # runc, too, brings up the loopback device in it
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": rootfs, "readonly": False},
        "process": {
            "terminal": spec.terminal is not None,
            # crun before 1.8.7 takes it from nowhere else.
            **(_console_size(*spec.terminal) if spec.terminal else {}),
            "user": {
                "uid": spec.identity.uid,
                "gid": spec.identity.gid,
                # With a single id setgroups(2) is forbidden for good (user_namespaces(7)).
                "additionalGids": [] if ground.squashed else list(spec.identity.groups),
                "umask": 0o022,
            },
            "args": list(spec.argv),
            "env": list(spec.environment),
            "cwd": spec.cwd,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": _limits(spec.limits),
            "noNewPrivileges": _no_new_privileges(spec),
        },
        "mounts": [
            *_kernel_mounts(ground),
            *_sys_mounts(spec.network),
            *(_bind(mount) for mount in spec.mounts),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
            **_seccomp(spec.hardening),
        },
    }


def _check_texts(spec: RunSpec) -> None:
    """Refuses what an image may say and no process can be given (execve(2))."""
    for entry in spec.environment:
        name, equals, _ = entry.partition("=")
        if not name or not equals or "\0" in entry:
            raise ImageError(
                f"the image has the environment variable `{name or entry}`, which is no NAME=VALUE"
            )
        if len(entry.encode(errors="surrogateescape")) >= _LONGEST_TEXT:
            raise PolicyError(
                f"variable `{name}` has {len(entry)} characters, a process can be given "
                f"{_LONGEST_TEXT - 1} bytes in one",
                hint="put it into a file and give that by --volume",
            )
    for text in (*spec.argv, spec.cwd):
        if "\0" in text:
            raise ImageError(f"the image has a zero byte in `{text}`")


def _console_size(rows: int, columns: int) -> dict[str, Any]:
    return {"consoleSize": {"height": rows, "width": columns}}


def _no_new_privileges(spec: RunSpec) -> bool:
    # Without it the filter would come before the user is changed, and fake that as well.
    return spec.hardening.no_new_privs or spec.hardening.fake_ids


def _limits(limits: Limits) -> list[dict[str, Any]]:
    wanted = {"RLIMIT_CORE": 0, "RLIMIT_NOFILE": _OPEN_FILES}
    if limits.tasks is not None:
        wanted["RLIMIT_NPROC"] = limits.tasks + TASKS_BESIDE
    if limits.memory_bytes is not None:
        wanted["RLIMIT_DATA"] = max(limits.memory_bytes * _DATA_FACTOR, _LEAST_DATA_BYTES)
    return [_limit(kind, value) for kind, value in wanted.items()]


def _limit(kind: str, wanted: int) -> dict[str, Any]:
    _, hard = resource.getrlimit(getattr(resource, kind))
    value = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    return {"type": kind, "soft": value, "hard": value}


def profile_of(hardening: Hardening) -> seccomp.Profile | None:
    """The seccomp profile for a container; `None`: there is none to install.

    For an architecture without a profile there is none, whatever was asked for.
    """
    if not seccomp.is_known(os.uname().machine) or not (hardening.seccomp or hardening.fake_ids):
        return None
    return seccomp.Profile(confined=hardening.seccomp, fake_ids=hardening.fake_ids)


def _seccomp(hardening: Hardening) -> dict[str, Any]:
    profile = profile_of(hardening)
    if profile is None:
        return {}
    return {"seccomp": seccomp.runtime_profile(profile, os.uname().machine)}


def with_filter(
    config: dict[str, Any], hardening: Hardening, *, tracing: bool = True
) -> dict[str, Any]:
    """`config` for executors without libseccomp: the same profile as BPF, in base64.

    `tracing` is for processes in a pid namespace of their own.
    """
    linux = {name: value for name, value in config["linux"].items() if name != "seccomp"}
    profile = profile_of(hardening)
    if profile is not None:
        program = seccomp.program(replace(profile, tracing=tracing), os.uname().machine)
        linux["filter"] = base64.b64encode(program).decode()
    return {**config, "linux": linux}


def _kernel_mounts(ground: Ground) -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    terminals = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    return [
        # With its mounts: without the masks on it the kernel does not let it go (EINVAL).
        _mount("/proc", "proc", "proc", quiet)
        if ground.fresh_proc
        else _mount("/proc", "none", "/proc", ["rbind", *quiet]),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
        # Debian's group `tty`, which an agent with one id does not have.
        _mount(
            "/dev/pts", "devpts", "devpts", [*terminals, *([] if ground.squashed else ["gid=5"])]
        ),
        _mount("/dev/shm", "tmpfs", "shm", [*quiet, "mode=1777", "size=65536k"]),  # noqa: S108
        _mount("/dev/mqueue", "mqueue", "mqueue", quiet),
    ]


def _sys_mounts(network: Network) -> list[dict[str, Any]]:
    """sysfs belongs to the network namespace (sysfs(5)).

    Of the host's only a bind is allowed, which also brings the cgroups. One of our own shows its
    own devices and not the host's; the cgroups, where programs look for their limits, are added.
    """
    bound = ["rbind", *_read_only(), "nosuid", "noexec", "nodev"]
    if network == "host":
        return [_mount("/sys", "none", "/sys", bound)]
    return [
        _mount("/sys", "sysfs", "sysfs", ["ro", "nosuid", "noexec", "nodev"]),
        _mount("/sys/fs/cgroup", "none", "/sys/fs/cgroup", bound),
    ]


def _bind(mount: BindMount) -> dict[str, Any]:
    options = ["rbind", "rprivate", "nosuid", "nodev", *_locked(mount.source)]
    if mount.read_only:
        # Nothing is below a file, and crun opens what it sets recursively as a directory.
        options += _read_only() if mount.directory else ["ro"]
    return _mount(mount.target, "bind", mount.source, options)


def _locked(source: str) -> list[str]:
    """Options that the host's mount has and a user namespace must not take away.

    The kernel refuses a bind without them (mount_namespaces(7)): runc sets all flags again.
    """
    try:
        flags = os.statvfs(source).f_flag
    except OSError:  # only the agent sees it, and mounted it itself
        return []
    options = (("noexec", os.ST_NOEXEC), ("ro", os.ST_RDONLY))
    return [name for name, flag in options if flags & flag]


def _read_only() -> list[str]:
    """Read-only with all mounts below, such as the caller's own cgroups in /sys.

    `ro` alone stops at the first. Kernels before 5.12 have no mount_setattr(2); runc needs 1.1.
    """
    major, minor = (int(number) for number in re.findall("[0-9]+", os.uname().release)[:2])
    return ["ro", "rro"] if (major, minor) >= (5, 12) else ["ro"]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}
