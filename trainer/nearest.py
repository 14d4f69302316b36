"""Which items sessions are heading for: those of the largest products, and what all of them sum up to."""

from __future__ import annotations

from typing import Any, NamedTuple

import numba
import numpy as np

from trainer.ragged import Ints
from trainer.texts import Vectors

LISTED = 50_000  # items from which not all are looked at
PROBED, DENSE = 64, 2.0  # lists that a session looks into, of so many times the root of the items
SAMPLED = 4_096  # items that stand for those in the other lists
TAUGHT, PASSES = 20_000, 4  # items that the lists' directions are found by, and how often they are shifted
FAST = {"reassoc", "contract", "arcp", "nsz", "nnan"}  # vectorised; infinities stay what they are


class Near(NamedTuple):
    """Of one session: its best columns in no order, their products, and the log-sum-exp of all products."""

    columns: Ints
    products: Vectors
    total: float


class Own(NamedTuple):
    """Columns of a session's own items, and by how much each product of theirs is raised."""

    columns: Ints
    raised: Vectors


NOBODY = Own(np.zeros(0, np.int32), np.zeros(0, np.float32))


class Every:
    """All items, each of them looked at; their vectors lie as columns, which is what products are fastest with."""

    def __init__(self, placed: Vectors) -> None:
        self.across = np.zeros((placed.shape[1], 2 * len(placed) + 64), np.float32)
        self.across[:, : len(placed)] = placed.T

    def moved(self, columns: list[int], placed: Vectors) -> None:
        """These columns are new, or have other vectors now."""
        if len(placed) > self.across.shape[1] or placed.shape[1] != len(self.across):
            self.across = Every(placed).across
        else:
            self.across[:, columns] = placed[columns].T

    def find(self, headings: Vectors, placed: Vectors, scale: float, best: int) -> list[Near]:
        """Of unit vectors of sessions [n, width] and items [m, width], products scaled.

        `scale` bounds the products, so that the exponentials need no maximum of their own.
        """
        n, m = len(headings), len(placed)
        if not m:
            return [Near(np.zeros(0, np.int32), np.zeros(0, np.float32), -np.inf)] * n
        products = headings @ self.across[:, :m]
        columns, chosen = _best(products, min(best, m))
        totals = scale + np.log(_sums(products, np.float32(scale)))
        return [Near(*of) for of in zip(columns, chosen * np.float32(scale), totals.tolist(), strict=True)]


class Lists:
    """Items in lists by their directions: a session looks into those nearest to it (IVF: Jégou et al., TPAMI 2011).

    There an item is a byte an axis, which is what is read for it; the products of the best are computed anew. What lies
    in the other lists counts in the sum of all, by a sample. Items that came after the lists were made stand behind
    them and are all looked at; one that moved is looked for where it was.
    """

    def __init__(self, placed: Vectors) -> None:
        rng, n = np.random.default_rng(7), len(placed)
        some = placed[np.sort(rng.choice(n, min(n, TAUGHT), replace=False))]
        self.middle = some[rng.choice(len(some), min(len(some), int(DENSE * n**0.5)), replace=False)]
        for _ in range(PASSES):
            near = _list_of(some, self.middle)
            sums = np.zeros_like(self.middle)
            np.add.at(sums, near, some)
            norms = np.linalg.norm(sums, axis=1, keepdims=True)
            self.middle = np.where(norms > 0, sums / np.maximum(norms, 1e-9), self.middle).astype(np.float32)
        of = _list_of(placed, self.middle)
        self.columns = np.argsort(of, kind="stable").astype(np.int32)  # list after list
        self.begins = np.searchsorted(of[self.columns], np.arange(len(self.middle) + 1)).astype(np.int64)
        self.stored, self.steps = np.empty(placed.shape, np.int8), np.empty(n, np.float32)
        self.place = np.empty(n, np.int64)  # of each column
        self.place[self.columns] = np.arange(n)
        for i in range(0, n, TAUGHT):
            self._store(np.arange(i, min(n, i + TAUGHT)), placed)
        shown = np.sort(rng.choice(n, min(n, SAMPLED), replace=False))
        self.sample, self.sample_of = np.ascontiguousarray(placed[shown].T), of[shown]

    @property
    def size(self) -> int:
        """Columns that are in the lists."""
        return len(self.columns)

    def moved(self, columns: list[int], placed: Vectors) -> None:
        """These columns have other vectors now."""
        known = np.array(columns)
        self._store(known[known < self.size], placed)

    def _store(self, columns: Any, placed: Vectors) -> None:
        """As bytes: what the longest axis of each is divided by 127."""
        told, place = placed[columns], self.place[columns]
        steps = np.maximum(np.abs(told).max(1), np.float32(1e-9)) / np.float32(127)
        self.stored[place], self.steps[place] = np.rint(told / steps[:, None]), steps

    def find(self, headings: Vectors, placed: Vectors, scale: float, best: int) -> list[Near]:
        """As `Every` does it, with what the lists tell."""
        lists, _ = _best(headings @ self.middle.T, min(PROBED, len(self.middle)))
        columns, found, totals = _looked(
            headings, lists, self.begins, self.stored, self.steps, self.columns, headings @ placed[self.size :].T,
            headings @ self.sample, self.sample_of, np.float32(scale), best,
        )  # fmt: skip
        made = []
        for of, n, heading, total in zip(columns, found.tolist(), headings, totals.tolist(), strict=True):
            made.append(Near(of[:n], products(of[:n], placed, heading, scale), total))
        return made


