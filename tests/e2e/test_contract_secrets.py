"""What a build gets and its image must not have: injections, volumes, variables, and who looks."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import RUNC
from tests.contract import better, same
from tests.fakes.bench import Bench, told
from tests.fakes.canary import assert_nowhere
from tests.fakes.images import BUSYBOX, Layer, busybox_builder, busybox_config
from tests.fakes.program import Done, Program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

ISOLATIONS = [RUNC, "builtin"]
HOME = "opt/app-root/src"
# No part of it is a word that anything else of a build has.
SECRET = "kW7pQz-Vb4tR_x9Lm2+Yc8%Dh"
RUN = "#!/bin/sh\nexec true\n"


def script(lines: str) -> str:
    return "#!/bin/sh\nset -e\n" + textwrap.dedent(lines)


@dataclass(frozen=True)
class Place(Bench):
    """A directory of one test, and a store that it may share with others."""

    def builder(
        self,
        assemble: str,
        *layers: Layer,
        config: Mapping[str, Any] | None = None,
        env: Sequence[str] = (),
        scripts: Mapping[str, str] | None = None,
    ) -> str:
        """A builder whose assemble runs these lines of shell."""
        shutil.rmtree(self.directory / "builder", ignore_errors=True)
        texts = {"assemble": script(assemble), "run": RUN} | dict(scripts or {})
        variables = {"Env": [*busybox_config()["Env"], *env]}
        return self.image("builder", texts, variables | dict(config or {}), layers)

    def write(self, name: str, text: str, *, mode: int = 0o600) -> Path:
        """A file of the host, outside of the source."""
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(mode)
        return path

    @property
    def env(self) -> dict[str, str]:
        entries = self.result().config["Env"]
        names = [entry.partition("=")[0] for entry in entries]
        assert len(names) == len(set(names))
        return dict(entry.split("=", 1) for entry in entries)

    def refused(self, done: Done, code: int, *sentences: str) -> None:
        """The build ended with this code and these sentences, and left nothing."""
        assert done.code == code, done.err
        for sentence in sentences:
            assert sentence in done.err
        assert "Traceback" not in done.err
        assert not self.is_stored
        assert_nothing_half(self.ocis2i.store)


@pytest.fixture
def place(shared: Program, tmp_path: Path) -> Place:
    return Place(shared, tmp_path)


@pytest.fixture
def alone(ocis2i: Program, tmp_path: Path) -> Place:
    """A place with a store that nobody else uses."""
    return Place(ocis2i, tmp_path)


def assert_nothing_half(store: Path) -> None:
    """No build's directory and no file that is being written is left."""
    assert list((store / "builds").glob("*")) == []
    assert list((store / "tmp").glob("*")) == []


# --- what a build sees of injections, and what its image has of them ---------------------------

SEE = """
see() { echo "$1: $(stat -c '%F %a %u:%g' "$1")"; }
tell() { echo "content of $1: $(cat "$1")"; }
"""


@same("--inject")
@same("inject.directory")
@same("inject.modes")
@better("inject.control-files", "there are none")
@better("inject.emptied", "nothing of the content is ever written to a disk")
@same("inject.emptied")
@same("security.secrets")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_directory_is_there_for_the_build_and_its_names_in_the_image(
    place: Place, isolation: str
) -> None:
    given = place.write("creds/user", f"user-{SECRET}\n").parent
    place.write("creds/deep/key", f"key-{SECRET}\n", mode=0o700)
    (given / "latest").symlink_to("deep/key")
    given.chmod(0o700)
    assemble = f"""{SEE}
for one in /opt/creds /opt/creds/deep /opt/creds/user /opt/creds/deep/key /opt/creds/latest; do
    see $one
done
test -w /opt/creds/user && test -w /opt/creds
ls /tmp | sort | xargs echo "in tmp:"
"""
    done = place.built(
        place.builder(assemble), "-i", f"{given}:/opt/creds", "--isolation", isolation
    )
    log = told(done)
    assert log["/opt/creds"] == "directory 777 1001:0"
    assert log["/opt/creds/deep"] == "directory 777 1001:0"
    for name in ("user", "deep/key", "latest"):
        assert log[f"/opt/creds/{name}"] == "regular file 666 1001:0"
    assert log["in tmp"] == "scripts src"
    members = place.result().members()
    assert {
        name: (one.isdir(), one.size, oct(one.mode), one.uid, one.gid)
        for name, one in members.items()
        if not name.startswith("tmp")
    } == {
        "opt": (True, 0, "0o755", 0, 0),
        "opt/creds": (True, 0, "0o755", 1001, 0),
        "opt/creds/deep": (True, 0, "0o755", 1001, 0),
        "opt/creds/deep/key": (False, 0, "0o644", 1001, 0),
        "opt/creds/latest": (False, 0, "0o644", 1001, 0),
        "opt/creds/user": (False, 0, "0o644", 1001, 0),
    }
    assert "tmp/rm-injections" not in members
    assert "tmp/injection-result" not in members
    assert_nowhere(place.ocis2i.store, SECRET)
    assert_nothing_half(place.ocis2i.store)
    assert (given / "user").read_text() == f"user-{SECRET}\n"


