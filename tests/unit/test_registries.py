"""registries.conf says where images are, as podman reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ocis2i.endpoints import Place
from ocis2i.errors import PolicyError, UsageError
from ocis2i.reference import Digest, Reference, RegistryLocation, parse_location
from ocis2i.registries import Registries, merge, parse

PATH = Path("/etc/registries.conf")
DIGEST = Digest.of(b"")


def registries(text: str) -> Registries:
    return merge([parse(text.encode(), PATH)])


def pulls(text: str, name: str) -> list[str]:
    return [str(place.reference) for place in registries(text).to_pull(Reference.parse(name))]


# --- [[registry]] -------------------------------------------------------------------------------


def test_without_a_rule_every_name_means_itself() -> None:
    reference = Reference.parse("example.com/app:1")
    assert Registries().to_pull(reference) == (Place(reference),)
    assert Registries().to_push(reference) == Place(reference)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("example.com/app:1", "one.test/app:1"),
        ("example.com/team/app:1", "two.test/t/app:1"),
        ("example.com/teams/app:1", "one.test/teams/app:1"),
        (f"example.com/team/app@{DIGEST}", f"two.test/t/app@{DIGEST}"),
        ("example.com:5000/app:1", "example.com:5000/app:1"),
        ("sub.example.com/app:1", "sub.example.com/app:1"),
        ("a.b.wild.test/app:1", "three.test/w/app:1"),
        ("a.wild.test:5000/app:1", "three.test/w:5000/app:1"),
        ("wild.test/app:1", "wild.test/app:1"),
        ("notwild.test/app:1", "notwild.test/app:1"),
    ],
)
def test_longest_prefix_says_where_an_image_is(name: str, expected: str) -> None:
    text = """
        [[registry]]
        prefix = "example.com"
        location = "one.test"
        [[registry]]
        prefix = "example.com/team"
        location = "two.test/t/"
        [[registry]]
        prefix = "*.wild.test"
        location = "three.test/w"
    """
    assert pulls(text, name) == [expected]


def test_short_names_of_docker_hub_have_their_whole_name() -> None:
    text = '[[registry]]\nprefix = "docker.io/library"\nlocation = "hub.test/mirrored"'
    assert pulls(text, "alpine:3") == ["hub.test/mirrored/alpine:3"]
    text = '[[registry]]\nprefix = "docker.io"\nlocation = "registry-1.docker.io"'
    assert pulls(text, "alpine:3") == ["docker.io/library/alpine:3"]


def test_wildcard_without_a_location_changes_nothing_but_the_rules() -> None:
    found = registries('[[registry]]\nprefix = "*.test"\ninsecure = true')
    reference = Reference.parse("a.test/app:1")
    assert found.to_pull(reference) == (Place(reference, insecure=True),)


def test_blocked_is_neither_pulled_nor_pushed() -> None:
    found = registries('[[registry]]\nlocation = "bad.test"\nblocked = true')
    for act in (found.to_pull, found.to_push):
        with pytest.raises(PolicyError, match=r"`bad\.test` is blocked") as caught:
            act(Reference.parse("bad.test/app"))
        assert str(PATH) in (caught.value.hint or "")


def test_pushes_know_no_mirror_and_no_other_location() -> None:
    found = registries(
        '[[registry]]\nprefix = "a.test"\nlocation = "b.test"\ninsecure = true\n'
        '[[registry.mirror]]\nlocation = "m.test"'
    )
    reference = Reference.parse("a.test/app:1")
    assert found.to_push(reference) == Place(reference, insecure=True)


MIRRORS = """
    [[registry]]
    location = "a.test"
    [[registry.mirror]]
    location = "m1.test/a"
    insecure = true
    [[registry.mirror]]
    location = "m2.test"
    pull-from-mirror = "digest-only"
    [[registry.mirror]]
    location = "m3.test"
    pull-from-mirror = "tag-only"
