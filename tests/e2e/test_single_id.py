"""One user id only: no subordinate ids, no newuidmap, no_new_privs; and other ground."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from ocis2i.isolation.agent import agent
from tests.conftest import needs
from tests.e2e.test_bad_input import BIND, Elsewhere, elsewhere, hidden
from tests.fakes.hosts import Host
from tests.fakes.images import Layer, LayoutImage, busybox_builder
from tests.fakes.program import ARGV, Done, Program, called

pytestmark = [pytest.mark.sandbox, needs("busybox", "setpriv")]
__all__ = ["elsewhere"]  # the fixture, for pytest to find

IDS = ("subuid", "subgid")
NO_NEW_PRIVS = ("setpriv", "--no-new-privs")
ROOTS_OF_A_NAMESPACE = {
    "of-many": ("unshare", "--user", "--map-auto", "--map-root-user"),
    "of-one": ("unshare", "--user", "--map-root-user"),
}
STAMP = "1577836800"
CAPABILITY = "\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0"

# What a script may do to the files of others, of its own, and to those of nobody yet.
ASSEMBLE = """\
#!/bin/sh
set -e
cp -R /tmp/src/. "$HOME/"
cd /opt/app-root
mkdir -p new/deep; echo x > new/file; ln new/file new/hard; ln -s file new/soft; mkfifo new/pipe
echo more >> own; rm gone; rm made; echo again > made; echo more >> theirs; echo more >> name
chmod 700 mine; touch dir/inside; chmod 600 same; chmod 666 same
cat again > copy; mv copy again
"""


def base(*, far: int = 0) -> list[Layer]:
    """Layers in which files belong to several people; `far` is beyond what is mapped elsewhere."""
    first = Layer().dir("opt").dir("opt/app-root", mode=0o777, uid=1001, gid=0)
    first.dir("opt/app-root/dir", mode=0o777, uid=12, gid=13)
    first.dir("opt/app-root/mine", uid=1001, gid=0).file("opt/app-root/mine/file", uid=1001)
    for name in ("own", "gone", "made", "same", "again"):
        first.file(f"opt/app-root/{name}", name, uid=1001, gid=0, mode=0o666)
    first.file("opt/app-root/twice", "1", uid=5, gid=6, mode=0o666)
    first.file("opt/app-root/theirs", "t", uid=7 + far, gid=8 + far, mode=0o666)
    first.file("opt/app-root/other-name", "n", uid=7, gid=8, mode=0o666)
    first.file("opt/app-root/ping", "p", uid=0, gid=9, xattrs={"security.capability": CAPABILITY})
    first.hardlink("opt/app-root/name", "opt/app-root/other-name")
    second = Layer().file("opt/app-root/twice", "2", mode=0o666).symlink("opt/link", "app-root")
    return [first, second.file("opt/link/through", "", uid=21, gid=22, mode=0o666)]


@dataclass(frozen=True)
class Bench:
    """Builds of one source, on the host as it is or behind a launcher."""

    ocis2i: Program
    directory: Path
    source: Path

    def image(
        self,
        assemble: str = ASSEMBLE,
        *,
        user: str = "1001",
        far: int = 0,
        scripts: Mapping[str, str] | None = None,
    ) -> str:
        """A builder with this script."""
        path = self.directory / f"builder-{len(os.listdir(self.directory))}"
        named = {"assemble": assemble, **(scripts or {})}
        busybox_builder(path, "builder:latest", user=user, scripts=named, more_layers=base(far=far))
        return f"oci:{path}:builder:latest"

    def run(self, launcher: tuple[str, ...], *arguments: str | Path) -> Done:
        """One command line of ocis2i behind a launcher."""
        return called([*launcher, *ARGV, *arguments], self.ocis2i.environment)

    def arguments(self, builder: str, name: str, *more: str) -> list[str | Path]:
        """A build whose result is the image `name` of the layout `out`."""
        output = f"oci:{self.directory}/out:{name}"
        stamp = ("--timestamp", STAMP)
        return ["build", self.source, builder, "app:latest", "-o", output, *stamp, *more]

    def build(self, launcher: tuple[str, ...], builder: str, name: str, *more: str) -> Done:
        """A build that has to succeed."""
        done = self.run(launcher, *self.arguments(builder, name, *more))
        assert done.code == 0, f"{done.out}\n{done.err}"
        return done

    def result(self, name: str) -> LayoutImage:
        """What was built."""
        return LayoutImage(self.directory / "out", name)

    def owners(self, name: str) -> dict[str, tuple[int, int]]:
        """Whose the entries of the new layer are."""
        return {path: (one.uid, one.gid) for path, one in self.result(name).members().items()}


@pytest.fixture
def bench(ocis2i: Program, tmp_path: Path, source: Path) -> Bench:
    directory = tmp_path / "bench"
    directory.mkdir()
    return Bench(ocis2i, directory, source)


def listed(marker: str) -> list[str]:
    """Processes whose command line has the marker."""
    done = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if marker in line]


# --- the layer --------------------------------------------------------------------------------


@pytest.mark.parametrize("user", ["1001", "0", "1001:13", "0:5"])
def test_one_id_makes_the_same_layer_as_all(bench: Bench, user: str) -> None:
    builder = bench.image(user=user)
    bench.build((), builder, "full")
    bench.build(NO_NEW_PRIVS, builder, "single")
    assert bench.owners("single") == bench.owners("full")
    assert bench.result("single").layers == bench.result("full").layers


def test_owners_are_exact(bench: Bench) -> None:
    bench.build(NO_NEW_PRIVS, bench.image(), "single")
    owners = bench.owners("single")
    for path in ("new", "new/deep", "new/file", "new/soft", "new/pipe", "src/index.html", "again"):
        assert owners[f"opt/app-root/{path}"] == (1001, 0), path
    # Of an image's file the owner stays, whoever writes to it.
    assert owners["opt/app-root/theirs"] == owners["opt/app-root/name"] == (7, 8)
    assert owners["opt/app-root/dir"] == (12, 13)
    assert owners["opt/app-root/dir/inside"] == (1001, 0)
    # Nothing but its mode was changed, and that back.
    assert "opt/app-root/same" not in owners


def test_the_topmost_layer_says_whose_a_file_is(bench: Bench) -> None:
    script = "#!/bin/sh\ncd /opt/app-root\necho x >> twice\necho x >> through\n"
    bench.build(NO_NEW_PRIVS, bench.image(script), "single")
    owners = bench.owners("single")
    assert owners["opt/app-root/twice"] == (0, 0)
    assert owners["opt/app-root/through"] == (21, 22)


def test_ids_that_nobody_here_could_have_are_kept(bench: Bench) -> None:
    # Without a map there are no limits to the numbers either.
    bench.build(NO_NEW_PRIVS, bench.image(far=1_000_660_000, user="1000660000"), "single")
    owners = bench.owners("single")
    assert owners["opt/app-root/theirs"] == (1_000_660_007, 1_000_660_008)
    assert owners["opt/app-root/new/file"] == (1_000_660_000, 0)


def test_directories_made_for_the_source_are_as_with_all_ids(bench: Bench) -> None:
    script = '#!/bin/sh\ncp -R /made/for/it/src/. "$HOME/"\n'
    builder = bench.image(script)
    for launcher, name in (((), "full"), (NO_NEW_PRIVS, "single")):
        bench.build(launcher, builder, name, "--destination", "/made/for/it")
    assert bench.owners("single")["made"] == (0, 0)
    assert bench.result("single").layers == bench.result("full").layers


def test_an_incremental_build_makes_the_same_layer(bench: Bench) -> None:
    scripts = {"save-artifacts": '#!/bin/sh\ncd "$HOME" && tar cf - kept\n'}
    script = "#!/bin/sh\nset -e\nmkdir -p $HOME/kept\n"
    script += "[ ! -d /tmp/artifacts/kept ] || cp -R /tmp/artifacts/kept $HOME/\n"
    script += "echo x >> $HOME/kept/count\n"
    builder = bench.image(script, scripts=scripts)
    for launcher, name in (((), "full"), (NO_NEW_PRIVS, "single")):
        bench.build(launcher, builder, f"{name}-1")
        bench.build(launcher, builder, name, "--incremental")
    assert bench.result("single").members()["opt/app-root/src/kept/count"].size == len("x\nx\n")
    assert bench.result("single").layers == bench.result("full").layers


# --- inside -----------------------------------------------------------------------------------


def said(done: Done) -> list[str]:
    """What the script printed."""
    return [line for line in (done.out + done.err).splitlines() if not line.startswith("---")]


@pytest.mark.parametrize("user", ["1001", "1000660000", "1001:1002"])
def test_a_user_is_the_number_it_should_be(bench: Bench, user: str) -> None:
    script = (
        '#!/bin/sh\necho "I am $(id -u):$(id -g)"\ngrep -E "^(Cap|NoNewPrivs)" /proc/self/status\n'
    )
    done = bench.build(NO_NEW_PRIVS, bench.image(script, user=user), "single")
    assert f"I am {user if ':' in user else f'{user}:0'}" in said(done)
    sets = dict(re.findall(r"(Cap\w+|NoNewPrivs):\s*(\w+)", done.out + done.err))
    assert {name: int(value, 16) for name, value in sets.items()} == {
        **dict.fromkeys(("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"), 0),
        "NoNewPrivs": 1,
    }


def test_scripts_write_to_their_output_by_name(bench: Bench) -> None:
    script = "#!/bin/sh\necho by name > /dev/stderr\necho and number > /proc/self/fd/1\n"
    done = bench.build(NO_NEW_PRIVS, bench.image(script), "single")
    assert {"by name", "and number"} <= set(said(done))


def test_a_command_of_the_image_runs(bench: Bench) -> None:
    builder = bench.image()
    done = bench.run(NO_NEW_PRIVS, "run", builder, "sh", "-c", "id -u; exit 3")
    assert (done.code, done.out) == (3, "1001\n")


@needs("runc")
def test_runc_cannot_start_another_user(bench: Bench) -> None:
    arguments = bench.arguments(bench.image(), "single", "--isolation", "runc")
    done = bench.run(NO_NEW_PRIVS, *arguments)
    assert done.code == 6
    assert "runc cannot run anything as 1001:0: there is one user id only" in done.err
    assert "--isolation builtin can" in done.err


@needs("runc")
def test_runc_does_for_root(bench: Bench) -> None:
    builder = bench.image(user="0")
    bench.build((), builder, "full")
    bench.build(NO_NEW_PRIVS, builder, "single", "--isolation", "runc")
    assert bench.result("single").layers == bench.result("full").layers


# --- why --------------------------------------------------------------------------------------


def test_a_build_says_why_there_is_one_id(bench: Bench) -> None:
    done = bench.build(NO_NEW_PRIVS, bench.image(), "single")
    (warning,) = re.findall("(?m)^warning: .*one user id.*$", done.err)
    assert "`newuidmap` failed" in warning


@needs("unshare")
@pytest.mark.parametrize("tool", ["newuidmap", "newgidmap"])
def test_without_the_tools_that_map_ids(bench: Bench, elsewhere: Elsewhere, tool: str) -> None:
    arguments = bench.arguments(bench.image(), "single")
    done = elsewhere(*arguments, mounts=hidden(tool))
    assert done.code == 0, done.err
    assert f"warning: `{tool}` is not installed: one user id only" in done.err
    assert bench.owners("single")["opt/app-root/theirs"] == (7, 8)


@needs("unshare")
def test_without_subordinate_ids(bench: Bench, elsewhere: Elsewhere) -> None:
    elsewhere.subordinate.write_text("somebody-else:2000:40000\n")
    done = elsewhere(*bench.arguments(bench.image(), "single"))
    assert done.code == 0, done.err
    assert "has no subordinate ids in /etc/subuid: one user id only" in done.err


@needs("unshare")
def test_subordinate_ids_that_are_not_ours(bench: Bench, elsewhere: Elsewhere) -> None:
    text = elsewhere.subordinate.read_text()
    # What newuidmap itself refuses: an id that this host does not have to give.
    elsewhere.subordinate.write_text(text.replace(":2000:40000", ":4000000:65536"))
    done = elsewhere(*bench.arguments(bench.image(), "single"))
    assert done.code == 0, done.err
    assert "warning: `newuidmap` failed" in done.err


# --- one store --------------------------------------------------------------------------------


def test_a_store_serves_both_kinds_of_builds(bench: Bench) -> None:
    builder = bench.image()
    for name in ("1", "2", "3", "4"):
        bench.build(() if int(name) % 2 else NO_NEW_PRIVS, builder, name)
    assert len({tuple(bench.result(name).layers) for name in "1234"}) == 1
    store = bench.ocis2i.store
    assert os.listdir(store / "layers/sha256") == os.listdir(store / "squashed/sha256")
    bench.ocis2i.ok("prune", "--all")
    for kind in ("layers", "squashed"):
        assert os.listdir(store / kind / "sha256") == []


def test_one_id_can_remove_what_it_made(bench: Bench) -> None:
    bench.build(NO_NEW_PRIVS, bench.image(), "single")
    done = bench.run(NO_NEW_PRIVS, "prune", "--all")
    assert done.code == 0, done.err
    assert os.listdir(bench.ocis2i.store / "squashed/sha256") == []
    assert os.listdir(bench.ocis2i.store / "builds") == []


def test_one_id_cannot_remove_what_belongs_to_others(bench: Bench) -> None:
    bench.build((), bench.image(), "full")
    done = bench.run(NO_NEW_PRIVS, "prune", "--all")
    assert done.code == 8
    assert "belong to subordinate ids" in done.err
    assert "where newuidmap works" in done.err


def test_a_layer_that_was_removed_in_part_is_not_used(bench: Bench) -> None:
    image = bench.image()
    bench.build((), image, "before")
    forbidden = Host(filter="namespaces", no_new_privs=True)
    assert bench.run(forbidden.launcher, "prune", "--all").code == 8
    bench.build((), image, "after")
    assert bench.result("after").layers == bench.result("before").layers


@needs("unshare")
def test_layers_of_other_subordinate_ids_are_refused(bench: Bench, elsewhere: Elsewhere) -> None:
    arguments = bench.arguments(bench.image(), "full")
    assert elsewhere(*arguments).code == 0
    text = elsewhere.subordinate.read_text()
    elsewhere.subordinate.write_text(text.replace(":2000:", ":2500:"))
    done = elsewhere(*arguments)
    assert done.code == 8
    assert "were unpacked with the ids" in done.err
    assert "1:2000:40000" in done.err
    assert "1:2500:40000" in done.err
    assert "--root" in done.err
    # With the old ones all is well again.
    elsewhere.subordinate.write_text(text)
    assert elsewhere(*arguments).code == 0


def test_names_that_are_no_text_are_kept_in_the_record(bench: Bench) -> None:
    path = bench.directory / "odd"
    layer = Layer().file("caf\udce9/file", "x", uid=5).file("caf\udce9/other", "y")
    busybox_builder(path, more_layers=[layer])
    builder = f"oci:{path}:builder:latest"
    for launcher, name in (((), "full"), (NO_NEW_PRIVS, "single")):
        bench.build(launcher, builder, name)
    assert bench.result("single").layers == bench.result("full").layers


# --- /proc, as it is in containers --------------------------------------------------------------

MASKED = (("/dev/null", "/proc/keys", "", BIND, ""),)


@needs("unshare")
@pytest.mark.parametrize("launcher", [(), NO_NEW_PRIVS])
def test_a_build_works_where_parts_of_proc_are_hidden(
    bench: Bench, elsewhere: Elsewhere, launcher: tuple[str, ...]
) -> None:
    script = ASSEMBLE + "test -d /proc/self/fd\n"
    script += "! echo x 2>/dev/null > /proc/sys/kernel/core_pattern\n"
    builder = bench.image(script)
    bench.build((), builder, "full")
    plan = [(str(elsewhere.subordinate), f"/etc/{name}", "", BIND, "") for name in IDS]
    plan += MASKED
    # With a store of its own: elsewhere has other ids.
    store = ("--root", str(bench.directory / "store"))
    try:
        done = elsewhere.run(
            plan, [*launcher, *ARGV, *map(str, bench.arguments(builder, "nested", *store))]
        )
        assert done.code == 0, done.err
        assert bench.result("nested").layers == bench.result("full").layers
    finally:
        assert bench.ocis2i("prune", "--all", *store).code == 0


@needs("unshare", "newuidmap")
def test_an_interrupt_finds_the_container_by_the_outer_proc(
    bench: Bench, elsewhere: Elsewhere
) -> None:
    marker = f"sleep 7{os.getpid()}"
    script = f"#!/bin/sh\nsetsid {marker} &\necho started\n{marker}\n"
    inside = (
        "import ctypes, os, sys\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "assert libc.mount(b'/dev/null', b'/proc/keys', b'', 4096, b'') == 0\n"
        "os.execvp(sys.argv[1], sys.argv[1:])\n"
    )
    own = (f"--map-user={os.getuid()}", f"--map-group={os.getgid()}")
    with subprocess.Popen(
        [
            *("unshare", "--user", "--mount", "--keep-caps", *own),
            *(sys.executable, "-c", inside, *NO_NEW_PRIVS, *ARGV),
            *map(str, bench.arguments(bench.image(script), "never")),
        ],
        env=dict(bench.ocis2i.environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if line == "started\n":
                process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM, lines
    assert "started\n" in lines
    assert listed(marker) == []


# --- other ground -----------------------------------------------------------------------------


@needs("unshare")
@pytest.mark.parametrize("ids", ROOTS_OF_A_NAMESPACE)
def test_root_of_a_user_namespace_needs_no_other(bench: Bench, ids: str) -> None:
    builder = bench.image()
    bench.build((), builder, "full")
    done = bench.build(ROOTS_OF_A_NAMESPACE[ids], builder, "native")
    assert ("has no more ids: one user id only" in done.err) == (ids == "of-one")
    assert bench.result("native").layers == bench.result("full").layers


# A security module that lets the agent have no user namespace, but buildah: a filter for the very
# flags that the agent uses (`unshare`, number 272 and 97; `struct sock_filter`).
_REFUSED = """
import ctypes, json, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
for source, target, kind, flags, options in json.loads(sys.argv[1]):
    assert libc.mount(source.encode(), target.encode(), b"", flags, b"") == 0
