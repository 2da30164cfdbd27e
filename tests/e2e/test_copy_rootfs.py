"""Builds in a copy of the image: where no overlayfs is, and with the same result as in one."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fakes import mounted
from tests.fakes.bench import Bench
from tests.fakes.images import BUSYBOX, HOME, Layer
from tests.fakes.program import ARGV, PROJECT, Done, Program, called, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

WHEN = ("--timestamp", "1600000000")
KINDS = ("overlay", "copy")

# All that overlayfs has a representation of its own for, and all that a layer can hold.
ASSEMBLE = f"""\
#!/bin/sh
set -e
cp -R /tmp/src/. {HOME}/
cd /data
rm file
rm -r gone
rm -r anew && mkdir anew && echo 1 >anew/kept
rm -r was-directory && echo 1 >was-directory
rm was-file && mkdir was-file && echo 1 >was-file/inside
chmod 644 touched && chown 0:0 touched && chmod -R 755 odd
touch -r same-size saved && printf new >same-size && touch -r saved same-size && rm saved
echo more >>linked-a
ln plain a-second-name
echo 1 >made && ln made made-too && ln -s made made-link
echo '#!/bin/sh' >suid && chmod 6755 suid
mkfifo pipe && ln pipe pipe-too
truncate -s 3M hole && truncate -s 1M grown
mkdir -p "$(printf 'new\\nline')" && echo 1 >"$(printf 'new\\nline')/$(printf 'tab\\t\\377')"
deep=. ; for n in $(seq 60); do deep="$deep/directory-$n" ; done
mkdir -p "$deep" && echo 1 >"$deep/file"
rm link && ln -s elsewhere link
chown 12:34 owned && chown -h 1001:0 owned-link
rm -r moved-away/inner && mv moved-file moved-away/
chmod 1777 /var/tmp && mkdir -p /etc/made && echo 1 >/etc/made/file
"""


def data_layer() -> Layer:
    """What `ASSEMBLE` changes."""
    layer = Layer().dir("data")
    for name in ("file", "touched", "plain", "same-size", "was-file", "grown", "owned"):
        layer.file(f"data/{name}", "old")
    for name in ("gone", "anew", "was-directory", "moved-away", "moved-away/inner", "odd"):
        layer.dir(f"data/{name}").file(f"data/{name}/kept", "1\n", mode=0o755)
    layer.file("data/linked-a", "1").hardlink("data/linked-b", "data/linked-a")
    layer.file("data/moved-file", "1", uid=1001).symlink("data/owned-link", "file")
    return layer.symlink("data/link", "somewhere")


@dataclass(frozen=True)
class Copies(Bench):
    """A bench with a builder whose assemble does everything."""

    builder: str

    def both(self, *arguments: str | Path) -> list[Done]:
        """The same build on an overlay and on a copy."""
        given = ("build", self.source(), *arguments, *WHEN)
        return [self.ocis2i.ok(*given, "--rootfs", kind) for kind in KINDS]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One store for all tests here: no test looks at what else is in it."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    with program(tmp_path_factory.mktemp("copies")) as running:
        yield running


@pytest.fixture
def bench(store: Program, tmp_path: Path) -> Copies:
    plain = Copies(store, tmp_path, "")
    config = {"User": "0"}
    scripts = {"assemble": ASSEMBLE, "run": "#!/bin/sh\n"}
    builder = plain.image("all", scripts, config, [data_layer()])
    return Copies(store, tmp_path, builder)


def test_an_overlay_and_a_copy_give_the_same_image(bench: Copies) -> None:
    overlay, copied = bench.both(bench.builder, bench.tag)
    assert copied.out == overlay.out
    names = bench.result().members()
    wanted = "data/.wh.file data/.wh.gone data/anew/.wh..wh..opq data/same-size data/linked-a"
    assert set(wanted.split()) <= set(names)
    assert not {"data/linked-b", "data/touched", "data/odd", "data/odd/kept"} & set(names)


def test_it_is_the_same_image_with_each_executor(bench: Copies) -> None:
    given = ("build", bench.source(), bench.builder, bench.tag, *WHEN, "--rootfs", "copy")
    builtin = bench.ocis2i.ok(*given, "--isolation", "builtin")
    assert bench.ocis2i.ok(*given).out == builtin.out


def test_an_unknown_kind_is_refused(bench: Copies) -> None:
    given = ("build", bench.source(), bench.builder, bench.tag)
    by_flag = bench.ocis2i(*given, "--rootfs", "paper")
    by_variable = bench.ocis2i(*given, OCIS2I_ROOTFS="paper")
    for done, name in ((by_flag, "--rootfs"), (by_variable, "OCIS2I_ROOTFS")):
        assert done.code == 2
        assert name in done.err
        assert "`paper`" in done.err
        assert "overlay" in done.err


def test_a_script_that_fails_leaves_nothing(bench: Copies) -> None:
    builder = bench.image("fails", {"assemble": "#!/bin/sh\nexit 3\n", "run": "#!/bin/sh\n"})
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, "--rootfs", "copy")
    assert done.code == 7
    assert not list((bench.ocis2i.store / "builds").iterdir())


SAVING = {
    "assemble": "#!/bin/sh\nset -e\nif [ -d /tmp/artifacts ]; then cp -R /tmp/artifacts/. .; fi\n"
    'cp -R /tmp/src/. .\nprintf x >>cache\necho "cache: $(cat cache)"\n',
    "save-artifacts": "#!/bin/sh\ntar -cf - cache\n",
    "run": "#!/bin/sh\n",
}


def test_incremental_builds(bench: Copies) -> None:
    builder = bench.image("saving", SAVING)
    layers = []
    for kind in KINDS:
        given = ("build", bench.source(), builder, f"{kind}:1", *WHEN, "--rootfs", kind)
        bench.ocis2i.ok(*given)
        done = bench.ocis2i.ok(*given, "--incremental")
        assert "cache: xx" in done.err
        layers.append(bench.result(f"{kind}:1").layers[-1])
    assert layers[0] == layers[1]


def test_runtime_images(bench: Copies) -> None:
    assemble = "#!/bin/sh\nset -e\nmkdir -p /tmp/out/sub && cd /tmp/out\necho app >app\n"
    assemble += "ln app sub/same && chmod 700 app && ln -s app link\n"
    builder = bench.image("builder", {"assemble": assemble, "run": "#!/bin/sh\n"})
    runtime = bench.image(
        "runtime",
        {"assemble-runtime": "#!/bin/sh\necho made >made\n", "run": "#!/bin/sh\n"},
        {"Labels": {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i"}},
        [Layer().dir(f"{HOME.strip('/')}/out").file(f"{HOME.strip('/')}/out/old", "old")],
    )
    files = ("--runtime-image", runtime, "--runtime-artifact", "/tmp/out:.")
    overlay, copied = bench.both(builder, bench.tag, *files)
    assert copied.out == overlay.out
    home = HOME.strip("/")
    wanted = {f"{home}/made", f"{home}/out/app", f"{home}/out/sub/same"}
    assert wanted <= set(bench.result().members())


def test_what_is_injected_is_not_in_the_layer(bench: Copies) -> None:
    secret = bench.directory / "secret"
    secret.write_text("hidden")
    assemble = '#!/bin/sh\nset -e\ncp -R /tmp/src/. .\necho "read: $(wc -c <token)"\n'
    builder = bench.image("reads", {"assemble": assemble, "run": "#!/bin/sh\n"})
    overlay, copied = bench.both(builder, bench.tag, "--inject", f"{secret}:token")
    assert "read: 6" in copied.err
    assert copied.out == overlay.out
    assert bench.result().members()[f"{HOME.strip('/')}/token"].size == 0
    unnamed = ("--inject", f"{secret}:token", "--no-injection-names")
    overlay, copied = bench.both(builder, bench.tag, *unnamed)
    assert copied.out == overlay.out
    assert f"{HOME.strip('/')}/token" not in bench.result().members()


def test_uploads_merge_with_the_image_and_can_be_pruned(bench: Copies) -> None:
    """The builder has a file where the source has a directory, and the other way round."""
    before = Layer().dir("tmp", mode=0o1777).dir("tmp/src", mode=0o700).file("tmp/src/a", "file")
    before.dir("tmp/src/b").file("tmp/src/b/in", "in").dir("tmp/src/c").file("tmp/src/c/in", "in")
    assemble = '#!/bin/sh\nset -e\necho "found: $(cd /tmp/src && find . | sort | xargs)"\n'
    builder = bench.image("merges", {"assemble": assemble, "run": "#!/bin/sh\n"}, None, [before])
    source = bench.source({"a/new": "1", "b": "file", "c/new": "1"})
    found = "found: . ./a ./a/new ./b ./c ./c/in ./c/new ./index.html"
    for more in ((), ("--prune-upload",)):
        given = ("build", source, builder, bench.tag, *WHEN, *more)
        overlay, copied = [bench.ocis2i.ok(*given, "--rootfs", kind) for kind in KINDS]
        assert found in overlay.err
        assert found in copied.err
        assert copied.out == overlay.out


def test_what_a_run_writes_is_lost(bench: Copies) -> None:
    bench.ocis2i.ok("build", bench.source(), bench.builder, bench.tag)
    command = ("run", "--rootfs", "copy", bench.tag, "sh", "-c", "ls /data/made && rm -r /data")
    for _ in range(2):
        assert bench.ocis2i.ok(*command).out == "/data/made\n"


def test_usage(bench: Copies) -> None:
    builder = bench.image("says", {"usage": "#!/bin/sh\necho says >/tmp/it && cat /tmp/it\n"})
    assert bench.ocis2i.ok("usage", "--rootfs", "copy", builder).out == "says\n"


# --- other file systems ------------------------------------------------------------------------


def in_world(
    bench: Copies,
    kind: str,
    *arguments: str | Path,
    through: tuple[str, ...] = (),
    **variables: str,
) -> Done:
    """ocis2i with its store on a file system of this kind, started by what it goes `through`."""
    # Not below the test's own directory: overlayfs takes no path with a colon or a comma in it.
    with tempfile.TemporaryDirectory(prefix="ocis2i-world-") as directory:
        store = f"{directory}/store"
        return called(
            [sys.executable, mounted.__file__, kind, store, *through, *ARGV, *arguments],
            {**bench.ocis2i.environment, "OCIS2I_ROOT": store, **variables},
            cwd=PROJECT,
        )


@pytest.fixture
def world(bench: Copies) -> Copies:
    """A bench whose builder needs no more than one id and has layers that hide things."""
    script = "#!/bin/sh\nset -e\ncp -R /tmp/src/. .\ncd ../opened\nrm -r anew && mkdir anew\n"
    script += "rm one && echo changed >other\ntest ! -e hidden && test ! -e replaced/old\n"
    top = "opt/app-root/opened"
    below = Layer().dir(top, uid=1001).dir(f"{top}/anew", uid=1001).file(f"{top}/anew/x", uid=1001)
    for name in ("one", "other", "hidden"):
        below.file(f"{top}/{name}", name, uid=1001)
    below.dir(f"{top}/replaced").file(f"{top}/replaced/old", "old")
    above = Layer().dir(top, uid=1001).whiteout(f"{top}/hidden")
    above.dir(f"{top}/replaced").opaque(f"{top}/replaced").file(f"{top}/replaced/new", "new")
    scripts = {"assemble": script, "run": "#!/bin/sh\n"}
    builder = bench.image("world", scripts, None, [below, above])
    return Copies(bench.ocis2i, bench.directory, builder)


@pytest.fixture
def reference(world: Copies) -> str:
    """What the build prints on an ordinary disk."""
    return world.ocis2i.ok("build", world.source(), world.builder, world.tag, *WHEN).out


@pytest.mark.parametrize("kind", ["overlay", "tmpfs", "ramfs", "noexec"])
def test_wherever_the_store_is_the_image_is_the_same(
    world: Copies, reference: str, kind: str
) -> None:
    done = in_world(world, kind, "build", world.source(), world.builder, world.tag, *WHEN)
    assert done.code == 0, done.err
    assert done.out == reference


@pytest.mark.parametrize("kind", ["overlay", "ramfs"])
def test_where_overlayfs_does_not_work_it_is_said(world: Copies, kind: str) -> None:
    given = ("build", world.source(), world.builder, world.tag)
    done = in_world(world, kind, *given, "--loglevel", "1")
    assert done.code == 0, done.err
    assert "each build gets a copy of the image" in done.err
    refused = in_world(world, kind, *given, "--rootfs", "overlay")
    assert refused.code == 6
    assert "overlayfs" in refused.err
    assert "--rootfs copy" in refused.err


def test_nothing_can_be_executed_in_a_copy_on_a_noexec_disk(world: Copies) -> None:
    given = ("build", world.source(), world.builder, world.tag, "--rootfs", "copy")
    done = in_world(world, "noexec", *given)
    assert done.code == 6
    assert "mounted noexec" in done.err
    assert "--root" in done.err
    assert "cannot be started" not in done.err


def test_a_disk_that_is_too_small_for_the_copy_is_said_to_be_full(bench: Copies) -> None:
    """There is room for the unpacked layers, and not for them and a copy."""
    layer = Layer().file("opt/large", bytes(6 << 20))
    builder = bench.image("large", {"assemble": "#!/bin/sh\n", "run": "#!/bin/sh\n"}, None, [layer])
    given = ("build", bench.source(), builder, bench.tag, "--rootfs", "copy")
    listing = '"$@"; code=$?; cd "$OCIS2I_ROOT" && ls -A builds tmp; exit $code'
    done = in_world(bench, "small", *given, through=("sh", "-c", listing, "sh"))
    assert done.code == 8, done.err
    assert "error: the image cannot be copied: the disk is full" in done.err
    assert "hint: free some space" in done.err
    assert done.out.split() == ["builds:", "tmp:"]
