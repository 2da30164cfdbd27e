"""What must not stand in a manifest, which all may read who may read the namespace. Pure.

A secret is known by its form (a password in a URL) and by the name that it is given. It reaches the
container that builds as a variable out of a Secret of the cluster; the manifest names that alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise, zip_longest

from ocis2i.errors import UsageError
from ocis2i.kube.plan import Order
from ocis2i.parameters import is_name
from ocis2i.s2i import redact_url

_WORDS = frozenset(
    "password passwords pass passwd passphrase passcode pwd pw pin secret secrets token tokens jwt "
    "credential credentials creds apikey pat auth authorization".split()
)
# Also at the end of a word: DBPASSWORD, AUTHTOKEN.
_ENDS = ("password", "passwd", "token", "secret", "apikey")
_PAIRS = frozenset(
    f"{kind} key"
    for kind in "access api account auth deploy encryption master private secret shared signing "
    "ssh storage license".split()
)
# The last word, where it says that the value is about a secret and is none.
_ABOUT = frozenset(
    "file path dir directory name names user username url uri host endpoint issuer type format "
    "version length size count limit max min ttl timeout expiry seconds minutes days enabled "
    "disabled required mode method header algorithm policy provider id stdin".split()
)
_HARMLESS_VALUE = re.compile(r"|true|false|yes|no|on|off|none|null|/[\w./@-]*|[0-9]", re.IGNORECASE)
_CREDENTIAL = re.compile(r"(bearer|basic) \S+", re.IGNORECASE)  # of an HTTP header
_LIMITS = frozenset("max min num".split())
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_SOURCE = "the URL of the source"
_OWN_SCRIPTS = "put the scripts into .s2i/bin of the source, or into the builder image"
# What is done instead, by what a password was in; otherwise assemble may need it.
_LEFT_OUT = {
    _SOURCE: "a source that takes one can be uploaded: `ocis2i upload SOURCE REGISTRY/NAME:TAG`, "
    "as `ocis2i kube run` does by itself",
    "--scripts-url": _OWN_SCRIPTS,
    "--scripts": _OWN_SCRIPTS,
    "--image-scripts-url": _OWN_SCRIPTS,
    "--args": "what runs reads it from a variable or a file that it gets when it is started",
    "--description": "",
    "--application-name": "",
    "--callback-url": "",
    "": "what assemble needs of it: --build-env NAME --build-secret SECRET",
}
_WAY_IN = (
    "put it into a Secret of the namespace under the key `{name}`, and give its name: "
    "{flag} {name} --build-secret SECRET"
)


def looks_secret(name: str, value: str) -> bool:
    """Whether a variable of that name is likely to hold a secret, and `value` may be one. Pure."""
    if _CREDENTIAL.fullmatch(value.strip()):
        return True
    words = [one for one in re.split(r"[^a-z0-9]+", _CAMEL.sub("_", name).lower()) if one]
    # PWD alone is the shell's word for where it is.
    if not words or words == ["pwd"] or words[-1] in _ABOUT or words[0] in _LIMITS:
        return False
    pairs = {f"{one} {other}" for one, other in pairwise(words)}
    joined = any(one.endswith(_ENDS) for one in words)
    if not (joined or _WORDS & set(words) or _PAIRS & pairs):
        return False
    return not _HARMLESS_VALUE.fullmatch(value)


def refuse_secrets(order: Order) -> None:
    """Refuses what is a secret by its form or name, wherever it stands. Raises `UsageError`."""
    _refuse_url(order.source, _SOURCE, _LEFT_OUT[_SOURCE])
    for word in (*order.fetch, *order.build, *order.push):
        flag, _, text = word.partition("=")
        name, equals, value = text.partition("=")
        if flag in ("--env", "--parameter") and equals and looks_secret(name, value):
            raise in_clear(flag, name, "looks like a secret by its name")
        shown = f"{flag} {name}" if flag in ("--env", "--parameter") else flag
        _refuse_url(text, shown, _LEFT_OUT.get(flag, _LEFT_OUT[""]))
    _refuse_argument([word.partition("=")[2] for word in order.build if word.startswith("--args=")])


def _refuse_argument(arguments: Sequence[str]) -> None:
    """Refuses `--token=VALUE`, `TOKEN=VALUE` and `--token VALUE` among the program's arguments."""
    for word, after in zip_longest(arguments, arguments[1:], fillvalue=""):
        name, equals, value = word.partition("=")
        if not equals:
            # Without dashes it is a word of the program, as in `token list`.
            takes = word.startswith("-") and not word.startswith("--no-")
            value = after if takes and not after.startswith("-") else ""
        if is_name(name.lstrip("-").replace("-", "_")) and looks_secret(name, value):
            raise UsageError(
                f"`{name}` of --args looks like a secret by its name, and all could read it who "
                "see the manifest or the image",
                hint=f"leave it out; {_LEFT_OUT['--args']}",
            )


def _refuse_url(text: str, where: str, instead: str) -> None:
    # Imported only where a manifest is written.
    from ocis2i.confidential import credentials_in  # noqa: PLC0415

    # A user alone is part of an ssh address; where it is the password, one of the two says so.
    if credentials_in("", text) or redact_url(text) != text:
        raise UsageError(
            f"{where} has a password or token in it, which all could read who see the manifest",
            hint=f"leave it out; {instead}" if instead else "leave it out",
        )


def in_clear(flag: str, name: str, why: str) -> UsageError:
    """The refusal of a value that would stand in the manifest, and how it gets in unseen."""
    if flag == "--env":
        return UsageError(
            f"`{name}` of --env {why}, and all could read it who see the manifest or the image",
            hint="what runs gets it when it is started; what builds: "
            + _WAY_IN.format(name=name, flag="--build-env"),
        )
    return UsageError(
        f"`{name}` of -P {why}, and all could read it who see the manifest",
        hint=_WAY_IN.format(name=name, flag="-P"),
    )


# --- values out of a Secret -----------------------------------------------------------------------


def names_in_secret(
    build_env: Sequence[str] | None, parameters: Sequence[str] | None
) -> tuple[str, ...]:
    """The variables that `-P NAME` and `--build-env NAME` take out of the container's environment.

    Raises `UsageError` for a `--build-env` with its value, and for what is no name.
    """
    return tuple(dict.fromkeys(_bare_names(build_env or (), parameters or ())))


def _bare_names(build_env: Sequence[str], parameters: Sequence[str]) -> Iterator[str]:
    for flag, texts in (("--build-env", build_env), ("-P", parameters)):
        for text in texts:
            name, equals, _ = text.partition("=")
            name = name.strip()
            if equals and flag == "-P":
                continue
            if equals:
                raise UsageError(
                    f"--build-env {name[:80]} has its value with it, and a manifest is no place "
                    "for secrets",
                    hint=_WAY_IN.format(name=name[:80], flag=flag),
                )
            if not is_name(name):
                raise UsageError(
                    f"{flag}: `{name[:80]}` is no name of a variable",
                    hint="it has letters, digits and `_`, and no digit first",
                )
            yield name