number = {"x86_64": 272, "aarch64": 97}[os.uname().machine]
flags = 0x10000000 | 0x20000000 | 0x20000
code = [(0x20, 0, 0, 0), (0x15, 0, 3, number), (0x20, 0, 0, 16), (0x15, 0, 1, flags)]
code += [(6, 0, 0, 0x50000 | 1), (6, 0, 0, 0x7fff0000)]
program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
head = ctypes.create_string_buffer(struct.pack("@HP", len(code), ctypes.addressof(program)))
assert libc.prctl(22, 2, ctypes.c_ulong(ctypes.addressof(head)), 0, 0) == 0
caps = "-all,+setuid,+setgid"
command = ["setpriv", f"--ambient-caps={caps}", f"--inh-caps={caps}", *sys.argv[2:]]
os.execvp(command[0], command)
"""


@needs("unshare", "newuidmap", "buildah")
@pytest.mark.skipif(
    os.uname().machine not in {"x86_64", "aarch64"}, reason="no system call numbers for it"
)
@pytest.mark.parametrize("has_buildah", [True, False])
def test_where_only_buildah_may_have_a_namespace_it_lends_one(
    bench: Bench, elsewhere: Elsewhere, has_buildah: bool
) -> None:
    builder = bench.image()
    bench.build((), builder, "full")
    store = ("--root", str(bench.directory / "store"))
    own = (f"--map-user={os.getuid()}", f"--map-group={os.getgid()}")
    mounts = [
        *((str(elsewhere.subordinate), f"/etc/{name}", "", BIND, "") for name in IDS),
        *(() if has_buildah else hidden("buildah")),
    ]
    launcher = (
        *("unshare", "--user", "--mount", "--keep-caps", "--map-auto", *own),
        *(sys.executable, "-c", _REFUSED, json.dumps(mounts)),
    )
    try:
        done = bench.run(launcher, *bench.arguments(builder, "lent", *store))
        if has_buildah:
            assert done.code == 0, done.err
            assert bench.result("lent").layers == bench.result("full").layers
        else:
            assert done.code == 6
            assert "forbids user namespaces" in done.err
    finally:
        assert bench.ocis2i("prune", "--all", *store).code == 0


@pytest.mark.parametrize("ended", ["itself", "killed"])
def test_without_namespaces_nothing_stays_behind(ocis2i: Program, ended: str) -> None:
    del ocis2i  # skips where the tests run as root
    marker = f"sleep 8{os.getpid()}"
    script = f"setsid {marker} & (setsid setsid {marker} &) ; echo up; "
    script += "exit 3" if ended == "itself" else marker
    receive, send = os.pipe()
    null = os.open(os.devnull, os.O_RDWR)
    try:
        with agent(search_path=None, ids="none") as running:
            assert (running.ground.ids, running.ground.can_mount) == ("none", False)
            argv = ["/bin/sh", "-c", script]
            running.post("run", null, send, send, argv=argv, environment={})
            assert os.read(receive, 3) == b"up\n"
            if ended == "killed":
                running.kill()
            else:
                assert running.reply()["exit"] == 3
            assert listed(marker) == []
    finally:
        for fd in (receive, send, null):
            os.close(fd)
