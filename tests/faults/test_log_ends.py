"""Where a topic's log ends, as a worker sees it: behind a transaction, after the topic was made anew."""

from __future__ import annotations

import asyncio
import time
import uuid

import aiokafka
import kafka as client
import pytest
from one_worker import PARTITIONS, Site, event

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


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
    for first in range(0, 40, 20):  # a latency counts where the log had ended
        both = (range(first, first + 10), True), (range(first + 10, first + 15), False)
        asyncio.run(transactions(site.address, site.events, *both))
        site.settled(stored=first // 2 + 10)
    assert site.beat["latency_ms"] is not None
    assert site.stop() == 0
    asyncio.run(transactions(site.address, site.events, (range(50, 55), False)))
    site.start()
    site.settled(stored=20, events=0)


def remade(site: Site) -> None:
    """Delete the event topic and make it anew, as an operator does; whoever reads it may make it first."""
    site.admin.delete_topics([site.events])
    end = time.monotonic() + 30
    while time.monotonic() < end:
        try:
            site.admin.create_topics({site.events: {"num_partitions": PARTITIONS, "replication_factor": 1}})
            break
        except client.errors.KafkaError:  # still being deleted
            time.sleep(0.2)


def test_topic_made_anew_stops_the_worker_that_read_the_old_one(site: Site) -> None:
    """It says so and ends; started again it reads the new log from its start, the old one's rows stay."""
    site.start()
    site.send(*map(event, range(3)))
    site.settled(stored=3)
    remade(site)
    site.send(*map(event, range(3, 9)))  # the new log is longer than what was read of the old one
    assert site.process is not None
    assert site.process.wait(120) == 3
    assert "made anew" in site.told()
    site.start()
    site.settled(stored=6)
