"""An event of another dialect with its parts named as ours are, and the rows of our own that it becomes."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from featurestore import bots
from featurestore.events import NEEDS_ITEM, EventType
from streams.bad import BadEvent
from streams.dialects import values, verbs

LIMIT_ID_CHARS = 64
LIMIT_SHARED_BYTES = 2_048  # what a longer event says beside its items, only its first row repeats

ITEM_ID = ("product_id", "item_id", "sku", "object_id", "content_id", "aid")
TITLE = ("name", "title", "item_name", "product_name")
BRAND = ("brand", "item_brand")
PRICE = ("price", "unit_price", "item_price")
CENTS = ("unit_price_cents", "price_cents", "amount_minor")
CURRENCY = ("currency", "currency_code")
QUANTITY = ("quantity", "qty")
POSITION = ("position", "index", "item_list_index")
QUERY = ("query", "search_term", "search_query", "search_string", "keyword", "keywords", "term", "q")
ORDER = ("order_id", "transaction_id")
AGENT = ("useragent", "rawuseragent")  # as `values.plain` writes it
AGENT_CHARS = 200
ITEMS = ("products", "items", "product", "item", "line_items", "contents")  # objects, in a list or one alone
IDS = ("product_ids", "item_ids", "object_ids", "content_ids", "skus")  # nothing but ids, in a list


LISTS = frozenset(values.plain(name) for name in (*ITEMS, *IDS))


class Arrival(NamedTuple):
    """What is known of a message beside its bytes."""

    value: bytes = b""
    key: str | None = None
    record_ms: int | None = None  # Kafka's timestamp: the event's time where it has none of its own
    headers: Mapping[str, str] = {}
    line: int | None = None  # of a file: equal lines are two events
    keep: frozenset[str] = frozenset()  # personal fields that are kept


class Nothing(NamedTuple):
    """A recognised message that tells of nothing a person did with an item."""

    why: str


class Act(msgspec.Struct, kw_only=True):
    """What a foreign event says; candidates stand in the order in which they are asked."""

    name: str  # the verb as it was written
    verb: EventType
    id: Any = None
    users: tuple[Any, ...] = ()
    clocks: tuple[Any, ...] = ()  # instants as written
    fields: Mapping[str, Any] = {}  # what it says of the event as a whole, of its one item too
    items: list[Any] = []
    session: Any = None
    anonymous: Any = None
    consent: bool = True
    agent: Any = None  # the user agent, where it does not stand among the fields
    by_key: bool = False  # the dialect names no user: the message's key does
    named: bool = False  # the dialect lets an item's name stand for its id
    separator: str = "/"  # of categories
    more: Mapping[str, Any] = {}  # kept in properties


class Draft(NamedTuple):
    """One row: fields as an event of our own has them, and the properties."""

    fields: dict[str, Any]
    rest: dict[str, Any]


def items_of(fields: Mapping[str, Any]) -> list[Any]:
    """The items that an event lists, in the first of the places where it may.

    >>> items_of({"products": [], "items": [{"sku": "a"}]}), items_of({"productIds": ["a", "b"]})
    ([{'sku': 'a'}], ['a', 'b'])
    """
    event = values.Fields(fields)
    listed = event.first(ITEMS, lambda value: values.many(value) or None)
    return listed or event.first(IDS, lambda value: value if isinstance(value, list) and value else None) or []


def act_or_nothing(verb: EventType | None, name: Any, **parts: Any) -> Act | Nothing:
    """An act where the verb is known."""
    if verb is None:
        said = values.text(name)
        return Nothing(f"{said[:80]!r} is no act that nextclick knows" if said else "it does not say what was done")
    return Act(name=str(name), verb=verb, **parts)


def drafts(act: Act, arrival: Arrival, n: int) -> list[Draft] | Nothing:
    """The rows of an act, element k under the id `<id>#k` where there are several; raises `BadEvent`.

    `n` is the act's place in its message; it makes the ids of acts without one.
    """
    event = values.Fields(act.fields)
    items = _items(act)
    verb = _verb(act, event, items)
    if verb is None:
        return Nothing(f"{act.name[:80]!r} names no item")
    user, clock, ts = _user(act, arrival), *_instant(act, arrival)
    own = values.text(act.id) or _digest(arrival, n, None if clock else ts)
    common: dict[str, Any] = {"type": verb, "user_id": user, "ts": ts}
    if session := values.text(act.session):
        common["session_id"] = session
    if not act.consent:
        common["consent"] = False
    if verb in ("search", "impression") and (query := event.first(QUERY)):
        common["query"] = query
    exploded = items if verb not in ("browse", "search") else []
    rows = [_item(act, values.Fields(item), verb) for item in exploded] or [_item(act, event, verb, flat=True)]
    currency = event.first(CURRENCY) if verb not in ("browse", "search") else None
    category = event.first(("category",), lambda value: values.path(value, act.separator)) if exploded else None
    shared = _shared(act, event, arrival, user, exploded)
    ids = _ids(own, len(rows))
    wide = {name: said for name, said in (("category", category), ("currency", currency)) if said}
    first_only = len(rows) > 1 and len(msgspec.json.encode(shared)) > LIMIT_SHARED_BYTES
    return [
        Draft(
            common | wide | row.fields | {"event_id": id_},
            ({} if k and first_only else shared) | values.impersonal(row.rest, arrival.keep),
        )
        for k, (id_, row) in enumerate(zip(ids, rows, strict=True))
    ]


def _verb(act: Act, event: values.Fields, items: list[Mapping[str, Any]]) -> EventType | None:
    """A view or a click of several items is a list that was shown; a list or a promotion may name none."""
    if "promo" in verbs.words(act.name) and not items:
        return None
    if act.verb in ("view", "click") and len(items) > 1:
        return "impression"
    if act.verb == "impression" and not items and event.first((*ITEM_ID, "id")) is None:
        return "browse"
    return act.verb


def _items(act: Act) -> list[Mapping[str, Any]]:
    """The items that say which they are; a bare text is an id."""
    named = [item if isinstance(item, dict) else {"item_id": item} for item in act.items]
    says = (*ITEM_ID, "id", *TITLE, "category", "item_category")
    return [item for item in named if values.Fields(item).first(says, lambda v: values.text(v) or values.path(v))]


def _item(act: Act, item: values.Fields, verb: EventType, *, flat: bool = False) -> Draft:
    """What is said of one item; flat, where the event itself says it."""
    needed = verb in NEEDS_ITEM
    said: dict[str, Any] = {
        "item_id": item.first((*ITEM_ID, *(("id",) if needed or not flat else ()))),
        "title": item.first(TITLE),
        "category": _category(act, item),
        "brand": item.first(BRAND),
        "position": item.first(POSITION, values.whole),
    }
    if said["item_id"] is None and act.named:
        said["item_id"] = said["title"]
    if not flat or needed or said["item_id"]:  # an order's own price is a sum
        said |= {
            "price": _price(item),
            "currency": item.first(CURRENCY)
            or item.first(PRICE, lambda p: values.Fields(values.table(p)).first(CURRENCY)),
            "quantity": item.first(QUANTITY, values.whole),
        }
    return Draft({name: value for name, value in said.items() if value is not None}, {} if flat else item.rest())


def _price(item: values.Fields) -> float | None:
    price: float | None = item.first(PRICE, _amount)
    cents: float | None = None if price is not None else item.first(CENTS, values.number)
    return price if cents is None else cents / 100


def _amount(price: Any) -> float | None:
    """A price, also as an object of an amount and its currency.

    >>> _amount("9.5"), _amount({"amount": 9.5, "currency": "EUR"}), _amount({"amountMinor": 950})
    (9.5, 9.5, 9.5)
    """
    if not isinstance(price, dict):
        return values.number(price)
    said = values.Fields(price)
    amount: float | None = said.first(("amount", "value"), values.number)
    minor: float | None = said.first(CENTS, values.number)
    return minor / 100 if amount is None and minor is not None else amount


def _category(act: Act, item: values.Fields) -> str | None:
    """`category`, or GA4's `item_category` and its four levels below."""
    if one := item.first(("category", "category_code"), lambda value: values.path(value, act.separator)):
        return str(one)
    levels = ("item_category", *(f"item_category{n}" for n in range(2, 6)))
    return " > ".join(part for level in levels if (part := item.first((level,), values.path))) or None


