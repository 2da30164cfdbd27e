"""What a builder says of itself, for people and programs: `ocis2i explain`. Pure.

Its words are in English and Chinese; texts of the builder are in the language asked for where it
has them. Nothing that an image says steers a terminal.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args

from ocis2i.errors import UsageError, shown
from ocis2i.lazy_dataclass import dataclass
from ocis2i.manifest import RuntimeConfig
from ocis2i.parameters import Declaration, Parameter, Texts, in_language
from ocis2i.s2i import (
    ASSEMBLE_INPUT_FILES_LABEL,
    DESCRIPTION_LABEL,
    DISPLAY_NAME_LABEL,
    SCRIPTS_URL_LABELS,
    SCRIPTS_URL_VARIABLE,
    Contract,
)

Language = Literal["en", "zh"]
VERSION = 1

USAGE_LABEL = "usage"  # the sclorg images have it
TAGS_LABEL = "io.openshift.tags"
SERVICES_LABEL = "io.openshift.expose-services"

_WORDS: Mapping[Language, Mapping[str, str]] = {
    "en": {
        "builder": "Builder",
        "name": "Name",
        "tags": "Tags",
        "scripts": "Scripts",
        "from-label": "label {}",
        "from-variable": "variable {}",
        "no-scripts": "none promised: the source or --scripts-url must have them",
        "there": "In the image",
        "not-looked": "not looked for (--files reads the layers)",
        "none": "none",
        "user": "Runs as",
        "assemble-user": "assemble runs as {}",
        "root": "root",
        "workdir": "Working directory",
        "destination": "Source goes to",
        "ports": "Ports",
        "services": "Services",
        "incremental": "Incremental",
        "yes": "yes, it has save-artifacts",
        "no": "no, it has no save-artifacts",
        "unknown": "unknown",
        "artifacts": "Runtime artifacts",
        "as-runtime": "As runtime image",
        "has-assemble-runtime": "has assemble-runtime",
        "usage": "Usage",
        "run-usage": "`ocis2i usage {}` runs its usage script",
        "onbuild": "ONBUILD",
        "has-onbuild": "has {} instructions, which no S2I build runs (--ignore-onbuild)",
        "build-time": "Parameters when building",
        "run-time": "Parameters when the image runs",
        "both": "also when the image runs",
        "no-parameters": "It declares no parameters: -e NAME=VALUE sets a variable.",
        "required": "required",
        "secret": "secret",
        "default": "Default",
        "example": "Example",
        "values": "Values",
        "range": "Range",
        "pattern": "Pattern",
        "at-start": "given when the image is started, never to a build",
        "command": "To copy",
        "string": "text",
        "integer": "whole number",
        "boolean": "true or false",
        "enum": "one of the values",
        "path": "path",
        "url": "URL",
    },
    "zh": {
        "builder": "构建器镜像",
        "name": "名称",
        "tags": "标签",
        "scripts": "脚本",
        "from-label": "标签 {}",
        "from-variable": "变量 {}",
        "no-scripts": "未声明：脚本须由源代码或 --scripts-url 提供",
        "there": "镜像中已有",
        "not-looked": "未查看（--files 会读取镜像层）",
        "none": "无",
        "user": "运行用户",
        "assemble-user": "assemble 的用户为 {}",
        "root": "root",
        "workdir": "工作目录",
        "destination": "源代码放置于",
        "ports": "端口",
        "services": "服务",
        "incremental": "增量构建",
        "yes": "支持，有 save-artifacts",
        "no": "不支持，没有 save-artifacts",
        "unknown": "未知",
        "artifacts": "运行时制品",
        "as-runtime": "作为运行时镜像",
        "has-assemble-runtime": "有 assemble-runtime",
        "usage": "用法",
        "run-usage": "`ocis2i usage {}` 运行其 usage 脚本",
        "onbuild": "ONBUILD",
        "has-onbuild": "有 {} 条指令，S2I 构建不会执行（--ignore-onbuild）",
        "build-time": "构建时参数",
        "run-time": "运行时参数",
        "both": "运行时同样有效",
        "no-parameters": "未声明参数：可用 -e NAME=VALUE 设置变量。",
        "required": "必填",
        "secret": "机密",
        "default": "默认值",
        "example": "示例",
        "values": "可选值",
        "range": "范围",
        "pattern": "格式",
        "at-start": "在启动镜像时提供，构建时不接受",
        "command": "可复制的命令",
        "string": "文本",
        "integer": "整数",
        "boolean": "true 或 false",
        "enum": "可选值之一",
        "path": "路径",
        "url": "URL",
    },
}


@dataclass(frozen=True, slots=True)
class Explanation:
    """What is known of a builder.

    `argument` is what the user called it. `scripts` are those in the image by name with their
    paths, `None` when nobody looked. `declared_in` is where the parameters were found.
    """

    argument: str
    name: str
    digest: str
    platform: str
    runtime: RuntimeConfig
    contract: Contract
    declaration: Declaration | None = None
    declared_in: str = ""
    scripts: Mapping[str, str] | None = None

    def label(self, name: str) -> str:
        """A label's value in one line that no terminal obeys; empty without one."""
        return shown(" ".join(self.runtime.labels.get(name, "").split()))

    @property
    def ports(self) -> tuple[str, ...]:
        """What the image says that it listens on."""
        ports = self.runtime.extra.get("ExposedPorts")
        return tuple(sorted(map(shown, ports))) if isinstance(ports, dict) else ()


