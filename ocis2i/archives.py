"""Images in directories and files: `oci:`, `oci-archive:` and `docker-archive:`, for reading.

Everything in them is hostile. Nothing is ever written by a name of an archive: a plain archive is
scanned once for the places of its members and read at these places; an archive that is compressed
as a whole is first inflated, up to `INFLATED_LIMIT` bytes, into a temporary file without a name
(beside the archive, where there is room for things of its size; else in the directory for
temporary files). Blobs are opened without following links and verified while they are read.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import stat
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from ocis2i import tar
from ocis2i.blobs import CHUNK, ImageSource, VerifiedReader, read_document
from ocis2i.compression import Compression, detect
from ocis2i.errors import ImageError, PolicyError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import (
    DOCUMENT_LIMIT,
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_CONFIG,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Index,
    Manifest,
    decode_image,
    decode_manifest,
    encode_descriptor,
    encode_json,
    parse_json,
)
from ocis2i.reference import DEFAULT_TAG, Digest, PathLocation, Reference

MEMBER_LIMIT = 100_000
INFLATED_LIMIT = 64 << 30
_NAMES_SHOWN = 20


@contextmanager
def open_image(location: PathLocation) -> Iterator[ImageSource]:
    """The image at `location`, open until the end of the `with`.

    Raises `ImageError` when there is no such place, it cannot be read, is not what the transport
    says, or does not hold exactly one image of that name; `UsageError` for a malformed name.
    """
    where = f"`{location.transport}:{location.path}`"
    path = Path(location.path)
    with ExitStack() as cleanup:
        if location.transport == "oci":
            yield _layout_image(cleanup.enter_context(_open_directory(path, where)), location.name)
            return
        archive = cleanup.enter_context(_open_archive(path, where))
        if location.transport == "oci-archive":
            yield _layout_image(archive, location.name)
        else:
            yield _docker_image(archive, location.name)


# --- files ------------------------------------------------------------------------------------


class _Span:
    """A part of an open file as a stream; several can be read at once, in threads too."""

    def __init__(self, descriptor: int, start: int, size: int, *, name: str, owned: bool) -> None:
        self.size = size
        self._descriptor = descriptor
        self._at = start
        self._end = start + size
        self._name = name
        self._owned = owned

    def read(self, size: int = -1, /) -> bytes:
        left = self._end - self._at
        try:
            data = os.pread(self._descriptor, left if size < 0 else min(size, left), self._at)
        except OSError as error:
            raise ImageError(f"cannot read {self._name}: {error.strerror}") from error
        self._at += len(data)
        return data

    def close(self) -> None:
        if self._owned:
            os.close(self._descriptor)
            self._owned = False


class _Place(Protocol):
    """Files by their names in a layout; `where` is for messages."""

    @property
    def where(self) -> str: ...

    def open(self, name: str) -> _Span:
        """Raises `ImageError` when there is no such regular file."""


@dataclass(frozen=True, slots=True)
class _Directory:
    descriptor: int
    where: str

    def open(self, name: str) -> _Span:
        *parents, last = name.split("/")
        with ExitStack() as cleanup:
            parent = self.descriptor
            try:
                for part in parents:
                    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
                    parent = os.open(part, flags, dir_fd=parent)
                    cleanup.callback(os.close, parent)
                # A fifo would wait for a writer, a device could act when it is opened for good.
                flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
                opened = os.open(last, flags, dir_fd=parent)
            except FileNotFoundError:
                raise _missing(name, self.where) from None
            except OSError as error:
                raise _unreadable(f"`{name}` in {self.where}", error) from error
        status = os.fstat(opened)
        if not stat.S_ISREG(status.st_mode):
            os.close(opened)
            raise ImageError(f"`{name}` in {self.where} is not a regular file")
        return _Span(opened, 0, status.st_size, name=f"`{name}` in {self.where}", owned=True)


@dataclass(frozen=True, slots=True)
class _Archive:
    """A tar and the places of its members: start and size in bytes, or the target of a link."""

    descriptor: int
    where: str
    files: Mapping[str, tuple[int, int]]
    links: Mapping[str, str]

    def open(self, name: str) -> _Span:
        if name in self.links:
            raise ImageError(f"`{name}` in {self.where} is a link, it must be a file")
        if name not in self.files:
            raise _missing(name, self.where)
        start, size = self.files[name]
        shown = f"`{name}` in {self.where}"
        return _Span(self.descriptor, start, size, name=shown, owned=False)

    def resolve(self, name: str) -> str:
        """The member that a name stands for after links, which stay inside the archive."""
        for _ in range(8):
            if name not in self.links:
                return name
            name = self.links[name]
        raise ImageError(f"`{name}` in {self.where} is a link to a link to a link")


def _missing(name: str, where: str) -> ImageError:
    return ImageError(f"there is no `{name}` in {where}", hint="is the image complete?")


def _unreadable(what: str, error: OSError) -> ImageError:
    hints = {
        "PermissionError": "give the user who builds the permission to read it",
        "NotADirectoryError": "a file is named oci-archive:FILE or docker-archive:FILE",
        "FileNotFoundError": "a relative path starts in the current directory",
    }
    return ImageError(f"cannot read {what}: {error.strerror}", hint=hints.get(type(error).__name__))


@contextmanager
def _open_directory(path: Path, where: str) -> Iterator[_Directory]:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(where, error) from error
    try:
        yield _Directory(descriptor, where)
    finally:
        os.close(descriptor)


@contextmanager
def _open_archive(path: Path, where: str) -> Iterator[_Archive]:
    with ExitStack() as cleanup:
        file = cleanup.enter_context(_open_file(path, where))
        compression = detect(os.pread(file.fileno(), 4, 0))
        if compression is not Compression.NONE:
            file = _inflate(file, path, compression, where)
            cleanup.callback(file.close)
        yield _scan(file, where)


def _open_file(path: Path, where: str) -> BinaryIO:
    try:
        # A fifo would wait for a writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise _unreadable(where, error) from error
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(kind):
        raise ImageError(f"{where} is a directory", hint=f"write oci:{path} for a layout")
    raise ImageError(f"{where} is not a regular file", hint="write the archive to a file")


def _inflate(file: BinaryIO, path: Path, compression: Compression, where: str) -> BinaryIO:
    from ocis2i.decompression import open_decompressed  # noqa: PLC0415 - few archives need it

    try:
        inflated = _temporary_file(path.parent)
    except OSError as error:
        raise ImageError(
            f"no temporary file to unpack {where} into: {error.strerror}",
            hint="name a directory for it that can be written: TMPDIR",
        ) from error
    try:
        reader = open_decompressed(file, compression.media_type, limit=INFLATED_LIMIT, what=where)
        while data := reader.read(CHUNK):
            inflated.write(data)
        inflated.flush()
    except OSError as error:
        inflated.close()
        raise ImageError(
            f"cannot unpack {where}: {error.strerror}",
            hint="unpack the archive yourself, where there is room for it",
        ) from error
    except (ImageError, PolicyError):
        inflated.close()
        raise
    return inflated


def _temporary_file(directory: Path) -> BinaryIO:
    try:
        return tempfile.TemporaryFile(dir=directory)
    except OSError:
        return tempfile.TemporaryFile()


def _scan(file: BinaryIO, where: str) -> _Archive:
    """Where the members of a tar are; no content is read.

    Raises `ImageError` for a malformed archive, an unsafe name, a member that is neither a file
    nor a directory nor a link, one that reaches over the end, and too many members.
    """
    end = os.fstat(file.fileno()).st_size
    files: dict[str, tuple[int, int]] = {}
    links: dict[str, str] = {}
    at = 0
    for _ in range(MEMBER_LIMIT):
        file.seek(at)
        try:
            # A new reader for each member, so that its content is passed over by seeking.
            header = tar.Reader(file).next()
        except tar.TarError as error:
            raise ImageError(f"{where} is not a good tar archive: {error}") from error
        if header is None:
            return _Archive(file.fileno(), where, files, links)
        start = file.tell()
        at = start + header.size + len(tar.padding(header.size))
        if start + header.size > end:
            raise ImageError(f"`{_text(header.name)}` in {where} is larger than the archive")
        _note(header, start, files, links, where)
    raise ImageError(f"{where} has more than {MEMBER_LIMIT} members")


def _note(
    header: tar.Header,
    start: int,
    files: dict[str, tuple[int, int]],
    links: dict[str, str],
    where: str,
) -> None:
    name = _safe_name(_text(header.name), where)
    if header.kind == tar.REGULAR:
        links.pop(name, None)
        files[name] = (start, header.size)
    elif header.kind == tar.SYMLINK:
        # The classic `docker save` links the layer of a parent: ID/layer.tar -> ../ID/layer.tar
        target = posixpath.normpath(posixpath.join(posixpath.dirname(name), _text(header.target)))
        links[name] = _safe_name(target, where)
    elif header.kind == tar.HARD_LINK:
        links[name] = _safe_name(_text(header.target), where)
    elif header.kind != tar.DIRECTORY:
        raise ImageError(f"`{name}` in {where} is a device, an image has only files")


def _safe_name(name: str, where: str) -> str:
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if name.startswith("/") or ".." in parts:
        raise ImageError(f"{where} has a member or link that leads out of it: `{name}`")
    return "/".join(parts)


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")


def _read_small(place: _Place, name: str) -> bytes:
    span = place.open(name)
    try:
        if span.size > DOCUMENT_LIMIT:
            raise ImageError(f"`{name}` in {place.where} has {span.size} bytes, that is too much")
        parts = []
        while part := span.read(CHUNK):
            parts.append(part)
        return b"".join(parts)
    finally:
        span.close()


# --- OCI layouts ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _LayoutImage:
    """One entry of the index of a layout (image-spec, image-layout.md)."""

    place: _Place
    entry: Descriptor

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        digest = descriptor.digest
        span = self.place.open(f"blobs/{digest.algorithm}/{digest.hex}")
        if span.size != descriptor.size:
            span.close()
            raise ImageError(
                f"blob `{digest}` in {self.place.where} has {span.size} bytes, "
                f"it should have {descriptor.size}"
            )
        return VerifiedReader(span, descriptor, self.place.where)

    def manifest(self) -> Manifest | Index:
        return self.child(self.entry)

    def child(self, descriptor: Descriptor) -> Manifest | Index:
        return decode_manifest(read_document(self, descriptor), descriptor.media_type)


def _layout_image(place: _Place, name: str | None) -> _LayoutImage:
    return _LayoutImage(place, choose_entry(read_layout_index(place), name, place.where))


def read_layout_index(place: _Place) -> Index:
    """The index.json of a layout; raises `ImageError` when the place is none."""
    try:
        marker = parse_json(_read_small(place, "oci-layout"), f"`oci-layout` in {place.where}")
    except ImageError as error:
        raise ImageError(
            f"{place.where} is not an OCI image layout: {error.message}", hint=error.hint
        ) from error
    version = marker.get("imageLayoutVersion")
    if version != "1.0.0":
        raise ImageError(f"{place.where} is an OCI layout of version `{version}`, not `1.0.0`")
    raw = _read_small(place, "index.json")
    # The media type of this one document is implied, and old writers put others in it.
    document = parse_json(raw, f"`index.json` in {place.where}") | {"mediaType": INDEX_TYPES[0]}
    index = decode_manifest(encode_json(document), INDEX_TYPES[0])
    if not isinstance(index, Index):
        raise ImageError(f"`index.json` in {place.where} is not an index")
    return index


def choose_entry(index: Index, name: str | None, where: str) -> Descriptor:
    """The entry of a layout's index that `name` means.

    A name is the text of `org.opencontainers.image.ref.name`, or that text without `:latest`, or
    `@DIGEST`, or both together as NAME@DIGEST. Raises `ImageError` that lists what is there.
    """
    entries = [one for one in index.manifests if one.media_type in (*INDEX_TYPES, *MANIFEST_TYPES)]
    wanted, at, digest_text = (name or "").partition("@")
    digest = Digest.parse(digest_text) if at else None
    found = _named(entries, wanted) if wanted else entries
    found = [one for one in found if digest in (None, one.digest)]
    if len({one.digest for one in found}) == 1:
        return found[0]
    shown = [one.annotations.get(REF_NAME) or f"@{one.digest}" for one in entries]
    listed = ", ".join(sorted(set(shown))[:_NAMES_SHOWN])
    if not entries:
        raise ImageError(f"{where} holds no image")
    if not found:
        raise ImageError(f"there is no image `{name}` in {where}", hint=f"it holds {listed}")
    digests = ", ".join(sorted({f"@{one.digest}" for one in found})[:_NAMES_SHOWN])
    raise ImageError(
        f"{where} holds {len(found)} images" + (f" named `{name}`" if name else ""),
        hint=f"name one of them: {digests if name else listed}",
    )


def _named(entries: Sequence[Descriptor], name: str) -> list[Descriptor]:
    exact = [one for one in entries if one.annotations.get(REF_NAME) == name]
    latest = f"{name}:{DEFAULT_TAG}"
    return exact or [one for one in entries if one.annotations.get(REF_NAME) == latest]


# --- docker save ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _DockerImage:
    """An image of a `docker save` archive, with a manifest that is made here."""

    archive: _Archive
    document: Manifest
    members: Mapping[Digest, str]

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        if descriptor.digest not in self.members:
            raise _missing(str(descriptor.digest), self.archive.where)
        span = self.archive.open(self.members[descriptor.digest])
        return VerifiedReader(span, descriptor, self.archive.where)

    def manifest(self) -> Manifest | Index:
        return self.document

    def child(self, descriptor: Descriptor) -> Manifest | Index:
        raise ImageError(f"there is no index with `{descriptor.digest}` in {self.archive.where}")


def _docker_image(archive: _Archive, name: str | None) -> _DockerImage:
    entry = _choose_docker_entry(_docker_entries(archive), name, archive.where)
    config_name = archive.resolve(_safe_name(entry.config, archive.where))
    raw_config = _read_small(archive, config_name)
    config = Descriptor(OCI_CONFIG, Digest.of(raw_config), len(raw_config))
    members = {config.digest: config_name}
    known: dict[str, Descriptor] = {}
    layers = []
    for layer in entry.layers:
        member = archive.resolve(_safe_name(layer, archive.where))
        if member not in known:
            known[member] = _describe_layer(archive, member)
        layers.append(known[member])
        members[known[member].digest] = member
    document = _synthesise_manifest(config, layers)
    _check_diff_ids(document, raw_config, archive.where)
    return _DockerImage(archive, document, members)


@dataclass(frozen=True, slots=True)
class _DockerEntry:
    config: str
    layers: tuple[str, ...]
    tags: tuple[str, ...]


def _docker_entries(archive: _Archive) -> list[_DockerEntry]:
    if "manifest.json" not in archive.files:
        hint = "is it an oci-archive:?" if "index.json" in archive.files else None
        raise ImageError(
            f"{archive.where} is not an archive of `docker save`: it has no `manifest.json`",
            hint=hint or "write it with a current `docker save`, `podman save` or `skopeo copy`",
        )
    raw = _read_small(archive, "manifest.json")
    try:
        entries = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"`manifest.json` in {archive.where} is not JSON: {error}") from error
    if not isinstance(entries, list) or not entries:
        raise ImageError(f"`manifest.json` in {archive.where} lists no image")
    return [_docker_entry(entry, archive.where) for entry in entries]


def _docker_entry(entry: Any, where: str) -> _DockerEntry:
    fields = entry if isinstance(entry, dict) else {}
    config, layers, tags = fields.get("Config"), fields.get("Layers"), fields.get("RepoTags") or []
    texts = [config, *(layers if isinstance(layers, list) else [None])]
    texts += tags if isinstance(tags, list) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ImageError(f"`manifest.json` in {where} needs `Config`, `Layers` and `RepoTags`")
    return _DockerEntry(str(config), tuple(layers or ()), tuple(tags))


def _choose_docker_entry(
    entries: Sequence[_DockerEntry], name: str | None, where: str
) -> _DockerEntry:
    """By reference, or by `@INDEX` (containers-transports(5)), or the only one."""
    if name is None:
        found = list(entries)
    elif name.startswith("@") and name[1:].isdecimal():
        found = [entry for number, entry in enumerate(entries) if str(number) == name[1:]]
    else:
        wanted = Reference.parse(name).with_default_tag()
        found = [entry for entry in entries if wanted in _references(entry)]
    if len(found) == 1:
        return found[0]
    offered = [", ".join(one.tags) or f"@{number}" for number, one in enumerate(entries)]
    listed = ", ".join(offered[:_NAMES_SHOWN])
    if not found:
        raise ImageError(f"there is no image `{name}` in {where}", hint=f"it holds {listed}")
    raise ImageError(f"{where} holds {len(found)} images", hint=f"name one of them: {listed}")


def _references(entry: _DockerEntry) -> Iterator[Reference]:
    for tag in entry.tags:
        try:
            yield Reference.parse(tag).with_default_tag()
        except UsageError:
            continue  # somebody else's odd name cannot be the one that was asked for


def _describe_layer(archive: _Archive, member: str) -> Descriptor:
    span = archive.open(member)
    head = span.read(4)
    kind = detect(head)
    digest = hashlib.sha256(head)
    while data := span.read(CHUNK):
        digest.update(data)
    return Descriptor(kind.media_type, Digest(digest.hexdigest()), span.size)


def _synthesise_manifest(config: Descriptor, layers: Sequence[Descriptor]) -> Manifest:
    document = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": encode_descriptor(config),
        "layers": [encode_descriptor(layer) for layer in layers],
    }
    raw = encode_json(document)
    return Manifest(raw, Descriptor(OCI_MANIFEST, Digest.of(raw), len(raw)), config, tuple(layers))


def _check_diff_ids(document: Manifest, raw_config: bytes, where: str) -> None:
    for layer in decode_image(document, raw_config).layers:
        plain = layer.descriptor.media_type == Compression.NONE.media_type
        if plain and layer.descriptor.digest != layer.diff_id:
            raise ImageError(
                f"a layer in {where} is `{layer.descriptor.digest}`, "
                f"but the config says `{layer.diff_id}`"
            )
