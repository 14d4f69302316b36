"""Workers that stop, are killed, are frozen and come back: every event once in the lake, counted from outside."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import duckdb
import kafka as client
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

GAP_MS, LATENESS_MS = 3_000, 6_000
USERS = 997  # about one event in 3.3 s each: sessions open, end and are bridged all the time
BACK_MS = 4_000  # how far some event times lie behind their sending: less than the lateness, so nothing is late


class Arena:
    """A topic set of its own, a steady producer, workers to be treated badly. Shares no code with the product."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.tag = uuid.uuid4().hex[:8]
        self.events = f"events-{self.tag}"
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.sent = 0
        self.frozen_ms = 0.0
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._produce)

    def start(self, name: str) -> None:
        """Start a worker; its file and log lie in the arena's folder."""
        topics = {"events": self.events}
        topics |= {t: f"{t}-{self.tag}" for t in ("items", "dead_letters", "predictions", "control", "state")}
        said = {f"topics.{k}": v for k, v in topics.items()} | {"encoder": "none", "kafka": self.address}
        said |= {"session.gap": f"{GAP_MS}ms", "session.lateness": f"{LATENESS_MS}ms"}
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
        chance = self._random
        while not self._stop.is_set():
            for _ in range(15):
                user = f"u{chance.randrange(USERS)}"
                event = {"event_id": f"e{self.sent}", "type": "view", "user_id": user, "item_id": f"i{self.sent % 31}"}
                back_ms = chance.randrange(BACK_MS) if chance.random() < 0.2 else 0
                event["ts"] = int(time.time() * 1000) - back_ms  # type: ignore[assignment]
                producer.send(self.events, key=user.encode(), value=json.dumps(event).encode())
                self.sent += 1
            producer.flush()
            self._stop.wait(0.05)
        producer.close()

    def finish(self) -> None:
        """Stop sending, wait until all is in the lake and predicted for, then end every worker cleanly."""
        self._stop.set()
        self._thread.join()
        wait_for(lambda: self.cover()[0] >= self.sent, 120, lambda: f"{self.cover()} of {self.sent}: {self.tail()}")
        wait_for(lambda: not self.told().stale, 30, lambda: f"{self.told()}: {self.tail()}")
        for name in list(self.workers):
            self.signal(name, signal.SIGTERM)

    def rows(self, columns: str) -> list[tuple[Any, ...]]:
        """Folder, offset, n and some columns of every row, by the readers' rule: by (first, −last), read above."""
        parts = defaultdict(list)
        for path in (self.folder / "shared").glob(f"events/t={self.events}*/p=*/*.parquet"):
            first, last = path.stem.split(".")[0].split("-")
            parts[path.parent].append((int(first), -int(last), path))
        rows: list[tuple[Any, ...]] = []
        for folder, segments in parts.items():
            upto = -1
            for _, last, path in sorted(segments):
                if -last > upto:
                    query = f"SELECT \"offset\", n, {columns} FROM read_parquet('{path}', hive_partitioning=false)"
                    found = duckdb.sql(f'{query} WHERE "offset" > {upto}').fetchall()
                    rows += [(str(folder), *r) for r in found]
                    upto = -last
        return rows

    def cover(self) -> tuple[int, int, int]:
        """Rows, distinct places and distinct event ids."""
        rows = self.rows("event_id")
        return len(rows), len({r[:3] for r in rows}), len({r[3] for r in rows})

    def sessions(self) -> tuple[set[frozenset[str]], int]:
        """The event ids of each session, recorded merges applied, and how many merges there were."""
        rows = self.rows("event_id, user_id, session_id, absorbs")
        into = {(user, gone): sid for *_, user, sid, absorbs in rows for gone in absorbs or ()}
        found = defaultdict(set)
        for *_, event, user, sid, _ in rows:
            while (user, sid) in into:
                sid = into[user, sid]
            found[user, sid].add(event)
        return {frozenset(ids) for ids in found.values()}, len(into)

    def read(self, topic: str) -> list[Any]:
        """Every record of a topic, each partition in its order."""
        consumer = client.KafkaConsumer(bootstrap_servers=self.address, enable_auto_commit=False)
        parts = [client.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends, found = consumer.end_offsets(parts), []
        while any(consumer.position(p) < ends[p] for p in parts):
            for records in consumer.poll(500).values():
                found += records
        consumer.close()
        return found

    def chains(self) -> set[frozenset[str]]:
        """What the sessions have to be: a user's events in order of event time, cut where the gap is longer."""
        users = defaultdict(list)
        for record in self.read(self.events):
            event = json.loads(record.value)
            users[event["user_id"]].append((event["ts"], event["event_id"]))
        found = set()
        for events in users.values():
            events.sort()
            chain = [events[0]]
            for event in events[1:]:
                if event[0] - chain[-1][0] > GAP_MS:
                    found.add(frozenset(name for _, name in chain))
                    chain = []
                chain.append(event)
            found.add(frozenset(name for _, name in chain))
        return found

    def told(self) -> Told:
        """The predictions in the order of the log, as a consumer upserts them that ignores a lower trigger.

        A lower one is a zombie's where it is about an event from before the freeze and one after it was answered. Made
        before the freeze it was on its way: only the consumer's rule helps. Made after it, it must not be there.
        """
        newest, sent_ms = {}, {}
        for record in self.read(self.events):
            newest[record.key.decode()] = (record.partition, record.offset)
            sent_ms[record.partition, record.offset] = record.timestamp
        told = Told()
        seen: dict[str, tuple[int, int]] = {}
        for record in self.read(f"predictions-{self.tag}"):
            user, prediction = record.key.decode(), json.loads(record.value)
            place = (prediction["trigger"]["partition"], prediction["trigger"]["offset"])
            before = seen.get(user, place)
            if place >= before:  # a user's events lie in one partition
                seen[user] = place
            else:
                told.lower += 1
                if sent_ms[place] < self.frozen_ms < sent_ms[before]:
                    made_ms = datetime.fromisoformat(prediction["predicted_at"]).timestamp() * 1000
                    told.zombies += made_ms > self.frozen_ms
                    told.on_its_way += made_ms <= self.frozen_ms
        told.stale = sorted(user for user, place in newest.items() if seen.get(user) != place)
        return told

    def tail(self) -> str:
        """The ends of the logs, for a failure's message."""
        return "\n".join(p.read_text(errors="replace")[-1500:] for p in self.folder.glob("*.log"))

    def close(self) -> None:
        """End everything, whatever state it is in."""
        self._stop.set()
        for worker in self.workers.values():
            worker.kill()
            worker.wait()


@dataclass
class Told:
    """What a consumer of the predictions saw."""

    stale: list[str] = field(default_factory=list)  # users whose newest event is not what they were told about
    lower: int = 0  # times a lower trigger came after a higher one: a worker redid what was not committed
    zombies: int = 0  # times its sender had lost the partition before it made the prediction
    on_its_way: int = 0  # times its sender lost the partition after that


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
        wait_for(lambda: "Partition assigned" in made.tail(), 120, made.tail)
        made.produce()
        wait_for(lambda: made.cover()[0] > 300, 120, made.tail)
        yield made
    finally:
        made.close()


def more(arena: Arena, rows: int = 300) -> None:
    """Wait until the lake holds so many rows more."""
    before = arena.cover()[0]
    wait_for(lambda: arena.cover()[0] > before + rows, 120, arena.tail)


def exact(arena: Arena) -> None:
    """Events sent = rows = distinct, sessions as counted by hand, every user's newest event predicted; all ended."""
    arena.finish()
    assert arena.cover() == (arena.sent, arena.sent, arena.sent)
    found, merges = arena.sessions()
    wanted = arena.chains()
    assert found == wanted, f"{len(found - wanted)} sessions of {len(wanted)} are not as they should be"
    assert merges > 0
    told = arena.told()
    print(f"{arena.sent} events, {len(found)} sessions, {merges} merges, {told}")
    assert (told.stale, told.zombies) == ([], 0)


def test_a_to_b_to_a_by_clean_stops(arena: Arena) -> None:
    """B takes over from the lake, A comes back with its old file: no row is repeated or skipped, no session cut."""
    arena.signal("A", signal.SIGTERM)
    arena.start("B")
    more(arena)
    arena.start("A")
    more(arena)
    arena.signal("B", signal.SIGTERM)
    more(arena)
    exact(arena)


@pytest.mark.parametrize("seed", [1])
def test_kill_minus_nine_at_any_moment(arena: Arena, seed: int) -> None:
    """Killed between two flushes, alone or beside another, a worker redoes what was not committed and nothing else."""
    chance = random.Random(seed)
    for _ in range(3):
        name = chance.choice(sorted(arena.workers))
        arena.signal(name, signal.SIGKILL)
        arena.start(name if chance.random() < 0.5 else chance.choice("BCD"))
        more(arena, 100)
        time.sleep(chance.uniform(0, 4))
        if len(arena.workers) == 1:
            arena.start(next(n for n in "ABCD" if n not in arena.workers))
    exact(arena)


def test_frozen_worker_that_thaws_says_nothing_stale(arena: Arena) -> None:
    """A worker frozen past its session timeout drops what it held; its successor's word stands."""
    arena.start("B")
    wait_for(lambda: "Partition assigned" in (arena.folder / "B.log").read_text(), 120, arena.tail)
    more(arena)
    arena.signal("A", signal.SIGSTOP)
    arena.frozen_ms, frozen_at, sent = time.time() * 1000, time.monotonic(), arena.sent
    wait_for(lambda: arena.cover()[0] > sent + 300, 120, arena.tail)  # B has all partitions, those of A too
    wait_for(lambda: time.monotonic() - frozen_at > 20, 30)
    arena.signal("A", signal.SIGCONT)
    more(arena, 600)
    exact(arena)
