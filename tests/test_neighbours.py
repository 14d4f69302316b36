"""Neighbours: who went the same way, in bounded room, and the same after a save."""

from __future__ import annotations

import math
import random

import pytest

from trainer import neighbours
from trainer.neighbours import Neighbours

NOW_MS = 10 * neighbours.WEEK_MS


def walked(paths: dict[str, list[str]]) -> Neighbours:
    """Sessions by digest, all of one instant."""
    made = Neighbours()
    for session, path in paths.items():
        for name in path:
            made.take(session, name, not name.startswith("c:"), NOW_MS)
    return made


def test_what_follows_the_newest_match_counts_most_and_listings_are_never_candidates() -> None:
    """After `b`, `c` is nearer than `a`, and `d` two steps on less than `c`; the listing leads but is not named."""
    made = walked({"01": ["a", "b", "c", "d"], "02": ["x", "c:shoes", "y"], "03": ["b"]})
    shares = made.evidence(["b"], "03", NOW_MS)
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["c"] > shares["d"]
    assert shares["c"] > shares["a"]
    assert set(made.evidence(["c:shoes"], None, NOW_MS)) == {"x", "y"}
    assert made.evidence(["never seen"], None, NOW_MS) == {}


def test_votes_agree_with_the_definition() -> None:
    """Against a plain reading of it in Python, over random sessions."""
    rng = random.Random(4)
    paths = {f"{s:02x}": [f"i{rng.randrange(12)}" for _ in range(rng.randrange(1, 9))] for s in range(40)}
    made, query = walked(paths), ["i3", "i7", "i1"]
    kept = {s: [a for a, b in zip(p, [None, *p], strict=False) if a != b] for s, p in paths.items()}
    counts = {name: sum(name in p for p in kept.values()) for p in kept.values() for name in p}
    idf = {name: math.log(1 + len(kept) / n) for name, n in counts.items()}
    votes: dict[str, float] = {}
    for path in kept.values():
        matched = [(r, name) for r, name in enumerate(query) if name in path]
        if not matched:
            continue
        alike = sum(0.7**r * idf[name] for r, name in matched) ** 1.5
        anchor = len(path) - 1 - path[::-1].index(matched[0][1])
        for j, name in enumerate(path):
            gap = j - anchor
            near = 2.0 if gap == 0 else math.exp(-0.3 * gap) if gap > 0 else 0.7 * math.exp(0.3 * gap)
            votes[name] = votes.get(name, 0.0) + alike * near * math.sqrt(idf[name])
    votes = {name: v * (2 if name in query else 1) for name, v in votes.items()}
    total = sum(votes.values())
    assert made.evidence(query, None, NOW_MS) == pytest.approx({n: v / total for n, v in votes.items()}, rel=1e-4)


def test_the_oldest_sessions_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for eight sessions the ninth takes the first one's place, and its votes are gone."""
    monkeypatch.setattr(neighbours, "SESSIONS", 8)
    made = walked({f"{s:02x}": ["a", f"only {s}"] for s in range(64)})
    assert len(made.serials) == 8
    assert made.recent("00", 4) == []
    assert made.recent("3f", 4) == ["only 63", "a"]


def test_it_comes_back_as_it_was() -> None:
    """The same votes after state and `of`, and it goes on learning alike."""
    rng = random.Random(9)
    made = walked({f"{s:016x}": [f"i{rng.randrange(40)}" for _ in range(rng.randrange(1, 70))] for s in range(300)})
    state = made.state()
    again = Neighbours.of(state["names"], state["next"], state["arrays"])
    for one in (made, again):
        one.take(f"{7:016x}", "i3", True, NOW_MS)
        one.take(f"{999:016x}", "new", True, NOW_MS)
    for query in (["i3"], ["i39", "i2", "i5"], ["new"]):
        assert made.evidence(query, f"{7:016x}", NOW_MS) == again.evidence(query, f"{7:016x}", NOW_MS)
