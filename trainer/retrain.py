"""One retrain, top to bottom: the window, cases as they were before their labels were known, fit, judge, publish."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from featurestore import events, window
from featurestore.events import COLUMNS, Row, Session
from featurestore.lake import Cover
from trainer import blend, judge, memory, registry, tuning
from trainer.predictor import Predictor, row_text
from trainer.texts import Texts


class Recipe(msgspec.Struct, frozen=True, kw_only=True):
    """What is made: a refresh of the same model on newer data, or one whose language model was tuned."""

    kind: Literal["refresh", "tune"] = "refresh"
    tune: tuning.TuneSettings = msgspec.field(default_factory=tuning.TuneSettings)
    fit_cuts: int = 10_000  # the newest training cuts that the blend is fitted on
    judge_cuts: int = 5_000


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What a retrain came to, and why; kept whether the candidate passed or not."""

    kind: str
    accepted: bool
    reason: str
    version: str | None = None
    champion: str | None = None
    n: int = 0
    n_train: int = 0
    metrics: dict[str, dict[str, Any]] = {}
    bounds: dict[str, judge.Bound] = {}
    data_offsets: dict[str, int] = {}
    cpu_seconds: float = 0.0
    wall_ms: int = 0


def run(
    cover: Cover,
    champion: Path | None,
    recipe: Recipe,
    policy: window.WindowPolicy,
    now_ms: int,
    *,
    texts: Texts,
    out: registry.Registry,
) -> Verdict:
    """Train a candidate on the window, judge it on cuts that no model has seen, publish it where it passes.

    The first champion needs no gate; a refresh must not be worse, a tuned recipe must be better.
    `now_ms` is told in the version's meta only: every decision is a function of data.
    """
    wall, cpu = time.monotonic(), time.process_time()
    old = Predictor.load(champion, texts) if champion is not None else None
    made = window.examples(cover, policy)
    offsets = {f"{key.topic}|{key.partition}": nxt for key, nxt in cover.end.items()}
    said: dict[str, Any] = {
        "kind": recipe.kind,
        "champion": champion.name if champion else None,
        "data_offsets": offsets,
        "n": int(made.judge.sum()),
        "n_train": int(made.train.sum()),
    }

    def verdict(accepted: bool, reason: str, **more: Any) -> Verdict:
        more |= {"cpu_seconds": time.process_time() - cpu, "wall_ms": int(1000 * (time.monotonic() - wall))}
        return Verdict(accepted=accepted, reason=reason, **said, **more)

    if said["n_train"] < policy.n_min or (old is not None and said["n"] < policy.n_min):
        few = f"too few labels: {said['n_train']} to train, {said['n']} to judge, {policy.n_min} needed"
        return verdict(False, few)

    if recipe.kind == "tune" and (old is None or texts.encoder is None):
        return verdict(
            False, "nothing to tune: no champion yet" if old is None else "nothing to tune: no language model"
        )

    train = np.flatnonzero(made.train)[-recipe.fit_cuts :]
    held = np.flatnonzero(made.judge)[-recipe.judge_cuts :]
    rows = rows_of(made)
    wanted, session = np.concatenate([train, held]), made.session_key[held]
    words = tuned(texts, made, rows, recipe.tune) if recipe.kind == "tune" else texts
    cases = replay(made, rows, wanted, words)
    fitted = blend.fit([cases[i] for i in train], start=old.blend if old else None)

    arms = {"candidate": scores(fitted, [cases[i] for i in held])}
    if old is not None and old.blend is not None:
        theirs = cases if words is texts else replay(made, rows, held, texts)
        arms["champion"] = scores(old.blend, [theirs[i] for i in held])
    metrics = {arm: summary(s, session) for arm, s in arms.items()}
    accepted, reason = True, "the first champion needs no gate"
    bounds: dict[str, judge.Bound] = {}
    if "champion" in arms:
        gate = judge.recipe_gate if recipe.kind == "tune" else judge.refresh_gate
        accepted, reason, bounds = gate(arms["candidate"], arms["champion"], session)
    if not accepted:
        return verdict(False, reason, metrics=metrics, bounds=bounds)

    grown = old.memory if old is not None else memory.Memory()  # it remembers longer than the window
    grown.learn(rows)
    words.save()
    new = Predictor(grown, words, blend_=fitted)
    meta = {**said, "made_ms": now_ms, "metrics": metrics, "items": len(grown.items), "format": 1}
    return verdict(True, reason, version=out.publish(new.save, meta), metrics=metrics, bounds=bounds)


