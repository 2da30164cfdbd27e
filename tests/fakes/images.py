"""Small images for tests, made with the standard library's tarfile and gzip.

Nothing here uses ocis2i's own writers, so that both sides of a test do not share a mistake.
"""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self

import zstandard

from ocis2i.reference import Digest

CompressionName = Literal["gzip", "zstd", "none"]
Json = dict[str, Any]

MTIME = 1_577_836_800  # 2020-01-01, so that "unchanged" is not mistaken for "unset"
CREATED = "2020-01-01T00:00:00Z"
REF_NAME = "org.opencontainers.image.ref.name"
BUSYBOX = Path("/bin/busybox")

FIXTURES = Path(__file__).parent.parent.parent / "fixtures"

_OCI = "application/vnd.oci.image."
_DOCKER = "application/vnd.docker."
_LAYER_SUFFIX = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_DOCKER_SUFFIX = {"gzip": ".gzip", "zstd": ".zstd", "none": ""}


@dataclass(slots=True)
class Layer:
    """A recipe of one layer: `Layer().dir("etc").file("etc/motd", "hello")`.

    Entries are written in the order of the calls, whatever they are: a test that wants a broken
    layer just says so.
    """

    members: list[tuple[tarfile.TarInfo, bytes]] = field(default_factory=list)

    def file(
        self,
        path: str,
        content: bytes | str = b"",
        *,
        mode: int = 0o644,
        uid: int = 0,
        gid: int = 0,
        mtime: float = MTIME,
        xattrs: Mapping[str, str] | None = None,
    ) -> Self:
        """A regular file."""
        data = content.encode() if isinstance(content, str) else content
        info = _info(path, tarfile.REGTYPE, mode, uid, gid, mtime)
        info.size = len(data)
        info.pax_headers = _pax(xattrs)
        return self.raw(info, data)

    def dir(
        self,
        path: str,
        *,
        mode: int = 0o755,
        uid: int = 0,
        gid: int = 0,
        mtime: float = MTIME,
        xattrs: Mapping[str, str] | None = None,
    ) -> Self:
        """A directory."""
        info = _info(path, tarfile.DIRTYPE, mode, uid, gid, mtime)
        info.pax_headers = _pax(xattrs)
        return self.raw(info)

    def symlink(self, path: str, target: str, *, uid: int = 0, gid: int = 0) -> Self:
        """A symbolic link."""
        info = _info(path, tarfile.SYMTYPE, 0o777, uid, gid, MTIME)
        info.linkname = target
        return self.raw(info)

    def hardlink(self, path: str, target: str) -> Self:
        """A second name of an entry that was written before."""
        info = _info(path, tarfile.LNKTYPE, 0o644, 0, 0, MTIME)
        info.linkname = target
        return self.raw(info)

    def device(
        self, path: str, *, kind: Literal["char", "block", "fifo"] = "char", major: int = 1
    ) -> Self:
        """A device node (minor 3) or a fifo."""
        types = {"char": tarfile.CHRTYPE, "block": tarfile.BLKTYPE, "fifo": tarfile.FIFOTYPE}
        info = _info(path, types[kind], 0o666, 0, 0, MTIME)
        info.devmajor, info.devminor = (0, 0) if kind == "fifo" else (major, 3)
        return self.raw(info)

    def whiteout(self, path: str) -> Self:
        """The deletion of `path` in a lower layer (image-spec, layer.md)."""
        parent, _, name = path.rpartition("/")
        return self.file(f"{parent}/.wh.{name}" if parent else f".wh.{name}", mode=0, mtime=0)

    def opaque(self, path: str) -> Self:
        """A directory that hides all that lower layers have in it."""
        return self.file(f"{path}/.wh..wh..opq", mode=0, mtime=0)

    def raw(self, info: tarfile.TarInfo, data: bytes = b"") -> Self:
        """An entry as it is."""
        self.members.append((info, data))
        return self

    def tar(self) -> bytes:
        """The layer's tar."""
        buffer = io.BytesIO()
        with tarfile.open(
            fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, errors="surrogateescape"
        ) as archive:
            for info, data in self.members:
                archive.addfile(info, io.BytesIO(data))
        return buffer.getvalue()


def _pax(xattrs: Mapping[str, str] | None) -> dict[str, str]:
    return {f"SCHILY.xattr.{key}": value for key, value in (xattrs or {}).items()}


def _info(path: str, kind: bytes, mode: int, uid: int, gid: int, mtime: float) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, mtime
    return info


@lru_cache(maxsize=32)  # nearly every test makes the same layer of busybox
def compress(data: bytes, compression: CompressionName) -> bytes:
    """`data` as a blob of that compression."""
    if compression == "gzip":
        return gzip.compress(data, 6, mtime=0)
    if compression == "zstd":
        return zstandard.ZstdCompressor(3).compress(data)
    return data


