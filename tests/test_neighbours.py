"""Neighbours: who went the same way, in bounded room, and the same after a save."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from trainer import neighbours
from trainer.neighbours import Neighbours

NOW_MS = 10 * neighbours.WEEK_MS
LISTING = 9  # the word that is no item
ITEM = np.arange(2_000) != LISTING
Paths = dict[int, list[int]]


def walked(paths: Paths) -> Neighbours:
    """Sessions by digest, all of one instant."""
    made = Neighbours()
    for session, path in paths.items():
        for word in path:
            made.take(session, word, NOW_MS)
    return made


def shares(made: Neighbours, query: list[int], session: int = -1) -> dict[int, float]:
    """What the neighbours say."""
    found, votes = made.votes(np.array(query, np.int32), session, NOW_MS, ITEM)
    return dict(zip(found.tolist(), votes.tolist(), strict=True))


def test_what_follows_the_newest_match_counts_most_and_listings_are_never_candidates() -> None:
    """After 2, 3 is nearer than 1, and 4 two steps on less than 3; the listing leads but is not named."""
    made = walked({1: [1, 2, 3, 4], 2: [7, LISTING, 8], 3: [2]})
    said = shares(made, [2], session=3)
    assert sum(said.values()) == pytest.approx(1)
    assert said[3] > said[4]
    assert said[3] > said[1]
    assert set(shares(made, [LISTING])) == {7, 8}
    assert shares(made, [1_999]) == {}


def test_votes_agree_with_the_definition() -> None:
    """Against a plain reading of it in Python, over random sessions."""
    rng = random.Random(4)
    paths = {s: [rng.randrange(9) for _ in range(rng.randrange(1, 9))] for s in range(40)}
    made, query = walked(paths), [3, 7, 1]
    kept = {s: [a for a, b in zip(p, [None, *p], strict=False) if a != b] for s, p in paths.items()}
    counts = {word: sum(word in p for p in kept.values()) for p in kept.values() for word in p}
    idf = {word: math.log(1 + len(kept) / n) for word, n in counts.items()}
    votes: dict[int, float] = {}
    for path in kept.values():
        matched = [(r, word) for r, word in enumerate(query) if word in path]
        if not matched:
            continue
        alike = sum(0.7**r * idf[word] for r, word in matched) ** 1.5
        anchor = len(path) - 1 - path[::-1].index(matched[0][1])
        for j, word in enumerate(path):
            gap = j - anchor
            near = 2.0 if gap == 0 else math.exp(-0.3 * gap) if gap > 0 else 0.7 * math.exp(0.3 * gap)
            votes[word] = votes.get(word, 0.0) + alike * near * math.sqrt(idf[word])
    votes = {word: v * (2 if word in query else 1) for word, v in votes.items()}
    total = sum(votes.values())
    assert shares(made, query) == pytest.approx({word: v / total for word, v in votes.items()}, rel=1e-4)


def test_the_oldest_sessions_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for eight sessions the ninth takes the first one's place; what is kept is the newest."""
    monkeypatch.setattr(neighbours, "SESSIONS", 8)
    made = Neighbours()
    opened = [made._open(session) for session in range(64)]
    assert opened == list(range(64))
    assert list(made.serials) == list(range(56, 64))
    assert len(made.recent(0, 4)) == 0
    again = Neighbours.of(made.state())
    again._open(64)
    assert list(again.serials) == list(range(57, 65))


def test_long_sessions_keep_their_newest_tokens() -> None:
    """Beyond fifty the oldest goes; a repeat of the last one is none."""
    made = walked({1: [1, 1, *range(100, 160), 159]})
    assert made.recent(1, 3).tolist() == [159, 158, 157]
    assert len(made.recent(1, 99)) == neighbours.TOKENS


def test_it_comes_back_as_it_was() -> None:
    """The same votes after state and `of`, and it goes on learning alike."""
    rng = random.Random(9)
    made = walked({s: [rng.randrange(40) for _ in range(rng.randrange(1, 70))] for s in range(300)})
    again = Neighbours.of(made.state())
    for one in (made, again):
        one.take(7, 3, NOW_MS)
        one.take(999, 1_500, NOW_MS)
    for query in ([3], [39, 2, 5], [1_500]):
        assert shares(made, query, 7) == shares(again, query, 7)
