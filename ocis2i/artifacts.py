"""What a save-artifacts script wrote, as a directory for the next assemble script."""

from __future__ import annotations

from pathlib import Path

from ocis2i.isolation.agent import Agent
from ocis2i.lazy_dataclass import dataclass
from ocis2i.unpack import ENTRY_LIMIT


@dataclass(frozen=True, slots=True)
class Extracted:
    """What is in the directory now; `skipped` are devices and pipes.

    `trailing_bytes` after the last archive are no tar: words for stderr, as a rule.
    """

    entries: int
    size_bytes: int
    skipped: int
    trailing_bytes: int


def extract(agent: Agent, tar_file_fd: int, into: Path, *, size_limit: int) -> Extracted:
    """Extracts the tar in a file, read from where it stands, into the new directory `into`.

    Nothing at all is an empty directory; several archives may follow each other. After an error
    there is no directory. Raises `ImageError` for what is no tar, broken or hostile, `PolicyError`
    for more than `size_limit` bytes.
    """
    answer = agent.request(
        "extract",
        tar_file_fd,
        into=str(into),
        size_limit=size_limit,
        entry_limit=ENTRY_LIMIT,
    )
    return Extracted(answer["entries"], answer["size"], answer["skipped"], answer["trailing"])