def config_document(
    layers: Sequence[Layer],
    config: Mapping[str, Any] | None = None,
    *,
    platform: str = "linux/amd64",
    extra: Mapping[str, Any] | None = None,
) -> Json:
    """An image config; `config` is its runtime part, `extra` are more fields beside it."""
    system, architecture, *variant = platform.split("/")
    document: Json = {
        "created": CREATED,
        "architecture": architecture,
        "os": system,
        "config": dict(config or {}),
        "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(one.tar())) for one in layers]},
        "history": [{"created": CREATED, "created_by": f"step {n}"} for n, _ in enumerate(layers)],
    }
    if variant:
        document["variant"] = variant[0]
    return document | dict(extra or {})


def make_layout(
    path: Path,
    name: str | None,
    layers: Sequence[Layer],
    config: Mapping[str, Any] | None = None,
    *,
    compression: CompressionName = "gzip",
    docker: bool = False,
    platform: str = "linux/amd64",
    extra: Mapping[str, Any] | None = None,
    listed: bool = True,
) -> Digest:
    """Writes an image into an OCI layout (made when missing); the digest of its manifest.

    `docker` uses Docker's media types. An image that is not `listed` is only for `make_index`.
    """
    document = config_document(layers, config, platform=platform, extra=extra)
    config_type = _DOCKER + "container.image.v1+json" if docker else _OCI + "config.v1+json"
    layer_type = (
        _DOCKER + "image.rootfs.diff.tar" + _DOCKER_SUFFIX[compression]
        if docker
        else _OCI + "layer.v1.tar" + _LAYER_SUFFIX[compression]
    )
    kind = _DOCKER + "distribution.manifest.v2+json" if docker else _OCI + "manifest.v1+json"
    manifest = {
        "schemaVersion": 2,
        "mediaType": kind,
        "config": _put(path, json.dumps(document).encode(), config_type),
        "layers": [_put(path, compress(one.tar(), compression), layer_type) for one in layers],
    }
    descriptor = _put(path, json.dumps(manifest, indent=1).encode(), kind)
    if listed:
        _list(path, name, descriptor)
    return Digest.parse(descriptor["digest"])


def make_index(
    path: Path,
    name: str | None,
    images: Mapping[str, Digest],
    *,
    docker: bool = False,
    more: Sequence[Json] = (),
) -> Digest:
    """Writes an index over images that are in the layout: platform text to manifest digest."""
    entries = []
    for platform, digest in images.items():
        system, architecture, *variant = platform.split("/")
        entry = _descriptor_of_manifest(path, digest)
        entry["platform"] = {"os": system, "architecture": architecture}
        if variant:
            entry["platform"]["variant"] = variant[0]
        entries.append(entry)
    kind = _DOCKER + "distribution.manifest.list.v2+json" if docker else _OCI + "index.v1+json"
    document = {"schemaVersion": 2, "mediaType": kind, "manifests": [*entries, *more]}
    descriptor = _put(path, json.dumps(document).encode(), kind)
    _list(path, name, descriptor)
    return Digest.parse(descriptor["digest"])


def make_docker_archive(
    path: Path,
    tags: Sequence[str],
    layers: Sequence[Layer],
    config: Mapping[str, Any] | None = None,
    *,
    style: Literal["classic", "flat", "oci"] = "classic",
    compression: CompressionName = "none",
    extra: Mapping[str, Any] | None = None,
) -> Digest:
    """Writes what `docker save` writes; the digest of the config (the image id).

    classic: `ID/layer.tar`, repeated layers as symbolic links (Docker before 25); flat:
    `DIFFID.tar` (podman save, skopeo); oci: blobs in a layout beside manifest.json (Docker 25).
    """
    document = json.dumps(config_document(layers, config, extra=extra)).encode()
    digest = Digest.of(document)
    writer = Layer()
    names: list[str] = []
    seen: dict[str, str] = {}
    for number, layer in enumerate(layers):
        data = compress(layer.tar(), compression)
        names.append(_write_layer(writer, style, number, Digest.of(layer.tar()), data, seen))
    config_name = f"blobs/sha256/{digest.hex}" if style == "oci" else f"{digest.hex}.json"
    writer.file(config_name, document)
    if style == "oci":
        writer.file("oci-layout", '{"imageLayoutVersion": "1.0.0"}')
    entry = {"Config": config_name, "RepoTags": list(tags) or None, "Layers": names}
    writer.file("manifest.json", json.dumps([entry]))
    path.write_bytes(writer.tar())
    return digest


