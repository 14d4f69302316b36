"""The worker process: builds the live objects once, hands them down, and runs the Faust app."""

from __future__ import annotations

import asyncio
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faust
import msgspec
import orjson
import structlog
import torch

from deploy import ending, errors, health, logs, ranking, stocking
from deploy import settings as dials
from featurestore import lake, store
from featurestore.catalogue import Item
from featurestore.events import Row, Session
from streams import app, beats, catalogue, control, ingest, outcomes, score, topics
from streams.parts import Part
from trainer import encoders, endings, predictor, registry, texts

log = structlog.get_logger()

UNUSABLE = (registry.CorruptVersion, registry.UnknownVersion, OSError, ValueError, msgspec.MsgspecError)


class Models:
    """What this worker predicts with: follows the champion, the other partitions' rows and the forgotten."""

    def __init__(
        self, *, shared: Path, texts_: texts.Texts, lake_: lake.Lake, log_: control.ControlLog,
        horizon_ms: int = endings.HORIZON_MS, lateness_ms: int = endings.LATENESS_MS,
    ) -> None:  # fmt: skip
        self.registry, self.texts, self.lake, self.control = registry.Registry(shared), texts_, lake_, log_
        self.current = predictor.Predictor.cold(texts_, horizon_ms, lateness_ms)
        self.refused: dict[str, object] = {}  # with what was known of it then
        self.swaps = 0
        self.catalogue: Callable[[], list[Item]] = list  # what a version learns of items that nobody touched

    def warmed(self, version: str) -> predictor.Predictor:
        """A version, verified, loaded and brought up to what the lake knows."""
        path = self.registry.verify(version)
        encoder = encoders.encoder_of(path, self.texts.shared, self.texts.encoder)
        same = encoder == self.current.texts.encoder
        words = self.current.texts if same else texts.Texts(encoder, self.texts.shared, self.texts.writer)
        words.load()
        made = predictor.Predictor.load(path, words)
        made.learn(self.unseen(made))
        made.stock(self.catalogue())
        made.warm()
        return made

    def begin(self) -> None:
        """The champion where there is one: it knows most of the lake. Else what the lake holds is learnt anew."""
        version = self.wanted()
        model = self.tried(version) if version is not None else None
        if model is None:
            self.current.learn(self.unseen(self.current))
        else:
            self.current = model

    def tried(self, version: str) -> predictor.Predictor | None:
        """A version made ready as `warmed` does; None where that cannot be, until there is something new about it."""
        known = self.known(version)
        try:
            return self.warmed(version)
        except UNUSABLE as error:
            self.refused[version] = known
            log.error("The new champion was refused; the model in use goes on.", version=version, error=str(error))
            return None

    def known(self, version: str) -> object:
        """What a refused version is tried again for: an entry that names it anew, files that appeared or changed."""
        folders = (self.registry.root / Path(version).name, self.registry.root.parent / "encoders")
        try:
            files = [(str(p), p.stat().st_mtime_ns) for folder in folders for p in sorted(folder.glob("*"))]
        except OSError:  # being removed
            files = []
        return self.control.state.named, files

    def unseen(self, model: predictor.Predictor) -> list[Row]:
        """The rows that the lake holds beyond what the model's memory has seen."""
        seen = {lake.PartitionKey(*key): nxt - 1 for key, nxt in model.memory.seen.copy().items()}
        return self.lake.read(lambda cover: cover.rows(), seen, self.control.state.forgotten)

    def wanted(self) -> str | None:
        """The champion to change to, None where there is nothing to change."""
        champion = self.control.state.champion
        if champion is None or champion == self.current.version:
            return None
        if champion in self.refused and self.refused[champion] == self.known(champion):
            return None
        return str(champion)


class Process(faust.Worker):  # type: ignore[misc]
    """Faust's, whose stop waits for answers of the broker: it has its time for that."""

    def _schedule_shutdown(self, number: Any) -> None:
        ending.within()
        super()._schedule_shutdown(number)


