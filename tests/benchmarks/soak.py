"""What a worker holds while people, items and queries come and go: it must stay flat once the window is full.

    python tests/benchmarks/soak.py [--events 3000000] [--every 250000] [--window 30m] [--json FILE]

The worker's own parts without a broker: `Ingest` with store and lake, `Scorer`, and a trained version that is loaded
anew at every second line, as a swap does. One session in `SAMPLE` is really predicted, so that 3 M events take minutes;
every row is learnt, committed, flushed, evicted, expired. Bytes of files and of memory in MB.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import structlog
import torch
import visits
from faust.types import TP

from deploy import job, settings, trainer, worker
from featurestore import lake, sessions, store, window
from featurestore.events import Row, Session
from streams import codec, control, ingest, outcomes, score, transport
from trainer import knobs, predictor, texts

POLL, PARTITIONS, SAMPLE = 5_000, 8, 25
FLUSH = 50_000  # events; in a worker every 5 s
HORIZON_MS = 60_000
COLUMNS = (
    "events", "cpu_us", "rss", "store", "lake", "files", "open", "held", "waiting", "words", "items", "texts",
    "sessions", "seconds",
)  # fmt: skip


class Sampled:
    """A model that is asked for one session in `SAMPLE`; the others get its last answer."""

    def __init__(self, model: predictor.Predictor) -> None:
        self.model, self.pick = model, random.Random(7)
        self.last = predictor.Interest("u", "s", [], [], 1.0, None, "fallback", "none")

    def learn(self, rows: list[Row]) -> None:
        """All of them."""
        self.model.learn(rows)

    def predict(self, asked: list[Session], at_ms: list[int]) -> list[Any]:
        """Some of them."""
        chosen = [i for i in range(len(asked)) if self.pick.randrange(SAMPLE) == 0]
        made = self.model.predict([asked[i] for i in chosen], [at_ms[i] for i in chosen]) if chosen else []
        self.last = made[-1] if made else self.last
        return [self.last] * len(asked)

    recall = predict


class Nowhere:
    """An outlet that acknowledges at once."""

    async def prediction(self, key: bytes, value: bytes | None) -> Any:
        """Taken."""
        return _done()

    async def dead_letter(self, dead: codec.DeadLetter) -> Any:
        """Taken."""
        return _done()


def _done() -> asyncio.Future[None]:
    made: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    made.set_result(None)
    return made


class Soak:
    """A worker without its broker, and what it holds."""

    def __init__(self, folder: Path, window_ms: int, encoder: str | None) -> None:
        self.folder, self.window_ms, self.encoder = folder, window_ms, encoder
        self.lake = lake.Lake(folder / "shared", "soak")
        self.taken = ingest.Ingest(
            store_=store.Store(folder / "store" / "soak.duckdb"), lake_=self.lake,
            settings=sessions.SessionSettings(lake_keep_ms=window_ms), log_ids={"t": "log"}, keep_ms=window_ms,
        )  # fmt: skip
        self.vectors = texts.Texts(encoder, folder / "shared", "soak")
        following: Any = SimpleNamespace(state=control.ControlState())
        self.models = worker.Models(shared=folder / "shared", texts_=self.vectors, lake_=self.lake, log_=following)
        self.sampled = Sampled(self.models.current)
        self.scorer = score.Scorer(
            ingest_=self.taken, model=self.sampled, outlet=Nowhere(), may_emit=lambda: True,
            outcomes_=outcomes.Outcomes(horizon_ms=HORIZON_MS),
        )  # fmt: skip
        self.version: str | None = None

    async def take(self, poll: dict[int, list[Any]]) -> None:
        """One poll through fold, score and commit."""
        await self.taken.fold({
            TP("t", p): transport.Stretch(start=records[0].offset, records=records) for p, records in poll.items()
        })  # fmt: skip
        await self.scorer.score()
        await self.taken.group_commit()

    async def flush(self) -> None:
        """What a worker does every 5 s."""
        await self.taken.flush()
        rows = await asyncio.to_thread(self.models.unseen, self.models.current)
        await asyncio.get_running_loop().run_in_executor(self.scorer.thread, self.models.current.learn, rows)

    def upkeep(self) -> None:
        """What a trainer does: merge segments, let old ones go; the wall clock of a soak is a fast one."""
        self.lake.compact(0, int(time.time() * 1000) + 3_600_000, self.window_ms // trainer.SPANS)
        self.lake.expire(self.window_ms)

    def train(self) -> None:
        """One version, made in a process of its own."""
        policy = window.WindowPolicy(horizon_next_ms=HORIZON_MS, horizon_purchase_ms=10 * HORIZON_MS, cuts=20_000)
        made = job.Job(
            shared=str(self.folder / "shared"), name="soak", encoder=self.encoder, champion=None, since={},
            policy=policy, forgotten=frozenset(), logs="text", kind="refresh", tune=knobs.TuneSettings(),
            network={"epochs": 1},
        )  # fmt: skip
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=os.nice, initargs=(10,)) as apart:
            verdict = apart.submit(_judged, msgspec.to_builtins(made)).result()
        self.version = verdict["version"]
        print(f"trained: {verdict['reason']}, {verdict['n_train']:,} cuts, {verdict['version']}", file=sys.stderr)

    def swap(self) -> None:
        """Load the version anew and go on with it."""
        if self.version is not None:
            self.models.current = self.models.warmed(self.version)
            self.sampled.model = self.models.current

    def held(self, events: int, cpu_s: float, began_s: float) -> dict[str, float]:
        """One line of the series."""
        model = self.models.current
        gc.collect()
        open_ = [session for part in self.taken.parts.values() for session in part.open.sessions()]
        return dict(zip(COLUMNS, (
            events, round(cpu_s * 1e6, 1), rss_mb(), size_mb(self.folder / "store"),
            size_mb(self.folder / "shared" / "events"), count(self.folder / "shared" / "events"), len(open_),
            sum(len(session.rows) for session in open_), len(self.taken.waiting), len(model.memory.names),
            len(model.memory.items), len(model.texts.known), len(model.memory.neighbours.serials),
            round(time.monotonic() - began_s),
        ), strict=True))  # fmt: skip


def _judged(said: dict[str, Any]) -> Any:
    from deploy import retraining

    return msgspec.to_builtins(retraining.judged(msgspec.convert(said, job.Job)))


async def run(count_: int, every: int, soak: Soak) -> list[dict[str, float]]:
    """Feed it and look at it."""
    parts = {TP("t", p) for p in range(PARTITIONS)}
    await soak.taken.adopt(parts, dict.fromkeys(parts, (0, 0)))
    done, spent, began_s, series = 0, 0.0, time.monotonic(), list[dict[str, float]]()
    for poll in visits.polls(count_, POLL, PARTITIONS):
        begun = time.process_time()
        await soak.take(poll)
        done += sum(map(len, poll.values()))
        if done % FLUSH == 0:
            await soak.flush()
        spent += time.process_time() - begun
        if sys.stderr.isatty():
            sys.stderr.write(f"\r{done / count_:4.0%} of {count_:,} events")
        if done % every == 0 or done == count_:
            soak.upkeep()
            if done == every:
                await soak.flush()
                soak.train()
            if done // every % 2:
                soak.swap()
            series.append(soak.held(done, spent / every, began_s))
            print(row(series[-1].values()), flush=True)
            spent = 0.0
    assert sum(p.open.stored + p.open.duplicates + p.open.rejected for p in soak.taken.parts.values()) == count_
    await soak.taken.release(parts, drop=False)
    return series


def row(values: Any) -> str:
    """One line of the table."""
    return "  ".join(f"{v:>9,}" if not isinstance(v, str) else f"{v:>9}" for v in values)


def rss_mb() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20


def size_mb(folder: Path) -> float:
    """Bytes of all files below a folder."""
    return round(sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) / 2**20, 1)


def count(folder: Path) -> int:
    """Segments below a folder."""
    return sum(1 for _ in folder.rglob("*.parquet"))


def main() -> None:
    """Parse, run, print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--events", type=int, default=3_000_000)
    asked.add_argument("--every", type=int, default=250_000)
    asked.add_argument("--window", type=settings.duration, default="30m", help="store.keep and lake.keep, event time")
    asked.add_argument("--encoder", default="none", help="as the setting: none, auto or a path")
    asked.add_argument("--json", type=Path, help="write the series there, too")
    said = asked.parse_args()
    torch.set_num_threads(1)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    encoder = settings.Settings.load({"encoder": said.encoder}).encoder()
    print(row(COLUMNS), flush=True)
    with tempfile.TemporaryDirectory(prefix="nextclick-soak-") as folder:
        series = asyncio.run(run(said.events, said.every, Soak(Path(folder), said.window, encoder)))
    if said.json:
        said.json.write_text(json.dumps(series, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
