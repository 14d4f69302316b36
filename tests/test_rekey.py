"""Rekeying: every event under its user's key, what cannot be read untouched."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaConsumer, KafkaProducer
from kafka.admin import KafkaAdminClient

from deploy import broker
from streams import codec, rekey, topics
from tests.test_cli import run


def event(n: int, user: str) -> dict[str, Any]:
    """A view."""
    return {"event_id": f"e{n}", "type": "view", "user_id": user, "ts": 1_760_000_000_000 + n, "item_id": "i"}


def keyed(value: bytes, key: bytes | None = b"shop-1") -> list[tuple[bytes | None, bytes | None]]:
    """What a record becomes."""
    record = SimpleNamespace(value=value, key=key, headers=[("x", b"1")], timestamp=1_760_000_000_000)
    return [(k, v) for k, v, _ in rekey.keyed(record)]


def test_one_user_keeps_the_bytes() -> None:
    """Key of the user, value untouched; what cannot be read, and what is bad in part, goes on as it is."""
    one = json.dumps(event(1, "ann")).encode()
    assert keyed(one) == [(b"ann", one)]
    assert keyed(b"{") == [(b"shop-1", b"{")]
    bad = json.dumps([event(1, "ann"), event(2, "bob") | {"type": "look"}]).encode()
    assert keyed(bad) == [(b"ann", bad)]


def test_several_users_become_a_message_each() -> None:
    """In the order of their events, none lost."""
    made = keyed(json.dumps([event(1, "ann"), event(2, "bob"), event(3, "ann")]).encode())
    told = [(key, [e.event_id for e in codec.decode(value)]) for key, value in made]  # type: ignore[union-attr]
    assert told == [(b"ann", ["e1", "e3"]), (b"bob", ["e2"])]


def test_through_a_broker(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A topic without keys arrives keyed; the second run goes on where the first was stopped."""
    monkeypatch.setattr("signal.signal", lambda *_: None)
    with broker.embedded(port=0) as embedded:
        topics.ensure(embedded.address, topics.Topics())
        admin = KafkaAdminClient(bootstrap_servers=embedded.address)
        admin.create_topics({"shop": {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)
        admin.close()
        producer = KafkaProducer(bootstrap_servers=embedded.address)
        for n in range(40):
            producer.send("shop", value=json.dumps(event(n, f"u{n % 5}")).encode())
        producer.close()
        asked = ["rekey", "shop", "--kafka", embedded.address, "--json"]
        code, out, _ = run(capsys, *asked, "--for", "8s")
        assert (code, json.loads(out)) == (0, {"read": 40, "sent": 40})
        reader = KafkaConsumer("clickstream.events", bootstrap_servers=embedded.address, auto_offset_reset="earliest",
                               consumer_timeout_ms=2_000)  # fmt: skip
        told = [(r.key.decode(), codec.decode(r.value)[0]) for r in reader]
        reader.close()
        assert sorted(e.event_id for _, e in told) == sorted(f"e{n}" for n in range(40))  # type: ignore[union-attr]
        assert all(key == e.user_id for key, e in told)  # type: ignore[union-attr]
        code, _, err = run(capsys, "rekey", "clickstream.events", "--kafka", embedded.address)
        assert (code, "is the event topic itself" in err) == (1, True)
