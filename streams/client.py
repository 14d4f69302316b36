"""What teams that push events and teams that read predictions import: light, on kafka-python alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import orjson
from kafka import KafkaConsumer, KafkaProducer

from featurestore.events import Event
from streams import codec
from streams.codec import Prediction

__all__ = ["Event", "EventProducer", "LatestPredictions", "Prediction", "PredictionConsumer"]


class EventProducer:
    """Sends events keyed by their user; one that breaks the contract is refused here, before it is sent.

    A retry may write an event twice: its `event_id` lets it count once.
    """

    def __init__(self, kafka: str = "127.0.0.1:9092", topic: str = "clickstream.events", **options: Any) -> None:
        self.topic = topic
        defaults: dict[str, Any] = {
            "acks": "all",
            "linger_ms": 20,
            "enable_idempotence": False,  # the embedded broker has no idempotent producers
            "max_in_flight_requests_per_connection": 1,  # a retry must not overtake
        }
        self._producer = KafkaProducer(bootstrap_servers=kafka.split(","), **(defaults | options))

    def send(self, event: Event | Mapping[str, Any]) -> Any:
        """Queue one event; the future resolves when the broker has it. Raises `codec.BadEvent`."""
        value = codec.encode_event(event) if isinstance(event, Event) else orjson.dumps(dict(event))
        checked = codec.decode(value)[0]
        assert isinstance(checked, Event)
        return self._producer.send(self.topic, key=checked.user_id.encode(), value=value)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything queued was acknowledged."""
        self._producer.flush(timeout=timeout_s)

    def close(self) -> None:
        """Flush and disconnect."""
        self._producer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class PredictionConsumer:
    """Follows the predictions topic; with a `group` several readers share it, without one each reads all."""

    def __init__(
        self,
        kafka: str = "127.0.0.1:9092",
        topic: str = "interest.predictions",
        group: str | None = None,
        from_start: bool = False,
        **options: Any,
    ) -> None:
        defaults: dict[str, Any] = {
            "group_id": group,
            "auto_offset_reset": "earliest" if from_start else "latest",
            "isolation_level": "read_committed",
            "session_timeout_ms": 6_000,
            "heartbeat_interval_ms": 1_500,
        }
        self._consumer = KafkaConsumer(topic, bootstrap_servers=kafka.split(","), **(defaults | options))

    def __iter__(self) -> Iterator[Prediction]:
        """Predictions as they come; what was erased (a tombstone) is passed over."""
        for record in self._consumer:
            if record.value is not None:
                yield codec.decode_prediction(record.value)

    def close(self) -> None:
        """Leave the group and disconnect."""
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class LatestPredictions:
    """The newest prediction of each user: an upsert that ignores what an older trigger says."""

    def __init__(self) -> None:
        self.by_user: dict[str, Prediction] = {}

    def upsert(self, prediction: Prediction) -> bool:
        """Whether it is news: a lower trigger offset of the same topic and partition is not."""
        known = self.by_user.get(prediction.user_id)
        if known is not None:
            old, new = known.trigger, prediction.trigger
            if (old.topic, old.partition) == (new.topic, new.partition) and new.offset < old.offset:
                return False
        self.by_user[prediction.user_id] = prediction
        return True
