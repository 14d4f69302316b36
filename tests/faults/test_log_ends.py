"""Where a topic's log ends, as a worker sees it: behind a transaction, after the topic was made anew."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import aiokafka
import kafka as client
import pytest
from kafka.admin import KafkaAdminClient

from deploy.settings import Settings
from streams import topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


class Site:
    """A worker's process on topics of its own, and its beats."""

    def __init__(self, address: str, folder: Path) -> None:
        tag = uuid.uuid4().hex[:8]
        named = ("events", "items", "dead_letters", "predictions", "control", "state")
        said = {f"topics.{name}": f"{name}-{tag}" for name in named} | {
            "kafka": address,
            "encoder": "none",
            "bots.pace": "0s",
        }
        said |= {"shared": str(folder / "shared"), "store.folder": str(folder / "store"), "worker": "w"}
        self.settings, self.output, self.address = Settings.load(said), folder / "w.log", address
        self.events = self.settings["topics.events"][0]
        topics.ensure(address, self.settings.topics())
        self.process: subprocess.Popen[bytes] | None = None
        self.consumer = client.KafkaConsumer(
            self.settings["topics.state"], bootstrap_servers=address, auto_offset_reset="earliest"
        )
        self.beat: dict[str, Any] = {}

    def start(self) -> None:
        """Start the worker."""
        with self.output.open("wb") as log:
            command = [sys.executable, "-m", "deploy.worker", *self.settings.options()]
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[2])

    def until(self, true: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
        """The first beat of which something is true."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for records in self.consumer.poll(timeout_ms=500).values():
                self.beat = json.loads(records[-1].value)
            if self.beat and true(self.beat):
                return self.beat
        pytest.fail(f"{self.beat}\n{self.output.read_text()[-3000:]}")

    def stop(self) -> None:
        """End the worker."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait(30)


@pytest.fixture
def site(kafka: str, tmp_path: Path) -> Iterator[Site]:
    """On the Kafka that all tests share."""
    made = Site(kafka, tmp_path)
    yield made
    made.stop()
    made.consumer.close()


def event(n: int) -> bytes:
    """A view by one user."""
    said = {"event_id": f"e{n}", "type": "view", "user_id": "u", "item_id": f"i{n}", "ts": int(time.time() * 1000)}
    return json.dumps(said).encode()


async def transactions(address: str, topic: str, *parts: tuple[range, bool]) -> None:
    """One transaction each; those that are not kept are aborted."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, transactional_id=uuid.uuid4().hex)
    await producer.start()
    for numbers, kept in parts:
        await producer.begin_transaction()
        for n in numbers:
            await producer.send(topic, event(n), key=b"u")
        await (producer.commit_transaction() if kept else producer.abort_transaction())
    await producer.stop()


def test_markers_of_transactions_are_no_lag(site: Site) -> None:
    """After a commit, an abort and a restart the lag is 0, and latencies are timed."""
    site.start()
    site.until(lambda beat: len(beat["partitions"]) == 8)
    for first in range(0, 40, 20):  # a latency counts where the log had ended
        both = (range(first, first + 10), True), (range(first + 10, first + 15), False)
        asyncio.run(transactions(site.address, site.events, *both))
        site.until(lambda beat, n=first // 2 + 10: beat["stored"] == n and beat["lag"] == 0)
    assert site.beat["latency_ms"] is not None
    site.stop()
    site.beat = {}
    asyncio.run(transactions(site.address, site.events, (range(50, 55), False)))
    site.start()
    site.until(lambda beat: beat["stored"] == 20 and beat["events"] == 0 and beat["lag"] == 0)


def remade(address: str, topic: str) -> None:
    """Delete a topic and make it anew, as an operator does; whoever reads it may make it first."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.delete_topics([topic])
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            admin.create_topics({topic: {"num_partitions": 8, "replication_factor": 1}})
            break
        except client.errors.KafkaError:  # still being deleted
            time.sleep(0.2)
    admin.close()


def test_topic_made_anew_stops_the_worker_that_read_the_old_one(site: Site) -> None:
    """It says so and ends; started again it reads the new log from its start, the old one's rows stay."""
    producer = client.KafkaProducer(bootstrap_servers=site.address)
    site.start()
    site.until(lambda beat: len(beat["partitions"]) == 8)
    for n in range(3):
        producer.send(site.events, event(n), key=b"u").get(10)
    site.until(lambda beat: beat["stored"] == 3)
    remade(site.address, site.events)
    for n in range(3, 9):  # the new log is longer than what was read of the old one
        producer.send(site.events, event(n), key=b"u").get(30)
    assert site.process is not None
    assert site.process.wait(120) == 3
    assert "made anew" in site.output.read_text()
    site.start()
    site.beat = {}
    site.until(lambda beat: beat["stored"] == 6 and beat["lag"] == 0)
