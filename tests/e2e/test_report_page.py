"""`report`: the page about a build, as a person sees it in a real browser."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.bench import Bench, Maker, error, sh
from tests.fakes.browser import Browser, browser
from tests.fakes.program import Done, Program

ESCAPES = "\\033[32mgreen\\033[0m </script><script>document.title=1</script> \\033]0;x\\007 end"
ASSEMBLE = sh(
    'cp -R /tmp/src/. "$HOME/"; cd "$HOME"',
    "mkdir -p node_modules/alpha node_modules/beta 'a<b>&x'",
    "dd if=/dev/zero of=node_modules/alpha/big bs=1024 count=900 2>/dev/null",
    "dd if=/dev/zero of=node_modules/beta/mid bs=1024 count=400 2>/dev/null",
    "echo x > 'a<b>&x/<img src=x onerror=document.title=2>'",
    f"printf '{ESCAPES}\\n'",
    'i=0; while [ $i -lt 40 ]; do echo "compiling module $i"; i=$((i+1)); done',
    "echo \"long $(printf '%0300d' 7)\"",
    'if [ -n "$FAIL" ]; then sleep 0.2; echo "cannot find name foo" >&2; exit 3; fi',
)


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of the module."""
    if os.geteuid() == 0:
        pytest.skip("the tests run as root; ocis2i builds as an ordinary user")
    with browser(tmp_path_factory.mktemp("browser")) as running:
        yield running


def reported(bench: Bench, *arguments: str | Path) -> Path:
    """The page of a build."""
    page = bench.directory / "report.html"
    bench.ocis2i.ok("report", *arguments, "-o", page)
    return page


def check_sound(window: Browser, page: Path) -> None:
    """What holds of every page: nothing complains, is fetched, or lies outside of the window."""
    window.complaints.clear()
    window.requests.clear()
    for width, scheme in ((1200, "dark"), (700, "light"), (375, "light")):
        window.resize(width)
        window.prefer(scheme)
        window.open(page)
        assert not window.scrolls_sideways(), f"{width} pixels wide"
    assert window.complaints == []
    assert set(window.requests) == {page.as_uri()}
    window.resize(700)