def test_content_that_assemble_shows_is_masked_and_is_the_content(place: Place) -> None:
    given = place.write("token", SECRET)
    assemble = f"""
    test "$(cat /opt/token)" = '{SECRET[:8]}''{SECRET[8:]}'
    echo "the token is $(cat /opt/token)."
    """
    done = place.attempt(place.builder(assemble), "-i", f"{given}:/opt/token", "--allow-leaks")
    assert done.code == 0, done.err
    assert "the token is ***." in done.err
    assert SECRET not in done.err


@same("inject.file")
@better("inject.default-destination", "a file goes there under its own name")
@same("inject.default-destination")
@same("inject.several")
def test_files_go_to_their_destination_or_to_the_working_directory(place: Place) -> None:
    for name in "abcd":
        place.write(name, f"content-of-{name}")
    listed = f"{place.directory}/a:/opt/first;{place.directory}/b:made/../second"
    assemble = f"""{SEE}
    pwd
    for one in /opt/first /{HOME}/second /{HOME}/c /{HOME}/conf/x /opt/d; do
        see $one
        tell $one
    done
    """
    place.write("conf/x", "content-of-x")
    done = place.built(
        place.builder(textwrap.dedent(assemble)),
        *("-i", listed, "--inject", f"{place.directory}/c"),
        *("-i", f"{place.directory}/conf:conf", "-i", f'"{place.directory}/d":"/opt/d"'),
        "--allow-leaks",
    )
    log = told(done)
    for path in ("/opt/first", f"/{HOME}/second", f"/{HOME}/c", f"/{HOME}/conf/x", "/opt/d"):
        assert log[path] == "regular file 666 1001:0"
        assert log[f"content of {path}"] == "***"
    members = place.result().members()
    for name in ("opt/first", f"{HOME}/second", f"{HOME}/c", f"{HOME}/conf/x", "opt/d"):
        assert (members[name].size, members[name].mode) == (0, 0o644)


@same("inject.default-destination")
def test_directory_without_destination_goes_into_the_working_directory(place: Place) -> None:
    place.write("creds/one", "content-of-one")
    place.write("creds/two", "content-of-two")
    lines = "cat one two > /dev/null; ls /; echo there: $(ls)"
    layer = Layer().file("there-before", "of the image")
    builder = place.builder(lines, layer, config={"WorkingDir": ""})
    done = place.built(builder, "-i", place.directory / "creds")
    assert "one" in told(done)["there"].split()
    assert {"one", "two"} <= set(place.result().members())


def kubernetes(top: Path, files: Mapping[str, str]) -> Path:
    """A mounted secret as kubelet writes it (`pkg/volume/util/atomic_writer.go`)."""
    data = top / "..2026_01_02_03_04_05.123456789"
    for name, text in files.items():
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_text(text)
        with contextlib.suppress(FileExistsError):
            first = name.split("/", maxsplit=1)[0]
            (top / first).symlink_to(f"..data/{first}")
    (top / "..data").symlink_to(data.name)
    return top


@same("inject.links")
@better("inject.links", "files come once, without Kubernetes' own directories")
@better("inject.truncate-needed", "nothing is emptied, so nothing is needed for it")
def test_secret_of_kubernetes_is_plain_files(place: Place) -> None:
    top = place.directory / "mounted"
    top.mkdir()
    kubernetes(top, {"password": f"{SECRET}\n", "tls/key": f"key-{SECRET}\n"})
    assemble = f"""{SEE}
    ! command -v truncate
    echo "names: $(cd /opt/creds && find . | sort | xargs)"
    see /opt/creds/password
    see /opt/creds/tls
    see /opt/creds/tls/key
    """
    builder = place.builder(textwrap.dedent(assemble), Layer().whiteout("bin/truncate"))
    log = told(place.built(builder, "-i", f"{top}:/opt/creds"))
    assert log["names"] == ". ./password ./tls ./tls/key"
    assert log["/opt/creds/password"] == "regular file 666 1001:0"
    assert log["/opt/creds/tls"] == "directory 777 1001:0"
    names = {name for name in place.result().members() if name.startswith("opt/creds")}
    assert names == {"opt/creds", "opt/creds/password", "opt/creds/tls", "opt/creds/tls/key"}
    assert_nowhere(place.ocis2i.store, SECRET)


