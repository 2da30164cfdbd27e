"""Makes pip in a container find what it finds on the host.

Reads the output of `pip config list`, writes `pip.conf` into a directory, and prints the options
of `ocis2i build` (or `buildah run`) that bring it, the host's certificates and the local package
directories into the container, one word a line. Nothing of that reaches the image: a mount's
content is not part of it.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

CERTIFICATES = "/etc/pip-ca.crt"
PLACES = ("index-url", "extra-index-url", "find-links")
KEPT = (*PLACES, "no-index", "trusted-host", "proxy", "timeout", "retries", "prefer-binary")
# Later ones win, as pip has it: the command's own section over [global], variables over files.
SECTIONS = ("global", "install", ":env:")


def read_settings(lines: Iterable[str]) -> dict[str, str]:
    """The settings that `pip install` would use, from lines like `global.timeout='60'`."""
    by_section: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in lines:
        name, equals, value = line.strip().partition("=")
        section, _, key = name.rpartition(".")
        if equals and section in by_section:
            key = key.removeprefix("default-")
            by_section[section][key] = str(ast.literal_eval(value))
    merged: dict[str, str] = {}
    for section in SECTIONS:
        merged |= by_section[section]
    return {key: merged[key] for key in KEPT if key in merged}


def local_directory(place: str) -> Path | None:
    """The directory that an index or a find-links entry names, or None for one that is far."""
    url = urlsplit(place)
    if url.scheme == "file":
        return Path(unquote(url.path))
    return Path(place) if place.startswith("/") else None


def mounted(directory: Path) -> Path | None:
    """What to mount for a local index: where its pages link to, too. None if that cannot be."""
    wanted = [directory]
    page = next(iter(sorted(directory.glob("*/index.html"))), None)
    if page is not None:
        links = re.findall(r'href="([^"#:]+)', page.read_text(errors="replace"))
        wanted += [Path(os.path.normpath(page.parent / unquote(link))).parent for link in links]
    common = Path(os.path.commonpath(wanted))
    usable = common.is_dir() and common != Path("/") and ":" not in str(common)
    return common if usable else None


def plan(settings: dict[str, str]) -> tuple[dict[str, str], list[Path]]:
    """The container's settings and the directories they need; without unusable local places."""
    mounts: set[Path] = set()
    planned = dict(settings)
    for key in PLACES:
        kept = []
        for place in settings.get(key, "").split():
            directory = local_directory(place)
            mount = mounted(directory) if directory is not None else None
            if directory is None or mount is not None:
                kept.append(place)
            if mount is not None:
                mounts.add(mount)
        planned[key] = "\n    ".join(kept)
    outermost = [one for one in mounts if not any(other in one.parents for other in mounts)]
    return {key: value for key, value in planned.items() if value}, sorted(outermost)


def volume_options(config: Path, certificates: Path | None, mounts: list[Path]) -> Iterator[str]:
    """The words of the command line."""
    pairs = [(config, Path("/etc/pip.conf")), *((mount, mount) for mount in mounts)]
    if certificates is not None:
        pairs.append((certificates, Path(CERTIFICATES)))
    for host, container in pairs:
        yield from ("--volume", f"{host}:{container}:ro")


def main() -> None:
    """Standard input to `pip.conf` and standard output."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("--cert", default="", help="the host's bundle of certificates")
    parser.add_argument("--proxy", default="", help="the proxy, if pip's settings name none")
    options = parser.parse_args()
    settings, mounts = plan(read_settings(sys.stdin))
    certificates = Path(options.cert).resolve() if Path(options.cert).is_file() else None
    if certificates is not None:
        settings["cert"] = CERTIFICATES
    if options.proxy:
        settings.setdefault("proxy", options.proxy)
    config = options.directory.absolute() / "pip.conf"
    lines = [f"{key} = {value}" for key, value in settings.items()]
    # The container's user is nobody the host knows: it reads by the bits for others.
    config.write_text("\n".join(["[global]", *lines, ""]))
    config.chmod(0o644)
    sys.stdout.write("".join(f"{word}\n" for word in volume_options(config, certificates, mounts)))


if __name__ == "__main__":
    main()
