"""The JSON documents that `--json` prints: stable, `"version": 1`. See `docs/json.md`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ocis2i.blobs import read_document
from ocis2i.errors import Ocis2iError, ScriptError
from ocis2i.events import NetworkEnded
from ocis2i.manifest import Image, Index, Json, Manifest, format_time, parse_json
from ocis2i.reference import Digest, Reference
from ocis2i.report import StageRecord
from ocis2i.store import Store, StoredImage

if TYPE_CHECKING:
    from ocis2i.build import BuildResult
    from ocis2i.differences import Change, Note, Row, Sum
    from ocis2i.images import Inspected
    from ocis2i.layer_facts import ImageDifference
    from ocis2i.outputs import Delivered
    from ocis2i.spec import BuildSpec

VERSION = 1


def result_document(
    result: BuildResult,
    spec: BuildSpec,
    stages: Sequence[StageRecord],
    messages: Sequence[str] = (),
    network: NetworkEnded | None = None,
) -> dict[str, Any]:
    """A build that succeeded; `messages` are those of the callback."""
    digest = str(result.encoded.descriptor.digest)
    return {
        "version": VERSION,
        "state": "succeeded",
        "name": str(spec.name) if spec.name else None,
        "names": [str(name) for name in spec.names],
        "digest": digest,
        "reference": f"{spec.name.name}@{digest}" if spec.name else None,
        "config": str(result.encoded.config_descriptor.digest),
        "builder": {
            "name": result.builder.name,
            "digest": str(result.builder.manifest.descriptor.digest),
        },
        "base": {
            "name": result.base.name,
            "digest": str(result.base.manifest.descriptor.digest),
        },
        "incremental": bool(result.restored),
        "restored_from": result.restored.previous if result.restored else None,
        "cached": f"{result.cached.where}@{result.cached.digest}" if result.cached else None,
        "unchanged_since": format_time(result.unchanged_since) if result.unchanged_since else None,
        "isolation": result.isolation,
        "network": _network(network) or {"mode": spec.network, "hosts": None, "more": 0},
        "script_exit_code": result.assemble.exit_code,
        "pushed": result.pushed,
        "outputs": [delivered.where for delivered in result.delivered],
        "changes": {"entries": result.changes.entries, "bytes": result.changes.size_bytes},
        "layers": _layers(result.image),
        "messages": list(messages),
        "stages": [stage.document() for stage in stages],
        "build_info": build_info(stages),
    }


def _network(ended: NetworkEnded | None) -> dict[str, Any] | None:
    """What the proxy knows of a build; `None` where there was none."""
    if ended is None:
        return None
    hosts = [{"host": host, "port": port, "state": fate} for host, port, fate in ended.hosts]
    return {"mode": ended.network, "hosts": hosts, "more": ended.more}


# Our stages as source-to-image names them (`pkg/api/types.go`): stage and step.
_S2I_STEPS = {
    "pull": ("PullImages", "PullBuilderImage"),
    "pull-previous": ("PullImages", "PullPreviousImage"),
    "pull-runtime": ("PullImages", "PullRuntimeImage"),
    "restore": ("RetrieveArtifacts", "RetrievePreviousArtifacts"),
    "assemble": ("Assemble", "AssembleBuildScripts"),
    "assemble-runtime": ("Assemble", "AssembleRuntimeScripts"),
    "layer": ("CommitContainer", "CommitContainer"),
}


def build_info(
    stages: Sequence[StageRecord], reason: str = "", message: str = ""
) -> dict[str, Any]:
    """Stages, steps and the reason of a failure in source-to-image's words and order.

    Durations are in whole milliseconds; a stage lasts until the end of its last step.
    """
    found: dict[str, dict[str, Any]] = {}
    begun: dict[str, datetime] = {}
    for record in stages:
        if record.name not in _S2I_STEPS:
            continue
        stage, step = _S2I_STEPS[record.name]
        started = format_time(record.started)
        entry = found.setdefault(stage, {"name": stage, "startTime": started, "steps": []})
        first = begun.setdefault(stage, record.started)
        entry["durationMilliseconds"] = _milliseconds(
            (record.started - first).total_seconds() + record.seconds
        )
        entry["steps"].append(
            {
                "name": step,
                "startTime": started,
                "durationMilliseconds": _milliseconds(record.seconds),
            }
        )
    return {
        "stages": list(found.values()),
        "failureReason": {"reason": reason, "message": message},
    }


def delivered_row(place: Delivered) -> dict[str, str]:
    """Where an image or artifact is now."""
    reference = f"{place.where}@{place.digest}"
    return {"where": place.where, "digest": str(place.digest), "reference": reference}


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)


def _layers(image: Image) -> list[dict[str, Any]]:
    return [
        {
            "digest": str(layer.descriptor.digest),
            "diff_id": str(layer.diff_id),
            "size": layer.descriptor.size,
            "media_type": layer.descriptor.media_type,
        }
        for layer in image.layers
    ]


def resumed_document(
    record: Json,
    stored: Json,
    image: Image,
    stages: Sequence[StageRecord],
    ends: Json,
) -> dict[str, Any]:
    """A build that `resume` finished, by its record and the event of its `stored` image.

    `ends` are its `outputs`, whether it was `pushed`, and what its `network` was asked for.
    """
    facts = stored.get("facts")
    known: Json = facts if isinstance(facts, dict) else {}
    name, digest = record.get("name"), stored.get("digest")
    wishes = record.get("resume") or {}
    return {
        "version": VERSION,
        "state": "succeeded",
        "name": name,
        "names": record.get("names"),
        "digest": digest,
        "reference": f"{Reference.parse(name).name}@{digest}" if isinstance(name, str) else None,
        "config": stored.get("config"),
        "builder": known.get("builder"),
        "base": known.get("base"),
        "incremental": known.get("incremental", False),
        "restored_from": known.get("restored_from"),
        "cached": None,
        "unchanged_since": None,
        "isolation": known.get("isolation"),
        "network": ends["network"] or {"mode": wishes.get("network"), "hosts": None, "more": 0},
        "script_exit_code": 0,
        "pushed": ends["pushed"],
        "outputs": ends["outputs"],
        "changes": known.get("changes"),
        "layers": _layers(image),
        "messages": [],
        "stages": [stage.document() for stage in stages],
        "build_info": build_info(stages),
    }


def failure_document(
    error: Ocis2iError,
    code: int,
    stages: Sequence[StageRecord],
    network: NetworkEnded | None = None,
) -> dict[str, Any]:
    """A command that failed."""
    return {
        "version": VERSION,
        "state": "failed",
        "reason": error.reason,
        "message": error.message,
        "hint": error.way_out,
        "exit_code": code,
        "script_exit_code": error.script_exit_code if isinstance(error, ScriptError) else None,
        "failure": error.failure.document() if error.failure else None,
        "network": _network(network),
        "stages": [stage.document() for stage in stages],
        "build_info": build_info(stages, error.reason, error.message),
    }


def image_row(image: StoredImage, store: Store) -> dict[str, Any]:
    """One image of the store, or an index; `size` counts compressed layers that are here."""
    found = store.manifest(image.descriptor)
    created, platform, index = None, None, None
    if isinstance(found, Manifest):
        config = parse_json(read_document(store, found.config), "the image config")
        created, platform = config.get("created"), _platform_of(config)
        images = [found]
    else:
        index = index_rows(found, store)
        images = _stored_images(found, store)
    layers = {layer.digest: layer for one in images for layer in one.layers}
    diff_ids = {diff_id for one in images for diff_id in _diff_ids(one, store)}
    origin = store.origin(found.descriptor.digest)
    return {
        "name": image.name,
        "digest": str(image.descriptor.digest),
        "created": created,
        "platform": platform,
        "size": sum(layer.size for layer in layers.values()),
        "layers": {
            "total": len(layers),
            "blobs": sum(map(store.has_blob, layers.values())),
            "unpacked": sum(map(store.has_unpacked, diff_ids)),
            "origin": str(origin) if origin else None,
        },
        "index": index,
    }


def index_rows(index: Index, store: Store) -> list[dict[str, Any]]:
    """The images of an index, and which of them are in the store."""
    return [
        {
            "platform": str(entry.platform) if entry.platform else None,
            "digest": str(entry.digest),
            "media_type": entry.media_type,
            "size": entry.size,
            "annotations": dict(entry.annotations),
            "in_store": store.has_blob(entry),
        }
        for entry in index.manifests
    ]


def _stored_images(index: Index, store: Store) -> list[Manifest]:
    found = [store.manifest(entry) for entry in index.manifests if store.has_blob(entry)]
    return [one for one in found if isinstance(one, Manifest)]


def _diff_ids(manifest: Manifest, store: Store) -> list[Digest]:
    config = parse_json(read_document(store, manifest.config), "the image config")
    return [Digest.parse(text) for text in config.get("rootfs", {}).get("diff_ids", [])]


def _platform_of(config: Json) -> str:
    parts = (config.get("os"), config.get("architecture"), config.get("variant"))
    return "/".join(str(part) for part in parts if part)


def inspect_document(seen: Inspected, store: Store) -> Json:
    """What an image is: names, digests, its config and its layers; or an index, and its images."""
    index = None
    if seen.index:
        index = {
            "digest": str(seen.index.descriptor.digest),
            "media_type": seen.index.descriptor.media_type,
            "annotations": dict(seen.index.annotations),
            "manifests": index_rows(seen.index, store),
        }
    if seen.manifest is None:
        return {"name": seen.name, "digest": index["digest"] if index else None, "index": index}
    manifest = seen.manifest
    config = parse_json(seen.config, "the image config")
    runtime = config.get("config") or {}
    return {
        "name": seen.name,
        "digest": str(manifest.descriptor.digest),
        "media_type": manifest.descriptor.media_type,
        "created": config.get("created"),
        "platform": _platform_of(config),
        "config": runtime,
        "diff_ids": (config.get("rootfs") or {}).get("diff_ids", []),
        "layers": [
            {
                "digest": str(layer.digest),
                "size": layer.size,
                "media_type": layer.media_type,
            }
            for layer in manifest.layers
        ],
        "history": config.get("history", []),
        "annotations": dict(manifest.annotations),
        "index": index,
    }


def difference_document(
    found: ImageDifference,
    rows: Sequence[Row],
    noted: Sequence[Note],
    *,
    budget: int | None = None,
    with_files: bool = False,
) -> Json:
    """What an image changes of its base; `rows` are the directories that are summed up."""
    from ocis2i import differences  # noqa: PLC0415 - no other document needs it

    summed = differences.total(found.changes)
    return {
        "version": VERSION,
        "name": found.name,
        "digest": str(found.digest),
        "base": found.base,
        "layers": [str(layer.descriptor.digest) for layer in found.layers],
        **_sum_row(summed),
        "directories": [
            {"path": _path_text(row.path), "rest": row.rest, **_sum_row(row.summed)} for row in rows
        ],
        "owners": [
            {"uid": uid, "gid": gid, "entries": one.entries, "bytes_new": one.bytes_new}
            for uid, gid, one in differences.owners(found.changes)
        ],
        "notes": [
            {
                "kind": note.kind,
                "count": note.count,
                "bytes_new": note.bytes_new,
                "paths": [_path_text(path) for path in note.paths],
            }
            for note in noted
        ],
        "budget": None
        if budget is None
        else {"bytes": budget, "exceeded": summed.bytes_new > budget},
        "files": [_change_row(change) for change in found.changes] if with_files else None,
    }


def _sum_row(summed: Sum) -> Json:
    return {
        "added": summed.added,
        "changed": summed.changed,
        "removed": summed.removed,
        "bytes_new": summed.bytes_new,
        "bytes_removed": summed.bytes_removed,
    }


def _change_row(change: Change) -> Json:
    facts = change.facts
    return {
        "path": _path_text(change.path),
        "state": change.state,
        "what": list(change.what),
        "mode": f"{facts.mode:04o}",
        "uid": facts.uid,
        "gid": facts.gid,
        "size": facts.size,
        "target": facts.target.decode(errors="backslashreplace") or None,
    }


def _path_text(path: bytes) -> str:
    """A path from the image's root; bytes that are no UTF-8 are written as `\\xff`."""
    return "/" + path.decode(errors="backslashreplace")
