"""The file of `--use-config`."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from ocis2i.errors import OutputError, UsageError, exit_code_of
from ocis2i.s2ifile import (
    SIZE_LIMIT,
    Arguments,
    Flag,
    Merged,
    Saved,
    command_line,
    encode,
    merge,
    parse,
    restore,
    save,
)

KNOWN = (
    Flag(("env",), "list"),
    Flag(("build-env",), "list"),
    Flag(("volume",), "list"),
    Flag(("cap-drop",), "list"),
    Flag(("incremental",), "switch"),
    Flag(("tls-verify",), "switch", "no-tls-verify"),
    Flag(("authfile", "dockercfg-path")),
    Flag(("ref",)),
    Flag(("scripts-url",)),
    Flag(("scripts",)),
    Flag(("use-config",), "switch"),
)
PATH = Path("/here/.s2ifile")
NOTHING = Arguments()


def arguments(**flags: str | list[str]) -> Arguments:
    texts = {
        name.replace("_", "-"): (value,) if isinstance(value, str) else tuple(value)
        for name, value in flags.items()
    }
    return Arguments("source", "builder", "tag", texts)


def saved(document: Mapping[str, Any]) -> Saved:
    return parse(json.dumps(document).encode(), PATH)


def merged(flags: Mapping[str, str], typed: Arguments = NOTHING) -> Merged:
    document = {"source": "s", "builderImage": "b", "tag": "t", "flags": flags}
    return merge(saved(document), typed, KNOWN)


# --- reading ----------------------------------------------------------------------------------


def test_a_file_of_source_to_image_is_understood() -> None:
    found = merged(
        {
            "env-0": "A=1",
            "env-1": "B=x,y=z",
            "volume": "[/a:/b,/c:/d]",
            "cap-drop": "[net_raw,chown]",
            "incremental": "true",
            "dockercfg-path": "/auth.json",
            "use-config": "true",
        }
    )
    assert found == Merged(
        Arguments(
            "s",
            "b",
            "t",
            {
                "cap-drop": ("net_raw", "chown"),
                "authfile": ("/auth.json",),
                "env": ("A=1", "B=x,y=z"),
                "incremental": ("true",),
                "volume": ("/a:/b", "/c:/d"),
            },
        )
    )


def test_the_oldest_form_of_variables_is_understood() -> None:
    assert merged({"env": "A=1,B=2"}).arguments.flags == {"env": ("A=1", "B=2")}


def test_numbered_flags_keep_their_order() -> None:
    entries = {f"env-{number}": f"V{number}=" for number in range(12)}
    names = merged(entries).arguments.flags["env"]
    assert names == tuple(f"V{number}=" for number in range(12))


def test_no_file_is_nothing(tmp_path: Path) -> None:
    assert restore(tmp_path) == Saved()


def test_old_name_of_the_file_is_read_with_a_warning(tmp_path: Path) -> None:
    (tmp_path / ".stifile").write_text('{"source": "old", "builderImage": "b"}')
    found = restore(tmp_path)
    assert (found.source, found.warnings) == (
        "old",
        ("`.stifile` is deprecated, use `.s2ifile` instead",),
    )
    (tmp_path / ".s2ifile").write_text('{"source": "new", "builderImage": "b"}')
    found = restore(tmp_path)
    assert (found.source, found.warnings) == ("new", ())


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '"text"',
        '{"source": 1}',
        '{"source": "a\\u0000b"}',
        '{"builderImage": ["b"]}',
        '{"flags": []}',
        '{"flags": {"ref": 1}}',
        '{"flags": {"ref": {"a": "b"}}}',
        "[" * 100_000,
        '{"source": NaN}',
    ],
)
def test_what_is_no_such_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / ".s2ifile").write_text(text)
    with pytest.raises(UsageError) as caught:
        restore(tmp_path)
    assert str(tmp_path / ".s2ifile") in caught.value.message
    assert caught.value.hint
    assert exit_code_of(caught.value) == 2


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("root:password")
    (tmp_path / ".s2ifile").symlink_to("secret")
    with pytest.raises(UsageError, match="symbolic link") as caught:
        restore(tmp_path)
    assert "password" not in caught.value.message


def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / ".s2ifile")
    with pytest.raises(UsageError, match="not a regular file"):
        restore(tmp_path)


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    (tmp_path / ".s2ifile").mkdir()
    with pytest.raises(UsageError, match="not a regular file"):
        restore(tmp_path)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / ".s2ifile").open("wb") as file:
        file.truncate(SIZE_LIMIT + 1)
    with pytest.raises(UsageError, match=r"which no `\.s2ifile` is"):
        restore(tmp_path)


# --- merging ----------------------------------------------------------------------------------


def test_places_come_from_the_file_when_none_was_typed() -> None:
    found = merged({}).arguments
    assert (found.source, found.builder, found.tag) == ("s", "b", "t")


@pytest.mark.parametrize("tag", [None, "other"])
def test_typed_places_win_as_a_whole(tag: str | None) -> None:
    found = merged({}, Arguments("mine", "its", tag)).arguments
    assert (found.source, found.builder, found.tag) == ("mine", "its", tag)


def test_a_source_without_a_builder_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the builder is missing after the source `mine`"):
        merged({}, Arguments("mine"))


def test_without_a_file_source_and_builder_have_to_be_typed() -> None:
    typed = Arguments("mine", "its", None, {"ref": ("main",)})
    assert merge(Saved(), typed, KNOWN) == Merged(typed)
    with pytest.raises(UsageError, match=r"there is no `\.s2ifile` here"):
        merge(Saved(), NOTHING, KNOWN)


@pytest.mark.parametrize("document", [{"source": "s"}, {"builderImage": "b", "source": ""}])
def test_a_file_without_source_or_builder_does_not_replace_them(document: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="does not hold both a source and a builder"):
        merge(saved(document), NOTHING, KNOWN)


def test_typed_flags_win_one_by_one() -> None:
    found = merged({"ref": "stored", "incremental": "true"}, arguments(ref="typed")).arguments
    assert found.flags == {"incremental": ("true",), "ref": ("typed",)}


def test_with_any_typed_variable_no_stored_one_is_used() -> None:
    found = merged({"env-0": "A=1", "env-1": "B"}, arguments(env=["C=3"]))
    assert found.arguments.flags == {"env": ("C=3",)}
    assert found.warnings == ()


def test_an_old_name_in_the_file_does_not_win_over_the_new_one_typed() -> None:
    found = merged({"scripts": "http://old/"}, arguments(scripts_url="http://new/"))
    assert found.arguments.flags == {"scripts-url": ("http://new/",)}


@pytest.mark.parametrize("name", ["no-such", "ref-0", "env-x", "", "env-", "\x1b[2J"])
def test_a_flag_that_there_is_not_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match="which there is not") as caught:
        merged({name: "x"})
    assert "\x1b" not in caught.value.message


def test_a_switch_is_on_or_off() -> None:
    with pytest.raises(UsageError, match=r"`--incremental` in .* is `perhaps`"):
        merged({"incremental": "perhaps"})


# --- secrets ----------------------------------------------------------------------------------


def test_values_of_variables_are_not_written() -> None:
    document, warnings = encode(
        arguments(env=["A=s3cret", "B=s3cret=="], build_env=["TOKEN=s3cret"]), KNOWN
    )
    assert document["flags"] == {"env-0": "A", "env-1": "B", "build-env-0": "TOKEN"}
    assert warnings == (
        "`.s2ifile` does not hold the values of --env: A, B",
        "`.s2ifile` does not hold the values of --build-env: TOKEN",
    )


def test_variables_without_values_are_asked_for() -> None:
    found = merged({"env-0": "A", "env-1": "B=1", "build-env-0": "TOKEN"})
    assert found.arguments.flags == {"env": ("B=1",)}
    assert found.warnings == (
        "`/here/.s2ifile` does not hold the values of --env A, --build-env TOKEN: give them again",
    )


def test_credentials_in_urls_are_not_written() -> None:
    typed = Arguments(
        "https://me:s3cret@git.example/p.git",
        "builder",
        None,
        {"scripts-url": ("https://files.example/s2i?token=s3cret",)},
    )
    document, warnings = encode(typed, KNOWN)
    assert "s3cret" not in json.dumps(document)
    assert document["source"] == "https://git.example/p.git"
    assert warnings == (
        "`.s2ifile` does not hold the credentials in the URL of `--scripts-url`",
        "`.s2ifile` does not hold the credentials in the URL of the source",
    )
    with pytest.raises(UsageError, match=r"`--scripts-url` in .* had a secret in its URL"):
        merge(saved(document), NOTHING, KNOWN)
    again = merge(saved(document), arguments(scripts_url="https://x.example/"), KNOWN)
    assert again.arguments.flags == {"scripts-url": ("https://x.example/",)}


def test_a_source_that_lost_its_token_has_to_be_typed() -> None:
    document = {"source": "https://git.example/p?token=redacted", "builderImage": "b"}
    with pytest.raises(UsageError, match=r"the source in .* had a secret in its URL"):
        merge(saved(document), NOTHING, KNOWN)


# --- writing ----------------------------------------------------------------------------------


def test_the_file_has_the_shape_of_source_to_image_and_is_private(tmp_path: Path) -> None:
    typed = arguments(ref="main", incremental="true", volume=["/a:/b", "/c,d:/e"])
    assert save(tmp_path, typed, KNOWN) == ()
    path = tmp_path / ".s2ifile"
    assert json.loads(path.read_bytes()) == {
        "source": "source",
        "builderImage": "builder",
        "tag": "tag",
        "flags": {
            "ref": "main",
            "incremental": "true",
            "volume-0": "/a:/b",
            "volume-1": "/c,d:/e",
        },
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert os.listdir(tmp_path) == [".s2ifile"]


def test_what_is_not_there_is_not_written() -> None:
    assert encode(Arguments("s", "b"), KNOWN)[0] == {"source": "s", "builderImage": "b"}


def test_a_link_is_replaced_and_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("as it was")
    (tmp_path / ".s2ifile").symlink_to("precious")
    save(tmp_path, arguments(), KNOWN)
    assert (tmp_path / "precious").read_text() == "as it was"
    assert restore(tmp_path).source == "source"


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        save(tmp_path / "missing", arguments(), KNOWN)


def test_text_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not UTF-8"):
        save(tmp_path, arguments(ref="\udcff"), KNOWN)
    assert os.listdir(tmp_path) == []


texts = st.text(
    st.characters(blacklist_categories=["Cs"], blacklist_characters="\0"), min_size=1
).filter(lambda text: "://" not in text and "redacted" not in text and "@" not in text)
typed_flags = st.fixed_dictionaries(
    {},
    optional={
        "volume": st.lists(texts, min_size=1, max_size=12).map(tuple),
        "ref": st.tuples(texts),
        "authfile": st.tuples(texts),
        "incremental": st.tuples(st.sampled_from(["true", "false"])),
    },
)


@given(texts, texts, st.none() | texts, typed_flags)
def test_what_is_written_is_read_again(
    source: str, builder: str, tag: str | None, flags: dict[str, tuple[str, ...]]
) -> None:
    typed = Arguments(source, builder, tag, flags)
    document, warnings = encode(typed, KNOWN)
    if not warnings:
        assert merge(saved(document), NOTHING, KNOWN) == Merged(typed)


@given(st.binary(max_size=40))
def test_any_bytes_are_a_file_or_a_usage_error(data: bytes) -> None:
    try:
        parse(data, PATH)
    except UsageError as error:
        assert str(PATH) in error.message


# --- with a real command ----------------------------------------------------------------------


def application(seen: list[Any]) -> typer.Typer:
    """A command that keeps what it was called with, and what is read of that."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)

    @app.callback()
    def _root() -> None: ...

    @app.command("build")
    def _build(
        context: typer.Context,
        *,
        source: Annotated[str | None, typer.Argument()] = None,
        builder: Annotated[str | None, typer.Argument()] = None,
        tag: Annotated[str | None, typer.Argument()] = None,
        env: Annotated[list[str] | None, typer.Option("--env", "-e")] = None,
        incremental: Annotated[bool, typer.Option("--incremental")] = False,
        tls_verify: Annotated[bool, typer.Option("--tls-verify/--no-tls-verify")] = True,
        level: Annotated[int, typer.Option("--loglevel")] = 0,
        authfile: Annotated[str | None, typer.Option("--authfile", "--dockercfg-path")] = None,
        use_config: Annotated[bool, typer.Option("--use-config")] = False,
    ) -> None:
        seen.append((command_line(context), dict(context.params)))

    return app


