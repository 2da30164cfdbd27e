"""What layers change: laid over each other, held against a base, and summed up."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ocis2i import tar
from ocis2i.differences import (
    Change,
    Facts,
    LayerFacts,
    Tree,
    clean,
    compare,
    compare_trees,
    interest,
    largest,
    merge,
    notes,
    owners,
    rows_of_depth,
    telling_rows,
    total,
)
from ocis2i.layer_facts import inside_id, parse_id_maps
from tests.fakes.images import Layer


def facts(layer: Layer) -> LayerFacts:
    """What a layer's tar has."""
    found = LayerFacts()
    reader = tar.Reader(io.BytesIO(layer.tar()))
    while (header := reader.next()) is not None:
        found.take(header)
    return found


def said(layers: list[Layer], *, below: int) -> dict[str, str]:
    """The changes that the layers from `below` on make: path to state and kind of difference."""
    top = merge([facts(layer) for layer in layers[below:]])
    base = merge([facts(layer) for layer in layers[:below]])
    return words(compare(top, base.entries))


def words(changes: list[Change]) -> dict[str, str]:
    return {one.path.decode(): " ".join([one.state, *one.what]) for one in changes}


def file(size: int = 0, mode: int = 0o644, uid: int = 0) -> Facts:
    return Facts(tar.REGULAR, mode, uid, 0, size)


def added(**sizes: int) -> list[Change]:
    """New files; `__` in a name is a slash."""
    return [
        Change(path.replace("__", "/").encode(), "added", None, file(size))
        for path, size in sizes.items()
    ]


def test_new_changed_and_removed_paths_are_told_apart() -> None:
    base = Layer().dir("srv").file("srv/old", "1").file("srv/kept", "2").file("srv/gone", "3")
    top = Layer().dir("srv").file("srv/old", "one").file("srv/new", "4").whiteout("srv/gone")
    assert said([base, top], below=1) == {
        "srv/old": "changed content",
        "srv/new": "added",
        "srv/gone": "removed",
    }


def test_a_directory_that_leads_to_a_change_is_no_change() -> None:
    base = Layer().dir("srv").dir("srv/a")
    top = Layer().dir("srv", mtime=1).dir("srv/a", mode=0o700)
    assert said([base, top], below=1) == {"srv/a": "changed mode"}


def test_what_a_change_is_of_is_said() -> None:
    base = Layer().file("a", "1").file("b", "1").file("c", "1").symlink("d", "x").file("e")
    top = Layer().file("a", "1", mode=0o755).file("b", "1", uid=7).file("c", "22", gid=1)
    top.symlink("d", "y").dir("e")
    assert said([base, top], below=1) == {
        "a": "changed mode",
        "b": "changed owner",
        "c": "changed content owner",
        "d": "changed content",
        "e": "changed type",
    }


def test_capabilities_that_are_new_or_gone_are_a_change() -> None:
    raw = {"security.capability": "\x01"}
    base = Layer().file("new", "1").file("gone", "1", xattrs=raw).file("kept", "1", xattrs=raw)
    top = Layer().file("new", "1", xattrs=raw).file("gone", "1").file("kept", "2", xattrs=raw)
    found = said([base, top], below=1)
    assert found == {
        "new": "changed capabilities",
        "gone": "changed capabilities",
        "kept": "changed content",
    }
    before, after = merge([facts(base)]).entries, merge([facts(top)]).entries
    trees = {one.path: one.what for one in compare_trees(before, after)}
    assert trees[b"new"] == trees[b"gone"] == ("capabilities",)


