"""The messages' JSON Schemas and the AsyncAPI document, generated from the types; `python -m streams.schema`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import orjson

from featurestore.events import NEEDS_ITEM
from streams import beats, codec, control, items, topics

DRAFT = "https://json-schema.org/draft/2020-12/schema"
FOLDER = Path(__file__).parent.parent / "docs"
ASYNCAPI = "asyncapi.json"

Schema = dict[str, Any]

# What the fields mean. A sentence that changes its sense is a new schema version: the compatibility test stops it.
MEANING: dict[str, dict[str, str]] = {
    "event": {
        "event_id": "The event's own id; the same id of the same user counts once",
        "type": "What was done",
        "user_id": "Who did it, pseudonymous ids included; also the message's key",
        "ts": "When it was done: RFC 3339 with an offset, or epoch milliseconds",
        "session_id": "The producer's own session; derived by an inactivity gap where absent",
        "item_id": "What was acted on",
        "title": "The item's name",
        "category": "The item's or the listing's category as a path, `Sports > Shoes`",
        "brand": "The item's brand",
        "price": "The price of one",
        "currency": "The price's currency, ISO 4217",
        "quantity": "How many",
        "position": "The item's place in the list it was acted on in, as the producer counts",
        "query": "What was searched for; absent or empty on a search: withheld",
        "prediction_id": "The prediction that led here",
        "consent": "False: stored and counted, never trained on, never scored",
    },
    "prediction": {
        "prediction_id": "The same for the same trigger and model version; the numbers may differ after a crash",
        "user_id": "Whom it is about; also the message's key",
        "session_id": "The session that was touched",
        "trigger": "The session's newest event; a lower offset of the same topic and partition is older news",
        "event_ts": "The trigger's event time",
        "predicted_at": "When the worker made it",
        "expires_at": "The trigger's event time plus the horizon: afterwards it says nothing any more",
        "model_version": "What made it, as `nextclick models list` names it",
        "arm": "Which of the models that answer side by side made it",
        "reason": "`model`: a trained version; `fallback`: the live memory alone",
        "categories": "Where the next engagement lies, most probable first",
        "items": "The next different item engaged with within the horizon, most probable first",
        "none_probability": "That no different item is engaged with within the horizon",
        "purchase_probability": "That something is bought within that head's own horizon; null until it is trained",
        "because": "Which events of the session counted; only when asked for",
        "schema_version": "Within a version fields are only added",
    },
    "item": {
        "item_id": "The item; also the message's key",
        "title": "The item's name",
        "category": "Its category as a path, `Sports > Shoes`",
        "brand": "Its brand",
        "price": "The price of one",
        "currency": "The price's currency, ISO 4217",
        "available": "False: not proposed until it is told anew, as after a message without a value",
        "ts": "Since when it is in the catalogue: RFC 3339 or epoch milliseconds; Kafka's timestamp where absent",
    },
    "control": {
        "id": "The entry's own; one that a writer's retry left twice counts once",
        "kind": "A command (`cadence.set`, `model.promote`, `pause`, ...) or a fact (`champion.changed`, ...)",
        "at_ms": "When it was said, epoch milliseconds by the writer's clock",
        "by": "Who said it: a person, or the process",
        "data": "What its kind needs; an entry that lacks it is passed over, as is a kind that is not known",
    },
    "state": {
        "worker": "The worker's name; also the message's key",
        "at_ms": "When it was told, epoch milliseconds",
        "partitions": "The next offset to read of each that it owns, named `<topic>@<log id>|<number>`",
        "lag": "Records between what was read and the ends of the logs",
        "watermark_ms": "Event time up to which the furthest of its partitions was seen",
        "horizon_ms": "How far ahead its predictions look, event time",
        "lateness_ms": "How late an event may come, event time",
        "open_sessions": "Sessions that may still grow",
        "events": "Events read since it started, as all counts below where nothing else is said",
        "nothing": "Messages that hold no event",
        "stored": "Rows of its partitions since their logs began",
        "duplicates": "Repeated event ids of its partitions since their logs began",
        "rejected": "Events of its partitions that could not be taken since their logs began",
        "missing": "Offsets that Kafka had dropped before they were read",
        "unkeyed": "Events whose record was not keyed by their user",
        "dead_letters": "Messages kept as dead letters",
        "predictions": "Predictions acknowledged by the broker",
        "version": "The version that it answers with; `memory` before there is one",
        "swaps": "Changes to another version",
        "outcomes": "What its predictions came to, as sums that add up across workers",
        "catalogue": "Items that are proposed, withdrawn, waiting for their vectors, refused",
        "memory": "What its model holds: `words`, `items`, `sessions` to compare with, `texts` with their vectors",
        "bots": "Events left out and sessions found since no person makes them: `rows`, `sessions`, each by reason",
        "busy_s": "Seconds spent by stage",
        "latency_ms": "From a record's arrival to its acknowledged prediction at lag 0: p50 and p99 of the newest",
    },
    "dead-letter": {
        "__connect.errors.topic": "Where the message stood",
        "__connect.errors.partition": "In which partition",
        "__connect.errors.offset": "At which offset",
        "__connect.errors.stage": "`VALUE_CONVERTER`: it could not be read; `TASK_PUT`: read and not accepted",
        "__connect.errors.exception.class.name": "As Kafka Connect writes it",
        "__connect.errors.exception.message": "What is wrong, the field first, and the remedy",
        "x-reason": "Why, in a word",
        "x-timestamp": "The message's Kafka timestamp, epoch milliseconds",
        "x-bad-elements": "Of an array: the places of the bad events, like `0,3-5`; the others are stored",
    },
}  # fmt: skip


def event() -> Schema:
    """An event as one JSON object; a message holds one or an array of them."""
    made = _described(_of(codec._Wire), "event")
    made["title"], made["description"] = "Event", "One thing one person did; unknown fields are kept, never an error"
    needs = {"anyOf": [{"required": [name], "properties": {name: _SAID}} for name in ("item_id", "category")]}
    made["if"] = {"properties": {"type": {"enum": sorted(NEEDS_ITEM)}}}
    made["then"] = needs
    return made


_SAID: Schema = {"type": "string", "minLength": 1}


def item() -> Schema:
    """An item of the catalogue as one JSON object."""
    made = _described(_of(items.Wire), "item")
    made["title"], made["description"] = "Item", "What is on sale; unknown fields are passed over, never an error"
    return made


def prediction() -> Schema:
    """What is read from the predictions topic; readers ignore fields that they do not know."""
    made = _described(_of(codec.Prediction), "prediction")
    for name in ("event_ts", "predicted_at", "expires_at"):
        made["properties"][name] |= {"type": "string", "format": "date-time"}
    return made


def control_() -> Schema:
    """An entry of the control log, by which operators and processes talk to each other."""
    made = _described(_of(control.Entry), "control")
    return made | {"title": "Entry", "description": "A command or a fact; the log's fold is what every process goes by"}


def state() -> Schema:
    """A worker's beat."""
    return _described(_of(beats.Beat), "state") | {"description": "What a worker tells of itself once a second"}


