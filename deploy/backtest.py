"""The same predictor and the same retrains on the event clock: test on what comes next, then train on it."""

from __future__ import annotations

import heapq
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from deploy import replay
from deploy.settings import Settings, written
from featurestore import lake, sessions, window
from featurestore.catalogue import Item
from featurestore.events import Event, Origin, Row, Session
from streams import codec
from trainer import baselines, judge, network, registry, retrain, texts
from trainer.cases import window_rows
from trainer.memory import current_item, digest, last_category
from trainer.predictor import Predictor

KEY = lake.PartitionKey("backtest@file", 0)
TESTED = 20_000  # cuts at most, evenly spaced
ORDERED = ("item", "category")  # what the Markov chains count
OPEN = 20_000  # sessions that they remember
FLOOR = 1e-4  # the probability of a category that was not named


def run(
    settings: Settings, file: Path, cadences_ms: list[int | None], items: Sequence[Item] = ()
) -> dict[str, Any]:  # fmt: skip
    """Train on the first half of the file's time, then walk the second half once for each cadence (None: never).

    `items` is the catalogue in the order in which it was told.
    """
    torch.set_num_threads(1)  # as a training job has it
    rows = read(settings, file)
    labels = _labels(settings, rows)
    rows = retrain.rows_of(labels)  # what the labels point into: without repeats and without what may not be used
    half_ms = (rows[0].event.ts_ms + rows[-1].event.ts_ms) // 2
    wanted = np.flatnonzero(labels.at_ms >= half_ms)
    wanted = wanted[np.linspace(0, len(wanted) - 1, min(TESTED, len(wanted))).astype(int)] if len(wanted) else wanted
    arms = {
        "never" if c is None else written(c): walk(settings, rows, labels, wanted, half_ms, c, items)
        for c in cadences_ms
    }
    return {"events": len(rows), "cuts": len(wanted), "arms": arms}


def read(settings: Settings, file: Path) -> list[Row]:
    """The file's events as rows of one partition, folded as a worker folds them; what is bad is passed over."""
    folding, open_, rows = settings.sessions(), sessions.OpenSessions(), []
    for offset, line in enumerate(replay.lines(file)):
        try:
            elements = codec.decode(line.value)
        except codec.BadEvent:
            continue
        for n, event in enumerate(elements):
            if isinstance(event, Event):
                row = sessions.fold(open_, event, Origin(KEY.topic, 0, offset, n, event.ts_ms), folding).row
                rows += [row] if row is not None else []
        if offset % 1_000 == 0:
            sessions.expire(open_, folding)
    if not rows:
        raise replay.UnreadableFile(f"{file} holds no event that can be read; `nextclick replay` says why line by line")
    return rows


def _labels(settings: Settings, rows: list[Row]) -> window.Examples:
    """Every mature cut of the file with what came after it: the answers, which no model sees before its time."""
    with tempfile.TemporaryDirectory() as folder:
        whole = lake.Lake(Path(folder), "backtest")
        whole.write_rows(KEY, 0, rows)
        policy = msgspec.structs.replace(settings.window_policy(), cuts=10**9, max_age_ms=10**15)
        return window.examples(whole.cover(), policy)