def run(settings: dials.Settings) -> None:
    """Run until stopped; SIGTERM commits, flushes and keeps the store file."""
    torch.set_num_threads(1)  # what it computes is small: more threads only wait for each other
    told = health.serve(settings)
    names = settings.topics()
    for difference in topics.ensure(settings.kafka, names):
        log.warning("A topic differs from what is wanted.", difference=str(difference))
    settings.store_path.parent.mkdir(parents=True, exist_ok=True)
    the_lake = lake.Lake(settings.shared, settings.worker)
    following = control.ControlLog(settings.kafka, topic=names.control)
    following.start()
    if not following.caught_up(60):
        raise topics.TopicUnusable(f"{names.control} could not be read within a minute: is the broker well?")
    log_ids = topics.log_ids(settings.kafka, names)
    others = beats.Beats(settings.kafka, names.state, [f"{name}@{log_ids[name]}" for name in names.events])
    others.start()
    taken = ingest.Ingest(
        store_=store.Store(settings.store_path),
        lake_=the_lake,
        settings=settings.sessions(),
        log_ids=log_ids,
        keep_ms=settings["store.keep"],
        keep=settings["personal.keep"],
    )
    taken.heard_ms = lambda: others.watermark_ms
    taken.forgotten = following.state.forgotten
    taken.told_forgotten = lambda: following.state.forgotten
    taken.store.forget(taken.forgotten)
    taken.erased = dict.fromkeys(taken.forgotten, 0)
    vectors = texts.Texts(settings.encoder(), settings.shared, settings.worker)
    models = Models(
        shared=settings.shared, texts_=vectors, lake_=the_lake, log_=following,
        horizon_ms=settings["horizon.next"], lateness_ms=settings["session.lateness"],
    )  # fmt: skip
    predictor.Predictor.rehearse(vectors)
    vectors.load()
    models.begin()
    wiring = app.AppSettings(
        kafka=settings.kafka, worker=settings.worker, events=tuple(names.events), predictions=names.predictions,
        dead_letters=names.dead_letters, state=names.state, group=settings["group"], data=settings.store_path.parent,
    )  # fmt: skip
    outlet = app.Outlet(wiring)
    held: dict[str, score.Scorer] = {}

    def make_scorer(may_emit: Any) -> score.Scorer:
        held["scorer"] = score.Scorer(
            ingest_=taken, model=models.current, outlet=outlet, may_emit=may_emit, holdback=settings["holdback"],
            outcomes_=outcomes.Outcomes(
                horizon_ms=settings["horizon.next"], purchase_ms=settings["horizon.purchase"],
                share=settings["outcomes.share"],
            ),
        )  # fmt: skip
        held["scorer"].latencies_ms = told.latencies
        return held["scorer"]

    async def upkeep() -> None:
        """After each flush: swap where the champion changed, and learn what other workers' partitions saw."""
        scorer, loop = held["scorer"], asyncio.get_running_loop()
        await entomb(taken, outlet)
        version = models.wanted()
        if version is None:
            rows = await asyncio.to_thread(models.unseen, models.current)
            await loop.run_in_executor(scorer.thread, models.current.learn, rows)
            return None
        model = await asyncio.to_thread(models.tried, version)
        if model is None:
            return None
        models.current = model
        models.swaps += 1
        scorer.swap(model)
        log.info("Swapped.", version=version)
        return None

    async def live(user: str) -> list[Session]:
        """A person's open sessions, copied where they change."""
        mine = [s for part in taken.parts.values() for s in part.open.of(user)]
        return [msgspec.structs.replace(session, rows=list(session.rows)) for session in mine]

    def rank(body: bytes) -> dict[str, Any]:
        """A request answered by the model in use, on the thread that scores; who is another worker's, from the lake."""
        user, candidates = ranking.asked(body)
        own = asyncio.run_coroutine_threadsafe(live(user), built.loop).result(ranking.ANSWER_S)
        found = own or ranking.open_sessions(the_lake, user, settings.sessions())
        scored = held["scorer"].thread.submit(ranking.answered, models.current, user, found, candidates)
        return scored.result(ranking.ANSWER_S)

    def beat() -> bytes:
        told_ = said(settings.worker, taken, held["scorer"], models)
        return orjson.dumps(told_ | {"catalogue": stock.status()})

    items = catalogue.Catalogue(settings.kafka, names.items)
    stock = stocking.Stock(items, settings.shared, log_ids[names.items])
    models.catalogue = stock.told
    items.start()

    app.calm_collector()
    built = app.build(wiring, ingest_=taken, make_scorer=make_scorer, outlet=outlet, beat=beat, upkeep=upkeep)

    async def pulse(app: Any) -> None:
        scorer, parts = held["scorer"], taken.parts.values()
        status = said(settings.worker, taken, scorer, models)
        status["catalogue"] = stock.status()
        status["parts"] = [of_part(part) for part in parts]
        done = (sum(p.read for p in parts), scorer.predictions, scorer.scored_seq) if status["lag"] else None
        told.rank = rank
        told.pulse(status, unready(app, taken, frozenset(names.events)), done)

    @app.fail_stop
    async def restock(_: Any) -> None:
        """What the catalogue told since, into the model in use; the owner of the first partition speaks for all."""
        scorer, loop = held["scorer"], asyncio.get_running_loop()
        await stock.step(models.current, lambda work, *args: loop.run_in_executor(scorer.thread, work, *args))
        if any(tp.partition == 0 and tp.topic == names.events[0] for tp in taken.parts):
            await stock.keep(outlet)
        else:
            stock.forget_told()

    built.timer(1.0)(restock)
    if settings["http"] is not None:  # 2 ms a second under full load
        built.timer(1.0)(pulse)
    runner = Process(built, override_logging=False, redirect_stdouts=False, quiet=True)
    runner.spinner = None  # it writes a terminal's codes into whatever the output is
    try:
        runner.execute_from_commandline()
    finally:
        following.close()
        others.close()
        items.close()


