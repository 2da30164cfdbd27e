"""Builds by chroot(2): for root in a container that may neither mount nor make namespaces.

With root of this host in a container like Docker's, else in one of a user namespace, whose manager
helps with device nodes as LXD does.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import needs
from tests.e2e.test_package_managers import INSTALLED, foreign_archive, package
from tests.fakes.hosts import DOCKER_CAPABILITIES, ROOT, Host, fresh
from tests.fakes.images import HOME, Layer, LayoutImage, busybox_builder
from tests.fakes.program import ARGV, PROJECT, Done, Program, called

pytestmark = [pytest.mark.sandbox, needs("busybox", "newuidmap")]

STAMP = ("--timestamp", "1577836800")
CHROOT = ("--isolation", "chroot")

ASSEMBLE = """\
#!/bin/sh
set -e
cp -R /tmp/src/. "$HOME/"
cd /opt/app-root
mkdir -p new/deep; echo x > new/file; ln new/file new/hard; ln -s file new/soft; mkfifo new/pipe
chmod 640 new/file; echo more >> own; rm gone; rm -r anew; mkdir anew; echo x > anew/kept
touch -r same-size saved; printf new > same-size; touch -r saved same-size; rm saved
printf old > as-it-was; touch -d @1577836800 as-it-was; echo more >> theirs
echo nothing > /dev/null; test "$(head -c 3 /dev/zero | wc -c)" = 3; test -c /dev/urandom
"""
# What root does besides; /etc/hosts and its like are mounts elsewhere.
AS_ROOT = """\
chown 12:34 new/file; chmod 4755 new/file; echo changed > /etc/passwd.new; rm /etc/hostname
"""


def layers() -> list[Layer]:
    """Two layers, the upper of which hides something of the lower."""
    top = "opt/app-root"
    lower = Layer().dir("opt").dir(top, mode=0o775, uid=1001).dir(f"{top}/hidden", uid=1001)
    lower.file(f"{top}/hidden/file", "x").file(f"{top}/deleted", "x").dir(f"{top}/anew", uid=1001)
    lower.file(f"{top}/anew/old", "x", uid=1001)
    for name in ("own", "gone", "same-size", "as-it-was"):
        lower.file(f"{top}/{name}", "old", uid=1001)
    lower.file(f"{top}/theirs", "t", uid=7, gid=8, mode=0o666)
    upper = (
        Layer().dir(f"{top}/hidden", uid=1001).opaque(f"{top}/hidden").whiteout(f"{top}/deleted")
    )
    return [lower, upper]


@dataclass(frozen=True)
class Jobs:
    """A directory that all containers share."""

    directory: Path

    def builder(self, assemble: str = ASSEMBLE, *, user: str = "1001") -> str:
        """A builder image with this script, as an `oci:` location."""
        path = self.directory / "builder"
        scripts = {"assemble": assemble}
        busybox_builder(path, "builder:latest", user=user, scripts=scripts, more_layers=layers())
        return f"oci:{path}:builder:latest"

    def host(
        self,
        user: tuple[int, int] = ROOT,
        capabilities: tuple[str, ...] = tuple(DOCKER_CAPABILITIES),
        *,
        devices: bool = True,
    ) -> Host:
        """A container as Docker makes it, and the baseline profile of Kubernetes."""
        return Host(
            ids="host" if os.geteuid() == 0 else "container",
            image=(str(self.directory / "builder"), "builder:latest"),
            shared=(str(self.directory),),
            user=user,
            capabilities=capabilities if user == ROOT else (),
            no_new_privs=user != ROOT,
            filter="docker" if os.geteuid() == 0 or not devices else "namespaces",
            devices=devices and os.geteuid() != 0,
            mounts=(fresh("tmpfs", "/var/tmp", options="mode=1777"),),
        )

    def build(
        self, builder: str, *more: str, host: Host | None = None, name: str = "chroot"
    ) -> Done:
        """A build in a fresh container, the store on its overlay; its image is `name`."""
        output = f"oci-archive:{self.directory}/{name}.tar:app:latest"
        source = self.directory / "source"
        given = ("build", source, builder, "app:latest", "-o", output, *STAMP, *more)
        environment = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "PYTHONPATH": str(PROJECT),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OCIS2I_ROOT": "/var/tmp/store" if "in-place" in more else "/var/store",
            "TOKEN": "very-much-hidden",
        }
        return called([*(host or self.host()).launcher, *ARGV, *map(str, given)], environment)

    def ok(self, builder: str, *more: str, host: Host | None = None, name: str = "chroot") -> Done:
        """The same, and it has to succeed."""
        done = self.build(builder, *more, host=host, name=name)
        assert done.code == 0, f"{done.out}\n{done.err}"
        return done

    def result(self, name: str = "chroot") -> LayoutImage:
        """What was built."""
        place = self.directory / f"{name}.layout"
        with tarfile.open(self.directory / f"{name}.tar") as archive:
            archive.extractall(place)
        return LayoutImage(place, "app:latest")


@pytest.fixture
def jobs(tmp_path: Path) -> Jobs:
    directory = tmp_path / "shared"
    (directory / "source").mkdir(parents=True)
    directory.chmod(0o777)
    (directory / "source/index.html").write_text("hello\n")
    return Jobs(directory)


# --- where it works -----------------------------------------------------------------------------


def test_the_layer_is_the_same_as_in_place(jobs: Jobs) -> None:
    # Which is the same as in a container of one's own: `test_in_place.py`.
    builder = jobs.builder()
    jobs.ok(builder, "--isolation", "in-place", host=jobs.host((1001, 0)), name="in-place")
    done = jobs.ok(builder, *CHROOT, "--json")
    assert done.document["isolation"] == "chroot"
    assert jobs.result().layers == jobs.result("in-place").layers
    names = jobs.result().members()
    assert {"opt/app-root/anew/.wh..wh..opq", "opt/app-root/.wh.gone"} <= set(names)
    assert "opt/app-root/as-it-was" not in names


def test_owners_are_real(jobs: Jobs) -> None:
    jobs.ok(jobs.builder(ASSEMBLE + AS_ROOT, user="0"), *CHROOT)
    names = jobs.result().members()
    file = names["opt/app-root/new/file"]
    assert (file.uid, file.gid, file.mode) == (12, 34, 0o4755)
    assert names["etc/passwd.new"].uid == 0
    assert "etc/.wh.hostname" in names


def programs_of_this_host(*names: str) -> Layer:
    """These programs with their libraries, and what dpkg asks for besides and does not start."""
    paths = [f"/usr/bin/{name}" for name in names]
    done = subprocess.run(["ldd", *paths], capture_output=True, text=True, check=True)
    paths += sorted(f"/usr{library}" for library in set(re.findall("(/lib.*) [(]", done.stdout)))
    layer = Layer().symlink("lib", "usr/lib").symlink("lib64", "usr/lib64")
    for path in paths:
        for parent in list(reversed(Path(path).parents))[1:]:
            layer.dir(str(parent)[1:])
        layer.file(path[1:], Path(path).read_bytes(), mode=0o755)
    for name in ("ldconfig", "start-stop-daemon", "diff"):
        layer.symlink(f"usr/bin/{name}", "../../bin/busybox")
    for name in ("lib", "lib/dpkg", "lib/dpkg/info", "lib/dpkg/updates"):
        layer.dir(f"var/{name}")
    passwd = "root:x:0:0::/root:/bin/sh\nother:x:1234:2345::/nonexistent:/bin/sh\n"
    return layer.dir("srv").file("var/lib/dpkg/status").file("etc/passwd", passwd)


@needs("dpkg", "dpkg-deb", "ldd")
@pytest.mark.skipif(not Path("/lib").is_symlink(), reason="this host's /usr is not all of it")
def test_root_installs_packages_and_becomes_others(jobs: Jobs) -> None:
    package(jobs.directory)
    foreign_archive(jobs.directory / "source/foreign.tar")
    script = "#!/bin/sh\nset -e\ndpkg -i /tmp/src/foreign.deb\ncd $HOME; mkdir x; cd x\n"
    script += "tar xf /tmp/src/foreign.tar\nmkdir -m 777 /srv/shared; chmod 777 /srv/shared\n"
    script += "echo I am $(busybox su -s /bin/sh other -c 'touch /srv/shared/file; id -u')\n"
    programs = programs_of_this_host("dpkg", "dpkg-deb", "dpkg-split", "tar", "install")
    path = jobs.directory / "builder"
    busybox_builder(
        path, "builder:latest", user="0", scripts={"assemble": script}, more_layers=[programs]
    )
    done = jobs.ok(f"oci:{path}:builder:latest", *CHROOT)
    assert "I am 1234" in done.err.splitlines()
    owners = {name: (one.uid, one.gid) for name, one in jobs.result().members().items()}
    wanted = {**INSTALLED, "srv/shared/file": (1234, 2345)}
    wanted |= {f"{HOME.lstrip('/')}/x/{name}": (1234, 2345) for name in ("theirs", "more")}
    assert {name: owners[name] for name in wanted} == wanted


def test_an_ordinary_user_gives_nothing_away(jobs: Jobs) -> None:
    script = "#!/bin/sh\nset -e\ncd $HOME; touch a; chown 1001:0 a; ! chown 12:34 a\n"
    script += "! busybox su -s /bin/sh root -c true\n"
    done = jobs.ok(jobs.builder(script), *CHROOT)
    assert "chown: a: Operation not permitted" in done.err


def test_what_is_a_mount_elsewhere_is_not_in_the_layer(jobs: Jobs) -> None:
    script = (
        "#!/bin/sh\nset -e\ngrep db.example /etc/hosts\nrm /etc/hosts; echo mine > /etc/hosts\n"
    )
    script += "mkdir /etc/resolv.conf.d; echo x > /dev/made; echo x > /dev/shm/made; mkdir /sys/x\n"
    done = jobs.ok(jobs.builder(script, user="0"), *CHROOT, "--add-host", "db.example:10.0.0.1")
    assert "10.0.0.1\tdb.example" in done.err
    made = [name for name in jobs.result().members() if not name.startswith("tmp")]
    assert made == ["etc", "etc/resolv.conf.d"]


@pytest.mark.parametrize("user", ["1001", "0"])
def test_a_script_is_another_user_without_rights(jobs: Jobs, user: str) -> None:
    script = "#!/bin/sh\nid\nls -di / /..\nmount -t tmpfs x /mnt; chroot / true; mknod x c 1 3\n"
    script += "kill -0 1; cat /proc/1/environ; env; ls /srv /home\n"
    done = jobs.ok(jobs.builder(f"{script}true\n", user=user), *CHROOT)
    assert f"uid={user}" in done.err
    for refused in ("chroot: can't change root", "mknod: x: Operation not permitted"):
        assert refused in done.err
    assert "very-much-hidden" not in done.err
    assert "ls: /srv: No such file" in done.err


def test_nothing_stays_behind(jobs: Jobs) -> None:
    marker = f"sleep 6{os.getpid()}"
    script = f"#!/bin/sh\nsetsid {marker} &\n(setsid setsid {marker} &)\nexit 0\n"
    jobs.ok(jobs.builder(script), *CHROOT)
    listed = subprocess.run(["ps", "axww"], capture_output=True, text=True, check=True)
    assert marker not in listed.stdout


def test_a_script_that_fails_is_named(jobs: Jobs) -> None:
    done = jobs.build(jobs.builder("#!/bin/sh\nexit 3\n"), *CHROOT)
    assert done.code == 7
    assert f"it ran as 1001:0 in `{HOME}`" in done.err


def test_what_fails_or_is_killed_leaves_no_tree(jobs: Jobs) -> None:
    # Its devices are mounts where the manager of the container made them, as here.
    builder = jobs.builder("#!/bin/sh\ntest -f /tmp/src/hang || exit 3\nbusybox sleep 60\n")
    words = ["build", jobs.directory / "source", builder, "app:1", *CHROOT]
    program = " ".join(f"'{word}'" for word in ARGV)
    command = " ".join(f"'{word}'" for word in words)
    steps = f"{program} {command}; echo $?; ls /var/store/builds; touch {words[1]}/hang\n"
    steps += f"{program} {command} & until test -c /var/store/builds/*/rootfs/dev/tty\n"
    steps += "do sleep 0.1; done; kill -9 $!; wait $!; echo $?; ls /var/store/builds | wc -l\n"
    steps += f"{program} prune; ls /var/store/builds\n"
    done = subprocess.run(
        [*jobs.host().launcher, "sh", "-c", steps],
        env={"PATH": "/bin", "PYTHONPATH": str(PROJECT), "OCIS2I_ROOT": "/var/store"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    failed, killed, left, pruned = done.stdout.splitlines()
    assert (failed, killed, left) == ("7", "137", "1"), done.stderr
    assert pruned.startswith("removed 1 dead build"), done.stderr


def test_an_incremental_build(jobs: Jobs) -> None:
    # In one container, since the first one's store is gone with it.
    source = jobs.directory / "source"
    jobs.builder()
    saving = {"save-artifacts": "#!/bin/sh\ncd $HOME && tar cf - index.html\n"}
    path = jobs.directory / "saving"
    script = "#!/bin/sh\nls /tmp/artifacts\ncp -R /tmp/src/. $HOME/\n"
    busybox_builder(path, "builder:latest", scripts={"assemble": script, **saving})
    words = ["build", source, f"oci:{path}:builder:latest", "app:1", *CHROOT]
    command = " ".join(f"'{word}'" for word in (*ARGV, *words))
    environment = {"PATH": "/bin", "PYTHONPATH": str(PROJECT), "OCIS2I_ROOT": "/var/store"}
    done = subprocess.run(
        [*jobs.host().launcher, "sh", "-c", f"{command} && {command} --incremental"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines().count("index.html") == 1


def test_artifacts_move_to_a_runtime_image(jobs: Jobs) -> None:
    builder = jobs.builder()
    given = ("--runtime-image", builder, "--runtime-artifact", f"{HOME}:up")
    jobs.ok(builder, *CHROOT, *given)
    names = jobs.result().members()
    file = names[f"{HOME[1:]}/up/src/index.html"]
    assert (file.uid, file.gid, file.mode) == (1001, 0, 0o644)


def test_without_a_capability_it_is_refused(jobs: Jobs) -> None:
    kept = tuple(name for name in DOCKER_CAPABILITIES if name != "CAP_MKNOD")
    done = jobs.build(jobs.builder(), *CHROOT, host=jobs.host(capabilities=kept))
    assert done.code == 6
    assert "isolation `chroot` cannot be used: root has not the capabilities CAP_MKNOD" in done.err


def test_whoever_allows_it_gets_it_where_nothing_else_works(jobs: Jobs) -> None:
    builder = jobs.builder()
    assert jobs.build(builder).code == 6
    host = jobs.host()
    done = subprocess.run(
        [*host.launcher, *ARGV, "build", str(jobs.directory / "source"), builder, "app:1"],
        env={
            "PATH": "/bin",
            "PYTHONPATH": str(PROJECT),
            "OCIS2I_ROOT": "/var/store",
            "OCIS2I_ALLOW_WEAK_ISOLATION": "1",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning: isolation `chroot` is weak" in done.stderr


# --- where it does not ----------------------------------------------------------------------------


def test_an_ordinary_user_is_refused(ocis2i: Program, source: Path, builder: str) -> None:
    done = ocis2i("build", source, builder, "app:1", *CHROOT)
    assert done.code == 6
    assert "isolation `chroot` cannot be used: it takes root, and this is user" in done.err
    assert "chroot is for root with CAP_SYS_CHROOT" in done.err


@pytest.mark.skipif(os.geteuid() == 0, reason="the tests run as root")
def test_root_of_a_user_namespace_may_not_make_devices(jobs: Jobs) -> None:
    done = jobs.build(jobs.builder(), *CHROOT, host=jobs.host(devices=False))
    assert done.code == 6
    assert "`/dev/null` cannot be made for the scripts: Operation not permitted" in done.err
    assert "capability MKNOD" in done.err