def dead_letter() -> Schema:
    """The headers of a dead letter; its key, value and timestamp are those of the message."""
    reasons = list(codec.Reason.__args__)  # type: ignore[attr-defined]
    names = MEANING["dead-letter"]
    properties: Schema = {name: {"type": "string"} for name in names}
    properties["x-reason"] = {"enum": sorted(reasons)}
    made = {
        "title": "DeadLetterHeaders", "type": "object", "properties": properties,
        "description": "Why a message could not be taken, beside the headers that it came with",
        "required": [name for name in names if name != "x-bad-elements"],
    }  # fmt: skip
    return _described(made, "dead-letter")


def _of(kind: Any) -> Schema:
    made: Schema = msgspec.json.schema(kind)
    named = made.pop("$ref").rpartition("/")[2]
    top: Schema = made["$defs"].pop(named)
    return top | ({"$defs": made["$defs"]} if made["$defs"] else {})


def _described(schema: Schema, name: str) -> Schema:
    told = MEANING[name]
    properties = {field: _with(shape, told[field]) for field, shape in schema["properties"].items()}
    return {"$schema": DRAFT, "$id": f"{name}.json"} | schema | {"properties": properties}


def _with(shape: Schema, description: str) -> Schema:
    return {"description": description} | shape


def schemas() -> dict[str, Schema]:
    """Every schema by its name."""
    return {"event": event(), "item": item(), "prediction": prediction(), "dead-letter": dead_letter(),
            "control": control_(), "state": state()}  # fmt: skip


