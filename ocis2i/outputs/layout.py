"""Writes an image into an OCI image layout (image-spec, image-layout.md)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from ocis2i.blobs import BlobSource, VerifiedReader
from ocis2i.errors import ImageError, OutputError
from ocis2i.fs import locked_directory
from ocis2i.manifest import (
    OCI_INDEX,
    REF_NAME,
    Descriptor,
    Encoded,
    Image,
    Json,
    encode_descriptor,
    encode_json,
    parse_json,
)
from ocis2i.outputs.files import copy, whole_file, writing_to

LAYOUT_MARKER = b'{"imageLayoutVersion":"1.0.0"}'


def write_layout(
    path: Path, ref_name: str | None, image: Image, encoded: Encoded, blobs: BlobSource
) -> None:
    """Adds an image to the layout at `path`, which is created when it is not there.

    Blobs come first and the index last, under a lock, so that a reader sees the layout before or
    after. Blobs that are there and good are left alone; after a failure, whole blobs stay (a
    repetition finds them), parts of them do not. An entry of the same name is replaced. Raises
    `OutputError`.
    """
    with writing_to(path):
        path.mkdir(parents=True, exist_ok=True)
        with locked_directory(path):  # or the beginnings of another's layout look like other things
            _prepare(path)
        for layer in {layer.descriptor.digest: layer for layer in image.layers}.values():
            _put(path, layer.descriptor, _copier(blobs, layer.descriptor))
        _put(path, encoded.config_descriptor, lambda out: _write(out, encoded.config))
        _put(path, encoded.descriptor, lambda out: _write(out, encoded.manifest))
        with locked_directory(path):
            index = updated_index(_read_index(path), encoded.descriptor, ref_name)
            with whole_file(path / "index.json") as out:
                out.write(encode_json(index))


def updated_index(index: Json, manifest: Descriptor, ref_name: str | None) -> Json:
    """A layout's index with an entry for `manifest`, in place of the one that had its name.

    Without a name it takes the place of the entry without a name, if there is just one; of several
    nobody knows which is meant.
    """
    named = [(_name_of(entry), entry) for entry in index["manifests"]]
    same = [entry for name, entry in named if name == ref_name]
    if ref_name is None and len(same) > 1:
        same = [entry for entry in same if entry.get("digest") == str(manifest.digest)]
    kept = [entry for entry in index["manifests"] if entry not in same]
    annotations = {REF_NAME: ref_name} if ref_name else {}
    added = encode_descriptor(replace(manifest, annotations=annotations))
    return index | {"manifests": [*kept, added]}


def empty_index() -> Json:
    """The index of a layout with nothing in it."""
    return {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": []}


def _name_of(entry: object) -> str | None:
    annotations = entry.get("annotations") if isinstance(entry, dict) else None
    name = annotations.get(REF_NAME) if isinstance(annotations, dict) else None
    return str(name) if name else None


def _prepare(path: Path) -> None:
    marker = path / "oci-layout"
    if not marker.exists():
        if any(not found.name.startswith(".tmp-") for found in path.iterdir()):
            raise OutputError(
                f"`{path}` is a directory with other things in it and no OCI image layout",
                hint="name a new or empty directory",
            )
        with whole_file(marker) as out:
            out.write(LAYOUT_MARKER)
    (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)


def _put(path: Path, descriptor: Descriptor, fill: Callable[[BinaryIO], None]) -> None:
    target = path / "blobs" / descriptor.digest.algorithm / descriptor.digest.hex
    if _is_good(target, descriptor):
        return
    target.parent.mkdir(exist_ok=True)
    # Not beside the blobs: programs take every name there for a digest.
    with whole_file(target, scratch=path) as out:
        fill(out)


def _is_good(target: Path, descriptor: Descriptor) -> bool:
    try:
        if target.stat().st_size != descriptor.size:
            return False
        with VerifiedReader(target.open("rb"), descriptor, f"`{target}`") as reader:
            while reader.read(1 << 20):
                pass
    except (FileNotFoundError, ImageError):
        return False
    return True


def _copier(blobs: BlobSource, descriptor: Descriptor) -> Callable[[BinaryIO], None]:
    def fill(out: BinaryIO) -> None:
        with blobs.open_blob(descriptor) as reader:
            copy(reader, out)

    return fill


def _write(out: BinaryIO, data: bytes) -> None:
    out.write(data)


def _read_index(path: Path) -> Json:
    try:
        raw = (path / "index.json").read_bytes()
    except FileNotFoundError:
        return empty_index()
    try:
        index = parse_json(raw, "it")
    except ImageError as error:
        raise OutputError(
            f"`{path}/index.json` is broken: {error.message}",
            hint="name another directory, or remove that file",
        ) from error
    if not isinstance(index.get("manifests"), list):
        raise OutputError(
            f"`{path}/index.json` is not the index of a layout",
            hint="name another directory, or remove that file",
        )
    return index
