"""The catalogue in the memory: what nobody touched is proposed, what is withdrawn is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from featurestore.catalogue import Item
from featurestore.events import Session
from tests.test_memory import row
from tests.test_rank import ROWS, model
from trainer.arrivals import NEWEST, SHELF, Arrivals
from trainer.memory import Memory
from trainer.predictor import Predictor


def shoe(n: int, *, available: bool = True) -> Item:
    """One that no event ever named."""
    return Item(item_id=f"sku-{n}", title=f"green trail shoe {n}", category="Sports > Shoes", available=available)


def proposed(made: Predictor) -> set[str]:
    """The items that are said to somebody who looks at a shoe."""
    mine = [row(100, "red trail shoe", user="me", category="Sports > Shoes")]
    (said,) = made.predict([Session("s", "me", 0, 0, mine)], [100_000])
    return {name for name, _ in said.items}


@pytest.mark.parametrize("trained", [False, True])
def test_an_item_is_proposed_before_its_first_click_and_not_after_it_is_withdrawn(
    tmp_path: Path, trained: bool
) -> None:
    """Both by the memory alone and by a trained version; told anew it is back."""
    made = model(tmp_path, trained=trained)
    assert made.stock([shoe(1)]) == 1
    assert "sku-1" in proposed(made)
    assert made.stock([shoe(1)]) == 0  # nothing new in it
    assert made.stock([shoe(1, available=False)]) == 1
    assert "sku-1" not in proposed(made)
    assert made.stock([shoe(1)]) == 1
    assert "sku-1" in proposed(made)


@pytest.mark.parametrize("trained", [False, True])
def test_an_item_with_a_past_is_withdrawn_too(tmp_path: Path, trained: bool) -> None:
    """Popular, followed and near: once withdrawn no count proposes it, nor does an event that still names it."""
    made = model(tmp_path, trained=trained)
    assert "blue trail shoe" in proposed(made)
    made.stock([Item(item_id="blue trail shoe", available=False)])
    assert "blue trail shoe" not in proposed(made)
    made.learn([row(200 + n, "blue trail shoe", user=f"w{n}", category="Sports > Shoes") for n in range(3)])
    assert "blue trail shoe" not in proposed(made)
    mine = [row(300, "blue trail shoe", user="me", category="Sports > Shoes")]  # somebody is at it right now
    (said,) = made.predict([Session("s", "me", 0, 0, mine)], [300_000])
    assert said.items
    assert "blue trail shoe" not in dict(said.items)


def test_what_is_touched_is_no_arrival(tmp_path: Path) -> None:
    """Counts propose it from its first click on; an impression is none."""
    made = model(tmp_path, trained=False)
    made.stock([shoe(1), shoe(2)])
    made.learn([row(400, "sku-1", user="v"), row(401, "sku-2", user="v", type_="impression")])
    assert [made.memory.names[word] for word in made.memory.arrivals] == ["sku-2"]


def test_a_version_ships_its_catalogue(tmp_path: Path) -> None:
    """Arrivals in their order and what is withdrawn come back as they were."""
    made = Memory()
    made.learn(ROWS)
    made.stock([*map(shoe, range(5)), shoe(3, available=False)])
    made.save(tmp_path)
    back = Memory.load(tmp_path)
    assert back.arrivals.newest.tolist() == made.arrivals.newest.tolist()
    assert back.withdrawn == {"sku-3"}
    assert (back.state(), back.items) == (made.state(), made.items)


def test_arrivals_are_bounded_newest_first() -> None:
    """The last ones told stand first; what is told again moves to the front."""
    made = Arrivals((word, word % 2) for word in range(1_000))
    made.put(4, 0)
    assert made.newest[:3].tolist() == [4, 999, 998]
    assert len(made.newest) == NEWEST
    assert made.on(0)[:2].tolist() == [4, 998]
    assert len(made.on(1)) == SHELF
    assert np.array_equal(made.on(7), [])