def test_other_attributes_are_a_change_by_name_and_value() -> None:
    def cap(sets: str, version: str = "\x02") -> dict[str, str]:
        return {"security.capability": f"\x01\0\0{version}{sets.ljust(16, chr(0))}"}

    old, new = {"user.a": "1", "user.b": "2"}, {"user.a": "2", "user.b": "2"}
    acl = {"system.posix_acl_access": "ids of one namespace"}
    base = Layer().dir("d", xattrs=old).dir("same", xattrs=old).file("f", "1", xattrs=old)
    base.file("gone", "1", xattrs=old).file("listed", "1", xattrs=acl).file("host", "1")
    base.file("more", "1", xattrs=cap("\x01")).file("v3", "1", xattrs=cap("\x01"))
    top = Layer().dir("d", xattrs=new).dir("same", xattrs=dict(reversed(old.items())))
    top.file("f", "1", xattrs=new).file("gone", "1").file("listed", "2", xattrs=acl)
    top.file("host", "2", xattrs={"security.selinux": "x"})
    top.file("more", "1", xattrs=cap("\x03")).file("v3", "2", xattrs=cap("\x01", "\x03"))
    assert said([base, top], below=1) == {
        "d": "changed attributes",
        "f": "changed attributes",
        "gone": "changed attributes",
        "host": "changed content",
        "listed": "changed content",
        "more": "changed capabilities",
        "v3": "changed content",
    }


def test_names_of_one_file_are_counted_once_however_they_are_linked() -> None:
    top = Layer().file("a", "x" * 100, mode=0o4755).hardlink("b", "a").hardlink("c", "b")
    top.hardlink("d", "nowhere").hardlink("e", "../../e").hardlink("f", "f")
    changes = compare(merge([facts(top)]), {})
    assert total(changes).bytes_new == 100
    setuid = next(note for note in notes(changes, large_bytes=1000) if note.kind == "setuid")
    assert setuid.paths == [b"a", b"b", b"c"]


def test_a_removed_directory_takes_all_that_was_in_it() -> None:
    base = Layer().dir("lib").dir("lib/a").file("lib/a/1", "x").file("lib/a/2", "yy").file("lib/b")
    top = Layer().dir("lib").whiteout("lib/a")
    assert said([base, top], below=1) == {
        "lib/a": "removed",
        "lib/a/1": "removed",
        "lib/a/2": "removed",
    }


def test_an_opaque_directory_removes_what_it_does_not_have_again() -> None:
    base = Layer().dir("d").file("d/1").file("d/2")
    assert said([base, Layer().dir("d").opaque("d").file("d/2", "new")], below=1) == {
        "d/1": "removed",
        "d/2": "changed content",
    }


def test_a_file_in_a_directorys_place_removes_what_was_in_it() -> None:
    base = Layer().dir("d").file("d/1")
    assert said([base, Layer().file("d")], below=1) == {"d": "changed type", "d/1": "removed"}


def test_only_what_the_lower_layers_show_together_counts() -> None:
    lowest = Layer().dir("d").file("d/1", "x").file("d/2")
    middle = Layer().dir("d").whiteout("d/1").file("d/2", "yy")
    top = Layer().dir("d").file("d/1", "again").whiteout("d/2")
    assert said([lowest, middle, top], below=2) == {"d/1": "added", "d/2": "removed"}


def test_several_upper_layers_count_as_one() -> None:
    first = Layer().file("a", "1").file("b", "1")
    second = Layer().whiteout("a").file("c", "1")
    assert said([Layer().file("z"), first, second], below=1) == {"b": "added", "c": "added"}


def test_a_hard_link_is_a_file_without_a_size_of_its_own() -> None:
    found = facts(Layer().file("a", "12345", mode=0o4755).hardlink("b", "a").hardlink("c", "./b"))
    assert [found.entries[name].size for name in (b"a", b"b", b"c")] == [5, 0, 0]
    assert {one.mode for one in found.entries.values()} == {0o4755}


@pytest.mark.parametrize(
    ("name", "path"),
    [
        (b"./a//b/", b"a/b"),
        (b"/a", b"a"),
        (b"a/../b", b"b"),
        (b".", b""),
        (b"../a", None),
        (b"a/../../b", None),
    ],
)
def test_names_of_members_are_paths_in_the_image(name: bytes, path: bytes | None) -> None:
    assert clean(name) == path


def test_a_name_that_leads_out_is_passed_over() -> None:
    assert facts(Layer().file("../../etc/passwd", "x")).entries == {}


def test_whole_trees_differ_by_content_and_not_by_layer() -> None:
    one, other = file(3)._replace(content=b"a"), file(3)._replace(content=b"b")
    same = {b"same": one, b"x": one, b"gone": one}
    assert words(compare_trees(same, {b"same": one, b"x": other, b"new": one})) == {
        "x": "changed content",
        "new": "added",
        "gone": "removed",
    }


