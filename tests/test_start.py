"""Where a partition goes on after its lake, its store or Kafka lost something: all of the rows, or a number."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore import sessions, store
from featurestore.events import Event, Origin, Row
from featurestore.lake import Lake, LakeProgress, PartitionKey
from streams import start

KEY = PartitionKey("shop@log", 0)
SETTINGS = sessions.SessionSettings()


def row(offset: int) -> Row:
    """A view at second `offset`."""
    event = Event(event_id=f"e{offset}", type="view", user_id="u", ts_ms=offset * 1000, item_id="i")
    return Row(event, Origin(KEY.topic, KEY.partition, offset, 0, offset * 1000), "s")


def said(nxt: int) -> store.Progress:
    """Every offset below held one row."""
    return store.Progress(nxt, nxt * 1000, nxt, 0, 0)


class House:
    """A lake of segments of ten rows, and a store that holds what is asked for."""

    def __init__(self, root: Path) -> None:
        self.lake, self.store = Lake(root, "w"), store.Store(root / "store" / "w.duckdb")
        self.rule = start.Rule(store_=self.store, lake_=self.lake, settings=SETTINGS, keep_ms=86_400_000)

    def flushed(self, *firsts: int) -> None:
        """Segments that begin there."""
        for first in firsts:
            self.lake.write_rows(KEY, first, [row(o) for o in range(first, first + 10)], LakeProgress(
                next=first + 10, watermark_ms=first * 1000 + 10_000, stored=first + 10))  # fmt: skip

    def stored(self, first: int, nxt: int) -> None:
        """Rows of the store, which stands behind them."""
        self.store.commit(store.Batch([row(o) for o in range(first, nxt)], {KEY: said(nxt)}))

    def start(self, first: int = 0) -> tuple[int, int, int]:
        """Next offset, flushed up to, offsets missing."""
        found = self.rule.start(KEY, first)
        assert self.store.progress().get(KEY, found.progress) == found.progress
        return found.progress.next, found.flushed, found.missing

    def offsets(self) -> list[int]:
        """What the cover yields."""
        return [r.origin.offset for r in self.lake.cover().rows()]

    def flush(self, flushed: int) -> None:
        """As a worker flushes what the store holds."""
        nxt = self.store.progress()[KEY].next
        self.lake.write(
            KEY, flushed, nxt, self.store.flush_rows({KEY: (flushed, nxt)})[KEY], self.store.progress()[KEY]
        )


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    made = House(tmp_path)
    yield made
    made.store.close()


def lose(house: House, first: int) -> None:
    """A segment goes."""
    next(house.lake.root.rglob(f"{first}-*.parquet")).unlink()


def test_larger_of_both(house: House) -> None:
    """The store where it is ahead, the lake where that is; a log that nobody read from its start."""
    assert house.start(first=7) == (7, 7, 0)
    house.flushed(0, 10)
    assert house.start() == (20, 20, 0)
    assert [r.origin.offset for r in house.store.rows(KEY, 0)] == list(range(20))
    house.stored(20, 25)
    assert house.start() == (25, 20, 0)


def test_gap_that_the_store_can_fill_is_filled(house: House) -> None:
    """Its rows go to the lake once more."""
    house.stored(0, 35)
    house.flushed(0, 10, 20)
    lose(house, 10)
    assert house.start() == (35, 10, 0)
    house.flush(10)
    assert house.offsets() == list(range(35))


def test_gap_that_only_kafka_can_fill_is_read_again(house: House) -> None:
    """A store that dropped old rows never passes for the whole: it starts again where the lake ends."""
    house.stored(0, 35)
    house.flushed(0, 10, 20)
    house.store.connection.execute('DELETE FROM events WHERE "offset" < 25')  # as eviction does
    lose(house, 10)
    assert house.start() == (10, 10, 0)
    assert house.store.progress()[KEY] == said(10)


def test_gap_that_nobody_can_fill_is_counted_and_passed_over(house: House) -> None:
    """What lies behind it stays in the cover, and reading goes on behind that."""
    house.flushed(0, 10, 20)
    lose(house, 10)
    assert house.start(first=28) == (30, 30, 10)
    assert house.offsets() == [*range(10), *range(20, 30)]


def test_gap_that_kafka_can_fill_in_part(house: House) -> None:
    """Only what is gone is passed over."""
    house.flushed(0, 10, 20)
    lose(house, 10)
    assert house.start(first=14) == (14, 14, 4)
    assert house.lake.cover().end == {KEY: 14}


def test_lake_that_is_gone_is_read_again(house: House) -> None:
    """A store that evicted rows is no substitute for it; one that holds all of them is."""
    house.stored(0, 35)
    assert house.start() == (35, 0, 0)
    house.store.connection.execute('DELETE FROM events WHERE "offset" < 25')
    assert house.start() == (0, 0, 0)
    assert house.store.rows(KEY, 0) == []


def test_lost_rows_that_kafka_dropped_too(house: House) -> None:
    """What the store still has is not thrown away."""
    house.flushed(0)
    house.stored(0, 35)
    house.store.connection.execute('DELETE FROM events WHERE "offset" < 25')
    assert house.start(first=30) == (35, 10, 0)
    assert [r.origin.offset for r in house.store.rows(KEY, 0)] == list(range(25, 35))


def test_retention_ahead_of_the_lake(house: House) -> None:
    """The lake's end is what is needed; the caller counts what Kafka no longer has of it."""
    house.flushed(0)
    assert house.start(first=50) == (10, 10, 0)
