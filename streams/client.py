"""What teams that push events and teams that read predictions import: light, on kafka-python alone."""

from __future__ import annotations

import atexit
import itertools
import logging
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import orjson
from kafka import KafkaProducer
from kafka.errors import KafkaTimeoutError

from featurestore.catalogue import Item
from featurestore.events import Event
from streams import codec, connection, items
from streams.codec import BadEvent, Prediction
from streams.connection import Connection
from streams.predictions import PredictionConsumer

__all__ = [
    "BadEvent",
    "Connection",
    "Event",
    "EventProducer",
    "Item",
    "ItemProducer",
    "NotDelivered",
    "Prediction",
    "PredictionConsumer",
]

log = logging.getLogger(__name__)

IDEMPOTENCE_S = 3.0  # how long a broker may take to give a producer its id
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

    Idempotent where the broker lets it be; elsewhere a retry may write an event twice, which its `event_id` lets count
    once. `kafka` is HOST:PORT, or a `Connection` that says how TLS and the user are. What is still queued when the
    program ends is flushed. `options` are kafka-python's.
    """

    def __init__(
        self, kafka: str | Connection = "127.0.0.1:9092", topic: str = "clickstream.events", **options: Any
    ) -> None:
        self.topic = topic
        defaults: dict[str, Any] = {
            "acks": "all",
            "linger_ms": 20,
            "max_in_flight_requests_per_connection": 1,  # a retry must not overtake
            "max_block_ms": int(METADATA_S * 1000),
        }
        self._producer, self.idempotent = _producer(kafka, defaults | options)
        self._patience_s = self._producer.config["delivery_timeout_ms"] / 1000
        self._closed = False
        self.delivered = 0  # events that the broker has acknowledged
        self._numbers = itertools.count()
        self._waiting: dict[int, str] = {}  # event ids that the broker has not answered for
        self._refused: dict[int, tuple[str, object]] = {}
        atexit.register(_finish, weakref.ref(self))

    def send(self, event: Event | Mapping[str, Any]) -> Any:
        """Queue one event; the future resolves, to where it lies, when the broker has it.

        Another dialect's event may be sent too, of one person. Raises `BadEvent`, which names the field and the remedy,
        or `NotDelivered`.
        """
        checked, value = _checked(event)
        return self._queue(checked.event_id, checked.user_id, value)

    def _queue(self, named: str, key: str, value: bytes | None) -> Any:
        try:
            sent = self._producer.send(self.topic, key=key.encode(), value=value)
        except KafkaTimeoutError as error:
            why = (
                f"topic {self.topic} was not found within {METADATA_S:.0f} s: is the broker up? create the topic, or "
                "let `nextclick up` or a worker make it"
            )
            raise NotDelivered([named], why) from error
        number = next(self._numbers)
        self._waiting[number] = named
        sent.add_callback(lambda _: self._deliver(number))
        sent.add_errback(lambda error: self._refuse(number, error))
        return sent

    def _deliver(self, number: int) -> None:
        del self._waiting[number]
        self.delivered += 1

    def _refuse(self, number: int, error: object) -> None:
        self._refused[number] = (self._waiting.pop(number), error)

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything queued was acknowledged; raises `NotDelivered` where it was not.

        It waits no longer than `delivery_timeout_ms`, 2 minutes unless said otherwise. What the broker refused is named
        once; what is still waiting goes on being tried.
        """
        self._settle(lambda: self._producer.flush(timeout=self._patience_s if timeout_s is None else timeout_s))

    def close(self, timeout_s: float | None = None) -> None:
        """Flush and disconnect; raises `NotDelivered` like `flush`, and nothing is tried any more."""
        self._closed = True
        self._settle(lambda: self._end(self._patience_s if timeout_s is None else timeout_s))

    def _end(self, timeout_s: float) -> None:
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


class ItemProducer(EventProducer):
    """Sends the catalogue, keyed by item: each message takes the place of what was told of that item before.

    Delivery, errors and options are `EventProducer`'s; `NotDelivered` names items.
    """

    def __init__(
        self, kafka: str | Connection = "127.0.0.1:9092", topic: str = "clickstream.items", **options: Any
    ) -> None:
        super().__init__(kafka, topic, **options)

    def send(self, item: Item | Mapping[str, Any]) -> Any:  # type: ignore[override]
        """Queue one item; a mapping whose `withdrawn` is true withdraws it. Raises `BadEvent`."""
        if not isinstance(item, Item) and item.get("withdrawn") is True:
            return self.withdraw(str(item.get("item_id") or ""))
        value = items.encode(item) if isinstance(item, Item) else orjson.dumps(dict(item))
        return self._queue(name := items.told(value).item_id, name, value)

    def withdraw(self, item_id: str) -> Any:
        """Queue a tombstone: the item is proposed no more."""
        items.decode(None, key=item_id.encode(), record_ms=0)  # raises where it is no id
        return self._queue(item_id, item_id, None)


def _producer(kafka: str | Connection, options: dict[str, Any]) -> tuple[Any, bool]:
    """A producer, idempotent where the broker gives it an id in time (Kafka does; not where rights are missing)."""
    if options.get("enable_idempotence", True):
        made = connection.client(KafkaProducer, kafka, options | {"enable_idempotence": True})
        known, end = made._transaction_manager, time.monotonic() + IDEMPOTENCE_S
        while time.monotonic() < end and not known.has_error():
            if known.has_producer_id():
                return made, True
            time.sleep(0.01)
        made.close(timeout=0)
    return connection.client(KafkaProducer, kafka, options | {"enable_idempotence": False}), False


def _finish(producer: weakref.ref[EventProducer]) -> None:
    """Flush what a program that ends has not closed."""
    if (open_ := producer()) is not None and not open_._closed:
        try:
            open_.close(ABANDONED_S)
        except NotDelivered as error:
            log.error("%s", error)


def _checked(event: Event | Mapping[str, Any]) -> tuple[Event, bytes]:
    """An event as the worker will read it (another dialect's: its first row), and its bytes."""
    try:
        value = codec.encode_event(event) if isinstance(event, Event) else orjson.dumps(dict(event))
    except orjson.JSONEncodeError as error:
        raise BadEvent("schema", f"the event cannot be written as JSON: {error}") from error
    held = codec.decode(value)
    if bad := next((element for element in held if isinstance(element, codec.BadElement)), None):
        raise BadEvent(bad.reason, f"event {bad.n}: {bad.message}")
    events = [element for element in held if isinstance(element, Event)]
    if not events:
        raise BadEvent("schema", "the event is another dialect's and tells of no act: there is nothing to send")
    if len({event.user_id for event in events}) > 1:
        raise BadEvent("schema", "the event names several people: send one message a person, its key is the user_id")
    return events[0], value
