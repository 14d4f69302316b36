"""Which cadence a backtest recommends, and what each step from a slower one to a faster one gains."""

from __future__ import annotations

import itertools
from typing import Any, Literal

import msgspec
import numpy as np

from deploy import scorecard

Target = Literal["item", "category", "purchase"]
DECIDES = {"item": "item.r20", "category": "category.r5", "purchase": "purchase.log_loss"}
SAID = {"item.r20": "R@20", "category.r5": "R@5 of categories", "purchase.log_loss": "nats of purchase"}


def advised(
    arms: dict[str, Any],
    scores: dict[str, scorecard.Floats],
    cadences: list[str],
    target: Target,
    resampled: scorecard.Resampled,
) -> dict[str, Any]:
    """Gains, a recommended cadence with its reason, and how far that is from each baseline; all paired by cut.

    Cadences are tried in order of what they cost; one is taken where its gain over the one taken so far is apart
    from 0. A gain is positive where it is better: a fall, where the figure is a loss.
    """
    figure = DECIDES[target]
    asked = sorted((c for c in cadences if c in scores), key=lambda c: float(arms[c]["train_cpu_seconds"]))
    if not asked:
        return {"decides": figure, "gains": [], "recommended": None, "against": {}}

    def gain(better: str, worse: str) -> dict[str, Any]:
        away = scores[better][scorecard.ROW[figure]] - scores[worse][scorecard.ROW[figure]]
        bound = resampled.mean(-away if figure in scorecard.LOWER else away)
        cpu = float(arms[better]["train_cpu_seconds"]) - float(arms[worse]["train_cpu_seconds"])
        each = None if bound.mean is None or cpu <= 0 else round(1000 * bound.mean / cpu, 4)
        made = {"cadence": better, "over": worse, "cpu_seconds": round(cpu, 1), "per_1000_cpu_seconds": each}
        return made | dict(msgspec.to_builtins(bound))

    gains = [gain(c, before) for before, c in itertools.pairwise(asked)]
    taken, reasons = asked[0], list[str]()
    won: dict[str, Any] | None = None
    for cadence in asked[1:]:
        step = gain(cadence, taken)
        times = _times(arms, cadence, taken)
        if step["low"] is not None and step["low"] > 0:
            taken, won, reasons = cadence, step, []
        elif step["high"] is not None and step["high"] < 0:
            reasons.append(f"{cadence} is worse by {-step['mean']:.3f} [{-step['high']:.3f}, {-step['low']:.3f}]")
        else:
            reasons.append(f"{cadence} adds nothing over it that these cases can show for {times} the CPU")
    if won is None:
        first = f"{taken}: the cheapest of those asked ({float(arms[taken]['train_cpu_seconds']):.0f} CPU s)"
    else:
        told = f"{won['mean']:+.3f} {SAID[figure]} [{won['low']:+.3f}, {won['high']:+.3f}]"
        first = f"{taken}: {told} over {won['over']} for {won['cpu_seconds']:.0f} CPU s more"
    against = {
        name: gain(taken, name) | {"beaten": None}
        for name in scores
        if name not in cadences and not np.isnan(scores[name][scorecard.ROW[figure]]).all()
    }
    for one in against.values():
        del one["per_1000_cpu_seconds"], one["cpu_seconds"]
        one["beaten"] = one["low"] is not None and one["low"] > 0
    reason = "; ".join([first, *reasons])
    return {
        "decides": figure,
        "gains": gains,
        "recommended": {"cadence": taken, "reason": reason},
        "against": against,
    }


def _times(arms: dict[str, Any], dearer: str, cheaper: str) -> str:
    share = float(arms[dearer]["train_cpu_seconds"]) / max(float(arms[cheaper]["train_cpu_seconds"]), 0.1)
    return f"{share:.0f}x" if share >= 2 else f"{share:.1f}x"
