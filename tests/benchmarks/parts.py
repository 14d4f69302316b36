"""What each part of the predictor is worth on the Google store's first events, and what items are that nobody touched.

    python tests/benchmarks/parts.py ablation|cold FILE [--events 60000] [--out FOLDER]

Trained as a retrain does it: the network on 70 % of the time, the blend on the next 10 %, tested on the last 20 %, each
cut before its label is known. A part is taken out of the blend's columns, with the candidates that it alone proposed,
and the blend is fitted anew; text, listings and searches are taken out of the events. Prints Markdown tables; what
stands in FOLDER is not made again.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import language
import msgspec
import numpy as np
import torch
from cost import Watch

from deploy import backtest
from deploy.settings import Settings
from featurestore import window
from featurestore.catalogue import Item
from featurestore.events import Row
from trainer import blend, endings, judge, memory, nearest, network, retrain, texts
from trainer.cases import replay, scores, window_rows
from trainer.neighbours import Neighbours
from trainer.predictor import PROPOSED, Predictor, Trained

FIT, TEST = 0.7, 0.8  # shares of the time where they begin
HIDDEN = 0.2  # share of the items
SEED = 7
PARTS = {  # columns by how their names begin
    "transitions": ("follows", "after_last"),
    "neighbours": ("neighbours", "unvoted", "sessions"),
    "network": ("network",),
    "text's cosine": ("text",),
    "what is in the session": ("in_session", "network_again", "again"),
    "popularity": ("popularity",),
    "category": ("category", "same_category"),
}
ALONE = {"transitions": ("follows", "after_last"), "neighbours": ("neighbours",), "category": ("category",)}
STAGES: dict[str, list[tuple[Any, str]]] = {
    "neighbours": [(Neighbours, "votes")],
    "transitions, popularity and the rest of the memory": [(memory.Memory, "evidence")],
    "network": [(network.Network, "headings"), (Predictor, "near"), (nearest, "proposed")],
    "texts and tokens of the session": [(network, "sequences"), (network.Sequences, "leanings")],
    "blend": [(blend, "features"), (endings, "features"), (blend.Blend, "probabilities")],
}


@dataclasses.dataclass
class Walk:
    """One training and its cases, by the offset of the cut's row."""

    fit: list[blend.Case]
    held: dict[int, blend.Case]
    session: dict[int, int]
    train_cpu_s: float
    stages: dict[str, float]  # CPU µs a session


def walk(settings: Settings, rows: list[Row], folder: Path) -> Walk:
    """Train on what came first, then the cases of what came later; the memory learns every row in between."""
    made, used = language.labelled(settings, rows)
    first, last = used[0].event.ts_ms, used[-1].event.ts_ms
    fit_ms, test_ms = (first + int(share * (last - first)) for share in (FIT, TEST))
    label_ms = np.where(made.next_row >= 0, window.ints(made.rows, "ts_ms")[made.next_row], made.at_ms)
    early = np.flatnonzero(label_ms < fit_ms)
    fit = np.flatnonzero((made.at_ms >= fit_ms) & (label_ms < test_ms))
    item = np.array([used[i].engages for i in made.row])
    held = np.flatnonzero((made.at_ms >= test_ms) & item)
    words = texts.Texts(settings.encoder(), folder, "parts")
    cpu = time.process_time()
    net = retrain.network_of(made, used, early, words, None, network.NetworkSettings())
    cpu = time.process_time() - cpu
    model = Predictor(memory.Memory(), words, trained=Trained(net, blend.Blend.flat()))
    cases = replay(made, used, np.concatenate([fit, held]), {"": model})[""]
    at = {int(i): used[made.row[i]].origin.offset for i in held}
    some = [window_rows(made, used, int(i)) for i in held[:1024]]
    return Walk(
        fit=[cases[int(i)] for i in fit],
        held={at[int(i)]: cases[int(i)] for i in held},
        session={at[int(i)]: int(made.session_key[i]) for i in held},
        train_cpu_s=cpu,
        stages=stages(model, some),
    )


def stages(model: Predictor, sessions: list[list[Row]]) -> dict[str, float]:
    """CPU µs a session of each stage, in batches of 64."""
    parts = [sessions[i : i + 64] for i in range(0, len(sessions), 64)]
    language.predicted(model, parts[0])
    watch = Watch(STAGES)
    with watch.on():
        for part in parts:
            language.predicted(model, part)
    return {name: 1e6 * watch.spent[name] / len(sessions) for name in STAGES}


