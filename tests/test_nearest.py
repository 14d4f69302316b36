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
    found = every(headings, placed, SCALE, BEST + 20)
    for k, heading in enumerate(headings):
        mine = np.argsort(placed @ heading)[[0, -1, items // 2][: min(len(raised), items)]].astype(np.int32)
        own = nearest.Own(*_distinct(mine, np.array(raised[: len(mine)], np.float32)))
        raised_too = plain(heading, placed, own)
        best, total = nearest.proposed(found[k], own, heading, placed, SCALE, BEST)
        assert sorted(best.tolist()) == sorted(np.argsort(-raised_too)[:BEST].tolist())
        assert total == pytest.approx(np.log(np.exp(raised_too).sum()), abs=1e-4)
        some = np.arange(items, dtype=np.int32)[::2]
        assert nearest.products(some, placed, heading, SCALE, own) == pytest.approx(raised_too[some], abs=1e-4)


@pytest.mark.parametrize("items", [20, 21, 60, 1_007])
@pytest.mark.parametrize("steps", [0, 1, 10**6])
def test_of_equal_products_as_many_are_taken_as_are_wanted(items: int, steps: int) -> None:
    """The twenty largest are found among few items and many, whether all, most or none of them are equal."""
    products = np.round(np.random.default_rng(items).random((3, items)) * steps).astype(np.float32)
    columns, chosen = nearest._best(products, 20)
    for row, where, value in zip(products, columns, chosen, strict=True):
        assert len({*where.tolist()}) == 20
        assert row[where].tolist() == value.tolist()
        assert sorted(value.tolist()) == sorted(row.tolist())[-20:]


def test_a_network_that_says_no_number_is_loud() -> None:
    """It proposes nothing."""
    with pytest.raises(FloatingPointError):
        every(np.full((1, 8), np.nan, np.float32), unit(300, 2), SCALE, BEST)


def every(headings: Any, placed: Any, scale: float, best: int) -> list[nearest.Near]:
    """What looking at all items tells."""
    return nearest.Every(placed).find(headings, placed, scale, best)


def _distinct(columns: Any, raised: Any) -> tuple[Any, Any]:
    kept = np.unique(columns, return_index=True)[1]
    return columns[kept], raised[kept]


def test_nothing_is_near_where_there_are_no_items() -> None:
    """No column, and a sum of nothing."""
    (found,) = every(unit(1, 1), np.zeros((0, 8), np.float32), SCALE, BEST)
    best, total = nearest.proposed(found, nearest.NOBODY, unit(1, 1)[0], np.zeros((0, 8), np.float32), SCALE, BEST)
    assert len(found.columns) == len(best) == 0
    assert np.isfinite(total)


def test_lists_that_are_all_looked_into_tell_what_looking_at_every_item_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of items that moved, and of those that came after; a byte an axis tells the sum to a hundredth."""
    monkeypatch.setattr(nearest, "PROBED", 10**6)
    headings, placed = unit(6, 1), unit(1_000, 2)
    lists = nearest.Lists(placed[:900])
    placed[[3, 950]] = headings[:2]
    lists.moved([3, 950], placed)
    for one, same in zip(lists.find(headings, placed, SCALE, BEST), every(headings, placed, SCALE, BEST), strict=True):
        assert sorted(one.columns.tolist()) == sorted(same.columns.tolist())
        assert np.sort(one.products) == pytest.approx(np.sort(same.products), abs=1e-4)
        assert one.total == pytest.approx(same.total, abs=1e-2)


def test_few_lists_hold_nearly_all_of_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where items lie in heaps, a tenth of the lists; the sum of what was not looked at is told by a sample."""
    monkeypatch.setattr(nearest, "PROBED", 7)
    placed = unit(100, 2)[np.arange(5_000) % 100] + 0.15 * unit(5_000, 3)
    placed /= np.linalg.norm(placed, axis=1, keepdims=True)
    headings = placed[::100] + 0.1 * unit(50, 4)
    headings /= np.linalg.norm(headings, axis=1, keepdims=True)
    pairs = list(
        zip(nearest.Lists(placed).find(headings, placed, SCALE, 20), every(headings, placed, SCALE, 20), strict=True)
    )
    assert np.mean([len({*a.columns.tolist()} & {*b.columns.tolist()}) / 20 for a, b in pairs]) > 0.9
    assert np.abs([a.total - b.total for a, b in pairs]).mean() < 0.1


def test_new_items_and_new_texts_are_looked_at() -> None:
    """Also where there was no room for them."""
    headings, placed = unit(3, 1), unit(500, 2)
    found = nearest.Every(placed[:100])
    placed[[7, 120]] = headings[:2]
    for end in (150, 500):
        found.moved([7, *range(100 if end == 150 else 150, end)], placed[:end])
        for one, same in zip(
            found.find(headings, placed[:end], SCALE, BEST), every(headings, placed[:end], SCALE, BEST), strict=True
        ):
            assert one.columns.tolist() == same.columns.tolist()
    assert [one.products.max() for one in found.find(headings[:2], placed, SCALE, BEST)] == pytest.approx([SCALE] * 2)


def test_lists_are_made_where_items_are_many_and_anew_where_an_eighth_came_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Below that every item is looked at."""
    monkeypatch.setattr(nearest, "LISTED", 80)
    placed = unit(110, 1)
    few = nearest.among(None, placed[:80])
    assert isinstance(few, nearest.Every)
    assert nearest.among(few, placed[:80]) is few
    many = nearest.among(few, placed[:90])
    assert isinstance(many, nearest.Lists)
    assert nearest.among(many, placed[:101]) is many
    assert nearest.among(many, placed[:102]) is not many
    assert isinstance(nearest.among(many, placed[:60]), nearest.Every)
