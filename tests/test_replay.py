"""A replayed file: every line goes out once, with the same ids at every replay."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import orjson
import pytest

from deploy import replay


class FakeProducer:
    """Keeps what it is given."""

    def __init__(self) -> None:
        self.records: list[tuple[str, bytes | None, bytes | None]] = []

    def send(self, topic: str, value: bytes | None = None, key: bytes | None = None) -> Any:
        self.records.append((topic, key, value))
        return self

    def add_errback(self, _call: Any) -> None:
        """Nothing fails here."""

    def flush(self, timeout: float | None = None) -> None:
        """Nothing waits here."""

    def close(self, timeout: float | None = None) -> None:
        """Nothing is open here."""


LINES = (
    b'{"ts":1000,"user_id":"u1","type":"search"}\n{"ts":"1970-01-01T00:00:03Z","user_id":"u2","type":"search"}\n'
    b'{"ts":1000,"user_id":"u1","type":"search"}\n{"broken\n\n[1,2]\n'
)


def test_ids_are_the_same_at_every_replay_and_differ_by_line(tmp_path: Path) -> None:
    """Equal lines are two events; a second replay of the file is all duplicates; packed or not."""
    (tmp_path / "a.jsonl").write_bytes(LINES)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(LINES))
    plain, packed = (list(replay.lines(tmp_path / n)) for n in ("a.jsonl", "a.jsonl.gz"))
    assert plain == packed
    ids = [orjson.loads(x.value)["event_id"] for x in plain[:3]]
    assert len(set(ids)) == 3
    assert [(x.key, x.ts_ms, x.events) for x in plain] == [
        (b"u1", 1000, 1), (b"u2", 3000, 1), (b"u1", 1000, 1), (None, None, 1), (None, None, 2),
    ]  # fmt: skip


def test_speed_divides_the_waits(tmp_path: Path) -> None:
    """Twice as fast waits half as long; no speed does not wait."""
    (tmp_path / "a.jsonl").write_bytes(LINES)
    for speed, waited in ((2.0, 1.0), (None, 0.0)):
        clock, producer = [0.0], FakeProducer()

        def sleep(s: float, clock: list[float] = clock) -> None:
            clock[0] += s

        sent = replay.play(
            replay.lines(tmp_path / "a.jsonl"), producer, "t", speed=speed, now=lambda c=clock: c[0], sleep=sleep
        )
        assert (sent.messages, sent.events, len(producer.records)) == (5, 6, 5)
        assert clock[0] == pytest.approx(waited)


def test_unreadable_file_is_said(tmp_path: Path) -> None:
    """A missing file and a torn archive name themselves and the remedy."""
    (tmp_path / "torn.gz").write_bytes(gzip.compress(LINES)[:20])
    for name in ("none", "torn.gz"):
        with pytest.raises(replay.UnreadableFile, match=f"{name} cannot be read"):
            list(replay.lines(tmp_path / name))
