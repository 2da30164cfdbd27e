"""Not building at all: the finished image of an input that is the same as then.

The input is what an image is made of: the source as it would be copied, the manifests of builder
and runtime image, scripts that come from this host, and every wish of the user that is not only
about where the result goes. All of them are compared; what cannot be told without doubt (volumes,
secrets, incremental builds, scripts from the web, a source from standard input) is built.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from dataclasses import field, replace
from datetime import UTC, datetime
from enum import Enum
from pathlib import Path, PurePath
from typing import Any

from ocis2i import __version__
from ocis2i.blobs import CHUNK, read_document
from ocis2i.errors import ImageError, Interrupted, Ocis2iError
from ocis2i.events import Event
from ocis2i.finished import Finished, Note
from ocis2i.images import Layers, Obtained, PullPolicy, meant, obtain
from ocis2i.inputs import Inputs
from ocis2i.isolation.agent import wanted_ids
from ocis2i.isolation.ground import Ids
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import Descriptor, Encoded, Image, Manifest, decode_image
from ocis2i.proc import find_program
from ocis2i.reference import Digest, Platform
from ocis2i.result import built_of
from ocis2i.rootfs import Changes
from ocis2i.s2i import SCRIPT_NAMES, image_directory
from ocis2i.sources import (
    ArchiveSource,
    ArtifactSource,
    DirSource,
    GitSource,
    SingleSource,
    Source,
)
from ocis2i.sources.content import Content, Known, find_place, read_one, read_tree
from ocis2i.sources.git import find_git, tell_checkout, tell_commit
from ocis2i.spec import BuildSpec, SecretSpec
from ocis2i.store import Store
from ocis2i.tools import Tools

# Of what is compared, or of how: notes of another one do not count.
_FORMAT = 2
# Where the result goes and when, not what it is. All else of a spec counts, also what comes later.
_ELSEWHERE = frozenset(
    "created name more_names push outputs pull_policy previous_pull_policy keep_blobs "
    "save_upload reuse_seconds keep_failed size_budget".split()
)
_SCRIPT_LIMIT = 1 << 20


@dataclass(frozen=True, slots=True)
class Reused:
    """A finished image that is what the build would make, and what is known of that build."""

    image: Image
    encoded: Encoded
    builder: Obtained
    base: Obtained
    changes: Changes
    isolation: str
    since: datetime
    built: tuple[str, str]

    @property
    def since_when(self) -> str:
        """The words for people."""
        moment = self.since.astimezone().isoformat(" ", "seconds")
        return f"since {moment}, --no-cache builds again"


@dataclass(slots=True)
class Question:
    """A build that may not be necessary; `started_ns` is when it began to look at its input.

    `place` is what the path of a source of this host led to then.
    """

    key: str
    spec: BuildSpec
    tools: Tools
    started_ns: int
    scripts: str
    notes: Finished
    place: tuple[int, int] | None = None
    found: list[Content | None] = field(default_factory=list)
    cancel: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    # --- before the build ---

    def answer(self) -> Reused | None:
        """The finished image of the same input, `None`: there is none, or nobody can tell.

        Everything that goes wrong is left to the build, which says it better.
        """
        known = self._young_notes()
        if not known:
            return None
        try:
            return self._compare(known)
        except Interrupted:
            raise
        except Ocis2iError:
            return None

    def _young_notes(self) -> list[Note]:
        if self.spec.reuse_seconds is None:
            return []
        oldest = time.time() - self.spec.reuse_seconds
        # One from the future was written by a clock that is not to be believed.
        return [
            note
            for note in self.notes.notes(self.key)
            if oldest <= note.finished <= time.time() + 1
            and note.inputs["scripts"] == self.scripts
            and self._is_of_this_ground(note)
        ]

    def _is_of_this_ground(self, note: Note) -> bool:
        """Whether scripts would have no more user ids today: owners may be others with more."""
        if note.ids == "none":
            return self.spec.isolation == note.isolation
        return note.ids in ("full", wanted_ids())

    def _compare(self, known: list[Note]) -> Reused | None:
        held: list[Event] = []
        source = self._ask_source(held)
        known = [note for note in known if note.inputs["source"] == source]
        if source is None or not known:
            return None
        spec, places = self.spec, self.tools.places
        builder = obtain(
            spec.builder, spec.platform, spec.pull_policy, places, layers=Layers.ELSEWHERE
        )
        runtime = None
        if spec.runtime:
            from ocis2i.extended import obtain_runtime  # noqa: PLC0415 - few builds load it

            runtime = obtain_runtime(spec.runtime, spec, places)
        for note in known:
            if dict(note.inputs) == _inputs(source, self.scripts, builder, runtime):
                found = _whole(note, builder, runtime, self.tools.store)
                if found:
                    for event in held:
                        self.tools.report(event)
                    return found
        return None

    def _ask_source(self, held: list[Event]) -> str | None:
        """What identifies the source as it is now; `held` are warnings that belong to it."""
        spec, tools = self.spec, self.tools
        match spec.source:
            case DirSource() | ArchiveSource() | SingleSource():
                content = self._read(self.notes.files(self.key))
                return content.digest if content else None
            case GitSource():
                program = find_git(tools.settings)
                if program is None:
                    return None
                told = tell_commit(
                    spec.source, program=program, settings=tools.settings, report=held.append
                )
                return self._of_commit(told) if told else None
            case ArtifactSource():
                reference = meant(spec.source.location, tools.places)
                tools.places.policy.check_registry(reference)
                found = tools.places.registry.get_manifest(reference)
                return str(found.descriptor.digest)
            case _:
                return None

    def _of_commit(self, told: tuple[str, str]) -> str | None:
        """A commit as it is checked out here and now, with or without the contents of Git LFS."""
        commit, branch = told
        settings = self.tools.settings
        program = find_git(settings)
        if not commit or program is None:
            return None
        large_files = find_program("git-lfs", settings.environment.get("PATH"))
        way = tell_checkout(program=program, settings=settings)
        return f"{commit} {branch} {'with' if large_files else 'without'} lfs {way}"

    def _read(self, known: Mapping[str, Any]) -> Content | None:
        rows: Known = {path: tuple(row) for path, row in known.items()}
        match self.spec.source:
            case DirSource() as source:
                clamp = self.spec.clamp_seconds
                return read_tree(source, rows, clamp_seconds=clamp, cancel=self.cancel)
            case ArchiveSource(path=Path() as path) | SingleSource(path=Path() as path):
                return read_one(path, rows)
            case _:
                return None

    # --- beside the build ---

    def read_source(self) -> None:
        """Begins to read what was just fetched, while assemble runs: nobody waits for it then."""
        if isinstance(self.spec.source, DirSource | ArchiveSource | SingleSource):
            self.thread = threading.Thread(target=self._read_aside, daemon=True)
            self.thread.start()

    def _read_aside(self) -> None:
        self.found.append(self._read(self.notes.files(self.key)))

    def give_up(self) -> None:
        """Ends the reading of the source: the build failed."""
        self.cancel.set()
        if self.thread:
            self.thread.join()

    def remember(
        self, inputs: Inputs, encoded: Encoded, changes: Changes, isolation: str, ids: Ids
    ) -> None:
        """Notes the image that was built, if its input is known for what it was at the start."""
        if self.thread:
            self.thread.join()
        source = self._source_of(inputs)
        if source is None or _script_digest(self.spec, self.tools) != self.scripts:
            return
        if any(map(_is_from_web, _script_urls(inputs))):
            return
        runtime = inputs.runtime.obtained if inputs.runtime else None
        store = self.tools.store
        base = {layer.descriptor.digest for layer in inputs.base.image.layers}
        manifest = store.manifest(encoded.descriptor)
        layers = manifest.layers if isinstance(manifest, Manifest) else ()
        built_from, built_with = built_of(inputs)
        note = Note(
            inputs=_inputs(source, self.scripts, inputs.builder, runtime),
            manifest=str(encoded.descriptor.digest),
            media_type=encoded.descriptor.media_type,
            size=encoded.descriptor.size,
            stamps={
                str(one.digest): _stamp(store.blob_path(one.digest))
                for one in layers
                if one.digest not in base
            },
            finished=time.time(),
            entries=changes.entries,
            size_bytes=changes.size_bytes,
            isolation=isolation,
            built_from=built_from,
            built_with=built_with,
            ids=ids,
        )
        if self.found and self.found[0]:
            self.notes.keep_files(self.key, self.found[0].files)
        self.notes.add(self.key, note)

    def _source_of(self, inputs: Inputs) -> str | None:
        """What identifies the source that was built; `None` for one that changed meanwhile."""
        info = inputs.tree.info
        match self.spec.source:
            case DirSource() | ArchiveSource() | SingleSource():
                content = self.found[0] if self.found else None
                if content is None or not content.is_older_than(self.started_ns):
                    return None
                if content.place != self.place:
                    return None  # a link on the way leads elsewhere now, perhaps to older files
                return content.digest
            case GitSource():
                return self._of_commit((info.commit_id, info.ref))
            case ArtifactSource():
                return info.location.rpartition("@")[2]
            case _:
                return None


def ask(spec: BuildSpec, tools: Tools) -> Question | None:
    """Whether the image of a build could be there already; `None` for builds that are made anyway.

    To be called before anything of the source is read.
    """
    if not is_repeatable(spec):
        return None
    started_ns = time.time_ns()
    scripts = _script_digest(spec, tools)
    key = settings_key(spec)
    if scripts is None or key is None:
        return None
    notes = Finished(tools.store)
    return Question(key, spec, tools, started_ns, scripts, notes, _place_of(spec.source))


def _place_of(source: Source) -> tuple[int, int] | None:
    match source:
        case DirSource():
            return find_place(source)
        case ArchiveSource(path=Path() as path) | SingleSource(path=Path() as path):
            return find_place(path)
        case _:
            return None


def is_repeatable(spec: BuildSpec) -> bool:
    """Whether the wishes of a build say all that it depends on."""
    if spec.isolation == "in-place":
        return False
    if spec.incremental or spec.cache or spec.mounts or spec.save_upload:
        return False
    # Which of them are secrets is only known once the builder is there.
    if spec.parameters:
        return False
    if isinstance(spec.source, ArchiveSource | SingleSource) and spec.source.path is None:
        return False
    known = DirSource | GitSource | ArchiveSource | ArtifactSource | SingleSource
    return isinstance(spec.source, known) and spec.secrets == SecretSpec()


def settings_key(spec: BuildSpec) -> str | None:
    """A digest of all wishes that a result depends on; `None` where one cannot be told."""
    if spec.runtime:
        spec = replace(spec, runtime=replace(spec.runtime, pull_policy=PullPolicy.IF_NOT_PRESENT))
    names = [one.name for one in dataclasses.fields(spec) if one.name not in _ELSEWHERE]
    try:
        wishes = [[name, _plain(getattr(spec, name))] for name in names]
    except TypeError:
        return None
    wishes.append([__version__, _FORMAT, str(spec.platform or Platform.of_host())])
    return hashlib.sha256(json.dumps(wishes).encode()).hexdigest()


def _plain(value: object) -> Any:
    """A value as JSON has it, the same for equal values alone; raises `TypeError` for others."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return [kind, [[_plain(name), _plain(one)] for name, one in value.items()]]
    if isinstance(value, tuple | list):
        return [kind, [_plain(one) for one in value]]
    if isinstance(value, frozenset | set):
        return [kind, sorted(json.dumps(_plain(one)) for one in value)]
    if isinstance(value, Enum | PurePath | bytes | re.Pattern):
        return [kind, repr(value)]
    if dataclasses.is_dataclass(value):
        return [kind, [_plain(getattr(value, one.name)) for one in dataclasses.fields(value)]]
    raise TypeError(kind)


