"""The result of a build: its labels and layer, the image made of them, and where that goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ocis2i.compression import compress
from ocis2i.container import Site
from ocis2i.errors import ImageError
from ocis2i.events import ImagePushed, ImageStored, OutputWritten, Report, stage
from ocis2i.fs import explain, wide_pipe
from ocis2i.images import Blobs, Obtained, PassingBlobs
from ocis2i.incremental import Restored
from ocis2i.inputs import Inputs
from ocis2i.manifest import (
    OCI_LAYER,
    Descriptor,
    Encoded,
    History,
    Image,
    Layer,
    append_layer,
)
from ocis2i.outputs import Delivered, Output, deliver
from ocis2i.publish import Sendable, send
from ocis2i.rebuild import IMAGE_LABEL
from ocis2i.reference import Digest, Reference
from ocis2i.rootfs import Changes, Rootfs
from ocis2i.s2i import (
    GIVEN_PARAMETERS_LABEL,
    IMAGE_METADATA_PATH,
    OWN_LABELS,
    PARAMETERS_LABEL,
    SOURCE_LOCATION_LABEL,
    SOURCE_SHA256_LABEL,
    check_label_size,
    generated_labels,
    parse_image_metadata,
    result_config,
)
from ocis2i.spec import BuildSpec
from ocis2i.store import Store
from ocis2i.tools import Tools

if TYPE_CHECKING:
    from ocis2i.early_push import EarlyPush


def image_labels(spec: BuildSpec, inputs: Inputs, rootfs: Rootfs) -> dict[str, str]:
    """Those of the base, ours, and what assemble wrote into its file, which wins."""
    labels = dict(inputs.base.image.config.runtime.labels)
    labels.pop(GIVEN_PARAMETERS_LABEL, None)  # those of the base's own build
    for name in OWN_LABELS:
        labels.pop(name, None)  # those of the base's own build
    labels |= spec.start.labels
    labels |= generated_labels(
        inputs.tree.info,
        builder=inputs.builder.name,
        tag=spec.tag,
        description=spec.description,
        application_name=spec.application_name,
    )
    if inputs.parameters and inputs.parameters.given:
        from ocis2i.parameters import encode_given  # noqa: PLC0415 - few builds load it

        labels[GIVEN_PARAMETERS_LABEL] = encode_given(inputs.parameters.given)
    try:
        metadata = rootfs.read_text(IMAGE_METADATA_PATH)
    except ImageError as error:
        error.reason = "GenericS2IBuildFailed"  # nothing that was pulled
        raise
    if metadata is not None:
        labels |= parse_image_metadata(metadata.encode(errors="surrogateescape"))
    labels.pop(PARAMETERS_LABEL, None)  # of the builder, which the result is not
    check_label_size(labels)
    return labels


def push_early(spec: BuildSpec, inputs: Inputs, tools: Tools, guard: ExitStack) -> EarlyPush | None:
    """Begins what of the push can go on beside assemble, to be ended by `guard`; or nothing."""
    if not spec.push:
        return None
    from ocis2i.early_push import EarlyPush  # noqa: PLC0415 - for who pushes

    places, report = tools.places, inputs.hidden.masked(tools.report)
    early = EarlyPush(places.registry, spec.names[0], jobs=places.jobs, report=report)
    guard.callback(early.close)
    base = inputs.base
    layers = [layer.descriptor for layer in base.image.layers]
    mount_from = tuple(one for one in (base.reference, base.origin) if one)
    blobs = PassingBlobs(tools.places, base.origin)
    early.send_base(layers, blobs, mount_from, tools.store.whereabouts)
    return early


def write_layer(
    spec: BuildSpec,
    inputs: Inputs,
    rootfs: Rootfs,
    site: Site,
    early: EarlyPush | None = None,
    *,
    last: bool = False,
) -> tuple[Layer, Changes]:
    """The change set as a blob in the store: one pass for both digests and compression.

    Nobody looks at the tree after the `last` time: its files may be removed meanwhile.

    A large one is sent `early`, unless a secret may be found in it, or it is to be as another
    build makes it, too: then the registry may have it.
    """
    if spec.clamp_seconds is not None or inputs.hidden.finder.longest:
        early = None
    # What lies above the artifacts is in a runtime image that nobody has seen.
    unseen = rootfs.made if inputs.runtime and not inputs.runtime.layers_needed else ()
    with site.places.store.scratch_file() as blob:
        read_end, write_end = wide_pipe()
        # Smaller than what is asked for: then all is read straight to where it belongs.
        with os.fdopen(read_end, "rb", buffering=1 << 16) as tar:
            try:
                clamp = spec.clamp_seconds
                rootfs.write_changes(write_end, clamp_mtime=clamp, unlisted=unseen, last=last)
            finally:
                os.close(write_end)
            try:
                with closing(inputs.hidden.finder.stream(tar, "the layer")) as searched:
                    written = compress(
                        searched,
                        early.follow(blob) if early else blob,
                        compression=spec.compression,
                        level=spec.compression_level,
                        fast=spec.clamp_seconds is None,
                    )
            except OSError as error:
                what = "the layer cannot be written"
                raise explain(error, what, reason="ContainerCommitFailed") from error
        changes = rootfs.finish_changes()
        inputs.hidden.refuse_leaks()
        site.places.store.adopt(blob, written.digest)
    media_type = spec.compression.media_type or OCI_LAYER
    layer = Layer(Descriptor(media_type, written.digest, written.size), written.diff_id)
    check_budget(spec, changes, layer, site.places.store)
    if early:
        early.complete(layer.descriptor)
    return layer, changes


def check_budget(spec: BuildSpec, changes: Changes, layer: Layer, store: Store) -> None:
    """Raises `PolicyError` for a layer over the size budget: no image that has it gets a name."""
    if spec.size_budget is None or changes.size_bytes <= spec.size_budget:
        return
    from ocis2i.size_budget import hold_to_budget  # noqa: PLC0415 - few builds load it

    name = str(spec.name) if spec.name else "the image"
    hold_to_budget(spec.size_budget, changes.size_bytes, layer, store, name)


def compose(spec: BuildSpec, inputs: Inputs, layer: Layer, labels: Mapping[str, str]) -> Image:
    """The base with the new layer, started by the run script."""
    base = inputs.base
    runtime = result_config(
        base.image.config.runtime,
        run_script=inputs.run_script,
        environment=inputs.result_environment(),
        labels=labels,
        keep_entrypoint=spec.keep_entrypoint,
        start=spec.start,
    )
    history = History.of(
        created=spec.created,
        created_by=inputs.scripts["assemble"].path_in_image,
        comment="ocis2i build",
    )
    image = append_layer(base.image, layer, history, runtime)
    if digest := inputs.tree.info.file_sha256:
        return replace(image, annotations={SOURCE_SHA256_LABEL: digest})
    return image


def store_result(spec: BuildSpec, inputs: Inputs, encoded: Encoded, store: Store) -> None:
    """Puts the image into the store, with what another build of it needs to know."""
    put_names(spec, encoded, inputs.base.origin, built_of(inputs), store)


def built_of(inputs: Inputs) -> tuple[str, str]:
    """The source and the builder of a result, as another build of it needs to know them."""
    # Not of all labels: assemble may have written another place there.
    own = generated_labels(inputs.tree.info, builder=inputs.builder.name)
    return own.get(SOURCE_LOCATION_LABEL, ""), own[IMAGE_LABEL]


def put_names(
    spec: BuildSpec,
    encoded: Encoded,
    origin: Reference | None,
    built: tuple[str, str],
    store: Store,
) -> None:
    """Lets all names of a build stand for an image; `built` of which source and builder it is."""
    built_from, built_with = built
    for name in [str(name) for name in spec.names] or [""]:
        store.put_image(encoded, name, origin, built_from=built_from, built_with=built_with)


def facts_of(
    builder: Obtained, changes: Changes, isolation: str, restored: Restored | None = None
) -> dict[str, Any]:
    """What the document of the build says that the image itself does not tell."""
    return {
        "builder": _named(builder),
        "isolation": isolation,
        "incremental": bool(restored),
        "restored_from": restored.previous if restored else None,
        "changes": {"entries": changes.entries, "bytes": changes.size_bytes},
    }


def _named(found: Obtained) -> dict[str, str]:
    return {"name": found.name, "digest": str(found.manifest.descriptor.digest)}


def deliver_result(
    spec: BuildSpec,
    base: Obtained,
    image: Image,
    encoded: Encoded,
    tools: Tools,
    *,
    facts: Mapping[str, Any] | None = None,
    early: EarlyPush | None = None,
) -> tuple[tuple[Delivered, ...], bool]:
    """Writes every output, and pushes; what was written, and whether it was pushed.

    The image is in the store. `facts` of its build are for the record, see `ImageStored`; `early`
    is what of the push has begun.
    """
    config = encoded.config_descriptor.digest
    known = {"base": _named(base), **(facts or {})}
    tools.report(ImageStored(str(encoded.descriptor.digest), str(config), known))
    layers = [layer.descriptor for layer in image.layers]
    sendable = Sendable.of(encoded, layers, tools.places, known=base.reference, origin=base.origin)
    blobs = Blobs(tools.places, base.origin)
    delivered = tuple(
        write_output(output, image, encoded, blobs, name=spec.name, report=tools.report)
        for output in spec.outputs
    )
    if not spec.push or spec.name is None:
        return delivered, False
    if spec.clamp_seconds is None:  # the time of the build is in it
        sendable = replace(sendable, new=_new(encoded, layers[-1]))
    push_result(sendable, spec.names, tools, early)
    return delivered, True


def _new(encoded: Encoded, layer: Descriptor) -> frozenset[Digest]:
    """What of a new image is sent without a look whether the registry has it."""
    from ocis2i.early_push import LEAST_BYTES  # noqa: PLC0415 - for who pushes

    made = {encoded.descriptor.digest, encoded.config_descriptor.digest}
    if layer.size < LEAST_BYTES:
        made.add(layer.digest)
    return frozenset(made)


def write_output(
    output: Output,
    image: Image,
    encoded: Encoded,
    blobs: Blobs,
    *,
    name: Reference | None,
    report: Report,
) -> Delivered:
    """Writes the image to one more place, as a stage of the build."""
    with stage(report, "output", str(output)):
        delivered = deliver(output, image, encoded, blobs, name=name)
    report(OutputWritten(str(output)))
    return delivered


def push_result(
    image: Sendable, names: tuple[Reference, ...], tools: Tools, early: EarlyPush | None = None
) -> None:
    """Pushes the image by all its names, as a stage of the build."""
    with stage(tools.report, "push", ", ".join(map(str, names))):
        if early:
            early.finish()
        send(image, names, tools.places)
    tools.report(ImagePushed(tuple(map(str, names))))
