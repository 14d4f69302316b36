"""What cannot be read: a batch that the broker's disk damaged, and messages mutated in bulk from a seed."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import os
import re
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import aiokafka
import pytest
from mutated import LIMIT, Message, messages
from one_worker import PARTITIONS, Site, event

from deploy.kafka import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(3_600)]

MESSAGES = int(os.environ.get("NEXTCLICK_MUTATED", "50000"))
SEED = 20261124


def test_damaged_batch_stops_the_worker_and_is_counted_once_it_is_passed(own_kafka: Kafka, tmp_path: Path) -> None:
    """It names partition, offset and remedy; after the remedy all that is sound is stored and the rest is missing."""
    site = Site(own_kafka.address, tmp_path)
    try:
        for first in range(0, 30, 10):
            site.send(*map(event, range(first, first + 10)))
        file = own_kafka.data / "log" / f"{site.events}-0" / f"{0:020}.log"
        content = file.read_bytes()
        with file.open("r+b") as log:
            log.seek(content.index(b'"e15"'))
            log.write(b'"x')
        assert site.start_only() == 3
        damaged = int(re.findall(rf"{site.events}-0 from offset (\d+)\.", site.told())[0])
        assert 10 <= damaged <= 15
        assert "kafka-delete-records" in site.told()
        assert "Traceback" not in site.told()
        site.delete_below(20)
        site.start()
        site.settled(stored=damaged + 10, missing=20 - damaged)
        assert site.stop() == 0
        assert site.ids() == sorted(f"e{n}" for n in (*range(damaged), *range(20, 30)))
    finally:
        site.close()


def test_mutated_messages_are_all_accounted_for(site: Site) -> None:
    """Stored + duplicates + rejected = events in the messages; each dead letter is a message, byte for byte."""
    sent, largest = asyncio.run(send(site, messages(SEED, MESSAGES, int(time.time() * 1000))))
    site.start()
    events = sum(held for _, held in sent.values())
    patience_s = 90 + MESSAGES / 500
    site.until(lambda beat: beat["lag"] == 0 and site.counts()["next"] >= len(sent), patience_s)  # in the lake
    assert site.stop() == 0
    counts, rows = site.counts(), site.rows("event_id")
    assert counts["stored"] + counts["duplicates"] + counts["rejected"] == events
    assert len(rows) == len({r[:3] for r in rows}) == counts["stored"]
    assert all(n < sent[partition, offset][1] for partition, offset, n, _ in rows)
    found, letters, rejected = {}, 0, 0
    for letter in site.each(site.dead_letters):
        said = {name: text.decode() for name, text in letter.headers}
        at = int(said["__connect.errors.partition"]), int(said["__connect.errors.offset"])
        found[at] = digest(letter.key, letter.value)
        letters += 1
        rejected += elements(said.get("x-bad-elements", "0"))
    print(f"\n{len(sent):,} messages hold {events:,} events = {counts['stored']:,} stored + {counts['duplicates']:,} "
          f"duplicates + {counts['rejected']:,} rejected, in {letters:,} dead letters")  # fmt: skip
    assert len(found) == letters
    assert found == {at: sent[at][0] for at in found}
    assert rejected == counts["rejected"]
    assert counts["duplicates"] > MESSAGES * 0.02
    assert 0.1 * events < counts["rejected"] < 0.9 * events
    assert largest > LIMIT
    code, told = site.check(patience_s)
    assert code == 0, told


async def send(site: Site, mutated: Iterable[Message]) -> tuple[dict[tuple[int, int], tuple[bytes, int]], int]:
    """By partition and offset what tells each message from the others, and its events; the size of the largest.

    By aiokafka, whose checksums are compiled: gigabytes would take kafka-python's an hour.
    """
    sent, largest = dict[tuple[int, int], tuple[bytes, int]](), 0
    producer = aiokafka.AIOKafkaProducer(
        bootstrap_servers=site.address, acks="all", linger_ms=5, max_request_size=2**24, max_batch_size=2**18
    )
    async with producer:
        for part in batched(mutated, 5_000):
            futures = []
            for one in part:
                place = zlib.crc32(one.key) % PARTITIONS
                futures.append(await producer.send(site.events, one.value, key=one.key, partition=place))
            for one, future in zip(part, futures, strict=True):
                at = await future
                sent[at.partition, at.offset] = digest(one.key, one.value), one.events
                largest = max(largest, len(one.value))
    return sent, largest


def batched(mutated: Iterable[Message], size: int) -> Iterator[list[Message]]:
    """So many at a time."""
    rest = iter(mutated)
    while part := list(itertools.islice(rest, size)):
        yield part


def digest(key: bytes, value: bytes) -> bytes:
    """What tells a message from any other, where too many are sent to hold them all."""
    return hashlib.blake2b(b"%d %b%b" % (len(key), key, value), digest_size=16).digest()


def elements(ranges: str) -> int:
    """How many elements `0,3-5` names."""
    parts = [part.partition("-") for part in ranges.split(",")]
    return sum(int(last or first) - int(first) + 1 for first, _, last in parts)
