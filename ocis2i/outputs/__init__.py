"""Where a finished image goes besides the local store: a layout directory or an archive file."""

from __future__ import annotations

import re
from pathlib import Path
from typing import assert_never

from ocis2i.blobs import BlobSource
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Encoded, Image
from ocis2i.outputs.archive import write_archive
from ocis2i.outputs.layout import write_layout
from ocis2i.reference import DEFAULT_TAG, Digest, PathLocation, Reference, parse_location

# What may stand in `org.opencontainers.image.ref.name` (image-spec, annotations.md), without `@`,
# which asks for a digest when the image is read.
_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:+/-]*\Z")


@dataclass(frozen=True, slots=True)
class LayoutOutput:
    """`oci:DIRECTORY[:NAME]`: an OCI image layout, new or added to."""

    path: Path
    name: str | None = None

    def __str__(self) -> str:
        return _shown("oci", self.path, self.name)


@dataclass(frozen=True, slots=True)
class ArchiveOutput:
    """`oci-archive:FILE[:NAME]`: an OCI image layout in a tar."""

    path: Path
    name: str | None = None

    def __str__(self) -> str:
        return _shown("oci-archive", self.path, self.name)


@dataclass(frozen=True, slots=True)
class DockerArchiveOutput:
    """`docker-archive:FILE[:NAME]`: what `docker load` and `podman load` read."""

    path: Path
    name: Reference | None = None

    def __str__(self) -> str:
        return _shown("docker-archive", self.path, self.name)


Output = LayoutOutput | ArchiveOutput | DockerArchiveOutput


@dataclass(frozen=True, slots=True)
class Delivered:
    """Where the image went, and the digest of its manifest."""

    where: str
    digest: Digest


def parse_output(text: str) -> Output:
    """Reads the value of `--output`; raises `UsageError`."""
    location = parse_location(text)
    if not isinstance(location, PathLocation):
        raise UsageError(
            f"`{text}` is not a directory or file to write to",
            hint="use --push for a registry; "
            "a file is oci-archive:FILE or docker-archive:FILE, a directory oci:DIR",
        )
    path = Path(location.path)
    if location.transport == "docker-archive":
        name = Reference.parse(location.name) if location.name else None
        if name and name.digest:
            raise UsageError(
                f"`{text}`: an archive is named by a tag, not by a digest",
                hint="leave out the part from `@` on",
            )
        return DockerArchiveOutput(path, name)
    if location.name and not _REF_NAME.match(location.name):
        raise UsageError(
            f"`{text}`: `{location.name}` cannot be the name of an image in a layout",
            hint="use letters, digits and . _ : + / -, beginning with a letter or digit",
        )
    if location.transport == "oci":
        return LayoutOutput(path, location.name)
    return ArchiveOutput(path, location.name)


def deliver(
    output: Output,
    image: Image,
    encoded: Encoded,
    blobs: BlobSource,
    *,
    name: Reference | None = None,
) -> Delivered:
    """Writes the image with all its layers; `name` is used where the output names none itself.

    Either the whole image is there afterwards or nothing refers to it: an archive is not touched,
    a layout may have gained some of the blobs. Raises `OutputError` when the place cannot be
    written, `ImageError` when a layer is missing or broken.
    """
    match output:
        case LayoutOutput(path, own):
            write_layout(path, own or _name_text(name), image, encoded, blobs)
        case ArchiveOutput(path, own):
            write_archive(path, own or _name_text(name), image, encoded, blobs)
        case DockerArchiveOutput(path, own_reference):
            from ocis2i.outputs.docker_archive import (  # noqa: PLC0415 - few are
                write_docker_archive,
            )

            tag = _name_text(own_reference or name)
            write_docker_archive(path, tag, image, encoded, blobs)
        case _:
            assert_never(output)
    return Delivered(str(output), encoded.descriptor.digest)


def _name_text(name: Reference | None) -> str | None:
    return f"{name.name}:{name.tag or DEFAULT_TAG}" if name else None


def _shown(transport: str, path: Path, name: object) -> str:
    return f"{transport}:{path}" + (f":{name}" if name else "")
