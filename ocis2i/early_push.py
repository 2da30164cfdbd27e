"""What can go to the registry before the image is there: its base, and its layer as it is made.

While assemble runs, the layers of the base are looked for, mounted or copied. While the new layer
is compressed, it is sent. Both are attempts: what does not succeed is done again by the push
itself, which says why. Nothing has a name before the push: what was sent for a build that fails is
a blob that no manifest names, or an upload that was taken back.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from functools import partial
from typing import BinaryIO

from ocis2i.blobs import BlobSource
from ocis2i.errors import Ocis2iError
from ocis2i.events import Notice, Report
from ocis2i.growing import Growing
from ocis2i.manifest import Descriptor
from ocis2i.reference import Reference
from ocis2i.registry import Registry
from ocis2i.transfer import STOP_SECONDS, in_parallel, is_foreign
from ocis2i.whereabouts import Whereabouts

# What is compressed in less time than a few requests take is sent when it is whole.
LEAST_BYTES = 8 << 20


class EarlyPush:
    """The early part of a push to the repository of `name`; closed, it takes back what is open."""

    def __init__(
        self,
        registry: Registry,
        name: Reference,
        *,
        jobs: int = 4,
        report: Report = lambda _: None,
    ) -> None:
        self._registry = registry
        self._name = name
        self._jobs = jobs
        self._report = report
        self._cancel = threading.Event()
        self._threads: list[threading.Thread] = []
        self._growing: Growing | None = None
        self._sending: threading.Thread | None = None

    def send_base(
        self,
        layers: Sequence[Descriptor],
        source: BlobSource,
        mount_from: Sequence[Reference],
        whereabouts: Whereabouts,
    ) -> None:
        """Begins to see to it that the repository has the layers of the base."""
        wanted = {layer.digest: layer for layer in layers if not is_foreign(layer)}

        def send(layer: Descriptor) -> None:
            sources = (*mount_from, *whereabouts.of(layer.digest))
            with contextlib.suppress(Ocis2iError, OSError):
                self._registry.push_early(
                    self._name,
                    layer,
                    partial(source.open_blob, layer),
                    sources,
                    cancel=self._cancel,
                )

        actions = [partial(send, layer) for layer in wanted.values()]
        if actions:
            self._start(partial(in_parallel, actions, self._jobs, threading.Event()))

    def follow(self, blob: BinaryIO) -> Growing:
        """Something to write the new layer's blob to: what is in it is sent beside."""
        self._growing = Growing(blob, self._send, LEAST_BYTES)
        return self._growing

    def complete(self, layer: Descriptor) -> None:
        """The layer is whole, and may be kept."""
        if self._growing:
            self._growing.complete(layer)

    def finish(self) -> None:
        """Waits for all that is on its way; from now on it is told how far that is."""
        self._registry.finish_early([one for one in self._threads if one is not self._sending])
        growing, sending = self._growing, self._sending
        if growing and sending and not self._registry.finish_growing(self._name, growing, sending):
            # It waits for an answer that nobody wants, and reads nothing any more.
            self._threads.remove(sending)

    def close(self) -> None:
        """Takes back what has not succeeded."""
        self._cancel.set()
        if self._growing:
            self._growing.give_up()
        for thread in self._threads:
            thread.join(STOP_SECONDS)
        if self._growing and not any(thread.is_alive() for thread in self._threads):
            self._growing.close()

    def _send(self, growing: Growing) -> None:
        def send() -> None:
            with contextlib.suppress(Ocis2iError, OSError):
                self._registry.push_growing(self._name, growing)

        self._sending = self._start(send)

    def _start(self, action: Callable[[], None]) -> threading.Thread:
        def attempt() -> None:
            try:
                action()
            except Exception as error:  # noqa: BLE001 - the push does it again, or says why not
                said = f"{type(error).__name__}: {error}"
                self._report(
                    Notice("warning", f"a bug in ocis2i: the upload beside the build ended: {said}")
                )

        # A daemon: see `transfer.in_parallel`.
        thread = threading.Thread(target=attempt, daemon=True, name="early-push")
        self._threads.append(thread)
        thread.start()
        return thread
