"""The display of a build on a terminal: a live line for each stage and transfer, output above.

What is over is written once and scrolls away with the output; what goes on is painted below it ten
times a second and erased before the next write. It takes a few control codes: back to the start of
the line, up, erase to the end of the screen, and no wrapping of what is painted (DECAWM, off and on
in one write). The cursor is never hidden and no mode of the terminal stays changed, so that a
program that is killed leaves it as it was.
"""

from __future__ import annotations

import re
import threading
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import field
from typing import Any, NamedTuple, TextIO

from ocis2i.events import (
    Event,
    ImagePushed,
    ImageStored,
    NetworkEnded,
    Notice,
    OutputWritten,
    ScriptOutput,
    StageEnded,
    StageStarted,
    Transfer,
)
from ocis2i.lazy_dataclass import dataclass
from ocis2i.limits import counted, human_size
from ocis2i.report import STAGE_WORDS, printable

# What ends sooner is written when it is over, and never painted: nobody could read it.
PATIENCE_SECONDS = 0.4
_TICK_SECONDS = 0.1
_MOST_BARS = 8
_SLOWEST = 4
_LEAST_DETAIL = 6

_FANCY = ("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏", "✓", "✗", "━", "─", "…")
_PLAIN = ("|/-\\", "ok", "failed", "#", "-", "~")


@dataclass(frozen=True, slots=True)
class Look:
    """How lines look: by the letters that the terminal has, and whether it is to have colours."""

    spinner: str
    good: str
    bad: str
    full: str
    empty: str
    cut: str
    colour: bool

    @classmethod
    def of(cls, encoding: str | None, *, colour: bool) -> Look:
        """Plain letters where the others cannot be written."""
        try:
            "".join(_FANCY).encode(encoding or "ascii")
        except (UnicodeEncodeError, LookupError):
            return cls(*_PLAIN, colour)
        return cls(*_FANCY, colour)

    def paint(self, code: int, text: str) -> str:
        """The text in a colour or weight (ECMA-48, SGR)."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.colour and text else text


_BOLD, _DIM, _RED, _GREEN, _YELLOW, _CYAN = 1, 2, 31, 32, 33, 36


class Running(NamedTuple):
    """A stage that goes on; `began` in seconds of the display's clock."""

    name: str
    detail: str
    began: float


class Moving(NamedTuple):
    """A blob on its way: `done` of `total` bytes since `began`."""

    label: str
    done: int
    total: int
    began: float


# --- lines, pure ------------------------------------------------------------------------------


def cells(text: str) -> int:
    """How many columns a terminal takes for text without control characters."""
    if text.isascii():
        return len(text)
    return sum(_cells_of(char) for char in text)


def _cells_of(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def shortened(text: str, width: int, cut: str) -> str:
    """The text in at most `width` columns; of a longer one the beginning and the end."""
    if cells(text) <= width:
        return text
    if width <= len(cut):
        return cut[: max(width, 0)]
    room = width - len(cut)
    tail = _taken(text[::-1], room // 2)[::-1]
    return _taken(text, room - cells(tail)) + cut + tail


def _taken(text: str, width: int) -> str:
    used = 0
    for at, char in enumerate(text):
        used += _cells_of(char)
        if used > width:
            return text[:at]
    return text


def duration(seconds: float) -> str:
    """`40 ms`, `0.4 s`, `12 s`, `3 min 05 s`."""
    if seconds < 0.0995:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def frame(
    stages: Sequence[Running], bars: Sequence[Moving], now: float, width: int, look: Look
) -> list[tuple[str, int]]:
    """What is painted: lines that fit in `width` columns, each with the columns that it takes."""
    lines = [_stage_line(stage, now, width, look) for stage in stages]
    lines += [_bar_line(bar, now, width, look) for bar in bars[:_MOST_BARS]]
    if len(bars) > _MOST_BARS:
        text = shortened(f"    and {len(bars) - _MOST_BARS} more", width, look.cut)
        lines.append((text, cells(text)))
    return lines


def _stage_line(stage: Running, now: float, width: int, look: Look) -> tuple[str, int]:
    turn = look.spinner[int(now * 10) % len(look.spinner)]
    time = duration(now - stage.began)
    if width < len(time) + 8:
        text = shortened(_words(stage.name, ""), width, look.cut)
        return text, cells(text)
    text = _words(stage.name, "")
    room = width - len(time) - 4 - cells(text) - 2
    if stage.detail and room >= _LEAST_DETAIL:
        text = f"{text}: {shortened(one_line(printable(stage.detail)), room, look.cut)}"
    text = shortened(text, width - len(time) - 4, look.cut)
    shown = f"{look.paint(_CYAN, turn)} {text}  {look.paint(_DIM, time)}"
    return shown, 2 + cells(text) + 2 + len(time)


def _words(name: str, detail: str) -> str:
    words = STAGE_WORDS.get(name, name)
    return f"{words}: {one_line(printable(detail))}" if detail else words


def one_line(text: str) -> str:
    """The text without line ends."""
    return " ".join(text.split("\n"))


def _bar_line(bar: Moving, now: float, width: int, look: Look) -> tuple[str, int]:
    share = min(bar.done / bar.total, 1.0) if bar.total else 0.0
    seconds = now - bar.began
    rate = f"{human_size(int(bar.done / seconds))}/s" if seconds > 0.2 else ""
    percent = f"{share:4.0%}"
    amount = f"{human_size(bar.done)} of {human_size(bar.total)}"
    # What a narrow terminal has no room for goes: the amount first, the rate after it.
    for parts in ((percent, amount, rate), (percent, rate), (percent,)):
        tail = "  ".join(part for part in parts if part)
        room = width - cells(bar.label) - len(tail) - 6
        if room >= 8:
            break
    else:
        text = shortened(f"  {bar.label} {percent}", width, look.cut)
        return text, cells(text)
    room = min(room, 30)
    full = round(room * share)
    drawn = look.paint(_GREEN, look.full * full) + look.paint(_DIM, look.empty * (room - full))
    return f"  {bar.label}  {drawn}  {tail}", 6 + cells(bar.label) + room + len(tail)


_SGR = re.compile(r"\x1b\[[0-9;:]*m")
# Control sequences and strings of ECMA-48: all but colours would tear the painted lines apart.
_SEQUENCES = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]|\x1b[\]PX^_].*?(?:\x07|\x1b\\|\Z)|\x1b[ -/]*[0-~]"
)


