"""The session network: attention over a session's own text vectors says where in the text space a person is heading."""

from __future__ import annotations

import array
import bisect
import functools
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from featurestore.events import TYPES, Row
from trainer.memory import token
from trainer.texts import Texts, Vectors, row_text

Ints = NDArray[np.int64]

LENGTH = 20  # tokens of a session, repeats in a row collapsed
RECENT = 8  # rows of a session whose texts say what it is about
GAPS_MS = [1_000 * s for s in (15, 60, 300, 900, 1_800, 3_600, 21_600)]  # edges of how long ago a token was
NOTHING = [0] * RECENT
KINDS = {name: 1 + i for i, name in enumerate(TYPES)}


class NetworkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How it is made and trained; the first training takes more passes than one that starts warm."""

    width: int = 64
    axes: int = 128  # principal ones of the text vectors that are kept
    wide: int = 100  # the width of a catalogue whose softmax is sampled
    scale: float = 10.0  # from cosine to logit, where training starts
    dropout: float = 0.3  # of token vectors
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 20
    batch: int = 256
    epochs: int = 2  # passes over what is new and its replay
    first: int = 4  # times as many, where training does not start warm
    max_steps: int = 2_000
    cuts: int = 60_000  # new ones in one training, the newest
    replay: float = 4.0  # old cuts for each new one
    full_softmax: int = 5_000  # more items than these are sampled
    word_rows: int = 5  # rows that a word must have to get a residual of its own; one without a text needs one
    sampled: int = 2_048  # negatives of a batch, drawn by the root of their counts
    seed: int = 7


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """n sessions as the network sees them, newest token last, 0 on the left; `own`: item → how many tokens ago."""

    text: Ints  # [n, LENGTH] rows of `table`
    word: Ints  # [n, LENGTH] places in the vocabulary, 0: not in it
    kind: Ints  # [n, LENGTH] what was done
    gap: Ints  # [n, LENGTH] how long ago
    recent: Ints  # [n, RECENT] rows of `table`, the newest first, 0 on the right
    own: list[dict[str, int]]
    table: Vectors  # [texts + 1, dim], row 0 is zeros

    def batch(self, rows: Any) -> list[Ints]:
        """Text, word, kind and gap of some sessions [rows, tokens], as far back as the longest of them goes."""
        tokens = max(1, int((self.text[rows] > 0).sum(1).max()))
        return [a[rows, -tokens:] for a in (self.text, self.word, self.kind, self.gap)]

    def leanings(self) -> Vectors:
        """What each session's newest rows are about: their texts' vectors, weighted by how new each is [n, dim]."""
        weights = np.where(self.recent > 0, 0.7 ** np.arange(RECENT), 0).astype(np.float32)
        weights /= np.maximum(weights.sum(1, keepdims=True), np.float32(1e-9))
        made: Vectors = (weights[:, None] @ self.table[self.recent])[:, 0]
        return made


class Network(torch.nn.Module):
    """Projected text vectors with learnt residuals; before training it is the zero-shot recommender."""

    def __init__(self, dim: int, words: list[str], settings: NetworkSettings) -> None:
        super().__init__()
        d = settings.width
        torch.manual_seed(settings.seed)
        self.settings, self.words = settings, {word: 1 + i for i, word in enumerate(words)}
        self.trained_ms = -1  # no label above this instant has been learnt
        self.mean = torch.nn.Parameter(torch.zeros(dim), requires_grad=False)
        self.axes = torch.nn.Parameter(torch.zeros(dim, settings.axes), requires_grad=False)
        self.project = torch.nn.Parameter(torch.eye(settings.axes, d))
        self.residual = torch.nn.Parameter(torch.zeros(1 + len(words), d))
        self.key, self.query = torch.nn.Linear(d, d, bias=False), torch.nn.Linear(d, d)
        self.onward = torch.nn.Parameter(torch.zeros(d, d))  # what follows is not what is alike
        self.worth, self.place = torch.nn.Parameter(torch.zeros(d)), torch.nn.Parameter(torch.zeros(LENGTH, d))
        self.age = torch.nn.Parameter(-0.35 * torch.arange(LENGTH - 1, -1, -1.0))
        self.kind = torch.nn.Parameter(torch.zeros(1 + len(KINDS)))
        self.gap = torch.nn.Parameter(torch.zeros(2 + len(GAPS_MS)))
        self.copy = torch.nn.Parameter(torch.zeros(LENGTH))  # by how many tokens ago
        self.scale = torch.nn.Parameter(torch.tensor(settings.scale))

    def start_at(self, vectors: Vectors) -> None:
        """Set the axes to the principal ones of [n, dim] text vectors."""
        mean = vectors.mean(0)
        spread, axes = np.linalg.eigh((vectors - mean).T @ (vectors - mean))
        axes = (axes * (spread > 1e-5 * spread.max()))[:, ::-1][:, : self.settings.axes]  # beyond them is only noise
        with torch.no_grad():
            self.mean.copy_(torch.from_numpy(mean))
            self.axes[:, : axes.shape[1]].copy_(torch.from_numpy(np.ascontiguousarray(axes)))

    def reduced(self, vectors: Vectors) -> torch.Tensor:
        """Text vectors [n, dim] along the axes, which training leaves as they are: [n, axes], as long as they were."""
        told = torch.from_numpy(vectors)
        length = told.norm(dim=-1, keepdim=True)
        made: torch.Tensor = functional.normalize((told - length * self.mean) @ self.axes, dim=-1) * length
        return made

    def embedded(self, reduced: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        """Reduced text vectors [..., axes] of words [...] in the network's space: [..., width]."""
        return self.projected(reduced) + self._learnt(word)

    def projected(self, reduced: torch.Tensor) -> torch.Tensor:
        """Reduced text vectors [..., axes] in the network's space, as long as they were: [..., width]."""
        made: torch.Tensor = functional.normalize(reduced @ self.project, dim=-1) * reduced.norm(dim=-1, keepdim=True)
        return made

    def _learnt(self, word: torch.Tensor) -> torch.Tensor:
        return functional.embedding(word, self.residual, padding_idx=0, sparse=True)  # row 0 stays zero

    def heading(self, projected: torch.Tensor, text: torch.Tensor, *rest: torch.Tensor) -> torch.Tensor:
        """Where sessions are heading, [n, width], unit length; the attention of STAMP (Liu et al., KDD 2018).

        `text` are rows of `projected`, [n, tokens]; `rest` as in `Sequences.batch`.
        """
        (word, kind, gap), newest = rest, slice(-text.shape[1], None)
        e = projected[text] + self._learnt(word)
        e = functional.dropout(e, self.settings.dropout, self.training)
        hidden = torch.tanh(self.key(e) + self.query(e[:, -1:]) + self.place[newest])  # [n, tokens, width]
        a = hidden @ self.worth + self.age[newest] + self.kind[kind] + self.gap[gap]
        a = torch.softmax(a.masked_fill(kind == 0, -1e9), dim=1)
        s = (a.unsqueeze(-1) * e).sum(1)
        return functional.normalize(s + s @ self.onward, dim=-1)

    def items(self, reduced: torch.Tensor, word: torch.Tensor) -> torch.Tensor:
        """Items in the network's space: [n, width], unit length."""
        return functional.normalize(self.embedded(reduced, word), dim=-1)

    def headings(self, said: Sequences) -> Vectors:
        """`heading` outside training: float32 [n, width]; by numpy, whose calls cost a fifth of what torch's do."""
        projected = self._projected(said.table)
        made = [self._heading(projected, *said.batch(slice(i, i + 256))) for i in range(0, len(said.text), 256)]
        return np.concatenate(made)

    def _projected(self, vectors: Vectors) -> Vectors:
        """Text vectors [n, dim] in the network's space, as long as they were: [n, width]."""
        now, length = self._now, np.linalg.norm(vectors, axis=1, keepdims=True)
        made: Vectors = (
            _unit(np.linalg.multi_dot([vectors - length * now["mean"], now["axes"], now["project"]])) * length
        )
        return made

    def _heading(self, projected: Vectors, text: Ints, word: Ints, kind: Ints, gap: Ints) -> Vectors:
        now, shape = self._now, text.shape
        e = (projected[text] + now["residual"][word]).reshape(text.size, -1)
        newest, asked = slice(-shape[1], None), e[shape[1] - 1 :: shape[1]] @ now["query.weight"].T + now["query.bias"]
        hidden = (e @ now["key.weight"].T).reshape(*shape, -1)
        hidden += asked[:, None]
        hidden += now["place"][newest]
        a = np.tanh(hidden, out=hidden) @ now["worth"] + now["age"][newest] + now["kind"][kind] + now["gap"][gap]
        a[kind == 0] = -1e9
        a = np.exp(a - a.max(1, keepdims=True))
        a /= a.sum(1, keepdims=True)
        s = (a[:, None] @ e.reshape(*shape, -1))[:, 0]
        return _unit(s + s @ now["onward"])

    @torch.inference_mode()
    def placed(self, vectors: Vectors, names: list[str]) -> Vectors:
        """`items` outside training: float32 [n, width]."""
        word = torch.tensor([self.words.get(name, 0) for name in names])
        return self.items(self.reduced(vectors), word).numpy()

    @property
    def factor(self) -> float:
        """From cosine to logit."""
        return float(self._now["scale"])

    @property
    def copied(self) -> Vectors:
        """By how much an item's logit is raised that the session touched so many tokens ago [LENGTH]."""
        return self._now["copy"]

    def near(self, headings: Vectors, placed: Vectors) -> Vectors:
        """Scaled products of sessions [n, width] and items [m, width], read once for all sessions: [n, m]."""
        made: Vectors = headings @ placed.T if len(placed) else np.zeros((len(headings), 0), np.float32)
        made *= self.factor
        return made

    @functools.cached_property
    def _now(self) -> dict[str, Vectors]:
        """All tensors by name: their own memory, so that what training changes is seen."""
        return {name: value.numpy() for name, value in self.state_dict().items()}

    def weights(self) -> dict[str, Vectors]:
        """All tensors by name."""
        return dict(self._now)

    @classmethod
    def of(cls, weights: dict[str, Vectors], words: list[str], settings: NetworkSettings, trained_ms: int) -> Network:
        """The network that `weights`, its words and settings told."""
        made = cls(len(weights["mean"]), words, settings)
        made.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
        made.trained_ms = trained_ms
        return made

    def grown(self, words: list[str]) -> Network:
        """A copy whose vocabulary has these words at its end, their residuals zero."""
        weights, new = self.weights(), [word for word in words if word not in self.words]
        zeros = np.zeros((len(new), self.settings.width), np.float32)
        weights["residual"] = np.concatenate([weights["residual"], zeros])
        return Network.of(weights, [*self.words, *new], self.settings, self.trained_ms)