def without(case: blend.Case, part: str) -> blend.Case:
    """A case without the columns of a part, and without the candidates that no other part proposed."""
    gone = [k for k, name in enumerate(blend.FEATURES) if name.startswith(PARTS[part])]
    found = case.candidates.copy()
    found[:, gone] = 0.0
    if part not in (*ALONE, "network"):
        return dataclasses.replace(case, candidates=found)
    by = {name: _some(case, columns) for name, columns in ALONE.items()}
    by["session"] = case.candidates[:, blend.FEATURES.index("in_session")] > 0
    score = case.candidates[:, blend.FEATURES.index("network")]
    by["network"] = score >= np.sort(score)[-PROPOSED:][0] if len(score) else score > 0
    mine, others = by.pop(part), np.any(list(by.values()), axis=0)
    kept = others | ~mine
    target = case.target
    if target >= 0:
        target = int(kept[:target].sum()) if kept[target] else -2
    return dataclasses.replace(case, candidates=found[kept], shelves=case.shelves[kept], target=target)


def _some(case: blend.Case, columns: tuple[str, ...]) -> Any:
    """Whether there is any evidence of these kinds for each candidate."""
    least = {name: np.log(floor) + 1e-9 for name, floor in zip(memory.EVIDENCE, blend.FLOORS, strict=False)}
    return np.any([case.candidates[:, blend.FEATURES.index(name)] > least[name] for name in columns], axis=0)


def measured(walk_: Walk, change: Callable[[blend.Case], blend.Case], *, calibrated: bool = True) -> dict[str, Any]:
    """The blend fitted on changed cases, and its scores on the held ones by offset."""
    cpu = time.process_time()
    weights = blend.fit([change(case) for case in walk_.fit])
    cpu = time.process_time() - cpu
    if not calibrated:
        weights = msgspec.structs.replace(weights, temperature=1.0)
    made = scores(weights, [change(case) for case in walk_.held.values()])
    return {"at": np.array(list(walk_.held)), "loss": made.loss, "mrr": made.reciprocal, "r20": made.recalled,
            "session": np.array(list(walk_.session.values())), "fit_cpu_s": cpu,
            "ece": judge.ece(made.confidence, made.right)}  # fmt: skip


def silent(case: blend.Case) -> blend.Case:
    """What the session's own rows say about whether anything comes next is not looked at."""
    return dataclasses.replace(case, session=np.eye(len(case.session))[0], none=endings.STOP_SHARE)


def ablation(settings: Settings, rows: list[Row], out: Path) -> None:
    """Each part out in turn: what it costs in quality, what it costs in CPU."""
    changes: dict[str, tuple[list[Row], dict[str, Callable[[blend.Case], blend.Case]]]] = {
        "all": (rows, {"everything": lambda case: case, "calibration (temperature)": lambda case: case,
                       "what the session says of its end": silent,
                       **{name: (lambda case, name=name: without(case, name)) for name in PARTS}}),
        "text": ([language.changed(row, title=None, brand=None, price=None, query=None) for row in rows],
                 {"titles, brands, prices": lambda case: case}),
        "listings": ([row for row in rows if row.event.item_id],
                     {"listings and searches as events": lambda case: case}),
    }  # fmt: skip
    for name, (some, arms) in changes.items():
        if not (out / f"{name}.msgpack").exists():
            with tempfile.TemporaryDirectory() as folder:
                walked = walk(settings, some, Path(folder))
            told = {arm: measured(walked, change, calibrated="temperature" not in arm) for arm, change in arms.items()}
            for one in told.values():
                one |= {k: v.tolist() for k, v in one.items() if isinstance(v, np.ndarray)}
            said = {"arms": told, "train_cpu_s": walked.train_cpu_s, "stages": walked.stages}
            (out / f"{name}.msgpack").write_bytes(msgspec.msgpack.encode(said))
    read = {name: msgspec.msgpack.decode((out / f"{name}.msgpack").read_bytes()) for name in changes}
    print(table(read))


