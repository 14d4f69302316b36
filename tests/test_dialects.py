"""Other systems' events: what each becomes in ours, why some become nothing, and that none can stop a worker.

Run as a program, this file writes the table of docs/dialects.md from the payloads that the test over them reads.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy import cli, replay
from featurestore import lake, sessions, store
from featurestore.events import Event
from streams import client, codec, ingest, transport
from streams.codec import BadElement, BadEvent, Message
from streams.dialects import files, table, values
from streams.dialects.foreign import Arrival
from streams.parts import Batch

ROOT = Path(__file__).parent.parent
DOCUMENT = ROOT / "docs" / "dialects.md"
PAYLOADS = Path(os.environ.get("DIALECT_PAYLOADS", ROOT.parent / "shared" / "data" / "dialects"))
NOW_MS = 1_750_000_000_000
AT = "2026-03-01T10:00:00.500Z"
AT_MS = 1_772_359_200_500


def read(payload: Any, key: str | None = None, **more: Any) -> Message:
    """What a message becomes that arrives now."""
    value = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    return codec.read(value, key=None if key is None else key.encode(), record_ms=NOW_MS, **more)


def events(payload: Any, key: str | None = None, **more: Any) -> list[Event]:
    """The events of a message, all of which must be good."""
    elements = read(payload, key, **more).elements
    assert [e for e in elements if isinstance(e, BadElement)] == []
    return [e for e in elements if isinstance(e, Event)]


def only(payload: Any, key: str | None = None, **more: Any) -> Event:
    """The one event of a message."""
    (event,) = events(payload, key, **more)
    return event


def shown(event: Event, *names: str) -> tuple[Any, ...]:
    """Some fields of an event."""
    return tuple(getattr(event, name) for name in names)


def rest(event: Event) -> dict[str, Any]:
    """An event's properties."""
    return json.loads(event.properties or "{}")  # type: ignore[no-any-return]


def track(name: str = "Product Viewed", properties: Any = None, **changes: Any) -> dict[str, Any]:
    """A Segment call; `...` leaves a field out."""
    call = {"type": "track", "event": name, "userId": "u1", "anonymousId": "a1", "messageId": "m1", "timestamp": AT,
            "properties": {"product_id": "p1"} if properties is None else properties}  # fmt: skip
    return {name: value for name, value in (call | changes).items() if value is not ...}


# ---------------------------------------------------------------- Segment


def test_segment_product_becomes_an_event() -> None:
    """Ids, instant, item and numbers under our names; the rest is kept, what is personal is not."""
    event = only(track(properties={
        "product_id": "p1", "sku": "s1", "name": "Lamp", "category": "Home/Light", "brand": "Lux", "price": "$1,012.50",
        "currency": "EUR", "quantity": "2", "position": 3, "coupon": "MAY", "email": "ann@example.org",
        "url": "https://shop.example/lamp?token=1", "customer": {"phone": "1", "tier": "gold"},
    }))  # fmt: skip
    assert shown(event, "event_id", "type", "user_id", "ts_ms", "item_id") == ("m1", "view", "u1", AT_MS, "p1")
    assert shown(event, "title", "category", "brand", "price") == ("Lamp", "Home > Light", "Lux", 1012.5)
    assert shown(event, "currency", "quantity", "position", "session_id") == ("EUR", 2, 3, None)
    assert rest(event) == {
        "sku": "s1", "coupon": "MAY", "url": "https://shop.example/lamp", "customer": {"tier": "gold"},
        "event_name": "Product Viewed", "anonymous_id": "a1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("product viewed", "view"), ("PRODUCT ADDED", "cart"), ("Product_Viewed", "view"), ("addToCart", "cart"),
        ("add_to_Cart", "cart"), ("Product  Clicked", "click"), ("Product Removed", "remove"),
        ("Checkout Started", "checkout"), ("Order Completed", "purchase"), ("Home Page Viewed", "browse"),
        ("Products Searched", "search"), ("Product Added to Wishlist", "click"), ("Viewed Product", "view"),
        ("Order Refunded", None), ("Vewed Product", None), ("Song Played", None), ("Application Installed", None),
    ],
)  # fmt: skip
def test_names_in_any_spelling(name: str, kind: str | None) -> None:
    """A verb is found in any case and punctuation; a name that is none is told, not guessed."""
    message = read(track(name))
    assert [e.type for e in message.elements if isinstance(e, Event)] == ([kind] if kind else [])
    assert bool(message.nothing) == (kind is None)


