"""Production classes asked for the rank of what came: the neighbours alone, the network alone, the blend of all."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from featurestore import window
from featurestore.events import Row
from tests.benchmarks.quality.diginetica import Period, parted
from trainer import blend, lambdarank, memory, network, retrain, texts
from trainer.neighbours import Ints, Neighbours
from trainer.predictor import Predictor, Trained

Ranks = NDArray[np.float64]  # [cases, 2]: with repeats; of different items (NaN where the same item came again)
Told = dict[str, tuple[Ranks, float]]  # of each arm, and the CPU seconds that it took
FITTED = retrain.Recipe().fit_cuts  # cases that the blend is fitted on, at most
TOGETHER = 64  # cases whose products with all items are one


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


def sessions(asked: list[Case]) -> window.Ints:
    """A number of the session of each case."""
    numbers: dict[str, int] = {}
    return np.array([numbers.setdefault(case.rows[0].session_id, len(numbers)) for case in asked])


class NeighboursArm:
    """`trainer.neighbours` alone."""

    def __init__(self) -> None:
        self.memory, self.learnt_s = memory.Memory(), 0.0

    def learn(self, period: Period) -> None:
        """A period that was tested."""
        cpu = time.process_time()
        for row in period.rows:
            self.memory.take(row)
        self.learnt_s = time.process_time() - cpu

    def told(self, asked: list[Case]) -> Told:
        """Of what came, among all items that got a vote; elsewhere infinite."""
        return {"neighbours": timed(self._ranks, asked)}

    def _ranks(self, asked: list[Case]) -> Ranks:
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
    """`trainer.network` alone: trained on all that came before, warm from one period to the next.

    What was learnt is kept in `folder`, so that a walk that was cut short goes on from there.
    """

    def __init__(self, settings: network.NetworkSettings, folder: Path) -> None:
        self.settings, self.words, self.kept = settings, texts.Texts(None, folder, None), folder
        self.rows: list[Row] = []
        self.tokens: list[window.Ints] = []  # of each period [cuts, LENGTH]: rows of the session so far
        self.next: list[window.Ints] = []  # of each period [cuts]: row of the next different item
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
        new.sort(key=lambda cut: cut[0][-1])
        tokens = np.full((len(new), window.LENGTH), -1)
        for i, (seen, _) in enumerate(new):
            tokens[i, -len(seen) :] = seen
        self.tokens.append(tokens)
        self.next.append(np.array([nxt for _, nxt in new]))
        self.repeats.learn([[self.rows[i] for i in session] for session in sessions.values()])
        kept, cpu = self.kept / f"network-{len(self.tokens)}", time.process_time()
        if not kept.with_suffix(".json").exists():
            made = self._examples()
            early = np.arange(len(made))
            self.net = retrain.network_of(made, self.rows, early, self.words, self.net, self.settings)
            save_file(self.net.weights(), kept.with_suffix(".safetensors"))
            told = [list(self.net.words), self.net.trained_ms, time.process_time() - cpu]
            kept.with_suffix(".json").write_text(json.dumps(told))
        words, trained_ms, self.learnt_s = json.loads(kept.with_suffix(".json").read_text())
        weights = load_file(kept.with_suffix(".safetensors"))
        settings = msgspec.structs.replace(self.settings, width=len(weights["worth"]))
        self.net = network.Network.of(weights, words, settings, trained_ms)

    def _examples(self) -> window.Examples:
        tokens, next_row = np.concatenate(self.tokens), np.concatenate(self.next)
        n = len(tokens)
        none, yes = np.zeros(n, np.int64), np.ones(n, np.bool_)
        at_ms = np.array([self.rows[i].event.ts_ms for i in tokens[:, -1]])
        return window.Examples(
            rows=pa.table({}), row=tokens[:, -1], tokens=tokens, next_row=next_row,
            category_offsets=none, category_rows=none, purchase=none.astype(np.int8), at_ms=at_ms, session_key=none,
            user=none, fresh=yes, judge=~yes, train=yes, begins={},
        )  # fmt: skip

    def told(self, asked: list[Case]) -> Told:
        """Of what came, among all items."""
        return {"network": timed(self._ranks, asked)}

    def _ranks(self, asked: list[Case]) -> Ranks:
        assert self.net is not None
        names = list(dict.fromkeys(str(row.event.item_id) for row in self.rows))
        columns = {name: i for i, name in enumerate(names)}
        vectors = self.words.vectors([texts.NAMED + name for name in names])
        placed = self.net.placed(vectors, names)
        said = network.sequences(
            [c.rows for c in asked], [c.rows[-1].event.ts_ms for c in asked], self.words, self.net.words
        )
        headings, copied, made = self.net.headings(said), self.net.copied, []
        for start in range(0, len(asked), TOGETHER):
            part = asked[start : start + TOGETHER]
            logits = self.net.near(headings[start : start + TOGETHER], placed)
            for i, own in enumerate(said.own[start : start + TOGETHER]):
                logits[i, [columns[name] for name in own]] += copied[list(own.values())]
            target, current = (
                np.array([columns[name] for name in named])
                for named in ([c.target for c in part], [str(c.rows[-1].event.item_id) for c in part])
            )
            made.append(_all_ranks(logits, target, current, np.array([self.repeats.share(c.rows) for c in part])))
        return np.concatenate(made)


class BlendArm:
    """`Predictor` whole: network and memory, blended by weights fitted on predictions of the period before.

    With the order that LambdaRank learns above them, where LightGBM is here. Above one network and one memory each of
    `draws` fits weights of its own, on cases drawn by that seed; 0: evenly spaced ones.
    """

    def __init__(self, settings: network.NetworkSettings, folder: Path, draws: Sequence[int] = (0,)) -> None:
        self.below = NetworkArm(settings, folder)
        self.memory = memory.Memory()
        self.fitted: dict[int, tuple[blend.Blend | None, lambdarank.Ranker | None]] = dict.fromkeys(draws, (None, None))

    def learn(self, period: Period) -> None:
        """A period that was tested; its outcomes were not known to what is fitted on them."""
        if self.below.net is None:  # nothing was tested yet: the end of the first period stands in for it
            early, period = parted(period)
            self._take(early)
        began_s = self.below.learnt_s
        asked = [case for case in cases(period) if not case.again]
        for draw, (start, _) in self.fitted.items():
            cpu, kept = time.process_time(), self.below.kept / f"blend-{period.number}{f'-{draw}' if draw else ''}.json"
            if not kept.exists():
                made = [case for _, case in self._cases(_drawn(asked, draw))]
                mixed = blend.fit(made, start=start)
                ranker = lambdarank.fit(made, mixed)
                told = [msgspec.to_builtins(mixed), ranker and ranker.told, time.process_time() - cpu]
                kept.write_text(json.dumps(told))
            weights, ordered, fitted_s = json.loads(kept.read_text())
            self.fitted[draw] = msgspec.convert(weights, blend.Blend), lambdarank.Ranker(ordered) if ordered else None
        self._take(period)
        self.learnt_s = self.below.learnt_s + fitted_s + (began_s if period.number == 0 else 0.0)

    def _take(self, period: Period) -> None:
        self.below.learn(period)
        for row in period.rows:
            self.memory.take(row)

    def told(self, asked: list[Case]) -> Told:
        """Of what came, among the candidates; elsewhere infinite."""
        arms = [(name, draw) for draw, (_, r) in self.fitted.items() for name in ("blend", "lambdarank")[: 1 + bool(r)]]
        made, spent = {arm: np.empty((len(asked), 2)) for arm in arms}, dict.fromkeys(arms, 0.0)
        cpu, own, words = time.process_time(), 0.0, self.memory.words
        for i, (case, (found, said)) in enumerate(zip(asked, self._cases(asked), strict=True)):
            again, current = self.below.repeats.share(case.rows), words[str(case.rows[-1].event.item_id)]
            of = np.append(found, current), words[case.target], current
            for draw, (weights, ranker) in self.fitted.items():
                begun = time.process_time()
                shares, none, _ = (weights or blend.Blend.flat()).probabilities(said)
                weighed = np.append(
                    shares * (1 - again) / (1 - none), again
                )  # an item that is none of them keeps its share
                made["blend", draw][i] = _ranks(of[0], weighed, *of[1:])
                spent["blend", draw] += time.process_time() - begun
                if ranker is not None:  # the repeat keeps the place that its probability gives it
                    order = np.argsort(np.argsort(-ranker.worth(said, shares)))
                    weighed[:-1] = np.sort(weighed[:-1])[::-1][order]
                    made["lambdarank", draw][i] = _ranks(of[0], weighed, *of[1:])
                    spent["lambdarank", draw] += time.process_time() - begun
                own += time.process_time() - begun
        cpu = time.process_time() - cpu - own
        return self.below.told(asked) | {named(*arm): (made[arm], cpu + spent[arm]) for arm in arms}

    def _cases(self, asked: list[Case]) -> Iterator[tuple[Ints, blend.Case]]:
        assert self.below.net is not None
        arm = Predictor(self.memory, self.below.words, trained=Trained(self.below.net, blend.Blend.flat()))
        at_ms = [case.rows[-1].event.ts_ms for case in asked]
        said, headings = arm.headings([case.rows for case in asked], at_ms)
        about = said.leanings()
        arm.warm()
        for i, case in enumerate(asked):  # as `Predictor.predict` does it, up to the blend
            if i % TOGETHER == 0:
                near = arm.near(headings[i : i + TOGETHER])
            found, features = arm._weighed(case.rows, at_ms[i], headings[i], near[i % TOGETHER], about[i], said.own[i])
            here = np.flatnonzero(found == self.memory.words[case.target])
            yield found, dataclasses.replace(features, target=int(here[0]) if len(here) else -2)


def named(arm: str, draw: int) -> str:
    """As a table calls it."""
    return f"{arm}, draw {draw}" if draw else arm


def _drawn(asked: list[Case], draw: int) -> list[Case]:
    """As many as a blend is fitted on, in order of time: drawn by a seed, or evenly spaced where it is 0."""
    if not draw or len(asked) <= FITTED:
        return asked[:: max(1, -(-len(asked) // FITTED))]
    return [asked[i] for i in np.sort(np.random.default_rng(draw).choice(len(asked), FITTED, replace=False))]


class Repeats:
    """How often the next item is the same again, which production does not ask: by how often it was just before."""

    def __init__(self) -> None:
        self.held, self.asked = Counter[tuple[bool, int]](), Counter[tuple[bool, int]]()

    def learn(self, sessions: list[list[Row]]) -> None:
        """Count the steps of sessions."""
        for rows in sessions:
            for k in range(1, len(rows)):
                kind = _kind(rows[:k][-4:])
                self.asked[kind] += 1
                self.held[kind] += rows[k].event.item_id == rows[k - 1].event.item_id

    def share(self, rows: list[Row]) -> float:
        """Of sessions like this one."""
        kind = _kind(rows[-4:])
        return self.held[kind] / max(self.asked[kind], 1)


def _kind(rows: list[Row]) -> tuple[bool, int]:
    """Whether the newest item had come twice already, and how many rows there are, four at most."""
    return len(rows) > 1 and rows[-2].event.item_id == rows[-1].event.item_id, len(rows)


def _all_ranks(logits: texts.Vectors, target: Any, current: Any, again: Any) -> Ranks:
    """As `_ranks`, for many cases whose items' logits are known [cases, items]; the current item has share `again`."""
    each = np.arange(len(logits))
    logits[each, current] = -np.inf
    mine = logits[each, target][:, None]
    different = 1 + (logits > mine).sum(1) + ((logits == mine).sum(1) - 1) / 2
    top = logits.max(1)
    total = top + np.log(np.exp(logits - top[:, None]).sum(1))
    share = (1 - again) * np.exp(mine[:, 0] - total)
    bar = total + np.log(np.maximum(again, 1e-12) / (1 - again))
    same = target == current
    whole = np.where(same, 1 + (logits > bar[:, None]).sum(1), different + (again > share))
    if not (np.isfinite(mine[:, 0]) | same).all():
        raise FloatingPointError("a score is not finite: the arm is broken")
    return np.stack([whole, np.where(same, np.nan, different)], 1)


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


def timed(ranks: Callable[[list[Case]], Ranks], asked: list[Case]) -> tuple[Ranks, float]:
    """Ranks and their CPU seconds."""
    cpu = time.process_time()
    return ranks(asked), time.process_time() - cpu


def threads() -> None:
    """One, as a training job has it."""
    torch.set_num_threads(1)
