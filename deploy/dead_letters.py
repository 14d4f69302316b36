"""Dead letters as they lie in their topic: read, told, and sent once more to where they came from."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from typing import Any

import kafka
import msgspec

from deploy.settings import Settings
from streams import topics

OURS = ("__connect.errors.", "x-reason", "x-timestamp", "x-bad-elements", "x-value-bytes")
SHOWN = 120  # characters of a value in a list
READ_S = 60.0


class Letter(msgspec.Struct, frozen=True, kw_only=True):
    """One dead letter: where it lies, where it came from, why, and the bytes as they were."""

    partition: int
    offset: int
    reason: str
    message: str
    topic: str  # that it came from
    source: str  # topic-partition@offset of the message
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]

    def told(self, length: int | None = None) -> dict[str, Any]:
        """As plain values; bytes that are no text are shown with replacements, cut at `length` characters."""
        value = None if self.value is None else self.value.decode(errors="replace")
        return {
            "partition": self.partition, "offset": self.offset, "reason": self.reason, "message": self.message,
            "source": self.source, "timestamp_ms": self.timestamp_ms,
            "key": None if self.key is None else self.key.decode(errors="replace"),
            "value": value if value is None or length is None else value[:length],
            "bytes": len(self.value or b""),
        }  # fmt: skip


def read(settings: Settings) -> Iterator[Letter]:
    """All that the topic holds now, oldest first; raises KafkaError where it cannot be read to its end."""
    name = settings["topics.dead_letters"]
    topics.log_ids(settings.kafka, [name])  # one clear message where there is no broker or no topic
    consumer = kafka.KafkaConsumer(
        **settings.kafka.for_kafka_python(), group_id=None, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    try:
        parts = [kafka.TopicPartition(name, p) for p in consumer.partitions_for_topic(name) or ()]
        consumer.assign(parts)
        consumer.seek_to_beginning(*parts)
        open_, until_s = set(parts), time.monotonic() + READ_S
        while open_:
            for part, records in consumer.poll(timeout_ms=250).items():
                until_s = time.monotonic() + READ_S
                yield from (_letter(part.partition, record) for record in records)
            for part in list(open_):
                end = consumer.highwater(part)
                if end is not None and consumer.position(part) >= end:
                    open_.discard(part)
            if time.monotonic() > until_s:
                raise kafka.errors.KafkaTimeoutError(f"{name} said nothing for {READ_S:.0f} s")
    finally:
        consumer.close()


def _letter(partition: int, record: Any) -> Letter:
    said = {name: (value or b"").decode(errors="replace") for name, value in record.headers or ()}
    topic = said.get("__connect.errors.topic", "")
    at = f"{topic}-{said.get('__connect.errors.partition', '?')}@{said.get('__connect.errors.offset', '?')}"
    stamp = said.get("x-timestamp", "")
    return Letter(
        partition=partition, offset=record.offset, reason=said.get("x-reason", ""), topic=topic, source=at,
        message=said.get("__connect.errors.exception.message", ""),
        timestamp_ms=int(stamp) if stamp.lstrip("-").isdigit() else record.timestamp,
        key=record.key, value=record.value,
        headers=[(n, v or b"") for n, v in record.headers or () if not n.startswith(OURS)],
    )  # fmt: skip


def send(settings: Settings, letters: Collection[Letter], known: Collection[str]) -> int:
    """Send them to the topics they came from, of `known` ones, key and value untouched; how many were taken.

    They arrive with a timestamp of their own; events that were stored the first time count as duplicates while their
    session is open, and an event that is still bad is a dead letter again.
    """
    from deploy import replay

    producer: Any = replay.producer(settings.kafka)
    try:
        sent = [
            producer.send(one.topic, key=one.key, value=one.value, headers=one.headers)
            for one in letters
            if one.topic in known
        ]
        producer.flush(timeout=60)
        for future in sent:
            future.get(timeout=20)
    finally:
        producer.close(timeout=5)
    return len(sent)
