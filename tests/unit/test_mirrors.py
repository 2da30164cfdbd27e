"""What a build gets of the host's settings for packages."""

from __future__ import annotations

import configparser
import os
from pathlib import Path

import pytest

from ocis2i.allowed_hosts import HostName, parse_allow_host
from ocis2i.errors import UsageError
from ocis2i.mirrors import MIRRORS_DIRECTORY, Mirrors, host_mirrors, mirror_hosts

TOKEN = "Zx81kQpW-77ab_cd"
OTHER = "Qr92mNbV+11xy.zZ"
CERTIFICATE = "-----BEGIN CERTIFICATE-----\nTUlJRXZRSUJBREFO\n-----END CERTIFICATE-----"
SECOND = CERTIFICATE.replace("TUlJ", "U2Vj")
KEY = "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBgkqhkiG9w0B\n-----END PRIVATE KEY-----"


class Host:
    """A host of our own: a home, an /etc and an environment."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.etc = root / "etc"
        self.root = root
        for directory in (self.home, self.etc):
            directory.mkdir()

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def read(self, **environment: str) -> Mirrors:
        return host_mirrors(environment, self.home, self.etc)


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def pip_of(mirrors: Mirrors) -> dict[str, dict[str, str]]:
    parser = configparser.RawConfigParser()
    parser.read_string(mirrors.files["pip.conf"].decode())
    return {section: dict(parser.items(section)) for section in parser.sections()}


def values(mirrors: Mirrors) -> set[str]:
    return {secret.value.decode() for secret in mirrors.secrets}


def test_host_without_settings_gives_nothing(host: Host) -> None:
    assert host.read(PATH="/bin", HOME="/x") == Mirrors()


def test_nothing_said_or_shown_has_a_secret(host: Host) -> None:
    host.write("home/.npmrc", f"//npm.example/:_authToken={TOKEN}\n")
    host.write("etc/pip.conf", f"[global]\nindex-url = https://bob:{OTHER}@pip.example/simple\n")
    mirrors = host.read(https_proxy=f"http://bob:{TOKEN}@proxy.example:3128")
    assert {TOKEN, OTHER} <= values(mirrors)
    told = " ".join([*mirrors.found, repr(mirrors), *(one.name for one in mirrors.secrets)])
    assert TOKEN not in told
    assert OTHER not in told


# --- certificates and proxies -------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    [
        "ssl/certs/ca-certificates.crt",
        "pki/tls/certs/ca-bundle.crt",
        "ssl/ca-bundle.pem",
        "ssl/cert.pem",
    ],
)
def test_bundle_of_the_system_is_for_every_tool(host: Host, place: str) -> None:
    host.write(f"etc/{place}", f"{CERTIFICATE}\n{SECOND}\n")
    mirrors = host.read()
    assert mirrors.files == {"ca-bundle.crt": f"{CERTIFICATE}\n{SECOND}\n".encode()}
    assert mirrors.environment == dict.fromkeys(
        [
            "SSL_CERT_FILE",
            "REQUESTS_CA_BUNDLE",
            "CURL_CA_BUNDLE",
            "PIP_CERT",
            "NODE_EXTRA_CA_CERTS",
            "GIT_SSL_CAINFO",
            "CARGO_HTTP_CAINFO",
        ],
        "/run/ocis2i/ca-bundle.crt",
    )
    assert mirrors.secrets == ()


@pytest.mark.parametrize("name", ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_bundle_of_the_environment_wins(host: Host, name: str) -> None:
    host.write("etc/ssl/cert.pem", CERTIFICATE)
    own = host.write("own.pem", SECOND)
    assert host.read(**{name: str(own)}).files["ca-bundle.crt"] == f"{SECOND}\n".encode()


def test_extra_certificates_of_node_are_added_once(host: Host) -> None:
    host.write("etc/ssl/cert.pem", CERTIFICATE)
    extra = host.write("extra.pem", f"{CERTIFICATE}\n{SECOND}")
    bundle = host.read(NODE_EXTRA_CA_CERTS=str(extra)).files["ca-bundle.crt"]
    assert bundle == f"{CERTIFICATE}\n{SECOND}\n".encode()


def test_key_in_a_bundle_is_not_taken(host: Host) -> None:
    own = host.write("own.pem", f"{KEY}\n{CERTIFICATE}\n")
    mirrors = host.read(SSL_CERT_FILE=str(own))
    assert mirrors.files == {"ca-bundle.crt": f"{CERTIFICATE}\n".encode()}


def test_directory_of_certificates_is_passed_over(host: Host) -> None:
    host.write("etc/ssl/cert.pem", CERTIFICATE)
    assert host.read(REQUESTS_CA_BUNDLE=str(host.home)).files["ca-bundle.crt"]


def test_proxies_are_given_in_both_cases(host: Host) -> None:
    mirrors = host.read(https_proxy="http://p.example:1", NO_PROXY="localhost", HTTP_PROXY="")
    assert mirrors.environment == {
        "https_proxy": "http://p.example:1",
        "HTTPS_PROXY": "http://p.example:1",
        "no_proxy": "localhost",
        "NO_PROXY": "localhost",
    }


@pytest.mark.parametrize("scheme", ["http://", ""])
def test_password_of_a_proxy_is_a_secret(host: Host, scheme: str) -> None:
    assert values(host.read(http_proxy=f"{scheme}bob:{TOKEN}@p.example:1")) == {TOKEN}


# --- pip ----------------------------------------------------------------------------------------


def test_pip_files_are_merged_in_its_own_order(host: Host) -> None:
    host.write("etc/xdg/pip/pip.conf", "[global]\nindex-url=https://a.example\nretries=1\n")
    host.write("etc/pip.conf", "[global]\nindex_url=https://b.example\ntimeout=1\n")
    host.write("home/.pip/pip.conf", "[global]\nextra-index-url=https://c.example\n")
    host.write(
        "home/.config/pip/pip.conf",
        "[global]\nextra-index-url=\n  https://d.example\n  https://e.example\n"
        "require-virtualenv=true\n[install]\ntrusted-host=h.example\n[list]\nformat=columns\n",
    )
    mirrors = host.read()
    assert pip_of(mirrors) == {
        "global": {
            "index-url": "https://b.example",
            "timeout": "1",
            "retries": "1",
            "extra-index-url": "https://d.example\nhttps://e.example",
        },
        "install": {"trusted-host": "h.example"},
    }
    assert mirrors.environment == {"PIP_CONFIG_FILE": f"{MIRRORS_DIRECTORY}/pip.conf"}


def test_pip_variables_win_over_every_file(host: Host) -> None:
    host.write("etc/pip.conf", "[install]\nindex-url=https://a.example\ntimeout=5\n")
    mirrors = host.read(PIP_INDEX_URL=f"https://bob:{TOKEN}@b.example", PIP_DEFAULT_TIMEOUT="9")
    assert pip_of(mirrors) == {
        "global": {"index-url": f"https://bob:{TOKEN}@b.example", "timeout": "9"},
    }
    assert values(mirrors) == {TOKEN}
    assert "PIP_INDEX_URL" not in mirrors.environment


def test_named_pip_file_takes_the_place_of_the_users(host: Host) -> None:
    host.write("etc/pip.conf", "[global]\ntimeout=1\n")
    host.write("home/.config/pip/pip.conf", "[global]\nindex-url=https://user.example\n")
    own = host.write("own.conf", "[global]\nretries=2\n")
    found = pip_of(host.read(PIP_CONFIG_FILE=str(own)))
    assert found == {"global": {"timeout": "1", "retries": "2"}}
    assert "pip.conf" not in host.read(PIP_CONFIG_FILE="/dev/null").files


def test_certificates_of_pip_are_copied(host: Host) -> None:
    host.write("etc/ssl/cert.pem", CERTIFICATE)
    host.write("home/ca.pem", SECOND)
    host.write("home/client.pem", f"{CERTIFICATE}\n{KEY}\n")
    host.write("etc/pip.conf", "[global]\ncert=~/ca.pem\nclient-cert=~/client.pem\n")
    mirrors = host.read()
    found = pip_of(mirrors)["global"]
    assert found["cert"] == "/run/ocis2i/pip-global-cert.pem"
    assert mirrors.files["pip-global-cert.pem"].decode() == SECOND
    assert mirrors.files[found["client-cert"].rpartition("/")[2]].endswith(b"KEY-----\n")
    assert "MIIEvQIBADANBgkqhkiG9w0B" in values(mirrors)
    assert "PIP_CERT" not in mirrors.environment


def test_missing_certificate_is_an_error_with_its_setting(host: Host) -> None:
    with pytest.raises(UsageError, match=r"pip.s `cert` names `/no/such\.pem`"):
        host.read(PIP_CERT="/no/such.pem")


def test_broken_pip_file_is_an_error_without_its_lines(host: Host) -> None:
    host.write("etc/pip.conf", f"https://bob:{TOKEN}@x.example\n")
    with pytest.raises(UsageError, match="pip could not read") as caught:
        host.read()
    assert TOKEN not in f"{caught.value.message}{caught.value.hint}"
    assert caught.value.__suppress_context__


def test_local_index_is_named_with_what_its_pages_link_to(host: Host) -> None:
    host.write("pypi/simple/flask/index.html", '<a href="../../files/flask.whl#sha256=0">x</a>')
    host.write("pypi/simple/evil/index.html", '<a href="../../../home/.ssh/id">x</a>')
    host.write("pypi/files/flask.whl", "")
    host.write("home/.ssh/id", KEY)
    host.write("wheels/x.whl", "")
    index = f"file://{host.root}/pypi/simple"
    mirrors = host.read(
        PIP_EXTRA_INDEX_URL=f"{index} https://far.example", PIP_FIND_LINKS=f"{host.root}/wheels"
    )
    assert mirrors.directories == (
        host.root / "pypi/files",
        host.root / "pypi/simple",
        host.root / "wheels",
    )
    found = pip_of(mirrors)["global"]
    assert found["extra-index-url"] == f"{index}\nhttps://far.example"
    assert found["find-links"] == f"{host.root}/wheels"


@pytest.mark.parametrize("link", ["../../.hidden/x", "../../out/x", "/etc/x", "../../../x", "%00"])
def test_page_cannot_show_other_directories(host: Host, link: str) -> None:
    host.write("pypi/simple/p/index.html", f'<a href="{link}">x</a>')
    host.write("pypi/.hidden/x", "")
    (host.root / "pypi/out").symlink_to(host.home)
    mirrors = host.read(PIP_INDEX_URL=f"file://{host.root}/pypi/simple")
    assert mirrors.directories == (host.root / "pypi/simple",)


@pytest.mark.parametrize("place", ["/", "/opt", "file:///no/such", "relative"])
def test_local_index_that_cannot_be_mounted_is_left_out(host: Host, place: str) -> None:
    mirrors = host.read(PIP_FIND_LINKS=place)
    assert mirrors.files == {}
    assert mirrors.directories == ()
    assert "left out" in mirrors.found[0]


# --- npm, Maven, Go, and others ---------------------------------------------------------------


def test_npm_settings_are_merged_filled_in_and_filtered(host: Host) -> None:
    host.write("etc/npmrc", "registry=https://a.example\nstrict-ssl=false\n")
    host.write("ca.pem", CERTIFICATE)
    host.write(
        "home/.npmrc",
        "; a comment\nregistry=https://b.example\n@mine:registry = https://c.example\n"
        "//b.example/:_authToken=${MY_TOKEN}\n//c.example/:_password=${NONE}\n"
        f"cafile={host.root}/ca.pem\nca[]=one\nca[]=two\ninit-author-name=Bob\nbroken\n",
    )
    mirrors = host.read(MY_TOKEN=TOKEN, npm_config_https_proxy="http://p.example")
    assert mirrors.files["npmrc"].decode().splitlines() == [
        f"//b.example/:_authToken = {TOKEN}",
        "//c.example/:_password = ${NONE}",
        "@mine:registry = https://c.example",
        "ca[] = one",
        "ca[] = two",
        "cafile = /run/ocis2i/npm-4-cafile.pem",
        "https-proxy = http://p.example",
        "registry = https://b.example",
        "strict-ssl = false",
    ]
    assert mirrors.files["npm-4-cafile.pem"].decode() == CERTIFICATE
    assert values(mirrors) == {TOKEN}
    assert mirrors.environment == {"NPM_CONFIG_USERCONFIG": "/run/ocis2i/npmrc"}


def test_npm_variables_win_in_any_case(host: Host) -> None:
    own = host.write("own.npmrc", "registry=https://a.example\nstrict-ssl=true\n")
    mirrors = host.read(NPM_CONFIG_USERCONFIG=str(own), NPM_CONFIG_REGISTRY="https://b.example")
    assert mirrors.files["npmrc"] == b"registry = https://b.example\nstrict-ssl = true\n"


def test_maven_settings_are_taken_without_what_is_this_hosts(host: Host) -> None:
    host.write(
        "home/.m2/settings.xml",
        "<settings><!-- <password>Old-Passw0rd</password> -->"
        "<localRepository>/home/bob/.m2/r</localRepository>"
        "<servers><server><id>m</id><username>bob-the-builder</username>"
        "<password>${env.MVN_PASSWORD}</password></server></servers></settings>",
    )
    mirrors = host.read(MVN_PASSWORD="a<Passw0rd&1")
    text = mirrors.files["settings.xml"].decode()
    assert "Old-Passw0rd" not in text
    assert "localRepository" not in text
    assert "<password>a&lt;Passw0rd&amp;1</password>" in text
    assert values(mirrors) == {"a<Passw0rd&1"}
    assert mirrors.environment == {"MAVEN_SETTINGS_XML": "/run/ocis2i/settings.xml"}


def test_go_settings_of_the_environment_win_over_its_file(host: Host) -> None:
    host.write("home/.config/go/env", "GOPROXY=https://a.example\nGOPRIVATE=x.example\nGOOS=aix\n")
    mirrors = host.read(GOPROXY=f"file:///cache,https://bob:{TOKEN}@b.example|file:///x,direct")
    assert mirrors.environment == {
        "GOPROXY": f"https://bob:{TOKEN}@b.example,direct",
        "GOPRIVATE": "x.example",
    }
    assert values(mirrors) == {TOKEN}
    assert host.read(GOENV="off").environment == {}


def test_variables_of_other_tools_are_taken(host: Host) -> None:
    given = {
        "BUNDLE_MIRROR__HTTPS://GEMS__EXAMPLE/": f"https://bob:{TOKEN}@gems.example",
        "CARGO_REGISTRIES_MINE_TOKEN": OTHER,
        "UV_INDEX_URL": "https://uv.example",
        "YARN_NPM_REGISTRY_SERVER": "https://yarn.example",
    }
    mirrors = host.read(**given, CARGO_HOME="/x", UV_CACHE_DIR="/y", BUNDLE_PATH="/z")
    assert mirrors.environment == given
    assert values(mirrors) == {TOKEN, OTHER}


# --- files that are none ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["etc/pip.conf", "home/.npmrc", "home/.m2/settings.xml", "home/.config/go/env"]
)
def test_settings_that_are_no_text_are_named(host: Host, path: str) -> None:
    host.write(path, "").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match=f"{path}` is not UTF-8"):
        host.read()


def test_huge_settings_are_refused(host: Host) -> None:
    with host.write("home/.npmrc", "").open("wb") as file:
        file.truncate(2 << 20)
    with pytest.raises(UsageError, match="more than 1048576 bytes"):
        host.read()


def test_fifo_is_not_waited_for(host: Host) -> None:
    os.mkfifo(host.home / ".npmrc")
    assert host.read() == Mirrors()


# --- for a build with a proxy of ours -----------------------------------------------------------


def _with_proxies_everywhere(host: Host) -> dict[str, str]:
    host.write(
        "etc/pip.conf",
        f"[global]\nindex-url = https://me:{TOKEN}@pip.example/simple\nproxy = http://p:1\n"
        "extra-index-url = http://127.0.0.1:3141/root\n    https://[fd00::7]:8443/x\n",
    )
    host.write("home/.npmrc", "registry = https://npm.example:444/\nhttps-proxy = http://p:1\n")
    host.write(
        "home/.m2/settings.xml",
        '<settings xmlns="http://schema.example/1"><proxies><proxy><host>p</host></proxy></proxies>'
        "<mirrors><mirror><url>https://maven.example/a?b&amp;c</url></mirror></mirrors></settings>",
    )
    return {
        "https_proxy": f"http://me:{OTHER}@p:1",
        "CARGO_HTTP_PROXY": "http://p:1",
        "GOPROXY": "https://go.example,http://near.example:3000|direct",
        "UV_INDEX": "mine=https://uv.example/simple",
    }


def test_hosts_of_mirrors_are_found_with_their_ports(host: Host) -> None:
    variables = _with_proxies_everywhere(host)
    found = mirror_hosts(host_mirrors(variables, host.home, host.etc, proxies=False))
    named = ("pip.example", "npm.example", "maven.example", "go.example", "near.example")
    ports = {"npm.example": 444, "near.example": 3000}
    assert set(found) == {
        *(HostName(name, ports.get(name, 443)) for name in (*named, "uv.example")),
        parse_allow_host("127.0.0.1:3141"),
        parse_allow_host("[fd00::7]:8443"),
    }
    assert mirror_hosts(Mirrors()) == ()


def test_proxies_can_be_left_out_of_every_setting(host: Host) -> None:
    variables = _with_proxies_everywhere(host)
    mirrors = host_mirrors(variables, host.home, host.etc, proxies=False)
    assert not [name for name in mirrors.environment if name.lower().endswith("_proxy")]
    assert mirrors.environment["GOPROXY"] == variables["GOPROXY"]
    assert "proxy" not in pip_of(mirrors)["global"]
    assert b"proxy" not in mirrors.files["npmrc"]
    assert b"<prox" not in mirrors.files["settings.xml"]
    assert b"maven.example" in mirrors.files["settings.xml"]
    assert OTHER not in values(mirrors)
    assert TOKEN in values(mirrors)
