"""`--host-mirrors`: a build gets packages as this host does, its image does not tell from where.

What is in `/etc` of the host that runs the tests comes in as well: they ask for what must be there.
"""

from __future__ import annotations

import base64
import shutil
import subprocess
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import RUNC, needs
from tests.contract import better
from tests.fakes.bench import Bench, told
from tests.fakes.canary import assert_nowhere
from tests.fakes.images import BUSYBOX, Layer, busybox_config, make_layout
from tests.fakes.images import _architecture as architecture
from tests.fakes.images import _busybox_layer as busybox_layer
from tests.fakes.program import Program
from tests.fakes.web import Answer, FakeWeb

pytestmark = [
    pytest.mark.sandbox,
    pytest.mark.skipif(not BUSYBOX.exists(), reason="busybox-static is not installed"),
]

ISOLATIONS = [RUNC, "builtin"]
RUN = "#!/bin/sh\nexec true\n"
PASSWORD = "Vw83nqKz-71cb_eR"
TOKEN = "npm_4hG7sQ91xLw2Zp0"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTUlJRXZRSUJBREFO\n-----END CERTIFICATE-----\n"

SETTINGS = {
    ".config/pip/pip.conf": f"[global]\nindex-url = https://me:{PASSWORD}@pip.example/simple\n"
    "timeout = 7\ntarget = /somewhere\n",
    ".npmrc": "registry = https://npm.example/\n//npm.example/:_authToken = ${NPM_TOKEN}\n"
    "prefix = /mine\n",
    ".m2/settings.xml": "<settings><!-- old --><mirrors><mirror><url>https://maven.example/</url>"
    f"</mirror></mirrors><servers><server><password>{PASSWORD}</password></server></servers>"
    "</settings>\n",
    ".config/go/env": "GOPROXY=https://go.example\nGOFLAGS=-mod=mod\n",
    ".netrc": f"machine other.example login me password {PASSWORD}\n",
}
VARIABLES = {
    "https_proxy": f"http://me:{PASSWORD}@proxy.example:3128",
    "NPM_TOKEN": TOKEN,
    "CARGO_REGISTRIES_MINE_INDEX": "https://cargo.example/index",
    "NOT_FOR_THE_BUILD": "a value of this host",
}
SHOW = """\
#!/bin/sh
set -e
echo "files: $(cd /run/ocis2i 2>/dev/null && stat -c '%n %a %u:%g' * | sort | xargs)"
echo "writable: $(touch /run/ocis2i/x 2>/dev/null && echo yes || echo no)"
echo "pip: $(sed 's/:[^:@]*@/:PASSWORD@/' "$PIP_CONFIG_FILE" | xargs)"
echo "npm: $(sed 's/_authToken = .*/_authToken = TOKEN/' "$NPM_CONFIG_USERCONFIG" | xargs)"
echo "maven: $(grep -c "https://maven.example" "$MAVEN_SETTINGS_XML")"
echo "bundle: $(grep -c BEGIN "$SSL_CERT_FILE") $GIT_SSL_CAINFO $NODE_EXTRA_CA_CERTS"
echo "go: $GOPROXY,$GOFLAGS"
echo "cargo: $CARGO_REGISTRIES_MINE_INDEX"
echo "proxies: ${https_proxy#*@} ${HTTPS_PROXY#*@}"
echo "others: $NOT_FOR_THE_BUILD$NPM_TOKEN"
"""


@dataclass(frozen=True)
class Host(Bench):
    """A user of a host with settings of their own, and a store."""

    @property
    def home(self) -> Path:
        return Path(self.ocis2i.environment["HOME"])

    def configured(self, settings: Mapping[str, str], **variables: str) -> Host:
        """The same user with these files below the home directory, and these variables."""
        for name, text in settings.items():
            path = self.home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            path.chmod(0o600)
        return self.with_variables(**variables)

    def builder(self, assemble: str) -> str:
        return self.image("builder", {"assemble": assemble, "run": RUN})


@pytest.fixture
def host(ocis2i: Program, tmp_path: Path) -> Host:
    return Host(ocis2i, tmp_path)


