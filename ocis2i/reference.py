"""Names for content: digests, platforms, registry references and transports.

The grammar is that of distribution/reference (`regexp.go`, `normalize.go`).
"""

from __future__ import annotations

import hashlib
import ipaddress
import platform as host
import re
from dataclasses import field, replace
from typing import Literal

from ocis2i.errors import UsageError
from ocis2i.lazy_dataclass import dataclass

DEFAULT_REGISTRY = "docker.io"
HUB_API = "registry-1.docker.io"
# Its names, the one in a `Reference` first.
HUB_NAMES = (DEFAULT_REGISTRY, "index.docker.io", HUB_API)
DEFAULT_TAG = "latest"
NAME_LIMIT = 255

_HEX_LENGTH = {"sha256": 64, "sha384": 96, "sha512": 128}
_COMPONENT = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_DOMAIN = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
    r"(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?)*|\[[a-fA-F0-9:]+\])(?::([0-9]+))?\Z"
)
_HEX64 = re.compile(r"[a-f0-9]{64}\Z")
_PLATFORM_PART = re.compile(r"[A-Za-z0-9_.-]+\Z")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """The digest of some bytes, `algorithm:hex` (image-spec, descriptor.md)."""

    hex: str
    algorithm: str = "sha256"

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Raises `UsageError` with the rule that `text` breaks."""
        algorithm, colon, value = text.partition(":")
        if not colon:
            raise UsageError(
                f"invalid digest `{text}`: it must be ALGORITHM:HEX",
                hint="as sha256:, and 64 hexadecimal digits",
            )
        if algorithm not in _HEX_LENGTH:
            raise UsageError(
                f"invalid digest `{text}`: unknown algorithm `{algorithm}`",
                hint=f"known are {', '.join(_HEX_LENGTH)}",
            )
        if len(value) != _HEX_LENGTH[algorithm] or not re.fullmatch(r"[a-f0-9]+", value):
            raise UsageError(
                f"invalid digest `{text}`: {algorithm} needs "
                f"{_HEX_LENGTH[algorithm]} lower-case hexadecimal digits",
                hint="copy the whole digest",
            )
        return cls(value, algorithm)

    @classmethod
    def of(cls, data: bytes) -> Digest:
        """The sha256 digest of `data`."""
        return cls(hashlib.sha256(data).hexdigest())

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self.hex[:12]

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.hex}"


_ARCHITECTURES = {
    "x86_64": ("amd64", None),
    "amd64": ("amd64", None),
    "aarch64": ("arm64", None),
    "arm64": ("arm64", None),
    "armv7l": ("arm", "v7"),
    "armv6l": ("arm", "v6"),
    "i386": ("386", None),
    "i686": ("386", None),
    "ppc64le": ("ppc64le", None),
    "s390x": ("s390x", None),
    "riscv64": ("riscv64", None),
}


@dataclass(frozen=True, slots=True, order=True)
class Platform:
    """Operating system, architecture and variant, in Go's words (image-spec, image-index.md)."""

    architecture: str
    os: str = "linux"
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        """Reads `os/architecture[/variant]`; raises `UsageError`."""
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(map(_PLATFORM_PART.match, parts)):
            raise UsageError(
                f"invalid platform `{text}`", hint="write it as linux/amd64 or linux/arm/v7"
            )
        # The kernel's names of some processors are not Go's.
        architecture, variant = _ARCHITECTURES.get(parts[1], (parts[1], None))
        return cls(architecture, parts[0], parts[2] if len(parts) == 3 else variant)

    @classmethod
    def of_host(cls) -> Platform:
        """The platform of this machine."""
        machine = host.machine()
        architecture, variant = _ARCHITECTURES.get(machine, (machine, None))
        return cls(architecture, "linux", variant)

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


