"""The verbs for credentials: login and logout."""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from ocis2i.commands.connection import open_registry
from ocis2i.commands.flags import ConnectionFlags, TalkFlags, option
from ocis2i.commands.state import State
from ocis2i.credentials import Credentials, decode_password, registry_key
from ocis2i.errors import RegistryError, UsageError
from ocis2i.events import Notice
from ocis2i.keychain import Keychain
from ocis2i.lazy_dataclass import dataclass
from ocis2i.login import LoginPlace, login_file
from ocis2i.reference import Reference
from ocis2i.registries import Registries
from ocis2i.report import Lines, printable

_PASSWORD_LIMIT = 64 << 10


@dataclass(frozen=True, kw_only=True)
class LoginFlags(ConnectionFlags, TalkFlags):
    """`login`."""

    registry: Annotated[str, typer.Argument(help="HOST[:PORT], or HOST[:PORT]/NAMESPACE.")]
    username: Annotated[
        str | None, option("--username", "-u", metavar="NAME", help="Who logs in.")
    ] = None
    password: Annotated[
        str | None,
        option(
            "--password",
            "-p",
            metavar="PASSWORD",
            help="Everybody on this host can see it: better use --password-stdin.",
        ),
    ] = None
    password_stdin: Annotated[
        bool, option("--password-stdin", help="Read the password from standard input.")
    ] = False
    get_login: Annotated[bool, option("--get-login", help="Only print who is logged in there.")] = (
        False
    )


@dataclass(frozen=True, kw_only=True)
class LogoutFlags(ConnectionFlags, TalkFlags):
    """`logout`."""

    registry: Annotated[
        str | None, typer.Argument(help="HOST[:PORT], or HOST[:PORT]/NAMESPACE.")
    ] = None
    everything: Annotated[
        bool, option("--all", "-a", help="Forget the credentials of all registries.")
    ] = False


def log_in(flags: LoginFlags) -> None:
    key = registry_key(flags.registry, "REGISTRY")
    place = _place(flags)
    if flags.get_login:
        found = _known(flags, key, place.path)
        if found is None:
            raise RegistryError(f"nobody is logged in to `{key}`", hint=f"ocis2i login {key}")
        print(printable(found.username or "<token>"))
        return
    credentials = _credentials(flags, key)
    reference = _reference(key)
    with open_registry(flags, _environment(), _show(flags), given={key: credentials}) as registry:
        registry.reach(reference, pull=False)
    where = place.keep(key, credentials)
    print(printable(f"logged in to {key} as {credentials.username}, kept in {where}"))


def log_out(flags: LogoutFlags) -> None:
    if flags.everything:
        if flags.registry:
            raise UsageError("--all and REGISTRY exclude each other", hint="leave one of them out")
        for key in _place(flags).forget_all():
            print(printable(f"logged out of {key}"))
        return
    if not flags.registry:
        raise UsageError("missing argument REGISTRY", hint="name one, or give --all")
    key = registry_key(flags.registry, "REGISTRY")
    place = _place(flags)
    known = place.forget(key)
    left = _known(flags, key, place.path)
    if left:
        _show(flags)(Notice("warning", f"there are still credentials for {key}: {left.source}"))
    if not known:
        raise RegistryError(
            f"nobody is logged in to `{key}` by `{place.path}`",
            hint="look at the registry's name, or name another file with --authfile",
        )
    print(printable(f"logged out of {key}"))


def _environment() -> Mapping[str, str]:
    return dict(os.environ)


def _show(flags: TalkFlags) -> Lines:
    return Lines(sys.stderr, log_level=max(flags.log_level, State.log_level))


def _place(flags: LoginFlags | LogoutFlags) -> LoginPlace:
    authfile = Path(flags.authfile) if flags.authfile else None
    environment = _environment()
    path, warning = login_file(environment, authfile)
    if warning:
        _show(flags)(Notice("warning", warning))
    if authfile:
        return LoginPlace(path, environment)
    return LoginPlace(path, environment, Registries.load(environment).credential_helpers)


def _reference(key: str) -> Reference:
    registry, _, namespace = key.partition("/")
    return Reference(registry, namespace or "any")


def _known(flags: ConnectionFlags, key: str, path: Path) -> Credentials | None:
    environment = _environment()
    if flags.authfile:
        found = Keychain(environment, authfile=path) if path.exists() else None
    else:
        found = Keychain(environment, helpers=Registries.load(environment).credential_helpers)
    return found.find(_reference(key)) if found else None


# --- asking -------------------------------------------------------------------------------------


def _credentials(flags: LoginFlags, key: str) -> Credentials:
    if flags.password is not None and flags.password_stdin:
        raise UsageError(
            "--password and --password-stdin exclude each other",
            hint="leave one of them out; --password-stdin keeps it out of the list of processes",
        )
    if flags.password_stdin:
        if not flags.username:
            raise UsageError("--password-stdin needs --username", hint="add --username NAME")
        data = sys.stdin.buffer.read(_PASSWORD_LIMIT) if sys.stdin else b""
        return Credentials(flags.username, decode_password(data, "standard input"))
    if flags.password is not None:
        _show(flags)(
            Notice("warning", "--password shows it to everybody here: use --password-stdin")
        )
    username = flags.username or _ask_name(key)
    password = flags.password if flags.password is not None else _ask_password(username, key)
    if ":" in username or not username:
        raise UsageError(
            "the user name must not be empty, nor have a `:` in it",
            hint="name the user with --username; a token may want a name as `oauth2accesstoken`",
        )
    return Credentials(username, decode_password(password.encode(), "this login"))


def _ask_name(key: str) -> str:
    _check_terminal("the user name", "--username")
    sys.stderr.write(f"user name for {key}: ")
    sys.stderr.flush()
    return sys.stdin.readline().strip()


def _ask_password(username: str, key: str) -> str:
    _check_terminal("the password", "--password-stdin")
    return getpass.getpass(f"password of {username} for {key}: ", stream=sys.stderr)


def _check_terminal(what: str, flag: str) -> None:
    if not sys.stdin or not sys.stdin.isatty():
        raise UsageError(
            f"{what} is missing, and there is no terminal to ask at", hint=f"give {flag}"
        )
