"""What a worker holds while people, items and searches come and go: it must stay flat once the window is full.

    python tests/benchmarks/soak.py [--events 3000000] [--every 250000] [--window 30m] [--json FILE]

The product's worker and trainer behind a real Kafka; events come as fast as the worker takes them, at most `AHEAD` of
what it has read. A line every so many events: what the worker's process, its file and the lake hold, and what an event
cost, beside a loop that always does the same (`loop_ms`: how fast the machine is just then). Bytes in MB. At the end
all is counted from outside; the program ends with 1 where a count is off. SIGUSR1 makes the end come now.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka
import duckdb
import visits

sys.path.append(str(Path(__file__).parents[1] / "faults"))
from one_worker import PARTITIONS, ROOT, Site

from deploy import kafka as real_kafka
from deploy import notation

AHEAD = 20_000  # events sent and not read
TOGETHER = 500  # events sent between two looks at how far the worker is
SETTINGS = {
    "horizon__next": "1m", "horizon__purchase": "10m", "window": "20000", "n_min": "200", "tune": "off",
}  # fmt: skip
COLUMNS = (
    "events", "seconds", "cpu_us", "loop_ms", "predicted", "lag", "rss", "store", "lake", "files", "open", "words",
    "items", "sessions", "texts", "swaps",
)  # fmt: skip


class Feed(threading.Thread):
    """The producer; what it sent stands in `kinds` and `stamps`, by partition and offset."""

    def __init__(self, address: str, topic: str, count: int) -> None:
        super().__init__(name="feed", daemon=True)
        self.address, self.topic, self.count = address, topic, count
        self.sent, self.read = 0, 0  # `read`: told by who looks at the worker
        self.kinds = [bytearray() for _ in range(PARTITIONS)]
        self.stamps = [array("q") for _ in range(PARTITIONS)]
        self.hold, self.over = threading.Event(), threading.Event()  # send nothing while; send no more
        self.failed: Exception | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._feed())
        except Exception as error:
            self.failed = error

    async def _feed(self) -> None:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=self.address, linger_ms=5, max_batch_size=2**18, enable_idempotence=True
        )  # idempotent: each record once, in order
        async with producer:
            for at_ms, key, value, kind in visits.events(self.count):
                if self.sent % TOGETHER == 0:
                    while self.hold.is_set() or self.sent - self.read > AHEAD:
                        await asyncio.sleep(0.02)
                    if self.over.is_set():
                        break
                partition = int(key[2:]) % PARTITIONS
                await producer.send(self.topic, value, key=key, partition=partition)
                self.kinds[partition].append(kind)
                self.stamps[partition].append(at_ms)
                self.sent += 1
            await producer.flush()

    def total(self, kind: int) -> int:
        """How many of a kind were sent."""
        return sum(kinds.count(kind) for kinds in self.kinds)


class Soak:
    """A worker, a trainer, a feed, and the series."""

    def __init__(self, address: str, folder: Path, asked: argparse.Namespace) -> None:
        self.asked, self.folder = asked, folder
        said = SETTINGS | {"store__keep": asked.window, "lake__keep": asked.window, "cadence": asked.cadence}
        self.site = Site(address, folder, encoder=asked.encoder, **said)
        self.feed = Feed(address, self.site.events, asked.events)
        self.began_s, self.cpu_s, self.read, self.predicted = time.monotonic(), 0.0, 0, 0
        self.places: dict[str, int] = {}  # how far each partition was read

    def run(self) -> list[dict[str, float]]:
        """Feed it, look at it, end it cleanly; after the first line of the series a version is waited for."""
        site, series = self.site, list[dict[str, float]]()
        site.said.pop("bots.pace")  # the default: its people act as people do
        site.start()
        trainer = self._trainer()
        print(row(COLUMNS), flush=True)
        self.began_s, self.cpu_s = time.monotonic(), self._cpu_s()
        signal.signal(signal.SIGUSR1, lambda *_: self.feed.over.set())
        self.feed.start()
        try:
            while self.read < self.goal:
                self.look(site.until(self._news, 300), series)
                if len(series) == 1 and not site.beat["swaps"]:
                    self.feed.hold.set()
                    site.until(lambda beat: beat["swaps"], 900)
                    self.feed.hold.clear()
            site.until(lambda beat: beat["lag"] == 0 and site.counts()["next"] >= self.goal)
        finally:
            trainer.terminate()
            trainer.wait(60)
        assert site.stop() == 0, site.told()[-2000:]
        return series

    def look(self, beat: dict[str, Any], series: list[dict[str, float]]) -> None:
        """Let the feed know how far the worker is; a line where another `every` events were read."""
        if self.feed.failed is not None:
            raise self.feed.failed
        self.places |= beat["partitions"]
        read, every = sum(self.places.values()), self.asked.every
        self.feed.read = read
        if read // every > self.read // every or self.read < self.goal <= read:
            series.append(self.held(beat))
            print(row(series[-1].values()), flush=True)

    def _trainer(self) -> subprocess.Popen[bytes]:
        with (self.folder / "trainer.log").open("ab") as log:
            command = [sys.executable, "-m", "deploy.cli", "trainer", *self.site.options()]
            return subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def _news(self, beat: dict[str, Any]) -> bool:
        return sum((self.places | beat["partitions"]).values()) > self.feed.read or self.feed.read >= self.goal

    @property
    def goal(self) -> int:
        """How many events are sent in all."""
        return self.asked.events if self.feed.is_alive() or not self.feed.over.is_set() else self.feed.sent

    def _cpu_s(self) -> float:
        assert self.site.process is not None
        fields = Path(f"/proc/{self.site.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def held(self, beat: dict[str, Any]) -> dict[str, float]:
        """One line of the series; costs are those since the line before."""
        assert self.site.process is not None
        read, cpu_s, lake = self.feed.read, self._cpu_s(), self.site.shared / "events"
        resident = int(Path(f"/proc/{self.site.process.pid}/statm").read_text().split()[1])
        cpu_us = 1e6 * (cpu_s - self.cpu_s) / (read - self.read)
        predicted = (beat["predictions"] - self.predicted) / (read - self.read)
        self.read, self.cpu_s, self.predicted = read, cpu_s, beat["predictions"]
        holds = beat["memory"]
        return dict(zip(COLUMNS, (
            read, round(time.monotonic() - self.began_s), round(cpu_us, 1), reference_ms(), round(predicted, 3),
            self.feed.sent - read, resident * os.sysconf("SC_PAGESIZE") // 2**20,
            size_mb(Path(self.site.said["store.folder"])), size_mb(lake), sum(1 for _ in lake.rglob("*.parquet")),
            beat["open_sessions"], holds["words"], holds["items"], holds["sessions"], holds["texts"], beat["swaps"],
        ), strict=True))  # fmt: skip

    def counted(self) -> list[str]:
        """What is not as it must be, after all have ended."""
        site, feed = self.site, self.feed
        counts, faults = site.counts(), []
        told = {"stored": visits.STORED, "duplicates": visits.REPEATED, "rejected": visits.REFUSED}
        for name, kind in told.items():
            if counts[name] != feed.total(kind):
                faults.append(f"{counts[name]:,} {name}, {feed.total(kind):,} sent")
        if (letters := sum(1 for _ in site.each(site.dead_letters))) != feed.total(visits.REFUSED):
            faults.append(f"{letters:,} dead letters, {feed.total(visits.REFUSED):,} messages that are no event")
        lake: list[set[int]] = [set() for _ in range(PARTITIONS)]
        for partition, offset, *_ in site.rows("n"):
            if offset in lake[partition]:
                faults.append(f"partition {partition}, offset {offset} is there twice")
            lake[partition].add(offset)
        newest_ms, keep_ms, firsts = max(map(max, feed.stamps)), notation.duration(self.asked.window), [*map(min, lake)]
        expired, youngest_ms = 0, 0
        for p, found in enumerate(lake):
            wanted = {offset for offset, kind in enumerate(feed.kinds[p]) if kind == visits.STORED}
            gone = [offset for offset in wanted if offset < firsts[p]]
            expired += len(gone)
            youngest_ms = max([youngest_ms, *(feed.stamps[p][offset] for offset in gone)])
            if found != wanted - set(gone):
                faults.append(f"partition {p}: the lake lacks {len(wanted - found) - len(gone)} rows")
        if newest_ms - youngest_ms < keep_ms:
            faults.append(
                f"a row of {(newest_ms - youngest_ms) / 1000:.0f} s ago went; {keep_ms / 1000:.0f} s are kept"
            )
        held = set(self._store())
        if any(offset >= firsts[p] and offset not in lake[p] for p, offset in held):  # open sessions keep older ones
            faults.append("the worker's file has rows that the lake lacks")
        print(f"{feed.sent:,} sent = {counts['stored']:,} stored + {counts['duplicates']:,} duplicates + "
              f"{counts['rejected']:,} rejected (as many dead letters); of the stored {sum(map(len, lake)):,} lie in "
              f"the lake and {expired:,} have expired, {len(held):,} are in the worker's file too")  # fmt: skip
        return faults

    def _store(self) -> Iterator[tuple[int, int]]:
        """Places of the rows in the worker's file."""
        [path] = Path(self.site.said["store.folder"]).glob("*.duckdb")
        with duckdb.connect(str(path), read_only=True) as file:
            yield from file.execute('SELECT "partition", "offset" FROM events').fetchall()


