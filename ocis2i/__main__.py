"""The program: the console script, and `python -m ocis2i`.

Its imports take longer than Ctrl-C: signals are answered first, by what needs nothing imported.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
from collections.abc import Callable

# The words of `ocis2i.errors.Interrupted`, which is not there yet.
_WORDS = {
    signal.SIGINT: b"interrupt",
    signal.SIGTERM: b"termination",
    signal.SIGHUP: b"hang-up",
}


def main() -> None:
    """Ends the process."""
    for number in _WORDS:
        # nohup(1) means it.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, _leave)
    # Most of what is made in a start stays to the end: to look for what does not costs more.
    gc.set_threshold(200_000)
    from ocis2i.cli import main as run  # noqa: PLC0415 - after the handlers, see above

    call_with_room(run)


def call_with_room(run: Callable[[], None]) -> None:
    """Calls `run` with room for the frames of all that it calls; see `_FRAME_SLOTS`."""
    run()


# CPython keeps frames in chunks of 16 KiB, and gives a chunk back to the kernel when its last frame
# is gone (`push_chunk` in Python/pystate.c). Where a loop calls across the end of one, each call is
# an mmap and a munmap, with a page fault between them: so many for one import that they took 40 ms.
# A frame that is larger gets a larger chunk, and all the frames after it, too.
_FRAME_SLOTS = 66_000
call_with_room.__code__ = call_with_room.__code__.replace(co_stacksize=_FRAME_SLOTS)


def _leave(number: int, _: object) -> None:
    """Ends at once: there is nothing to clean up, before the command line is read and after."""
    with contextlib.suppress(OSError):
        os.write(2, b"error: stopped by %s\n" % _WORDS[signal.Signals(number)])
    os._exit(128 + number)


if __name__ == "__main__":
    main()
