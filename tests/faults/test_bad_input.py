"""Bad input, tried from outside as a new user would: a clear word for each, and every event accounted for."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiokafka
import duckdb
import kafka as client
import pytest
from kafka.admin import KafkaAdminClient

from deploy.broker import free_port
from deploy.kafka import Kafka
from deploy.supervisor import Child, Supervisor
from streams.client import EventProducer
from streams.codec import BadEvent
from streams.parts import Keys

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

ROOT = Path(__file__).parents[2]
BACKLOG = 100_000
PACK = 20  # events a message of the backlog
MARATHON = 10_000
DAY_MS = 86_400_000


def nextclick(*arguments: str) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-m", "deploy.cli", *arguments]


def now_ms() -> int:
    """The wall clock."""
    return int(time.time() * 1000)


def wait_for(done: Callable[[], Any], seconds: float, why: Callable[[], str] = str) -> None:
    """Wait for a condition; fail with what it looked like at the end."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, why()
        time.sleep(0.1)


class Shop:
    """Topics and folders of its own, a worker, and what was sent to it. Shares no code with the product's readers."""

    def __init__(self, address: str, folder: Path, tag: str = "") -> None:
        self.address, self.folder, self.tag = address, folder, tag or uuid.uuid4().hex[:8]
        self.events = f"events-{self.tag}"
        self.log = folder / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None
        self.producers: dict[str | None, client.KafkaProducer] = {}
        self.sent: dict[tuple[int, int], tuple[bytes | None, bytes | None, int]] = {}
        self.total = 0

    def options(self) -> list[str]:
        """The worker's settings."""
        said = {f"topics.{t}": f"{t}-{self.tag}" for t in ("items", "dead_letters", "predictions", "control", "state")}
        said |= {"topics.events": self.events, "encoder": "none", "kafka": self.address, "worker": "w"}
        said |= {"bots.pace": "0s", "bots.length": "0"}  # its users are programs, and are to be answered
        said |= {"shared": str(self.folder / "shared"), "store.folder": str(self.folder / "store")}
        return [a for k, v in said.items() for a in ("--set", f"{k}={v}")]

    def start(self) -> None:
        """Start the worker."""
        with self.log.open("ab") as log:
            command = nextclick("worker", *self.options())
            self.worker = subprocess.Popen(command, stdout=log, stderr=log, cwd=ROOT)

    def stop(self) -> int:
        """Stop it cleanly: what it holds is in the lake afterwards."""
        assert self.worker is not None
        self.worker.terminate()
        return self.worker.wait(30)

    def make_topics(self) -> None:
        """The event topic before there is a worker."""
        admin = KafkaAdminClient(bootstrap_servers=self.address)
        admin.create_topics({self.events: {"num_partitions": 8, "replication_factor": 1}}, wait_for_metadata=True)
        admin.close()

    def send(
        self, value: bytes | None, key: bytes | None = b"u", *, partition: int | None = None,
        stamp: int | None = None, events: int = 1, compressed: str | None = None,
    ) -> None:  # fmt: skip
        """Send one message as it is; it holds so many events."""
        if compressed not in self.producers:
            self.producers[compressed] = client.KafkaProducer(
                bootstrap_servers=self.address, acks="all", linger_ms=20, compression_type=compressed,
                max_request_size=2**27,
            )  # fmt: skip
        stamp = stamp or now_ms()
        sent = self.producers[compressed].send(
            self.events, value=value, key=key, partition=partition, timestamp_ms=stamp
        )
        sent.add_callback(lambda at: self.sent.__setitem__((at.partition, at.offset), (key, value, stamp)))
        sent.add_errback(pytest.fail)
        self.total += events

    def send_nothing(self) -> None:
        """A record without key and without value, which ordinary producers refuse to send."""

        stamp = now_ms()

        async def send() -> None:
            async with aiokafka.AIOKafkaProducer(bootstrap_servers=self.address) as producer:
                batch = producer.create_batch()
                batch.append(key=None, value=None, timestamp=stamp)
                at = await (await producer.send_batch(batch, self.events, partition=3))
                self.sent[at.partition, at.offset] = (None, None, stamp)

        asyncio.run(send())
        self.total += 1

    def flush(self) -> None:
        """Wait until the broker has all that was sent."""
        for producer in self.producers.values():
            producer.flush(60)

    def beat(self) -> dict[str, Any]:
        """The worker's newest beat."""
        beats = read(self.address, f"state-{self.tag}")
        return json.loads(beats[-1].value) if beats else {}

    def settle(self) -> None:
        """Wait until the worker has judged all that was sent."""
        self.flush()
        wait_for(lambda: judged(self.beat()) >= self.total, 90, lambda: f"{self.beat()} of {self.total}: {self.said()}")

    def said(self) -> str:
        """The end of the worker's log."""
        return self.log.read_text(errors="replace")[-3000:]

    def lake(self, columns: str) -> list[tuple[Any, ...]]:
        """Rows of the lake; the worker's segments touch, so that each row is there once."""
        files = f"{self.folder}/shared/events/*/*/*.parquet"
        return duckdb.sql(f"SELECT {columns} FROM read_parquet('{files}', hive_partitioning=false)").fetchall()

    def progress(self) -> Counter[str]:
        """The counts beside the lake's segments."""
        counts: Counter[str] = Counter()
        for file in (self.folder / "shared").glob("events/t=*/p=*/progress.json"):
            counts.update(json.loads(file.read_text()))
        return counts

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for producer in self.producers.values():
            producer.close(5)
        if self.worker is not None:
            self.worker.kill()
            self.worker.wait()


