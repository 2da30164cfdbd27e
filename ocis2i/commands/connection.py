"""The registries as a verb's flags, the environment and the shared configuration describe them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ocis2i.certificates import TlsSettings
from ocis2i.commands.flags import ConnectionFlags, CredentialFlags, SendFlags, TimeFlags
from ocis2i.container_config import read_settings
from ocis2i.credentials import Given, credentials_of_environment, parse_credentials
from ocis2i.errors import UsageError
from ocis2i.events import Report
from ocis2i.keychain import Keychain
from ocis2i.limits import parse_duration
from ocis2i.net import STALL_SECONDS
from ocis2i.reference import RegistryLocation, parse_location
from ocis2i.registries import Registries
from ocis2i.registry import Registry
from ocis2i.variables import REGISTRY_TIMEOUT, STALL_TIMEOUT


def open_registry(
    flags: ConnectionFlags,
    environment: Mapping[str, str],
    report: Report,
    *,
    registries: Registries | None = None,
    given: Given | None = None,
) -> Registry:
    """A client for the verb with these `flags`; with `given` credentials no others are looked for.

    Raises `UsageError`.
    """
    registries = registries or Registries.load(environment)
    if given is None:
        authfile = Path(flags.authfile) if flags.authfile else None
        keychain = Keychain(
            environment,
            authfile=authfile,
            given=_given(flags, environment),
            helpers=registries.credential_helpers,
            report=report,
        )
    else:
        keychain = Keychain(environment, given=given, helpers=())
    times = flags if isinstance(flags, TimeFlags) else TimeFlags()
    sends = flags if isinstance(flags, SendFlags) else SendFlags()
    total = times.registry_timeout or REGISTRY_TIMEOUT.text(environment)
    stall = parse_duration(STALL_TIMEOUT.text(environment), STALL_TIMEOUT.name)
    return Registry(
        keychain,
        environment=environment,
        tls_verify=flags.tls_verify,
        endpoints=registries,
        tls=tls_settings(flags, environment),
        upload=sends.upload_mode,
        stall_seconds=stall or STALL_SECONDS,
        total_seconds=parse_duration(
            total, "--registry-timeout" if times.registry_timeout else REGISTRY_TIMEOUT.name
        ),
        report=report,
    )


def tls_settings(flags: ConnectionFlags, environment: Mapping[str, str]) -> TlsSettings:
    """Whom to trust; raises `UsageError`."""
    return TlsSettings(environment, Path(flags.cert_dir) if flags.cert_dir else None)


def _given(flags: ConnectionFlags, environment: Mapping[str, str]) -> Given:
    """What the user gives in so many words: by a flag, else by variables."""
    creds = flags.creds if isinstance(flags, CredentialFlags) else None
    if creds and flags.authfile:
        raise UsageError("--creds and --authfile exclude each other", hint="leave one of them out")
    if creds and isinstance(flags, CredentialFlags):
        location = parse_location(flags.named_image)
        if not isinstance(location, RegistryLocation):
            raise UsageError(
                f"--creds is for a registry, and `{location}` is in none",
                hint="leave it out, or name an image of a registry",
            )
        return {location.reference.registry: parse_credentials(creds)}
    return {} if flags.authfile else credentials_of_environment(environment, _password_file)


def _password_file(path: str) -> bytes:
    data = read_settings(Path(path), "the password's file")
    if data is None:
        raise UsageError(
            f"the password's file `{path}` does not exist",
            hint="name the file that has the password in it",
        )
    return data
