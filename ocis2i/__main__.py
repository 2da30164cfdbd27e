"""The program: the console script, and `python -m ocis2i`.

Its imports take longer than Ctrl-C: signals are answered first, by what needs nothing imported.
"""

from __future__ import annotations

import contextlib
import os
import signal

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
    from ocis2i.cli import main as run  # noqa: PLC0415 - after the handlers, see above

    run()


def _leave(number: int, _: object) -> None:
    """Ends at once: there is nothing to clean up, before the command line is read and after."""
    with contextlib.suppress(OSError):
        os.write(2, b"error: stopped by %s\n" % _WORDS[signal.Signals(number)])
    os._exit(128 + number)


if __name__ == "__main__":
    main()
