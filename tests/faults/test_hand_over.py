"""Workers that stop, are killed, are frozen and come back: every event once in the lake, counted from outside."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from arena import Arena, wait_for

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]


@pytest.fixture
def arena(kafka: str, tmp_path: Path) -> Iterator[Arena]:
    """Ready with worker A running and events flowing."""
    made = Arena(kafka, tmp_path)
    try:
        made.start("A")
        wait_for(lambda: made.owns("A"), 120, made.tail)
        made.source.start()
        made.more()
        yield made
    finally:
        made.close()


def exact(arena: Arena) -> None:
    """Events sent = rows = distinct, sessions as counted by hand, every user's newest event predicted; all ended."""
    counts, faults = arena.counted(arena.finish())
    print(counts)
    assert faults == [], counts
    assert counts["merges"] > 0


def test_hand_over_by_clean_stops_and_by_kill_minus_nine(arena: Arena) -> None:
    """B takes over from the lake, A comes back with its old file: no row is repeated or skipped, no session cut.

    Then they are killed between two flushes, alone or beside another: a worker redoes what was not committed and
    nothing else.
    """
    arena.signal("A", signal.SIGTERM)
    arena.start("B")
    arena.more()
    arena.start("A")
    arena.more()
    arena.signal("B", signal.SIGTERM)
    arena.more()
    chance = random.Random(1)
    for _ in range(3):
        name = chance.choice(sorted(arena.workers))
        arena.signal(name, signal.SIGKILL)
        arena.start(name if chance.random() < 0.5 else chance.choice("BCD"))
        arena.more(100)
        time.sleep(chance.uniform(0, 4))
        if len(arena.workers) == 1:
            arena.start(next(n for n in "ABCD" if n not in arena.workers))
    exact(arena)


def test_frozen_worker_that_thaws_says_nothing_stale(arena: Arena) -> None:
    """A worker frozen past its session timeout drops what it held; its successor's word stands."""
    arena.start("B")
    wait_for(lambda: arena.owns("B"), 120, arena.tail)
    arena.more()
    arena.signal("A", signal.SIGSTOP)
    frozen_at = time.monotonic()
    wait_for(lambda: len(arena.owns("B")) == 8, 120, arena.tail)
    arena.more()
    wait_for(lambda: time.monotonic() - frozen_at > 20, 30)
    arena.signal("A", signal.SIGCONT)
    arena.more(600)
    exact(arena)
