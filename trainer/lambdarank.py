"""The order of the best candidates, learnt by LambdaRank above the blend; the probabilities stay the blend's.

LightGBM (Ke et al., NIPS 2017) is an extra: `pip install nextclick[ranking]`. A version ships the trees as LightGBM's
own text.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trainer import blend, extras
from trainer.blend import Blend, Case, Floats

TOP = 60  # candidates that are put in order; those beyond keep theirs, behind them
FEWEST = 2_000  # cases to learn from
SETTINGS = {
    "objective": "lambdarank", "num_leaves": 15, "learning_rate": 0.05, "min_data_in_leaf": 300,
    "lambdarank_truncation_level": 20, "num_threads": 1, "deterministic": True, "seed": 7, "verbosity": -1,
}  # fmt: skip
TREES = 80
BESIDE = 4  # columns beside the blend's features


class Ranker:
    """Trees above the blend's own logarithm: what they say is added to it."""

    def __init__(self, told: str) -> None:
        self.told = told  # LightGBM's text
        self._trees = _lightgbm().Booster(model_str=told)
        self._width = self._trees.num_feature() - BESIDE  # of the blend's features, those that it was learnt from

    def worth(self, case: Case, each: Floats) -> Floats:
        """What to sort a case's candidates by, [n], the most worth first; `each`: their probabilities."""
        best = _best(each)
        made = np.log(np.maximum(each, 1e-30))
        if len(best):
            made[best] += self._trees.predict(_features(case, best, made[best], self._width), num_threads=1) + 1e3
        return made


def fit(cases: list[Case], mixed: Blend) -> Ranker | None:
    """Learnt from cases whose outcome was not known to what made them; None where they are too few.

    Starting at the blend's own order matters: without it the trees are worse than the blend alone.
    """
    features, came, begins = [], [], []
    for case in cases:
        each, _, _ = mixed.probabilities(case)
        best = _best(each)
        here = best == case.target
        if case.target >= 0 and here.any():
            begins.append(np.log(np.maximum(each[best], 1e-30)))
            features.append(_features(case, best, begins[-1], blend.WIDTH))
            came.append(here)
    if len(came) < FEWEST:
        return None
    lightgbm = _lightgbm()
    data = lightgbm.Dataset(
        np.concatenate(features), np.concatenate(came).astype(np.int8), group=[len(c) for c in came],
        init_score=np.concatenate(begins), free_raw_data=True,
    )  # fmt: skip
    return Ranker(lightgbm.train(SETTINGS, data, TREES).model_to_string())


def _best(each: Floats) -> NDArray[np.int64]:
    return np.argpartition(-each, TOP)[:TOP] if len(each) > TOP else np.arange(len(each))


def _features(case: Case, best: NDArray[np.int64], logs: Floats, width: int) -> NDArray[np.float32]:
    """The blend's first features, its own log probability, and how far the session has gone."""
    session = np.broadcast_to(case.session[1:BESIDE], (len(best), BESIDE - 1))
    return np.concatenate([case.candidates[best, :width], logs[:, None], session], 1).astype(np.float32)


def _lightgbm() -> Any:
    extras.need("lightgbm", asked="a version's ranker", extra="ranking")
    import lightgbm

    return lightgbm