def among(before: Every | Lists | None, placed: Vectors) -> Every | Lists:
    """What to look for these items in: lists where there are very many, made anew where an eighth came since."""
    few, listed = len(placed) <= LISTED, isinstance(before, Lists)
    if before is not None and few != listed and (few or len(placed) <= 1.125 * before.size):  # type: ignore[union-attr]
        return before
    return Every(placed) if few else Lists(placed)


def _list_of(vectors: Vectors, middle: Vectors) -> Any:
    return np.concatenate([(vectors[i : i + 8_192] @ middle.T).argmax(1) for i in range(0, len(vectors), 8_192)])


def rehearse() -> None:
    """Have compiled what the others need."""
    headings = np.eye(2, dtype=np.float32)
    (near, _), own = (
        Every(headings).find(headings, headings, 1.0, 1),
        Own(np.zeros(1, np.int32), np.zeros(1, np.float32)),
    )
    best, _ = proposed(near, own, headings[0], headings, 1.0, 1)
    products(best, headings, headings[0], 1.0, own)
    Lists(headings).find(headings, headings, 1.0, 1)


def proposed(near: Near, own: Own, heading: Vectors, placed: Vectors, scale: float, best: int) -> tuple[Ints, float]:
    """The best columns once a session's own items are raised, and the log-sum-exp of all products with them."""
    chosen, total = _proposed(near.columns, near.products, *own, heading, placed, scale, best)
    return chosen, scale + float(np.log(max(np.exp(near.total - scale) + total, 1e-30)))


def products(columns: Ints, placed: Vectors, heading: Vectors, scale: float, own: Own = NOBODY) -> Vectors:
    """Of some items with a session's heading, its own items raised: [columns]."""
    return _products(columns, placed, heading, scale, *own)  # type: ignore[no-any-return]


@numba.njit(cache=True)
def _proposed(columns, products, own, raised, heading, placed, scale, best):  # type: ignore[no-untyped-def] # pragma: no cover
    n, m, total = len(columns), len(own), 0.0
    which, value = np.empty(n + m, np.int32), np.empty(n + m, np.float32)
    which[:n], value[:n] = columns, products
    before = _products(own, placed, heading, scale, own[:0], raised[:0])
    for i in range(m):
        which[n + i], value[n + i] = own[i], before[i] + raised[i]
        total += np.exp(value[n + i] - scale) - np.exp(before[i] - scale)
        for j in range(n):
            if columns[j] == own[i]:
                value[j] = -np.inf
    k = 0
    while k < min(best, n + m):
        top = k
        for j in range(k + 1, n + m):
            if value[j] > value[top]:
                top = j
        if value[top] == -np.inf:
            break
        which[k], which[top] = which[top], which[k]
        value[k], value[top] = value[top], value[k]
        k += 1
    return which[:k], total


@numba.njit(cache=True, fastmath=True)
def _products(columns, placed, heading, scale, own, raised):  # type: ignore[no-untyped-def] # pragma: no cover
    made = np.empty(len(columns), np.float32)
    for i in range(len(columns)):
        total = np.float32(0)
        for k in range(placed.shape[1]):
            total += placed[columns[i], k] * heading[k]
        made[i] = total * scale
        for j in range(len(own)):
            if own[j] == columns[i]:
                made[i] += raised[j]
    return made


