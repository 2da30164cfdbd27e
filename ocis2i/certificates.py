"""The TLS settings for a server: whom to trust, and with which certificate to introduce oneself.

`certs.d` is that of containers-certs.d(5). What speaks TLS is loaded with the first settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from ocis2i.container_config import SYSTEM_DIRECTORY, user_directory
from ocis2i.errors import RegistryError, UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import DEFAULT_REGISTRY, HUB_API

if TYPE_CHECKING:
    import ssl

DOCKER_DIRECTORY = Path("/etc/docker")


@dataclass(frozen=True, slots=True)
class Certificates:
    """The files for one server: authorities to trust, and pairs of a certificate and its key."""

    authorities: tuple[Path, ...] = ()
    pairs: tuple[tuple[Path, Path], ...] = ()


@dataclass(frozen=True, slots=True)
class TlsSettings:
    """Makes the TLS settings of every server; `directory` has all certificate files, if given."""

    environment: Mapping[str, str]
    directory: Path | None = None

    def __post_init__(self) -> None:
        if self.directory is not None and not self.directory.is_dir():
            raise UsageError(
                f"the directory of certificates `{self.directory}` does not exist",
                hint="name a directory that is there, with --cert-dir",
            )

    def __call__(self, host: str, verify: bool) -> ssl.SSLContext:  # noqa: FBT001 - see net.Http
        """The settings for `host`, its port added if it is not 443.

        Trusted are the system's roots, those of `SSL_CERT_FILE`, `REQUESTS_CA_BUNDLE` and
        `CURL_CA_BUNDLE`, and those for this host. Raises `RegistryError` naming a file that is no
        good.
        """
        import ssl  # noqa: PLC0415 - see the top

        if verify:
            context = ssl.create_default_context()
        else:
            # The same without the system's roots, which take longest of all.
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        # They often name one file, the system's own, which takes long to read.
        loaded = {_file(Path(ssl.get_default_verify_paths().cafile or "/"))}
        for name in ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
            path = Path(self.environment.get(name, ""))
            if self.environment.get(name) and _file(path) not in loaded:
                _load(context, path, f"`{name}`")
                loaded.add(_file(path))
        directory = self.directory or host_directory(host, certificate_places(self.environment))
        if directory is None:
            return context
        found = certificates_in(_names(directory), directory)
        for path in found.authorities:
            _load(context, path, f"`{directory}`")
        for path, key in found.pairs:
            _load(context, path, f"`{directory}`", key=key)
        return context


def certificate_places(environment: Mapping[str, str]) -> list[Path]:
    """The directories that may have one for a host; the first that has counts, alone."""
    places = [SYSTEM_DIRECTORY / "certs.d", DOCKER_DIRECTORY / "certs.d"]
    user = user_directory(environment)
    return [user / "certs.d", *places] if user else places


def host_directory(host: str, places: list[Path]) -> Path | None:
    """The first directory of `places` that has files for `host` (with its port, if not 443)."""
    name = DEFAULT_REGISTRY if host == HUB_API else host
    if not name or name.startswith(".") or "/" in name:
        return None
    return next((place / name for place in places if (place / name).is_dir()), None)


def _names(directory: Path) -> list[str]:
    try:
        return sorted(path.name for path in directory.iterdir())
    except OSError as error:
        raise RegistryError(
            f"the directory of certificates `{directory}` cannot be read: {error.strerror}",
            hint="let this user read it, or name another one with --cert-dir",
        ) from error


def certificates_in(names: list[str], directory: Path) -> Certificates:
    """What the files `names` of a `directory` are for; raises `RegistryError` for half a pair."""
    authorities, pairs = [], []
    for name in names:
        path = directory / name
        if path.suffix == ".crt":
            authorities.append(path)
        elif path.suffix == ".cert":
            key = path.with_suffix(".key")
            if key.name not in names:
                raise RegistryError(
                    f"the client certificate `{path}` has no key `{key.name}` beside it",
                    hint="add the key; the certificate of an authority is named *.crt",
                )
            pairs.append((path, key))
        elif path.suffix == ".key" and path.with_suffix(".cert").name not in names:
            raise RegistryError(
                f"the key `{path}` has no client certificate `{path.stem}.cert` beside it",
                hint="add the certificate, or remove the key",
            )
    return Certificates(tuple(authorities), tuple(pairs))


def _file(path: Path) -> tuple[int, int] | None:
    """Which file a path leads to; `None`: to none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _load(context: ssl.SSLContext, path: Path, what: str, key: Path | None = None) -> None:
    import ssl  # noqa: PLC0415 - see the top

    try:
        if key:
            # Without a password of its own, OpenSSL would ask for one at the terminal.
            context.load_cert_chain(path, key, password=b"")
        elif path.is_dir():
            context.load_verify_locations(capath=path)
        else:
            context.load_verify_locations(cafile=path)
    except (OSError, ssl.SSLError) as error:
        named = f"`{path}`" + (f" with its key `{key}`" if key else "")
        broken = "it cannot be decoded" if key else "no certificate in it"
        reason = getattr(error, "strerror", None) if not isinstance(error, ssl.SSLError) else broken
        raise RegistryError(
            f"{what} names the certificate file {named}, which cannot be used: {reason}",
            hint="put a PEM file there that this user can read, or take it away",
        ) from error
