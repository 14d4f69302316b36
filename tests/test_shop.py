"""The simulated shop: the same seed is the same shop, and it is worth predicting."""

from __future__ import annotations

import itertools
from collections import Counter

import orjson
import pytest

from deploy.demo import shop
from deploy.demo.scenarios import SCENARIOS
from featurestore import sessions
from featurestore.events import NEEDS_ITEM, TYPES, Origin, Row


def test_catalogue_has_titled_items_in_many_paths() -> None:
    """At least 2,000 items in 60 paths, every title its own."""
    items = [i for leaf in shop.catalogue().values() for i in leaf]
    assert len({i.category for i in items}) >= 60
    assert len({i.item_id for i in items}) == len(items) >= 2_000
    assert len({i.title for i in items}) > 2_000


def test_same_seed_and_start_say_the_same() -> None:
    """A seed decides everything."""
    first, again = (list(itertools.islice(shop.Shop(seed=3, start_ms=10**12).messages(), 500)) for _ in range(2))
    assert first == again
    assert [m.at_ms for m in first] == sorted(m.at_ms for m in first)


def test_rate_is_kept() -> None:
    """Events come at the rate asked for, within a tenth."""
    messages = list(itertools.islice(shop.Shop(start_ms=0, rate=50, users=900).messages(), 5_000))
    assert 90 < messages[-1].at_ms / 1000 < 110


def test_history_is_valid_and_next_item_has_structure() -> None:
    """Events carry what their type needs; people mostly stay in a category; every kind of act happens."""
    events = list(shop.history(seed=1, users=300, rate=20, end_ms=10**12, duration_ms=600_000))
    assert all(e.item_id or e.category for e in events if e.type in NEEDS_ITEM)
    assert set(TYPES) - {e.type for e in events} <= {"impression"}
    assert len({e.event_id for e in events}) == len(events) > 10_000
    seen: dict[str, str] = {}
    stay: Counter[bool] = Counter()
    for e in events:
        if e.item_id and e.category:
            stay[seen.get(e.user_id) == e.category] += 1
            seen[e.user_id] = e.category
    assert stay[True] > 2 * stay[False]


def test_some_messages_are_broken_and_counted() -> None:
    """Broken messages say how many events and how many bad ones they hold."""
    messages = list(itertools.islice(shop.Shop(start_ms=0, bad=0.5).messages(), 200))
    assert 50 < sum(m.bad for m in messages) < 150
    for m in (m for m in messages if not m.bad):
        assert orjson.loads(m.value)["user_id"] == m.key


@pytest.mark.parametrize(("name", "rate", "users"), [("bots", 30.0, 2_000), ("usual", 30.0, 10), ("steady", 300.0, 50)])
def test_the_programs_in_it_are_found_and_nobody_else(name: str, rate: float, users: int) -> None:
    """An hour of people and crawlers: the rule's users are exactly the crawlers, told within half a minute."""
    rows = played_rows(name, rate, users, seconds=3_600 if rate < 100 else 600)
    crawlers = {r.event.user_id for r in rows if r.event.user_id.startswith("crawler-")}
    assert len(crawlers) == SCENARIOS[name].bots
    assert {r.event.user_id for r in rows if r.bot} == crawlers
    since = [r.event.ts_ms for r in rows if r.bot]
    assert not crawlers or min(since) - rows[0].event.ts_ms < 40_000


def played_rows(name: str, rate: float, users: int, seconds: int) -> list[Row]:
    """What a worker makes of it."""
    made = shop.history(seed=5, users=users, rate=rate, end_ms=10**12, duration_ms=1_000 * seconds,
                        scenario=SCENARIOS[name])  # fmt: skip
    open_, settings = sessions.OpenSessions(), sessions.SessionSettings()
    folded = (sessions.fold(open_, e, Origin("t", 0, n, 0, e.ts_ms), settings).row for n, e in enumerate(made))
    return [row for row in folded if row is not None]


def test_scenarios_do_what_they_say_and_hang_on_the_seed() -> None:
    """Fashion stays or changes; crawlers are there or not; the same seed says the same in each."""

    def played(name: str) -> list[shop.Message]:
        made = shop.Shop(seed=3, start_ms=10**12, bad=0.0, scenario=SCENARIOS[name])
        return list(itertools.islice(made.messages(), 3_000))

    for name in SCENARIOS:
        assert played(name) == played(name)
        assert len({m.key for m in played(name) if m.key.startswith("crawler-")}) == SCENARIOS[name].bots

    def loved(name: str, at_ms: int) -> str:
        made = shop.Shop(seed=3, start_ms=10**12, scenario=SCENARIOS[name])
        return Counter(made._fashionable(at_ms) for _ in range(2_000)).most_common(1)[0][0]

    hour = range(0, 3_600_000, 300_000)
    assert [len({loved(name, t) for t in hour}) for name in ("steady", "usual")] == [1, 3]
    assert len({loved("restless", t) for t in hour}) > 6
