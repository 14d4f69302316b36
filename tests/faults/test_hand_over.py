"""Workers that stop, are killed, are frozen and come back: every event once in the lake, counted from outside."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import kafka as client
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]


class Arena:
    """A topic set of its own, a steady producer, workers to be treated badly. Shares no code with the product."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.tag = uuid.uuid4().hex[:8]
        self.events = f"events-{self.tag}"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.sent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce)

    def start(self, name: str) -> None:
        """Start a worker; its file and log lie in the arena's folder."""
        topics = {"events": self.events}
        topics |= {t: f"{t}-{self.tag}" for t in ("items", "dead_letters", "predictions", "control", "state")}
        said = {f"topics.{k}": v for k, v in topics.items()} | {"encoder": "none", "kafka": self.address}
        said |= {"shared": str(self.folder / "shared"), "store.folder": str(self.folder / name), "worker": name}
        arguments = [a for k, v in said.items() for a in ("--set", f"{k}={v}")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.workers[name] = subprocess.Popen(
                [sys.executable, "-m", "deploy.worker", *arguments],
                stdout=log,
                stderr=log,
                cwd=Path(__file__).parents[2],
            )

    def signal(self, name: str, number: int) -> None:
        """Send a signal and, where it ends the worker, wait for the end."""
        worker = self.workers[name]
        worker.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            worker.wait(30)
            del self.workers[name]

    def produce(self) -> None:
        """Begin to send about 300 events a second."""
        self._thread.start()

    def _produce(self) -> None:
        producer = client.KafkaProducer(bootstrap_servers=self.address, acks="all", linger_ms=20)
        while not self._stop.is_set():
            for _ in range(15):
                user = f"u{self.sent % 97}"
                event = {"event_id": f"e{self.sent}", "type": "view", "user_id": user, "item_id": f"i{self.sent % 31}"}
                event["ts"] = int(time.time() * 1000)  # type: ignore[assignment]
                producer.send(self.events, key=user.encode(), value=json.dumps(event).encode())
                self.sent += 1
            producer.flush()
            self._stop.wait(0.05)
        producer.close()

    def finish(self) -> None:
        """Stop sending; then let every worker that still runs end cleanly once all is in the lake."""
        self._stop.set()
        self._thread.join()
        wait_for(lambda: self.cover()[0] >= self.sent, 90, lambda: f"{self.cover()} of {self.sent}: {self.tail()}")

    def cover(self) -> tuple[int, int, int]:
        """Rows, distinct places and distinct event ids, by the readers' rule: sort by (first, −last), read above."""
        parts = defaultdict(list)
        for path in (self.folder / "shared").glob(f"events/t={self.events}*/p=*/*.parquet"):
            first, last = path.stem.split(".")[0].split("-")
            parts[path.parent].append((int(first), -int(last), path))
        rows = []
        for folder, segments in parts.items():
            upto = -1
            for _, last, path in sorted(segments):
                if -last > upto:
                    query = f"SELECT \"offset\", n, event_id FROM read_parquet('{path}', hive_partitioning=false)"
                    found = duckdb.sql(f'{query} WHERE "offset" > {upto}').fetchall()
                    rows += [(str(folder), *r) for r in found]
                    upto = -last
        return len(rows), len({r[:3] for r in rows}), len({r[3] for r in rows})

    def stale(self) -> list[str]:
        """Users whose newest prediction's trigger is not their newest event."""
        consumer = client.KafkaConsumer(bootstrap_servers=self.address, enable_auto_commit=False)
        newest: dict[str, dict[str, int]] = {self.events: {}, f"predictions-{self.tag}": {}}
        for topic, users in newest.items():
            parts = [client.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            ends = consumer.end_offsets(parts)
            while any(consumer.position(p) < ends[p] for p in parts):
                for records in consumer.poll(500).values():
                    for record in records:
                        user = record.key.decode()
                        offset = (
                            record.offset if topic == self.events else json.loads(record.value)["trigger"]["offset"]
                        )
                        users[user] = max(users.get(user, -1), offset)
        consumer.close()
        events, predicted = newest.values()
        return [user for user, offset in events.items() if predicted.get(user) != offset]

    def tail(self) -> str:
        """The ends of the logs, for a failure's message."""
        return "\n".join(p.read_text(errors="replace")[-1500:] for p in self.folder.glob("*.log"))

    def close(self) -> None:
        """End everything, whatever state it is in."""
        self._stop.set()
        for worker in self.workers.values():
            worker.kill()
            worker.wait()


def wait_for(done: Callable[[], bool], seconds: float, why: Callable[[], str] = str) -> None:
    """Wait for a condition; fail with what it looked like at the end."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


@pytest.fixture
def arena(kafka: str, tmp_path: Path) -> Iterator[Arena]:
    """Ready with worker A running and events flowing."""
    made = Arena(kafka, tmp_path)
    try:
        made.start("A")
        wait_for(lambda: "Partition assigned" in made.tail(), 60, made.tail)
        made.produce()
        wait_for(lambda: made.cover()[0] > 300, 60, made.tail)
        yield made
    finally:
        made.close()


def more(arena: Arena, rows: int = 600) -> None:
    """Wait until the lake holds so many rows more."""
    before = arena.cover()[0]
    wait_for(lambda: arena.cover()[0] > before + rows, 60, arena.tail)


def exact(arena: Arena) -> None:
    """Events sent = rows in the cover = distinct, and every user's newest event has its prediction."""
    arena.finish()
    assert arena.cover() == (arena.sent, arena.sent, arena.sent)
    assert arena.stale() == []


def test_a_to_b_to_a_by_clean_stops(arena: Arena) -> None:
    """B takes over from the lake; A comes back with its old file and neither repeats nor skips a row."""
    arena.signal("A", signal.SIGTERM)
    arena.start("B")
    more(arena)
    arena.start("A")
    more(arena)
    arena.signal("B", signal.SIGTERM)
    more(arena)
    exact(arena)


def test_kill_minus_nine(arena: Arena) -> None:
    """Killed at any moment, a worker redoes what was not committed and nothing else."""
    for _ in range(3):
        arena.signal("A", signal.SIGKILL)
        arena.start("A")
        more(arena, 300)
    arena.signal("A", signal.SIGKILL)
    arena.start("B")
    more(arena)
    exact(arena)


def test_frozen_worker_that_thaws_says_nothing_stale(arena: Arena) -> None:
    """A worker frozen past its session timeout drops what it held; its successor's word stands."""
    arena.start("B")
    wait_for(lambda: "Partition assigned" in (arena.folder / "B.log").read_text(), 60, arena.tail)
    more(arena)
    arena.signal("A", signal.SIGSTOP)
    frozen_at = time.monotonic()
    wait_for(lambda: time.monotonic() - frozen_at > 12, 20)
    arena.signal("A", signal.SIGCONT)
    more(arena, 1_000)
    exact(arena)
