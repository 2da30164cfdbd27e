"""The host's settings for mirrored packages, made ready for a build and never for its image.

On many hosts packages come only from a mirror, through a proxy, or with a company's certificates.
`host_mirrors` reads what pip, npm, Yarn, Maven, Go, Bundler, Cargo and uv on this host would use
and makes of it files for `MIRRORS_DIRECTORY` (to be mounted read-only) and build-only variables.

Only settings about where packages come from are taken. Files that such a setting names, like a
client certificate, are copied; no other private key is looked at. Not taken: `.netrc` (it holds
more than mirrors), Maven's `settings-security.xml`, Gradle's settings, Java's trust stores.

Maven's settings are named by `MAVEN_SETTINGS_XML`, which the S2I builders of Java give to `mvn -s`.
`MAVEN_ARGS` is left alone, though Maven would read `-s` from it: for the S2I builders of Java it
holds the goals, `package` by default, and setting it would build nothing.
"""

from __future__ import annotations

import configparser
import html
import ipaddress
import os
import re
import stat
from collections.abc import Iterable, Mapping
from dataclasses import field
from itertools import islice
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ocis2i.allowed_hosts import HostName, Range, Rule, parse_address
from ocis2i.confidential import Secret, credentials_in, secrets_of_file, secrets_of_variable
from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass
from ocis2i.net import is_web_url, origin

MIRRORS_DIRECTORY = "/run/ocis2i"

_FLAG = "`--host-mirrors`"
_SETTINGS_LIMIT = 1 << 20
_BUNDLE_LIMIT = 8 << 20
_PAGES = 200
_BUNDLE = "ca-bundle.crt"
# Where Debian, Fedora, openSUSE and Alpine keep it, below /etc (Go's `crypto/x509/root_linux.go`).
_SYSTEM_BUNDLES = (
    "ssl/certs/ca-certificates.crt",
    "pki/tls/certs/ca-bundle.crt",
    "ssl/ca-bundle.pem",
    "ssl/cert.pem",
)
_BUNDLE_SETTINGS = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
_BUNDLE_VARIABLES = (
    *_BUNDLE_SETTINGS,
    "PIP_CERT",
    "NODE_EXTRA_CA_CERTS",
    "GIT_SSL_CAINFO",
    "CARGO_HTTP_CAINFO",
)
_CERTIFICATE = re.compile(
    rb"-----BEGIN (?:TRUSTED )?CERTIFICATE-----[A-Za-z0-9+/=\s]{1,100000}"
    rb"-----END (?:TRUSTED )?CERTIFICATE-----"
)
_PROXIES = ("http_proxy", "https_proxy", "ftp_proxy", "all_proxy", "no_proxy")
_GO = ("GOPROXY", "GONOPROXY", "GOPRIVATE", "GOSUMDB", "GONOSUMDB", "GOINSECURE")
# Variables that say where packages come from; a trailing `*` stands for anything.
_VARIABLES: Mapping[str, tuple[str, ...]] = {
    "yarn": (
        "YARN_REGISTRY",
        "YARN_NPM_REGISTRY_SERVER",
        "YARN_NPM_AUTH_TOKEN",
        "YARN_NPM_AUTH_IDENT",
    ),
    "bundler": ("BUNDLE_MIRROR__*",),
    "cargo": ("CARGO_REGISTRIES_*", "CARGO_HTTP_PROXY"),
    "uv": ("UV_DEFAULT_INDEX", "UV_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_INDEX_*"),
}
_TELLING_NAME = re.compile(r"TOKEN|AUTH|PASSWORD|SECRET")


@dataclass(frozen=True, slots=True)
class Mirrors:
    """What a build gets of the host's settings.

    `files` by name, for `MIRRORS_DIRECTORY`; `directories` of the host that local indexes need,
    to be mounted read-only in the same place. `found` has sentences for the log, without
    credentials.
    """

    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    secrets: tuple[Secret, ...] = ()
    found: tuple[str, ...] = ()
    directories: tuple[Path, ...] = ()


