"""Production classes asked for the rank of what came: the neighbours alone, the network alone, the blend of all."""

from __future__ import annotations

from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from featurestore import window
from featurestore.events import Row
from tests.benchmarks.quality.diginetica import Period, parted
from trainer import blend, memory, network, retrain, texts
from trainer.neighbours import Ints, Neighbours
from trainer.predictor import Predictor, Trained

Ranks = NDArray[np.float64]  # [cases, 2]: with repeats; of different items (NaN where the same item came again)
FITTED = 5_000  # cases that the blend is fitted on


class Case:
    """A session up to a step, and the item of the next step."""

    __slots__ = ("again", "rows", "target")

    def __init__(self, rows: list[Row], target: str) -> None:
        self.rows, self.target = rows[-memory.RECENT :], target
        self.again = target == rows[-1].event.item_id


def cases(period: Period, every: int = 1) -> list[Case]:
    """The tested steps in order of their sessions, every n-th of them."""
    made = []
    for session in period.tested:
        rows = [period.rows[i] for i in session]
        made += [Case(rows[:k], str(rows[k].event.item_id)) for k in range(1, len(rows))]
    return made[::every]


class NeighboursArm:
    """`trainer.neighbours` alone."""

    def __init__(self) -> None:
        self.memory = memory.Memory()

    def learn(self, period: Period) -> None:
        """A period that was tested."""
        for row in period.rows:
            self.memory.take(row)

    def ranks(self, asked: list[Case]) -> Ranks:
        """Of what came, among all items that got a vote; elsewhere infinite."""
        words, votes_of = self.memory.words, Neighbours.votes
        made = np.full((len(asked), 2), np.inf)
        for i, case in enumerate(asked):
            said = [words[str(row.event.item_id)] for row in reversed(case.rows)]
            query = np.array(list(dict.fromkeys(said))[: memory.QUERY], np.int32)
            found, votes = votes_of(
                self.memory.neighbours, query, 0, case.rows[-1].event.ts_ms, self.memory.item
            )  # the session is not among those learnt
            made[i] = _ranks(found, votes, words[case.target], said[0])
        return made


class NetworkArm:
    """`trainer.network` alone: trained on all that came before, warm from one period to the next."""

    def __init__(self, settings: network.NetworkSettings, folder: Path) -> None:
        self.settings, self.words = settings, texts.Texts(None, folder, "bench")
        self.rows: list[Row] = []
        self.cuts: list[tuple[list[int], int]] = []  # rows of the session so far, row of the next different item
        self.net: network.Network | None = None
        self.repeats = Repeats()

    def learn(self, period: Period) -> None:
        """A period that was tested."""
        base, sessions = len(self.rows), defaultdict[str, list[int]](list)
        self.rows += period.rows
        for i, row in enumerate(period.rows):
            sessions[row.session_id].append(base + i)
        new = [
            (session[max(0, k - window.LENGTH) : k], session[k])
            for session in sessions.values()
            for k in range(1, len(session))
            if self.rows[session[k]].event.item_id != self.rows[session[k - 1]].event.item_id
        ]
        self.cuts += sorted(new, key=lambda cut: cut[0][-1])
        self.repeats.learn([[self.rows[i] for i in session] for session in sessions.values()])
        made = self._examples()
        early = np.arange(len(made))
        self.net = retrain.network_of(made, self.rows, early, self.words, self.net, self.settings)

    def _examples(self) -> window.Examples:
        n = len(self.cuts)
        tokens = np.full((n, window.LENGTH), -1)
        for i, (seen, _) in enumerate(self.cuts):
            tokens[i, -len(seen) :] = seen
        none, yes = np.zeros(n, np.int64), np.ones(n, np.bool_)
        at_ms = np.array([self.rows[seen[-1]].event.ts_ms for seen, _ in self.cuts])
        return window.Examples(
            rows=pa.table({}), row=tokens[:, -1], tokens=tokens, next_row=np.array([nxt for _, nxt in self.cuts]),
            category_offsets=none, category_rows=none, purchase=none.astype(np.int8), at_ms=at_ms, session_key=none,
            user=none, fresh=yes, judge=~yes, train=yes, begins={},
        )  # fmt: skip

    def ranks(self, asked: list[Case]) -> Ranks:
        """Of what came, among all items."""
        assert self.net is not None
        names = list(dict.fromkeys(str(row.event.item_id) for row in self.rows))
        columns = {name: i for i, name in enumerate(names)}
        vectors = self.words.vectors([texts.NAMED + name for name in names])
        placed = self.net.placed(vectors, names)
        said = network.sequences(
            [c.rows for c in asked], [c.rows[-1].event.ts_ms for c in asked], self.words, self.net.words
        )
        headings, made = self.net.headings(said), np.empty((len(asked), 2))
        each = np.arange(len(names))
        for i, case in enumerate(asked):
            own = said.own[i]
            near = self.net.near(headings[i : i + 1], placed)[0]
            logits = self.net.logits(near, [columns[n] for n in own], list(own.values()))
            current = columns[str(case.rows[-1].event.item_id)]
            logits[current] = -np.inf
            shares = np.exp(logits - logits.max())
            shares *= (1 - self.repeats.share(case.rows)) / shares.sum()
            shares[current] = self.repeats.share(case.rows)
            made[i] = _ranks(each, shares, columns[case.target], current)
        return made


