"""What `oci-artifact://` means as a source."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocis2i.errors import SourceError
from ocis2i.s2i import redact_url
from ocis2i.settings import Settings
from ocis2i.sources import ArtifactSource, fetch, parse_source

DIGEST = f"sha256:{'ab' * 32}"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("host:5000/app", "oci-artifact://host:5000/app:latest"),
        ("host:1/app:1", "oci-artifact://host:1/app:1"),
        (f"host:1/app@{DIGEST}", f"oci-artifact://host:1/app@{DIGEST}"),
        ("app", "oci-artifact://docker.io/library/app:latest"),
    ],
)
def test_artifact_is_named_as_images_are(written: str, shown: str, tmp_path: Path) -> None:
    found = parse_source(f"oci-artifact://{written}", cwd=tmp_path, context_dir="web")
    assert isinstance(found, ArtifactSource)
    assert str(found) == shown
    assert found.context_dir == "web"
    # Labels hold it, and passwords are taken out of what labels hold.
    assert redact_url(shown) == shown


@pytest.mark.parametrize("name", ["", "Upper/Case", "host/app@sha256:short", "host/app:a b"])
def test_what_names_no_artifact_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="names no artifact"):
        parse_source(f"oci-artifact://{name}", cwd=tmp_path)


def test_artifact_has_no_ref(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="ref `main` was asked for"):
        parse_source("oci-artifact://host/app", cwd=tmp_path, ref="main")


def test_artifact_needs_somebody_who_speaks_to_registries(tmp_path: Path) -> None:
    source = parse_source("oci-artifact://host/app", cwd=tmp_path)
    settings = Settings(tmp_path / "store", tmp_path)
    with pytest.raises(SourceError, match="is in a registry"):
        fetch(source, tmp_path, settings=settings, report=lambda _: None)