def _unit(vectors: Vectors) -> Vectors:
    made: Vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), np.float32(1e-12))
    return made


def sequences(sessions: list[list[Row]], at_ms: list[int], texts: Texts, words: dict[str, int]) -> Sequences:
    """Sessions at one instant each; their newest `LENGTH` tokens count."""
    places, own, recent = {"": 0}, list[dict[str, int]](), list[list[int]]()
    told = array.array("i")  # of each token: where it stands, text, word, kind and gap
    for i, (rows, now_ms) in enumerate(zip(sessions, at_ms, strict=True)):
        place, after = LENGTH, None
        mine: dict[str, int] = {}
        newest: list[int] = []
        for row in reversed(rows):
            event, name, at = row.event, token(row), places.setdefault(row_text(row), len(places))
            newest.append(at)
            if name == after:
                continue
            place, after = place - 1, name
            ago = 1 + bisect.bisect_right(GAPS_MS, max(0, now_ms - event.ts_ms))
            told.extend((i * LENGTH + place, at, words.get(name, 0), KINDS[event.type], ago))
            if event.item_id and event.item_id not in mine and row.engages:
                mine[event.item_id] = LENGTH - 1 - place
            if place == 0:
                break
        own.append(mine)
        recent.append((newest + NOTHING)[:RECENT])
    where, *tokens = np.frombuffer(told, np.int32).reshape(-1, 5).T
    dealt = np.zeros((4, len(sessions) * LENGTH), np.int64)
    dealt[:, where] = tokens
    text, word, kind, gap = dealt.reshape(4, len(sessions), LENGTH)
    vectors = texts.vectors(list(places)[1:])
    table = np.concatenate([np.zeros((1, texts.dim), np.float32), vectors])
    recents = np.array(recent, np.int64).reshape(-1, RECENT)
    return Sequences(text=text, word=word, kind=kind, gap=gap, recent=recents, own=own, table=table)
