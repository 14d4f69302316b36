"""A worker whose scorer only acknowledges: the whole ingest path of the product, to be timed from a full topic.

Arguments: kafka, topic, folder, and where it is one of several workers the group and how many partitions it gets: it
begins when it has them. Prints one JSON object and ends when all that its partitions hold is in the lake.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import faust

from featurestore import lake, sessions, store
from featurestore.events import Row, Session
from streams import app, ingest, outcomes, score, topics


class Silent(score.Scorer):
    """Dead letters are sent, nothing is predicted."""

    async def score(self) -> None:
        """Let everything that was folded be committed."""
        batches = [batch for batch in self.ingest.waiting if batch.seq > self.scored_seq]
        for sending in [await self.outlet.dead_letter(dead) for batch in batches for dead in batch.dead]:
            await sending
        if batches:
            self.scored_seq = batches[-1].seq
            self.ingest.acknowledged(self.scored_seq)


class Nothing:
    """No model."""

    def learn(self, rows: list[Row]) -> None:
        """It does not."""

    def predict(self, sessions: list[Session], at_ms: list[int]) -> list[Any]:
        """It says nothing."""
        return []


def threads_s() -> dict[str, float]:
    """CPU seconds of each living Python thread."""
    found: dict[str, float] = {}
    for thread in threading.enumerate():
        if thread.ident is not None:
            name = thread.name.rstrip("0123456789_-")
            name = {"MainThread": "loop", "Thread": "fetch"}.get(name, name)  # Faust's consumer has a thread of its own
            used = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            found[name] = found.get(name, 0.0) + used
    return found


def main(kafka: str, topic: str, folder: Path, group: str = "", share: str = "8") -> None:
    """Read them all and tell how long it took."""
    worker = f"bench-{uuid.uuid4().hex[:8]}"
    names = topics.Topics(events=(topic,))
    taken = ingest.Ingest(
        store_=store.Store(folder / "store" / f"{worker}.duckdb"),
        lake_=lake.Lake(folder / "shared", worker),
        settings=sessions.SessionSettings(),
        log_ids=topics.log_ids(kafka, names),
        keep_ms=86_400_000,
    )
    wiring = app.AppSettings(
        kafka=kafka, worker=worker, events=(topic,), predictions=names.predictions, dead_letters=names.dead_letters,
        state=names.state, group=group or worker, data=folder / "store",
    )  # fmt: skip
    outlet = app.Outlet(wiring)
    begun: dict[str, Any] = {}
    polls: list[int] = []
    fold = taken.fold

    async def noted(poll: Any) -> Any:
        while len(taken.parts) != int(share):
            await asyncio.sleep(0.01)
        if not begun:
            begun.update(wall=time.monotonic(), cpu=time.process_time(), threads=threads_s())
        polls.append(sum(len(stretch.records) for stretch in poll.values()))
        return await fold(poll)

    taken.fold = noted  # type: ignore[method-assign]

    async def upkeep() -> None:
        """There is no model to keep up."""

    app.calm_collector()
    built = app.build(
        wiring,
        ingest_=taken,
        make_scorer=lambda may_emit: Silent(
            ingest_=taken, model=Nothing(), outlet=outlet, outcomes_=outcomes.Outcomes(horizon_ms=0), may_emit=may_emit
        ),
        outlet=outlet,
        beat=lambda: b"{}",
        upkeep=upkeep,
    )

    @built.timer(0.02)  # type: ignore[untyped-decorator]
    async def watch(app: Any) -> None:
        parts = list(taken.parts.values())
        if begun and len(parts) == int(share) and all(part.read >= part.end for part in parts):
            while taken.acked_seq < taken.seq:
                await asyncio.sleep(0.01)
            await taken.flush()
            wall, cpu = time.monotonic() - begun["wall"], time.process_time() - begun["cpu"]
            threads = {k: round(s - begun["threads"].get(k, 0.0), 3) for k, s in threads_s().items()}
            rows = sum(part.open.stored for part in taken.parts.values())
            print(json.dumps({
                "events": taken.events, "seconds": wall, "cpu_s": cpu, "threads_s": threads, "stored": rows,
                "duplicates": sum(part.open.duplicates for part in taken.parts.values()),
                "rejected": sum(part.open.rejected for part in taken.parts.values()),
                "busy_s": taken.busy.s, "events_a_poll": round(sum(polls) / len(polls)), "rss_mb": rss_mb(),
            }), flush=True)  # fmt: skip
            os._exit(0)

    faust.Worker(built, loglevel="warning", redirect_stdouts=False, quiet=True).execute_from_commandline()


def rss_mb() -> int:
    """The most memory it ever held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), *sys.argv[4:])
