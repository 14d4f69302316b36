"""Which category comes: the mixture of what the items say and of what came after the last one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from trainer import blend, categories
from trainer.categories import Mixture
from trainer.memory import Crossing

SHELVES = np.array([7, 3, 7, -1], np.int32)  # of four candidates; one is of no category
EACH = np.array([0.1, 0.2, 0.1, 0.1])
HERE = Crossing(left=9, after=np.array([5, 3], np.int32), times=np.array([6, 2], np.float32))


def told(mixture: Mixture | None, crossing: Crossing = HERE) -> dict[int, float]:
    """Shares by category."""
    words, shares = categories.shares(mixture, SHELVES, EACH, crossing)
    return dict(zip(words.tolist(), shares.tolist(), strict=True))


def drawn(n: int, rng: np.random.Generator, follows: float) -> list[blend.Case]:
    """Candidates that do not know better than chance; category k + 1 comes after k as often as `follows` says."""
    made = []
    for _ in range(n):
        left, x = int(rng.integers(10)), np.zeros((10, blend.WIDTH))
        x[:, -1] = 1.0
        came = (left + 1) % 10 if rng.random() < follows else int(rng.integers(10))
        known = Crossing(left=left, after=np.array([(left + 1) % 10], np.int32), times=np.full(1, 40, np.float32))
        shelves = np.arange(10, dtype=np.int32)
        made.append(blend.Case(candidates=x, session=np.eye(len(blend.SESSION))[0], target=came, shelves=shelves,
                               shelf=came, crossing=known))  # fmt: skip
    return made


def surprise(mixture: Mixture | None, cases: list[blend.Case]) -> float:
    """Mean −log of the share of what came."""
    said = [categories.shares(mixture, c.shelves, blend.Blend.flat().probabilities(c)[0], c.crossing) for c in cases]
    return -sum(math.log(s[w == c.shelf][0]) for (w, s), c in zip(said, cases, strict=True)) / len(cases)


def test_without_a_mixture_the_items_speak_alone() -> None:
    """Summed by category; what may be an item of none is left over."""
    assert told(None) == pytest.approx({3: 0.4, 7: 0.4})


def test_every_category_that_something_speaks_for_has_a_share() -> None:
    """Those of the items, those that came after the last one, and the last one itself; as much as the items'."""
    said = told(Mixture(items=0.8, after=0.2, last=-0.3))
    assert sorted(said) == [3, 5, 7, 9]
    assert sum(said.values()) == pytest.approx(0.8)
    assert said[3] > said[7] > said[5] > said[9]
    assert told(Mixture(items=0.8, after=0.2, last=3.0))[9] > said[9]
    nowhere = told(Mixture(items=1.0, after=0.5, last=1.0), Crossing())
    assert nowhere == pytest.approx({3: 0.4, 7: 0.4})


def test_nothing_to_go_by_is_no_category() -> None:
    """A session that nobody knows anything of."""
    words, shares = categories.shares(Mixture(), np.zeros(0, np.int32), np.zeros(0), Crossing())
    assert len(words) == len(shares) == 0


def test_what_came_before_is_learnt_where_it_helps() -> None:
    """New cases of the same shop are told better than by the items; in a shop without habits nothing is lost."""
    rng = np.random.default_rng(1)
    for follows, gain in ((0.8, 0.5), (0.0, -0.01)):
        found = categories.fit(blend.Blend.flat(), drawn(2_000, rng, follows))
        later = drawn(1_000, rng, follows)
        assert surprise(None, later) - surprise(found, later) > gain


def test_few_cases_hardly_move_it() -> None:
    """What 2,000 cases taught is not unlearnt by ten as by 2,000 of another kind; none leaves it as it was."""
    rng = np.random.default_rng(2)
    before = categories.fit(blend.Blend.flat(), drawn(2_000, rng, 0.8))
    assert before is not None
    few, many = (categories.fit(blend.Blend.flat(), drawn(n, rng, 0.0), start=before) for n in (10, 2_000))
    assert few is not None
    assert many is not None
    assert many.after < 0.1 < few.after < before.after
    assert categories.fit(blend.Blend.flat(), [], start=before) == before
    assert categories.fit(blend.Blend.flat(), []) is None
