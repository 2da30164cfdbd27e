"""The local store: blobs and images in an OCI image layout, and the places of unpacked layers.

    images/   a valid OCI image layout (image-spec, image-layout.md) that skopeo reads as it is
    layers/   unpacked layers by diff_id; `fs` is the tree, `layer.json` says that it is complete
    squashed/ the same, unpacked with a single user id: `layer.json` has the owners
    builds/   one directory for each build, locked while it runs
    records/  what is known of builds, running and past: see `ocis2i.records`
    seen/     which repositories have had a blob
    locks/    lock files
    tmp/      what is being written, and the beginnings of broken downloads (`*.part`); under the
              exclusive lock everything in it is left over
    emptied.json  where many files were deleted a short time ago

Success of a write means that the content is there, not that this call put it there. Everyone who
uses the store holds its lock shared, `prune` alone holds it exclusively.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ocis2i.blobs import CHUNK, BlobSource, VerifiedReader, read_document
from ocis2i.errors import ImageError, Ocis2iError, OutputError
from ocis2i.fs import Lock, explain, is_full, locked, sync_directory, write_atomic
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import (
    INDEX_TYPES,
    MANIFEST_TYPES,
    OCI_MANIFEST,
    REF_NAME,
    Descriptor,
    Encoded,
    Index,
    Json,
    Manifest,
    decode_descriptor,
    decode_manifest,
    encode_descriptor,
    encode_json,
    parse_json,
)
from ocis2i.placement import Emptied, new_directory
from ocis2i.reference import Digest, Reference
from ocis2i.whereabouts import Whereabouts

# Of an entry of the store's index: the repository that has layers which the store lacks.
ORIGIN = "io.ocis2i.layers-from"
# And the source that it was built from here, and the builder.
BUILT_FROM = "io.ocis2i.built-from"
BUILT_WITH = "io.ocis2i.built-with"
# In a build's directory: held as long as it runs.
BUILD_LOCK = "lock"
_VERSION = 1
_LAYOUT = {"imageLayoutVersion": "1.0.0"}


@dataclass(frozen=True, slots=True)
class StoredImage:
    """An entry of the store: `name` is the full reference, empty for an untagged image."""

    name: str
    descriptor: Descriptor


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """An unpacked layer. `implied` are the directories in it that no entry described.

    `entries` and `size_bytes` measure the tree, `boot_id` names the run of the kernel that saw
    them right: unpacking does not wait for the disk, so after a crash they are compared. `ids` is
    the map of the agent that unpacked it: to one with another map its owners are others. Of a
    squashed layer the disk knows no owners, `owners` has those of all paths that are not root's.
    `whiteouts` and `opaque` are what the layer hides where the disk could not hold overlayfs' mark.
    """

    tree: Path
    implied: tuple[str, ...]
    entries: int
    size_bytes: int
    boot_id: str
    ids: str = ""
    owners: Mapping[str, Sequence[int]] = field(default_factory=dict)
    whiteouts: tuple[str, ...] = ()
    opaque: tuple[str, ...] = ()


class Store:
    """One store directory, opened by `Store.open`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._layout = root / "images"
        self._tmp = root / "tmp"
        self._emptied = Emptied(root / "emptied.json", self._tmp)
        self.whereabouts = Whereabouts(root / "seen")

    @classmethod
    def open(cls, root: Path) -> Store:
        """Opens the store in `root`, making it when it is not there; raises `OutputError`."""
        store = cls(root)
        try:
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A root that is there already may be open to others, and so may the umask.
            for name in ("images", "layers", "builds", "seen", "locks", "tmp"):
                (root / name).mkdir(mode=0o700, exist_ok=True)
            for name in ("images/blobs/sha256", "layers/sha256"):
                (root / name).mkdir(parents=True, exist_ok=True)
            with locked(root / "locks/index"):
                store._set_up()
        except OSError as error:
            refused = explain(error, f"the store `{root}` cannot be used")
            if not is_full(error):
                refused.hint = "use another directory with --root or OCIS2I_ROOT"
            raise refused from error
        return store

    def _set_up(self) -> None:
        marker = self.root / "store.json"
        if marker.exists():
            version = _version_of(marker)
            if version != _VERSION:
                raise OutputError(
                    f"the store `{self.root}` has version {version}, this ocis2i knows {_VERSION}",
                    hint="use another directory with --root",
                )
        files: tuple[tuple[Path, Json], ...] = (
            (self._layout / "oci-layout", _LAYOUT),
            (self._layout / "index.json", {"schemaVersion": 2, "manifests": []}),
            (marker, {"version": _VERSION}),
        )
        for path, content in files:
            if not path.exists():
                write_atomic(path, encode_json(content), scratch=self._tmp)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Held by everyone who reads or writes: nothing is pruned meanwhile."""
        with locked(self.root / "locks/store", shared=True):
            yield

    @contextmanager
    def alone(self) -> Iterator[bool]:
        """Held by `prune`; gives false when somebody uses the store."""
        lock = Lock(self.root / "locks/store")
        try:
            yield lock.acquire(wait=False)
        finally:
            lock.release()

    # --- blobs ---

    def blob_path(self, digest: Digest) -> Path:
        """Where a blob is, or would be."""
        return self._layout / "blobs" / digest.algorithm / digest.hex

    def has_blob(self, descriptor: Descriptor) -> bool:
        """Whether the blob is there with its full size."""
        try:
            return self.blob_path(descriptor.digest).stat().st_size == descriptor.size
        except FileNotFoundError:
            return False

    def open_blob(self, descriptor: Descriptor) -> VerifiedReader:
        """Opens a blob for reading; raises `ImageError` when it is not there."""
        path = self.blob_path(descriptor.digest)
        try:
            stream = path.open("rb", buffering=0)
        except FileNotFoundError:
            raise ImageError(
                f"blob `{descriptor.digest}` is not in the store",
                hint="pull the image again, with --pull-policy always",
            ) from None
        return VerifiedReader(stream, descriptor, "the store")

    def drop_if_damaged(self, descriptor: Descriptor) -> bool:
        """Removes a blob that is not what its name says, so that it can be fetched again."""
        try:
            with self.open_blob(descriptor) as reader:
                while reader.read(CHUNK):
                    pass
        except ImageError:
            self.blob_path(descriptor.digest).unlink(missing_ok=True)
            return True
        return False

    @contextmanager
    def scratch_file(self) -> Iterator[BinaryIO]:
        """A new file in `tmp/`, open for reading and writing, gone at the end unless adopted."""
        try:
            fd, name = tempfile.mkstemp(dir=self._tmp)
            os.close(fd)
            with Path(name).open("w+b") as file:
                try:
                    yield file
                finally:
                    Path(name).unlink(missing_ok=True)
        except OSError as error:
            raise explain(error, "the store cannot be written") from error

    def adopt(self, file: BinaryIO, digest: Digest) -> None:
        """Makes a scratch file the blob `digest`. The caller has checked the digest."""
        target = self.blob_path(digest)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        os.fdatasync(file.fileno())
        target.parent.mkdir(exist_ok=True)
        Path(str(file.name)).replace(target)
        sync_directory(target.parent)

    def add_blob(self, descriptor: Descriptor, fill: Callable[[BinaryIO], None]) -> None:
        """Puts a blob that `fill` writes, unless it is there; one writer at a time.

        `fill` has to verify the digest (a `VerifiedReader`, `Registry.fetch_blob`); every later
        reading verifies it again.
        """
        self._add(descriptor, fill, self.scratch_file)

    def fetch_blob(self, descriptor: Descriptor, fill: Callable[[BinaryIO], None]) -> None:
        """Like `add_blob`, and when `fill` breaks, what it wrote is in the file the next time.

        It may be wrong: `fill` has to hash it, too (`Registry.fetch_blob` with `resume`).
        """
        self._add(descriptor, fill, partial(self._part_file, descriptor.digest))

    def _add(
        self,
        descriptor: Descriptor,
        fill: Callable[[BinaryIO], None],
        new_file: Callable[[], contextlib.AbstractContextManager[BinaryIO]],
    ) -> None:
        if self.has_blob(descriptor):
            return
        with locked(self.root / "locks" / f"blob-{descriptor.digest.hex[:32]}"):
            if self.has_blob(descriptor):
                return
            with new_file() as file:
                fill(file)
                _check_size(file, descriptor)
                self.adopt(file, descriptor.digest)

    @contextmanager
    def _part_file(self, digest: Digest) -> Iterator[BinaryIO]:
        """What has come of a blob so far; stays when it is left by an error. Needs its lock."""
        path = self._tmp / f"{digest.algorithm}-{digest.hex}.part"
        try:
            path.touch(mode=0o600)
            with path.open("r+b") as file:
                yield file
        except OSError as error:
            # On a full disk its space is worth more than its bytes.
            if is_full(error):
                path.unlink(missing_ok=True)
            raise explain(error, "the store cannot be written") from error
        except BaseException:
            if not path.stat().st_size:
                path.unlink()
            raise

    def copy_blob(self, source: BlobSource, descriptor: Descriptor) -> None:
        """Copies a blob from another place, verified."""

        def fill(file: BinaryIO) -> None:
            with source.open_blob(descriptor) as reader:
                while data := reader.read(CHUNK):
                    file.write(data)

        self.add_blob(descriptor, fill)

    def add_document(self, data: bytes, descriptor: Descriptor) -> None:
        """Puts a manifest or config; raises `ImageError` unless it has the promised digest."""
        if Digest.of(data) != descriptor.digest:
            raise ImageError(f"a document has not the digest `{descriptor.digest}`")
        self.add_blob(descriptor, lambda file: _write_all(file, data))

    # --- images ---

    def images(self) -> tuple[StoredImage, ...]:
        """All entries, in the order in which they were put."""
        index = parse_json((self._layout / "index.json").read_bytes(), "the store's index.json")
        found = []
        for entry in index.get("manifests", []):
            descriptor = decode_descriptor(entry, "the store's index.json")
            found.append(StoredImage(descriptor.annotations.get(REF_NAME, ""), descriptor))
        return tuple(found)

    def find(self, name: Reference | Digest) -> Manifest | Index | None:
        """The manifest or index that `name` (with tag or digest) or a digest alone stands for.

        By its digest also an image of an index that is here. `None`: not there.
        """
        for image in self.entries(name):
            return self.manifest(image.descriptor)
        return self._in_indexes(name)

    def entries(self, name: Reference | Digest) -> tuple[StoredImage, ...]:
        """The entries that a name stands for, or that have a digest."""
        return tuple(image for image in self.images() if _matches(image, name))

    def _in_indexes(self, name: Reference | Digest) -> Manifest | Index | None:
        wanted = name if isinstance(name, Digest) else name.digest
        if wanted is None:
            return None
        for image in self.images():
            if image.descriptor.media_type not in INDEX_TYPES:
                continue
            if isinstance(name, Digest) or _without_tag(image.name) == name.name:
                index = self.manifest(image.descriptor)
                for child in index.manifests if isinstance(index, Index) else ():
                    if child.digest == wanted and self.has_blob(child):
                        return self.manifest(child)
        return None

    def origin(self, digest: Digest) -> Reference | None:
        """The repository that has the layers of an image which the store may lack."""
        origin = self._noted(digest, ORIGIN)
        return None if origin is None else Reference.parse(origin)

    def built_from(self, digest: Digest) -> str | None:
        """The source of an image that was built into this store; it cannot say that itself."""
        return self._noted(digest, BUILT_FROM)

    def built_with(self, digest: Digest) -> str | None:
        """The builder of an image that was built into this store; see `built_from`."""
        return self._noted(digest, BUILT_WITH)

    def _noted(self, digest: Digest, annotation: str) -> str | None:
        for image in self.images():
            annotations = image.descriptor.annotations
            if annotation in annotations and self._has(image.descriptor, digest):
                return annotations[annotation]
        return None

    def _has(self, entry: Descriptor, digest: Digest) -> bool:
        """Whether `digest` is that of an entry, or of a manifest below it."""
        if entry.digest == digest:
            return True
        if entry.media_type not in INDEX_TYPES or not self.has_blob(entry):
            return False
        index = self.manifest(entry)
        return isinstance(index, Index) and any(
            self._has(child, digest) for child in index.manifests
        )

    def manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Reads a manifest or index by its descriptor."""
        return decode_manifest(read_document(self, descriptor), descriptor.media_type)

    def put_image(
        self,
        encoded: Encoded,
        name: str,
        origin: Reference | None = None,
        *,
        built_from: str = "",
        built_with: str = "",
    ) -> None:
        """Stores manifest and config and lets `name` point at them.

        The layers must be there, or in the repository `origin`, which is remembered then, as are
        the source that the image was `built_from`, and the builder that it was `built_with`.
        """
        self.add_document(encoded.config, encoded.config_descriptor)
        self.put_manifest(
            encoded.manifest,
            encoded.descriptor,
            name,
            origin,
            built_from=built_from,
            built_with=built_with,
        )

    def put_manifest(
        self,
        raw: bytes,
        descriptor: Descriptor,
        name: str,
        origin: Reference | None = None,
        *,
        built_from: str = "",
        built_with: str = "",
    ) -> None:
        """Stores a manifest as it is and lets `name` (when not empty) point at it."""
        self.add_document(raw, descriptor)
        annotations = {REF_NAME: name} if name else {}
        if origin:
            annotations[ORIGIN] = str(origin)
        if built_from:
            annotations[BUILT_FROM] = built_from
        if built_with:
            annotations[BUILT_WITH] = built_with
        plain = Descriptor(descriptor.media_type, descriptor.digest, descriptor.size, annotations)

        def change(images: list[StoredImage]) -> list[StoredImage]:
            kept = [
                image
                for image in images
                if image.name != name and not (_untagged(image) and _same(image, descriptor))
            ]
            if not name and any(_same(image, descriptor) for image in kept):
                return kept
            return [*kept, StoredImage(name, plain)]

        self._change_index(change)

    def remove(self, name: Reference | Digest) -> bool:
        """Takes an entry out, by digest all that have it; their blobs go with the next `prune`.

        False: there was none.
        """
        removed = False

        def change(images: list[StoredImage]) -> list[StoredImage]:
            nonlocal removed
            kept = [image for image in images if not _matches(image, name)]
            removed = len(kept) < len(images)
            return kept

        self._change_index(change)
        return removed

    def forget_images(self) -> None:
        """Takes all entries out."""
        self._change_index(lambda _: [])

    def _change_index(self, change: Callable[[list[StoredImage]], list[StoredImage]]) -> None:
        with locked(self.root / "locks/index"):
            path = self._layout / "index.json"
            index = parse_json(path.read_bytes(), "the store's index.json")
            index["manifests"] = [
                encode_descriptor(image.descriptor) for image in change(list(self.images()))
            ]
            try:
                write_atomic(path, encode_json(index), scratch=self._tmp)
            except OSError as error:
                raise explain(error, "the store's index cannot be written") from error

    def referenced(self) -> set[Digest]:
        """Every blob that an entry reaches, and the diff_ids of every image."""
        return self._reached([image.descriptor for image in self.images()])

    def reached(self, digest: Digest) -> set[Digest]:
        """Every blob that one manifest reaches, itself included, and its image's diff_ids."""
        path = self.blob_path(digest)
        document = parse_json(path.read_bytes(), "a manifest of the store")
        media_type = str(document.get("mediaType", OCI_MANIFEST))
        return self._reached([Descriptor(media_type, digest, path.stat().st_size)])

    def _reached(self, todo: list[Descriptor]) -> set[Digest]:
        found: set[Digest] = set()
        while todo:
            descriptor = todo.pop()
            if descriptor.digest in found:
                continue
            found.add(descriptor.digest)
            if descriptor.media_type in MANIFEST_TYPES + INDEX_TYPES:
                with contextlib.suppress(Ocis2iError):  # a child of an index that was never pulled
                    todo += self._children(descriptor, found)
        return found

    def _children(self, descriptor: Descriptor, found: set[Digest]) -> Sequence[Descriptor]:
        manifest = self.manifest(descriptor)
        if isinstance(manifest, Index):
            return manifest.manifests
        config = parse_json(read_document(self, manifest.config), "an image config")
        rootfs = config.get("rootfs", {})
        found.update(Digest.parse(text) for text in rootfs.get("diff_ids", []))
        return (manifest.config, *manifest.layers)

    # --- artifacts of incremental builds ---

    def artifacts_path(self, name: str, key: str) -> Path:
        """Where the artifacts saved by a build of the image `name` are, or would be."""
        return self.root / "artifacts" / f"{artifacts_prefix(name)}{key}.tar"

    def keep_artifacts(self, name: str, key: str, file: BinaryIO) -> None:
        """Makes a scratch file the artifacts of `name`, instead of those that were there."""
        target = self.artifacts_path(name, key)
        try:
            target.parent.mkdir(exist_ok=True)
            file.flush()
            os.fdatasync(file.fileno())
            Path(str(file.name)).replace(target)
        except OSError as error:
            raise explain(error, "the artifacts cannot be kept") from error

    def stale_artifacts(self) -> list[Path]:
        """Artifacts of images that the store has no more."""
        known = tuple(artifacts_prefix(image.name) for image in self.images() if image.name)
        found = sorted((self.root / "artifacts").glob("*.tar"))
        return [path for path in found if not path.name.startswith(known)]

    # --- unpacked layers ---

    def layer_path(self, diff_id: Digest, *, squashed: bool = False) -> Path:
        """The directory of an unpacked layer; complete only if `layer` says so."""
        kind = "squashed" if squashed else "layers"
        return self.root / kind / diff_id.algorithm / diff_id.hex

    def layer_paths(self) -> list[Path]:
        """The directories of all unpacked layers; each has the digest for its name."""
        return [path for kind in ("layers", "squashed") for path in self._layers_in(kind)]

    def _layers_in(self, kind: str) -> list[Path]:
        return sorted((self.root / kind).glob("*/*"))

    def layer(self, diff_id: Digest, *, squashed: bool = False) -> LayerRecord | None:
        """The unpacked layer, `None` while it is not there, or not whole."""
        path = self.layer_path(diff_id, squashed=squashed)
        try:
            record = json.loads((path / "layer.json").read_bytes())
            return LayerRecord(
                path / "fs",
                tuple(record["implied"]),
                record["entries"],
                record["size"],
                record["boot_id"],
                record["ids"],
                record["owners"],
                tuple(record["whiteouts"]),
                tuple(record["opaque"]),
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None

    def has_unpacked(self, diff_id: Digest) -> bool:
        """Whether the layer is there unpacked, by whichever ids."""
        return any(self.layer(diff_id, squashed=squashed) for squashed in (False, True))

    def layer_lock(self, diff_id: Digest) -> contextlib.AbstractContextManager[Lock]:
        """Held by whoever unpacks this layer."""
        return locked(self.root / "locks" / f"layer-{diff_id.hex[:32]}")

    def new_scratch_directory(self) -> Path:
        """A new directory in `tmp/`, for a layer while it is unpacked."""
        try:
            return new_directory(self._tmp, self._emptied.inodes())
        except OSError as error:
            raise explain(error, "a directory cannot be made in the store") from error

    def note_emptied(self, directory: Path, entries: int) -> None:
        """Remembers that so many files of a build's directory are about to be deleted.

        For as long as that makes new files near it slow (see `placement`). Nothing is lost with it.
        """
        self._emptied.note(directory, entries)

    def publish_layer(
        self, scratch: Path, diff_id: Digest, record: LayerRecord, *, squashed: bool = False
    ) -> None:
        """Makes a scratch directory (with the tree in `fs`) the unpacked layer `diff_id`."""
        self._write_record(scratch, record)
        scratch.chmod(0o755)
        place = self.layer_path(diff_id, squashed=squashed)
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch.replace(place)

    def forget_layer(self, path: Path) -> None:
        """Takes back that a layer is whole, before it is removed: a half of it must not be used."""
        (path / "layer.json").unlink(missing_ok=True)

    def confirm_layer(self, record: LayerRecord) -> None:
        """Writes down that a layer was found whole in this run of the kernel."""
        self._write_record(record.tree.parent, record)

    def _write_record(self, directory: Path, record: LayerRecord) -> None:
        document = {
            "implied": list(record.implied),
            "entries": record.entries,
            "size": record.size_bytes,
            "boot_id": record.boot_id,
            "ids": record.ids,
            "owners": dict(record.owners),
            "whiteouts": list(record.whiteouts),
            "opaque": list(record.opaque),
        }
        # All in ASCII: names in an image may be bytes that are no text, and those no UTF-8 holds.
        data = json.dumps(document, sort_keys=True).encode("ascii")
        # The tree was not waited for either. A torn record is none, and a whole one counts after
        # a crash only when the tree is as it says: a disk that is busy with the tree would let
        # each layer wait.
        write_atomic(directory / "layer.json", data, scratch=directory, durable=False)

    # --- builds ---

    @contextmanager
    def new_build(self) -> Iterator[tuple[Path, Lock]]:
        """A new build's directory and its lock, held to the end. The caller empties it.

        The lock's file goes last: NFS keeps an open file under another name, and its directory.
        """
        path = self.root / "builds" / secrets.token_hex(6)
        scratch = self.new_scratch_directory()
        try:
            lock = Lock(scratch / BUILD_LOCK)
        except OSError as error:
            scratch.rmdir()
            raise explain(error, "a build cannot be started") from error
        try:
            lock.acquire()
            # A build that nobody has locked counts as dead: it is not seen before.
            scratch.replace(path)
            yield path, lock
        finally:
            lock.release()
            with contextlib.suppress(OSError):  # not emptied, or another one has removed it
                if list(path.iterdir()) == [path / lock.path.name]:
                    (path / lock.path.name).unlink()
                path.rmdir()


def artifacts_prefix(name: str) -> str:
    """How the files of an image's artifacts begin."""
    return f"{hashlib.sha256(name.encode()).hexdigest()[:16]}-"


def _version_of(marker: Path) -> object:
    try:
        document = json.loads(marker.read_bytes())
    except ValueError:
        return "unknown"
    return document.get("version") if isinstance(document, dict) else "unknown"


def _check_size(file: BinaryIO, descriptor: Descriptor) -> None:
    size = file.seek(0, os.SEEK_END)
    if size != descriptor.size:
        raise ImageError(
            f"blob `{descriptor.digest}` came as {size} bytes, it must have {descriptor.size}"
        )


def _write_all(file: BinaryIO, data: bytes) -> None:
    file.write(data)


def _matches(image: StoredImage, name: Reference | Digest) -> bool:
    if isinstance(name, Digest):
        return image.descriptor.digest == name
    if name.digest is None:
        return image.name == str(name.with_default_tag())
    if image.name == str(name):
        return True
    same_repository = not image.name or _without_tag(image.name) == name.name
    return same_repository and image.descriptor.digest == name.digest


def _without_tag(name: str) -> str:
    """The repository in an entry's name; other tools may have put names that we would refuse."""
    head = name.partition("@")[0]
    colon = head.rfind(":")
    return head[:colon] if colon > head.rfind("/") else head


def _untagged(image: StoredImage) -> bool:
    return not image.name


def _same(image: StoredImage, descriptor: Descriptor) -> bool:
    return image.descriptor.digest == descriptor.digest
