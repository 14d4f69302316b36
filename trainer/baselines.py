"""What every model must beat: the last category again, what was popular in the last day, what followed before."""

from __future__ import annotations

import math
from collections import Counter, defaultdict

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


class Markov:
    """What came after the last `order` names of a session; fewer names, at last none, stand in for what is rare.

    Each order is smoothed by the one below it, which counts as `PRIOR` cases (Dirichlet).
    """

    PRIOR = 5.0

    def __init__(self, order: int) -> None:
        self.order = order
        self._after: defaultdict[tuple[str, ...], Counter[str]] = defaultdict(Counter)

    def learn(self, before: list[str], name: str) -> None:
        """Count a name after those before it, the newest last."""
        for n in range(self.order + 1):
            if n <= len(before):
                self._after[tuple(before[len(before) - n :])][name] += 1

    def probabilities(self, before: list[str]) -> dict[str, float]:
        """Of every name that came so far."""
        counts = self._after[()]
        made = {name: count / counts.total() for name, count in counts.items()}
        for n in range(1, min(self.order, len(before)) + 1):
            after = self._after.get(tuple(before[len(before) - n :]))
            if after is not None:
                known = after.total() + self.PRIOR
                made = {name: (after[name] + self.PRIOR * share) / known for name, share in made.items()}
        return made
