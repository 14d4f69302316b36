"""The same predictor and the same retrains on the event clock: test on what comes next, then train on it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

from deploy import advice, replay, scorecard
from deploy.beside import Group, Past, Said, Spent, progress
from deploy.scorecard import Answer, Truth
from deploy.settings import Settings, written
from featurestore import lake, sessions, window
from featurestore.catalogue import Item
from featurestore.events import Event, Origin, Row, Session
from streams import codec
from trainer import baselines, network, registry, retrain, texts
from trainer.baselines import funnel
from trainer.cases import window_rows
from trainer.memory import current_item, last_category
from trainer.predictor import Interest, Predictor

KEY = lake.PartitionKey("backtest@file", 0)
TESTED = 20_000  # cuts at most, evenly spaced
SLICES = ("category switch", "cold item", "new user", "session of one", "item step", "target is next")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is walked: a cadence of None means never again, a budget is CPU seconds of one training of a baseline."""

    cadences_ms: Sequence[int | None]
    target: advice.Target = "item"
    baselines: Sequence[str] = ()
    budget_s: float = 60.0
    items: Sequence[Item] = ()  # the catalogue in the order in which it was told


def run(settings: Settings, file: Path, plan: Plan) -> dict[str, Any]:
    """Train on the first half of the file's time, then walk the second half once for each cadence."""
    baselines.check(plan.baselines, settings.encoder())
    torch.set_num_threads(1)  # as a training job has it
    past = past_of(settings, read(settings, file))
    truths = dict(zip(past.wanted.tolist(), _truths(past), strict=True))
    place = {i: n for n, i in enumerate(truths)}
    scores: dict[str, scorecard.Floats] = {}
    spent: dict[str, Spent] = {}

    def walked(said: Iterator[Said]) -> None:
        for arm, i, answer in said:
            if arm not in scores:
                scores[arm] = np.full((len(scorecard.FIGURES), len(truths)), np.nan)
            scores[arm][:, place[i]] = scorecard.score(answer, truths[i])

    names = {_name(c): c for c in plan.cadences_ms}
    for name, cadence_ms in names.items():
        walked(walk(settings, past, name, cadence_ms, plan, spent))
    if plan.baselines:
        walked(beside(settings, past, plan, spent))
    resampled = scorecard.Resampled(past.labels.session_key[past.wanted])
    slices = {s: np.array([s in truth.slices for truth in truths.values()], np.bool_) for s in SLICES}
    arms = {
        arm: {"kind": "cadence" if arm in names else "baseline", **spent[arm].told()}
        | scorecard.summary(made, resampled, slices)
        for arm, made in scores.items()
    }
    made: dict[str, Any] = {
        "events": len(past.rows), "cuts": len(truths), "target": plan.target, "budget_cpu_seconds": plan.budget_s,
        "encoder": settings.text("encoder"), "device": "cuda" if torch.cuda.is_available() else "cpu",
    }  # fmt: skip
    return made | {"arms": arms} | advice.advised(arms, scores, list(names), plan.target, resampled)


def _name(cadence_ms: int | None) -> str:
    return "never" if cadence_ms is None else written(cadence_ms)


def past_of(settings: Settings, rows: list[Row]) -> Past:
    """A file's rows without repeats and without what may not be used, their cuts, and those of the second half."""
    labels = labels_of(settings, rows)
    rows = retrain.rows_of(labels)
    half_ms = (rows[0].event.ts_ms + rows[-1].event.ts_ms) // 2
    wanted = np.flatnonzero(labels.at_ms >= half_ms)
    wanted = wanted[np.linspace(0, len(wanted) - 1, min(TESTED, len(wanted))).astype(int)] if len(wanted) else wanted
    return Past(rows=rows, labels=labels, wanted=wanted, half_ms=half_ms)


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


def labels_of(settings: Settings, rows: list[Row]) -> window.Examples:
    """Every mature cut of the file with what came after it: the answers, which no model sees before its time."""
    with tempfile.TemporaryDirectory() as folder:
        whole = lake.Lake(Path(folder), "backtest")
        whole.write_rows(KEY, 0, rows)
        policy = msgspec.structs.replace(settings.window_policy(), cuts=10**9, max_age_ms=10**15)
        return window.examples(whole.cover(), policy)


