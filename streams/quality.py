"""Live quality read from the beats: means with intervals by version and arm, from sums that add up across workers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from streams import purchases, waiting
from streams.interests import FIELDS
from streams.outcomes import CHAMPION, HOLDBACK
from streams.waiting import GROUPS, Key

RATIOS = {  # what is summed, over how many
    "log_loss": ("loss", "settled"),
    "mrr20": ("reciprocal", "next"),
    "recall1": ("hit1", "next"),
    "recall5": ("hit5", "next"),
    "recall20": ("hit20", "next"),
    "category_recall1": ("category1", "categorised"),
    "category_recall5": ("category5", "categorised"),
}
# Student's t at .975 by degrees of freedom: ten groups are few.
T975 = (math.nan, 12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
COUNTS = ("open", "settled", "unsettled", "passed_over")


def merged(beats: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """All workers' outcomes as one: `COUNTS`, and `by` version and arm what `quality` tells, oldest version first.

    `arms`: the same of each arm over the versions that are told one by one. `purchases`: what `bought` tells of each
    arm, and of the newest versions. `gains`: where a version has both arms, champion minus those held back.
    """
    told = [beat["outcomes"] for beat in beats if beat.get("outcomes")]
    sums: dict[Key, dict[str, list[float]]] = {}
    arms: dict[str, dict[str, list[float]]] = {}
    for entry in (entry for one in told for entry in one["by"]):
        for mine in (sums.setdefault((entry["version"], entry["arm"]), _nothing()),
                     arms.setdefault(entry["arm"], _nothing())):  # fmt: skip
            for name in FIELDS:
                mine[name] = [a + b for a, b in zip(mine[name], entry["sums"].get(name, [0.0] * GROUPS), strict=True)]
    by = {key: quality(sums[key]) for key in sorted(sums)}
    return {name: sum(int(one[name]) for one in told) for name in COUNTS} | {
        "by": [{"version": version, "arm": arm, **figures} for (version, arm), figures in by.items()],
        "arms": [{"arm": arm, **quality(arms[arm])} for arm in sorted(arms)],
        "purchases": _purchases([one["purchases"] for one in told if "purchases" in one]),
        "gains": [
            {"version": version, **{name: difference(by[version, CHAMPION][name], held[name]) for name in RATIOS}}
            for (version, arm), held in by.items()
            if arm == HOLDBACK and (version, CHAMPION) in by
        ],
    }


def _nothing() -> dict[str, list[float]]:
    return {name: [0.0] * GROUPS for name in FIELDS}


def quality(sums: Mapping[str, list[float]]) -> dict[str, Any]:
    """The means with 95 % intervals; `said` and `came` are what calibration compares: shares of all predictions."""
    total = {name: sum(column) for name, column in sums.items()}
    n = max(total["settled"], 1)
    return {
        "n": round(total["settled"]),
        **{name: interval(sums[top], sums[bottom]) for name, (top, bottom) in RATIOS.items()},
        "nothing_more": {"said": total["none_said"] / n, "came": (total["settled"] - total["next"]) / n},
        "first_item": {"said": total["first_said"] / n, "came": total["hit1"] / n},
        "listed_item": {"said": total["listed_said"] / n, "came": total["hit20"] / n},
    }


def _purchases(told: list[Mapping[str, Any]]) -> dict[str, Any]:
    sums: dict[tuple[str, ...], waiting.Sums] = {}
    for entry in (entry for one in told for entry in (*one["arms"], *one["by"])):
        key = (entry["version"], entry["arm"]) if "version" in entry else (entry["arm"],)
        known = sums.get(key)
        sums[key] = entry["sums"] if known is None else [
            [a + b for a, b in zip(mine, other, strict=True)] for mine, other in zip(known, entry["sums"], strict=True)
        ]  # fmt: skip
    return {
        "open": sum(int(one["open"]) for one in told),
        "arms": [{"arm": key[0], **bought(sums[key])} for key in sorted(sums) if len(key) == 1],
        "by": [{"version": key[0], "arm": key[1], **bought(sums[key])} for key in sorted(sums) if len(key) == 2],
    }


def bought(sums: waiting.Sums) -> dict[str, Any]:
    """Log loss and AUC of purchase probabilities with 95 % intervals, and what was said beside what came.

    `base`: the log loss of who always says the share that came. The AUC is that of the bins: two in one bin count as
    told half right.
    """
    total = [sum(column) for column in zip(*sums, strict=True)]
    n, came = total[0], total[3]
    share = came / n if n else 0.0
    return {
        "n": round(n),
        "log_loss": interval([group[1] for group in sums], [group[0] for group in sums]),
        "base": -sum(p * math.log(p) for p in (share, 1 - share) if p > 0),
        "auc": left_out(_auc, sums),
        "said": total[2] / n if n else None,
        "came": share if n else None,
    }


def _auc(total: list[float]) -> float | None:
    """How probable it is that who bought was told higher than who did not; None where one of the two is missing."""
    begin = len(purchases.FIELDS)
    no, yes = total[begin : begin + purchases.BINS], total[begin + purchases.BINS :]
    if not sum(no) or not sum(yes):
        return None
    below, right = sum(no), 0.0
    for wrong, told_right in zip(no, yes, strict=True):  # the highest first
        below -= wrong
        right += told_right * (below + wrong / 2)
    return right / (sum(no) * sum(yes))


def left_out(statistic: Callable[[list[float]], float | None], sums: waiting.Sums) -> dict[str, float | None]:
    """A statistic of all sums, its interval by leaving out one group of users after the other, as `interval`."""
    total = [sum(column) for column in zip(*sums, strict=True)]
    mean = statistic(total)
    groups = [group for group in sums if group[0] > 0]
    found = [statistic([a - b for a, b in zip(total, group, strict=True)]) for group in groups]
    without = [one for one in found if one is not None]
    n = round(total[0])
    if mean is None or len(without) < len(groups) or len(groups) < 2:
        return {"n": n, "mean": mean, "low": None, "high": None}
    reach = _reach(without)
    return {"n": n, "mean": mean, "low": mean - reach, "high": mean + reach}


def _reach(without: list[float]) -> float:
    """Half the width of an interval from what a statistic is without each of the groups."""
    centre = sum(without) / len(without)
    error = math.sqrt((len(without) - 1) / len(without) * sum((one - centre) ** 2 for one in without))
    return T975[len(without) - 1] * error


def interval(top: list[float], bottom: list[float]) -> dict[str, float | None]:
    """The ratio of two sums over groups of users, its interval by leaving out one group after the other.

    A delete-a-group jackknife (Kott 2001): what one user does is counted in one group, so predictions of one session
    may go together as they like. Fewer than two groups have no interval, nothing at all no mean.

    >>> interval([1.0, 2.0], [2.0, 2.0])["mean"]
    0.75
    """
    pairs = [(a, b) for a, b in zip(top, bottom, strict=True) if b > 0]
    over = sum(b for _, b in pairs)
    if not pairs:
        return {"n": 0, "mean": None, "low": None, "high": None}
    mean = sum(a for a, _ in pairs) / over
    if len(pairs) < 2:
        return {"n": round(over), "mean": mean, "low": None, "high": None}
    without = [(mean * over - a) / (over - b) for a, b in pairs]
    reach = _reach(without)
    return {"n": round(over), "mean": mean, "low": mean - reach, "high": mean + reach}


def difference(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, float | None]:
    """One mean minus another of other users, with its interval: their errors are independent, so their squares add.

    >>> difference({"mean": 5, "low": 2, "high": 8}, {"mean": 1, "low": -3, "high": 5})
    {'mean': 4, 'low': -1.0, 'high': 9.0}
    """
    if one["mean"] is None or other["mean"] is None:
        return {"mean": None, "low": None, "high": None}
    mean = one["mean"] - other["mean"]
    if one["high"] is None or other["high"] is None:
        return {"mean": mean, "low": None, "high": None}
    reach = math.hypot(one["high"] - one["mean"], other["high"] - other["mean"])
    return {"mean": mean, "low": mean - reach, "high": mean + reach}


def plain(live: Mapping[str, Any], lines: int = 6) -> Iterable[str]:
    """The same for people: a line a version and arm, the newest last, and what waits."""
    for one in live["by"][-lines:]:
        yield (
            f"live {one['version']} {one['arm']} (n={one['n']:,}): log loss {told(one['log_loss'])}, "
            f"R@20 {told(one['recall20'])}, MRR@20 {told(one['mrr20'])}, category R@1 "
            f"{told(one['category_recall1'])}; nothing more said {one['nothing_more']['said']:.2f}, "
            f"came {one['nothing_more']['came']:.2f}"
        )
    for gain in live["gains"][-lines:]:
        yield (
            f"live {gain['version']} against those held back: log loss {told(gain['log_loss'], sign='+')}, "
            f"R@20 {told(gain['recall20'], sign='+')}, MRR@20 {told(gain['mrr20'], sign='+')}"
        )
    for one in live.get("purchases", {}).get("arms", ()):
        yield (
            f"live purchases {one['arm']} (n={one['n']:,}): log loss {told(one['log_loss'])}, {one['base']:.3f} by the "
            f"share alone; AUC {told(one['auc'])}; said {one['said']:.1%}, came {one['came']:.1%}"
        )
    if live["open"] or live["unsettled"] or live["passed_over"]:
        yield (
            f"live quality: {live['settled']:,} predictions settled, {live['open']:,} wait for their horizon, "
            f"{live['unsettled']:,} were lost on the way, {live['passed_over']:,} passed over (sampled, or told twice)"
        )


def told(bound: Mapping[str, Any], digits: int = 3, sign: str = "") -> str:
    """A mean with its interval.

    >>> told({"mean": 0.5, "low": 0.25, "high": 0.75}, 2)
    '0.50 [0.25, 0.75]'
    """
    if bound["mean"] is None:
        return "–"
    how = f"{sign}.{digits}f"
    interval_ = "" if bound["low"] is None else f" [{bound['low']:{how}}, {bound['high']:{how}}]"
    return f"{bound['mean']:{how}}{interval_}"