@better("inject.emptied", "a file of the image is as it was afterwards")
@better("inject.truncate-needed", "the assemble user needs no right to the destination")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_files_of_the_image_are_replaced_for_the_build_only(place: Place, isolation: str) -> None:
    layer = Layer().dir("etc/app").file("etc/app/old.conf", "of the image\n", mode=0o600)
    place.write("app/old.conf", f"{SECRET}\n")
    place.write("app/new.conf", f"new {SECRET}\n")
    assemble = f"""{SEE}
    see /etc/app
    see /etc/app/old.conf
    see /etc/app/new.conf
    test "$(wc -c < /etc/app/old.conf)" = {len(SECRET) + 1}
    """
    done = place.built(
        place.builder(textwrap.dedent(assemble), layer),
        *("-i", f"{place.directory}/app:/etc/app", "--isolation", isolation),
    )
    log = told(done)
    assert log["/etc/app"] == "directory 755 0:0"
    assert log["/etc/app/old.conf"] == "regular file 666 1001:0"
    assert log["/etc/app/new.conf"] == "regular file 666 1001:0"
    members = place.result().members()
    names = {name for name in members if name.startswith("etc")}
    assert names == {"etc", "etc/app", "etc/app/new.conf"}
    assert members["etc/app/new.conf"].size == 0
    assert members["etc/app"].mode == 0o755
    seen = place.ocis2i.ok("run", "-u", "0", place.tag, "cat", "/etc/app/old.conf")
    assert seen.out == "of the image\n"
    assert_nowhere(place.ocis2i.store, SECRET)


@better("inject.emptied", "`--no-injection-names` leaves no names either")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_names_can_be_left_out(place: Place, isolation: str) -> None:
    place.write("creds/user", SECRET)
    place.write("token", f"second-{SECRET}")
    done = place.built(
        place.builder("wc -c /opt/creds/user /etc/token; echo x > /opt/app-root/mine"),
        *("-i", f"{place.directory}/creds:/opt/creds", "-i", f"{place.directory}/token:/etc/token"),
        *("--no-injection-names", "--isolation", isolation),
    )
    assert f"{len(SECRET)} /opt/creds/user" in done.err
    names = {name for name in place.result().members() if not name.startswith("tmp")}
    assert names == {"opt", "opt/app-root", "opt/app-root/mine"}
    assert_nowhere(place.ocis2i.store, SECRET)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_scripts_may_edit_move_and_remove_what_was_injected(place: Place, isolation: str) -> None:
    for name in ("gone", "moved", "edited"):
        place.write(f"creds/{name}", f"{name}-{SECRET}\n")
    place.write("one", f"one-{SECRET}\n")
    assemble = """
    rm /opt/creds/gone
    mv /opt/creds/moved /opt/creds/elsewhere
    sed -i s/edited/changed/ /opt/creds/edited
    grep -q changed /opt/creds/edited
    echo own > /opt/creds/own
    echo emptied > /opt/one
    echo "names: $(ls /opt/creds | xargs)"
    """
    done = place.built(
        place.builder(assemble),
        *("-i", f"{place.directory}/creds:/opt/creds", "-i", f"{place.directory}/one:/opt/one"),
        *("--isolation", isolation),
    )
    assert told(done)["names"] == "edited elsewhere own"
    members = place.result().members()
    below = {name: one.size for name, one in members.items() if name.startswith("opt/")}
    assert below == dict.fromkeys(
        [
            *("opt/creds", "opt/creds/edited", "opt/creds/gone", "opt/creds/moved"),
            "opt/one",
        ],
        0,
    )
    assert (place.directory / "creds/gone").read_text() == f"gone-{SECRET}\n"
    assert (place.directory / "one").read_text() == f"one-{SECRET}\n"
    assert_nowhere(place.ocis2i.store, SECRET)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_injection_into_the_source_leaves_nothing_when_assemble_copies_around_it(
    place: Place, isolation: str
) -> None:
    given = place.write("settings.ini", f"password = {SECRET}\n")
    lines = "test -s /tmp/src/settings.ini; cp /tmp/src/index.html $HOME/"
    place.built(
        place.builder(lines),
        *("-i", f"{given}:/tmp/src/settings.ini", "--isolation", isolation),
    )
    members = place.result().members()
    assert members["tmp/src/settings.ini"].size == 0
    assert members[f"{HOME}/index.html"].size == 6
    assert_nowhere(place.ocis2i.store, SECRET)


