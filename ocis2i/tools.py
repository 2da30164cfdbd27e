"""What a verb works with: the settings, the store and the registries, and whom it tells."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from ocis2i.events import Report
from ocis2i.images import Places
from ocis2i.lazy_dataclass import dataclass
from ocis2i.settings import Settings
from ocis2i.store import Store

if TYPE_CHECKING:
    from ocis2i.scripts import Download


@dataclass(frozen=True, slots=True)
class Tools:
    """What a build works with; a test gives it others."""

    settings: Settings
    places: Places
    report: Report
    cwd: Path
    download: Download | None = None
    stdin: BinaryIO | None = None

    @property
    def store(self) -> Store:
        """Where images are kept."""
        return self.places.store
