"""Broken payloads of every dialect: none stops a worker, none is lost without a word.

CI reads 4,000 of them; `NEXTCLICK_MUTATIONS=100000 python -m pytest tests/test_mutations.py` as many as one likes.
"""

from __future__ import annotations

import copy
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from deploy import replay
from featurestore.events import Event
from streams import codec, schema
from streams.codec import BadElement, BadEvent
from tests.test_dialects import NOW_MS, PAYLOADS, track

COUNT = int(os.environ.get("NEXTCLICK_MUTATIONS", "4000"))
SEED = 20_261
JUNK: tuple[Any, ...] = (
    None, True, "", "null", "undefined", "NaN", -1, 0, 1e308, -1e-320, 2**63, 2**64, 10**30, "😀" * 300, "x" * 3_000,
    "\x00", "\u202e", [], {}, [[]], {"a": {}}, [None], "2026-13-45", "1772359200500", "ann@example.org", "{\"a\":1}",
    {"value": {"string_value": 7}}, [{"key": 1, "value": None}],
)  # fmt: skip


def payloads() -> list[tuple[bytes, str | None]]:
    """Good messages with the dialect to read them by: the folder's where it is there, and some of our own."""
    ours = (schema.FOLDER / "schemas" / "examples" / "event.jsonl").read_bytes().splitlines()
    found: list[tuple[bytes, str | None]] = [(line, None) for line in ours]
    found += [(json.dumps(track()).encode(), None), (b"[" + b",".join(ours) + b"]", None)]
    for file in sorted(PAYLOADS.glob("*.*")):
        if file.suffix in (".jsonl", ".tsv", ".csv"):
            found += [(value, None) for _, value in replay.values(file)]
    return found


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every container of a JSON value with each of its keys."""
    keys = list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from places(value[key])


def junk(rng: random.Random, value: bytes) -> bytes:
    """One to three fields of a JSON value replaced, removed, renamed or nested; bytes where it is none."""
    try:
        made = json.loads(value)
    except ValueError:
        return bytes_of(rng, value)
    for _ in range(rng.randint(1, 3)):
        all_places = list(places(made))
        if not all_places:
            return bytes_of(rng, value)
        box, key = rng.choice(all_places)
        act = rng.randrange(5)
        if act == 0:
            del box[key]
        elif act == 1 and isinstance(box, dict):
            box[rng.choice(["id", "event", "type", "properties", "ts", "items", str(key).upper()])] = box.pop(key)
        elif act == 2:
            box[key] = [box[key]] * rng.randint(2, 3)
        elif act == 3:
            box[key] = {str(key): box[key]}
        else:
            box[key] = copy.deepcopy(rng.choice(JUNK))  # what lies in there may be mutated next
    return json.dumps(made, ensure_ascii=rng.random() < 0.5).encode(errors="surrogatepass")


def bytes_of(rng: random.Random, value: bytes) -> bytes:
    """Bytes flipped, cut out, doubled, cut off, or mixed with others."""
    made = bytearray(value)
    for _ in range(rng.randint(1, 4)):
        if not made:
            break
        at = rng.randrange(len(made))
        act = rng.randrange(5)
        if act == 0:
            made[at] = rng.randrange(256)
        elif act == 1:
            del made[at : at + rng.randint(1, 30)]
        elif act == 2:
            made[at:at] = made[at : at + rng.randint(1, 60)]
        elif act == 3:
            del made[at:]
        else:
            made[at:at] = rng.choice([b'"', b"{", b"[", b"\\", b"\xff\xfe", b"\t", b"NaN", b"1e999", b"\\ud800"])
    return bytes(made)


MUTATIONS: tuple[Callable[[random.Random, bytes], bytes], ...] = (junk, junk, bytes_of)


def judged(value: bytes, dialect: str | None) -> str:
    """What becomes of a message; every event of it can go on through the lake and back."""
    try:
        message = codec.read(value, key=b"u", record_ms=NOW_MS, dialect=dialect)
    except BadEvent as bad:
        return "dead letter" if str(bad) else "a dead letter without a reason"
    for element in message.elements:
        if isinstance(element, Event):
            assert codec.decode(codec.encode_event(element)) == [element]
            assert -(2**63) <= (element.quantity or 0) < 2**63
        else:
            assert isinstance(element, BadElement)
            assert element.message
    assert message.elements or message.nothing or json.loads(value) == [], "lost in silence"
    try:
        assert codec.decode(value, key=b"u", record_ms=NOW_MS) == message.elements or dialect
    except BadEvent:
        assert len(message.elements) == 1 or dialect
    return "events" if any(isinstance(e, Event) for e in message.elements) else "bad" if message.elements else "nothing"


@pytest.mark.timeout(3_600)
def test_no_mutation_stops_or_is_lost() -> None:
    """Each ends as events, as a dead letter that says why, or as recognised with nothing to store."""
    rng, seen = random.Random(SEED), Counter[str]()
    good = payloads()
    for number, (value, dialect) in enumerate(itertools.islice(itertools.cycle(good), COUNT)):
        broken = rng.choice(MUTATIONS)(rng, value)
        try:
            seen[judged(broken, dialect)] += 1
        except Exception as error:
            error.add_note(f"mutation {number} of seed {SEED}: {broken[:2_000]!r}")
            raise
    assert seen.keys() == {"events", "bad", "nothing", "dead letter"}
    assert seen.total() == COUNT
    print(dict(seen))
