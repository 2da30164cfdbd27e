"""A login is kept where podman keeps it, privately, and nothing else is lost over it."""

from __future__ import annotations

import base64
import json
import stat
import threading
from pathlib import Path
from typing import Any

import pytest

from ocis2i.credentials import Credentials
from ocis2i.errors import OutputError, RegistryError, UsageError
from ocis2i.keychain import Keychain
from ocis2i.login import LoginPlace, login_file
from ocis2i.reference import Reference

ANN = Credentials("ann", "s3cret")
PAIR = base64.b64encode(b"ann:s3cret").decode()


def place(path: Path, helpers: tuple[str, ...] = ("containers-auth.json",)) -> LoginPlace:
    return LoginPlace(path, {"PATH": f"{path.parent}:/usr/bin:/bin"}, helpers)


def write(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def keeper(directory: Path) -> Path:
    """A helper `mine` that keeps one secret in the file that is returned."""
    kept = directory / "kept"
    program = directory / "docker-credential-mine"
    program.write_text(
        f"""#!/bin/sh
        echo "$@" >> {directory}/arguments
        case $1 in
        store) cat > {kept} ;;
        get) [ -e {kept} ] && cat {kept} || {{ echo credentials not found; exit 1; }} ;;
        erase) rm {kept} ;;
        esac
        """
    )
    program.chmod(0o755)
    return kept


# --- which file -----------------------------------------------------------------------------------


def test_the_file_is_chosen_as_podman_does(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    environment = {"HOME": str(tmp_path)}
    config = tmp_path / ".config/containers/auth.json"
    assert login_file(environment, None) == (config, None)
    environment["XDG_RUNTIME_DIR"] = str(run)
    assert login_file(environment, None) == (run / "containers/auth.json", None)
    environment["DOCKER_CONFIG"] = "/d"
    assert login_file(environment, None) == (Path("/d/config.json"), None)
    environment["REGISTRY_AUTH_FILE"] = "/r.json"
    assert login_file(environment, None) == (Path("/r.json"), None)
    assert login_file(environment, Path("/a.json")) == (Path("/a.json"), None)


def test_a_missing_runtime_directory_is_told_and_gone_around(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path / "gone")}
    path, warning = login_file(environment, None)
    assert path == tmp_path / ".config/containers/auth.json"
    assert "gone" in (warning or "")


# --- files ----------------------------------------------------------------------------------------


def test_a_login_can_be_found_and_is_private(tmp_path: Path) -> None:
    path = tmp_path / "new/auth.json"
    assert place(path).keep("example.com", ANN) == f"`{path}`"
    assert Keychain({}, authfile=path).find(Reference.parse("example.com/app")) == ANN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    assert [one.name for one in path.parent.iterdir()] == ["auth.json"]


def test_what_is_not_ours_stays_as_it_is(tmp_path: Path) -> None:
    known = {"auths": {"other.test": {"auth": "eA==", "x": 1}}, "HttpHeaders": {"A": "b"}, "z": 1}
    path = write(tmp_path / "config.json", known)
    path.chmod(0o644)
    place(path).keep("example.com", ANN)
    known["auths"]["example.com"] = {"auth": PAIR}  # type: ignore[index]
    assert read(path) == known
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert place(path).forget("example.com")
    del known["auths"]["example.com"]  # type: ignore[attr-defined]
    assert read(path) == known


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    real = write(tmp_path / "dotfiles/config.json", {})
    link = tmp_path / "config.json"
    link.symlink_to(real)
    place(link).keep("example.com", ANN)
    assert link.is_symlink()
    assert read(real)["auths"] == {"example.com": {"auth": PAIR}}


def test_where_everybody_may_write_nothing_is_kept(tmp_path: Path) -> None:
    open_to_all = tmp_path / "open"
    open_to_all.mkdir()
    open_to_all.chmod(0o777)
    with pytest.raises(RegistryError, match="everybody may write"):
        place(open_to_all / "auth.json").keep("example.com", ANN)
    open_to_all.chmod(0o1777)
    place(open_to_all / "auth.json").keep("example.com", ANN)


def test_a_file_that_is_no_json_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    path.write_text("not json")
    with pytest.raises(RegistryError, match="is not JSON"):
        place(path).keep("example.com", ANN)
    assert path.read_text() == "not json"


def test_a_directory_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        place(tmp_path / "file/auth.json").keep("example.com", ANN)


def test_docker_hub_has_the_name_that_the_files_owner_reads(tmp_path: Path) -> None:
    for name, key in (("auth.json", "docker.io"), ("config.json", "https://index.docker.io/v1/")):
        path = write(tmp_path / name, {"auths": {"index.docker.io": {"auth": "eA=="}}})
        place(path).keep("docker.io", ANN)
        assert read(path)["auths"] == {key: {"auth": PAIR}}
        assert place(path).forget("docker.io")
        assert read(path)["auths"] == {}


def test_a_namespace_has_a_login_of_its_own(tmp_path: Path) -> None:
    path = write(tmp_path / "auth.json", {"auths": {"example.com": {"auth": "eA=="}}})
    place(path).keep("example.com/team", ANN)
    assert set(read(path)["auths"]) == {"example.com", "example.com/team"}
    assert place(path).forget("example.com/team")
    assert not place(path).forget("example.com/team")
    assert set(read(path)["auths"]) == {"example.com"}


def test_logins_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "auth.json"
    hosts = [f"host{number}.test" for number in range(20)]
    threads = [threading.Thread(target=place(path).keep, args=(host, ANN)) for host in hosts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(read(path)["auths"]) == set(hosts)


# --- helpers --------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [{"credsStore": "mine"}, {"credHelpers": {"a.test": "mine"}}])
def test_a_helper_of_the_file_keeps_the_secret(tmp_path: Path, config: dict[str, Any]) -> None:
    kept = keeper(tmp_path)
    path = write(tmp_path / "config.json", {"auths": {"a.test": {"auth": "eA=="}}} | config)
    assert "docker-credential-mine" in place(path).keep("a.test", ANN)
    assert read(kept) == {"ServerURL": "a.test", "Username": "ann", "Secret": "s3cret"}
    assert read(path) == {"auths": {}} | config
    assert "s3cret" not in (tmp_path / "arguments").read_text()
    assert place(path).forget("a.test")
    assert not kept.exists()
    assert not place(path).forget("a.test")


def test_a_helper_of_registries_conf_keeps_the_secret(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    where = place(tmp_path / "auth.json", ("mine", "containers-auth.json"))
    where.keep("a.test", ANN)
    assert kept.exists()
    assert not (tmp_path / "auth.json").exists()
    assert where.forget("a.test")
    assert not kept.exists()


def test_a_namespace_cannot_be_given_to_a_helper(tmp_path: Path) -> None:
    keeper(tmp_path)
    path = write(tmp_path / "config.json", {"credsStore": "mine"})
    with pytest.raises(UsageError, match="credentials of whole registries"):
        place(path).keep("a.test/team", ANN)
    assert read(path) == {"credsStore": "mine"}
    other = place(tmp_path / "auth.json", ("mine", "containers-auth.json"))
    assert other.keep("a.test/team", ANN) == f"`{tmp_path / 'auth.json'}`"


def test_a_helper_that_fails_is_not_quoted(tmp_path: Path) -> None:
    program = tmp_path / "docker-credential-mine"
    program.write_text("#!/bin/sh\ncat; exit 1\n")
    program.chmod(0o755)
    path = write(tmp_path / "config.json", {"credsStore": "mine"})
    with pytest.raises(RegistryError, match="exit code 1") as caught:
        place(path).keep("a.test", ANN)
    assert "s3cret" not in caught.value.message


def test_all_logins_of_the_file_can_be_forgotten(tmp_path: Path) -> None:
    kept = keeper(tmp_path)
    config = {"credHelpers": {"a.test": "mine"}}
    path = write(tmp_path / "config.json", {"auths": {"b.test": {"auth": PAIR}}} | config)
    place(path).keep("a.test", ANN)
    assert place(path).forget_all() == ["b.test", "a.test"]
    assert read(path) == {"auths": {}} | config
    assert not kept.exists()
