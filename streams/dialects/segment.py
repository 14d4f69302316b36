"""Segment and RudderStack: track, page and screen calls, alone or as a batch."""

from __future__ import annotations

from typing import Any

from streams.dialects import values, verbs
from streams.dialects.foreign import Act, Nothing, act_or_nothing, items_of

CALLS = ("track", "page", "screen", "identify", "group", "alias")
MARKS = ("userId", "anonymousId", "anonymous_id", "messageId", "message_id", "originalTimestamp", "sentAt")

ENVELOPE = frozenset({
    "id", "type", "event", "eventtext", "messageid", "userid", "anonymousid", "timestamp", "originaltimestamp",
    "sentat", "receivedat", "uuidts", "channel", "context", "integrations", "traits", "version", "writekey", "rudderid",
})  # fmt: skip


def recognises(payload: dict[str, Any]) -> bool:
    """A call by its type, or a named event with Segment's ids."""
    return payload.get("type") in CALLS or ("event" in payload and any(mark in payload for mark in MARKS))


def act(payload: dict[str, Any]) -> Act | Nothing:
    """One call."""
    call = payload.get("type") or "track"
    said, context = values.Fields(payload), values.table(payload.get("context"))
    traits = values.table(context.get("traits"))
    properties = values.table(payload["properties"]) if "properties" in payload else _columns(payload)
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
        id=said.first(("message_id",)) or (None if "properties" in payload else payload.get("id")),
        users=(said.first(("user_id",)), traits.get("userId"), traits.get("user_id")),
        anonymous=said.first(("anonymous_id",)) or traits.get("anonymousId"),
        clocks=_clocks(said),
        session=properties.get("session_id") or context.get("sessionId") or payload.get("session_id"),
        agent=context.get("userAgent") or payload.get("context_user_agent"),
        fields=properties,
        items=items_of(properties),
    )  # fmt: skip


def _columns(payload: dict[str, Any]) -> dict[str, Any]:
    """A warehouse's row has its properties beside the envelope."""
    return {k: v for k, v in payload.items() if values.plain(k) not in ENVELOPE and not k.startswith("context_")}


def _clocks(said: values.Fields) -> tuple[Any, ...]:
    """`timestamp` is corrected by the server; without it that correction, then each clock as it stands."""
    stamp, device, sent, server = (
        said.first((name,), lambda value: value)
        for name in ("timestamp", "original_timestamp", "sent_at", "received_at")
    )
    return (stamp, values.corrected(server, sent, device), device, sent, server)
