"""What an answer was worth: one column of figures a cut, and their means with intervals over sessions."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from trainer import judge

Floats = NDArray[np.float64]
FLOOR = 1e-6  # the least probability that is charged
BINS = 10
RANKS = (1, 5, 10, 20)
MEANS = (
    *(f"item.r{k}" for k in RANKS), "item.mrr20", "item.ndcg20", "item.log_loss", "outcome.log_loss", "none.log_loss",
    "category.r1", "category.r5", "category.r10", "category.log_loss", "purchase.log_loss",
)  # fmt: skip
PAIRS = ("ece.given_some", "ece.published", "ece.none", "ece.category", "ece.purchase")  # what was said, what came
FIGURES = (*MEANS, *(f"{name}.{part}" for name in PAIRS for part in ("said", "came")))
ROW = {name: i for i, name in enumerate(FIGURES)}
SLICED = ("item.r20", "item.mrr20", "item.log_loss", "category.r1", "category.r5", "category.log_loss")
LOWER = frozenset({"item.log_loss", "outcome.log_loss", "none.log_loss", "category.log_loss", "purchase.log_loss"})


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What an arm said of one cut: shares given that something comes, and what it published of the rest.

    None is what it says nothing of; an empty answer names nothing, and misses.
    """

    items: dict[str, float] | None = None
    categories: dict[str, float] | None = None
    none: float | None = None
    purchase: float | None = None


@dataclass(frozen=True, kw_only=True)
class Truth:
    """What came after one cut, and how many names were known at it."""

    item: str | None  # None: nothing more
    category: str | None
    bought: bool | None  # None: not known yet
    items: int
    categories: int
    slices: tuple[str, ...] = field(default=())


def score(answer: Answer, truth: Truth) -> Floats:
    """The figures of one cut [FIGURES], NaN where one does not apply."""
    made: dict[str, float] = {}
    if (none := answer.none) is not None:
        came = none if truth.item is None else 1 - none
        made |= {"none.log_loss": _loss(came), "ece.none.said": none, "ece.none.came": float(truth.item is None)}
        items = answer.items or {}
        top = max(items, key=items.__getitem__, default=None)
        made["ece.published.said"] = items[top] * (1 - none) if top is not None else 0.0
        made["ece.published.came"] = float(truth.item is not None and top == truth.item)
    if truth.bought is not None and (buys := answer.purchase) is not None:
        made["purchase.log_loss"] = _loss(buys if truth.bought else 1 - buys)
        made |= {"ece.purchase.said": buys, "ece.purchase.came": float(truth.bought)}
    if truth.item is not None and answer.items is not None:
        rank, share = _placed(answer.items, truth.item, truth.items)
        made |= {f"item.r{k}": float(rank <= k) for k in RANKS}
        made["item.mrr20"] = 1 / rank if rank <= 20 else 0.0
        made["item.ndcg20"] = 1 / math.log2(1 + rank) if rank <= 20 else 0.0
        made["item.log_loss"] = _loss(share)
        made |= _best(answer.items, truth.item, "ece.given_some")
        if none is not None:
            made["outcome.log_loss"] = _loss(share * (1 - none))
    elif none is not None:
        made["outcome.log_loss"] = _loss(none)
    if truth.category is not None and answer.categories is not None:
        rank, share = _placed(answer.categories, truth.category, truth.categories)
        made |= {f"category.r{k}": float(rank <= k) for k in (1, 5, 10)}
        made["category.log_loss"] = _loss(share)
        made |= _best(answer.categories, truth.category, "ece.category")
    out = np.full(len(FIGURES), np.nan)
    for name, value in made.items():
        out[ROW[name]] = value
    if not all(map(math.isfinite, made.values())):
        raise FloatingPointError(f"a score is not finite: {made}")
    return out


def _placed(shares: dict[str, float], target: str, known: int) -> tuple[float, float]:
    """Its rank among all names, ties in the middle, infinite where it was not named; and its share.

    What was not named shares what is left evenly, one name that nobody knows yet among it.
    """
    share, every = shares.get(target), np.fromiter(shares.values(), np.float64, len(shares))
    if share is None:
        return math.inf, max(1 - float(every.sum()), 0.0) / max(known - len(shares) + 1, 1)
    above, ties = np.count_nonzero(every > share), np.count_nonzero(every == share)
    return 1 + above + (ties - 1) / 2, share


def _best(shares: dict[str, float], target: str, name: str) -> dict[str, float]:
    top = max(shares, key=shares.__getitem__, default=None)
    said = shares[top] if top is not None else 0.0
    return {f"{name}.said": min(said, 1.0), f"{name}.came": float(top == target)}


