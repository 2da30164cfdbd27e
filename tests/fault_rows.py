"""What goes wrong between ocis2i and a registry, and how a push, a pull or a build takes it.

The tests take their expectations from here, and `tests/fault_table.py` the page for people: so
there is no row without a test. Imports nothing but the standard library.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

# Into the layer of the test's images, and far behind the end of their configs.
MIDDLE = 300_000
PAGE_BODY = b"<html><body>Welcome to this network</body></html>"
_PAGE = {"status": 200, "headers": {"Content-Type": "text/html"}, "body": PAGE_BODY}


@dataclass(frozen=True, slots=True)
class Trouble:
    """A rule of the proxy for requests to the row's repository (`tests/fakes/fault_proxy.py`)."""

    method: str
    path: str
    how: Mapping[str, Any]


def trouble(method: str, path: str, **how: Any) -> Trouble:
    """One for whatever in the repository has this beginning."""
    return Trouble(method, path, how)


@dataclass(frozen=True, slots=True)
class Row:
    """One fault: what is done meanwhile, and whether it `recovers` or ends with what is `said`.

    `asked` are the numbers of requests that it takes then, by method and the beginning of their
    path in the repository; `again` is that a download goes on in the middle. `flags` are given
    besides, `password` in place of the right one.
    """

    id: str
    fault: str
    verb: Literal["push", "pull", "build"]
    troubles: tuple[Trouble, ...]
    recovers: str = ""
    said: str = ""
    code: int = 5
    asked: Mapping[str, int] = field(default_factory=dict)
    again: bool = False
    flags: tuple[str, ...] = ()
    password: str = ""
    full_disk: bool = False


_UPLOADS, _BLOB, _MANIFEST = "blobs/uploads/", "blobs/sha256:", "manifests/"
_CHUNKED = ("--upload", "chunked")
_EXPIRED = {
    "status": 401,
    "headers": {"WWW-Authenticate": 'Bearer realm="http://{host}/token",service="fake"'},
}