def choose_language(wanted: str | None, environment: Mapping[str, str]) -> Language:
    """`--lang`, else what the first of LC_ALL, LC_MESSAGES and LANG says; raises `UsageError`."""
    if wanted is not None:
        for known in get_args(Language):
            if wanted == known:
                return "zh" if known == "zh" else "en"
        raise UsageError(f"--lang is `{shown(wanted[:40])}`", hint="it must be en or zh")
    names = ("LC_ALL", "LC_MESSAGES", "LANG")
    first = next((environment[name] for name in names if environment.get(name)), "")
    return "zh" if first.lower().startswith("zh") else "en"


# --- for people -------------------------------------------------------------------------------


def render(known: Explanation, language: Language) -> str:
    """The text, lines ending with line feeds."""
    words = _WORDS[language]
    lines = [*_identity(known, words), *_parameters(known, language), *_copy(known, words)]
    return "\n".join(lines) + "\n"


def _identity(known: Explanation, words: Mapping[str, str]) -> Iterator[str]:
    yield f"{words['builder']}: {shown(known.name)}"
    yield f"  {known.digest}  {known.platform}"
    for label in (DISPLAY_NAME_LABEL, DESCRIPTION_LABEL):
        if text := known.label(label):
            yield f"  {text}"
    yield ""
    for key, value in _facts(known, words):
        if value:
            yield f"  {words[key]}: {value}"
    yield ""


