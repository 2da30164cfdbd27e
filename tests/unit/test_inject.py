"""Which files become which mounts: the trees of injections, before any of them is made."""

from __future__ import annotations

from typing import Any

import pytest

from ocis2i.agent.failure import AgentError
from ocis2i.agent.inject import Injected, Node, plan


def file(source: str, target: str) -> Injected:
    """An injection of one file."""
    return Injected(source, target, target, directory=False)


def within(top: str, *names: str, source: str = "/host") -> list[Injected]:
    """An injection of a directory with files."""
    return [Injected(f"{source}/{name}", f"{top}/{name}", top, directory=True) for name in names]


def shape(node: Node) -> Any:
    """A file's source, or the names in a directory."""
    if node.inside is None:
        return node.source
    return {name: shape(child) for name, child in node.inside.items()}


def planned(*items: Injected) -> dict[str, Any]:
    """What `plan` makes, by the place of the top."""
    return {top: shape(node) for top, node in plan(items)}


def test_nothing_is_nothing() -> None:
    assert plan([]) == []


def test_a_file_and_a_directory_are_trees_of_their_own() -> None:
    found = planned(file("/host/f", "/etc/f"), *within("/opt/conf", "a", "b/c", "b/d"))
    assert found == {
        "/etc/f": "/host/f",
        "/opt/conf": {"a": "/host/a", "b": {"c": "/host/b/c", "d": "/host/b/d"}},
    }


def test_the_top_knows_the_directory_of_the_host() -> None:
    [(_, node)] = plan(within("/opt/conf", "b/c"))
    assert node.source == "/host"
    assert node.inside is not None
    assert node.inside["b"].source == "/host/b"


def test_of_two_files_with_one_name_the_later_counts() -> None:
    assert planned(file("/one", "/etc/f"), file("/two", "/etc/f")) == {"/etc/f": "/two"}
    found = planned(*within("/d", "f", source="/one"), *within("/d", "f", "g", source="/two"))
    assert found == {"/d": {"f": "/two/f", "g": "/two/g"}}


def test_what_goes_into_a_brought_directory_belongs_to_it() -> None:
    found = planned(
        *within("/d/sub/more", "x", source="/three"),
        *within("/d", "f", "sub/g"),
        file("/one", "/d/sub/h"),
        *within("/d/new", "y", source="/four"),
    )
    assert found == {
        "/d": {
            "sub": {"more": {"x": "/three/x"}, "g": "/host/sub/g", "h": "/one"},
            "f": "/host/f",
            "new": {"y": "/four/y"},
        }
    }


def test_what_goes_elsewhere_below_stays_its_own() -> None:
    found = planned(*within("/d", "f"), file("/one", "/d/no/such"), file("/two", "/dd/f"))
    assert found == {"/d": {"f": "/host/f"}, "/d/no/such": "/one", "/dd/f": "/two"}


def test_the_root_can_be_a_top() -> None:
    [item] = within("", "etc/f")
    assert planned(item._replace(top="/")) == {"/": {"etc": {"f": "/host/etc/f"}}}


@pytest.mark.parametrize(
    "items",
    [
        within("/d", "x", "x/y"),
        within("/d", "x/y", "x"),
        [*within("/d", "x/y"), file("/one", "/d/x")],
    ],
)
def test_a_name_cannot_be_a_file_and_a_directory(items: list[Injected]) -> None:
    with pytest.raises(AgentError, match="as a file, and as a directory") as caught:
        plan(items)
    assert caught.value.kind == "usage"


@pytest.mark.parametrize("target", ["/d", "/d/../x", "/elsewhere/x", "/d//x", "/d/./x", "/dx", "d"])
def test_a_target_outside_of_its_top_is_refused(target: str) -> None:
    with pytest.raises(AgentError, match="below `/d`"):
        plan([Injected("/host/x", target, "/d", directory=True)])
