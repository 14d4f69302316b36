"""Snowplow: enriched events as JSON, as rows of a warehouse, and as the tab-separated lines of its Kafka topic."""

from __future__ import annotations

import re
from typing import Any

from featurestore.events import EventType
from streams.bad import BadEvent
from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing

COLUMNS = 131  # of an enriched line; 130 where `true_tstamp` was cut off
# The places of the columns that are read.
PLACES = {
    0: "app_id", 1: "platform", 3: "collector_tstamp", 4: "dvce_created_tstamp", 5: "event", 6: "event_id",
    12: "user_id", 15: "domain_userid", 17: "network_userid", 29: "page_url", 30: "page_title", 52: "contexts",
    58: "unstruct_event", 67: "ti_orderid", 68: "ti_sku", 69: "ti_name", 70: "ti_category", 71: "ti_price",
    72: "ti_quantity", 119: "dvce_sent_tstamp", 122: "derived_contexts", 123: "domain_sessionid",
    124: "derived_tstamp", 126: "event_name", 130: "true_tstamp",
}  # fmt: skip
MARKS = ("collector_tstamp", "derived_tstamp", "dvce_created_tstamp", "v_tracker", "v_collector", "etl_tstamp")
ACTION = re.compile(r"unstruct_event_.*_(snowplow_ecommerce_action|enhanced_ecommerce_action|action)_\d+(_\d+_\d+)?")
PRODUCTS = re.compile(r"contexts_.*_(product|product_field_object|impression_field_object)_\d+(_\d+_\d+)?")
ENTITY = "contexts_.*_snowplow_(ecommerce_)?{}_\\d+(_\\d+_\\d+)?"
ACTIONS: dict[str, EventType] = {  # of the two ecommerce plugins
    "product_view": "view", "detail": "view", "list_view": "impression", "view": "impression", "list_click": "click",
    "click": "click", "add_to_cart": "cart", "add": "cart", "remove_from_cart": "remove", "remove": "remove",
    "checkout_step": "checkout", "checkout": "checkout", "transaction": "purchase", "purchase": "purchase",
    "promo_view": "impression", "promo_click": "click",
}  # fmt: skip


def recognises(payload: dict[str, Any]) -> bool:
    """An enriched event, or a self-describing JSON."""
    if str(payload.get("schema", "")).startswith("iglu:"):
        return True
    named = {name.lower() for name in (payload["event"] if isinstance(payload.get("event"), dict) else payload)}
    return not named.isdisjoint(MARKS) and not named.isdisjoint(("event", "event_name"))


def line(value: bytes) -> dict[str, Any] | None:
    """An enriched line as its JSON; None where it is none."""
    if value.count(b"\t") not in (COLUMNS - 1, COLUMNS - 2):
        return None
    columns = value.decode(errors="replace").rstrip("\r\n").split("\t")
    return {name: columns[place] for place, name in PLACES.items() if place < len(columns)}


def _spread(row: dict[str, Any]) -> dict[str, Any]:
    """Self-describing JSON that an event holds in one field each, as a warehouse's columns."""
    for field in ("contexts", "derived_contexts"):
        for entity in values.many(values.table(row.pop(field, None)).get("data")):
            if isinstance(entity, dict):
                row.setdefault(_column("contexts", entity), []).append(entity.get("data"))
    described = values.table(values.table(row.pop("unstruct_event", None)).get("data"))
    return row | ({_column("unstruct_event", described): described.get("data")} if described else {})


def _column(kind: str, described: dict[str, Any]) -> str:
    """The warehouse's column of a self-describing JSON: vendor, name and version."""
    vendor, name, _, version = [*str(described.get("schema")).removeprefix("iglu:").split("/"), "", "", "1"][:4]
    snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
    return f"{kind}_{re.sub(r'[^a-z0-9]', '_', vendor.lower())}_{snake}_{version.split('-')[0]}"