def _loss(share: float) -> float:
    return -math.log(min(max(share, FLOOR), 1.0))


class Resampled:
    """A bootstrap over sessions, drawn once for all figures: cuts of one session come and go together."""

    def __init__(self, session: NDArray[np.int64], seed: int = 7) -> None:
        _, self._place = np.unique(session, return_inverse=True)
        n = int(self._place.max(initial=-1)) + 1
        rng = np.random.default_rng(seed)
        self._draws: Floats = np.zeros((judge.DRAWS, n))  # how often each session is in each draw
        if n:
            self._draws[:] = rng.multinomial(n, np.full(n, 1 / n), judge.DRAWS)

    def mean(self, values: Floats) -> judge.Bound:
        """Of values [cuts], NaN ones being no cases."""
        known = ~np.isnan(values)
        if not known.any():
            return judge.Bound(n=0)
        sums, sizes = self._by_session(values, known), self._by_session(np.ones(len(values)), known)
        drawn = (self._draws @ sums) / np.maximum(self._draws @ sizes, 1)
        return _bound(int(known.sum()), float(values[known].mean()), drawn)

    def ece(self, said: Floats, came: Floats) -> judge.Bound:
        """Expected calibration error over bins of equal width (Guo et al., ICML 2017); resampling adds to it."""
        known = ~np.isnan(said)
        if not known.any():
            return judge.Bound(n=0)
        bins = np.minimum((np.where(known, said, 0) * BINS).astype(int), BINS - 1)
        gap = np.stack([self._by_session(said - came, known & (bins == b)) for b in range(BINS)], 1)
        sizes = self._draws @ self._by_session(np.ones(len(said)), known)
        drawn = np.abs(self._draws @ gap).sum(1) / np.maximum(sizes, 1)
        return _bound(int(known.sum()), judge.ece(said[known], came[known], BINS), drawn)

    def auc(self, said: Floats, came: Floats) -> judge.Bound:
        """How often one that came was told a higher probability than one that did not; ties count half."""
        known = ~np.isnan(said)
        if not known.any() or came[known].min() == came[known].max():
            return judge.Bound(n=int(known.sum()))
        said, came, place = said[known], came[known], self._place[known]
        order = np.argsort(said, kind="stable")
        first = np.flatnonzero(np.r_[True, np.diff(said[order]) != 0])
        drawn = [_area(weight[place][order], came[order], first) for weight in self._draws]
        return _bound(len(said), _area(np.ones(len(said)), came[order], first), np.array(drawn))

    def _by_session(self, values: Floats, known: NDArray[np.bool_]) -> Floats:
        made: Floats = np.zeros(self._draws.shape[1])
        made[:] = np.bincount(self._place[known], values[known], len(made))
        return made


def _area(weight: Floats, came: Floats, first: NDArray[np.int64]) -> float:
    """Under the curve, of cases in order of what was said; `first`: where each value begins."""
    right, wrong = np.add.reduceat(weight * came, first), np.add.reduceat(weight * (1 - came), first)
    pairs = (right * (np.cumsum(wrong) - wrong / 2)).sum()
    return float(pairs / max(right.sum() * wrong.sum(), 1e-12))


def _bound(n: int, mean: float, drawn: Floats) -> judge.Bound:
    low, high = np.quantile(drawn, [0.025, 0.975])
    return judge.Bound(n=n, mean=round(mean, 5), low=round(float(low), 5), high=round(float(high), 5))


def summary(scores: Floats, resampled: Resampled, slices: dict[str, NDArray[np.bool_]]) -> dict[str, Any]:
    """All figures of an arm [FIGURES, cuts] with their intervals, and some of them by slice: plain values."""
    made: dict[str, Any] = {name: resampled.mean(scores[ROW[name]]) for name in MEANS}
    for name in PAIRS:
        made[name] = resampled.ece(scores[ROW[f"{name}.said"]], scores[ROW[f"{name}.came"]])
    made["purchase.auc"] = resampled.auc(scores[ROW["ece.purchase.said"]], scores[ROW["ece.purchase.came"]])
    parts = {
        told: {name: resampled.mean(np.where(here, scores[ROW[name]], np.nan)) for name in SLICED}
        for told, here in slices.items()
    }
    return {"metrics": _there(made), "slices": {told: _there(part) for told, part in parts.items()}}


def _there(bounds: dict[str, judge.Bound]) -> dict[str, Any]:
    return {name: msgspec.to_builtins(bound) for name, bound in bounds.items() if bound.mean is not None}
