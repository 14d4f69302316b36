"""Segment and RudderStack: track, page and screen calls, alone or as a batch."""

from __future__ import annotations

from typing import Any

from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing, items_of

CALLS = ("track", "page", "screen", "identify", "group", "alias")
MARKS = ("userId", "anonymousId", "anonymous_id", "messageId", "message_id", "originalTimestamp", "sentAt")


def recognises(payload: dict[str, Any]) -> bool:
    """A call by its type, or a named event with Segment's ids."""
    return payload.get("type") in CALLS or ("event" in payload and any(mark in payload for mark in MARKS))


def act(payload: dict[str, Any]) -> Act | Nothing:
    """One call."""
    call = payload.get("type") or "track"
    properties, context = values.table(payload.get("properties")), values.table(payload.get("context"))
    traits = values.table(context.get("traits"))
    said = values.Fields(payload)
    if call in ("page", "screen"):
        name = said.first(("name",)) or call
        more = {"title": name} if name != call and not values.text(properties.get("title")) else {}
        verb: Any = "browse"
        properties = {**properties, **more}
    elif call == "track":
        name = said.first(("event", "name"))
        verb = verbs.verb(str(name)) if name else None
    else:
        return Nothing(f"{str(call)[:80]!r} tells who somebody is, not what they did")
    return act_or_nothing(
        verb, name,
        id=said.first(("message_id",)),
        users=(said.first(("user_id",)), traits.get("userId"), traits.get("user_id")),
        anonymous=said.first(("anonymous_id",)) or traits.get("anonymousId"),
        clocks=_clocks(payload),
        session=properties.get("session_id") or context.get("sessionId") or payload.get("session_id"),
        fields=properties,
        items=items_of(properties),
    )  # fmt: skip


def _clocks(payload: dict[str, Any]) -> tuple[Any, ...]:
    """`timestamp` is corrected by the server; without it that correction, then each clock as it stands."""
    device, sent, server = (payload.get(name) for name in ("originalTimestamp", "sentAt", "receivedAt"))
    return (payload.get("timestamp"), values.corrected(server, sent, device), device, sent, server)
