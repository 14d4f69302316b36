"""Baselines that go through a file beside the model: what each says of a cut, and what it cost."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from deploy.scorecard import Answer
from featurestore import window
from featurestore.events import Row
from trainer import baselines
from trainer.cases import window_rows
from trainer.memory import digest

OPEN = 20_000  # sessions that they remember
TOGETHER = 256  # cuts that a trained baseline answers at once
EVEN = 0.01  # of a baseline's shares, spread over all names: what it leaves out is not impossible


@dataclass(frozen=True, kw_only=True)
class Past:
    """A file as it is walked: its rows, its cuts with what came, and which of them are tested."""

    rows: list[Row]
    labels: window.Examples
    wanted: window.Ints
    half_ms: int  # where testing begins


@dataclass
class Spent:
    """What an arm cost."""

    trainings: int = 0
    refused: int = 0
    train_cpu_s: float = 0.0
    train_wall_s: float = 0.0
    asked: int = 0
    ask_cpu_s: float = 0.0

    def told(self) -> dict[str, Any]:
        """Seconds, and µs a cut."""
        return {
            "trainings": self.trainings, "refused": self.refused, "train_cpu_seconds": round(self.train_cpu_s, 1),
            "train_wall_seconds": round(self.train_wall_s, 1),
            "ask_cpu_us": round(1e6 * self.ask_cpu_s / max(self.asked, 1)),
        }  # fmt: skip


Said = tuple[str, int, Answer]  # arm, cut, what it said


class Group:
    """Baselines that go through a file side by side, either those that are trained or the others."""

    def __init__(
        self, past: Past, arms: dict[str, baselines.Arm], after: str, spent: dict[str, Spent], *, trained: bool
    ) -> None:
        self._past = past
        self._arms = {name + after: arm for name, arm in arms.items() if arm.items.trained == trained}
        self._together = TOGETHER if trained else 1
        self._spent = {name: spent.setdefault(name, Spent()) for name in self._arms}
        self._open: dict[int, list[Row]] = {}  # sessions' newest rows
        self._shelf: dict[str, str] = {}  # item → its category
        self._told = {} if trained else self._shelf  # the same as of the last training: answers come later than cuts
        self._asked: list[int] = []

    def take(self, row: Row) -> None:
        """Let each learn from a row."""
        if not self._arms or not row.event.consent:
            return
        before = self._open.pop(session := digest(row), [])
        for name, arm in self._arms.items():
            begun = time.process_time()
            for part in arm.parts:
                part.take(row, before)
            self._spent[name].train_cpu_s += time.process_time() - begun
        self._open[session] = [*before[-window.LENGTH :], row]
        if len(self._open) > OPEN:
            del self._open[next(iter(self._open))]
        if row.event.item_id and row.event.category:
            self._shelf[row.event.item_id] = row.event.category

    def train(self, budget_s: float) -> None:
        """Train those that are, each within its budget."""
        self._told = dict(self._shelf)
        for name, arm in self._arms.items():
            cpu, wall = time.process_time(), time.monotonic()
            for part in arm.parts:
                part.train(budget_s)
            self._spent[name].train_cpu_s += time.process_time() - cpu
            self._spent[name].train_wall_s += time.monotonic() - wall
            self._spent[name].trainings += 1

    def ask(self, i: int) -> Iterator[Said]:
        """Ask about a cut; what is trained answers many at once, and before it is trained again."""
        self._asked.append(i)
        if len(self._asked) >= self._together:
            yield from self.answers()

    def answers(self) -> Iterator[Said]:
        """Of all that was asked."""
        cuts, self._asked = self._asked, []
        for name, arm in self._arms.items() if cuts else ():
            every = 1 if arm.items.most is None else max(1, len(self._past.wanted) // arm.items.most)
            chosen = [i for i in cuts if not self._past.wanted.searchsorted(i) % every]
            at_ms = self._past.labels.at_ms[chosen].tolist()
            rows = [window_rows(self._past.labels, self._past.rows, i) for i in chosen]
            begun = time.process_time()
            items = arm.items.answers(rows, at_ms) if chosen else []
            shelves = arm.categories.answers(rows, at_ms) if arm.categories else [self._summed(said) for said in items]
            self._spent[name].ask_cpu_s += time.process_time() - begun
            self._spent[name].asked += len(chosen)
            for i, said, shelf in zip(chosen, items, shelves, strict=True):
                yield name, i, Answer(items=_uneven(said), categories=_uneven(shelf))

    def _summed(self, items: dict[str, float]) -> dict[str, float]:
        made: dict[str, float] = {}
        for name, share in items.items():
            if (shelf := self._told.get(name)) is not None:
                made[shelf] = made.get(shelf, 0.0) + share
        return made


def _uneven(shares: dict[str, float]) -> dict[str, float]:
    return {name: (1 - EVEN) * share for name, share in shares.items()}


def progress(name: str, total: int) -> Callable[[int], None]:
    """A bar that grows on a terminal's stderr, nothing elsewhere."""
    begun = time.monotonic()

    def step(done: int) -> None:
        if sys.stderr.isatty() and (done % 2_000 == 0 or done == total - 1):
            share = (done + 1) / total
            left = (time.monotonic() - begun) * (1 - share) / max(share, 1e-9)
            sys.stderr.write(f"\r{name:<16} [{'#' * int(30 * share):<30}] {share:4.0%}, about {left:.0f} s left ")
            if done == total - 1:
                sys.stderr.write("\n")

    return step