def host_mirrors(
    environment: Mapping[str, str],
    home: Path,
    etc: Path = Path("/etc"),
    *,
    proxies: bool = True,
) -> Mirrors:
    """Reads the settings of this host; `environment` wins over files as each tool has it.

    Without `proxies` nothing of them is taken: for a build that has a proxy of ours alone.
    Raises `UsageError` for a settings file that its tool could not read either, and for a
    certificate that a setting names and that is not there.
    """
    taking = _Taking(_Host(environment, home, etc), proxies=proxies)
    if proxies:
        _take_proxies(taking)
    for take in (_take_bundle, _take_pip, _take_npm, _take_maven, _take_go):
        take(taking)
    for tool, names in _VARIABLES.items():
        _take_variables(taking, tool, tuple(one for one in names if proxies or "PROXY" not in one))
    return taking.result()


_URL = re.compile(r"""https?://[^\s"'<>,|]+""")
_MAVEN_URL = re.compile(r"<url>([^<]*)</url>")
_SETTINGS_FILES = ("pip.conf", "npmrc")


def mirror_hosts(mirrors: Mirrors) -> tuple[Rule, ...]:
    """The hosts that packages come from by these settings, each with its port. Pure."""
    texts = [text for name, text in mirrors.environment.items() if not _is_proxy(name)]
    texts += [mirrors.files.get(one, b"").decode(errors="replace") for one in _SETTINGS_FILES]
    maven = mirrors.files.get("settings.xml", b"").decode(errors="replace")
    texts += [html.unescape(url) for url in _MAVEN_URL.findall(maven)]
    rules: list[Rule] = []
    for url in (url for text in texts for url in _URL.findall(text)):
        if is_web_url(url):
            _, host, port = origin(url)
            address = parse_address(host)
            rule = HostName(host, port)
            rules.append(rule if address is None else Range(ipaddress.ip_network(address), port))
    return tuple(dict.fromkeys(rules))


def _is_proxy(name: str) -> bool:
    return name.lower() in _PROXIES or name.endswith("_PROXY")


@dataclass(frozen=True, slots=True)
class _Host:
    environment: Mapping[str, str]
    home: Path
    etc: Path

    @property
    def config(self) -> Path:
        """The user's configuration directory (XDG Base Directory Specification)."""
        given = Path(self.environment.get("XDG_CONFIG_HOME") or "")
        return given if given.is_absolute() else self.home / ".config"

    def path(self, text: str) -> Path:
        """A path of a setting; `~` is this user's home, relative ones are below it."""
        return (
            self.home / text.removeprefix("~").lstrip("/")
            if text[:1] == "~"
            else (self.home / text)
        )


class _Taking:
    """What was found so far."""

    def __init__(self, host: _Host, *, proxies: bool) -> None:
        self.host = host
        self.proxies = proxies
        self.environment: dict[str, str] = {}
        self.files: dict[str, bytes] = {}
        self._directories: set[Path] = set()
        self._secrets: dict[bytes, Secret] = {}
        self._found: list[str] = []

    def add_file(self, name: str, content: bytes) -> str:
        """Keeps a file; its path in the container."""
        self.files[name] = content
        return f"{MIRRORS_DIRECTORY}/{name}"

    def add_secrets(self, secrets: Iterable[Secret]) -> None:
        """Remembers values that must not get out."""
        for secret in secrets:
            self._secrets.setdefault(secret.value, secret)

    def add_directories(self, directories: Iterable[Path]) -> None:
        """Remembers what a local index needs."""
        self._directories.update(directories)

    def say(self, sentence: str) -> None:
        """A line for the log."""
        self._found.append(sentence)

    def copy(self, text: str, name: str, setting: str) -> str:
        """Copies a file that a setting names (a certificate or its key); its new path."""
        content = _read(self.host.path(text), _BUNDLE_LIMIT)
        if content is None:
            raise UsageError(
                f"{_FLAG}: {setting} names `{text}`, and there is no such file",
                hint="repair that setting of this host",
            )
        self.add_secrets(secrets_of_file(f"the file of {setting}", content))
        return self.add_file(name, content)

    def result(self) -> Mirrors:
        """All of it."""
        outermost = [
            one
            for one in self._directories
            if not any(other in one.parents for other in self._directories)
        ]
        return Mirrors(
            self.environment,
            self.files,
            tuple(self._secrets.values()),
            tuple(self._found),
            tuple(sorted(outermost)),
        )


