"""Package managers in assemble scripts: on the rungs with all ids, with one alone, and in place.

The image has this host's /usr as a volume, and only the state of dpkg and apt of its own. For
`chroot`, which has no volumes, see `test_chroot.py`.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from tests.conftest import BUILDAH, CRUN, RUNC, needs
from tests.fakes.hosts import Host, fresh
from tests.fakes.images import HOME, Layer, LayoutImage, _architecture, make_layout
from tests.fakes.program import Done, Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(os.geteuid() == 0, reason="the tests run as root"),
    pytest.mark.skipif(not Path("/bin").is_symlink(), reason="this host's /usr is not all of it"),
]

MAPPED = [RUNC, CRUN, "builtin", BUILDAH]
# Files of /etc that programs of /usr are nothing without.
SETTINGS = ("alternatives", "pam.d", "security", "login.defs", "npmrc", "ssl", "ld.so.cache")

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
_apt:x:42:65534::/nonexistent:/usr/sbin/nologin
default:x:1001:0:Default Application User:/opt/app-root/src:/bin/sh
other:x:1234:2345::/nonexistent:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
GROUP = "root:x:0:\nother:x:2345:\nnogroup:x:65534:\n"
SHADOW = "root:*:19000:0:99999:7:::\nother:*:19000:0:99999:7:::\ndefault:*:19000:0:99999:7:::\n"


def image(path: Path, user: str) -> str:
    """A system without a /usr of its own; its `oci:` location."""
    layer = Layer()
    for name in (
        "dev etc etc/apt etc/dpkg etc/security opt proc root run srv sys usr var var/cache".split()
    ):
        layer.dir(name)
    for name in ("bin", "lib", "lib64", "sbin"):
        layer.symlink(name, f"usr/{name}")
    # Before it starts a script ocis2i looks into the image for the script's interpreter.
    layer.dir("usr/bin").file("usr/bin/sh", "the volume has one\n", mode=0o755)
    for (
        name
    ) in "var/cache/apt/archives/partial var/lib/apt/lists/partial var/lib/dpkg/info".split():
        layer.dir(name)
    for name in "var/lib/dpkg/updates var/lib/dpkg/triggers var/log/apt".split():
        layer.dir(name)
    layer.file("var/lib/dpkg/status").file("var/lib/dpkg/available")
    layer.dir("tmp", mode=0o1777).dir("var/tmp", mode=0o1777)
    layer.file("etc/passwd", PASSWD).file("etc/group", GROUP).file("etc/shadow", SHADOW, mode=0o640)
    layer.dir("etc/default").file("etc/default/locale").file("etc/environment")
    layer.file("etc/debian_version", "12.0\n")
    layer.dir("opt/app-root", mode=0o775, uid=1001).dir("opt/app-root/src", mode=0o775, uid=1001)
    config = {
        "User": user,
        "WorkingDir": HOME,
        "Env": [
            f"HOME={HOME}",
            "PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            "DEBIAN_FRONTEND=noninteractive",
        ],
        "Labels": {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i"},
    }
    make_layout(path, "system:1", [layer], config, platform=f"linux/{_architecture()}")
    return f"oci:{path}:system:1"


@dataclass(frozen=True)
class Bench:
    """Builds of scripts that install something."""

    ocis2i: Program
    directory: Path

    @property
    def source(self) -> Path:
        """The directory that becomes /tmp/src."""
        return self.directory / "source"

    def install(self, script: str, rung: str, *, user: str = "0") -> Done:
        """Builds with this assemble script; `single` has one user id, `in-place` a container."""
        scripts = self.source / ".s2i/bin"
        scripts.mkdir(parents=True, exist_ok=True)
        for name, text in {"assemble": script, "run": "true"}.items():
            (scripts / name).write_text(f"#!/bin/sh\nset -e\n{text}\n")
            (scripts / name).chmod(0o755)
        settings = [f"/etc/{name}" for name in SETTINGS if os.path.exists(f"/etc/{name}")]
        lent = ["/usr", *settings]
        location = image(self.directory / "system", user)
        output = f"oci:{self.directory}/out:app"
        given: list[str | Path] = ["build", self.source, location, "app:1", "-o", output]
        if rung == "in-place":
            return self.in_place(lent)(*given, "--isolation", rung)
        volumes = [word for path in lent for word in ("-v", f"{path}:{path}:ro")]
        single = Host(no_new_privs=True).launcher if rung == "single" else ()
        running = replace(self.ocis2i, launcher=single)
        isolation = "builtin" if rung == "single" else rung
        return running(*given, "--isolation", isolation, *volumes)

    def in_place(self, lent: Sequence[str]) -> Program:
        """The program in a container of the image, as the image's user and without a right."""
        (self.directory / "out").mkdir()
        (self.directory / "out").chmod(0o777)
        host = Host(
            ids="container",
            image=(str(self.directory / "system"), "system:1"),
            shared=(*lent, str(self.directory)),
            mounts=(fresh("tmpfs", "/var/tmp", options="mode=1777"),),
            user=(1001, 0),
            no_new_privs=True,
            filter="docker",
        )
        kept = {name: self.ocis2i.environment[name] for name in ("PATH", "PYTHONPATH")}
        store = {"OCIS2I_ROOT": "/var/tmp/store", "PYTHONDONTWRITEBYTECODE": "1"}
        return replace(self.ocis2i, environment=kept | store, launcher=host.launcher)

    def owners(self) -> dict[str, tuple[int, int]]:
        """Whose the new layer's entries are."""
        members = LayoutImage(self.directory / "out", "app").members()
        return {path: (one.uid, one.gid) for path, one in members.items()}


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    directory = tmp_path / "bench"
    (directory / "source").mkdir(parents=True)
    with program(directory) as ocis2i:
        yield Bench(ocis2i, directory)


