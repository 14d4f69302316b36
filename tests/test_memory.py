"""The memory: what it counts, what it proposes, and that a version holds no user."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

from featurestore.events import Event, EventType, Origin, Row
from trainer import memory
from trainer.memory import EVIDENCE, Followers, Memory

HOUR_MS = 3_600_000


def row(
    n: int, item: str | None, *, user: str = "u-secret", type_: EventType = "view", category: str | None = None
) -> Row:
    """What a user did at the n-th second."""
    event = Event(
        event_id=f"e{n}", type=type_, user_id=user, ts_ms=1_000 * n, item_id=item, title=item, category=category
    )
    return Row(event, Origin("t@log", 0, n, 0, 0), f"s-{user}")


def told(made: Memory, rows: list[Row], at_ms: int = 100_000) -> dict[str, dict[str, float]]:
    """Evidence by name."""
    found, values = made.evidence(rows, at_ms)
    return {made.names[w]: dict(zip(EVIDENCE, v, strict=True)) for w, v in zip(found, values.tolist(), strict=True)}


def test_evidence_names_what_follows_what_is_near_and_what_was_touched() -> None:
    """After `a` came `b`; `c` shares the shelf; `d` was touched before; `a`, the current one, is left out."""
    made, n = Memory(), 0
    for user in ("u1", "u2", "u3"):
        for item, shelf in (("a", "x"), ("b", "y")):
            made.take(row(n := n + 1, item, user=user, category=shelf))
    made.take(row(n := n + 1, "c", user="u4", category="x"))
    mine = [row(n := n + 1, "d", category="z"), row(n := n + 1, "a", category="x")]
    for one in mine:
        made.take(one)
    said = told(made, mine)
    assert "a" not in said
    assert said["b"]["follows"] > 0
    assert said["b"]["neighbours"] > 0
    assert said["c"]["category"] > 0 == said["b"]["category"]
    assert said["d"]["in_session"] > 0 == said["c"]["in_session"]
    assert told(made, mine) == said  # nothing is left behind by asking


def test_popularity_halves_in_a_day_and_does_not_mind_who_came_first() -> None:
    """A click a day ago counts half of one now."""
    made = Memory()
    for at_ms, item in ((24 * HOUR_MS, "new"), (0, "old"), (0, "new")):
        made.take(row(at_ms // 1_000, item, user=f"u{at_ms}"))
    said = told(made, [row(0, "elsewhere", user="v")], at_ms=24 * HOUR_MS)
    assert said["new"]["popularity"] == pytest.approx(1.5)
    assert said["old"]["popularity"] == pytest.approx(0.5)


def test_followers_keep_the_frequent_ones_in_bounded_room() -> None:
    """Among ten thousand rare followers the three frequent ones stand with at least their true counts."""
    made, rng = Followers(), random.Random(1)
    for n in range(12_000):
        made.add(0, n % 3 if rng.random() < 0.2 else 10 + rng.randrange(10_000), 1.0)
    size, who, count = made.arrays
    assert size[0] == memory.FOLLOWERS
    best = who[0][np.argsort(-count[0])[:3]]
    assert set(best.tolist()) == {0, 1, 2}
    assert count[0].sum() == pytest.approx(12_000)


def test_no_room_for_new_words_is_survived(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the last word what is new is passed over, what is known goes on counting."""
    monkeypatch.setattr(memory, "WORDS", 3)
    made = Memory()
    for n, item in enumerate(["a", "b", "c", "d", "e", "a"]):
        made.take(row(n, item, category=None))
    assert made.names == ["a", "b", "c"]
    assert made.popular[made.words["a"]] > 1.9
    assert "d" not in told(made, [row(9, "d")])


def test_a_version_holds_no_user_and_comes_back_whole(tmp_path: Path) -> None:
    """No byte of a user id is in the files; the same evidence afterwards, and the same after learning more."""
    made, rng = Memory(), random.Random(2)
    rows = [
        row(n, f"i{rng.randrange(30)}", user=f"u-secret-{rng.randrange(9)}", category=f"c{n % 4}") for n in range(500)
    ]
    made.learn(rows)
    made.save(tmp_path)
    assert not any(b"secret" in file.read_bytes() for file in tmp_path.iterdir())
    again = Memory.load(tmp_path)
    assert again.seen == made.seen
    more = [row(500 + n, f"i{rng.randrange(60)}", user=f"v{n % 3}", category="c9") for n in range(100)]
    for one in (made, again):
        assert one.learn(rows) == 0
        one.learn(more)
    assert told(made, more[-3:], 600_000) == told(again, more[-3:], 600_000)
