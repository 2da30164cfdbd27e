"""Shell completion: the scripts for bash, zsh and fish, and answering what they ask.

A script runs `ocis2i` itself with the variable `_OCIS2I_COMPLETE` set, and Typer answers from the
application's own verbs and flags before any of them runs. Typer is loaded when it is asked: every
start of the program reads `VARIABLE` here.
"""

from __future__ import annotations

from ocis2i.errors import UsageError

SHELLS = ("bash", "zsh", "fish")
# Typer makes this name of the program's, and offers no other.
VARIABLE = "_OCIS2I_COMPLETE"


def completion_script(shell: str) -> str:
    """What a shell has to read to complete `ocis2i`; raises `UsageError` for an unknown shell."""
    if shell not in SHELLS:
        raise UsageError(
            f"there is no completion for the shell `{shell}`", hint=f"known are {', '.join(SHELLS)}"
        )
    # Typer has it here, but does not say that it exports it.
    from typer.completion import get_completion_script  # type: ignore[attr-defined] # noqa: PLC0415

    script: str = get_completion_script(prog_name="ocis2i", complete_var=VARIABLE, shell=shell)
    return f"{script}\n"


def enable() -> None:
    """Teaches the application the shells; call it before the application when `VARIABLE` is set.

    An application without Typer's own completion flags does not know them by itself.
    """
    from typer.completion import completion_init  # type: ignore[attr-defined] # noqa: PLC0415

    completion_init()