def _facts(known: Explanation, words: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    runtime, contract = known.runtime, known.contract
    yield "scripts", _scripts(known, words)
    yield "there", _found(known, words)
    user = shown(runtime.user) or words["root"]
    assemble = contract.assemble_user
    more = f" ({words['assemble-user'].format(shown(assemble))})" if assemble else ""
    yield "user", f"{user}{more}"
    yield "workdir", shown(runtime.working_dir or "/")
    yield "destination", shown(f"{contract.destination}/src")
    yield "ports", ", ".join(known.ports)
    yield "services", known.label(SERVICES_LABEL)
    yield "tags", known.label(TAGS_LABEL)
    yield "incremental", _incremental(known, words)
    yield "artifacts", known.label(ASSEMBLE_INPUT_FILES_LABEL)
    if known.scripts and "assemble-runtime" in known.scripts:
        yield "as-runtime", words["has-assemble-runtime"]
    if runtime.on_build:
        yield "onbuild", words["has-onbuild"].format(len(runtime.on_build))
    yield "usage", known.label(USAGE_LABEL) or words["run-usage"].format(_quoted(known.argument))


def _scripts(known: Explanation, words: Mapping[str, str]) -> str:
    url = known.contract.scripts_url
    if url is None:
        return words["no-scripts"]
    for label in SCRIPTS_URL_LABELS:
        if known.runtime.labels.get(label, "").strip():
            return f"{shown(url)} ({words['from-label'].format(label)})"
    return f"{shown(url)} ({words['from-variable'].format(SCRIPTS_URL_VARIABLE)})"


def _found(known: Explanation, words: Mapping[str, str]) -> str:
    if known.scripts is None:
        return words["not-looked"]
    return ", ".join(map(shown, known.scripts)) or words["none"]


def _incremental(known: Explanation, words: Mapping[str, str]) -> str:
    if known.scripts is None:
        return words["unknown"]
    return words["yes" if "save-artifacts" in known.scripts else "no"]


def _parameters(known: Explanation, language: Language) -> Iterator[str]:
    words = _WORDS[language]
    if known.declaration is None or not known.declaration.parameters:
        yield words["no-parameters"]
        return
    every = known.declaration.parameters
    for title, some in (
        ("build-time", [one for one in every if one.in_build]),
        ("run-time", [one for one in every if not one.in_build]),
    ):
        if some:
            yield f"{words[title]}:"
            for one in _required_first(some):
                yield from _parameter(one, language)
            yield ""


def _required_first(some: Sequence[Parameter]) -> list[Parameter]:
    return sorted(some, key=lambda one: not one.required)


def _parameter(one: Parameter, language: Language) -> Iterator[str]:
    words = _WORDS[language]
    kinds = [words[one.kind]]
    kinds += [words[name] for name in ("required", "secret") if getattr(one, name)]
    kinds += [words["both"]] if one.when == "both" and not one.secret else []
    yield f"  {one.name}  ({', '.join(kinds)})"
    for texts in (one.title, one.description):
        if text := _said(texts, language):
            yield f"      {text}"
    if one.secret and not one.in_build:
        yield f"      {words['at-start']}"
    for key, value in (
        ("values", ", ".join(map(_quoted, one.values))),
        ("range", _range(one)),
        ("pattern", one.pattern.text if one.pattern else ""),
        ("default", _quoted(one.default) if one.default is not None else ""),
        ("example", _quoted(one.example) if one.example is not None else ""),
    ):
        if value:
            yield f"      {words[key]}: {value}"


def _range(one: Parameter) -> str:
    if one.minimum is None and one.maximum is None:
        return ""
    low = "" if one.minimum is None else one.minimum
    return f"{low}..{'' if one.maximum is None else one.maximum}"


def _said(texts: Texts, language: Language) -> str:
    return shown_text(in_language(texts, language))


def shown_text(text: str) -> str:
    """A declared text; its controls were refused when it was read, other blanks stay."""
    return " ".join(text.split())


def _copy(known: Explanation, words: Mapping[str, str]) -> Iterator[str]:
    yield f"{words['command']}:"
    yield f"  {command_line(known)}"


# --- for programs, and to copy ------------------------------------------------------------------


def command_line(known: Explanation) -> str:
    """A build with all required parameters, as a shell takes it; values are examples."""
    parameters = known.declaration.parameters if known.declaration else ()
    words = ["ocis2i", "build", "SOURCE", known.argument, "NAME"]
    for one in parameters:
        if not one.required or (one.secret and not one.in_build):
            continue
        words += ["-P", f"{one.name}={'@FILE' if one.secret else _sample(one)}"]
    return " ".join(map(_quoted, words))


def _sample(one: Parameter) -> str:
    if one.example is not None:
        return one.example
    samples = {"integer": str(one.minimum or one.maximum or 0), "boolean": "true"}
    return samples.get(one.kind) or next(iter(one.values), "VALUE")


def _quoted(word: str) -> str:
    """A word for a shell, in its place in a line of text."""
    plain = shown(word) if not word.isprintable() else word
    return shlex.quote(plain)


def document(known: Explanation) -> dict[str, Any]:
    """What `--json` prints; texts in all languages."""
    runtime, contract = known.runtime, known.contract
    labels = runtime.labels
    return {
        "version": VERSION,
        "builder": {"name": known.name, "digest": known.digest, "platform": known.platform},
        "display_name": labels.get(DISPLAY_NAME_LABEL),
        "description": labels.get(DESCRIPTION_LABEL),
        "tags": [one.strip() for one in labels.get(TAGS_LABEL, "").split(",") if one.strip()],
        "scripts_url": contract.scripts_url,
        "scripts": None if known.scripts is None else dict(known.scripts),
        "user": runtime.user,
        "assemble_user": contract.assemble_user or runtime.user,
        "working_dir": runtime.working_dir or "/",
        "destination": contract.destination,
        "ports": list(known.ports),
        "services": labels.get(SERVICES_LABEL),
        "incremental": None if known.scripts is None else "save-artifacts" in known.scripts,
        "runtime_artifacts": labels.get(ASSEMBLE_INPUT_FILES_LABEL),
        "onbuild": len(runtime.on_build),
        "usage": labels.get(USAGE_LABEL),
        "parameters_from": known.declared_in or None,
        "parameters": [
            _row(one) for one in (known.declaration.parameters if known.declaration else ())
        ],
        "command": command_line(known),
        "warnings": list(contract.deprecated),
    }


def _row(one: Parameter) -> dict[str, Any]:
    return {
        "name": one.name,
        "type": one.kind,
        "when": one.when,
        "required": one.required,
        "secret": one.secret,
        "default": one.default,
        "example": one.example,
        "pattern": one.pattern.text if one.pattern else None,
        "minimum": one.minimum,
        "maximum": one.maximum,
        "values": list(one.values),
        "title": dict(one.title),
        "description": dict(one.description),
    }
