"""How assemble is run: as whom, where, with what around it, and what ends a build before it."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import RUNC
from tests.contract import better, refused, same
from tests.fakes.bench import RUN, Bench, facts, offer, sh, told, warnings
from tests.fakes.images import BUSYBOX, HOME, Layer
from tests.fakes.program import Done
from tests.fakes.registry import FakeRegistry
from tests.fakes.web import FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

EXECUTORS = [RUNC, "builtin"]
ASSEMBLE_USER = "io.openshift.s2i.assemble-user"
SCRIPTS_URL = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i"}


def fail(bench: Bench, builder: str, *flags: str | Path) -> Done:
    """A build that has to fail with a sentence, and leaves no image behind."""
    done = bench.attempt(builder, *flags)
    assert done.code != 0
    assert "Traceback" not in done.err
    assert not bench.is_stored
    return done


# --- scripts that name no interpreter ---------------------------------------------------------

PLAIN = 'echo "said: $0 $#"\n>>"$HOME/made"\ncat\n'


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("first", ["", "#!\n", "# \N{BLACK HEART SUIT}\n"])
def test_a_script_without_a_first_line_is_run_by_the_shell(
    bench: Bench, executor: str, first: str
) -> None:
    builder = bench.image("builder", {"assemble": None, "run": RUN})
    bench.source({".s2i/bin/assemble": first + PLAIN})
    done = bench.built(builder, "--isolation", executor)
    assert told(done)["said"] == "/tmp/scripts/assemble 0"
    assert bench.result().config["Cmd"] == ["/usr/libexec/s2i/run"]
    assert facts(bench.result())["opt/app-root/src/made"] == "0644 1001:0"


def test_a_script_of_the_image_without_a_first_line_is_run_by_the_shell(bench: Bench) -> None:
    builder = bench.image("builder", {"assemble": PLAIN, "run": RUN, "usage": "echo how to\n"})
    assert told(bench.built(builder))["said"] == "/usr/libexec/s2i/assemble 0"
    assert bench.ocis2i.ok("usage", builder).out == "how to\n"


def test_other_scripts_without_a_first_line_are_run_by_the_shell(bench: Bench) -> None:
    scripts = sh("cat /tmp/artifacts/old 2>/dev/null || true")
    builder = bench.image("builder", scripts)
    save = 'cd "$HOME"; echo "old: yes" >old; tar -cf - old\n'
    bench.source({".s2i/bin/save-artifacts": save})
    bench.built(builder)
    assert told(bench.built(builder, "--incremental"))["old"] == "yes"
    runtime = bench.image("runtime", {"run": RUN, "assemble-runtime": 'echo "in: $(pwd)"\n'})
    words = ("--runtime-image", runtime, "-a", "/etc/passwd:.")
    assert told(bench.built(builder, *words))["in"] == HOME


@pytest.mark.parametrize("executor", EXECUTORS)
@pytest.mark.parametrize("text", ["", "\0\1\2 no script\necho no\n"], ids=["empty", "binary"])
def test_what_no_shell_would_run_is_not_run(bench: Bench, executor: str, text: str) -> None:
    done = fail(bench, bench.image("builder", sh() | {"assemble": text}), "--isolation", executor)
    assert done.code == 7
    assert "/usr/libexec/s2i/assemble" in done.err


def test_a_script_that_needs_a_shell_in_an_image_without_says_so(bench: Bench) -> None:
    gone = Layer().whiteout("bin/sh")
    done = fail(bench, bench.image("builder", sh() | {"assemble": PLAIN}, more_layers=[gone]))
    assert done.code == 7
    assert "needs `/bin/sh`, which the image does not have" in done.err


def test_a_script_with_the_line_ends_of_windows_says_so(bench: Bench) -> None:
    done = fail(bench, bench.image("builder", sh() | {"assemble": "#!/bin/sh\r\ntrue\r\n"}))
    assert done.code == 7
    assert "needs `/bin/sh\\r`, which the image does not have" in done.err
    assert "its lines end with \\r\\n" in done.err


# --- the command line -------------------------------------------------------------------------


@better("assemble.special-paths", "they are paths like others: no shell reads them")
@pytest.mark.parametrize("place", ['/opt/it\'s a $HOME "place"', "/opt/`id`;&& #*", "/opt/-C"])
def test_destination_may_have_any_characters(bench: Bench, place: str) -> None:
    builder = bench.image("builder", {"assemble": None, "run": RUN})
    script = '#!/bin/sh\necho "self: $0"\ncat "$(dirname "$0")/../src/index.html"\n'
    bench.source({".s2i/bin/assemble": script, ".s2i/bin/run": RUN})
    done = bench.built(builder, "--destination", place)
    assert told(done)["self"] == f"{place}/scripts/assemble"
    assert "\nhello\n" in done.err
    assert bench.result().config["Cmd"] == [f"{place}/scripts/run"]
    assert f"{place}/src/index.html"[1:] in facts(bench.result())


@better("assemble.output-is-no-verdict", "the exit code alone decides, and assemble runs once")
@pytest.mark.parametrize("code", [0, 3])
def test_words_of_a_script_decide_nothing(bench: Bench, code: int) -> None:
    lines = (
        "echo 'npm start: not found' >&2",
        "echo '/bin/sh: no such file or directory' >&2",
        f"exit {code}",
    )
    builder = bench.image("builder", sh(*lines))
    done = fail(bench, builder) if code else bench.built(builder)
    assert done.code == (7 if code else 0)
    assert done.err.count("npm start: not found") == 1


LEAP = """\
import os, time
real, flag, seen = time.monotonic, {flag!r}, {seen!r}
def leap():
    if not os.path.exists(flag):
        return real()
    with open(seen, "a") as file:
        file.write("a month later\\n")
    return real() + 2_592_000
