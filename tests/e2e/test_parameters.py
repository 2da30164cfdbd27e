"""Parameters that a builder declares: checked before anything runs, and where their values go."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.fakes.bench import Bench, content, error, offer, sh, warnings
from tests.fakes.images import Layer
from tests.fakes.registry import FakeRegistry

LABEL = "io.ocis2i.parameters"
GIVEN = "io.ocis2i.build.parameters"
DECLARED: list[dict[str, Any]] = [
    {"name": "GOALS", "default": "package", "pattern": "[a-z ]+"},
    {"name": "DEBUG", "type": "boolean", "trueValue": "1", "falseValue": ""},
    {"name": "WORKERS", "type": "integer", "when": "run", "minimum": 1, "default": 2},
    {
        "name": "PROFILE",
        "type": "enum",
        "when": "both",
        "values": ["dev", "prod"],
        "required": True,
    },
    {"name": "TOKEN", "secret": True},
    {"name": "DB_PASSWORD", "secret": True, "when": "run", "required": True},
]
TELL = sh(
    'echo "goals: $GOALS debug: $DEBUG profile: $PROFILE workers: ${WORKERS-none}"',
    'echo "${#TOKEN}" >length',
)


def declaration(*parameters: dict[str, Any]) -> str:
    return json.dumps({"version": 1, "parameters": parameters or DECLARED})


@pytest.fixture
def builder(bench: Bench) -> str:
    labels = {
        "io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i",
        LABEL: declaration(),
        GIVEN: '{"OLD":"of the builder"}',
    }
    return bench.image("b", TELL, {"Labels": labels})


def environment(bench: Bench) -> dict[str, str]:
    return dict(entry.split("=", 1) for entry in bench.result().config["Env"])


def test_each_value_goes_where_it_was_declared_for(bench: Bench, builder: str) -> None:
    secret = bench.directory / "token"
    secret.write_text("tOk3n-of-the-build\n")
    done = bench.built(builder, "-P", "DEBUG=yes", "-P", "PROFILE=prod", "-P", f"TOKEN=@{secret}")
    assert "goals: package debug: 1 profile: prod workers: none" in done.err
    assert "tOk3n" not in done.err
    assert content(bench.result(), "opt/app-root/src/length") == "18\n"
    variables = environment(bench)
    assert (variables["PROFILE"], variables["WORKERS"]) == ("prod", "2")
    assert not {"GOALS", "DEBUG", "TOKEN", "DB_PASSWORD"} & set(variables)
    labels = bench.result().config["Labels"]
    assert json.loads(labels[GIVEN]) == {"DEBUG": "1", "PROFILE": "prod"}
    assert LABEL not in labels
    assert "tOk3n" not in json.dumps(bench.result().config)


def test_what_is_wrong_is_all_said_before_anything_runs(bench: Bench, builder: str) -> None:
    done = bench.attempt(
        builder, "-P", "GOAL=x", "-P", "WORKERS=0", "-P", "TOKEN=a\tb", "-P", "DB_PASSWORD=x"
    )
    assert done.code == 2
    line = error(done)
    for part in (
        "there is no parameter `GOAL`, did you mean `GOALS`?",
        "`WORKERS` is `0`: it must be a whole number of at least 1",
        "`PROFILE` is missing",
        "`DB_PASSWORD` is a secret of the running image",
    ):
        assert part in line
    assert "unpack" not in done.err
    assert "ocis2i explain" in done.err
    assert not bench.is_stored


def test_a_secret_that_leaks_ends_the_build(bench: Bench) -> None:
    labels = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i", LABEL: declaration()}
    leaking = bench.image("leak", sh('echo "$TOKEN" >kept'), {"Labels": labels})
    done = bench.with_variables(TOKEN="tOk3n-of-the-build").attempt(
        leaking, "-P", "TOKEN", "-P", "PROFILE=dev"
    )
    assert done.code == 9
    assert "the build variable `TOKEN`" in error(done)
    typed = bench.built(leaking, "-P", "TOKEN=tOk3n-typed", "-P", "PROFILE=dev", "--allow-leaks")
    assert any("everybody on this host" in one for one in warnings(typed))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("p.json", '{"PROFILE": "dev", "DEBUG": true}'),
        ("p.toml", 'PROFILE = "dev"\nDEBUG = true\n'),
        ("p.env", "# mine\nPROFILE=dev\nDEBUG=1\n"),
    ],
)
def test_a_file_has_values_and_words_win(bench: Bench, builder: str, name: str, text: str) -> None:
    (bench.directory / name).write_text(text)
    goals = bench.directory / "goals"
    goals.write_text("clean install\n")
    done = bench.ocis2i.ok(
        "build",
        bench.source(),
        builder,
        bench.tag,
        "--parameters-file",
        bench.directory / name,
        "-P",
        "PROFILE=prod",
        "-P",
        "GOALS=@-",
        stdin=goals,
    )
    assert "goals: clean install debug: 1 profile: prod" in done.err


def test_a_file_beside_the_scripts_counts_like_the_label(bench: Bench) -> None:
    layer = Layer().file("usr/libexec/s2i/parameters.json", declaration(), uid=1001, mode=0o600)
    builder = bench.image("file", TELL, more_layers=[layer])
    assert bench.attempt(builder).code == 2
    done = bench.built(builder, "-P", "PROFILE=dev")
    assert "goals: package debug:  profile: dev" in done.err
    gone = bench.image(
        "gone", TELL, more_layers=[layer, Layer().whiteout("usr/libexec/s2i/parameters.json")]
    )
    assert "goals:  debug:" in bench.built(gone).err
    refused = bench.attempt(gone, "-P", "PROFILE=dev")
    assert refused.code == 2
    assert "declares no parameters" in error(refused)
    assert "-e NAME=VALUE" in refused.err


def test_a_variable_given_otherwise_is_not_missing_and_has_no_default(
    bench: Bench, builder: str
) -> None:
    bench.source({".s2i/environment": "PROFILE=test\nWORKERS=9\n"})
    done = bench.built(builder, "--build-env", "GOALS=mine")
    assert "goals: mine" in done.err
    assert "profile: test workers: 9" in done.err
    twice = bench.attempt(builder, "-P", "PROFILE=dev", "-e", "PROFILE=dev")
    assert twice.code == 2
    assert "is given by -P and by -e" in error(twice)


def test_rebuild_repeats_what_was_given(bench: Bench, registry: FakeRegistry, builder: str) -> None:
    name = offer(registry, builder, "builder", "1")
    plain = ("--no-tls-verify",)
    source = bench.source()
    bench.ocis2i.ok(
        "build", source, name, bench.tag, "-P", "PROFILE=prod", "-P", "GOALS=test", *plain
    )
    again = bench.ocis2i.ok("rebuild", bench.tag, *plain)
    assert "goals: test debug:  profile: prod" in again.err
    other = bench.ocis2i.ok("rebuild", bench.tag, "-P", "PROFILE=dev", *plain)
    assert "goals: test debug:  profile: dev" in other.err


def test_a_dockerfile_has_them_and_of_secrets_the_names(bench: Bench, builder: str) -> None:
    out = bench.directory / "out"
    out.mkdir()
    bench.ocis2i.ok(
        "build",
        bench.source(),
        builder,
        "--as-dockerfile",
        out,
        "-P",
        "PROFILE=prod",
        "-P",
        "GOALS=a b",
        "-P",
        "TOKEN",
        TOKEN="tOk3n-of-the-build",
    )
    text = (out / "Dockerfile").read_text()
    assert "ENV PROFILE=prod" in text or 'PROFILE="prod"' in text
    assert "export GOALS='a b'" in text
    assert "id=build-env-TOKEN" in text
    assert "tOk3n" not in text


def test_arguments_that_are_kept_have_no_values_of_parameters(bench: Bench, builder: str) -> None:
    work = bench.directory / "work"
    work.mkdir()
    source = bench.source()
    bench.ocis2i.ok(
        "build",
        source,
        builder,
        bench.tag,
        "--use-config",
        "-P",
        "PROFILE=dev",
        "-P",
        "TOKEN=tOk3n-of-the-build",
        cwd=work,
    )
    kept = (work / ".s2ifile").read_text()
    assert "tOk3n" not in kept
    assert "TOKEN" in kept


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 5000, "nested too deep"),
        ('{"version":1,"parameters":[{"name":"A"},{"name":"A"}]}', "declared twice"),
    ],
)
def test_a_broken_declaration_is_the_builders_fault(bench: Bench, text: str, why: str) -> None:
    labels = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i", LABEL: text}
    done = bench.attempt(bench.image("broken", TELL, {"Labels": labels}))
    assert done.code == 4
    assert why in error(done)


def test_words_that_are_no_parameters(bench: Bench, builder: str) -> None:
    for words, why in (
        (("-P", "A B=1"), "no name of a parameter"),
        (("-P", "UNSET_HERE"), "there is no such variable here"),
        (("-P", "GOALS=@/nowhere"), "is no file that is there"),
        (("--parameters-file", "/nowhere.json"), "is no file that is there"),
    ):
        done = bench.attempt(builder, *words)
        assert done.code == 2
        assert why in error(done)
        # Of all that is a file, `-` is standard input only behind `=@`.
        assert ("or =@- for standard input" in done.err) == ("GOALS=@/nowhere" in words)
    broken = bench.directory / "p.json"
    broken.write_text('{"GOALS": ')
    done = bench.attempt(builder, "--parameters-file", broken)
    assert "is not JSON" in error(done)
    assert "write it as TOML, JSON or lines" in done.err
    broken.write_text('{"GOALS": [1]}')
    assert "is no text, whole number" in error(bench.attempt(builder, "--parameters-file", broken))


SECRET = "tOk3n+of/the build"


@pytest.mark.parametrize("end", ["exit 0", "exit 3"])
def test_a_secret_is_in_nothing_that_is_kept_or_shown(bench: Bench, end: str) -> None:
    labels = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i", LABEL: declaration()}
    # It is told whole, and by a program that cuts its lines.
    lines = ('echo "it is $TOKEN."', 'printf "%s\\n" "$TOKEN" >&2', '[ -n "$TOKEN" ]', end)
    builder = bench.image("telling", sh(*lines), {"Labels": labels})
    events, record = bench.directory / "events", bench.directory / "record"
    words = ("--events", events, "--record", record, "--json", "--allow-leaks")
    given = ("-P", f"TOKEN={SECRET}", "-P", "PROFILE=dev")
    done = bench.attempt(builder, *given, *words, "--loglevel", "5")
    assert done.code == (0 if end == "exit 0" else 7), done.err
    assert "it is ***." in done.err
    kinds = (("status", "--json"), ("status",), ("logs",), ("report", "-o", "-"))
    told = [done.out, done.err, *(bench.ocis2i.ok(*verb, record).out for verb in kinds)]
    if end == "exit 0":
        told += [json.dumps(bench.result().config), bench.ocis2i.ok("inspect", bench.tag).out]
    kept = b"".join(contents(bench.ocis2i.store, bench.directory))
    assert b"it is ***." in kept
    for form in (SECRET, "tOk3n", base64.b64encode(SECRET.encode()).decode(), quote(SECRET)):
        assert not [text for text in told if form in text], form
        assert form.encode() not in kept, form


def contents(*places: Path) -> Iterator[bytes]:
    """All that can be read below these directories."""
    for place in places:
        for path in place.rglob("*"):
            try:
                yield path.read_bytes() if path.is_file() else b""
            except OSError:
                continue  # of a subordinate id


def test_a_wrong_value_of_a_secret_is_not_repeated(bench: Bench) -> None:
    parameters = [
        {"name": "PIN", "secret": True, "type": "integer"},
        {"name": "KEY", "secret": True, "pattern": "[0-9]+"},
        {"name": "PLACE", "secret": True, "type": "url"},
        {"name": "ONE_OF", "secret": True, "type": "enum", "values": ["one", "two"]},
    ]
    labels = {
        "io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i",
        LABEL: declaration(*parameters),
    }
    builder = bench.image("secretive", TELL, {"Labels": labels})
    given = [word for one in parameters for word in ("-P", f"{one['name']}=wr0ng-{one['name']}")]
    done = bench.attempt(builder, *given, "--json")
    assert done.code == 2
    for one in parameters:
        assert f"`{one['name']}`" in error(done)
    assert "wr0ng" not in done.out + done.err
    assert b"wr0ng" not in b"".join(contents(bench.ocis2i.store))


def test_a_killed_build_leaves_no_secret_behind(bench: Bench, tmp_path: Path) -> None:
    labels = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i", LABEL: declaration()}
    slow = bench.image("slow", sh("echo now", "sleep 100"), {"Labels": labels})
    bench.killed(slow, "-P", "TOKEN=tOk3n-of-the-build", "-P", "PROFILE=dev")
    for path in bench.ocis2i.store.rglob("*"):
        try:
            data = path.read_bytes() if path.is_file() else b""
        except OSError:
            continue  # of a subordinate id
        assert b"tOk3n" not in data, path
    bench.ocis2i.ok("prune")


def test_generate_does_not_ask_for_them(bench: Bench, builder: str) -> None:
    bench.ocis2i.ok("generate", builder, bench.directory / "Dockerfile")