def _user(act: Act, arrival: Arrival) -> str:
    candidates = (*act.users, act.anonymous, *((arrival.key,) if act.by_key else ()))
    if user := next((said for value in candidates if (said := values.text(value))), None):
        return user
    remedy = "give the message the user as its key" if act.by_key else "give it a user id or an anonymous id"
    raise BadEvent("schema", f"user_id: {act.name[:80]!r} names nobody: {remedy}")


def _instant(act: Act, arrival: Arrival) -> tuple[bool, int]:
    """When it happened, and whether the event says so itself."""
    written = [clock for clock in act.clocks if clock is not None and clock != ""]
    if (ts := next((ms for clock in written if (ms := values.instant(clock)) is not None), None)) is not None:
        return True, ts
    if written:
        raise BadEvent("schema", f"ts: {str(written[0])[:80]!r} is no instant: write RFC 3339 or epoch milliseconds")
    if arrival.record_ms is None or arrival.record_ms < 0:
        raise BadEvent("schema", f"ts: {act.name[:80]!r} has no time, and neither has its message")
    return False, arrival.record_ms


def _digest(arrival: Arrival, n: int, ts: int | None) -> str:
    """The id of an event that has none: the same at every reading of the same message."""
    said = f"{n}|{arrival.line}|{ts if arrival.line is None else None}|".encode()
    seed = _seed(arrival.value).copy()
    seed.update(said)
    return seed.hexdigest()


