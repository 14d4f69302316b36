"""Whether anything more comes: what is learnt from, when, and that it survives being read back."""

from __future__ import annotations

import random

import numpy as np
import pytest

from featurestore.events import Event, EventType, Origin, Row
from featurestore.window import LENGTH
from trainer import endings
from trainer.endings import Endings
from trainer.memory import digest

MINUTE = 60_000
HOUR = 60 * MINUTE


def row(n: int, at_ms: int, item: str | None, *, user: str = "u", type_: EventType = "view", late: bool = False) -> Row:
    """What a user did at an instant."""
    return Row(Event(event_id=f"e{n}", type=type_, user_id=user, ts_ms=at_ms, item_id=item), Origin("t", 0, n, 0, 0),
               f"s-{user}-{at_ms // (6 * HOUR)}", late)  # fmt: skip


def shop(n: int, *, share: float = 0.5, seed: int = 1, begins_ms: int = 0) -> list[Row]:
    """A user a minute; after a cart nothing comes, after a view another item with this probability, 5 minutes later."""
    rng, rows = random.Random(seed), []
    for k in range(n):
        at_ms, user = begins_ms + k * MINUTE, f"u{k}-{seed}"
        rows.append((at_ms, user, "view", "a"))
        if rng.random() < share:
            rows.append((at_ms + 5 * MINUTE, user, "cart", "b"))
    return [row(i, at, item, user=u, type_=t) for i, (at, u, t, item) in enumerate(sorted(rows))]  # type: ignore[arg-type]


def taught(rows: list[Row], made: Endings | None = None) -> Endings:
    """What learnt from these rows."""
    made = made or Endings()
    for one in rows:
        made.take(digest(one), one)
    return made


def said(made: Endings, type_: EventType, at_ms: int) -> float:
    """Of a session that was at `a` and has gone on to a cart, or not."""
    rows = [row(0, at_ms - 5 * MINUTE, "a"), row(1, at_ms, "b", type_="cart")]
    return made.of(
        endings.features(rows, at_ms) if type_ == "cart" else endings.features(rows[:1], rows[0].event.ts_ms)
    )


def settled(rows: list[Row]) -> list[tuple[int, bool]]:
    """Instant and outcome of each cut in the order in which they were learnt from."""
    made, found = Endings(), []
    made._settle = lambda queue: None  # type: ignore[method-assign]
    for one in rows:
        made.take(digest(one), one)
    for queue in made.queues.values():
        found += [(cut.at_ms, cut.came) for cut in queue.cuts]
    return found


def test_it_is_calibrated_by_what_came() -> None:
    """Before any outcome the constant; afterwards the shares that came, by what the last row was."""
    assert said(Endings(), "view", HOUR) == pytest.approx(endings.STOP_SHARE)
    made = taught(shop(2_000, share=0.8))
    assert said(made, "view", 2_000 * MINUTE) == pytest.approx(0.2, abs=0.06)
    assert said(made, "cart", 2_000 * MINUTE) > 0.85


def test_it_follows_what_changes() -> None:
    """Two days after a share has changed it is the new one that is told."""
    made = taught(shop(3 * 1_440, share=0.9))
    before = said(made, "view", 3 * 24 * HOUR)
    made = taught(shop(2 * 1_440, share=0.3, seed=2, begins_ms=3 * 24 * HOUR), made)
    assert before < 0.2
    assert said(made, "view", 5 * 24 * HOUR) == pytest.approx(0.7, abs=0.12)


@pytest.mark.parametrize(
    ("next_", "came"),
    [
        (row(1, MINUTE, "b"), True),
        (row(1, MINUTE, "a"), False),  # the same item
        (row(1, 0, "b"), False),  # at the same instant
        (row(1, endings.HORIZON_MS, "b"), True),
        (row(1, endings.HORIZON_MS + 1, "b"), False),  # behind the horizon
        (row(1, MINUTE, "b", type_="impression"), False),  # nobody wanted it
        (row(1, MINUTE, "b", user="v"), False),  # another person
        (row(1, MINUTE, "b", late=True), True),  # no cut itself, but an outcome
    ],
)  # fmt: skip
def test_an_outcome_is_a_different_item_within_the_horizon(next_: Row, came: bool) -> None:
    """The rule that `featurestore.window` trains on, within a session."""
    found = settled([row(0, 0, "a"), next_])
    assert found[0] == (0, came)
    assert len(found) == 2 - next_.late