def judged(beat: Mapping[str, Any]) -> int:
    """Events that a worker has judged, as its beat or the lake tells."""
    return sum(int(beat.get(n, 0)) for n in ("stored", "duplicates", "rejected"))


def read(address: str, topic: str) -> list[Any]:
    """Everything in a topic, in the order of its partitions."""

    async def whole() -> list[Any]:
        consumer = aiokafka.AIOKafkaConsumer(
            topic, bootstrap_servers=address, auto_offset_reset="earliest", max_partition_fetch_bytes=2**23
        )
        async with consumer:
            parts = consumer.assignment()
            ends = await consumer.end_offsets(parts)
            found: list[Any] = []
            while any([await consumer.position(p) < ends[p] for p in parts]):
                for records in (await consumer.getmany(timeout_ms=500)).values():
                    found += records
            return found

    return asyncio.run(whole())


def event(user: str, n: Any = "", **more: Any) -> dict[str, Any]:
    """A good view, unless it is told otherwise."""
    fields = {"event_id": f"{user}-{n}", "type": "view", "user_id": user, "ts": now_ms(), "item_id": f"item-{n}"}
    return {k: v for k, v in (fields | more).items() if v is not ...}


def wire(fields: Any) -> bytes:
    """As it is sent."""
    return json.dumps(fields, ensure_ascii=False).encode()


BAD_JSON = {
    "cut off": b'{"event_id": "x", "type":',
    "no text": b"\xff\xfe\x00\x80",
    "not a number": b'{"event_id":"x","type":"search","user_id":"u","ts":1,"price":NaN}',
    "half a surrogate": b'{"event_id":"x","type":"search","user_id":"u\\ud800","ts":1}',
    "deeply nested": b"[" * 100_000,
}
BAD_SCHEMA: dict[str, bytes | None] = {
    "nothing": None,
    "empty": b"",
    "a number": b"42",
    "a text": b'"view"',
    "price": wire(event("u", price="9")),
    "type": wire(event("u", type="stare")),
    "user_id": wire(event("u", user_id=5)),
    "event_id": wire(event("u", event_id=...)),
    "ts": wire(event("u", ts="yesterday")),
    "ts before 1970": wire(event("u", ts=-1)),
    "ts without offset": wire(event("u", ts="2026-01-31T12:00:00")),
    "consent": wire(event("u", consent="yes")),
    "neither item nor category": wire(event("u", item_id=...)),
    "long event_id": wire(event("u", event_id="e" * 65)),
    "long user_id": wire(event("u", user_id="u" * 513)),
    "long item_id": wire(event("u", item_id="i" * 200_000)),
}
HALF_BAD = wire([event("half", n) if n % 2 else event("half", n, price="much") for n in range(10)])
BIG = b"x" * 1_048_500  # the largest value that fits the event topic
BIG_PACKED = b"y" * 5_000_000  # fits compressed
FAR = wire(event("ahead", 1, ts=now_ms() + 2 * 3_600_000))
ANCIENT = wire(event("old", 2, ts=now_ms() - 31 * DAY_MS))


