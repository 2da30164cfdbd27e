"""What `explain` says, in both languages, whatever an image has in its labels."""

from __future__ import annotations

import json
import shlex

import pytest

from ocis2i.errors import UsageError
from ocis2i.explain import _WORDS, Explanation, choose_language, command_line, document, render
from ocis2i.manifest import ImageConfig, RuntimeConfig
from ocis2i.parameters import Declaration, parse_declaration
from ocis2i.reference import Platform
from ocis2i.s2i import read_contract

DECLARED = parse_declaration(
    json.dumps(
        {
            "version": 1,
            "parameters": [
                {"name": "LATER", "default": "a b", "title": {"en": "Later", "zh": "以后"}},
                {"name": "FIRST", "type": "enum", "values": ["x", "y z"], "required": True},
                {
                    "name": "COUNT",
                    "type": "integer",
                    "minimum": 3,
                    "required": True,
                    "when": "both",
                },
                {"name": "TOKEN", "secret": True, "required": True},
                {"name": "DB", "secret": True, "when": "run", "required": True},
                {"name": "PORT", "type": "integer", "when": "run", "maximum": 9, "example": 8},
                {"name": "MATCH", "pattern": "[a-z]+", "description": "Some words."},
            ],
        }
    ),
    "the test",
)


def explanation(
    declaration: Declaration | None = DECLARED, argument: str = "b:1", **labels: str
) -> Explanation:
    url = {"io.openshift.s2i.scripts-url": "image:///usr/libexec/s2i"}
    runtime = RuntimeConfig(
        "1001",
        working_dir="/app",
        labels=url | {name.replace("__", "."): text for name, text in labels.items()},
        on_build=("RUN x",),
        extra={"ExposedPorts": {"8080/tcp": {}, "\x1b[1m": {}}},
    )
    config = ImageConfig(platform=Platform("linux", "amd64"), runtime=runtime)
    return Explanation(
        argument, "docker.io/b:1", "sha256:0", "linux/amd64", runtime, read_contract(config),
        declaration, "label", {"save-artifacts": "/usr/libexec/s2i/save-artifacts"},
    )  # fmt: skip


def test_required_parameters_come_first_and_times_are_apart() -> None:
    lines = render(explanation(), "en").splitlines()
    names = [line.split()[0] for line in lines if line.startswith("  ") and "  (" in line]
    assert names == ["FIRST", "COUNT", "TOKEN", "LATER", "MATCH", "DB", "PORT"]
    text = "\n".join(lines)
    assert text.index("Parameters when building") < text.index("Parameters when the image runs")
    for part in ("Default: 'a b'", "Values: x, 'y z'", "Range: 3..", "Range: ..9", "Example: 8"):
        assert part in text
    assert "Incremental: yes, it has save-artifacts" in text


def test_chinese_has_the_same_parts_and_the_builders_own_words() -> None:
    assert _WORDS["en"].keys() == _WORDS["zh"].keys()
    text = render(explanation(), "zh")
    assert "以后" in text
    assert "Some words." in text  # the builder has no other
    assert "构建时参数" in text
    assert len(text.splitlines()) == len(render(explanation(), "en").splitlines())


def test_the_line_to_copy_has_what_is_required() -> None:
    words = shlex.split(command_line(explanation(argument="oci:/a b:c")))
    assert words == [
        "ocis2i", "build", "SOURCE", "oci:/a b:c", "NAME",
        "-P", "FIRST=x", "-P", "COUNT=3", "-P", "TOKEN=@FILE",
    ]  # fmt: skip


def test_no_label_steers_a_terminal() -> None:
    known = explanation(
        None,
        io__k8s__description="a\x1b]0;x\x07\nb\u202e",
        usage="c\rd",
        io__openshift__tags="\x9b1m",
    )
    text = render(known, "en")
    assert all(char.isprintable() or char == "\n" for char in text)
    assert "declares no parameters" in text


def test_the_document_has_it_all() -> None:
    found = document(explanation(io__openshift__tags="a, b,"))
    assert found["tags"] == ["a", "b"]
    assert found["incremental"] is True
    assert [one["name"] for one in found["parameters"]][:2] == ["LATER", "FIRST"]
    assert found["parameters"][0]["title"] == {"en": "Later", "zh": "以后"}
    json.dumps(found)


@pytest.mark.parametrize(
    ("flag", "environment", "language"),
    [
        (None, {}, "en"),
        ("zh", {"LANG": "en_US.UTF-8"}, "zh"),
        (None, {"LANG": "zh_CN.UTF-8"}, "zh"),
        (None, {"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, "en"),
        (None, {"LANG": "C", "LC_MESSAGES": "zh_TW"}, "zh"),
        (None, {"LANG": "zh_CN", "LC_ALL": ""}, "zh"),
        (None, {"LANG": "de_DE.UTF-8"}, "en"),
    ],
)
def test_the_language_is_the_users(
    flag: str | None, environment: dict[str, str], language: str
) -> None:
    assert choose_language(flag, environment) == language


def test_other_languages_are_refused() -> None:
    with pytest.raises(UsageError, match="--lang is `de`"):
        choose_language("de", {})
