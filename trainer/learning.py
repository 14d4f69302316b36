"""How the session network learns: the next item, among all items or among a sample of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from trainer.network import LENGTH, Ints, Network, Sequences
from trainer.texts import Vectors

BARRED = -1e4  # added to the logit of the item that a session is at: it is not asked for


@dataclass(frozen=True, kw_only=True)
class Lessons:
    """What there is to learn: sessions at their cuts, and the column of the item that came next."""

    said: Sequences
    target: Ints  # [n]
    current: Ints  # [n] column of the item that each session is at, −1: none
    names: list[str]  # of the columns
    vectors: Vectors  # [columns, dim]


def train(network: Network, lessons: Lessons, epochs: int) -> Network:
    """Next-item cross entropy over all items, or over a sample with its bias taken off; trains in place.

    A network that starts warm keeps the scale of its logits: replayed cuts are known to it, and each refresh would
    raise it to be surer of them still.
    """
    settings, said, n = network.settings, lessons.said, len(lessons.target)
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    steps = min(settings.max_steps, epochs * -(-n // settings.batch))
    network.scale.requires_grad_(network.trained_ms < 0)
    dense = [p for p in network.parameters() if p.requires_grad and p is not network.residual]
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(dense, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True),
        torch.optim.SparseAdam([network.residual], lr=settings.learning_rate),  # only words of the batch are touched
    ]

    def pace(i: int) -> float:
        return min(1.0, (i + 1) / settings.warmup_steps) * max(0.05, 1 - i / steps)

    ramps = [torch.optim.lr_scheduler.LambdaLR(optimiser, pace) for optimiser in optimisers]
    columns = {name: column for column, name in enumerate(lessons.names)}
    own = _own(said, columns)
    table, vectors = network.reduced(said.table), network.reduced(lessons.vectors)
    word = torch.tensor([network.words.get(name, 0) for name in lessons.names])
    counts = np.bincount(lessons.target, minlength=len(columns)) ** 0.5 + 0.1
    network.train()
    for rows in itertools.islice(_batches(rng, (said.text > 0).sum(1), settings.batch), steps):
        text, *rest = map(torch.from_numpy, said.batch(rows))
        known, place = torch.unique(text, return_inverse=True)
        heading = network.heading(network.projected(table[known]), place, *rest)
        if len(columns) <= settings.full_softmax:
            shown, offset, where = slice(None), torch.zeros(1), np.arange(1 + len(columns))
        else:
            surely = np.concatenate([lessons.target[rows], own[rows][own[rows] < len(columns)]])
            shown, offset, where = _sampled(rng, counts, surely, settings.sampled)
        items = network.items(vectors[shown], word[shown])
        logits = torch.addmm(-offset, heading * network.scale, items.T)
        mine, at = where[own[rows]], where[lessons.current[rows]]
        who, ago = np.nonzero(mine < len(items))
        more = network.copy[torch.from_numpy(ago)]
        if len(offset) > 1:  # a session's own items are always shown to it
            more = more + offset[torch.from_numpy(mine[who, ago])]
        here = np.flatnonzero(at < len(items))
        places = _places(np.r_[who, here], np.r_[mine[who, ago], at[here]])
        logits.index_put_(places, torch.cat([more, torch.full((len(here),), BARRED)]), accumulate=True)
        loss = functional.cross_entropy(logits, torch.from_numpy(where[lessons.target[rows]]))
        network.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        for optimiser, ramp in zip(optimisers, ramps, strict=True):
            optimiser.step()
            ramp.step()
    return network


def _own(said: Sequences, columns: dict[str, int]) -> Ints:
    """Column of the session's own item by how many tokens ago it was [n, LENGTH]; elsewhere one column past the end."""
    made = np.full((len(said.own), LENGTH), len(columns), np.int64)
    for i, mine in enumerate(said.own):
        for name, ago in mine.items():
            made[i, ago] = columns.get(name, len(columns))
    return made


def _places(rows: Ints, columns: Ints) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(rows), torch.from_numpy(columns)


def _batches(rng: np.random.Generator, length: Ints, batch: int) -> Iterator[Ints]:
    """Batches of sessions of about one length, so that little is padded, pass after pass without an end."""
    while True:
        order = rng.permutation(len(length))
        for start in range(0, len(order), 16 * batch):
            near = order[start : start + 16 * batch]
            near = near[np.argsort(length[near], kind="stable")]
            parts = [near[i : i + batch] for i in range(0, len(near), batch)]
            for i in rng.permutation(len(parts)):
                yield parts[i]


def _sampled(rng: np.random.Generator, counts: Any, surely: Ints, n: int) -> tuple[Any, torch.Tensor, Ints]:
    """Columns shown in a batch, log of how often each is expected, and where each column is now (past the end: not)."""
    share = counts / counts.sum()
    drawn = rng.choice(len(counts), n, p=share)
    shown = np.unique(np.concatenate([surely, drawn]))
    where = np.full(1 + len(counts), len(shown), np.int64)  # also of −1, no column
    where[shown] = np.arange(len(shown))
    expected = np.log(-np.expm1(n * np.log1p(-share[shown])))
    return torch.from_numpy(shown), torch.from_numpy(expected.astype(np.float32)), where
