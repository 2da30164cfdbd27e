"""Unpacking by the real program: exact where the layer is honest, harmless where it is not."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import stat
import tarfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import zstandard

from ocis2i.errors import ImageError, Ocis2iError, PolicyError
from ocis2i.images import Places, PullPolicy, obtain
from ocis2i.keychain import Keychain
from ocis2i.reference import parse_location
from ocis2i.registry import Registry
from ocis2i.store import LayerRecord, Store
from ocis2i.unpack import unpack_layers
from tests.conftest import needs
from tests.e2e.test_layer_property import CAPABILITY, Sandbox, sandbox
from tests.fakes.images import MTIME, Layer, busybox_builder, make_layout
from tests.fakes.program import Done, Program

pytestmark = pytest.mark.sandbox
__all__ = ["sandbox"]  # the fixture, for pytest to find


# --- what arrives -----------------------------------------------------------------------------


def facts(sandbox: Sandbox, layer: Layer, paths: list[str]) -> list[list[int]]:
    """Mode, owner, number of links and time in nanoseconds of paths in an unpacked layer."""
    with sandbox.directory() as here:
        sandbox.unpack(layer.tar(), here / "fs")
        found = sandbox.call(look, str(here / "fs"), paths)
    return [list(one) for one in found]


def look(root: str, paths: list[str]) -> list[tuple[int, int, int, int, int]]:
    """Sent to the namespace: facts that the tests below ask for."""
    found = []
    for path in paths:
        s = os.lstat(f"{root}/{path}")
        found.append((s.st_mode, s.st_uid, s.st_gid, s.st_nlink, s.st_mtime_ns))
    return found


def test_owners_of_all_mapped_ids_arrive(sandbox: Sandbox) -> None:
    ids = [0, 1, 999, 1000, 1001, 32768, 65534, 65535]
    layer = Layer()
    for number in ids:
        layer.file(f"file{number}", uid=number, gid=65535 - number)
        layer.dir(f"dir{number}", uid=number).symlink(f"link{number}", "x", uid=number)
    found = facts(sandbox, layer, [f"{kind}{n}" for n in ids for kind in ("file", "dir", "link")])
    assert [one[1] for one in found] == [n for n in ids for _ in range(3)]
    assert [one[2] for one in found[::3]] == [65535 - n for n in ids]


@pytest.mark.parametrize("mode", [0o0, 0o644, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777])
def test_modes_arrive_whoever_the_owner_is(sandbox: Sandbox, mode: int) -> None:
    layer = Layer().dir("d", mode=mode, uid=1001).file("d/f", mode=mode, uid=1001, gid=5)
    found = facts(sandbox, layer, ["d", "d/f"])
    assert [stat.S_IMODE(one[0]) for one in found] == [mode, mode]


def test_times_arrive_to_the_nanosecond_also_of_directories(sandbox: Sandbox) -> None:
    layer = Layer().dir("d", mtime=MTIME).file("d/f", "x")
    layer.members[-1][0].pax_headers = {"mtime": "1234567890.123456789"}
    layer.symlink("d/l", "f").file("d/last", "made after the directory")
    directory, file, link = facts(sandbox, layer, ["d", "d/f", "d/l"])
    assert directory[4] == MTIME * 10**9
    assert file[4] == 1234567890123456789
    assert link[4] == MTIME * 10**9


def test_a_time_that_no_file_system_holds_is_brought_near(sandbox: Sandbox) -> None:
    layer = Layer().file("future").file("past")
    layer.members[0][0].pax_headers = {"mtime": "999999999999"}
    layer.members[1][0].pax_headers = {"mtime": "-999999999999"}
    future, past = facts(sandbox, layer, ["future", "past"])
    assert future[4] > 2**32 * 10**9
    assert past[4] == -(2**31) * 10**9


def test_hard_links_are_one_file(sandbox: Sandbox) -> None:
    layer = Layer().file("a", "x").dir("d").hardlink("d/b", "a").hardlink("c", "/d/b")
    assert [one[3] for one in facts(sandbox, layer, ["a", "d/b", "c"])] == [3, 3, 3]


def test_attributes_and_capabilities_arrive(sandbox: Sandbox) -> None:
    capability = os.fsdecode(CAPABILITY)
    layer = Layer().dir("./").dir("d", xattrs={"user.d": "1"})
    layer.file("ping", "x", uid=1001, xattrs={"security.capability": capability, "user.f": "\n=2"})
    with sandbox.directory() as here:
        tree = sandbox.merged(here / "build", [sandbox.unpack(layer.tar(), here / "1")])
    assert tree[b"d"][-1] == [("user.d", b"1")]
    assert tree[b"ping"][-1] == [("security.capability", CAPABILITY), ("user.f", b"\n=2")]


def test_attributes_for_overlayfs_are_data_and_no_orders(sandbox: Sandbox) -> None:
    orders = {"user.overlay.opaque": "y", "user.overlay.redirect": "/etc"}
    lower = Layer().dir("./").dir("d").file("d/old", "old").file("f", "content")
    upper = Layer().dir("d", xattrs=orders)
    upper.file("f", xattrs={"user.overlay.metacopy": "", "user.overlay.redirect": "/d/old"})
    with sandbox.directory() as here:
        lowers = [
            sandbox.unpack(layer.tar(), here / name) for name, layer in (("1", lower), ("2", upper))
        ]
        tree = sandbox.merged(here / "build", lowers)
    assert b"d/old" in tree
    assert tree[b"f"][3][0] == 0
    assert tree[b"d"][-1] == [("user.overlay.opaque", b"y"), ("user.overlay.redirect", b"/etc")]


def test_a_hundred_thousand_entries_unpack_and_are_removed(sandbox: Sandbox) -> None:
    tar = many_entries(100_000)
    with sandbox.directory() as here:
        sandbox.unpack(tar, here / "fs")
        counted = sandbox.call(count, str(here / "fs"))
    assert counted == 100_000


def many_entries(number: int) -> bytes:
    """That many empty files, a thousand in a directory that no entry describes."""
    info = tarfile.TarInfo()
    parts = []
    for serial in range(number):
        info.name = f"{serial // 1000}/{serial}"
        parts.append(info.tobuf(tarfile.USTAR_FORMAT))
    return b"".join(parts) + bytes(1024)


def count(root: str) -> int:
    """Sent to the namespace: how many files there are."""
    return sum(len(files) for _, _, files in os.walk(root))


def test_more_entries_than_allowed_are_refused(sandbox: Sandbox) -> None:
    with sandbox.directory() as here, pytest.raises(PolicyError, match="more than 10 entries"):
        send(sandbox, many_entries(11), here / "fs", entry_limit=10)


def test_directories_nine_hundred_deep_unpack_and_are_removed(sandbox: Sandbox) -> None:
    layer = Layer().file("d/" * 900 + "f", "x")
    with sandbox.directory() as here:
        sandbox.unpack(layer.tar(), here / "fs")
        assert sandbox.call(count, str(here / "fs")) == 1
    assert not here.exists()


def send(sandbox: Sandbox, tar: bytes, into: Path, **limits: int) -> None:
    """Unpacks by the agent, below the program's own checks."""
    file = os.memfd_create("tar")
    try:
        os.write(file, tar)
        os.lseek(file, 0, os.SEEK_SET)
        fields = {"size_limit": 1 << 30, "entry_limit": 1 << 20} | limits
        sandbox.agent.request("unpack", file, into=str(into), **fields)
    finally:
        os.close(file)