def test_items_become_rows() -> None:
    """Each product of a list is a row under `<id>#k`; what the event says of all stands for each."""
    first, second = events(track("Order Completed", {
        "order_id": 10_000, "total": 99, "currency": "EUR", "price": 99,
        "products": [{"product_id": 7, "price": "14"}, {"sku": "s2", "price": 20, "currency": "USD", "quantity": 2}],
    }))  # fmt: skip
    assert shown(first, "event_id", "item_id", "price", "currency") == ("m1#0", "7", 14.0, "EUR")
    assert shown(second, "event_id", "item_id", "price", "currency", "quantity") == ("m1#1", "s2", 20.0, "USD", 2)
    assert {rest(e)["order_id"] for e in (first, second)} == {"10000"}


@pytest.mark.parametrize(
    ("products", "items"),
    [([], [None]), ({"sku": "s1"}, ["s1"]), ([{}, {"id": "i1"}], ["i1"]), ('[{"sku":"s"}]', ["s"]),
     (["i1", "i2"], ["i1", "i2"]), (None, [None])],
)  # fmt: skip
def test_products_in_any_shape(products: Any, items: list[str | None]) -> None:
    """No product, one that is no list, one that says nothing, a list written as a text, ids alone."""
    found = events(track("Order Completed", {"products": products, "revenue": 5, "price": 5}))
    assert [e.item_id for e in found] == items
    assert [e.price for e in found] == [None] * len(items), "an order's sum is no item's price"


def test_a_list_is_no_view() -> None:
    """A view or a click that names several items is a list that was shown; a list of nothing is a page."""
    two = {"products": [{"sku": "a"}, {"sku": "b"}]}
    for name in ("Product Viewed", "Product Clicked", "Product List Viewed"):
        assert [e.type for e in events(track(name, two))] == ["impression", "impression"]
    assert only(track("Product List Viewed", {"category": "Shoes"})).type == "browse"
    assert only(track("Product Viewed", {"products": [{"sku": "a"}]})).type == "view"


@pytest.mark.parametrize(
    ("clocks", "ms"),
    [
        ({"timestamp": "2026-03-01T15:30:00.500+05:30"}, AT_MS),
        ({"timestamp": ..., "originalTimestamp": "2026-03-01T09:00:00Z", "sentAt": "2026-03-01T09:00:02Z",
          "receivedAt": "2026-03-01T10:00:02.500Z"}, AT_MS),
        ({"timestamp": "NOW", "originalTimestamp": AT}, AT_MS),
        ({"timestamp": ..., "sentAt": AT}, AT_MS),
        ({"timestamp": ...}, NOW_MS),
    ],
    ids=["offset", "corrected", "unreadable-first", "sent", "none"],
)  # fmt: skip
def test_segment_clocks(clocks: dict[str, Any], ms: int) -> None:
    """The corrected clock first, then each as it stands; without any, Kafka's."""
    assert only(track(**clocks)).ts_ms == ms


def test_unreadable_clock_is_bad() -> None:
    """An instant that none can read is not replaced by the time of arrival."""
    with pytest.raises(BadEvent, match="'yesterday' is no instant"):
        codec.decode(json.dumps(track(timestamp="yesterday")).encode(), record_ms=NOW_MS)


def test_identity() -> None:
    """A known user before the anonymous one, placeholders are nobody, and nobody is a dead letter that says so."""
    assert only(track()).user_id == "u1"
    assert only(track(userId="")).user_id == "a1"
    assert only(track(userId=..., anonymousId=..., context={"traits": {"userId": 12}})).user_id == "12"
    (bad,) = read(track(userId="null", anonymousId=...)).elements
    assert isinstance(bad, BadElement)
    assert "names nobody" in bad.message


def test_batch_mixes_kinds() -> None:
    """Each of a batch ends by itself: as events, as nothing, or as a bad element in its place."""
    message = read({"batch": [track(), {"type": "identify", "userId": "u1"}, 7, track("Product Added", {}), track()]})
    assert [type(e) for e in message.elements] == [Event, BadElement, BadElement, Event]
    assert [e.n for e in message.elements if isinstance(e, BadElement)] == [1, 2]
    assert len(message.nothing) == 1


def test_page_is_a_browse() -> None:
    """A page call is a browse under its name."""
    event = only({"type": "page", "name": "Shoes", "anonymousId": "a1", "timestamp": AT, "properties": {"path": "/s"}})
    assert shown(event, "type", "title", "user_id") == ("browse", "Shoes", "a1")


# ---------------------------------------------------------------- GA4


def request(name: str, **params: Any) -> dict[str, Any]:
    """A Measurement Protocol request."""
    return {"client_id": "c1", "timestamp_micros": AT_MS * 1000, "events": [{"name": name, "params": params}]}


