"""No progress while there is lag: what a restart may mend."""

from __future__ import annotations


class Watchdog:
    """Counts looks, not time: a process that was frozen did not look, and is not blamed for standing still.

    >>> dog = Watchdog(limit=2)
    >>> [dog.stalled(done=7, lag=True) for _ in range(4)]
    [False, False, False, True]
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.still = 0  # looks in a row at which there was lag and nothing had moved
        self._done: object = None

    def stalled(self, *, done: object, lag: bool) -> bool:
        """Look once more; `done` changes with all work. Whether it stood still for more looks than the limit."""
        self.still = self.still + 1 if lag and done == self._done else 0
        self._done = done
        return self.still > self.limit