@functools.lru_cache(1)
def _seed(value: bytes) -> hashlib.blake2b:
    """A message's digest, taken once for all of its events."""
    return hashlib.blake2b(value, digest_size=12)


def _ids(own: str, rows: int) -> list[str]:
    """The ids of an event's rows; one that is too long is told by its digest.

    >>> _ids("e1", 1), _ids("e1", 2)
    (['e1'], ['e1#0', 'e1#1'])
    """
    if len(own) + (len(f"#{rows - 1}") if rows > 1 else 0) > LIMIT_ID_CHARS:
        own = hashlib.blake2b(own.encode(), digest_size=12).hexdigest()
    return [own] if rows == 1 else [f"{own}#{k}" for k in range(rows)]


def _shared(act: Act, event: values.Fields, arrival: Arrival, user: str, exploded: list[Any]) -> dict[str, Any]:
    """The properties of the event as a whole: its name, its order, and what else it says."""
    order, anonymous = event.first(ORDER), values.text(act.anonymous)
    named = {"event_name": act.name, "order_id": order}
    if anonymous not in (user, values.text(act.session)):
        named["anonymous_id"] = anonymous
    rest = event.rest(LISTS if exploded else ())
    kept = values.impersonal({**rest, **act.more, **{k: v for k, v in named.items() if v}}, arrival.keep)
    return kept | _program(act, event)


def _program(act: Act, event: values.Fields) -> dict[str, Any]:
    """A user agent is personal, but for one that names a program: `featurestore.bots` goes by it."""
    written = next((act.fields[event.names[name]] for name in AGENT if name in event.names), act.agent)
    agent = values.text(written)
    return {"user_agent": agent[:AGENT_CHARS]} if agent and bots.is_program(agent) else {}
