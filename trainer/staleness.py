"""What a cadence is worth: the newest judged slice, scored by versions of several ages as well."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trainer import judge, registry

RUNGS_MS = (60_000, 300_000, 900_000, 3_600_000, 21_600_000)  # wall clock
SCORED = 6_000  # cases of all arms together: bounds what a look back costs


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """One version on the judged slice: its mean log loss minus the newest's, paired by case; above 0 it is worse.

    `trained`: its trained part above today's memory, which is what a slower cadence would serve, since workers learn
    every event whatever the cadence. `shipped`: with its memory as it was shipped, a model that stands still. Nats.
    """

    rung_ms: int  # the age that was looked for
    age_ms: int
    version: str
    trained: judge.Bound
    shipped: judge.Bound


class LookBack(msgspec.Struct, frozen=True, kw_only=True):
    """A curve, the newest first, and what it cost."""

    points: tuple[Point, ...] = ()
    cpu_seconds: float = 0.0


class Made(msgspec.Struct, frozen=True):
    """Of a version's meta what an age needs."""

    made_ms: int
    data_offsets: dict[str, int] = {}


def versions(out: registry.Registry) -> dict[str, Made]:
    """All versions that say when they were made."""
    found = {}
    for name in out.names():
        try:
            found[name] = msgspec.convert(out.meta(name), Made)
        except (registry.UnknownVersion, OSError, msgspec.MsgspecError):  # another one took it away, or it is broken
            continue
    return found


def chosen(made: Mapping[str, Made], champion: str, now_ms: int) -> dict[int, str]:
    """Rung → the version whose age is nearest to it, within a factor of two; none that saw more than the champion.

    >>> chosen({"a": Made(0), "b": Made(50_000)}, "b", 120_000)
    {60000: 'b'}
    """
    known = made[champion].data_offsets if champion in made else {}
    ages = {
        name: now_ms - one.made_ms
        for name, one in made.items()
        if all(offset <= known.get(key, 0) for key, offset in one.data_offsets.items()) and one.made_ms < now_ms
    }
    found: dict[int, str] = {}
    for rung in RUNGS_MS:
        away = {name: abs(math.log(age / rung)) for name, age in ages.items() if name not in found.values()}
        nearest = min(away, key=lambda name: (away[name], name), default=None)
        if nearest is not None and away[nearest] <= math.log(2):
            found[rung] = nearest
    return found


