"""What a hop in, a hop out and Python cost without us: a plain aiokafka consumer that answers each record by one.

Arguments: source topic, sink topic, bytes of an answer, then options as a worker takes them.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys

import aiokafka
import orjson

from deploy.settings import from_arguments
from streams.connection import Connection


async def echo(kafka: Connection, source: str, sink: str, size: int) -> None:
    """One record of `size` bytes for each that comes, acknowledged before the next poll is taken: nothing else."""
    consumer = aiokafka.AIOKafkaConsumer(
        source, **kafka.for_aiokafka(), group_id=source, auto_offset_reset="earliest", fetch_max_wait_ms=50,
        session_timeout_ms=6_000, heartbeat_interval_ms=1_500,
    )  # fmt: skip
    producer = aiokafka.AIOKafkaProducer(**kafka.for_aiokafka(), linger_ms=0, acks="all")
    async with consumer, producer:
        while True:
            polled = await consumer.getmany(timeout_ms=1_000)
            sends = []
            for record in (record for records in polled.values() for record in records):
                event_id = orjson.loads(record.value)["event_id"]
                head = b'{"trigger":{"event_id":"%s"},"pad":"' % event_id.encode()
                value = head + b"x" * max(0, size - len(head) - 2) + b'"}'
                sends.append(await producer.send(sink, value, key=record.key))
            await asyncio.gather(*sends)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        said = from_arguments(sys.argv[4:], os.environ)
        asyncio.run(echo(said.kafka, sys.argv[1], sys.argv[2], int(sys.argv[3])))
