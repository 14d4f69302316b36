"""The contracts as documents: what the types say, what the examples hold, and what would break somebody."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import orjson
import pytest

from deploy import worker
from featurestore import sessions
from streams import beats, codec, control, items, outcomes, schema, stages
from tests.test_client import prediction

DOCS = schema.FOLDER
PUBLISHED = Path(__file__).parent / "contracts" / "schemas"  # version 1 as it was published: never written anew
NAMES = tuple(schema.schemas())
KINDS = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "array": list, "object": dict,
         "null": type(None)}  # fmt: skip

INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def wrong(value: Any, shape: Any, root: Any) -> str | None:
    """Why a value does not fit a schema, None where it does: the words that ours use."""
    if "$ref" in shape:
        return wrong(value, root["$defs"][shape["$ref"].rpartition("/")[2]], root)
    if "anyOf" in shape and all(wrong(value, one, root) for one in shape["anyOf"]):
        return f"{value!r} is none of {shape['anyOf']}"
    if "enum" in shape and value not in shape["enum"]:
        return f"{value!r} is none of {shape['enum']}"
    kind = shape.get("type")
    if kind and (not isinstance(value, KINDS[kind]) or (isinstance(value, bool) and kind != "boolean")):
        return f"{value!r} is no {kind}"
    if isinstance(value, str) and not shape.get("minLength", 0) <= len(value) <= shape.get("maxLength", 1 << 30):
        return f"{value!r} is too short or too long"
    if shape.get("format") == "date-time" and not INSTANT.fullmatch(value):
        return f"{value!r} is no instant"
    if isinstance(value, (int, float)) and not shape.get("minimum", value) <= value <= shape.get("maximum", value):
        return f"{value!r} is out of range"
    if isinstance(value, list):
        return next((why for one in value if (why := wrong(one, shape.get("items", {}), root))), None)
    if isinstance(value, dict):
        if missing := [name for name in shape.get("required", ()) if name not in value]:
            return f"{missing} missing"
        fields = shape.get("properties", {})
        if why := next((w for n, one in value.items() if (w := wrong(one, fields.get(n, {}), root))), None):
            return why
        if "if" in shape and not wrong(value, shape["if"], root):
            return wrong(value, shape["then"], root)
    return None


def examples(name: str) -> list[bytes]:
    """The stored examples of a schema."""
    return (DOCS / "schemas" / "examples" / f"{name}.jsonl").read_bytes().splitlines()


def test_documents_are_what_the_types_say() -> None:
    """`python -m streams.schema` would change nothing."""
    for name, made in schema.schemas().items():
        assert (DOCS / "schemas" / f"{name}.json").read_bytes() == schema.written(made), "run python -m streams.schema"
    assert (DOCS / schema.ASYNCAPI).read_bytes() == schema.written(schema.asyncapi())


@pytest.mark.parametrize("name", NAMES)
def test_examples_fit(name: str) -> None:
    """Every stored example fits its schema and, of events and predictions, is read."""
    for line in examples(name):
        value = json.loads(line)
        assert wrong(value, schema.schemas()[name], schema.schemas()[name]) is None
        if name == "event":
            assert len(codec.decode(line)) == 1
        if name == "item":
            assert items.told(line).item_id == value["item_id"]
        if name == "control":
            assert msgspec.json.decode(line, type=control.Entry).kind == value["kind"]
        if name == "state":
            assert msgspec.json.decode(line, type=beats.Beat).worker == value["worker"]
        if name == "prediction":
            assert codec.decode_prediction(line).user_id == value["user_id"]


@pytest.mark.parametrize(
    "changes",
    [{"type": "look"}, {"user_id": ""}, {"ts": -1}, {"ts": "yesterday"}, {"price": "9"}, {"item_id": None},
     {"event_id": "e" * 65}, {"quantity": 1.5}, {"user_id": None}],
)  # fmt: skip
def test_schema_and_codec_refuse_alike(changes: dict[str, Any]) -> None:
    """What the codec makes a dead letter of, the schema refuses too."""
    good = {"event_id": "e1", "type": "view", "user_id": "u1", "ts": 1, "item_id": "i1"}
    shape = schema.event()
    assert wrong(good, shape, shape) is None
    assert wrong(good | changes, shape, shape) is not None
    with pytest.raises(codec.BadEvent):
        codec.decode(orjson.dumps(good | changes))


def test_what_is_written_fits() -> None:
    """A prediction as the worker encodes it, and a dead letter's headers."""
    shape = schema.prediction()
    assert wrong(json.loads(codec.encode_prediction(prediction(3))), shape, shape) is None
    record = msgspec.defstruct("Record", ["topic", "partition", "offset", "key", "value", "headers", "timestamp"])
    letter = codec.dead_letter(record("t", 0, 1, b"u", b"{", (), 5), codec.BadEvent("bad-json", "not JSON"))
    told, shape = {name: field.decode() for name, field in letter.headers}, schema.dead_letter()
    assert wrong(told, shape, shape) is None
    assert told.keys() <= shape["properties"].keys()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_breaks_those_who_know_the_published_version(name: str) -> None:
    """No field is removed, narrowed or renamed in its sense; adding is free. Else it is a new schema version."""
    published = json.loads((PUBLISHED / f"{name}.json").read_bytes())
    assert list(schema.breaking(published, schema.schemas()[name], written=name in ("event", "item"))) == []


