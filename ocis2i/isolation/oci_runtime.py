"""The OCI runtime config of a run (runtime-spec `config.json`), written by ourselves.

runc reads it as a file; the agent's builtin executor takes the same object.
"""

from __future__ import annotations

import os
import re
import resource
from typing import Any

from ocis2i.errors import ImageError, PolicyError
from ocis2i.runner import BindMount, Network, RunSpec

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
# MAX_ARG_STRLEN of the kernel (include/uapi/linux/binfmts.h), its zero byte included.
_LONGEST_TEXT = 128 << 10


def runtime_config(spec: RunSpec, rootfs: str) -> dict[str, Any]:
    """The config for `spec` in the mounted tree `rootfs`. Pure but for the kernel's version and our
    own limits.

    No user namespace: the agent is in one already. No cgroup settings: without delegation they are
    an error (runc).
    """
    _check_texts(spec)
    capabilities = list(spec.capabilities)
    namespaces = ["mount", "pid", "ipc", "uts", "cgroup"]
    if spec.network == "none":
        namespaces.append("network")  # runc, too, brings up the loopback device in a new one
    return {
        "ociVersion": "1.0.2",
        "hostname": spec.hostname,
        "root": {"path": rootfs, "readonly": False},
        "process": {
            "terminal": False,
            "user": {
                "uid": spec.identity.uid,
                "gid": spec.identity.gid,
                "additionalGids": list(spec.identity.groups),
                "umask": 0o022,
            },
            "args": list(spec.argv),
            "env": list(spec.environment),
            "cwd": spec.cwd,
            "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            "rlimits": _limits(),
            "noNewPrivileges": True,
        },
        "mounts": [
            *_kernel_mounts(),
            *_sys_mounts(spec.network),
            *(_bind(mount) for mount in spec.mounts),
        ],
        "linux": {
            "namespaces": [{"type": kind} for kind in namespaces],
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READ_ONLY_PATHS),
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


def _limits() -> list[dict[str, Any]]:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    return [
        {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
        {"type": "RLIMIT_NOFILE", "soft": files, "hard": files},
    ]


def _kernel_mounts() -> list[dict[str, Any]]:
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", "proc", quiet),
        _mount("/dev", "tmpfs", "tmpfs", ["nosuid", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
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
    options = ["rbind", "rprivate", "nosuid", "nodev"]
    if mount.read_only:
        options += _read_only()
    return _mount(mount.target, "bind", mount.source, options)


def _read_only() -> list[str]:
    """Read-only with all mounts below, such as the caller's own cgroups in /sys.

    `ro` alone stops at the first. Kernels before 5.12 have no mount_setattr(2); runc needs 1.1.
    """
    major, minor = (int(number) for number in re.findall("[0-9]+", os.uname().release)[:2])
    return ["ro", "rro"] if (major, minor) >= (5, 12) else ["ro"]


def _mount(destination: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": destination, "type": kind, "source": source, "options": options}
