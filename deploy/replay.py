"""A file of events played into Kafka, in its own rhythm, faster, or as fast as it goes."""

from __future__ import annotations

import contextlib
import datetime
import gzip
import hashlib
import itertools
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import msgspec
import orjson

from featurestore.events import Event
from streams import codec
from streams.connection import Connection
from streams.dialects import files

LINE_BYTES = 2 * 1024 * 1024  # no topic takes a longer one
ARRAY = 50  # events of one line that go into one message, which must stay below the topic's limit
OURS = frozenset({"type", "user_id", "ts"})
PROBED = 100  # lines of which one must be JSON


class UnreadableFile(ValueError):
    """The file cannot be replayed; the message says why and what would do."""


class NotSent(RuntimeError):
    """The broker did not take some messages; the message says how many and why."""


class Line(msgspec.Struct, frozen=True, gc=False):
    """One line as it goes to Kafka: its key, its bytes, its event time where it can be read."""

    key: bytes | None
    value: bytes
    ts_ms: int | None
    events: int
    readable: bool = True  # JSON; what is not is sent too, and becomes a dead letter


class Sent(msgspec.Struct, kw_only=True):
    """What was sent so far, and how much of it the broker did not take."""

    messages: int = 0
    events: int = 0
    failed_messages: int = 0
    failed: int = 0  # events
    why: str | None = None  # of the newest failure

    def fail(self, events: int, why: object) -> None:
        """Count one message that was not taken."""
        self.failed_messages += 1
        self.failed += events
        self.why = str(why) or type(why).__name__


class Producer(Protocol):
    """What is needed of a Kafka producer (kafka-python's)."""

    def send(self, topic: str, value: bytes | None = None, key: bytes | None = None) -> Any:
        """Hand over one record; the broker stamps it."""

    def flush(self, timeout: float | None = None) -> Any:
        """Wait for what was sent."""

    def close(self, timeout: float | None = None) -> Any:
        """Flush and part."""


def lines(file: Path, dialect: str | None = None) -> Iterator[Line]:
    """The lines of a file of events; one without an id gets one that is the same at every replay.

    Lines of other dialects, CSV files too, become events of our own; `dialect` names theirs where their shape does not.
    """
    for number, value in values(file, dialect):
        yield from _lines(number, value, dialect)


def values(file: Path, dialect: str | None = None) -> Iterator[tuple[int, bytes]]:
    """A file's lines as messages, with their places: those of a CSV file as JSON objects, without its header."""
    source = raw_lines(file)
    for number, first in source:
        read = files.reader(first, dialect)
        for place, raw in itertools.chain([(number, first)], source):
            if (value := raw if read is None else read(raw)) is not None:
                yield place, value


def raw_lines(
    file: Path, wanted: str = "give a file of one event a line, packed with gzip or not"
) -> Iterator[tuple[int, bytes]]:
    """The lines that are not blank with their places; `-` is stdin. Raises `UnreadableFile`."""
    try:
        with _open(file) as source:
            for number, raw in enumerate(iter(lambda: source.readline(LINE_BYTES + 1), b"")):
                if len(raw) > LINE_BYTES:
                    raise UnreadableFile(
                        f"{file} cannot be read (line {number + 1} is over {LINE_BYTES:,} bytes): {wanted}"
                    )
                if raw.strip():
                    yield number, raw.rstrip(b"\r\n") if b"\t" in raw else raw.strip()
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFile(f"{file} cannot be read ({error}): {wanted}") from error


def opened(file: Path, dialect: str | None = None) -> Iterator[Line]:
    """The same lines, once the first ones are known to be JSON: said before anything is started for them."""
    source = lines(file, dialect)
    first = list(itertools.islice(source, PROBED))
    if not any(line.readable for line in first):
        why = "none of its first lines is JSON" if first else "it is empty"
        raise UnreadableFile(f"{file} holds no events ({why}): give a .jsonl or .jsonl.gz file of one event a line")
    return itertools.chain(first, source)


def _open(file: Path) -> Any:
    if str(file) == "-":
        stdin: Any = sys.stdin.buffer
        return gzip.open(stdin, "rb") if stdin.peek(2)[:2] == b"\x1f\x8b" else contextlib.nullcontext(stdin)
    with file.open("rb") as probe:
        packed = probe.read(2) == b"\x1f\x8b"
    return gzip.open(file, "rb") if packed else file.open("rb")


