"""Why a host does not allow what a build needs, and the way out: one table for all who say it.

A build that cannot start and `ocis2i doctor` say the same. The way out depends on where we are: in
a pod it is a line of its manifest, in a container a flag of the command that started it.
"""

from __future__ import annotations

import errno
from dataclasses import field
from typing import Literal, TypeAlias

from ocis2i.errors import IsolationError
from ocis2i.lazy_dataclass import dataclass

PlaceKind: TypeAlias = Literal["host", "container", "pod", "openshift"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where we are, as far as it changes what to do.

    `root_is_a_disk`: `/` is of a block device, and not put together as in most containers. `family`
    is that of the distribution (`ID` and `ID_LIKE` of os-release(5)). The switches are sysctls,
    `None` where the kernel has none: AppArmor's against user namespaces for programs without a
    profile (Ubuntu 23.10), Debian's older one, and the most user namespaces.
    """

    kind: PlaceKind = "host"
    root_is_a_disk: bool = False
    family: frozenset[str] = frozenset()
    apparmor_restricts: bool | None = None
    userns_clone: bool | None = None
    most_namespaces: int | None = None
    no_new_privs: bool = False
    filtered: bool = False


HOST = Place()

Cause: TypeAlias = Literal[
    "no-namespaces-left",
    "namespaces-switched-off",
    "apparmor",
    "namespaces-filtered",
    "namespaces-forbidden",
    "native-forbidden",
    "mount-forbidden",
    "root",
    "no-ids",
    "no-mapper",
    "no-new-privs",
    "mapper-fails",
    "one-id",
    "owners-refused",
    "proc-masked",
    "overlay-refused",
    "noexec",
    "no-program",
    "no-runtime",
    "no-capability",
    "no-container",
    "no-devices",
    "read-only-root",
    "no-store",
]


@dataclass(frozen=True, slots=True)
class WayOut:
    """What to do; `exact` are the lines to type, or to put into a file."""

    text: str
    exact: tuple[str, ...] = ()

    @property
    def hint(self) -> str:
        """As the hint of an error: one line, or lines below it where they are of a file."""
        match self.exact:
            case ():
                return self.text
            case (line,):
                return f"{self.text}: `{line}`"
            case lines:
                return f"{self.text}:\n" + "\n".join(f"  {line}" for line in lines)


@dataclass(frozen=True, slots=True)
class _Sentence:
    """What is wrong, and the way out by place; who has none of their own gets that of `host`."""

    text: str
    host: WayOut
    others: dict[PlaceKind, WayOut] = field(default_factory=dict)


def _sysctl(line: str) -> tuple[str]:
    return (f"sysctl {line}",)


_UNCONFINED = (
    "securityContext:",
    "  seccompProfile: {type: Unconfined}",
    "  appArmorProfile: {type: Unconfined}",
)
_DOCKER = ("--security-opt seccomp=unconfined", "--security-opt apparmor=unconfined")
_NESTED = (
    "metadata: {annotations: {openshift.io/required-scc: nested-container}}",
    "spec: {hostUsers: false}",
    "securityContext: {procMount: Unmasked}",
)
_SCC = WayOut(
    "give the pod the SCC `nested-container` (4.20) and a user namespace; below 4.20, and under "
    "`restricted-v2`, --isolation in-place is what there is",
    _NESTED,
)
_IN_CONTAINER: dict[PlaceKind, WayOut] = {
    "container": WayOut("start the container with", _DOCKER),
    "pod": WayOut(
        "give the container this in the pod's manifest; Pod Security must be `privileged` for it, "
        "under `restricted` --isolation in-place is what there is",
        _UNCONFINED,
    ),
    "openshift": _SCC,
}
_NEEDS_SETUID: dict[PlaceKind, WayOut] = {
    "container": WayOut(
        "leave out --security-opt no-new-privileges, and keep the capabilities SETUID and SETGID",
        ("--cap-add SETUID --cap-add SETGID",),
    ),
    "pod": WayOut(
        "let newuidmap have its rights in the pod's manifest",
        (
            "securityContext:",
            "  allowPrivilegeEscalation: true",
            "  capabilities: {add: [SETUID, SETGID]}",
        ),
    ),
    "openshift": _SCC,
}
_LOCAL_DISK = (
    "put the store on a local disk (ext4, xfs, btrfs) or tmpfs with --root; "
    "a directory that is itself on overlayfs or NFS cannot hold it"
)

_TABLE: dict[Cause, _Sentence] = {
    "no-namespaces-left": _Sentence(
        "this host allows no (more) user namespaces",
        WayOut(
            "start ocis2i further out where user namespaces are nested (32 deep at most), or "
            "raise the sysctl",
            _sysctl("user.max_user_namespaces=15000"),
        ),
        {
            kind: WayOut(
                "on the node, not in the container, raise the sysctl",
                _sysctl("user.max_user_namespaces=15000"),
            )
            for kind in ("container", "pod", "openshift")
        },
    ),
    "namespaces-switched-off": _Sentence(
        "this host forbids user namespaces to ordinary users (kernel.unprivileged_userns_clone)",
        WayOut("as root, set the sysctl", _sysctl("kernel.unprivileged_userns_clone=1")),
    ),
    "apparmor": _Sentence(
        "AppArmor takes the rights out of user namespaces "
        "(kernel.apparmor_restrict_unprivileged_userns)",
        WayOut(
            "as root, set the sysctl", _sysctl("kernel.apparmor_restrict_unprivileged_userns=0")
        ),
        _IN_CONTAINER,
    ),
    "namespaces-filtered": _Sentence(
        "a seccomp filter forbids user namespaces",
        WayOut(
            "start ocis2i without the filter that its parent set (`Seccomp` in /proc/self/status)"
        ),
        _IN_CONTAINER,
    ),
    "namespaces-forbidden": _Sentence(
        "this host forbids user namespaces",
        WayOut(
            "a seccomp profile, a security module or the sysctl "
            "kernel.unprivileged_userns_clone stands in the way"
        ),
        _IN_CONTAINER,
    ),
    "native-forbidden": _Sentence(
        "you are root of a user namespace that may make no other namespaces",
        WayOut("it takes CAP_SYS_ADMIN there, and a seccomp filter that allows unshare(2)"),
        {
            "container": WayOut("start the container with", ("--cap-add SYS_ADMIN", *_DOCKER)),
            "pod": WayOut(
                "let the pod's root be root of its own user namespace",
                (
                    "securityContext:",
                    "  capabilities: {add: [SYS_ADMIN]}",
                    "  seccompProfile: {type: Unconfined}",
                    "  appArmorProfile: {type: Unconfined}",
                ),
            ),
            "openshift": _SCC,
        },
    ),
    "mount-forbidden": _Sentence(
        "nothing may be mounted here, also not in a user namespace",
        WayOut("mount(2) must be allowed: by the seccomp filter and the security modules"),
        _IN_CONTAINER,
    ),
    "root": _Sentence(
        "ocis2i builds as an ordinary user, and you are root",
        WayOut("run it as a user that has subordinate ids in /etc/subuid and /etc/subgid"),
        {
            "container": WayOut(
                "start the container with an ordinary user (--user 1000), or say "
                "--isolation chroot, which protects less"
            ),
            "pod": WayOut(
                "give the pod a user namespace of its own, or say --isolation chroot, which "
                "protects less",
                (
                    "spec: {hostUsers: false}",
                    "securityContext: {capabilities: {add: [SYS_ADMIN]}}",
                ),
            ),
            "openshift": _SCC,
        },
    ),
    "no-ids": _Sentence(
        "user `{name}` has no subordinate ids in {path}",
        WayOut(
            "ask an administrator for",
            ("usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}",),
        ),
        {
            kind: WayOut(
                "in the image of this container, for its user",
                ("echo {name}:1:65535 | tee /etc/subuid > /etc/subgid",),
            )
            for kind in ("container", "pod", "openshift")
        },
    ),
    "no-mapper": _Sentence(
        "`{tool}` is not installed",
        WayOut("it is in the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)"),
    ),
    "no-new-privs": _Sentence(
        "`{tool}` failed: no_new_privs is set, so that it gains nothing",
        WayOut("start ocis2i without no_new_privs (setpriv, systemd's NoNewPrivileges=)"),
        _NEEDS_SETUID,
    ),
    "mapper-fails": _Sentence(
        "`{tool}` failed: {said}",
        WayOut(
            "it must be setuid root or have file capabilities, and no_new_privs "
            "(allowPrivilegeEscalation: false) must not be set"
        ),
        _NEEDS_SETUID,
    ),
    "one-id": _Sentence(
        "the user namespace that you are root of has no more ids",
        WayOut("make it with more of them", ("unshare --user --map-auto --map-root-user",)),
        {"pod": WayOut("give the pod one of the node's making", ("spec: {hostUsers: false}",))},
    ),
    "owners-refused": _Sentence(
        "the store's file system does not take files of subordinate ids: {said}",
        WayOut("put the store on a local disk (ext4, xfs, btrfs) or tmpfs with --root"),
    ),
    "proc-masked": _Sentence(
        "parts of /proc are hidden here: containers see that of the host",
        WayOut("start ocis2i where /proc is whole"),
        {
            "container": WayOut(
                "start the container with", ("--security-opt systempaths=unconfined",)
            ),
            "pod": WayOut(
                "show the container all of /proc, in a user namespace of the pod's",
                ("spec: {hostUsers: false}", "securityContext: {procMount: Unmasked}"),
            ),
            "openshift": _SCC,
        },
    ),
    "overlay-refused": _Sentence(
        "{said}",
        WayOut(_LOCAL_DISK),
        {
            "container": WayOut(
                "mount a volume and put the store on it", ("-v ocis2i:/store", "--root /store")
            ),
            "pod": WayOut(
                "mount a volume and put the store on it with --root",
                (
                    "volumes: [{name: store, emptyDir: {sizeLimit: 10Gi}}]",
                    "volumeMounts: [{name: store, mountPath: /store}]",
                ),
            ),
        },
    ),
    "noexec": _Sentence(
        "nothing can be executed in the store: its file system is mounted noexec",
        WayOut(
            "put the store where programs may run with --root, or on a disk that overlayfs takes: "
            "through an overlay they run from a noexec one too"
        ),
    ),
    "no-program": _Sentence(
        "`{tool}` is not installed",
        WayOut("install the package of that name; the built-in executor does without"),
    ),
    "no-runtime": _Sentence("{said}", WayOut("--isolation builtin does without it")),
    "no-capability": _Sentence(
        "{said}",
        WayOut(
            "leave out --isolation to take what works; chroot is for root with CAP_SYS_CHROOT, "
            "CAP_SETUID, CAP_SETGID and CAP_CHOWN"
        ),
        {
            "container": WayOut(
                "start the container as root, with the capabilities that Docker gives",
                ("--user 0",),
            ),
            "pod": WayOut(
                "run the container as root, which Pod Security `baseline` allows",
                (
                    "securityContext:",
                    "  runAsUser: 0",
                    "  capabilities: {add: [CHOWN, SETUID, SETGID, SYS_CHROOT]}",
                ),
            ),
            "openshift": WayOut(
                "give the pod the SCC `anyuid`",
                ("metadata: {annotations: {openshift.io/required-scc: anyuid}}",),
            ),
        },
    ),
    "no-devices": _Sentence(
        "`/dev/null` cannot be made for the scripts: {said}",
        WayOut(
            "--isolation chroot takes the capability MKNOD, which Docker and Kubernetes give by "
            "default, but not in a user namespace"
        ),
    ),
    "no-store": _Sentence("{said}", WayOut("use another directory with --root")),
    "no-container": _Sentence(
        "this is no container: scripts would write into the host itself",
        WayOut("run ocis2i in a container of the builder image"),
    ),
    "read-only-root": _Sentence(
        "the root file system is read-only",
        WayOut("start ocis2i where it can be written"),
        {
            "container": WayOut("start the container without --read-only"),
            "pod": WayOut(
                "let the container write into its own files",
                ("securityContext: {readOnlyRootFilesystem: false}",),
            ),
            "openshift": WayOut(
                "let the container write into its own files",
                ("securityContext: {readOnlyRootFilesystem: false}",),
            ),
        },
    ),
}

# The programs' packages where they have another name.
_MAPPER_PACKAGES = (
    (frozenset({"debian", "ubuntu"}), ("apt-get install uidmap",)),
    (frozenset({"fedora", "rhel", "centos"}), ("dnf install shadow-utils",)),
    (frozenset({"suse", "opensuse"}), ("zypper install shadow",)),
    (frozenset({"alpine"}), ("apk add shadow-uidmap",)),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Something that is not allowed here: the cause, the sentence for people, and the way out."""

    cause: Cause
    text: str
    way_out: WayOut

    def error(self) -> IsolationError:
        """As the failure of a build."""
        return IsolationError(self.text, hint=self.way_out.hint)


def refusal(cause: Cause, place: Place = HOST, **values: str) -> Refusal:
    """What is said of a cause at this place; `values` fill in names and what others said."""
    sentence = _TABLE[cause]
    way_out = sentence.others.get(place.kind, sentence.host)
    if cause == "no-mapper":
        way_out = _mapper_package(place) or way_out
    exact = tuple(_filled(line, values) for line in way_out.exact)
    return Refusal(cause, _filled(sentence.text, values), WayOut(way_out.text, exact))


def _mapper_package(place: Place) -> WayOut | None:
    for family, exact in _MAPPER_PACKAGES:
        if family & place.family:
            where = "as root" if place.kind == "host" else "in the image of this container"
            return WayOut(where, exact)
    return None


def _filled(text: str, values: dict[str, str]) -> str:
    # Not `format`: manifests are full of braces.
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


def cause_of_unshare(number: int | None, place: Place, *, native: bool = False) -> Cause | None:
    """Why a namespace cannot be made (unshare(2)); `None`: by the error alone nobody knows.

    `native`: it was not to be a user namespace, but others by who is root of one.
    """
    if number in (errno.ENOSPC, errno.EUSERS):
        return "no-namespaces-left"
    if number not in (errno.EPERM, errno.EACCES):
        return None
    if native:
        return "native-forbidden"
    if place.apparmor_restricts:
        return "apparmor"
    if place.userns_clone is False:
        return "namespaces-switched-off"
    return "namespaces-filtered" if place.filtered else "namespaces-forbidden"


def cause_of_mount(number: int | None, place: Place) -> Cause | None:
    """Why nothing can be mounted, or mapped, in a user namespace that could be made."""
    if number not in (errno.EPERM, errno.EACCES):
        return None
    return "apparmor" if place.apparmor_restricts else "mount-forbidden"


def start_way_out(program: str, code: int) -> str:
    """What to try for a program of a container that cannot be started: 126 or 127. Pure."""
    if code == 126:
        return (
            "it must be a file, for this processor, that this user may execute (`chmod +x`); so "
            "must the interpreter in its first line"
        )
    if "/" in program:
        return "look whether the container has it, and the interpreter in its first line"
    return "no directory of PATH in the container has it: write its path, or add it to the image"
