from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import ImageError
from ocis2i.manifest import (
    DOCKER_INDEX,
    DOCKER_LAYER,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
    Descriptor,
    Encoded,
    History,
    Image,
    ImageConfig,
    Index,
    Layer,
    Manifest,
    RuntimeConfig,
    append_layer,
    choose_platform,
    decode_descriptor,
    decode_image,
    decode_manifest,
    encode_descriptor,
    encode_image,
    encode_json,
    format_time,
    layer_type_as_oci,
    parse_json,
)
from ocis2i.reference import Digest, Platform
from tests.fakes import judges

DIGEST = Digest.of(b"blob")
CREATED = "2020-01-01T00:00:00Z"


def decoded(encoded: Encoded) -> Image:
    manifest = decode_manifest(encoded.manifest, OCI_MANIFEST)
    assert isinstance(manifest, Manifest)
    assert manifest.descriptor == encoded.descriptor
    return decode_image(manifest, encoded.config)


def config_bytes(**fields: Any) -> bytes:
    document = {"architecture": "amd64", "os": "linux", "rootfs": {"diff_ids": [str(DIGEST)]}}
    return json.dumps(document | fields).encode()


def manifest_bytes(config: bytes, count: int = 1, /, **fields: Any) -> bytes:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": str(Digest.of(config)), "size": len(config)},
        "layers": [{"mediaType": OCI_LAYER_GZIP, "digest": str(DIGEST), "size": 4}] * count,
    }
    return json.dumps(document | fields).encode()


def image_of(config: bytes, layers: int = 1) -> Image:
    manifest = decode_manifest(manifest_bytes(config, layers))
    assert isinstance(manifest, Manifest)
    return decode_image(manifest, config)


# --- laws -------------------------------------------------------------------------------------

TEXT = st.text(max_size=12)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
DIGESTS = st.binary(max_size=4).map(Digest.of)
LABELS = st.dictionaries(TEXT, TEXT, max_size=3)


def unknown(known: str) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(TEXT.filter(lambda key: key not in known.split()), JSON, max_size=3)


DESCRIPTORS = st.builds(
    Descriptor,
    st.sampled_from([OCI_LAYER, OCI_LAYER_GZIP, OCI_LAYER_ZSTD]),
    DIGESTS,
    st.integers(0, 2**63 - 1),
    LABELS,
    st.none(),
    unknown("mediaType digest size annotations platform"),
)
WORDS = st.lists(TEXT, max_size=3).map(tuple)
RUNTIMES = st.builds(
    RuntimeConfig,
    TEXT,
    WORDS,
    st.none() | st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    st.none() | st.lists(TEXT, min_size=1, max_size=3).map(tuple),
    TEXT,
    LABELS,
    st.lists(TEXT, max_size=3, unique=True).map(lambda paths: tuple(sorted(paths))),
    WORDS,
    unknown("User Env Entrypoint Cmd WorkingDir Labels Volumes OnBuild"),
)
CONFIGS = st.builds(
    ImageConfig,
    st.builds(Platform, TEXT, TEXT, st.none() | st.text(min_size=1, max_size=4)),
    RUNTIMES,
    st.none() | TEXT,
    st.none() | TEXT,
    st.lists(st.dictionaries(TEXT, JSON, max_size=3).map(History), max_size=3).map(tuple),
    unknown("architecture os variant created author config rootfs history"),
)
IMAGES = st.builds(
    Image, CONFIGS, st.lists(st.builds(Layer, DESCRIPTORS, DIGESTS), max_size=4).map(tuple), LABELS
)


@given(IMAGES)
def test_law_an_image_is_decoded_as_it_was_encoded(image: Image) -> None:
    encoded = encode_image(image)
    assert decoded(encoded) == image
    assert encode_image(decoded(encoded)) == encoded


@given(DESCRIPTORS)
def test_law_a_descriptor_is_decoded_as_it_was_encoded(descriptor: Descriptor) -> None:
    raw = encode_json(encode_descriptor(descriptor))
    assert decode_descriptor(json.loads(raw), "it") == descriptor


@given(st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()))
def test_law_any_bytes_are_a_manifest_or_an_image_error(raw: bytes) -> None:
    try:
        found = decode_manifest(raw)
    except ImageError as error:
        assert error.message
    else:
        assert found.raw == raw