time.monotonic = leap
"""


@same("assemble.no-time-limit")
def test_assemble_may_take_a_month(bench: Bench) -> None:
    """By the program's own clock, which leaps when the script says so."""
    shared_directory = bench.directory / "volume"
    shared_directory.mkdir()
    shared_directory.chmod(0o777)
    flag, seen = shared_directory / "leap", bench.directory / "seen"
    text = LEAP.format(flag=str(flag), seen=str(seen))
    (bench.directory / "sitecustomize.py").write_text(text)
    lines = ("echo before", "touch /volume/leap", "echo then", "sleep 0.3", "echo after")
    done = bench.ocis2i.ok(
        "build",
        bench.source(),
        bench.image("builder", sh(*lines)),
        bench.tag,
        *("--volume", f"{shared_directory}:/volume"),
        PYTHONPATH=f"{bench.directory}:{bench.ocis2i.environment['PYTHONPATH']}",
    )
    assert "a month later" in seen.read_text()
    assert "\nafter\n" in done.err


@same("builders.sclorg")
def test_variables_that_shells_start_with_reach_the_scripts(bench: Bench) -> None:
    names = ("BASH_ENV", "ENV", "PROMPT_COMMAND")
    env = [f"{name}=/opt/app-root/etc/scl_enable" for name in names]
    builder = bench.image("builder", sh("env"), {"Env": [*env, "PATH=/bin"]})
    log = bench.built(builder).err.splitlines()
    assert set(env) <= set(log)
    assert bench.result().config["Env"] == [*env, "PATH=/bin"]


ENTRYPOINT = '#!/bin/sh\nexport ACTIVATED=yes\necho "entrypoint: $*"\nexec "$@"\n'


@better("assemble.entrypoint", "scripts are run directly, with `--via-entrypoint` through it")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_assemble_goes_through_the_entrypoint_when_asked(bench: Bench, executor: str) -> None:
    layer = Layer().file("bin/container-entrypoint", ENTRYPOINT, mode=0o755)
    builder = bench.image(
        "builder",
        sh('echo "activated: ${ACTIVATED:-no}"'),
        {"Entrypoint": ["container-entrypoint", "env"]},
        [layer],
    )
    around = ("--isolation", executor)
    assert told(bench.built(builder, *around))["activated"] == "no"
    done = bench.built(builder, "--via-entrypoint", *around)
    assert told(done)["entrypoint"] == "env /usr/libexec/s2i/assemble"
    assert told(done)["activated"] == "yes"
    assert "Entrypoint" not in bench.result().config


