"""Which category comes: what the items say of it, what came after the last one, and that it is the last one."""

from __future__ import annotations

import msgspec
import numba
import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from trainer import blend
from trainer.memory import Crossing
from trainer.ragged import Ints

Floats = NDArray[np.float64]
Told = tuple[Ints, Floats]  # words of categories [n], their shares given that something comes (less what has none)
FLOOR = 1e-3  # of a share, before its logarithm
UNSEEN = 5.0  # times that a category was followed by nothing in particular
RIDGE = 30.0  # pull to the weights before: ten cases say little against them


class Mixture(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of a log-linear model over the last category, those of the items and those that came after the last."""

    items: float = 1.0  # of the logarithm of the items' share
    after: float = 0.0  # of the logarithm of how often it came after the last one
    last: float = 0.0  # of its being the last one

    def told(self, items: Told, crossing: Crossing) -> Told:
        """The items' shares mixed with what is known of where the session comes from."""
        known = crossing.left, crossing.after, crossing.times
        return _mixed(*items, *known, self.items, self.after, self.last)  # type: ignore[no-any-return]


def shares(mixture: Mixture | None, shelves: Ints, each: Floats, crossing: Crossing) -> Told:
    """What comes, by category, of candidates' categories [n] and probabilities [n]; None: by these alone."""
    said: Told = blend.by_category(shelves, each)
    return said if mixture is None else mixture.told(said, crossing)


def fit(arm: blend.Blend, cases: list[blend.Case], *, start: Mixture | None = None) -> Mixture | None:
    """Maximum likelihood on cases as they were before their outcome was known, pulled to `start`, else to the items'.

    Where no category came `start` stays.
    """
    made: list[tuple[int, Floats]] = []  # where what came stands; features
    for case in cases:
        if case.shelf >= 0:
            each, _, _ = arm.probabilities(case)
            items, crossing = blend.by_category(case.shelves, each), case.crossing
            words, x = _features(*items, crossing.left, crossing.after, crossing.times)
            made += [(int(at), x) for at in np.flatnonzero(words == case.shelf)]
    if not made:
        return start
    before = np.array(msgspec.structs.astuple(start or Mixture()))
    x = np.concatenate([x for _, x in made])
    first = np.cumsum([0] + [len(x) for _, x in made])
    came, sizes = first[:-1] + [at for at, _ in made], np.diff(first)

    def loss(w: Floats) -> tuple[float, Floats]:
        z = x @ w
        z -= np.repeat(np.maximum.reduceat(z, first[:-1]), sizes)
        each = np.exp(z)
        total = np.add.reduceat(each, first[:-1])
        each /= np.repeat(total, sizes)
        away = w - before
        surprise = float((np.log(total) - z[came]).sum() + RIDGE * away @ away)
        return surprise, x.T @ each - x[came].sum(0) + 2 * RIDGE * away

    found = optimize.minimize(loss, before, jac=True, method="L-BFGS-B").x.tolist()
    return Mixture(**dict(zip(Mixture.__struct_fields__, found, strict=True)))


@numba.njit(cache=True)
def _features(shelves, said, left, after, times):  # type: ignore[no-untyped-def] # pragma: no cover
    """Categories that may come [n] and what speaks for each [n, 3]; `shelves` are distinct and in order."""
    most, there = len(shelves) + len(after) + 1, left < 0
    words, x, n = np.empty(most, np.int32), np.zeros((most, 3)), len(shelves)
    words[:n], x[:n, 0] = shelves, said
    total = times.sum() + UNSEEN
    for j in range(len(after)):
        k = np.searchsorted(shelves, after[j])
        if k == len(shelves) or shelves[k] != after[j]:
            k, n = n, n + 1
            words[k] = after[j]
        x[k, 1] = times[j] / total
    for k in range(n):
        x[k, 2] = words[k] == left
        there |= words[k] == left
    if not there:
        words[n], x[n, 2], n = left, 1.0, n + 1
    for k in range(n):
        x[k, 0], x[k, 1] = np.log(x[k, 0] + FLOOR), np.log(x[k, 1] + FLOOR)
    return words[:n], x[:n]


@numba.njit(cache=True)
def _mixed(shelves, said, left, after, times, items, came, last):  # type: ignore[no-untyped-def] # pragma: no cover
    """Categories that may come [n] and their shares, as much in all as what is said of them."""
    words, x = _features(shelves, said, left, after, times)
    made = np.empty(len(words))
    for k in range(len(words)):
        made[k] = items * x[k, 0] + came * x[k, 1] + last * x[k, 2]
    if len(words):
        made = np.exp(made - made.max())
        made *= said.sum() / made.sum()
    return words, made
