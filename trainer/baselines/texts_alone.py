"""The encoder as it comes: items whose text is like the session's, without any learning."""

from __future__ import annotations

import numpy as np

from featurestore.events import Row
from trainer import texts
from trainer.baselines.baseline import Baseline, Shares, best
from trainer.memory import current_item

SCALE = 14.0  # from cosine to logit, where the session network starts too


class ZeroShot(Baseline):
    """Cosine of the mean of the session's text vectors with each item's; a softmax makes shares of them."""

    def __init__(self, words: texts.Texts) -> None:
        self._words = words
        self._column: dict[str, int] = {}
        self._text: list[str] = []
        self._vectors = texts.Growing(np.float32)

    def take(self, row: Row, before: list[Row]) -> None:
        """An item is known from its first row on, its newest text counts."""
        name, text = row.event.item_id, texts.row_text(row)
        if not name:
            return
        column = self._column.setdefault(name, len(self._column))
        if column == len(self._text) or (row.event.title and self._text[column] != text):
            self._text[column : column + 1] = [text]
            self._vectors.put([column], self._words.vectors([text]))

    def answer(self, rows: list[Row], at_ms: int) -> Shares:
        """Never the item that the session is at."""
        about = self._words.vectors([texts.row_text(row) for row in rows]).mean(0)
        logits = SCALE * (self._vectors.rows[: len(self._text)] @ (about / max(float(np.linalg.norm(about)), 1e-9)))
        here = self._column.get(current_item(rows) or "")
        if here is not None:
            logits[here] = -np.inf
        if not np.isfinite(logits).any():
            return {}
        shares = np.exp(logits - logits.max())
        return best(list(self._column), shares / shares.sum())