def test_ga4_request() -> None:
    """Microseconds, five levels of category, an item's name for its id, prices as texts."""
    event = only(request("view_item", currency="EUR", value=50, ga_session_id=12, items=[
        {"item_name": "Lamp", "item_category": "Home", "item_category2": "Light", "price": "25", "index": "4"}
    ]))  # fmt: skip
    assert shown(event, "type", "user_id", "ts_ms", "session_id") == ("view", "c1", AT_MS, "12")
    assert shown(event, "item_id", "category", "price", "currency", "position") == (
        "Lamp",
        "Home > Light",
        25.0,
        "EUR",
        4,
    )
    assert only(request("search", search_term="lamps")).query == "lamps"
    assert only(request("view_search_results", search_term="(not set)")).query is None
    assert read(request("user_engagement")).nothing
    assert read(request("click", link_url="https://elsewhere.example")).nothing


def test_ga4_ids_are_the_same_at_every_reading() -> None:
    """An event without an id gets one from its message: equal again, other for the next event of the message."""
    twice = request("add_to_cart", items=[{"item_id": "a"}])
    twice["events"] *= 2
    first, again = ([e.event_id for e in events(twice)] for _ in range(2))
    assert first == again
    assert len(set(first)) == 2


def test_promotion_without_items_is_nothing() -> None:
    """A banner is no item; one that shows items is a list of them."""
    assert read(request("view_promotion", promotion_id="P", items=[{"item_id": "(not set)"}])).nothing
    assert only(request("view_promotion", items=[{"item_id": "a"}])).type == "impression"


@pytest.mark.parametrize(
    "push",
    [
        {"event": "add_to_cart", "ecommerce": {"currency": "EUR", "items": [{"item_id": "a", "price": "9.50"}]}},
        ["event", "add_to_cart", {"currency": "EUR", "items": [{"item_id": "a", "price": 9.5}]}],
        {"0": "event", "1": "add_to_cart", "2": {"currency": "EUR", "items": [{"item_id": "a", "price": 9.5}]}},
        {
            "event": "addToCart",
            "ecommerce": {"currencyCode": "EUR", "add": {"products": [{"id": "a", "price": "9.5"}]}},
        },
    ],
    ids=["ga4", "gtag", "gtag-object", "ua"],
)
def test_layer_takes_user_and_time_from_its_message(push: Any) -> None:
    """A dataLayer push names neither: the key is the user, Kafka's time its own; without a key it is a dead letter."""
    event = only(push, key="u1")
    assert shown(event, "type", "user_id", "ts_ms", "item_id", "price", "currency") == (
        "cart", "u1", NOW_MS, "a", 9.5, "EUR",
    )  # fmt: skip
    (bad,) = read(push).elements
    assert isinstance(bad, BadElement)
    assert "as its key" in bad.message


def export(**changes: Any) -> dict[str, Any]:
    """A row of the GA4 export."""
    row = {
        "event_name": "purchase", "event_timestamp": str(AT_MS * 1000), "user_id": None, "user_pseudo_id": "c1",
        "event_params": [{"key": "currency", "value": {"string_value": "EUR", "int_value": None}},
                         {"key": "page_referrer", "value": None}],
        "ecommerce": {"transaction_id": 77}, "geo": {"city": "Oslo"}, "device": {"category": "mobile"},
        "items": [{"item_id": "a", "item_category": "Home/Light/", "item_brand": "(not set)", "price": 5}],
    }  # fmt: skip
    return row | changes


def test_export_and_its_upper_case_twin() -> None:
    """BigQuery's row and Snowflake's, upper case with JSON in texts, are the same event."""
    plain = only(export())
    upper = {n.upper(): json.dumps(v) if isinstance(v, dict | list) else v for n, v in export().items()}
    assert shown(plain, "type", "user_id", "ts_ms", "category", "price", "currency", "brand") == (
        "purchase", "c1", AT_MS, "Home > Light", 5.0, "EUR", None,
    )  # fmt: skip
    assert rest(plain) == {"event_name": "purchase", "order_id": "77"}
    names = [n for n in Event.__struct_fields__ if n != "event_id"]
    assert shown(only(upper), *names) == shown(plain, *names)


def test_refused_storage_is_no_consent() -> None:
    """Who refused analytics is stored and counted, never trained on."""
    assert only(export(privacy_info={"analytics_storage": "No"})).consent is False


# ---------------------------------------------------------------- Snowplow


def enriched(**changes: Any) -> dict[str, Any]:
    """An enriched Snowplow event with the ecommerce plugin's action."""
    return {
        "event": "unstruct", "event_name": "snowplow_ecommerce_action", "event_id": "e1", "v_tracker": "js",
        "domain_userid": "d1", "domain_sessionid": "s1", "user_ipaddress": "10.0.0.1",
        "derived_tstamp": "2026-03-01 10:00:00.500", "collector_tstamp": "2026-03-01 10:00:01",
        "unstruct_event_com_snowplowanalytics_snowplow_ecommerce_snowplow_ecommerce_action_1": {"type": "add_to_cart"},
        "contexts_com_snowplowanalytics_snowplow_ecommerce_product_1_0_0": [
            {"id": "a", "name": None, "category": "Home/Light", "price": "12.0", "currency": "EUR"}
        ],
    } | changes  # fmt: skip