# --- injections that cannot be ------------------------------------------------------------------


@same("inject.missing-parent")
@better("inject.missing-parent", "a wrong command line, not a failed assemble")
def test_directory_above_the_destination_has_to_be_there(place: Place) -> None:
    given = place.write("token", SECRET)
    done = place.attempt(place.builder("echo never"), "-i", f"{given}:/no/such/token")
    place.refused(
        done,
        2,
        f'The destination directory for "{given}" injection must exist in container '
        '("/no/such/token")',
    )
    assert "never" not in done.err


@same("inject.file")
def test_file_does_not_go_where_the_image_has_a_directory(place: Place) -> None:
    given = place.write("token", SECRET)
    done = place.attempt(place.builder("echo never"), "-i", f"{given}:/opt")
    place.refused(done, 2, f"`{given}` cannot be injected: `/opt` is a directory in the container")


def test_directory_does_not_go_where_the_image_has_a_file(place: Place) -> None:
    given = place.write("creds/token", SECRET).parent
    done = place.attempt(place.builder("echo never"), "-i", f"{given}:/etc/passwd")
    place.refused(done, 2, "`/etc/passwd` is a file in the container")


@pytest.mark.parametrize("flag", ["", ";", "/nowhere/at/all:/x", "a|b:/x"])
def test_injection_that_makes_no_sense_is_refused(place: Place, flag: str) -> None:
    done = place.attempt(place.builder("echo never"), "-i", flag)
    place.refused(done, 2, "--inject")


@same("security.source-links")
@better("security.source-links", "also inside of a directory that is injected")
@pytest.mark.parametrize("link", ["/etc/hostname", "../outside", "deep/../../outside", "away"])
def test_link_out_of_an_injected_directory_is_refused(place: Place, link: str) -> None:
    given = place.write("creds/token", SECRET).parent
    place.write("outside", f"outside-{SECRET}")
    (given / "deep").mkdir()
    (given / "away").symlink_to("/etc")
    (given / "link").symlink_to("away/hostname" if link == "away" else link)
    done = place.attempt(place.builder("echo never"), "-i", f"{given}:/opt/creds")
    place.refused(done, 2, "leads out of")


@pytest.mark.parametrize("kind", ["fifo", "dangling", "loop", "special"])
def test_what_is_no_file_is_refused_and_never_waited_for(place: Place, kind: str) -> None:
    given = place.write("creds/token", SECRET).parent
    if kind == "fifo":
        os.mkfifo(given / "odd")
    elif kind == "special":
        given = Path("/dev/null")
    else:
        (given / "odd").symlink_to("odd" if kind == "loop" else "nothing")
    done = place.attempt(place.builder("echo never"), "-i", f"{given}:/opt/creds")
    place.refused(done, 2, "--inject")


@same("security.source-links")
def test_links_of_the_source_lead_an_injection_nowhere_on_the_host(place: Place) -> None:
    victim = place.write("victim/file", "as it was\n", mode=0o666)
    (place.source() / "climb").symlink_to(victim.parent)
    given = place.write("token", SECRET)
    done = place.attempt(
        place.builder("echo never"),
        "--copy",
        "--keep-symlinks",
        "-i",
        f"{given}:/tmp/src/climb/file",
    )
    place.refused(done, 2, "must exist in container")
    assert victim.read_text() == "as it was\n"


# --- builds that end badly ----------------------------------------------------------------------


@better("inject.after-failure", "nothing of a failed build is there at all")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_failed_assemble_leaves_nothing_of_an_injection(alone: Place, isolation: str) -> None:
    given = alone.write("token", SECRET)
    lines = "cp /opt/token /tmp/mine; cp /opt/token $HOME/; exit 3"
    done = alone.attempt(
        alone.builder(lines), "-i", f"{given}:/opt/token", "--isolation", isolation
    )
    alone.refused(done, 7, "exit code 3")
    assert SECRET not in done.err
    assert_nowhere(alone.ocis2i.store, SECRET)