# --- certificates, proxies, plain variables -----------------------------------------------------


def _take_bundle(taking: _Taking) -> None:
    environment, etc = taking.host.environment, taking.host.etc
    named = [(name, environment[name]) for name in _BUNDLE_SETTINGS if environment.get(name)]
    places = [(f"`{name}`", taking.host.path(value)) for name, value in named]
    places += [(f"`{etc / place}`", etc / place) for place in _SYSTEM_BUNDLES]
    for what, path in places:
        certificates = _certificates(path)
        if certificates:
            extra = environment.get("NODE_EXTRA_CA_CERTS")
            more = _certificates(taking.host.path(extra)) if extra else []
            everything = dict.fromkeys([*certificates, *more])
            path_inside = taking.add_file(_BUNDLE, b"\n".join([*everything, b""]))
            taking.environment.update(dict.fromkeys(_BUNDLE_VARIABLES, path_inside))
            taking.say(f"certificates: {len(everything)} of {what}")
            return


def _certificates(path: Path) -> list[bytes]:
    """The certificates in a file and nothing else of it: a bundle may have a key in it."""
    return _CERTIFICATE.findall(_read(path, _BUNDLE_LIMIT) or b"")


def _take_proxies(taking: _Taking) -> None:
    environment = taking.host.environment
    found = []
    for lower in _PROXIES:
        both = (lower, lower.upper())
        value = next((environment[name] for name in both if environment.get(name)), None)
        if value is None:
            continue
        # Programs differ in which of the two they read.
        taking.environment.update({name: environment.get(name) or value for name in both})
        for name in both:
            proxy = taking.environment[name]
            url = proxy if "://" in proxy else f"http://{proxy}"  # curl takes it without, too
            taking.add_secrets(credentials_in(f"the variable `{name}`", url))
        found.append(lower)
    if found:
        taking.say(f"proxies: {', '.join(found)}")


def _take_variables(taking: _Taking, tool: str, wanted: tuple[str, ...]) -> None:
    taken = []
    for name, value in sorted(taking.host.environment.items()):
        exact = name in wanted
        begins = tuple(one[:-1] for one in wanted if one.endswith("*"))
        if not value or not (exact or (begins and name.startswith(begins))):
            continue
        taking.environment[name] = value
        what = f"the variable `{name}`"
        known = secrets_of_variable if _TELLING_NAME.search(name) else credentials_in
        taking.add_secrets(known(what, value))
        taken.append(f"`{name}`")
    if taken:
        taking.say(f"{tool}: {', '.join(taken)}")


def _take_go(taking: _Taking) -> None:
    host = taking.host
    given = host.environment.get("GOENV", "")
    settings: dict[str, str] = {}
    if given != "off":
        path = Path(given) if given else host.config / "go/env"
        for line in (_read_text(path) or "").splitlines():
            name, equals, value = line.strip().partition("=")
            if equals and name in _GO:
                settings[name] = value
    settings |= {name: host.environment[name] for name in _GO if host.environment.get(name)}
    if proxies := settings.get("GOPROXY"):
        # A directory of this host is not in the container; `,` and `|` are two kinds of "else".
        kept = re.sub(r"(^|[,|])file://[^,|]*", "", proxies).lstrip(",|")
        if kept != proxies:
            taking.say("go: a local directory in `GOPROXY` is left out")
        settings["GOPROXY"] = kept
    settings = {name: value for name, value in settings.items() if value}
    for name, value in settings.items():
        taking.add_secrets(credentials_in(f"Go's `{name}`", value))
    if settings:
        taking.environment.update(settings)
        taking.say(f"go: {', '.join(f'`{name}`' for name in sorted(settings))}")


# --- pip ----------------------------------------------------------------------------------------

