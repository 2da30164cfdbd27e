"""Incremental builds: what the last build saved, for the next to go on from.

The previous image's own container runs save-artifacts, as source-to-image has it, with the script
of now. A result on a runtime image has no builder in it any more: there the artifacts are saved
right after assemble, in a file of the store. A cache in a registry (`remote_cache`) stands in for
both where nothing is kept between builds. Whatever goes wrong, the build goes on without.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

from ocis2i.artifacts import extract
from ocis2i.container import Job, Site, check_script, identify, run_explained
from ocis2i.errors import Interrupted, Ocis2iError
from ocis2i.events import Notice, ScriptOutput, stage
from ocis2i.hidden import Hidden
from ocis2i.images import Obtained, PullPolicy, obtain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.leaks import LEAK_LIMIT, leak_error
from ocis2i.limits import counted, plural
from ocis2i.outputs import Delivered
from ocis2i.reference import Digest, Reference, RegistryLocation, StoredLocation
from ocis2i.remote_cache import CacheEntry, cache_key, read_cache, write_cache
from ocis2i.rootfs import Rootfs, prepare
from ocis2i.runner import Stdio
from ocis2i.s2i import image_directory, read_contract
from ocis2i.scripts import ScriptPlace, ScriptSet
from ocis2i.session import Session
from ocis2i.spec import BuildSpec

_SCRIPT = "save-artifacts"
_ARTIFACTS = "the saved artifacts"
_NOT_SAVED = "nothing was saved for the next incremental build"


@dataclass(frozen=True, slots=True)
class Restored:
    """Artifacts that are in `upload/artifacts` now, and the image that they came from.

    `digest` is that of its manifest, `None` when the store has no such image any more.
    """

    entries: int
    previous: str
    digest: Digest | None


@dataclass(frozen=True, slots=True)
class Saving:
    """What saving needs to know of the build that is going on; `script` is that of now.

    `cache` is the build's place in a registry, if it was given one.
    """

    site: Site
    spec: BuildSpec
    builder: Obtained
    script: ScriptPlace | None
    hidden: Hidden
    cache: CacheEntry | None = None


def plan_saving(
    site: Site, spec: BuildSpec, builder: Obtained, scripts: ScriptSet, hidden: Hidden
) -> Saving:
    """To be asked before the scripts are moved into the container: their content counts."""
    script = scripts.get(_SCRIPT)
    if spec.cache is None:
        return Saving(site, spec, builder, script, hidden)
    every = [place for name in ("assemble", _SCRIPT) if (place := scripts.get(name))]
    cache = CacheEntry(spec.cache, cache_key(spec.name, builder, every))
    if script and script.file:
        kept = site.here.directory / _SCRIPT
        script = replace(script, file=Path(shutil.copyfile(script.file, kept)))
    return Saving(site, spec, builder, script, hidden, cache)


def restore(saving: Saving) -> Restored | None:
    """Puts what the previous build saved into `upload/artifacts`; `None`: it is a clean build.

    A failure is a warning, and nothing of it stays.
    """
    spec, report = saving.spec, saving.site.report
    restored = _from_registry(saving)
    if restored or not spec.incremental:
        return restored
    if spec.name is None:
        report(Notice("warning", "--incremental needs a tag to find the previous image by"))
        return None
    try:
        with stage(report, "restore", str(spec.name)):
            if spec.runtime:
                return _from_cache(saving, spec.name)
            return _from_previous(saving, spec.name)
    except Interrupted:
        raise
    except Ocis2iError as error:
        text = "Clean build will be performed because of error saving previous build artifacts"
        report(Notice("warning", f"{text}: {error.message}"))
        return None


def _from_previous(saving: Saving, name: Reference) -> Restored | None:
    spec, report = saving.spec, saving.site.report
    if saving.script is None:
        report(Notice("info", "there is no save-artifacts script: a clean build"))
        return None
    policy = spec.previous_pull_policy
    try:
        with stage(report, "pull-previous", str(name)):
            location = RegistryLocation(name)
            previous = obtain(location, spec.platform, policy, saving.site.places)
            saving.site.unpack(previous)
    except Interrupted:
        raise
    except Ocis2iError as error:
        report(Notice("warning", f"no previous image, a clean build: {error.message}"))
        return None
    with _scratch(saving.site.here) as tar:
        _run_in_previous(previous, saving, saving.script, tar)
        return _extract(tar, saving, previous.name, previous.manifest.descriptor.digest)


def _run_in_previous(
    previous: Obtained,
    saving: Saving,
    current: ScriptPlace,
    tar: BinaryIO,
    place: str = "previous",
) -> None:
    """Runs save-artifacts in an earlier result; its standard output goes to `tar`.

    Its rootfs is made at the `place` in the build's directory.
    """
    site, spec = saving.site, saving.spec
    runtime = previous.image.config.runtime
    layers = site.unpack(previous)
    directory = site.here.directory
    mounts = site.around.mounts
    rootfs = prepare(
        site.here.agent,
        directory / place,
        layers,
        mounts,
        session=directory,
        kind=site.here.rootfs,
    )
    builder = saving.builder.image.config.runtime
    user = spec.assemble_user or read_contract(saving.builder.image.config).assemble_user
    identity = identify(user or builder.user or runtime.user, rootfs)
    script = _script_in(previous, saving, current)
    if script.file is not None:
        rootfs.put_file(script.file, script.path_in_image, identity.uid, identity.gid, 0o755)
    check_script(script, previous.name, rootfs)
    rootfs.mount()
    cwd = runtime.working_dir or "/"
    job = Job((script.path_in_image,), identity, cwd, runtime.env, place=script)
    _save(job, rootfs, saving, tar)


def _script_in(previous: Obtained, saving: Saving, current: ScriptPlace) -> ScriptPlace:
    """Where the script of now is, or will be, in the previous image."""
    contract = read_contract(previous.image.config)
    if current.file is not None:
        path = posixpath.join(contract.destination, "scripts", _SCRIPT)
    else:
        url = saving.spec.scripts_url or contract.scripts_url or ""
        path = posixpath.join(image_directory(url) or "/", _SCRIPT)
        if not image_directory(url):
            path = current.path_in_image
    return ScriptPlace(_SCRIPT, current.origin, current.url, path, current.file)


def _save(job: Job, rootfs: Rootfs, saving: Saving, tar: BinaryIO) -> None:
    report = saving.site.report
    stdio = Stdio(
        lambda stream, line: report(ScriptOutput(stream, line)),
        output=tar,
        output_limit=saving.site.settings.layer_limit,
    )
    run_explained(saving.site, rootfs, job, _SCRIPT, stdio, reason="SaveArtifactsFailed")
    tar.flush()
    tar.seek(0)


def _extract(tar: BinaryIO, saving: Saving, previous: str, digest: Digest | None) -> Restored:
    here = saving.site.here
    into = here.directory / "upload/artifacts"
    done = extract(here.agent, tar.fileno(), into, size_limit=saving.site.settings.layer_limit)
    if done.skipped:
        what = counted(done.skipped, "device, pipe or socket", "devices, pipes or sockets")
        text = f"{what} among the artifacts {plural(done.skipped, 'was', 'were')} left out"
        saving.site.report(Notice("warning", text))
    if done.trailing_bytes:
        what = f"{counted(done.trailing_bytes, 'byte')} that `{_SCRIPT}` wrote after its tar"
        text = f"{what} {plural(done.trailing_bytes, 'is', 'are')} no tar"
        saving.site.report(Notice("warning", f"{text}; its messages belong on stderr"))
    return Restored(done.entries, previous, digest)


@contextmanager
def _scratch(here: Session) -> Iterator[BinaryIO]:
    path = here.directory / "artifacts.tar"
    with path.open("w+b") as file:
        path.unlink()
        yield file


# --- with a cache in a registry -----------------------------------------------------------------


def _from_registry(saving: Saving) -> Restored | None:
    source = saving.cache.source if saving.cache else None
    if saving.cache is None or source is None:
        return None
    site = saving.site
    limit = site.settings.layer_limit
    try:
        with stage(site.report, "restore", str(source)), _scratch(site.here) as tar:
            digest = read_cache(saving.cache, source, site.places, tar, size_limit=limit)
            return _extract(tar, saving, f"{source.name}@{digest}", None)
    except Interrupted:
        raise
    except Ocis2iError as error:
        site.report(Notice("warning", f"nothing came from the cache: {error.message}"))
        return None


def save_to_registry(saving: Saving, result: Digest) -> Delivered | None:
    """Lets the `result` of a build save its artifacts for the cache; where that is now.

    Not for a result on a runtime image, which has no artifacts in it. A failure is a warning.
    """
    target = saving.cache.target if saving.cache else None
    if target is None:
        return None
    if saving.script is None:
        saving.site.report(Notice("warning", f"{_NOT_SAVED}: there is no `{_SCRIPT}` script"))
        return None
    save = partial(_save_result, saving, saving.cache, saving.script, result)
    return _or_warn(saving, str(target), save)


def _save_result(
    saving: Saving, cache: CacheEntry | None, script: ScriptPlace, result: Digest
) -> Delivered | None:
    built = obtain(StoredLocation(result), None, PullPolicy.NEVER, saving.site.places)
    with _scratch(saving.site.here) as tar:
        _run_in_previous(built, saving, script, tar, "finished")
        saving.hidden.search(tar, _ARTIFACTS)
        return _push(saving, cache, tar)


def _push(saving: Saving, cache: CacheEntry | None, tar: BinaryIO) -> Delivered | None:
    """Puts a saved tar into the cache, if there is one."""
    target = cache.target if cache else None
    if cache is None or target is None:
        return None
    found = saving.hidden.finder.leaks
    leaks = [leak for leak in found if leak.where.startswith(_ARTIFACTS)]
    # Who allows a leak means the image. Of more than the limit nobody knows where they are.
    if leaks or len(found) >= LEAK_LIMIT:
        raise leak_error(leaks or found)
    return Delivered(target.name, write_cache(cache, target, saving.site.places, tar))


def _or_warn(saving: Saving, where: str, save: Callable[[], Delivered | None]) -> Delivered | None:
    try:
        with stage(saving.site.report, "save", where):
            return save()
    except Interrupted:
        raise
    except Ocis2iError as error:
        saving.site.report(Notice("warning", f"{_NOT_SAVED}: {error.message}"))
        return None


# --- with a runtime image -----------------------------------------------------------------------


def save_for_later(saving: Saving, job: Job, rootfs: Rootfs) -> Delivered | None:
    """Keeps the artifacts of a build on a runtime image for its next one; a failure is a warning.

    `job` is the assemble script's, `rootfs` the builder's, still mounted. Returns where the cache
    in a registry is, if there is one.
    """
    spec = saving.spec
    target = saving.cache.target if saving.cache else None
    kept = spec.name if spec.incremental else None
    if saving.script is None or not (kept or target):
        return None
    save = partial(_save_of_builder, saving, saving.script, job, rootfs, kept)
    return _or_warn(saving, str(target or ""), save)


def _save_of_builder(
    saving: Saving, script: ScriptPlace, job: Job, rootfs: Rootfs, kept: Reference | None
) -> Delivered | None:
    check_script(script, saving.builder.name, rootfs)
    again = replace(job, argv=(script.path_in_image,), more={}, mounts=(), place=script)
    store = saving.site.places.store
    with store.scratch_file() as tar:
        _save(again, rootfs, saving, tar)
        # Nobody may ever see them in an image, but the store and the cache keep them.
        saving.hidden.search(tar, _ARTIFACTS)
        if kept:
            store.keep_artifacts(str(kept), _key(saving), tar)
        return _push(saving, saving.cache, tar)


def _from_cache(saving: Saving, name: Reference) -> Restored | None:
    store = saving.site.places.store
    previous = store.find(name)
    path = store.artifacts_path(str(name), _key(saving))
    try:
        with path.open("rb") as tar:
            digest = previous.descriptor.digest if previous else None
            return _extract(tar, saving, str(name), digest)
    except FileNotFoundError:
        saving.site.report(Notice("warning", "no artifacts of an earlier build, a clean build"))
        return None


def _key(saving: Saving) -> str:
    """Artifacts serve builds of the same name with the same builder on the same platform."""
    platform = saving.builder.image.config.platform
    parts = [str(saving.spec.name), saving.builder.name, str(platform)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