def walk(
    settings: Settings, past: Past, name: str, cadence_ms: int | None, plan: Plan, spent: dict[str, Spent]
) -> Iterator[Said]:
    """One pass over the file: predict each wanted cut, learn each row, retrain every cadence from half of it on.

    Baselines that are trained are trained at the same instants, on the same rows.
    """
    rows, cut_at = past.rows, {int(past.labels.row[i]): int(i) for i in past.wanted}
    next_ms, written_to, mine = past.half_ms, 0, spent.setdefault(name, Spent())
    bar = progress(f"cadence {name}", len(rows))
    with tempfile.TemporaryDirectory() as folder:
        made = network.NetworkSettings(**settings.network())
        recipe = retrain.Recipe(network=made, ranker=settings["ranker"] == "lambdarank")
        the_lake, out = lake.Lake(Path(folder), "backtest"), registry.Registry(Path(folder))
        words = texts.Texts(settings.encoder(), Path(folder), "backtest")
        model, champion = Predictor.cold(words, settings["horizon.next"], settings["session.lateness"]), None
        group = Group(past, baselines.build(plan.baselines, words), f"@{name}", spent, trained=True)
        since: dict[lake.PartitionKey, int] = {}
        shelved = 0
        for place, row in enumerate(rows):
            while shelved < len(plan.items) and plan.items[shelved].told_ms <= row.event.ts_ms:
                model.stock([plan.items[shelved]])
                shelved += 1
            if row.event.ts_ms >= next_ms and row.origin.n == 0:  # a message is never split
                yield from group.answers()
                the_lake.write_rows(KEY, rows[written_to].origin.offset, rows[written_to:place])
                written_to = place
                policy = msgspec.structs.replace(settings.window_policy(), since=since)
                verdict = retrain.run(
                    the_lake.cover(), champion, recipe, policy, row.event.ts_ms, texts=words, out=out,
                    told=plan.items[:shelved],
                )  # fmt: skip
                mine.train_cpu_s += verdict.cpu_seconds
                mine.train_wall_s += verdict.wall_ms / 1000
                mine.refused += not verdict.accepted
                if verdict.version is not None:
                    mine.trainings, champion = mine.trainings + 1, out.path(verdict.version)
                    model = Predictor.load(champion, words)
                    model.learn(rows[:place])  # what was not mature yet
                    model.stock(plan.items[:shelved])
                    since = {KEY: next(iter(verdict.data_offsets.values()))}
                group.train(plan.budget_s)
                next_ms = row.event.ts_ms + cadence_ms if cadence_ms is not None else 2**62
            model.memory.take(row)
            group.take(row)
            if (i := cut_at.get(place)) is not None:
                session = window_rows(past.labels, rows, i)
                begun = time.process_time()
                said = model.predict([Session("", "", 0, 0, session, len(session))], [int(past.labels.at_ms[i])])[0]
                mine.ask_cpu_s += time.process_time() - begun
                mine.asked += 1
                yield name, i, published(said)
                yield from group.ask(i)
            bar(place)
        yield from group.answers()


def published(said: Interest) -> Answer:
    """A prediction as it is judged: by the numbers that it tells."""
    some = max(1 - said.none_probability, 1e-9)
    return Answer(
        items={name: share / some for name, share in said.items},
        categories={name: share / some for name, share in said.categories},
        none=said.none_probability, purchase=said.purchase_probability,
    )  # fmt: skip


def beside(settings: Settings, past: Past, plan: Plan, spent: dict[str, Spent]) -> Iterator[Said]:
    """One pass for the baselines that learn from each row, whatever the cadence."""
    cut_at, bar = {int(past.labels.row[i]): int(i) for i in past.wanted}, progress("baselines", len(past.rows))
    with tempfile.TemporaryDirectory() as folder:
        words = texts.Texts(settings.encoder(), Path(folder), "backtest")
        group = Group(past, baselines.build(plan.baselines, words), "", spent, trained=False)
        known_ms = past.half_ms - settings.window_policy().horizon_purchase_ms
        rate = funnel.fitted(past.labels, past.rows, known_ms)
        for place, row in enumerate(past.rows):
            group.take(row)
            if (i := cut_at.get(place)) is not None:
                yield from group.ask(i)
                if rate is not None:
                    spent.setdefault("funnel", Spent())
                    buys = rate.probability(window_rows(past.labels, past.rows, i))
                    yield "funnel", i, Answer(purchase=buys)
            bar(place)
        yield from group.answers()


def _truths(past: Past) -> Iterator[Truth]:
    """What came after each wanted cut, in order, with what was known at it."""
    rows, labels = past.rows, past.labels
    cuts = {int(labels.row[i]): int(i) for i in past.wanted}
    items, shelves, made = set[str](), set[str](), dict[int, Truth]()
    engaged, first, following = set[str](), dict[str, str](), _following(rows)  # items; user → first session
    for place, row in enumerate(rows):
        event = row.event
        items.update(name for name in [event.item_id] if name)
        shelves.update(name for name in [event.category] if name)
        first.setdefault(event.user_id, row.session_id)
        if row.engages:
            engaged.add(str(event.item_id))
        if (i := cuts.get(place)) is None:
            continue
        session, nxt = window_rows(labels, rows, i), int(labels.next_row[i])
        came = rows[nxt].event if nxt >= 0 else None
        bought = None if labels.purchase[i] < 0 else bool(labels.purchase[i])
        told = {
            "category switch": came is not None and bool(came.category) and last_category(session) != came.category,
            "cold item": came is not None and came.item_id not in engaged,
            "new user": first[event.user_id] == row.session_id,
            "session of one": len(session) == 1,
            "item step": row.engages and event.item_id == current_item(session),
            "target is next": came is not None and nxt == following[place],
        }
        made[i] = Truth(
            item=came.item_id if came else None, category=came.category if came else None, bought=bought,
            items=len(items), categories=len(shelves), slices=tuple(name for name, holds in told.items() if holds),
        )  # fmt: skip
    yield from (made[int(i)] for i in past.wanted)


def _following(rows: list[Row]) -> list[int]:
    """Of each row the next one of the same user, −1: none."""
    coming: dict[str, int] = {}
    made = [-1] * len(rows)
    for place in range(len(rows) - 1, -1, -1):
        user = rows[place].event.user_id
        made[place], coming[user] = coming.get(user, -1), place
    return made
