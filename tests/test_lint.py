"""The linters, as tests: one command says whether a change is good."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Directories that git does not know: environments, caches, what a build leaves.
NOT_OURS = {".git", ".venv", ".hypothesis", "build", "dist", "node_modules"}


def assert_content(*argv: str) -> None:
    """Fails with what a linter prints when it is not content."""
    ran = subprocess.run(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if ran.returncode:
        pytest.fail(ran.stdout, pytrace=False)


def files(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()):
        if path.is_dir() and not path.is_symlink():
            if path.name not in NOT_OURS and not path.name.endswith("_cache"):
                yield from files(path)
        elif path.is_file():
            yield path


def is_shell(path: Path) -> bool:
    if path.suffix in {".sh", ".bash"}:
        return True
    with path.open("rb") as file:
        first = file.readline(80).split()
    return bool(first) and first[0].startswith(b"#!") and first[-1].endswith((b"sh", b"bash"))


SHELL_SCRIPTS = [str(path.relative_to(ROOT)) for path in files(ROOT) if is_shell(path)]


def test_ruff_finds_nothing() -> None:
    assert_content(sys.executable, "-m", "ruff", "check", ".")


def test_ruff_would_format_nothing_otherwise() -> None:
    assert_content(sys.executable, "-m", "ruff", "format", "--check", ".")


def test_mypy_finds_nothing() -> None:
    assert_content(sys.executable, "-m", "mypy")


def test_shell_scripts_are_found_by_name_and_by_first_line() -> None:
    assert {
        "scripts/lib.sh",
        "scripts/test",
        "fixtures/builders/python/s2i/bin/assemble",
    } <= set(SHELL_SCRIPTS)


@pytest.mark.parametrize("script", SHELL_SCRIPTS)
def test_shellcheck_finds_nothing_in(script: str) -> None:
    assert shutil.which("shellcheck"), "shellcheck is missing: apt-get install shellcheck"
    assert_content("shellcheck", "--external-sources", "--source-path=SCRIPTDIR", script)