@better("inject.after-failure", "nothing is on the disk even after SIGKILL")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_killed_build_leaves_no_content_on_the_disk(alone: Place, isolation: str) -> None:
    given = alone.write("creds/token", SECRET).parent
    lines = "test -s /opt/creds/token; sed -i s/x/y/ /opt/creds/token; echo now; exec sleep 1000"
    left = alone.killed(
        alone.builder(lines),
        *("-i", f"{given}:/opt/creds", "--build-env", f"TOKEN=variable-{SECRET}"),
        *("--isolation", isolation),
    )
    assert_nowhere(alone.ocis2i.store, SECRET)
    assert b"creds" in b"".join(in_build(left))  # it did look where the names are
    for data in in_build(left):
        assert SECRET.encode() not in data
    alone.built(alone.builder("true"))
    alone.ocis2i.ok("prune")
    assert_nothing_half(alone.ocis2i.store)


def in_build(directory: Path) -> Iterator[bytes]:
    """The names in a directory and the contents of what this user may read there."""
    for above, names, files in os.walk(directory):
        yield "\n".join([*names, *files]).encode()
        for name in files:
            with contextlib.suppress(PermissionError):
                path = Path(above, name)
                yield path.read_bytes() if path.is_file() and not path.is_symlink() else b""


# --- volumes --------------------------------------------------------------------------------------

SAVE = """\
#!/bin/sh
set -e
test "$(cat /cache/given)" = given
echo save-artifacts >> /cache/by
if echo x > /fixed/x 2>/dev/null; then exit 9; fi
cd "$HOME" && tar cf - index.html
"""


@same("volume.save-artifacts")
@same("volume.not-committed")
@same("volume.read-only")
def test_save_artifacts_sees_the_volumes(place: Place) -> None:
    cache, fixed = place.write("cache/given", "given\n").parent, place.directory / "fixed"
    fixed.mkdir()
    for path in (cache, fixed):
        path.chmod(0o777)
    lines = """
    echo assemble >> /cache/by
    cp /tmp/src/index.html $HOME/
    echo "restored: $(ls /tmp/artifacts 2>/dev/null)"
    """
    builder = place.builder(lines, scripts={"save-artifacts": SAVE})
    volumes = ("-v", f"{cache}:/cache:z,rw", "--volume", f"{fixed}:/fixed:Z,ro")
    (cache / "given").chmod(0o644)
    place.built(builder, *volumes)
    (cache / "by").unlink()
    done = place.built(builder, "--incremental", *volumes)
    assert told(done)["restored"] == "index.html"
    assert (cache / "by").read_text() == "save-artifacts\nassemble\n"
    assert list(fixed.iterdir()) == []
    names = {name for name in place.result().members() if not name.startswith(("opt", "tmp"))}
    assert names == set()


# --- variables ------------------------------------------------------------------------------------

VARIABLES = """
  # a comment
// another one
  FROM_FILE =  file value
QUOTED="as it is"
IN_BOTH=file
no equals sign
=no name
LATER=1
LATER=2
SAME=one
"""


@same("--environment-file")
@same("env.environment-file")
@better("env.environment-file", "in the order of the file; the last of a name counts")
@better("env.file-beats-flag", "`-e` beats it, with a warning")
@same("env.persisted")
def test_variables_of_a_file_are_in_the_image_and_flags_beat_them(place: Place) -> None:
    given = place.write("variables", VARIABLES)
    place.source({".s2i/environment": "IN_BOTH=source\nFROM_FILE=source\nONLY_SOURCE=source\n"})
    lines = 'echo "seen: $FROM_FILE|$QUOTED|$IN_BOTH|$LATER|$ONLY_SOURCE|$IMAGE"'
    builder = place.builder(lines, env=["IMAGE=image", "LATER=image"])
    done = place.built(builder, "-E", given, "-e", "IN_BOTH=flag", "-e", "SAME=one")
    assert told(done)["seen"] == 'file value|"as it is"|flag|2|source|image'
    assert "warning: --env wins over --environment-file for IN_BOTH\n" in done.err
    assert place.env.items() >= {
        ("FROM_FILE", "file value"),
        ("QUOTED", '"as it is"'),
        ("IN_BOTH", "flag"),
        ("LATER", "2"),
        ("SAME", "one"),
        ("ONLY_SOURCE", "source"),
        ("IMAGE", "image"),
    }
    names = [entry.partition("=")[0] for entry in place.result().config["Env"]]
    file_order = [name for name in names if name in ("FROM_FILE", "QUOTED", "LATER", "SAME")]
    assert file_order == ["FROM_FILE", "QUOTED", "LATER", "SAME"]
    assert not {"no equals sign", ""} & set(names)


