"""Incremental builds where nothing is kept between two of them: the cache is in a registry."""

from __future__ import annotations

import json

import pytest

from ocis2i.keychain import Keychain
from ocis2i.manifest import OCI_MANIFEST, encode_json
from ocis2i.reference import Reference
from ocis2i.registry import Registry
from tests.conftest import needs_registry
from tests.fakes.bench import RUN, Bench, told, warnings
from tests.fakes.docker_registry import RegistryUnderTest
from tests.fakes.images import BUSYBOX
from tests.fakes.judges import schema_check
from tests.fakes.program import Done, Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.registry,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
    needs_registry,
]

ASSEMBLE = """\
#!/bin/sh
set -e
cd "$HOME"
mkdir -p cache
if [ -d /tmp/artifacts ]; then mv /tmp/artifacts/cache/* cache/; fi
echo "found: $(cat cache/log 2>/dev/null)"
echo "$(cat cache/log 2>/dev/null)${SECRET:-x}" >cache/new
mv cache/new cache/log
cp -R /tmp/src/. "$HOME/"
"""
SAVE = '#!/bin/sh\ncd "$HOME" && tar -cf - cache\n'
SCRIPTS: dict[str, str | None] = {"assemble": ASSEMBLE, "run": RUN, "save-artifacts": SAVE}
NOTHING_CAME = "nothing came from the cache: "
NOT_SAVED = "nothing was saved for the next incremental build: "


@pytest.fixture(scope="module")
def builder(shared: Program, tmp_path_factory: pytest.TempPathFactory) -> str:
    bench = Bench(shared, tmp_path_factory.mktemp("builders"))
    return bench.image("builder", SCRIPTS)


@pytest.fixture
def place(server: RegistryUnderTest, bench: Bench) -> str:
    """A repository for the cache that is this test's own."""
    return f"{server.host}/caches/{bench.tag.partition(':')[0]}"


def found(done: Done) -> str:
    """What of the last build's cache was there."""
    return told(done)["found"].strip()


def tampered(server: RegistryUnderTest, digest: str) -> None:
    """Turns over one bit of a blob where the registry keeps it."""
    _, _, name = digest.partition(":")
    path = server.storage / "docker/registry/v2/blobs/sha256" / name[:2] / name / "data"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def manifest_of(reference: str) -> tuple[Reference, dict[str, object]]:
    pinned = Reference.parse(reference)
    with Registry(Keychain({}), environment={}) as registry:
        document = json.loads(registry.get_manifest(pinned).raw)
        assert isinstance(document, dict)
        return pinned, document


