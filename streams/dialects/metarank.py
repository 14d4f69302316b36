"""Metarank: interactions and rankings; metadata of items and users is no event."""

from __future__ import annotations

from typing import Any

from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing

KINDS = ("interaction", "ranking", "item", "user", "impression", "metadata")  # the last two: of its first versions


def recognises(payload: dict[str, Any]) -> bool:
    """An event of one of the four kinds with its time."""
    return payload.get("event") in KINDS and not payload.keys().isdisjoint(("timestamp", "fields", "item", "items"))


def act(payload: dict[str, Any]) -> Act | Nothing:
    """One event; a ranking is a list that was shown, an interaction under a name of the shop's own is a click."""
    kind = payload.get("event")
    if kind in ("item", "user", "metadata"):
        return Nothing(f"{kind!r} is metadata, no event")
    fields = _pivot(payload.get("fields"))
    user, session = values.text(payload.get("user")), values.text(payload.get("session"))
    base: dict[str, Any] = {
        "id": payload.get("id"), "users": (user,), "anonymous": session, "clocks": (payload.get("timestamp"),),
        "session": session if session != user else None, "more": {"ranking": payload.get("ranking")},
    }  # fmt: skip
    if kind == "interaction":
        name = payload.get("type")
        return act_or_nothing(
            verbs.verb(str(name)) or "click", name, fields={**fields, "item_id": payload.get("item")}, **base
        )
    shown = [
        {"position": n, **_pivot(item.get("fields")), "item_id": item.get("id")}
        for n, item in enumerate(values.many(payload.get("items")), 1)
        if isinstance(item, dict)
    ]
    return act_or_nothing("impression", "ranking", fields=fields, items=shown, **base)


def _pivot(pairs: Any) -> dict[str, Any]:
    """`[{name, value}]` as an object."""
    named = (pair for pair in values.many(pairs) if isinstance(pair, dict) and isinstance(pair.get("name"), str))
    return {pair["name"]: pair.get("value") for pair in named}