paths = st.lists(st.sampled_from([b"a", b"b", b"c"]), min_size=1, max_size=3).map(b"/".join)
entries = st.dictionaries(
    paths, st.sampled_from([tar.REGULAR, tar.DIRECTORY, tar.SYMLINK]), max_size=6
)


@st.composite
def layers(draw: st.DrawFn) -> LayerFacts:
    """A layer as programs write it: whatever holds something is a directory."""
    kinds = draw(entries)
    for path in list(kinds):
        for depth in range(1, path.count(b"/") + 1):
            kinds[b"/".join(path.split(b"/")[:depth])] = tar.DIRECTORY
    size = draw(st.integers(0, 3))
    found = {path: Facts(kind, 0o755, 0, 0, size) for path, kind in kinds.items()}
    directories = sorted(path for path, kind in kinds.items() if kind == tar.DIRECTORY)
    opaque = draw(st.sets(st.sampled_from(directories))) if directories else set()
    return LayerFacts(found, draw(st.sets(paths, max_size=3)), opaque)


def applied(stack: list[LayerFacts]) -> dict[bytes, Facts]:
    """The tree of a stack of layers, built as a container engine would: the slow, plain way."""
    tree: dict[bytes, Facts] = {}

    def remove(path: bytes, *, itself: bool) -> None:
        for known in list(tree):
            if known.startswith(path + b"/") or (itself and known == path):
                del tree[known]

    for layer in stack:
        for path in layer.whiteouts:
            remove(path, itself=True)
        for path in layer.opaque:
            remove(path, itself=False)
        for path, one in layer.entries.items():
            if one.kind != tar.DIRECTORY:
                remove(path, itself=False)
        tree |= layer.entries
    return tree


@given(st.lists(layers(), min_size=1, max_size=4))
def test_merged_layers_are_the_tree_that_they_unpack_to(stack: list[LayerFacts]) -> None:
    assert merge(stack).entries == applied(stack)


@given(st.lists(layers(), min_size=2, max_size=4), st.data())
def test_changes_are_what_differs_between_the_trees(
    stack: list[LayerFacts], data: st.DataObject
) -> None:
    """Also when of the layers below only what `interest` names was kept."""
    below = data.draw(st.integers(1, len(stack) - 1))
    top = merge(stack[below:])
    wanted = interest(top)
    kept = [
        LayerFacts(
            {path: one for path, one in layer.entries.items() if wanted(path)},
            layer.whiteouts,
            layer.opaque,
        )
        for layer in stack[:below]
    ]
    before, after = applied(stack[:below]), applied(stack)
    changes = compare(top, merge(kept).entries)
    states = {one.path: one.state for one in changes}
    assert {path for path, state in states.items() if state == "added"} == set(after) - set(before)
    assert {path for path, state in states.items() if state == "removed"} == (
        set(before) - set(after)
    )


# --- sums -------------------------------------------------------------------------------------


def test_sums_count_what_is_new_and_what_is_gone() -> None:
    gone = Change(b"old", "removed", file(9), None)
    changed = Change(b"new", "changed", file(1), file(4), ("content",))
    summed = total([*added(a=5), gone, changed])
    assert (summed.added, summed.changed, summed.removed) == (1, 1, 1)
    assert (summed.bytes_new, summed.bytes_removed) == (9, 9)


def test_the_rows_together_are_all_changes() -> None:
    names = [f"d{one}__e{two}__f" for one in range(9) for two in range(9)]
    changes = added(**{name: number + 1 for number, name in enumerate(names)}, top=3)
    for number in (1, 3, 5, 12, 200):
        rows = telling_rows(Tree(changes), number)
        assert len(rows) <= number
        assert sum(row.summed.bytes_new for row in rows) == sum(one.size for one in changes)
        assert sum(row.summed.entries for row in rows) == len(changes)


def test_a_chain_of_directories_is_one_row() -> None:
    rows = telling_rows(Tree(added(opt__app__src__a__x=5, opt__app__src__b__y=3)), 12)
    assert [row.path for row in rows] == [b"opt/app/src/a", b"opt/app/src/b"]