PUSHES = (
    Row(
        "no-fault",
        "none",
        "push",
        (),
        "sends each blob once",
        asked={"POST blobs": 2, "PUT blobs": 2, "PUT manifests": 1},
    ),
    Row(
        "upload-503",
        "503 when an upload begins",
        "push",
        (trouble("POST", _UPLOADS, status=503),),
        "asks again",
        asked={"POST blobs": 3, "PUT blobs": 2},
    ),
    Row(
        "upload-429",
        "429 with `Retry-After` when an upload begins",
        "push",
        (trouble("POST", _UPLOADS, status=429, headers={"Retry-After": "1"}),),
        "asks again after that time",
        asked={"POST blobs": 3, "PUT blobs": 2},
    ),
    Row(
        "put-502",
        "502 after a blob was sent",
        "push",
        (trouble("PUT", _UPLOADS, status=502),),
        "sends that blob again",
        asked={"PUT blobs": 3, "PUT manifests": 1},
    ),
    Row(
        "put-500",
        "500 after a blob was sent",
        "push",
        (trouble("PUT", _UPLOADS, status=500),),
        "sends that blob again",
        asked={"PUT blobs": 3, "PUT manifests": 1},
    ),
    Row(
        "patch-502",
        "502 after a chunk was sent",
        "push",
        (trouble("PATCH", _UPLOADS, status=502),),
        "asks how far the upload is, and goes on there",
        asked={"PATCH blobs": 3, "PUT manifests": 1},
        flags=_CHUNKED,
    ),
    Row(
        "patch-500",
        "500 after a chunk was sent",
        "push",
        (trouble("PATCH", _UPLOADS, status=500),),
        "asks how far the upload is, and goes on there",
        asked={"PATCH blobs": 3, "PUT manifests": 1},
        flags=_CHUNKED,
    ),
    Row(
        "put-reset",
        "reset in the middle of a blob",
        "push",
        (trouble("PUT", _UPLOADS, after_sent=MIDDLE),),
        "sends that blob again",
        asked={"PUT blobs": 3, "PUT manifests": 1},
    ),
    Row(
        "patch-reset",
        "reset in the middle of a chunk",
        "push",
        (trouble("PATCH", _UPLOADS, after_sent=MIDDLE),),
        "sends that blob again: the registry has forgotten the upload",
        asked={"PUT manifests": 1},
        flags=_CHUNKED,
    ),
    Row(
        "put-503-in-the-middle",
        "503 in the middle of a blob",
        "push",
        (trouble("PUT", _UPLOADS, after_sent=MIDDLE, status=503, end="answer"),),
        "sends that blob again",
        asked={"PUT blobs": 3, "PUT manifests": 1},
    ),
    Row(
        "put-answer-lost",
        "the answer is lost after a blob was stored",
        "push",
        (trouble("PUT", _UPLOADS, drop=True),),
        "sees that the blob is there",
        asked={"PUT blobs": 2, "PUT manifests": 1},
    ),
    Row(
        "patch-answer-lost",
        "the answer is lost after a chunk was stored",
        "push",
        (trouble("PATCH", _UPLOADS, drop=True),),
        "sends that blob again: the registry has forgotten the upload",
        asked={"PATCH blobs": 3, "PUT manifests": 1},
        flags=_CHUNKED,
    ),
    Row(
        "manifest-put-503",
        "503 for the manifest",
        "push",
        (trouble("PUT", _MANIFEST, status=503),),
        "sends the manifest again, and no blob",
        asked={"PUT blobs": 2, "PUT manifests": 2},
    ),
    Row(
        "manifest-answer-lost",
        "the answer is lost after the manifest was stored",
        "push",
        (trouble("PUT", _MANIFEST, drop=True),),
        "sends the manifest again, and no blob",
        asked={"PUT blobs": 2, "PUT manifests": 2},
    ),
    Row(
        "token-expired",
        "the token expires before the manifest",
        "push",
        (trouble("PUT", _MANIFEST, **_EXPIRED),),
        "gets another token, and sends no blob again",
        asked={"PUT blobs": 2, "PUT manifests": 2},
    ),
    Row(
        "upload-503-always",
        "503 when an upload begins, always",
        "push",
        (trouble("POST", _UPLOADS, times=-1, status=503),),
        said="answered 503",
        asked={"PUT blobs": 0, "PUT manifests": 0},
    ),
    Row(
        "put-reset-always",
        "reset in the middle of a blob, always",
        "push",
        (trouble("PUT", _UPLOADS, times=-1, after_sent=MIDDLE),),
        said="the connection broke",
        asked={"PUT manifests": 0},
    ),
    Row(
        "manifest-put-500-always",
        "500 for the manifest, always",
        "push",
        (trouble("PUT", _MANIFEST, times=-1, status=500),),
        said="answered 500",
        asked={"PUT blobs": 2},
    ),
    Row(
        "put-413-always",
        "413 before a blob is read, always, chunks as well",
        "push",
        (trouble("PUT|PATCH", _UPLOADS, times=-1, status=413, early=True),),
        said="answered 413",
        asked={"PUT manifests": 0},
    ),
    Row(
        "wrong-password",
        "a wrong password",
        "push",
        (),
        said="login to registry",
        asked={"HEAD": 0, "POST": 0, "PUT": 0},
        password="wr0ng",
    ),
)

