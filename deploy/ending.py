"""A stop ends in time, whoever does not answer."""

from __future__ import annotations

import os
import threading

import structlog

log = structlog.get_logger()

LIMIT_S = 8.0  # less than the supervisor waits, and than container runtimes do
CUT_SHORT = 4  # the exit code of a stop that was not waited for to its end


def within(limit_s: float = LIMIT_S) -> None:
    """From now on this process has so long to end by itself; then it is ended as a kill would.

    Nothing is lost by it: progress is committed behind acknowledgements only, what lies above it is read again.
    """
    timer = threading.Timer(limit_s, _cut_short, (limit_s,))
    timer.daemon = True
    timer.start()


def _cut_short(limit_s: float) -> None:
    try:
        log.warning("Ended without its goodbyes: the broker does not answer. What was acknowledged is kept, the rest "
                    "will be read again.", after_s=limit_s)  # fmt: skip
    finally:
        os._exit(CUT_SHORT)
