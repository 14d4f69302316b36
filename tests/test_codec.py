"""The codec: what is an event, what is not and why, and that nothing is lost on the way."""

from __future__ import annotations

import contextlib
import json
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.events import NEEDS_ITEM, TYPES, Event
from streams import codec
from streams.codec import BadElement, BadEvent

GOOD: dict[str, Any] = {"event_id": "e1", "type": "view", "user_id": "u1", "ts": 1_700_000_000_000, "item_id": "i1"}


def message(**changes: object) -> bytes:
    """A good event with some fields otherwise; `...` leaves a field out."""
    return json.dumps({k: v for k, v in (GOOD | changes).items() if v is not ...}).encode()


def only(value: bytes) -> Event:
    """The one event of a message."""
    (event,) = codec.decode(value)
    assert isinstance(event, Event)
    return event


texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
names = texts.filter(lambda name: name not in codec.FIELDS)
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3))
int64 = st.integers(-(2**63), 2**63 - 1)


@st.composite
def events(draw: st.DrawFn) -> Event:
    """Any event that the contract allows."""
    kind = draw(st.sampled_from(TYPES))
    optional = {
        name: draw(st.none() | texts)
        for name in ("session_id", "item_id", "title", "category", "brand", "currency", "query", "prediction_id")
    }
    if kind in NEEDS_ITEM and not optional["category"]:
        optional["item_id"] = draw(texts)
    rest = draw(st.dictionaries(names, values, max_size=3))
    return Event(
        event_id=draw(texts),
        type=kind,  # type: ignore[arg-type]
        user_id=draw(texts),
        ts_ms=draw(st.integers(0, codec.MAX_TS_MS)),
        price=draw(st.none() | st.floats(allow_nan=False, allow_infinity=False)),
        quantity=draw(st.none() | int64),
        position=draw(st.none() | int64),
        consent=draw(st.booleans()),
        properties=json.dumps(rest) if rest else None,
        **optional,
    )


def alike(event: Event) -> Event:
    """The event with its properties as parsed and written in one way."""
    same = event.properties and json.dumps(json.loads(event.properties), sort_keys=True)
    return msgspec.structs.replace(event, properties=same)


@settings(max_examples=60, deadline=None)
@given(events())
def test_event_survives_the_wire(event: Event) -> None:
    """What is encoded is decoded to the same event, unknown fields included."""
    assert alike(only(codec.encode_event(event))) == alike(event)


@settings(max_examples=60, deadline=None)
@given(st.lists(events(), max_size=4))
def test_array_keeps_order(several: list[Event]) -> None:
    """An array gives its events in order."""
    value = b"[" + b",".join(codec.encode_event(event) for event in several) + b"]"
    decoded = codec.decode(value)
    assert [alike(e) for e in decoded if isinstance(e, Event)] == [alike(e) for e in several]
    assert len(decoded) == len(several)


# What a field may come as: what is valid and what nearly is.
odd = st.sampled_from([
    "", "x", "x" * 64, "x" * 65, "x" * 513, "x" * 2_049, -1, 0, 1, 2**63, 1.0, 1.5, True, False, None, [], {}, ...,
    "2026-11-24T10:00:00Z", "1969-01-01T00:00:00Z", "2026-11-24T10:00:00+05:30", "2026-11-24T10:00:00",
])  # fmt: skip
fields = st.sampled_from([*sorted(codec.FIELDS), "properties", "ts_ms", "other"])
tails = st.sampled_from([b" ", b"\n", b"", b"{}", b"\xff", b"\x00"])


