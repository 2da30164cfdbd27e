"""The ladder: which rung is taken where, why not a stronger one, and the one change that helps."""

from __future__ import annotations

import errno
from typing import get_args

import pytest

from ocis2i.errors import IsolationError, UsageError
from ocis2i.isolation.ladder import (
    RUNGS,
    Caller,
    Choice,
    Finding,
    Need,
    Refused,
    Wish,
    caller,
    choose,
    choose_executor,
    rung,
    steps_up,
)
from ocis2i.isolation.place import family_of, kind_of, root_is_a_disk, status_fields
from ocis2i.isolation.sentences import (
    HOST,
    Cause,
    Place,
    PlaceKind,
    WayOut,
    cause_of_mount,
    cause_of_unshare,
    refusal,
)
from ocis2i.settings import ISOLATIONS

EVERYTHING = frozenset(get_args(Need))
USER_HOST = EVERYTHING - {"native", "chroot", "in-place"}
PLACES: tuple[PlaceKind, ...] = get_args(PlaceKind)
CAUSES: tuple[Cause, ...] = get_args(Cause)


class Host:
    """Findings about a host that has these things, and who asked for which."""

    def __init__(self, has: frozenset[str] | set[str], **causes: Cause) -> None:
        self._has = has
        self._causes = {name.replace("_", "-"): cause for name, cause in causes.items()}
        self.asked: list[Need] = []

    def look(self, need: Need) -> Finding:
        self.asked.append(need)
        if need in self._has:
            return Finding(usable=True)
        cause = self._causes.get(need, "namespaces-forbidden")
        return Finding.refused(refusal(cause, said=f"no {need}", tool=need))


def taken(
    has: frozenset[str] | set[str], who: Caller = "user", wish: Wish | None = None
) -> str | None:
    """The choice in words: executor, ids, rootfs and label; `None` when nothing is chosen."""
    found = choose(wish or Wish(), who, Host(has).look)
    if isinstance(found, Refused):
        return None
    return f"{found.executor} {found.ids} {found.rootfs} {found.label}"


# --- every row of the tables of environments ----------------------------------------------------


@pytest.mark.parametrize(
    ("has", "who", "expected"),
    [
        # A virtual machine or a runner of one's own.
        (USER_HOST, "user", "runc full overlay isolated"),
        (USER_HOST - {"runc"}, "user", "crun full overlay isolated"),
        (USER_HOST - {"runc", "crun"}, "user", "builtin full overlay isolated"),
        # The same with a copy in place of the overlay.
        (USER_HOST - {"overlay"}, "user", "runc full copy isolated"),
        # No subordinate ids, no newuidmap, no_new_privs.
        (USER_HOST - {"full"}, "user", "builtin single overlay isolated, single-uid"),
        (USER_HOST - {"full", "overlay"}, "user", "builtin single copy isolated, single-uid"),
        # A pod with all of seccomp and AppArmor off: /proc is masked.
        (
            USER_HOST - {"proc", "runc", "crun"},
            "user",
            "builtin full overlay isolated, nested",
        ),
        (
            USER_HOST - {"proc", "full"},
            "user",
            "builtin single overlay isolated, single-uid, nested",
        ),
        # Ubuntu's AppArmor: user namespaces for programs that it knows.
        (
            USER_HOST - {"full", "single"},
            "user",
            "runc native overlay isolated, privileged caller",
        ),
        # A pod with `hostUsers: false`, root with SYS_ADMIN in it.
        (
            EVERYTHING - {"single"},
            "namespace-root",
            "runc native overlay isolated, privileged caller",
        ),
        (
            EVERYTHING - {"runc", "crun", "proc"},
            "namespace-root",
            "builtin native overlay isolated, privileged caller, nested",
        ),
        # Root of a user namespace with one id.
        (
            EVERYTHING - {"full"},
            "namespace-root",
            "builtin native overlay isolated, privileged caller",
        ),
        # A container by Docker, root or not; a restricted pod; real root: nothing by itself.
        ({"copy", "chroot", "in-place"}, "root", None),
        ({"copy", "in-place"}, "user", None),
        ({"copy", "chroot", "in-place"}, "namespace-root", None),
        (EVERYTHING, "root", None),
        # Nothing can be executed in a copy, and there is no overlay.
        (USER_HOST - {"overlay", "copy"}, "user", None),
    ],
)
def test_auto_takes_the_strongest_that_works(
    has: frozenset[str], who: Caller, expected: str | None
) -> None:
    assert taken(has, who) == expected


