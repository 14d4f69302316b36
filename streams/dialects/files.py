"""Public data sets as files: OTTO, REES46, RetailRocket and YooChoose."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing

REES46 = ("event_time", "event_type", "product_id", "category_id", "category_code", "brand", "price", "user_id",
          "user_session")  # fmt: skip
RETAILROCKET = ("timestamp", "visitorid", "event", "itemid", "transactionid")
YOOCHOOSE_CLICKS = ("session_id", "click_time", "item_id", "category")
YOOCHOOSE_BUYS = ("session_id", "buy_time", "item_id", "price", "quantity")
COLUMNS: dict[str, Sequence[str]] = {"rees46": REES46, "retailrocket": RETAILROCKET, "yoochoose": YOOCHOOSE_CLICKS}
_YOOCHOOSE = re.compile(rb"\d+,\d{4}-\d\d-\d\dT[\d:.]+Z,\d+,[^,]*(,\d+)?\s*")


# ---------------------------------------------------------------- lines


def reader(first: bytes, dialect: str | None = None) -> Callable[[bytes], bytes | None] | None:
    """What makes a JSON object of each line of a file that begins so, and None of its header; None where it is no CSV.

    >>> read = reader(b"timestamp,visitorid,event,itemid,transactionid")
    >>> read(b"5,u1,view,i1,")
    b'{"timestamp":"5","visitorid":"u1","event":"view","itemid":"i1","transactionid":""}'
    """
    header = [name.strip().lower() for name in _cells(first.removeprefix(b"\xef\xbb\xbf"))]
    if {"event_time", "event_type", "product_id"} <= set(header) or {"visitorid", "itemid"} <= set(header):
        return lambda line: _object(header, line) if line.strip() != first.strip() else None
    if dialect == "yoochoose" or (dialect is None and _YOOCHOOSE.fullmatch(first)):
        return lambda line: _object(YOOCHOOSE_BUYS if line.count(b",") == 4 else YOOCHOOSE_CLICKS, line)
    if dialect in COLUMNS and first.lstrip()[:1] != b"{":
        return lambda line: _object(COLUMNS[dialect], line)
    return None


def _object(columns: Sequence[str], line: bytes) -> bytes:
    return msgspec.json.encode(dict(zip(columns, _cells(line), strict=False)))


def _cells(line: bytes) -> list[str]:
    text = line.decode(errors="replace").strip("\r\n")
    try:
        return next(csv.reader([text]), [])
    except csv.Error:
        return text.split(",")


# ---------------------------------------------------------------- OTTO


def recognises_otto(payload: dict[str, Any]) -> bool:
    """A session with its events."""
    events = payload.get("events")
    return "session" in payload and isinstance(events, list) and all(isinstance(e, dict) and "aid" in e for e in events)


def split_otto(payload: dict[str, Any]) -> list[Any]:
    """The session's events, each under an id of its own: no other names the same session, time, item and verb."""
    whole = {"session": payload.get("session")}
    return [whole | event if isinstance(event, dict) else event for event in values.many(payload.get("events"))]


def act_of_otto(payload: dict[str, Any]) -> Act | Nothing:
    """One event of a session; the session stands for the user."""
    name = payload.get("type")
    parts = (payload.get("session"), payload.get("ts"), payload.get("aid"), name)
    return act_or_nothing(
        verbs.verb(str(name)), name, id="-".join(map(str, parts)), users=(payload.get("session"),),
        clocks=(payload.get("ts"),), fields={"item_id": payload.get("aid")},
    )  # fmt: skip


# ---------------------------------------------------------------- CSV


def recognises_rees46(payload: dict[str, Any]) -> bool:
    """A line under REES46's names."""
    return {"event_time", "event_type", "product_id"} <= payload.keys()


def act_of_rees46(payload: dict[str, Any]) -> Act | Nothing:
    """One line; `category_code` is a path with dots."""
    name = payload.get("event_type")
    fields = {k: payload.get(k) for k in ("product_id", "category_code", "brand", "price")}
    return act_or_nothing(
        verbs.verb(str(name)), name, users=(payload.get("user_id"),), anonymous=payload.get("user_session"),
        clocks=(payload.get("event_time"),), session=payload.get("user_session"), separator=".",
        fields=fields,
        more={"category_id": payload.get("category_id")},
    )  # fmt: skip


def recognises_retailrocket(payload: dict[str, Any]) -> bool:
    """A line under RetailRocket's names."""
    return {"visitorid", "event", "itemid"} <= payload.keys()


def act_of_retailrocket(payload: dict[str, Any]) -> Act | Nothing:
    """One line."""
    name = payload.get("event")
    return act_or_nothing(
        verbs.verb(str(name)), name, users=(payload.get("visitorid"),), clocks=(payload.get("timestamp"),),
        fields={"item_id": payload.get("itemid"), "order_id": payload.get("transactionid")},
    )  # fmt: skip


def recognises_yoochoose(payload: dict[str, Any]) -> bool:
    """A line of the clicks or of the buys."""
    return {"session_id", "item_id"} <= payload.keys() and not payload.keys().isdisjoint(("click_time", "buy_time"))


def act_of_yoochoose(payload: dict[str, Any]) -> Act | Nothing:
    """One line; the session stands for the user, a price of 0 is unknown, category S is a special offer."""
    bought = "buy_time" in payload
    fields = {"item_id": payload.get("item_id"), "quantity": payload.get("quantity")}
    if values.number(payload.get("price")):
        fields["price"] = payload.get("price")
    if values.text(payload.get("category")) not in (None, "0"):
        fields["category"] = payload.get("category")
    return act_or_nothing(
        "purchase" if bought else "click", "buy" if bought else "click", fields=fields,
        users=(payload.get("session_id"),), session=payload.get("session_id"),
        clocks=(payload.get("buy_time" if bought else "click_time"),),
    )  # fmt: skip
