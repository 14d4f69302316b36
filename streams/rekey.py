"""Records of a topic that is not keyed by its user, forwarded under their user's key; at least once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import Any

import msgspec
from kafka import KafkaConsumer, KafkaProducer

from featurestore.events import Event
from streams import codec, connection
from streams.connection import Connection

GROUP = "nextclick-rekey"
KEPT = 50  # events of one user in a message


class Forwarded(msgspec.Struct, kw_only=True):
    """What was done so far."""

    read: int = 0
    sent: int = 0  # more than were read, where one names several people


def keyed(record: Any, keep: Collection[str] = ()) -> Iterator[tuple[bytes | None, bytes | None, list[Any]]]:
    """A record as one message a user: untouched where it is of one, else its events under each user's key."""
    headers = list(record.headers or ())
    try:
        held = codec.decode(record.value, headers, key=record.key, record_ms=record.timestamp, keep=keep)
    except codec.BadEvent:
        held = []
    events = [element for element in held if isinstance(element, Event)]
    users = list(dict.fromkeys(event.user_id for event in events))
    if len(users) < 2 or len(events) < len(held):  # a bad element stays beside the others, and is told with them
        yield users[0].encode() if users else record.key, record.value, headers
        return
    for user in users:
        own = [event for event in events if event.user_id == user]
        for some in (own[n : n + KEPT] for n in range(0, len(own), KEPT)):
            yield user.encode(), b"[" + b",".join(map(codec.encode_event, some)) + b"]", []


def forward(
    kafka: str | Connection, source: str, target: str, *, keep: Collection[str] = (), group: str = GROUP,
    stopped: Callable[[], bool] = lambda: False, tell: Callable[[Forwarded], None] = lambda _: None,
) -> Forwarded:  # fmt: skip
    """Forward until stopped; several of the same group share the partitions.

    What was read is committed once all it became was acknowledged: a crash sends some again, which a repeated event_id
    lets count once. Raises kafka-python's errors where the target does not take a message.
    """
    consumer = connection.client(KafkaConsumer, kafka, {
        "group_id": group, "enable_auto_commit": False, "auto_offset_reset": "earliest",
        "isolation_level": "read_committed", "session_timeout_ms": 6_000, "heartbeat_interval_ms": 1_500,
    }, source)  # fmt: skip
    producer = connection.client(KafkaProducer, kafka, {
        "acks": "all", "linger_ms": 5, "max_in_flight_requests_per_connection": 1,
    })  # fmt: skip
    done = Forwarded()
    try:
        while not stopped():
            sending = []
            for records in consumer.poll(timeout_ms=200).values():
                for record in records:
                    done.read += 1
                    for key, value, headers in keyed(record, keep):
                        sending.append(producer.send(target, key=key, value=value, headers=headers))
            if sending:
                producer.flush()
                for sent in sending:
                    sent.get(timeout=30)
                consumer.commit()
                done.sent += len(sending)
                tell(done)
        return done
    finally:
        producer.close(timeout=5)
        consumer.close()
