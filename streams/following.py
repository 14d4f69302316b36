"""A topic of one log, or a few, read from its start without a consumer group and then followed, in a thread."""

from __future__ import annotations

import threading
from typing import Any

import kafka
import structlog

from streams import connection

log = structlog.get_logger()

METADATA_MS = 5_000  # how often it is asked which log this is


class Follower:
    """Reads a topic (of one partition) from its start in a thread, without a group, and follows it."""

    def __init__(self, kafka_: str | connection.Connection, topic: str) -> None:
        self.kafka, self.topic = connection.of(kafka_), topic
        self._log: tuple[Any, Any] = (None, None)  # the cluster's id and the topic's, as far as they are told
        self._caught_up, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._follow, name=topic, daemon=True)

    def start(self) -> None:
        """Begin to read, from the first record."""
        self._thread.start()

    def caught_up(self, timeout_s: float) -> bool:
        """Wait until all that was in the log at the start has been taken."""
        return self._caught_up.wait(timeout_s)

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join(5)

    def begin(self) -> None:
        """The log is about to be read from its start, perhaps again."""

    def anew(self) -> None:
        """The topic was made anew, or the broker is another one: what follows is another log."""

    def partitions(self, consumer: Any) -> list[Any]:
        """Which are read."""
        return [kafka.TopicPartition(self.topic, 0)]

    def take_records(self, records: list[Any]) -> None:
        """What the newest poll brought, in order by partition; perhaps nothing."""
        self.take([record.value for record in records if record.value is not None])

    def take(self, values: list[bytes]) -> None:
        """The same as plain values, without tombstones."""
        raise NotImplementedError

    def _follow(self) -> None:
        while not self._stop.is_set():
            try:
                self._read()
            except kafka.errors.KafkaError as error:
                log.warning("A log cannot be read just now.", topic=self.topic, error=str(error))
                self._stop.wait(1)

    def _read(self) -> None:
        consumer = kafka.KafkaConsumer(
            enable_auto_commit=False, auto_offset_reset="none", metadata_max_age_ms=METADATA_MS,
            **self.kafka.for_kafka_python(),
        )  # fmt: skip
        try:
            parts = self.partitions(consumer)
            if not parts:  # the topic is gone, or not there yet
                self._stop.wait(1)
                return
            consumer.assign(parts)
            consumer.seek_to_beginning(*parts)
            self.begin()
            while not self._stop.is_set() and self.partitions(consumer) == parts:
                polled = consumer.poll(timeout_ms=250)
                if self._is_another(consumer._client.cluster):
                    log.error("A log was made anew and is read from its start; what the old one said no longer counts.",
                              topic=self.topic)  # fmt: skip
                    self.anew()
                    return
                self.take_records([record for part in parts for record in polled.get(part, ())])
                # None until a fetch was answered, by an empty log too: silence is no end
                ends = [(part, consumer.highwater(part)) for part in parts]
                if all(end is not None and consumer.position(part) >= end for part, end in ends):
                    self._caught_up.set()
        finally:
            consumer.close()

    def _is_another(self, cluster: Any) -> bool:
        """Whether this is another log than the one read so far; metadata tells it, in memory."""
        told = (cluster.cluster_id, cluster.topic_id(self.topic))
        another = any(new and old and new != old for new, old in zip(told, self._log, strict=True))
        self._log = told if another else (told[0] or self._log[0], told[1] or self._log[1])
        return another