class BlendArm:
    """`Predictor` whole: network and memory, blended by weights fitted on predictions of the period before."""

    def __init__(self, settings: network.NetworkSettings, folder: Path) -> None:
        self.below = NetworkArm(settings, folder)
        self.memory = memory.Memory()
        self.weights: blend.Blend | None = None

    def learn(self, period: Period) -> None:
        """A period that was tested; its outcomes were not known to what is fitted on them."""
        if self.below.net is None:  # nothing was tested yet: the end of the first period stands in for it
            early, period = parted(period)
            self._take(early)
        asked = [case for case in cases(period) if not case.again]
        made = self._cases(asked[:: max(1, len(asked) // FITTED)])
        self.weights = blend.fit([case for _, case in made], start=self.weights)
        self._take(period)

    def _take(self, period: Period) -> None:
        self.below.learn(period)
        for row in period.rows:
            self.memory.take(row)

    def ranks(self, asked: list[Case]) -> Ranks:
        """Of what came, among the candidates; elsewhere infinite."""
        made = np.empty((len(asked), 2))
        arm = self.weights or blend.Blend.flat()
        for i, (case, (found, said)) in enumerate(zip(asked, self._cases(asked), strict=True)):
            shares, *_ = arm.probabilities(said)
            again = self.below.repeats.share(case.rows)
            words = self.memory.words
            current = words[str(case.rows[-1].event.item_id)]
            shares = np.append(shares * (1 - again) / shares.sum(), again)
            made[i] = _ranks(np.append(found, current), shares, words[case.target], current)
        return made

    def _cases(self, asked: list[Case]) -> list[tuple[Ints, blend.Case]]:
        assert self.below.net is not None
        arm = Predictor(self.memory, self.below.words, trained=Trained(self.below.net, blend.Blend.flat()))
        at_ms = [case.rows[-1].event.ts_ms for case in asked]
        said, headings = arm.headings([case.rows for case in asked], at_ms)
        made = []
        for i, case in enumerate(asked):
            found, features = arm.case(case.rows, at_ms[i], headings[i], said.own[i])
            here = np.flatnonzero(found == self.memory.words[case.target])
            answer = {"target": int(here[0]) if len(here) else -2}
            made.append((found, _with(features, answer)))
        return made


class Repeats:
    """How often the next item is the same again, which production does not ask: by how often it was just before."""

    def __init__(self) -> None:
        self.held, self.asked = Counter[bool](), Counter[bool]()

    def learn(self, sessions: list[list[Row]]) -> None:
        """Count the steps of sessions."""
        for rows in sessions:
            for k in range(1, len(rows)):
                kind = _doubled(rows[:k][-2:])
                self.asked[kind] += 1
                self.held[kind] += rows[k].event.item_id == rows[k - 1].event.item_id

    def share(self, rows: list[Row]) -> float:
        """Of sessions like this one."""
        kind = _doubled(rows[-2:])
        return self.held[kind] / max(self.asked[kind], 1)


def _doubled(rows: list[Row]) -> bool:
    return len(rows) == 2 and rows[0].event.item_id == rows[1].event.item_id


def _with(case: blend.Case, answer: dict[str, Any]) -> blend.Case:
    return blend.Case(candidates=case.candidates, session=case.session, shelves=case.shelves, **answer)


def _ranks(found: Any, shares: Any, target: int, current: int) -> tuple[float, float]:
    """Middle rank of the target with the current item among the others, and without it (NaN: it came again)."""
    here = np.flatnonzero(found == target)
    if not len(here):
        return np.inf, np.nan if target == current else np.inf
    mine = shares[here[0]]
    if not np.isfinite(mine):
        raise FloatingPointError("a score is not finite: the arm is broken")
    rank = 1 + float((shares > mine).sum()) + ((shares == mine).sum() - 1) / 2
    if target == current:
        return rank, np.nan
    at = shares[found == current]
    return rank, rank - (float(at[0] > mine) + 0.5 * float(at[0] == mine) if len(at) else 0.0)


def threads() -> None:
    """One, as a training job has it."""
    torch.set_num_threads(1)