def test_what_breaks_is_found() -> None:
    """Each kind of breaking change is named; what only adds is not."""
    old = schema.prediction()
    new = copy.deepcopy(old)
    new["properties"]["added"] = {"type": "string", "description": "New"}
    assert list(schema.breaking(old, new, written=False)) == []
    del new["properties"]["arm"]
    new["properties"]["none_probability"]["description"] = "That nothing is bought"
    new["properties"]["session_id"] = new["properties"]["session_id"] | {"type": "integer"}
    new["properties"]["reason"] = new["properties"]["reason"] | {"enum": ["model", "fallback", "popular"]}
    new["required"].remove("items")
    del new["$defs"]["Item"]["properties"]["rank"]
    assert list(schema.breaking(old, new, written=False)) == [
        "Item.rank is removed", 'session_id may now be {"type":"integer"}', "arm is removed",
        'reason may now be {"enum":["popular"]}', "none_probability means something else", "items is no longer certain",
    ]  # fmt: skip
    old, new = schema.event(), schema.event()
    new["properties"]["event_id"]["maxLength"] = 32
    new["required"].append("session_id")
    new["properties"]["user_id"]["maxLength"] = 1_024
    said = list(schema.breaking(old, new, written=True))
    assert [what.split(" {")[0] for what in said] == ["event_id no longer takes", "session_id is required now"]


def test_references_of_asyncapi_lead_somewhere() -> None:
    """Every `$ref` names a part of the document or a file beside it; every schema is used."""
    document = schema.asyncapi()
    found = re.findall(r'"\$ref": ?"([^"]+)"', json.dumps(document))
    for reference in found:
        if reference.startswith("#/"):
            at: Any = document
            for part in reference[2:].split("/"):
                at = at[part]
        else:
            assert (DOCS / reference).is_file()
    assert {f"./schemas/{name}.json" for name in NAMES} <= set(found)


def test_what_a_worker_tells_of_itself_is_what_the_schema_says() -> None:
    """Field by field: what is told is described, and what is described is told."""
    taken: Any = SimpleNamespace(
        parts={},
        settings=sessions.SessionSettings(),
        events=1,
        nothing=0,
        unkeyed=0,
        dead_letters=0,
        bot_rows={"rate": 3},
        bot_sessions={"rate": 1},
        busy=stages.Busy(),
    )
    scorer: Any = SimpleNamespace(latencies_ms=[1.0, 2.0], predictions=1, outcomes=outcomes.Outcomes(horizon_ms=5))
    models: Any = SimpleNamespace(current=SimpleNamespace(version="memory", holds=dict), swaps=0)
    told = worker.said("w", taken, scorer, models) | {"catalogue": {"items": 1}}
    shape = schema.state()
    assert told.keys() == shape["properties"].keys()
    assert wrong(json.loads(msgspec.json.encode(told)), shape, shape) is None


def test_entries_of_the_control_log_fit() -> None:
    """As the writer writes them."""
    shape = schema.control_()
    entry = control.Entry(id="1", kind="pause", at_ms=1, by="ann", data={"until_ms": 2})
    assert wrong(json.loads(msgspec.json.encode(entry)), shape, shape) is None