def test_entrypoint_whose_interpreter_is_missing_is_named(bench: Bench) -> None:
    layer = Layer().file("start", "#!/usr/bin/bash\n", mode=0o755)
    builder = bench.image("builder", sh(), {"Entrypoint": ["/start"]}, [layer])
    done = fail(bench, builder, "--via-entrypoint")
    assert done.code == 7
    assert "the script `/start` needs `/usr/bin/bash`" in done.err


def test_entrypoint_of_the_base_is_kept_when_asked(bench: Bench) -> None:
    builder = bench.image("builder", sh(), {"Entrypoint": ["container-entrypoint"]})
    bench.built(builder, "--keep-entrypoint")
    assert bench.result().config["Entrypoint"] == ["container-entrypoint"]
    assert bench.result().config["Cmd"] == ["/usr/libexec/s2i/run"]


# --- what is around it ------------------------------------------------------------------------


@same("assemble.network")
@same("--network")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_assemble_has_the_network_unless_it_is_taken_away(bench: Bench, executor: str) -> None:
    around = ("--isolation", executor)
    with FakeWeb() as web:
        web.put("/package", b"it arrived\n")
        builder = bench.image("builder", sh(f"wget -q -O - {web.url}/package"))
        assert "\nit arrived\n" in bench.built(builder, *around).err
        assert "\nit arrived\n" in bench.built(builder, "--network", "host", *around).err
        done = bench.ocis2i("build", bench.source(), builder, "other", "--network", "none", *around)
        assert done.code == 7
        assert len(web.asked) == 2


@better("--network bridge", "the host's network, with a warning")
@pytest.mark.parametrize("name", ["bridge", "default"])
def test_network_of_a_daemon_is_the_hosts(bench: Bench, name: str) -> None:
    done = bench.built(bench.image("builder", sh()), "--network", name)
    assert [one for one in warnings(done) if f"`--network` is `{name}`" in one]


@refused("--network container:", "there is no daemon that knows containers")
@pytest.mark.parametrize("name", ["container:x", "netns:/run/netns/x", "mine", "bridge:x"])
def test_network_that_takes_a_daemon_is_refused(bench: Bench, name: str) -> None:
    done = fail(bench, bench.image("builder", sh()), "--network", name)
    assert done.code == 2
    assert f"`--network` is `{name}`" in done.err


@same("--add-host")
@same("image.nothing-of-the-engine")
@pytest.mark.parametrize("network", ["host", "none"])
def test_hosts_are_added_for_the_build_and_not_for_the_image(bench: Bench, network: str) -> None:
    builder = bench.image("builder", sh("cat /etc/hosts", ">>$HOME/made"))
    hosts = ("--add-host", "db.example:192.0.2.7", "--add-host", "six:2001:db8::7")
    done = bench.built(builder, *hosts, "--network", network)
    lines = [line.split() for line in done.err.splitlines()]
    assert ["192.0.2.7", "db.example"] in lines
    assert ["2001:db8::7", "six"] in lines
    assert not [name for name in facts(bench.result()) if name.startswith("etc")]


@refused("--add-host db", "it names no address")
@pytest.mark.parametrize("entry", ["db", "db:", ":192.0.2.7", "db:192.0.2", "a b:192.0.2.7", "x:y"])
def test_host_that_is_none_is_refused(bench: Bench, entry: str) -> None:
    done = fail(bench, bench.image("builder", sh()), "--add-host", entry)
    assert done.code == 2
    assert "--add-host" in done.err


# linux/capability.h: the bits of CHOWN, SETGID and SETUID.
CHOWN, SETGID, SETUID = 1 << 0, 1 << 6, 1 << 7


def effective(done: Done) -> int:
    return int(told(done)["effective"], 16)


@same("--cap-drop")
@pytest.mark.parametrize("executor", EXECUTORS)
def test_capabilities_are_taken_from_root(bench: Bench, executor: str) -> None:
    line = "echo effective: $(sed -n 's/^CapEff:[[:space:]]*//p' /proc/self/status)"
    builder = bench.image("builder", sh(line), {"User": "0"})
    around = ("--isolation", executor)
    usual = effective(bench.built(builder, *around))
    assert usual & (CHOWN | SETGID | SETUID) == CHOWN | SETGID | SETUID
    dropped = ("--cap-drop", "chown,CAP_SETUID", "--cap-drop", "cap_setgid")
    left = effective(bench.built(builder, *dropped, *around))
    assert left == usual & ~(CHOWN | SETGID | SETUID)
    assert effective(bench.built(builder, "--cap-drop", "ALL", *around)) == 0