# --- hostile archives -------------------------------------------------------------------------


@dataclass
class Raw(Layer):
    """A layer of bytes as they are."""

    data: bytes = field(default=b"")

    def tar(self) -> bytes:
        return self.data


def header(name: str = "f", **values: object) -> tarfile.TarInfo:
    """A header to be broken."""
    info = tarfile.TarInfo(name)
    for key, value in values.items():
        setattr(info, key, value)
    return info


def raw(info: tarfile.TarInfo, change: Callable[[bytearray], None]) -> Raw:
    """One header whose bytes are changed, its checksum made right again."""
    block = bytearray(info.tobuf(tarfile.USTAR_FORMAT)[-512:])
    change(block)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return Raw(data=bytes(block) + bytes(1024))


def put(start: int, data: bytes) -> Callable[[bytearray], None]:
    """A change that writes `data` into a block."""

    def change(block: bytearray) -> None:
        block[start : start + len(data)] = data

    return change


def pax(records: bytes) -> Raw:
    """A file with an extended header of these bytes."""
    info = header("pax", type=tarfile.XHDTYPE, size=len(records))
    blocks = info.tobuf(tarfile.USTAR_FORMAT) + records + bytes(-len(records) % 512)
    return Raw(data=blocks + header("f").tobuf(tarfile.USTAR_FORMAT) + bytes(1024))


