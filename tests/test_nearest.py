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


def test_lists_that_are_all_looked_into_tell_what_looking_at_every_item_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of items that moved, and of those that came after the lists were made."""
    monkeypatch.setattr(nearest, "PROBED", 10**6)
    headings, placed = unit(6, 1), unit(1_000, 2)
    lists = nearest.Lists(placed[:900])
    placed[[3, 950]] = headings[:2]
    lists.moved([3, 950], placed)
    for one, every in zip(
        lists.find(headings, placed, SCALE, BEST), nearest.find(headings, placed, SCALE, BEST), strict=True
    ):
        assert sorted(one.columns.tolist()) == sorted(every.columns.tolist())
        assert np.sort(one.products) == pytest.approx(np.sort(every.products), abs=1e-4)
        assert one.total == pytest.approx(every.total, abs=1e-4)


def test_few_lists_hold_nearly_all_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where items lie in heaps, a tenth of the lists; the sum of what was not looked at is told by a sample."""
    monkeypatch.setattr(nearest, "PROBED", 7)
    placed = unit(100, 2)[np.arange(5_000) % 100] + 0.15 * unit(5_000, 3)
    placed /= np.linalg.norm(placed, axis=1, keepdims=True)
    headings = placed[::100] + 0.1 * unit(50, 4)
    headings /= np.linalg.norm(headings, axis=1, keepdims=True)
    few, every = nearest.Lists(placed).find(headings, placed, SCALE, 20), nearest.find(headings, placed, SCALE, 20)
    found = [len({*a.columns.tolist()} & {*b.columns.tolist()}) / 20 for a, b in zip(few, every, strict=True)]
    assert np.mean(found) > 0.9
    assert np.abs([a.total - b.total for a, b in zip(few, every, strict=True)]).mean() < 0.1


def test_lists_are_made_where_items_are_many_and_anew_where_an_eighth_came_since() -> None:
    """Below that every item is looked at."""
    lists = nearest.Lists(unit(100, 1))
    assert not nearest.due(None, nearest.LISTED)
    assert nearest.due(None, nearest.LISTED + 1)
    lists.columns = np.zeros(80_000, np.int32)
    assert not nearest.due(lists, 90_000)
    assert nearest.due(lists, 90_001)
