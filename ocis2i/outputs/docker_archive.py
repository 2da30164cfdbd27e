"""Writes an image as `docker save` does, for `docker load` and `podman load`."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from ocis2i import tar
from ocis2i.blobs import BlobSource
from ocis2i.decompression import DiffIdReader, open_decompressed
from ocis2i.manifest import Encoded, Image, Layer, encode_json
from ocis2i.outputs.archive import add_file, file_header
from ocis2i.outputs.files import copy, whole_archive

# What the octal size field of a tar header can say: 8 GiB less one byte.
_OCTAL_LIMIT = 0o77777777777


def write_docker_archive(
    path: Path, tag: str | None, image: Image, encoded: Encoded, blobs: BlobSource
) -> None:
    """Writes the archive, replacing a file that is there; raises `OutputError`.

    Layers are stored uncompressed under their diff_ids, as Docker wants them; each diff_id is
    checked on the way. The id of the image in Docker is the digest of its config.
    """
    config_name = f"{encoded.config_descriptor.digest.hex}.json"
    entry = {
        "Config": config_name,
        "RepoTags": [tag] if tag else None,
        "Layers": [_member_name(layer) for layer in image.layers],
    }
    with whole_archive(path) as out:
        for layer in {layer.diff_id: layer for layer in image.layers}.values():
            _add_layer(out, layer, blobs)
        add_file(out, config_name, encoded.config)
        add_file(out, "manifest.json", encode_json([entry]))
        out.write(tar.END)


def _member_name(layer: Layer) -> str:
    return f"{layer.diff_id.hex}.tar"


def _add_layer(out: BinaryIO, layer: Layer, blobs: BlobSource) -> None:
    # How long the tar is shows at its end: the header is written then, in the room left for it.
    start = out.tell()
    out.write(bytes(tar.BLOCK))
    what = f"blob `{layer.descriptor.digest}`"
    with blobs.open_blob(layer.descriptor) as blob:
        plain = open_decompressed(blob, layer.descriptor.media_type, what=what)
        reader = DiffIdReader(plain, algorithm=layer.diff_id.algorithm, what=what)
        size = copy(reader, out)
        reader.finish(layer.diff_id)
    out.write(tar.padding(size))
    end = out.tell()
    out.seek(start)
    out.write(one_block_header(_member_name(layer), size))
    out.seek(end)


def one_block_header(name: str, size: int) -> bytes:
    """A file header of exactly one block, whatever the size.

    Beyond 8 GiB the size is written in base 256 (GNU; Go and Python read it as well), because a PAX
    record would need room of its own before the header.
    """
    block = bytearray(file_header(name, min(size, _OCTAL_LIMIT)))
    if size > _OCTAL_LIMIT:
        block[124:136] = b"\x80" + size.to_bytes(11, "big")
        block[148:156] = b" " * 8
        block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)