@given(st.dictionaries(st.sampled_from("config history created rootfs os".split()), JSON))
def test_law_any_config_is_an_image_or_an_image_error(fields: dict[str, Any]) -> None:
    try:
        image = image_of(config_bytes(**fields))
    except ImageError as error:
        assert error.message
    else:
        assert decoded(encode_image(image)) == image


# --- documents --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"3",
        b"{",
        b"\xff{}",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\\ud800"}',
        b'{"\\uDFFF": 1}',
        b'{"a":' * 100_000,
    ],
)
def test_what_is_not_a_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="the thing is not"):
        parse_json(data, "the thing")


def test_whole_surrogate_pairs_and_numbers_are_read() -> None:
    assert parse_json(b'{"a": "\\ud83d\\ude00", "b": 1.5}', "it") == {"a": "\U0001f600", "b": 1.5}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"schemaVersion": 1}, "schema 1"),
        ({"mediaType": "text/plain"}, "not the type of an image manifest"),
        ({"mediaType": ["x"]}, "not the type of an image manifest"),
        ({"mediaType": DOCKER_MANIFEST}, "but came as"),
        ({"manifests": []}, "an index at once"),
        ({"mediaType": OCI_INDEX, "manifests": []}, "an index at once|but came as"),
        ({"config": None}, "must be an object"),
        ({"config": {"digest": "sha256:x", "size": 1}}, "invalid digest"),
        ({"layers": None}, "no `layers`"),
        ({"layers": {}}, "must be a list"),
        ({"layers": [3]}, "must be an object"),
        ({"layers": [{"digest": str(DIGEST), "size": -1}]}, "`size` must be"),
        ({"layers": [{"digest": str(DIGEST), "size": True}]}, "`size` must be"),
        ({"layers": [{"digest": str(DIGEST), "size": 1.0}]}, "`size` must be"),
        ({"layers": [{"digest": str(DIGEST), "size": 1, "mediaType": 3}]}, "`mediaType` must"),
        ({"annotations": {"a": 1}}, "must map text to text"),
    ],
)
def test_a_malformed_manifest_is_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        decode_manifest(manifest_bytes(b"{}", **fields), OCI_MANIFEST)


def test_a_manifest_without_media_type_is_known_by_its_shape() -> None:
    document = json.loads(manifest_bytes(b"{}"))
    del document["mediaType"]
    assert isinstance(decode_manifest(encode_json(document)), Manifest)
    index = decode_manifest(b'{"schemaVersion":2,"manifests":[]}')
    assert isinstance(index, Index)
    assert index.descriptor.media_type == OCI_INDEX


def test_the_bytes_of_a_manifest_are_kept() -> None:
    raw = b" " + manifest_bytes(b"{}", annotations={"a": "b"}, whatever=1) + b"\n"
    manifest = decode_manifest(raw)
    assert manifest.raw == raw
    assert manifest.descriptor == Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw))
    assert manifest.annotations == {"a": "b"}