def output_line(line: str, *, colour: bool) -> str:
    """A line of a script as the terminal may have it: text, tabs and colours, nothing else.

    Of a line that writes over itself, as progress bars do, what is left in the end.
    """
    if line.isascii() and line.isprintable():
        return line
    last = line.rstrip("\r").rpartition("\r")[2]
    kept = []
    at = 0
    for found in _SEQUENCES.finditer(last):
        kept.append(_text(last[at : found.start()]))
        if colour and _SGR.fullmatch(found[0]):
            kept.append(found[0])
        at = found.end()
    kept.append(_text(last[at:]))
    text = "".join(kept)
    return f"{text}\x1b[0m" if "\x1b" in text else text


def _text(text: str) -> str:
    return "".join(char for char in text if char.isprintable() or char == "\t")


def rows(widths: Sequence[int], columns: int) -> int:
    """How many rows lines of these widths take, now that the terminal has so many columns."""
    return sum(max(1, -(-width // max(columns, 1))) for width in widths)


# --- the display ------------------------------------------------------------------------------


@dataclass(slots=True)
class _Told:
    """What the summary at the end is made of."""

    stages: list[tuple[str, float]] = field(default_factory=list)
    stored: ImageStored | None = None
    outputs: list[str] = field(default_factory=list)
    pushed: tuple[str, ...] = ()


class Live:
    """Shows events on a terminal. Takes them from any thread; a thread of its own paints."""

    def __init__(
        self,
        stream: TextIO,
        *,
        log_level: int,
        colour: bool,
        clock: Callable[[], float],
        size: Callable[[], tuple[int, int]],
    ) -> None:
        """`clock` gives seconds, `size` the columns and rows of the terminal now."""
        self._stream = stream
        self._level = log_level
        self._look = Look.of(stream.encoding, colour=colour)
        self._clock = clock
        self._size = size
        self._lock = threading.RLock()
        self._stages: list[Running] = []
        self._with_output: set[str] = set()
        self._bars: dict[str, Moving] = {}
        self._painted: list[int] = []
        self._stop: threading.Event | None = None
        self._told = _Told()

    def __call__(self, event: Event) -> None:
        """Takes one event."""
        with self._lock:
            match event:
                case StageStarted(name, detail):
                    self._stages.append(Running(name, detail, self._clock()))
                    self._start_painter()
                case StageEnded(name, ok):
                    self._end(name, ok=ok)
                case ScriptOutput(_, line):
                    self._output(line)
                case Notice():
                    self._notice(event)
                case Transfer():
                    self._transfer(event)
                case _:
                    self._remember(event)

    def close(self) -> None:
        """Takes the painted lines off the terminal; an event after that begins anew."""
        with self._lock:
            if self._stop:
                self._stop.set()
                self._stop = None
            self._bars.clear()
            self._write("")

    def conclude(self, name: str | None) -> None:
        """Writes the summary of a build that succeeded; `name` is the image's."""
        with self._lock:
            columns, _ = self._size()
            for line in summary(self._told, name, columns, self._look):
                self._line(line)

    # --- events ---

    def _end(self, name: str, *, ok: bool) -> None:
        stage = next((one for one in reversed(self._stages) if one.name == name), None)
        if stage is None:
            return
        self._stages.remove(stage)
        self._bars.clear()
        seconds = self._clock() - stage.began
        self._told.stages.append((name, seconds))
        mark, code = (self._look.good, _GREEN) if ok else (self._look.bad, _RED)
        # The line that stands above a script's output has the detail.
        headed = name in self._with_output
        self._with_output.discard(name)
        text = _words(name, "" if headed else stage.detail)
        time = self._look.paint(_DIM, duration(seconds))
        self._line(f"{self._look.paint(code, mark)} {text}  {time}")

    def _output(self, line: str) -> None:
        if self._stages and self._stages[-1].name not in self._with_output:
            stage = self._stages[-1]
            self._with_output.add(stage.name)
            self._line(self._look.paint(_BOLD, f"---> {_words(stage.name, stage.detail)}"))
        self._line(output_line(line, colour=self._look.colour))

    def _notice(self, notice: Notice) -> None:
        if notice.level == "warning":
            self._line(f"{self._look.paint(_YELLOW, 'warning:')} {printable(notice.message)}")
        elif self._level >= (1 if notice.level == "info" else 2):
            self._line(printable(notice.message))

    def _transfer(self, event: Transfer) -> None:
        short = event.digest.partition(":")[2][:12]
        if event.state in ("exists", "mounted", "done"):
            if self._bars.pop(event.digest, None) is None and self._level >= 1:
                self._line(f"     {event.state} {short}")
            elif not self._bars and not self._stages:
                self._write("")
            return
        known = self._bars.get(event.digest)
        began = known.began if known else self._clock()
        label = f"{event.state} {short}"
        self._bars[event.digest] = Moving(label, event.done, event.total, began)
        self._start_painter()

    def _remember(self, event: Event) -> None:
        match event:
            case ImageStored():
                self._told.stored = event
            case OutputWritten(where):
                self._told.outputs.append(where)
            case ImagePushed(names):
                self._told.pushed = names
            case NetworkEnded() | _:
                pass  # a notice says it in words

    # --- the terminal ---

    def _line(self, text: str) -> None:
        self._write(text + "\n")

    def _write(self, text: str) -> None:
        """Writes above the painted lines, which are painted again with the next tick."""
        erased = self._erasing()
        if erased or text:
            self._stream.write(erased + text)
            if self._stop and text:
                self._stream.write(self._painting())
            self._stream.flush()

    def _erasing(self) -> str:
        if not self._painted:
            return ""
        columns, _ = self._size()
        # The cursor stands where the last line begins, and stays there when a terminal that has
        # become narrower wraps it: only the lines above count, or output above them is erased.
        up = rows(self._painted[:-1], columns)
        self._painted = []
        return "\r" + (f"\x1b[{up}A" if up else "") + "\x1b[J"

    def _painting(self) -> str:
        now = self._clock()
        columns, height = self._size()
        stages = [one for one in self._stages if now - one.began >= PATIENCE_SECONDS]
        bars = [one for one in self._bars.values() if now - one.began >= PATIENCE_SECONDS]
        # The last column stays free: a terminal may go to the next row after it.
        lines = frame(stages, bars, now, columns - 1, self._look)[: max(height - 1, 1)]
        self._painted = [width for _, width in lines]
        # A terminal that has just become narrower, and has not told us yet, must not wrap a line:
        # we would not know where it began. From the start of the line, what is typed meanwhile,
        # as ^C, does not wrap either.
        painted = "\n".join(text for text, _ in lines)
        return f"\x1b[?7l{painted}\x1b[?7h\r" if lines else ""

    def _start_painter(self) -> None:
        if self._stop is None:
            self._stop = threading.Event()
            painter = threading.Thread(target=self._paint, args=(self._stop,), daemon=True)
            painter.start()

    def _paint(self, stop: threading.Event) -> None:
        """In a thread of its own, until `stop`."""
        while not stop.wait(_TICK_SECONDS):
            with self._lock:
                if stop.is_set():
                    return
                text = self._erasing() + self._painting()
                try:
                    if text:
                        self._stream.write(text)
                        self._stream.flush()
                except (OSError, ValueError):  # the terminal is gone; the build need not be
                    return


def summary(told: Any, name: str | None, columns: int, look: Look) -> list[str]:
    """What came of a build, in a few lines; none when no image was stored."""
    if told.stored is None:
        return []
    seconds = sum(spent for _, spent in told.stages)
    built = f"built {name}" if name else "built"
    facts = [("digest", told.stored.digest.partition(":")[0] + ":" + _short(told.stored.digest))]
    changes = told.stored.facts.get("changes")
    if isinstance(changes, dict):
        entries = changes.get("entries", 0)
        size = human_size(int(changes.get("bytes", 0)))
        facts.append(("layer", f"{size} in {counted(entries, 'entry', 'entries')}"))
    slowest = sorted(told.stages, key=lambda one: -one[1])[:_SLOWEST]
    stages = ", ".join(f"{stage} {duration(spent)}" for stage, spent in slowest if spent >= 0.05)
    if stages:
        facts.append(("stages", stages))
    facts += [("written", one_line(printable(where))) for where in told.outputs]
    facts += [("pushed", one_line(printable(where))) for where in told.pushed]
    head = f"{look.paint(_BOLD, one_line(printable(built)))}  {look.paint(_DIM, duration(seconds))}"
    width = columns - 12
    return [
        head,
        *(
            f"  {look.paint(_DIM, key.ljust(8))} {shortened(value, max(width, 8), look.cut)}"
            for key, value in facts
        ),
    ]


def _short(digest: str) -> str:
    return digest.partition(":")[2][:12]
