"""Predictions as those who read them want them: typed, and never an older one after a newer one."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import msgspec
from kafka import KafkaConsumer

from streams import codec, connection
from streams.codec import Prediction, Trigger
from streams.connection import Connection

log = logging.getLogger(__name__)

REMEMBERED = 100_000  # users, of 2 to 3 KB each


class PredictionConsumer:
    """Follows the predictions topic and yields what is news: an older trigger of the same user is passed over.

    Without a `group` it reads all partitions, from now on or `from_start`; with one, several readers share them and go
    on where the group stopped. `by_user` holds the newest prediction of each of the last `remember` users heard of.
    """

    def __init__(
        self,
        kafka: str | Connection = "127.0.0.1:9092",
        topic: str = "interest.predictions",
        group: str | None = None,
        from_start: bool = False,
        remember: int = REMEMBERED,
        **options: Any,
    ) -> None:
        defaults: dict[str, Any] = {
            "group_id": group,
            "auto_offset_reset": "earliest" if from_start else "latest",
            "enable_auto_commit": group is not None,
            "session_timeout_ms": 6_000,
            "heartbeat_interval_ms": 1_500,
        }
        self._consumer = connection.client(KafkaConsumer, kafka, defaults | options, topic)
        self._remember = remember
        self.by_user: OrderedDict[str, Prediction] = OrderedDict()
        self.older = 0  # passed over: a newer one was there already
        self.unreadable = 0  # no prediction that this version can read; each is logged with its place

    def __iter__(self) -> Iterator[Prediction]:
        """Predictions as they come; one that was erased (a tombstone) leaves `by_user`."""
        for record in self._consumer:
            if (made := self._taken(record)) is not None:
                yield made

    def catch_up(self) -> dict[str, Prediction]:
        """Read what is there up to now; the newest prediction of each user. Needs `from_start` to know older ones."""
        while not self._consumer.assignment():
            self._take_polled(self._consumer.poll(timeout_ms=100))
        behind = set(self._consumer.assignment())
        while behind:
            self._take_polled(self._consumer.poll(timeout_ms=100))
            behind = {tp for tp in behind & self._consumer.assignment() if not self._at_end(tp)}
        return dict(self.by_user)

    def _at_end(self, partition: Any) -> bool:
        end = self._consumer.highwater(partition)  # None until a fetch was answered: silence is no end
        return end is not None and self._consumer.position(partition) >= end

    def _take_polled(self, polled: dict[Any, list[Any]]) -> None:
        for records in polled.values():
            for record in records:
                self._taken(record)

    def _taken(self, record: Any) -> Prediction | None:
        """A record's prediction, where it is news."""
        if record.value is None:
            self.by_user.pop((record.key or b"").decode(errors="replace"), None)
            return None
        try:
            made = codec.decode_prediction(record.value)
        except msgspec.MsgspecError as error:
            self.unreadable += 1
            log.warning("%s-%s offset %s holds no prediction (%s): who else writes to this topic?",
                        record.topic, record.partition, record.offset, error)  # fmt: skip
            return None
        return made if self._upsert(made) else None

    def _upsert(self, made: Prediction) -> bool:
        known = self.by_user.get(made.user_id)
        if known is not None and _older(made.trigger, known.trigger):
            self.older += 1
            return False
        self.by_user[made.user_id] = made
        self.by_user.move_to_end(made.user_id)
        if len(self.by_user) > self._remember:
            self.by_user.popitem(last=False)
        return True

    def close(self) -> None:
        """Leave the group and disconnect."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _older(new: Trigger, old: Trigger) -> bool:
    """Offsets of two partitions do not compare: then what comes later is news."""
    return (new.topic, new.partition) == (old.topic, old.partition) and new.offset < old.offset