def _inputs(
    source: str, scripts: str, builder: Obtained, runtime: Obtained | None
) -> dict[str, str]:
    named = {"builder": builder} | ({"runtime": runtime} if runtime else {})
    found = {"source": source, "scripts": scripts}
    for what, image in named.items():
        found[what] = f"{image.name} {image.manifest.descriptor.digest}"
    return found


# --- scripts of this host -----------------------------------------------------------------------


def _script_digest(spec: BuildSpec, tools: Tools) -> str | None:
    """What is in a directory of scripts that the user named, empty for none of this host.

    `None` where that cannot be told: scripts from the web may be others each time.
    """
    url = spec.scripts_url
    if not url or image_directory(url) is not None:
        return ""
    scheme, _, rest = url.partition(":")
    if scheme.lower() != "file":
        return None
    directory = tools.cwd / urllib.parse.unquote(rest).removeprefix("//")
    found = hashlib.sha256()
    for name in SCRIPT_NAMES:
        try:
            # A FIFO must not be waited for; the build says what it thinks of one.
            if not (directory / name).is_file():
                continue
            with (directory / name).open("rb") as file:
                data = file.read(_SCRIPT_LIMIT + 1)
        except FileNotFoundError:
            continue
        except (OSError, ValueError):
            return None
        if len(data) > _SCRIPT_LIMIT:
            return None
        found.update(f"{name} {len(data)}\n".encode() + data)
    return found.hexdigest()


