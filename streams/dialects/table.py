"""The dialects that are known, and how each is recognised, taken apart and read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from streams.bad import BadEvent
from streams.dialects import analytics, cloudevents, files, foreign, ga4, metarank, segment, snowplow, values
from streams.dialects.foreign import Act, Arrival, Draft, Nothing


class Dialect(NamedTuple):
    """One dialect: pure functions of a parsed message."""

    name: str
    recognises: Callable[[Any], bool]
    act: Callable[[Any], Act | Nothing]
    split: Callable[[Any], list[Any]] = lambda payload: [payload]


# Asked in this order: first those whose marks no other dialect has.
TABLE = (
    Dialect("cloudevents", cloudevents.recognises, cloudevents.act),
    Dialect("snowplow", snowplow.recognises, snowplow.act),
    Dialect("ga4-export", ga4.recognises_row, ga4.act_of_row),
    Dialect("otto", files.recognises_otto, files.act_of_otto, files.split_otto),
    Dialect("rees46", files.recognises_rees46, files.act_of_rees46),
    Dialect("retailrocket", files.recognises_retailrocket, files.act_of_retailrocket),
    Dialect("yoochoose", files.recognises_yoochoose, files.act_of_yoochoose),
    Dialect("amplitude", analytics.recognises_amplitude, analytics.act_of_amplitude, analytics.split_amplitude),
    Dialect("ga4-mp", ga4.recognises_request, ga4.act_of_request, ga4.split_request),
    Dialect("metarank", metarank.recognises, metarank.act),
    Dialect("posthog", analytics.recognises_posthog, analytics.act_of_posthog),
    Dialect("mixpanel", analytics.recognises_mixpanel, analytics.act_of_mixpanel),
    Dialect("segment", segment.recognises, segment.act),
    Dialect("ga4-datalayer", ga4.recognises_layer, ga4.act_of_layer),
)
BY_NAME = {dialect.name: dialect for dialect in TABLE}
ALIASES = {
    "rudderstack": "segment",
    "ga4-bigquery": "ga4-export",
    "ga4-snowflake": "ga4-export",
    "ga4-gtag": "ga4-datalayer",
}
WHOLE = ("userId", "anonymousId", "context", "sentAt", "receivedAt", "sent_at")  # said of all events of a batch
NAMES = (*BY_NAME, *ALIASES, "ga4")


class Translation(NamedTuple):
    """What a foreign message becomes: per event its rows, why there is nothing to store, or what is wrong with it."""

    dialect: str
    parts: list[list[Draft] | Nothing | BadEvent]


def translate(payload: Any, arrival: Arrival, name: str | None = None) -> Translation | None:
    """A parsed message of another dialect in our terms; None where it is of none that we know.

    `name` says which it is; without it the message is recognised by its shape, or by its headers.
    """
    found = _taken_apart(payload, arrival, _among(name), forced=name is not None)
    if found is None:
        return None
    names = sorted({dialect.name for dialect, _ in found})
    parts = [_part(dialect, element, arrival, n) for n, (dialect, element) in enumerate(found)]
    return Translation(", ".join(names) or "empty", parts or [Nothing("it holds no event")])


def _among(name: str | None) -> tuple[Dialect, ...]:
    """The dialects that a name leaves; all of them without one."""
    if name is None:
        return TABLE
    if name == "ga4":
        return tuple(dialect for dialect in TABLE if dialect.name.startswith("ga4-"))
    return (BY_NAME[ALIASES.get(name, name)],)


def _taken_apart(
    payload: Any, arrival: Arrival, among: tuple[Dialect, ...], *, forced: bool, inner: bool = False
) -> list[tuple[Dialect, Any]] | None:
    """The events of a message, each with its dialect: a batch may mix them."""
    if isinstance(payload, list):
        layer = BY_NAME["ga4-datalayer"]
        return [(layer, payload)] if layer in among and ga4.recognises_layer(payload) else None
    if not isinstance(payload, dict):
        return None
    if (attributes := cloudevents.envelope(arrival.headers)) and not inner:
        return [(BY_NAME["cloudevents"], {**attributes, "data": payload})]
    if "value" in payload and (attributes := cloudevents.envelope(values.table(payload.get("headers")))):
        at = attributes.get("time") or payload.get("timestamp")  # a record as a tool prints it
        return [(BY_NAME["cloudevents"], {**attributes, "time": at, "data": payload["value"]})]
    batch = payload.get("batch")
    if isinstance(batch, list) and not inner:
        usual = BY_NAME["posthog" if "api_key" in payload else "segment"] if not forced else among[0]
        whole = {name: payload[name] for name in WHOLE if name in payload}
        events = [whole | e if isinstance(e, dict) else e for e in batch]
        taken = [_taken_apart(e, arrival, among, forced=forced, inner=True) or [(usual, e)] for e in events]
        return [part for parts in taken for part in parts]
    for nested in ("example", "message"):
        if isinstance(held := payload.get(nested), dict) and "specversion" in held and not inner:
            return _taken_apart(held, arrival, among, forced=forced, inner=True)
    found = next((dialect for dialect in among if dialect.recognises(payload)), among[0] if forced else None)
    return None if found is None else [(found, element) for element in found.split(payload)]


def _part(dialect: Dialect, element: Any, arrival: Arrival, n: int) -> list[Draft] | Nothing | BadEvent:
    try:
        if not isinstance(element, dict) and not (isinstance(element, list) and dialect.name == "ga4-datalayer"):
            raise BadEvent("schema", f"an event of {dialect.name} is a JSON object")
        act = dialect.act(element)
        return act if isinstance(act, Nothing) else foreign.drafts(act, arrival, n)
    except BadEvent as bad:
        return bad
