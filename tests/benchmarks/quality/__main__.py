"""Walk the periods for the named arms, one JSON line a period and arm; a line that is there is not made again.

    python -m tests.benchmarks.quality --arms neighbours,network,blend --out FILE.jsonl

Learning is done again where a run goes on; only tests that are known are skipped.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.benchmarks.quality import arms, diginetica
from trainer import network

TUNED = 5  # periods that settings were chosen on; later ones are told apart
SETTINGS = network.NetworkSettings(width=100, full_softmax=5_000, word_rows=2, learning_rate=4e-3, max_steps=1_500)


def main() -> None:
    """The whole walk, then the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arms", default="neighbours,network,blend")
    parser.add_argument("--data", type=Path, default=diginetica.FILE)
    parser.add_argument("--out", type=Path, default=Path("nextclick-data/diginetica.jsonl"))
    parser.add_argument("--until", type=int, default=diginetica.PERIODS - 1, help="the last period that is tested")
    parser.add_argument("--every", type=int, default=1, help="test every n-th case (the blend: 1.5 ms a case)")
    parser.add_argument("--seed", type=int, default=SETTINGS.seed)
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
    if all((name, asked.every, asked.seed, p.number) in done for p in periods[1:]):
        return
    with tempfile.TemporaryDirectory() as folder:
        settings = network.NetworkSettings(**{f: getattr(SETTINGS, f) for f in SETTINGS.__struct_fields__} | {
            "seed": asked.seed
        })  # fmt: skip
        made: dict[str, Any] = {
            "neighbours": lambda: arms.NeighboursArm(),
            "network": lambda: arms.NetworkArm(settings, Path(folder)),
            "blend": lambda: arms.BlendArm(settings, Path(folder)),
        }
        arm, learnt = made[name](), 0.0
        for period in periods:
            if period.number and (name, asked.every, asked.seed, period.number) not in done:
                cases = arms.cases(period, asked.every)
                for part in [name, *(["network"] if name == "blend" else [])]:  # the blend holds a network
                    cpu, asks = time.process_time(), arm if part == name else arm.below
                    told = {"arm": part, "every": asked.every, "seed": asked.seed, "period": period.number}
                    told |= measured(asks.ranks(cases)) | {"train_cpu_s": learnt}
                    told["test_cpu_us"] = 1e6 * (time.process_time() - cpu) / len(cases)
                    with asked.out.open("a") as file:
                        file.write(json.dumps(told) + "\n")
                    print(json.dumps(told), file=sys.stderr, flush=True)
            if period is not periods[-1]:
                cpu = time.process_time()
                arm.learn(period)
                learnt = time.process_time() - cpu


def measured(ranks: arms.Ranks) -> dict[str, float]:
    """R@20 and MRR@20 in per cent, with repeats as ADER counts, and of different items only."""
    if not (ranks[:, 0] >= 1).all():
        raise ValueError("a rank below one: the arm is broken")
    made: dict[str, float] = {}
    for name, values in (("", ranks[:, 0]), ("different_", ranks[~np.isnan(ranks[:, 1]), 1])):
        hit = values <= 20
        made |= {f"{name}n": len(values), f"{name}r20": 100 * hit.mean()}
        made[f"{name}mrr20"] = 100 * float((hit / values).mean())
    return made


def table(lines: list[dict[str, Any]]) -> str:
    """Averaged over the periods: all, those that settings were chosen on, and the later ones."""
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
            rows.append(
                f"| {key[0]} (1 in {key[1]}, seed {key[2]}) | {span} ({len(part)}) | {sum(r['n'] for r in part):,} | "
                f"{mean['r20']:.2f} | {mean['mrr20']:.2f} | {mean['different_r20']:.2f} | "
                f"{mean['different_mrr20']:.2f} | {mean['train_cpu_s']:.0f} | {mean['test_cpu_us']:.0f} |"
            )
    return "\n".join(rows)


if __name__ == "__main__":
    main()
