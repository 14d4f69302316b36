"""Evidence of the memory and of the texts into calibrated probabilities of what comes next, if anything does."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numba
import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from trainer import endings, memory
from trainer.ragged import Ints

Floats = NDArray[np.float64]
FEATURES = (
    *memory.EVIDENCE, "same_category", "text", "network", "network_again", "bias",
    "again", "neighbours_again", "after_last_again",  # of the session's own items, whenever they were
)  # new ones come last: see `Blend.widened`  # fmt: skip
SESSION = endings.FEATURES
WIDTH = len(FEATURES)
FLOORS = (1e-3, 1e-3, 1.0, 0.1, 1e-3, 1e-3)  # of evidence, before its logarithm
EVIDENCE = 3_000.0  # cases that what was learnt before counts as at most: beyond them, what is new takes over
CURVED = 1_000  # cases that tell the curvature
CALM = 100.0  # how many cases a temperature of one is worth, beside what was learnt before


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One session at one instant: candidates [n, features], its own features, and what came (see `target`)."""

    candidates: Floats
    session: NDArray[Any]  # see `endings.features`
    none: float = 0.0  # that nothing more comes, as the memory has it
    target: int = -2  # a candidate's place; −1: nothing more; −2: an item that is no candidate
    shelves: Ints = field(default_factory=lambda: np.zeros(0, np.int32))  # [n] the word of each candidate's category
    crossing: memory.Crossing = field(default_factory=memory.Crossing)
    shelf: int = -1  # of what came, −1: it has none or nothing came
    slices: tuple[str, ...] = ()  # what kind of case it is


def features(evidence: Floats, same_category: Any, cosines: Any, network: Any) -> Floats:
    """The memory's evidence [n, 6], whether the category is the last one, text's cosine, network's log share [n]."""
    return _features(evidence, same_category, cosines, network)  # type: ignore[no-any-return]


class Blend(msgspec.Struct, frozen=True, kw_only=True):
    """Weights of a log-linear model over the candidates and "an item that is none of them", given that one comes."""

    item: list[float]
    other: list[float]
    temperature: float = 1.0  # every logit is divided by it
    evidence: float = 200.0  # cases that it was learnt from

    @classmethod
    def flat(cls) -> Blend:
        """Before it was fitted: everything is as probable."""
        return cls(item=[0.0] * WIDTH, other=[0.0] * len(SESSION))

    def probabilities(self, case: Case) -> tuple[Floats, float, float]:
        """Of each candidate, of nothing more, of another item; they sum to one."""
        made = _softmax(
            case.candidates, np.array(self.item), case.session, np.array(self.other), self.temperature, 1 - case.none
        )
        return made[:-1], case.none, float(made[-1])

    def widened(self) -> Blend:
        """As one of today's features: those that came after it was fitted weigh nothing."""
        return msgspec.structs.replace(self, item=self.item + [0.0] * (WIDTH - len(self.item)))

    def cooled(self) -> Blend:
        """The same probabilities at a temperature of one."""
        item, other = ([w / self.temperature for w in part] for part in (self.item, self.other))
        return msgspec.structs.replace(self, item=item, other=other, temperature=1.0)


