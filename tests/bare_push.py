"""What the bytes and round trips of a push take by themselves, without a program that starts.

The same requests as a push makes, by plain connections of a process that runs already: who is
there, the tag, a look for each blob, what is missing, the manifest.
"""

from __future__ import annotations

import http.client
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from time import perf_counter
from typing import Protocol
from urllib.parse import urlsplit

from tests.fakes.images import LayoutImage
from tests.meter import Measured

_AT_A_TIME = 8


def push_alone(image: LayoutImage, host: str, repository: str, tag: str) -> Measured:
    """Pushes an image by as few trips as there are; raises `RuntimeError` for a refusal.

    Neither processor time nor memory are measured: the process has them for other things, too.
    """
    began = perf_counter()
    with _connections(host) as ask:
        manifest = image.manifest
        ask("GET", "/v2/")
        ask("HEAD", f"/v2/{repository}/manifests/{tag}")
        blobs = [entry["digest"] for entry in (*manifest["layers"], manifest["config"])]

        def bring(digest: str) -> None:
            status, _ = ask("HEAD", f"/v2/{repository}/blobs/{digest}")
            if status == 404:
                _, place = ask("POST", f"/v2/{repository}/blobs/uploads/")
                joint = "&" if urlsplit(place).query else "?"
                address = place.removeprefix(f"http://{host}")
                ask("PUT", f"{address}{joint}digest={digest}", image.blob(digest).read_bytes())

        with ThreadPoolExecutor(_AT_A_TIME) as pool:
            list(pool.map(bring, blobs))
        raw = image.blob(image.digest).read_bytes()
        kind = {"Content-Type": "application/vnd.oci.image.manifest.v1+json"}
        ask("PUT", f"/v2/{repository}/manifests/{tag}", raw, kind)
    return Measured(perf_counter() - began, 0.0, 0)


class _Asking(Protocol):
    def __call__(
        self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]: ...


@contextmanager
def _connections(host: str) -> Iterator[_Asking]:
    """Asks by a connection of each thread; the status and `Location` of the answer."""
    mine = threading.local()
    opened: list[http.client.HTTPConnection] = []

    def ask(
        method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> tuple[int, str]:
        if not hasattr(mine, "connection"):
            mine.connection = http.client.HTTPConnection(host, timeout=60)
            opened.append(mine.connection)
        mine.connection.request(method, path, body, dict(headers or {}))
        answer = mine.connection.getresponse()
        answer.read()
        if answer.status >= 400 and (method, answer.status) != ("HEAD", 404):
            raise RuntimeError(f"{method} {path}: {answer.status}")
        return answer.status, answer.headers.get("Location", "")

    try:
        yield ask
    finally:
        for connection in opened:
            connection.close()
