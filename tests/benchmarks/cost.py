"""What a scored session costs by stage and size of the catalogue, and what learning and a version cost.

    python tests/benchmarks/cost.py [--items 1000,10000,100000,1000000] [--out FILE.jsonl]

The production predictor on one thread: hashed texts, a network that was trained for some steps, a memory that every
item went through. CPU µs, the median of interleaved rounds; each size in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from featurestore.events import Event, Origin, Row, Session
from trainer import blend, endings, learning, memory, nearest, network, texts
from trainer.memory import Memory
from trainer.network import Network
from trainer.predictor import Predictor, Trained

START_MS = 1_770_000_000_000
SHELF = 50  # items of a category
ASKED, LENGTH = 256, 10  # sessions that are scored, rows of each
STEPS = 60  # of training
BATCHES = (1, 64)
STAGES: dict[str, list[tuple[Any, str]]] = {
    "encode": [(network, "sequences"), (network.Sequences, "leanings")],
    "network": [(Network, "headings"), (Predictor, "near"), (nearest, "proposed"), (nearest, "products")],
    "memory": [(Memory, "evidence")],
    "blend": [(blend, "features"), (endings, "features"), (blend.Blend, "probabilities"),
              (Predictor, "_interest")],
}  # fmt: skip


def rows(items: int, sessions: int, seed: int = 7) -> list[Row]:
    """Visits to neighbouring items of a shelf; the first ones walk the catalogue, so that each item is known."""
    pick, made = random.Random(seed), list[Row]()
    walk = list(range(items))
    pick.shuffle(walk)
    walk = sorted(walk, key=lambda i: i // SHELF) if seed == 7 else []
    visit = at = 0
    while at < len(walk) or visit < sessions:
        n = 2 + int(pick.expovariate(1 / 5))
        if at < len(walk):
            path, at = walk[at : at + n], at + n
        else:
            shelf = int(items // SHELF * pick.random() ** 2)
            path = [min(items - 1, shelf * SHELF + int(pick.triangular(0, SHELF, SHELF // 4))) for _ in range(n)]
        for item in path:
            if pick.random() < 0.05:
                made.append(_row(len(made), f"{seed}-{visit}", item, searched=True))
            made.append(_row(len(made), f"{seed}-{visit}", item, searched=False))
        visit += 1
    return made


WORDS = "light trail road wool cotton steel oak walnut linen red blue green black white grey small large long short "
WORDS += "shoe lamp chair table shirt jacket bag bottle knife pan towel rug mirror clock tent rope glove cap sock belt"


def _row(number: int, visit: str, item: int, *, searched: bool) -> Row:
    shelf, words = item // SHELF, WORDS.split()
    title = " ".join(words[(item * 7 + shelf * k * k + k * 11) % len(words)] for k in range(4)) + f" {item % 97}"
    said: dict[str, Any] = {"type": "view", "item_id": f"sku-{item}", "title": title, "price": 5.0 + item % 200}
    said |= {"category": f"{words[shelf % len(words)]} > {shelf}"}
    if searched:
        said = {"type": "search", "query": " ".join(title.split()[:2])}
    event = Event(event_id=f"{number:x}", user_id=visit, ts_ms=START_MS + 200 * number, **said)
    return Row(event, Origin("cost", 0, number, 0, event.ts_ms), visit)


def taught(past: list[Row], folder: Path) -> tuple[Predictor, dict[str, float]]:
    """A predictor that learnt the rows, and what learning and its item table cost."""
    words = texts.Texts(None, folder, "cost")
    made, cost = Predictor.cold(words), {}
    made.learn(past[:500])  # compiled
    cpu = time.process_time()
    made.learn(past)
    cost["learn_us"] = 1e6 * (time.process_time() - cpu) / (len(past) - 500)
    made.trained = Trained(_network(past, words), _blend())
    made.items = texts.ItemTable(words, made.trained.network.placed)
    cpu = time.process_time()
    made.warm()
    cost["item_us"] = 1e6 * (time.process_time() - cpu) / len(made.memory.items)
    return made, cost


def _network(past: list[Row], words: texts.Texts) -> Network:
    """Trained for some steps on the newest visits and the items in them."""
    visits = defaultdict[str, list[Row]](list)
    for row in past[-60_000:]:
        visits[row.session_id].append(row)
    cuts = [(visit[:k], visit[k]) for visit in visits.values() for k in range(1, len(visit)) if visit[k].event.item_id]
    names = list(dict.fromkeys(str(row.event.item_id) for visit in visits.values() for row in visit if row.engages))
    columns, said = {name: i for i, name in enumerate(names)}, {r.event.item_id: texts.row_text(r) for r in past}
    vectors = words.vectors([said[name] for name in names])
    settings = network.NetworkSettings(max_steps=STEPS)
    common = [name for name, n in Counter(memory.token(row) for row in past).items() if n >= settings.word_rows]
    made = Network(words.dim, common, settings)
    made.start_at(vectors)
    chosen = [cuts[i] for i in np.random.default_rng(7).permutation(len(cuts))[: 256 * STEPS]]
    lessons = learning.Lessons(
        said=network.sequences([c for c, _ in chosen], [c[-1].event.ts_ms for c, _ in chosen], words, made.words),
        target=np.array([columns[str(row.event.item_id)] for _, row in chosen]),
        current=np.array([columns.get(str(c[-1].event.item_id), -1) for c, _ in chosen]),
        names=names, vectors=vectors,
    )  # fmt: skip
    return learning.train(made, lessons, 8)


def _blend() -> blend.Blend:
    """Weights of some kind: what they are costs nothing."""
    return blend.Blend(item=[0.3] * blend.WIDTH, other=[0.1] * len(blend.SESSION))


class Watch:
    """CPU seconds by stage, each without the stages called within it."""

    def __init__(self, stages: dict[str, list[tuple[Any, str]]]) -> None:
        self.stages = stages
        self.spent: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    @contextmanager
    def on(self) -> Any:
        """Time the production functions, then leave them as they were."""
        kept = [(owner, name, owner.__dict__[name]) for parts in self.stages.values() for owner, name in parts]
        try:
            for stage, parts in self.stages.items():
                for owner, name in parts:
                    setattr(owner, name, self._timed(stage, owner.__dict__[name]))
            yield
        finally:
            for owner, name, was in kept:
                setattr(owner, name, was)

    def _timed(self, stage: str, step: Callable[..., Any]) -> Callable[..., Any]:
        def timed(*said: Any, **more: Any) -> Any:
            begun = time.process_time()
            self._inside.append(0.0)
            try:
                return step(*said, **more)
            finally:
                took = time.process_time() - begun
                self.spent[stage] += took - self._inside.pop()
                if self._inside:
                    self._inside[-1] += took

        return timed


def measured(model: Predictor, asked: list[Session], rounds: int) -> dict[str, dict[str, float]]:
    """CPU µs a session by batch size: the whole path untouched, and its stages."""
    at_ms = [s.rows[-1].event.ts_ms for s in asked]
    each: dict[str, dict[str, list[float]]] = {str(size): defaultdict(list) for size in BATCHES}

    def walk(size: int) -> float:
        n = min(len(asked), 64 if size == 1 else len(asked))
        cpu = time.process_time()
        for i in range(0, n, size):
            model.predict(asked[i : i + size], at_ms[i : i + size])
        return 1e6 * (time.process_time() - cpu) / n

    for size in BATCHES:
        walk(size)  # compiled, and texts at hand
    for _ in range(rounds):
        for size in BATCHES:
            each[str(size)]["whole"].append(walk(size))
            watch = Watch(STAGES)
            with watch.on():
                walk(size)
            n = min(len(asked), 64 if size == 1 else len(asked))
            for stage in STAGES:
                each[str(size)][stage].append(1e6 * watch.spent[stage] / n)
    return {size: {name: statistics.median(us) for name, us in stages.items()} for size, stages in each.items()}


def point(items: int, rounds: int) -> dict[str, Any]:
    """One size of the catalogue."""
    torch.set_num_threads(1)
    memory.WORDS = max(memory.WORDS, 2 * items)
    with tempfile.TemporaryDirectory() as folder:
        model, cost = taught(rows(items, 2_000 + items // 50), Path(folder))
        later = rows(items, ASKED * 4, seed=8)
        visits = defaultdict[str, list[Row]](list)
        for row in later:
            visits[row.session_id].append(row)
        long = [visit[:LENGTH] for visit in visits.values() if len(visit) >= LENGTH // 2][:ASKED]
        asked = [Session(v[0].session_id, v[0].event.user_id, 0, 0, v, len(v)) for v in long]
        found = [len(model.memory.evidence(s.rows, s.rows[-1].event.ts_ms)[0]) for s in asked]
        version = Path(folder) / "version"
        version.mkdir()
        model.save(version)
        return {
            "items": len(model.memory.items), "sessions": len(asked), "rounds": rounds, **cost,
            "rows_asked": statistics.mean(len(s.rows) for s in asked), "candidates": statistics.mean(found),
            "version_bytes": sum(f.stat().st_size for f in version.iterdir()),
            "us": measured(model, asked, rounds), **recalled(model, asked),
        }  # fmt: skip


def recalled(model: Predictor, asked: list[Session]) -> dict[str, float]:
    """What the lists find of what looking at every item finds, and how far their sum is off; nothing without lists."""
    if model.trained is None or not isinstance(model.among, nearest.Lists):
        return {}
    cpu = time.process_time()
    nearest.Lists(model.items.placed)
    cpu = time.process_time() - cpu
    found: dict[str, list[float]] = defaultdict(list)
    every = nearest.Every(model.items.placed)
    for i in range(0, len(asked), 64):
        part = asked[i : i + 64]
        _, headings = model.headings([s.rows for s in part], [s.rows[-1].event.ts_ms for s in part])
        few_of = model.near(headings)
        all_of = every.find(headings, model.items.placed, model.trained.network.factor, len(few_of[0].columns))
        for few, whole in zip(few_of, all_of, strict=True):
            for k in (20, 50):
                best = [set(one.columns[np.argsort(-one.products)[:k]].tolist()) for one in (few, whole)]
                found[f"recall{k}"].append(len(best[0] & best[1]) / k)
            found["sum_off"].append(abs(few.total - whole.total))
    return {name: statistics.mean(each) for name, each in found.items()} | {"lists_cpu_s": cpu}


def table(points: list[dict[str, Any]]) -> str:
    """Markdown."""
    out = ["| items | batch | whole | encode | network | memory | blend | a row | an item | version | found |",
           "|---|---|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for said in points:
        recall = f"{said['recall20']:.3f}, {said['recall50']:.3f}" if "recall20" in said else "all"
        for size, us in said["us"].items():
            cells = " | ".join(f"{us[name]:,.0f}" for name in ("whole", *STAGES))
            out.append(f"| {said['items']:,} | {size} | {cells} | {said['learn_us']:.1f} | {said['item_us']:.1f} "
                       f"| {said['version_bytes'] / 1e6:,.1f} MB | {recall} |")  # fmt: skip
    return "\n".join(out)


def main() -> None:
    """All sizes, then the table."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--items", default="1000,10000,100000,1000000")
    asked.add_argument("--rounds", type=int, default=7)
    asked.add_argument("--out", type=Path, help="also write a JSON line for each size")
    asked.add_argument("--point", type=int, help=argparse.SUPPRESS)
    said = asked.parse_args()
    if said.point:
        print(json.dumps(point(said.point, said.rounds)))
        return
    points = []
    for items in map(int, said.items.split(",")):
        command = [sys.executable, __file__, "--point", str(items), "--rounds", str(said.rounds)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode()[-2000:]
        points.append(json.loads(done.stdout))
        print(json.dumps(points[-1]), file=sys.stderr, flush=True)
        if said.out:
            with said.out.open("a") as file:
                file.write(json.dumps(points[-1]) + "\n")
    print(table(points))


if __name__ == "__main__":
    main()
