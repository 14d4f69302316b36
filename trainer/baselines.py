"""What every model must beat: the last category again, and what was popular in the last day."""

from __future__ import annotations

import math
from collections import Counter

HALF_LIFE_MS = 24 * 3_600_000


class Popularity:
    """Counts that halve in a day; asked for names by rank and for the probability of one."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._at_ms = 0

    def take(self, name: str | None, at_ms: int) -> None:
        """Count a name; older counts fade by how much time has passed."""
        if name is None:
            return
        self._at_ms = self._at_ms or at_ms
        if at_ms - self._at_ms > HALF_LIFE_MS / 24:  # fading once an hour is enough
            share = math.exp2(-(at_ms - self._at_ms) / HALF_LIFE_MS)
            self._counts = Counter({k: v * share for k, v in self._counts.items() if v * share > 0.01})
            self._at_ms = at_ms
        self._counts[name] += 1

    def ranked(self, n: int) -> list[str]:
        """The n most counted."""
        return [name for name, _ in self._counts.most_common(n)]

    def probability(self, name: str) -> float:
        """Its share, with one added to every name and one for the unseen."""
        return (self._counts[name] + 1) / (self._counts.total() + len(self._counts) + 1)


class LastCategory:
    """The next category is the last one, as often as that has held so far."""

    def __init__(self) -> None:
        self.held, self.asked = 1, 2

    def probability(self, last: str | None, name: str, known: int) -> float:
        """Of `name` after `last`, the rest spread evenly over the `known` categories."""
        share = self.held / self.asked
        return share if name == last else (1 - share) / max(known - 1, 1)

    def learn(self, last: str | None, name: str) -> None:
        """Count whether it held."""
        self.held += last == name
        self.asked += 1