def act(payload: dict[str, Any]) -> Act | Nothing:
    """One enriched event."""
    if "schema" in payload:
        return _described(str(payload["schema"]))
    event = payload["event"] if isinstance(payload.get("event"), dict) else payload  # Micro's answer holds the event
    row = _spread({name.lower(): value for name, value in event.items()})
    kind, name = values.text(row.get("event")), values.text(row.get("event_name"))
    base: dict[str, Any] = {
        "id": row.get("event_id"), "users": (row.get("user_id"), _entity(row, "user").get("id")),
        "anonymous": next(filter(None, map(values.text, (
            row.get("domain_userid"), _entity(row, "client_session").get("userId"), row.get("network_userid"),
        ))), None),
        "clocks": _clocks(row),
        "session": row.get("domain_sessionid") or _entity(row, "client_session").get("sessionId"),
    }  # fmt: skip
    if kind == "page_view" or name == "page_view":
        fields = {"title": row.get("page_title"), "page_url": row.get("page_url")}
        return act_or_nothing("browse", "page_view", fields=fields, **base)
    if kind == "transaction_item":
        bought = {
            name: row.get(f"ti_{old}")
            for name, old in (("sku", "sku"), ("name", "name"), ("category", "category"), ("price", "price"),
                              ("quantity", "quantity"), ("order_id", "orderid"))
        }  # fmt: skip
        return act_or_nothing("purchase", "transaction_item", fields=bought, **base)
    if kind == "transaction":
        return Nothing("the items of a transaction come as transaction_item events")
    if name in ("add_to_cart", "remove_from_cart", "site_search"):
        said = _found(row, re.compile(rf"unstruct_event_.*_{name}_\d+(_\d+_\d+)?"))
        terms = said.get("terms")
        fields = {**said, "query": " ".join(map(str, terms))} if isinstance(terms, list) else said
        return act_or_nothing(verbs.verb(name), name, fields=fields, **base)
    if kind not in (None, "unstruct"):
        return act_or_nothing(None, name or kind)
    return _ecommerce(row, name, base)


def _described(schema: str) -> Nothing:
    """A self-describing JSON by itself: an entity is no event, and what a tracker sends is not enriched yet."""
    if "/payload_data/" in schema:
        raise BadEvent("schema", "a tracker's payload before enrichment: connect the topic of enriched events")
    return Nothing(f"{schema[:80]!r} describes something, it is no event")


def _ecommerce(row: dict[str, Any], name: str | None, base: dict[str, Any]) -> Act | Nothing:
    """An action of the ecommerce plugins with its products beside it."""
    action = _found(row, ACTION)
    done = values.text(action.get("type")) or values.text(action.get("action"))
    if done is None and name in ("snowplow_ecommerce_action", "action"):
        return Nothing("the ecommerce action does not say what was done")
    order = _entity(row, "transaction")
    fields = {"list": action.get("name"), "order_id": order.get("transaction_id"), "revenue": order.get("revenue"),
              "currency": order.get("currency") or _entity(row, "cart").get("currency")}  # fmt: skip
    items = [item for column, value in row.items() if PRODUCTS.fullmatch(column) for item in values.many(value)]
    return act_or_nothing(ACTIONS.get(str(done)), done or name, fields=fields, items=items, **base)


def _found(row: dict[str, Any], column: re.Pattern[str]) -> dict[str, Any]:
    """What the first filled column of this name holds, whatever its version."""
    for name, value in row.items():
        if column.fullmatch(name) and (found := values.many(value)) and isinstance(found[0], dict):
            return dict(found[0])
    return {}


def _entity(row: dict[str, Any], name: str) -> dict[str, Any]:
    return _found(row, re.compile(ENTITY.format(name)))


def _clocks(row: dict[str, Any]) -> tuple[Any, ...]:
    """`derived_tstamp` is corrected already; without it that correction, the collector's clock, the device's."""
    device, sent, server = (row.get(f"{name}_tstamp") for name in ("dvce_created", "dvce_sent", "collector"))
    return (
        row.get("true_tstamp"), row.get("derived_tstamp"), values.corrected(server, sent, device), server, device,
        row.get("etl_tstamp"),
    )  # fmt: skip
