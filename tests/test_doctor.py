"""The doctor: each finding from a sample, and the whole of it on a broker."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from kafka import KafkaProducer
from kafka.admin import ACL, ACLFilter, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType

from deploy import broker, doctor, rights
from deploy import kafka as real_kafka
from streams import topics
from streams.connection import Connection
from tests.test_cli import run

NOW_MS = 1_760_000_000_000


def record(n: int, *, key: str = "u", ts_ms: int | None = None, value: bytes | None = None, **more: Any) -> Any:
    """A message of one view, a second after the one before."""
    at_ms = NOW_MS + 1_000 * n
    fields = {
        "event_id": f"e{n}",
        "type": "view",
        "user_id": "u",
        "ts": ts_ms or at_ms,
        "item_id": "i",
        "title": "Lamp",
    }
    value = json.dumps(fields | more).encode() if value is None else value
    return SimpleNamespace(topic="t", partition=0, offset=n, key=key.encode(), value=value, headers=(), timestamp=at_ms)


def found(*records: Any) -> dict[str, doctor.Finding]:
    """Findings by name."""
    return {f.check: f for f in doctor.described(doctor.judged(records))}


def test_sound_events_are_safe() -> None:
    """Nothing is told to be mended."""
    told = found(*map(record, range(50)))
    assert {f.level for f in told.values()} == {"ok"}
    assert told.keys() == {"dialects", "dead letters", "keys", "clocks", "duplicates", "bots", "capacity"}


@pytest.mark.parametrize(
    ("records", "check", "level", "said"),
    [
        ([record(n, key="x" if n < 2 else "u") for n in range(100)], "keys", "fault", "98.0% of the events are keyed"),
        ([record(n, value=b"{" if n % 2 else None) for n in range(9)], "dead letters", "notice", "bad-json 4"),
        ([record(n, value=b"{" if n else None) for n in range(9)], "dead letters", "fault", "88.9% of the events"),
        ([record(n, ts_ms=NOW_MS - 86_400_000) for n in range(9)], "clocks", "notice", "86,404.0 s behind"),
        ([record(n, ts_ms=NOW_MS + 7_200_000) for n in range(9)], "dead letters", "fault", "future-ts 9"),
        ([record(n, event_id="e") for n in range(10)], "duplicates", "notice", "90.0% are repeated"),
        ([record(n, ts_ms=NOW_MS + n) for n in range(200)], "bots", "notice", "1 of 1 users act like programs"),
        ([record(0, user_agent="Googlebot/2.1")], "bots", "notice", "1 of 1 users"),
        ([], "events", "notice", "empty"),
    ],
)  # fmt: skip
def test_each_fault_has_its_finding(records: list[Any], check: str, level: str, said: str) -> None:
    """What is wrong is named with its share and its remedy."""
    told = found(*records)[check]
    assert (told.level, said in told.text, bool(told.remedy)) == (level, True, True), told


def test_on_a_broker(capsys: pytest.CaptureFixture[str]) -> None:
    """Missing topics stand in the way; with sound events it is safe to start; wrong keys end with 1."""
    with broker.embedded(port=0) as embedded:
        asked = ["doctor", "--kafka", embedded.address, "--set", "encoder=none"]
        code, out, _ = run(capsys, *asked, "--json")
        assert (code, json.loads(out)["safe"]) == (1, False)
        topics.ensure(embedded.address, topics.Topics())
        assert run(capsys, *asked)[0] == 0
        producer = KafkaProducer(bootstrap_servers=embedded.address)
        for n in range(30):
            one = record(n)
            producer.send("clickstream.events", key=one.key, value=one.value)
        producer.flush()
        code, out, _ = run(capsys, *asked)
        assert (code, "100.0% of the events are keyed" in out, out.endswith("safe to start\n")) == (0, True, True)
        for n in range(30, 60):
            producer.send("clickstream.events", key=b"x", value=record(n).value)
        producer.close()
        code, out, _ = run(capsys, *asked)
        assert (code, "FAULT   keys:" in out) == (1, True)


# ---------------------------------------------------------------- rights, on a Kafka that has them


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory,
            start_kafka: Callable[[Path, real_kafka.Guard], real_kafka.Kafka]) -> Iterator[Connection]:  # fmt: skip
    """A Kafka that lets `ann` in and asks an authorizer what she may do."""
    guard = real_kafka.Guard(user="ann", password="secret", mechanism="PLAIN")
    with start_kafka(tmp_path_factory.mktemp("guarded"), guard) as kafka:
        yield kafka.connection


@contextlib.contextmanager
def forbidden(kafka: Connection, kind: ResourceType, name: str, *operations: ACLOperation) -> Iterator[None]:
    """While this holds, `ann` may do anything with a topic, a group or the cluster but these."""
    on = ResourcePattern(kind, name)
    rules = [ACL("User:ann", "*", ACLOperation.ALL, ACLPermissionType.ALLOW, on)]
    rules += [ACL("User:ann", "*", one, ACLPermissionType.DENY, on) for one in operations]
    with topics.admin_of(kafka) as admin:
        mine = ACLFilter("User:ann", "*", ACLOperation.ANY, ACLPermissionType.ANY, on)
        admin.create_acls(rules)
        while len(admin.describe_acls(mine)[0]) < len(rules):  # the broker follows its controller
            time.sleep(0.05)
        yield
        admin.delete_acls([mine])
        while admin.describe_acls(mine)[0]:
            time.sleep(0.05)


def told_rights(kafka: Connection, names: topics.Topics, group: str = "g") -> list[tuple[str, str, str]]:
    """Level, text and remedy of what may and may not be done."""
    missing, _ = topics.compared(kafka, names)
    return [(f.level, f.text, f.remedy) for f in rights.examine(kafka, names, missing, group)]


@pytest.mark.kafka
def test_rights_are_told_by_the_broker_and_nothing_is_made(guarded: Connection) -> None:
    """Each right that is missing is a fault with the line that gives it; topics are not made, records not written."""
    names = topics.Topics(predictions="p")

    def there() -> set[str]:
        with topics.admin_of(guarded) as admin:
            return set(admin.list_topics())

    ((level, text, _),) = told_rights(guarded, names)
    assert (level, there()) == ("ok", set())
    assert "and make clickstream.events," in text
    cluster = forbidden(guarded, ResourceType.CLUSTER, "kafka-cluster", ACLOperation.CREATE)
    with cluster, forbidden(guarded, ResourceType.TOPIC, "*", ACLOperation.CREATE):
        faults = told_rights(guarded, names)
        assert [level for level, _, _ in faults] == ["fault"] * 6
        remedies = {text: remedy for _, text, remedy in faults}
        assert "kafka-topics --bootstrap-server" in remedies["topic p may not be made by this user"]
    assert (
        "could not be made: Unable to replicate"
        in told_rights(guarded, msgspec.structs.replace(names, replication=3))[0][1]
    )
    topics.ensure(guarded, names)
    assert [level for level, _, _ in told_rights(guarded, names)] == ["ok"]
    for topic, operation, said in (
        ("clickstream.events", ACLOperation.READ, "READ on topic clickstream.events is not allowed"),
        ("p", ACLOperation.WRITE, "WRITE on topic p is not allowed"),
    ):
        with forbidden(guarded, ResourceType.TOPIC, topic, operation):
            ((level, text, remedy),) = told_rights(guarded, names)
            assert (level, text) == ("fault", said)
            assert f"--allow-principal User:ann --operation {operation.name.title()} --topic {topic}" in remedy


def test_a_broker_that_tells_no_rights_is_not_asked_to_make_anything() -> None:
    """The embedded one would make what it is only asked to check."""
    with broker.embedded(port=0) as embedded:
        kafka = Connection(embedded.address)
        ((level, text, _),) = told_rights(kafka, topics.Topics())
        assert (level, "does not tell" in text) == ("notice", True)
        with topics.admin_of(kafka) as admin:
            assert admin.list_topics() == []