def _write_layer(
    writer: Layer, style: str, number: int, diff_id: Digest, data: bytes, seen: dict[str, str]
) -> str:
    if style == "oci":
        name = f"blobs/sha256/{Digest.of(data).hex}"
        return name if any(i.name == name for i, _ in writer.members) else _add(writer, name, data)
    if style == "flat":
        name = f"{diff_id.hex}.tar"
        return name if any(i.name == name for i, _ in writer.members) else _add(writer, name, data)
    directory = Digest.of(f"{number} {diff_id}".encode()).hex
    name = f"{directory}/layer.tar"
    writer.dir(directory).file(f"{directory}/VERSION", "1.0").file(f"{directory}/json", "{}")
    if diff_id.hex in seen:
        writer.symlink(name, f"../{seen[diff_id.hex]}")
        return name
    seen[diff_id.hex] = name
    return _add(writer, name, data)


def _add(writer: Layer, name: str, data: bytes) -> str:
    writer.file(name, data)
    return name


def make_archive(path: Path, layout: Path, *, gzipped: bool = False) -> None:
    """Writes a layout directory as an OCI archive."""
    with tarfile.open(path, "w:gz" if gzipped else "w", format=tarfile.USTAR_FORMAT) as archive:
        archive.add(layout, arcname=".")


def _put(path: Path, data: bytes, media_type: str) -> Json:
    digest = Digest.of(data)
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / digest.hex).write_bytes(data)
    return {"mediaType": media_type, "digest": str(digest), "size": len(data)}


def _list(path: Path, name: str | None, descriptor: Json) -> None:
    index_file = path / "index.json"
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index: Json = {"schemaVersion": 2, "manifests": []}
    if index_file.exists():
        index = json.loads(index_file.read_bytes())
    entry = dict(descriptor)
    if name:
        entry["annotations"] = {REF_NAME: name}
    index["manifests"].append(entry)
    index_file.write_text(json.dumps(index))


def _descriptor_of_manifest(path: Path, digest: Digest) -> Json:
    data = (path / "blobs" / digest.algorithm / digest.hex).read_bytes()
    kind = json.loads(data)["mediaType"]
    return {"mediaType": kind, "digest": str(digest), "size": len(data)}


# --- the builder of the test suite ------------------------------------------------------------

APPLETS = """
[ ash awk base64 basename cat chgrp chmod chown cp cut date dd df diff dirname du echo env expr
false find getopt grep gunzip gzip head hostname httpd id ip kill ln ls md5sum mkdir mkfifo mknod
mktemp mount mv nc nproc od paste pidof ping printf ps pwd readlink realpath rm
rmdir sed seq setsid sh sha256sum sleep sort stat strings stty sync tail tar tee test timeout touch
tr true truncate tty umount uname uniq unlink unxz unzip vi wc wget which whoami xargs yes zcat
""".split()

ASSEMBLE = """\
#!/bin/sh
set -e
echo "---> Installing application source"
cp -R /tmp/src/. "$HOME/"
"""

RUN = """\
#!/bin/sh
exec httpd -f -p "${PORT:-8080}" -h "$HOME"
"""

USAGE = """\
#!/bin/sh
echo "This is the busybox builder: it serves the files of its source over HTTP."
"""

PASSWD = """\
root:x:0:0:root:/root:/bin/sh
default:x:1001:0:Default Application User:/opt/app-root/src:/bin/sh
nobody:x:65534:65534:nobody:/nonexistent:/bin/false
"""

GROUP = "root:x:0:\ndefault:x:1001:\nnogroup:x:65534:\n"

HOME = "/opt/app-root/src"
SCRIPTS = "/usr/libexec/s2i"


def busybox_config(
    *, user: str = "1001", labels: Mapping[str, str] | None = None, env: Iterable[str] = ()
) -> Json:
    """The runtime config of `busybox_builder`."""
    return {
        "User": user,
        "WorkingDir": HOME,
        "Env": ["PATH=/usr/bin:/bin", f"HOME={HOME}", "APP_ROOT=/opt/app-root", *env],
        "Cmd": ["/bin/sh"],
        "ExposedPorts": {"8080/tcp": {}},
        "Labels": {
            "io.openshift.s2i.scripts-url": f"image://{SCRIPTS}",
            "io.k8s.display-name": "busybox builder",
        }
        | dict(labels or {}),
    }