@settings(max_examples=400, deadline=None)
@given(st.dictionaries(fields, odd | texts, max_size=3), st.sampled_from([*TYPES, "vieww"]), tails)
def test_the_short_way_says_what_the_long_way_says(changes: dict[str, Any], kind: str, tail: bytes) -> None:
    """What `plain` takes is one event to the reading of all dialects too, the same in every field."""
    value = message(**{"type": kind} | changes) + tail
    event = codec.plain(value)
    if event is not None:
        assert codec.read(value).elements == [event]
        assert type(event.ts_ms) is int


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=2))
def test_the_short_way_says_of_damaged_bytes_what_the_long_way_says(at: int, bytes_: bytes) -> None:
    """Bytes overwritten anywhere: the same event or none at all."""
    whole = message(title="Kestrel", query="tr\u00e4il", price=9.5, quantity=2, consent=True)
    value = whole[: at % len(whole)] + bytes_ + whole[at % len(whole) + len(bytes_) :]
    event = codec.plain(value)
    if event is not None:
        assert codec.read(value).elements == [event]


def test_the_short_way_is_taken_by_whole_events() -> None:
    """Every field that there is, instants in both ways of writing."""
    told = {"session_id": "s", "title": "t", "category": "A > B", "brand": "b", "price": 1, "currency": "EUR",
            "quantity": 1, "position": 0, "query": "q", "prediction_id": "p", "consent": False}  # fmt: skip
    event = codec.plain(message(**told, ts="2023-11-14T22:13:20Z"))
    assert event is not None
    assert event == codec.plain(message(**told)) == only(message(**told))


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=60) | values.map(lambda value: json.dumps(value).encode()))
def test_anything_is_judged(value: bytes) -> None:
    """Whatever the bytes, the answer is events, bad elements or a `BadEvent`, never another exception."""
    try:
        assert all(isinstance(element, Event | BadElement) for element in codec.decode(value))
    except BadEvent as bad:
        assert bad.reason in ("bad-json", "schema")  # noqa: PT017


@pytest.mark.parametrize(
    ("value", "reason", "says"),
    [
        (b"{", "bad-json", "not JSON"),
        (b"\xff\xfe", "bad-json", "not JSON"),
        (b"[" * 100_000, "bad-json", "not JSON"),
        (b'{"a":' * 40_000, "bad-json", "not JSON"),
        (message()[:-1] + b',"x":"\xff"}', "bad-json", "not JSON"),
        (message()[:-1] + b',"title":"\xff"}', "bad-json", "not JSON"),
        (message(event_id=...)[:-1] + b',"event_id":"\xff"}', "bad-json", "not JSON"),
        (message()[:-1] + b',"x":"\\ud800"}', "bad-json", "not JSON"),
        (message()[:-1] + b',"x":NaN}', "bad-json", "not JSON"),
        (b"3", "schema", "JSON object"),
        (b"null", "schema", "JSON object"),
        (b"", "schema", "empty"),
        (None, "schema", "empty"),
        (message(event_id=...), "schema", "event_id"),
        (message(event_id="x" * 65), "schema", "event_id"),
        (message(event_id=""), "schema", "event_id"),
        (message(user_id=""), "schema", "user_id"),
        (message(user_id=7), "schema", "user_id"),
        (message(type="vieww"), "schema", "type"),
        (message(ts="2026-11-24T10:00:00"), "schema", "ts"),
        (message(ts="yesterday"), "schema", "ts"),
        (message(ts=1.5), "schema", "ts"),
        (message(ts=True), "schema", "ts"),
        (message(ts=-1), "schema", "ts"),
        (message(ts="1969-12-31T23:59:59Z"), "schema", "ts"),
        (message(ts=codec.MAX_TS_MS + 1), "schema", "ts"),
        (message(price="9"), "schema", "price"),
        (message(price=True), "schema", "price"),
        (message(quantity=1.5), "schema", "quantity"),
        (message(quantity=2**63), "schema", "quantity"),
        (message(position="3", extra=1), "schema", "position"),
        (message(consent="no"), "schema", "consent"),
        (message(title=["a"]), "schema", "title"),
        (message(item_id=...), "schema", "item_id"),
        (message(item_id="", category=""), "schema", "item_id"),
        (message(title="x" * codec.LIMIT_BYTES), "too-large", "limit"),
    ],
    ids=lambda part: repr(part)[:40] if isinstance(part, bytes) else None,
)
def test_bad_message_says_why(value: bytes | None, reason: str, says: str) -> None:
    """A message that breaks the contract names the reason and the field."""
    with pytest.raises(BadEvent, match=says) as bad:
        codec.decode(value)
    assert bad.value.reason == reason
    assert len(str(bad.value)) <= codec.MESSAGE_CHARS


