"""What an answer is worth: ranks, shares, and intervals that hold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from deploy import advice, scorecard
from deploy.scorecard import Answer, Resampled, Truth
from trainer import judge

SESSION = np.repeat(np.arange(400), 3)


def scored(answer: Answer, **truth: Any) -> dict[str, float]:
    """The figures that apply."""
    told = {"item": None, "category": None, "bought": None, "items": 10, "categories": 4} | truth
    made = scorecard.score(answer, Truth(**told))
    return {name: float(made[row]) for name, row in scorecard.ROW.items() if not np.isnan(made[row])}


def test_ties_get_the_middle_rank() -> None:
    """Of three that are told alike the target stands second; one that is not named has no rank."""
    made = scored(Answer(items={"a": 0.2, "b": 0.2, "c": 0.2}, categories={}), item="b")
    assert made["item.mrr20"] == 0.5
    assert made["item.ndcg20"] == pytest.approx(1 / math.log2(3))
    assert (made["item.r1"], made["item.r5"]) == (0.0, 1.0)
    assert scored(Answer(items={"a": 0.2}, categories={}), item="z")["item.r20"] == 0.0


def test_what_is_not_named_shares_what_is_left() -> None:
    """Ten items, two of them named with .8 together: each other one, and one nobody knows, gets a ninth of .2."""
    made = scored(Answer(items={"a": 0.5, "b": 0.3}, categories={}), item="z")
    assert made["item.log_loss"] == pytest.approx(-math.log(0.2 / 9))


def test_nothing_more_is_an_outcome() -> None:
    """With "none" published, both outcomes are judged by it; without, only what came is."""
    said = Answer(items={"a": 0.5}, categories={}, none=0.25)
    assert scored(said)["outcome.log_loss"] == pytest.approx(-math.log(0.25))
    made = scored(said, item="a")
    assert made["outcome.log_loss"] == pytest.approx(-math.log(0.75 * 0.5))
    assert (made["ece.published.said"], made["ece.given_some.said"]) == (0.375, 0.5)
    assert "outcome.log_loss" not in scored(Answer(items={"a": 0.5}, categories={}), item="a")


def test_a_score_that_is_no_number_is_loud() -> None:
    """NaN would pass for a case that does not apply."""
    with pytest.raises(FloatingPointError, match="not finite"):
        scored(Answer(items={"a": math.nan, "b": 0.1}, categories={}, none=0.1), item="a")


def test_means_and_intervals_are_the_judges() -> None:
    """The same mean and, from other draws of as many sessions, nearly the same interval; NaN values are no cases."""
    rng = np.random.default_rng(1)
    values = rng.normal(size=len(SESSION)) + np.repeat(rng.normal(size=400), 3)
    values[::7] = np.nan
    made, other = Resampled(SESSION).mean(values), judge.interval(values, SESSION)
    assert made.n == other.n
    assert made.mean == pytest.approx(other.mean, abs=1e-5)
    assert made.low == pytest.approx(other.low, abs=0.03)
    assert made.high == pytest.approx(other.high, abs=0.03)


def test_area_under_the_curve() -> None:
    """1 where those who bought were told most, one half where all are told alike; ties count half."""
    came = np.tile([0.0, 1.0, 0.0], 400)
    resampled = Resampled(SESSION)
    assert resampled.auc(came, came).mean == 1.0
    assert resampled.auc(np.full(len(came), 0.3), came).mean == 0.5
    said = np.tile([0.2, 0.2, 0.1], 400)
    bound = resampled.auc(said, came)
    assert bound.mean == 0.75
    assert bound.low == bound.high == 0.75  # every session is alike


def test_calibration_error_has_an_interval() -> None:
    """Told .3, true .3: near none; told .3, true .5: two tenths, and the interval says so."""
    rng = np.random.default_rng(2)
    said = np.full(len(SESSION), 0.3)
    fair = Resampled(SESSION).ece(said, (rng.random(len(said)) < 0.3).astype(float))
    off = Resampled(SESSION).ece(said, (rng.random(len(said)) < 0.5).astype(float))
    assert fair.mean is not None
    assert fair.mean < 0.04
    assert off.low is not None
    assert off.high is not None
    assert off.low > 0.15
    assert off.low < 0.2 < off.high


def test_what_is_worse_is_said_to_be() -> None:
    """A dearer cadence that loses is not told as one that adds nothing."""
    scores = {name: np.full((len(scorecard.FIGURES), len(SESSION)), np.nan) for name in ("1d", "never")}
    scores["never"][scorecard.ROW["purchase.log_loss"]] = 0.3
    scores["1d"][scorecard.ROW["purchase.log_loss"]] = 0.5
    arms = {"1d": {"train_cpu_seconds": 50}, "never": {"train_cpu_seconds": 10}}
    made = advice.advised(arms, scores, ["1d", "never"], "purchase", Resampled(SESSION))
    assert made["recommended"]["cadence"] == "never"
    assert "1d is worse by 0.200 [0.200, 0.200]" in made["recommended"]["reason"]


@pytest.mark.parametrize(("gained", "taken"), [(0.0, "never"), (0.2, "1d")])
def test_a_cadence_is_taken_where_its_gain_shows(gained: float, taken: str) -> None:
    """Of three cadences the dearest that is surely better; what adds nothing is named with its cost."""
    rng, scores = np.random.default_rng(4), {}
    plain = (rng.random(len(SESSION)) < 0.5).astype(float)
    better = np.where(rng.random(len(SESSION)) < gained, 1.0, plain)
    for name, values in (("6h", better), ("1d", better), ("never", plain), ("popular", 0 * plain)):
        scores[name] = np.full((len(scorecard.FIGURES), len(SESSION)), np.nan)
        scores[name][scorecard.ROW["item.r20"]] = values
    arms = {name: {"train_cpu_seconds": cpu} for name, cpu in (("never", 10), ("1d", 50), ("6h", 200), ("popular", 0))}
    made = advice.advised(arms, scores, ["6h", "1d", "never"], "item", Resampled(SESSION))
    assert made["recommended"]["cadence"] == taken
    assert (
        f"6h adds nothing over it that these cases can show for {200 // arms[taken]['train_cpu_seconds']}x the CPU"
        in (made["recommended"]["reason"])
    )
    assert made["against"]["popular"]["beaten"]
    assert [(gain["cadence"], gain["over"]) for gain in made["gains"]] == [("1d", "never"), ("6h", "1d")]
