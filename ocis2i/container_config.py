"""The configuration that podman, buildah and skopeo share: the user's files, then the system's."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ocis2i.errors import UsageError

SYSTEM_DIRECTORY = Path("/etc/containers")
# Files of settings are small; a larger one is something else.
FILE_LIMIT = 4 << 20


def user_directory(environment: Mapping[str, str]) -> Path | None:
    """`$XDG_CONFIG_HOME/containers`, by default below `~/.config`; `None` for who has no home."""
    if config := environment.get("XDG_CONFIG_HOME"):
        return Path(config) / "containers"
    home = environment.get("HOME")
    return Path(home) / ".config/containers" if home else None


def directories(environment: Mapping[str, str], system: Path) -> list[Path]:
    """The user's directory of settings and that of the `system`; the first one wins."""
    user = user_directory(environment)
    return [user, system] if user else [system]


def read_settings(path: Path, what: str) -> bytes | None:
    """The content of a file, `None` when it is not there. Raises `UsageError`."""
    try:
        with path.open("rb") as stream:
            data = stream.read(FILE_LIMIT + 1)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UsageError(
            f"{what} `{path}` cannot be read: {error.strerror}",
            hint="name a file that is there and that you may read",
        ) from error
    if len(data) > FILE_LIMIT:
        raise UsageError(
            f"{what} `{path}` is larger than {FILE_LIMIT} bytes",
            hint="look whether it is the right file: settings are small",
        )
    return data


def decode_toml(data: bytes, path: Path, what: str) -> dict[str, Any]:
    """The document in `data`; raises `UsageError` naming its file and line."""
    import tomllib  # noqa: PLC0415 - most users have no such file

    try:
        return tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(
            f"{what} `{path}` is not TOML: {error}", hint="put it right at that place"
        ) from error
