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


def test_file_without_events_is_said_before_anything_is_started(tmp_path: Path) -> None:
    """Empty, or without any JSON in its first lines; one bad line among good ones is sent as it is."""
    for name, content, why in (
        ("empty", b"\n\n", "it is empty"),
        ("text", b"hello\nworld\n", "none of its first lines is JSON"),
        ("binary", bytes(range(256)) * 9, "none of its first lines is JSON"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(replay.UnreadableFile, match=f"{name} holds no events .{why}"):
            replay.opened(tmp_path / name)
    (tmp_path / "a.jsonl").write_bytes(b"hello\n" + LINES)
    assert len(list(replay.opened(tmp_path / "a.jsonl"))) == 6


def test_endless_line_is_said(tmp_path: Path) -> None:
    """A file without line ends is not read into memory."""
    (tmp_path / "one-line").write_bytes(b"[" * (replay.LINE_BYTES + 1))
    with pytest.raises(replay.UnreadableFile, match="line 1 is over 2,097,152 bytes"):
        list(replay.lines(tmp_path / "one-line"))


def test_array_is_keyed_by_the_user_whom_all_of_it_names(tmp_path: Path) -> None:
    """An array of one user's events is keyed by that user; of several users', by none."""
    (tmp_path / "a.jsonl").write_bytes(
        b'[{"user_id":"u1"},{"user_id":"u1"}]\n[{"user_id":"u1"},{"user_id":"u2"}]\n[]\n'
    )
    assert [(x.key, x.events) for x in replay.lines(tmp_path / "a.jsonl")] == [(b"u1", 2), (None, 2), (None, 0)]


def test_what_the_broker_did_not_take_is_said(tmp_path: Path) -> None:
    """Messages that failed are counted and raised, with the newest reason."""

    class Refusing(FakeProducer):
        def add_errback(self, call: Any) -> None:
            if len(self.records) == 2:
                call(ValueError("too large"))

    (tmp_path / "a.jsonl").write_bytes(LINES)
    sent = replay.play(replay.lines(tmp_path / "a.jsonl"), Refusing(), "t")
    assert (sent.messages, sent.failed_messages, sent.failed) == (5, 1, 1)
    with pytest.raises(replay.NotSent, match=r"1 of 5 messages were not taken by the broker .too large"):
        replay.checked(sent)