def test_snowplow_action() -> None:
    """The action is the verb, the product entities are the items, whatever version their columns carry."""
    event = only(enriched())
    assert shown(event, "event_id", "type", "user_id", "session_id", "ts_ms") == ("e1", "cart", "d1", "s1", AT_MS)
    assert shown(event, "item_id", "category", "price", "currency") == ("a", "Home > Light", 12.0, "EUR")
    assert "10.0.0.1" not in codec.encode_event(event).decode()
    assert read(enriched(event="page_ping", event_name="page_ping")).nothing
    assert read({"schema": "iglu:com.example/product/jsonschema/1-0-0", "data": {"id": "a"}}).nothing
    with pytest.raises(BadEvent, match="before enrichment"):
        codec.decode(b'{"schema":"iglu:com.snowplowanalytics.snowplow/payload_data/jsonschema/1-0-4","data":[]}')


def test_snowplow_line() -> None:
    """A line of the enriched topic: 131 columns between tabs, its products among the contexts."""
    columns = [""] * 131
    columns[5], columns[6], columns[12], columns[124], columns[126] = (
        "unstruct", "e1", "u1", "2026-03-01 10:00:00.500", "snowplow_ecommerce_action",
    )  # fmt: skip
    home = "iglu:com.snowplowanalytics.snowplow.ecommerce"
    columns[58] = json.dumps({"data": {"schema": f"{home}/snowplow_ecommerce_action/jsonschema/1-0-2",
                                       "data": {"type": "product_view"}}})  # fmt: skip
    columns[52] = json.dumps(
        {"data": [{"schema": f"{home}/product/jsonschema/1-0-0", "data": {"id": "a", "price": 3}}]}
    )
    event = only("\t".join(columns).encode())
    assert shown(event, "event_id", "type", "user_id", "ts_ms", "item_id", "price") == (
        "e1",
        "view",
        "u1",
        AT_MS,
        "a",
        3,
    )


# ---------------------------------------------------------------- Metarank, CloudEvents


def test_metarank() -> None:
    """A ranking is a list that was shown, in its order; an interaction is an act; metadata is nothing."""
    base = {"timestamp": str(AT_MS), "user": "u1", "session": "s1", "fields": [{"name": "query", "value": "lamp"}]}
    shown_ = events(base | {"event": "ranking", "id": "r1", "items": [{"id": "a"}, {"id": "b"}]})
    assert [shown(e, "event_id", "type", "item_id", "position", "query", "ts_ms") for e in shown_] == [
        ("r1#0", "impression", "a", 1, "lamp", AT_MS), ("r1#1", "impression", "b", 2, "lamp", AT_MS),
    ]  # fmt: skip
    clicked = only(base | {"event": "interaction", "id": "i1", "type": "like", "item": "a", "ranking": "r1"})
    assert (clicked.type, clicked.session_id, rest(clicked)["ranking"]) == ("click", "s1", "r1")
    assert read({"event": "item", "id": "x", "item": "a", "timestamp": AT_MS, "fields": []}).nothing


def envelope(**changes: Any) -> dict[str, Any]:
    """A structured CloudEvent of an order."""
    data = {
        "orderId": "o1",
        "customerId": "u1",
        "currency": "EUR",
        "items": [{"sku": "a", "qty": 2, "unitPriceCents": 1250}],
    }
    return {"specversion": "1.0", "type": "com.example.orders.placed.v1", "source": "/orders", "id": "c1",
            "time": "2026-03-01T18:00:00.500+08:00", "data": data} | changes  # fmt: skip


def test_cloudevent_structured() -> None:
    """The end of the type is the verb, the data says who and what."""
    event = only(envelope())
    assert shown(event, "event_id", "type", "user_id", "ts_ms") == ("c1", "purchase", "u1", AT_MS)
    assert shown(event, "item_id", "price", "quantity", "currency") == ("a", 12.5, 2, "EUR")
    assert rest(event)["order_id"] == "o1"
    assert [e.event_id for e in events([envelope(), envelope(id="c2")])] == ["c1", "c2"]
    assert only(envelope(specversion=None)).event_id == "c1"
    assert read(envelope(type="com.example.payment.succeeded")).nothing


def test_cloudevent_binary() -> None:
    """In Kafka's binary mode the envelope lies in the headers, the value is the data."""
    data, wrapped = envelope()["data"], envelope()
    headers = [(f"ce_{name}", str(wrapped[name]).encode()) for name in ("specversion", "type", "source", "id", "time")]
    assert codec.decode(json.dumps(data).encode(), headers, record_ms=NOW_MS) == events(wrapped)
    printed = {"key": "k", "headers": {n: v.decode() for n, v in headers}, "value": data}
    assert shown(only(printed), "event_id", "ts_ms", "item_id") == ("c1", AT_MS, "a")


