"""Who buys, by how far a session has come: the base rate of each step towards a purchase."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from featurestore import window
from featurestore.events import Row
from trainer import heads
from trainer.heads import STEPS
from trainer.heads import furthest as step_of


@dataclass(frozen=True, kw_only=True)
class Funnel:
    """The share that bought within the horizon, by the furthest step."""

    rates: dict[str, float]

    def probability(self, rows: list[Row]) -> float:
        """Of a purchase after these rows."""
        return self.rates[furthest(rows)]


def furthest(rows: list[Row]) -> str:
    """The step nearest to a purchase that a session has taken."""
    return STEPS[step_of({row.event.type for row in rows})]


def fitted(made: window.Examples, rows: list[Row], before_ms: int) -> Funnel | None:
    """Counted over the cuts before an instant, by which their purchases must be known; None where there are none."""
    cuts = np.flatnonzero((made.purchase >= 0) & (made.at_ms < before_ms))
    if not len(cuts):
        return None
    step = [STEPS.index(furthest([rows[t] for t in made.tokens[i] if t >= 0])) for i in cuts]
    shares = heads.rates(np.eye(len(STEPS))[step], made.purchase[cuts] == 1)
    return Funnel(rates=dict(zip(STEPS, shares.tolist(), strict=True)))