class Seen:
    """What a shop's worker made of it: read once, after it stopped."""

    def __init__(
        self, shop: Shop, memory: list[tuple[float, int]], cpu: dict[str, float],
        second: subprocess.CompletedProcess[str],
    ) -> None:  # fmt: skip
        self.shop, self.memory, self.cpu, self.second = shop, memory, cpu, second
        self.beat = shop.beat()
        self.code = shop.stop()
        self.dead = read(shop.address, f"dead_letters-{shop.tag}")
        self.predictions = [json.loads(r.value) for r in read(shop.address, f"predictions-{shop.tag}")]

    def letter(self, value: bytes | None) -> dict[str, str]:
        """The headers of the one dead letter with this value."""
        (found,) = [r for r in self.dead if r.value == value]
        return {name: text.decode() for name, text in found.headers}

    def stored(self, user: str) -> list[str]:
        """The ids of a user's rows."""
        return sorted(i for i, u in self.shop.lake("event_id, user_id") if u == user)


@pytest.fixture(scope="module")
def seen(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seen]:
    """One worker that meets a backlog and then everything bad."""
    shop = Shop(kafka, tmp_path_factory.mktemp("shop"))
    try:
        shop.make_topics()
        send_backlog(shop)
        shop.start()
        memory = watch_memory(shop)
        cpu = {}
        for name, send in (("one session", send_marathon), ("many sessions", send_many)):
            before = rested_s(shop)
            send(shop)
            shop.settle()
            cpu[name] = rested_s(shop) - before
        send_bad(shop)
        send_odd(shop)
        shop.settle()
        command = nextclick("worker", *shop.options())
        second = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        yield Seen(shop, memory, cpu, second)
    finally:
        shop.close()


def send_backlog(shop: Shop) -> None:
    """More than is worked off in a moment: ten hours of short sessions, so that few are open at a time."""
    start_ms, step_ms = now_ms() - 36_000_000, 36_000_000 // BACKLOG
    for first in range(0, BACKLOG, PACK):
        user = f"b{first}"
        events = [event(user, n, ts=start_ms + n * step_ms, item_id=f"i{n % 300}") for n in range(first, first + PACK)]
        shop.send(wire(events), user.encode(), events=PACK)
    shop.flush()


def send_marathon(shop: Shop) -> None:
    """One session that does not end."""
    for n in range(MARATHON):
        shop.send(wire(event("marathon", n, item_id=f"i{n % 300}")), b"marathon")


def send_many(shop: Shop) -> None:
    """As many events of many people."""
    for n in range(MARATHON):
        user = f"m{n % 1_000}"
        shop.send(wire(event(user, n, item_id=f"i{n % 300}")), user.encode())


def send_bad(shop: Shop) -> None:
    """What becomes dead letters."""
    for value in (*BAD_JSON.values(), *BAD_SCHEMA.values()):
        shop.send(value, b"u")
    shop.send_nothing()
    shop.send(HALF_BAD, b"half", stamp=now_ms() - 1_800_000, events=10)
    shop.send(BIG, b"u")
    shop.send(BIG_PACKED, b"u", compressed="gzip")
    shop.send(FAR, b"ahead", partition=1)
    shop.send(wire(event("old", 1)), b"old", partition=2)
    shop.send(ANCIENT, b"old", partition=2)
    shop.send(wire(event("old", 3, ts=now_ms() - 29 * DAY_MS)), b"old", partition=2)


def send_odd(shop: Shop) -> None:
    """What is unusual and accepted."""
    shop.send(wire(event("keyless", 1)), None)
    shop.send(wire(event("keyless", 2)), b"somebody else", partition=0)
    shop.send(wire(event("twice", 1)), b"twice", partition=4)
    shop.send(wire(event("twice", 1)), b"twice", partition=4)
    for n in range(4):
        chinese = event(
            "买家🛒", n, item_id=f"靴子👟{n % 2}", title="登山靴 🥾", category="鞋 > 靴 🥾", note="好\u0000"
        )
        shop.send(wire(chinese), "买家🛒".encode())
    for codec in ("gzip", "snappy", "lz4", "zstd"):
        shop.send(wire(event(codec, 1)), codec.encode(), compressed=codec)
    shop.send(b"[]", b"u", events=0)


