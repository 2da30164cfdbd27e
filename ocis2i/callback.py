"""The callback of a build: tells a URL how it ended, and never changes how it ends.

As source-to-image does it (`pkg/util/callback.go`), but every attempt sends the whole body.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping

from ocis2i.errors import RegistryError, UsageError, shown
from ocis2i.events import Notice, Report
from ocis2i.net import (
    Http,
    Request,
    RequestError,
    is_web_url,
    message_with_url,
    redacted,
    split_credentials,
)
from ocis2i.retries import Retries, RetryPolicy, Sleep

ATTEMPTS = 3
ANSWER_SECONDS = 30.0
_POLICY = RetryPolicy(tries=ATTEMPTS, tries_unreachable=ATTEMPTS)
# What Go's encoder escapes inside text, so that the JSON may stand in a web page.
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


def check_callback_url(text: str) -> None:
    """Raises `UsageError` when `text` is no absolute http or https URL."""
    if not is_web_url(text):
        raise UsageError(
            f"--callback-url is `{shown(redacted(text))}`, which is no http or https URL",
            hint="write it as https://host/path",
        )


def encode_callback(*, success: bool, labels: Mapping[str, str]) -> bytes:
    """The body: `{"labels":{...},"success":true}` and a line feed; no empty `labels`."""
    document: dict[str, object] = {"labels": dict(labels)} if labels else {}
    document["success"] = success
    text = json.dumps(document, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
    return text.translate(_ESCAPES).encode(errors="replace") + b"\n"


def notify(
    url: str,
    *,
    success: bool,
    labels: Mapping[str, str],
    http: Http,
    report: Report,
    sleep: Sleep | None = None,
) -> tuple[str, ...]:
    """Sends the callback; returns what went wrong, which is also reported as warnings.

    Any answer ends it. Without one it is tried `ATTEMPTS` times in all, with `sleep` between.
    Trouble of the network raises nothing.
    """
    address, authorization = split_credentials(url)
    request = Request(
        "POST",
        address,
        {"Content-Type": "application/json"},
        encode_callback(success=success, labels=labels),
        authorization,
        ANSWER_SECONDS,
        registry=False,
    )
    messages = _send(request, http, Retries(sleep or threading.Event().wait, policy=_POLICY))
    for message in messages:
        report(Notice("warning", message))
    return messages


def _send(request: Request, http: Http, retries: Retries) -> tuple[str, ...]:
    try:
        status = retries.call(lambda: _post(request, http))
    except RegistryError as error:
        return (f"Unable to invoke callback: {message_with_url(error, request.url)}",)
    return (f"Callback returned with error code: {status}",) if status >= 300 else ()


def _post(request: Request, http: Http) -> int:
    try:
        response = http.exchange(request)
    except RequestError as error:
        # A redirect that a POST cannot follow is an answer, too.
        if error.status:
            return error.status
        raise
    response.close()
    return response.status_code