def test_nothing_counts_before_its_whole_horizon_has_passed() -> None:
    """What came soon is not learnt from before what never comes, so the share is not bent."""
    first = [row(0, 0, "a"), row(1, MINUTE, "b")]
    end = endings.HORIZON_MS + endings.LATENESS_MS
    early, due = taught([*first, row(2, end, "z", user="w")]), taught([*first, row(2, end + 1, "z", user="w")])
    assert np.array_equal(early.weights, Endings().weights)
    assert not np.array_equal(due.weights, Endings().weights)


def test_how_late_an_event_may_come_is_waited_for_and_no_longer() -> None:
    """The lateness that it was made with; a version tells it, one of before that is read with the usual one."""
    first = [row(0, 0, "a"), row(1, MINUTE, "b"), row(2, endings.HORIZON_MS + 5_001, "z", user="w")]
    assert np.array_equal(taught(first).weights, Endings().weights)
    prompt = taught(first, Endings(lateness_ms=5_000))
    assert not np.array_equal(prompt.weights, Endings().weights)
    plain, arrays = prompt.state()
    assert Endings.read(plain, arrays).lateness_ms == 5_000
    del plain["lateness_ms"]
    assert Endings.read(plain, arrays).lateness_ms == endings.LATENESS_MS


def test_only_the_newest_rows_of_a_session_are_asked_of() -> None:
    """As many as the trainer sees of it."""
    rows = [row(n, n * MINUTE, "ab"[n % 2]) for n in range(LENGTH + 9)]
    x, none = Endings().asked(rows, rows[-1].event.ts_ms)
    assert np.array_equal(x, endings.features(rows[-LENGTH:], rows[-1].event.ts_ms))
    assert none == pytest.approx(endings.STOP_SHARE)


def test_what_is_read_back_goes_on_as_if_nothing_had_been() -> None:
    """Saved in the middle and read: the same weights, spread and open cuts at the end, to the last bit."""
    rows = shop(600)
    half = len(rows) // 2
    whole, first = taught(rows), taught(rows[:half])
    plain, arrays = first.state()
    assert arrays["x"].size
    resumed = taught(rows[half:], Endings.read(plain, arrays))
    for one, other in zip(whole.state()[1].values(), resumed.state()[1].values(), strict=True):
        assert np.array_equal(one, other)
    assert whole.state()[0] == resumed.state()[0]
    assert "u1" not in str(plain)


def test_features_are_those_of_the_session() -> None:
    """What a row was learnt with is what a prediction after it is made with."""
    kinds: list[EventType] = [
        "browse",
        "view",
        "cart",
        "search",
        "view",
        "checkout",
        "purchase",
        "impression",
        "remove",
    ]
    rng, made, rows = random.Random(4), Endings(), []
    for n in range(40):
        kind = rng.choice(kinds)
        item = rng.choice("abcd") if kind not in ("browse", "search", "checkout") else None
        rows.append(row(n, n * MINUTE // 2, item, type_=kind))
        made.take(1, rows[-1])
        assert np.array_equal(made.queues["t", 0].cuts[-1].x, endings.features(rows, rows[-1].event.ts_ms)), n


def test_a_large_shop_is_learnt_from_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more sessions at once than it holds it takes a share, all of each; and all again when they have become few."""
    monkeypatch.setattr(endings, "SESSIONS", 20)
    made = taught(shop(400, share=0.8, seed=5, begins_ms=HOUR))
    assert made.below < endings.ALL
    assert len(made.trails) <= 21
    made = taught([row(9_000 + n, (20 + n) * HOUR, "a", user=f"v{n}") for n in range(20)], made)
    assert made.below == endings.ALL
    assert len(made.trails) < 5