@pytest.mark.parametrize("who", ["user", "namespace-root", "root"])
def test_weak_ways_are_never_taken_by_themselves(who: Caller) -> None:
    assert taken({"chroot", "in-place", "copy"}, who) is None


@pytest.mark.parametrize("who", ["namespace-root", "root"])
def test_chroot_is_taken_where_weak_isolation_was_allowed(who: Caller) -> None:
    allowed = Wish(allow_weak=True)
    assert taken({"chroot", "in-place", "copy"}, who, allowed) == "chroot none copy weak"
    assert taken({"in-place", "copy"}, who, allowed) is None


def test_allowing_weak_isolation_takes_nothing_from_a_strong_host() -> None:
    assert taken(USER_HOST, wish=Wish(allow_weak=True)) == "runc full overlay isolated"


@pytest.mark.parametrize("name", ["runc", "crun", "builtin", "buildah"])
def test_who_names_a_strong_rung_gets_that_or_nothing(name: str) -> None:
    assert taken(USER_HOST, wish=Wish(name)) == f"{name} full overlay isolated"
    assert taken(USER_HOST - {name}, wish=Wish(name)) is None


def test_who_names_a_weak_rung_gets_it() -> None:
    assert taken(EVERYTHING, "root", Wish("chroot")) == "chroot none copy weak"
    assert taken(EVERYTHING, "user", Wish("in-place")) == "in-place none None none"
    assert taken(USER_HOST, "user", Wish("chroot")) is None


def test_buildah_is_taken_by_nobody_who_does_not_name_it() -> None:
    assert taken(USER_HOST - {"runc", "crun", "builtin"}) is None


def test_a_rootfs_that_was_named_has_to_work() -> None:
    assert taken(USER_HOST, wish=Wish(rootfs="copy")) == "runc full copy isolated"
    assert taken(USER_HOST - {"overlay"}, wish=Wish(rootfs="overlay")) is None


def test_only_what_the_choice_hangs_on_is_tried() -> None:
    host = Host(USER_HOST)
    choose(Wish(), "user", host.look)
    assert host.asked == ["full", "overlay", "runc", "proc"]


def test_a_named_weak_rung_tries_nothing_else() -> None:
    host = Host(EVERYTHING)
    choose(Wish("in-place"), "user", host.look)
    assert host.asked == ["in-place"]


# --- what is said -------------------------------------------------------------------------------


def refused(host: Host, wish: Wish | None = None, who: Caller = "user") -> Refused:
    found = choose(wish or Wish(), who, host.look)
    assert isinstance(found, Refused)
    return found


def test_the_refusal_is_the_sentence_of_what_is_asked_for_least() -> None:
    host = Host({"copy"}, full="no-mapper", single="no-namespaces-left")
    error = refused(host).error()
    assert isinstance(error, IsolationError)
    assert error.message == "this host allows no (more) user namespaces"
    assert error.hint
    assert error.hint.endswith("raise the sysctl: `sysctl user.max_user_namespaces=15000`")


def test_a_named_rung_is_refused_by_its_name() -> None:
    error = refused(Host(USER_HOST - {"runc"}, runc="no-program"), Wish("runc")).error()
    assert error.message == "isolation `runc` cannot be used: `runc` is not installed"
    assert error.hint == "leave out --isolation to take what works"


def test_without_any_executor_all_reasons_are_told() -> None:
    error = refused(Host(USER_HOST - {"runc", "crun", "builtin"}, runc="no-program")).error()
    assert "runc: `runc` is not installed; crun: " in error.message
    assert "builtin: " in error.message


def test_an_unknown_rung_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UsageError, match="unknown isolation `docker`") as caught:
        choose_executor("docker", Host(EVERYTHING).look, one_id=False)
    assert caught.value.hint == f"there are {', '.join(ISOLATIONS)}"


def test_the_names_of_the_settings_are_those_of_the_ladder() -> None:
    assert ("auto", *(one.name for one in RUNGS)) == ISOLATIONS


def test_rungs_become_weaker_downwards() -> None:
    strengths = ["isolated", "weak", "none"]
    order = [strengths.index(one.strength) for one in RUNGS]
    assert order == sorted(order)
    assert rung("in-place").strength == "none"