@better("env.build-only", "`--host-mirrors`: settings for packages are for the build alone")
@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_build_sees_where_packages_come_from_and_the_image_does_not(
    host: Host, isolation: str
) -> None:
    bundle = host.directory / "own.pem"
    bundle.write_text(CERTIFICATE)
    host = host.configured(SETTINGS, **VARIABLES, SSL_CERT_FILE=str(bundle))
    flags = ("--host-mirrors", "--isolation", isolation)
    done = host.built(host.builder(SHOW), *flags, "--loglevel", "5")
    log = told(done)
    for name in ("ca-bundle.crt", "npmrc", "pip.conf", "settings.xml"):
        assert f"{name} 644 0:0" in log["files"]
    assert log["writable"] == "no"
    assert "index-url = https://me:PASSWORD@pip.example/simple" in log["pip"]
    assert "timeout = 7" in log["pip"]
    assert "target" not in log["pip"]
    assert "//npm.example/:_authToken = TOKEN" in log["npm"]
    assert "registry = https://npm.example/" in log["npm"]
    assert "prefix" not in log["npm"]
    assert log["maven"] == "1"
    inside = "/run/ocis2i/ca-bundle.crt"
    assert log["bundle"] == f"1 {inside} {inside}"
    assert log["go"] == "https://go.example,"
    assert log["cargo"] == "https://cargo.example/index"
    assert log["proxies"] == "proxy.example:3128 proxy.example:3128"
    assert log["others"] == ""
    for sentence in ("pip: ", "npm: ", "maven: ", "proxies: https_proxy", "cargo: "):
        assert f"\n{sentence}" in done.err
    assert PASSWORD not in done.err + done.out
    assert TOKEN not in done.err + done.out
    config = str(host.result().config)
    assert "example" not in config
    assert "ocis2i/" not in config
    assert not [name for name in host.result().members() if name.startswith("run")]
    assert_nowhere(host.ocis2i.store, PASSWORD, TOKEN)
    # What the script printed is in the record of the build.
    shutil.rmtree(host.ocis2i.store / "records")
    assert_nowhere(host.ocis2i.store, "npm.example", "cargo.example")


def test_without_the_flag_a_build_sees_nothing_of_this_host(host: Host) -> None:
    host = host.configured(SETTINGS, **VARIABLES)
    lines = (
        "#!/bin/sh\nset -e\ntest ! -e /run/ocis2i\nenv | cut -d= -f1 | sort | xargs echo names:\n"
    )
    log = told(host.built(host.builder(lines)))
    assert log["names"] == "APP_ROOT HOME HOSTNAME PATH PWD SHLVL"


def test_variables_of_the_command_line_win(host: Host) -> None:
    host = host.configured({}, https_proxy="http://host.example:1", no_proxy="host.example")
    lines = '#!/bin/sh\necho "seen: $https_proxy $HTTPS_PROXY $no_proxy"\n'
    flags = (
        "-e",
        "https_proxy=http://mine.example:2",
        "--build-env",
        "HTTPS_PROXY=http://b.example:3",
    )
    done = host.built(host.builder(lines), "--host-mirrors", *flags)
    assert told(done)["seen"] == "http://mine.example:2 http://b.example:3 host.example"
    assert "https_proxy=http://mine.example:2" in host.result().config["Env"]


@better("security.secrets", "passwords of mirrors are searched for as well")
@pytest.mark.parametrize(
    ("line", "found"),
    [
        ('cp "$PIP_CONFIG_FILE" $HOME/pip.conf', "pip's settings"),
        ('cp "$NPM_CONFIG_USERCONFIG" $HOME/.npmrc', "npm's settings"),
        ('cp "$MAVEN_SETTINGS_XML" $HOME/settings.xml', "Maven's settings"),
        ('echo "proxy=$https_proxy" > $HOME/.wgetrc', "the variable `https_proxy`"),
        ('echo "$https_proxy"', "the variable `https_proxy`"),
    ],
)
def test_password_of_a_mirror_that_gets_out_ends_the_build(
    host: Host, line: str, found: str
) -> None:
    settings = SETTINGS | {".m2/settings.xml": SETTINGS[".m2/settings.xml"].replace("Vw83", "Mv27")}
    settings[".config/pip/pip.conf"] = settings[".config/pip/pip.conf"].replace("Vw83", "Pp54")
    host = host.configured(settings, **VARIABLES)
    done = host.attempt(host.builder(f"#!/bin/sh\n{line}\n"), "--host-mirrors")
    assert done.code == 9, done.err
    assert f"secrets got out: {found}" in done.err
    secrets = [f"{begin}{PASSWORD[4:]}" for begin in ("Vw83", "Mv27", "Pp54")]
    for secret in (*secrets, TOKEN):
        assert secret not in done.err + done.out
    assert_nowhere(host.ocis2i.store, *secrets, TOKEN)


@pytest.mark.parametrize("isolation", ISOLATIONS)
def test_killed_build_leaves_no_settings_on_the_disk(host: Host, isolation: str) -> None:
    host = host.configured(SETTINGS, **VARIABLES)
    builder = host.builder("#!/bin/sh\ntest -s $PIP_CONFIG_FILE\necho now\nexec sleep 1000\n")
    host.killed(builder, "--host-mirrors", "--isolation", isolation)
    assert_nowhere(host.ocis2i.store, PASSWORD, TOKEN, "npm.example", "maven.example")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({".config/pip/pip.conf": f"no section {PASSWORD}\n"}, "pip could not read"),
        ({".config/pip/pip.conf": "[global]\ncert = /no/such.pem\n"}, "there is no such file"),
        ({".npmrc": "cafile = /no/such.pem\n"}, "npm's `cafile` names `/no/such.pem`"),
    ],
)
def test_settings_that_are_broken_are_named(
    host: Host, settings: Mapping[str, str], sentence: str
) -> None:
    host = host.configured(settings)
    done = host.attempt(host.builder("#!/bin/sh\necho never\n"), "--host-mirrors")
    assert done.code == 2, done.err
    assert sentence in done.err
    assert PASSWORD not in done.err
    assert "Traceback" not in done.err