def walk(
    settings: Settings,
    rows: list[Row],
    labels: window.Examples,
    wanted: Any,
    half_ms: int,
    cadence_ms: int | None,
    items: Sequence[Item] = (),
) -> dict[str, Any]:
    """One pass over the second half: predict each wanted cut, learn each row, retrain every cadence."""
    cpu, cut_at = time.process_time(), {int(labels.row[i]): int(i) for i in wanted}
    scored: dict[int, dict[str, float]] = {}
    trained, refused, next_ms, written_to = 0, 0, half_ms, 0
    known = labels.purchase[(labels.at_ms < half_ms) & (labels.purchase >= 0)]
    beside = Beside(bought=float(known.mean()) if len(known) else 0.5)
    bar = progress("never" if cadence_ms is None else written(cadence_ms), len(rows))
    with tempfile.TemporaryDirectory() as folder:
        recipe = retrain.Recipe(network=network.NetworkSettings(**settings.network()))
        the_lake, out = lake.Lake(Path(folder), "backtest"), registry.Registry(Path(folder))
        words = texts.Texts(settings.encoder(), Path(folder), "backtest")
        model, champion = Predictor.cold(words), None
        since: dict[lake.PartitionKey, int] = {}
        shelved = 0
        for place, row in enumerate(rows):
            while shelved < len(items) and items[shelved].told_ms <= row.event.ts_ms:
                model.stock([items[shelved]])
                shelved += 1
            if row.event.ts_ms >= next_ms and row.origin.n == 0:  # a message is never split
                the_lake.write_rows(KEY, rows[written_to].origin.offset, rows[written_to:place])
                written_to = place
                policy = msgspec.structs.replace(settings.window_policy(), since=since)
                verdict = retrain.run(
                    the_lake.cover(), champion, recipe, policy, row.event.ts_ms, texts=words, out=out,
                    told=items[:shelved],
                )  # fmt: skip
                refused += not verdict.accepted
                if verdict.version is not None:
                    trained, champion = trained + 1, out.path(verdict.version)
                    model = Predictor.load(champion, words)
                    model.learn(rows[:place])  # what was not mature yet
                    model.stock(items[:shelved])
                    since = {KEY: next(iter(verdict.data_offsets.values()))}
                next_ms = row.event.ts_ms + cadence_ms if cadence_ms is not None else 2**62
            model.memory.take(row)
            beside.take(row)
            if (i := cut_at.get(place)) is not None:
                scored[i] = score(model, beside, rows, labels, i)
            bar(place)
    session, names = labels.session_key[list(scored)], sorted({name for cut in scored.values() for name in cut})
    told = {name: judge.interval(np.array([c.get(name, math.nan) for c in scored.values()]), session) for name in names}
    return {
        "retrained": trained,
        "refused": refused,
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "metrics": msgspec.to_builtins(told),
    }


@dataclass
class Beside:
    """The baselines, as they were at each cut."""

    items: baselines.Popularity = field(default_factory=baselines.Popularity)
    categories: baselines.Popularity = field(default_factory=baselines.Popularity)
    last: baselines.LastCategory = field(default_factory=baselines.LastCategory)
    after: dict[str, baselines.Markov] = field(
        default_factory=lambda: {f"markov{n}.{what}": baselines.Markov(n) for n in (1, 2) for what in ORDERED}
    )
    sessions: dict[int, list[Row]] = field(default_factory=dict)  # their newest rows
    bought: float = 0.5  # share of the cuts before the tested ones that ended in a purchase

    def take(self, row: Row) -> None:
        """Count what somebody engaged with."""
        if row.engages:
            self.items.take(row.event.item_id, row.event.ts_ms)
            self.categories.take(row.event.category, row.event.ts_ms)
        before = self.sessions.pop(session := digest(row), [])
        if row.engages and row.event.item_id != current_item(before):
            for name, chain in self.after.items():
                if told := _told(row, name):
                    chain.learn(path(before, name), told)
        self.sessions[session] = [*before[-window.LENGTH :], row]
        if len(self.sessions) > OPEN:
            del self.sessions[next(iter(self.sessions))]


def path(rows: list[Row], name: str) -> list[str]:
    """The newest items, or categories of items and listings, that a session went through; repeats in a row are one."""
    told = [_told(row, name) for row in rows if row.engages or not name.endswith("item")]
    return [name for name, _ in itertools.groupby(name for name in told if name)][-2:]


def _told(row: Row, name: str) -> str | None:
    return row.event.item_id if name.endswith("item") else row.event.category