def test_empty_store_goes_on_where_another_one_was(
    bench: Bench, builder: str, place: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    cache = ("--cache-from", place, "--cache-to", place)
    first = bench.built(builder, *cache, "--json")
    (warning,) = warnings(first)
    assert warning.startswith(f"{NOTHING_CAME}there is none yet at `{place}:cache-")
    assert found(first) == ""
    cached = str(first.document["cached"])
    assert cached.startswith(f"{place}@sha256:")
    with program(tmp_path_factory.mktemp("elsewhere")) as other:
        build = ("build", bench.source(), builder, bench.tag, *cache, "--json")
        second = other.ok(*build)
    assert warnings(second) == []
    assert found(second) == "x"
    assert "previous image" not in second.err
    assert second.document["incremental"] is True
    assert second.document["restored_from"] == cached
    schema_check("artifact", encode_json(manifest_of(cached)[1]))


def test_another_builder_or_script_has_another_cache(
    bench: Bench, builder: str, place: str
) -> None:
    bench.built(builder, "--cache-to", f"{place}:shared")
    other = bench.image("other", SCRIPTS | {"run": "#!/bin/sh\n"})
    done = bench.built(other, "--cache-from", f"{place}:shared")
    (warning,) = warnings(done)
    assert warning.startswith(f"{NOTHING_CAME}the cache `{place}:shared` is that of another name")
    source = bench.source({".s2i/bin/save-artifacts": SAVE})
    done = bench.ocis2i.ok("build", source, builder, bench.tag, "--cache-from", f"{place}:shared")
    assert found(done) == ""


def test_cache_that_is_old_damaged_or_far_away_is_no_failure(
    bench: Bench, builder: str, place: str, server: RegistryUnderTest
) -> None:
    done = bench.built(builder, "--cache-to", f"{place}:good", "--cache-ttl", "1h", "--json")
    pinned, document = manifest_of(str(done.document["cached"]))
    annotations = document["annotations"]
    assert isinstance(annotations, dict)
    old = annotations | {"io.ocis2i.cache.expires": "2020-01-01T00:00:00Z"}
    with Registry(Keychain({}), environment={}) as registry:
        aged = Reference(pinned.registry, pinned.repository, "old")
        registry.put_manifest(aged, encode_json(document | {"annotations": old}), OCI_MANIFEST)
    layers = document["layers"]
    assert isinstance(layers, list)
    tampered(server, layers[0]["digest"])
    for where, said in (
        (f"{place}:old", "has expired: it counted until 2020-01-01T00:00:00Z"),
        (f"{place}:good", layers[0]["digest"]),
        ("127.0.0.1:1/cache", "127.0.0.1:1"),
    ):
        done = bench.built(builder, "--cache-from", where)
        assert found(done) == ""
        (warning,) = warnings(done)
        assert warning.startswith(NOTHING_CAME)
        assert said in warning


def test_previous_image_stands_in_for_a_cache_that_is_not_there(
    bench: Bench, builder: str, place: str
) -> None:
    bench.built(builder)
    done = bench.built(builder, "--incremental", "--cache-from", place)
    assert found(done) == "x"
    assert warnings(done)[0].startswith(NOTHING_CAME)


def test_cache_that_cannot_be_written_is_no_failure(bench: Bench, builder: str) -> None:
    done = bench.built(builder, "--cache-to", "127.0.0.1:1/cache")
    (warning,) = warnings(done)
    assert warning.startswith(NOT_SAVED)
    assert bench.is_stored


def test_builder_that_saves_nothing_is_told_of(bench: Bench, place: str) -> None:
    plain = bench.image("plain", {"assemble": ASSEMBLE, "run": RUN})
    done = bench.built(plain, "--cache-to", place)
    (warning,) = warnings(done)
    assert warning.startswith(NOT_SAVED)
    assert "has no script `/usr/libexec/s2i/save-artifacts`" in warning


def test_secret_is_never_cached_not_even_when_leaks_are_allowed(
    bench: Bench, builder: str, place: str
) -> None:
    secret = "a-very-secret-value-4711"
    leaking = ("--allow-leaks", "--build-env", f"SECRET={secret}", "--cache-to", place)
    done = bench.built(builder, *leaking, "--json")
    assert done.document["cached"] is None
    warning = warnings(done)[-1]
    assert warning.startswith(f"{NOT_SAVED}secrets got out")
    assert secret not in done.err


def test_artifacts_of_a_build_on_a_runtime_image_are_cached(
    bench: Bench, builder: str, place: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    runtime = bench.image("runtime", {"run": RUN})
    extended = ("--runtime-image", runtime, "--runtime-artifact", "/opt/app-root/src/index.html")
    cache = ("--cache-from", place, "--cache-to", place)
    bench.built(builder, *extended, *cache)
    with program(tmp_path_factory.mktemp("elsewhere")) as other:
        second = other.ok("build", bench.source(), builder, bench.tag, *extended, *cache)
    assert found(second) == "x"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--cache-ttl", "1h"), "--cache-ttl has no meaning without --cache-to"),
        (("--cache-to", "h/x", "--cache-ttl", "soon"), "`--cache-ttl` is `soon`"),
        (("--cache-to", "Upper/Case"), "Upper/Case"),
        (("--cache-to", f"h/x@sha256:{'0' * 64}"), "has a digest, which is not known yet"),
        (("--cache-from", "h/x", "--as-dockerfile", "out"), "have no meaning with --as-docker"),
    ],
)
def test_wrong_words_are_explained(
    arguments: tuple[str, ...], said: str, bench: Bench, builder: str
) -> None:
    done = bench.attempt(builder, *arguments)
    assert done.code == 2
    assert said in done.err
