"""Bytes to events, predictions to bytes, and what could not be read to a dead letter that says why."""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Collection, Iterable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, Protocol

import msgspec

from featurestore.events import LIMIT_CATEGORY_CHARS, LIMIT_ID_CHARS, NEEDS_ITEM, Event, EventType, Instant, Int64
from featurestore.events import MAX_TS_MS as MAX_TS_MS
from streams.bad import MESSAGE_CHARS as MESSAGE_CHARS
from streams.bad import BadElement as BadElement
from streams.bad import BadEvent as BadEvent
from streams.bad import Reason as Reason
from streams.dialects import foreign, snowplow, table

LIMIT_BYTES = 256 * 1024  # a larger message is a dead letter unread
SCHEMA_VERSION = 1

Headers = Sequence[tuple[str, bytes | None]]

_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
_MS = datetime.timedelta(milliseconds=1)


class Record(Protocol):
    """What a dead letter needs to know of a Kafka record: aiokafka's and kafka-python's records both have it."""

    @property
    def topic(self) -> str: ...
    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...
    @property
    def timestamp(self) -> int: ...


# ---------------------------------------------------------------- events in

_Id = Annotated[str, msgspec.Meta(max_length=LIMIT_ID_CHARS)]


class _Wire(msgspec.Struct, kw_only=True, gc=False):
    """The contract of an event as JSON; unknown fields are let through here and collected by `_with_properties`."""

    event_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    type: EventType
    user_id: Annotated[str, msgspec.Meta(min_length=1, max_length=LIMIT_ID_CHARS)]
    ts: Instant
    session_id: _Id | None = None
    item_id: _Id | None = None
    title: str | None = None
    category: Annotated[str, msgspec.Meta(max_length=LIMIT_CATEGORY_CHARS)] | None = None
    brand: str | None = None
    price: float | None = None
    currency: str | None = None
    quantity: Int64 | None = None
    position: Int64 | None = None
    query: str | None = None
    prediction_id: _Id | None = None
    consent: bool | None = None


class _Closed(_Wire, kw_only=True, gc=False, forbid_unknown_fields=True):
    """The same without unknown fields: one pass, for the messages that have none."""


FIELDS = frozenset(_Wire.__struct_fields__)
REQUIRED = frozenset({"event_id", "type", "user_id", "ts"})

UNREAD = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)  # what msgspec raises, of whatever bytes

