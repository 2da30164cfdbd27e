"""Writes an image as an OCI archive: a layout in a tar, the same bytes for the same image."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from ocis2i import tar
from ocis2i.blobs import BlobSource
from ocis2i.manifest import Descriptor, Encoded, Image, encode_json
from ocis2i.outputs.files import copy, whole_archive
from ocis2i.outputs.layout import LAYOUT_MARKER, empty_index, updated_index


def write_archive(
    path: Path, ref_name: str | None, image: Image, encoded: Encoded, blobs: BlobSource
) -> None:
    """Writes the archive, replacing a file that is there; raises `OutputError`.

    Members are sorted, their times 0 and their owner root: nothing tells when and by whom.
    """
    known = {encoded.descriptor.digest: encoded.manifest}
    known[encoded.config_descriptor.digest] = encoded.config
    wanted = {one.digest: one for one in (encoded.descriptor, encoded.config_descriptor)}
    wanted |= {layer.descriptor.digest: layer.descriptor for layer in image.layers}
    index = updated_index(empty_index(), encoded.descriptor, ref_name)
    with whole_archive(path) as out:
        add_directory(out, "blobs")
        for algorithm in sorted({digest.algorithm for digest in wanted}):
            add_directory(out, f"blobs/{algorithm}")
        for digest in sorted(wanted, key=str):
            name = f"blobs/{digest.algorithm}/{digest.hex}"
            if digest in known:
                add_file(out, name, known[digest])
            else:
                _add_blob(out, name, blobs, wanted[digest])
        add_file(out, "index.json", encode_json(index))
        add_file(out, "oci-layout", LAYOUT_MARKER)
        out.write(tar.END)


def add_directory(out: BinaryIO, name: str) -> None:
    """Appends a directory member."""
    out.write(tar.encode_header(_header(name + "/", tar.DIRECTORY, 0o755, 0)))


def add_file(out: BinaryIO, name: str, data: bytes) -> None:
    """Appends a file member."""
    out.write(file_header(name, len(data)) + data + tar.padding(len(data)))


def file_header(name: str, size: int) -> bytes:
    """The header of a file of `size` bytes."""
    return tar.encode_header(_header(name, tar.REGULAR, 0o644, size))


def _header(name: str, kind: bytes, mode: int, size: int) -> tar.Header:
    return tar.Header(name.encode(), kind, mode, uid=0, gid=0, size=size, mtime_ns=0)


def _add_blob(out: BinaryIO, name: str, blobs: BlobSource, descriptor: Descriptor) -> None:
    out.write(file_header(name, descriptor.size))
    with blobs.open_blob(descriptor) as reader:
        copy(reader, out)
    out.write(tar.padding(descriptor.size))