def test_our_own_event_stays_ours_beside_foreign_headers() -> None:
    """What is an event of our own is read as one, whatever its headers say."""
    own = {"event_id": "e1", "type": "search", "user_id": "u1", "ts": 5, "specversion": "1.0"}
    assert codec.read(json.dumps(own).encode(), [("ce_type", b"a.order.placed")]).dialect == "nextclick"


# ---------------------------------------------------------------- Amplitude, Mixpanel, PostHog


def test_amplitude() -> None:
    """Events of a request; what a bought product costs may stand beside its properties."""
    bought = {"event_type": "Product Purchased", "device_id": "d1", "insert_id": "i1", "time": AT_MS, "session_id": -1,
              "productId": "a", "price": 19, "quantity": 1, "event_properties": {"name": "Lamp"}}  # fmt: skip
    event = only({"api_key": "k", "events": [bought, bought | {"event_type": "$identify"}]})
    assert shown(event, "event_id", "type", "user_id", "ts_ms", "item_id", "price", "title", "session_id") == (
        "i1", "purchase", "d1", AT_MS, "a", 19.0, "Lamp", None,
    )  # fmt: skip
    assert only(bought | {"event_type": "Viewed Home Page"}).type == "browse"


@pytest.mark.parametrize("time", [1_772_359_200, 1_772_359_200_000, "2026-03-01T10:00:00Z"])
def test_mixpanel(time: Any) -> None:
    """Seconds or milliseconds; the tool's own properties are not kept."""
    event = only({"event": "Add To Cart", "properties": {"token": "t", "time": time, "distinct_id": "u1", "sku": "a",
                                                         "$insert_id": "i1", "$city": "Oslo"}})  # fmt: skip
    assert shown(event, "event_id", "type", "user_id", "ts_ms", "item_id") == (
        "i1",
        "cart",
        "u1",
        1_772_359_200_000,
        "a",
    )
    assert rest(event) == {"event_name": "Add To Cart"}


def test_posthog() -> None:
    """Two items are two rows; a page is a browse; what tells who somebody is, is nothing."""
    base = {"api_key": "k", "distinct_id": "u1", "timestamp": AT, "uuid": "x1"}
    found = events(base | {"event": "order completed", "properties": {"products": [{"sku": "a"}, {"sku": "b"}]}})
    assert [shown(e, "event_id", "type", "item_id") for e in found] == [
        ("x1#0", "purchase", "a"), ("x1#1", "purchase", "b"),
    ]  # fmt: skip
    assert only(base | {"event": "$pageview", "properties": {}}).type == "browse"
    assert read(base | {"event": "$identify", "properties": {}}).nothing
    assert only({"batch": [base | {"event": "$screen"}], "api_key": "k"}).type == "browse"


@pytest.mark.parametrize(
    ("payload", "end"),
    [
        ({"event": "product_viewed", "id": "m1", "user_id": "u1", "anonymous_id": "a1", "original_timestamp": AT,
          "received_at": AT, "sent_at": AT, "context_ip": "10.0.0.1", "product_id": "a"}, ("view", "u1", "a")),
        ({"event_name": "add_to_cart", "client_id": "u1", "timestamp": AT, "items": [{"item_id": "a"}]},
         ("cart", "u1", "a")),
        (export(event_name="view_item", event_timestamp="1.7723592005E15", event_params={"currency": "EUR"}),
         ("view", "c1", "a")),
        ({"eventType": "unstruct", "event": {
            "event": "unstruct", "event_name": "add_to_cart", "derived_tstamp": AT, "user_id": "u1", "unstruct_event": {
                "data": {"schema": "iglu:com.snowplowanalytics.snowplow/add_to_cart/jsonschema/1-0-0",
                         "data": {"sku": "a"}}}}}, ("cart", "u1", "a")),
        (envelope(subject="customers/u1", data={"order": {"id": "o1", "lineItems": [
            {"productId": "a", "unitPrice": {"amountMinor": 950, "currency": "EUR"}}]}}), ("purchase", "u1", "a")),
        ({"event_type": "revenue_amount", "user_id": "u1", "time": AT_MS, "event_properties": {"$productId": "a"}},
         ("purchase", "u1", "a")),
    ],
    ids=["segment-row", "ga4-flat", "export-loose", "snowplow-micro", "cloudevent-nested", "amplitude-revenue"],
)  # fmt: skip
def test_looser_shapes(payload: Any, end: tuple[str, str, str]) -> None:
    """Shapes beside the documented ones: flat rows, an event within an answer, an order within the data."""
    event = only(payload)
    assert shown(event, "type", "user_id", "item_id", "ts_ms") == (*end, AT_MS)


