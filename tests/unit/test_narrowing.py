"""Tables on narrow terminals: what is shortened, and what never is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ocis2i.live import cells
from ocis2i.narrowing import Telling, narrowed

HEADS = ("BUILD", "STAGE", "IMAGE")
FLEXIBLE: dict[int, Telling] = {2: "end", 1: "beginning"}
IDENTITY = "20261123-201530-a1b2c3"


def one(stage: str, image: str, columns: int) -> tuple[str, ...]:
    lines = narrowed([HEADS, (IDENTITY, stage, image)], columns, FLEXIBLE, "…")
    assert lines[0] == HEADS
    return lines[1]


def test_what_fits_is_as_it_was() -> None:
    image = "docker.io/library/app:1"
    assert one("assemble", image, 80) == (IDENTITY, "assemble", image)
    assert one("assemble", image, 57) == (IDENTITY, "assemble", image)
    assert narrowed([], 10, FLEXIBLE, "…") == []


def test_the_widest_gives_way_and_keeps_the_part_that_tells() -> None:
    assert one("assemble", "docker.io/library/app:1", 50) == (
        IDENTITY,
        "assemble",
        "…/library/app:1",
    )
    assert one("FetchRuntimeArtifactsFailed", "app:1", 45)[1] == "FetchRuntimeA…"
    assert one("assemble", "registry.example/team/" + "x" * 30, 50)[2] == "…" + "x" * 15


def test_the_id_is_whole_however_narrow_it_is() -> None:
    assert one("AssembleFailed", "docker.io/library/app:1", 10) == (IDENTITY, "Asse…", "…pp:1")


def test_letters_are_measured_in_the_columns_that_they_take() -> None:
    image = one("push", "registry.example/" + "本" * 20, 40)[2]
    assert image == "…本本本本"
    assert cells(image) <= 10


@given(st.lists(st.tuples(st.text(max_size=40), st.text(max_size=40)), max_size=5), st.integers())
def test_lines_fit_wherever_they_can(cases: list[tuple[str, str]], columns: int) -> None:
    lines = [HEADS, *((IDENTITY, *case) for case in cases)]
    told = narrowed(lines, columns, FLEXIBLE, "~")
    assert [line[0] for line in told] == [line[0] for line in lines]
    widths = [max(map(cells, column)) for column in zip(*told, strict=True)]
    # The id and the gaps, and five letters for each of the others.
    assert sum(widths) + 4 <= max(columns, 22 + 4 + 10)