_plain = msgspec.json.Decoder(Event).decode
_one = msgspec.json.Decoder(_Closed).decode
_many = msgspec.json.Decoder(list[_Closed]).decode
_open = msgspec.json.Decoder(_Wire).decode
_anything = msgspec.json.Decoder().decode
_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_elements = msgspec.json.Decoder(list[msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode


class Message(NamedTuple):
    """What one message holds: its events and bad elements in order, and of what else it tells why that is no event."""

    dialect: str  # `nextclick` is our own
    elements: list[Event | BadElement]
    nothing: list[str]


def plain(value: bytes | None) -> Event | None:
    """The event of a message that is one object of the contract: no other field, no empty text; else None.

    What most messages are, at a third of the cost; of all others `decode` tells what they hold.
    """
    if not value or len(value) > LIMIT_BYTES:
        return None
    try:
        event = _plain(value)
    except UNREAD:
        return None
    if event.item_id is None and event.category is None and event.type in NEEDS_ITEM:
        return None
    if type(event.ts_ms) is not int:  # it was told as RFC 3339
        ts_ms = ms(event.ts_ms)
        if ts_ms < 0:
            return None
        msgspec.structs.force_setattr(event, "ts_ms", ts_ms)
    return event


def decode(
    value: bytes | None,
    headers: Headers = (),
    *,
    key: bytes | None = None,
    record_ms: int | None = None,
    keep: Collection[str] = (),
) -> list[Event | BadElement]:
    """The events of one message in order, a `BadElement` in the place of each that breaks the contract.

    A single object that breaks it, and a message that is no JSON or too large, raise `BadEvent`. Whether the key is
    the user is the caller's to judge. Messages of other dialects are recognised and translated, for which `headers`,
    `key` and the record's time are there; one that tells of no act holds no event. `keep`: personal fields to keep.

    >>> decode(b'{"event_id": "e1", "type": "search", "user_id": "u1", "ts": 1}')[0].ts_ms
    1
    """
    if not value or len(value) > LIMIT_BYTES:
        raise _unread(value)
    array = value.lstrip(b" \t\r\n")[:1] == b"["
    try:
        return [_event(wire, None) for wire in _many(value)] if array else [_event(_one(value), None)]
    except UNREAD:  # an unknown field, a wrong type, another dialect, no JSON at all
        if not array and (event := _with_properties(value)) is not None:
            return [event]
    except BadEvent:
        if not array:
            raise
    elements = read(value, headers, key=key, record_ms=record_ms, keep=keep).elements
    if len(elements) == 1 and not array and isinstance(bad := elements[0], BadElement):
        raise BadEvent(bad.reason, bad.message)
    return elements


def read(
    value: bytes | None,
    headers: Headers = (),
    *,
    key: bytes | None = None,
    record_ms: int | None = None,
    keep: Collection[str] = (),
    dialect: str | None = None,
    line: int | None = None,
) -> Message:
    """The same with the dialect and what there was nothing to store of; raises `BadEvent` where nothing can be read.

    `dialect` says what the message is written in; `line`, its place in a file, tells equal messages apart.
    """
    if not value or len(value) > LIMIT_BYTES:
        raise _unread(value)
    arrival = foreign.Arrival(
        value=value, key=None if key is None else key.decode(errors="replace"), record_ms=record_ms,
        headers={name: (field or b"").decode(errors="replace") for name, field in headers or ()}, line=line,
        keep=frozenset(keep),
    )  # fmt: skip
    try:
        payload = snowplow.line(value) or _check_json(value)
        if isinstance(payload, list) and not _is_foreign(payload, arrival, dialect):
            return _read_array(value, arrival, dialect)
        return _read(value, payload, arrival, dialect)
    except RecursionError as error:
        raise BadEvent("bad-json", "not JSON that can be read: it is nested too deeply") from error


def _unread(value: bytes | None) -> BadEvent:
    if not value:
        return BadEvent("schema", "the message is empty: send one event as a JSON object, or an array of them")
    return BadEvent(
        "too-large",
        f"{len(value):,} bytes; the limit is {LIMIT_BYTES:,}: send fewer events a message, or shorter texts",
    )


def _with_properties(value: bytes) -> Event | None:
    """An event of our own with fields that are not, kept as they were written; None where it is something else."""
    try:
        wire = _open(value)
    except UNREAD:
        return None
    _check_json(value)
    rest = {name: raw for name, raw in _fields(value).items() if name not in FIELDS}
    return _event(wire, _encode(rest).decode() if rest else None)


def _is_foreign(payload: list[Any], arrival: foreign.Arrival, dialect: str | None) -> bool:
    """Whether an array is one event of another dialect, not several events."""
    return bool(payload) and isinstance(payload[0], str) and table.translate(payload, arrival, dialect) is not None


def _read_array(value: bytes, arrival: foreign.Arrival, dialect: str | None) -> Message:
    whole = Message("", [], [])
    names: dict[str, None] = {}
    for n, raw in enumerate(_elements(value)):
        part = bytes(raw)
        held = _read(part, _anything(part), arrival._replace(value=b"%d|" % n + part), dialect, len(whole.elements))
        names[held.dialect] = None
        whole.elements.extend(held.elements)
        whole.nothing.extend(held.nothing)
    return whole._replace(dialect=", ".join(names) or "nextclick")


def _read(value: bytes, payload: Any, arrival: foreign.Arrival, dialect: str | None, first: int = 0) -> Message:
    """One object: an event of our own, or what another dialect makes of it; its first element has the place `first`."""
    ours = isinstance(payload, dict) and payload.keys() >= REQUIRED
    found = None if ours and dialect is None else table.translate(payload, arrival, dialect)
    if found is None:
        return Message("nextclick", [_own(value, payload, first)], [])
    message = Message(found.dialect, [], [])
    for part in found.parts:
        if isinstance(part, foreign.Nothing):
            message.nothing.append(part.why)
        elif isinstance(part, BadEvent):
            message.elements.append(BadElement(first + len(message.elements), part.reason, str(part)))
        else:
            message.elements.extend(
                _translated(draft, first + n) for n, draft in enumerate(part, len(message.elements))
            )
    return message


def _own(value: bytes, payload: Any, n: int) -> Event | BadElement:
    """An event of our own, or what exactly is wrong with it."""
    try:
        if not isinstance(payload, dict):
            raise BadEvent("schema", "an event is a JSON object with event_id, type, user_id and ts")
        return _with_properties(value) or _event(_open(value), None)
    except msgspec.ValidationError as error:
        return BadElement(n, "schema", explain(error)[:MESSAGE_CHARS])
    except BadEvent as bad:
        return BadElement(n, bad.reason, str(bad))


def _translated(draft: foreign.Draft, n: int) -> Event | BadElement:
    """A row of another dialect's event under the contract of our own; what would shadow a field of it is renamed."""
    rest = {f"event_{name}" if name in FIELDS else name: field for name, field in draft.rest.items()}
    try:
        return _event(msgspec.convert(draft.fields, _Wire), _encode(rest).decode() if rest else None)
    except msgspec.ValidationError as error:
        return BadElement(n, "schema", explain(error)[:MESSAGE_CHARS])
    except BadEvent as bad:
        return BadElement(n, bad.reason, str(bad))


def _check_json(value: bytes) -> object:
    try:
        value.decode()
        return _anything(value)
    except UNREAD as error:
        raise BadEvent("bad-json", f"not JSON: {error}") from error


def explain(error: msgspec.ValidationError) -> str:
    """msgspec's message with the field first: "quantity: Expected `int | null`, got `str`"."""
    text, at, path = str(error).rpartition(" - at `$.")
    return f"{path.rstrip('`')}: {text}" if at else str(error)


def _event(wire: _Wire, properties: str | None) -> Event:
    item_id, category = wire.item_id or None, wire.category or None
    if item_id is None and category is None and wire.type in NEEDS_ITEM:
        raise BadEvent("schema", f"item_id: a {wire.type} needs item_id or category")
    ts_ms = ms(wire.ts)
    if ts_ms < 0:
        raise BadEvent("schema", "ts: lies before 1970")
    return Event(
        event_id=wire.event_id, type=wire.type, user_id=wire.user_id, ts_ms=ts_ms, session_id=wire.session_id or None,
        item_id=item_id, title=wire.title or None, category=category, brand=wire.brand or None, price=wire.price,
        currency=wire.currency or None, quantity=wire.quantity, position=wire.position, query=wire.query or None,
        prediction_id=wire.prediction_id or None, consent=wire.consent is not False, properties=properties,
    )  # fmt: skip


def ms(ts: datetime.datetime | int) -> int:
    """An instant as a message tells it, in epoch milliseconds."""
    return ts if isinstance(ts, int) else (ts - _EPOCH) // _MS


def encode_event(event: Event) -> bytes:
    """An event as its message: `decode` gives the same event back."""
    fields: dict[str, object] = {
        name: field
        for name in event.__struct_fields__
        if name not in ("ts_ms", "properties") and (field := getattr(event, name)) is not None
    }
    if event.consent:
        del fields["consent"]
    known = _encode(fields | {"ts": event.ts_ms})
    if event.properties is None or event.properties == "{}":
        return known
    return known[:-1] + b"," + event.properties.encode()[1:]


# ---------------------------------------------------------------- predictions out


class Trigger(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """The event a prediction was made after; a consumer ignores a lower offset of the same topic and partition."""

    event_id: str
    topic: str
    partition: int
    offset: int


class Category(msgspec.Struct, frozen=True, gc=False):
    """A category path with the probability that the next engagement lies in it."""

    category: str
    probability: float
    rank: int


class Item(msgspec.Struct, frozen=True, gc=False):
    """An item with the probability that it is the next different one engaged with."""

    item_id: str
    probability: float
    rank: int


class Because(msgspec.Struct, frozen=True, gc=False):
    """An event of the session and how much it counted."""

    event_id: str
    weight: float


class Prediction(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """What a person is about to be interested in; instants are written as RFC 3339 in UTC."""

    prediction_id: str
    user_id: str
    session_id: str
    trigger: Trigger
    event_ts: datetime.datetime
    predicted_at: datetime.datetime
    expires_at: datetime.datetime
    model_version: str
    arm: str = "champion"
    reason: Literal["model", "fallback"]
    categories: list[Category]
    items: list[Item]
    none_probability: float
    purchase_probability: float | None = None
    because: list[Because] | None = None
    schema_version: int = SCHEMA_VERSION


_prediction = msgspec.json.Decoder(Prediction).decode


def instant(ms: int) -> datetime.datetime:
    """Epoch milliseconds as an aware UTC instant."""
    return _EPOCH + ms * _MS


def prediction_id(trigger: Trigger, user_id: str, session_id: str, version: str) -> str:
    """The same trigger and model version give the same id, so that what a crash repeats can be recognised.

    User and session are part of it since the events of one message share its offset.
    """
    identity = (trigger.topic, trigger.partition, trigger.offset, trigger.event_id, user_id, session_id, version)
    return hashlib.blake2b(_encode(identity), digest_size=12).hexdigest()


def ranked_items(pairs: Iterable[tuple[str, float]]) -> list[Item]:
    """Pairs in descending order as ranks from 1; to six digits, as `round` would, at a third of its price.

    >>> ranked_items([("i1", 0.1234567), ("i2", 0.0000004)])
    [Item(item_id='i1', probability=0.123457, rank=1), Item(item_id='i2', probability=0.0, rank=2)]
    """
    return [Item(name, int(probability * 1e6 + 0.5) / 1e6, rank) for rank, (name, probability) in enumerate(pairs, 1)]


def ranked_categories(pairs: Iterable[tuple[str, float]]) -> list[Category]:
    """Pairs in descending order as ranks from 1; to six digits too."""
    return [
        Category(name, int(probability * 1e6 + 0.5) / 1e6, rank) for rank, (name, probability) in enumerate(pairs, 1)
    ]


def encode_prediction(prediction: Prediction) -> bytes:
    """A prediction as its message; its key is the user id."""
    return _encode(prediction)


def decode_prediction(value: bytes) -> Prediction:
    """A message of the predictions topic; fields of a later version are ignored."""
    return _prediction(value)


# ---------------------------------------------------------------- dead letters


class DeadLetter(NamedTuple):
    """A record of the dead-letter topic: key, value and timestamp untouched, and the headers that say why it is there.

    The timestamp is told by `x-timestamp` too, since no topic takes every one.
    """

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    timestamp_ms: int


def dead_letter(record: Record, bad: BadEvent | Sequence[BadElement]) -> DeadLetter:
    """The dead letter of a record; its headers are written as Kafka Connect does.

    `bad` is why the message as a whole could not be read, or the elements that were not accepted.
    """
    elements = [] if isinstance(bad, BadEvent) else list(bad)
    reason = bad.reason if isinstance(bad, BadEvent) else elements[0].reason
    message = str(bad) if isinstance(bad, BadEvent) else _summary(elements)
    headers = {
        "__connect.errors.topic": record.topic,
        "__connect.errors.partition": str(record.partition),
        "__connect.errors.offset": str(record.offset),
        "__connect.errors.stage": "VALUE_CONVERTER" if reason in ("bad-json", "schema", "too-large") else "TASK_PUT",
        "__connect.errors.exception.class.name": "streams.codec.BadEvent",
        "__connect.errors.exception.message": message[:MESSAGE_CHARS],
        "x-reason": reason,
        "x-timestamp": str(record.timestamp),
    }
    if elements:
        headers["x-bad-elements"] = ranges([element.n for element in elements])
    kept = [(name, field or b"") for name, field in record.headers or ()]
    told = kept + [(name, text.encode()) for name, text in headers.items()]
    return DeadLetter(record.key, record.value, told, record.timestamp)


def _summary(elements: Sequence[BadElement]) -> str:
    first = elements[0]
    others = f" (and {len(elements) - 1} more)" if len(elements) > 1 else ""
    return f"event {first.n}: {first.message}{others}"


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in short; bounded however many there are in a row.

    >>> ranges([0, 3, 4, 5, 9])
    '0,3-5,9'
    """
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