# ---------------------------------------------------------------- files


def of_file(tmp_path: Path, text: str, dialect: str | None = None) -> list[dict[str, Any]]:
    """The events that replaying a file would send."""
    (tmp_path / "events").write_text(text)
    sent = [json.loads(line.value) for line in replay.lines(tmp_path / "events", dialect)]
    return [event for value in sent for event in (value if isinstance(value, list) else [value])]


def test_otto_session_is_many_events() -> None:
    """The session stands for the user; each of its events has an id of its own."""
    found = events(
        {"session": 3, "events": [{"aid": 7, "ts": AT_MS, "type": "clicks"}, {"aid": 8, "ts": AT_MS, "type": "orders"}]}
    )
    assert [shown(e, "user_id", "type", "item_id", "ts_ms") for e in found] == [
        ("3", "click", "7", AT_MS), ("3", "purchase", "8", AT_MS),
    ]  # fmt: skip
    assert len({e.event_id for e in found}) == 2


@pytest.mark.parametrize(
    ("text", "dialect", "kinds"),
    [
        ("event_time,event_type,product_id,category_code,brand,price,user_id\n"
         "2026-03-01 10:00:00 UTC,view,1234567890123456789,home.light,lux,5.0,u1\n", None, ["view"]),
        ("timestamp,visitorid,event,itemid,transactionid\n1772359200000,u1,addtocart,1234567890123456789,\n",
         None, ["cart"]),
        ("1,2026-03-01T10:00:00.000Z,1234567890123456789,S\n1,2026-03-01T10:00:00.000Z,1234567890123456789,0,2\n",
         "yoochoose", ["click", "purchase"]),
        ("1,2026-03-01T10:00:00.000Z,1234567890123456789,0\n", None, ["click"]),
    ],
    ids=["rees46", "retailrocket", "yoochoose", "yoochoose-by-shape"],
)  # fmt: skip
def test_csv_file(tmp_path: Path, text: str, dialect: str | None, kinds: list[str]) -> None:
    """A public data set is replayed as our own events; long ids stay exact, a missing column is absent."""
    found = of_file(tmp_path, text, dialect)
    assert [e["type"] for e in found] == kinds
    assert {(e["ts"], e["item_id"]) for e in found} == {(1_772_359_200_000, "1234567890123456789")}
    assert all(e.get("price") != 0 for e in found)


def test_equal_lines_of_a_file_are_two_events(tmp_path: Path) -> None:
    """A line without an id gets one from its place: other for its twin, the same at the next replay."""
    text = "timestamp,visitorid,event,itemid,transactionid\n" + "1772359200000,u1,view,a,\n" * 2
    first, again = of_file(tmp_path, text), of_file(tmp_path, text)
    assert len({e["event_id"] for e in first}) == 2
    assert first == again


def test_replayed_lines_are_keyed_by_their_user(tmp_path: Path) -> None:
    """A batch of several users becomes a message each; what is bad in part goes out as it is, for the worker to say."""
    (tmp_path / "f").write_text("\n".join(map(json.dumps, [
        {"batch": [track(), track(userId="u2")]}, track("Product Added", {}), {"type": "identify", "userId": "u1"},
    ])))  # fmt: skip
    sent = [(line.key, line.events) for line in replay.lines(tmp_path / "f")]
    assert sent == [(b"u1", 1), (b"u2", 1), (None, 1), (None, 0)]


# ---------------------------------------------------------------- counting


def test_what_holds_no_event_is_no_event(tmp_path: Path) -> None:
    """Events in the messages = stored + duplicates + rejected; a recognised message without an act counts for none."""
    order = track("Order Completed", {"products": [{"sku": "a"}, {"sku": "b"}]}, messageId="m2")
    messages: list[Any] = [track(), track(), order, {"type": "identify", "userId": "u1"}, track("Product Added", {})]
    taken = ingest.Ingest(
        store_=store.Store(tmp_path / "w.duckdb"), lake_=lake.Lake(tmp_path / "shared", "w"),
        settings=sessions.SessionSettings(), log_ids={"events": "log"}, keep_ms=86_400_000,
    )  # fmt: skip
    records: list[Any] = [
        SimpleNamespace(topic="events", partition=0, offset=n, key=b"u1", value=json.dumps(message).encode(),
                        headers=[], timestamp=AT_MS)
        for n, message in enumerate(messages)
    ]  # fmt: skip

    async def fold() -> Batch | None:
        await taken.adopt({TP("events", 0)}, {TP("events", 0): (0, len(records))})
        return await taken.fold({TP("events", 0): transport.Stretch(start=0, records=records)})

    batch = asyncio.run(fold())
    taken.store.close()
    counted = taken.parts[TP("events", 0)].open
    assert batch is not None
    assert (taken.events, counted.stored, counted.duplicates, counted.rejected) == (5, 3, 1, 1)
    assert [row.event.event_id for row in batch.rows] == ["m1", "m2#0", "m2#1"]
    assert len(batch.dead) == 1


