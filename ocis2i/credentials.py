"""What proves to a registry who we are, and how the caller gives it to us."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from dataclasses import field

from ocis2i import variables
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.reference import DEFAULT_REGISTRY, Reference

# What a credential helper gives as the user when its secret is an identity token.
IDENTITY_USER = "<token>"

_PREFIX = variables.REGISTRY.name
PASSWORD_FILE = variables.REGISTRY_PASSWORD_FILE.name
# Each without the prefix.
_VARIABLES = {
    one.name.removeprefix(f"{_PREFIX}_"): one
    for one in (
        variables.REGISTRY_USER,
        variables.REGISTRY_PASSWORD,
        variables.REGISTRY_PASSWORD_FILE,
        variables.REGISTRY_TOKEN,
    )
}


@dataclass(frozen=True, slots=True)
class Credentials:
    """A password, an identity (refresh) token or a ready bearer token; `source` says from where."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)
    source: str = field(default="", compare=False)

    @property
    def basic(self) -> str | None:
        """The `Authorization` header of HTTP's Basic scheme, if there is a user name."""
        if not self.username:
            return None
        pair = f"{self.username}:{self.password or self.identity_token}"
        return "Basic " + base64.b64encode(pair.encode()).decode()


# Credentials by `registry` or `registry/namespace`.
Given = Mapping[str, Credentials]


def parse_credentials(text: str) -> Credentials:
    """Reads `USER:PASSWORD`; raises `UsageError`, which never quotes it."""
    username, colon, password = text.partition(":")
    if not username or not colon:
        raise UsageError("--creds must be USER:PASSWORD", hint="or log in: ocis2i login REGISTRY")
    return Credentials(username, password, source="--creds")


def credentials_of_environment(
    environment: Mapping[str, str], read: Callable[[str], bytes]
) -> Given:
    """What `OCIS2I_REGISTRY_USER` and its like give, for `OCIS2I_REGISTRY` and nobody else.

    `read` gives the content of the password's file. Raises `UsageError`.
    """
    given = {name: variable.text(environment) or "" for name, variable in _VARIABLES.items()}
    if not any(given.values()):
        return {}
    where = variables.REGISTRY.text(environment)
    if not where:
        first = next(name for name in _VARIABLES if given[name])
        raise UsageError(
            f"{_PREFIX}_{first} is set, but not {_PREFIX}",
            hint=f"say for which registry it is: {_PREFIX}=registry.example.org",
        )
    key = registry_key(where, _PREFIX)
    if given["TOKEN"]:
        if given["USER"] or given["PASSWORD"] or given["PASSWORD_FILE"]:
            raise UsageError(
                f"{_PREFIX}_TOKEN and {_PREFIX}_USER exclude each other", hint="unset one of them"
            )
        return {key: Credentials(registry_token=given["TOKEN"], source=f"{_PREFIX}_TOKEN")}
    if given["PASSWORD"] and given["PASSWORD_FILE"]:
        raise UsageError(
            f"{_PREFIX}_PASSWORD and {_PREFIX}_PASSWORD_FILE exclude each other",
            hint="unset one of them",
        )
    password = given["PASSWORD"]
    if given["PASSWORD_FILE"]:
        password = decode_password(read(given["PASSWORD_FILE"]), PASSWORD_FILE)
    if not given["USER"] or not password:
        raise UsageError(
            f"{_PREFIX}_USER and {_PREFIX}_PASSWORD go together: one is missing",
            hint="set both of them",
        )
    return {key: Credentials(given["USER"], password, source=f"{_PREFIX}_USER")}


def decode_password(data: bytes, what: str) -> str:
    """The password in a file or on a standard input: without the end of its line.

    Raises `UsageError`, which never quotes it.
    """
    try:
        password = data.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise UsageError(f"the password of {what} is not UTF-8", hint="write it in UTF-8") from None
    if not password:
        raise UsageError(
            f"the password of {what} is empty", hint="give the password, or leave the user out"
        )
    if "\n" in password or "\0" in password:
        raise UsageError(
            f"the password of {what} must be one line",
            hint="give the password alone, without a line break in it",
        )
    return password


def registry_key(text: str, what: str) -> str:
    """`registry` or `registry/namespace`, as the files of credentials have it.

    A scheme is left out, as old tools wrote one. Raises `UsageError`.
    """
    bare = text.removeprefix("https://").removeprefix("http://").rstrip("/")
    name, _, namespace = bare.partition("/")
    if namespace in ("v1", "v2"):  # of the address that old files of credentials have
        namespace = ""
    if name in ("index.docker.io", DEFAULT_REGISTRY) and not namespace:
        return DEFAULT_REGISTRY
    try:
        reference = Reference.parse(f"{name}/{namespace or 'any'}")
    except UsageError as error:
        raise UsageError(
            f"{what} is no registry: {error.message}", hint="write HOST or HOST:PORT"
        ) from error
    if name not in (reference.registry, "index.docker.io") or reference.tag:
        raise UsageError(
            f"{what}: `{text}` is no registry",
            hint="write HOST[:PORT] or HOST[:PORT]/NAMESPACE; a HOST has a `.` or a port",
        )
    return f"{reference.registry}/{namespace}" if namespace else reference.registry


def given_for(reference: Reference, given: Given) -> Credentials | None:
    """The most specific of the `given` credentials for `reference`."""
    parts = reference.name.split("/")
    keys = ("/".join(parts[:length]) for length in range(len(parts), 0, -1))
    return next((given[key] for key in keys if key in given), None)
