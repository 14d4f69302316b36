"""Google Analytics 4: Measurement Protocol, dataLayer and gtag, and the export as BigQuery and Snowflake hold it."""

from __future__ import annotations

from typing import Any

from featurestore.events import EventType
from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing

NOT_HERE = frozenset({"click"})  # GA4's own `click` is a link that leads away
UA: dict[str, EventType] = {  # Universal Analytics: the verb is the name of the part
    "detail": "view", "click": "click", "add": "cart", "remove": "remove", "checkout": "checkout",
    "purchase": "purchase", "impressions": "impression",
}  # fmt: skip
LAYER = frozenset({"event", "event_name", "ecommerce", "user_id", "userId", "client_id", "clientId", "timestamp",
                   "timestamp_micros"})  # fmt: skip
COMMANDS = ("event", "config", "js", "set", "consent", "get")


# ---------------------------------------------------------------- Measurement Protocol


def recognises_request(payload: dict[str, Any]) -> bool:
    """A request: who, and a list of named events."""
    events = payload.get("events")
    asked = any(mark in payload for mark in ("client_id", "app_instance_id", "user_id", "timestamp_micros"))
    return asked and isinstance(events, list) and not any("name" not in e for e in events if isinstance(e, dict))


def split_request(payload: dict[str, Any]) -> list[Any]:
    """Its events, each with what the request says of all."""
    whole = {name: value for name, value in payload.items() if name != "events"}
    return [whole | e if isinstance(e, dict) else e for e in values.many(payload.get("events"))]


def act_of_request(payload: dict[str, Any]) -> Act | Nothing:
    """One event of a request."""
    params = values.table(payload.get("params"))
    return _act(
        payload.get("name"), params,
        users=(payload.get("user_id"),),
        anonymous=payload.get("client_id") or payload.get("app_instance_id"),
        clocks=(payload.get("timestamp_micros"),),
        session=params.get("ga_session_id") or params.get("session_id"),
        consent=values.table(payload.get("consent")).get("ad_personalization") != "DENIED",
    )  # fmt: skip


def _act(name: Any, params: dict[str, Any], **parts: Any) -> Act | Nothing:
    said = str(values.text(name) or "")
    verb = None if said in NOT_HERE else verbs.verb(said)
    if said == "select_content" and values.text(params.get("content_type")) in ("product", "item"):
        verb = "click"
    if verb == "browse" and "title" not in params and (title := values.text(params.get("page_title"))):
        params = {**params, "title": title}
    fields = {
        key: value
        for key, value in params.items()
        if key not in ("engagement_time_msec", "ga_session_id", "session_id")
    }
    return act_or_nothing(verb, name, fields=fields, items=values.many(params.get("items")), named=True, **parts)


# ---------------------------------------------------------------- dataLayer, gtag


def recognises_layer(payload: Any) -> bool:
    """A push with `ecommerce`, an event under one of GA4's names and nobody's id, or the arguments of gtag."""
    if isinstance(payload, list) or "0" in payload:
        arguments = _arguments(payload)
        return len(arguments) > 1 and arguments[0] in COMMANDS
    if "ecommerce" in payload:
        return True
    if isinstance(payload.get("event_name"), str):
        return "client_id" in payload or "items" in payload
    return isinstance(payload.get("event"), str) and payload.keys().isdisjoint(
        ("properties", "distinct_id", "type", "timestamp", "event_id", "user")
    )


def act_of_layer(payload: Any) -> Act | Nothing:
    """One push; it has no time, and mostly no user either."""
    if isinstance(payload, list) or "0" in payload:
        command, name, more = [*_arguments(payload), None, None, None][:3]
        if command != "event":
            return Nothing(f"gtag({str(command)[:40]!r}) sets something up")
        pushed = values.table(more)
        shop, outer = pushed, pushed
    else:
        name, outer = payload.get("event") or payload.get("event_name"), payload
        shop = values.table(payload.get("ecommerce"))
    who = {
        "users": (outer.get("user_id"), outer.get("userId")),
        "anonymous": outer.get("client_id") or outer.get("clientId"), "by_key": True,
        "clocks": (outer.get("timestamp"), outer.get("timestamp_micros")),
    }  # fmt: skip
    old = next((part for part in UA if isinstance(shop.get(part), dict | list)), None)
    if old is not None:
        return _act_of_ua(name, old, shop, who)
    flat = {k: v for k, v in outer.items() if k not in LAYER}
    return _act(name, {**flat, **shop}, **who)


def _arguments(payload: Any) -> list[Any]:
    return payload if isinstance(payload, list) else [payload[str(n)] for n in range(4) if str(n) in payload]


def _act_of_ua(name: Any, part: str, shop: dict[str, Any], who: dict[str, Any]) -> Act | Nothing:
    """The older notation, as Universal Analytics read it."""
    inner = shop[part] if isinstance(shop[part], dict) else {"products": shop[part]}
    order = values.table(inner.get("actionField"))
    fields = {"currency": shop.get("currencyCode"), **({"order_id": order.get("id")} if part == "purchase" else {}),
              **{k: v for k, v in order.items() if k != "id"}}  # fmt: skip
    return act_or_nothing(
        UA[part], name or part, fields=fields, items=values.many(inner.get("products")), named=True, **who
    )


# ---------------------------------------------------------------- BigQuery, Snowflake


def recognises_row(payload: dict[str, Any]) -> bool:
    """A row of the export, in lower case or in Snowflake's upper case."""
    named = {name.lower() for name in payload}
    return "event_name" in named and not named.isdisjoint(("event_params", "event_timestamp", "user_pseudo_id"))


def act_of_row(payload: dict[str, Any]) -> Act | Nothing:
    """One row."""
    row = {name.lower(): value for name, value in payload.items()}
    params = _params(values.json_of(row.get("event_params")))
    ecommerce = values.table(row.get("ecommerce"))
    return _act(
        row.get("event_name"),
        {"transaction_id": ecommerce.get("transaction_id"), **params, "items": values.json_of(row.get("items"))},
        users=(row.get("user_id"),),
        anonymous=row.get("user_pseudo_id"),
        clocks=(row.get("event_timestamp"),),
        session=params.get("ga_session_id"),
        consent=str(values.table(row.get("privacy_info")).get("analytics_storage")).lower() not in ("no", "denied"),
    )  # fmt: skip


def _params(pairs: Any) -> dict[str, Any]:
    """`[{key, value}]` as an object; an object as it is."""
    if isinstance(pairs, dict):
        pairs = [pairs] if "key" in pairs else [{"key": key, "value": value} for key, value in pairs.items()]
    named = (pair for pair in values.many(pairs) if isinstance(pair, dict))
    return {str(pair.get("key")): said for pair in named if (said := _typed(pair.get("value"))) is not None}


def _typed(value: Any) -> Any:
    """The one of the four typed members that is set; a plain value as it is."""
    if not isinstance(value, dict):
        return value
    return next((said for said in value.values() if said is not None), None)