def watch_memory(shop: Shop) -> list[tuple[float, int]]:
    """Resident MB and lag, from the start until there is no lag."""
    series: list[tuple[float, int]] = []

    def caught_up() -> bool:
        lag = BACKLOG - judged(shop.beat())
        series.append((resident_mb(shop), lag))
        return lag <= 0

    wait_for(caught_up, 120, shop.said)
    return series


def resident_mb(shop: Shop) -> float:
    """What the worker holds in memory."""
    assert shop.worker is not None
    pages = int(Path(f"/proc/{shop.worker.pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def cpu_s(shop: Shop) -> float:
    """What the worker has used."""
    assert shop.worker is not None
    fields = Path(f"/proc/{shop.worker.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rested_s(shop: Shop) -> float:
    """What it has used once the lake has what came before: the flush included."""
    wait_for(lambda: judged(shop.progress()) >= shop.total, 90, shop.said)
    return cpu_s(shop)


def test_every_event_is_stored_a_duplicate_or_rejected(seen: Seen) -> None:
    """The worker lived through all of it, stopped cleanly, and its counts add up to what was sent."""
    counts = seen.shop.progress()
    assert seen.code == 0
    assert counts["stored"] + counts["duplicates"] + counts["rejected"] == seen.shop.total
    assert counts["stored"] == len(seen.shop.lake("event_id"))
    assert counts["duplicates"] == 1
    assert "Traceback" not in seen.shop.log.read_text(errors="replace")


def test_dead_letters_are_what_was_sent(seen: Seen) -> None:
    """Every rejected message is there once, with its key, value and timestamp, and nothing else is."""
    found = {}
    for r in seen.dead:
        told = {name: text.decode() for name, text in r.headers}
        at = int(told["__connect.errors.partition"]), int(told["__connect.errors.offset"])
        assert told["__connect.errors.topic"] == seen.shop.events
        found[at] = (r.key, r.value, r.timestamp)
    assert len(found) == len(seen.dead) == len(BAD_JSON) + len(BAD_SCHEMA) + 6
    assert found == {at: seen.shop.sent[at] for at in found}


@pytest.mark.parametrize("case", BAD_JSON)
def test_broken_json(seen: Seen, case: str) -> None:
    """What is no JSON says so."""
    told = seen.letter(BAD_JSON[case])
    assert told["x-reason"] == "bad-json"
    assert told["__connect.errors.exception.message"].startswith("not JSON: ")


@pytest.mark.parametrize("case", [c for c in BAD_SCHEMA if c != "nothing"])
def test_broken_contract(seen: Seen, case: str) -> None:
    """What breaks the contract names the field."""
    told = seen.letter(BAD_SCHEMA[case])
    assert told["x-reason"] == "schema"
    named = {"ts without offset": "ts", "ts before 1970": "ts", "neither item nor category": "item_id"}
    named |= {"empty": "the message is empty", "a number": "JSON object", "a text": "JSON object"}
    assert named.get(case, case.removeprefix("long ")) in told["__connect.errors.exception.message"]


def test_half_bad_array(seen: Seen) -> None:
    """The good elements are stored; the dead letter names the others."""
    assert seen.stored("half") == [f"half-{n}" for n in (1, 3, 5, 7, 9)]
    told = seen.letter(HALF_BAD)
    assert (told["x-reason"], told["x-bad-elements"]) == ("schema", "0,2,4,6,8")


def test_too_large(seen: Seen) -> None:
    """Whatever fits the event topic fits the dead-letter topic, packed as it came."""
    for value in (BIG, BIG_PACKED):
        told = seen.letter(value)
        assert told["x-reason"] == "too-large"
        assert "the limit is 262,144" in told["__connect.errors.exception.message"]


def test_times_that_cannot_be(seen: Seen) -> None:
    """Ahead of the record by more than an hour, or older than the lake keeps; what is merely late is stored."""
    assert seen.letter(FAR)["x-reason"] == "future-ts"
    assert seen.letter(ANCIENT)["x-reason"] == "too-late"
    assert seen.stored("old") == ["old-1", "old-3"]


def test_without_the_key_of_its_user(seen: Seen) -> None:
    """Few such events are stored and counted."""
    assert seen.stored("keyless") == ["keyless-1", "keyless-2"]
    assert seen.beat["unkeyed"] == 2


def test_emoji_and_chinese(seen: Seen) -> None:
    """They reach the lake and the prediction as they were written."""
    rows = [r[1:] for r in seen.shop.lake("user_id, item_id, title, category, properties") if r[0] == "买家🛒"]
    text = ("登山靴 🥾", "鞋 > 靴 🥾", '{"note":"好\\u0000"}')
    assert sorted(rows) == [(f"靴子👟{n}", *text) for n in (0, 0, 1, 1)]
    said = [p for p in seen.predictions if p["user_id"] == "买家🛒"][-1]
    assert said["trigger"]["event_id"] == "买家🛒-3"
    assert "鞋 > 靴 🥾" in [c["category"] for c in said["categories"]]


@pytest.mark.parametrize("codec", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed(seen: Seen, codec: str) -> None:
    """Whatever a producer packs with is read."""
    assert seen.stored(codec) == [f"{codec}-1"]


def test_marathon(seen: Seen) -> None:
    """A session of 10,000 events is stored whole, holds 500 in memory, and costs no more than others do."""
    rows = seen.shop.lake("session_id, seen, user_id")
    mine = [(s, n) for s, n, user in rows if user == "marathon"]
    assert len(mine) == MARATHON
    assert len({s for s, _ in mine}) == 1
    assert max(n for _, n in mine) == 500
    (*_, last) = (p["trigger"]["event_id"] for p in seen.predictions if p["user_id"] == "marathon")
    assert last == f"marathon-{MARATHON - 1}"
    print("CPU seconds:", seen.cpu)
    assert seen.cpu["one session"] < 3 * seen.cpu["many sessions"]


def test_input_faster_than_the_scorer(seen: Seen) -> None:
    """Lag takes it, not memory: what is resident stays where it was while the backlog is worked off."""
    print("resident MB and lag:", *(f"{mb:.0f}/{lag}" for mb, lag in seen.memory))
    lags = [lag for _, lag in seen.memory]
    assert lags == sorted(lags, reverse=True)
    first, second = ([mb for mb, lag in seen.memory if (lag > BACKLOG / 2) == half] for half in (True, False))
    assert max(second) < 1.25 * max(first)


def test_producer_refuses_two_megabytes(kafka: str) -> None:
    """Too large an event is an error before it is sent, and names the limit and the remedy."""
    with (
        EventProducer(kafka, "nowhere") as producer,
        pytest.raises(BadEvent, match=r"the limit is 262,144: send fewer events a message, or shorter texts"),
    ):
        producer.send(event("u", 1, title="t" * 2_000_000))


def test_unkeyed_topic_stops_the_worker(kafka: str, tmp_path: Path) -> None:
    """Above 1 % of the last 10,000 the worker stops and names the remedy."""
    shop = Shop(kafka, tmp_path)
    try:
        shop.make_topics()
        for n in range(150):
            shop.send(wire(event(f"u{n}", n)), None, partition=0)
        shop.flush()
        shop.start()
        assert shop.worker is not None
        assert shop.worker.wait(60) == 3
        (last,) = shop.said().strip().splitlines()[-1:]
        assert "key each message with its user_id" in last
        assert "Traceback" not in shop.said()
    finally:
        shop.close()


def test_wrong_keys_are_judged_over_the_newest_events() -> None:
    """One in a hundred of the last 10,000 is borne, one more is not; what is older is forgotten; few never stop it."""

    def borne(keys: Keys, every: int, events: int) -> bool:
        """Of so many events every n-th has a wrong key; whether all of them are borne."""
        for n in range(events):
            keys.judged += 1
            if n % every == 0 and not keys.wrong_one():
                return False
        return True

    keys = Keys()
    assert borne(keys, 100, 30_000)
    assert not borne(keys, 98, 10_000)
    few = Keys()
    assert borne(few, 1, 100)
    assert not borne(few, 1, 1)


MISTAKES = {
    "worker, nobody listens": (["worker", "--kafka", "FREE"], "no Kafka broker answers at"),
    "worker, no such host": (["worker", "--kafka", "nohost.invalid:9092"], "no Kafka broker answers at"),
    "worker, no port": (["worker", "--kafka", "127.0.0.1"], "write HOST:PORT"),
    "worker, two ports": (["worker", "--kafka", "a:b:c"], "write HOST:PORT"),
    "trainer, nobody listens": (["trainer", "--kafka", "FREE"], "no Kafka broker answers at"),
    "up, nobody listens": (["up", "--kafka", "FREE"], "no Kafka broker answers at"),
    "up, no port": (["up", "--kafka", "127.0.0.1"], "write HOST:PORT"),
    "replay, nobody listens": (["replay", "good", "--kafka", "FREE"], "no Kafka broker answers at"),
    "replay, no such host": (["replay", "good", "--kafka", "nohost.invalid:9092"], "no Kafka broker answers at"),
    "replay, no topic": (["replay", "good", "--kafka", "KAFKA", "--set", "topics.events=no-topic"], "create it first"),
    "simulate, nobody listens": (["simulate", "--kafka", "FREE"], "no Kafka broker answers at"),
    "models, nobody listens": (["models", "list", "--kafka", "FREE"], "no Kafka broker answers at"),
    "models, no topic": (["models", "list", "--kafka", "KAFKA", "--set", "topics.control=no-topic"], "create it first"),
    "cadence, nobody listens": (["cadence", "show", "--kafka", "FREE"], "no Kafka broker answers at"),
    "replay, no file": (["replay", "none"], "none cannot be read"),
    "replay, a folder": (["replay", "folder"], "folder cannot be read"),
    "replay, binary": (["replay", "binary"], "binary holds no events (none of its first lines is JSON)"),
    "replay, empty": (["replay", "empty"], "empty holds no events (it is empty)"),
    "replay, torn": (["replay", "torn.gz"], "torn.gz cannot be read"),
    "up, no file": (["up", "--replay", "none"], "--replay none is no file"),
    "up, binary": (["up", "--replay", "binary"], "binary holds no events"),
    "up, empty": (["up", "--replay", "empty"], "empty holds no events"),
    "backtest, no file": (["backtest", "none"], "none cannot be read"),
    "backtest, binary": (["backtest", "binary"], "binary holds no events"),
    "backtest, empty": (["backtest", "empty"], "empty holds no events"),
    "a duration in words": (["worker", "--set", "session.gap=soon"], "write a duration with its unit"),
    "a misspelt setting": (["worker", "--set", "sesion.gap=30m"], "did you mean session.gap?"),
    "no settings file": (["trainer", "--config", "none.toml"], "check --config"),
}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that a command can be pointed at."""
    folder = tmp_path_factory.mktemp("desk")
    (folder / "good").write_bytes(wire(event("u", 1)) + b"\n")
    (folder / "binary").write_bytes(bytes(range(256)) * 16)
    (folder / "empty").touch()
    packed = gzip.compress(b"\n".join(wire(event("u", n)) for n in range(50)))
    (folder / "torn.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "folder").mkdir()
    return folder


@pytest.fixture(scope="module")
def typed_wrong(kafka: str, desk: Path) -> Iterator[dict[str, Future[subprocess.CompletedProcess[str]]]]:
    """All of them, a few at a time: most wait for an answer that does not come."""
    places = {"FREE": f"127.0.0.1:{free_port()}", "KAFKA": kafka}

    def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            nextclick(*(places.get(a, a) for a in arguments)), cwd=desk, capture_output=True, text=True, timeout=60,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    with ThreadPoolExecutor(4) as pool:
        yield {case: pool.submit(run, arguments) for case, (arguments, _) in MISTAKES.items()}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistake_at_the_command_line(
    typed_wrong: dict[str, Future[subprocess.CompletedProcess[str]]], case: str
) -> None:
    """One line on stderr that says what to do, a code that is not 0, no traceback."""
    done, (_, said) = typed_wrong[case].result(), MISTAKES[case]
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stdout + done.stderr
    assert said in done.stderr


def test_two_workers_with_one_store(seen: Seen) -> None:
    """The second says whose file it is and to take a name of its own."""
    assert (seen.second.returncode, len(seen.second.stderr.splitlines())) == (1, 1), seen.second.stderr
    assert "--worker NAME" in seen.second.stderr


STEADY = """
import json, sys, threading, time
from streams.client import EventProducer, NotDelivered
address, topic, user, options = sys.argv[1:]
over = threading.Event()
threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
producer, sent, undelivered, said = EventProducer(address, topic, **json.loads(options)), 0, [], ""
while not over.wait(0.05):
    for _ in range(10):
        event = {"event_id": f"{user}-{sent}", "user_id": f"{user}{sent % 50}", "type": "view", "item_id": "i1"}
        producer.send(event | {"ts": int(time.time() * 1000)})
        sent += 1
try:
    producer.close()
except NotDelivered as error:
    undelivered, said = error.event_ids, str(error)
print(json.dumps({"sent": sent, "undelivered": undelivered, "said": said}))
"""


class Steady:
    """A process that sends events without a pause, as a shop does, and tells at the end what it was told."""

    def __init__(self, shop: Shop, user: str, **options: Any) -> None:
        command = [sys.executable, "-c", STEADY, shop.address, shop.events, user, json.dumps(options)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT)

    def stop(self) -> dict[str, Any]:
        """Send no more, wait for what was sent, and say how much that was."""
        told: dict[str, Any] = json.loads(self.process.communicate(timeout=150)[0])
        return told

    def close(self) -> None:
        """End it, whatever state it is in."""
        self.process.kill()
        self.process.communicate()


def test_broker_that_is_new_freezes_and_dies(seen: Seen, own_kafka: Kafka) -> None:
    """Another broker's log is begun beside the old one; a frozen and a killed broker cost no event and double none."""
    before = seen.shop.lake("event_id")
    shop = Shop(own_kafka.address, seen.shop.folder, seen.shop.tag)
    shop.log = shop.folder / "moved.log"
    shop.make_topics()
    said: list[str] = []
    supervisor = Supervisor(said.append)
    supervisor.start(Child(name="worker", command=nextclick("worker", *shop.options()), output=shop.log))
    producers = [Steady(shop, "steady")]

    def stored(user: str = "steady-") -> int:
        supervisor.step()
        return len({r for r in shop.lake("event_id") if r[0].startswith(user)})

    def more(user: str = "steady-") -> None:
        wanted = stored(user) + 300
        wait_for(lambda: stored(user) > wanted, 90, lambda: f"{said}: {shop.said()}")

    try:
        more()
        assert "hold another log of this topic" in shop.log.read_text()
        producers.append(Steady(shop, "impatient", request_timeout_ms=2_000, delivery_timeout_ms=4_000))
        more("impatient-")
        own_kafka.process.send_signal(signal.SIGSTOP)
        frozen_at = time.monotonic()
        wait_for(lambda: time.monotonic() - frozen_at > 5, 10)
        impatient = producers[1].stop()
        wait_for(lambda: time.monotonic() - frozen_at > 15, 20)
        own_kafka.process.send_signal(signal.SIGCONT)
        more()
        own_kafka.kill()
        own_kafka.restart()
        more()
        steady = producers[0].stop()
        wait_for(
            lambda: stored() >= steady["sent"], 60, lambda: f"{stored()} of {steady['sent']}, {said}: {shop.said()}"
        )
    finally:
        for producer in producers:
            producer.close()
        supervisor.stop()
    print("the supervisor said:", said, "\nthe impatient producer said:", impatient["said"])
    rows = shop.lake('topic, "partition", "offset", n, event_id')
    places = {r[:4] for r in rows if r[4].startswith("steady-")}
    assert len(places) == steady["sent"] == stored()
    assert steady["undelivered"] == []
    assert set(before) <= {(r[4],) for r in rows}
    assert len(before) == len({r[:4] for r in rows if not r[4].startswith(("steady-", "impatient-"))})
    assert f"{len(impatient['undelivered']):,} event(s) were not taken by the broker" in impatient["said"]
    missing = impatient["sent"] - stored("impatient-")
    assert missing <= len(impatient["undelivered"]) > 0