def fit(cases: list[Case], *, start: Blend | None = None) -> Blend:
    """Maximum likelihood by L-BFGS, pulled to `start`; then one temperature on the newest fifth, which it left out.

    `start` counts as the cases that it was learnt from, `EVIDENCE` at most: a quadratic with the curvature of the
    likelihood at its weights (Laplace's approximation), so that few cases move only what they say something about.
    `cases` are in order of time, each as it was before its outcome was known; those after which nothing came are left
    out. Where none has candidates, `start` stays.
    """
    cases = [c for c in cases if len(c.candidates) and c.target != -1]
    if not cases:
        return start or Blend.flat()
    start = None if start is None else start.cooled()
    known = min(EVIDENCE, start.evidence) if start is not None else 0.0
    pull = np.eye(len(_flat(Blend.flat()))) if start is None else known / 2 * _curvature(cases, start)
    early = max(1, len(cases) * 4 // 5)
    made, late = _likeliest(cases[:early], start, pull, tolerance=1e-5), cases[early:] or cases

    def loss(log_temperature: float) -> float:
        tried = msgspec.structs.replace(made, temperature=math.exp(log_temperature))
        return float(sum(surprise(tried, case) for case in late)) + (CALM + known) * log_temperature**2

    found = optimize.minimize_scalar(loss, bounds=(-0.7, 0.7), method="bounded", options={"xatol": 0.01})
    made = _likeliest(cases, start, pull, made)
    return msgspec.structs.replace(made, temperature=math.exp(found.x), evidence=known + len(cases))


def by_category(shelves: Ints, each: Floats) -> tuple[Ints, Floats]:
    """Categories, and each one's share of an item that comes; one that is no candidate is of a kind with those."""
    return _shares(shelves, np.asarray(each, np.float64))  # type: ignore[no-any-return]


def largest(values: Floats, n: int) -> NDArray[np.int64]:
    """Where the n largest stand, the largest first, of equal ones the first.

    >>> largest(np.array([0.1, 0.4, 0.2, 0.4]), 3).tolist()
    [1, 3, 2]
    """
    return _largest(values, min(n, len(values)))  # type: ignore[no-any-return]


def rehearse() -> None:
    """Have compiled what a prediction needs."""
    one = np.ones(1, np.float32)
    told = features(np.ones((1, len(FLOORS))), one > 0, one, one)
    Blend.flat().probabilities(Case(candidates=told, session=np.ones(len(SESSION), np.float32)))


def surprise(arm: Blend, case: Case) -> float:
    """−log of the probability of what came."""
    each, none, other = arm.probabilities(case)
    said = none if case.target == -1 else other if case.target == -2 else each[case.target]
    return -math.log(max(said, 1e-12))


def _likeliest(
    cases: list[Case], pulled_to: Blend | None, pull: Floats, start: Blend | None = None, tolerance: float = 1e-6
) -> Blend:
    first = np.cumsum([0] + [len(c.candidates) for c in cases])
    x, s = np.concatenate([c.candidates for c in cases]), np.stack([c.session for c in cases])
    target = np.array([c.target for c in cases])
    n = len(cases)
    before, begin = _flat(pulled_to or Blend.flat()), _flat(start or pulled_to or Blend.flat())

    def loss(w: Floats) -> tuple[float, Floats]:
        total, gradient = _sweep(x, s, first, target, w[:WIDTH], w[WIDTH:])
        away = pull @ (w - before)
        return (total + float(away @ (w - before))) / n, (gradient + 2 * away) / n

    found = optimize.minimize(loss, begin, jac=True, method="L-BFGS-B", options={"maxiter": 100, "ftol": tolerance}).x
    return Blend(item=found[:WIDTH].tolist(), other=found[WIDTH:].tolist())


def _curvature(cases: list[Case], arm: Blend) -> Floats:
    """The second derivative of a case's surprise by the weights, [weights, weights], and a little of one's own."""
    weights = len(_flat(arm))
    made = 1e-2 * np.eye(weights)
    shown = cases[:: max(1, len(cases) // CURVED)]
    for case in shown:
        each, none, other = arm.probabilities(case)
        share = np.append(each, other) / (1 - none)
        said = np.zeros((len(share), weights))
        said[:-1, :WIDTH] = case.candidates
        said[-1, WIDTH:] = case.session
        mean = share @ said
        made += ((said * share[:, None]).T @ said - np.outer(mean, mean)) / len(shown)
    return made


@numba.njit(cache=True)
def _sweep(x, s, first, target, item, other):  # type: ignore[no-untyped-def] # pragma: no cover
    """Summed −log likelihood of the cases and its gradient, one case after the other."""
    n, width, wide = len(first) - 1, s.shape[1], x.shape[1]
    gradient, total = np.zeros(wide + width), 0.0
    share = np.empty((first[1:] - first[:-1]).max())
    for c in range(n):
        o = 0.0
        for k in range(width):
            o += s[c, k] * other[k]
        top, m = o, first[c + 1] - first[c]
        for i in range(m):
            a = 0.0
            for k in range(wide):
                a += x[first[c] + i, k] * item[k]
            share[i] = a
            top = max(top, a)
        came = o if target[c] == -2 else share[target[c]]
        z = np.exp(o - top)
        for i in range(m):
            share[i] = np.exp(share[i] - top)
            z += share[i]
        total += top + np.log(z) - came
        o = np.exp(o - top) / z - (target[c] == -2)
        for k in range(width):
            gradient[wide + k] += o * s[c, k]
        for i in range(m):
            p = share[i] / z - (i == target[c])
            for k in range(wide):
                gradient[k] += p * x[first[c] + i, k]
    return total, gradient


@numba.njit(cache=True)
def _features(evidence, same_category, cosines, network):  # type: ignore[no-untyped-def] # pragma: no cover
    made = np.zeros((len(evidence), WIDTH))
    of_none = np.log(np.array(FLOORS))  # most evidence is none
    for i in range(len(evidence)):
        for k in range(len(FLOORS)):
            made[i, k] = np.log(evidence[i, k] + FLOORS[k]) if evidence[i, k] else of_none[k]
        made[i, 2], made[i, 6], made[i, 7], made[i, 8] = evidence[i, 2], same_category[i], cosines[i], network[i]
        made[i, 10] = 1.0
        if evidence[i, 2] > 0:
            made[i, 9], made[i, 11], made[i, 12], made[i, 13] = network[i], 1.0, made[i, 4], made[i, 5]
    return made


@numba.njit(cache=True)
def _softmax(x, item, s, other, temperature, whole):  # type: ignore[no-untyped-def] # pragma: no cover
    """Shares of a whole that candidates [n, features] and what is none of them have: [n + 1]."""
    n = len(x)
    made = np.zeros(n + 1)
    for i in range(n):
        for k in range(len(item)):
            made[i] += x[i, k] * item[k]
    for k in range(len(other)):
        made[n] += s[k] * other[k]
    made /= temperature
    made = np.exp(made - made.max())
    return made * (whole / made.sum())


@numba.njit(cache=True)
def _largest(values, n):  # type: ignore[no-untyped-def] # pragma: no cover
    best, m = np.empty(n, np.int64), 0
    for i in range(len(values)):
        if m == n and (n == 0 or values[i] <= values[best[n - 1]]):
            continue
        j = min(m, n - 1)
        while j and values[best[j - 1]] < values[i]:
            best[j] = best[j - 1]
            j -= 1
        best[j] = i
        m = min(m + 1, n)
    return best


@numba.njit(cache=True)
def _shares(keys, values):  # type: ignore[no-untyped-def] # pragma: no cover
    """The distinct keys from 0 on in order, and each one's share of all values."""
    order = np.argsort(keys, kind="mergesort")
    known, sums, n = np.empty(len(keys), np.int32), np.zeros(len(keys)), -1
    for i in order:
        if n < 0 or known[n] != keys[i]:
            n += 1
            known[n] = keys[i]
        sums[n] += values[i]
    first = 1 if n >= 0 and known[0] < 0 else 0
    total = sums.sum()
    if total > 0:
        sums /= total
    return known[first : n + 1], sums[first : n + 1]


def _flat(arm: Blend) -> Floats:
    return np.concatenate([arm.item, arm.other])