_PIP_PLACES = ("index-url", "extra-index-url", "find-links")
_PIP_FILES = ("cert", "client-cert")
_PIP_KEYS = frozenset(
    (*_PIP_PLACES, *_PIP_FILES, "trusted-host", "proxy", "no-index", "timeout", "retries")
)
_PIP_SECTION = re.compile(r"global|install|download|wheel|search|index|lock")
_LINK = re.compile(r"""href\s*=\s*["']?([^"'>#?\s]+)""", re.IGNORECASE)


def _take_pip(taking: _Taking) -> None:
    sections, origins = _pip_settings(taking.host)
    lines: list[str] = []
    named: list[str] = []
    for section, settings in sorted(sections.items()):
        kept = {key: _pip_value(taking, section, key, settings[key]) for key in sorted(settings)}
        kept = {key: value for key, value in kept.items() if value}
        if not taking.proxies:
            kept.pop("proxy", None)  # it would win over the variable
        if kept:
            lines.append(f"[{section}]")
            lines += [f"{key} = " + "\n    ".join(kept[key].split("\n")) for key in kept]
            named += [key for key in kept if key not in named]
    if not lines:
        return
    content = "\n".join([*lines, ""]).encode()
    taking.add_secrets(secrets_of_file("pip's settings", content, whole=False))
    taking.environment["PIP_CONFIG_FILE"] = taking.add_file("pip.conf", content)
    if "cert" in named:
        taking.environment.pop("PIP_CERT", None)  # as a variable it would win over the file
    taking.say(f"pip: {', '.join(named)} of {', '.join(origins)}")


def _pip_settings(host: _Host) -> tuple[dict[str, dict[str, str]], list[str]]:
    """The settings by section, in pip's own order (`pip/_internal/configuration.py`)."""
    given = host.environment.get("PIP_CONFIG_FILE", "")
    sections: dict[str, dict[str, str]] = {}
    origins: list[str] = []
    for path in _pip_files(host, given):
        text = _read_text(path)
        if text is None:
            continue
        found = _parse_pip(text, path)
        for section, settings in found.items():
            sections.setdefault(section, {}).update(settings)
        if found:
            origins.append(f"`{path}`")
    for name, value in sorted(host.environment.items()):
        key = name.removeprefix("PIP_").lower().replace("_", "-").removeprefix("default-")
        if name.startswith("PIP_") and value and key in _PIP_KEYS:
            # A variable counts for all commands, over all files.
            for settings in sections.values():
                settings.pop(key, None)
            sections.setdefault("global", {})[key] = value
            origins.append(f"`{name}`")
    return sections, origins


def _pip_files(host: _Host, given: str) -> list[Path]:
    if given == os.devnull:
        return []
    directories = host.environment.get("XDG_CONFIG_DIRS") or str(host.etc / "xdg")
    files = [Path(one) / "pip/pip.conf" for one in reversed(directories.split(":")) if one]
    files.append(host.etc / "pip.conf")
    if given and host.path(given).exists():
        return [*files, host.path(given)]
    return [*files, host.home / ".pip/pip.conf", host.config / "pip/pip.conf"]


def _parse_pip(text: str, path: Path) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(text)
    except configparser.Error as error:
        # Its message has the line, which may hold a password.
        raise UsageError(
            f"{_FLAG}: pip could not read `{path}` either: {type(error).__name__}",
            hint="try `pip config list`",
        ) from None
    sections: dict[str, dict[str, str]] = {}
    for section in parser.sections():
        for name, value in parser.items(section):
            key = name.replace("_", "-").removeprefix("--").removeprefix("default-")
            if _PIP_SECTION.fullmatch(section) and key in _PIP_KEYS and value.strip():
                sections.setdefault(section, {})[key] = value.strip()
    return sections