def record(key: bytes, value: bytes) -> bytes:
    """One PAX record."""
    size = len(key) + len(value) + 3
    size += len(str(size + len(str(size))))
    return b"%d %b=%b\n" % (size, key, value)


def owned_by(uid: int) -> Layer:
    """A file with that owner."""
    return Layer().file("f", uid=uid)


# What the archive tries; the exit code, and a piece of the error. `@` is the directory of the
# test, a place outside of the store where the user may write.
HOSTILE: dict[str, tuple[Callable[[str], Layer], int, str]] = {
    "name with ..": (lambda _: Layer().file("../canary", "!"), 4, "leads out of the image"),
    "many ..": (lambda _: Layer().file("a/" + "../" * 9 + "canary", "!"), 4, "leads out"),
    "absolute name": (lambda at: Layer().file(f"{at}/canary", "!"), 0, ""),
    "link to /": (lambda at: Layer().symlink("l", "/").file(f"l{at}/canary", "!"), 0, ""),
    "link to the host": (lambda at: Layer().symlink("l", at).file("l/canary", "!"), 0, ""),
    "link upwards": (
        lambda _: Layer().symlink("l", "../" * 9).file("l/canary", "!"), 0, "",
    ),
    "link by link": (
        lambda at: Layer().symlink("l", "..").symlink("l/l", at).file("l/l/canary", "!"), 0, "",
    ),
    "link, then a file of its name": (
        lambda at: Layer().symlink("l", f"{at}/canary").file("l", "!"), 0, "",
    ),
    "directory on a link": (
        lambda at: Layer().symlink("l", at).dir("l", mode=0o777).file("l/canary", "!"), 0, "",
    ),
    "hard link to the host": (
        lambda at: Layer().hardlink("l", f"{at}/canary").file("l", "!"), 4, "not in the layer",
    ),
    "hard link to passwd": (
        lambda _: Layer().hardlink("l", "/etc/passwd"), 4, "not in the layer",
    ),
    "hard link upwards": (
        lambda _: Layer().hardlink("l", "../../canary"), 4, "leads out of the image",
    ),
    "hard link by a link": (
        lambda at: Layer().symlink("l", at).hardlink("h", "l/canary"), 4, "not in the layer",
    ),
    "hard link to a link to the host": (
        lambda at: Layer().symlink("l", f"{at}/canary").hardlink("h", "l"), 0, "",
    ),
    "hard link to a directory": (lambda _: Layer().dir("d").hardlink("h", "d"), 4, "`h`"),
    "whiteout of ..": (lambda _: Layer().file("d/.wh...", ""), 4, "whiteout of `..`"),
    "whiteout through a link": (
        lambda at: Layer().symlink("l", at).whiteout("l/canary"), 0, "",
    ),
    "opaque mark through a link": (lambda at: Layer().symlink("l", at).opaque("l"), 0, ""),
    "devices": (
        lambda _: Layer().device("bin/cat", major=0).device("null").device("b", kind="block"),
        0, "",
    ),
    "a whiteout's own device": (
        lambda _: Layer().raw(header("bin/cat", type=tarfile.CHRTYPE)), 0, "",
    ),
    "2000 directories deep": (lambda _: Layer().file("d/" * 2000 + "f"), 4, "directories deep"),
    "a name too long": (lambda _: Layer().file("n" * 256), 4, "too long"),
    "a link too long": (lambda _: Layer().symlink("l", "n" * 5000), 4, "too long"),
    "a link to the empty name": (lambda _: Layer().symlink("l", ""), 4, "`l`"),
    "links in a circle": (
        lambda _: Layer().symlink("a", "b").symlink("b", "a").file("a/f"), 4, "symbolic links",
    ),
    "a file below a file": (lambda _: Layer().file("f").file("f/g"), 4, "`f/g`"),
    "owner 65536": (lambda _: owned_by(65536), 4, "not among the mapped ids"),
    "owner 2**31": (lambda _: owned_by(2**31), 4, "not among the mapped ids"),
    "owner 2**32-1": (lambda _: owned_by(2**32 - 1), 4, "not among the mapped ids"),
    "owner 2**40": (lambda _: owned_by(2**40), 4, "not among the mapped ids"),
    "owner -1": (lambda _: raw(header(), put(108, b"\xff" * 8)), 4, "not among the mapped ids"),
    "negative size": (lambda _: raw(header(), put(124, b"\xff" * 12)), 4, "negative size"),
    "size of no number": (lambda _: raw(header(), put(124, b"12x")), 4, "no octal number"),
    "size without content": (lambda _: raw(header(), put(124, b"%011o\0" % 9000)), 4, "ends"),
    "size of 8 EiB": (lambda _: pax(record(b"size", b"9" * 18)), 9, "unpacks to more than"),
    "name with a zero byte": (lambda _: pax(record(b"path", b"a\0b")), 4, "zero byte"),
    "records that are none": (lambda _: pax(b"99999 path=x\n"), 4, "malformed"),
    "records of two megabytes": (
        lambda _: pax(record(b"comment", b"x" * (2 << 20))), 4, "absurd",
    ),
    "attribute with an endless name": (
        lambda _: pax(record(b"SCHILY.xattr.user." + b"n" * 300, b"1")), 4, "`f`",
    ),
    "unknown type": (lambda _: raw(header(), put(156, b"Z")), 4, "unknown type"),
    "sparse file": (lambda _: raw(header(), put(156, b"S")), 4, "sparse"),
    "no tar": (lambda _: Raw(data=b"this is no tar archive. " * 100), 4, "broken tar archive"),
    "zeros between tars": (lambda _: Raw(data=bytes(1024) + Layer().file("f").tar()), 0, ""),
}  # fmt: skip