def call(*words: str) -> tuple[tuple[tuple[Flag, ...], Arguments], dict[str, Any]]:
    seen: list[Any] = []
    application(seen)(args=["build", *words], prog_name="ocis2i", standalone_mode=False)
    found, values = seen[0]
    return found, values


def test_the_command_line_is_read_from_the_command() -> None:
    (known, typed), _ = call(
        "s", "b", "-e", "A=1", "--no-tls-verify", "--loglevel", "3", "--use-config", "-e", "B=2"
    )
    assert typed == Arguments(
        "s", "b", None, {"env": ("A=1", "B=2"), "tls-verify": ("false",), "loglevel": ("3",)}
    )
    assert Flag(("authfile", "dockercfg-path")) in known
    assert Flag(("tls-verify",), "switch", "no-tls-verify") in known


@pytest.mark.parametrize(
    "words",
    [
        ["s", "b", "t"],
        ["s", "b", "-e", "A=--x", "-e", "B= y ", "--incremental"],
        ["--no-tls-verify", "--loglevel=2", "--authfile=", "--", "-s", "b"],
        [],
    ],
)
def test_arguments_as_words_mean_the_same(words: list[str]) -> None:
    (known, typed), values = call(*words)
    _, again = call(*typed.argv(known))
    assert again == values


def test_a_switch_that_is_off_and_cannot_be_turned_off_is_left_out() -> None:
    assert arguments(incremental="false").argv(KNOWN) == ["--", "source", "builder", "tag"]