def reference_ms() -> float:
    """CPU time of a loop that is always the same."""
    begun = time.process_time()
    total = 0
    for i in range(500_000):
        total += i % 7
    return round((time.process_time() - begun) * 1000, 1)


def size_mb(folder: Path) -> float:
    """Bytes of all files below a folder; one that goes meanwhile counts nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return round(total / 2**20, 1)


def row(values: Any) -> str:
    """One line of the table."""
    return "  ".join(f"{v:>9,}" if not isinstance(v, str) else f"{v:>9}" for v in values)


def main() -> None:
    """Parse, run, print, count."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--events", type=int, default=3_000_000)
    asked.add_argument("--every", type=int, default=250_000)
    asked.add_argument("--window", default="30m", help="store.keep and lake.keep, event time")
    asked.add_argument("--cadence", default="2m", help="as the setting: a version that often, swapped in")
    asked.add_argument("--encoder", default="none", help="as the setting: none, auto or a path")
    asked.add_argument("--json", type=Path, help="write the series there, too")
    said = asked.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="nextclick-soak-") as folder,
        real_kafka.start(0, Path(folder) / "kafka") as broker,
    ):
        soak = Soak(broker.address, Path(folder), said)
        try:
            series, faults = soak.run(), soak.counted()
        finally:
            soak.site.close()
    if said.json:
        said.json.write_text(json.dumps(series, indent=1), encoding="utf-8")
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
