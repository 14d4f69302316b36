"""Cases: sessions as they were before their labels were known, with what came; and what an arm is worth on them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore import lake, window
from featurestore.catalogue import Item
from featurestore.events import Row
from trainer import blend, categories, judge, lambdarank, memory
from trainer.predictor import Predictor
from trainer.ragged import Ints

UNKNOWN = -2  # the category of an item that no row had before
SLICES = ("cold item", "category switch", "first row")


def window_rows(made: window.Examples, rows: list[Row], i: int) -> list[Row]:
    """The session of a cut as it was seen."""
    return [rows[t] for t in made.tokens[i] if t >= 0]


def replay(
    made: window.Examples, rows: list[Row], wanted: window.Ints, arms: dict[str, Predictor], told: Sequence[Item] = ()
) -> dict[str, dict[int, blend.Case]]:
    """Cases of the wanted cuts for each arm that is trained; all share one memory, which learns every row in between.

    At a cut the memory has seen what came before it and the cut itself, and of the catalogue (`told`, in order) what
    had been told when the row arrived. Afterwards it has seen the catalogue and all rows that are mature, so that the
    cuts beyond are new to it when they have become so: workers learn those rows by themselves.
    """
    past = next(iter(arms.values())).memory
    asked = {name: arm for name, arm in arms.items() if arm.trained is not None}
    sessions = {int(i): window_rows(made, rows, i) for i in wanted}
    at_ms = made.at_ms[wanted].tolist()
    heading = {name: arm.headings(list(sessions.values()), at_ms) for name, arm in asked.items()}
    number = {i: n for n, i in enumerate(sessions)}
    cut_at = {int(made.row[i]): i for i in sessions}
    cases: dict[str, dict[int, blend.Case]] = {name: {} for name in asked}
    shelved = 0
    mature = [r.origin.offset < made.begins[lake.PartitionKey(r.origin.topic, r.origin.partition)] for r in rows]
    for at in known_order(rows):
        row = rows[at]
        known = shelved
        while shelved < len(told) and told[shelved].told_ms <= row.origin.record_ms:
            shelved += 1
        if known < shelved:
            past.stock(told[known:shelved])
        if mature[at] and row.origin.offset >= past.seen.get((row.origin.topic, row.origin.partition), 0):
            past.take(row)
        i = cut_at.get(at)
        if i is None:
            continue
        for name, arm in asked.items():
            said, headings = heading[name]
            found, case = arm.case(sessions[i], int(made.at_ms[i]), headings[number[i]], said.own[number[i]])
            cases[name][i] = answered(past, found, case, sessions[i], rows, int(made.next_row[i]))
    past.stock(told[shelved:])
    past.note([row for row, early in zip(rows, mature, strict=True) if early])
    return cases


def known_order(rows: list[Row]) -> list[int]:
    """Rows in the order in which they were known: none overtakes another of its partition, so none overtakes a cut."""
    latest: dict[tuple[str, int], int] = {}
    known_ms = []
    for row in rows:
        place = (row.origin.topic, row.origin.partition)
        latest[place] = max(latest.get(place, 0), row.event.ts_ms)
        known_ms.append(latest[place])
    return sorted(range(len(rows)), key=lambda i: (known_ms[i], i))


def answered(
    past: memory.Memory, found: Ints, case: blend.Case, session: list[Row], rows: list[Row], next_row: int
) -> blend.Case:
    """The case with what came: the item, its category, and the slices that it counts for."""
    slices: tuple[str, ...] = ("first row",) if len(session) == 1 else ()
    if next_row < 0:
        return dataclasses.replace(case, target=-1, slices=slices)
    event = rows[next_row].event
    word = past.words.get(str(event.item_id), -1)
    here = np.flatnonzero(found == word)
    before = memory.last_category(session)
    if word < 0 or not past.popular[word]:
        slices += ("cold item",)
    if event.category and before and event.category != before:
        slices += ("category switch",)
    shelf = past.words.get(memory.LISTING + event.category, UNKNOWN) if event.category else -1
    return dataclasses.replace(case, target=int(here[0]) if len(here) else -2, shelf=shelf, slices=slices)


def scores(
    arm: blend.Blend, cases: list[blend.Case], ranker: lambdarank.Ranker | None = None,
    mixture: categories.Mixture | None = None,
) -> judge.Scores:  # fmt: skip
    """One arm on the held-out cases; an item that is no candidate has rank infinity, ties get the middle rank."""
    out = np.full((8, len(cases)), np.nan)
    for j, case in enumerate(cases):
        each, _, _ = arm.probabilities(case)
        target = case.target
        out[0, j] = blend.surprise(arm, case)
        if target != -1:
            worth = each if ranker is None or target == -2 else ranker.worth(case, each)
            above, beside = ((worth > worth[target]).sum(), (worth == worth[target]).sum()) if target >= 0 else (0, 1)
            rank = np.inf if target == -2 else 1 + above + (beside - 1) / 2
            out[1, j], out[2, j] = (1 / rank, 1.0) if rank <= 20 else (0.0, 0.0)
        best = int(each.argmax()) if len(each) else -1
        out[3, j], out[4, j] = (each[best], float(best == target)) if best >= 0 else (0.0, 0.0)
        if case.shelf != -1:
            shelves, shares = categories.shares(mixture, case.shelves, each, case.crossing)
            share = shares[shelves == case.shelf].sum()
            above = (shares > share).sum() if share else np.inf
            out[5:, j] = -np.log(max(share, 1e-4)), float(above < 1), float(above < 5)
    if not np.isfinite(out[0]).all():
        raise FloatingPointError("a score is not finite: the candidate is broken")
    return judge.Scores(**dict(zip(judge.Scores.__struct_fields__, out, strict=True)))


def summary(arm: judge.Scores, cases: list[blend.Case], session: np.ndarray[Any, Any]) -> dict[str, Any]:
    """Log loss, MRR@20 and R@20 with intervals, the calibration error, the category, and the same by slice."""
    made: dict[str, Any] = {
        "log_loss": judge.interval(arm.loss, session),
        "mrr20": judge.interval(arm.reciprocal, session),
        "recall20": judge.interval(arm.recalled, session),
        "ece": judge.ece(arm.confidence, arm.right),
        "category_log_loss": judge.interval(arm.category_loss, session),
        "category_recall1": judge.interval(arm.category_right, session),
        "category_recall5": judge.interval(arm.category_recalled, session),
    }
    for name in SLICES:
        here = np.array([name in case.slices for case in cases], np.bool_)
        made[name] = {
            "log_loss": judge.interval(arm.loss[here], session[here]),
            "recall20": judge.interval(arm.recalled[here], session[here]),
            "category_recall5": judge.interval(arm.category_recalled[here], session[here]),
        }
    return made
