"""The result of a build: its labels and layer, the image made of them, and where that goes."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing

from ocis2i.compression import compress
from ocis2i.container import Site
from ocis2i.errors import ImageError
from ocis2i.events import stage
from ocis2i.fs import explain
from ocis2i.images import Blobs, Obtained
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
from ocis2i.outputs import Delivered, deliver
from ocis2i.publish import Sendable, send
from ocis2i.rebuild import IMAGE_LABEL
from ocis2i.rootfs import Changes, Rootfs
from ocis2i.s2i import (
    IMAGE_METADATA_PATH,
    SOURCE_LOCATION_LABEL,
    check_label_size,
    generated_labels,
    parse_image_metadata,
    result_config,
)
from ocis2i.spec import BuildSpec
from ocis2i.store import Store
from ocis2i.tools import Tools


def image_labels(spec: BuildSpec, inputs: Inputs, rootfs: Rootfs) -> dict[str, str]:
    """Those of the base, ours, and what assemble wrote into its file, which wins."""
    labels = dict(inputs.base.image.config.runtime.labels)
    labels |= generated_labels(
        inputs.tree.info,
        builder=inputs.builder.name,
        tag=spec.tag,
        description=spec.description,
        application_name=spec.application_name,
    )
    try:
        metadata = rootfs.read_text(IMAGE_METADATA_PATH)
    except ImageError as error:
        error.reason = "GenericS2IBuildFailed"  # nothing that was pulled
        raise
    if metadata is not None:
        labels |= parse_image_metadata(metadata.encode(errors="surrogateescape"))
    check_label_size(labels)
    return labels


def write_layer(
    spec: BuildSpec, inputs: Inputs, rootfs: Rootfs, site: Site
) -> tuple[Layer, Changes]:
    """The change set as a blob in the store: one pass for both digests and compression."""
    # What lies above the artifacts is in a runtime image that nobody has seen.
    unseen = rootfs.made if inputs.runtime and not inputs.runtime.layers_needed else ()
    with site.places.store.scratch_file() as blob:
        read_end, write_end = os.pipe()
        with os.fdopen(read_end, "rb", buffering=1 << 20) as tar:
            try:
                rootfs.write_changes(write_end, clamp_mtime=spec.clamp_seconds, unlisted=unseen)
            finally:
                os.close(write_end)
            try:
                with closing(inputs.hidden.finder.stream(tar, "the layer")) as searched:
                    written = compress(
                        searched,
                        blob,
                        compression=spec.compression,
                        level=spec.compression_level,
                    )
            except OSError as error:
                what = "the layer cannot be written"
                raise explain(error, what, reason="ContainerCommitFailed") from error
        changes = rootfs.finish_changes()
        inputs.hidden.refuse_leaks()
        site.places.store.adopt(blob, written.digest)
    media_type = spec.compression.media_type or OCI_LAYER
    return Layer(Descriptor(media_type, written.digest, written.size), written.diff_id), changes


def compose(spec: BuildSpec, inputs: Inputs, layer: Layer, labels: Mapping[str, str]) -> Image:
    """The base with the new layer, started by the run script."""
    base = inputs.base
    runtime = result_config(
        base.image.config.runtime,
        run_script=inputs.run_script,
        environment=inputs.environment(base),
        labels=labels,
        keep_entrypoint=spec.keep_entrypoint,
    )
    history = History.of(
        created=spec.created,
        created_by=inputs.scripts["assemble"].path_in_image,
        comment="ocis2i build",
    )
    return append_layer(base.image, layer, history, runtime)


def store_result(spec: BuildSpec, inputs: Inputs, encoded: Encoded, store: Store) -> None:
    """Puts the image into the store, with what another build of it needs to know."""
    # Not of all labels: assemble may have written another place there.
    own = generated_labels(inputs.tree.info, builder=inputs.builder.name)
    for name in [str(name) for name in spec.names] or [""]:
        store.put_image(
            encoded,
            name,
            inputs.base.origin,
            built_from=own.get(SOURCE_LOCATION_LABEL, ""),
            built_with=own[IMAGE_LABEL],
        )


def deliver_result(
    spec: BuildSpec, base: Obtained, image: Image, encoded: Encoded, tools: Tools
) -> tuple[tuple[Delivered, ...], bool]:
    """Writes every output, and pushes; what was written, and whether it was pushed."""
    delivered = []
    blobs = Blobs(tools.places, base.origin)
    for output in spec.outputs:
        with stage(tools.report, "output", str(output)):
            delivered.append(deliver(output, image, encoded, blobs, name=spec.name))
    if not spec.push or spec.name is None:
        return tuple(delivered), False
    with stage(tools.report, "push", ", ".join(map(str, spec.names))):
        layers = [layer.descriptor for layer in image.layers]
        sendable = Sendable.of(
            encoded, layers, tools.places, known=base.reference, origin=base.origin
        )
        send(sendable, spec.names, tools.places)
    return tuple(delivered), True