def test_half_bad_array_keeps_the_good() -> None:
    """The good elements of an array are kept, each bad one stands in its place with its reason."""
    value = b"[" + b",".join([message(), b"7", message(price="x"), message(event_id="e2", extra=1), b"[]"]) + b"]"
    decoded = codec.decode(value)
    assert [isinstance(element, Event) for element in decoded] == [True, False, False, True, False]
    assert [(e.n, e.reason) for e in decoded if isinstance(e, BadElement)] == [(n, "schema") for n in (1, 2, 4)]


def test_broken_array_is_bad_as_a_whole() -> None:
    """An array that is no JSON gives no element, not even those before the break."""
    with pytest.raises(BadEvent) as bad:
        codec.decode(b"[" + message() + b",{]")
    assert bad.value.reason == "bad-json"


def test_empty_array_holds_no_event() -> None:
    """An empty array is legal and holds nothing."""
    assert codec.decode(b" [ ] ") == []


@pytest.mark.parametrize(
    "ts", ["2023-11-14T22:13:20Z", "2023-11-14T23:13:20.000+01:00", "2023-11-14t22:13:20.0009z", 1_700_000_000_000]
)
def test_instant_is_milliseconds(ts: str | int) -> None:
    """RFC 3339 with an offset and epoch milliseconds say the same instant; finer fractions are cut."""
    assert only(message(ts=ts)).ts_ms == 1_700_000_000_000


def test_null_and_empty_are_absent() -> None:
    """An optional field that is null or an empty text is absent; consent is then given."""
    event = only(message(type="search", item_id=None, query="", session_id="", consent=None, price=None))
    assert (event.query, event.session_id, event.item_id, event.price, event.consent) == (None, None, None, None, True)


def test_unknown_fields_are_kept_as_written() -> None:
    """Numbers of any size and the writer's own notation stay in the properties."""
    event = only(message()[:-1] + b',"n":123456789012345678901234567890,"f":1.50,"properties":{"a":[]}}')
    assert event.properties == '{"n":123456789012345678901234567890,"f":1.50,"properties":{"a":[]}}'


def record(value: bytes | None) -> Any:
    """A Kafka record with a header of its own."""
    return SimpleNamespace(topic="t", partition=3, offset=41, key=b"u1", value=value, headers=[("trace", b"1")],
                           timestamp=5)  # fmt: skip


def headers_of(headers: list[tuple[str, bytes]]) -> dict[str, str]:
    """Headers as text."""
    return {name: value.decode() for name, value in headers}


def test_dead_letter_is_untouched_and_says_why() -> None:
    """Key, value and the record's own headers stay; Kafka Connect's headers say where from and why."""
    key, value, headers, timestamp_ms = codec.dead_letter(record(b"{"), BadEvent("bad-json", "not JSON: truncated"))
    assert (key, value, timestamp_ms) == (b"u1", b"{", 5)
    told = headers_of(headers)
    assert told["trace"] == "1"
    assert told["x-reason"] == "bad-json"
    assert told["__connect.errors.topic"] == "t"
    assert (told["__connect.errors.partition"], told["__connect.errors.offset"]) == ("3", "41")
    assert told["__connect.errors.exception.message"] == "not JSON: truncated"
    assert {"__connect.errors.stage", "__connect.errors.exception.class.name"} <= told.keys()
    assert "x-bad-elements" not in told


def test_dead_letter_names_the_bad_elements() -> None:
    """A partly bad array names the places of what was not stored, in few bytes however many they are."""
    value = b"[" + b",".join([b"1"] * 100_000) + b"]"
    bad = [element for element in codec.decode(value) if isinstance(element, BadElement)]
    told = headers_of(codec.dead_letter(record(value), bad)[2])
    assert told["x-bad-elements"] == "0-99999"
    assert told["x-reason"] == "schema"
    assert "99999 more" in told["__connect.errors.exception.message"]


