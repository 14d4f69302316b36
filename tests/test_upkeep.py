"""Compaction, expiry, erasure and pruning beside running readers: no row twice, none missing, no half a model."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from featurestore import lake, segments, verify
from featurestore.events import Event, Origin, Row
from featurestore.lake import Lake, LakeProgress, PartitionKey
from trainer import registry

KEYS = (PartitionKey("shop@log", 0), PartitionKey("shop@log", 1))
STEP, ROUNDS = 20, 50
KEEP_MS = 400_000  # of event time: 400 offsets


def table(key: PartitionKey, first: int, nxt: int) -> pa.Table:
    """A view a second, one in twenty of them by somebody who is forgotten later."""
    rows = []
    for o in range(first, nxt):
        user = "gone" if o % 20 == 7 else f"u{o % 5}"
        event = Event(event_id=f"e{o}", type="view", user_id=user, ts_ms=o * 1000, item_id="i")
        rows.append(Row(event, Origin(key.topic, key.partition, o, 0, o * 1000), "s"))
    return segments.table(rows)


class House:
    """A writer, a keeper, and how far the writer is; an error in one of the threads ends all."""

    def __init__(self, root: Path) -> None:
        self.root, self.over, self.readings = root, threading.Event(), 0

    def until_over(self, step: Callable[[], None]) -> None:
        """Again and again; what goes wrong ends everything."""
        try:
            while not self.over.is_set():
                step()
        finally:
            self.over.set()

    def let_read(self) -> None:
        """Upkeep is rare beside readings, however slow the machine is."""
        upto = self.readings + 18
        while self.readings < upto and not self.over.is_set():
            time.sleep(0.05)

    def write(self) -> None:
        """Segments that touch; some once more, as a zombie's flush comes."""
        mine = Lake(self.root, "worker")
        try:
            for n in range(ROUNDS):
                for key in KEYS:
                    first, nxt = n * STEP, (n + 1) * STEP
                    for begin in (first, max(0, first - STEP // 2))[: 1 + n % 2]:
                        mine.write(key, begin, nxt, table(key, begin, nxt), LakeProgress(
                            next=nxt, watermark_ms=nxt * 1000, stored=nxt))  # fmt: skip
                time.sleep(0.05)
        finally:
            self.over.set()

    def read(self, reader: Lake, forgotten: tuple[str, ...] = ()) -> None:
        """One run of offsets without a hole, up to where the cover says it ends, each once."""

        def looked(cover: lake.Cover) -> list[tuple[PartitionKey, list[int], int]]:
            return [(key, [r.origin.offset for r in cover.rows(key)], cover.end.get(key, 0)) for key in KEYS]

        for key, offsets, end in reader.read(looked, forgotten=forgotten):
            held = [o for o in range(offsets[0] if offsets else 0, end) if not (forgotten and o % 20 == 7)]
            assert offsets == held, (key, end)
            self.readings += bool(offsets)


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as made:
        yield made


def test_rows_read_beside_all_upkeep(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """Segments are written twice, merged, expired and rewritten while three readers read all the time."""
    house = House(tmp_path)
    keeper, files = Lake(tmp_path, "trainer"), threading.Lock()  # as the leading trainer has them
    age_ms = 2_000  # a reader is through with its cover by then; live: ten minutes

    def keep() -> None:
        with files:
            keeper.compact(age_ms, int(time.time() * 1000))
            keeper.expire(KEEP_MS)
        house.let_read()

    def erase() -> None:
        with files:
            keeper.forget(["gone"])
        house.let_read()

    readers = [Lake(tmp_path, f"reader{n}") for n in range(3)]
    jobs: list[Future[None]] = [pool.submit(house.until_over, lambda r=r: house.read(r, ("gone",))) for r in readers]  # type: ignore[misc]
    jobs += [pool.submit(house.until_over, keep), pool.submit(house.until_over, erase), pool.submit(house.write)]
    for job in jobs:
        job.result()
    print(f"{house.readings} readings")
    assert house.readings > 0
    last = ROUNDS * STEP
    for _ in range(3):
        keeper.compact(0, int(time.time() * 1000) + 1_000)
    keeper.expire(KEEP_MS)
    keeper.forget(["gone"])  # the trainer does so every ten seconds
    for part in verify.lake_parts(tmp_path):
        assert [str(f) for f in part.findings if f.fault and f.kind != "counts"] == []
        assert part.end == last
        assert part.files < ROUNDS
    for key in KEYS:
        offsets = [r.origin.offset for r in keeper.cover().rows(key)]
        assert offsets[-1] == last - 1
    assert not any(b"gone" in file.read_bytes() for file in tmp_path.rglob("*.parquet"))


def test_version_read_beside_pruning(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    """A version is whole or not there; the pinned one stays."""
    out = registry.Registry(tmp_path)

    def build(folder: Path) -> None:
        for n in range(5):
            (folder / f"{n}.bin").write_bytes(folder.name.encode() * 2_000)

    pinned, over, found = out.publish(build, {"n": -1}), threading.Event(), {"whole": 0, "gone": 0}

    def publish() -> None:
        for n in range(40):
            out.publish(build, {"n": n})
            out.prune(2, {pinned})
        over.set()

    def read() -> None:
        while not over.is_set():
            for version in out.names():
                try:
                    out.verify(version)
                    found["whole"] += 1
                except (registry.UnknownVersion, FileNotFoundError):
                    found["gone"] += 1

    for job in [pool.submit(read), pool.submit(read), pool.submit(publish)]:
        job.result()
    assert found["whole"] > 0
    assert out.verify(pinned)
    assert len(out.names()) == 3


def test_second_keeper_leaves_the_lake_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one of them writes anew while the other would expire it does not come back; it goes the next time."""
    key, now_ms = KEYS[0], int(time.time() * 1000) + 60_000
    mine, other = Lake(tmp_path, "leader"), Lake(tmp_path, "zombie")
    for first in (0, 10, 20, 30):
        said = LakeProgress(next=first + 10, watermark_ms=100_000)
        segment = segments.place(mine._folder(key), key, first, first + 9)
        segments.write(segment, table(key, first, first + 10), said, "w")
    write = segments.write

    def late(*args: Any) -> None:
        assert other.expire(10_000) == 0
        assert other.forget(["u1"]) == 0
        write(*args)

    monkeypatch.setattr(segments, "write", late)
    assert mine.compact(0, now_ms, 15_000) == 4
    monkeypatch.undo()
    assert other.expire(10_000) > 0
    assert other.forget(["u1"]) > 0