def tuned(words: Texts, made: window.Examples, rows: list[Row], settings: tuning.TuneSettings) -> Texts:
    """The texts of an encoder that was tuned on the training cuts."""
    pairs = []
    for i in np.flatnonzero(made.train & (made.next_row >= 0)):
        here, there = row_text(rows[made.row[i]]), row_text(rows[made.next_row[i]])
        if here and there and here != there:
            pairs.append((here, there))
    path = tuning.tune(str(words.encoder), pairs, settings, words.shared / "encoders")
    return Texts(path, words.shared, words.writer)


def replay(made: window.Examples, rows: list[Row], wanted: np.ndarray[Any, Any], texts: Texts) -> dict[int, blend.Case]:
    """Cases of the wanted cuts, each with a memory that has seen only what came before it (and the cut itself)."""
    past = Predictor(memory.Memory(), texts)
    latest: dict[tuple[str, int], int] = {}
    known_ms = []  # when a row was known: no earlier than the rows before it in its partition, so none overtakes a cut
    for row in rows:
        place = (row.origin.topic, row.origin.partition)
        latest[place] = max(latest.get(place, 0), row.event.ts_ms)
        known_ms.append(latest[place])
    order = sorted(range(len(rows)), key=lambda i: (known_ms[i], i))
    cut_at = {int(made.row[i]): int(i) for i in wanted}
    cases: dict[int, blend.Case] = {}
    for at in order:
        past.memory.take(rows[at])
        i = cut_at.get(at)
        if i is not None:
            cases[i] = _labelled(past, made, rows, i)
    return cases


def _labelled(past: Predictor, made: window.Examples, rows: list[Row], i: int) -> blend.Case:
    tokens = [rows[t] for t in made.tokens[i] if t >= 0]
    session = Session("", "", 0, 0, tokens, len(tokens))
    items, case = past.case(session, int(made.at_ms[i]))
    target = -1
    if made.next_row[i] >= 0:
        item = rows[made.next_row[i]].event.item_id
        target = items.index(item) if item in items else -2
    return blend.Case(candidates=case.candidates, session=case.session, target=target)


def scores(arm: blend.Blend, cases: list[blend.Case]) -> judge.Scores:
    """One arm on the held-out cases; an item that is no candidate has rank infinity, ties get the middle rank."""
    out = np.full((5, len(cases)), np.nan)
    for j, case in enumerate(cases):
        each, none, other = arm.probabilities(case)
        target = case.target
        out[0, j] = -np.log(max(none if target == -1 else other if target == -2 else each[target], 1e-12))
        if target != -1:
            rank = np.inf if target == -2 else 1 + (each > each[target]).sum() + ((each == each[target]).sum() - 1) / 2
            out[1, j], out[2, j] = (1 / rank, 1.0) if rank <= 20 else (0.0, 0.0)
        best = int(each.argmax()) if len(each) else -1
        out[3, j], out[4, j] = (each[best], float(best == target)) if best >= 0 else (0.0, 0.0)
    if not np.isfinite(out[0]).all():
        raise FloatingPointError("a score is not finite: the candidate is broken")
    return judge.Scores(loss=out[0], reciprocal=out[1], recalled=out[2], confidence=out[3], right=out[4])


def summary(arm: judge.Scores, session: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Log loss, MRR@20 and R@20 with intervals, and the calibration error."""
    return {
        "log_loss": judge.interval(arm.loss, session),
        "mrr20": judge.interval(arm.reciprocal, session),
        "recall20": judge.interval(arm.recalled, session),
        "ece": judge.ece(arm.confidence, arm.right),
    }


def rows_of(made: window.Examples) -> list[Row]:
    """The rows that the cuts of a window point into."""
    columns = [made.rows.column(name).to_pylist() for name, _ in COLUMNS]
    return [events.from_record(record) for record in zip(*columns, strict=True)]