def _pip_value(taking: _Taking, section: str, key: str, value: str) -> str:
    if key in _PIP_FILES:
        return taking.copy(value, f"pip-{section}-{key}.pem", f"pip's `{key}`")
    if key not in _PIP_PLACES:
        return value
    kept = []
    for place in value.split():
        directory = _local_directory(place, taking.host)
        if directory is None:
            kept.append(place)
            continue
        mounts = _needed_directories(directory)
        taking.add_directories(mounts)
        if mounts:
            kept.append(place)
        else:
            taking.say(f"pip: the local `{directory}` in {key} is left out")
    return "\n".join(kept)


def _local_directory(place: str, host: _Host) -> Path | None:
    """The directory that an index or a place of links names, or None for one that is far."""
    parts = urlsplit(place)
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    if parts.scheme:
        return None
    return host.path(place)


def _needed_directories(directory: Path) -> set[Path]:
    """What to mount for a local index: itself and where its pages link to; empty if impossible."""
    index = Path(os.path.normpath(directory))
    if not index.is_dir() or len(index.parts) < 3 or ":" in str(index):
        return set()
    needed = {index}
    for page in islice(sorted(index.glob("*/index.html")), _PAGES):
        text = (_read(page, _SETTINGS_LIMIT) or b"").decode(errors="replace")
        targets = {
            Path(os.path.normpath(page.parent / unquote(link))).parent
            for link in _LINK.findall(text)
            if "://" not in link and "\0" not in unquote(link)
        }
        needed |= {one for one in targets if _may_be_mounted(one, index)}
    return {one for one in needed if index not in one.parents}


def _may_be_mounted(directory: Path, index: Path) -> bool:
    """Whether a directory that a page links to is shown to the build.

    A page that links to `../../../.ssh/x` shall not: such a directory is beside the index or
    below it, has nothing hidden on the way, and really is there, whatever links there are.
    """
    around = index.parent
    return (
        around in directory.parents
        and not any(part.startswith(".") for part in directory.relative_to(around).parts)
        and ":" not in str(directory)
        and directory.is_dir()
        and around.resolve() in directory.resolve().parents
    )


# --- npm ----------------------------------------------------------------------------------------

_NPM_KEYS = frozenset(
    """registry _auth _authToken _password username email always-auth ca ca[] cafile cert key
    certfile keyfile strict-ssl proxy http-proxy https-proxy noproxy fetch-retries
    fetch-timeout""".split()
)
_NPM_PROXIES = frozenset({"proxy", "http-proxy", "https-proxy", "noproxy"})
_NPM_FILES = ("cafile", "certfile", "keyfile")
_NPM_VARIABLE = re.compile(r"npm_config_", re.IGNORECASE)
_NPM_REFERENCE = re.compile(r"(?<!\\)\$\{(\w+)(\??)\}")


def _take_npm(taking: _Taking) -> None:
    host = taking.host
    variables = {
        name[11:]: value
        for name, value in sorted(host.environment.items())
        if _NPM_VARIABLE.match(name) and value
    }
    given = {_npm_key(name): value for name, value in variables.items()}
    settings: dict[str, list[str]] = {}
    origins = []
    for path in (
        host.path(given.get("globalconfig") or str(host.etc / "npmrc")),
        host.path(given.get("userconfig") or str(host.home / ".npmrc")),
    ):
        found = _parse_npm(_read_text(path) or "", host.environment)
        settings |= found
        origins += [f"`{path}`"] if found else []
    for key, value in given.items():
        if _is_npm_key(key):
            settings[key] = [value]
            origins.append(f"`npm_config_{key.rpartition(':')[2].replace('-', '_')}`")
    if not taking.proxies:
        settings = {key: values for key, values in settings.items() if key not in _NPM_PROXIES}
    lines = []
    for number, (key, values) in enumerate(sorted(settings.items())):
        name = key.rpartition(":")[2]
        if name in _NPM_FILES:
            copied = taking.copy(values[-1], f"npm-{number}-{name}.pem", f"npm's `{name}`")
            lines.append(f"{key} = {copied}")
        else:
            lines += [f"{key} = {value}" for value in values]
    if not lines:
        return
    content = "\n".join([*lines, ""]).encode()
    taking.add_secrets(secrets_of_file("npm's settings", content, whole=False))
    taking.environment["NPM_CONFIG_USERCONFIG"] = taking.add_file("npmrc", content)
    named = dict.fromkeys(key.rpartition(":")[2] for key in sorted(settings))
    taking.say(f"npm: {', '.join(named)} of {', '.join(origins)}")


