"""Predictions that wait for their horizon and then count: what the outcomes of every kind have in common.

A kind says what its label is (`Open.label`) and what is summed (`Tally.count`). Nothing is counted before the watermark
has passed the whole horizon, so that "not yet" never means "no". What is kept are sums, which add up across workers.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, Generic, TypeVar

import msgspec

from featurestore.events import Row

LIMIT = 50_000  # open predictions of a worker
A_USER = 500  # of them, so that a program costs no more than a long session
GROUPS = 10  # of users; the sums of each apart, since what one user does is no independent case
LEAST = 1e-6  # the smallest probability that a prediction can tell
Key = tuple[str, str]  # version, arm
Sums = list[list[float]]  # [GROUPS][what is summed]


class Waiting(msgspec.Struct, kw_only=True, gc=False, eq=False):
    """Of one prediction what its outcome is measured by, whatever it is about."""

    key: Key
    user_id: str
    group: int
    place: int  # of its id among all, below 2³²: what a share keeps is below it
    at_ms: int
    offset: int
    until_ms: int
    came: bool = False  # what it is about has come, so far
    counts: bool = True  # false: its user turned out to be a program


W = TypeVar("W", bound=Waiting)


class User(Generic[W]):
    """The open predictions of a user, and among them those without a label; no label is younger than `label_ms`."""

    __slots__ = ("label_ms", "mine", "program", "unanswered")

    def __init__(self) -> None:
        self.mine: list[W] = []
        self.program = False  # all of them were made for a program
        self.unanswered: list[W] = []
        self.label_ms = -1


class Open(ABC, Generic[W]):
    """The open predictions of a partition while this worker owns it, in the order in which they were made."""

    def __init__(self) -> None:
        self.waiting: deque[W] = deque()
        self.by_user: dict[str, User[W]] = {}

    def __len__(self) -> int:
        return len(self.waiting)

    @abstractmethod
    def label(self, user: User[W], row: Row) -> None:
        """A row with consent, no program's, as the label of those that it is the label of."""

    def add(self, made: W) -> bool:
        """Take one; False where its user has as many as one may have, or it was told again after the same row."""
        user = self.by_user.get(made.user_id)
        mine = user.mine if user is not None else []
        if len(mine) >= A_USER or (mine and (mine[-1].place, mine[-1].offset) == (made.place, made.offset)):
            return False
        self.put(made)
        self.waiting.append(made)
        return True

    def observe(self, row: Row) -> None:
        """A row in order of arrival; where it shows that its user is a program, nothing of that user counts."""
        user = self.by_user.get(row.event.user_id)
        if user is None:
            return
        if row.bot is not None:
            if not user.program:
                for made in user.mine:
                    made.counts = False
                user.program = True
        elif row.event.consent:
            self.label(user, row)

    def mature(self, watermark_ms: int) -> Iterable[W]:
        """Hand out those whose horizon the watermark has passed; one behind a younger horizon waits for that one."""
        while self.waiting and self.waiting[0].until_ms < watermark_ms:
            made = self.waiting.popleft()
            user = self.by_user[made.user_id]
            user.mine.remove(made)  # the first, nearly always
            if not made.came:
                user.unanswered.remove(made)
            if not user.mine:
                del self.by_user[made.user_id]
            yield made

    def forget(self, users: Collection[str]) -> None:
        """Drop what was said of these users."""
        if not self.by_user.keys().isdisjoint(users):
            self._keep(lambda made: made.user_id not in users)

    def thin(self, share: float) -> int:
        """Drop those whose ids lie above a share of all ids; how many."""
        below = share * 2**32
        return self._keep(lambda made: made.place < below)

    def put(self, made: W) -> None:
        """Hold one among its user's."""
        user = self.by_user.get(made.user_id)
        if user is None:
            user = self.by_user[made.user_id] = User()
        user.mine.append(made)
        user.program = user.program and not made.counts
        if not made.came:
            user.unanswered.append(made)

    def _keep(self, wanted: Callable[[W], bool]) -> int:
        before = len(self.waiting)
        self.waiting = deque(made for made in self.waiting if wanted(made))
        self.by_user = {}
        for made in self.waiting:
            self.put(made)
        return before - len(self.waiting)


class Tally(ABC, Generic[W]):
    """What a worker's predictions came to since it started; of more than `limit` at once a sample, by their ids."""

    width: int  # figures that are summed
    kept: int  # versions and arms whose sums are told one by one

    def __init__(self, *, horizon_ms: int, share: float = 1.0, limit: int = LIMIT) -> None:
        self.horizon_ms, self.limit = horizon_ms, limit
        self.wanted = self.share = share  # as set, as it is now
        self.noted = self.settled = self.passed_over = 0
        self.by: dict[Key, Sums] = {}
        self.arms: dict[str, Sums] = {}  # over all versions

    @abstractmethod
    def count(self, sums: list[float], made: W) -> None:
        """What a settled prediction adds to the sums of its group."""

    def takes(self, place: int) -> bool:
        """Whether a prediction of this place is followed; one that is not is passed over."""
        taken = place < self.share * 2**32
        self.passed_over += not taken
        return taken

    def note(self, open_: Open[W], made: W) -> None:
        """An acknowledged prediction that is followed."""
        if open_.add(made):
            self.noted += 1
        else:
            self.passed_over += 1

    def settle(self, open_: Open[W], watermark_ms: int) -> None:
        """Count what is known for good once the watermark stands here."""
        for made in open_.mature(watermark_ms):
            if not made.counts:
                self.noted -= 1
                self.passed_over += 1
                continue
            self.settled += 1
            if made.key not in self.by:
                if len(self.by) >= self.kept:
                    del self.by[next(iter(self.by))]
                self.by[made.key] = self._nothing()
                self.arms.setdefault(made.key[1], self._nothing())
            for sums in (self.by[made.key], self.arms[made.key[1]]):
                self.count(sums[made.group], made)

    def bound(self, parts: Collection[Open[W]]) -> None:
        """Halve the share where more than `limit` are open, dropping what it leaves out; double it where few are."""
        open_ = sum(map(len, parts))
        while open_ > self.limit:
            self.share /= 2
            gone = sum(part.thin(self.share) for part in parts)
            open_ -= gone
            self.noted -= gone
            self.passed_over += gone
        if open_ < self.limit / 4:
            self.share = min(self.wanted, 2 * self.share)

    def counts(self, parts: Collection[Open[W]]) -> dict[str, Any]:
        """How many wait, were counted, were lost or passed over; the share that is followed now."""
        open_ = sum(map(len, parts))
        return {
            "open": open_,
            "settled": self.settled,
            "unsettled": self.noted - self.settled - open_,  # partitions that went elsewhere, people forgotten
            "passed_over": self.passed_over,
            "share": self.share,
        }

    def _nothing(self) -> Sums:
        return [[0.0] * self.width for _ in range(GROUPS)]


def totals(sums: Sums, fields: Sequence[str]) -> dict[str, float]:
    """The first figures by name, over all groups of users."""
    return dict(zip(fields, map(sum, zip(*sums, strict=True)), strict=False))
