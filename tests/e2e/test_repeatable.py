"""The same source and builder give the same digest, wherever and whenever they are built."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needs
from tests.contract import better
from tests.fakes.images import BUSYBOX, busybox_builder
from tests.fakes.program import ARGV, Program, program

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

EPOCH = "1600000000"

# What differs between two runs of almost any assemble script: the order in which files are made,
# their times, and that something is made and thrown away.
ASSEMBLE = """\
#!/bin/sh
set -e
cp -R /tmp/src/. "$HOME/"
cd "$HOME"
for name in b a c; do
    mkdir -p "made/$name"; echo "$name" > "made/$name/file"
done
ln made/a/file made/z; ln made/a/file made/0
mkfifo made/fifo
echo "$SOURCE_DATE_EPOCH $TZ $LC_ALL $(umask)" > environment
rm -r /var/tmp
mkdir /var/tmp && mktemp /var/tmp/XXXXXX > /dev/null && rm /var/tmp/*
"""


@pytest.fixture(scope="module")
def ocis2i(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """One store for all tests here: no test looks at what else is in it."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    with program(tmp_path_factory.mktemp("repeatable")) as running:
        yield running


@pytest.fixture
def noisy(tmp_path: Path) -> str:
    """A builder whose script does what scripts do."""
    path = tmp_path / "noisy"
    busybox_builder(path, user="0", scripts={"assemble": ASSEMBLE})
    return f"oci:{path}:builder:latest"


def make_source(directory: Path) -> Path:
    """A source at `directory`/app, the same every time but for its times and order."""
    app = directory / "app"
    (app / "inner").mkdir(parents=True)
    (app / "index.html").write_text("hello\n")
    (app / "inner/tool").write_text("#!/bin/sh\n")
    (app / "inner/tool").chmod(0o755)
    (app / "link").symlink_to("inner/tool")
    (app / ".s2i").mkdir()
    (app / ".s2i/environment").write_text("GREETING=hello\n")
    return app


def build(ocis2i: Program, cwd: Path, *arguments: str, umask: int = 0o022, **variables: str) -> str:
    """Builds `app` below `cwd`, named as a relative path; the digest of the result."""
    done = subprocess.run(
        [*ARGV, "build", "app", *arguments],
        cwd=cwd,
        umask=umask,
        env={**ocis2i.environment, **variables},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().rpartition("@")[2]


def image(layout: Path, digest: str) -> tuple[dict[str, Any], list[tarfile.TarInfo]]:
    """Config and members of the last layer."""

    def blob(name: str) -> Path:
        return layout / "blobs" / Path(*name.split(":"))

    manifest = json.loads(blob(digest).read_bytes())
    config = json.loads(blob(manifest["config"]["digest"]).read_bytes())
    with tarfile.open(blob(manifest["layers"][-1]["digest"]), "r:gz") as archive:
        return config, list(archive)


def test_same_digest_from_other_places_users_settings_and_executors(
    ocis2i: Program, noisy: str, tmp_path: Path
) -> None:
    one, other = tmp_path / "one", tmp_path / "somewhere/else with a blank"
    make_source(one)
    make_source(other)
    os.utime(other / "app/index.html", (int(EPOCH) + 5, int(EPOCH) + 5))
    (tmp_path / "second").mkdir()
    with program(tmp_path / "second") as second:
        first_digest = build(
            *(ocis2i, one, noisy, "app:1", "--isolation", "builtin"),
            SOURCE_DATE_EPOCH=EPOCH,
            TZ="UTC",
            LC_ALL="C",
        )
        second_digest = build(
            *(second, other, noisy, "app:1"),
            umask=0o077,
            SOURCE_DATE_EPOCH=EPOCH,
            TZ="Pacific/Auckland",
            LC_ALL="C.UTF-8",
            PYTHONHASHSEED="77",
        )
    assert first_digest == second_digest


@needs("runc")
def test_same_digest_by_runc_and_by_the_builtin_executor(
    ocis2i: Program, noisy: str, tmp_path: Path
) -> None:
    make_source(tmp_path / "one")
    digests = {
        build(ocis2i, tmp_path / "one", noisy, "--isolation", name, SOURCE_DATE_EPOCH=EPOCH)
        for name in ("runc", "builtin")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("compression", ["zstd", "none"])
def test_same_digest_in_every_compression(
    ocis2i: Program, noisy: str, tmp_path: Path, compression: str
) -> None:
    make_source(tmp_path)
    # Enough for more than one block of a compressor that works in threads.
    (tmp_path / "app/large").write_bytes(b"".join(b"%d\n" % n for n in range(700_000)))
    arguments = (noisy, "--compression", compression, "--timestamp", EPOCH)
    digests = {build(ocis2i, tmp_path, *arguments) for _ in range(2)}
    assert len(digests) == 1


def test_number_of_processors_does_not_matter(ocis2i: Program, noisy: str, tmp_path: Path) -> None:
    make_source(tmp_path)
    (tmp_path / "app/large").write_bytes(b"".join(b"%d\n" % n for n in range(700_000)))
    digests = set()
    mine = os.sched_getaffinity(0)
    try:
        for processors in ({min(mine)}, mine):
            os.sched_setaffinity(0, processors)
            digests.add(build(ocis2i, tmp_path, noisy, SOURCE_DATE_EPOCH=EPOCH))
    finally:
        os.sched_setaffinity(0, mine)
    assert len(digests) == 1


@needs("git")
def test_same_layer_from_two_clones(ocis2i: Program, noisy: str, tmp_path: Path) -> None:
    app = make_source(tmp_path / "one")
    identity = ("-c", "user.name=A", "-c", "user.email=a@example.org")
    for arguments in (
        ("init", "-q", "-b", "main"),
        ("add", "."),
        (*identity, "commit", "-qm", "x"),
    ):
        subprocess.run(["git", "-C", str(app), *arguments], check=True, timeout=60)
    (tmp_path / "two").mkdir()
    shutil.copytree(app, tmp_path / "two/app", symlinks=True)
    configs = []
    for place, mask in (("one", 0o022), ("two", 0o077)):
        digest = build(ocis2i, tmp_path / place, noisy, umask=mask, SOURCE_DATE_EPOCH=EPOCH)
        config, _ = image(ocis2i.layout, digest)
        # The location of a clone is an absolute path, as git has it: only that may differ.
        assert config["config"]["Labels"].pop("io.openshift.s2i.build.source-location")
        configs.append(config)
    assert configs[0] == configs[1]


@better("image.created", "`SOURCE_DATE_EPOCH` and `--timestamp` say another time")
def test_epoch_is_the_latest_time_in_the_image(ocis2i: Program, noisy: str, tmp_path: Path) -> None:
    make_source(tmp_path)
    digest = build(ocis2i, tmp_path, noisy, SOURCE_DATE_EPOCH=EPOCH)
    config, members = image(ocis2i.layout, digest)
    assert config["created"] == "2020-09-13T12:26:40Z"
    assert config["history"][-1]["created"] == "2020-09-13T12:26:40Z"
    assert max(member.mtime for member in members) == int(EPOCH)


def test_script_learns_the_epoch_but_the_image_does_not_keep_it(
    ocis2i: Program, noisy: str, tmp_path: Path
) -> None:
    make_source(tmp_path)
    digest = build(ocis2i, tmp_path, noisy, "app:1", SOURCE_DATE_EPOCH=EPOCH)
    page = ocis2i.ok("run", "app:1", "cat", "/opt/app-root/src/environment")
    # Nothing of the caller's own environment; the umask is the container's.
    assert page.out.split() == [EPOCH, "0022"]
    config, _ = image(ocis2i.layout, digest)
    assert not [entry for entry in config["config"]["Env"] if "SOURCE_DATE_EPOCH" in entry]


def test_timestamp_beats_the_environment(ocis2i: Program, noisy: str, tmp_path: Path) -> None:
    make_source(tmp_path)
    options = (noisy, "--timestamp", "1000000000")
    digest = build(ocis2i, tmp_path, *options, SOURCE_DATE_EPOCH=EPOCH)
    config, members = image(ocis2i.layout, digest)
    assert config["created"] == "2001-09-09T01:46:40Z"
    assert max(member.mtime for member in members) == 1_000_000_000


def test_times_are_whole_seconds_without_an_epoch_too(
    ocis2i: Program, noisy: str, tmp_path: Path
) -> None:
    make_source(tmp_path)
    config, members = image(ocis2i.layout, build(ocis2i, tmp_path, noisy))
    assert all(float(member.mtime).is_integer() for member in members)
    assert not [member.name for member in members if "mtime" in member.pax_headers]
    assert config["created"].endswith("Z")


def test_files_name_no_users_of_this_host(ocis2i: Program, noisy: str, tmp_path: Path) -> None:
    make_source(tmp_path)
    _, members = image(ocis2i.layout, build(ocis2i, tmp_path, noisy))
    assert {(member.uname, member.gname) for member in members} == {("", "")}
    assert {(member.uid, member.gid) for member in members} <= {(0, 0), (1001, 0)}


@pytest.mark.parametrize("value", ["yesterday", "-1", "1.5", "0x10", "١٢٣", " ", "9" * 30])
def test_epoch_that_is_no_time_is_refused(
    ocis2i: Program, noisy: str, source: Path, value: str
) -> None:
    done = ocis2i("build", source, noisy, "app:1", SOURCE_DATE_EPOCH=value)
    assert done.code == 2
    assert "SOURCE_DATE_EPOCH" in done.err
    assert "Traceback" not in done.err
    assert done.out == ""


@pytest.mark.parametrize("value", ["soon", "-5", "1e9"])
def test_timestamp_that_is_no_time_is_refused(
    ocis2i: Program, noisy: str, source: Path, value: str
) -> None:
    done = ocis2i("build", source, noisy, "app:1", f"--timestamp={value}")
    assert done.code == 2
    assert f"--timestamp is `{value}`" in done.err
