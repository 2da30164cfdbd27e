"""The order in which modules may lean on each other, and which of them may touch the world."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "ocis2i"

# A module may import only modules that stand before it. This is also the reading order.
ORDER = """
lazy_dataclass
failure errors variables reference manifest indexes oci_artifacts s2i patterns parameters shell
mappings confidential settings events limits
runner elf causes uids credentials
syscall_numbers seccomp syscalls fs placement proc container_config certificates net retries
endpoints container_options allowed_hosts preferences forwarding relay proxy
blobs leaks mirrors tar layers differences compression decompression agent archives
policy whereabouts store auth registries credential_helpers keychain login growing registry
blob_stream transfer early_push referrers oras_client outputs images image_files layer_facts
size_budget publish joins
command_words records record_files journal
binaries web_files sources injections scripts script_failure download callback tools
prepare_source kube
isolation volumes unpack rootfs artifacts remote_cache session in_place declared
rebuild s2ifile scaffold spec refusals hidden container failed_shell kept_document kept incremental
extended inputs result finished unchanged build launch prune resume upload dockerfile export
report live narrowing markup treemap build_facts build_page documents
explain rules script_checks builder_checks build_rows following doctor
completion commands cli __main__
""".split()

# The agent runs as root in its namespace: small, quick to start, easy to audit.
AGENT_MAY_IMPORT = {"lazy_dataclass", "agent", "syscalls", "tar", "layers"}

# Modules of the outside world, and the only places that may import them.
ONLY_IN = {
    "subprocess": {"proc"},
    "ctypes": {"syscalls"},
    "requests": {"net", "registry", "auth", "oras_client", "web_files"},
    "oras": {"oras_client"},
    "urllib3": {"net", "registry", "auth"},
    "isal": {"compression", "decompression"},
    "zstandard": {"compression", "decompression"},
    "kubernetes": {"kube"},
    "yaml": {"kube"},
    "typer": {"cli", "commands", "completion"},
}

LONGEST_MODULE_LINES = 800

FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = [path for path in FILES if path != PACKAGE / "__init__.py"]
AGENT = sorted(PACKAGE.glob("agent/*.py"))


def name_of(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def owner(path: Path) -> str:
    """The module, or the family, that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module.split(".")[0] == "ocis2i":
                found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def own_imports(path: Path) -> set[str]:
    """The modules and families of ocis2i that a file imports."""
    inside = {name.split(".")[1] for name in imports(path) if name.startswith("ocis2i.")}
    return {name for name in inside if name in ORDER or not name.startswith("_")}


def foreign_imports(path: Path) -> set[str]:
    """The top-level modules from elsewhere that a file imports."""
    return {name.split(".")[0] for name in imports(path)} - {"ocis2i"}


def files_of(dotted: str) -> set[Path]:
    """The files that run when `dotted` is imported: packages on the way, and the module."""
    steps = dotted.split(".")[1:]
    packages = {PACKAGE.joinpath(*steps[:depth], "__init__.py") for depth in range(len(steps) + 1)}
    module = PACKAGE.joinpath(*steps).with_suffix(".py") if steps else PACKAGE / "__init__.py"
    return {path for path in packages | {module} if path.exists()}


def loaded_with(start: list[Path]) -> set[Path]:
    """Every file of ocis2i that is loaded when the `start` files are."""
    seen: set[Path] = set()
    waiting = set(start)
    while waiting:
        path = waiting.pop()
        seen.add(path)
        for name in imports(path):
            if name.split(".")[0] == "ocis2i":
                waiting |= files_of(name) - seen
    return seen


def test_every_module_has_a_place() -> None:
    assert {owner(path) for path in MODULES} - set(ORDER) == set(), "add the module to ORDER"


def test_no_place_is_given_twice() -> None:
    assert len(ORDER) == len(set(ORDER))


@pytest.mark.parametrize("path", [one for one in MODULES if owner(one) in ORDER], ids=name_of)
def test_imports_point_back(path: Path) -> None:
    me = owner(path)
    allowed = {*ORDER[: ORDER.index(me)], me}
    assert own_imports(path) <= allowed, f"{me} must not import {own_imports(path) - allowed}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_effects_stay_home(path: Path) -> None:
    for module in foreign_imports(path) & set(ONLY_IN):
        homes = ONLY_IN[module]
        assert owner(path) in homes, f"{module} belongs in {sorted(homes)}"


@pytest.mark.parametrize("path", AGENT, ids=name_of)
def test_the_agent_imports_only_its_few(path: Path) -> None:
    assert own_imports(path) <= AGENT_MAY_IMPORT
    assert foreign_imports(path) <= sys.stdlib_module_names


def test_what_the_agent_loads_needs_no_installed_package() -> None:
    foreign = {name for path in loaded_with(AGENT) for name in foreign_imports(path)}
    assert foreign <= sys.stdlib_module_names


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_module_is_not_longer_than_one_sitting(path: Path) -> None:
    lines = path.read_text().count("\n")
    assert lines <= LONGEST_MODULE_LINES, f"{lines} lines: split it by subject"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_drawer_for_odds_and_ends(path: Path) -> None:
    assert path.stem not in {"utils", "util", "helpers", "common", "base", "manager", "misc"}
