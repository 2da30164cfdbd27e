"""What the containers of a build's pod do: one verb each, and its document for who watches."""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
from contextlib import redirect_stdout, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ocis2i.commands.kube_flags import KubeFlags
from ocis2i.commands.state import State
from ocis2i.documents import failure_document
from ocis2i.errors import IsolationError, Ocis2iError, OutputError, UsageError, exit_code_of
from ocis2i.kube.outcome import mark_line, termination_message
from ocis2i.kube.plan import TERMINATION_LOG, TOOL
from ocis2i.outputs.files import writing_to
from ocis2i.report import StageRecord

_STEPS = ("fetch", "build", "push")


def run_step(flags: KubeFlags, words: list[str]) -> None:
    """Runs a verb of `_STEPS`; its document becomes the last marked line of the log.

    `push` gives the document of the build that it sends, where `--document` has one. Raises what
    the verb raises.
    """
    if not words or words[0] not in _STEPS:
        raise UsageError(
            "`kube step` is for the containers of a build's pod", hint="write `ocis2i kube run`"
        )
    _use_credentials(flags.auth_file)
    root = ["--root", State.root] if State.root else []
    started = datetime.now(UTC)
    document, error = _call([*root, *words])
    took = StageRecord(words[0], started, (datetime.now(UTC) - started).total_seconds(), ok=True)
    if words[0] == "push":
        document = _finished(document, took, flags.document, failed=error is not None)
    elif flags.document and words[0] == "build" and error is None:
        with writing_to(Path(flags.document)):
            Path(flags.document).write_text(json.dumps(document))
    if error is None:
        _write_results(flags, document)
    print(mark_line(document), flush=True)
    # Nobody has to look at it: the log says the same, and more.
    with suppress(OSError):
        Path(TERMINATION_LOG).write_text(termination_message(document))
    # The document is out.
    State.as_json = False
    if error is not None:
        raise error


def _call(words: list[str]) -> tuple[dict[str, Any], Ocis2iError | None]:
    """Runs a command line; its document, or that of its failure."""
    from ocis2i.commands import application  # noqa: PLC0415 - it loads this module

    # With an encoding, as a standard output has it.
    written = io.TextIOWrapper(io.BytesIO(), "utf-8", newline="")
    try:
        with redirect_stdout(written):
            application.run(words)
    except Ocis2iError as error:
        stages = State.recorder.stages if State.recorder else []
        network = State.recorder.network if State.recorder else None
        return failure_document(error, exit_code_of(error), stages, network), error
    written.seek(0)
    found = json.load(written)
    return (found if isinstance(found, dict) else {}), None


def _use_credentials(path: str | None) -> None:
    """A file that may be there: a workspace that nobody bound has none."""
    if path and Path(path).exists():
        os.environ["REGISTRY_AUTH_FILE"] = path


def _finished(
    pushed: dict[str, Any], took: StageRecord, path: str | None, *, failed: bool
) -> dict[str, Any]:
    """The document of the whole build, now that it is pushed."""
    if failed or not path:
        return pushed
    try:
        built = json.loads(Path(path).read_bytes())
    except (OSError, ValueError, RecursionError):
        return pushed
    if not isinstance(built, dict) or built.get("digest") != pushed.get("digest"):
        return pushed
    stages = built.get("stages")
    if not isinstance(stages, list):
        return pushed
    return {**built, "pushed": True, "stages": [*stages, took.document()]}


def _write_results(flags: KubeFlags, document: dict[str, Any]) -> None:
    """What Tekton, Shipwright and Argo read: one value a file, without a line's end."""
    layers = document.get("layers") or ()
    values = {
        flags.result_url: str(document.get("name") or document.get("where") or ""),
        flags.result_digest: str(document.get("digest") or ""),
        flags.result_size: str(sum(one.get("size", 0) for one in layers)),
    }
    for path, value in values.items():
        if path:
            with writing_to(Path(path)):
                Path(path).write_text(value)


# --- the tool -------------------------------------------------------------------------------------


def copy_tool(words: list[str]) -> None:
    """Copies this ocis2i, with its Python, into a volume for a container that has neither.

    It is bound to the place where it is (`scripts/tool-image`), and a container mounts the volume
    there. Raises `IsolationError` where this is no such ocis2i.
    """
    if len(words) != 1:
        raise UsageError("`kube copy` takes one directory", hint="write `ocis2i kube run`")
    if Path(sys.prefix) != Path(TOOL):
        raise IsolationError(
            f"this ocis2i is in `{sys.prefix}`: it does not run in the container of another image",
            hint=f"make an image that has it in {TOOL}, with scripts/tool-image",
        )
    target = Path(words[0])
    try:
        # The volume's own directory is the node's: its times and modes are not ours to set.
        for one in sorted(Path(TOOL).iterdir()):
            shutil.copytree(one, target / one.name, symlinks=True)
    except (OSError, shutil.Error) as error:
        raise OutputError(f"cannot copy `{TOOL}` to `{target}`: {error}") from error