def prediction(**changes: Any) -> codec.Prediction:
    """A prediction as a worker emits it."""
    trigger = codec.Trigger(event_id="e1", topic="t", partition=0, offset=7)
    fields: dict[str, Any] = {
        "prediction_id": codec.prediction_id(trigger, "u1", "s1", "v1"),
        "user_id": "u1",
        "session_id": "s1",
        "trigger": trigger,
        "event_ts": codec.instant(1_700_000_000_123),
        "predicted_at": codec.instant(1_700_000_000_200),
        "expires_at": codec.instant(1_700_001_800_123),
        "model_version": "v1",
        "reason": "fallback",
        "items": codec.ranked_items([("i1", 0.5), ("i2", 0.25)]),
        "categories": codec.ranked_categories([("靴 > 👟", 0.75)]),
        "none_probability": 0.25,
    }
    return codec.Prediction(**(fields | changes))


def test_prediction_survives_the_wire() -> None:
    """A prediction is read back as it was; its instants are RFC 3339 in UTC, fields of later versions are ignored."""
    value = codec.encode_prediction(prediction())
    assert codec.decode_prediction(value[:-1] + b',"later":1}') == prediction()
    told = json.loads(value)
    assert told["event_ts"] == "2023-11-14T22:13:20.123000Z"
    assert told["items"][1] == {"item_id": "i2", "probability": 0.25, "rank": 2}
    assert told["purchase_probability"] is None


def test_prediction_id_is_a_function_of_trigger_and_version() -> None:
    """The same trigger and version give the same id, another version or another user of the message another."""
    trigger = codec.Trigger(event_id="e1", topic="t", partition=0, offset=7)
    one = codec.prediction_id(trigger, "u1", "s1", "v1")
    assert one == codec.prediction_id(trigger, "u1", "s1", "v1")
    others = {codec.prediction_id(trigger, "u1", "s1", "v2"), codec.prediction_id(trigger, "u2", "s2", "v1")}
    assert len({one} | others) == 3


@pytest.mark.parametrize(
    ("field", "most"), [("user_id", 512), ("item_id", 512), ("session_id", 512), ("category", 2048)]
)
def test_ids_are_bounded(field: str, most: int) -> None:
    """Ids come back in predictions, which must fit into a message: what is longer is refused."""
    assert only(message(**{field: "靴" * most}))
    with pytest.raises(BadEvent, match=field):
        codec.decode(message(**{field: "x" * (most + 1)}))


@pytest.mark.parametrize("where", ["user_id", "title", "own"])
@pytest.mark.parametrize("array", [False, True])
def test_text_that_is_none_is_no_json(where: str, array: bool) -> None:
    """A byte that is no UTF-8 inside a field, known or not, is a bad message like any other."""
    value = message(**{where: "left-right"}).replace(b"left-right", b"left\xffright")
    with pytest.raises(BadEvent, match="not JSON: ") as bad:
        codec.decode(b"[" + value + b"]" if array else value)
    assert bad.value.reason == "bad-json"


@given(st.lists(st.integers(0, 2**32), min_size=1, max_size=3), st.binary(max_size=4), st.booleans())
@settings(max_examples=10_000, deadline=None)
def test_whatever_the_bytes_each_event_is_read_or_told(where: list[int], put: bytes, array: bool) -> None:
    """Nothing but BadEvent comes out of a message, however it was damaged: anything else would stop the worker."""
    value = bytearray(b"[" + message(own=[1, {"a": "é"}]) + b"," + message() + b"]" if array else message(own="x"))
    for at in where:
        first = at % len(value)
        value[first : first + at % 5] = put
        value = value or bytearray(b"x")
    with contextlib.suppress(BadEvent):
        held = codec.decode(bytes(value), key=b"u1", record_ms=1)
        assert all(isinstance(one, Event | BadElement) for one in held)
