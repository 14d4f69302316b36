"""What a worker holds: it learns from every row, predicts for touched sessions, and is saved as a version."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import msgspec

from featurestore.events import Row, Session
from trainer import memory, texts

ITEMS, CATEGORIES = 20, 10
COLD = "memory"  # the version that a predictor without a trained part goes by
STOP_SHARE = 0.35  # of sessions that engage with nothing more, before it was learnt


class Interest(msgspec.Struct):
    """What one session is about to engage with; probabilities fall along each list."""

    user_id: str
    session_id: str
    items: list[tuple[str, float]]
    categories: list[tuple[str, float]]
    none_probability: float
    purchase_probability: float | None
    reason: Literal["model", "fallback"]
    version: str


class Predictor:
    """The memory, and where a version was loaded the trained part above it."""

    def __init__(self, memory_: memory.Memory, texts_: texts.Texts, version: str = COLD) -> None:
        self.memory, self.texts, self.version = memory_, texts_, version

    @classmethod
    def cold(cls, texts_: texts.Texts) -> Predictor:
        """Before the first version: the memory alone answers."""
        return cls(memory.Memory(), texts_)

    def learn(self, rows: list[Row]) -> int:
        """Fold rows into the memory; those it has seen change nothing."""
        return self.memory.learn(rows)

    def title(self, item_id: str) -> str | None:
        """An item's title, where an event told it."""
        known = self.memory.items.get(item_id)
        return known.title if known else None

    def predict(self, sessions: list[Session], at_ms: list[int]) -> list[Interest]:
        """One interest a session, as of that session's instant."""
        return [self._fallback(s, t) for s, t in zip(sessions, at_ms, strict=True)]

    def _fallback(self, session: Session, at_ms: int) -> Interest:
        scores = self.memory.score(session, at_ms)
        total = sum(scores.values())
        share = (1 - STOP_SHARE) / total if total else 0.0
        by_category: dict[str, float] = defaultdict(float)
        for item, score in scores.items():
            known = self.memory.items.get(item)
            if known and known.category:
                by_category[known.category] += score * share
        return Interest(
            session.user_id,
            session.session_id,
            _top({item: score * share for item, score in scores.items()}, ITEMS),
            _top(by_category, CATEGORIES),
            STOP_SHARE if total else 1.0,
            None,
            "fallback",
            self.version,
        )

    def save(self, directory: Path, meta: dict[str, Any]) -> None:
        """Write the version's files into an empty directory."""
        (directory / "memory.json").write_bytes(msgspec.json.encode(self.memory.state()))
        (directory / "meta.json").write_bytes(msgspec.json.format(msgspec.json.encode(meta), indent=2))

    @classmethod
    def load(cls, directory: Path, texts_: texts.Texts) -> Predictor:
        """Read a version back; its name is the directory's."""
        state = msgspec.json.decode((directory / "memory.json").read_bytes())
        return cls(memory.Memory.of(state), texts_, directory.name)


def _top(scores: dict[str, float], n: int) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda kv: (-kv[1], kv[0]))[:n]