def test_of_very_many_directories_the_largest_have_rows() -> None:
    sizes = {f"m__p{number}__f": 1 for number in range(100)} | {"m__big__f": 900, "m__fat__f": 500}
    rows = telling_rows(Tree(added(**sizes)), 5)
    assert [(row.path, row.rest) for row in rows][:2] == [(b"m/big", False), (b"m/fat", False)]
    assert [row.summed.entries for row in rows if row.rest] == [98]


def test_of_many_equal_directories_none_has_a_row() -> None:
    rows = telling_rows(Tree(added(**{f"m__p{number}__f": 1 for number in range(100)})), 5)
    assert [row.path for row in rows] == [b"m"]


def test_rows_of_a_depth_are_all_directories_down_to_it() -> None:
    rows = rows_of_depth(Tree(added(a__b__c=5, a__d=3, e=1)), 1)
    assert [(row.path, row.summed.bytes_new, row.rest) for row in rows] == [
        (b"a", 8, False),
        (b"", 1, True),
    ]


def test_owners_come_with_the_largest_first() -> None:
    changes = [
        Change(b"a", "added", None, file(5, uid=1001)),
        Change(b"b", "added", None, file(7)),
        Change(b"c", "removed", file(99, uid=5), None),
    ]
    assert [(uid, gid, one.bytes_new) for uid, gid, one in owners(changes)] == [
        (0, 0, 7),
        (1001, 0, 5),
    ]


def test_the_largest_files_are_those_that_are_new() -> None:
    gone = Change(b"gone", "removed", file(99), None)
    assert [one.path for one in largest([gone, *added(a=1, b=7, c=0)], 5)] == [b"b", b"a"]


# --- notes ------------------------------------------------------------------------------------


def noted(*changes: Change) -> dict[str, list[bytes]]:
    return {note.kind: note.paths for note in notes(changes, large_bytes=1000)}


@pytest.mark.parametrize(
    ("one", "kinds"),
    [
        (file(mode=0o4755), ["setuid"]),
        (file(mode=0o2755), ["setgid"]),
        (file(mode=0o2644), []),  # a lock
        (file(mode=0o666), ["world-writable"]),
        (file(1000), ["large"]),
        (file(999), []),
        (file()._replace(capability=b"x"), ["capabilities"]),
        (Facts(tar.DIRECTORY, 0o2775, 0, 0, 0), []),
        (Facts(tar.DIRECTORY, 0o777, 0, 0, 0), ["world-writable"]),
        (Facts(tar.DIRECTORY, 0o1777, 0, 0, 0), []),
        (Facts(tar.SYMLINK, 0o777, 0, 0, 0), []),
        (Facts(tar.FIFO, 0o600, 0, 0, 0), ["device"]),
        (Facts(tar.CHARACTER, 0o600, 0, 0, 0), ["device"]),
    ],
)
def test_what_stands_out_is_noted(one: Facts, kinds: list[str]) -> None:
    assert list(noted(Change(b"x", "added", None, one))) == kinds


def test_what_is_gone_is_not_noted() -> None:
    assert noted(Change(b"x", "removed", file(mode=0o4755), None)) == {}


def test_a_cache_is_noted_once_and_by_its_outermost_directory() -> None:
    found = noted(
        *added(app__node_modules__a__node_modules__b=5),
        Change(b"app/__pycache__/x", "added", None, file(9)),
    )
    assert found == {"cache": [b"app/__pycache__", b"app/node_modules"]}


def test_a_file_with_a_caches_name_is_none() -> None:
    assert noted(Change(b"app/.git", "added", None, file())) == {}


def test_the_source_that_was_left_is_noted() -> None:
    assert list(noted(*added(tmp__src__a=1))) == ["upload"]


# --- owners of unpacked layers ----------------------------------------------------------------


def test_ids_of_the_host_are_those_of_the_image() -> None:
    uids, gids = parse_id_maps("0:1000:1,1:100000:65535/0:1001:1,1:200000:65535")
    assert [inside_id(number, uids) for number in (1000, 100000, 101000)] == [0, 1, 1001]
    assert [inside_id(number, gids) for number in (1001, 200004)] == [0, 5]
    assert inside_id(7, uids) == 7
