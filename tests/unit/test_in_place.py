"""The container as its own builder: where that can be, what is ours in it, and who is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ocis2i.events import Event, Notice
from ocis2i.in_place import open_files, warn_of_credentials
from ocis2i.isolation.in_place import in_place_refusal
from ocis2i.isolation.sentences import Place
from tests.fakes.program import PROJECT

# --- where --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("place", "read_only", "cause"),
    [
        (Place("host", root_is_a_disk=True), False, "no-container"),
        (Place("host", root_is_a_disk=True), True, "no-container"),
        # Without a mark, but put together like one.
        (Place("host"), False, None),
        (Place("container"), False, None),
        (Place("pod", root_is_a_disk=True), False, None),
        (Place("pod"), True, "read-only-root"),
    ],
)
def test_it_takes_a_container_that_can_be_written(
    place: Place, read_only: bool, cause: str | None
) -> None:
    found = in_place_refusal(place, read_only=read_only)
    assert (found.cause if found else None) == cause


# --- what is ours -------------------------------------------------------------------------------


def test_files_behind_descriptors_are_found_by_their_names(tmp_path: Path) -> None:
    for name in ("log", "gone", "moved", "taken"):
        (tmp_path / name).touch()
    files = [(tmp_path / name).open() for name in ("log", "gone", "moved", "taken")]
    (tmp_path / "gone").unlink()
    (tmp_path / "moved").rename(tmp_path / "elsewhere")
    (tmp_path / "taken").unlink()
    (tmp_path / "taken").touch()
    read_end, write_end = os.pipe()
    try:
        found = list(open_files([*(file.fileno() for file in files), write_end, 1 << 20]))
    finally:
        for file in files:
            file.close()
        os.close(read_end)
        os.close(write_end)
    assert found == [tmp_path / "log", tmp_path / "elsewhere"]


def test_files_with_credentials_are_named_with_the_way_out() -> None:
    said: list[Event] = []
    warn_of_credentials([Path("/run/auth.json")], said.append)
    (notice,) = said
    assert isinstance(notice, Notice)
    assert notice.level == "warning"
    assert "`/run/auth.json` has credentials of registries" in notice.message
    assert "`ocis2i push`" in notice.message


# --- who is ended -------------------------------------------------------------------------------

# Each of them ends by itself some time, should nobody end it.
BEGIN = """\
import os, signal, time
from ocis2i import syscalls
from ocis2i.agent.running import descendants, kill_descendants
syscalls.prctl(syscalls.PR_SET_CHILD_SUBREAPER, 1)
late = time.monotonic() + 20
"""
END = """\
time.sleep(0.1)
assert descendants(contained=False)
kill_descendants()
print(descendants(contained=False))
"""
STUBBORN = {
    "a chain that has another number all the time": """
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        while time.monotonic() < late and os.fork() == 0:
            pass
        os._exit(0)
""",
    "a bomb that has as many processes as it may": """
count = memoryview(__import__("mmap").mmap(-1, 4096)).cast("i")
if os.fork() == 0:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while time.monotonic() < late:
        if count[0] < 40:
            count[0] += 1
            if os.fork() and count[0] % 2:
                count[0] -= 1
                os._exit(0)
    os._exit(0)
""",
    "two that let each other go on": """
for _ in range(2):
    if os.fork() == 0:
        while time.monotonic() < late:
            os.kill(0, signal.SIGCONT)
        os._exit(0)
""",
    "one that has ended its first thread": """
if os.fork() == 0:
    import ctypes, threading
    threading.Thread(target=time.sleep, args=(20,)).start()
    ctypes.CDLL(None).pthread_exit(None)
""",
}


@pytest.mark.parametrize("kind", STUBBORN)
def test_nobody_is_left(kind: str) -> None:
    program = BEGIN + STUBBORN[kind] + END
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        start_new_session=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "[]\n"), done.stderr