def _lines(number: int, raw: bytes, dialect: str | None) -> Iterator[Line]:
    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError:
        fields = None
    if dialect is None and _is_ours(fields):
        yield _line(number, raw, fields)
        return
    try:
        message = codec.read(raw, record_ms=round(time.time() * 1000), dialect=dialect, line=number)
    except codec.BadEvent:
        message = codec.Message("nextclick", [], [])  # the dead-letter topic says what is wrong with it
    if message.dialect == "nextclick":
        yield _line(number, raw, fields)
    else:
        yield from _translated(raw, message)


def _is_ours(fields: Any) -> bool:
    some = fields[:1] if isinstance(fields, list) else [fields]
    return all(isinstance(event, dict) and event.keys() >= OURS for event in some)


def _line(number: int, raw: bytes, fields: Any) -> Line:
    if isinstance(fields, list):
        users = {_key(e.get("user_id")) for e in fields if isinstance(e, dict)}
        return Line(users.pop() if len(users) == 1 else None, raw, None, len(fields))
    if not isinstance(fields, dict):
        return Line(None, raw, None, 1, readable=False)  # the dead-letter topic says what is wrong with it
    if "event_id" not in fields and "user_id" in fields:
        digest = hashlib.blake2b(b"%d|" % number + raw, digest_size=12).hexdigest()
        fields, raw = fields | {"event_id": digest}, orjson.dumps({"event_id": digest, **fields})
    return Line(_key(fields.get("user_id")), raw, _instant(fields.get("ts")), 1)


def _translated(raw: bytes, message: codec.Message) -> Iterator[Line]:
    """One message a user; a line that is bad in part, or holds nothing, goes out as it is: the worker says why."""
    events = [element for element in message.elements if isinstance(element, Event)]
    users = list(dict.fromkeys(event.user_id for event in events))
    if not events or len(events) < len(message.elements):
        key = users[0].encode() if len(users) == 1 else None
        yield Line(key, raw, events[0].ts_ms if events else None, len(message.elements))
        return
    for user in users:
        own = [event for event in events if event.user_id == user]
        for some in (own[n : n + ARRAY] for n in range(0, len(own), ARRAY)):
            yield Line(user.encode(), b"[" + b",".join(map(codec.encode_event, some)) + b"]", some[0].ts_ms, len(some))


def _key(user: Any) -> bytes | None:
    return user.encode() if isinstance(user, str) else None


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
        sent.messages += 1
        sent.events += line.events
        sending = producer.send(topic, value=line.value, key=line.key)
        sending.add_errback(lambda error, n=line.events: sent.fail(n, error))
    producer.flush(timeout=60)
    return sent


def checked(sent: Sent) -> Sent:
    """What was sent, where the broker took all of it; raises `NotSent`."""
    if sent.failed_messages:
        raise NotSent(
            f"{sent.failed_messages:,} of {sent.messages:,} messages were not taken by the broker ({sent.why}): "
            "replay the file again when that is mended, a repeated event_id counts once"
        )
    return sent


def producer(brokers: str | Connection, topic: str | None = None) -> Producer:
    """A kafka-python producer for many small records (no idempotence: the embedded broker has none).

    Raises at once where no broker listens, or where the topic that is named is not there.
    """
    from kafka import KafkaProducer
    from kafka.errors import KafkaError

    from streams import connection, topics

    topics.require_listener(brokers)
    if topic is not None:
        topics.log_ids(brokers, [topic])
    try:
        return KafkaProducer(  # type: ignore[no-any-return]
            **connection.of(brokers).for_kafka_python(), acks="all", enable_idempotence=False, linger_ms=20,
            batch_size=64 * 1024, max_request_size=LINE_BYTES + 64 * 1024, bootstrap_timeout_ms=10_000,
            max_in_flight_requests_per_connection=1, max_block_ms=30_000,
        )  # fmt: skip
    except KafkaError as error:
        raise topics.BrokerUnreachable(brokers, type(error).__name__) from error
