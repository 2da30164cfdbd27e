"""What the user asked for: a build as a value, complete before anything is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from datetime import datetime
from typing import TYPE_CHECKING

from ocis2i.allowed_hosts import AllowList
from ocis2i.compression import Compression
from ocis2i.container_options import HostEntry
from ocis2i.images import PullPolicy
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import Limits
from ocis2i.mappings import PathPair
from ocis2i.outputs import Output
from ocis2i.reference import Location, Platform, Reference
from ocis2i.remote_cache import CacheSpec
from ocis2i.runner import BindMount, Hardening, Network
from ocis2i.s2i import Start
from ocis2i.sources import Source
from ocis2i.uids import UidRanges

if TYPE_CHECKING:  # few builds load it
    from ocis2i.parameters import ParameterSpec


@dataclass(frozen=True, slots=True)
class RuntimeSpec:
    """A result on another image than the builder: only `artifacts` travel.

    Without `artifacts` the label of the runtime image names them. `run_nothing` leaves out its
    assemble-runtime script.
    """

    image: Location
    artifacts: tuple[PathPair, ...] = ()
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    user: str | None = None
    run_nothing: bool = False


@dataclass(frozen=True, slots=True)
class SecretSpec:
    """What a build gets and its image must not have.

    `environment` is for the scripts of the build alone. `keep_names`: injected files are in the
    image, empty.
    """

    injections: tuple[PathPair, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    host_mirrors: bool = False
    keep_names: bool = True
    allow_leaks: bool = False

    @property
    def telling(self) -> tuple[str, ...]:
        """The values that are looked for in words: shorter ones are in too many that are none."""
        return tuple(value for value in self.environment.values() if len(value) > 3)


@dataclass(frozen=True, slots=True)
class BuildSpec:
    """One build. `tag` is the result's name as typed, `name` the same as a reference.

    It has `more_names` besides. `created` is the time of the image, `clamp_seconds` (since 1970)
    the latest time in it, `None` when files keep their own.
    `reuse_seconds`: for so long the finished image of the same input counts, `None`: it is
    built in any case, and counts for the next. `size_budget` are bytes that the layer's files may
    have.
    """

    source: Source
    builder: Location
    created: datetime
    tag: str | None = None
    name: Reference | None = None
    more_names: tuple[Reference, ...] = ()
    push: bool = False
    outputs: tuple[Output, ...] = ()
    platform: Platform | None = None
    pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    environment: Mapping[str, str] = field(default_factory=dict)
    parameters: ParameterSpec | None = None
    secrets: SecretSpec = field(default_factory=SecretSpec)
    mounts: tuple[BindMount, ...] = ()
    cap_drop: frozenset[str] = frozenset()
    limits: Limits = field(default_factory=Limits)
    hardening: Hardening = field(default_factory=Hardening)
    network: Network = "host"
    allowed_hosts: AllowList = field(default_factory=AllowList)
    add_hosts: tuple[HostEntry, ...] = ()
    scripts_url: str | None = None
    destination: str | None = None
    assemble_user: str | None = None
    allowed_uids: UidRanges = field(default_factory=UidRanges)
    ignore_onbuild: bool = False
    via_entrypoint: bool = False
    description: str | None = None
    application_name: str | None = None
    incremental: bool = False
    cache: CacheSpec | None = None
    previous_pull_policy: PullPolicy = PullPolicy.IF_NOT_PRESENT
    runtime: RuntimeSpec | None = None
    keep_entrypoint: bool = False
    start: Start = field(default_factory=Start)
    prune_upload: bool = False
    save_upload: bool = False
    shell_on_failure: bool = False
    keep_failed: bool = False
    size_budget: int | None = None
    keep_blobs: bool = False
    clamp_seconds: int | None = None
    compression: Compression = Compression.GZIP
    compression_level: int | None = None
    isolation: str | None = None
    reuse_seconds: float | None = None

    @property
    def names(self) -> tuple[Reference, ...]:
        """All names of the result."""
        return (self.name, *self.more_names) if self.name else ()