def test_capability_that_is_none_is_refused(bench: Bench) -> None:
    done = fail(bench, bench.image("builder", sh()), "--cap-drop", "KILL,FLY")
    assert done.code == 2
    assert "`--cap-drop` has `FLY`" in done.err


@better("pull.retries", "for passing failures only, each with a longer pause")
def test_a_pull_goes_on_after_a_broken_connection(bench: Bench) -> None:
    with FakeRegistry() as registry:
        name = offer(registry, bench.image("builder", sh()), "team/builder", "1")
        registry.fail("GET", "/manifests/", reset_after=0)
        registry.fail("GET", "/manifests/", status=503, headers={"Retry-After": "0"})
        registry.fail("GET", "/blobs/", truncate=100)
        bench.built(name, "--no-tls-verify")
        assert len(registry.requests("GET", "/manifests/")) == 3
        gone = bench.ocis2i("build", bench.source(), f"{registry.host}/no:1", "--no-tls-verify")
        assert gone.code == 5
        assert len(registry.requests("GET", "/v2/no/")) == 1
    assert bench.result().labels["io.openshift.s2i.build.image"] == name


# --- who may run it ---------------------------------------------------------------------------


def judged(bench: Bench, config: Mapping[str, Any], *flags: str) -> Done:
    builder = bench.image("builder", sh("echo ran: yes"), config)
    return bench.ocis2i("build", bench.source(), builder, bench.tag, "--json", *flags)


def assert_forbidden(done: Done, words: str) -> None:
    assert done.code == 9
    document = json.loads(done.out)
    assert document["reason"] == "AssembleUserForbidden"
    assert words in document["message"]
    assert "ran: yes" not in done.err


@same("--allowed-uids")
@same("uids.ranges")
@better("exit.forbidden-user", "9")
@pytest.mark.parametrize(
    ("flags", "allowed"),
    [
        (["-u", "1-500,1001-1001"], True),
        (["-u", " 5 , ,1001-"], True),
        (["-u", ","], True),
        (["-u", "5-", "-u", "-7"], False),
        (["-u", "5-6", "-u", "1001"], True),
        (["--allowed-uids", "1002-"], False),
        (["-u", "-1000,1002"], False),
    ],
)
def test_ranges_of_users(bench: Bench, flags: list[str], allowed: bool) -> None:
    done = judged(bench, {}, *flags)
    if allowed:
        assert done.code == 0, done.err
    else:
        assert_forbidden(done, "its USER is `1001`")


@pytest.mark.parametrize("text", ["x", "1-2-3", "2:5", "-", "7-5", "0x10", "-1-", "99999999999"])
def test_ranges_that_are_none_are_refused(bench: Bench, text: str) -> None:
    done = judged(bench, {}, "-u", text)
    assert done.code == 2
    assert "--allowed-uids" in done.err


@same("uids.image")
@same("AssembleUserForbidden")
@pytest.mark.parametrize("user", ["", "0", "root", "default", "1002", "1002:1001", "+1001", "10O1"])
def test_user_of_the_image_has_to_be_an_allowed_number(bench: Bench, user: str) -> None:
    done = judged(bench, {"User": user}, "-u", "1001,1003")
    assert_forbidden(done, "must specify a user that is numeric and within the range")


@better("uids.flag", "its group does not matter")
@pytest.mark.parametrize(
    ("user", "allowed"), [("1003", True), ("1003:0", True), ("0", False), ("default", False)]
)
def test_assemble_user_of_the_flag_is_judged(bench: Bench, user: str, allowed: bool) -> None:
    config = {"Labels": {**SCRIPTS_URL, ASSEMBLE_USER: "0"}}
    done = judged(bench, config, "-u", "1001-1003", "--assemble-user", user)
    if allowed:
        assert done.code == 0, done.err
    else:
        assert_forbidden(done, f"--assemble-user is `{user}`")