def test_a_docker_manifest_list_is_an_index() -> None:
    entry = {
        "mediaType": DOCKER_MANIFEST,
        "digest": str(DIGEST),
        "size": 9,
        "platform": {"architecture": "arm", "os": "linux", "variant": "v7", "os.features": ["x"]},
    }
    raw = encode_json({"schemaVersion": 2, "mediaType": DOCKER_INDEX, "manifests": [entry]})
    index = decode_manifest(raw, DOCKER_INDEX)
    assert isinstance(index, Index)
    assert index.manifests[0].platform == Platform("arm", "linux", "v7")
    assert encode_descriptor(index.manifests[0]) == entry


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (config_bytes(rootfs=None), "no `rootfs.diff_ids`"),
        (config_bytes(rootfs={"diff_ids": []}), r"layers \(1\) as diff_ids \(0\)"),
        (config_bytes(rootfs={"diff_ids": ["sha256:x"]}), "invalid digest"),
        (config_bytes(os=3), "`os` must be text"),
        (config_bytes(created=3), "`created` must be text"),
        (config_bytes(author=["x"]), "`author` must be text"),
        (config_bytes(history={"a": 1}), "`history` must be a list"),
        (config_bytes(history=["x"]), "`history` must be a list"),
        (config_bytes(config=[1]), "`config` must be an object"),
        (config_bytes(config={"User": 5}), "`User` must be text"),
        (config_bytes(config={"Env": "A=b"}), "`Env` must be a list"),
        (config_bytes(config={"Cmd": [1]}), "`Cmd` must be a list"),
        (config_bytes(config={"Volumes": ["/x"]}), "`Volumes` must be an object"),
        (config_bytes(config={"Labels": {"a": 1}}), "Labels must map text to text"),
    ],
)
def test_a_malformed_config_is_explained(config: bytes, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        image_of(config)


def test_a_config_of_another_image_is_refused() -> None:
    manifest = decode_manifest(manifest_bytes(config_bytes()))
    assert isinstance(manifest, Manifest)
    with pytest.raises(ImageError, match="the config has digest"):
        decode_image(manifest, config_bytes(created=CREATED))


def test_null_and_empty_say_the_same_as_absent() -> None:
    fields = "User Env Entrypoint Cmd WorkingDir Labels Volumes OnBuild".split()
    nulls = image_of(config_bytes(config=dict.fromkeys(fields)))
    empty = image_of(
        config_bytes(config={"Env": [], "Entrypoint": [], "Cmd": [], "Labels": {}, "Volumes": {}})
    )
    assert nulls.config.runtime == empty.config.runtime == RuntimeConfig()
    assert image_of(config_bytes(config=None, history=None)).config.runtime == RuntimeConfig()


def test_unknown_fields_of_a_base_survive() -> None:
    runtime = {"Healthcheck": {"Test": ["NONE"]}, "StopSignal": "SIGQUIT", "Shell": ["/bin/x"]}
    base = image_of(config_bytes(config=runtime, moby={"x": [1]}, **{"os.version": "1"}))
    layer = Layer(Descriptor(OCI_LAYER_GZIP, Digest.of(b"new"), 3), Digest.of(b"tar"))
    image = append_layer(base, layer, HISTORY, replace(base.config.runtime, user="1001"))
    document = json.loads(encode_image(image).config)
    assert document["config"] == runtime | {"User": "1001"}
    assert (document["moby"], document["os.version"]) == ({"x": [1]}, "1")


# --- writing ----------------------------------------------------------------------------------

HISTORY = History.of(
    created=datetime(2020, 1, 2, 3, 4, 5, 999, tzinfo=UTC), created_by="assemble", comment="ocis2i"
)


def test_an_appended_layer_goes_on_top_with_its_history() -> None:
    base = image_of(
        config_bytes(
            created=CREATED,
            author="somebody",
            history=[{"created_by": "FROM"}, {"created_by": "ENV", "empty_layer": True}],
            container="abc",
            docker_version="20",
            config={"User": "1"},
        )
    )
    layer = Layer(Descriptor(OCI_LAYER_GZIP, Digest.of(b"new"), 3), Digest.of(b"tar"))
    image = append_layer(base, layer, HISTORY, RuntimeConfig(cmd=("/run",)))
    assert image.layers == (*base.layers, layer)
    assert image.config.runtime == RuntimeConfig(cmd=("/run",))
    assert (image.config.created, image.config.author) == ("2020-01-02T03:04:05Z", None)
    assert [line.fields["created_by"] for line in image.config.history] == [
        "FROM",
        "ENV",
        "assemble",
    ]
    assert image.config.extra == {}
    encoded = encode_image(image)
    judges.schema_check("manifest", encoded.manifest)
    judges.schema_check("config", encoded.config)


def test_a_base_without_history_gets_one_line_for_each_layer() -> None:
    base = image_of(config_bytes(rootfs={"diff_ids": [str(DIGEST)] * 2}), layers=2)
    image = append_layer(base, base.layers[0], HISTORY, RuntimeConfig())
    assert len([line for line in image.config.history if not line.empty_layer]) == 3
    judges.schema_check("config", encode_image(image).config)


def test_the_same_image_is_encoded_to_the_same_bytes_whatever_the_order() -> None:
    one = image_of(config_bytes(config={"Labels": {"a": "1", "b": "2"}}, x=1, y=2))
    other = image_of(config_bytes(y=2, x=1, config={"Labels": {"b": "2", "a": "1"}}))
    assert encode_image(one) == encode_image(other)
    assert b", " not in encode_image(one).config


@pytest.mark.parametrize(
    ("media_type", "expected"),
    [
        (DOCKER_LAYER, OCI_LAYER),
        (DOCKER_LAYER_GZIP, OCI_LAYER_GZIP),
        ("application/vnd.docker.image.rootfs.diff.tar.zstd", OCI_LAYER_ZSTD),
        (OCI_LAYER_ZSTD, OCI_LAYER_ZSTD),
    ],
)
def test_layers_are_written_with_their_oci_type(media_type: str, expected: str) -> None:
    assert layer_type_as_oci(media_type) == expected
    layer = Layer(Descriptor(media_type, DIGEST, 4), DIGEST)
    image = Image(ImageConfig(Platform("amd64"), RuntimeConfig()), (layer,))
    document = json.loads(encode_image(image).manifest)
    assert document["layers"][0]["mediaType"] == expected


@pytest.mark.parametrize(
    ("media_type", "message"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", "may not be distributed"),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", "may not be distributed"),
        ("application/octet-stream", "cannot be read"),
        ("", "cannot be read"),
    ],
)
def test_what_is_no_layer_is_refused(media_type: str, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        layer_type_as_oci(media_type)


def test_times_are_utc_in_whole_seconds() -> None:
    east = timezone(timedelta(hours=2))
    assert format_time(datetime(2020, 1, 1, 1, 0, 0, 5, tzinfo=east)) == "2019-12-31T23:00:00Z"


def test_the_last_value_of_a_variable_counts() -> None:
    runtime = RuntimeConfig(env=("A=1", "B", "A=2=3"))
    assert runtime.environment == {"A": "2=3", "B": ""}


# --- choosing ---------------------------------------------------------------------------------


def index_of(*platforms: str | None) -> Index:
    entries = tuple(
        Descriptor(
            OCI_MANIFEST,
            Digest.of(str((number, text)).encode()),
            1,
            platform=Platform.parse(text) if text else None,
        )
        for number, text in enumerate(platforms)
    )
    return Index(b"", Descriptor(OCI_INDEX, DIGEST, 0), entries)


@pytest.mark.parametrize(
    ("offered", "wanted", "chosen"),
    [
        (["linux/arm64", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64", "linux/amd64"], "linux/amd64", 0),
        (["linux/arm64/v8"], "linux/arm64", 0),
        (["linux/arm64"], "linux/arm64/v8", 0),
        (["linux/arm/v5", "linux/arm/v6"], "linux/arm/v7", 1),
        (["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", 1),
        (["linux/arm"], "linux/arm/v7", 0),
        (["windows/amd64", "linux/amd64"], "linux/amd64", 1),
        (["unknown/unknown", "linux/amd64"], "linux/amd64", 1),
        (["linux/amd64/v3", "linux/amd64"], "linux/amd64", 1),
        ([None], "linux/amd64", 0),
    ],
)
def test_the_best_manifest_for_a_platform_is_chosen(
    offered: list[str | None], wanted: str, chosen: int
) -> None:
    index = index_of(*offered)
    assert choose_platform(index, Platform.parse(wanted)) == index.manifests[chosen]


@pytest.mark.parametrize(
    ("offered", "wanted"),
    [
        (["linux/arm64", "unknown/unknown"], "linux/amd64"),
        (["linux/arm/v7"], "linux/arm/v6"),
        (["linux/amd64/v3"], "linux/amd64"),
        ([None, None], "linux/amd64"),
        ([], "linux/amd64"),
    ],
)
def test_a_platform_that_is_not_there_lists_the_others(
    offered: list[str | None], wanted: str
) -> None:
    with pytest.raises(ImageError, match=f"not there for `{wanted}`") as caught:
        choose_platform(index_of(*offered), Platform.parse(wanted))
    assert "--platform" in str(caught.value.hint)
    assert all(text in str(caught.value.hint) for text in offered if text)


@pytest.mark.skipif(
    not judges.OFFICIAL_SCHEMAS.is_dir(),
    reason="not installed: golang-github-opencontainers-image-spec-dev",
)
def test_the_specifications_own_schemas_accept_us_and_refuse_others() -> None:
    base = image_of(config_bytes(history=[{"created_by": "FROM"}]))
    layer = Layer(Descriptor(OCI_LAYER_GZIP, Digest.of(b"new"), 3), Digest.of(b"tar"))
    encoded = encode_image(append_layer(base, layer, HISTORY, RuntimeConfig(cmd=("/run",))))
    manifest, config = json.loads(encoded.manifest), json.loads(encoded.config)
    judges.official_schema_check("manifest", manifest)
    judges.official_schema_check("config", config)
    manifest["layers"][0]["digest"] = "sha256 without a colon"
    config["config"]["Env"] = "A=b"
    with pytest.raises(judges.RejectedError):
        judges.official_schema_check("manifest", manifest)
    with pytest.raises(judges.RejectedError):
        judges.official_schema_check("config", config)
