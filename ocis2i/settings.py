"""The settings of one invocation, read once from the environment and handed down."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from ocis2i import variables
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass

# What scripts see and change: overlayfs over the unpacked layers, or a copy of them.
RootfsKind: TypeAlias = Literal["overlay", "copy"]
ROOTFS_KINDS = ("auto", *get_args(RootfsKind))

# How a blob is sent to a registry: in one request, in several, or as the registry needs it.
UploadMode: TypeAlias = Literal["auto", "monolithic", "chunked"]

# The rungs of `ocis2i.isolation.ladder`, the strongest first.
ISOLATIONS = ("auto", "runc", "crun", "builtin", "buildah", "chroot", "in-place")

# A layer that unpacks to more is taken for a bomb; real ones stay far below.
DEFAULT_LAYER_LIMIT = 32 << 30
# How many records of finished builds are kept.
DEFAULT_KEEP_BUILDS = 20
# The last time that an image can name.
LAST_SECOND = variables.SOURCE_DATE_EPOCH.largest


@dataclass(frozen=True, slots=True)
class Settings:
    """Where things are and what the environment asks for.

    `environment` is the whole environment of the caller; programs that ocis2i starts get a built
    one, made of the few variables they need (`program_environment`).
    """

    store_root: Path
    home: Path
    source_date_epoch: int | None = None
    layer_limit: int = DEFAULT_LAYER_LIMIT
    rootfs: str = "auto"
    allow_weak: bool = False
    keep_blobs: bool = False
    no_cache: bool = False
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    keep_builds: int = DEFAULT_KEEP_BUILDS

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str], *, root: str | None = None, rootfs: str | None = None
    ) -> Settings:
        """Reads `OCIS2I_ROOT`, `OCIS2I_LAYER_LIMIT`, `OCIS2I_ROOTFS`,
        `OCIS2I_ALLOW_WEAK_ISOLATION`, `OCIS2I_KEEP_BLOBS`, `OCIS2I_KEEP_BUILDS`,
        `OCIS2I_NO_CACHE`, `XDG_DATA_HOME`, `HOME` and `SOURCE_DATE_EPOCH`.

        `root` and `rootfs` (flags) win over the environment. Raises `UsageError`.
        """
        home = Path(environ.get("HOME") or "/")
        store_root = Path(root or variables.ROOT.text(environ) or _usual_store(environ)).absolute()
        limit = variables.LAYER_LIMIT.number(environ)
        builds = variables.KEEP_BUILDS.number(environ)
        return cls(
            store_root,
            home,
            variables.SOURCE_DATE_EPOCH.number(environ),
            DEFAULT_LAYER_LIMIT if limit is None else limit,
            _rootfs(rootfs, environ),
            variables.ALLOW_WEAK_ISOLATION.is_on(environ),
            variables.KEEP_BLOBS.is_on(environ),
            variables.NO_CACHE.is_on(environ),
            dict(environ),
            keep_builds=DEFAULT_KEEP_BUILDS if builds is None else builds,
        )

    def program_environment(self, **more: str) -> dict[str, str]:
        """What a helper program (git, a credential helper) gets to see of the environment."""
        kept = {
            name: value
            for name, value in self.environment.items()
            if name in _PASSED_ON or name.startswith(("GIT_", "SSH_", "LC_"))
        }
        return {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"} | kept | more


def _usual_store(environ: Mapping[str, str]) -> Path:
    data = Path(environ.get("XDG_DATA_HOME") or "")
    # Else it does not count (XDG Base Directory Specification).
    if data.is_absolute():
        return data / "ocis2i"
    if not environ.get("HOME"):
        raise UsageError(
            "there is no place for the store: HOME is not set",
            hint="name a directory with --root or OCIS2I_ROOT, or set HOME",
        )
    return Path(environ["HOME"], ".local/share/ocis2i")


_PASSED_ON = frozenset(
    "PATH HOME USER LOGNAME LANG TMPDIR XDG_CONFIG_HOME XDG_RUNTIME_DIR XDG_CACHE_HOME "
    "DOCKER_CONFIG REGISTRY_AUTH_FILE "
    "http_proxy https_proxy no_proxy all_proxy HTTP_PROXY HTTPS_PROXY NO_PROXY ALL_PROXY "
    "SSL_CERT_FILE SSL_CERT_DIR CURL_CA_BUNDLE".split()
)


def _rootfs(flag: str | None, environ: Mapping[str, str]) -> str:
    wanted = variables.ROOTFS.text(environ) or "auto" if flag is None else flag
    if wanted not in ROOTFS_KINDS:
        name = variables.ROOTFS.name if flag is None else "--rootfs"
        raise UsageError(f"{name} is `{wanted}`", hint=f"it must be {_either(ROOTFS_KINDS)}")
    return wanted


def _either(words: tuple[str, ...]) -> str:
    return f"{', '.join(words[:-1])} or {words[-1]}"
