"""Predictions meet what happened: each waits for its horizon, then counts for its version and arm.

The label is the one that is trained on (`featurestore.window`): the first different item, by event time, that the same
user engages with at a higher offset within the horizon, or none. Nothing is counted before the watermark has passed the
whole horizon, so that "not yet" never means "no". What is kept are sums, which add up across workers.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from featurestore.events import Row
from streams import codec, purchases

CHAMPION, HOLDBACK = "champion", "holdback"
LIMIT = 50_000  # open predictions of a worker, some .9 KB each
A_USER = 500  # of them, so that a program costs no more than a long session
KEPT = 8  # versions and arms whose sums are told one by one
GROUPS = 10  # of users; the sums of each apart, since what one user does is no independent case
LEAST = 1e-6  # the smallest probability that a prediction can tell
CATEGORIES = 5
FIELDS = (
    "settled", "loss", "next", "hit1", "hit5", "hit20", "reciprocal", "categorised", "category1", "category5",
    "none_said", "first_said", "listed_said",
)  # fmt: skip
Key = tuple[str, str]  # version, arm
Sums = list[list[float]]  # [GROUPS][FIELDS]


class Predicted(msgspec.Struct, gc=False, eq=False):
    """Of one prediction what its outcome is measured by, and the best label so far."""

    key: Key
    user_id: str
    group: int
    place: int  # of its id among all, below 2³²: what a share keeps is below it
    at_ms: int
    offset: int
    until_ms: int
    current: str | None  # the item that the session was at
    items: tuple[str, ...]  # by falling probability
    said: array[float]  # their probabilities
    none: float
    categories: tuple[str, ...]  # the first five
    first_ms: int  # of the label; where there is none yet, just past the horizon
    item: str | None = None
    category: str | None = None
    counts: bool = True  # false: its user turned out to be a program


class _User:
    """The open predictions of a user, and among them those without a label; no label is younger than `label_ms`."""

    __slots__ = ("label_ms", "mine", "program", "unanswered")

    def __init__(self) -> None:
        self.mine: list[Predicted] = []
        self.program = False  # all of them were made for a program
        self.unanswered: list[Predicted] = []
        self.label_ms = -1


class Open:
    """The open predictions of a partition while this worker owns it, in the order in which they were made."""

    def __init__(self) -> None:
        self.waiting: deque[Predicted] = deque()
        self.by_user: dict[str, _User] = {}
        self.watermark_ms = 0  # of the rows that were observed
        self.purchases = purchases.Open()

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, made: Predicted) -> bool:
        """Take one; False where its user has as many as one may have, or it was told again after the same row."""
        user = self.by_user.get(made.user_id)
        mine = user.mine if user is not None else []
        if len(mine) >= A_USER or (mine and (mine[-1].place, mine[-1].offset) == (made.place, made.offset)):
            return False
        self._put(made)
        self.waiting.append(made)
        return True

    def observe(self, row: Row) -> None:
        """A row in order of arrival: the label of those predictions of its user that have none as early as it."""
        self.purchases.observe(row)
        user = self.by_user.get(row.event.user_id)
        if user is None:
            return
        if row.bot is not None:
            if not user.program:
                for made in user.mine:
                    made.counts = False
                user.program = True
            return
        if not row.engages or not row.event.consent:
            return
        event, offset = row.event, row.origin.offset
        ts_ms, item = event.ts_ms, event.item_id
        for made in user.unanswered if ts_ms >= user.label_ms else user.mine:
            if ts_ms < made.first_ms and made.at_ms < ts_ms and made.offset < offset and made.current != item:
                made.first_ms, made.item, made.category = ts_ms, item, event.category
                user.label_ms = max(user.label_ms, ts_ms)
        user.unanswered = [made for made in user.unanswered if made.item is None]

    def mature(self, watermark_ms: int) -> Iterable[Predicted]:
        """Hand out those whose horizon the watermark has passed; one behind a younger horizon waits for that one."""
        while self.waiting and self.waiting[0].until_ms < watermark_ms:
            made = self.waiting.popleft()
            user = self.by_user[made.user_id]
            user.mine.remove(made)  # the first, nearly always
            if made.item is None:
                user.unanswered.remove(made)
            if not user.mine:
                del self.by_user[made.user_id]
            yield made

    def forget(self, users: Collection[str]) -> None:
        """Drop what was said of these users."""
        self.purchases.keep(lambda made: made.user_id not in users)
        if not self.by_user.keys().isdisjoint(users):
            self._keep(lambda made: made.user_id not in users)

    def thin(self, share: float) -> int:
        """Drop those whose ids lie above a share of all ids; how many."""
        below = share * 2**32
        return self._keep(lambda made: made.place < below)

    def _keep(self, wanted: Callable[[Predicted], bool]) -> int:
        before = len(self.waiting)
        self.waiting = deque(made for made in self.waiting if wanted(made))
        self.by_user = {}
        for made in self.waiting:
            self._put(made)
        return before - len(self.waiting)

    def _put(self, made: Predicted) -> None:
        user = self.by_user.get(made.user_id)
        if user is None:
            user = self.by_user[made.user_id] = _User()
        user.mine.append(made)
        user.program = user.program and not made.counts
        if made.item is None:
            user.unanswered.append(made)
        else:
            user.label_ms = max(user.label_ms, made.first_ms)


class Outcomes:
    """What a worker's predictions came to since it started; of more than `limit` at once a sample, by their ids."""

    def __init__(self, *, horizon_ms: int, purchase_ms: int = 0, share: float = 1.0, limit: int = LIMIT) -> None:
        self.horizon_ms, self.limit = horizon_ms, limit
        self.purchases = purchases.Purchases(horizon_ms=purchase_ms, share=share, limit=limit)
        self.wanted = self.share = share  # as set, as it is now
        self.noted = self.settled = self.passed_over = 0
        self.by: dict[Key, Sums] = {}
        self.older: dict[str, list[float]] = {}  # by arm, of those no longer told one by one

    def note(self, open_: Open, prediction: codec.Prediction, trigger: Row, seen: list[Row]) -> None:
        """An acknowledged prediction; `seen` are the rows of the session that it was made from."""
        place = int(prediction.prediction_id[:8], 16)
        self._note_purchase(open_.purchases, prediction, trigger, place)
        if place >= self.share * 2**32:
            self.passed_over += 1
            return
        until_ms = trigger.event.ts_ms + self.horizon_ms
        made = Predicted(
            key=(prediction.model_version, prediction.arm),
            user_id=prediction.user_id,
            group=_number(prediction.user_id) % GROUPS,
            place=place,
            at_ms=trigger.event.ts_ms,
            offset=trigger.origin.offset,
            until_ms=until_ms,
            current=next((row.event.item_id for row in reversed(seen) if row.engages), None),
            items=tuple([item.item_id for item in prediction.items]),
            said=array("d", [item.probability for item in prediction.items]),
            none=prediction.none_probability,
            categories=tuple([one.category for one in prediction.categories[:CATEGORIES]]),
            first_ms=until_ms + 1,
        )
        if open_.add(made):
            self.noted += 1
        else:
            self.passed_over += 1

    def _note_purchase(self, open_: purchases.Open, said: codec.Prediction, trigger: Row, place: int) -> None:
        if said.purchase_probability is not None:
            self.purchases.note(open_, purchases.Said(
                key=(said.model_version, said.arm), user_id=said.user_id, group=_number(said.user_id) % GROUPS,
                place=place, at_ms=trigger.event.ts_ms, offset=trigger.origin.offset,
                until_ms=trigger.event.ts_ms + self.purchases.horizon_ms, probability=said.purchase_probability,
            ))  # fmt: skip

    def settle(self, open_: Open, watermark_ms: int) -> None:
        """Count what is known for good once the watermark stands here."""
        open_.watermark_ms = max(open_.watermark_ms, watermark_ms)
        self.purchases.settle(open_.purchases, open_.watermark_ms)
        for made in open_.mature(open_.watermark_ms):
            if not made.counts:
                self.noted -= 1
                self.passed_over += 1
                continue
            self.settled += 1
            sums = self.by.get(made.key) or self._begun(made.key)
            of_group = sums[made.group]
            for k, figure in enumerate(figures(made)):
                of_group[k] += figure

    def bound(self, parts: Collection[Open]) -> None:
        """Halve the share where more than `limit` are open, dropping what it leaves out; double it where few are."""
        self.purchases.bound([part.purchases for part in parts])
        open_ = sum(map(len, parts))
        while open_ > self.limit:
            self.share /= 2
            gone = sum(part.thin(self.share) for part in parts)
            open_ -= gone
            self.noted -= gone
            self.passed_over += gone
        if open_ < self.limit / 4:
            self.share = min(self.wanted, 2 * self.share)

    def told(self, parts: Collection[Open]) -> dict[str, Any]:
        """For the beat: counts, each version's and arm's sums by group of users, and each arm's over all versions."""
        open_ = sum(map(len, parts))
        return {
            "open": open_,
            "settled": self.settled,
            "unsettled": self.noted - self.settled - open_,  # partitions that went elsewhere, people forgotten
            "passed_over": self.passed_over,
            "share": self.share,
            "by": [
                {"version": version, "arm": arm, "sums": dict(zip(FIELDS, _rounded(sums), strict=True))}
                for (version, arm), sums in self.by.items()
            ],
            "purchases": self.purchases.told([part.purchases for part in parts]),
            "arms": {arm: dict(zip(FIELDS, sums, strict=True)) for arm, sums in self._arms().items()},
        }

    def _begun(self, key: Key) -> Sums:
        if len(self.by) >= KEPT:
            oldest = next(iter(self.by))
            self.older[oldest[1]] = _added(self.older.get(oldest[1]), self.by.pop(oldest))
        self.by[key] = [[0.0] * len(FIELDS) for _ in range(GROUPS)]
        return self.by[key]

    def _arms(self) -> dict[str, list[float]]:
        found = dict(self.older)
        for (_, arm), sums in self.by.items():
            found[arm] = _added(found.get(arm), sums)
        return found


