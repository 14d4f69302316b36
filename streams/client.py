"""What teams that push events and teams that read predictions import: light, on kafka-python alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import orjson
from kafka import KafkaConsumer, KafkaProducer
from kafka.errors import KafkaError, KafkaTimeoutError

from featurestore.events import Event
from streams import codec, connection, topics
from streams.codec import Prediction
from streams.connection import Connection

__all__ = [
    "Connection",
    "Event",
    "EventProducer",
    "LatestPredictions",
    "NotDelivered",
    "Prediction",
    "PredictionConsumer",
]

BOOTSTRAP_S = 10.0
METADATA_S = 20.0  # how long `send` waits to learn where a topic lies
ABANDONED_S = 5.0  # how long a `with` block that ended in an error still tries to deliver


class NotDelivered(RuntimeError):
    """The broker has not taken these events; send them again when it is back: a repeated event_id counts once."""

    def __init__(self, event_ids: Sequence[str], why: object) -> None:
        named = ", ".join(event_ids[:5]) + (", …" if len(event_ids) > 5 else "")
        super().__init__(
            f"{len(event_ids):,} event(s) were not taken by the broker ({why}): {named}; "
            "send them again when it is back: a repeated event_id counts once"
        )
        self.event_ids = list(event_ids)


class EventProducer:
    """Sends events keyed by their user; one that breaks the contract is refused here, before it is sent.

    A retry may write an event twice: its `event_id` lets it count once. `kafka` is HOST:PORT, or a `Connection` that
    says how TLS and the user are.
    """

    def __init__(
        self, kafka: str | Connection = "127.0.0.1:9092", topic: str = "clickstream.events", **options: Any
    ) -> None:
        self.topic = topic
        defaults: dict[str, Any] = {
            "acks": "all",
            "linger_ms": 20,
            "enable_idempotence": False,  # the embedded broker has no idempotent producers
            "max_in_flight_requests_per_connection": 1,  # a retry must not overtake
            "max_block_ms": int(METADATA_S * 1000),
        }
        self._producer = _connected(KafkaProducer, kafka, defaults | options)
        self._numbers = itertools.count()
        self._waiting: dict[int, str] = {}  # event ids that the broker has not answered for
        self._refused: dict[int, tuple[str, object]] = {}

    def send(self, event: Event | Mapping[str, Any]) -> Any:
        """Queue one event; the future resolves when the broker has it. Raises `codec.BadEvent` or `NotDelivered`."""
        checked, value = _checked(event)
        try:
            sent = self._producer.send(self.topic, key=checked.user_id.encode(), value=value)
        except KafkaTimeoutError as error:
            why = f"topic {self.topic} was not found within {METADATA_S:.0f} s: is it there, and the broker up?"
            raise NotDelivered([checked.event_id], why) from error
        number = next(self._numbers)
        self._waiting[number] = checked.event_id
        sent.add_callback(lambda _: self._waiting.pop(number, None))
        sent.add_errback(lambda error: self._refuse(number, error))
        return sent

    def _refuse(self, number: int, error: object) -> None:
        self._refused[number] = (self._waiting.pop(number), error)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything queued was acknowledged; raises `NotDelivered` where it was not.

        What the broker refused is named once; what is still waiting goes on being tried.
        """
        self._settle(lambda: self._producer.flush(timeout=timeout_s))

    def close(self, timeout_s: float | None = None) -> None:
        """Flush and disconnect; raises `NotDelivered` like `flush`, and nothing is tried any more."""
        self._settle(lambda: self._end(timeout_s))

    def _end(self, timeout_s: float | None) -> None:
        try:
            self._producer.close(timeout=timeout_s)
        except KafkaTimeoutError:  # kafka-python 3.0.12 leaves it open then: it would go on sending behind our back
            sender = self._producer._sender
            sender.force_close()
            sender.join(ABANDONED_S)
            self._producer.close(timeout=0)
            raise

    def _settle(self, finish: Callable[[], None]) -> None:
        late = False
        try:
            finish()
        except KafkaTimeoutError:
            late = True
        missing, why = list(self._waiting.values()), list[object]()
        for number in list(self._refused):
            event_id, error = self._refused.pop(number)
            missing.append(event_id)
            why.append(error)
        if missing:
            raise NotDelivered(missing, "no answer in time" if late or not why else why[-1])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close(None if kind is None else ABANDONED_S)


def _checked(event: Event | Mapping[str, Any]) -> tuple[Event, bytes]:
    """An event as the worker will read it, and its bytes."""
    try:
        value = codec.encode_event(event) if isinstance(event, Event) else orjson.dumps(dict(event))
    except orjson.JSONEncodeError as error:
        raise codec.BadEvent("schema", f"the event cannot be written as JSON: {error}") from error
    held = codec.decode(value)
    if not held:
        raise codec.BadEvent("schema", "the event is another dialect's and tells of no act: there is nothing to send")
    checked = held[0]
    assert isinstance(checked, Event)
    return checked, value


def _connected(kind: Callable[..., Any], kafka: str | Connection, options: dict[str, Any], *topic: str) -> Any:
    topics.require_listener(kafka)
    defaults = {"bootstrap_timeout_ms": int(BOOTSTRAP_S * 1000)}
    try:
        return kind(*topic, **(defaults | connection.of(kafka).for_kafka_python() | options))
    except KafkaError as error:
        raise topics.BrokerUnreachable(kafka, type(error).__name__) from error


class PredictionConsumer:
    """Follows the predictions topic; with a `group` several readers share it, without one each reads all."""

    def __init__(
        self,
        kafka: str | Connection = "127.0.0.1:9092",
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
        self._consumer = _connected(KafkaConsumer, kafka, defaults | options, topic)

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
