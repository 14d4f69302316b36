"""A purchase probability counts once its horizon is over, against the label that is trained on."""

from __future__ import annotations

import math
import random
from typing import Any

import msgspec
import pytest

from featurestore.events import Row
from streams import purchases, quality, waiting
from tests import test_outcomes
from tests.test_outcomes import BUYING, row, said

FIRST = len(purchases.FIELDS)


class Told(test_outcomes.Told):
    """One partition whose predictions wait, for a purchase as well."""

    def __init__(self, **more: Any) -> None:
        super().__init__(**more)
        self.outcomes.purchases.horizon_ms = BUYING

    def buys(self, trigger: Row, probability: float | None, **more: Any) -> None:
        """A prediction after this row."""
        made = said(trigger.origin.offset, {"b": 0.5}, user=trigger.event.user_id, **more)
        self.note(trigger, msgspec.structs.replace(made, purchase_probability=probability))

    def sums(self, watermark_ms: int = 1_000_000, arm: str = "champion") -> list[float]:
        """Of an arm, over all users."""
        self.outcomes.settle(self.open, watermark_ms)
        found = self.outcomes.purchases.arms.get(arm)
        return [sum(column) for column in zip(*found, strict=True)] if found else [0.0] * FIRST


def test_a_purchase_within_the_horizon_is_the_outcome() -> None:
    """Whatever lies in between; −log of what was said of what came."""
    told = Told()
    told.buys(row(0, 1_000, "a"), 0.25)
    told.buys(row(1, 1_000, "a", user_id="v"), 0.25)
    for later in (row(2, 1_010, "b"), row(3, 1_060, None, type="purchase", category=None)):
        told.open.observe(later)
    assert told.sums(1_060)[0] == 0
    got = told.sums(1_061)
    assert got[:FIRST] == [2, pytest.approx(math.log(4) - math.log(0.75)), 0.5, 1]
    place = purchases.binned(0.25)
    assert (got[FIRST + place], got[FIRST + purchases.BINS + place], sum(got[FIRST:])) == (1, 1, 2)
    assert not told.open.purchases.by_user


def test_what_is_no_purchase_of_this_prediction() -> None:
    """Outside the horizon, at or before the trigger, without consent, another's; null says nothing and counts not."""
    told = Told()
    told.buys(row(5, 1_000, "a"), 0.5)
    told.buys(row(5, 1_000, "a"), 0.5)  # told again after the same row
    told.buys(row(6, 1_001, "a"), None)
    bought: dict[str, Any] = {"type": "purchase"}
    for other in (row(7, 1_061, "b", **bought), row(8, 1_000, "b", **bought), row(4, 1_050, "b", **bought),
                  row(9, 1_050, "b", consent=False, **bought), row(9, 1_050, "b", user_id="v", **bought)):  # fmt: skip
        told.open.observe(other)
    assert told.sums()[:FIRST] == [1, pytest.approx(math.log(2)), 0.5, 0]


def test_more_than_the_limit_are_a_sample_and_the_forgotten_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is open stays below the limit and what one user has below theirs; who is forgotten is gone."""
    monkeypatch.setattr(waiting, "A_USER", 3)
    told = Told(limit=40)
    for n in range(100):
        told.buys(row(n, n, "a", user_id=f"u{n}"), 0.1)
        told.outcomes.bound([told.open])
    assert 0 < len(told.open.purchases) <= 40
    assert told.outcomes.purchases.share < 1
    told.open.forget({f"u{n}" for n in range(100)})
    assert (len(told.open.purchases), told.open.purchases.by_user) == (0, {})
    told.outcomes.purchases.share = 1.0
    for n in range(5):
        told.buys(row(200 + n, 200, "a"), 0.1)
    assert len(told.open.purchases) == 3


def test_figures_of_workers_are_those_of_all_predictions() -> None:
    """AUC of bins is near that of all pairs; what is said is what comes where it is right; workers add up."""
    chance, beats, pairs = random.Random(7), [], []
    for worker in range(2):
        told = Told(limit=100_000)
        for n in range(3_000):
            p = 0.5 * chance.random() ** 3
            bought = chance.random() < p
            trigger = row(2 * n, 1_000, "a", user_id=f"{worker}-{n}")
            told.buys(trigger, p)
            if bought:
                told.open.observe(row(2 * n + 1, 1_001, "a", user_id=f"{worker}-{n}", type="purchase"))
            pairs.append((p, bought))
        told.sums()
        beats.append({"outcomes": told.outcomes.told([told.open])})
    live = quality.merged(beats)["purchases"]
    assert live == quality.merged(beats[::-1])["purchases"]
    (arm,), (version,) = live["arms"], live["by"]
    assert {name: version[name] for name in arm} == arm
    yes, no = [p for p, bought in pairs if bought], [p for p, bought in pairs if not bought]
    auc = sum((a > b) + (a == b) / 2 for a in yes for b in no) / (len(yes) * len(no))
    assert arm["n"] == 6_000
    assert abs(arm["auc"]["mean"] - auc) < 0.005
    assert arm["auc"]["low"] < auc < arm["auc"]["high"]
    assert abs(arm["said"] - arm["came"]) < 0.01
    assert arm["log_loss"]["high"] < arm["base"]
    (line,) = [text for text in quality.plain(quality.merged(beats)) if "purchases" in text]
    assert line.startswith("live purchases champion (n=6,000): log loss 0.")


def test_without_a_purchase_there_is_no_auc() -> None:
    """What cannot be known is null; the share that came is none."""
    told = Told()
    told.buys(row(0, 0, "a"), 0.1)
    told.sums()
    (arm,) = quality.merged([{"outcomes": told.outcomes.told([told.open])}])["purchases"]["arms"]
    assert (arm["auc"]["mean"], arm["came"], arm["base"]) == (None, 0.0, 0)


def test_a_beat_stays_small() -> None:
    """However many versions there were: the newest are told one by one, the arms hold all of them."""
    told = Told()
    for n in range(purchases.Purchases.kept + 3):
        told.buys(row(n, n, "a"), 0.1, version=f"v{n}")
        told.sums()
    beat = told.outcomes.told([told.open])["purchases"]
    assert [one["version"] for one in beat["by"]] == [f"v{n}" for n in range(3, purchases.Purchases.kept + 3)]
    assert sum(group[0] for group in beat["arms"][0]["sums"]) == purchases.Purchases.kept + 3
    assert len(msgspec.json.encode(beat)) < 10_000