@better("env.unreadable-file", "an error")
@pytest.mark.parametrize("kind", ["missing", "directory", "binary", "zero", "forbidden"])
def test_file_of_variables_that_cannot_be_read_is_an_error(place: Place, kind: str) -> None:
    given = place.directory / "variables"
    if kind == "directory":
        given.mkdir()
    elif kind != "missing":
        content = {"binary": b"A=\xff\n", "zero": b"A=\0\n"}.get(kind, b"A=1\n")
        given.write_bytes(content)
        given.chmod(0o000 if kind == "forbidden" else 0o600)
    done = place.attempt(place.builder("echo never"), "--environment-file", given)
    place.refused(done, 2, str(given))


@better("env.build-only", "`--build-env NAME=VALUE` or `NAME` is for assemble alone")
@better("output.secrets", "no value is shown at any level")
@better("security.secrets", "what is for the build alone is searched for in all that stays")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_build_only_variables_are_seen_by_assemble_and_are_in_nothing_that_stays(
    place: Place, isolation: str
) -> None:
    builder = place.builder(
        f"""
        test "$GIVEN" = 'given-{SECRET[:9]}''{SECRET[9:]}'
        test "$TAKEN" = 'taken-{SECRET[:9]}''{SECRET[9:]}'
        echo "image: $IN_IMAGE"
        """,
        env=["IN_IMAGE=image"],
    )
    done = place.with_variables(TAKEN=f"taken-{SECRET}").built(
        builder,
        *("--build-env", f"GIVEN=given-{SECRET}", "--build-env", "TAKEN"),
        *("--build-env", "IN_IMAGE=production", "--json", "--loglevel", "5"),
        *("--isolation", isolation),
    )
    assert told(done)["image"] == "production"
    assert place.env["IN_IMAGE"] == "image"
    assert not {"GIVEN", "TAKEN"} & set(place.env)
    assert SECRET not in done.err + done.out
    assert_nowhere(place.ocis2i.store, SECRET)


def test_build_only_variable_that_is_not_there_is_an_error(place: Place) -> None:
    done = place.attempt(place.builder("echo never"), "--build-env", "NO_SUCH_VARIABLE")
    place.refused(done, 2, "`NO_SUCH_VARIABLE`: there is no such variable here")


@pytest.mark.parametrize("flag", ["--build-env", "-e"])
def test_value_of_a_variable_without_a_name_is_not_shown(place: Place, flag: str) -> None:
    done = place.attempt(place.builder("echo never"), flag, f"={SECRET}")
    place.refused(done, 2, "invalid variable")
    assert SECRET not in done.err + done.out


@better("output.secrets", "values of variables are never shown")
@same("env.persisted")
def test_values_of_variables_are_not_in_the_log_at_any_level(alone: Place) -> None:
    given = alone.write("variables", f"FROM_FILE=file-{SECRET}\n")
    token = alone.write("token", f"injected-{SECRET}")
    alone.source({".s2i/environment": f"FROM_SOURCE=source-{SECRET}\n"})
    flags = ("-e", f"FROM_FLAG=flag-{SECRET}", "-E", given, "-i", f"{token}:/opt/token")
    done = alone.built(alone.builder("true"), *flags, "--loglevel", "5", "--json")
    assert SECRET not in done.err + done.out
    assert alone.env["FROM_FLAG"] == f"flag-{SECRET}"
    assert alone.env["FROM_FILE"] == f"file-{SECRET}"


# --- secrets that get out -------------------------------------------------------------------------


def shifted(count: int) -> str:
    """Base64 of the secret behind `count` other bytes."""
    return base64.b64encode(b"x" * count + SECRET.encode() + b"yz").decode()


