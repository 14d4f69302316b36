"""Sessions alike, as published: VMIS-kNN without any weighting of ours."""

from __future__ import annotations

import heapq
import math
from collections import defaultdict, deque

from featurestore.events import Row
from trainer.baselines.baseline import Baseline, Shares
from trainer.memory import current_item, digest, token


class Vmis(Baseline):
    """VMIS-kNN (Kersbergen et al., SIGMOD 2022, section 3): the k most alike of the m newest sessions of each item.

    An item of the asking session at place i of n weighs i / n. A neighbour's items get its likeness times λ of how
    long ago the newest item that both have was (1 − .1 a step, 0 from the tenth on) times log(sessions / sessions
    with the item). `listings`: list pages and searches are items too, though never answers.
    """

    M, K, QUERY, SESSIONS = 500, 100, 10, 200_000

    def __init__(self, *, listings: bool = False) -> None:
        self._listings = listings
        self._sessions: dict[int, dict[str, int]] = {}  # digest → its items in order, oldest session first
        self._newest: defaultdict[str, deque[int]] = defaultdict(lambda: deque(maxlen=self.M))
        self._count: defaultdict[str, int] = defaultdict(int)  # sessions with the item
        self._item: set[str] = set()

    def take(self, row: Row, before: list[Row]) -> None:
        """An item of a session, once."""
        if not (row.engages or self._listings):
            return
        name, session = token(row), digest(row)
        items = self._sessions.setdefault(session, {})
        if row.event.item_id:
            self._item.add(name)
        if name not in items:
            items[name] = len(items)
            self._newest[name].append(session)
            self._count[name] += 1
        if len(self._sessions) > self.SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """Votes of the neighbours as shares of all votes, the current item's left out."""
        used = [token(row) for row in rows if row.engages or self._listings]
        query = list(
            reversed(list(dict.fromkeys(reversed(used)))[: self.QUERY])
        )  # oldest first, each at its last place
        mine, likeness, newest = digest(rows[-1]), defaultdict[int, float](float), dict[int, int]()
        for place, name in enumerate(query, 1):
            for session in self._newest.get(name, ()):
                if session != mine and session in self._sessions:
                    likeness[session] += place / len(query)
                    newest[session] = len(query) - place + 1
        votes: defaultdict[str, float] = defaultdict(float)
        for session in heapq.nlargest(self.K, likeness, key=likeness.__getitem__):
            weight = likeness[session] * max(0.0, 1 - 0.1 * newest[session])
            for name in self._sessions[session]:
                if name in self._item:
                    votes[name] += weight
        votes.pop(current_item(rows) or "", None)
        known = len(self._sessions)
        made = {name: vote * math.log(known / self._count[name]) for name, vote in votes.items() if vote > 0}
        total = sum(made.values())
        return {name: vote / total for name, vote in made.items()} if total > 0 else {}