@dataclass(frozen=True, slots=True)
class Reference:
    """A name in a registry: `registry/repository[:tag][@digest]`, normalised.

    `registry` is a host with its port, `repository` a path of lower-case components.
    """

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Normalises as Docker and Podman do; raises `UsageError` with the rule that is broken."""
        _refuse_shapes_that_are_no_reference(text)
        rest, at, digest_text = text.partition("@")
        digest = _digest_of_reference(text, digest_text) if at else None
        name, tag = _split_tag(rest)
        if tag is not None and not _TAG.match(tag):
            raise _invalid(
                text,
                f"the tag `{tag}` must be 1 to 128 letters, digits, `_`, `.` or `-` "
                "and not begin with `.` or `-`",
            )
        registry, repository = _split_registry(name)
        _check_registry(text, registry)
        _check_repository(text, name, repository)
        return cls(registry, repository, tag, digest)

    @property
    def name(self) -> str:
        """`registry/repository`, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def target(self) -> str:
        """What the registry is asked for: the digest where there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    def with_default_tag(self) -> Reference:
        """The same name; `:latest` is added when it has neither tag nor digest."""
        return self if self.tag or self.digest else replace(self, tag=DEFAULT_TAG)

    def with_digest(self, digest: Digest) -> Reference:
        """The same repository, pinned to `digest`, tag kept for display."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.name}{tag}{digest}"


def is_loopback(registry: str) -> bool:
    """Whether `registry` (host[:port]) is this machine, where plain HTTP is harmless."""
    name = registry_host(registry)
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def registry_host(registry: str) -> str:
    """The host of `host[:port]`, brackets of IPv6 removed."""
    if registry.startswith("["):
        return registry[1:].partition("]")[0]
    return registry.partition(":")[0]


TransportName = Literal[
    "docker", "oci", "oci-archive", "docker-archive", "dir", "containers-storage", "docker-daemon"
]
_TRANSPORTS: tuple[TransportName, ...] = (
    "oci-archive",
    "docker-archive",
    "docker-daemon",
    "containers-storage",
    "oci",
    "dir",
)


@dataclass(frozen=True, slots=True)
class RegistryLocation:
    """`docker://NAME` or a bare name: the local store first, then the registry of that name.

    `short` is the name as it was written, without tag and digest, when it says no registry.
    """

    reference: Reference
    explicit: bool = False
    short: str | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"docker://{self.reference}" if self.explicit else str(self.reference)


@dataclass(frozen=True, slots=True)
class PathLocation:
    """An image in a directory or a file: `oci:`, `oci-archive:` or `docker-archive:`.

    `name` is the reference inside it, `None` when the place holds one image only.
    """

    transport: Literal["oci", "oci-archive", "docker-archive"]
    path: str
    name: str | None = None

    def __str__(self) -> str:
        return f"{self.transport}:{self.path}" + (f":{self.name}" if self.name else "")


@dataclass(frozen=True, slots=True)
class StoredLocation:
    """`sha256:…`: an image of the local store by the digest of its manifest, tagged or not."""

    digest: Digest

    def __str__(self) -> str:
        return str(self.digest)


Location = RegistryLocation | PathLocation | StoredLocation


def parse_location(text: str) -> Location:
    """Reads a transport and its place, or a bare reference (containers-transports(5)).

    A path ends at the first colon. Raises `UsageError` for a transport that ocis2i does not have.
    """
    if text.startswith("docker://"):
        return RegistryLocation(Reference.parse(text.removeprefix("docker://")), explicit=True)
    if text.startswith("sha256:") and len(text) == len("sha256:") + _HEX_LENGTH["sha256"]:
        return StoredLocation(Digest.parse(text))
    for transport in _TRANSPORTS:
        if text.startswith(transport + ":"):
            return _path_location(text, transport, text[len(transport) + 1 :])
    return RegistryLocation(Reference.parse(text), short=short_name(text))


def parse_registry_name(text: str) -> Reference:
    """Reads a name in a registry, `docker://` before it or not. Raises `UsageError` for a path."""
    location = parse_location(text)
    if isinstance(location, RegistryLocation):
        return location.reference
    raise UsageError(
        f"`{text}` is no name in a registry", hint="write it as registry.example.org/name:tag"
    )


def short_name(text: str) -> str | None:
    """What is written in a reference of its name, where it says no registry."""
    name, _ = _split_tag(text.partition("@")[0])
    return None if _names_registry(name) else name


