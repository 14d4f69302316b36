"""Counts that learn from every event: transitions, popularity, neighbours, and what is in the session already."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from safetensors.numpy import load_file, save_file

from featurestore.events import ENGAGED, Event, Row
from trainer.neighbours import Neighbours

HALF_LIFE_MS = 24 * 3_600_000  # of popularity
FOLLOWERS = 64  # kept per item or category, the most counted
CANDIDATES = 100
RECENT = 20  # rows of a session that evidence is sought for
WIDTH = 5  # kinds of evidence


class Known(msgspec.Struct, array_like=True):
    """What is known of an item, as its newest event told."""

    title: str | None
    category: str | None
    brand: str | None
    price: float | None


def engaged_items(rows: list[Row]) -> list[str]:
    """The items a session engaged with in order, repeats in a row collapsed."""
    items: list[str] = []
    for row in rows:
        item = row.event.item_id
        if item and row.event.type in ENGAGED and (not items or items[-1] != item):
            items.append(item)
    return items


def token(row: Row) -> str:
    """What a row adds to the sequence of a session: an item, else a listing, a query, or what was done."""
    event = row.event
    if event.item_id:
        return event.item_id
    if event.category:
        return "c:" + event.category
    return "q:" + event.query.lower().strip() if event.query else "t:" + event.type


def digest(row: Row) -> str:
    """Names a row's session without naming its user: what a version ships."""
    return hashlib.blake2b(f"{row.event.user_id}|{row.session_id}".encode(), digest_size=8).hexdigest()


def current_item(rows: list[Row]) -> str | None:
    """The item that a session is at: what comes next is a different one."""
    return next((r.event.item_id for r in reversed(rows) if r.event.item_id and r.event.type in ENGAGED), None)


