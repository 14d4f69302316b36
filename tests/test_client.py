"""The client: light to import, strict before it sends, and no older news."""

from __future__ import annotations

import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from kafka import KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import KafkaAdminClient

from deploy import broker
from deploy.kafka import Kafka
from featurestore.events import Event
from streams import client, codec, predictions, topics

HEAVY = ("torch", "faust", "duckdb", "aiokafka", "numpy", "pyarrow", "transformers", "structlog")


def test_import_is_light() -> None:
    """`streams.client` brings none of the heavy packages."""
    program = f"import sys, streams.client; print(*({set(HEAVY)} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def event(**changes: object) -> Event:
    """A good event."""
    fields = {"event_id": "e1", "type": "view", "user_id": "u1", "ts": 1, "item_id": "i1"} | changes
    return msgspec.convert(fields, Event)


def prediction(offset: int, partition: int = 0) -> client.Prediction:
    """A prediction triggered at an offset."""
    return codec.Prediction(
        prediction_id=f"p{offset}",
        user_id="u1",
        session_id="s1",
        trigger=codec.Trigger(event_id="e1", topic="t", partition=partition, offset=offset),
        event_ts=codec.instant(1),
        predicted_at=codec.instant(2),
        expires_at=codec.instant(3),
        model_version="v1",
        reason="model",
        categories=[],
        items=[],
        none_probability=1.0,
    )


class Records:
    """What a Kafka consumer gives: records of one partition, then silence."""

    def __init__(self, *values: tuple[str, bytes | None]) -> None:
        self.records = [
            SimpleNamespace(topic="t", partition=0, offset=n, key=key.encode(), value=value)
            for n, (key, value) in enumerate(values)
        ]

    def __iter__(self) -> Iterator[SimpleNamespace]:
        return iter(self.records)


def consumer_of(monkeypatch: pytest.MonkeyPatch, *values: tuple[str, bytes | None], **options: Any) -> Any:
    """A consumer that reads these records."""
    monkeypatch.setattr(predictions.connection, "client", lambda *_: Records(*values))
    return client.PredictionConsumer("nowhere:9", **options)


def told(offset: int, partition: int = 0, user: str = "u1") -> tuple[str, bytes]:
    """A record of a prediction."""
    made = msgspec.structs.replace(prediction(offset, partition), user_id=user)
    return user, codec.encode_prediction(made)


def test_older_trigger_is_no_news(monkeypatch: pytest.MonkeyPatch) -> None:
    """A lower offset of the same partition is passed over; an equal, a higher or another partition's is taken."""
    consumer = consumer_of(monkeypatch, told(5), told(4), told(5), told(6), told(1, partition=1))
    assert [p.prediction_id for p in consumer] == ["p5", "p5", "p6", "p1"]
    assert (consumer.older, consumer.by_user["u1"].prediction_id) == (1, "p1")