def score(model: Predictor, beside: Beside, rows: list[Row], labels: window.Examples, i: int) -> dict[str, float]:
    """One cut: what the model and the baselines said of it, metric by metric; what does not apply is left out."""
    tokens = window_rows(labels, rows, i)
    interest = model.predict([Session("", "", 0, 0, tokens, len(tokens))], [int(labels.at_ms[i])])[0]
    more, none = labels.next_row[i] >= 0, interest.none_probability
    made = {"none.log_loss": _loss(1 - none if more else none)}
    if (bought := labels.purchase[i]) >= 0 and (buys := interest.purchase_probability) is not None:
        made["purchase.log_loss"] = _loss(buys if bought else 1 - buys)
        made["base.purchase.log_loss"] = _loss(beside.bought if bought else 1 - beside.bought)
    if not more:
        return made
    target, current = rows[labels.next_row[i]].event, current_item(tokens)
    made |= _ranked("item", [name for name, _ in interest.items], target.item_id, 20)
    made |= _ranked("popular.item", [name for name in beside.items.ranked(21) if name != current], target.item_id, 20)
    for name, chain in beside.after.items():
        shares = chain.probabilities(path(tokens, name))
        if name.endswith("item"):
            shares.pop(current or "", None)
            made |= _ranked(name, heapq.nlargest(20, shares, key=shares.__getitem__), target.item_id, 20)
        elif target.category is not None:
            best = heapq.nlargest(5, shares, key=shares.__getitem__)
            made |= _categories(name, best, target.category, shares.get(target.category, FLOOR))
    if target.category is None:
        return made
    before = last_category(tokens)
    named, some, known = dict(interest.categories), max(1 - none, FLOOR), len(beside.categories.ranked(1_000))
    rest = max(some - sum(named.values()), FLOOR) / max(known - len(named), 1)  # what was not named shares what is left
    popular = beside.categories.ranked(5)
    guess = list(dict.fromkeys(c for c in [before, *popular] if c is not None))[:5]
    share = beside.last.probability(before, target.category, known)
    made |= _categories("category", list(named), target.category, named.get(target.category, rest) / some)
    made |= _categories("popular.category", popular, target.category, beside.categories.probability(target.category))
    made |= _categories("last.category", guess, target.category, share)
    beside.last.learn(before, target.category)
    return made


def _ranked(name: str, ranked: list[str], target: str | None, k: int) -> dict[str, float]:
    rank = ranked.index(target) + 1 if target in ranked[:k] else 0
    return {f"{name}.r{k}": float(rank > 0), f"{name}.mrr{k}": 1 / rank if rank else 0.0}


def _categories(name: str, ranked: list[str], target: str, share: float) -> dict[str, float]:
    hit = {f"{name}.r1": float(ranked[:1] == [target]), f"{name}.r5": float(target in ranked[:5])}
    return hit | {f"{name}.log_loss": _loss(share)}


def _loss(share: float) -> float:
    return -math.log(max(share, FLOOR))


def progress(name: str, total: int) -> Callable[[int], None]:
    """A line that grows on a terminal's stderr, nothing elsewhere."""

    def step(done: int) -> None:
        if sys.stderr.isatty() and done % 2_000 == 0:
            sys.stderr.write(f"\rcadence {name}: {done / total:4.0%} of {total:,} events")

    return step


def told(result: dict[str, Any]) -> str:
    """The result as lines: one a metric, with its interval and n."""
    lines = [f"{result['events']:,} events, {result['cuts']:,} cuts tested"]
    for name, arm in result["arms"].items():
        lines.append(
            f"cadence {name}: {arm['retrained']} versions, {arm['refused']} refused, {arm['cpu_seconds']} CPU s"
        )
        for metric, b in arm["metrics"].items():
            if b["mean"] is not None:
                lines.append(f"  {metric:<26} {b['mean']:.3f} [{b['low']:.3f}, {b['high']:.3f}]  n={b['n']:,}")
    return "\n".join(lines)
