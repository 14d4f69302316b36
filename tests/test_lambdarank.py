"""The order above the blend: what it learns that the blend cannot say, that it comes back, and when it stays away."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from trainer import blend, lambdarank

N = 80  # candidates of a case
OLDER = blend.FEATURES.index("again")  # features of versions before it


def cases(n: int, seed: int) -> list[blend.Case]:
    """What comes has a `network` share in the middle: no weight can say so, a tree can."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(n):
        x = np.zeros((N, blend.WIDTH))
        x[:, blend.FEATURES.index("network")] = value = rng.uniform(-1, 1, N)
        came = int(rng.choice(N, p=(share := np.exp(-20 * value**2)) / share.sum()))
        made.append(blend.Case(candidates=x, session=np.eye(len(blend.SESSION))[0], target=came))
    return made


def hits(ranker: lambdarank.Ranker | None, asked: list[blend.Case], mixed: blend.Blend) -> float:
    """R@20."""
    found = 0
    for case in asked:
        each, _, _ = mixed.probabilities(case)
        worth = each if ranker is None else ranker.worth(case, each)
        found += int((worth > worth[case.target]).sum() < 20)
    return found / len(asked)


def test_it_learns_what_no_weight_can_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """R@20 on later cases rises by more than half; trees that are told and read give the same order."""
    monkeypatch.setattr(lambdarank, "FEWEST", 100)
    monkeypatch.setattr(lambdarank, "TOP", N)
    learnt, later = cases(600, 1), cases(200, 2)
    mixed = blend.fit(learnt)
    ranker = lambdarank.fit(learnt, mixed)
    assert ranker is not None
    assert hits(ranker, later, mixed) > 1.5 * hits(None, later, mixed)
    again = lambdarank.Ranker(ranker.told)
    each, _, _ = mixed.probabilities(later[0])
    assert np.array_equal(ranker.worth(later[0], each), again.worth(later[0], each))


def test_what_is_beyond_the_top_stays_behind_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the most probable are put in order; the others follow, as probable as they are."""
    monkeypatch.setattr(lambdarank, "FEWEST", 100)
    learnt = cases(600, 1)
    mixed = blend.Blend(
        item=[float(name == "network") for name in blend.FEATURES],
        other=[0.0] * len(blend.SESSION),
    )  # fmt: skip
    ranker = lambdarank.fit(learnt, mixed)
    assert ranker is not None
    each, _, _ = mixed.probabilities(learnt[0])
    by_share, by_worth = np.argsort(-each), np.argsort(-ranker.worth(learnt[0], each))
    assert set(by_worth[: lambdarank.TOP]) == set(by_share[: lambdarank.TOP])
    assert np.array_equal(by_worth[lambdarank.TOP :], by_share[lambdarank.TOP :])
    assert not np.array_equal(by_worth, by_share)


def test_trees_of_fewer_features_read_those_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version of before a feature came: its trees say what they said, whatever the new column holds."""
    monkeypatch.setattr(lambdarank, "FEWEST", 100)
    monkeypatch.setattr(blend, "WIDTH", OLDER)
    learnt = cases(600, 1)
    ranker = lambdarank.fit(learnt, blend.Blend.flat())
    monkeypatch.undo()
    assert ranker is not None
    ranker = lambdarank.Ranker(ranker.told)
    each = np.full(N, 1 / N)
    wider = np.concatenate([learnt[0].candidates, np.ones((N, blend.WIDTH - OLDER))], 1)
    today = dataclasses.replace(learnt[0], candidates=wider)
    assert np.ptp(ranker.worth(today, each)) > 0
    assert np.array_equal(ranker.worth(learnt[0], each), ranker.worth(today, each))


def test_too_few_cases_teach_no_order() -> None:
    """The blend's own order is what is left."""
    assert lambdarank.fit(cases(20, 1), blend.Blend.flat()) is None