def assert_nothing_published(done: Done, store: Path, layers: int) -> None:
    """After a failure: one error, and of the bad layer nothing is left.

    The others may have been stopped.
    """
    assert [line[:7] for line in done.err.splitlines()].count("error: ") == 1, done.err
    assert "Traceback" not in done.err
    assert "layer `sha256:" in done.err
    assert list((store / "tmp").iterdir()) == []
    assert len(list((store / "layers/sha256").iterdir())) <= layers


def look_around(root: Path) -> dict[str, tuple[int, int, str]]:
    """All that is there, but for what the program keeps in its store."""
    found = {}
    for path in [*root.rglob("*"), Path("/etc/passwd")]:
        if "store" in path.relative_to(path.anchor).parts[:-2]:
            continue
        facts = path.lstat()
        text = path.read_text(errors="replace") if path.is_file() else ""
        found[str(path)] = (facts.st_mode, 0 if path.is_dir() else facts.st_mtime_ns, text)
    return found


def put_canaries(root: Path) -> None:
    """Files around and in the store that nobody may touch."""
    for place in (root, root / "beside", root / "store"):
        place.mkdir(exist_ok=True)
        (place / "canary").write_text("alive")


def unpack_image(sandbox: Sandbox, here: Path, limit: int = 1 << 40) -> list[LayerRecord]:
    """The image in `here` as a build takes it: into the store, then unpacked."""
    store = Store.open(here / "store")
    with Registry(Keychain({}), environment={}) as registry:
        places = Places(store, registry, lambda _: None)
        location = parse_location(f"oci:{here}/image:image")
        found = obtain(location, None, PullPolicy.IF_NOT_PRESENT, places)
        records = unpack_layers(found, places, sandbox.agent, size_limit=limit)
    return list(records)


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archive_changes_nothing_outside(sandbox: Sandbox, case: str) -> None:
    make, code, text = HOSTILE[case]
    with sandbox.directory() as here:
        lower = Layer().dir("./").dir("bin").file("bin/cat", "there").file("etc/passwd", "root")
        make_layout(here / "image", "image", [lower, make(str(here))], compression="none")
        Store.open(here / "store")
        put_canaries(here)
        before = look_around(here)
        if not code:
            lowers: list[list[object]] = [
                [str(one.tree), list(one.implied)] for one in unpack_image(sandbox, here)
            ]
            assert b"bin/cat" in sandbox.merged(here / "build", lowers)
            sandbox.agent.request("release", build=str(here / "build"))
            sandbox.agent.request("remove", parent=str(here), name="build")
        else:
            with pytest.raises(Ocis2iError) as caught:
                unpack_image(sandbox, here)
            assert (caught.value.exit_code, text in caught.value.message) == (code, True)
            assert caught.value.message.startswith("layer `sha256:")
            assert list((here / "store/tmp").iterdir()) == []
            # The other one may have been stopped.
            assert len(list((here / "store/layers/sha256").iterdir())) <= 1
        assert look_around(here) == before


