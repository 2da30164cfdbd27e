"""Certificates are found for each server, and half a pair is an error."""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from ocis2i.certificates import (
    Certificates,
    TlsSettings,
    certificate_places,
    certificates_in,
    host_directory,
)
from ocis2i.errors import RegistryError, UsageError

HERE = Path("/c")


def test_files_are_known_by_their_endings() -> None:
    names = ["README", "ca.crt", "me.cert", "me.key", "other.crt"]
    found = certificates_in(names, HERE)
    assert found == Certificates(
        (HERE / "ca.crt", HERE / "other.crt"), ((HERE / "me.cert", HERE / "me.key"),)
    )


@pytest.mark.parametrize("name", ["me.cert", "me.key"])
def test_half_a_pair_names_both_files(name: str) -> None:
    with pytest.raises(RegistryError, match=r"me\.cert") as caught:
        certificates_in([name], HERE)
    assert "me.key" in caught.value.message


def test_the_users_directory_comes_before_the_systems() -> None:
    places = certificate_places({"HOME": "/home/ann"})
    assert [str(place) for place in places] == [
        "/home/ann/.config/containers/certs.d",
        "/etc/containers/certs.d",
        "/etc/docker/certs.d",
    ]
    assert str(certificate_places({"XDG_CONFIG_HOME": "/x"})[0]) == "/x/containers/certs.d"
    assert len(certificate_places({})) == 2


def test_the_first_directory_of_a_host_counts_alone(tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("user", "system")]
    for place, host in ((places[0], "a:5000"), (places[1], "a:5000"), (places[1], "docker.io")):
        (place / host).mkdir(parents=True)
    assert host_directory("a:5000", places) == places[0] / "a:5000"
    assert host_directory("a", places) is None
    assert host_directory("registry-1.docker.io", places) == places[1] / "docker.io"
    for hostile in ("", "..", "../user/a:5000"):
        assert host_directory(hostile, places) is None


def test_who_verifies_nothing_does_not_wait_for_roots() -> None:
    verifying, trusting = TlsSettings({})("any.test", True), TlsSettings({})("any.test", False)
    assert trusting.cert_store_stats()["x509_ca"] == 0
    assert (trusting.verify_mode, trusting.check_hostname) == (ssl.CERT_NONE, False)
    assert (verifying.verify_mode, verifying.check_hostname) == (ssl.CERT_REQUIRED, True)
    # But for that they are alike.
    assert trusting.options == verifying.options
    assert trusting.minimum_version == verifying.minimum_version
    assert trusting.verify_flags == verifying.verify_flags


def test_a_named_directory_is_for_every_host_and_must_exist(tmp_path: Path) -> None:
    (tmp_path / "me.key").touch()
    with pytest.raises(RegistryError, match=r"me\.key"):
        TlsSettings({}, tmp_path)("any.test", True)
    with pytest.raises(UsageError, match="absent` does not exist"):
        TlsSettings({}, tmp_path / "absent")


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    for name in ("me.cert", "me.key"):
        (tmp_path / name).write_text("nothing")
    with pytest.raises(RegistryError, match=r"me\.cert` with its key `.*cannot be decoded"):
        TlsSettings({}, tmp_path)("any.test", True)