def test_erased_and_foreign_records(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A tombstone takes the user out; what is no prediction is counted and told with its place, and reading goes on."""
    consumer = consumer_of(monkeypatch, told(5), ("u1", None), ("x", b"{}"), told(3), told(7, user="u2"))
    assert [p.trigger.offset for p in consumer] == [5, 3, 7]
    assert (consumer.unreadable, consumer.older) == (1, 0)
    assert "t-0 offset 2 holds no prediction" in caplog.text


def test_only_so_many_users_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond `remember` the one not heard of for longest goes."""
    consumer = consumer_of(monkeypatch, told(1, user="a"), told(2, user="b"), told(3, user="a"), told(4, user="c"),
                           remember=2)  # fmt: skip
    assert len(list(consumer)) == 4
    assert list(consumer.by_user) == ["a", "c"]


def test_several_people_in_one_event_are_refused() -> None:
    """A message has one key, which is its user: a foreign batch of two people is told before it is sent."""
    unconnected = object.__new__(client.EventProducer)
    track = {"type": "track", "event": "Product Viewed", "properties": {"product_id": "i"}, "timestamp": "2026-01-01Z"}
    batch = {"batch": [track | {"messageId": u, "userId": u, "timestamp": "2026-01-01T00:00:00Z"} for u in "ab"]}
    with pytest.raises(client.BadEvent, match="several people"):
        unconnected.send(batch)


def check_round_trip(address: str, *, says_its_end: bool) -> None:
    """Events arrive keyed by their user, bad ones never leave, predictions are read without tombstones."""
    sent, told = (f"{name}.{uuid.uuid4().hex[:8]}" for name in ("sent", "told"))
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics(
        {t: {"num_partitions": 1, "replication_factor": 1} for t in (sent, told)}, wait_for_metadata=True
    )
    admin.close()

    with client.EventProducer(address, sent) as producer:
        assert producer.idempotent
        producer.send(event(title="靴 👟"))
        producer.send({"event_id": "e2", "type": "search", "user_id": "u2", "ts": "2026-11-24T10:00:00Z", "x": 1})
        with pytest.raises(codec.BadEvent, match="price"):
            producer.send({"event_id": "e3", "type": "search", "user_id": "u2", "ts": 1, "price": "9"})
        producer.flush(10)
        assert producer.delivered == 2
    reader = KafkaConsumer(bootstrap_servers=address)
    reader.assign([TopicPartition(sent, 0)])
    reader.seek(TopicPartition(sent, 0), 0)
    records = [next(reader), next(reader)]
    reader.close()
    assert [record.key for record in records] == [b"u1", b"u2"]
    assert codec.decode(records[0].value) == [event(title="靴 👟")]

    raw = KafkaProducer(bootstrap_servers=address, enable_idempotence=False)
    for value in (codec.encode_prediction(prediction(1)), None, codec.encode_prediction(prediction(2))):
        raw.send(told, key=b"u1", value=value)
    raw.close()
    with client.PredictionConsumer(address, told, from_start=True) as consumer:
        stream = iter(consumer)
        assert [next(stream), next(stream)] == [prediction(1), prediction(2)]
    with client.PredictionConsumer(address, told, from_start=True) as consumer:
        assert consumer.catch_up() == {"u1": prediction(2)}
    if says_its_end:
        with client.PredictionConsumer(address, told) as consumer:
            assert consumer.catch_up() == {}


def test_round_trip_through_the_embedded_broker() -> None:
    """The client works with the embedded broker."""
    with broker.embedded(port=0) as embedded:
        check_round_trip(embedded.address, says_its_end=False)


@pytest.mark.kafka
def test_round_trip_through_kafka(kafka: str) -> None:
    """The client works with a real Kafka."""
    check_round_trip(kafka, says_its_end=True)


def test_array_is_not_sent() -> None:
    """The client sends one event a call: what is no mapping of fields is refused."""
    with pytest.raises((TypeError, ValueError)):
        client.EventProducer.send(object.__new__(client.EventProducer), [1, 2])  # type: ignore[arg-type]


def test_missing_broker_is_said() -> None:
    """Where no broker answers, producer and consumer name the address and the remedy."""
    address = f"127.0.0.1:{broker.free_port()}"
    for kind in (client.EventProducer, client.PredictionConsumer):
        with pytest.raises(topics.BrokerUnreachable, match=f"no Kafka broker answers at {address}"):
            kind(address)


def test_what_cannot_be_written_or_is_too_large_is_refused() -> None:
    """A value that JSON has no word for, and an event over the limit, are told before anything is sent."""
    unconnected = object.__new__(client.EventProducer)
    with pytest.raises(codec.BadEvent, match="cannot be written as JSON"):
        unconnected.send({"event_id": "e1", "type": "search", "user_id": "u1", "ts": 1, "x": {1, 2}})
    with pytest.raises(codec.BadEvent, match="the limit is 262,144"):
        unconnected.send(event(title="t" * 2_000_000))


@pytest.mark.kafka
def test_closed_producer_sends_no_more(own_kafka: Kafka) -> None:
    """Closed while the broker is frozen: the events are named, nothing is sent afterwards, nothing complains."""
    address, topic = own_kafka.address, "frozen"
    admin = KafkaAdminClient(bootstrap_servers=address)
    admin.create_topics({topic: {"num_partitions": 1, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    program = f"""
import os, signal
from streams import client
producer = client.EventProducer({address!r}, {topic!r})
event = {{"event_id": "e0", "type": "search", "user_id": "u", "ts": 1}}
producer.send(event)
producer.flush(20)
os.kill({own_kafka.process.pid}, signal.SIGSTOP)
for n in range(1, 6):
    producer.send(event | {{"event_id": f"e{{n}}"}})
    if n == 1:
        try:
            producer.flush(0.5)  # the first is on its way: only the others can be held back
        except client.NotDelivered:
            pass
try:
    producer.close(0.5)
except client.NotDelivered as error:
    print(sorted(error.event_ids), error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    own_kafka.process.send_signal(signal.SIGCONT)
    assert "['e1', 'e2', 'e3', 'e4', 'e5'] 5 event(s) were not taken by the broker (no answer in time)" in done.stdout
    assert (done.returncode, done.stderr) == (0, "")
    reader = KafkaConsumer(topic, bootstrap_servers=address, auto_offset_reset="earliest", consumer_timeout_ms=3_000)
    ids = [codec.decode(record.value)[0].event_id for record in reader]
    reader.close()
    assert set(ids) <= {"e0", "e1"}


@pytest.mark.kafka
def test_missing_topic_is_said(kafka: str) -> None:
    """Where the topic is not there, the event is named as not delivered."""
    producer = client.EventProducer(kafka, f"none.{uuid.uuid4().hex[:8]}", max_block_ms=500)
    with pytest.raises(client.NotDelivered, match="was not found") as said:
        producer.send(event())
    assert said.value.event_ids == ["e1"]
    producer.close()