def test_a_person_sees_what_a_build_did(bench: Bench, make: Maker, window: Browser) -> None:
    bench.built(make(ASSEMBLE), "--no-cache")
    page = reported(bench, bench.tag)
    check_sound(window, page)
    assert window.js("document.title") == f"{bench.tag} succeeded"
    text = window.seen()
    digest = bench.ocis2i.ok("inspect", bench.tag).document["digest"]
    for words in ("succeeded", bench.tag, digest, "fetching the source", "writing the layer"):
        assert words in text
    assert "node_modules/alpha/" in window.seen("table")
    assert "/tmp/src/" in window.seen("table")
    # A rectangle of the map is as large as its share, has a name, and words that fit in it.
    sizes = window.js(
        "[...document.querySelectorAll('svg.map svg')].map(one => {"
        " const box = one.querySelector('rect').getBoundingClientRect();"
        " return [one.querySelector('title').textContent, box.width * box.height]; })"
    )
    areas = {title.split(":")[0].rpartition("node_modules/")[2]: area for title, area in sizes}
    assert areas["alpha/"] / areas["beta/"] == pytest.approx(900 / 400, rel=0.05)
    # The bar of each stage begins where the one before ends, or later.
    lefts = window.js(
        "[...document.querySelectorAll('.stages li')].map("
        "one => one.querySelectorAll('rect')[1].getBoundingClientRect().left)"
    )
    assert lefts == sorted(lefts)
    # Hostile names and lines are text.
    assert "green </script><script>document.title=1</script>  end" in text
    window.js("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert "/a<b>&x/<img src=x onerror=document.title=2>" in window.seen()
    assert window.js("document.images.length") == 0
    assert '"state": "succeeded"' in window.seen()
    assert not window.scrolls_sideways()


def test_the_log_can_be_searched(bench: Bench, make: Maker, window: Browser) -> None:
    bench.built(make(ASSEMBLE), "--no-cache")
    window.resize(700)
    window.open(reported(bench))
    assert window.seen("#count") == "42 lines"
    window.press("/", "/")
    window.type("MODULE 3")
    waited = "new Promise(done => setTimeout(done, 200))"
    window.js(waited)
    # 3, and 30 to 39.
    assert window.seen("#count") == "11 of 42 lines"
    shown = window.seen(".log").splitlines()
    assert [line for line in shown if line] == [
        "compiling module 3",
        *(f"compiling module {number}" for number in range(30, 40)),
    ]
    assert window.js("document.querySelector('mark').textContent") == "module 3"
    number = window.js(
        "getComputedStyle(document.querySelector('mark').closest('li'), '::before').content"
    )
    assert number == '"5"'  # the number that the line has in the whole log
    window.press("Escape")
    assert window.seen("#count") == "42 lines"
    assert window.js("document.querySelectorAll('mark').length") == 0
    window.js("search.value = 'no such words'; search.dispatchEvent(new Event('input'))")
    window.js(waited)
    assert window.seen("#count") == "0 of 42 lines"
    # On paper the search is of no use, and what is folded is open.
    window.prefer("light", "print")
    window.js("dispatchEvent(new Event('beforeprint'))")
    assert not window.js("document.querySelector('.tools').checkVisibility()")
    assert window.js("[...document.querySelectorAll('details')].every(one => one.open)")
    window.prefer("light")


def test_a_failed_build_says_why_on_the_first_screen(
    bench: Bench, make: Maker, window: Browser
) -> None:
    done = bench.attempt(make(ASSEMBLE), "--no-cache", "-e", "FAIL=1")
    assert done.code == 7
    page = reported(bench)
    check_sound(window, page)
    window.resize(700, 900)
    text = window.seen(".trouble")
    assert "AssembleFailed" in text
    assert "failed with exit code 3" in text
    assert "cannot find name foo" in text
    assert window.js("document.querySelector('.trouble').getBoundingClientRect().top") < 450
    assert "The build stored no image." in window.seen()
    assert window.seen(".end-failed").strip() == "failed"


def test_a_build_that_runs_and_one_that_was_killed_have_a_page(
    bench: Bench, make: Maker, window: Browser
) -> None:
    builder = make(sh("echo now", "sleep 100"))
    arguments = ("build", bench.source(), builder, bench.tag)
    with bench.ocis2i.start(*arguments) as started:
        assert started.stderr is not None
        for line in started.stderr:
            if line == "now\n":
                break
        window.open(reported(bench))
        running = window.seen()
        os.kill(started.pid, signal.SIGKILL)
        started.communicate(timeout=60)
    assert "running as of" in running
    assert window.seen(".end-running").strip() == "running"
    page = reported(bench)
    check_sound(window, page)
    assert "The build died" in window.seen(".trouble")
    assert "assembling" in window.seen(".trouble")
    assert "now" in window.seen(".log")


def bad(ocis2i: Program, *arguments: str | Path) -> Done:
    done = ocis2i("report", *arguments)
    assert done.out == ""
    return done


def test_what_cannot_be_reported_says_why(bench: Bench, make: Maker) -> None:
    bench.built(make(sh("true")))
    assert "-o report.html" in bad(bench.ocis2i, bench.tag).err
    assert bad(bench.ocis2i, bench.tag).code == 2
    unknown = bad(bench.ocis2i, "nothing", "-o", "x.html")
    assert unknown.code == 2
    assert "there is no build `nothing`" in error(unknown)
    nowhere = bad(bench.ocis2i, bench.tag, "-o", bench.directory / "none" / "x.html")
    assert nowhere.code == 8
    assert "create the directory first" in nowhere.err
    assert "both want stdout" in bench.ocis2i("report", "-o", "-", "--json").out
    page = bench.ocis2i.ok("report", bench.tag, "-o", "-")
    assert page.out.startswith("<!doctype html>")
    # The image is gone, its record is not.
    bench.ocis2i.ok("rm", bench.tag)
    bench.ocis2i.ok("prune")
    later = bench.directory / "later.html"
    done = bench.ocis2i.ok("report", bench.tag, "-o", later, "--json")
    assert done.document["page"] == str(later)
    assert json.loads(done.out)["state"] == "succeeded"
    assert "What is in the layer is not known" in later.read_text()
