"""What a retrain of a full window costs, first and warm, by stage: CPU seconds on one thread.

    python tests/benchmarks/retrain_window.py FILE [--cuts 200000] [--new 0.1] [--encoder none]

The file's first events that hold so many cuts are one window. A version is trained on all but the newest share of it
(`--new`), then a warm one on all of it, as the trainer does it; both through `retrain.run`, the second judged.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import language
import msgspec
import torch
from cost import Watch

from deploy import backtest
from deploy.settings import Settings
from featurestore import window
from trainer import blend, learning, network, registry, retrain
from trainer.predictor import Predictor

STAGES: dict[str, list[tuple[Any, str]]] = {
    "window": [(window, "examples")],
    "rows": [(retrain, "rows_of")],
    "sequences": [(network, "sequences")],
    "network": [(learning, "train")],
    "other network": [(retrain, "network_of")],
    "replay": [(retrain, "replay")],
    "cases": [(Predictor, "case")],
    "blend": [(blend, "fit")],
    "purchase": [(retrain, "purchase_head")],
    "judge": [(retrain, "scores"), (retrain, "summary")],
    "version": [(registry.Registry, "publish"), (Predictor, "save")],
    "other": [(retrain, "run")],
}


def main() -> None:
    """Print a table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("file", type=Path)
    asked.add_argument("--cuts", type=int, default=200_000)
    asked.add_argument("--new", type=float, default=0.1)
    asked.add_argument("--encoder", default="none", help="`none`: hashed texts")
    said = asked.parse_args()
    torch.set_num_threads(1)
    settings = Settings.load({"n_min": "200"} | ({"encoder": "none"} if said.encoder == "none" else {}))
    with tempfile.TemporaryDirectory() as folder:
        sample = language.sampled(said.file, 2 * said.cuts, False, Path(folder) / "sample.jsonl")
        rows = backtest.read(settings, sample)[: said.cuts]
        shop = language.Shop(settings, Path(folder))
        shop.policy = msgspec.structs.replace(shop.policy, cuts=said.cuts)
        early = int((1 - said.new) * len(rows))
        print("| | cuts | whole | " + " | ".join(STAGES) + " |\n|" + "---|" * (len(STAGES) + 3), flush=True)
        for name, part in (("first", rows[:early]), ("warm", rows[early:])):
            watch, cpu, begun = Watch(STAGES), shop.cpu, time.process_time()
            with watch.on():
                shop.train(part, network.NetworkSettings())
            whole = time.process_time() - begun
            version = shop.champion.name if shop.champion else "refused"
            cells = " | ".join(f"{watch.spent[stage]:.1f}" for stage in STAGES)
            n = early if name == "first" else len(rows)
            print(f"| {name} ({version[:7]}) | {n:,} | {whole:.0f} | {cells} |", flush=True)
            assert shop.cpu > cpu


if __name__ == "__main__":
    main()