@needs("busybox")
@pytest.mark.parametrize("case", ["name with ..", "link to the host", "no tar"])
def test_hostile_archive_through_the_program(ocis2i: Program, tmp_path: Path, case: str) -> None:
    make, code, _ = HOSTILE[case]
    busybox_builder(tmp_path / "image", compression="none", more_layers=[make(str(tmp_path))])
    (tmp_path / "canary").write_text("alive")
    done = ocis2i("run", f"oci:{tmp_path}/image:builder:latest", "echo", "alive")
    assert done.code == code, done.err
    assert (tmp_path / "canary").read_text() == "alive"
    if code:
        assert_nothing_published(done, ocis2i.store, layers=2)
    else:
        assert done.out == "alive\n"


@needs("busybox")
def test_a_bomb_is_refused_by_the_limit(ocis2i: Program, tmp_path: Path) -> None:
    bomb = Layer().file("zeros", bytes(64 << 20))
    busybox_builder(tmp_path / "image", more_layers=[bomb])
    image = f"oci:{tmp_path}/image:builder:latest"
    done = ocis2i("run", image, "true", OCIS2I_LAYER_LIMIT=str(16 << 20))
    assert done.code == 9
    assert "OCIS2I_LAYER_LIMIT" in done.err
    assert_nothing_published(done, ocis2i.store, layers=2)


# --- damaged blobs ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Damage:
    """What is wrong with an image's only layer; `None`: what would be right."""

    media_type: str
    blob: bytes
    text: str
    diff_id: str | None = None
    size: int | None = None
    digest: str | None = None


def _tar() -> bytes:
    return Layer().dir("./").file("f", os.urandom(200_000)).tar()


