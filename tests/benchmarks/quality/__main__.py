"""Walk the periods for the named arms, one JSON line a period and arm; a line that is there is not made again.

    python -m tests.benchmarks.quality --arms neighbours,network,blend --out FILE.jsonl

What was learnt is kept beside FILE: a run that was cut short goes on where it stopped.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from featurestore import window
from tests.benchmarks.quality import arms, diginetica
from trainer import blend, network

TUNED = 5  # periods that settings were chosen on; later ones are told apart
SETTINGS = network.NetworkSettings(dropout=0.4, first=2)


def main() -> None:
    """The whole walk, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", default="neighbours,network,blend")
    parser.add_argument("--data", type=Path, default=diginetica.FILE)
    parser.add_argument("--out", type=Path, default=Path("nextclick-data/diginetica.jsonl"))
    parser.add_argument("--until", type=int, default=diginetica.PERIODS - 1, help="the last period that is tested")
    parser.add_argument("--every", type=int, default=1, help="test every n-th case (the blend: 1.5 ms a case)")
    parser.add_argument("--seed", type=int, default=SETTINGS.seed, help="of the network")
    parser.add_argument("--draws", default="0", help="seeds of what a blend is fitted on, 0: evenly spaced; as 0,1,2")
    asked = parser.parse_args()
    if not asked.data.exists():
        sys.exit(f"{asked.data} is not here; --data names ADER's DIGINETICA as period,session_id,item_id")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    periods = diginetica.read(asked.data)[: asked.until + 1]
    arms.threads()
    for name in asked.arms.split(","):
        walk(name, periods, asked)
    print(table([json.loads(line) for line in asked.out.read_text().splitlines()]))


def walk(name: str, periods: list[diginetica.Period], asked: argparse.Namespace) -> None:
    """Test on a period, then learn it; the first is only learnt."""
    lines = asked.out.read_text().splitlines() if asked.out.exists() else []
    done = {(r["arm"], r["every"], r["seed"], r["period"]) for r in map(json.loads, lines)}
    draws = [int(draw) for draw in asked.draws.split(",")] if name == "blend" else [0]
    open_ = {
        p.number
        for p in periods[1:]
        for d in draws
        if (arms.named(name, d), asked.every, asked.seed, p.number) not in done
    }
    if not open_:
        return
    settings = msgspec.structs.replace(SETTINGS, seed=asked.seed)
    learnt = [settings, blend.FEATURES, blend.SESSION] if name == "blend" else settings
    digest = hashlib.blake2b(msgspec.json.encode(learnt), digest_size=4).hexdigest()
    folder = asked.out.with_suffix("") / f"{name}-{digest}"  # other settings and features learn something else
    folder.mkdir(parents=True, exist_ok=True)
    made: dict[str, Any] = {
        "neighbours": lambda: arms.NeighboursArm(),
        "network": lambda: arms.NetworkArm(settings, folder),
        "blend": lambda: arms.BlendArm(settings, folder, draws),
    }
    arm = made[name]()
    for period in periods:
        progress(name, period.number, len(periods))
        if period.number in open_:
            cases = arms.cases(period, asked.every)
            for part, (ranks, cpu_s) in arm.told(cases).items():  # the blend holds a network
                if (part, asked.every, asked.seed, period.number) in done:
                    continue
                told = {"arm": part, "every": asked.every, "seed": asked.seed, "period": period.number}
                told |= measured(ranks, arms.sessions(cases)) | {
                    "train_cpu_s": arm.learnt_s,
                    "test_cpu_us": 1e6 * cpu_s / len(cases),
                }
                with asked.out.open("a") as file:
                    file.write(json.dumps(told) + "\n")
        if period is not periods[-1]:
            arm.learn(period)
    progress(name, len(periods), len(periods))


def progress(name: str, done: int, of: int) -> None:
    """A bar on a terminal's stderr, nothing elsewhere."""
    if sys.stderr.isatty():
        bar = "#" * (30 * done // of)
        sys.stderr.write(f"\r{name:<16} [{bar:<30}] {done} of {of} periods" + "\n" * (done == of))


def measured(ranks: arms.Ranks, session: window.Ints) -> dict[str, float]:
    """R@20 and MRR@20 in per cent, with repeats as ADER counts, and of different items only; a standard error each.

    Sessions are drawn, not cases: the error is that of sums by session.
    """
    if not (ranks[:, 0] >= 1).all():
        raise ValueError("a rank below one: the arm is broken")
    made: dict[str, float] = {}
    for name, asked, values in (("", ranks[:, 0] >= 1, ranks[:, 0]), ("different_", ranks[:, 1] >= 1, ranks[:, 1])):
        values = values[asked]
        made[f"{name}n"] = len(values)
        for figure, worth in (("r20", values <= 20), ("mrr20", (values <= 20) / values)):
            off = np.bincount(session[asked], worth - worth.mean())
            made[f"{name}{figure}"] = 100 * float(worth.mean())
            made[f"{name}{figure}_error"] = 100 * float(np.sqrt((off**2).sum())) / len(values)
    return made


def table(lines: list[dict[str, Any]]) -> str:
    """Averaged over the periods, with 95 % intervals: all, those that settings were chosen on, and the later ones."""
    rows = [
        "| arm (cases, seed) | periods | n | R@20 | MRR@20 | different: R@20 | MRR@20 | train CPU s | µs a case |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for key in dict.fromkeys((r["arm"], r["every"], r["seed"]) for r in lines):
        mine = [r for r in lines if (r["arm"], r["every"], r["seed"]) == key]
        for span, part in (
            ("all", mine),
            (f"1–{TUNED}", [r for r in mine if r["period"] <= TUNED]),
            (f"{TUNED + 1}–", [r for r in mine if r["period"] > TUNED]),
        ):
            if not part:
                continue
            mean = {k: np.mean([r[k] for r in part]) for k in part[0] if k != "arm"}
            off = {k: 1.96 * np.sqrt(sum(r[k] ** 2 for r in part)) / len(part) for k in part[0] if k.endswith("_error")}
            r20, mrr20, other_r20, other_mrr20 = (
                f"{mean[k]:.2f} ± {off[f'{k}_error']:.2f}" for k in ("r20", "mrr20", "different_r20", "different_mrr20")
            )
            rows.append(
                f"| {key[0]} (1 in {key[1]}, seed {key[2]}) | {span} ({len(part)}) | {sum(r['n'] for r in part):,} | "
                f"{r20} | {mrr20} | {other_r20} | {other_mrr20} | "
                f"{mean['train_cpu_s']:.0f} | {mean['test_cpu_us']:.0f} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
