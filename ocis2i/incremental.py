"""Incremental builds: what the last build saved, for the next to go on from.

The previous image's own container runs save-artifacts, as source-to-image has it, with the script
of now. A result on a runtime image has no builder in it any more: there the artifacts are saved
right after assemble, in a file of the store. Whatever goes wrong, the build goes on without.
"""

from __future__ import annotations

import hashlib
import json
import posixpath
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import BinaryIO

from ocis2i.artifacts import extract
from ocis2i.container import Job, Site, check_script, describe_exit, identify, runnable
from ocis2i.errors import Interrupted, Ocis2iError, ScriptError
from ocis2i.events import Notice, ScriptOutput, stage
from ocis2i.hidden import Hidden
from ocis2i.images import Obtained, obtain
from ocis2i.reference import Digest, Reference, RegistryLocation
from ocis2i.rootfs import Rootfs, prepare
from ocis2i.runner import Stdio
from ocis2i.s2i import image_directory, read_contract
from ocis2i.scripts import ScriptPlace
from ocis2i.session import Session
from ocis2i.spec import BuildSpec

_SCRIPT = "save-artifacts"


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
    """What saving needs to know of the build that is going on; `script` is that of now."""

    site: Site
    spec: BuildSpec
    builder: Obtained
    script: ScriptPlace | None
    hidden: Hidden


def restore(saving: Saving) -> Restored | None:
    """Puts what the previous build saved into `upload/artifacts`; `None`: it is a clean build.

    A failure is a warning, and nothing of it stays.
    """
    spec, report = saving.spec, saving.site.report
    if not spec.incremental:
        return None
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
    except Interrupted:
        raise
    except Ocis2iError as error:
        report(Notice("warning", f"no previous image, a clean build: {error.message}"))
        return None
    with _scratch(saving.site.here) as tar:
        _run_in_previous(previous, saving, saving.script, tar)
        return _extract(tar, saving, previous.name, previous.manifest.descriptor.digest)


def _run_in_previous(
    previous: Obtained, saving: Saving, current: ScriptPlace, tar: BinaryIO
) -> None:
    """Runs save-artifacts in the previous image; its standard output goes to `tar`."""
    site, spec = saving.site, saving.spec
    runtime = previous.image.config.runtime
    layers = site.unpack(previous)
    directory = site.here.directory
    mounts = site.around.mounts
    rootfs = prepare(
        site.here.agent,
        directory / "previous",
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
    job = Job((script.path_in_image,), identity, runtime.working_dir or "/", runtime.env)
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
    run = runnable(job.spec(saving.site.around), rootfs)
    report = saving.site.report
    stdio = Stdio(
        lambda stream, line: report(ScriptOutput(stream, line)),
        output=tar,
        output_limit=saving.site.settings.layer_limit,
    )
    result = saving.site.runner.run(rootfs, run, stdio)
    if result.exit_code:
        raise ScriptError(
            f"`{job.argv[0]}` failed with {describe_exit(result.exit_code)}",
            script_exit_code=result.exit_code,
            reason="SaveArtifactsFailed",
        )
    tar.flush()
    tar.seek(0)


def _extract(tar: BinaryIO, saving: Saving, previous: str, digest: Digest | None) -> Restored:
    here = saving.site.here
    into = here.directory / "upload/artifacts"
    done = extract(here.agent, tar.fileno(), into, size_limit=saving.site.settings.layer_limit)
    if done.skipped:
        text = f"{done.skipped} devices, pipes or sockets among the artifacts were left out"
        saving.site.report(Notice("warning", text))
    if done.trailing_bytes:
        text = f"{done.trailing_bytes} bytes that `{_SCRIPT}` wrote after its tar are no tar"
        saving.site.report(Notice("warning", f"{text}; its messages belong on stderr"))
    return Restored(done.entries, previous, digest)


@contextmanager
def _scratch(here: Session) -> Iterator[BinaryIO]:
    path = here.directory / "artifacts.tar"
    with path.open("w+b") as file:
        path.unlink()
        yield file


# --- with a runtime image -----------------------------------------------------------------------


def save_for_later(saving: Saving, job: Job, rootfs: Rootfs) -> None:
    """Keeps the artifacts of a build on a runtime image for its next one; a failure is a warning.

    `job` is the assemble script's, `rootfs` the builder's, still mounted.
    """
    spec = saving.spec
    if not spec.incremental or spec.name is None or saving.script is None:
        return
    try:
        with stage(saving.site.report, "save"):
            check_script(saving.script, saving.builder.name, rootfs)
            again = replace(job, argv=(saving.script.path_in_image,), more={}, mounts=())
            with saving.site.places.store.scratch_file() as tar:
                _save(again, rootfs, saving, tar)
                # Nobody may ever see them in an image, but the store keeps them.
                saving.hidden.search(tar, "the saved artifacts")
                saving.site.places.store.keep_artifacts(str(spec.name), _key(saving), tar)
    except Interrupted:
        raise
    except Ocis2iError as error:
        text = "nothing was saved for the next incremental build"
        saving.site.report(Notice("warning", f"{text}: {error.message}"))


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
