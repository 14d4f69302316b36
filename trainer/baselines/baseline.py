"""What all baselines have in common: they take rows, some are trained, and they answer sessions."""

from __future__ import annotations

from typing import Any

import numpy as np

from featurestore.events import Row

NAMED = 1_000  # names of an answer, the most probable
Shares = dict[str, float]  # name → probability, given that something comes; the names left out share what is left


class Baseline:
    """One way to say what comes next. An answer's shares sum to one at most; ties are ties."""

    trained = False  # it learns when the model does, and not from each row
    most: int | None = None  # sessions that it is asked about at most, where asking is slow

    def take(self, row: Row, before: list[Row]) -> None:
        """Learn from one row; `before`: the newest rows of its session, without it."""

    def train(self, cpu_seconds: float) -> None:
        """Learn from what was taken so far, for so many CPU seconds at most."""

    def answers(self, sessions: list[list[Row]], at_ms: list[int]) -> list[Shares]:
        """One a session, newest row last, as of its instant."""
        return [self.answer(rows, now_ms) for rows, now_ms in zip(sessions, at_ms, strict=True)]

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """What comes next in one session."""
        raise NotImplementedError


def best(names: list[str], shares: Any) -> Shares:
    """The most probable names that have a share at all; `shares` [names]."""
    kept = np.argpartition(shares, -NAMED)[-NAMED:] if len(shares) > NAMED else np.arange(len(shares))
    kept = kept[shares[kept] > 0]
    return dict(zip((names[i] for i in kept), shares[kept].tolist(), strict=True))
