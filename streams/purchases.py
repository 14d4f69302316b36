"""Whether who was said to buy bought: each such prediction waits for the purchase horizon, then counts.

The label is the one that is trained on (`featurestore.window`): a purchase by the same user at a higher offset within
the horizon. Like outcomes, nothing counts before the watermark has passed the whole horizon, and what is kept are sums.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any

import msgspec

from featurestore.events import Row

LIMIT = 50_000  # open ones of a worker, some .3 KB each
A_USER = 500  # of them, so that a program costs no more than a long session
KEPT = 4  # versions and arms whose sums are told one by one
GROUPS = 10  # of users, as for outcomes
BINS = 16  # of what was said, each half as wide as the one above it by a factor of √2; the last holds all below
LEAST = 1e-6
FIELDS = ("settled", "loss", "said", "bought")
Key = tuple[str, str]  # version, arm
Sums = list[list[float]]  # [GROUPS][FIELDS, then BINS who did not buy, then BINS who did]


class Said(msgspec.Struct, gc=False, eq=False):
    """Of one prediction what its outcome is measured by."""

    key: Key
    user_id: str
    group: int
    place: int  # of its id among all, below 2³²
    at_ms: int
    offset: int
    until_ms: int
    probability: float
    bought: bool = False
    counts: bool = True  # false: its user turned out to be a program


class Open:
    """The open ones of a partition, in the order in which they were made."""

    def __init__(self) -> None:
        self.waiting: deque[Said] = deque()
        self.by_user: dict[str, list[Said]] = {}  # those that nothing was bought after yet

    def __len__(self) -> int:
        return len(self.waiting)

    def add(self, made: Said) -> None:
        """Take one, unless its user has as many as one may have, or it was told again after the same row."""
        mine = self.by_user.get(made.user_id, ())
        if len(mine) >= A_USER or (mine and (mine[-1].place, mine[-1].offset) == (made.place, made.offset)):
            return
        self.waiting.append(made)
        self.by_user.setdefault(made.user_id, []).append(made)

    def observe(self, row: Row) -> None:
        """A row in order of arrival; a purchase is the label of those of its user whose horizon it lies in."""
        event, offset = row.event, row.origin.offset
        if row.bot is not None:
            for made in self.by_user.get(event.user_id, ()):
                made.counts = False
            return
        if event.type != "purchase" or not event.consent or event.user_id not in self.by_user:
            return
        for made in self.by_user[event.user_id]:
            made.bought |= made.offset < offset and made.at_ms < event.ts_ms <= made.until_ms
        self._keep_user(event.user_id, lambda made: not made.bought)

    def mature(self, watermark_ms: int) -> Iterable[Said]:
        """Hand out those whose horizon the watermark has passed."""
        while self.waiting and self.waiting[0].until_ms < watermark_ms:
            made = self.waiting.popleft()
            if not made.bought:
                self._keep_user(made.user_id, lambda other, gone=made: other is not gone)  # type: ignore[misc]
            yield made

    def keep(self, wanted: Callable[[Said], bool]) -> None:
        """Drop the others."""
        self.waiting = deque(made for made in self.waiting if wanted(made))
        self.by_user = {}
        for made in self.waiting:
            if not made.bought:
                self.by_user.setdefault(made.user_id, []).append(made)

    def _keep_user(self, user_id: str, wanted: Callable[[Said], bool]) -> None:
        left = [made for made in self.by_user[user_id] if wanted(made)]
        if left:
            self.by_user[user_id] = left
        else:
            del self.by_user[user_id]


class Purchases:
    """What a worker's purchase probabilities came to since it started; of more than `limit` at once a sample."""

    def __init__(self, *, horizon_ms: int, share: float = 1.0, limit: int = LIMIT) -> None:
        self.horizon_ms, self.limit, self.share = horizon_ms, limit, share
        self.settled = 0
        self.by: dict[Key, Sums] = {}
        self.arms: dict[str, Sums] = {}

    def note(self, open_: Open, made: Said) -> None:
        """An acknowledged prediction that said how probable a purchase is."""
        if made.place < self.share * 2**32:
            open_.add(made)

    def settle(self, open_: Open, watermark_ms: int) -> None:
        """Count what is known for good once the watermark stands here."""
        for made in open_.mature(watermark_ms):
            if not made.counts:
                continue
            self.settled += 1
            if made.key not in self.by and len(self.by) >= KEPT:
                del self.by[next(iter(self.by))]
            for sums in (
                self.by.setdefault(made.key, _nothing()),
                self.arms.setdefault(made.key[1], _nothing()),
            ):
                _count(sums[made.group], made)

    def bound(self, parts: Collection[Open]) -> None:
        """Halve the share where more than `limit` are open; it stays halved: a horizon is long."""
        while sum(map(len, parts)) > self.limit:
            self.share /= 2
            for part in parts:
                part.keep(lambda made: made.place < self.share * 2**32)

    def told(self, parts: Collection[Open]) -> dict[str, Any]:
        """For the beat: counts, and the sums by arm and by the newest versions."""
        return {
            "open": sum(map(len, parts)),
            "settled": self.settled,
            "share": self.share,
            "arms": [{"arm": arm, "sums": _rounded(sums)} for arm, sums in self.arms.items()],
            "by": [
                {"version": version, "arm": arm, "sums": _rounded(sums)} for (version, arm), sums in self.by.items()
            ],
        }


def _nothing() -> Sums:
    return [[0.0] * (len(FIELDS) + 2 * BINS) for _ in range(GROUPS)]


def _count(sums: list[float], made: Said) -> None:
    chance = made.probability if made.bought else 1 - made.probability
    for k, figure in enumerate((1, -math.log(max(chance, LEAST)), made.probability, made.bought)):
        sums[k] += figure
    sums[len(FIELDS) + BINS * made.bought + binned(made.probability)] += 1


def binned(probability: float) -> int:
    """The bin of a probability: a half step of two each, the highest first.

    >>> [binned(p) for p in (1.0, 0.6, 0.5, 0.1, 0.0)]
    [0, 1, 2, 6, 15]
    """
    return min(BINS - 1, int(-2 * math.log2(max(probability, LEAST))))


def _rounded(sums: Sums) -> list[list[float]]:
    """Counts as whole numbers: a beat is sent every second."""
    return [[round(figure, 4) if k in (1, 2) else int(figure) for k, figure in enumerate(column)] for column in sums]
