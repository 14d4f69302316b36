"""Cadences of a large file, one walk after another, each kept as it goes: what a cut walk has told still stands.

    python tests/benchmarks/cadences.py FILE [--cadence never,7d,1d,6h] [--out FOLDER] [--told]

The walks, figures and advice of `nextclick backtest`, over the cuts that every walk in FOLDER has come to. Baselines
are walked with the first cadence. A walk that stands in FOLDER is not made again; `--told` makes none.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy import advice, backtest, scorecard
from deploy.beside import Past, Said, Spent
from deploy.cli import options
from deploy.settings import Settings
from trainer.baselines import ARMS

KEEP = 1_000  # answers between two savings
PLAN = {"first": [name for name in ARMS if name != "textbook"], "later": []}


def main() -> None:
    """The walks that are missing, then what all of them say."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("file", type=Path)
    asked.add_argument("--cadence", default="never,7d,1d,6h")
    asked.add_argument("--out", type=Path, default=Path("nextclick-data/cadences"))
    asked.add_argument("--told", action="store_true", help="only what stands there")
    said = asked.parse_args()
    said.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)  # as a training job has it
    settings = Settings.load({})
    past = backtest.past_of(settings, backtest.read(settings, said.file))
    truths = dict(zip(past.wanted.tolist(), backtest._truths(past), strict=True))
    names = said.cadence.split(",")
    if not said.told:
        for name in names:
            _walked(settings, past, truths, name, PLAN["first" if name == names[0] else "later"], said.out)
    print(json.dumps(summary(past, truths, names, said.out), indent=1))


def _walked(settings: Settings, past: Past, truths: dict[int, scorecard.Truth], name: str, beside: list[str],
            out: Path) -> None:  # fmt: skip
    file = out / f"{name}.json"
    if file.exists() and json.loads(file.read_text())["whole"]:
        return
    spent: dict[str, Spent] = {}
    plan = backtest.Plan(
        cadences_ms=[None if name == "never" else options.milliseconds(name, "--cadence")], baselines=beside
    )
    place, scores = {i: n for n, i in enumerate(truths)}, dict[str, scorecard.Floats]()

    def keep(*, whole: bool) -> None:
        with (out / f"{name}.npz").open("wb") as into:
            np.savez_compressed(into, **scores)
        told = {"whole": whole, "arms": {arm: one.told() for arm, one in spent.items()}}
        file.write_text(json.dumps(told))

    for n, (arm, i, answer) in enumerate(_all(settings, past, name, plan, spent), 1):
        if arm not in scores:
            scores[arm] = np.full((len(scorecard.FIGURES), len(truths)), np.nan)
        scores[arm][:, place[i]] = scorecard.score(answer, truths[i])
        if n % KEEP == 0:
            keep(whole=False)
    keep(whole=True)


def _all(settings: Settings, past: Past, name: str, plan: backtest.Plan, spent: dict[str, Spent]) -> Iterator[Said]:
    yield from backtest.walk(settings, past, name, plan.cadences_ms[0], plan, spent)
    if plan.baselines:
        yield from backtest.beside(settings, past, plan, spent)


def summary(past: Past, truths: dict[int, scorecard.Truth], names: list[str], out: Path) -> dict[str, Any]:
    """Figures of every arm and what each cadence gains, on the cuts up to which all walks have come."""
    scores, told = dict[str, scorecard.Floats](), dict[str, Any]()
    for name in names:
        if (out / f"{name}.npz").exists():
            scores |= dict(np.load(out / f"{name}.npz"))
            told |= json.loads((out / f"{name}.json").read_text())["arms"]
    cadences = [name for name in names if name in scores]
    answered = [np.flatnonzero(~np.isnan(scores[name][scorecard.ROW["none.log_loss"]])) for name in cadences]
    upto = 1 + min(int(some[-1]) for some in answered)
    resampled = scorecard.Resampled(past.labels.session_key[past.wanted[:upto]])
    scores = {arm: made[:, :upto] for arm, made in scores.items()}
    slices = {s: np.array([s in truth.slices for truth in truths.values()], np.bool_)[:upto] for s in backtest.SLICES}
    arms = {arm: told[arm] | scorecard.summary(made, resampled, slices) for arm, made in scores.items()}
    return {"events": len(past.rows), "cuts": upto, "of": len(truths), "arms": arms} | advice.advised(
        arms, scores, cadences, "item", resampled
    )


if __name__ == "__main__":
    main()
