"""Counts: the last one again, what was popular in the last day, what followed before."""

from __future__ import annotations

import itertools
import math
from collections import Counter, defaultdict
from typing import Literal

from featurestore.events import Row
from trainer.baselines.baseline import NAMED, Baseline, Shares
from trainer.memory import current_item, last_category

HALF_LIFE_MS = 24 * 3_600_000
STALE_ROWS = 100  # after which what is most counted is looked up anew
What = Literal["item", "category"]


def name_of(row: Row, what: What) -> str | None:
    """The item or the category of a row."""
    return row.event.item_id if what == "item" else row.event.category


class Popularity(Baseline):
    """What was engaged with, counts that halve in a day; one is added to each name and one for the unseen."""

    def __init__(self, what: What) -> None:
        self._what: What = what
        self._counts: Counter[str] = Counter()
        self._at_ms = 0
        self._top, self._rows = dict[str, float](), STALE_ROWS

    def take(self, row: Row, before: list[Row]) -> None:
        """Count a name; older counts fade by how much time has passed, once an hour."""
        name, at_ms = name_of(row, self._what), row.event.ts_ms
        if not row.engages or name is None:
            return
        self._at_ms = self._at_ms or at_ms
        if at_ms - self._at_ms > HALF_LIFE_MS / 24:
            share = math.exp2(-(at_ms - self._at_ms) / HALF_LIFE_MS)
            self._counts = Counter({k: v * share for k, v in self._counts.items() if v * share > 0.01})
            self._at_ms = at_ms
        self._counts[name] += 1
        self._rows += 1

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """The most counted; never the item that the session is at."""
        if self._rows >= STALE_ROWS:
            self._rows, total = 0, self._counts.total() + len(self._counts) + 1
            self._top = {name: (count + 1) / total for name, count in self._counts.most_common(NAMED)}
        made = dict(self._top)
        if self._what == "item":
            made.pop(current_item(rows) or "", None)
        return made


class LastItems(Baseline):
    """The session's own items come back, the newest first: each half as probable as the one after it."""

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """Without the item that the session is at."""
        own = list(dict.fromkeys(str(row.event.item_id) for row in reversed(rows) if row.engages))[1:]
        return {name: 0.5 ** (ago + 1) for ago, name in enumerate(own)}


class LastCategory(Baseline):
    """The next category is the last one, as often as that has held so far."""

    def __init__(self) -> None:
        self.held, self.asked = 1, 2

    def take(self, row: Row, before: list[Row]) -> None:
        """Count whether it held where somebody came to another item."""
        if row.engages and row.event.category and row.event.item_id != current_item(before):
            last = last_category(before)
            if last is not None:
                self.held += last == row.event.category
                self.asked += 1

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """The one that the session was in last, of an item or a listing."""
        last = last_category(rows)
        return {} if last is None else {last: self.held / self.asked}


class Markov(Baseline):
    """What came after the last `order` names of a session; fewer names, at last none, stand in for what is rare.

    Names are the items that it engaged with, or the categories of its items and listings; repeats in a row are one.
    Each order is smoothed by the one below it, which counts as `PRIOR` cases (Dirichlet).
    """

    PRIOR = 5.0

    def __init__(self, order: int, what: What) -> None:
        self.order = order
        self._what: What = what
        self._after: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        self._top, self._rows = dict[str, float](), STALE_ROWS

    def take(self, row: Row, before: list[Row]) -> None:
        """A row of another item teaches what came after those before it."""
        name = name_of(row, self._what)
        if row.engages and name and row.event.item_id != current_item(before):
            self.learn(self.path(before), name)

    def learn(self, before: list[str], name: str) -> None:
        """Count a name after those before it, the newest last."""
        for n in range(self.order + 1):
            if n <= len(before):
                self._after[tuple(before[len(before) - n :])][name] += 1
        self._rows += 1

    def path(self, rows: list[Row]) -> list[str]:
        """The newest names that a session went through, repeats in a row collapsed."""
        told = [name_of(row, self._what) for row in rows if row.engages or self._what == "category"]
        return [name for name, _ in itertools.groupby(name for name in told if name)][-self.order :]

    def probabilities(self, before: list[str]) -> Shares:
        """Of every name that came so far; of many, of the most frequent and of those that came after these."""
        if self._rows >= STALE_ROWS or len(self._after[()]) < NAMED:
            counts, self._rows = self._after[()], 0
            total = counts.total()
            self._top = {name: count / total for name, count in counts.most_common(NAMED)}
        made = dict(self._top)
        for n in range(1, min(self.order, len(before)) + 1):
            after = self._after.get(tuple(before[len(before) - n :]))
            if after is not None:
                known = after.total() + self.PRIOR
                made = {name: self.PRIOR * share / known for name, share in made.items()}
                for name, count in after.items():
                    made[name] = made.get(name, 0.0) + count / known
        return made

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """After the session's path; never the item that it is at."""
        made = self.probabilities(self.path(rows))
        if self._what == "item":
            made.pop(current_item(rows) or "", None)
        return made