def asyncapi() -> Schema:
    """The topics with their messages and keys (AsyncAPI 3.0); `send` and `receive` are what nextclick does."""
    names, shapes = topics.Topics(), topics.shapes(topics.Topics())
    channels, operations, messages = {}, {}, {}
    for name, topic, action, summary in (
        ("events", names.events[0], "receive", "Events of a shop, keyed by their user"),
        (
            "items",
            names.items,
            "receive",
            "The catalogue, keyed by item: compacted; without a value an item is withdrawn",
        ),
        ("predictions", names.predictions, "send", "What each person is about to be interested in; upsert by user"),
        ("deadLetters", names.dead_letters, "send", "Messages that could not be taken, with the reason"),
        ("control", names.control, "receive", "Commands and facts in one order, kept for ever; written by us as well"),
        ("state", names.state, "send", "How each worker is, once a second; the newest by worker"),
    ):
        key = {"items": "The item_id", "state": "The worker's name"}.get(name, "The user_id")
        messages[name] = _message(name, {"type": "string", "description": key})
        channels[name] = {
            "address": topic, "description": summary,
            "messages": {name: {"$ref": f"#/components/messages/{name}"}},
            "bindings": {"kafka": {"partitions": shapes[topic].partitions, "bindingVersion": "0.5.0"}},
        }  # fmt: skip
        operations[f"{action}{name[0].upper()}{name[1:]}"] = {
            "action": action, "channel": {"$ref": f"#/channels/{name}"}, "summary": summary,
            "messages": [{"$ref": f"#/channels/{name}/messages/{name}"}],
        }  # fmt: skip
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "nextclick", "version": f"{codec.SCHEMA_VERSION}.0.0",
                 "description": "Events in, calibrated predictions out; the topics' names are settings"},
        "defaultContentType": "application/json",
        "servers": {"kafka": {"host": "localhost:9092", "protocol": "kafka"}},
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages},
    }  # fmt: skip


def _message(name: str, key: Schema) -> Schema:
    made: Schema = {"contentType": "application/json", "bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}}}
    if name == "events":
        one = {"$ref": "./schemas/event.json"}
        return made | {"payload": {"oneOf": [one, {"type": "array", "items": one}]}}
    if name == "control":  # without a key
        return {"contentType": "application/json", "payload": {"$ref": "./schemas/control.json"}}
    if name != "deadLetters":
        return made | {"payload": {"$ref": f"./schemas/{name.removesuffix('s')}.json"}}
    key = {"description": "The message's own key"}
    return {"bindings": {"kafka": {"key": key, "bindingVersion": "0.5.0"}},
            "headers": {"$ref": "./schemas/dead-letter.json"}, "payload": True}  # fmt: skip


# ---------------------------------------------------------------- what would break whom


def breaking(old: Schema, new: Schema, *, written: bool) -> Iterator[str]:
    """What of a new schema breaks those who know the old one, in words; nothing where it only adds.

    `written`: others write such messages, and what they write must stay acceptable; else they read them, and what they
    rely on must stay there.
    """
    olds, news = old.get("$defs", {}), new.get("$defs", {})
    for name in olds:
        if name in news:
            yield from (f"{name}.{what}" for what in _fields(olds[name], news[name], written))
        else:
            yield f"{name} is gone"
    yield from _fields(old, new, written)


def _fields(old: Schema, new: Schema, written: bool) -> Iterator[str]:
    before, after = old.get("properties", {}), new.get("properties", {})
    for name, shape in before.items():
        if name not in after:
            yield f"{name} is removed"
        elif shape.get("description") != after[name].get("description"):
            yield f"{name} means something else"
        else:
            was, now = list(_variants(shape)), list(_variants(after[name]))
            lost = [v for v in (was if written else now) if not any(_takes(w, v) for w in (now if written else was))]
            if lost:
                yield f"{name} {'no longer takes' if written else 'may now be'} {orjson.dumps(lost[0]).decode()}"
    required, needed = set(old.get("required", ())), set(new.get("required", ()))
    changed = needed - required if written else required - needed
    yield from (f"{name} is {'required now' if written else 'no longer certain'}" for name in sorted(changed))


def _variants(shape: Mapping[str, Any]) -> Iterator[Schema]:
    """The alternatives of a field's value, each one word of an enumeration."""
    for one in shape.get("anyOf", [shape]):
        plain = {k: v for k, v in one.items() if k not in ("description", "default", "title")}
        if "enum" in plain:
            yield from ({"enum": [word]} for word in plain["enum"])
        else:
            yield plain


def _takes(wide: Schema, narrow: Schema) -> bool:
    """Whether every value of the one is a value of the other."""
    for name, limit in wide.items():
        told = narrow.get(name)
        if name in ("maximum", "maxLength"):
            fits = told is not None and told <= limit
        elif name in ("minimum", "minLength"):
            fits = told is not None and told >= limit
        else:
            fits = told == limit
        if not fits:
            return False
    return True


def write(folder: Path = FOLDER) -> None:
    """The documents as files."""
    (folder / "schemas").mkdir(parents=True, exist_ok=True)
    for name, schema in schemas().items():
        (folder / "schemas" / f"{name}.json").write_bytes(written(schema))
    (folder / ASYNCAPI).write_bytes(written(asyncapi()))


def written(document: Schema) -> bytes:
    """A document as its file holds it."""
    return orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


if __name__ == "__main__":
    write()
