"""Metrics with intervals, and the gates that a new version must pass."""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

LOSS_MARGIN, MRR_MARGIN = 0.02, -0.01  # what a refresh may be worse by, nats and MRR
ECE_BOUND = 0.05
DRAWS = 500


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What one arm did on each case: −log probability of what came, reciprocal rank (NaN: nothing came)."""

    loss: Floats
    reciprocal: Floats
    recalled: Floats
    confidence: Floats  # of the first item
    right: Floats
    category_loss: Floats  # of the next item's category, given that something comes
    category_right: Floats
    category_recalled: Floats  # among the first five


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """A mean and its 95 % interval over `n` cases; all None where there was no case."""

    n: int
    mean: float | None = None
    low: float | None = None
    high: float | None = None


def interval(values: Floats, session: NDArray[np.int64], *, seed: int = 7) -> Bound:
    """Mean with a bootstrap over sessions (cuts of one session move together); NaN values are no cases."""
    known = ~np.isnan(values)
    values, session = values[known], session[known]
    if not len(values):
        return Bound(n=0)
    _, place = np.unique(session, return_inverse=True)
    sums, sizes = np.bincount(place, values), np.bincount(place).astype(float)
    draws = np.random.default_rng(seed).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), DRAWS)
    means = (draws @ sums) / np.maximum(draws @ sizes, 1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Bound(n=len(values), mean=float(values.mean()), low=float(low), high=float(high))


def ece(confidence: Floats, right: Floats, bins: int = 10) -> float:
    """Expected calibration error over bins of equal width (Guo et al., ICML 2017)."""
    if not len(confidence):
        return 0.0
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.abs(np.bincount(place, confidence - right, bins))
    return float(gaps.sum() / len(confidence))


def refresh_gate(candidate: Scores, champion: Scores, session: NDArray[np.int64]) -> tuple[bool, str, dict[str, Bound]]:
    """Not worse than the champion on the same cases: passes, why, and the bounds of the differences."""
    bounds = differences(candidate, champion, session)
    loss, mrr = bounds["loss"].high, bounds["mrr"].low
    error = ece(candidate.confidence, candidate.right)
    if loss is None or mrr is None:
        return False, "nobody engaged with another item: nothing to judge by", bounds
    if not loss < LOSS_MARGIN:
        return False, f"log loss may be worse by {loss:.4f} nats (allowed {LOSS_MARGIN})", bounds
    if not mrr > MRR_MARGIN:
        return False, f"MRR may be lower by {-mrr:.4f} (allowed {-MRR_MARGIN})", bounds
    if not error <= ECE_BOUND:
        return False, f"calibration error {error:.3f} is above {ECE_BOUND}", bounds
    return True, "not worse than the champion", bounds


def differences(candidate: Scores, champion: Scores, session: NDArray[np.int64]) -> dict[str, Bound]:
    """Candidate minus champion, case by case."""
    return {
        "loss": interval(candidate.loss - champion.loss, session),
        "mrr": interval(candidate.reciprocal - champion.reciprocal, session),
    }


def recipe_gate(candidate: Scores, champion: Scores, session: NDArray[np.int64]) -> tuple[bool, str, dict[str, Bound]]:
    """Better than the champion on the same cases: both intervals apart from zero."""
    bounds = differences(candidate, champion, session)
    loss, mrr = bounds["loss"].high, bounds["mrr"].low
    if loss is None or mrr is None:
        return False, "nobody engaged with another item: nothing to judge by", bounds
    if not (loss < 0 and mrr > 0):
        return False, f"not better on both: log loss up to {loss:+.4f} nats, MRR from {mrr:+.4f}", bounds
    return True, "better than the champion", bounds