def worked(done: Done) -> None:
    assert done.code == 0, f"{done.out}\n{done.err}"


# --- dpkg and apt -------------------------------------------------------------------------------

CONTROL = """\
Package: foreign
Version: 1.0
Architecture: all
Maintainer: nobody <nobody@example.invalid>
Description: files of a user of its own
"""
AFTER = """\
#!/bin/sh
set -e
install -d -o 1234 -g 2345 -m 750 /srv/foreign
chown -R 1234:2345 /opt/foreign/state
chgrp 2345 /opt/foreign/owned
chmod 2755 /opt/foreign/owned
"""
INSTALLED = {
    "opt/foreign/owned": (12, 2345),
    "opt/foreign/state": (1234, 2345),
    "srv/foreign": (1234, 2345),
}


def package(directory: Path) -> Path:
    """A package with files of others, and a script that gives more away."""
    tree = directory / "tree"
    (tree / "DEBIAN").mkdir(parents=True)
    (tree / "DEBIAN/control").write_text(CONTROL)
    (tree / "DEBIAN/postinst").write_text(AFTER)
    (tree / "DEBIAN/postinst").chmod(0o755)
    (tree / "opt/foreign/state").mkdir(parents=True)
    (tree / "opt/foreign/owned").write_text("owned\n")
    plain = directory / "plain.deb"
    subprocess.run(["dpkg-deb", "-Zgzip", "--build", tree, plain], check=True, capture_output=True)
    return _given_away(plain, directory / "source/foreign.deb")


def _given_away(package_: Path, target: Path) -> Path:
    """The package with other owners, which only root could have packed: an ar(1) archive."""
    data = package_.read_bytes()
    parts, at = [], 8
    while at < len(data):
        header, size = data[at : at + 60], int(data[at + 48 : at + 58])
        body = data[at + 60 : at + 60 + size]
        if header.startswith(b"data.tar.gz"):
            body = gzip.compress(_owned(gzip.decompress(body)), mtime=0)
            header = header[:48] + f"{len(body):<10}".encode() + header[58:]
        parts.append(header + body + b"\n" * (len(body) % 2))
        at += 60 + size + size % 2
    target.write_bytes(data[:8] + b"".join(parts))
    return target


def _owned(tar: bytes) -> bytes:
    changed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(tar)) as old,
        tarfile.open(fileobj=changed, mode="w", format=tarfile.GNU_FORMAT) as new,
    ):
        for member in old:
            mine = member.name.endswith("owned")
            member.uid, member.gid = (12, 34) if mine else (0, 0)
            member.uname = member.gname = ""
            new.addfile(member, old.extractfile(member) if member.isfile() else None)
    return changed.getvalue()


HOW = {
    "dpkg": "dpkg -i /tmp/src/foreign.deb",
    "apt-get": "apt-get install -y --no-install-recommends /tmp/src/foreign.deb",
}


@needs("dpkg-deb", "dpkg", "apt-get")
@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_a_package_with_foreign_owners(bench: Bench, rung: str, how: str) -> None:
    package(bench.directory)
    done = bench.install(f"{HOW[how]}\ndpkg -s foreign | grep Status\n", rung)
    worked(done)
    assert "Status: install ok installed" in done.err
    owners = bench.owners()
    # With one id owners cannot be changed: it seems to work, and all is the script's user's.
    wanted = INSTALLED if rung != "single" else dict.fromkeys(INSTALLED, (0, 0))
    assert {path: owners[path] for path in INSTALLED} == wanted


