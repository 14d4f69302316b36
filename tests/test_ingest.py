"""Ingest between a real store and a real lake: when it flushes, what silence raises, who is forgotten."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from featurestore import cover, lake, sessions, store
from streams import ingest, transport
from streams.parts import Batch

TOPIC = "events"


class Worker:
    """One worker's ingest over folders of its own; records come from lists, the outlet acknowledges at once."""

    def __init__(self, folder: Path) -> None:
        self.lake = lake.Lake(folder / "shared", "w")
        self.store = store.Store(folder / "store" / "w.duckdb")
        self.ingest = ingest.Ingest(
            store_=self.store,
            lake_=self.lake,
            settings=sessions.SessionSettings(),
            log_ids={TOPIC: "log"},
            keep_ms=86_400_000,
            keep=("email",),
        )

    async def adopt(self, *partitions: int, end: int = 0) -> None:
        tps = {TP(TOPIC, p) for p in partitions}
        await self.ingest.adopt(tps, dict.fromkeys(tps, (0, end)))

    async def take(self, partition: int, ts_ms: list[int], user: str = "u") -> None:
        """Fold one event an instant, acknowledge and commit."""
        await self._committed(await self.fold(partition, ts_ms, user))

    async def send(self, partition: int, messages: list[dict[str, Any]], *, key: str, at_ms: list[int]) -> None:
        """Fold messages of one key that arrived then, acknowledge and commit."""
        await self._committed(await self._fold(partition, messages, key=key, at_ms=at_ms))

    async def _committed(self, batch: Batch) -> None:
        self.ingest.acknowledged(batch.seq)
        await self.ingest.group_commit()

    async def _fold(self, partition: int, messages: list[dict[str, Any]], *, key: str, at_ms: list[int]) -> Batch:
        part = self.ingest.parts[TP(TOPIC, partition)]
        start = part.read
        records = [
            SimpleNamespace(
                offset=start + n, value=json.dumps(message).encode(), key=key.encode(), headers=[], timestamp=arrived
            )
            for n, (message, arrived) in enumerate(zip(messages, at_ms, strict=True))
        ]
        part.end = max(part.end, start + len(records))
        batch = await self.ingest.fold({TP(TOPIC, partition): transport.Stretch(start=start, records=records)})
        assert batch is not None
        return batch

    async def fold(self, partition: int, ts_ms: list[int], user: str = "u") -> Batch:
        """Fold one event an instant."""
        start = self.ingest.parts[TP(TOPIC, partition)].read
        events = [
            {"event_id": f"{partition}-{offset}", "type": "view", "user_id": user, "item_id": "i", "ts": ts}
            for offset, ts in enumerate(ts_ms, start)
        ]
        return await self._fold(partition, events, key=user, at_ms=ts_ms)

    def segments(self) -> list[str]:
        return sorted(path.name for path in self.lake.root.rglob("*.parquet"))


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[Worker]:
    made = Worker(tmp_path)
    yield made
    made.store.close()


