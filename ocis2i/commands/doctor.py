"""The verb that says what this host gives to builds: doctor."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Annotated

import typer

from ocis2i import __version__
from ocis2i.commands.connection import open_registry
from ocis2i.commands.container_flags import known_isolation
from ocis2i.commands.flags import ConnectionFlags, JsonFlags, RootfsFlags, option
from ocis2i.commands.state import State, print_json
from ocis2i.doctor import Report, examine, registry_reference
from ocis2i.errors import IsolationError
from ocis2i.isolation.ladder import Choice, Refused, Step, Wish
from ocis2i.lazy_dataclass import dataclass
from ocis2i.report import Lines, printable
from ocis2i.settings import Settings

_WIDTH = 80
_NAME_WIDTH = len("cgroup namespace")
_PLACES = {
    "host": "on a host of its own",
    "container": "in a container",
    "pod": "in a pod",
    "openshift": "in a pod of OpenShift",
}
_IDS = {
    "full": "all user ids",
    "single": "one user id",
    "native": "the ids of the user namespace around it",
    "none": "no ids of its own",
}


@dataclass(frozen=True, kw_only=True)
class DoctorFlags(RootfsFlags, ConnectionFlags, JsonFlags):
    """`doctor`."""

    isolation: Annotated[
        str | None,
        option(
            "--isolation",
            metavar="NAME",
            help="Ask about this one: runc, crun, builtin, buildah, chroot or in-place.",
        ),
    ] = None
    registry: Annotated[
        list[str] | None,
        option(
            "--registry",
            metavar="REF",
            help="A registry, or an image in one: is it reached, does it let us in; repeatable.",
        ),
    ] = None


def examine_host(flags: DoctorFlags) -> None:
    State.as_json = flags.as_json
    settings = Settings.from_environ(os.environ, root=flags.root or State.root, rootfs=flags.rootfs)
    wish = Wish(known_isolation(flags.isolation) or "auto", settings.rootfs, settings.allow_weak)
    for text in flags.registry or ():
        registry_reference(text)
    show = Lines(sys.stderr, log_level=0)
    with open_registry(flags, settings.environment, show) as registry:
        report = examine(
            settings,
            wish,
            registry=registry,
            references=flags.registry or (),
            now=lambda: datetime.now(UTC),
        )
    if flags.as_json:
        print_json({**report.document(), "exit_code": exit_code(report)})
    else:
        sys.stdout.write("".join(f"{printable(line)}\n" for line in lines(report)))
    raise typer.Exit(exit_code(report))


def exit_code(report: Report) -> int:
    """As a build would end here."""
    return 0 if report.usable else IsolationError.exit_code


# --- for people ---------------------------------------------------------------------------------


def lines(report: Report) -> Iterator[str]:
    """The report as text, in 80 columns but for what is to be copied."""
    host = report.host
    yield from _wrapped(
        f"ocis2i {__version__} on Linux {host['kernel']} ({host['machine']}), as "
        f"`{host['user']}` ({host['uid']}:{host['gid']}), {_PLACES[host['place']]}"
    )
    yield ""
    for one in report.facilities:
        yield from _row((one.name, one.state), (_NAME_WIDTH, 4), one.said)
    yield ""
    for state in report.rungs:
        usable = "yes" if state.finding.usable else "no"
        yield from _row(
            (state.rung.name, state.rung.strength, usable), (8, 8, 4), state.finding.said
        )
    yield ""
    yield from _choice(report)
    yield from _steps(report.steps)


def _choice(report: Report) -> Iterator[str]:
    wanted = report.wish.isolation
    match report.choice:
        case Refused(text, hint):
            yield from _wrapped(f"With --isolation {wanted} no build can start: {text}")
            if hint and not report.steps:
                yield from _wrapped(f"The way out: {hint}")
            for state in report.rungs:
                if state.finding.usable and state.rung.strength != "isolated":
                    yield from _wrapped(
                        f"--isolation {state.rung.name} works; it protects from "
                        f"{state.rung.protects}"
                    )
        case Choice() as choice:
            kind = choice.rootfs or "no tree of its own"
            proc = "a /proc of their own" if choice.fresh_proc else "the /proc around them"
            yield from _wrapped(
                f"--isolation {wanted} takes {choice.executor}: {choice.label} "
                f"({_IDS[choice.ids]}, {kind}, {proc})"
            )


def _steps(steps: Iterable[Step]) -> Iterator[str]:
    for number, step in enumerate(steps):
        yield ""
        yield "The one change that gives more:" if number == 0 else "After that:"
        yield from _wrapped(f"{step.brings}: {step.why}", "  ")
        yield from _wrapped(f"{step.way_out.text}" + (":" if step.way_out.exact else ""), "  ")
        for line in step.way_out.exact:
            yield f"    {line}"


def _row(cells: tuple[str, ...], widths: tuple[int, ...], text: str) -> Iterator[str]:
    head = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    indent = " " * (sum(widths) + 2 * len(widths))
    first, *rest = textwrap.wrap(text, _WIDTH - len(indent)) or [""]
    if len(cells[0]) > widths[0]:  # a registry's name may have any length
        yield from textwrap.wrap(cells[0], _WIDTH)
        head = "  ".join(
            cell.ljust(width) for cell, width in zip(("", *cells[1:]), widths, strict=True)
        )
    yield f"{head}  {first}".rstrip()
    for line in rest:
        yield indent + line


def _wrapped(text: str, indent: str = "") -> list[str]:
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=indent)