def figures(made: Predicted) -> tuple[float, ...]:
    """What one settled prediction adds to each of `FIELDS`.

    The loss is −log of a listed item's own probability, of what the list and "nothing more" leave over for any other
    item, or of "nothing more".
    """
    first, listed = (made.said[0], sum(made.said)) if made.said else (0.0, 0.0)
    if made.item is None:
        loss = -math.log(max(made.none, LEAST))
        return (1, loss, 0, 0, 0, 0, 0, 0, 0, 0, made.none, first, listed)
    rank = made.items.index(made.item) + 1 if made.item in made.items else 0
    chance = made.said[rank - 1] if rank else 1 - made.none - listed
    category = made.category
    return (
        1, -math.log(max(chance, LEAST)), 1,
        rank == 1, 0 < rank <= 5, 0 < rank <= 20, 1 / rank if 0 < rank <= 20 else 0.0,
        category is not None, category is not None and category in made.categories[:1],
        category is not None and category in made.categories,
        made.none, first, listed,
    )  # fmt: skip


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


def _added(before: list[float] | None, sums: Sums) -> list[float]:
    return [sum(column) for column in zip(*sums, before or [0.0] * len(FIELDS), strict=True)]


def _rounded(sums: Sums) -> list[list[float]]:
    return [[round(figure, 4) for figure in column] for column in zip(*sums, strict=True)]