# ---------------------------------------------------------------- what is personal


def test_personal_fields_are_kept_when_listed() -> None:
    """A field that is named stays, all others that tell who somebody is go."""
    call = track(
        properties={"product_id": "a", "email": "ann@example.org", "ip": "10.0.0.1", "note": "bob@example.org"}
    )
    assert rest(only(call, keep={"email"})).keys() == {"email", "event_name", "anonymous_id"}


# ---------------------------------------------------------------- nextclick check


def checked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    """One run of the command: code, lines of stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", *arguments])
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out.splitlines(), out.err


def test_check_tells_each_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Per line its dialect and its end, a summary last; code 1 where a line would be a dead letter."""
    lines = [
        track(),
        {"type": "identify", "userId": "u1"},
        track("Product Added", {}),
        {"x": 1},
        track(timestamp="2999-01-01T00:00:00Z"),
    ]
    (tmp_path / "f").write_text("\n".join(map(json.dumps, lines)) + "\n\n{")
    code, told, _ = checked(capsys, str(tmp_path / "f"), "--json")
    *rows, summary = map(json.loads, told)
    ends = [
        (r["line"], r["dialect"], len(r["events"]), len(r["nothing"]), [b["reason"] for b in r["dead_letter"]])
        for r in rows
    ]
    assert ends == [
        (1, "segment", 1, 0, []), (2, "segment", 0, 1, []), (3, "segment", 0, 0, ["schema"]),
        (4, "nextclick", 0, 0, ["schema"]), (5, "segment", 0, 0, ["future-ts"]), (7, "unknown", 0, 0, ["bad-json"]),
    ]  # fmt: skip
    assert rows[0]["events"][0]["event_id"] == "m1"
    total = {"lines": 6, "with_events": 1, "events": 1, "nothing": 1, "dead_letters": 4}
    assert (code, summary["summary"]["total"]) == (1, total)
    code, told, _ = checked(capsys, str(tmp_path / "f"))
    assert code == 1
    assert "is no event" in told[3] or "dead letter" in told[3]
    assert told[-1].split() == ["total", "6", "1", "1", "1", "4"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nowhere"], "/nowhere cannot be read"),
        ([str(ROOT)], "cannot be read"),
        ([os.devnull], "holds no events"),
        ([os.devnull, "--dialect", "klingon"], "is none that is known: use one of"),
    ],
)
def test_check_tells_what_it_cannot_read(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """A file that cannot be read, or holds nothing, and a dialect that is none, are one line on stderr."""
    code, _, err = checked(capsys, *arguments)
    assert code == 1
    assert said in err
    assert len(err.splitlines()) == 1


def test_check_is_light() -> None:
    """Checking a file imports no torch, Faust, DuckDB or Kafka, and reads stdin."""
    heavy = "{'torch', 'faust', 'duckdb', 'kafka', 'aiokafka', 'numpy', 'pyarrow'}"
    code = (
        "import sys, atexit; from deploy import cli\n"
        f"atexit.register(lambda: print(sorted({heavy} & set(sys.modules)), file=sys.stderr))\n"
        "cli.main(['check', '-'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps(track()), capture_output=True, text=True, check=True
    )
    assert done.stderr.strip() == "[]"
    assert "segment" in done.stdout


def test_client_does_not_send_what_holds_no_event() -> None:
    """A producer is told that there is nothing to send, before anything is sent."""
    unconnected = object.__new__(client.EventProducer)
    with pytest.raises(BadEvent, match="nothing to send"):
        unconnected.send({"type": "identify", "userId": "u1"})


# ---------------------------------------------------------------- whatever comes

NAMES = sorted({
    "type", "event", "events", "batch", "properties", "userId", "anonymousId", "timestamp", "context", "traits", "name",
    "params", "items", "products", "item_id", "client_id", "timestamp_micros", "ecommerce", "0", "1", "event_name",
    "event_params", "event_timestamp", "key", "value", "schema", "data", "collector_tstamp", "event_id", "fields", "id",
    "user", "session", "specversion", "source", "time", "headers", "ce_type", "event_type", "device_id", "distinct_id",
    "token", "aid", "ts", "visitorid", "itemid", "price", "quantity", "category", "query", "position", "add",
    "contexts_a_product_1", "unstruct_event_a_action_1", "event_time", "product_id", "click_time", "session_id",
})  # fmt: skip
leaves = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from([
        "track", "Product Viewed", "view_item", "purchase", "interaction", "ranking", "com.a.order.placed", AT, "[{}]",
        "{", "iglu:a/b", "clicks", "page_view", "(not set)", "1e309", "\N{FULLWIDTH DIGIT ONE}",
    ])
)  # fmt: skip
payloads = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=6),
    max_leaves=25,
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    payloads,
    st.sampled_from([None, *table.NAMES]),
    st.dictionaries(st.sampled_from(["ce_type", "ce_id"]), st.text(max_size=9)),
)
def test_no_payload_raises_anything_else(payload: Any, name: str | None, headers: dict[str, str]) -> None:
    """Whatever the shape, and whatever it is said to be: legal rows, nothing, or a `BadEvent`."""
    table.translate(payload, Arrival(value=b"x", key="k", record_ms=5, headers=headers), name)
    value = json.dumps(payload).encode()
    try:
        found = codec.read(value, [(n, v.encode()) for n, v in headers.items()], key=b"k", record_ms=5, dialect=name)
    except BadEvent:
        return
    for n, element in enumerate(found.elements):
        if isinstance(element, BadElement):
            assert element.n == n
        else:
            assert codec.decode(codec.encode_event(element)) == [element]


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=80) | st.text(st.characters(exclude_categories=["Cs"]), max_size=80).map(str.encode),
    st.sampled_from([None, *files.COLUMNS]),
)
def test_no_line_of_a_file_raises_anything_else(line: bytes, dialect: str | None) -> None:
    """Whatever the line, it becomes a message, or a `BadEvent` says why not."""
    make = files.reader(line, dialect)
    value = line if make is None else make(b"2" + line)
    try:
        codec.read(value, record_ms=5, dialect=dialect, line=1)
    except BadEvent as bad:
        assert str(bad)  # noqa: PT017


