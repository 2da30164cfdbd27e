"""The report of a build as one page of HTML that needs nothing else: no network, no other file.

Its policy (CSP) lets the page's own style and script run and nothing else, by their digests: were
anything of a build ever taken for markup, it still could do nothing.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from importlib.resources import files

from ocis2i import differences
from ocis2i.build_facts import BuildFacts, Log, Stage
from ocis2i.differences import Change, Row, Tree
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted, human_size, plural
from ocis2i.live import duration, output_line
from ocis2i.manifest import Json
from ocis2i.markup import Markup, Part, escaped, joined, tag
from ocis2i.report import STAGE_WORDS
from ocis2i.treemap import Box, Cell, treemap

_ROWS = 14
_BIGGEST = 12
_PATHS = 1000
_LARGE_BYTES = 10 << 20
_LAST_LINES = 20
# What a page is wide, for deciding which rectangles have room for words, in pixels.
_MAP = Box(0, 0, 1000, 384)
_LETTER = 6.6
_SCRIPTS = frozenset(("assemble", "assemble-runtime", "save"))

_STATES = {
    "succeeded": "succeeded",
    "failed": "failed",
    "cancelled": "was stopped",
    "died": "died",
    "running": "is running",
}


@dataclass(frozen=True, slots=True)
class Changes:
    """What the build changed; `note` says what is missing of it, and why.

    `by_state`: new and changed files could be told apart.
    """

    changes: Sequence[Change] = ()
    note: str = ""
    by_state: bool = True


def build_page(build: BuildFacts, changes: Changes, *, now: datetime, version: str) -> str:
    """The whole page. `now` is when it is made."""
    style, script = _resource("report.css"), _resource("report.js")
    policy = (
        "default-src 'none'; base-uri 'none'; form-action 'none'; "
        f"style-src {_digest(style)}; script-src {_digest(script)}"
    )
    title = f"{_short_name(build)} {_STATES[build.state]}"
    head = (
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(style)),
    )
    made = f"Made by ocis2i {version} at {_time(now)} from the build record "
    main = (
        _header(build, now),
        _trouble(build),
        _warnings(build),
        _time_line(build),
        _changes(changes),
        _logs(build),
        _documents(build),
        tag("footer", made, tag("code", build.id), "."),
    )
    page = tag(
        "html", tag("head", head), tag("body", tag("main", main), _script(script)), lang="en"
    )
    return f"<!doctype html>\n{page}\n"


def _resource(name: str) -> str:
    return (files("ocis2i") / "pages" / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _script(text: str) -> Markup:
    return tag("script", Markup(text))


def _section(title: str, *parts: Part | Iterable[Part], class_: str = "") -> Markup:
    return tag("section", tag("h2", title), *parts, class_=class_ or False)


# --- the head ---------------------------------------------------------------------------------


def _short_name(build: BuildFacts) -> str:
    tagged = build.record.get("tag") or build.record.get("name") or "an image without a name"
    return str(tagged)


def _header(build: BuildFacts, now: datetime) -> Markup:
    facts = [
        ("Started", _time(build.started) if build.started else "unknown"),
        ("Running for" if build.state == "running" else "Took", duration(build.seconds)),
        ("Source", str(build.record.get("source") or "unknown")),
        ("Builder", _builder(build)),
        ("Isolation", str(build.told("isolation") or _failure(build).get("isolation") or "")),
        ("Layer", _layer(build)),
    ]
    exit_code = (build.result or {}).get("exit_code")
    if exit_code:
        facts.append(("Exit code", str(exit_code)))
    rows = [tag("div", tag("dt", name), tag("dd", value)) for name, value in facts if value]
    if build.digest:
        code = tag("code", build.digest, class_="digest")
        rows.append(tag("div", tag("dt", "Digest"), tag("dd", code), class_="wide"))
    for name, places in (("Pushed to", build.pushed), ("Written to", build.outputs)):
        if places:
            listed = [tag("div", tag("code", place)) for place in places]
            rows.append(tag("div", tag("dt", name), tag("dd", listed), class_="wide"))
    state = tag("span", build.state, class_=f"badge {build.state}")
    at = f" as of {_time(now)}" if build.state == "running" else ""
    return tag(
        "header",
        state,
        escaped(at),
        tag("h1", _short_name(build)),
        _names(build),
        tag("dl", rows, class_="facts"),
    )


def _names(build: BuildFacts) -> Markup:
    names = build.record.get("names")
    if not isinstance(names, list) or not names:
        return Markup()
    return tag("div", tag("code", ", ".join(map(str, names))), class_="soft")


def _builder(build: BuildFacts) -> str:
    return str(build.record.get("builder") or _named(build.told("builder")) or "unknown")


def _named(value: object) -> str:
    return str(value.get("name") or "") if isinstance(value, dict) else ""


def _layer(build: BuildFacts) -> str:
    changes = build.told("changes")
    if not isinstance(changes, dict):
        return ""
    entries = _number(changes.get("entries"))
    layers = (build.result or {}).get("layers")
    size = human_size(_number(changes.get("bytes")))
    packed = ""
    if isinstance(layers, list) and layers and isinstance(layers[-1], dict):
        packed = f", {human_size(_number(layers[-1].get('size')))} compressed"
    return f"{size}{packed}, {counted(entries, 'entry', 'entries')}"


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- what went wrong --------------------------------------------------------------------------


def _trouble(build: BuildFacts) -> Markup:
    if build.state == "running":
        return Markup()
    if build.state == "died":
        where = [stage for stage in build.stages if stage.end == "died"]
        stages = ", ".join(_words(stage) for stage in where[-2:])
        title = "The build died"
        text = "Its process is gone and left no result: it was killed, or the machine stopped."
        if build.lost:
            title = "The result of the build is lost"
            text = f"How it ended cannot be read: {build.lost}."
        resume = shlex.join(["ocis2i", "resume", build.called])
        hint = (
            f"The image is in the store; go on with: {resume}"
            if build.digest
            else "Nothing of it is in the store; build it again."
        )
        while_doing = tag("p", f"It happened while it was {stages}.") if stages else ""
        return _section(title, tag("p", text), while_doing, tag("p", hint), class_="trouble")
    result = build.result or {}
    if result.get("state") == "succeeded":
        return Markup()
    failure = _failure(build)
    parts = [tag("p", str(result.get("message") or "nothing is known"), class_="message")]
    rows = [
        tag("div", tag("dt", words), tag("dd", str(failure[key])))
        for key, words in _FAILURE.items()
        if failure.get(key)
    ]
    if result.get("hint") and not rows:
        parts.append(tag("p", tag("b", "What to do: "), str(result["hint"])))
    parts += [tag("dl", rows, class_="facts why")] if rows else []
    parts.append(_last_words(build))
    if failure.get("repeat"):
        parts.append(tag("p", "Repeat it with a shell at hand:", class_="soft"))
        parts.append(tag("pre", str(failure["repeat"])))
    reason = str(result.get("reason") or "the build failed")
    return _section(reason, parts, class_="trouble")


# What a failure document says of a script that failed, in the order of reading.
_FAILURE = {
    "meaning": "What it means",
    "way_out": "What to do",
    "script": "Script",
    "from": "It comes",
    "user": "It ran as",
    "cwd": "In",
    "kept": "Kept for you",
}


def _failure(build: BuildFacts) -> Json:
    failure = (build.result or {}).get("failure")
    return failure if isinstance(failure, dict) else {}


def _last_words(build: BuildFacts) -> Markup:
    """The end of the output of the stage that failed."""
    failed = {stage.name for stage in build.stages if stage.end in ("failed", "died")}
    for log in build.logs:
        lines = [*log.first, *log.last][-_LAST_LINES:]
        if log.stage in failed and lines:
            return tag("pre", "\n".join(_plain(line) for line in lines))
    return Markup()


def _warnings(build: BuildFacts) -> Markup:
    if not build.warnings:
        return Markup()
    rows = [tag("li", text, class_="warning") for text in build.warnings]
    if build.more_warnings:
        rows.append(tag("li", f"and {build.more_warnings} more", class_="soft"))
    return _section("Warnings", tag("ul", rows, class_="plain"))


# --- the time line ----------------------------------------------------------------------------


def _time_line(build: BuildFacts) -> Markup:
    if not build.stages:
        return _section("Stages", tag("p", "None has begun.", class_="soft"))
    whole = max(build.seconds, 0.001)
    return _section(
        "Stages", tag("ol", [_stage_row(stage, whole) for stage in build.stages], class_="stages")
    )


def _words(stage: Stage) -> str:
    return STAGE_WORDS.get(stage.name, stage.name)


def _stage_row(stage: Stage, whole: float) -> Markup:
    start = min(stage.start / whole * 100, 99.6)
    width = max(min(stage.seconds / whole * 100, 100 - start), 0.4)
    kind = f"bar-{stage.end} script" if stage.name in _SCRIPTS else f"bar-{stage.end}"
    bar = tag(
        "svg",
        tag("rect", x="0", y="5", width="100%", height="6", rx="3", class_="bar-track"),
        tag(
            "rect",
            x=f"{start:.2f}%",
            y="2",
            width=f"{width:.2f}%",
            height="12",
            rx="3",
            class_=kind,
        ),
        aria_hidden="true",
    )
    end = "" if stage.end == "ok" else tag("span", f" {stage.end}", class_=f"end-{stage.end}")
    detail = tag("small", stage.detail) if stage.detail else ""
    return tag(
        "li",
        tag("span", _words(stage), end, detail, class_="name"),
        bar,
        tag("span", duration(stage.seconds), class_="time"),
    )


# --- what changed -----------------------------------------------------------------------------


def _changes(changes: Changes) -> Markup:
    note = tag("p", changes.note, class_="soft") if changes.note else ""
    if not changes.changes:
        return _section("What the build changed", note or tag("p", "Nothing.", class_="soft"))
    tree = Tree(changes.changes)
    summed = tree.below[b""]
    sums = [("new", human_size(summed.bytes_new))]
    if changes.by_state:
        sums += [("added", str(summed.added)), ("changed", str(summed.changed))]
        sums.append(("removed", str(summed.removed)))
    else:
        sums.append(("entries", str(summed.entries)))
    return _section(
        "What the build changed",
        note,
        tag("div", [tag("div", tag("b", value), name) for name, value in sums], class_="sums"),
        _map(tree),
        tag(
            "div",
            tag("div", tag("h3", "Directories"), _directories(tree, by_state=changes.by_state)),
            tag(
                "div",
                tag("h3", "Largest files"),
                _largest(changes.changes),
                _owners(changes.changes),
            ),
            class_="columns",
        ),
        _notes(changes.changes),
        _paths(changes),
    )


def _directory(row: Row) -> str:
    path = f"/{_path(row.path)}" if row.path else ""
    return f"{path}/*" if row.rest else f"{path}/"


def _path(path: bytes) -> str:
    return path.decode(errors="backslashreplace").replace("\n", "\\n").replace("\t", "\\t")


def _map(tree: Tree) -> Markup:
    cells = treemap(tree, _MAP)
    if not cells:
        return Markup()
    words = "New bytes by directory; the table below has the same numbers."
    return tag("svg", tag("title", words), map(_cell, cells), class_="map", role="img")


def _cell(cell: Cell) -> Markup:
    left, top, width, height = cell.box
    size = human_size(cell.row.summed.bytes_new)
    count = cell.row.summed.added + cell.row.summed.changed
    name = _directory(cell.row)
    texts: list[Markup] = []
    if width > 40 and height > 20:
        texts.append(tag("text", _fitting(name, width - 12), x="7", y="16"))
        if height > 38 and len(size) * _LETTER < width - 12:
            texts.append(tag("text", size, x="7", y="32", class_="size"))
    return tag(
        "svg",
        tag(
            "g",
            tag("title", f"{name}: {size}, {counted(count, 'entry', 'entries')}"),
            tag("rect", width="100%", height="100%", class_=f"g{cell.group}"),
            texts,
        ),
        x=f"{left / _MAP.width:.3%}",
        y=f"{top / _MAP.height:.3%}",
        width=f"{width / _MAP.width:.3%}",
        height=f"{height / _MAP.height:.3%}",
    )


def _fitting(name: str, pixels: float) -> str:
    """The end of a path, which tells most, in about so many pixels: whole names, if they fit."""
    most = max(int(pixels / _LETTER), 3)
    while len(name) > most and "/" in name.rstrip("/"):
        name = name.partition("/")[2]
    return name if len(name) <= most else f"{name[: most - 1]}…"


def _table(heads: Sequence[str], rows: Iterable[Sequence[Part]]) -> Markup:
    """A table whose last column is a path or words, and the others numbers."""
    last = len(heads) - 1

    def line(kind: str, cells: Sequence[Part]) -> Markup:
        return tag(
            "tr",
            [
                tag(kind, cell, class_="number" if at < last else "path")
                for at, cell in enumerate(cells)
            ],
        )

    return tag(
        "table",
        tag("thead", line("th", heads)),
        tag("tbody", [line("td", row) for row in rows]),
    )


def _directories(tree: Tree, *, by_state: bool) -> Markup:
    rows = differences.telling_rows(tree, _ROWS)
    if not by_state:
        return _table(
            ("New", "Entries", "Directory"),
            [
                (human_size(row.summed.bytes_new), str(row.summed.entries), _mono(_directory(row)))
                for row in rows
            ],
        )
    return _table(
        ("New", "+", "~", "-", "Directory"),
        [
            (
                human_size(row.summed.bytes_new),
                _count(row.summed.added, "added"),
                _count(row.summed.changed, "changed"),
                _count(row.summed.removed, "removed"),
                _mono(_directory(row)),
            )
            for row in rows
        ],
    )


def _count(number: int, state: str) -> Markup:
    return tag("span", str(number), class_=state) if number else Markup()


def _mono(text: str) -> Markup:
    return tag("span", text, class_="mono")


def _largest(changes: Sequence[Change]) -> Markup:
    rows = [
        (human_size(one.size), _mono(f"/{_path(one.path)}"))
        for one in differences.largest(changes, _BIGGEST)
    ]
    return _table(("Size", "File"), rows) if rows else tag("p", "None has content.", class_="soft")


def _owners(changes: Sequence[Change]) -> Markup:
    rows = [
        (human_size(one.bytes_new), str(one.entries), f"{uid}:{gid}")
        for uid, gid, one in differences.owners(changes)[:_ROWS]
    ]
    if not rows:
        return Markup()
    return joined([tag("h3", "Owners"), _table(("New", "Entries", "User and group"), rows)])


def _notes(changes: Sequence[Change]) -> Markup:
    found = differences.notes(changes, large_bytes=_LARGE_BYTES)
    if not found:
        return Markup()
    rows = []
    for note in found:
        size = f", {human_size(note.bytes_new)}" if note.bytes_new else ""
        entries = counted(note.count, "entry", "entries")
        words = f"{entries}{size}: {differences.NOTES[note.kind]}"
        shown = [tag("div", tag("code", f"/{_path(path)}")) for path in note.paths]
        rows.append(tag("details", tag("summary", words), shown))
    return joined([tag("h3", "Worth a look"), *rows])


def _paths(changes: Changes) -> Markup:
    listed = changes.changes[:_PATHS]
    more = len(changes.changes) - len(listed)
    rows = [(human_size(one.facts.size), _state(one, changes), _path_cell(one)) for one in listed]
    after = (
        tag("p", f"… and {more} more; `ocis2i diff --files` lists them all.", class_="soft")
        if more
        else ""
    )
    return joined(
        [
            tag("h3", "Every path"),
            tag(
                "details",
                tag("summary", f"{len(listed)} of {len(changes.changes)} paths"),
                _table(("Size", "", "Path"), rows),
                after,
            ),
        ]
    )


def _state(change: Change, changes: Changes) -> Markup:
    if not changes.by_state:
        return Markup()
    return tag("span", change.state, class_=change.state)


def _path_cell(change: Change) -> Markup:
    facts = change.facts
    link = f" → {_path(facts.target)}" if facts.target else ""
    what = f" ({', '.join(change.what)})" if change.what else ""
    owner = f" {facts.mode:04o} {facts.uid}:{facts.gid}{what}"
    return joined([_mono(f"/{_path(change.path)}{link}"), tag("span", owner, class_="soft")])


# --- the log ----------------------------------------------------------------------------------


def _plain(line: str) -> str:
    return output_line(line, colour=False)


def _logs(build: BuildFacts) -> Markup:
    logs = [log for log in build.logs if log.first or log.last]
    if not logs:
        return _section("Log", tag("p", "Nothing was printed.", class_="soft"))
    stages = [tag("option", STAGE_WORDS.get(log.stage, log.stage), value=log.stage) for log in logs]
    tools = tag(
        "div",
        tag(
            "input",
            type="search",
            id="search",
            placeholder="Search the log (/)",
            aria_label="Search the log",
        ),
        tag(
            "select", tag("option", "all stages", value=""), stages, id="stage", aria_label="Stage"
        ),
        tag("output", id="count", aria_live="polite"),
        class_="tools",
        id="tools",
        hidden=True,
    )
    return _section("Log", tools, map(_log, logs))


def _log(log: Log) -> Markup:
    title = STAGE_WORDS.get(log.stage, log.stage)
    return tag(
        "div", tag("h3", title), tag("ol", _log_lines(log), class_="log"), data_stage=log.stage
    )


def _log_lines(log: Log) -> Iterator[Markup]:
    for number, line in enumerate(log.first, 1):
        yield tag("li", _plain(line), data_n=str(number))
    if log.missing_lines or log.missing_bytes:
        count = log.missing_lines
        what = counted(count, "line") if count else human_size(log.missing_bytes)
        said = f"{what} {plural(count, 'is', 'are')} left out here"
        yield tag("li", f"{said}; the log of the build has them", class_="gap")
    # After bytes that nobody counted the number of a line is not known.
    start = len(log.first) + log.missing_lines + 1
    for number, line in enumerate(log.last, start):
        yield tag("li", _plain(line), data_n=False if log.missing_bytes else str(number))


# --- the documents ----------------------------------------------------------------------------


def _documents(build: BuildFacts) -> Markup:
    words = build.record.get("command")
    parts: list[Part] = []
    if isinstance(words, list):
        command = " ".join(["ocis2i", *map(_word, words)])
        where = str(build.record.get("cwd") or "")
        parts += [tag("h3", "Command"), tag("pre", command)]
        parts.append(tag("p", "in ", tag("code", where), class_="soft") if where else "")
    for title, document in (("Result", build.result), ("Record", build.record)):
        if document:
            text = json.dumps(document, indent=2, ensure_ascii=False)
            parts.append(tag("details", tag("summary", title), tag("pre", text)))
    return _section("Details", parts)


def _word(word: object) -> str:
    return shlex.quote(str(word))
