"""Counts that learn from every event: transitions, popularity, and what is in the session already."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import msgspec

from featurestore.events import ENGAGED, Row, Session

HALF_LIFE_MS = 24 * 3_600_000  # of popularity
FOLLOWERS = 64  # kept per item or category, the most counted
CANDIDATES = 100
KNOWN_ITEMS = 200_000


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


def token(row: Row) -> str | None:
    """What a row adds to the sequence of a session: an item, else a listing, else a query."""
    event = row.event
    if event.item_id:
        return event.item_id
    if event.category:
        return "c:" + event.category
    return "q:" + event.query.lower().strip() if event.query else None


class Memory:
    """A fold over rows with the offsets it has seen; what is below them changes nothing."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, int], int] = {}
        self.items: dict[str, Known] = {}
        self.follows: dict[str, dict[str, float]] = {}  # token → item → count
        self.popular: dict[str, tuple[float, int]] = {}  # item → (decayed count, at_ms)
        self.by_category: dict[str, dict[str, float]] = {}
        self.last: dict[str, tuple[str, list[str]]] = {}  # user → (session, its newest tokens)
        self.stopped = [1.0, 1.0]  # sessions seen to engage with another item, and not

    def learn(self, rows: list[Row]) -> int:
        """Fold rows in order; returns how many were new."""
        fresh, floor = 0, dict(self.seen)  # rows of one message come in one call
        for row in rows:
            origin = row.origin
            place = (origin.topic, origin.partition)
            if origin.offset < floor.get(place, 0):
                continue
            self.seen[place] = max(self.seen.get(place, 0), origin.offset + 1)
            if row.event.consent:
                self._take(row)
                fresh += 1
        return fresh

    def _take(self, row: Row) -> None:
        event, word = row.event, token(row)
        if word is None:
            return
        session, tokens = self.last.get(event.user_id, ("", []))
        if session != row.session_id:
            tokens = []
        item = event.item_id
        if item:
            self.items[item] = Known(event.title, event.category, event.brand, event.price)
            if event.type in ENGAGED:
                count, at_ms = self.popular.get(item, (0.0, event.ts_ms))
                self.popular[item] = (_decayed(count, event.ts_ms - at_ms) + 1, event.ts_ms)
                if event.category:
                    _count(self.by_category, event.category, item, 1.0)
                for age, before in enumerate(reversed(tokens[-4:])):
                    if before != item:
                        _count(self.follows, before, item, 0.6**age)
        if not tokens or tokens[-1] != word:
            tokens = [*tokens[-9:], word]
        self.last[event.user_id] = (row.session_id, tokens)
        if len(self.last) > KNOWN_ITEMS:
            del self.last[next(iter(self.last))]

    def score(self, session: Session, at_ms: int) -> dict[str, float]:
        """Candidate items of a session with unnormalised scores; the item at hand is not among them."""
        words = [w for w in map(token, session.rows) if w]
        mine = engaged_items(session.rows)
        current = mine[-1] if mine else None
        scores: dict[str, float] = defaultdict(float)
        seen: set[str] = set()
        for age, word in enumerate(reversed(words[-10:])):
            if word in seen:
                continue
            seen.add(word)
            followers = self.follows.get(word, {})
            total = sum(followers.values()) + 5.0
            for item, count in followers.items():
                scores[item] += 0.7**age * count / total
        category = next((r.event.category for r in reversed(session.rows) if r.event.category), None)
        if category:
            within = self.by_category.get(category, {})
            total = sum(within.values()) + 20.0
            for item, count in within.items():
                scores[item] += 0.3 * count / total
        for age, item in enumerate(reversed(mine[-10:])):
            scores[item] += 0.15 * 0.8**age
        if len(scores) < CANDIDATES:
            for item in self.top(at_ms):
                scores[item] += 1e-4
        scores.pop(current or "", None)
        return scores

    def top(self, at_ms: int, n: int = CANDIDATES) -> list[str]:
        """The most popular items just now."""
        now = sorted(self.popular.items(), key=lambda kv: -_decayed(kv[1][0], at_ms - kv[1][1]))
        return [item for item, _ in now[:n]]

    def state(self) -> dict[str, Any]:
        """The memory as plain values, for a version."""
        return {
            "seen": [[t, p, o] for (t, p), o in self.seen.items()],
            "items": {k: [v.title, v.category, v.brand, v.price] for k, v in self.items.items()},
            "follows": self.follows,
            "popular": self.popular,
            "by_category": self.by_category,
        }

    @classmethod
    def of(cls, state: dict[str, Any]) -> Memory:
        """The memory that `state` told."""
        memory = cls()
        memory.seen = {(t, p): o for t, p, o in state["seen"]}
        memory.items = {k: Known(*v) for k, v in state["items"].items()}
        memory.follows = state["follows"]
        memory.popular = {k: (v[0], v[1]) for k, v in state["popular"].items()}
        memory.by_category = state["by_category"]
        return memory


def _decayed(count: float, age_ms: int) -> float:
    return count * math.exp(-max(0, age_ms) / HALF_LIFE_MS * math.log(2))


def _count(table: dict[str, dict[str, float]], key: str, item: str, weight: float) -> None:
    row = table.setdefault(key, {})
    row[item] = row.get(item, 0.0) + weight
    if len(row) > 2 * FOLLOWERS:
        table[key] = dict(sorted(row.items(), key=lambda kv: -kv[1])[:FOLLOWERS])
