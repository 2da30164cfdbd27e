"""Opens a shell where a script has failed: in its tree, as its user, with all that it had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from ocis2i.container import Failed
from ocis2i.errors import Interrupted, Ocis2iError, UsageError
from ocis2i.events import Notice
from ocis2i.failure import screen
from ocis2i.isolation.console import is_terminal, size
from ocis2i.runner import RunSpec, Stdio

# The best first. busybox is one program that may be there without the links to it.
_SHELLS: tuple[tuple[str, ...], ...] = (
    ("/bin/bash",),
    ("/usr/bin/bash",),
    ("/bin/sh",),
    ("/usr/bin/sh",),
    ("/bin/busybox", "sh"),
    ("/usr/bin/busybox", "sh"),
)


class Tree(Protocol):
    """The failed tree, as far as it is looked at."""

    def modes(self, paths: Sequence[str]) -> list[int | None]:
        """The mode of each path, `None` where there is nothing."""


def check_terminal() -> None:
    """Raises `UsageError` where nobody could use the shell: before the build is the time for it."""
    if not is_terminal():
        raise UsageError(
            "--shell-on-failure needs a terminal, as standard input and as standard error",
            hint="leave it out where nobody sits, as in CI",
        )


def find_shell(tree: Tree) -> tuple[str, ...] | None:
    """The best shell of a tree, `None` when it has none."""
    modes = tree.modes([shell[0] for shell in _SHELLS])
    for shell, mode in zip(_SHELLS, modes, strict=True):
        if mode is not None and mode & 0o111:
            return shell
    return None


def plan_shell(
    shell: tuple[str, ...], failed: RunSpec, kind: str, terminal: tuple[int, int]
) -> RunSpec:
    """The run of a `shell` in place of one that `failed`: the same but for time and output. Pure.

    `kind` is what our terminal is called (TERM), `terminal` its rows and columns.
    """
    kept = tuple(entry for entry in failed.environment if not entry.startswith("TERM="))
    return replace(
        failed,
        argv=shell,
        environment=(*kept, f"TERM={kind}"),
        limits=replace(failed.limits, seconds=None, output_bytes=None),
        terminal=terminal,
    )


def open_shell(failed: Failed) -> None:
    """Opens a shell and waits for its end. What goes wrong with it is a warning, and no more."""
    site, error = failed.site, failed.error
    shell = find_shell(failed.rootfs)
    if shell is None:
        site.report(Notice("warning", "no shell can be opened: there is none in the failed tree"))
        return
    told = [error.message, *screen(error.failure, said=error.message)] if error.failure else []
    words = (
        f"this is a shell in the failed container; its script is `{failed.job.argv[-1]}`, "
        "`exit` ends the shell and the build"
    )
    site.report(Notice("warning", "\n".join((*told, words))))
    kind = site.settings.environment.get("TERM") or "linux"
    run = plan_shell(shell, failed.job.spec(site.around), kind, size())
    try:
        site.runner.run(failed.rootfs, run, Stdio())
    except Interrupted:
        raise
    except Ocis2iError as refused:
        way_out = f"; {refused.hint}" if refused.hint else ""
        site.report(Notice("warning", f"no shell can be opened: {refused.message}{way_out}"))