async def entomb(taken: ingest.Ingest, outlet: app.Outlet) -> None:
    """Take back what was predicted for the forgotten, once nothing more can be said of them."""
    users = [user for user, seq in taken.erased.items() if seq <= taken.acked_seq]
    await asyncio.gather(*await outlet.predictions([(user.encode(), None) for user in users]))
    for user in users:
        del taken.erased[user]


def said(worker: str, taken: ingest.Ingest, scorer: score.Scorer, models: Models) -> dict[str, Any]:
    """A beat: what this worker owns, how far it is, what it runs."""
    parts = taken.parts.values()
    latencies = sorted(scorer.latencies_ms)
    recent = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else []
    return {
        "worker": worker,
        "at_ms": int(time.time() * 1000),
        "partitions": {f"{p.key.topic}|{p.key.partition}": p.read for p in parts},
        "lag": sum(max(0, p.end - p.read) for p in parts),
        "watermark_ms": max((p.open.watermark_ms for p in parts), default=0),
        "horizon_ms": scorer.outcomes.horizon_ms,
        "lateness_ms": taken.settings.lateness_ms,
        "open_sessions": sum(len(p.open) for p in parts),
        "events": taken.events,
        "nothing": taken.nothing,
        "stored": sum(p.open.stored for p in parts),
        "duplicates": sum(p.open.duplicates for p in parts),
        "rejected": sum(p.open.rejected for p in parts),
        "missing": sum(p.missing for p in parts),
        "unkeyed": taken.unkeyed,
        "bots": {"rows": dict(taken.bot_rows), "sessions": dict(taken.bot_sessions)},
        "dead_letters": taken.dead_letters,
        "predictions": scorer.predictions,
        "version": models.current.version,
        "swaps": models.swaps,
        "memory": models.current.holds(),
        "outcomes": scorer.outcomes.told([part.predicted for part in parts]),
        "busy_s": {stage: round(seconds, 3) for stage, seconds in taken.busy.s.items()},
        "latency_ms": {"p50": recent[49], "p99": recent[98]} if recent else None,
    }


def of_part(part: Part) -> dict[str, Any]:
    """How far one partition is."""
    return {
        "topic": part.key.topic, "partition": part.key.partition, "read": part.read, "end": part.end,
        "lag": max(0, part.end - part.read), "watermark_seconds": part.open.watermark_ms / 1000,
        "open_sessions": len(part.open), "stored": part.open.stored, "duplicates": part.open.duplicates,
        "rejected": part.open.rejected,
    }  # fmt: skip


def unready(running: Any, taken: ingest.Ingest, events: frozenset[str]) -> list[str]:
    """Why this worker does not work now: nothing assigned, not restored yet, or the group does not hear of it."""
    silent_s = time.monotonic() - running.transport.heard_s
    if running.transport.heard_s and silent_s > app.SESSION_TIMEOUT_S:
        return [f"the broker has not answered for {silent_s:.0f} s"]
    assigned = {tp for tp in running.consumer.assignment() if tp.topic in events}
    if not assigned:
        return ["no partition is assigned to this worker"]
    waiting = assigned - taken.parts.keys()
    return [f"{len(waiting)} of {len(assigned)} partitions are not restored yet"] if waiting else []


def main(settings: dials.Settings) -> None:
    """What `nextclick worker` becomes, and `python -m deploy.worker [--set key=value]… [--config FILE]`."""
    logs.configure(settings["logs"])
    run(settings)


if __name__ == "__main__":
    sys.exit(errors.code_of(lambda: main(dials.from_arguments(sys.argv[1:], os.environ))))
