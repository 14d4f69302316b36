"""What a worker holds: it learns from every row, predicts for touched sessions, and is saved as a version."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
from safetensors.numpy import load_file, save_file

from featurestore import window
from featurestore.catalogue import Item
from featurestore.events import Event, Origin, Row, Session
from trainer import blend, categories, endings, heads, lambdarank, memory, nearest, network, texts
from trainer.ragged import Ints

ITEMS = 20
CATEGORIES, MOST, TOLD = 10, 20, 0.95  # so many are named, and of more until this share of what may come is named
ARRIVING = 20  # candidates among the newest items that nobody touched
RANKER = "lambdarank.txt"  # of a version, LightGBM's text
COLD = "memory"  # the version that a predictor without a trained part goes by
PROPOSED = 50  # candidates of the network
TAKEN = 65_536  # items whose vectors are looked up at once
TOGETHER = 64  # sessions whose products with the items are one


class Interest(msgspec.Struct):
    """What one session is about to engage with, most worth first: probabilities fall, unless a ranker orders."""

    user_id: str
    session_id: str
    items: list[tuple[str, float]]
    categories: list[tuple[str, float]]
    none_probability: float
    purchase_probability: float | None
    reason: Literal["model", "fallback"]
    version: str


class Trained(msgspec.Struct, frozen=True):
    """What a retrain makes: where sessions are heading, and how that and the memory become probabilities."""

    network: network.Network
    blend: blend.Blend
    purchase: heads.Purchase | None = None
    categories: categories.Mixture | None = None  # what they are told by; None: by the items' probabilities alone
    ranker: lambdarank.Ranker | None = None  # what orders the items; their probabilities stay the blend's


class Predictor:
    """The memory, and where a version was loaded the trained part above it."""

    def __init__(
        self, memory_: memory.Memory, texts_: texts.Texts, *, version: str = COLD, trained: Trained | None = None
    ) -> None:
        self.memory, self.texts, self.version, self.trained = memory_, texts_, version, trained
        self.changed = memory_.watch()
        self.changed.update(memory_.items)
        self.items = texts.ItemTable(texts_, trained.network.placed if trained else None)
        self.among: nearest.Every | nearest.Lists = nearest.Every(self.items.placed)

    @classmethod
    def cold(
        cls, texts_: texts.Texts, horizon_ms: int = endings.HORIZON_MS, lateness_ms: int = endings.LATENESS_MS
    ) -> Predictor:
        """Before the first version: the memory alone answers; `horizon_ms`: of event time, for what comes next."""
        return cls(memory.Memory(horizon_ms, lateness_ms), texts_)

    @classmethod
    def rehearse(cls, texts_: texts.Texts) -> None:
        """Have compiled what learning, predicting and forgetting need, before anything waits for it."""
        event = Event(event_id="e", type="view", user_id="u", ts_ms=0, item_id="i", category="c")
        row, trial = Row(event, Origin("t", 0, 0, 0, 0), "s"), cls.cold(texts_)
        trial.learn([row])
        trial.predict([Session("s", "u", 0, 0, [row])], [0])
        nearest.rehearse()
        categories.shares(categories.Mixture(), memory.NONE, np.zeros(0), trial.memory.crossing([row]))
        blend.rehearse()
        trial.memory.make_room()

    def learn(self, rows: list[Row]) -> int:
        """Fold rows into the memory; those it has seen change nothing. Returns how many were new."""
        return self.memory.learn(rows)

    def stock(self, told: Iterable[Item]) -> int:
        """Take what the catalogue tells, in order; returns how many items are known otherwise than before.

        From the next prediction on, items that nobody touched are candidates: those newest of the session's category,
        those nearest among the newest of all (MODEL: "recent arrivals by text"), and wherever the network proposes them
        by their text; withdrawn ones are none. Call it on the thread that predicts. The texts of many items take the
        encoder long, so have their vectors first: `model.texts.vectors([item_text(i.item_id, i) for i in items])` on
        another thread. To measure: `model.stock([Item(item_id="sku-1", title="Red shoe", category="Sports > Shoes")])`.
        """
        return self.memory.stock(told)

    def holds(self) -> dict[str, int]:
        """How much of what grows with a shop is held just now."""
        remembered = self.memory
        return {
            "words": len(remembered.words), "items": len(remembered.items),
            "sessions": len(remembered.neighbours.serials), "texts": len(self.texts.known),
        }  # fmt: skip

    def warm(self) -> None:
        """Look up the vectors of new and changed items, so that the next prediction does not wait for them."""
        if self.trained is not None and self.changed:
            items = self.memory.items
            said = {name: item_text(name, items[name]) for name in sorted(self.changed) if name in items}
            if len(said) < len(self.changed):
                self.items.keep(self.memory.item)
                self.among = nearest.among(None, self.items.placed)
            names = list(said)
            for part in (names[i : i + TAKEN] for i in range(0, len(names), TAKEN)):
                columns = self.items.update({n: said[n] for n in part}, [self.memory.words[n] for n in part])
                self.among.moved(columns, self.items.placed)
            self.changed.clear()
            self.among = nearest.among(self.among, self.items.placed)

    def predict(self, sessions: list[Session], at_ms: list[int]) -> list[Interest]:
        """One interest a session, as of that session's instant."""
        if self.trained is None:
            return self.recall(sessions, at_ms)
        self.texts.known.tell(max(at_ms, default=0))
        rows = [s.rows[-window.LENGTH :] for s in sessions]
        said, headings = self.headings(rows, at_ms)
        about = said.leanings()
        self.warm()
        made = []
        for i, (session, now_ms) in enumerate(zip(sessions, at_ms, strict=True)):
            if i % TOGETHER == 0:
                near = self.near(headings[i : i + TOGETHER])
            found, case = self._weighed(rows[i], now_ms, headings[i], near[i % TOGETHER], about[i], said.own[i])
            each, none, _ = self.trained.blend.probabilities(case)
            head = self.trained.purchase
            buys = head.probability(rows[i], now_ms) if head is not None else None
            ranker = self.trained.ranker
            worth = each if ranker is None else ranker.worth(case, each)
            told = categories.shares(self.trained.categories, case.shelves, each, case.crossing)
            made.append(self._interest(session, found, each, none, buys, "model", told, worth))
        return made

    def recall(self, sessions: list[Session], at_ms: list[int]) -> list[Interest]:
        """The same from the memory alone: before there is a trained part, and for those who are held back from it."""
        return [self._fallback(s, t) for s, t in zip(sessions, at_ms, strict=True)]

    def headings(self, rows: list[list[Row]], at_ms: list[int]) -> tuple[network.Sequences, texts.Vectors]:
        """Sessions as the trained network sees them, and where they are heading; no other row plays a part."""
        assert self.trained is not None
        said = network.sequences(rows, at_ms, self.texts, self.trained.network.words)
        return said, self.trained.network.headings(said)

    def case(
        self, rows: list[Row], at_ms: int, heading: texts.Vectors, own: dict[str, int], also: Ints = memory.NONE
    ) -> tuple[Ints, blend.Case]:
        """A session as the blend sees it: its candidates as words of the memory (`also` among them), their features."""
        self.warm()
        return self._weighed(rows, at_ms, heading, self.near(heading[None])[0], self.leaning(rows), own, also)

    def near(self, headings: texts.Vectors) -> list[nearest.Near]:
        """What the network proposes to each of some sessions, and what its scores of all items sum up to."""
        assert self.trained is not None
        return self.among.find(headings, self.items.placed, self.trained.network.factor, PROPOSED + network.LENGTH)

    def leaning(self, rows: list[Row]) -> texts.Vectors:
        """What a session's newest rows are about, see `network.Sequences.leanings`."""
        made: texts.Vectors = network.sequences([rows], [0], self.texts, {}).leanings()[0]
        return made

    def _weighed(
        self, rows: list[Row], at_ms: int, heading: texts.Vectors, near: nearest.Near, about: texts.Vectors,
        own: dict[str, int], also: Ints = memory.NONE,
    ) -> tuple[Ints, blend.Case]:  # fmt: skip
        assert self.trained is not None
        remembered, net, placed = self.memory, self.trained.network, self.items.placed
        words = remembered.words
        known = [name for name in own if name in remembered.items]
        mine = nearest.Own(
            self.items.columns(np.array([words[name] for name in known], np.int32)),
            net.copied[[own[name] for name in known]],
        )
        best, total = nearest.proposed(near, mine, heading, placed, net.factor, PROPOSED)
        new = remembered.arrivals.newest
        if len(new):
            alike = nearest.products(self.items.columns(new), placed, heading, net.factor, mine)
            new = new[blend.largest(alike.astype(np.float64), ARRIVING)]
        found, evidence = remembered.evidence(rows, at_ms, np.concatenate([self.items.words[best], new, also]))
        columns = self.items.columns(found)
        shelves, crossing = remembered.category[found], remembered.crossing(rows)
        candidates = blend.features(
            evidence,
            shelves == (crossing.left if crossing.left >= 0 else -2),
            nearest.products(columns, self.items.vectors, about, 1.0),
            nearest.products(columns, placed, heading, net.factor, mine) - np.float32(total),
        )
        said, none = remembered.endings.asked(rows, at_ms)
        return found, blend.Case(
            candidates=candidates, session=said, none=none, shelves=shelves, crossing=crossing
        )  # fmt: skip

    def _fallback(self, session: Session, at_ms: int) -> Interest:
        found, scores = self.memory.score(session.rows, at_ms)
        none = self.memory.endings.asked(session.rows, at_ms)[1] if len(found) else 1.0
        each = scores * (1 - none) / max(scores.sum(), 1e-9)
        told = blend.by_category(self.memory.category[found], each)
        return self._interest(session, found, each, none, None, "fallback", told)

    def _interest(
        self, session: Session, found: Ints, each: Any, none: float, buys: float | None,
        reason: Literal["model", "fallback"], told: categories.Told, worth: Any = None,
    ) -> Interest:  # fmt: skip
        shelves, shares = told[0], told[1] * (1 - none)
        return Interest(
            session.user_id, session.session_id, self._named(found, each, ITEMS, worth),
            [(name[2:], share) for name, share in told_of(self._named(shelves, shares, MOST), none)],
            none, buys, reason, self.version,
        )  # fmt: skip

    def _named(self, words: Ints, each: Any, n: int, worth: Any = None) -> list[tuple[str, float]]:
        """The n largest, or the n of most worth, with the names of their words, the first one first."""
        best, names = blend.largest(each if worth is None else np.asarray(worth, np.float64), n), self.memory.names
        return list(zip([names[word] for word in words[best].tolist()], each[best].tolist(), strict=True))

    def save(self, directory: Path) -> None:
        """Write the version's files into an empty directory: tensors as safetensors, the rest as JSON."""
        assert self.trained is not None
        net, mixed = self.trained.network, self.trained.blend
        save_file(net.weights(), directory / "model.safetensors")
        config = Config(
            encoder=self.texts.digest,
            words=list(net.words),
            network=net.settings,
            trained_ms=net.trained_ms,
            weights=mixed,
            purchase=self.trained.purchase,
            categories=self.trained.categories,
        )
        (directory / "config.json").write_bytes(msgspec.json.format(msgspec.json.encode(config)))
        if self.trained.ranker is not None:
            (directory / RANKER).write_text(self.trained.ranker.told, encoding="utf-8")
        self.memory.save(directory)

    @classmethod
    def load(cls, directory: Path, texts_: texts.Texts) -> Predictor:
        """Read a version back; its name is the directory's. Raises ValueError where its features are unknown."""
        config = msgspec.json.decode((directory / "config.json").read_bytes(), type=Config)
        told = config.session_features, config.purchase.features if config.purchase else heads.FEATURES
        older = blend.FEATURES[: len(config.features)]
        if config.features != older or told != (blend.SESSION, heads.FEATURES):
            raise ValueError(f"{directory.name} was made for other features by another nextclick; train a new version")
        weights = load_file(directory / "model.safetensors")
        net = network.Network.of(weights, config.words, config.network, config.trained_ms)
        trees = directory / RANKER
        ranker = lambdarank.Ranker(trees.read_text(encoding="utf-8")) if trees.exists() else None
        trained = Trained(net, config.weights.widened(), config.purchase, config.categories, ranker)
        return cls(memory.Memory.load(directory), texts_, version=directory.name, trained=trained)


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """`config.json` of a version: what its tensors mean."""

    encoder: str  # digest
    words: list[str]  # whose residuals the network learnt
    network: network.NetworkSettings
    trained_ms: int
    weights: blend.Blend
    purchase: heads.Purchase | None = None
    categories: categories.Mixture | None = None  # versions before it have none
    features: tuple[str, ...] = blend.FEATURES
    session_features: tuple[str, ...] = blend.SESSION


def item_text(name: str, known: memory.Known | Item) -> str:
    """What is known of an item, as the encoder reads it."""
    return texts.item_text(known.title, known.category, known.brand, known.price) or texts.NAMED + name


def told_of(categories: list[tuple[str, float]], none: float) -> list[tuple[str, float]]:
    """Of categories in falling order those that are named: a reader of the others knows only the sum.

    >>> [name for name, share in told_of([(str(n), 0.5**n) for n in range(1, 15)], 0.0)][-1]
    '10'
    """
    left, n = TOLD * (1 - none) - sum(share for _, share in categories[:CATEGORIES]), CATEGORIES
    while left > 0 and n < len(categories):
        left, n = left - categories[n][1], n + 1
    return categories[:n]
