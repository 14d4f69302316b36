"""What a worker holds: it learns from every row, predicts for touched sessions, and is saved as a version."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from featurestore.events import Row, Session
from trainer import blend, memory, texts

ITEMS, CATEGORIES = 20, 10
COLD = "memory"  # the version that a predictor without a trained part goes by
STOP_SHARE = 0.35  # of sessions that engage with nothing more, before it was learnt
RECENT = 8  # tokens of a session whose texts count


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
    """The memory, and where a version was loaded the trained blend above it."""

    def __init__(
        self, memory_: memory.Memory, texts_: texts.Texts, *, version: str = COLD, blend_: blend.Blend | None = None
    ) -> None:
        self.memory, self.texts, self.version, self.blend = memory_, texts_, version, blend_
        self.items = texts.ItemTable(texts_)

    @classmethod
    def cold(cls, texts_: texts.Texts) -> Predictor:
        """Before the first version: the memory alone answers."""
        return cls(memory.Memory(), texts_)

    def learn(self, rows: list[Row]) -> int:
        """Fold rows into the memory; those it has seen change nothing. Returns how many were new."""
        return self.memory.learn(rows)

    def warm(self) -> None:
        """Look up every known item's vector, so that the first prediction does not wait for it."""
        if self.blend is not None and self.memory.items:
            self.items.vectors(list(self.memory.items), self._text, self.memory.changed)

    def title(self, item_id: str) -> str | None:
        """An item's title, where an event told it."""
        known = self.memory.items.get(item_id)
        return known.title if known else None

    def predict(self, sessions: list[Session], at_ms: list[int]) -> list[Interest]:
        """One interest a session, as of that session's instant."""
        return [self._one(s, t) for s, t in zip(sessions, at_ms, strict=True)]

    def case(self, session: Session, at_ms: int) -> tuple[list[str], blend.Case]:
        """A session as the blend sees it: its candidates and their features."""
        evidence = self.memory.evidence(session, at_ms)
        items = list(evidence)
        values = np.array(list(evidence.values()), float).reshape(len(items), 4)
        bought = any(row.event.type == "purchase" for row in session.rows[-10:])
        own = np.array([1.0, np.log1p(len(session.rows)), float(bought)])
        return items, blend.Case(candidates=blend.features(values, self._cosines(session, items)), session=own)

    def _cosines(self, session: Session, items: list[str]) -> NDArray[np.float64]:
        said = [t for t in map(row_text, session.rows[-RECENT:]) if t]
        if not said or not items:
            return np.zeros(len(items))
        about = self.texts.vectors(said)
        weights = 0.7 ** np.arange(len(said))[::-1]
        mean = weights @ about / weights.sum()
        return np.asarray(self.items.vectors(items, self._text, self.memory.changed) @ mean, float)

    def _text(self, item: str) -> str:
        known = self.memory.items.get(item)
        return texts.item_text(known.title, known.category, known.brand, known.price) if known else item

    def _one(self, session: Session, at_ms: int) -> Interest:
        if self.blend is None:
            scores = self.memory.score(session, at_ms)
            total = sum(scores.values())
            share = (1 - STOP_SHARE) / total if total else 0.0
            named = {item: score * share for item, score in scores.items()}
            return self._interest(session, named, STOP_SHARE if total else 1.0, "fallback")
        items, case = self.case(session, at_ms)
        each, none, _ = self.blend.probabilities(case)
        return self._interest(session, dict(zip(items, each.tolist(), strict=True)), none, "model")

    def _interest(
        self, session: Session, named: dict[str, float], none: float, reason: Literal["model", "fallback"]
    ) -> Interest:
        by_category: dict[str, float] = defaultdict(float)
        for item, probability in named.items():
            known = self.memory.items.get(item)
            if known and known.category:
                by_category[known.category] += probability
        return Interest(
            session.user_id,
            session.session_id,
            _top(named, ITEMS),
            _top(by_category, CATEGORIES),
            none,
            None,
            reason,
            self.version,
        )

    def save(self, directory: Path) -> None:
        """Write the version's files into an empty directory: tensors as safetensors, the rest as JSON."""
        weights = {} if self.blend is None else msgspec.structs.asdict(self.blend)
        save_file({k: np.asarray(v) for k, v in weights.items()}, directory / "model.safetensors")
        config = {"encoder": self.texts.digest, "features": blend.FEATURES, "none_features": blend.NONE_FEATURES}
        (directory / "config.json").write_bytes(msgspec.json.encode(config))
        (directory / "memory.json").write_bytes(msgspec.json.encode(self.memory.state()))

    @classmethod
    def load(cls, directory: Path, texts_: texts.Texts) -> Predictor:
        """Read a version back; its name is the directory's."""
        state: dict[str, Any] = msgspec.json.decode((directory / "memory.json").read_bytes())
        weights = {k: v.tolist() for k, v in load_file(directory / "model.safetensors").items()}
        made = blend.Blend(**weights) if weights else None
        return cls(memory.Memory.of(state), texts_, version=directory.name, blend_=made)


def row_text(row: Row) -> str | None:
    """What a row says, as the encoder reads it: an item, else the query, else the listing."""
    event = row.event
    if event.item_id:
        return texts.item_text(event.title, event.category, event.brand, event.price) or event.item_id
    return event.query or event.category


def _top(scores: dict[str, float], n: int) -> list[tuple[str, float]]:
    return sorted(scores.items(), key=lambda kv: (-kv[1], kv[0]))[:n]