PULLS = (
    Row(
        "manifest-get-503",
        "503 for the manifest",
        "pull",
        (trouble("GET", _MANIFEST, status=503),),
        "asks again",
        asked={"GET manifests": 2, "GET blobs": 2},
    ),
    Row(
        "manifest-get-429",
        "429 with `Retry-After` for the manifest",
        "pull",
        (trouble("GET", _MANIFEST, status=429, headers={"Retry-After": "1"}),),
        "asks again after that time",
        asked={"GET manifests": 2, "GET blobs": 2},
    ),
    Row(
        "blob-get-503",
        "503 for a blob",
        "pull",
        (trouble("GET", _BLOB, status=503),),
        "asks again",
        asked={"GET blobs": 3},
    ),
    Row(
        "blob-cut-off",
        "a blob that ends too early",
        "pull",
        (trouble("GET", _BLOB, after_received=MIDDLE, end="close"),),
        "gets the rest of it",
        asked={"GET blobs": 3},
        again=True,
    ),
    Row(
        "blob-get-reset",
        "reset in the middle of a blob",
        "pull",
        (trouble("GET", _BLOB, after_received=MIDDLE),),
        "gets the rest of it",
        asked={"GET blobs": 3},
        again=True,
    ),
    Row(
        "blob-corrupt",
        "a blob with a wrong byte",
        "pull",
        (trouble("GET", _BLOB, corrupt=100),),
        "notices, and gets it again",
        asked={"GET blobs": 3},
    ),
    Row(
        "blob-is-a-page",
        "a web page with status 200 in the place of a blob",
        "pull",
        (trouble("GET", _BLOB, **_PAGE),),
        "notices, and gets it again",
        asked={"GET blobs": 3},
    ),
    Row(
        "content-encoding",
        "`Content-Encoding: gzip` on every blob, none of which is compressed twice",
        "pull",
        (trouble("GET", _BLOB, times=-1, more_headers={"Content-Encoding": "gzip"}),),
        "takes the bytes as they come",
        asked={"GET blobs": 2},
    ),
    Row(
        "manifest-get-503-always",
        "503 for the manifest, always",
        "pull",
        (trouble("GET", _MANIFEST, times=-1, status=503),),
        said="answered 503",
        asked={"GET blobs": 0},
    ),
    Row(
        "blob-cut-off-always",
        "a blob that ends too early, always",
        "pull",
        (
            trouble("GET", _BLOB, after_received=MIDDLE, end="close"),
            trouble("GET", _BLOB, times=-1, after_received=2000, end="close"),
        ),
        said="the answer ended too early",
        again=True,
    ),
    Row(
        "blob-corrupt-always",
        "a blob with a wrong byte, always",
        "pull",
        (trouble("GET", _BLOB, times=-1, corrupt=100),),
        said="came with digest",
    ),
    Row(
        "blob-is-a-page-always",
        "a web page with status 200 in the place of a blob, always",
        "pull",
        (trouble("GET", _BLOB, times=-1, **_PAGE),),
        said="came with 49 bytes (text/html) instead of",
    ),
    Row(
        "manifest-is-a-page-always",
        "a web page with status 200 in the place of the manifest, always",
        "pull",
        (trouble("GET", _MANIFEST, times=-1, **_PAGE),),
        said="is a web page",
        asked={"GET blobs": 0},
    ),
    Row(
        "redirect-loop",
        "a blob is said to be where it was asked for, always",
        "pull",
        (
            trouble(
                "GET",
                _BLOB,
                times=-1,
                status=307,
                headers={"Location": "http://{host}{path}"},
            ),
        ),
        said="was redirected 10 times",
    ),
    Row(
        "disk-full",
        "no room for a blob",
        "pull",
        (),
        said="the store cannot be written",
        code=8,
        full_disk=True,
    ),
)

BUILDS = (
    Row(
        "build-many-faults",
        "503 for the builder's manifest, reset in the middle of its layer, 502 for the new "
        "layer, 503 for the new manifest",
        "build",
        (
            trouble("GET", _MANIFEST, status=503),
            trouble("GET", _BLOB, after_received=MIDDLE),
            trouble("PUT", _UPLOADS, status=502),
            trouble("PUT", _MANIFEST, status=503),
        ),
        "asks again, gets the rest, sends the new layer again and nothing of the builder",
        asked={"GET manifests": 2, "PUT manifests": 2},
    ),
    Row(
        "build-manifest-500-always",
        "500 for the new manifest, always",
        "build",
        (trouble("PUT", _MANIFEST, times=-1, status=500),),
        said="answered 500",
    ),
)

ROWS = (*PUSHES, *PULLS, *BUILDS)
