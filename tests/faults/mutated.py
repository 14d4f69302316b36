"""Messages as broken producers send them, from a seed; how many events each holds is told by Python's own JSON."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

LIMIT = 256 * 1024
MOST = 1_000_000  # what fits the topic
USERS = 5_000
TYPES = ("browse", "view", "click", "search", "cart", "remove", "checkout", "purchase", "impression")
ODD: tuple[Any, ...] = (None, True, 0, -1, 1.5, 1e300, 2**70, "", " ", "\x00", "ü" * 700, [], {}, [[]], {"a": [1]})


class Message(NamedTuple):
    """One message: its key, its bytes, and how many events it holds."""

    key: bytes
    value: bytes
    events: int


def messages(seed: int, count: int, now_ms: int) -> Iterator[Message]:
    """So many messages; a twentieth repeats one sent shortly before, as a producer's retry does."""
    chance = random.Random(seed)
    recent: list[Message] = []
    for n in range(count):
        if recent and chance.random() < 0.05:
            yield chance.choice(recent)
            continue
        made = _message(chance, n, now_ms)
        recent = [*recent[-50:], made]
        yield made


def _message(chance: random.Random, n: int, now_ms: int) -> Message:
    user = f"user-{chance.randrange(USERS)}"
    size = chance.choice((1, 1, 1, 1, 2, 5))
    whole: Any = [_event(chance, f"{n}.{k}", user, now_ms) for k in range(size)]
    whole = whole[0] if size == 1 and chance.random() < 0.8 else whole
    plain = json.dumps(whole, ensure_ascii=chance.random() < 0.5).encode()
    value = plain
    for _ in range(chance.choice((0, 0, 1, 1, 2, 4))):
        value = chance.choice(STEPS)(chance, value)
    value = value[:MOST]
    if strangers(value, user):  # a producer keys by the user that it sends; other systems have a test of their own
        value = plain
    return Message(user.encode(), value, count(value))


def _event(chance: random.Random, name: str, user: str, now_ms: int) -> dict[str, Any]:
    return {
        "event_id": f"e{name}", "type": chance.choice(TYPES), "user_id": user, "ts": now_ms - chance.randrange(60_000),
        "item_id": f"item-{chance.randrange(500)}", "title": "Kestrel trail shoes 靴", "price": 19.5, "quantity": 2,
    }  # fmt: skip


def _flip(chance: random.Random, value: bytes) -> bytes:
    at = chance.randrange(len(value) or 1)
    return value[:at] + bytes([chance.randrange(256)]) + value[at + 1 :]


def _cut(chance: random.Random, value: bytes) -> bytes:
    first, last = sorted((chance.randrange(len(value) + 1), chance.randrange(len(value) + 1)))
    return value[:first] + value[last:] if chance.random() < 0.5 else value[:last]


def _insert(chance: random.Random, value: bytes) -> bytes:
    at = chance.randrange(len(value) + 1)
    more = chance.choice((b"\x00", b"\xff\xfe", b"{", b"]", b",", b'"', b"\\ud800", b"NaN", b"9" * 400, b"[" * 3_000))
    return value[:at] + more + value[at:]


def _repeat(chance: random.Random, value: bytes) -> bytes:
    first, last = sorted((chance.randrange(len(value) + 1), chance.randrange(len(value) + 1)))
    times = min(chance.choice((1, 1, 1, 900)), 1 + 4 * LIMIT // (last - first or 1))  # too large, not without end
    return value[:last] + value[first:last] * times + value[last:]


def _odd(chance: random.Random, value: bytes) -> bytes:
    """Another value, name or shape where there is JSON still."""
    try:
        whole = json.loads(value)
    except (ValueError, RecursionError):
        return value
    found = chance.choice(whole) if isinstance(whole, list) and whole else whole
    if isinstance(found, dict) and found:
        name = chance.choice([n for n in found if n != "user_id"] or [*found])
        act = chance.randrange(4)
        if act == 0:
            found.pop(name)
        elif act == 1:
            found[name.upper()] = found.pop(name)
        elif act == 2:
            found[f"own-{name}"] = chance.choice(ODD)
        else:
            found[name] = chance.choice(ODD)
    elif isinstance(whole, list):
        whole.append(chance.choice(ODD))
    return json.dumps(whole).encode()


STEPS: tuple[Callable[[random.Random, bytes], bytes], ...] = (_flip, _cut, _insert, _repeat, _odd, _odd, _odd)


def count(value: bytes) -> int:
    """Events of a message: an array's elements, else one."""
    whole = parsed(value)
    return len(whole) if isinstance(whole, list) else 1


def strangers(value: bytes, user: str) -> bool:
    """Whether it holds an event of somebody else, or with `event` an act as another system tells it."""
    whole = parsed(value)
    held = whole if isinstance(whole, list) else [whole]
    return any(isinstance(one, dict) and ("event" in one or one.get("user_id") not in (user, None)) for one in held)


def parsed(value: bytes) -> Any:
    """What strict JSON says, None where it is none."""
    if len(value) > LIMIT:
        return None
    try:
        whole = json.loads(value.decode(), parse_constant=_refused, parse_float=_finite, object_pairs_hook=_told)
        json.dumps(whole, ensure_ascii=False).encode()  # half a surrogate is no text
    except (ValueError, RecursionError):
        return None
    return whole


def _told(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; what a later value of the same name hides must be text too."""
    for _, value in pairs:
        if isinstance(value, str):
            value.encode()
    return dict(pairs)


def _refused(word: str) -> None:
    raise ValueError(word)


def _finite(text: str) -> float:
    number = float(text)
    if number in (float("inf"), float("-inf")):
        raise ValueError(text)
    return number
