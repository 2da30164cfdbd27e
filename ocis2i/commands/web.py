"""Servers that are no registries: scripts come from them, and who asks is told of the end there."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from ocis2i.callback import notify
from ocis2i.commands.connection import tls_settings
from ocis2i.commands.context import Context
from ocis2i.download import ScriptDownloads
from ocis2i.events import Report
from ocis2i.lazy_dataclass import dataclass
from ocis2i.net import Http
from ocis2i.scripts import Download


@dataclass(frozen=True, slots=True)
class Web:
    """Scripts from servers, and messages to them."""

    http: Http
    report: Report
    download: Download

    def call_back(self, url: str, *, success: bool, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Tells `url` how the build ended; the messages about it, which are no errors."""
        return notify(url, success=success, labels=labels, http=self.http, report=self.report)


@contextmanager
def web(here: Context) -> Iterator[Web]:
    """A way to the servers, closed at the end."""
    environment = here.tools.settings.environment
    tls = tls_settings(here.registries, environment)
    http = Http(environment, tls_verify=here.registries.tls_verify, tls=tls)
    try:
        yield Web(http, here.recorder, ScriptDownloads(http, here.recorder))
    finally:
        http.close()
