"""The textbook's classifier as a baseline: the language model reads each session as one text."""

from __future__ import annotations

from collections import deque

import numpy as np

from featurestore.events import Row
from trainer import textbook
from trainer.baselines.baseline import Baseline, Shares, best
from trainer.memory import current_item

LESSONS = 20_000  # kept, the newest
PASSES = 3


class TextbookClassifier(Baseline):
    """Trained within the CPU seconds it is given; the items of its first training are all that it can name."""

    trained = True
    most = 500

    def __init__(self, encoder: str, seed: int = 7) -> None:
        self._encoder, self._seed = encoder, seed
        self._lessons: deque[tuple[str, str]] = deque(maxlen=LESSONS)
        self._model: textbook.Classifier | None = None

    def take(self, row: Row, before: list[Row]) -> None:
        """What came after a session, where it is another item."""
        if before and row.engages and row.event.item_id != current_item(before):
            self._lessons.append((textbook.session_text(before), str(row.event.item_id)))

    def train(self, cpu_seconds: float) -> None:
        """Passes over the lessons so far."""
        if self._model is None and self._lessons:
            names = sorted({name for _, name in self._lessons})
            self._model = textbook.Classifier(self._encoder, names, seed=self._seed)
        if self._model is not None:
            known = set(self._model.names)
            said = [(text, name) for text, name in self._lessons if name in known]
            self._model.learn([text for text, _ in said], [name for _, name in said], cpu_seconds, PASSES)

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """Never the item that the session is at."""
        if self._model is None:
            return {}
        shares = np.array(self._model.shares(textbook.session_text(rows)), np.float64)
        names = self._model.names
        if (here := current_item(rows)) in names:
            shares[names.index(str(here))] = 0.0
        return best(names, shares / max(shares.sum(), 1e-12))