def _npm_key(name: str) -> str:
    """The setting of a variable: `npm_config_https_proxy` is `https-proxy`."""
    if name.startswith(("//", "@")):
        return name
    lead = "_" if name.startswith("_") else ""
    key = lead + name.lstrip("_").replace("_", "-")
    for known in _NPM_KEYS:
        if key.lower() == known.lower():
            return known
    return key.lower()


def _is_npm_key(key: str) -> bool:
    place, colon, name = key.rpartition(":")
    return name in _NPM_KEYS and (not colon or place.startswith(("//", "@")))


def _parse_npm(text: str, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The settings of an `.npmrc` that are about packages; `${NAME}` is filled in here.

    In the container the variable is not there. Of a key written twice the last counts, but `ca[]`
    is a list.
    """
    settings: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, equals, value = (part.strip() for part in line.partition("="))
        if not equals or key.startswith((";", "#")) or not _is_npm_key(key):
            continue
        filled = _NPM_REFERENCE.sub(
            lambda match: environment.get(match[1], "" if match[2] else match[0]), value
        )
        earlier = settings.get(key, []) if key.endswith("[]") else []
        settings[key] = [*earlier, filled]
    return settings


# --- Maven --------------------------------------------------------------------------------------

_MAVEN_REFERENCE = re.compile(r"\$\{env\.([\w.]+)\}")
_MAVEN_PROXIES = re.compile(r"<proxies>.*?</proxies>", re.DOTALL)
_MAVEN_LOCAL = re.compile(r"<localRepository>[^<]*</localRepository>")


def _take_maven(taking: _Taking) -> None:
    host = taking.host
    given = host.environment.get("MAVEN_SETTINGS_XML", "")
    path = host.path(given) if given else host.home / ".m2/settings.xml"
    text = _read_text(path)
    if text is None or "<settings" not in text:
        return
    # Comments may hold old passwords, and a local repository is a directory of this host.
    text = _without_comments(text)
    text = _MAVEN_LOCAL.sub("", text)
    if not taking.proxies:
        text = _MAVEN_PROXIES.sub("", text)
    text = _MAVEN_REFERENCE.sub(
        lambda match: html.escape(host.environment.get(match[1], match[0])), text
    )
    content = text.encode()
    taking.add_secrets(secrets_of_file("Maven's settings", content, whole=False))
    taking.environment["MAVEN_SETTINGS_XML"] = taking.add_file("settings.xml", content)
    taking.say(f"maven: `{path}`")
    if re.search(r"<(password|passphrase)>\s*\{[^<]*\}\s*</", text):
        taking.say("maven: its encrypted passwords need a settings-security.xml and will not work")


def _without_comments(text: str) -> str:
    parts = []
    done = 0
    while (start := text.find("<!--", done)) >= 0:
        end = text.find("-->", start)
        parts.append(text[done:start])
        done = len(text) if end < 0 else end + 3
    return "".join([*parts, text[done:]])


# --- reading ------------------------------------------------------------------------------------


def _read(path: Path, limit: int) -> bytes | None:
    """A regular file of the host, links followed; None when there is none.

    Raises `UsageError` when it cannot be read or is larger than `limit` bytes.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(descriptor, "rb") as stream:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                return None
            data = stream.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"{_FLAG}: cannot read `{path}`: {reason}",
            hint="let this user read it, or leave --host-mirrors out",
        ) from error
    if len(data) > limit:
        raise UsageError(
            f"{_FLAG}: `{path}` has more than {limit} bytes",
            hint="leave --host-mirrors out, or make the file smaller",
        )
    return data


def _read_text(path: Path) -> str | None:
    data = _read(path, _SETTINGS_LIMIT)
    try:
        return None if data is None else data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{_FLAG}: `{path}` is not UTF-8 text",
            hint="put the file right, or leave --host-mirrors out",
        ) from error
