"""Incremental builds by the S2I contract: what the previous image saves, and what becomes of it.

The previous image is a builder in a registry, and save-artifacts a script of the source that
prints a tar made here: so every test has an archive of its own, and needs one build.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import signal
import tarfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RUNC, needs_registry
from tests.contract import better, same
from tests.e2e.test_killed import Inspector
from tests.fakes.bench import RUN, Bench, content, facts, offer, told, warnings
from tests.fakes.docker_registry import docker_registry
from tests.fakes.images import BUSYBOX, MTIME, Layer, LayoutImage
from tests.fakes.processes import descendants, mounts_of
from tests.fakes.program import Done, Program, program
from tests.fakes.registry import FakeRegistry

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

# Says what it finds, and does what the source's file `then` says.
ASSEMBLE = """\
#!/bin/sh
set -e
echo "assembled by: $(id -u):$(id -g)"
if [ -d /tmp/artifacts ]; then
    cd /tmp/artifacts
    echo "artifacts: $(find . -mindepth 1 | sort | tr '\\n' ' ')"
else
    echo "artifacts: none"
fi
cd "$HOME"
cp -R /tmp/src/. "$HOME/"
if [ -f "$HOME/then" ]; then . "$HOME/then"; fi
"""

# What a real builder has: it keeps a cache, and says where it runs.
SAVE = """\
#!/bin/sh
set -e
{
    echo "saved by: $(id -u):$(id -g)"
    echo "saved with: ${COLOUR:-none} ${FRESH:-none}"
    echo "saved in: $(pwd)"
    echo "save-artifacts: $0 $#"
    echo "saved from: $(cat | wc -c)"
} >&2
cd "$HOME" && tar -cf - cache
"""

KEEP_CACHE = """\
mkdir -p cache
if [ -d /tmp/artifacts ]; then mv /tmp/artifacts/cache/* cache/; fi
echo "$(cat cache/log 2>/dev/null)x" >cache/log.new
mv cache/log.new cache/log
"""

CLEAN = "Clean build will be performed because of error saving previous build artifacts"


def script_that_prints(data: bytes, then: str = "exit 0") -> str:
    """A save-artifacts script whose standard output is `data`."""
    text = base64.encodebytes(data).decode()
    return f"#!/bin/sh\nbase64 -d <<'END'\n{text}END\n{then}\n"


@dataclass(frozen=True)
class Scene(Bench):
    """A bench, a builder, and a registry that has it as the previous image of whatever is built."""

    hub: FakeRegistry
    builder: str

    @property
    def tag(self) -> str:
        return f"{self.hub.host}/{super().tag}"

    def again(
        self,
        script: str | None,
        *arguments: str | Path,
        then: str = "",
        files: dict[str, str] | None = None,
    ) -> Done:
        """Builds on the previous image of the registry, with this save-artifacts script."""
        repository, _, tag = self.tag.removeprefix(f"{self.hub.host}/").rpartition(":")
        offer(self.hub, self.builder, repository, tag)
        source = self.source({"then": then} | (files or {}))
        if script is not None:
            (source / ".s2i/bin").mkdir(parents=True, exist_ok=True)
            (source / ".s2i/bin/save-artifacts").write_text(script)
        return self.ocis2i.ok("build", source, self.builder, self.tag, "--incremental", *arguments)

    def restored(self, tar: bytes, *arguments: str | Path, then: str = "") -> str:
        """The names that assemble finds when the previous image saved `tar`."""
        done = self.again(script_that_prints(tar), *arguments, then=then)
        return told(done)["artifacts"].strip()


@pytest.fixture(scope="module")
def hub() -> Iterator[FakeRegistry]:
    with FakeRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def builder(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    bench = Bench(shared, tmp_path_factory.mktemp("builders"))
    return bench.image("builder", {"assemble": ASSEMBLE, "run": RUN})


@pytest.fixture
def scene(shared: Program, hub: FakeRegistry, builder: str, tmp_path: Path) -> Scene:
    return Scene(shared, tmp_path, hub, builder)


# --- three builds, one after the other ------------------------------------------------------------


@dataclass(frozen=True)
class Story(Bench):
    """A builder with a cache, and the builds with it: nothing there, something, and not asked."""

    done: dict[str, Done]

    def document(self, name: str) -> dict[str, object]:
        return self.done[name].document


@pytest.fixture(scope="module")
def story(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> Story:
    story = Story(shared, tmp_path_factory.mktemp("story"), {})
    scripts = {"assemble": ASSEMBLE, "run": RUN, "save-artifacts": SAVE}
    place = story.image("caching", scripts)
    source = story.source({"then": KEEP_CACHE})
    build = ("build", source, place, story.tag, "--json")
    story.done["first"] = shared.ok(*build, "--incremental", "-e", "COLOUR=red")
    variables = ("-e", "COLOUR=blue", "--build-env", "FRESH=yes")
    story.done["second"] = shared.ok(*build, "--incremental", *variables)
    assert content(story.result(), "opt/app-root/src/cache/log") == "xx\n"
    story.done["third"] = shared.ok(*build)
    return story


@same("--incremental")
@same("incremental.first")
def test_first_build_has_nothing_and_is_no_failure(story: Story) -> None:
    done = story.done["first"]
    assert told(done)["artifacts"] == "none"
    assert [line for line in warnings(done) if line.startswith("no previous image, a clean build")]
    assert done.document["state"] == "succeeded"
    assert done.document["incremental"] is False


@same("incremental.previous-image")
def test_second_build_gets_what_the_first_one_left(story: Story) -> None:
    done = story.done["second"]
    assert told(done)["artifacts"] == "./cache ./cache/log "
    assert told(done)["saved in"] == "/opt/app-root/src"
    assert told(done)["save-artifacts"] == "/usr/libexec/s2i/save-artifacts 0"
    assert told(done)["saved from"] == "0"
    assert done.document["incremental"] is True
    assert warnings(done) == []


@same("incremental.environment")
def test_save_artifacts_has_the_variables_of_the_previous_image_alone(story: Story) -> None:
    assert told(story.done["second"])["saved with"] == "red none"


@same("incremental.needs-the-flag")
def test_without_the_flag_it_is_a_clean_build(story: Story) -> None:
    done = story.done["third"]
    assert told(done)["artifacts"] == "none"
    assert "saved by" not in told(done)
    assert done.document["incremental"] is False
    assert content(story.result(), "opt/app-root/src/cache/log") == "x\n"


@better("incremental.reason", "a build that succeeded has none")
def test_success_has_no_reason_of_failure(story: Story) -> None:
    for done in story.done.values():
        info = done.document["build_info"]
        assert info["failureReason"] == {"reason": "", "message": ""}
    steps = [
        (stage["name"], step["name"])
        for stage in story.done["second"].document["build_info"]["stages"]
        for step in stage["steps"]
    ]
    assert ("PullImages", "PullPreviousImage") in steps
    assert ("RetrieveArtifacts", "RetrievePreviousArtifacts") in steps


# --- when -----------------------------------------------------------------------------------------


@same("incremental.no-tag")
def test_without_a_tag_it_is_a_clean_build(scene: Scene) -> None:
    done = scene.ocis2i.ok("build", scene.source(), scene.builder, "--incremental")
    assert told(done)["artifacts"] == "none"
    assert warnings(done) == ["--incremental needs a tag to find the previous image by"]


@same("incremental.no-script")
def test_without_a_script_it_is_a_clean_build(scene: Scene) -> None:
    done = scene.again(None)
    assert told(done)["artifacts"] == "none"
    (warning,) = warnings(done)
    assert warning.startswith(CLEAN)
    assert "no script `/usr/libexec/s2i/save-artifacts`" in warning


@same("incremental.no-script")
def test_without_a_script_anywhere_the_previous_image_is_not_even_fetched(
    scene: Scene, hub: FakeRegistry
) -> None:
    scripts = {".s2i/bin/assemble": ASSEMBLE, ".s2i/bin/run": RUN}
    bare = scene.image("bare", {}, {"Labels": None})
    done = scene.ocis2i.ok(
        "build", scene.source(scripts), bare, scene.tag, "--incremental", "--loglevel", "1"
    )
    assert told(done)["artifacts"] == "none"
    assert warnings(done) == []
    assert "there is no save-artifacts script: a clean build" in done.err
    assert hub.requests("GET", scene.tag.split("/")[1].split(":")[0]) == []


# --- the container of save-artifacts --------------------------------------------------------------


@same("incremental.user")
@pytest.mark.parametrize(
    ("how", "by"),
    [
        ((), "1001:0"),
        (("--assemble-user", "1234:5"), "1234:5"),
        (("--assemble-user", "nobody"), "65534:65534"),
    ],
)
def test_save_artifacts_runs_as_the_assemble_user_of_now(
    scene: Scene, how: tuple[str, ...], by: str
) -> None:
    script = '#!/bin/sh\necho "saved by: $(id -u):$(id -g)" >&2\n'
    # A directory of the image belongs to 1001; the others work in their own.
    builder = scene.image("open", {"assemble": "#!/bin/sh\nid\n", "run": RUN})
    source = scene.source({".s2i/bin/save-artifacts": script})
    done = scene.ocis2i.ok("build", source, builder, "owned:1")
    done = scene.ocis2i.ok("build", source, builder, "owned:1", "--incremental", *how)
    assert told(done)["saved by"] == by


@same("incremental.user")
def test_save_artifacts_runs_as_the_user_of_the_builders_label(scene: Scene) -> None:
    script = '#!/bin/sh\necho "saved by: $(id -u):$(id -g)" >&2\n'
    labels = {
        "io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i",
        "io.openshift.s2i.assemble-user": "4321",
    }
    scripts = {"assemble": "#!/bin/sh\nid\n", "run": RUN}
    builder = scene.image("labelled", scripts, {"Labels": labels})
    source = scene.source({".s2i/bin/save-artifacts": script})
    scene.ocis2i.ok("build", source, builder, "labelled:1", "--assemble-user", "7")
    done = scene.ocis2i.ok("build", source, builder, "labelled:1", "--incremental")
    assert told(done)["saved by"] == "4321:0"


@better("incremental.script-of-now", "an edited script counts at once")
def test_edited_script_counts_at_once(scene: Scene) -> None:
    script = '#!/bin/sh\necho "version: {}" >&2\necho "at: $0" >&2\n'
    source = scene.source({".s2i/bin/save-artifacts": script.format(1)})
    scene.ocis2i.ok("build", source, scene.builder, "edited:1")
    scene.source({".s2i/bin/save-artifacts": script.format(2)})
    done = scene.ocis2i.ok("build", source, scene.builder, "edited:1", "--incremental")
    assert told(done)["version"] == "2"
    assert told(done)["at"] == "/tmp/scripts/save-artifacts"
    assert content(scene.result("edited:1"), "tmp/scripts/save-artifacts") == script.format(2)


@better("incremental.script-of-now", "an edited script counts at once")
def test_script_of_the_source_works_where_the_previous_image_had_none(scene: Scene) -> None:
    scene.ocis2i.ok("build", scene.source(), scene.builder, "late:1")
    source = scene.source({".s2i/bin/save-artifacts": SAVE.replace("cache", "index.html")})
    done = scene.ocis2i.ok("build", source, scene.builder, "late:1", "--incremental")
    assert told(done)["artifacts"] == "./index.html "


@same("incremental.surroundings")
def test_save_artifacts_has_mounts_hosts_and_capabilities_of_assemble(scene: Scene) -> None:
    (scene.directory / "mounted").mkdir()
    (scene.directory / "mounted/word").write_text("from the host")
    show = (
        'echo "{0} sees: $(cat /mnt/word) $(grep -c 10.9.8.7 /etc/hosts)'
        ' $(grep CapBnd /proc/self/status | cut -f2) $(ls /sys/class/net | tr "\\n" " ")"'
    )
    done = scene.again(
        "#!/bin/sh\n" + show.format("saving") + " >&2\n",
        *("-v", f"{scene.directory}/mounted:/mnt:ro", "--add-host", "far.example:10.9.8.7"),
        *("--cap-drop", "ALL", "--network", "none"),
        then=show.format("assemble"),
    )
    seen = told(done)
    assert seen["saving sees"].split()[:3] == ["from", "the", "host"]
    assert seen["saving sees"].split()[3:5] == ["1", "0" * 16]
    assert seen["saving sees"] == seen["assemble sees"]


# --- the tar --------------------------------------------------------------------------------------


@same("incremental.tar")
def test_every_dialect_of_tar_is_read(scene: Scene) -> None:
    archives = b""
    for number, kind in enumerate((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)):
        buffer = io.BytesIO()
        name = f"{number}/{'long' * 30}" if kind != tarfile.USTAR_FORMAT else "0/short"
        with tarfile.open(fileobj=buffer, mode="w", format=kind) as archive:
            archive.addfile(tarfile.TarInfo(name), io.BytesIO())
        archives += buffer.getvalue()
    long = "long" * 30
    assert scene.restored(archives) == f"./0 ./0/short ./1 ./1/{long} ./2 ./2/{long}"


@same("incremental.padding")
def test_padding_is_read_to_its_end(scene: Scene) -> None:
    # More than a pipe holds: a script whose output nobody reads would never end.
    script = script_that_prints(
        Layer().file("a", "a").tar(), "head -c 1000000 /dev/zero && echo 'the end: yes' >&2"
    )
    done = scene.again(script)
    assert told(done)["artifacts"] == "./a "
    assert told(done)["the end"] == "yes"
    assert warnings(done) == []


@better("incremental.two-archives", "all of them count")
def test_two_archives_both_count(scene: Scene) -> None:
    first, second = Layer().file("a", "first").file("b", "old"), Layer().file("b", "new")
    assert scene.restored(first.tar() + second.tar(), then="cat /tmp/artifacts/b >b") == "./a ./b"
    assert content(scene.result(), "opt/app-root/src/b") == "new"


@same("incremental.empty")
def test_empty_output_is_an_empty_directory(scene: Scene) -> None:
    done = scene.again("#!/bin/sh\n", "--json")
    assert told(done)["artifacts"].strip() == ""
    assert warnings(done) == []
    assert done.document["incremental"] is True


@same("incremental.modes")
@same("incremental.leftovers")
def test_modes_and_times_are_kept_and_owners_are_not(scene: Scene) -> None:
    tar = (
        Layer()
        .dir("closed", mode=0o555, uid=7, gid=8)
        .file("closed/tool", "t", mode=0o755, uid=7, gid=8, mtime=MTIME + 5)
        .file("closed/secret", "s", mode=0o400, uid=0)
        .file("plain", "p", mode=0o640, uid=65534)
    )
    assert scene.restored(tar.tar()) == "./closed ./closed/secret ./closed/tool ./plain"
    seen = facts(scene.result())
    assert {name: seen[name] for name in seen if name.startswith("tmp/artifacts")} == {
        "tmp/artifacts": "0755 1001:0",
        "tmp/artifacts/closed": "0555 1001:0",
        "tmp/artifacts/closed/tool": "0755 1001:0",
        "tmp/artifacts/closed/secret": "0400 1001:0",
        "tmp/artifacts/plain": "0640 1001:0",
    }
    assert scene.result().members()["tmp/artifacts/closed/tool"].mtime == MTIME + 5


@better("incremental.leftovers", "`--prune-upload` leaves them out")
def test_leftovers_can_be_left_out(scene: Scene) -> None:
    tar = Layer().dir("closed", mode=0o555).file("closed/f").tar()
    assert scene.restored(tar, "--prune-upload") == "./closed ./closed/f"
    assert not [name for name in facts(scene.result()) if "tmp/artifacts" in name]


@better("incremental.hard-links", "hard links stay what they are")
def test_hard_links_stay_hard_links(scene: Scene) -> None:
    tar = Layer().file("a", "content").hardlink("b", "a").dir("d").hardlink("d/c", "b").tar()
    shown = 'echo "links: $(stat -c %h /tmp/artifacts/a) $(cat /tmp/artifacts/d/c)"'
    done = scene.again(script_that_prints(tar), then=shown)
    assert told(done)["links"] == "3 content"
    members = scene.result().members()
    assert members["tmp/artifacts/b"].linkname == "tmp/artifacts/a"
    assert members["tmp/artifacts/d/c"].linkname == "tmp/artifacts/a"


@same("incremental.special-files")
def test_devices_and_pipes_are_left_out_with_a_warning(scene: Scene) -> None:
    tar = Layer().device("null").device("disk", kind="block").device("pipe", kind="fifo").file("a")
    done = scene.again(script_that_prints(tar.tar()))
    assert told(done)["artifacts"] == "./a "
    assert warnings(done) == ["3 devices, pipes or sockets among the artifacts were left out"]


@better("incremental.links", "links are kept, and nothing is ever written through one")
def test_links_are_links_and_lead_nowhere_on_the_host(scene: Scene) -> None:
    tar = (
        Layer()
        .symlink("inside", "dir/file")
        .symlink("absolute", "/etc/passwd")
        .symlink("climbing", "../../../../../../etc/passwd")
        .dir("dir")
        .file("dir/file", "text")
    )
    # Moved as builders do it; `absolute` names a file of the container.
    then = 'mv /tmp/artifacts/* . && echo "through: $(head -n1 absolute) $(cat inside)"'
    done = scene.again(script_that_prints(tar.tar()), then=then)
    assert told(done)["through"].endswith("/bin/sh text")
    seen = facts(scene.result())
    assert seen["opt/app-root/src/absolute"] == "-> /etc/passwd"
    assert seen["opt/app-root/src/climbing"] == "-> ../../../../../../etc/passwd"
    assert "etc/passwd" not in seen


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    """A file of the host that no archive may reach, in a directory that anybody may write."""
    directory = tmp_path / "host"
    directory.mkdir()
    directory.chmod(0o777)
    file = directory / "canary"
    file.write_text("untouched")
    file.chmod(0o666)
    return file


def _write_through(canary: Path) -> Layer:
    return Layer().symlink("out", str(canary.parent)).file("out/canary", "gone").file("out/new")


def _write_through_file_link(canary: Path) -> Layer:
    return Layer().symlink("out", str(canary)).file("out", "gone")


def _absolute_name(canary: Path) -> Layer:
    return Layer().file(str(canary), "gone")


def _climbing_name(canary: Path) -> Layer:
    return Layer().file(f"{'../' * 30}{str(canary).lstrip('/')}", "gone")


def _climbing_inside(canary: Path) -> Layer:
    return Layer().dir("a").file(f"a/../{'../' * 30}{str(canary).lstrip('/')}", "gone")


def _beside(canary: Path) -> Layer:
    return Layer().file("../artifacts-more/x", str(canary))


def _hard_link_out(canary: Path) -> Layer:
    return Layer().hardlink("out", str(canary)).file("out", "gone")


def _climbing_hard_link(canary: Path) -> Layer:
    return Layer().hardlink("out", f"{'../' * 30}{str(canary).lstrip('/')}").file("out", "gone")


def _hard_link_through(canary: Path) -> Layer:
    return Layer().symlink("d", str(canary.parent)).hardlink("out", "d/canary").file("out", "gone")


@better("incremental.links", "links are kept, and nothing is ever written through one")
@better("security.archives", "such an archive is refused as a whole")
@pytest.mark.parametrize(
    "attack",
    [
        _write_through,
        _write_through_file_link,
        _absolute_name,
        _climbing_name,
        _climbing_inside,
        _beside,
        _hard_link_out,
        _climbing_hard_link,
        _hard_link_through,
    ],
)
def test_hostile_archive_reaches_nothing_and_the_build_goes_on(
    scene: Scene, canary: Path, attack: object
) -> None:
    assert callable(attack)
    layer: Layer = attack(canary)
    tar = Layer().file("good", "g").tar() + layer.tar()
    done = scene.again(script_that_prints(tar))
    assert told(done)["artifacts"] == "none"
    (warning,) = warnings(done)
    assert warning.startswith(f"{CLEAN}: hostile archive: ")
    assert canary.read_text() == "untouched"
    assert os.listdir(canary.parent) == ["canary"]
    assert canary.stat().st_nlink == 1
    assert not [name for name in facts(scene.result()) if "tmp/artifacts" in name]


# --- failures -------------------------------------------------------------------------------------


@same("incremental.failure")
@better("incremental.partial", "they are thrown away")
@pytest.mark.parametrize(
    ("then", "words"),
    [
        ("exit 3", "failed with exit code 3"),
        ("exit 127", "failed with exit code 127"),
        ("sh -c 'kill -9 $$; :'; exit $?", "failed with exit code 137"),
    ],
)
def test_failing_script_is_a_clean_build_without_its_artifacts(
    scene: Scene, then: str, words: str
) -> None:
    tar = Layer().file("partial", "p").tar()
    done = scene.again(script_that_prints(tar, then), "--json")
    assert told(done)["artifacts"] == "none"
    (warning,) = warnings(done)
    assert warning.startswith(f"{CLEAN}: `/tmp/scripts/save-artifacts` {words}")
    assert done.document["incremental"] is False
    assert done.document["state"] == "succeeded"
    assert done.document["build_info"]["failureReason"]["reason"] == ""


TAR = Layer().file("a", "content of a file\n" * 100).file("b", "b").tar()


@same("incremental.failure")
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"Saving the cache...\n" + TAR, "stdout starts with `Saving the cache..."),
        (b"only words\n", "stdout starts with `only words`, which is no tar"),
        (b"\x1f\x8b\x08\0\0\0\0\0", "stdout is compressed by gzip, and must be a plain tar"),
        (TAR[:700], "the tar on stdout is broken"),
        (TAR[:512] + b"\xff" * 4096, "the tar on stdout is broken"),
    ],
    ids=["words-before", "words", "compressed", "cut-off", "broken"],
)
def test_output_that_is_no_tar_is_told_and_a_clean_build(
    scene: Scene, data: bytes, words: str
) -> None:
    done = scene.again(script_that_prints(data))
    assert told(done)["artifacts"] == "none"
    (warning,) = warnings(done)
    assert warning.startswith(f"{CLEAN}: {words}")


def test_words_after_the_tar_are_told(scene: Scene) -> None:
    done = scene.again(script_that_prints(TAR, "echo saved"))
    assert told(done)["artifacts"] == "./a ./b "
    (warning,) = warnings(done)
    assert warning.startswith("6 bytes that `save-artifacts` wrote after its tar are no tar")


@same("incremental.failure")
@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("#!/bin/nowhere\n", "needs `/bin/nowhere`, which the image does not have"),
        ("\x7fELF", "`/tmp/scripts/save-artifacts`"),
        ("#!/bin/sh\nyes\n", "8000000 bytes"),
    ],
    ids=["interpreter", "no-program", "endless"],
)
def test_script_that_cannot_work_is_a_clean_build(scene: Scene, script: str, words: str) -> None:
    repository, _, tag = scene.tag.removeprefix(f"{scene.hub.host}/").rpartition(":")
    offer(scene.hub, scene.builder, repository, tag)
    source = scene.source({".s2i/bin/save-artifacts": script})
    done = scene.ocis2i.ok(
        "build", source, scene.builder, scene.tag, "--incremental", OCIS2I_LAYER_LIMIT="8000000"
    )
    assert told(done)["artifacts"] == "none"
    (warning,) = warnings(done)
    assert warning.startswith(CLEAN)
    assert words in warning


def test_failing_assemble_leaves_the_previous_image_alone(story: Story, scene: Scene) -> None:
    source = scene.source({"then": KEEP_CACHE})
    place = scene.image("caching", {"assemble": ASSEMBLE, "run": RUN, "save-artifacts": SAVE})
    first = scene.ocis2i.ok("build", source, place, "kept:1", "--incremental").out
    scene.source({"then": "exit 9"})
    failed = scene.ocis2i("build", source, place, "kept:1", "--incremental", "--rm", "--json")
    assert failed.code == 7
    assert failed.document["script_exit_code"] == 9
    assert failed.document["reason"] == "AssembleFailed"
    inspected = scene.ocis2i.ok("inspect", "kept:1").document
    assert inspected["digest"] == first.strip().partition("@")[2]
    scene.source({"then": KEEP_CACHE})
    scene.ocis2i.ok("build", source, place, "kept:1", "--incremental")
    assert content(scene.result("kept:1"), "opt/app-root/src/cache/log") == "xx\n"


# --- --rm -----------------------------------------------------------------------------------------


def _build_twice(scene: Scene, tag: str, *second: str) -> tuple[str, str]:
    """Digests of two builds of which the second one is incremental and differs."""
    script = script_that_prints(Layer().file("a", "a").tar())
    source = scene.source({".s2i/bin/save-artifacts": script, "then": "echo 1 >one"})
    first = scene.ocis2i.ok("build", source, scene.builder, tag).out
    scene.source({"then": "echo 2 >two"})
    again = scene.ocis2i.ok("build", source, scene.builder, tag, *second).out
    return first.strip().rpartition("@")[2], again.strip().rpartition("@")[2]


def _has(scene: Scene, digest: str) -> bool:
    return scene.result().blob(digest).exists()


@same("--rm")
def test_rm_removes_the_previous_image(scene: Scene) -> None:
    first, second = _build_twice(scene, "replaced:1", "--incremental", "--rm")
    assert first != second
    assert not _has(scene, first)
    assert scene.ocis2i("inspect", first).code == 4
    assert scene.ocis2i.ok("run", "replaced:1", "cat", "two").out == "2\n"


@same("--rm")
@pytest.mark.parametrize("flags", [("--incremental",), ("--rm",)])
def test_the_previous_image_is_removed_with_both_flags_only(
    scene: Scene, flags: tuple[str, ...]
) -> None:
    first, second = _build_twice(scene, f"stays{len(flags[0])}:1", *flags)
    assert first != second
    assert _has(scene, first)


@same("--rm")
def test_rm_keeps_what_has_another_name(scene: Scene) -> None:
    with FakeRegistry() as other:
        script = script_that_prints(Layer().file("a", "a").tar())
        source = scene.source({".s2i/bin/save-artifacts": script, "then": "echo 1 >one"})
        first = scene.ocis2i.ok("build", source, scene.builder, "twice:1").out
        scene.ocis2i.ok("push", "twice:1", f"{other.host}/twice:1")
        scene.ocis2i.ok("pull", f"{other.host}/twice:1")
        scene.source({"then": "echo 2 >two"})
        scene.ocis2i.ok("build", source, scene.builder, "twice:1", "--incremental", "--rm")
        assert _has(scene, first.strip().rpartition("@")[2])
        assert scene.ocis2i.ok("run", f"{other.host}/twice:1", "cat", "one").out == "1\n"


@better("rm.same-image", "an image that is the same as the old one stays")
def test_rm_keeps_an_image_that_came_out_the_same(scene: Scene) -> None:
    script = script_that_prints(b"")
    source = scene.source({".s2i/bin/save-artifacts": script})
    build = ("build", source, scene.builder, "equal:1", "--prune-upload", "--timestamp", "1")
    first = scene.ocis2i.ok(*build).out
    second = scene.ocis2i.ok(*build, "--incremental", "--rm").out
    assert first == second
    assert scene.ocis2i.ok("run", "equal:1", "cat", "index.html").out == "hello\n"


@same("--rm")
def test_rm_removes_a_previous_image_that_was_fetched(scene: Scene) -> None:
    tag = scene.tag
    done = scene.again(script_that_prints(TAR), "--rm")
    repository, _, name = tag.removeprefix(f"{scene.hub.host}/").rpartition(":")
    _, raw = scene.hub.manifests[repository][name]
    previous = json.loads(raw)["config"]["digest"]
    assert told(done)["artifacts"] == "./a ./b "
    assert scene.result().manifest["config"]["digest"] != previous
    assert not _has(scene, previous)
    # Its layers are the builder's, and the result's too.
    assert scene.ocis2i.ok("run", tag, "cat", "index.html").out == "hello\n"


# --- where the previous image comes from ----------------------------------------------------------


def _push_version(scene: Scene, version: str) -> str:
    """Makes an image that saves its `version` the one that the registry has under the tag."""
    builder = scene.image(f"v{version}", {"assemble": ASSEMBLE, "run": RUN,
                          "save-artifacts": script_that_prints(
                              Layer().file(version, version).tar())})  # fmt: skip
    repository, _, tag = scene.tag.removeprefix(f"{scene.hub.host}/").rpartition(":")
    return offer(scene.hub, builder, repository, tag)


def _incremental(scene: Scene, policy: str | None) -> Done:
    flags = ("--incremental-pull-policy", policy) if policy else ()
    return scene.ocis2i.ok(
        "build", scene.source(), scene.builder, scene.tag, "--incremental", *flags
    )


@same("--incremental-pull-policy")
@pytest.mark.parametrize("policy", ["always", "if-not-present", None])
def test_previous_image_is_fetched_from_its_registry(scene: Scene, policy: str | None) -> None:
    _push_version(scene, "one")
    assert told(_incremental(scene, policy))["artifacts"] == "./one "


@same("--incremental-pull-policy")
def test_policy_never_asks_no_registry(scene: Scene) -> None:
    _push_version(scene, "one")
    before = len(scene.hub.log)
    done = _incremental(scene, "never")
    assert told(done)["artifacts"] == "none"
    (warning,) = warnings(done)
    assert warning.startswith(f"no previous image, a clean build: image `{scene.tag}`")
    assert len(scene.hub.log) == before


@same("--incremental-pull-policy")
@pytest.mark.parametrize(("policy", "seen"), [("if-not-present", "one"), ("always", "two")])
def test_policies_differ_when_the_store_has_an_older_one(
    scene: Scene, policy: str, seen: str
) -> None:
    _push_version(scene, "one")
    scene.ocis2i.ok("pull", scene.tag)
    _push_version(scene, "two")
    assert told(_incremental(scene, policy))["artifacts"] == f"./{seen} "


@same("--incremental-pull-policy")
def test_unknown_policy_is_an_error_before_anything_is_done(scene: Scene) -> None:
    build = ("build", scene.source(), scene.builder, "policy:1", "--incremental-pull-policy")
    done = scene.ocis2i(*build, "sometimes")
    assert done.code == 2
    assert "invalid pull policy `sometimes`" in done.err
    assert "--->" not in done.err


@same("incremental.failure")
def test_registry_that_fails_is_a_clean_build(scene: Scene) -> None:
    _push_version(scene, "one")
    scene.hub.fail("GET", scene.tag.split("/")[1].split(":")[0], status=403, times=-1)
    done = _incremental(scene, "always")
    assert told(done)["artifacts"] == "none"
    assert warnings(done)[0].startswith("no previous image, a clean build: ")


@same("incremental.failure")
def test_previous_image_whose_layer_is_broken_is_a_clean_build(scene: Scene) -> None:
    _push_version(scene, "broken")
    repository = scene.tag.split("/")[1].split(":")[0]
    manifest = json.loads(scene.hub.manifests[repository]["1"][1])
    last = manifest["layers"][-1]["digest"]
    scene.hub.blobs[repository][last] = b"x" * len(scene.hub.blobs[repository][last])
    done = _incremental(scene, "always")
    assert told(done)["artifacts"] == "none"
    assert warnings(done)[0].startswith("no previous image, a clean build: ")


@same("incremental.previous-image")
@pytest.mark.registry
@needs_registry
def test_another_machine_goes_on_from_what_was_pushed(story: Story, tmp_path: Path) -> None:
    place = f"oci:{story.directory / 'caching'}:caching:1"
    build = ("build", story.directory / "source", place)
    with (
        docker_registry(tmp_path / "registry") as running,
        program(_new(tmp_path / "here")) as here,
        program(_new(tmp_path / "there")) as there,
    ):
        tag = f"{running.host}/team/app:1"
        here.ok(*build, tag, "--incremental", "--push")
        done = there.ok(*build, tag, "--incremental", "--push", "--rm", "--json")
        assert told(done)["artifacts"] == "./cache ./cache/log "
        assert done.document["incremental"] is True
        here.ok(*build, tag, "--incremental", "--incremental-pull-policy", "always")
        image = LayoutImage(here.layout, tag)
        assert content(image, "opt/app-root/src/cache/log") == "xxx\n"


def _new(directory: Path) -> Path:
    directory.mkdir()
    return directory


# --- killed in the middle -------------------------------------------------------------------------


@pytest.mark.parametrize("isolation", [RUNC, "builtin"])
def test_kill_while_saving_leaves_a_valid_store(
    scene: Scene, ocis2i: Program, isolation: str
) -> None:
    script = script_that_prints(TAR[:700], "echo here >&2; sleep 1000")
    source = scene.source({".s2i/bin/save-artifacts": script})
    build = ("build", source, scene.builder, "killed:1", "--isolation", isolation)
    first = ocis2i.ok(*build).out
    kill_in_the_middle(ocis2i, *build, "--incremental")
    assert ocis2i.ok("inspect", "killed:1").document["digest"] == first.strip().split("@")[1]
    assert_one_build_left(ocis2i)
    scene.source({".s2i/bin/save-artifacts": script_that_prints(TAR)})
    done = ocis2i.ok(*build, "--incremental")
    assert told(done)["artifacts"] == "./a ./b "


def test_interrupt_while_saving_ends_the_build(scene: Scene) -> None:
    script = script_that_prints(TAR[:700], "echo here >&2; sleep 1000")
    source = scene.source({".s2i/bin/save-artifacts": script})
    build = ("build", source, scene.builder, "stopped:1")
    scene.ocis2i.ok(*build)
    process = scene.ocis2i.start(*build, "--incremental")
    assert process.stderr is not None
    assert any(line == "here\n" for line in process.stderr)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "error: stopped by termination" in err
    assert CLEAN not in err
    assert os.listdir(scene.ocis2i.store / "builds") == []


def kill_in_the_middle(ocis2i: Program, *build: str | Path) -> None:
    """Kills a build when a script says `here`; the store is valid and nothing stays mounted."""
    process = ocis2i.start(*build)
    assert process.stderr is not None
    assert any(line == "here\n" for line in process.stderr)
    family = descendants(process.pid)
    assert family
    process.kill()
    process.communicate()
    _wait_until_gone(family)
    Inspector(ocis2i.layout).check()
    assert mounts_of(ocis2i.store) == []


def assert_one_build_left(ocis2i: Program) -> None:
    """The killed build is all that there is to prune."""
    assert ocis2i.ok("prune", "--json").document["builds"] == 1
    assert os.listdir(ocis2i.store / "builds") == os.listdir(ocis2i.store / "tmp") == []


def _wait_until_gone(pids: set[int]) -> None:
    deadline = time.monotonic() + 20
    for pid in pids:
        # Whoever is still there after SIGKILL is on the way out, or a zombie of somebody else's.
        while _is_running(pid):
            assert time.monotonic() < deadline, pid
            time.sleep(0.01)


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state not in "ZX"
    return False