LEAKS = {
    "plain": ("cp /opt/token $HOME/copy", f"{HOME}/copy", ""),
    "in the middle": (
        "{ seq 1 400000; cat /opt/token; seq 1 99; } > $HOME/large",
        f"{HOME}/large",
        "",
    ),
    "base64": ("base64 /opt/token > $HOME/encoded", f"{HOME}/encoded", "as base64"),
    "base64 at 1": (
        "{ printf x; cat /opt/token; } | base64 -w 0 > $HOME/encoded",
        f"{HOME}/encoded",
        "as base64",
    ),
    "base64 at 2": (
        "{ printf xx; cat /opt/token; } | base64 -w 0 > $HOME/encoded",
        f"{HOME}/encoded",
        "as base64",
    ),
    "URL": (
        f"echo 'https://me:{quote(SECRET, safe='')}@host/' > $HOME/url",
        f"{HOME}/url",
        "as URL",
    ),
    "name of a file": ("mkdir $HOME/$(cat /opt/token)", f"{HOME}/***", ""),
    "link": ('ln -s "$(cat /opt/token)" $HOME/link', f"{HOME}/link", ""),
}


@better("security.secrets", "an image with a secret in it is not made: exit code 9")
@pytest.mark.parametrize("leak", LEAKS)
def test_injected_secret_in_the_layer_ends_the_build(alone: Place, leak: str) -> None:
    line, where, form = LEAKS[leak]
    given = alone.write("token", SECRET)
    builder = alone.builder(line)
    done = alone.attempt(builder, "-i", f"{given}:/opt/token", "--json")
    alone.refused(done, 9, "the injected file `/opt/token` is in the layer", where, form)
    assert done.document["reason"] == "SecretLeaked"
    assert done.document["state"] == "failed"
    assert SECRET not in done.err + done.out
    assert_nowhere(alone.ocis2i.store, SECRET)


@better("security.secrets", "`--allow-leaks` makes the image all the same, with a warning")
def test_leaks_can_be_allowed(alone: Place) -> None:
    given = alone.write("token", SECRET)
    flags = ("-i", f"{given}:/opt/token", "--allow-leaks")
    done = alone.built(alone.builder("cp /opt/token $HOME/copy"), *flags)
    where = f"the injected file `/opt/token` is in the layer, in `{HOME}/copy`"
    assert f"warning: secrets got out: {where}\n" in done.err
    assert done.err.count("secrets got out") == 1
    assert SECRET not in done.err
    assert alone.result().members()[f"{HOME}/copy"].size == len(SECRET)


def test_refused_build_leaves_the_tag_with_the_image_that_it_had(place: Place) -> None:
    given = place.write("token", SECRET)
    outputs = place.directory / "result"
    first = place.built(place.builder("echo first > $HOME/first"))
    before = (place.ocis2i.layout / "index.json").read_bytes()
    blobs = {path.name for path in place.ocis2i.layout.glob("blobs/sha256/*")}
    done = place.attempt(
        place.builder("cp /opt/token $HOME/copy"),
        *("-i", f"{given}:/opt/token", "--output", f"oci:{outputs}"),
    )
    assert done.code == 9
    assert done.out == ""
    assert first.out
    assert (place.ocis2i.layout / "index.json").read_bytes() == before
    assert not outputs.exists()
    assert place.result().members()[f"{HOME}/first"].size == 6
    new = {path.name for path in place.ocis2i.layout.glob("blobs/sha256/*")} - blobs
    for name in new:
        assert SECRET.encode() not in (place.ocis2i.layout / "blobs/sha256" / name).read_bytes()
    assert_nowhere(place.ocis2i.store, SECRET)
    assert_nothing_half(place.ocis2i.store)


METADATA = """
mkdir -p /tmp/.s2i
printf '{{"labels": [{{"told": "by %s"}}]}}' "{value}" > /tmp/.s2i/image_metadata.json
"""


@pytest.mark.parametrize("value", ["$(cat /opt/token)", "$(base64 -w 0 /opt/token)"])
def test_secret_in_a_label_ends_the_build(alone: Place, value: str) -> None:
    given = alone.write("token", SECRET)
    # The file itself would be found as well: assemble hides it from the layer.
    lines = METADATA.format(value=value)
    done = alone.attempt(alone.builder(lines), "-i", f"{given}:/opt/token", "--json")
    alone.refused(done, 9, "is in the layer, in `tmp/.s2i/image_metadata.json`")
    assert SECRET not in done.err + done.out
    assert_nowhere(alone.ocis2i.store, SECRET)


