"""What somebody wanted next beside what was said of it: each prediction waits for its horizon, then counts.

The label is the one that is trained on (`featurestore.window`): the first different item, by event time, that the same
user engages with at a higher offset within the horizon, or none.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Collection
from typing import Any

from featurestore.events import Row
from streams import waiting

CATEGORIES = 5
FIELDS = (
    "settled", "loss", "next", "hit1", "hit5", "hit20", "reciprocal", "categorised", "category1", "category5",
    "none_said", "first_said", "listed_said",
)  # fmt: skip


class Said(waiting.Waiting, kw_only=True, gc=False, eq=False):
    """Of one prediction what its outcome is measured by, and the best label so far; some .9 KB."""

    current: str | None  # the item that the session was at
    items: tuple[str, ...]  # by falling probability
    said: array[float]  # their probabilities
    none: float
    categories: tuple[str, ...]  # the first five
    first_ms: int  # of the label; where there is none yet, just past the horizon
    item: str | None = None
    category: str | None = None


class Open(waiting.Open[Said]):
    """The open ones of a partition: an item engaged with is the label of those that have none as early as it."""

    def label(self, user: waiting.User[Said], row: Row) -> None:
        if not row.engages:
            return
        event, offset = row.event, row.origin.offset
        ts_ms, item = event.ts_ms, event.item_id
        for made in user.unanswered if ts_ms >= user.label_ms else user.mine:
            if ts_ms < made.first_ms and made.at_ms < ts_ms and made.offset < offset and made.current != item:
                made.first_ms, made.item, made.category, made.came = ts_ms, item, event.category, True
                user.label_ms = max(user.label_ms, ts_ms)
        user.unanswered = [made for made in user.unanswered if not made.came]

    def put(self, made: Said) -> None:
        super().put(made)
        if made.came:
            user = self.by_user[made.user_id]
            user.label_ms = max(user.label_ms, made.first_ms)


class Interests(waiting.Tally[Said]):
    """What a worker's predictions of the next item came to."""

    width = len(FIELDS)
    kept = 8

    def count(self, sums: list[float], made: Said) -> None:
        for k, figure in enumerate(figures(made)):
            sums[k] += figure

    def told(self, parts: Collection[Open]) -> dict[str, Any]:
        """For the beat: counts, each version's and arm's sums by group of users, and each arm's over all versions."""
        return {
            **self.counts(parts),
            "by": [
                {"version": version, "arm": arm, "sums": dict(zip(FIELDS, _rounded(sums), strict=True))}
                for (version, arm), sums in self.by.items()
            ],
            "arms": {arm: waiting.totals(sums, FIELDS) for arm, sums in self.arms.items()},
        }


def figures(made: Said) -> tuple[float, ...]:
    """What one settled prediction adds to each of `FIELDS`.

    The loss is −log of a listed item's own probability, of what the list and "nothing more" leave over for any other
    item, or of "nothing more".
    """
    first, listed = (made.said[0], sum(made.said)) if made.said else (0.0, 0.0)
    if made.item is None:
        loss = -math.log(max(made.none, waiting.LEAST))
        return (1, loss, 0, 0, 0, 0, 0, 0, 0, 0, made.none, first, listed)
    rank = made.items.index(made.item) + 1 if made.item in made.items else 0
    chance = made.said[rank - 1] if rank else 1 - made.none - listed
    category = made.category
    return (
        1, -math.log(max(chance, waiting.LEAST)), 1,
        rank == 1, 0 < rank <= 5, 0 < rank <= 20, 1 / rank if 0 < rank <= 20 else 0.0,
        category is not None, category is not None and category in made.categories[:1],
        category is not None and category in made.categories,
        made.none, first, listed,
    )  # fmt: skip


def _rounded(sums: waiting.Sums) -> list[list[float]]:
    return [[round(figure, 4) for figure in column] for column in zip(*sums, strict=True)]