def busybox_builder(
    path: Path,
    name: str | None = "builder:latest",
    *,
    user: str = "1001",
    labels: Mapping[str, str] | None = None,
    scripts: Mapping[str, str | None] | None = None,
    env: Iterable[str] = (),
    compression: CompressionName = "gzip",
    docker: bool = False,
    more_layers: Sequence[Layer] = (),
) -> None:
    """Writes a real, runnable S2I builder image of about 2 MB into the OCI layout `path`.

    It is made of the static busybox of Debian's package `busybox-static`. `scripts` replaces,
    adds or (with `None`) leaves out scripts of `assemble`, `run` and `usage`; `labels` and `env`
    add to the image's own, `more_layers` come on top. Raises `FileNotFoundError` without busybox.
    """
    chosen = {"assemble": ASSEMBLE, "run": RUN, "usage": USAGE} | dict(scripts or {})
    layers = [_busybox_layer(), _scripts_layer(chosen), *more_layers]
    config = busybox_config(user=user, labels=labels, env=env)
    platform = f"linux/{_architecture()}"
    make_layout(
        path, name, layers, config, compression=compression, docker=docker, platform=platform
    )


def _architecture() -> str:
    # The ELF header's e_machine says what the busybox at hand runs on.
    machine = int.from_bytes(BUSYBOX.read_bytes()[18:20], "little")
    return {0x3E: "amd64", 0xB7: "arm64", 0x28: "arm", 0x03: "386", 0xF3: "riscv64"}[machine]


def _busybox_layer() -> Layer:
    layer = Layer()
    for path in "bin dev etc opt proc root run sys usr usr/bin usr/libexec var var/tmp".split():
        layer.dir(path, mode=0o700 if path == "root" else 0o755)
    layer.dir("tmp", mode=0o1777)
    layer.dir("opt/app-root", mode=0o775, uid=1001, gid=0)
    layer.dir("opt/app-root/src", mode=0o775, uid=1001, gid=0)
    layer.file("etc/passwd", PASSWD).file("etc/group", GROUP)
    layer.file("etc/hostname", "").file("etc/hosts", "127.0.0.1 localhost\n")
    layer.file("bin/busybox", BUSYBOX.read_bytes(), mode=0o755)
    for applet in APPLETS:
        layer.symlink(f"bin/{applet}", "busybox")
    return layer.symlink("usr/bin/env", "../../bin/busybox")


def _scripts_layer(scripts: Mapping[str, str | None]) -> Layer:
    layer = Layer().dir("usr").dir("usr/libexec").dir(SCRIPTS.lstrip("/"))
    for script, text in sorted(scripts.items()):
        if text is not None:
            layer.file(f"{SCRIPTS.lstrip('/')}/{script}", text, mode=0o755)
    return layer


# --- the builders of fixtures/ ----------------------------------------------------------------


def fixture_image(name: str, path: Path) -> str:
    """Makes the image of `fixtures/builders/NAME` in the new layout `path`; its `oci:` location.

    Fails with what the build script has to say.
    """
    done = subprocess.run(
        [FIXTURES / "builders" / name / "build", path, "latest"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, f"the image `{name}` cannot be made\n{done.stderr}"
    return f"oci:{path}:latest"


@dataclass(frozen=True)
class LayoutImage:
    """An image in an OCI layout, read without ocis2i. Every layer is gzip-compressed."""

    layout: Path
    name: str

    @property
    def digest(self) -> str:
        """Of the manifest that the name stands for; `ValueError` when there is not exactly one."""
        index = json.loads((self.layout / "index.json").read_bytes())
        (digest,) = (
            entry["digest"]
            for entry in index["manifests"]
            if entry.get("annotations", {}).get(REF_NAME) == self.name
        )
        return str(digest)

    @property
    def manifest(self) -> Json:
        """The manifest that the name stands for."""
        manifest: Json = json.loads(self.blob(self.digest).read_bytes())
        return manifest

    @property
    def config(self) -> Json:
        """The runtime part of the image config."""
        document = json.loads(self.blob(self.manifest["config"]["digest"]).read_bytes())
        config: Json = document["config"]
        return config

    @property
    def labels(self) -> dict[str, str]:
        """The labels."""
        return dict(self.config.get("Labels") or {})

    @property
    def layers(self) -> list[str]:
        """The digests of the layers, the lowest first."""
        return [layer["digest"] for layer in self.manifest["layers"]]

    @property
    def size(self) -> int:
        """Bytes of all layers, without compression."""
        return sum(len(gzip.decompress(self.blob(one).read_bytes())) for one in self.layers)

    def members(self, layer: int = -1) -> dict[str, tarfile.TarInfo]:
        """The members of a layer, by name without a leading `./`."""
        with tarfile.open(self.blob(self.layers[layer]), "r:gz") as archive:
            return {one.name.removeprefix("./").rstrip("/"): one for one in archive}

    def blob(self, digest: str) -> Path:
        """Where a blob is."""
        return self.layout / "blobs" / Path(*digest.split(":"))
