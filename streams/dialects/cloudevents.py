"""CloudEvents: structured, as a batch, and in Kafka's binary mode, where the envelope lies in the headers."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Mapping
from typing import Any

import msgspec

from streams.bad import BadEvent
from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing, items_of

PREFIXES = ("ce_", "ce-")
USER = ("user_id", "customer_id", "visitor_id", "client_id", "account_id", "buyer_id")
TIME = ("occurred_at", "placed_at", "created_at", "event_time", "timestamp")
PARTS = ("order", "cart", "payload")  # of the data, whose fields are read as the data's own
_anything = msgspec.json.Decoder().decode


def recognises(payload: dict[str, Any]) -> bool:
    """An envelope by its version, or by what else it must have."""
    if "specversion" in payload:
        return "type" in payload or "data" in payload
    return {"type", "source", "data"} <= payload.keys() and not payload.keys().isdisjoint(
        ("id", "time", "subject", "datacontenttype")
    )


def envelope(headers: Mapping[str, str]) -> dict[str, Any]:
    """The attributes that the headers hold; empty where the message is not in binary mode."""
    named = {name[3:].lower(): value for name, value in headers.items() if name.lower().startswith(PREFIXES)}
    return named if "type" in named else {}


def act(payload: dict[str, Any]) -> Act | Nothing:
    """One event: the end of its type says what was done, its data says by whom and with what."""
    name = str(payload.get("type"))
    if "payment" in name.lower():
        return Nothing(f"{name[:80]!r} is the payment of an order that has an event of its own")
    if (verb := verbs.last_verb(name)) is None:
        return act_or_nothing(None, name)
    data = _data(payload)
    said = values.Fields(data)
    user = said.first(USER) or values.Fields(_person(data)).first((*USER, "id")) or _subject(payload.get("subject"))
    return act_or_nothing(
        verb, name,
        id=payload.get("id"), users=(user,), anonymous=said.first(("anonymous_id", "device_id")),
        clocks=(payload.get("time"), said.first(TIME)), session=said.first(("session_id",)),
        fields={**said.rest(PARTS), **({"order_id": order} if (order := said.first(("order_id",))) else {})},
        items=items_of(data),
        more={"source": payload.get("source"), "subject": payload.get("subject")},
    )  # fmt: skip


def _person(data: dict[str, Any]) -> dict[str, Any]:
    return values.table(data.get("customer")) or values.table(data.get("user"))


def _subject(subject: Any) -> str | None:
    """The user where the subject is one."""
    found = re.fullmatch(r"(?:users?|customers?|visitors?)[/:](.+)", str(subject))
    return found[1] if found else None


def _data(payload: dict[str, Any]) -> dict[str, Any]:
    data = payload.get("data")
    if "data_base64" in payload:
        try:
            data = _anything(base64.b64decode(str(payload["data_base64"]), validate=True))
        except (binascii.Error, ValueError, RecursionError) as error:
            raise BadEvent("schema", f"data_base64: holds no JSON ({error})") from error
    data = values.json_of(data)
    if data is not None and not isinstance(data, dict):
        raise BadEvent("schema", f"data: {str(payload.get('datacontenttype'))[:80]} is not read, write a JSON object")
    whole: dict[str, Any] = dict(data or {})
    for part in PARTS:
        whole |= {f"{part}_id" if name == "id" else name: said for name, said in values.table(whole.get(part)).items()}
    return whole
