"""The flags of who wants to watch a build: where its record lies, and its events as they come."""

from typing import Annotated

from ocis2i.commands.flags import StoreFlags, option
from ocis2i.lazy_dataclass import dataclass


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class RecordFlags(StoreFlags):
    """Verbs that build."""

    record: Annotated[
        str | None,
        option(
            "--record",
            metavar="DIR",
            help="Put the build's record there, a new or empty directory. Default: in the store.",
        ),
    ] = None
    events: Annotated[
        str | None,
        option(
            "--events",
            metavar="FILE",
            help="Write what happens there, a JSON line each; - for stdout, which has no other "
            "result then.",
        ),
    ] = None
