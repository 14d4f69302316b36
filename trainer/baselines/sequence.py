"""Small networks over ids, as published: GRU4Rec-style and SASRec-style, next-item cross entropy in torch."""

from __future__ import annotations

import itertools
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from featurestore.events import Row
from trainer.baselines.baseline import Baseline, Shares, best
from trainer.memory import current_item, digest, token

LENGTH = 20  # tokens of a session that are read
SESSIONS = 200_000  # kept to learn from
NONE = -1  # nothing to learn at this place


class SequenceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """How a network over ids is trained; later trainings go on from the last state with a replay of old sessions."""

    width: int = 64
    layers: int = 2  # of attention; the recurrent one has a single layer
    dropout: float = 0.2
    learning_rate: float = 3e-3
    batch: int = 64
    first: int = 30  # passes over all sessions in the first training
    later: int = 4  # passes over what is new and as much again of what is old
    seed: int = 7


@dataclass
class _Said:
    tokens: list[int] = field(default_factory=list)  # repeats in a row are one
    items: list[int] = field(default_factory=list)  # of each token, the item that was engaged with; NONE: no item was
    fresh: bool = True


class SequenceModel(Baseline):
    """Reads a session's tokens (items, list pages, searches) and learns the next different item at every one."""

    trained = True

    def __init__(self, network: type[_Network], settings: SequenceSettings | None = None) -> None:
        self._kind, self._settings = network, settings or SequenceSettings()
        self._places: dict[str, int] = {"": 0}  # token → place, 0 is padding
        self._item: list[bool] = [False]  # of each place
        self._sessions: dict[int, _Said] = {}
        self._network: _Network | None = None
        self._names: list[str] = []  # of the places that the network knows
        self._answers = torch.zeros(0, dtype=torch.bool)  # which of them are items

    def take(self, row: Row, before: list[Row]) -> None:
        """Keep a token of a session."""
        name = token(row)
        place = self._places.setdefault(name, len(self._places))
        if place == len(self._item):
            self._item.append(False)
        self._item[place] |= row.engages
        said = self._sessions.setdefault(digest(row), _Said())
        item = place if row.engages else NONE
        if said.tokens and said.tokens[-1] == place:
            said.items[-1] = max(said.items[-1], item)
        else:
            said.tokens.append(place)
            said.items.append(item)
        said.fresh = True
        if len(self._sessions) > SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def train(self, cpu_seconds: float) -> None:
        """Passes over what is new with as much of what is old; the learning rate falls to nothing."""
        settings, first = self._settings, self._network is None
        until, rng = time.process_time() + cpu_seconds, np.random.default_rng(settings.seed)
        torch.manual_seed(settings.seed)
        new = [s for s in self._sessions.values() if s.fresh and len(s.tokens) > 1]
        old = [s for s in self._sessions.values() if not s.fresh and len(s.tokens) > 1]
        chosen = new + [old[i] for i in rng.permutation(len(old))[: len(new)]]
        for said in new:
            said.fresh = False
        self._names, self._answers = list(self._places), torch.tensor(self._item)
        self._network = self._kind.grown(self._network, len(self._names), settings)
        lessons = [part for said in chosen for part in _parts(said)]
        if not lessons:
            return
        tokens, targets = (np.stack([part[k] for part in lessons]) for k in (0, 1))
        steps = (settings.first if first else settings.later) * -(-len(lessons) // settings.batch)
        optimiser = torch.optim.AdamW(self._network.parameters(), lr=settings.learning_rate, fused=True)
        pace = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: max(0.05, 1 - step / steps))
        n, needed = len(lessons), steps * settings.batch
        order = np.concatenate([rng.permutation(n) for _ in range(1 + needed // n)])
        self._network.train()
        for step in range(steps):
            if time.process_time() >= until:
                break
            rows = order[step * settings.batch : (step + 1) * settings.batch]
            target = torch.from_numpy(targets[rows])
            there = target != NONE
            if there.any():
                headings = self._network(torch.from_numpy(tokens[rows]))[there]  # [places, width]
                loss = functional.cross_entropy(self._network.scores(headings, self._answers), target[there])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
            pace.step()

    @torch.inference_mode()
    def answers(self, sessions: list[list[Row]], at_ms: list[int]) -> list[Shares]:
        """Of the items known when it was last trained, never the one that a session is at."""
        if self._network is None:
            return [{} for _ in sessions]
        known = len(self._names)
        tokens, last = np.zeros((len(sessions), LENGTH), np.int64), np.zeros(len(sessions), np.int64)
        for i, rows in enumerate(sessions):
            seen = (self._places.get(token(row), known) for row in rows)
            path = [place for place, _ in itertools.groupby(place for place in seen if place < known)][-LENGTH:]
            tokens[i, : len(path)], last[i] = path, max(0, len(path) - 1)
        self._network.eval()
        headings = self._network(torch.from_numpy(tokens))[torch.arange(len(sessions)), torch.from_numpy(last)]
        logits = self._network.scores(headings, self._answers)
        for i, rows in enumerate(sessions):
            here = self._places.get(current_item(rows) or "", known)
            if here < known:
                logits[i, here] = -torch.inf
        shares = torch.softmax(logits, 1).numpy()
        return [best(self._names, row) for row in shares]


def _parts(said: _Said) -> list[tuple[Any, Any]]:
    """A session in pieces of LENGTH tokens, with the next different item at each: [(tokens, targets)]."""
    n = len(said.tokens)
    targets, coming, after = np.full(n, NONE, np.int64), NONE, NONE  # the next item, and the next that differs from it
    current = np.full(n, NONE, np.int64)
    for i, item in enumerate(said.items):
        current[i] = item if item != NONE else current[i - 1] if i else NONE
    for i in range(n - 1, -1, -1):
        targets[i] = coming if coming != current[i] else after
        if said.items[i] != NONE and said.items[i] != coming:
            coming, after = said.items[i], coming
    made = []
    for begin in range(0, n, LENGTH):
        tokens, wanted = np.zeros(LENGTH, np.int64), np.full(LENGTH, NONE, np.int64)
        part = slice(begin, begin + LENGTH)
        tokens[: len(said.tokens[part])], wanted[: len(targets[part])] = said.tokens[part], targets[part]
        if (wanted != NONE).any():
            made.append((tokens, wanted))
    return made


class _Network(nn.Module):
    """What both have: embedded tokens, and scores of items by the same embeddings."""

    def __init__(self, places: int, settings: SequenceSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = nn.Embedding(places, settings.width, padding_idx=0)
        nn.init.normal_(self.embedding.weight, std=settings.width**-0.5)
        self.bias = nn.Parameter(torch.zeros(places))
        self.dropout = nn.Dropout(settings.dropout)

    @classmethod
    def grown(cls, before: _Network | None, places: int, settings: SequenceSettings) -> _Network:
        """A network for so many places that goes on where another stood."""
        made = cls(places, settings)
        if before is not None:
            state, old = made.state_dict(), before.state_dict()
            for name, value in old.items():
                if name in ("embedding.weight", "bias"):
                    state[name][: len(value)] = value
                else:
                    state[name] = value
            made.load_state_dict(state)
        return made

    def scores(self, headings: torch.Tensor, item: torch.Tensor) -> torch.Tensor:
        """Logits of all places [n, places]; those that are no items get none."""
        made = headings @ self.embedding.weight[: len(item)].T + self.bias[: len(item)]
        return made.masked_fill(~item, -torch.inf)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Where a session is heading after each of its tokens: [n, LENGTH] → [n, LENGTH, width]."""
        raise NotImplementedError


class Gru(_Network):
    """GRU4Rec-style (Hidasi et al., ICLR 2016; full softmax in place of its sampled ranking losses)."""

    def __init__(self, places: int, settings: SequenceSettings) -> None:
        super().__init__(places, settings)
        self.gru = nn.GRU(settings.width, settings.width, batch_first=True)
        self.out = nn.Linear(settings.width, settings.width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """One step a token."""
        made: torch.Tensor = self.out(self.dropout(self.gru(self.dropout(self.embedding(tokens)))[0]))
        return made


class Attention(_Network):
    """SASRec-style (Kang and McAuley, ICDM 2018; full softmax in place of one negative a positive)."""

    def __init__(self, places: int, settings: SequenceSettings) -> None:
        super().__init__(places, settings)
        d = settings.width
        self.place = nn.Parameter(torch.randn(LENGTH, d) * 0.02)
        layer = nn.TransformerEncoderLayer(d, 2, 4 * d, settings.dropout, "gelu", batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, settings.layers, nn.LayerNorm(d), enable_nested_tensor=False)
        self.causal: torch.Tensor
        self.register_buffer("causal", torch.triu(torch.ones(LENGTH, LENGTH, dtype=torch.bool), 1), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Each token sees those before it; padding lies behind and is seen by none."""
        made: torch.Tensor = self.layers(self.dropout(self.embedding(tokens) + self.place), mask=self.causal)
        return made
