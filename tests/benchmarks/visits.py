"""Records of a shop whose people, items and queries come and go: nobody in it is known for ever."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import orjson

from deploy.demo import shop

RATE = 280  # events in a second of event time: half a million in half an hour
ACTIVE = 2_000  # people at once
VISIT = 12  # events of one visit, on average
BACK = 0.3  # visits of somebody who was here not long ago
NEW_ITEM = 1_000  # events until an item makes room for a new one
SEARCHES, UNHEARD = 0.06, 0.5  # share of events; share of those whose words nobody ever used before
LATE, TWICE, BAD = 0.01, 0.01, 0.001
START_MS = 1_770_000_000_000
STORED, REPEATED, REFUSED = range(3)  # what has to become of a message


def events(count: int) -> Iterator[tuple[int, bytes, bytes, int]]:
    """Event time, key and value of each message in order of arrival, and what has to become of it."""
    pick = random.Random(7)
    items = [item for shelf in shop.catalogue().values() for item in shelf]
    first = list(items)
    people = [[serial, pick.randrange(len(items)), 1 + int(pick.expovariate(1 / VISIT))] for serial in range(ACTIVE)]
    serial, made, before, kind = ACTIVE, len(items), (b"", b""), STORED
    for i in range(count):
        at_ms = START_MS + i * 1_000 // RATE
        if i % NEW_ITEM == 0:
            place, made = made % len(items), made + 1
            old = first[place]
            items[place] = shop.Item(f"new-{made}", f"{old.title} {made}", old.category, old.brand, old.price)
        place = pick.randrange(ACTIVE)
        who = people[place]
        who[1] = (who[1] + pick.choice((1, 1, 1, 2, -1))) % len(items)
        who[2] -= 1
        chance, item = pick.random(), items[who[1]]
        event: dict[str, Any] = {
            "event_id": f"{i:x}", "user_id": f"u-{who[0]}", "ts": at_ms - (60_000 if pick.random() < LATE else 0),
            "type": "view" if chance < 0.8 else "click" if chance < 0.9 else "cart", "item_id": item.item_id,
            "title": item.title, "category": item.category, "brand": item.brand, "price": item.price,
        }  # fmt: skip
        if pick.random() < SEARCHES:
            words = f"{item.title} {i:x}" if pick.random() < UNHEARD else item.category.lower()
            event = {k: event[k] for k in ("event_id", "user_id", "ts")} | {"type": "search", "query": words}
        key, value = event["user_id"].encode(), orjson.dumps(event)
        if pick.random() < TWICE and i:
            key, value = before
            kind = REPEATED if kind == STORED else kind
        elif pick.random() < BAD:
            value, kind = value[:-9], REFUSED
        else:
            kind = STORED
        before = key, value
        yield at_ms, key, value, kind
        if who[2] <= 0:
            serial += 1
            back = pick.random() < BACK
            people[place] = [serial - pick.randrange(1, 20_000) if back else serial, who[1],
                             1 + int(pick.expovariate(1 / VISIT))]  # fmt: skip