@pytest.mark.parametrize(
    ("uid", "whole", "expected"),
    [(1000, True, "user"), (1000, False, "user"), (0, True, "root"), (0, False, "namespace-root")],
)
def test_callers_are_told_apart(uid: int, whole: bool, expected: Caller) -> None:
    assert caller(uid, whole_host=whole) == expected


# --- the next rung ------------------------------------------------------------------------------


def changes(host: Host, who: Caller = "user", place: Place = HOST) -> list[Need]:
    found = choose(Wish(), who, host.look, place)
    return [step.need for step in steps_up(found, who, host.look, place)]


def test_a_host_with_everything_needs_no_change() -> None:
    assert changes(Host(USER_HOST)) == []
    assert changes(Host(USER_HOST - {"runc"})) == []


def test_what_stands_in_every_way_is_to_be_changed_first() -> None:
    host = Host({"copy"}, full="no-mapper", runc="no-program")
    assert changes(host)[:2] == ["single", "full"]


def test_one_change_is_said_once() -> None:
    assert changes(Host({"copy", "runc"})) == ["single"]


@pytest.mark.parametrize(
    ("missing", "cause"),
    [
        ("full", "no-ids"),
        ("proc", "proc-masked"),
        ("overlay", "overlay-refused"),
    ],
)
def test_each_thing_that_is_missing_has_its_change(missing: str, cause: Cause) -> None:
    assert changes(Host(USER_HOST - {missing}, **{missing: cause})) == [missing]


def test_without_a_store_nothing_else_is_to_be_changed() -> None:
    host = Host(USER_HOST - {"copy", "overlay"}, copy="no-store", overlay="no-store")
    found = choose(Wish(), "user", host.look, HOST)
    (step,) = steps_up(found, "user", host.look, HOST)
    assert step.brings == "builds"
    assert step.way_out.text == "use another directory with --root"


def test_runc_is_worth_something_only_where_no_runtime_is() -> None:
    assert changes(Host(USER_HOST - {"runc"}, runc="no-program")) == []
    without = Host(USER_HOST - {"runc", "crun"}, runc="no-program")
    assert changes(without) == ["runc"]


def test_root_is_told_to_be_somebody_else() -> None:
    found = choose(Wish(), "root", Host(EVERYTHING).look)
    (step,) = steps_up(found, "root", Host(EVERYTHING).look, Place("container"))
    assert "--user 1000" in step.way_out.text


# --- sentences ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("cause", CAUSES)
def test_every_cause_has_a_sentence_and_a_way_out_everywhere(cause: Cause, kind: PlaceKind) -> None:
    values = {"tool": "newuidmap", "said": "why", "name": "me", "path": "/etc/subuid"}
    found = refusal(cause, Place(kind), **values)
    assert found.text
    assert not found.text.endswith(".")
    assert found.way_out.text
    error = found.error()
    for text in (error.message, error.hint or ""):
        for name in values:
            assert f"{{{name}}}" not in text
    for line in found.way_out.exact:
        assert len(line) <= 76, "it is printed with four spaces before it"


def test_a_pod_is_told_the_lines_of_its_manifest() -> None:
    hint = refusal("namespaces-filtered", Place("pod")).error().hint
    assert hint is not None
    assert hint.endswith(
        "securityContext:\n"
        "    seccompProfile: {type: Unconfined}\n"
        "    appArmorProfile: {type: Unconfined}"
    )


def test_a_container_is_told_the_flags_of_its_engine() -> None:
    found = refusal("namespaces-filtered", Place("container"))
    assert "--security-opt seccomp=unconfined" in found.way_out.exact


def test_openshift_is_told_the_scc() -> None:
    found = refusal("namespaces-filtered", Place("openshift"))
    assert "nested-container" in found.way_out.hint


@pytest.mark.parametrize(
    ("family", "command"),
    [
        ({"debian"}, "apt-get install uidmap"),
        ({"ubuntu", "debian"}, "apt-get install uidmap"),
        ({"rhel", "fedora"}, "dnf install shadow-utils"),
    ],
)
def test_the_package_is_that_of_the_distribution(family: set[str], command: str) -> None:
    found = refusal("no-mapper", Place(family=frozenset(family)), tool="newuidmap")
    assert found.way_out == WayOut("as root", (command,))


