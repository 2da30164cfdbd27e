"""The doctor's report: its verdict, its document, its text, and what it reads of a host."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from ocis2i.commands.doctor import exit_code, lines
from ocis2i.doctor import Facility, Report, RungState, clock, file_system, registry_reference
from ocis2i.errors import UsageError
from ocis2i.isolation.ladder import RUNGS, Choice, Finding, Refused, Step, Wish
from ocis2i.isolation.probes import Answer, ask
from ocis2i.isolation.sentences import WayOut, refusal

GOOD = Choice("runc", "full", "overlay", fresh_proc=True)
NOTHING = Refused("this host forbids user namespaces", "ask for some")
STEP = Step("full", "all ids", "`newuidmap` is not installed", WayOut("as root", ("install it",)))


def report(
    choice: Choice | Refused = GOOD,
    wish: Wish | None = None,
    facilities: Sequence[Facility] = (),
    steps: Sequence[Step] = (),
    rungs: Sequence[RungState] = (),
) -> Report:
    host = {
        "kernel": "6.1",
        "machine": "x86_64",
        "user": "me",
        "uid": "1000",
        "gid": "1000",
        "caller": "user",
        "place": "host",
    }
    return Report(host, tuple(facilities), tuple(rungs), wish or Wish(), choice, tuple(steps))


# --- the verdict --------------------------------------------------------------------------------

WEAK = Choice("chroot", "none", "copy")
BARE = Choice("in-place", "none", None)


@pytest.mark.parametrize(
    ("choice", "wish", "code"),
    [
        (GOOD, Wish(), 0),
        (replace(GOOD, ids="single", rootfs="copy", fresh_proc=False), Wish(), 0),
        (NOTHING, Wish(), 6),
        (NOTHING, Wish("in-place"), 6),
        # Somebody allowed it in advance: a build starts, and is not strongly isolated.
        (WEAK, Wish(allow_weak=True), 6),
        # Somebody asked for just this.
        (WEAK, Wish("chroot"), 0),
        (BARE, Wish("in-place"), 0),
    ],
)
def test_the_exit_code_says_whether_a_strong_rung_works(
    choice: Choice | Refused, wish: Wish, code: int
) -> None:
    assert exit_code(report(choice, wish)) == code


# --- the document -------------------------------------------------------------------------------


def test_the_document_is_plain_json() -> None:
    facility = Facility("crun", "no", "not there", "install it")
    rungs = [RungState(one, Finding(usable=True, said="runs")) for one in RUNGS]
    document = report(facilities=[facility], steps=[STEP], rungs=rungs).document()
    assert json.loads(json.dumps(document)) == document
    assert document["facilities"] == [
        {"name": "crun", "state": "no", "said": "not there", "hint": "install it"}
    ]
    assert [one["name"] for one in document["rungs"]] == [one.name for one in RUNGS]
    assert document["changes"] == [
        {
            "brings": "all ids",
            "why": "`newuidmap` is not installed",
            "change": "as root",
            "exact": ["install it"],
        }
    ]


def test_the_document_has_either_a_choice_or_a_refusal() -> None:
    chosen, not_chosen = report().document(), report(NOTHING).document()
    assert chosen["choice"]["label"] == "isolated"
    assert chosen["refusal"] is None
    assert not_chosen["choice"] is None
    assert not_chosen["refusal"] == {
        "message": "this host forbids user namespaces",
        "hint": "ask for some",
    }


# --- the text -----------------------------------------------------------------------------------


def test_the_text_has_80_columns() -> None:
    long = "a sentence of a good many words, " * 9
    rungs = [RungState(one, Finding(usable=False, said=long)) for one in RUNGS]
    shown = report(
        Refused(long, long),
        facilities=[
            Facility("user namespace", "yes", long),
            Facility("registry with-a-very-long-name.example.org:5000/and/a/path", "no", long),
            Facility("store", "yes", f"`/{'directory/' * 20}`"),
            Facility("x" * 200, "no", ""),
        ],
        rungs=rungs,
        steps=[replace(STEP, why=long, way_out=WayOut(long, ("short",)))],
    )
    text = list(lines(shown))
    assert max(map(len, text)) <= 80
    assert not [line for line in text if line != line.rstrip()]


def test_what_is_to_be_copied_is_on_a_line_of_its_own() -> None:
    text = list(lines(report(steps=[STEP])))
    assert "The one change that gives more:" in text
    assert "    install it" in text


def test_the_first_change_is_the_one() -> None:
    other = replace(STEP, way_out=WayOut("something else"))
    text = "\n".join(lines(report(steps=[STEP, other])))
    assert text.index("The one change") < text.index("install it") < text.index("After that:")


def test_where_nothing_strong_works_the_weak_rungs_are_named() -> None:
    rungs = [
        RungState(one, Finding(usable=one.name == "in-place", said="because")) for one in RUNGS
    ]
    text = " ".join(lines(report(NOTHING, rungs=rungs)))
    assert "--isolation in-place works; it protects from nothing but" in text
    assert "--isolation chroot works" not in text


# --- reading ------------------------------------------------------------------------------------

MOUNTS = """\
20 1 254:0 / / rw - ext4 /dev/vda rw
21 20 0:30 / /home rw - nfs4 server:/home rw
22 20 0:31 / /home/with\\040space rw - tmpfs tmpfs rw
23 20 0:32 / / rw - overlay overlay rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/srv", "overlay"),
        ("/home", "nfs4"),
        ("/home/me/store", "nfs4"),
        ("/homely", "overlay"),
        ("/home/with space/store", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    assert file_system(MOUNTS, path) == kind


def test_without_mounts_nobody_knows() -> None:
    assert file_system("", "/srv") == "an unknown file system"


@pytest.mark.parametrize(
    ("text", "registry", "repository", "pull"),
    [
        ("localhost", "localhost", "any", False),
        ("registry.example.org", "registry.example.org", "any", False),
        ("localhost:5000", "localhost:5000", "any", False),
        ("registry.example.org/team/app", "registry.example.org", "team/app", True),
        ("registry.example.org/team/app:1", "registry.example.org", "team/app", True),
    ],
)
def test_a_registry_is_named_alone_or_by_an_image(
    text: str, registry: str, repository: str, pull: bool
) -> None:
    reference, pulls = registry_reference(text)
    assert (reference.registry, reference.repository, pulls) == (registry, repository, pull)


def test_a_registry_that_cannot_be_is_refused() -> None:
    with pytest.raises(UsageError):
        registry_reference("https://registry.example.org/v2/")


NOW = datetime(2026, 5, 4, 3, 2, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("now", "skews", "state", "said"),
    [
        (NOW, {}, "yes", "2026-05-04 03:02 UTC"),
        (NOW, {"r": 2.0}, "yes", "2026-05-04 03:02 UTC, as that of `r`"),
        (NOW, {"r": 2.0, "s": 400.0}, "no", "400 seconds behind that of `s`"),
        (NOW, {"r": -3600.0}, "no", "3600 seconds ahead of that of `r`"),
        (NOW.replace(year=1970), {}, "no", "it is said to be 1970-05-04"),
    ],
)
def test_a_clock_is_compared_with_those_of_others(
    now: datetime, skews: dict[str, float], state: str, said: str
) -> None:
    found = clock(now, skews)
    assert (found.state, found.said) == (state, said)


# --- probes -------------------------------------------------------------------------------------


def test_a_device_that_is_not_there_is_told() -> None:
    answer = ask("device", path="/dev/no-such-thing")
    assert answer == Answer(works=False, step="open", number=2, said="No such file or directory")


def test_a_probe_that_cannot_start_is_told() -> None:
    answer = ask("no-such-probe")
    assert not answer.works
    assert answer.step == "start"
    assert "no-such-probe" in answer.said


def test_a_probe_that_never_ends_is_ended() -> None:
    answer = ask("device", through=("/bin/sh", "-c", "exec sleep 1000"), limit_seconds=0.2)
    assert answer.step == "time"


def test_a_finding_has_the_way_out_of_its_cause() -> None:
    finding = Finding.refused(refusal("no-mapper", tool="newuidmap"))
    facility = Facility.of("ids: full", finding)
    assert facility.state == "no"
    assert facility.said == "`newuidmap` is not installed"
    assert facility.hint == "it is in the package uidmap (Debian, Ubuntu) or shadow-utils (Fedora)"
