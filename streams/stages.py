"""Where a worker's time goes: seconds by stage since it started, as its beats tell them."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

# In the order an event meets them; fold decodes as well. They overlap: fetch, ack and flush wait and let others go on.
STAGES = ("fetch", "fold", "predict", "send", "ack", "outcomes", "commit", "flush")


class Busy:
    """Wall seconds by stage.

    >>> busy = Busy()
    >>> with busy("fold"):
    ...     pass
    >>> busy.s["fold"] < 1 and busy.s["ack"] == 0
    True
    """

    def __init__(self) -> None:
        self.s = dict.fromkeys(STAGES, 0.0)

    @contextlib.contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Count the time of what is inside; once a batch, not once an event."""
        since = time.perf_counter()
        try:
            yield
        finally:
            self.s[stage] += time.perf_counter() - since
