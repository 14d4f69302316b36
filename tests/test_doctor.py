"""The doctor: each finding from a sample, and the whole of it on a broker."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from kafka import KafkaProducer

from deploy import broker, doctor
from streams import topics
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