# ---------------------------------------------------------------- real payloads


def judged() -> Iterator[tuple[str, list[Message]]]:
    """Every file of the payloads, each of its lines as a message whose key is its user."""
    for file in sorted(path for path in PAYLOADS.iterdir() if path.suffix in (".jsonl", ".csv", ".tsv")):
        found = []
        for number, value in replay.values(file):
            try:
                found.append(codec.read(value, key=b"key", record_ms=NOW_MS, line=number))
            except BadEvent as bad:
                found.append(Message("unknown", [BadElement(0, bad.reason, str(bad))], []))
        yield file.stem, found


def told() -> str:
    """The table of the document."""
    rows: list[tuple[Any, ...]] = []
    for name, messages in judged():
        good = sum(any(isinstance(e, Event) for e in m.elements) for m in messages)
        dead = sum(any(isinstance(e, BadElement) for e in m.elements) for m in messages)
        rows.append((name, len(messages), good, sum(isinstance(e, Event) for m in messages for e in m.elements),
                     sum(not m.elements for m in messages), dead))  # fmt: skip
    rows.append(("all", *(sum(row[n] for row in rows) for n in range(1, 6))))
    head = ("file", "payloads", "with events", "events", "nothing to store", "dead letters")
    lines = [head, ("---", *["---:"] * 5), *((name, *(f"{n:,}" for n in figures)) for name, *figures in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


needs_payloads = pytest.mark.skipif(
    not PAYLOADS.is_dir(),
    reason="the real payloads are not part of the repository: name their folder in DIALECT_PAYLOADS",
)


@needs_payloads
def test_every_real_payload_is_judged() -> None:
    """Each ends as events, as nothing with a reason, or as a dead letter with one; nothing personal is stored."""
    personal = re.compile(r"[^\s@\"]+@[^\s@\"]+\.[a-z]|\"(ip|email|phone|address|useragent)\"", re.IGNORECASE)
    for name, messages in judged():
        for message in messages:
            assert message.elements or message.nothing, name
            assert message.dialect != "nextclick", name
            for element in message.elements:
                if isinstance(element, Event):
                    assert not personal.search(element.properties or ""), (name, element)
                    assert codec.decode(codec.encode_event(element)) == [element]
                else:
                    assert element.message, name


@needs_payloads
def test_the_document_counts_the_real_payloads() -> None:
    """The table of docs/dialects.md is what the payloads give: `python -m tests.test_dialects` writes it anew."""
    assert told() in DOCUMENT.read_text(encoding="utf-8")


def test_numbers_of_every_notation_are_read() -> None:
    """Texts hold numbers in many ways; what is none is not guessed."""
    assert [values.number(t) for t in ("1 299,00 kr", "0x10", "--", "1,2,3")] == [None, None, None, None]
    assert [values.number(t) for t in ("USD 12.00", "12,000", "-3", "$ 79.95")] == [12.0, 12_000.0, -3.0, 79.95]


if __name__ == "__main__":
    text = DOCUMENT.read_text(encoding="utf-8")
    DOCUMENT.write_text(re.sub(r"\| file \|(.*\n)*?(?=\n|\Z)", lambda _: told() + "\n", text), encoding="utf-8")
