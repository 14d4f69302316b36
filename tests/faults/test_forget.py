"""A forgotten person is in no byte of any file, also after a worker has read Kafka again from its start."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import duckdb
import kafka as client
import pytest

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

GONE = "person-to-be-forgotten"


class House:
    """A worker and a trainer over folders and topics of their own; counts from outside."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder, self.tag = address, folder, uuid.uuid4().hex[:8]
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.sent = {"stays": 0, GONE: 0}

    def options(self) -> list[str]:
        names = ("events", "items", "dead_letters", "predictions", "control", "state")
        said = {f"topics.{t}": f"{t}-{self.tag}" for t in names}
        said |= {"encoder": "none", "kafka": self.address, "worker": "w", "shared": str(self.folder / "shared")}
        said |= {"store.folder": str(self.folder / "store"), "cadence": "5s"}
        return [a for k, v in said.items() for a in ("--set", f"{k}={v}")]

    def start(self, module: str) -> None:
        with (self.folder / f"{module}.log").open("ab") as log:
            self.running[module] = subprocess.Popen(
                [sys.executable, "-m", f"deploy.{module}", *self.options()], stdout=log, stderr=log, cwd=ROOT
            )

    def kill(self, module: str) -> None:
        self.running[module].send_signal(signal.SIGKILL)
        self.running.pop(module).wait(30)

    def send(self, user: str, n: int) -> None:
        producer = client.KafkaProducer(bootstrap_servers=self.address)
        for _ in range(n):
            count = self.sent[user]
            event = {"event_id": f"{count}-of-{len(user)}", "type": "view", "user_id": user, "item_id": f"i{count % 7}"}
            event["ts"] = int(time.time() * 1000)  # type: ignore[assignment]
            producer.send(f"events-{self.tag}", key=user.encode(), value=json.dumps(event).encode()).get(20)
            self.sent[user] += 1
        producer.close()

    def forget(self) -> None:
        done = subprocess.run(
            [sys.executable, "-c", "import sys; from deploy.cli import main; main(sys.argv[1:])", "forget", GONE,
             *self.options()], cwd=ROOT, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr

    def held(self) -> dict[str, int]:
        """Distinct places a user in the lake."""
        paths = [str(p) for p in (self.folder / "shared").glob("events/*/*/*.parquet")]
        if not paths:
            return {}
        query = 'SELECT user_id, count(DISTINCT ("partition", "offset", n))'
        return dict(duckdb.sql(f"{query} FROM read_parquet({paths}, hive_partitioning=false) GROUP BY ALL").fetchall())

    def traces(self) -> list[str]:
        """Files below the shared and the store folder with the user's id anywhere in their bytes."""
        files = [p for name in ("shared", "store") for p in (self.folder / name).rglob("*") if p.is_file()]
        return [str(p) for p in files if GONE.encode() in p.read_bytes()]

    def newest(self) -> dict[str, bytes | None]:
        """The newest value a key on the predictions topic."""
        consumer = client.KafkaConsumer(bootstrap_servers=self.address, enable_auto_commit=False)
        topic = f"predictions-{self.tag}"
        parts = [client.TopicPartition(topic, p) for p in consumer.partitions_for_topic(topic)]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        ends, found = consumer.end_offsets(parts), {}
        while any(consumer.position(p) < ends[p] for p in parts):
            for records in consumer.poll(500).values():
                found |= {record.key.decode(): record.value for record in records}
        consumer.close()
        return found

    def tail(self) -> str:
        return "\n".join(p.read_text(errors="replace")[-2500:] for p in self.folder.glob("*.log"))


ROOT = Path(__file__).parents[2]


@pytest.fixture
def house(kafka: str, tmp_path: Path) -> Iterator[House]:
    """Both processes run; everything is ended after the test."""
    made = House(kafka, tmp_path)
    try:
        made.start("worker")
        wait_for(lambda: "Partition assigned" in made.tail(), made.tail)
        made.start("trainer")
        yield made
    finally:
        for process in made.running.values():
            process.kill()
            process.wait()


def wait_for(done: Callable[[], object], why: Callable[[], str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, why()
        time.sleep(0.3)


def test_forgotten_person_is_in_no_file_and_does_not_come_back(house: House) -> None:
    """Lake, versions, store and write-ahead log are clean; Kafka still has the events, a worker that reads them anew
    keeps none; events sent later are not kept either; the newest prediction is a tombstone.
    """
    house.send(GONE, 60)
    house.send("stays", 60)
    wait_for(lambda: house.held() == house.sent, house.tail)
    assert house.traces() != []
    house.forget()
    house.send(GONE, 5)
    wait_for(lambda: house.traces() == [], lambda: f"{house.traces()} {house.tail()}")
    house.send("stays", 5)
    wait_for(lambda: house.held() == {"stays": 65}, house.tail)

    house.kill("worker")
    house.kill("trainer")
    shutil.rmtree(house.folder / "shared" / "events")
    shutil.rmtree(house.folder / "store")
    house.start("worker")
    wait_for(lambda: house.held() == {"stays": 65}, lambda: f"{house.held()} {house.tail()}")
    house.send(GONE, 5)
    house.send("stays", 5)
    wait_for(lambda: house.held() == {"stays": 70}, house.tail)
    assert house.traces() == []
    wait_for(lambda: house.newest().get(GONE, b"") is None, house.tail)
    assert house.newest()["stays"] is not None
    house.running["worker"].send_signal(signal.SIGTERM)
    house.running.pop("worker").wait(30)
    assert house.traces() == []
