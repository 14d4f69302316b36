"""Which items sessions are heading for: those of the largest products, and what all of them sum up to."""

from __future__ import annotations

from typing import NamedTuple

import numba
import numpy as np

from trainer.neighbours import Ints
from trainer.texts import Vectors


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


def find(headings: Vectors, placed: Vectors, scale: float, best: int) -> list[Near]:
    """Of unit vectors of sessions [n, width] and items [m, width], products scaled, every item looked at.

    `scale` bounds the products, so that the exponentials need no maximum of their own.
    """
    if not len(placed):
        return [Near(np.zeros(0, np.int32), np.zeros(0, np.float32), -np.inf)] * len(headings)
    products = headings @ placed.T
    products *= np.float32(scale)
    n, m = products.shape
    columns = np.argpartition(products, m - best, axis=1)[:, m - best :] if m > best else np.tile(np.arange(m), (n, 1))
    chosen = np.take_along_axis(products, columns, 1)
    products -= np.float32(scale)
    totals = scale + np.log(np.exp(products, out=products).sum(1))
    return [Near(*of) for of in zip(columns.astype(np.int32), chosen, totals.tolist(), strict=True)]


def rehearse() -> None:
    """Have compiled what the others need."""
    headings = np.eye(2, dtype=np.float32)
    (near, _), own = find(headings, headings, 1.0, 1), Own(np.zeros(1, np.int32), np.zeros(1, np.float32))
    best, _ = proposed(near, own, headings[0], headings, 1.0, 1)
    products(best, headings, headings[0], 1.0, own)


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
