"""The flags of verbs that take a source."""

from pathlib import Path
from typing import Annotated

from ocis2i.commands.flags import StoreFlags, option
from ocis2i.lazy_dataclass import dataclass
from ocis2i.sources import DEFAULT_EXCLUDE, Source, parse_source


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SourceFlags(StoreFlags):
    """What is taken of a source, and how."""

    ref: Annotated[
        str | None, option("--ref", "-r", help="Branch, tag, commit or pull request.")
    ] = None
    context_dir: Annotated[
        str | None, option("--context-dir", metavar="DIR", help="Directory in the source.")
    ] = None
    copy: Annotated[
        bool, option("--copy", "-c", help="Copy a local directory even if it is a clone.")
    ] = False
    exclude: Annotated[
        str, option("--exclude", metavar="REGEX", help="Files of the source to leave out.")
    ] = DEFAULT_EXCLUDE
    keep_symlinks: Annotated[
        bool, option("--keep-symlinks", help="When copying, copy links as links.")
    ] = False
    ignore_submodules: Annotated[
        bool, option("--ignore-submodules", help="Leave git submodules out.")
    ] = False
    source_type: Annotated[
        str,
        option(
            "--source-type",
            metavar="TYPE",
            help="What a file as the source is: file is taken as it is, archive is unpacked, "
            "auto: its content decides.",
        ),
    ] = "auto"
    source_name: Annotated[
        str | None,
        option("--source-name", metavar="NAME", help="What a source that is one file is called."),
    ] = None

    @property
    def source_flags(self) -> list[str]:
        """The names of those of them that were given."""
        return sorted(self.given & SourceFlags.__annotations__.keys())

    def parsed(self, source: str, cwd: Path, *, depth: int | None = None) -> Source:
        """What `source` means with these flags; raises `UsageError`."""
        return parse_source(
            source,
            cwd=cwd,
            ref=self.ref,
            context_dir=self.context_dir,
            copy=self.copy,
            exclude=self.exclude,
            keep_symlinks=self.keep_symlinks,
            ignore_submodules=self.ignore_submodules,
            depth=depth,
            type=self.source_type,
            name=self.source_name,
        )