@pytest.mark.parametrize("flag", ["-e", "--description", "--application-name"])
def test_secret_in_the_config_ends_the_build(alone: Place, flag: str) -> None:
    value = f"A={SECRET}" if flag == "-e" else f"about {SECRET}"
    done = alone.attempt(
        alone.builder("true"), "--build-env", f"TOKEN={SECRET}", flag, value, "--json"
    )
    alone.refused(done, 9, "the build variable `TOKEN` is in the image config")
    assert done.document["reason"] == "SecretLeaked"
    assert SECRET not in done.err
    assert_nowhere(alone.ocis2i.store, SECRET)


@pytest.mark.parametrize("quiet", [False, True])
def test_secret_in_the_log_is_masked_and_ends_the_build(alone: Place, quiet: bool) -> None:
    given = alone.write("token", SECRET)
    lines = """
    echo "the token: $(cat /opt/token)!" >&2
    echo "as base64: $(printf xx | cat - /opt/token | base64 -w 0)"
    echo "the variable: $TOKEN"
    """
    password = SECRET[::-1].replace("%", "")
    flags = ["-i", f"{given}:/opt/token", "--build-env", f"TOKEN=https://me:{password}@host/"]
    done = alone.attempt(alone.builder(lines), *flags, *(["--quiet"] if quiet else []))
    alone.refused(
        done,
        9,
        "the injected file `/opt/token` is in the log",
        "the build variable `TOKEN` is in the log",
    )
    if not quiet:
        assert "the token: ***!" in done.err
        assert "as base64: ***\n" in done.err
    for form in (SECRET, password, shifted(2)[4:-4]):
        assert form not in done.err + done.out
    assert_nowhere(alone.ocis2i.store, SECRET)


def test_failed_script_shows_its_last_lines_without_secrets(place: Place) -> None:
    given = place.write("token", SECRET)
    done = place.attempt(
        place.builder("echo at the end: $(cat /opt/token); exit 5"),
        *("-i", f"{given}:/opt/token", "--quiet"),
    )
    place.refused(done, 7, "at the end: ***", "exit code 5")
    assert SECRET not in done.err + done.out


def test_certificate_is_no_secret_and_words_are_none(place: Place) -> None:
    body = base64.b64encode(bytes(range(200))).decode()
    place.write("tls/ca.crt", f"-----BEGIN CERTIFICATE-----\n{body}\n-----END CERTIFICATE-----\n")
    place.write("tls/mode", "production\n")
    lines = "cp /opt/tls/ca.crt /opt/tls/mode $HOME/; cat /opt/tls/mode"
    place.built(place.builder(lines), "-i", f"{place.directory}/tls:/opt/tls")
    assert place.result().members()[f"{HOME}/mode"].size == len("production\n")


def test_secret_in_the_cache_of_artifacts_is_not_kept(alone: Place) -> None:
    """The scripts of an image that nobody sees can still write into the store."""
    given = alone.write("token", SECRET)
    lines = "cp /opt/token $HOME/token; echo app > $HOME/app"
    save = '#!/bin/sh\ncd "$HOME" && tar cf - token\n'
    builder = alone.builder(lines, scripts={"save-artifacts": save})
    runtime = alone.directory / "runtime"
    busybox_builder(runtime, "runtime:latest", scripts={"assemble": None, "run": RUN})
    done = alone.attempt(
        builder,
        *("-i", f"{given}:/opt/token", "--incremental", "-a", f"/{HOME}/app"),
        *("--runtime-image", f"oci:{runtime}:runtime:latest", "--json"),
    )
    alone.refused(done, 9, "the injected file `/opt/token` is in the saved artifacts")
    assert_nowhere(alone.ocis2i.store, SECRET)


def test_document_of_a_refused_build_is_json(place: Place) -> None:
    done = place.attempt(
        place.builder("true"), "--build-env", f"TOKEN={SECRET}", "-e", f"B={SECRET}", "--json"
    )
    document = json.loads(done.out)
    assert document["reason"] == "SecretLeaked"
    assert "the build variable `TOKEN` is in the image config" in document["message"]


def test_image_of_a_build_with_secrets_is_the_same_as_without(place: Place) -> None:
    """What is hidden changes no byte of the image, when not even names are kept."""
    given = place.write("token", SECRET)
    builder = place.builder("echo app > $HOME/app; touch -d @0 $HOME/app")
    flags = ("--timestamp", "1700000000")
    plain = place.built(builder, *flags).out
    hidden = ("-i", f"{given}:/opt/token", "--no-injection-names", "--build-env", f"A={SECRET}")
    assert place.built(builder, *flags, *hidden).out == plain