# --- a real pip -----------------------------------------------------------------------------------

PYTHON = Path("/usr/bin/python3")
NAME = "/simple/ocis2i-demo-package/"
INSTALL = """\
#!/bin/sh
set -e
cd "$HOME"
/usr/bin/python3 -m pip --disable-pip-version-check --no-input install \
    --quiet --no-cache-dir --target "$HOME/lib" ocis2i-demo-package
PYTHONPATH="$HOME/lib" /usr/bin/python3 -c 'import demo_package; print(demo_package.TEXT)'
"""


def page(link: str) -> bytes:
    """A page of an index (PyPA, "Simple repository API")."""
    name = link.rpartition("/")[2]
    return f'<!DOCTYPE html><html><body><a href="{link}">{name}</a></body></html>'.encode()


def wheel(path: Path) -> Path:
    """A wheel of one module (PyPA, "Binary distribution format")."""
    file = path / "ocis2i_demo_package-1.0-py3-none-any.whl"
    information = "ocis2i_demo_package-1.0.dist-info"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("demo_package.py", "TEXT = 'the package: works'\n")
        archive.writestr(
            f"{information}/METADATA",
            "Metadata-Version: 2.1\nName: ocis2i-demo-package\nVersion: 1.0\n",
        )
        archive.writestr(
            f"{information}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        archive.writestr(f"{information}/RECORD", "")
    return file


@dataclass(frozen=True)
class Python:
    """A builder with this host's own Python: its `/usr` is a volume."""

    location: str
    volumes: tuple[str, ...]


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Python]:
    command = [str(PYTHON), "-I", "-m", "pip", "--version"]
    if not PYTHON.exists() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("the host's Python has no pip")
    path = tmp_path_factory.mktemp("python")
    links = Layer()
    for name in ("lib", "lib32", "lib64", "libx32"):
        if Path("/", name).is_symlink():
            links.symlink(name, f"usr/{name}")
    scripts = Layer().dir("s2i").file("s2i/assemble", INSTALL, mode=0o755)
    scripts.file("s2i/run", RUN, mode=0o755)
    config = busybox_config(labels={"io.openshift.s2i.scripts-url": "image:///s2i"})
    make_layout(
        path,
        "python:latest",
        [busybox_layer(), links, scripts],
        config,
        platform=f"linux/{architecture()}",
    )
    yield Python(f"oci:{path}:python:latest", ("-v", "/usr:/usr:ro"))


@needs("runc")
def test_pip_installs_from_the_hosts_index_with_its_password(host: Host, python: Python) -> None:
    file = wheel(host.directory)
    with FakeWeb() as web:
        web.put(NAME, Answer(page(f"/files/{file.name}"), headers={"Content-Type": "text/html"}))
        web.put(f"/files/{file.name}", file.read_bytes())
        address = f"http://me:{PASSWORD}@{web.host}/simple"
        host = host.configured({".config/pip/pip.conf": f"[install]\nindex-url = {address}\n"})
        refused = host.attempt(python.location, *python.volumes, "--network", "host")
        assert refused.code == 7
        done = host.built(python.location, *python.volumes, "--host-mirrors")
        basic = base64.b64encode(f"me:{PASSWORD}".encode()).decode()
        assert {one.path: one.headers.get("authorization") for one in web.log} == {
            NAME: f"Basic {basic}",
            f"/files/{file.name}": f"Basic {basic}",
        }
    assert told(done)["the package"] == "works"
    assert "opt/app-root/src/lib/demo_package.py" in host.result().members()
    assert_nowhere(host.ocis2i.store, PASSWORD, basic, web.host)


@needs("runc")
def test_pip_installs_from_a_directory_of_the_host(host: Host, python: Python) -> None:
    index = host.directory / "pypi" / "simple"
    (index / "ocis2i-demo-package").mkdir(parents=True)
    packages = host.directory / "pypi" / "packages"
    packages.mkdir()
    file = wheel(packages)
    (index / "ocis2i-demo-package/index.html").write_bytes(page(f"../../packages/{file.name}"))
    for path in (host.directory, *host.directory.glob("pypi/**/")):
        path.chmod(0o755)
    host = host.configured({".pip/pip.conf": f"[global]\nindex-url = file://{index}\n"})
    done = host.built(python.location, *python.volumes, "--host-mirrors")
    assert told(done)["the package"] == "works"
    names = {name for name in host.result().members() if not name.startswith(("opt", "tmp/src"))}
    assert names <= {"tmp", "tmp/scripts"}
    assert str(index) not in str(host.result().config)
