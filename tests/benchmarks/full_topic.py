"""A topic that was filled before the clock starts, and a program run to be timed."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any, NamedTuple

import aiokafka

from deploy.demo import shop
from streams import topics

HERE = Path(__file__).parent
EVENTS = int(os.environ.get("NEXTCLICK_BENCH_EVENTS", "300000"))
USERS = 5_000
TWICE, BAD = 0.01, 0.001  # repeated event ids; messages that are no event


class Topic(NamedTuple):
    """A topic that is full, its generator gone."""

    kafka: str
    name: str
    events: int
    value_bytes: float


def messages(count: int) -> list[tuple[bytes, bytes]]:
    """Views of the demo shop's items in ten minutes of event time, some twice, some bad; key and value."""
    pick = random.Random(7)
    items = [item for shelf in shop.catalogue().values() for item in shelf]
    start_ms = int(time.time() * 1000) - 600_000
    made: list[tuple[bytes, bytes]] = []
    for i in range(count):
        user = f"shopper-{pick.randrange(USERS)}"
        if made and pick.random() < TWICE:
            made.append(made[-1])
            continue
        item = items[pick.randrange(len(items))]
        event = {
            "event_id": f"{i:x}-{pick.getrandbits(64):016x}", "type": pick.choice(("view", "view", "click", "cart")),
            "user_id": user, "ts": start_ms + 600_000 * i // count, "item_id": item.item_id, "title": item.title,
            "category": item.category, "brand": item.brand, "price": item.price, "currency": "EUR",
            "position": pick.randrange(24),
        }  # fmt: skip
        if pick.random() < BAD:
            del event["type"]
        made.append((user.encode(), json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode()))
    return made


async def _fill(kafka: str, name: str, sent: list[tuple[bytes, bytes]]) -> None:
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=kafka, linger_ms=20, max_batch_size=256 * 1024, acks="all")
    async with producer:
        for key, value in sent:
            await producer.send(name, value, key=key)
        await producer.flush()


def fill(kafka: str) -> Topic:
    """`NEXTCLICK_BENCH_EVENTS` events in eight partitions."""
    name = f"bench-{uuid.uuid4().hex[:8]}"
    topics.ensure(kafka, topics.Topics(events=(name,)))
    sent = messages(EVENTS)
    asyncio.run(_fill(kafka, name, sent))
    return Topic(kafka, name, len(sent), sum(len(value) for _, value in sent) / len(sent))


def measured(*programs: tuple[Any, ...]) -> list[dict[str, Any]]:
    """Run programs of this folder side by side, each with its arguments; the last line of each is its result."""
    began = [
        subprocess.Popen(
            [sys.executable, str(HERE / name), *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, cwd=HERE.parents[1],
        )
        for name, *arguments in programs
    ]  # fmt: skip
    results = []
    for running in began:
        out, errors = running.communicate()
        assert running.returncode == 0, out[-2000:] + errors[-4000:]
        last = out.splitlines()[-1]
        results.append(dict(json.loads(last[last.index("{") :])))  # Faust's spinner writes before it
    return results
