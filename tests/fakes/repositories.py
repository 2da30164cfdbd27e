"""Real git repositories for tests, and how a web server in this process hands them out."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.fakes.web import FakeWeb

_SETTINGS = {
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "Ada Lovelace",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_AUTHOR_DATE": "2024-02-29T12:30:00+0100",
    "GIT_COMMITTER_NAME": "Carl Committer",
    "GIT_COMMITTER_EMAIL": "carl@example.org",
    "GIT_COMMITTER_DATE": "2024-02-29T12:30:00+0100",
}


class Repository:
    """A git repository with a working tree, on the branch `main`."""

    def __init__(self, path: Path, files: Mapping[str, str] | None = None) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.git("init", "--quiet", "--initial-branch=main")
        if files:
            self.commit("first", files)

    def git(self, *arguments: str | Path) -> str:
        """What a git command prints; it has to succeed."""
        done = subprocess.run(
            ["git", "-C", str(self.path), *map(str, arguments)],
            env=os.environ | _SETTINGS,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}\n{done.stderr}"
        return done.stdout.strip()

    def write(self, files: Mapping[str, str]) -> None:
        """Writes files without committing them."""
        for name, text in files.items():
            file = self.path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text)

    def commit(self, message: str, files: Mapping[str, str] | None = None) -> str:
        """Commits all that is in the working tree, and these files; the commit."""
        self.write(files or {})
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self.git("rev-parse", "HEAD")

    def commit_submodule(self, path: str, url: str, commit: str) -> str:
        """Commits a submodule that nobody has fetched; the commit."""
        for key, value in (("path", path), ("url", url)):
            self.git("config", "--file", ".gitmodules", f"submodule.{path}.{key}", value)
        self.git("add", ".gitmodules")
        self.git("update-index", "--add", "--cacheinfo", f"160000,{commit},{path}")
        self.git("commit", "--quiet", "--message", f"submodule {path}")
        return self.git("rev-parse", "HEAD")

    def serve(self, web: FakeWeb, at: str) -> str:
        """Puts the repository on a web server at the path `at`, as it is now; its URL.

        The server knows nothing of git: it hands out files (the `dumb` protocol of gitprotocol-http
        (5)). git puts the names of files after the whole URL, also after its query.
        """
        self.git("update-server-info")
        directory = self.path / ".git"
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                web.put(f"{at}/{file.relative_to(directory)}", file.read_bytes())
        more = "&" if "?" in at else "?"
        refs = (directory / "info/refs").read_bytes()
        web.put(f"{at}/info/refs{more}service=git-upload-pack", refs)
        return f"{web.url}{at}"
