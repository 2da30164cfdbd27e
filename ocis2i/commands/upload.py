"""The verbs for artifacts in registries: upload, attach, referrers."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Annotated

import typer

from ocis2i.binaries import check_name
from ocis2i.commands.context import Context, context, digest_file
from ocis2i.commands.delivered import print_delivered
from ocis2i.commands.flags import (
    CredentialFlags,
    DigestFileFlags,
    JsonFlags,
    SendFlags,
    TalkFlags,
    TimeFlags,
    option,
)
from ocis2i.commands.source_flags import SourceFlags
from ocis2i.commands.state import print_json
from ocis2i.documents import VERSION
from ocis2i.errors import SourceError, UsageError
from ocis2i.events import stage
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import human_size
from ocis2i.manifest import Descriptor
from ocis2i.oci_artifacts import SOURCE_TYPE, TITLE, referrer_type
from ocis2i.outputs import Delivered
from ocis2i.reference import (
    Reference,
    RegistryLocation,
    parse_location,
    parse_registry_name,
)
from ocis2i.referrers import list_under_tag, referrers_of
from ocis2i.report import printable, table
from ocis2i.sources import Source, read_source_type
from ocis2i.upload import FileSource, check_target, title_of, upload

# RFC 6838, section 4.2, with a tree and a suffix or not.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&.+^-]{0,126}/[A-Za-z0-9][\w!#$&.+^-]{0,126}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class UploadFlags(CredentialFlags, SendFlags, DigestFileFlags, TalkFlags, JsonFlags, SourceFlags):
    """`upload`."""

    source: Annotated[
        str,
        typer.Argument(help="What `build` takes as well. A file of this host is taken as it is."),
    ]
    reference: Annotated[str, typer.Argument(help="The name of the artifact in a registry.")]

    @property
    def named_image(self) -> str:
        """The artifact, whose registry `--creds` is for."""
        return self.reference


def upload_source(flags: UploadFlags) -> None:
    with context(flags) as here:
        target = check_target(parse_registry_name(flags.reference))
        tools = here.tools
        file = digest_file(flags, here)
        artifact = upload(
            _source(flags, tools.cwd),
            target,
            tools.places,
            settings=tools.settings,
            report=here.recorder,
            stdin=tools.stdin,
        )
        if file:
            file.write(str(artifact.digest))
    place = Delivered(target.name, artifact.digest)
    print_delivered(place, as_json=flags.as_json, artifact_type=SOURCE_TYPE)


def _source(flags: UploadFlags, cwd: Path) -> Source | FileSource:
    path = cwd / flags.source
    if not _is_file(path) or read_source_type(flags.source_type) == "archive":
        return flags.parsed(flags.source, cwd)
    meant = [one for one in flags.source_flags if not one.startswith("source_")]
    if meant:
        raise UsageError(
            f"--{meant[0].replace('_', '-')} has no meaning for a file, and `{flags.source}` "
            "is one",
            hint="a file is uploaded as it is; --source-type archive unpacks it",
        )
    name = flags.source_name
    return FileSource(path, None if name is None else check_name(name))


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (OSError, ValueError):
        return False


# --- referrers ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class AttachFlags(CredentialFlags, SendFlags, TalkFlags, JsonFlags):
    """`attach`."""

    image: Annotated[str, typer.Argument(help="An image in a registry.")]
    file: Annotated[str, typer.Argument(help="The file to attach.")]
    kind: Annotated[
        str,
        option("--type", metavar="TYPE", help="What it is, as application/spdx+json."),
    ]


def attach_file(flags: AttachFlags) -> None:
    # What takes a fifth of a second to load is for artifacts alone.
    from ocis2i.oras_client import Part, push_artifact  # noqa: PLC0415

    kind = _media_type(flags.kind)
    with context(flags) as here:
        path = here.tools.cwd / flags.file
        if not _is_file(path):
            raise SourceError(
                f"`{flags.file}` is no file",
                hint="name a file that is there; `ocis2i upload` takes directories",
            )
        registry = here.tools.places.registry
        with stage(here.recorder, "push", flags.image):
            image, subject = _subject(flags.image, here)
            pushed = push_artifact(
                registry,
                Reference(image.registry, image.repository),
                kind,
                [Part(path, kind, {TITLE: title_of(path)})],
                subject=subject,
            )
            if not pushed.listed:
                list_under_tag(registry, image, subject.digest, pushed.descriptor)
    place = Delivered(image.name, pushed.descriptor.digest)
    print_delivered(place, as_json=flags.as_json, artifact_type=kind)


@dataclass(frozen=True, kw_only=True)
class ReferrersFlags(CredentialFlags, TimeFlags, JsonFlags):
    """`referrers`."""

    image: Annotated[str, typer.Argument(help="An image in a registry.")]
    kind: Annotated[
        str | None, option("--type", metavar="TYPE", help="Artifacts of this type alone.")
    ] = None


def list_referrers(flags: ReferrersFlags) -> None:
    kind = _media_type(flags.kind) if flags.kind is not None else None
    with context(flags) as here:
        image, subject = _subject(flags.image, here)
        found = referrers_of(here.tools.places.registry, image, subject.digest, kind)
    if flags.as_json:
        print_json(
            {
                "version": VERSION,
                "subject": f"{image.name}@{subject.digest}",
                "referrers": [_row(one) for one in found],
            }
        )
        return
    rows = [(str(one.digest), printable(referrer_type(one)), human_size(one.size)) for one in found]
    print(table(rows, ("DIGEST", "TYPE", "SIZE")))


def _row(referrer: Descriptor) -> dict[str, object]:
    return {
        "digest": str(referrer.digest),
        "artifact_type": referrer_type(referrer),
        "media_type": referrer.media_type,
        "size": referrer.size,
        "annotations": dict(referrer.annotations),
    }


def _subject(text: str, here: Context) -> tuple[Reference, Descriptor]:
    """The image, or index, that a name in a registry points at."""
    location = parse_location(text)
    if not isinstance(location, RegistryLocation):
        raise UsageError(
            f"`{text}` is not in a registry", hint="push the image, and name it as it is there"
        )
    reference = location.reference.with_default_tag()
    return reference, here.tools.places.registry.get_manifest(reference).descriptor


def _media_type(text: str) -> str:
    if not _MEDIA_TYPE.fullmatch(text):
        raise UsageError(
            f"--type `{text[:80]}` is no media type",
            hint="such as application/spdx+json or application/vnd.example.report.v1",
        )
    return text