def _damages() -> dict[str, Damage]:
    tar = _tar()
    packed = gzip.compress(tar, 1)
    zstd = zstandard.ZstdCompressor(3, write_checksum=True).compress(tar)
    flipped = bytearray(packed)
    flipped[len(packed) // 2] ^= 0xFF
    flipped_zstd = bytearray(zstd)
    flipped_zstd[len(zstd) // 2] ^= 0xFF
    wrong_sum = packed[:-8] + bytes(4) + packed[-4:]
    other = "sha256:" + "0" * 64
    plain = "tar"
    no_tar = os.urandom(2048)
    return {
        "damaged gzip": Damage("tar+gzip", bytes(flipped), ""),
        "gzip with a wrong checksum": Damage("tar+gzip", wrong_sum, ""),
        "damaged zstd": Damage("tar+zstd", bytes(flipped_zstd), ""),
        "truncated gzip": Damage("tar+gzip", packed[: len(packed) // 2], ""),
        "truncated zstd": Damage("tar+zstd", zstd[: len(zstd) // 2], ""),
        "truncated tar": Damage(plain, tar[:100_000], "ends"),
        "no tar inside": Damage("tar+gzip", gzip.compress(no_tar), "tar"),
        "garbage after gzip": Damage("tar+gzip", packed + b"garbage" * 9, ""),
        "garbage after zstd": Damage("tar+zstd", zstd + b"garbage" * 9, ""),
        "no gzip": Damage("tar+gzip", tar, ""),
        "wrong diff_id": Damage("tar+gzip", packed, "diff_id", diff_id=other),
        "wrong diff_id of a plain tar": Damage(plain, tar, "diff_id", diff_id=other),
        "wrong digest": Damage("tar+gzip", packed, "digest", digest=other),
        "a byte too short": Damage(
            "tar+gzip", packed, "bytes, it should have", size=len(packed) - 1
        ),
        "a byte too long": Damage(
            "tar+gzip", packed, "bytes, it should have", size=len(packed) + 1
        ),
    }


def _write_damaged(path: Path, damage: Damage) -> None:
    blobs = path / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str, **other: object) -> dict[str, object]:
        digest = "sha256:" + hashlib.sha256(data).hexdigest()
        entry: dict[str, object] = {"digest": digest, "size": len(data)}
        entry |= {key: value for key, value in other.items() if value is not None}
        (blobs / str(entry["digest"])[7:]).write_bytes(data)
        return entry | {"mediaType": f"application/vnd.oci.image.{kind}"}

    layer = put(damage.blob, f"layer.v1.{damage.media_type}", size=damage.size,
                digest=damage.digest)  # fmt: skip
    config = {
        "architecture": os.uname().machine.replace("x86_64", "amd64").replace("aarch64", "arm64"),
        "os": "linux",
        "config": {"Cmd": ["/none"]},
        "rootfs": {"type": "layers", "diff_ids": [damage.diff_id or _diff_id(damage)]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": [layer],
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    entry["annotations"] = {"org.opencontainers.image.ref.name": "image"}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def _diff_id(damage: Damage) -> str:
    """The digest that the layer's tar would have, were the blob right."""
    data = damage.blob
    try:
        if damage.media_type.endswith("gzip"):
            data = gzip.decompress(data)
        elif damage.media_type.endswith("zstd"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    except (OSError, EOFError, zlib.error, zstandard.ZstdError):
        data = b""
    return "sha256:" + hashlib.sha256(data).hexdigest()


DAMAGES = _damages()


@pytest.mark.parametrize("case", DAMAGES)
def test_damaged_layer_is_named_and_never_published(sandbox: Sandbox, case: str) -> None:
    damage = DAMAGES[case]
    with sandbox.directory() as here:
        _write_damaged(here / "image", damage)
        with pytest.raises(ImageError) as caught:
            unpack_image(sandbox, here)
        assert damage.text in caught.value.message
        assert "`sha256:" in caught.value.message
        assert list((here / "store/tmp").iterdir()) == []
        assert list((here / "store/layers/sha256").iterdir()) == []
        if case in ("wrong digest", "a byte too short", "a byte too long"):
            # Found while the blob is copied: it never gets its name.
            wanted = damage.digest or "sha256:" + hashlib.sha256(damage.blob).hexdigest()
            assert not (here / "store/images/blobs/sha256" / wanted[7:]).exists()


@pytest.mark.parametrize("case", ["damaged gzip", "wrong diff_id"])
def test_damaged_layer_through_the_program(ocis2i: Program, tmp_path: Path, case: str) -> None:
    _write_damaged(tmp_path / "image", DAMAGES[case])
    done = ocis2i("run", f"oci:{tmp_path}/image:image", "/none")
    assert done.code == 4
    assert_nothing_published(done, ocis2i.store, layers=0)


def test_a_layer_that_was_damaged_in_the_store_is_found_out(sandbox: Sandbox) -> None:
    with sandbox.directory() as here:
        digest = make_layout(here / "image", "image", [Layer().dir("./").file("f", "x" * 5000)])
        unpack_image(sandbox, here)
        layers = here / "store/layers/sha256"
        for layer in layers.iterdir():
            sandbox.agent.request("remove", parent=str(layers), name=layer.name)
        manifest = json.loads((here / "image/blobs/sha256" / digest.hex).read_bytes())
        blob = here / "store/images/blobs/sha256" / manifest["layers"][0]["digest"][7:]
        data = bytearray(blob.read_bytes())
        data[30] ^= 0xFF
        blob.chmod(0o644)
        blob.write_bytes(data)
        with pytest.raises(ImageError, match="layer `sha256:") as caught:
            unpack_image(sandbox, here)
        assert list(layers.iterdir()) == []
        assert "removed from the store" in str(caught.value.hint)
        unpack_image(sandbox, here)
        assert len(list(layers.iterdir())) == 1


@pytest.mark.parametrize("record", ["", '{"impl', "[]", '{"implied": []}'])
def test_a_layer_whose_record_was_torn_is_unpacked_again(sandbox: Sandbox, record: str) -> None:
    with sandbox.directory() as here:
        make_layout(here / "image", "image", [Layer().dir("./").file("f", "x", uid=1001)])
        (before,) = unpack_image(sandbox, here)
        (before.tree.parent / "layer.json").write_text(record)
        (after,) = unpack_image(sandbox, here)
        assert after == before
        assert list((here / "store/tmp").iterdir()) == []
