"""Task layers that answer from a session's own rows: whether its person will buy."""

from __future__ import annotations

import math

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from featurestore.events import Row
from trainer import blend

Floats = NDArray[np.float64]
COUNTED = ("view", "cart", "checkout", "purchase")
FEATURES = (*blend.SESSION, *COUNTED)
ENOUGH = 20  # of each outcome, below which nothing is said
RIDGE = 1.0


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """Logistic regression on the session: does its user purchase within the horizon?"""

    weights: list[float]

    def probability(self, rows: list[Row], at_ms: int) -> float:
        """Of at least one purchase."""
        return float(self.of(features(rows, at_ms)[None, :])[0])

    def of(self, x: Floats) -> Floats:
        """Probabilities of feature rows [n, features]: [n]."""
        made: Floats = 1 / (1 + np.exp(-(x @ np.asarray(self.weights))))
        return made


def features(rows: list[Row], at_ms: int) -> Floats:
    """What the blend knows of a session, and how often each step towards a purchase was taken."""
    types: list[str] = [row.event.type for row in rows]
    counts = [math.log1p(types.count(name)) for name in COUNTED]
    return np.concatenate([blend.session_features(rows, at_ms), counts])


def fit(x: Floats, bought: NDArray[np.bool_]) -> Purchase | None:
    """Maximum likelihood with a small ridge on [n, features]; None where one outcome is too rare to learn from."""
    if min(int(bought.sum()), int((~bought).sum())) < ENOUGH:
        return None
    sign = np.where(bought, 1.0, -1.0)

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (x @ w)
        wrong = 1 / (1 + np.exp(margin))
        return float(np.logaddexp(0, -margin).sum() + RIDGE * w @ w), -(x.T @ (sign * wrong)) + 2 * RIDGE * w

    return Purchase(weights=optimize.minimize(loss, np.zeros(x.shape[1]), jac=True, method="L-BFGS-B").x.tolist())


def surprise(said: Floats, bought: NDArray[np.bool_]) -> Floats:
    """−log of the probability of what came, case by case."""
    made: Floats = -np.log(np.clip(np.where(bought, said, 1 - said), 1e-12, 1))
    return made