@same("uids.label")
@pytest.mark.parametrize(("user", "allowed"), [("1003:0", True), ("0:1001", False), ("x", False)])
def test_assemble_user_of_the_label_is_judged(bench: Bench, user: str, allowed: bool) -> None:
    done = judged(bench, {"Labels": {**SCRIPTS_URL, ASSEMBLE_USER: user}}, "-u", "1001-1003")
    if allowed:
        assert done.code == 0, done.err
    else:
        assert_forbidden(done, f"`{ASSEMBLE_USER}` label whose value `{user}`")


@better("uids.result", "who runs the result is judged too")
@same("security.allowed-uids")
@pytest.mark.parametrize(("by", "user"), [("flag", "0"), ("label", "")])
def test_result_that_runs_as_root_is_forbidden(bench: Bench, by: str, user: str) -> None:
    labels = {**SCRIPTS_URL, **({ASSEMBLE_USER: "1001"} if by == "label" else {})}
    flags = ("--assemble-user", "1001") if by == "flag" else ()
    done = judged(bench, {"User": user, "Labels": labels}, "-u", "1-", *flags)
    assert_forbidden(done, "must specify a user that is numeric")


@same("uids.onbuild")
@pytest.mark.parametrize("trigger", ["USER 0", "user\troot", "USER $X", "USER 0:1001"])
def test_users_of_triggers_are_judged(bench: Bench, trigger: str) -> None:
    config = {"OnBuild": ["COPY . /x", trigger]}
    done = judged(bench, config, "--ignore-onbuild", "-u", "1001")
    assert_forbidden(done, "includes at least one ONBUILD instruction that sets the user")


@better("uids.runtime-image", "the verdict counts")
def test_user_of_the_runtime_image_is_judged(bench: Bench) -> None:
    builder = bench.image("builder", sh("echo ran: yes"))
    runtime = bench.image("runtime", {"run": RUN}, {"User": "0"})
    words = ("--runtime-image", runtime, "-a", "/etc/passwd", "-u", "1-", "--json")
    done = bench.ocis2i("build", bench.source(), builder, bench.tag, *words)
    assert_forbidden(done, f"image `{runtime}` must specify a user")
    again = bench.ocis2i(
        "build", bench.source(), builder, bench.tag, *words, "--assemble-runtime-user", "7"
    )
    assert_forbidden(again, f"image `{runtime}` must specify a user")


# --- ONBUILD ----------------------------------------------------------------------------------


@better("onbuild", "refused, with `--ignore-onbuild` built by its scripts alone")
def test_triggers_are_ignored_when_asked(bench: Bench) -> None:
    config = {"OnBuild": ["RUN touch /triggered"]}
    builder = bench.image("builder", sh(">>$HOME/made"), config)
    refusal = fail(bench, builder)
    assert refusal.code == 9
    assert "ONBUILD" in refusal.err
    bench.built(builder, "--ignore-onbuild")
    names = facts(bench.result())
    assert "opt/app-root/src/made" in names
    assert "triggered" not in names
    assert "OnBuild" not in bench.result().config


# --- what is left of the upload ----------------------------------------------------------------


def test_upload_is_left_out_when_asked(bench: Bench) -> None:
    baked = Layer().dir("tmp/src").file("tmp/src/baked", "of the builder")
    builder = bench.image("builder", sh("cp /tmp/src/index.html $HOME"), more_layers=[baked])
    bench.source({".s2i/bin/run": RUN, ".s2i/bin/save-artifacts": "tar -cf - -C / etc/passwd\n"})
    bench.built(builder, "--prune-upload")
    bench.built(builder, "--prune-upload", "--incremental")
    assert facts(bench.result()) == {
        "opt": "0755 0:0",
        "opt/app-root": "0775 1001:0",
        "opt/app-root/src": "0775 1001:0",
        "opt/app-root/src/index.html": "0644 1001:0",
        "tmp": "1777 0:0",
        "tmp/.wh.src": "0644 0:0",
        "tmp/scripts": "0755 1001:0",
        "tmp/scripts/run": "0755 1001:0",
        "tmp/scripts/save-artifacts": "0755 1001:0",
    }
    assert (
        gzip.decompress(bench.result().blob(bench.result().layers[-1]).read_bytes()).count(
            b"of the builder"
        )
        == 0
    )
