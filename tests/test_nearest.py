"""The items nearest to a heading: compared with a plain computation over all of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from trainer import nearest

SCALE, BEST = 14.0, 5


def unit(n: int, seed: int, width: int = 8) -> Any:
    """Directions at random."""
    made = np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)
    return made / np.linalg.norm(made, axis=1, keepdims=True)


def plain(heading: Any, placed: Any, own: nearest.Own) -> Any:
    """Every product, a session's own items raised."""
    made = SCALE * (placed @ heading).astype(np.float64)
    made[own.columns] += own.raised
    return made


@pytest.mark.parametrize("items", [1, 3, 300])
@pytest.mark.parametrize("raised", [(), (9.0,), (9.0, -9.0, 0.5)])
def test_best_items_and_their_sum_are_those_of_all_products(items: int, raised: tuple[float, ...]) -> None:
    """A session's own items are raised or lowered, whether or not they were among the best before."""
    headings, placed = unit(4, 1), unit(items, 2)
    found = nearest.find(headings, placed, SCALE, BEST + 20)
    for k, heading in enumerate(headings):
        mine = np.argsort(placed @ heading)[[0, -1, items // 2][: min(len(raised), items)]].astype(np.int32)
        own = nearest.Own(*_distinct(mine, np.array(raised[: len(mine)], np.float32)))
        every = plain(heading, placed, own)
        best, total = nearest.proposed(found[k], own, heading, placed, SCALE, BEST)
        assert sorted(best.tolist()) == sorted(np.argsort(-every)[:BEST].tolist())
        assert total == pytest.approx(np.log(np.exp(every).sum()), abs=1e-4)
        some = np.arange(items, dtype=np.int32)[::2]
        assert nearest.products(some, placed, heading, SCALE, own) == pytest.approx(every[some], abs=1e-4)


def _distinct(columns: Any, raised: Any) -> tuple[Any, Any]:
    kept = np.unique(columns, return_index=True)[1]
    return columns[kept], raised[kept]


def test_nothing_is_near_where_there_are_no_items() -> None:
    """No column, and a sum of nothing."""
    (found,) = nearest.find(unit(1, 1), np.zeros((0, 8), np.float32), SCALE, BEST)
    best, total = nearest.proposed(found, nearest.NOBODY, unit(1, 1)[0], np.zeros((0, 8), np.float32), SCALE, BEST)
    assert len(found.columns) == len(best) == 0
    assert np.isfinite(total)
