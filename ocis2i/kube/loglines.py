"""Where the log of a container was read to, so that it goes on there over another connection. Pure.

Lines cannot be counted: a node rotates its logs, and what it still has may begin anywhere. The API
takes `sinceTime` instead, in whole seconds (metav1.Time): what it sends again is a second or two,
and told apart by time and text. Times of standard output and standard error can be out of order.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

# So much older than the newest line may one be that comes after it.
_DISORDER = timedelta(seconds=1)
# No log is older; to take a second from it is always possible.
_EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)


class LogPlace:
    """The lines of one container that were seen already."""

    def __init__(self) -> None:
        self.count = 0
        self._newest: datetime | None = None
        # Those that are not older than `since`; all others the API does not send again.
        self._seen: Counter[tuple[str, str]] = Counter()
        self._again: Counter[tuple[str, str]] = Counter()

    @property
    def since(self) -> str | None:
        """What to ask for as `sinceTime`, by RFC 3339; all there is when None."""
        start = self._since()
        return start.isoformat() if start else None

    def connected(self) -> None:
        """Another connection begins: what was seen may come again."""
        self._again = Counter(self._seen)

    def is_new(self, time: str, line: str) -> bool:
        """Whether a line was not seen yet; remembers it."""
        key = (time, line)
        if self._again[key] > 0:
            self._again[key] -= 1
            return False
        self.count += 1
        self._seen[key] += 1
        second = _second(time)
        if second is not None and (self._newest is None or second > self._newest):
            self._newest = second
            self._forget()
        return True

    def _since(self) -> datetime | None:
        return self._newest - _DISORDER if self._newest else None

    def _forget(self) -> None:
        start = self._since()
        if start is None:
            return
        for key in [one for one in self._seen if _is_before(one[0], start)]:
            del self._seen[key]


def _is_before(time: str, start: datetime) -> bool:
    second = _second(time)
    return second is not None and second < start


def _second(time: str) -> datetime | None:
    """The second that a time by RFC 3339 is in, nanoseconds or none; `None` for another text."""
    zone = time[19:].lstrip(".0123456789")
    try:
        found = datetime.fromisoformat(time[:19] + zone)
    except ValueError:
        return None
    # What nobody set is Go's zero time: the first second that can be, with none before it.
    return found if found.tzinfo and found >= _EARLIEST else None
