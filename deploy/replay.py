"""A file of events played into Kafka, in its own rhythm, faster, or as fast as it goes."""

from __future__ import annotations

import datetime
import gzip
import hashlib
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import orjson


class UnreadableFile(ValueError):
    """The file cannot be replayed; the message says why and what would do."""


class BrokerUnreachable(ConnectionError):
    """No broker answers; the message names the address and the remedy."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line as it goes to Kafka: its key, its bytes, its event time where it can be read."""

    key: bytes | None
    value: bytes
    ts_ms: int | None
    events: int


class Sent(msgspec.Struct, kw_only=True):
    """What was sent so far."""

    messages: int = 0
    events: int = 0
    failed: int = 0


class Producer(Protocol):
    """What is needed of a Kafka producer (kafka-python's)."""

    def send(self, topic: str, value: bytes | None = None, key: bytes | None = None) -> Any:
        """Hand over one record; the broker stamps it."""

    def flush(self, timeout: float | None = None) -> Any:
        """Wait for what was sent."""

    def close(self, timeout: float | None = None) -> Any:
        """Flush and part."""


def lines(file: Path) -> Iterator[Line]:
    """The lines of a .jsonl or .jsonl.gz file; an event without event_id gets one that is the same at every replay."""
    try:
        with _open(file) as source:
            for number, raw in enumerate(source):
                if raw := raw.strip():
                    yield _line(number, raw)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(
            f"{file} cannot be read ({error}): give a .jsonl or .jsonl.gz file of one event a line"
        ) from error


def _open(file: Path) -> Any:
    with file.open("rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if packed else file.open("rb")


def _line(number: int, raw: bytes) -> Line:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        return Line(None, raw, None, 1)  # sent as it is: the dead-letter topic says what is wrong with it
    if not isinstance(fields, dict):
        return Line(None, raw, None, max(1, len(fields)) if isinstance(fields, list) else 1)
    if "event_id" not in fields and "user_id" in fields:
        digest = hashlib.blake2b(b"%d|" % number + raw, digest_size=12).hexdigest()
        fields, raw = fields | {"event_id": digest}, orjson.dumps({"event_id": digest, **fields})
    user, ts = fields.get("user_id"), fields.get("ts")
    return Line(user.encode() if isinstance(user, str) else None, raw, _instant(ts), 1)


def _instant(ts: Any) -> int | None:
    if isinstance(ts, int) and not isinstance(ts, bool):
        return ts
    try:
        return round(msgspec.convert(ts, type=datetime.datetime).timestamp() * 1000)
    except (msgspec.ValidationError, AttributeError):
        return None


def play(
    source: Iterator[Line],
    producer: Producer,
    topic: str,
    *,
    speed: float | None = None,
    sent: Sent | None = None,
    stopped: Callable[[], bool] = lambda: False,
    now: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> Sent:
    """Send the lines, `speed` times as fast as they happened (None: at once); record timestamps are the broker's."""
    sent = sent if sent is not None else Sent()
    started, first_ms = now(), None
    for line in source:
        if stopped():
            break
        if speed and line.ts_ms is not None:
            first_ms = line.ts_ms if first_ms is None else first_ms
            while (wait := started + (line.ts_ms - first_ms) / 1000 / speed - now()) > 0 and not stopped():
                sleep(min(wait, 0.2))
        producer.send(topic, value=line.value, key=line.key).add_errback(lambda _error: _fail(sent))
        sent.messages += 1
        sent.events += line.events
    producer.flush(timeout=60)
    return sent


def _fail(sent: Sent) -> None:
    sent.failed += 1


def producer(kafka: str) -> Producer:
    """A kafka-python producer for many small records (no idempotence: the embedded broker has none)."""
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    try:
        return KafkaProducer(  # type: ignore[no-any-return]
            bootstrap_servers=kafka.split(","), acks="all", enable_idempotence=False, linger_ms=20,
            batch_size=64 * 1024, max_request_size=2 * 1024 * 1024, bootstrap_timeout_ms=10_000,
            max_in_flight_requests_per_connection=1, max_block_ms=30_000,
        )  # fmt: skip
    except KafkaError as error:
        raise BrokerUnreachable(
            f"no Kafka broker answers at {kafka} ({type(error).__name__}): "
            "check --kafka, or start one with `nextclick broker`"
        ) from error
