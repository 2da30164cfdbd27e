"""What a build gets and its image must not have: injected files, build-only variables, mirrors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ocis2i.confidential import Secret, secrets_of_file, secrets_of_variable
from ocis2i.events import Event, Notice, Report, ScriptOutput
from ocis2i.injections import read_content, read_injections
from ocis2i.leaks import Finder, leak_error
from ocis2i.mirrors import MIRRORS_DIRECTORY, host_mirrors
from ocis2i.rootfs import Injected
from ocis2i.runner import BindMount
from ocis2i.settings import Settings
from ocis2i.spec import SecretSpec


@dataclass(frozen=True, slots=True)
class Hidden:
    """The secrets of a build, and who looks whether they got out.

    `environment` and `mounts` are for the build's own scripts; `injected` is put into their
    container by `Rootfs.inject`.
    """

    injected: tuple[Injected, ...]
    environment: Mapping[str, str]
    mounts: tuple[BindMount, ...]
    finder: Finder
    allow_leaks: bool

    def masked(self, report: Report) -> Report:
        """A report that shows no secret in what scripts print."""

        def show(event: Event) -> None:
            if isinstance(event, ScriptOutput):
                event = ScriptOutput(event.stream, self.finder.mask(event.line))
            report(event)

        return show

    def check(self, config: bytes, report: Report) -> None:
        """Searches the image config as well; raises `PolicyError` when a secret was found anywhere.

        Where that is allowed it warns.
        """
        self.finder.text(config.decode(), "the image config")
        if not self.finder.leaks:
            return
        error = leak_error(self.finder.leaks)
        if not self.allow_leaks:
            raise error
        report(Notice("warning", error.message))


def hide(
    spec: SecretSpec,
    workdir: str,
    directory: Path,
    *,
    settings: Settings,
    cwd: Path,
    report: Report,
) -> Hidden:
    """Reads what is to be hidden. Files of mirrors are written below the build's `directory`.

    Raises `UsageError` for injections that are not there or lead elsewhere.
    """
    files = read_injections(spec.injections, workdir=workdir, cwd=cwd)
    secrets: list[Secret] = []
    for one in files:
        secrets += secrets_of_file(f"the injected file `{one.target}`", read_content(one))
    for name, value in spec.environment.items():
        secrets += secrets_of_variable(f"the build variable `{name}`", value)
    environment = dict(spec.environment)
    mounts: tuple[BindMount, ...] = ()
    if spec.host_mirrors:
        mirrors = host_mirrors(settings.environment, settings.home)
        for sentence in mirrors.found:
            report(Notice("info", sentence))
        secrets += mirrors.secrets
        environment = {**mirrors.environment, **environment}
        mounts = _mount_files(mirrors.files, directory / "mirrors")
        mounts += tuple(
            BindMount(str(one), str(one), read_only=True) for one in mirrors.directories
        )
    injected = tuple(
        Injected(one.source, one.target, one.top, one.directory, one.keep) for one in files
    )
    return Hidden(injected, environment, mounts, Finder(secrets), spec.allow_leaks)


def _mount_files(files: Mapping[str, bytes], directory: Path) -> tuple[BindMount, ...]:
    if not files:
        return ()
    directory.mkdir()
    directory.chmod(0o755)  # for every user of the container, whatever the umask
    for name, content in files.items():
        path = directory / name
        path.write_bytes(content)
        path.chmod(0o644)
    return (BindMount(str(directory), MIRRORS_DIRECTORY, read_only=True),)