def test_many_rows_reach_the_lake_before_its_time(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commit that makes enough rows flushes; fewer wait for the timer."""
    monkeypatch.setattr(ingest, "FLUSH_ROWS", 10)

    async def steps() -> None:
        await worker.adopt(0, 1)
        await worker.take(0, [1_000] * 6)
        assert worker.segments() == []
        await worker.take(1, [1_000] * 4)
        assert worker.segments() == ["0-3.parquet", "0-5.parquet"]
        await worker.take(0, [2_000] * 9)
        assert len(worker.segments()) == 2

    asyncio.run(steps())


def test_silence_matures_up_to_what_others_have_seen(worker: Worker) -> None:
    """A partition without lag is raised to the largest watermark told, one with lag is not; no row is judged by it."""
    worker.ingest.heard_ms = lambda: 50_000_000

    async def steps() -> None:
        await worker.adopt(0, 1)
        await worker.take(0, [10_000_000])
        await worker.take(1, [20_000_000])
        worker.ingest.parts[TP(TOPIC, 1)].end += 5
        worker.ingest.raise_idle()
        await worker.ingest.flush()

    asyncio.run(steps())
    silent, behind = (worker.lake.progress(lake.PartitionKey(f"{TOPIC}@log", p)) for p in (0, 1))
    assert silent is not None
    assert behind is not None
    lateness = sessions.SessionSettings().lateness_ms
    assert (silent.watermark_ms, silent.mature_ms) == (10_000_000 - lateness, 50_000_000)
    assert (behind.watermark_ms, behind.mature_ms) == (20_000_000 - lateness,) * 2


def test_forgotten_user_leaves_memory_store_and_what_waits(worker: Worker, tmp_path: Path) -> None:
    """Before the next flush the user is nowhere, and later events of theirs are counted and not kept."""
    gone = "somebody-to-forget"

    async def steps() -> None:
        await worker.adopt(0)
        await worker.take(0, [1_000], user="stays")
        await worker.take(0, [1_000], user=gone)
        worker.ingest.told_forgotten = lambda: frozenset({gone})
        await worker.ingest.flush()
        await worker.take(0, [2_000], user=gone)
        await worker.ingest.flush()

    asyncio.run(steps())
    part = worker.ingest.parts[TP(TOPIC, 0)]
    assert [s.user_id for s in part.open.sessions()] == ["stays"]
    assert (part.open.stored, part.open.rejected) == (2, 1)
    assert worker.ingest.erased == {gone: 0}
    assert [r.event.user_id for r in worker.lake.cover().rows()] == ["stays"]
    worker.store.connection.execute("CHECKPOINT")
    assert not any(gone.encode() in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_other_systems_events_are_taken_with_what_their_message_tells(worker: Worker) -> None:
    """What a dialect leaves to the message is taken from it; a listed personal field stays; no act is no event."""
    track = {
        "type": "track", "messageId": "m1", "userId": "u", "event": "Product Viewed",
        "properties": {"product_id": "p1", "email": "a@b.c", "phone": "+49 1"},
    }  # fmt: skip
    identify = {"type": "identify", "messageId": "m2", "userId": "u", "timestamp": "2026-03-01T10:00:00Z"}

    async def steps() -> None:
        await worker.adopt(0)
        await worker.send(0, [track, identify], key="u", at_ms=[5_000_000_000, 6_000_000_000])

    asyncio.run(steps())
    (row,) = worker.store.rows(worker.ingest.parts[TP(TOPIC, 0)].key, 0)
    assert (row.event.user_id, row.event.ts_ms, row.event.item_id) == ("u", 5_000_000_000, "p1")
    assert "a@b.c" in (row.event.properties or "")
    assert "+49 1" not in (row.event.properties or "")
    assert (worker.ingest.events, worker.ingest.nothing, worker.ingest.dead_letters) == (1, 1, 0)


def test_log_that_ends_below_what_was_read_stops_the_worker(worker: Worker) -> None:
    """A shorter log under the same id is never skipped up to where the old one was; what a lookup tells is no proof."""

    async def steps() -> None:
        await worker.adopt(0)
        await worker.take(0, [1_000] * 5)
        await worker.ingest.release({TP(TOPIC, 0)}, drop=False)
        await worker.adopt(0, end=4)  # as Tansu's offset lookup does
        worker.ingest.raise_idle()
        old, new = SimpleNamespace(offset=3), SimpleNamespace(offset=0)
        queued = transport.Stretch(start=3, records=[old], end=4)  # it waited since before somebody else read on
        assert await worker.ingest.fold({TP(TOPIC, 0): queued}) is not None
        with pytest.raises(ingest.LogBehindProgress):
            await worker.ingest.fold({TP(TOPIC, 0): transport.Stretch(start=5, records=[new], end=4)})

    asyncio.run(steps())


def test_empty_log_ends_at_zero_and_is_no_log_that_was_read(worker: Worker) -> None:
    """An end of 0 counts as any other; below what was read it stops the worker, once it is not for a moment only."""
    empty, read = TP(TOPIC, 0), TP(TOPIC, 1)

    async def steps() -> None:
        await worker.adopt(0, 1, end=4)
        await worker.take(1, [1_000] * 5)

    asyncio.run(steps())
    worker.ingest.hear_end(empty, 0)
    assert worker.ingest.parts[empty].end == 0
    for _ in range(ingest.BEHIND_BEATS):
        worker.ingest.hear_end(read, 0)
    worker.ingest.hear_end(read, 5)
    for _ in range(ingest.BEHIND_BEATS):
        worker.ingest.hear_end(read, 0)
    with pytest.raises(ingest.LogBehindProgress, match="needs offset 5, the log ends at 0"):
        worker.ingest.hear_end(read, 0)


def test_events_are_folded_while_a_flush_waits_for_the_disk(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow disk holds back commits and lake, not the fold; nothing is committed twice or lost by it."""
    began, disk, write = threading.Event(), threading.Event(), worker.lake.write

    def slow(*arguments: Any) -> Path | None:
        began.set()
        disk.wait(30)
        return write(*arguments)

    async def steps() -> None:
        await worker.adopt(0)
        await worker.take(0, [1_000] * 3)
        monkeypatch.setattr(worker.lake, "write", slow)
        flush = asyncio.create_task(worker.ingest.flush())
        await asyncio.to_thread(began.wait, 30)
        record = SimpleNamespace(offset=3, value=b"[]", key=b"u", headers=[], timestamp=1_000)
        batch = await worker.ingest.fold({TP(TOPIC, 0): transport.Stretch(start=3, records=[record])})
        assert batch is not None
        assert not flush.done()
        worker.ingest.acknowledged(batch.seq)
        disk.set()
        await flush
        await worker.ingest.flush()

    asyncio.run(steps())
    assert worker.segments() == ["0-2.parquet", "3-3.parquet"]


def test_much_that_waits_for_its_commit_holds_the_fold_back(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is folded and not committed lies in memory: beyond a number of rows there is no room until a commit."""
    monkeypatch.setattr(ingest, "WAITING_ROWS", 5)

    async def steps() -> None:
        await worker.adopt(0)
        first = await worker.fold(0, [1_000] * 4)
        assert worker.ingest.room.is_set()
        second = await worker.fold(0, [2_000])
        assert not worker.ingest.room.is_set()
        worker.ingest.acknowledged(first.seq)
        await worker.ingest.group_commit()
        assert worker.ingest.room.is_set()
        assert list(worker.ingest.waiting) == [second]

    asyncio.run(steps())


def test_a_commits_worth_of_rows_is_not_kept_waiting(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The group commit comes after its time, or as soon as enough is acknowledged."""
    monkeypatch.setattr(ingest, "COMMIT_S", 1e9)
    monkeypatch.setattr(ingest, "COMMIT_ROWS", 3)

    async def steps() -> None:
        await worker.adopt(0)
        due = asyncio.create_task(worker.ingest.due())
        for count in (1, 3):
            batch = await worker.fold(0, [1_000] * count)
            await asyncio.sleep(0)
            assert not due.done()
            worker.ingest.acknowledged(batch.seq)
        await asyncio.wait_for(due, 60)

    asyncio.run(steps())


def test_partition_that_comes_back_is_not_read_from_the_lake(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """A rebalance takes all and gives most back: those are in the file still; what went to others is dropped."""
    keys = [lake.PartitionKey(f"{TOPIC}@log", p) for p in range(3)]
    tps = {TP(TOPIC, p) for p in range(3)}

    async def steps() -> None:
        await worker.adopt(0, 1, 2)
        for partition in range(3):
            await worker.take(partition, [1_000, 2_000])
        uncommitted = await worker.fold(0, [3_000])
        await worker.ingest.release(tps, drop=True)
        taken = lake.LakeProgress(next=4, watermark_ms=2_000, stored=4)  # another one had partition 1 for a while
        rows = worker.store.flush_rows({keys[1]: (0, 2)})[keys[1]]
        worker.lake.write(keys[1], 2, 4, rows.set_column(2, "offset", [[2, 3]]), taken)
        with monkeypatch.context() as patched:
            patched.setattr(cover.Cover, "restorable", lambda *_: pytest.fail("the lake was read"))
            await worker.adopt(0)
        assert worker.ingest.parts[TP(TOPIC, 0)].read == 2
        assert [len(s.rows) for s in worker.ingest.parts[TP(TOPIC, 0)].open.sessions()] == [2]
        assert uncommitted.rows[0].origin.offset == 2
        assert set(worker.store.progress()) == {keys[0]}
        await worker.adopt(0, 1)
        assert worker.ingest.parts[TP(TOPIC, 1)].read == 4
        assert [r.origin.offset for r in worker.store.rows(keys[1], 0)] == [0, 1, 2, 3]

    asyncio.run(steps())