@numba.njit(cache=True)
def _looked(  # type: ignore[no-untyped-def] # pragma: no cover
    headings, lists, begins, stored, steps, column, behind, sampled, sample_of, scale, best
):  # fmt: skip
    """Of each session its best columns [n, best], how many they are [n], and the log of the sum of all [n]."""
    n, most, later = len(headings), 0, behind.shape[1]
    for s in range(n):
        most = max(most, (begins[lists[s] + 1] - begins[lists[s]]).sum())
    line, places = np.empty(most + later, np.float32), np.empty(most + later, np.int32)
    columns, found, totals = np.empty((n, best), np.int32), np.empty(n, np.int32), np.empty(n)
    left = np.ones(len(begins) - 1, np.float32)  # lists that are not looked into
    for s in range(n):
        m = 0
        for a in lists[s]:
            size = begins[a + 1] - begins[a]
            _bytes(stored[begins[a] : begins[a + 1]], steps[begins[a] : begins[a + 1]], headings[s], line[m:])
            places[m : m + size] = column[begins[a] : begins[a + 1]]
            m += size
            left[a] = 0
        others = len(column) - m
        line[m : m + later], places[m : m + later] = behind[s], np.arange(len(column), len(column) + later)
        m += later
        total = _sum(line[:m], scale)
        if others > 0:
            here = left[sample_of]
            total += _sum_of(sampled[s], here, scale) * others / max(here.sum(), 1.0)
        left[lists[s]] = 1
        k = min(best, m)
        where, _ = _best(line[:m].reshape(1, m), k)
        columns[s, :k], found[s], totals[s] = places[where[0]], k, scale + np.log(total)
    return columns, found, totals


@numba.njit(cache=True, fastmath=FAST)
def _bytes(stored, steps, heading, line):  # type: ignore[no-untyped-def] # pragma: no cover
    for i in range(len(stored)):
        total = np.float32(0)
        for k in range(len(heading)):
            total += np.float32(stored[i, k]) * heading[k]
        line[i] = total * steps[i]


@numba.njit(cache=True)
def _best(products, best):  # type: ignore[no-untyped-def] # pragma: no cover
    """Where the best of each row [n, m] are, in no order, and what they are: [n, best] each.

    A row is dealt out into heaps. None of the best is less than the `best`-th largest of what is largest in a heap, so
    that few heaps are looked into.
    """
    n, m = products.shape
    columns, chosen = np.empty((n, best), np.int32), np.empty((n, best), np.float32)
    which, value = np.empty(m, np.int32), np.empty(m, np.float32)
    deep = max(1, m // (3 * best))
    heaps = m // deep  # the products of one stand that far apart; the last few are in none
    for r in range(n):
        tops = _tops(products[r], heaps, deep)
        bar, kept = np.partition(tops, heaps - best)[heaps - best], 0
        for b in range(heaps):
            if tops[b] >= bar:
                for j in range(b, heaps * deep, heaps):
                    if products[r, j] >= bar:
                        which[kept], value[kept] = j, products[r, j]
                        kept += 1
        for j in range(heaps * deep, m):
            if products[r, j] >= bar:
                which[kept], value[kept] = j, products[r, j]
                kept += 1
        if kept < best:
            raise FloatingPointError("a product is not a number: the network is broken")
        bar, k = np.partition(value[:kept], kept - best)[kept - best], 0
        for equal in (False, True):
            for i in range(kept):
                if k < best and (value[i] == bar if equal else value[i] > bar):
                    columns[r, k], chosen[r, k] = which[i], value[i]
                    k += 1
    return columns, chosen


@numba.njit(cache=True, fastmath=FAST)
def _tops(line, heaps, deep):  # type: ignore[no-untyped-def] # pragma: no cover
    tops = line[:heaps].copy()
    for k in range(1, deep):
        for b in range(heaps):
            tops[b] = max(tops[b], line[k * heaps + b])
    return tops


@numba.njit(cache=True, fastmath=FAST)
def _exp(x):  # type: ignore[no-untyped-def] # pragma: no cover
    """e^x of x from some −30 to 0, in steps that are vectorised: the Taylor polynomial at x / 64, to its 64th power."""
    y = x * np.float32(1 / 64)
    made = np.float32(1)
    for k in (6, 5, 4, 3, 2, 1):
        made = np.float32(1) + made * y * np.float32(1 / k)
    for _ in range(6):
        made *= made
    return made


@numba.njit(cache=True, fastmath=FAST)
def _sum(line, scale):  # type: ignore[no-untyped-def] # pragma: no cover
    """Of e^(scale · product − scale); products are 1 at most."""
    total = np.float32(0)
    for j in range(len(line)):
        total += _exp(line[j] * scale - scale)
    return total


@numba.njit(cache=True, fastmath=FAST)
def _sum_of(line, which, scale):  # type: ignore[no-untyped-def] # pragma: no cover
    total = np.float32(0)
    for j in range(len(line)):
        total += which[j] * _exp(line[j] * scale - scale)
    return total


@numba.njit(cache=True)
def _sums(products, scale):  # type: ignore[no-untyped-def] # pragma: no cover
    """`_sum` of each row [n, m]: [n]."""
    totals = np.empty(len(products), np.float64)
    for r in range(len(products)):
        totals[r] = _sum(products[r], scale)
    return totals
