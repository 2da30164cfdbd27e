"""What a build gets and its image must not have: injected files, build-only variables, mirrors."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal

from ocis2i.allowed_hosts import Rule
from ocis2i.errors import Ocis2iError
from ocis2i.events import (
    Event,
    NetworkEnded,
    Notice,
    Report,
    ScriptOutput,
    StageEnded,
    StageStarted,
)
from ocis2i.isolation.agent import Agent
from ocis2i.isolation.streams import LONGEST_LINE
from ocis2i.lazy_dataclass import dataclass
from ocis2i.leaks import Finder, leak_error
from ocis2i.runner import BindMount
from ocis2i.settings import Settings
from ocis2i.spec import SecretSpec

if TYPE_CHECKING:
    from ocis2i.confidential import Secret
    from ocis2i.injections import InjectedFile

_PIECE = 1 << 20


@dataclass(frozen=True, slots=True)
class Hidden:
    """The secrets of a build, and who looks whether they got out.

    `environment` and `mounts` are for the build's own scripts; `injected` is put into their
    container by `Rootfs.inject`. `mirror_hosts` are what the settings of the mirrors name.
    """

    injected: tuple[InjectedFile, ...]
    environment: Mapping[str, str]
    mounts: tuple[BindMount, ...]
    finder: Finder
    allow_leaks: bool
    mirror_hosts: tuple[Rule, ...] = ()

    def masked(self, report: Report) -> Report:
        """A report that shows no secret, neither in what scripts print nor in our own words."""
        return _Mask(self.finder, report) if self.finder.longest else report

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Takes the secrets out of errors: an image may have put them into what they name."""
        try:
            yield
        except Ocis2iError as error:
            error.message = self.finder.mask(error.message)
            error.hint = error.hint and self.finder.mask(error.hint)
            error.failure = error.failure and error.failure.masked(self.finder.mask)
            raise

    def search(self, file: BinaryIO, where: str) -> None:
        """Searches a whole file and goes back to its beginning; raises as `refuse_leaks`."""
        if self.finder.longest:
            with closing(self.finder.stream(_Kept(file), where)) as searched:
                while searched.read(_PIECE):
                    pass
            file.seek(0)
        self.refuse_leaks()

    def refuse_leaks(self) -> None:
        """Raises `PolicyError` when a secret was found so far, unless that is allowed."""
        if self.finder.leaks and not self.allow_leaks:
            raise leak_error(self.finder.leaks)

    def check(self, config: bytes, report: Report) -> None:
        """Searches the image config, then as `refuse_leaks`; warns of leaks that are allowed."""
        self.finder.text(config.decode(), "the image config")
        self.refuse_leaks()
        if self.finder.leaks:
            report(Notice("warning", leak_error(self.finder.leaks).message))


class _Mask:
    """Passes events on, masked.

    A line that was cut for its length may be cut within a secret: of such a piece the end is held
    back until the next one comes.
    """

    def __init__(self, finder: Finder, report: Report) -> None:
        self._finder = finder
        self._report = report
        self._held: dict[Literal["stdout", "stderr"], str] = {}

    def __call__(self, event: Event) -> None:
        match event:
            case ScriptOutput(stream, line):
                self._output(stream, line)
                return
            case StageStarted(stage, detail):
                event = StageStarted(stage, self._finder.mask(detail))
            case Notice(level, message):
                event = Notice(level, self._finder.mask(message))
            case NetworkEnded(network, hosts, more):
                listed = tuple((self._finder.mask(host), port, fate) for host, port, fate in hosts)
                event = NetworkEnded(network, listed, more)
            case StageEnded():
                for stream in tuple(self._held):
                    self._report(ScriptOutput(stream, self._held.pop(stream)))
            case _:
                pass
        self._report(event)

    def _output(self, stream: Literal["stdout", "stderr"], line: str) -> None:
        was_cut = len(line.encode(errors="replace")) >= LONGEST_LINE
        text = self._finder.mask(self._held.pop(stream, "") + line)
        if was_cut:
            kept = self._finder.longest - 1
            text, self._held[stream] = text[:-kept], text[-kept:]
        self._report(ScriptOutput(stream, text))


@dataclass(frozen=True, slots=True)
class _Kept:
    """A file that stays open when its reader is closed."""

    file: BinaryIO

    def read(self, size: int = -1, /) -> bytes:
        return self.file.read(size)

    def close(self) -> None:
        pass


def hide(
    spec: SecretSpec,
    workdir: str,
    directory: Path,
    agent: Agent,
    *,
    settings: Settings,
    cwd: Path,
    report: Report,
    chosen: Container[str] = (),
    proxies: bool = True,
) -> Hidden:
    """Reads what is to be hidden.

    The agent keeps the files of mirrors in memory, on a directory in the build's `directory`. Of
    their variables those that the user has `chosen` for the image are left alone; `proxies` are
    for who can reach them. Raises `UsageError` for injections that are not there or lead elsewhere.
    """
    files, secrets = _injected(spec, workdir, cwd)
    secrets += _of_variables(spec.environment)
    environment = dict(spec.environment)
    mounts: tuple[BindMount, ...] = ()
    hosts: tuple[Rule, ...] = ()
    if spec.host_mirrors:
        from ocis2i.mirrors import host_mirrors, mirror_hosts  # noqa: PLC0415 - few builds load it

        mirrors = host_mirrors(settings.environment, settings.home, proxies=proxies)
        hosts = mirror_hosts(mirrors)
        for sentence in mirrors.found:
            report(Notice("info", sentence))
        secrets += mirrors.secrets
        found = {name: text for name, text in mirrors.environment.items() if name not in chosen}
        environment = {**found, **environment}
        mounts = _mount_files(mirrors.files, directory / "mirrors", agent)
        mounts += tuple(
            BindMount(str(one), str(one), read_only=True) for one in mirrors.directories
        )
    return Hidden(files, environment, mounts, Finder(secrets), spec.allow_leaks, hosts)


def _injected(
    spec: SecretSpec, workdir: str, cwd: Path
) -> tuple[tuple[InjectedFile, ...], list[Secret]]:
    """The files of `--inject`, and what is secret in them."""
    if not spec.injections:
        return (), []
    from ocis2i.confidential import secrets_of_file  # noqa: PLC0415 - few builds load it
    from ocis2i.injections import read_content, read_injections  # noqa: PLC0415

    files = read_injections(spec.injections, workdir=workdir, cwd=cwd)
    secrets: list[Secret] = []
    for one in files:
        secrets += secrets_of_file(f"the injected file `{one.target}`", read_content(one))
    return files, secrets


def _of_variables(variables: Mapping[str, str]) -> list[Secret]:
    if not variables:
        return []
    from ocis2i.confidential import secrets_of_variable  # noqa: PLC0415 - few builds load it

    secrets: list[Secret] = []
    for name, value in variables.items():
        secrets += secrets_of_variable(f"the build variable `{name}`", value)
    return secrets


def _mount_files(
    files: Mapping[str, bytes], directory: Path, agent: Agent
) -> tuple[BindMount, ...]:
    if not files:
        return ()
    from ocis2i.mirrors import MIRRORS_DIRECTORY  # noqa: PLC0415 - few builds load it

    contents = {name: content.decode("latin-1") for name, content in files.items()}
    agent.request("keep", directory=str(directory), files=contents)
    return (BindMount(str(directory), MIRRORS_DIRECTORY, read_only=True),)