@needs("dpkg-deb", "apt-get")
@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_apt_fetches_from_a_local_repository(bench: Bench, rung: str) -> None:
    package(bench.directory)
    packed = (bench.source / "foreign.deb").read_bytes()
    fields = f"Filename: ./foreign.deb\nSize: {len(packed)}\n"
    fields += f"SHA256: {hashlib.sha256(packed).hexdigest()}\n"
    (bench.source / "Packages").write_text(CONTROL.rstrip() + "\n" + fields)
    # The methods run as the user `_apt`, which apt verifies.
    script = "cp -R /tmp/src /srv/repository && chmod -R a+rX /srv/repository\n"
    script += "echo 'deb [trusted=yes] file:/srv/repository ./' >/etc/apt/sources.list\n"
    script += "apt-get update\napt-get install -y foreign\n"
    done = bench.install(script, rung)
    worked(done)
    assert "opt/foreign/owned" in bench.owners()


# --- pip and npm --------------------------------------------------------------------------------


def wheel(directory: Path) -> None:
    """A package of Python's."""
    directory.mkdir()
    name, info = "hello_there", "hello_there-1.0.dist-info"
    files = {
        f"{name}/__init__.py": "WORDS = 'hello there'\n",
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: hello-there\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": f"[console_scripts]\nhello = {name}:main\n",
    }
    record = "".join(f"{path},,\n" for path in (*files, f"{info}/RECORD"))
    with zipfile.ZipFile(directory / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, text in (files | {f"{info}/RECORD": record}).items():
            archive.writestr(path, text)


def has_pip() -> bool:
    command = ["/usr/bin/python3", "-I", "-m", "pip", "--version"]
    return (
        os.path.exists(command[0])
        and subprocess.run(command, capture_output=True, check=False).returncode == 0
    )


@pytest.mark.skipif(not has_pip(), reason="this host's Python has no pip")
@pytest.mark.parametrize("user", ["1001", "0"])
@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_pip(bench: Bench, rung: str, user: str) -> None:
    install_with_pip(bench, rung, user)


@pytest.mark.skipif(not has_pip(), reason="this host's Python has no pip")
def test_pip_in_place(bench: Bench) -> None:
    install_with_pip(bench, "in-place", "1001")


def install_with_pip(bench: Bench, rung: str, user: str) -> None:
    """Installs a wheel; its files are the user's."""
    wheel(bench.source / "wheels")
    script = (
        "umask 002\n/usr/bin/python3 -I -m pip install --no-index --find-links /tmp/src/wheels "
    )
    script += "--break-system-packages --prefix $HOME/packages --no-cache-dir hello-there\n"
    script += (
        "PYTHONPATH=$(echo $HOME/packages/*/lib/python*/*-packages $HOME/packages/lib/python*/"
    )
    script += (
        "*-packages | tr ' ' :) /usr/bin/python3 -c 'import hello_there as h; print(h.WORDS)'\n"
    )
    done = bench.install(script, rung, user=user)
    worked(done)
    assert "hello there" in done.err.splitlines()
    made = {owner for path, owner in bench.owners().items() if "hello_there" in path}
    assert made == {(int(user), 0)}


@needs("npm", "node")
@pytest.mark.parametrize("how", ["ci", "install"])
@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_npm(bench: Bench, rung: str, how: str) -> None:
    install_with_npm(bench, rung, "0", how)


@needs("npm", "node")
def test_npm_in_place(bench: Bench) -> None:
    install_with_npm(bench, "in-place", "1001", "ci")


def install_with_npm(bench: Bench, rung: str, user: str, how: str) -> None:
    """Installs what an archive has, whose files are another user's."""
    npm = shutil.which("npm") or ""
    if not npm.startswith("/usr/"):
        pytest.skip("npm is not in this host's /usr")
    _archive_of_npm(bench.source / "hello-1.0.0.tgz")
    described = {
        "name": "app",
        "version": "1.0.0",
        "dependencies": {"hello": "file:hello-1.0.0.tgz"},
    }
    (bench.source / "package.json").write_text(json.dumps(described))
    lock = {
        "name": "app",
        "version": "1.0.0",
        "lockfileVersion": 3,
        "packages": {
            "": {"name": "app", "version": "1.0.0", "dependencies": described["dependencies"]},
            "node_modules/hello": {"version": "1.0.0", "resolved": "file:hello-1.0.0.tgz"},
        },
    }
    (bench.source / "package-lock.json").write_text(json.dumps(lock))
    script = f"cp -R /tmp/src/. $HOME && cd $HOME && {npm} {how} --offline --no-audit --no-fund\n"
    done = bench.install(script + "node -p 'require(\"hello\")'\n", rung, user=user)
    worked(done)
    assert "hello from a tarball" in done.err.splitlines()
    # What npm says when it could not give a file to whom the archive says.
    assert "TAR_ENTRY_ERROR" not in done.err
    assert f"{HOME.lstrip('/')}/node_modules/hello/index.js" in bench.owners()


def _archive_of_npm(path: Path) -> None:
    files = {
        "package/package.json": '{"name": "hello", "version": "1.0.0", "main": "index.js"}',
        "package/index.js": "module.exports = 'hello from a tarball'\n",
    }
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.gid, member.mode = len(text), 1234, 2345, 0o644
            archive.addfile(member, io.BytesIO(text.encode()))


# --- owners and users ---------------------------------------------------------------------------


def foreign_archive(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        for name in ("theirs", "more"):
            member = tarfile.TarInfo(name)
            member.size, member.uid, member.gid = 2, 1234, 2345
            archive.addfile(member, io.BytesIO(b"x\n"))


@pytest.mark.parametrize("user", ["0", "1001"])
@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_tar_with_foreign_owners(bench: Bench, rung: str, user: str) -> None:
    foreign_archive(bench.source / "foreign.tar")
    done = bench.install(
        "mkdir -p $HOME/x && cd $HOME/x && tar xf /tmp/src/foreign.tar\n", rung, user=user
    )
    worked(done)
    owners = bench.owners()
    place = f"{HOME.lstrip('/')}/x"
    # Only root gives files away when it unpacks; and with one id it only seems so.
    given = (1234, 2345) if (user, rung == "single") == ("0", False) else (int(user), 0)
    assert owners[f"{place}/theirs"] == owners[f"{place}/more"] == given


@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_chown(bench: Bench, rung: str) -> None:
    script = "cd $HOME; touch a b c\nchown 12:34 a\nchgrp 2345 b\ninstall -o 1001 -g 0 a c\n"
    worked(bench.install(script, rung))
    owners = bench.owners()
    wanted = [(12, 34), (0, 2345), (1001, 0)]
    found = [owners[f"{HOME.lstrip('/')}/{name}"] for name in "abc"]
    assert found == (wanted if rung != "single" else [(0, 0)] * 3)


@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_an_ordinary_user_gives_nothing_away(bench: Bench, rung: str) -> None:
    script = "cd $HOME; touch a\nchown 1001:0 a\n! chown 12:34 a\n! chown 0:0 a\n"
    worked(bench.install(script, rung, user="1001"))
    assert bench.owners()[f"{HOME.lstrip('/')}/a"] == (1001, 0)


SWITCHES = {
    "python": "/usr/bin/python3 -I -c 'import os; os.setgid(2345); os.setuid(1234); "
    'os.system("touch /srv/shared/file; id -u")\'',
    "setpriv": "setpriv --reuid 1234 --regid 2345 --clear-groups "
    "sh -c 'touch /srv/shared/file; id -u'",
    "su": "su -s /bin/sh other -c 'touch /srv/shared/file; id -u'",
}


@pytest.mark.parametrize("how", SWITCHES)
@pytest.mark.parametrize("rung", [*MAPPED, "single"])
def test_switching_the_user(bench: Bench, rung: str, how: str) -> None:
    script = f"mkdir -m 777 /srv/shared && chmod 777 /srv/shared\necho I am $({SWITCHES[how]})\n"
    done = bench.install(script, rung)
    worked(done)
    # With one id nobody becomes anybody else, however well it seems to work.
    user, group = (1234, 2345) if rung != "single" else (0, 0)
    assert f"I am {user}" in done.err.splitlines()
    assert bench.owners()["srv/shared/file"] == (user, group)


@needs("dpkg-deb", "dpkg", "apt-get")
def test_in_place_nobody_becomes_another_and_nothing_is_given_away(bench: Bench) -> None:
    package(bench.directory)
    foreign_archive(bench.source / "foreign.tar")
    refused = {
        "chown": "chown 12:34 a",
        "chgrp": "chgrp 2345 a",
        "install": "install -o 12 a b",
        "tar": "tar -x --same-owner -f /tmp/src/foreign.tar",
        **HOW,
        **SWITCHES,
    }
    script = "cd $HOME; touch a\n"
    script += "".join(f"if {line}; then echo {name} worked; fi\n" for name, line in refused.items())
    script += "chown 1001:0 a; tar xf /tmp/src/foreign.tar\n"
    done = bench.install(script, "in-place", user="1001")
    worked(done)
    assert " worked" not in done.err
    for sentence in ("chown: changing ownership of 'a': Operation not permitted",
                     "dpkg: error: requested operation requires superuser privilege",
                     "setpriv: setresuid failed: Operation not permitted"):  # fmt: skip
        assert sentence in done.err
    owners = bench.owners()
    made = {owners[f"{HOME.lstrip('/')}/{name}"] for name in ("a", "theirs", "more")}
    assert made == {(1001, 0)}
    assert not set(owners) & set(INSTALLED)