class Memory:
    """A fold over rows with the offsets it has seen; what is below them changes nothing."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int], int] = {}
        self.items: dict[str, Known] = {}
        self.follows: dict[str, dict[str, float]] = {}  # token → item → count
        self.popular: dict[str, tuple[float, int]] = {}  # item → (decayed count, at_ms)
        self.by_category: dict[str, dict[str, float]] = {}
        self.neighbours = Neighbours()
        self.watchers: list[set[str]] = []
        self._top: list[str] = []
        self._top_ms = 0

    def watch(self) -> set[str]:
        """A set into which the items go that change or are new from now on; whoever asked empties it."""
        self.watchers.append(set())
        return self.watchers[-1]

    def learn(self, rows: list[Row]) -> int:
        """Fold rows in order; returns how many were new."""
        fresh, floor = 0, dict(self.seen)
        for row in rows:
            origin = row.origin
            place = (origin.topic, origin.partition)
            if origin.offset < floor.get(place, 0):
                continue
            self.take(row)
            fresh += 1
        self.note(rows)
        return fresh

    def note(self, rows: list[Row]) -> None:
        """Remember that these rows were seen."""
        for row in rows:
            place = (row.origin.topic, row.origin.partition)
            self.seen[place] = max(self.seen.get(place, 0), row.origin.offset + 1)

    def take(self, row: Row) -> None:
        """Fold one row, whatever its offset; `learn` is what remembers offsets."""
        event, word = row.event, token(row)
        if not event.consent:
            return
        session = digest(row)
        item = event.item_id
        if item:
            self._know(item, event)
            if event.type in ENGAGED:
                count, at_ms = self.popular.get(item, (0.0, event.ts_ms))
                newest = max(at_ms, event.ts_ms)  # rows come by partition, not by time
                count = _decayed(count, newest - at_ms) + _decayed(1.0, newest - event.ts_ms)
                self.popular[item] = (count, newest)
                if event.category:
                    _count(self.by_category, event.category, item, 1.0)
                for age, before in enumerate(self.neighbours.recent(session, 4)):
                    if before != item:
                        _count(self.follows, before, item, 0.6**age)
        self.neighbours.take(session, word, item is not None, event.ts_ms)

    def _know(self, item: str, event: Event) -> None:
        """The newest value of each field; what an event leaves out is kept."""
        old = self.items.get(item)
        if old is None:
            self.items[item] = Known(event.title, event.category, event.brand, event.price)
            for watcher in self.watchers:
                watcher.add(item)
            return
        new = (event.title or old.title, event.category or old.category, event.brand or old.brand)
        price = event.price if event.price is not None else old.price
        if new != (old.title, old.category, old.brand) or price != old.price:
            self.items[item] = Known(*new, price)
            for watcher in self.watchers:
                watcher.add(item)

    def evidence(self, rows: list[Row], at_ms: int, also: Iterable[str] = ()) -> dict[str, list[float]]:
        """Candidate items of a session, never the current: [transition, category, in session, popularity, neighbours].

        `also` are candidates that somebody else proposes.
        """
        words = list(dict.fromkeys(token(row) for row in reversed(rows[-RECENT:])))[:10]
        mine = engaged_items(rows)
        found: dict[str, list[float]] = {}
        for age, word in enumerate(words):
            _add(found, 0, self.follows.get(word, {}), 0.7**age, 5.0)
        category = next((r.event.category for r in reversed(rows) if r.event.category), None)
        if category:
            _add(found, 1, self.by_category.get(category, {}), 1.0, 20.0)
        for age, item in enumerate(reversed(mine[-10:])):
            kept = found.setdefault(item, [0.0] * WIDTH)
            kept[2] = max(kept[2], 0.8**age)
        if len(found) < CANDIDATES:
            for item in self.top(at_ms):
                found.setdefault(item, [0.0] * WIDTH)
        for item, share in self.neighbours.evidence(words, digest(rows[-1]), at_ms).items():
            found.setdefault(item, [0.0] * WIDTH)[4] = share
        for item in also:
            found.setdefault(item, [0.0] * WIDTH)
        if mine:
            found.pop(mine[-1], None)
        for item, values in found.items():
            count, then_ms = self.popular.get(item, (0.0, at_ms))
            values[3] = _decayed(count, at_ms - then_ms)
        return found

    def score(self, rows: list[Row], at_ms: int) -> dict[str, float]:
        """One unnormalised score a candidate: what answers before the first version is trained."""
        return {
            item: follow + 0.3 * category + 0.15 * again + 1e-4
            for item, (follow, category, again, _, _) in self.evidence(rows, at_ms).items()
        }

    def top(self, at_ms: int, n: int = CANDIDATES) -> list[str]:
        """The most popular items just now; sorted anew once an hour of event time."""
        if self._top and abs(at_ms - self._top_ms) < 3_600_000:
            return self._top[:n]
        now = sorted(self.popular.items(), key=lambda kv: -_decayed(kv[1][0], at_ms - kv[1][1]))
        self._top, self._top_ms = [item for item, _ in now[:CANDIDATES]], at_ms if len(now) >= CANDIDATES else 0
        return self._top[:n]

    def save(self, directory: Path) -> None:
        """Write `memory.json` and `memory.safetensors`."""
        near = self.neighbours.state()
        save_file(near.pop("arrays"), directory / "memory.safetensors")
        (directory / "memory.json").write_bytes(msgspec.json.encode({**self.state(), "neighbours": near}))

    @classmethod
    def load(cls, directory: Path) -> Memory:
        """What `save` wrote."""
        state: dict[str, Any] = msgspec.json.decode((directory / "memory.json").read_bytes())
        memory = cls()
        memory.seen = {(t, p): o for t, p, o in state["seen"]}
        memory.items = {k: Known(*v) for k, v in state["items"].items()}
        memory.follows = state["follows"]
        memory.popular = {k: (v[0], v[1]) for k, v in state["popular"].items()}
        memory.by_category = state["by_category"]
        near = state["neighbours"]
        memory.neighbours = Neighbours.of(near["names"], near["next"], load_file(directory / "memory.safetensors"))
        return memory

    def state(self) -> dict[str, Any]:
        """The counts as plain values."""
        return {
            "seen": [[t, p, o] for (t, p), o in self.seen.items()],
            "items": {k: [v.title, v.category, v.brand, v.price] for k, v in self.items.items()},
            "follows": self.follows,
            "popular": self.popular,
            "by_category": self.by_category,
        }


def _add(found: dict[str, list[float]], place: int, counts: dict[str, float], weight: float, prior: float) -> None:
    total = sum(counts.values()) + prior
    for item, count in counts.items():
        found.setdefault(item, [0.0] * WIDTH)[place] += weight * count / total


def _decayed(count: float, age_ms: int) -> float:
    return count * math.exp(-max(0, age_ms) / HALF_LIFE_MS * math.log(2))


def _count(table: dict[str, dict[str, float]], key: str, item: str, weight: float) -> None:
    row = table.setdefault(key, {})
    row[item] = row.get(item, 0.0) + weight
    if len(row) > 2 * FOLLOWERS:
        table[key] = dict(sorted(row.items(), key=lambda kv: -kv[1])[:FOLLOWERS])