def ladder(made: Mapping[str, Made], now_ms: int) -> set[str]:
    """Versions that must stay so that each rung finds one: the oldest of every quarter of a rung, up to 1.5 rungs old.

    >>> sorted(ladder({"a": Made(0), "b": Made(1_000), "c": Made(16_000)}, 60_000))
    ['a', 'c']
    """
    kept = set()
    for rung in RUNGS_MS:
        slots: dict[int, str] = {}
        for name, one in sorted(made.items(), key=lambda pair: pair[1].made_ms):
            if now_ms - one.made_ms <= rung * 1.5:
                slots.setdefault(one.made_ms // (rung // 4), name)
        kept |= set(slots.values())
    return kept


def look_back(
    out: registry.Registry, champion: Path | None, now_ms: int, load: Callable[[Path], Any]
) -> Callable[[Any, list[Any], Any, Any], LookBack]:
    """What a retrain calls with its window, rows, held-out cuts and newest predictor once it has judged."""

    def curve(made: Any, rows: list[Any], held: Any, newest: Any) -> LookBack:
        from trainer.cases import replay, scores  # not before: they import torch
        from trainer.predictor import Predictor

        began = time.process_time()
        known = versions(out) if champion is not None else {}
        found = chosen(known, champion.name, now_ms) if champion is not None else {}
        found = {rung: name for rung, name in found.items() if name != newest.version}
        if champion is None or not found:
            return LookBack()
        some = held[-max(1, SCORED // (1 + 2 * len(found))) :]
        older = {name: load(out.verify(name)) for name in found.values()}
        past = load(champion).memory  # the judge's has learnt the slice by now
        arms = {"": Predictor(past, newest.texts, trained=newest.trained)}
        arms |= {name: Predictor(past, arm.texts, trained=arm.trained) for name, arm in older.items()}
        cases = replay(made, rows, some, arms)

        def losses(arm: Predictor, of: dict[int, Any]) -> Any:
            assert arm.trained is not None
            return scores(arm.trained.blend, [of[int(i)] for i in some]).loss

        first, session = losses(arms[""], cases[""]), made.session_key[some]
        points = tuple(
            Point(
                rung_ms=rung,
                age_ms=now_ms - known[name].made_ms,
                version=name,
                trained=judge.interval(losses(arms[name], cases[name]) - first, session),
                shipped=judge.interval(losses(older[name], _still(older[name], made, rows, some)) - first, session),
            )
            for rung, name in found.items()
        )
        return LookBack(points=points, cpu_seconds=time.process_time() - began)

    return curve


def _still(arm: Any, made: Any, rows: list[Any], some: Any) -> dict[int, Any]:
    """The cases as a version sees them whose memory learns nothing more."""
    from trainer.cases import answered, window_rows

    sessions, at_ms = [window_rows(made, rows, int(i)) for i in some], made.at_ms[some].tolist()
    said, headings = arm.headings(sessions, at_ms)
    cases = {}
    for k, i in enumerate(some.tolist()):
        found, case = arm.case(sessions[k], int(at_ms[k]), headings[k], said.own[k])
        cases[i] = answered(arm.memory, found, case, sessions[k], rows, int(made.next_row[i]))
    return cases


class Pooled(msgspec.Struct, frozen=True, kw_only=True):
    """One rung over several retrains: the mean difference with its 95 % interval, in nats; `n` cases."""

    rung_ms: int
    n: int
    retrains: int
    mean: float
    low: float
    high: float


def pooled(verdicts: list[dict[str, Any]], kind: str = "trained") -> list[Pooled]:
    """The curve of several verdicts; of accepted ones only, whose slices do not overlap: errors are independent."""
    found = []
    for rung in RUNGS_MS:
        bounds = [
            p[kind]
            for v in verdicts
            if v.get("accepted")
            for p in (v.get("staleness") or {}).get("points", ())
            if p["rung_ms"] == rung and p[kind]["mean"] is not None
        ]
        if not bounds:
            continue
        n = np.array([b["n"] for b in bounds], float)
        share = n / n.sum()
        error = math.sqrt(sum((s * (b["high"] - b["low"]) / 3.92) ** 2 for s, b in zip(share, bounds, strict=True)))
        mean = float(share @ np.array([b["mean"] for b in bounds]))
        found.append(Pooled(rung_ms=rung, n=int(n.sum()), retrains=len(bounds), mean=mean, low=mean - 1.96 * error,
                            high=mean + 1.96 * error))  # fmt: skip
    return found


def advice(curve: list[Pooled], asked_ms: int, sustained_ms: int | None) -> str:
    """One sentence: which cadence, and why.

    >>> advice([], 60_000, None)[:12]
    'Keep 60 s: n'
    """
    asked = f"{asked_ms / 1000:.0f} s"
    if sustained_ms is not None and sustained_ms > 1.2 * asked_ms:
        return (
            f"Set {math.ceil(sustained_ms / 1000)} s: {asked} is asked for, but retrains cannot begin more often than "
            f"every {sustained_ms / 1000:.0f} s here."
        )
    if not curve:
        return f"Keep {asked}: no older version was judged beside a newer one yet, so nothing says what it is worth."
    worse = next((p for p in curve if p.low > 0), None)
    if worse is None:
        oldest = curve[-1]
        if oldest.rung_ms <= asked_ms:
            return f"Keep {asked}: no version older than that was judged yet."
        return (
            f"A cadence of {oldest.rung_ms // 60_000} min costs nothing that can be told from chance "
            f"({oldest.mean:+.3f} nats [{oldest.low:+.3f}, {oldest.high:+.3f}], n={oldest.n}): retrain as seldom as "
            "that if CPU is dear."
        )
    before = [p.rung_ms for p in curve if p.rung_ms < worse.rung_ms]
    if before and asked_ms < before[-1]:
        return (
            f"{before[-1] // 60_000} min would do: the first age that is surely worse is {worse.rung_ms // 60_000} min "
            f"({worse.mean:+.3f} nats [{worse.low:+.3f}, {worse.high:+.3f}], n={worse.n})."
        )
    return (
        f"Retrain more often than every {worse.rung_ms // 60_000} min: a model of that age is worse by "
        f"{worse.mean:.3f} nats [{worse.low:+.3f}, {worse.high:+.3f}], n={worse.n}."
    )
