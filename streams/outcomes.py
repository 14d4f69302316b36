"""Predictions meet what happened: what came next, and who bought, by version and arm."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Collection
from typing import Any

from featurestore.events import Row
from streams import codec, interests, purchases, waiting

CHAMPION, HOLDBACK = "champion", "holdback"


class Open:
    """The open predictions of a partition while this worker owns it."""

    def __init__(self) -> None:
        self.interests, self.purchases = interests.Open(), purchases.Open()
        self.watermark_ms = 0  # of the rows that were observed

    def observe(self, row: Row) -> None:
        """A row in order of arrival."""
        self.interests.observe(row)
        self.purchases.observe(row)

    def forget(self, users: Collection[str]) -> None:
        """Drop what was said of these users."""
        self.interests.forget(users)
        self.purchases.forget(users)


class Outcomes:
    """What a worker's predictions came to since it started."""

    def __init__(
        self, *, horizon_ms: int, purchase_ms: int = 0, share: float = 1.0, limit: int = waiting.LIMIT
    ) -> None:
        self.horizon_ms = horizon_ms
        self.interests = interests.Interests(horizon_ms=horizon_ms, share=share, limit=limit)
        self.purchases = purchases.Purchases(horizon_ms=purchase_ms, share=share, limit=limit)

    def note(self, open_: Open, prediction: codec.Prediction, trigger: Row, seen: list[Row]) -> None:
        """An acknowledged prediction; `seen` are the rows of the session that it was made from."""
        place = int(prediction.prediction_id[:8], 16)
        at_ms, user_id, probability = trigger.event.ts_ms, prediction.user_id, prediction.purchase_probability
        common: dict[str, Any] = {
            "key": (prediction.model_version, prediction.arm), "user_id": user_id,
            "group": _number(user_id) % waiting.GROUPS, "place": place, "at_ms": at_ms,
            "offset": trigger.origin.offset,
        }  # fmt: skip
        if self.interests.takes(place):
            until_ms = at_ms + self.interests.horizon_ms
            said = interests.Said(
                **common,
                until_ms=until_ms,
                current=next((row.event.item_id for row in reversed(seen) if row.engages), None),
                items=tuple([item.item_id for item in prediction.items]),
                said=array("d", [item.probability for item in prediction.items]),
                none=prediction.none_probability,
                categories=tuple([one.category for one in prediction.categories[: interests.CATEGORIES]]),
                first_ms=until_ms + 1,
            )
            self.interests.note(open_.interests, said)
        if probability is not None and self.purchases.takes(place):
            until_ms = at_ms + self.purchases.horizon_ms
            self.purchases.note(open_.purchases, purchases.Said(**common, until_ms=until_ms, probability=probability))

    def settle(self, open_: Open, watermark_ms: int) -> None:
        """Count what is known for good once the watermark stands here."""
        open_.watermark_ms = max(open_.watermark_ms, watermark_ms)
        self.interests.settle(open_.interests, open_.watermark_ms)
        self.purchases.settle(open_.purchases, open_.watermark_ms)

    def bound(self, parts: Collection[Open]) -> None:
        """Keep the number of open ones within the limit, by following a share of them."""
        self.interests.bound([part.interests for part in parts])
        self.purchases.bound([part.purchases for part in parts])

    def told(self, parts: Collection[Open]) -> dict[str, Any]:
        """For the beat: of the next item, and `purchases`."""
        return {
            **self.interests.told([part.interests for part in parts]),
            "purchases": self.purchases.told([part.purchases for part in parts]),
        }


def arm_of(user_id: str, holdback: float) -> str:
    """The arm that a user is in, everywhere and for as long as the share stays.

    >>> [arm_of("u-7", share) for share in (0.0, 1.0)]
    ['champion', 'holdback']
    """
    if holdback <= 0:
        return CHAMPION
    return HOLDBACK if _number(user_id) // 1_000 % 10_000 < holdback * 10_000 else CHAMPION


def _number(user_id: str) -> int:
    """A user as a number that no partitioner uses."""
    return int.from_bytes(hashlib.blake2b(user_id.encode(), digest_size=8).digest(), "big")