def table(read: dict[str, Any]) -> str:
    """Differences to everything, on the cuts that both have."""
    whole = read["all"]["arms"]["everything"]
    place = {at: i for i, at in enumerate(whole["at"])}
    lines = [
        "| without | n | R@20 | MRR@20 | log loss | ECE | CPU s to train, to fit |",
        "|---|---|---|---|---|---|---|",
    ]
    for walked in read.values():
        for name, arm in walked["arms"].items():
            both = [(i, place[at]) for i, at in enumerate(arm["at"]) if at in place]
            here, there = (np.array(column) for column in zip(*both, strict=True))
            session, cells = np.array(arm["session"])[here], []
            for metric in ("r20", "mrr", "loss"):
                mine, theirs = np.array(arm[metric], float)[here], np.array(whole[metric], float)[there]
                bound = judge.interval(mine if arm is whole else mine - theirs, session)
                sign = "" if arm is whole else "+"
                cells.append(f"{bound.mean:{sign}.4f} [{bound.low:{sign}.4f}, {bound.high:{sign}.4f}]")
            n = f"{len(here):,}, {int((~np.isnan(np.array(arm['mrr'], float)[here])).sum()):,} with a next item"
            lines.append(f"| {'nothing: everything is in' if arm is whole else name} | {n} | {' | '.join(cells)} "
                         f"| {arm['ece']:.3f} | {walked['train_cpu_s']:.0f}, {arm['fit_cpu_s']:.0f} |")  # fmt: skip
    said = ", ".join(f"{name} {us:.0f}" for name, us in read["all"]["stages"].items())
    return "\n".join([*lines, f"\nCPU µs a session in batches of 64: {said}"])


def cold(settings: Settings, rows: list[Row], out: Path) -> None:
    """Cuts whose next item was hidden from training, by what is known of it; the memory stands still while tested."""
    made, used = language.labelled(settings, rows)
    first, last = used[0].event.ts_ms, used[-1].event.ts_ms
    test_ms = first + int(TEST * (last - first))
    names = sorted({str(row.event.item_id) for row in used if row.event.item_id})
    hidden = set(np.random.default_rng(SEED).choice(names, int(HIDDEN * len(names)), replace=False).tolist())
    cuts = [int(i) for i in np.flatnonzero((made.at_ms >= test_ms) & (made.next_row >= 0))
            if used[made.next_row[i]].event.item_id in hidden]  # fmt: skip
    sessions = [window_rows(made, used, i) for i in cuts]
    target, session = [str(used[made.next_row[i]].event.item_id) for i in cuts], made.session_key[cuts]
    told: dict[str, Item] = {}
    for row in used:
        if row.event.item_id in hidden:
            event = row.event
            told[str(event.item_id)] = Item(item_id=event.item_id, title=event.title, category=event.category,
                                            brand=event.brand, price=event.price)  # fmt: skip
    bare = [Item(item_id=item.item_id) for item in told.values()]
    shelved = [Item(item_id=item.item_id, category=item.category) for item in told.values()]
    arms = {"hidden, not told of": [], "told by id alone": bare, "told by id and category": shelved,
            "told with title, category, brand, price": list(told.values())}  # fmt: skip
    print(f"{len(hidden)} of {len(names)} items hidden (seed {SEED}), n = {len(cuts):,} cuts\n")
    print("| | R@20 | MRR@20 | CPU s to train |\n|---|---|---|---|", flush=True)
    before = [row for row in used if row.event.ts_ms < test_ms]
    for known, stocks in ((False, arms), (True, {"not hidden": []})):
        with tempfile.TemporaryDirectory() as folder:
            shop = language.Shop(settings, Path(folder))
            shop.train([row for row in before if known or row.event.item_id not in hidden], network.NetworkSettings())
            for name, stock in stocks.items():
                model = shop.model()
                model.stock(stock)
                said = language.predicted(model, sessions)
                ranks = [language.rank([n for n, _ in s.items], t) for s, t in zip(said, target, strict=True)]
                line = language.told(name, ranks, session, f"{shop.cpu:.0f}")
                print(line, flush=True)
                with (out / "cold.md").open("a") as file:
                    file.write(line + "\n")


def main() -> None:
    """One of the tables."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("what", choices=("ablation", "cold"))
    asked.add_argument("file", type=Path)
    asked.add_argument("--events", type=int, default=60_000)
    asked.add_argument("--encoder", default="none", help="`none`: hashed texts")
    asked.add_argument("--out", type=Path, default=Path("nextclick-data/parts"))
    said = asked.parse_args()
    torch.set_num_threads(1)
    said.out.mkdir(parents=True, exist_ok=True)
    settings = Settings.load({"n_min": "200"} | ({"encoder": "none"} if said.encoder == "none" else {}))
    with tempfile.TemporaryDirectory() as folder:
        sample = language.sampled(said.file, said.events, False, Path(folder) / "sample.jsonl")
        rows = backtest.read(settings, sample)
    {"ablation": ablation, "cold": cold}[said.what](settings, rows, said.out)


if __name__ == "__main__":
    main()