@pytest.mark.parametrize(
    ("number", "place", "native", "cause"),
    [
        (errno.ENOSPC, HOST, False, "no-namespaces-left"),
        (errno.EUSERS, HOST, False, "no-namespaces-left"),
        (errno.EPERM, HOST, False, "namespaces-forbidden"),
        (errno.EPERM, Place(filtered=True), False, "namespaces-filtered"),
        (errno.EPERM, Place(userns_clone=False), False, "namespaces-switched-off"),
        (errno.EACCES, Place(apparmor_restricts=True), False, "apparmor"),
        (errno.EPERM, Place(apparmor_restricts=True, filtered=True), False, "apparmor"),
        (errno.EPERM, Place(filtered=True), True, "native-forbidden"),
        (errno.EINVAL, HOST, False, None),
        (None, HOST, False, None),
    ],
)
def test_errors_of_unshare_have_their_causes(
    number: int | None, place: Place, native: bool, cause: Cause | None
) -> None:
    assert cause_of_unshare(number, place, native=native) == cause


@pytest.mark.parametrize(
    ("number", "place", "cause"),
    [
        (errno.EACCES, HOST, "mount-forbidden"),
        (errno.EPERM, Place("pod"), "mount-forbidden"),
        (errno.EACCES, Place(apparmor_restricts=True), "apparmor"),
        (errno.EBUSY, HOST, None),
    ],
)
def test_errors_of_mount_have_their_causes(number: int, place: Place, cause: Cause | None) -> None:
    assert cause_of_mount(number, place) == cause


# --- places -------------------------------------------------------------------------------------

_ON_DISK = "20 1 254:0 / / rw - ext4 /dev/vda rw\n"
# As Docker's storage drivers vfs and btrfs have it.
_IN_DIRECTORY = "20 1 254:0 /var/lib/docker/vfs/dir/1f / rw - ext4 /dev/vda rw\n"
_ON_OVERLAY = "20 1 0:50 / / rw - overlay overlay rw,lowerdir=/a\n"
_KUBELET = "# Kubernetes-managed hosts file.\n127.0.0.1 localhost\n"


@pytest.mark.parametrize(
    ("marked", "hosts", "mounts", "uid", "kind"),
    [
        (False, "", _ON_DISK, 1000, "host"),
        (True, "", _ON_OVERLAY, 1000, "container"),
        (True, "", _ON_DISK + _ON_OVERLAY, 0, "container"),
        # A virtual machine that was made of a container image.
        (True, "", _ON_DISK, 1000, "host"),
        (True, "", _IN_DIRECTORY, 1000, "container"),
        (False, "", _IN_DIRECTORY, 1000, "host"),
        (False, "", _ON_OVERLAY, 1000, "host"),
        (False, _KUBELET, _ON_OVERLAY, 1000, "pod"),
        (False, _KUBELET, _ON_OVERLAY, 0, "pod"),
        (False, _KUBELET, _ON_OVERLAY, 1_000_660_000, "openshift"),
        (True, "", "", 0, "container"),
        (False, "", "garbage\n - \n", 0, "host"),
    ],
)
def test_places_are_told_apart(
    marked: bool, hosts: str, mounts: str, uid: int, kind: PlaceKind
) -> None:
    assert kind_of(marked=marked, hosts=hosts, mounts=mounts, uid=uid) == kind


def test_a_root_is_a_disk_when_the_uppermost_is() -> None:
    assert root_is_a_disk(_ON_DISK)
    assert root_is_a_disk(_IN_DIRECTORY)
    assert not root_is_a_disk(_ON_DISK + _ON_OVERLAY)
    assert not root_is_a_disk("")


def test_a_distribution_is_like_others() -> None:
    release = 'NAME="Rocky Linux"\nID="rocky"\nID_LIKE="rhel centos fedora"\n'
    assert family_of(release) == {"rocky", "rhel", "centos", "fedora"}
    assert family_of("") == frozenset()


def test_status_is_read_by_name() -> None:
    assert status_fields("Name:\tx\nSeccomp:\t2\n")["Seccomp"] == "2"


def test_a_choice_says_what_takes_something_away() -> None:
    assert Choice("builtin", "single", "copy").label == "isolated, single-uid, nested"
    assert Choice("chroot", "none", "copy", fresh_proc=True).label == "weak"
