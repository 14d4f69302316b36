"""An event, where it came from, and the row that both become."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias, get_args

import msgspec

MAX_TS_MS = 253_402_300_799_999  # the last millisecond of the year 9999
LIMIT_ID_CHARS = 512  # ids come back in predictions, which must fit into a message too
LIMIT_CATEGORY_CHARS = 2_048

EventType = Literal["browse", "view", "click", "search", "cart", "remove", "checkout", "purchase", "impression"]
TYPES: tuple[str, ...] = get_args(EventType)
ENGAGED = frozenset({"click", "view", "cart", "purchase"})  # what counts as wanting an item
NEEDS_ITEM = frozenset({"view", "click", "cart", "remove", "impression"})  # item_id or category must be there


Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Instant = Annotated[datetime.datetime, msgspec.Meta(tz=True)] | Annotated[int, msgspec.Meta(ge=0, le=MAX_TS_MS)]
_Text = Annotated[str, msgspec.Meta(min_length=1)]
_Id = Annotated[str, msgspec.Meta(min_length=1, max_length=LIMIT_ID_CHARS)]
_Path = Annotated[str, msgspec.Meta(min_length=1, max_length=LIMIT_CATEGORY_CHARS)]
if TYPE_CHECKING:
    _Ms: TypeAlias = int
    _Rest: TypeAlias = str | None
else:
    _Ms = Instant  # `codec.plain` makes milliseconds of it before anybody sees it
    _Rest = Annotated[str, msgspec.Meta(min_length=1, max_length=0)]  # no field of a message: nothing is accepted


class Event(msgspec.Struct, frozen=True, gc=False, forbid_unknown_fields=True, rename={"ts_ms": "ts"}):
    """One thing one person did; instants are epoch milliseconds, `category` is a path `Sports > Shoes`.

    Its types are what is valid, so that a message that says nothing else is decoded straight into it.
    """

    event_id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    type: EventType
    user_id: _Id
    ts_ms: _Ms
    session_id: _Id | None = None  # the producer's own, if it has one
    item_id: _Id | None = None
    title: _Text | None = None
    category: _Path | None = None
    brand: _Text | None = None
    price: float | None = None
    currency: _Text | None = None
    quantity: Int64 | None = None
    position: Int64 | None = None
    query: _Text | None = None  # None on a search: withheld
    prediction_id: _Id | None = None
    consent: bool = True
    properties: _Rest = None  # all other fields of the message, as one JSON object


class Origin(msgspec.Struct, frozen=True, gc=False):
    """Where an event came from: its identity. `n` is its place among the events of one message."""

    topic: str  # `<topic>@<log id>`
    partition: int
    offset: int
    n: int
    record_ms: int  # Kafka's timestamp: its arrival


class Row(msgspec.Struct, frozen=True, gc=False):
    """An accepted event as everything downstream reads it."""

    event: Event
    origin: Origin
    session_id: str  # as folded at arrival; a later merge does not change it
    late: bool = False  # behind the watermark: never a cut
    seen: int = 1  # rows of its session in memory when it was folded, itself included: what the scorer saw
    absorbs: tuple[str, ...] = ()  # sessions of the same user that this row merged into its own
    bot: str | None = None  # why its session is a program's by now (`featurestore.bots`), None: it may be a person's

    @property
    def engages(self) -> bool:
        """Whether somebody wanted an item by it."""
        return self.event.type in ENGAGED and bool(self.event.item_id)

    @property
    def scorable(self) -> bool:
        """Whether a prediction may be made after this row (and a cut taken at it)."""
        return self.event.consent and not self.late and self.bot is None


class Session(msgspec.Struct, gc=False):
    """One person's stretch of activity, mutable while it is open; `rows` in order of arrival."""

    session_id: str
    user_id: str
    first_ms: int
    last_ms: int
    rows: list[Row]  # the newest `sessions.CAP`
    count: int = 0  # all rows, those no longer in memory included
    own_id: bool = False  # the producer named it: gaps do not split it


# The columns of the store and the lake, in order: name, DuckDB type. One list, so that the two never differ.
COLUMNS: tuple[tuple[str, str], ...] = (
    ("topic", "VARCHAR"),
    ("partition", "INTEGER"),
    ("offset", "BIGINT"),
    ("n", "INTEGER"),
    ("record_ms", "BIGINT"),
    ("event_id", "VARCHAR"),
    ("type", "VARCHAR"),
    ("user_id", "VARCHAR"),
    ("ts_ms", "BIGINT"),
    ("own_session_id", "VARCHAR"),  # the producer's own
    ("item_id", "VARCHAR"),
    ("title", "VARCHAR"),
    ("category", "VARCHAR"),
    ("brand", "VARCHAR"),
    ("price", "DOUBLE"),
    ("currency", "VARCHAR"),
    ("quantity", "BIGINT"),
    ("position", "BIGINT"),
    ("query", "VARCHAR"),
    ("prediction_id", "VARCHAR"),
    ("consent", "BOOLEAN"),
    ("properties", "VARCHAR"),
    ("session_id", "VARCHAR"),
    ("late", "BOOLEAN"),
    ("seen", "INTEGER"),
    ("absorbs", "VARCHAR[]"),
    ("bot", "VARCHAR"),
)
ADDED = frozenset({"bot"})  # columns that older segments of the lake lack: null there; they stand last

_EVENT = tuple({"session_id": "own_session_id"}.get(name, name) for name in Event.__struct_fields__)  # their columns


def to_columns(rows: list[Row]) -> dict[str, list[Any]]:
    """Rows as one list a column, in the order of `COLUMNS`."""
    e = [r.event for r in rows]
    o = [r.origin for r in rows]
    return {
        "topic": [x.topic for x in o],
        "partition": [x.partition for x in o],
        "offset": [x.offset for x in o],
        "n": [x.n for x in o],
        "record_ms": [x.record_ms for x in o],
        "event_id": [x.event_id for x in e],
        "type": [x.type for x in e],
        "user_id": [x.user_id for x in e],
        "ts_ms": [x.ts_ms for x in e],
        "own_session_id": [x.session_id for x in e],
        "item_id": [x.item_id for x in e],
        "title": [x.title for x in e],
        "category": [x.category for x in e],
        "brand": [x.brand for x in e],
        "price": [x.price for x in e],
        "currency": [x.currency for x in e],
        "quantity": [x.quantity for x in e],
        "position": [x.position for x in e],
        "query": [x.query for x in e],
        "prediction_id": [x.prediction_id for x in e],
        "consent": [x.consent for x in e],
        "properties": [x.properties for x in e],
        "session_id": [r.session_id for r in rows],
        "late": [r.late for r in rows],
        "seen": [r.seen for r in rows],
        "absorbs": [r.absorbs for r in rows],
        "bot": [r.bot for r in rows],
    }


def from_columns(columns: Mapping[str, Sequence[Any]]) -> list[Row]:
    """Rows of what `to_columns` makes of them, a column at a time: a third of the cost of one by one."""
    made = map(Event, *(columns[name] for name in _EVENT))
    origins = map(Origin, *(columns[name] for name in ("topic", "partition", "offset", "n", "record_ms")))
    recorded = (columns[name] for name in ("session_id", "late", "seen", "absorbs", "bot"))
    return list(map(Row, made, origins, *recorded))
