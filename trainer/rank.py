"""How well a given list of items suits a session, items that nobody has touched yet included."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import msgspec
import numpy as np

from featurestore import window
from featurestore.events import Row
from trainer import blend, memory, texts
from trainer.predictor import Predictor

Reason = Literal["model", "fallback", "popularity"]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """An item by its id, by its text, or by both; what a text leaves out is taken from what is known of the id."""

    item_id: str | None = None
    text: str | None = None
    title: str | None = None
    category: str | None = None
    brand: str | None = None
    price: float | None = None

    @property
    def said(self) -> str:
        """The text that was given."""
        return self.text or texts.item_text(self.title, self.category, self.brand, self.price)


class Ranked(msgspec.Struct, frozen=True, kw_only=True):
    """A candidate with the probability that it is the next different item engaged with, and its text's likeness."""

    place: int  # among the candidates as they were given
    item_id: str | None
    text: str
    probability: float  # calibrated where `reason` is `model`
    match: float | None  # cosine of its text with the session's newest texts, null without a session
    known: bool  # whether anybody touched it before, or the catalogue tells of it
    rank: int


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """The candidates, best first, and what answered: popularity alone where the session is empty."""

    model_version: str
    reason: Reason
    none_probability: float | None
    ranked: list[Ranked]


def rank(model: Predictor, rows: list[Row], at_ms: int, asked: list[Candidate]) -> Ranking:
    """Candidates by how probable each is as the session's next different item, then by likeness.

    `rows` are the session's newest, as the scorer sees them; `at_ms` is an instant of event time. Probabilities are
    shares among everything that may come next, the items not asked for included: they do not sum to one.
    """
    remembered, rows = model.memory, rows[-window.LENGTH :]
    words = np.array([_word(remembered, one) for one in asked], np.int32)
    said = [one.said or _text(remembered, one) for one in asked]
    match: Any = None
    none: float | None
    if rows:
        vectors = model.texts.vectors(said)
        match = vectors @ model.leaning(rows)
    if not rows:
        each, none = _popular(remembered, words, at_ms), None
        reason: Reason = "popularity"
    elif model.trained is None:
        _, none = remembered.endings.asked(rows, at_ms)
        each = _remembered(remembered, rows, at_ms, words, 1 - none)
        reason = "fallback"
    else:
        each, none = _learnt(model, rows, at_ms, words, asked, vectors, match)
        reason = "model"
    order = np.lexsort((np.arange(len(asked)), np.zeros(len(asked)) if match is None else -match, -each))
    made = [
        Ranked(
            place=int(k), item_id=asked[k].item_id, text=said[k], probability=round(float(each[k]), 6),
            match=None if match is None else round(float(match[k]), 4), known=bool(words[k] >= 0), rank=n,
        )
        for n, k in enumerate(order, 1)
    ]  # fmt: skip
    return Ranking(model_version=model.version, reason=reason, none_probability=none, ranked=made)


def _word(remembered: memory.Memory, one: Candidate) -> int:
    """The word of an item that somebody touched, −1 where it is new."""
    return remembered.words[one.item_id] if one.item_id is not None and one.item_id in remembered.items else -1


def _text(remembered: memory.Memory, one: Candidate) -> str:
    known = remembered.items.get(one.item_id or "")
    told = texts.item_text(known.title, known.category, known.brand, known.price) if known else ""
    return told or one.item_id or ""


def _popular(remembered: memory.Memory, words: Any, at_ms: int) -> Any:
    """Shares of what is engaged with just now."""
    known = np.flatnonzero(words >= 0)
    faded = remembered.popular * 0.5 ** (np.maximum(0, at_ms - remembered.popular_ms) / memory.HALF_LIFE_MS)
    each = np.zeros(len(words))
    each[known] = faded[words[known]] / max(float(faded.sum()), 1e-9)
    return each


def _remembered(remembered: memory.Memory, rows: list[Row], at_ms: int, words: Any, whole: float) -> Any:
    found, scores = remembered.score(rows, at_ms, words[words >= 0])
    share = dict(zip(found.tolist(), scores * whole / max(float(scores.sum()), 1e-9), strict=True))
    return np.array([share.get(int(word), 0.0) for word in words])


def _learnt(
    model: Predictor, rows: list[Row], at_ms: int, words: Any, asked: list[Candidate], vectors: Any, match: Any
) -> tuple[Any, float]:
    """Known items as the scorer weighs them; new ones by their text alone, in the same mixture."""
    assert model.trained is not None
    said, headings = model.headings([rows], [at_ms])
    found, case = model.case(rows, at_ms, headings[0], said.own[0], words[words >= 0])
    new = np.flatnonzero(words < 0)
    if len(new):
        net = model.trained.network
        placed = net.placed(vectors[new], [asked[k].item_id or "" for k in new])
        near = net.near(headings, placed)[0] - model.near(headings)[0].total
        last = memory.last_category(rows)
        same = np.array([last is not None and asked[k].category == last for k in new])
        more = blend.features(np.zeros((len(new), len(memory.EVIDENCE))), same, match[new], near)
        shelves = np.concatenate([case.shelves, np.full(len(new), -1, np.int32)])
        case = dataclasses.replace(case, candidates=np.concatenate([case.candidates, more]), shelves=shelves)
    shares, none, _ = model.trained.blend.probabilities(case)
    of_word = dict(zip(found.tolist(), shares, strict=False))
    each = np.array([of_word.get(int(word), 0.0) for word in words])
    each[new] = shares[len(found) :]
    return each, none
