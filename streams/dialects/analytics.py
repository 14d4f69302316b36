"""Amplitude, Mixpanel and PostHog: a named event, who, when, and its properties."""

from __future__ import annotations

import re
from typing import Any

from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing, items_of

REVENUE = frozenset({"productid", "price", "quantity", "revenue"})  # the only fields under $ that are the shop's

# ---------------------------------------------------------------- Amplitude


def recognises_amplitude(payload: dict[str, Any]) -> bool:
    """An event by its type and its device or user, or a request of several."""
    events = payload.get("events")
    if isinstance(events, list):
        return any(isinstance(e, dict) and "event_type" in e for e in events)
    return "event_type" in payload and not payload.keys().isdisjoint(("user_id", "device_id", "event_properties"))


def split_amplitude(payload: dict[str, Any]) -> list[Any]:
    """The events of a request, or the one event."""
    return values.many(payload["events"]) if isinstance(payload.get("events"), list) else [payload]


def act_of_amplitude(payload: dict[str, Any]) -> Act | Nothing:
    """One event; what an order or a bought product costs may stand beside its properties."""
    name = values.text(payload.get("event_type"))
    beside: dict[str, Any] = {
        k: payload[k] for k in ("productId", "price", "quantity", "revenue", "revenueType") if k in payload
    }
    properties = values.table(payload.get("event_properties"))
    session = values.text(payload.get("session_id"))
    return _act(
        name, {**beside, **properties},
        id=payload.get("insert_id") or payload.get("uuid") or payload.get("$insert_id"),
        users=(payload.get("user_id"),), anonymous=payload.get("device_id") or payload.get("amplitude_id"),
        clocks=(payload.get("time"), payload.get("event_time"), payload.get("client_event_time")),
        session=session if session != "-1" else None,
    )  # fmt: skip


# ---------------------------------------------------------------- Mixpanel


def recognises_mixpanel(payload: dict[str, Any]) -> bool:
    """An event whose properties hold who and when."""
    properties = payload.get("properties")
    return ("$distinct_id" in payload and "event" not in payload) or (
        "event" in payload
        and isinstance(properties, dict)
        and not properties.keys().isdisjoint(
            ("token", "time", "distinct_id", "$distinct_id", "$insert_id", "$user_id", "mp_lib")
        )
    )


def act_of_mixpanel(payload: dict[str, Any]) -> Act | Nothing:
    """One event; a profile's update is none."""
    properties = values.table(payload.get("properties"))
    if "event" not in payload:
        return Nothing("an update of a profile tells who somebody is, not what they did")
    return _act(
        payload.get("event"), properties,
        id=properties.get("$insert_id"),
        users=(properties.get("$user_id"), properties.get("distinct_id"), properties.get("$distinct_id")),
        anonymous=properties.get("$device_id"),
        clocks=(properties.get("time"),),
        session=properties.get("$session_id"),
    )  # fmt: skip


# ---------------------------------------------------------------- PostHog


def recognises_posthog(payload: dict[str, Any]) -> bool:
    """An event with a distinct id beside its name, or with PostHog's key and the id among its properties."""
    if "event" not in payload:
        return False
    inner = values.table(payload.get("properties"))
    mine = "api_key" in payload or "uuid" in payload or "timestamp" in payload
    return "distinct_id" in payload or (mine and "distinct_id" in inner)


def act_of_posthog(payload: dict[str, Any]) -> Act | Nothing:
    """One event."""
    properties = values.table(payload.get("properties"))
    if payload.get("type") in ("identify", "alias", "group"):
        return Nothing(f"{payload['type']!r} tells who somebody is, not what they did")
    return _act(
        payload.get("event"), properties,
        id=payload.get("uuid") or payload.get("messageId") or properties.get("$insert_id"),
        users=(payload.get("distinct_id"), properties.get("distinct_id")),
        anonymous=properties.get("$anon_distinct_id") or properties.get("$device_id"),
        clocks=(payload.get("timestamp"), properties.get("$time"), properties.get("$timestamp"),
                payload.get("sent_at")),
        session=properties.get("$session_id"),
    )  # fmt: skip


def _act(name: Any, properties: dict[str, Any], **parts: Any) -> Act | Nothing:
    """The properties without the tool's own, which tell of the device."""
    said = re.sub(r"^\$+", "", str(values.text(name) or ""))
    theirs = ("time", "token", "distinct_id", "mp_lib")
    fields = {
        key: value
        for key, value in properties.items()
        if key not in theirs and (not key.startswith("$") or values.plain(key) in REVENUE)
    }
    return act_or_nothing(verbs.verb(said), name, fields=fields, items=items_of(properties), **parts)