def _path_location(text: str, transport: TransportName, rest: str) -> PathLocation:
    if transport == "docker-daemon":
        raise UsageError(
            f"`{text}`: ocis2i uses no Docker daemon",
            hint="write the image to a file with `docker save -o image.tar NAME` "
            "and name it docker-archive:image.tar",
        )
    if transport not in ("oci", "oci-archive", "docker-archive"):
        raise UsageError(
            f"`{text}`: the transport `{transport}:` is not there yet",
            hint=f"copy the image first: skopeo copy {text} oci:DIR:TAG",
        )
    path, _, name = rest.partition(":")
    if not path:
        raise UsageError(f"`{text}` names no path", hint=f"write it as {transport}:PATH[:NAME]")
    return PathLocation(transport, path, name or None)


def _invalid(text: str, rule: str, hint: str | None = None) -> UsageError:
    return UsageError(f"invalid image name `{_redacted(text)}`: {rule}", hint=hint)


def _redacted(text: str) -> str:
    """`text` without what may be a user and password: no digest stands after its `@`."""
    _, at, rest = text.rpartition("@")
    is_host = "/" in rest or ":" not in rest or "://" in text
    return f"...@{rest}" if at and is_host else text


def _refuse_shapes_that_are_no_reference(text: str) -> None:
    if not text:
        raise UsageError(
            "an image name must not be empty",
            hint="give a name, as app or registry.example.com/team/app:1",
        )
    if text.startswith(("http://", "https://")):
        raise _invalid(
            text,
            "it is a URL",
            hint=f"leave out the scheme: {text.partition('://')[2].rpartition('@')[2]}",
        )
    if _redacted(text) != text:
        raise _invalid(
            text,
            "what follows the `@` must be a digest",
            hint="a user and password have no place in a name, use `ocis2i login`",
        )
    if _HEX64.match(text):
        raise _invalid(text, "64 hexadecimal digits are an image id, not a name")
    if any(character.isspace() for character in text):
        raise _invalid(text, "white space is not allowed")


def _digest_of_reference(text: str, digest: str) -> Digest:
    try:
        return Digest.parse(digest)
    except UsageError as error:
        raise _invalid(text, error.message, error.hint) from error


def _split_tag(rest: str) -> tuple[str, str | None]:
    head, colon, tail = rest.rpartition(":")
    if colon and "/" not in tail and not (tail.endswith("]") and "[" in head):
        return head, tail
    return rest, None


def _split_registry(name: str) -> tuple[str, str]:
    first, _, rest = name.partition("/")
    registry, repository = (first, rest) if _names_registry(name) else (DEFAULT_REGISTRY, name)
    if registry in HUB_NAMES:
        registry = DEFAULT_REGISTRY
    if registry == DEFAULT_REGISTRY and "/" not in repository:
        repository = f"library/{repository}"
    return registry, repository


def _names_registry(name: str) -> bool:
    first, slash, _ = name.partition("/")
    return bool(slash) and (
        "." in first or ":" in first or first == "localhost" or first != first.lower()
    )


def _check_registry(text: str, registry: str) -> None:
    match = _DOMAIN.match(registry)
    if not match:
        raise _invalid(
            text, f"`{registry}` is not a host name, an address or an IPv6 address in brackets"
        )
    if registry.startswith("["):
        address = registry_host(registry)
        try:
            parsed = ipaddress.IPv6Address(address)
        except ValueError:
            raise _invalid(text, f"`{address}` is not an IPv6 address") from None
        if parsed.ipv4_mapped:
            raise _invalid(text, f"`{address}` is an IPv4 address in IPv6 form")
    port = match.group(1)
    if port and (len(port.lstrip("0")) > 5 or int(port) > 65535):
        raise _invalid(text, f"port {port} is above 65535")


def _check_repository(text: str, name: str, repository: str) -> None:
    if not repository or repository == "library/":
        raise _invalid(text, "the repository is empty")
    if repository != repository.lower():
        typed = repository if name.endswith(repository) else repository.removeprefix("library/")
        raise _invalid(
            text,
            f"the repository `{typed}` must be lower case",
            hint=f"{name.removesuffix(typed)}{typed.lower()}{text.removeprefix(name)}",
        )
    for component in repository.split("/"):
        if not _COMPONENT.match(component):
            raise _invalid(
                text,
                f"the path component `{component}` must be lower-case letters and digits, "
                "joined by one `.`, one or two `_`, or any number of `-`",
            )
    if len(repository) > NAME_LIMIT:
        raise _invalid(text, f"the repository is longer than {NAME_LIMIT} characters")
