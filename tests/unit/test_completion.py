"""The completion scripts, asked by a real bash of a small application."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ocis2i.completion import SHELLS, VARIABLE, completion_script
from ocis2i.errors import UsageError, exit_code_of

PROJECT = Path(__file__).parent.parent.parent

PROGRAM = """\
#!{python}
import sys
import typer
from ocis2i.completion import completion_script, enable

app = typer.Typer(name="ocis2i", add_completion=False, rich_markup_mode=None)

@app.command("build")
def build(source: str, incremental: bool = typer.Option(False, "--incremental/--clean")) -> None:
    "Builds."

@app.command("rebuild")
def rebuild() -> None:
    "Again."

@app.command("completion")
def completion(shell: str) -> None:
    print(completion_script(shell), end="")

enable()
app(args=sys.argv[1:], prog_name="ocis2i", standalone_mode=False)
"""

ASK = """\
set -u
source <(ocis2i completion bash)
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
"_ocis2i_completion" "$1"
printf '%s\\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}
complete -p ocis2i
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_script_names_the_program_and_asks_it(shell: str) -> None:
    script = completion_script(shell)
    assert "ocis2i" in script
    assert f"{VARIABLE}=complete_{shell}" in script
    assert script.endswith("\n")


@pytest.mark.parametrize("shell", ["", "sh", "powershell", "BASH", "bash ", "tcsh"])
def test_unknown_shell_is_a_usage_error(shell: str) -> None:
    with pytest.raises(UsageError) as caught:
        completion_script(shell)
    assert caught.value.message == f"there is no completion for the shell `{shell}`"
    assert caught.value.hint == "known are bash, zsh, fish"
    assert exit_code_of(caught.value) == 2


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for PATH with the small application in it, named `ocis2i`."""
    directory = tmp_path_factory.mktemp("bin")
    program = directory / "ocis2i"
    program.write_text(PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    return directory


@pytest.mark.skipif(shutil.which("bash") is None, reason="not installed: bash")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["bu"], ["build"]),
        (["reb"], ["rebuild"]),
        (["build", "--in"], ["--incremental"]),
        (["build", "--c"], ["--clean"]),
        (["nothing-like-it"], []),
    ],
)
def test_bash_completes(directory: Path, words: list[str], offered: list[str]) -> None:
    done = subprocess.run(
        ["bash", "--norc", "-c", ASK, "bash", "ocis2i", *words],
        env={"PATH": f"{directory}:{os.environ['PATH']}", "PYTHONPATH": str(PROJECT)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    *found, registered = [line for line in done.stdout.splitlines() if line]
    assert found == offered
    # Where nothing is offered bash goes on with the names of files.
    assert registered == "complete -o default -F _ocis2i_completion ocis2i"