"""


def test_mirrors_come_first_and_each_for_its_pulls() -> None:
    assert pulls(MIRRORS, "a.test/app:1") == ["m1.test/a/app:1", "m3.test/app:1", "a.test/app:1"]
    name = f"a.test/app@{DIGEST}"
    assert pulls(MIRRORS, name) == [
        f"m1.test/a/app@{DIGEST}",
        f"m2.test/app@{DIGEST}",
        name,
    ]
    first, *others = registries(MIRRORS).to_pull(Reference.parse("a.test/app:1"))
    assert first.insecure
    assert not any(place.insecure for place in others)


def test_mirrors_of_a_registry_may_be_for_digests_only() -> None:
    text = (
        '[[registry]]\nlocation = "a.test"\nmirror-by-digest-only = true\n'
        '[[registry.mirror]]\nlocation = "m.test"'
    )
    assert pulls(text, "a.test/app:1") == ["a.test/app:1"]
    assert pulls(text, f"a.test/app@{DIGEST}")[0] == f"m.test/app@{DIGEST}"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[registries.search]\nregistries = ['a.test']", "the old form"),
        ("[[registry]]\ninsecure = true", "neither a `prefix` nor a `location`"),
        ("[[registry]]\nprefix = 'a.test'", "has no `location`"),
        ("[[registry]]\nlocation = 'https://a.test'", "must have no scheme"),
        ("[[registry]]\nlocation = 'a b'", "is not HOST"),
        ("[[registry]]\nprefix = '*a.test'\nlocation='b.test'", r"is not \*.DOMAIN"),
        ("[[registry]]\nlocation = 'a.test'\ninsecure = 'yes'", "must be true or false"),
        ("[[registry]]\nlocation = 7", "must be a text"),
        ("registry = 7", r"write it as `\[\[registry\]\]`"),
        (
            "[[registry]]\nlocation='a.test'\n[[registry.mirror]]\npull-from-mirror='all'",
            "a mirror of `a.test` has no `location`",
        ),
        (
            "[[registry]]\nlocation='a.test'\n[[registry.mirror]]\nlocation='b.test'\n"
            "pull-from-mirror='now'",
            "`now` is not known",
        ),
        (
            "[[registry]]\nlocation='a.test'\nmirror-by-digest-only=true\n[[registry.mirror]]\n"
            "location='b.test'\npull-from-mirror='all'",
            "exclude each other",
        ),
        ("unqualified-search-registries = ['a.test/x']", "`a.test/x` is not a registry"),
        ("unqualified-search-registries = 'a.test'", "must be a list of texts"),
        ("short-name-mode = 'loose'", "`loose` is not known"),
        ("credential-helpers = ['../sh']", "is not the name of a helper"),
        ("aliases = ['a']", "write it as a table"),
        ("[[registry", "is not TOML"),
    ],
)
def test_malformed_files_are_named(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        registries(text)
    assert str(PATH) in caught.value.message


# --- short names --------------------------------------------------------------------------------


def resolved(text: str, name: str) -> str | None:
    location = parse_location(name)
    assert isinstance(location, RegistryLocation)
    assert location.short is not None
    found = registries(text).resolve(location.short, location.reference)
    return str(found) if found else None


def test_an_alias_says_what_a_short_name_means() -> None:
    text = '[aliases]\n"tool" = "a.test/team/tool"\n"team/app" = "b.test/app"\n"gone" = ""'
    assert resolved(text, "tool:1") == "a.test/team/tool:1"
    assert resolved(text, f"tool@{DIGEST}") == f"a.test/team/tool@{DIGEST}"
    assert resolved(text, "team/app") == "b.test/app"
    assert resolved(text, "gone") is None
    assert resolved(text, "other") is None


def test_the_only_search_registry_has_short_names() -> None:
    text = "unqualified-search-registries = ['a.test']"
    assert resolved(text, "team/app:1") == "a.test/team/app:1"
    assert resolved(text, "app") == "a.test/app"


def test_several_search_registries_are_not_guessed_from() -> None:
    text = "unqualified-search-registries = ['a.test', 'b.test']\n"
    assert resolved(text, "app") is None
    with pytest.raises(PolicyError, match=r"`app` is a short name, .*`a\.test` or `b\.test`"):
        resolved(text + "short-name-mode = 'enforcing'", "app")
    aliased = text + "short-name-mode = 'enforcing'\n[aliases]\n'app' = 'c.test/app'"
    assert resolved(aliased, "app") == "c.test/app"


@pytest.mark.parametrize("name", ["a.test/app", "localhost/app", "docker://app", "a:5000/app:1"])
def test_names_with_a_registry_are_not_short(name: str) -> None:
    location = parse_location(name)
    assert isinstance(location, RegistryLocation)
    assert location.short is None


# --- files --------------------------------------------------------------------------------------


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def search(*names: str) -> str:
    return f"unqualified-search-registries = {list(names)}\n"


def test_the_users_file_replaces_the_systems(tmp_path: Path) -> None:
    system, home = tmp_path / "etc", tmp_path / "home"
    user = home / ".config/containers"
    write(system / "registries.conf", search("system.test"))
    write(system / "registries.conf.d/1.conf", "[aliases]\n'a' = 'one.test/a'\n'b' = 'one.test/b'")
    write(user / "registries.conf.d/2.conf", "[aliases]\n'b' = 'two.test/b'")
    write(user / "registries.conf.d/no.txt", "not read")
    environment = {"HOME": str(home)}
    found = Registries.load(environment, system=system)
    assert found.search == ("system.test",)
    assert found.aliases == {"a": "one.test/a", "b": "two.test/b"}
    write(user / "registries.conf", search("user.test"))
    found = Registries.load(environment, system=system)
    assert found.search == ("user.test",)
    assert found.aliases == {"b": "two.test/b"}


def test_the_named_file_replaces_all_and_the_override_wins(tmp_path: Path) -> None:
    system = tmp_path / "etc"
    write(system / "registries.conf.d/1.conf", "[aliases]\n'a' = 'one.test/a'")
    named = write(tmp_path / "named", search("named.test") + "[[registry]]\nlocation = 'r.test'")
    environment = {"CONTAINERS_REGISTRIES_CONF": str(named)}
    assert Registries.load(environment, system=system).search == ("named.test",)
    assert Registries.load(environment, system=system).aliases == {}
    over = write(tmp_path / "over", "[[registry]]\nlocation = 'r.test'\nblocked = true")
    environment["CONTAINERS_REGISTRIES_CONF_OVERRIDE"] = str(over)
    found = Registries.load(environment, system=system)
    assert found.search == ("named.test",)
    assert [(rule.prefix, rule.blocked) for rule in found.rules] == [("r.test", True)]


def test_a_named_file_has_to_exist(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="absent` does not exist"):
        Registries.load({"CONTAINERS_REGISTRIES_CONF": str(tmp_path / "absent")}, system=tmp_path)


def test_aliases_that_podman_has_learnt_are_known(tmp_path: Path) -> None:
    write(tmp_path / ".cache/containers/short-name-aliases.conf", "[aliases]\n'a' = 'l.test/a'")
    found = Registries.load({"HOME": str(tmp_path)}, system=tmp_path / "etc")
    assert found.aliases == {"a": "l.test/a"}
