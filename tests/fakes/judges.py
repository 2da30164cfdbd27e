"""Independent opinions on what ocis2i wrote: skopeo, umoci, JSON schemas, a layout validator.

None of them uses ocis2i. A judge raises `RejectedError` with what is wrong, or returns what it saw.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import Any, Literal

import jsonschema
import zstandard
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT4

Json = dict[str, Any]
Kind = Literal["manifest", "index", "config", "layout", "artifact"]

SCHEMAS = Path(__file__).parent.parent / "schemas"
# The specification's own, as Debian ships them (golang-github-opencontainers-image-spec-dev).
OFFICIAL_SCHEMAS = Path("/usr/share/gocode/src/github.com/opencontainers/image-spec/schema")
_OFFICIAL_FILES: dict[Kind, str] = {
    "manifest": "image-manifest-schema.json",
    "artifact": "image-manifest-schema.json",
    "index": "image-index-schema.json",
    "config": "config-schema.json",
    "layout": "image-layout-schema.json",
}
_CHUNK = 1 << 20
# Of an entry in the store's index, some of whose layers are only there.
LAYERS_FROM = "io.ocis2i.layers-from"


class RejectedError(AssertionError):
    """What a judge has to say against an image."""


def have(program: str) -> bool:
    """Whether the program of a judge is installed."""
    return shutil.which(program) is not None


def skopeo_inspect(layout: Path | str, name: str | None = None) -> Json:
    """What skopeo reads from a layout directory, or from any place in its own notation."""
    return _json(_run("skopeo", "inspect", "--no-tags", _place(layout, name)))


def skopeo_config(layout: Path | str, name: str | None = None) -> Json:
    """The image config as skopeo reads it."""
    return _json(_run("skopeo", "inspect", "--config", _place(layout, name)))


def skopeo_raw(reference: str) -> bytes:
    """A manifest as skopeo gets it from a registry without TLS."""
    return _run("skopeo", "inspect", "--raw", "--tls-verify=false", f"docker://{reference}")


def skopeo_copy(source: Path | str, target: Path | str, *options: str) -> None:
    """Copies an image with skopeo, which reads and checks every blob on the way."""
    _run("skopeo", "copy", "--quiet", "--insecure-policy", *options, _place(source), _place(target))


def umoci_unpack(layout: Path, name: str, bundle: Path) -> Path:
    """Unpacks an image with umoci (as root: with owners); its root directory."""
    rootless = () if os.geteuid() == 0 else ("--rootless",)
    _run("umoci", "unpack", *rootless, "--image", f"{layout}:{name}", str(bundle))
    return bundle / "rootfs"


def schema_check(kind: Kind, document: bytes | Json) -> None:
    """Holds a document against our own strict schema and, where installed, the official one."""
    value = json.loads(document) if isinstance(document, bytes) else document
    schema = json.loads((SCHEMAS / f"{kind}.json").read_bytes())
    _demand_valid(kind, jsonschema.Draft202012Validator(schema), value)
    if OFFICIAL_SCHEMAS.is_dir():
        official_schema_check(kind, value)


def official_schema_check(kind: Kind, value: Json) -> None:
    """Holds a document against the schema of the OCI image specification."""
    schema = json.loads((OFFICIAL_SCHEMAS / _OFFICIAL_FILES[kind]).read_bytes())
    # attrs hides this argument from mypy.
    registry: Registry[Any] = Registry(retrieve=_official_part)  # type: ignore[call-arg]
    validator = jsonschema.Draft4Validator(schema, registry=registry)
    _demand_valid(f"{kind} (official)", validator, value)


def _official_part(uri: str) -> Resource[Any]:
    # Their identifiers are addresses of a site; the parts lie beside each other as files.
    name = uri.partition("#")[0].rpartition("/")[2]
    return DRAFT4.create_resource(json.loads((OFFICIAL_SCHEMAS / name).read_bytes()))


def _demand_valid(what: str, validator: Any, value: Json) -> None:
    for error in validator.iter_errors(value):
        raise RejectedError(f"{what}: {error.json_path}: {error.message}")


def validate_layout(path: Path, *, strict: bool = True) -> list[Json]:
    """Recomputes everything in a layout; the entries of its index.

    Every blob has its digest, every descriptor its size; layers are as many as diff_ids and as the
    lines of history that are not empty; the diff_ids are those of the unpacked tars; the tars are
    clean (see `check_tar`). `strict` also forbids what nobody refers to and other formats than OCI.
    Layers may be missing that are in the registry which the entry names.
    """
    schema_check("layout", (path / "oci-layout").read_bytes())
    index = json.loads((path / "index.json").read_bytes())
    schema_check("index", index)
    names = [name for entry in index["manifests"] if (name := _ref_name(entry))]
    _demand(len(names) == len(set(names)), f"a name is there twice: {names}")
    seen: set[str] = set()
    for entry in index["manifests"]:
        _validate_entry(path, entry, seen, strict=strict)
    blobs = {f"{one.parent.name}:{one.name}" for one in path.glob("blobs/*/*")}
    for digest in blobs:
        _check_digest(path, digest)
    if strict:
        _demand(blobs <= seen, f"nothing refers to {sorted(blobs - seen)}")
        rest = {one.name for one in path.iterdir()} - {"blobs", "index.json", "oci-layout"}
        _demand(not rest, f"the layout holds {sorted(rest)}")
    return list(index["manifests"])


def check_tar(path: Path, where: str = "the tar") -> list[str]:
    """The names in a layer's tar, when it is clean.

    No name is absolute, leads out or is there twice, every directory stands before what is in it,
    hard links point to what stands before them, and owners have no names.
    """
    seen: dict[str, bytes] = {"": tarfile.DIRTYPE}
    with tarfile.open(path, "r:") as archive:
        for member in archive:
            name = member.name.removeprefix("./").rstrip("/")
            parts = name.split("/")
            _demand(".." not in parts and not name.startswith("/"), f"{where}: bad name `{name}`")
            _demand(name not in seen or name == "", f"{where}: `{name}` is there twice")
            parent = "/".join(parts[:-1])
            _demand(seen.get(parent) == tarfile.DIRTYPE, f"{where}: no directory before `{name}`")
            if member.islnk():
                _demand(member.linkname in seen, f"{where}: `{name}` links to nothing")
            _demand(not member.uname and not member.gname, f"{where}: `{name}` names its owner")
            seen[name] = member.type
    return [name for name in seen if name]


def _ref_name(entry: Json) -> str | None:
    name = entry.get("annotations", {}).get("org.opencontainers.image.ref.name")
    return str(name) if name else None


def _validate_entry(path: Path, entry: Json, seen: set[str], *, strict: bool) -> None:
    document = json.loads(_blob(path, entry, seen))
    if "manifests" in document:
        for child in document["manifests"]:
            _validate_entry(path, child, seen, strict=strict)
        return
    config = json.loads(_blob(path, document["config"], seen))
    if strict:
        schema_check("manifest", document)
        schema_check("config", config)
    diff_ids, layers = config["rootfs"]["diff_ids"], document["layers"]
    _demand(len(diff_ids) == len(layers), f"{len(layers)} layers, {len(diff_ids)} diff_ids")
    if "history" in config:
        lines = [line for line in config["history"] if not line.get("empty_layer")]
        _demand(len(lines) == len(layers), f"{len(layers)} layers, {len(lines)} lines of history")
    elsewhere = LAYERS_FROM in entry.get("annotations", {})
    for descriptor, diff_id in zip(layers, diff_ids, strict=True):
        if elsewhere and not _path(path, descriptor["digest"]).exists():
            continue
        _validate_layer(path, descriptor, diff_id, seen)


def _validate_layer(path: Path, descriptor: Json, diff_id: str, seen: set[str]) -> None:
    digest = descriptor["digest"]
    file = _file(path, digest)
    _demand(file.stat().st_size == descriptor["size"], f"{digest} has another size")
    seen.add(digest)
    with tempfile.TemporaryDirectory() as scratch:
        plain = Path(scratch) / "layer.tar"
        _unpack(file, descriptor["mediaType"], plain)
        found = _sha256(plain)
        _demand(found == diff_id, f"{digest} unpacks to {found}, its diff_id is {diff_id}")
        check_tar(plain, digest)


def _unpack(file: Path, media_type: str, target: Path) -> None:
    with file.open("rb") as packed, target.open("wb") as out:
        if media_type.endswith("gzip"):
            with gzip.open(packed) as stream:
                shutil.copyfileobj(stream, out, _CHUNK)
        elif media_type.endswith("zstd"):
            zstandard.ZstdDecompressor().copy_stream(packed, out)
        else:
            shutil.copyfileobj(packed, out, _CHUNK)


def _blob(path: Path, descriptor: Json, seen: set[str]) -> bytes:
    data = _file(path, descriptor["digest"]).read_bytes()
    _demand(len(data) == descriptor["size"], f"{descriptor['digest']} has another size")
    seen.add(descriptor["digest"])
    return data


def _file(path: Path, digest: str) -> Path:
    file = _path(path, digest)
    _demand(file.is_file() and not file.is_symlink(), f"{digest} is missing")
    return file


def _path(path: Path, digest: str) -> Path:
    return path / "blobs" / Path(*digest.split(":"))


def _check_digest(path: Path, digest: str) -> None:
    found = _sha256(_file(path, digest))
    _demand(found == digest, f"{digest} has the digest {found}")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()


def _demand(fact: object, otherwise: str) -> None:
    if not fact:
        raise RejectedError(otherwise)


def _place(place: Path | str, name: str | None = None) -> str:
    text = f"oci:{place}" if isinstance(place, Path) else place
    return f"{text}:{name}" if name else text


def _run(*argv: str) -> bytes:
    done = subprocess.run(argv, capture_output=True, check=False, timeout=120)
    if done.returncode:
        raise RejectedError(f"{' '.join(argv)}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def _json(data: bytes) -> Json:
    value = json.loads(data)
    _demand(isinstance(value, dict), "not an object")
    return dict(value)
