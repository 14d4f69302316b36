"""Whether who was said to buy bought: each such prediction waits for the purchase horizon, then counts.

The label is the one that is trained on (`featurestore.window`): a purchase by the same user at a higher offset within
the horizon.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from featurestore.events import Row
from streams import waiting

BINS = 16  # of what was said, each half as wide as the one above it by a factor of √2; the last holds all below
FIELDS = ("settled", "loss", "said", "bought")  # then BINS who did not buy, then BINS who did


class Said(waiting.Waiting, kw_only=True, gc=False, eq=False):
    """Of one prediction what its outcome is measured by; `came`: its user bought."""

    probability: float


class Open(waiting.Open[Said]):
    """The open ones of a partition: a purchase is the label of those of its user whose horizon it lies in."""

    def label(self, user: waiting.User[Said], row: Row) -> None:
        event, offset = row.event, row.origin.offset
        if event.type != "purchase":
            return
        for made in user.unanswered:
            made.came = made.offset < offset and made.at_ms < event.ts_ms <= made.until_ms
        user.unanswered = [made for made in user.unanswered if not made.came]


class Purchases(waiting.Tally[Said]):
    """What a worker's purchase probabilities came to."""

    width = len(FIELDS) + 2 * BINS
    kept = 4

    def count(self, sums: list[float], made: Said) -> None:
        chance = made.probability if made.came else 1 - made.probability
        for k, figure in enumerate((1, -math.log(max(chance, waiting.LEAST)), made.probability, made.came)):
            sums[k] += figure
        sums[len(FIELDS) + BINS * made.came + binned(made.probability)] += 1

    def told(self, parts: Collection[Open]) -> dict[str, Any]:
        """For the beat: counts, and the sums by arm and by the newest versions."""
        return {
            **self.counts(parts),
            "arms": [{"arm": arm, "sums": _rounded(sums)} for arm, sums in self.arms.items()],
            "by": [
                {"version": version, "arm": arm, "sums": _rounded(sums)} for (version, arm), sums in self.by.items()
            ],
        }


def binned(probability: float) -> int:
    """The bin of a probability: a half step of two each, the highest first.

    >>> [binned(p) for p in (1.0, 0.6, 0.5, 0.1, 0.0)]
    [0, 1, 2, 6, 15]
    """
    return min(BINS - 1, int(-2 * math.log2(max(probability, waiting.LEAST))))


def totals(told: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of what `Purchases.told` says each arm's `FIELDS`, over all users."""
    return {one["arm"]: waiting.totals(one["sums"], FIELDS) for one in told["arms"]}


def _rounded(sums: waiting.Sums) -> list[list[float]]:
    """Counts as whole numbers: a beat is sent every second."""
    return [[round(figure, 4) if k in (1, 2) else int(figure) for k, figure in enumerate(column)] for column in sums]