def _script_urls(inputs: Inputs) -> list[str]:
    sets = [inputs.scripts, *([inputs.runtime.scripts] if inputs.runtime else [])]
    return [place.url for one in sets for place in one.places.values()]


def _is_from_web(url: str) -> bool:
    return url.lower().startswith(("http:", "https:"))


# --- whether it is still there ------------------------------------------------------------------


def _whole(note: Note, builder: Obtained, runtime: Obtained | None, store: Store) -> Reused | None:
    """The image of a note; `None` unless all of it can be had."""
    base = runtime or builder
    descriptor = Descriptor(note.media_type, Digest.parse(note.manifest), note.size)
    try:
        manifest = store.manifest(descriptor)
        if not isinstance(manifest, Manifest):
            return None
        config = read_document(store, manifest.config)
        image = decode_image(manifest, config)
    except ImageError:
        return None
    of_base = {layer.descriptor.digest for layer in base.image.layers}
    for layer in manifest.layers:
        if layer.digest in of_base and (base.origin or store.has_blob(layer)):
            continue
        if not _is_sound(layer, note.stamps.get(str(layer.digest)), store):
            return None
    return Reused(
        image,
        Encoded.of(manifest, config),
        builder,
        base,
        Changes(note.entries, note.size_bytes, 0),
        note.isolation,
        datetime.fromtimestamp(note.finished, UTC),
        (note.built_from, note.built_with),
    )


def _is_sound(layer: Descriptor, stamp: list[int] | None, store: Store) -> bool:
    """Whether a blob is what its name says; one that nobody touched since is not read again."""
    if not store.has_blob(layer):
        return False
    if stamp == _stamp(store.blob_path(layer.digest)):
        return True
    try:
        with store.open_blob(layer) as reader:
            while reader.read(CHUNK):
                pass
    except ImageError:
        return False
    return True


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
