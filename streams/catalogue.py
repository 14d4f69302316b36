"""The catalogue topic: read whole at the start, then followed."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Any

import kafka

from featurestore.catalogue import Item
from streams import codec, connection, following, items
from streams.bad import BadEvent

REFUSED = 1_000  # dead letters that wait to be told, the newest


class Catalogue(following.Follower):
    """Follows the topic, all its partitions; `items` is the newest that was told of each, withdrawn ones included."""

    def __init__(self, kafka_: str | connection.Connection, topic: str) -> None:
        super().__init__(kafka_, topic)
        self.items: dict[str, Item] = {}
        self.refused: deque[tuple[int, int, codec.DeadLetter]] = deque(maxlen=REFUSED)  # partition, offset
        self.bad = 0
        self._changed: dict[str, Item] = {}
        self._next: dict[int, int] = {}
        self._lock = threading.Lock()

    def changed(self) -> list[Item]:
        """What was told since the last call, the newest of each item."""
        with self._lock:
            found, self._changed = self._changed, {}
        return list(found.values())

    def unasked(self) -> int:
        """How many items were told since `changed` was called last."""
        with self._lock:
            return len(self._changed)

    def anew(self) -> None:
        """Another log begins: what the old one told stays, until this one tells otherwise."""
        self._next.clear()

    def partitions(self, consumer: Any) -> list[Any]:
        """All that the topic has just now."""
        return [kafka.TopicPartition(self.topic, p) for p in sorted(consumer.partitions_for_topic(self.topic) or ())]

    def take_records(self, records: Iterable[Any]) -> None:
        """Fold records, in order by partition; those read before, by a connection that broke, change nothing."""
        for record in records:
            if record.offset < self._next.get(record.partition, 0):
                continue
            self._next[record.partition] = record.offset + 1
            try:
                item = items.decode(record.value, key=record.key, record_ms=record.timestamp)
            except BadEvent as bad:
                self.bad += 1
                self.refused.append((record.partition, record.offset, codec.dead_letter(record, bad)))
                continue
            if self.items.get(item.item_id) != item:
                with self._lock:
                    self.items[item.item_id] = self._changed[item.item_id] = item

    def untold(self, told: Mapping[int, int]) -> list[tuple[int, int, codec.DeadLetter]]:
        """The dead letters at or above these offsets; the others were told and are let go."""
        while self.refused and self.refused[0][1] < told.get(self.refused[0][0], 0):
            self.refused.popleft()
        return [one for one in list(self.refused) if one[1] >= told.get(one[0], 0)]
