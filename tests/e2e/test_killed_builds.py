"""SIGKILL at every stage that a build has: then ps, status, logs, wait, cancel, prune, resume."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from ocis2i.records import Record, find
from ocis2i.report import STAGE_WORDS
from tests.fakes.bench import Bench, Maker, error, offer
from tests.fakes.forked import Forked, forked
from tests.fakes.processes import descendants, mounts_of, wait_until_alone
from tests.fakes.program import Done
from tests.fakes.record_schemas import check_against
from tests.fakes.registry import FakeRegistry

pytestmark = pytest.mark.sandbox

# Kills the program at a moment that only it knows: when a stage begins, and when all of its work
# is done and nobody was told. It is Python's own hook, and the program itself is as it is.
KILLER = """
import os, signal
import ocis2i.journal as journal
wanted, moment = os.environ["KILL_AT"].split(":")
tell = journal.Journal.__call__
def told(self, event):
    name = type(event).__name__
    if (moment, name) == ("end", "StageEnded") and event.stage == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    tell(self, event)
    if (moment, name) == ("begin", "StageStarted") and event.stage == wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    if (wanted, name) == ("stored", "ImageStored"):
        os.kill(os.getpid(), signal.SIGKILL)
journal.Journal.__call__ = told
"""
# A process of the script's own that does not listen, as a server that assemble forgot.
ASSEMBLE = """\
#!/bin/sh
set -e
(trap '' TERM HUP INT; sleep 1000) > /dev/null 2>&1 &
cp -R /tmp/src/. "$HOME/"
echo said by assemble
"""
SCRIPTS: dict[str, str | None] = {
    "assemble": ASSEMBLE,
    "run": "#!/bin/sh\n",
    "save-artifacts": "#!/bin/sh\ntar c -C /opt/app-root/src index.html\n",
}

# Before the image is whole, by what brings the stage about.
PLAIN = ["fetch:begin", "pull:begin", "unpack:begin", "prepare:begin", "assemble:begin"]
PLAIN += ["assemble:end", "layer:begin", "layer:end", "store:begin", "store:end"]
PUSHED = ["check-push:begin"]
AGAIN = ["pull-previous:begin", "restore:begin", "restore:end"]
RUNTIME = ["pull-runtime:begin", "save:begin", "save:end", "unpack-runtime:begin"]
RUNTIME += ["artifacts:begin", "artifacts:end", "assemble-runtime:begin", "assemble-runtime:end"]
UNCHANGED = ["unchanged:begin", "unchanged:end"]
EARLY = [*PLAIN, *PUSHED, *AGAIN, *RUNTIME, *UNCHANGED]
LATE = ["stored:any", "output:begin", "output:end", "push:begin", "push:end"]


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("killer")
    (directory / "sitecustomize.py").write_text(KILLER)
    return directory


@pytest.fixture
def ask(bench: Bench) -> Iterator[Forked]:
    """The program, for one question after the other."""
    with forked(bench.ocis2i, bench.directory) as running:
        yield running


def killed_at(bench: Bench, killer: Path, at: str, *words: str | Path) -> Record:
    """A build that was killed at a stage; its record. No process and no mount is left of it."""
    before = descendants(os.getpid())
    path = f"{killer}:{bench.ocis2i.environment['PYTHONPATH']}"
    variables = {"PYTHONPATH": path, "KILL_AT": at}
    if at in UNCHANGED:
        variables["OCIS2I_NO_CACHE"] = ""
    done = bench.with_variables(**variables).ocis2i("build", bench.source(), *words)
    assert done.code == -signal.SIGKILL, done.err
    wait_until_alone(before)
    assert mounts_of(bench.ocis2i.store) == []
    return find(bench.ocis2i.store, str(words[1]))


def check_that_it_died(ask: Forked, record: Record, name: str, stage: str | None) -> Done:
    """What the verbs that only look say of it; its log."""
    assert record.id not in ask.ok("ps").out
    (row,) = [
        one for one in ask.ok("ps", "-a", "--json").document["builds"] if one["id"] == record.id
    ]
    assert (row["state"], row["stage"], row["exit_code"]) == ("died", stage, 137)
    assert (row["pid"], row["reason"], row["digest"]) == (None, None, None)
    where = f" in the stage `{stage}`" if stage else ""
    said = f"its process ended{where} without a result: it was killed, or the machine went down"
    assert f"died      {said}\n" in ask.ok("status", name).out
    waited = ask("wait", name)
    assert (waited.code, waited.out) == (137, f"{record.id} died 137\n")
    cancelled = ask.ok("cancel", name)
    assert (cancelled.out, "is over already" in cancelled.err) == (f"{record.id} died\n", True)
    log = ask.ok("logs", name)
    assert log.err == f"{said}\n"
    return log


def check_pruned(bench: Bench, ask: Forked) -> None:
    """After `prune` nothing is left but the record."""
    pruned = ask.ok("prune", "--json").document
    assert (pruned["busy"], pruned["records"], pruned["kept"]) == (False, 0, 0)
    store = bench.ocis2i.store
    assert (os.listdir(store / "builds"), os.listdir(store / "tmp")) == ([], [])
    assert not [one for one in os.listdir(store / "records") if one.startswith(".")]
    again = ask.ok("prune", "--json").document
    assert {again[key] for key in ("builds", "blobs", "layers", "leftovers")} == {0}


def wishes(
    bench: Bench, make: Maker, registry: FakeRegistry, at: str
) -> tuple[str, tuple[str | Path, ...]]:
    """The name and the words of a build that comes to a stage."""
    builder = make(SCRIPTS)
    if at in PUSHED:
        return f"{registry.host}/{bench.tag}", (builder, f"{registry.host}/{bench.tag}", "--push")
    if at in AGAIN:
        bench.built(builder)
        name = bench.tag
        if at.startswith("pull-previous"):
            name = f"{registry.host}/{bench.tag}"
            offer(registry, builder, *bench.tag.split(":"))
        return name, (builder, name, "--incremental")
    if at in RUNTIME:
        more = {"run": "#!/bin/sh\n", "assemble-runtime": "#!/bin/sh\ntrue\n"}
        words = ("--runtime-image", bench.image("r", more), "-a", "/tmp/src/index.html:.")
        return bench.tag, (builder, bench.tag, "--incremental", *words)
    if at in UNCHANGED:
        bench.ocis2i.ok("build", bench.source(), builder, bench.tag, OCIS2I_NO_CACHE="")
    return bench.tag, (builder, bench.tag)


@pytest.mark.parametrize("at", EARLY)
@pytest.mark.usefixtures("_orphans")
def test_a_build_killed_before_its_image_is_whole_has_to_be_built_again(
    bench: Bench, make: Maker, killer: Path, registry: FakeRegistry, ask: Forked, at: str
) -> None:
    name, words = wishes(bench, make, registry, at)
    record = killed_at(bench, killer, at, *words)
    stage = at.partition(":")[0]
    assert (record.state, record.open_stages()[-1]) == ("died", stage)
    log = check_that_it_died(ask, record, name, stage)
    assert log.out.startswith("---> ")
    if at in PLAIN:
        assert ("said by assemble\n" in log.out) == (
            PLAIN.index(at) > PLAIN.index("assemble:begin")
        )
    again = f"ocis2i build {bench.source()} {' '.join(map(str, words))}"
    check_pruned(bench, ask)
    # After `prune` the record still says what to do.
    assert f"&& {again}\n" in ask.ok("status", name).out
    refused = ask("resume", name)
    assert refused.code == 2
    assert f"it stopped in the stage `{stage}`: there is nothing to resume" in error(refused)
    assert f"hint: build again: cd {os.getcwd()} && {again}\n" in refused.err
    assert f"/{bench.tag.partition(':')[0]}" not in str(registry.manifests) or at in AGAIN
    assert ask.ok("prune", "--builds", "--json").document["records"] >= 1
    assert "there is no build" in error(ask("status", record.id))


@pytest.mark.parametrize("at", LATE)
@pytest.mark.usefixtures("_orphans")
def test_a_build_killed_after_that_is_finished_without_assemble(
    bench: Bench, make: Maker, killer: Path, registry: FakeRegistry, ask: Forked, at: str
) -> None:
    name = f"{registry.host}/{bench.tag}"
    layout, digests = bench.directory / "layout", bench.directory / "digest"
    more = ("--push", "-o", f"oci:{layout}", "--digest-file", digests)
    record = killed_at(bench, killer, at, make(SCRIPTS), name, *more)
    stage = at.partition(":")[0] if ":any" not in at else None
    check_that_it_died(ask, record, name, stage)
    # What can be resumed is not removed.
    check_pruned(bench, ask)
    before = ask.ok("status", record.id, "--json").document["build"]
    assert before["resumable"]
    assert before["missing"][-1] == f"push {name}"
    assert (len(before["missing"]) == 2) == (at in LATE[:3])
    shown = ask.ok("status", record.id).out
    assert f"next      ocis2i resume {record.id}\n" in shown
    done = ask.ok("resume", record.id, "--json")
    assert "said by assemble" not in done.err
    document = done.document
    check_against("result.schema.json", document)
    assert (document["pushed"], document["outputs"]) == (True, [f"oci:{layout}"])
    assert document["isolation"]
    assert document["builder"]["name"].startswith("oci:")
    assert "assemble" in [stage["name"] for stage in document["stages"]]
    assert digests.read_text().strip() == document["digest"]
    repository = bench.tag.partition(":")[0]
    assert "1" in registry.manifests[repository]
    assert (layout / "index.json").exists()
    after = find(bench.ocis2i.store, name)
    assert (after.state, after.id, after.result) == ("succeeded", record.id, document)
    for event in after.events():
        check_against("event.schema.json", event)
    again = ask.ok("resume", name)
    assert again.out == f"{registry.host}/{repository}@{document['digest']}\n"
    assert "nothing is missing" in again.err
    assert ask.ok("wait", name).out == f"{record.id} succeeded 0\n"


@pytest.mark.usefixtures("_orphans")
def test_a_resume_that_is_killed_is_gone_on_with(
    bench: Bench, make: Maker, killer: Path, registry: FakeRegistry, ask: Forked
) -> None:
    name = f"{registry.host}/{bench.tag}"
    layout = bench.directory / "layout"
    words = (make(SCRIPTS), name, "--push", "-o", f"oci:{layout}")
    record = killed_at(bench, killer, "stored:any", *words)
    path = f"{killer}:{bench.ocis2i.environment['PYTHONPATH']}"
    again = bench.with_variables(PYTHONPATH=path, KILL_AT="push:begin").ocis2i
    assert again("resume", name).code == -signal.SIGKILL
    check_that_it_died(ask, record, name, "push")
    assert ask.ok("status", name, "--json").document["build"]["missing"] == [f"push {name}"]
    assert ask.ok("logs", name).out.count("---> resumed\n") == 1
    assert ask.ok("resume", name, "--json").document["outputs"] == [f"oci:{layout}"]
    assert ask.ok("wait", name).out == f"{record.id} succeeded 0\n"


def test_there_is_no_stage_at_which_nothing_was_killed() -> None:
    tried = {at.partition(":")[0] for at in (*EARLY, *LATE)} - {"stored"}
    assert tried == set(STAGE_WORDS)
