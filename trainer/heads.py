"""Task layers that answer from a session's own rows: whether its person will buy."""

from __future__ import annotations

import math
from collections.abc import Collection

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from featurestore.events import TYPES, Row
from trainer import endings

Floats = NDArray[np.float64]
STEPS = ("browse", "view", "cart", "checkout", "purchase")  # towards a purchase; the furthest of a session counts
TOWARDS = STEPS[2:]
STEP = tuple(f"step_{name}" for name in STEPS)
FEATURES = (
    *STEP, *endings.FEATURES[1:], *(f"times_{name}" for name in TYPES), "rows_since_step", "cart_since_bought",
    "checkout_since_bought", "price", "no_price",
)  # fmt: skip
ENOUGH = 20  # of each outcome, below which nothing is said
PRIOR = 20.0  # cases that the share of all who buy counts as, in the share of each step
RIDGE = 80.0  # pull towards those shares, for each cut that a session has: its cuts are no independent cases


class Purchase(msgspec.Struct, frozen=True, kw_only=True):
    """Logistic regression on the session: does its user purchase within the horizon?"""

    weights: list[float]
    features: tuple[str, ...] = ()  # what they are weights of

    def probability(self, rows: list[Row], at_ms: int) -> float:
        """Of at least one purchase."""
        return float(self.of(features(rows, at_ms)[None, :])[0])

    def of(self, x: Floats) -> Floats:
        """Probabilities of feature rows [n, features]: [n]."""
        made: Floats = 1 / (1 + np.exp(-(x @ np.asarray(self.weights))))
        return made


def furthest(types: Collection[str]) -> int:
    """The place in `STEPS` of the step nearest to a purchase that these events took.

    >>> furthest(["browse", "cart", "view"])
    2
    """
    return next((place for place in range(len(STEPS) - 1, 0, -1) if STEPS[place] in types), 0)


def features(rows: list[Row], at_ms: int) -> Floats:
    """How far a session has come, what else of it says what comes next, counts, prices, [features]."""
    types: list[str] = [row.event.type for row in rows]
    made = np.zeros(len(FEATURES))
    made[furthest(types)] = 1.0
    at = len(STEPS)
    made[at : at + len(endings.FEATURES) - 1] = endings.features(rows, at_ms)[1:]
    at += len(endings.FEATURES) - 1
    made[at : at + len(TYPES)] = [math.log1p(types.count(name)) for name in TYPES]
    backwards = types[::-1]
    since = [backwards.index(name) for name in TOWARDS if name in types]
    bought = backwards.index("purchase") if "purchase" in types else 0
    prices = [row.event.price for row in rows if row.event.price]
    made[at + len(TYPES) :] = (
        math.log1p(min(since, default=0)),
        math.log1p(backwards[:bought].count("cart")), math.log1p(backwards[:bought].count("checkout")),
        math.log1p(sum(prices) / len(prices)) if prices else 0.0, not prices,
    )  # fmt: skip
    return made


def fit(x: Floats, bought: NDArray[np.bool_], session: NDArray[np.int64]) -> Purchase | None:
    """Maximum likelihood on [n, features], pulled to the share that bought by furthest step; `session` of each cut.

    So a shop without many buyers is answered as `baselines.funnel` answers, and each buyer more tells what else says
    something. None where one outcome is too rare to learn from.
    """
    if min(int(bought.sum()), int((~bought).sum())) < ENOUGH:
        return None
    steps, rest = x[:, : len(STEPS)], x[:, len(STEPS) :]
    shares = rates(steps, bought)
    begin = np.log(shares / (1 - shares))
    middle, spread = rest.mean(0), rest.std(0) + 0.1
    scaled, given = (rest - middle) / spread, steps @ begin
    ridge = RIDGE * len(x) / len(np.unique(session))
    sign = np.where(bought, 1.0, -1.0)

    def loss(w: Floats) -> tuple[float, Floats]:
        margin = sign * (given + scaled @ w)
        wrong = 1 / (1 + np.exp(margin))
        return float(np.logaddexp(0, -margin).sum() + ridge * w @ w), -(scaled.T @ (sign * wrong)) + 2 * ridge * w

    found = optimize.minimize(loss, np.zeros(rest.shape[1]), jac=True, method="L-BFGS-B").x / spread
    return Purchase(weights=[*(begin - middle @ found).tolist(), *found.tolist()], features=FEATURES)


def rates(steps: Floats, bought: NDArray[np.bool_]) -> Floats:
    """The share that bought by furthest step, that of few cuts pulled to the mean; `steps` [n, STEPS]: 1 at each's."""
    made: Floats = (steps[bought].sum(0) + PRIOR * bought.mean()) / (steps.sum(0) + PRIOR)
    return made


def surprise(said: Floats, bought: NDArray[np.bool_]) -> Floats:
    """−log of the probability of what came, case by case."""
    made: Floats = -np.log(np.clip(np.where(bought, said, 1 - said), 1e-12, 1))
    return made
