"""Finds out where we are: a host, a container, a pod, and what its kernel's switches say."""

from __future__ import annotations

import os
from pathlib import Path

from ocis2i.isolation.sentences import Place, PlaceKind

# OpenShift gives each of its namespaces a range of user ids from here on.
_FIRST_OPENSHIFT_UID = 1_000_000_000
# What the kubelet writes on top of a container's /etc/hosts.
_KUBELET = "# Kubernetes-managed hosts file"
_MARKS = ("/.dockerenv", "/run/.containerenv")


def find_place() -> Place:
    """Reads a handful of files; none of them has to be there."""
    status = status_fields(_read("/proc/self/status"))
    mounts = _read("/proc/self/mountinfo")
    return Place(
        kind=kind_of(
            marked=any(Path(path).exists() for path in _MARKS),
            hosts=_read("/etc/hosts"),
            mounts=mounts,
            uid=os.getuid(),
        ),
        root_is_a_disk=root_is_a_disk(mounts),
        family=family_of(_read("/etc/os-release")),
        apparmor_restricts=_switch("kernel/apparmor_restrict_unprivileged_userns"),
        userns_clone=_switch("kernel/unprivileged_userns_clone"),
        most_namespaces=_number("user/max_user_namespaces"),
        no_new_privs=status.get("NoNewPrivs") == "1",
        filtered=status.get("Seccomp") == "2",
    )


def kind_of(*, marked: bool, hosts: str, mounts: str, uid: int) -> PlaceKind:
    """What kind of place has these files. Pure.

    A mark alone says little: virtual machines are made of container images too, with the mark in
    them. Their root is a whole disk, that of a container is put together, or a directory of one.
    """
    if hosts.startswith(_KUBELET):
        return "openshift" if uid >= _FIRST_OPENSHIFT_UID else "pod"
    is_whole_disk = root_is_a_disk(mounts) and _root(mounts)[0] == "/"
    return "container" if marked and not is_whole_disk else "host"


def root_is_a_disk(mounts: str) -> bool:
    """Whether `/` is of a block device, by proc_pid_mountinfo(5). Pure."""
    return _root(mounts)[1].startswith("/dev/")


def _root(mounts: str) -> tuple[str, str]:
    """Which directory of which source `/` is."""
    found = ("", "")
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        words, more = left.split(), right.split()
        if words[4:5] == ["/"]:  # the last one lies on top
            found = (words[3], more[1] if len(more) > 1 else "")
    return found


def family_of(release: str) -> frozenset[str]:
    """The distribution's name and those that it is like, from os-release(5). Pure."""
    names: set[str] = set()
    for line in release.splitlines():
        key, _, value = line.partition("=")
        if key in ("ID", "ID_LIKE"):
            names.update(value.strip("\"'").split())
    return frozenset(names)


def status_fields(text: str) -> dict[str, str]:
    """The lines of /proc/self/status. Pure."""
    return {
        key: value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())
    }


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _number(name: str) -> int | None:
    text = _read(f"/proc/sys/{name}").strip()
    return int(text) if text.isdigit() else None


def _switch(name: str) -> bool | None:
    value = _number(name)
    return None if value is None else value != 0
