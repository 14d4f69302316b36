"""A worker that only looks: it reads, folds and scores as one would, publishes nothing and commits nothing.

It joins no group, so that the partitions of the workers that run stay theirs, and begins by their own rule: where the
lake ends. What a worker keeps in files, or writes where it begins, it keeps in a folder that goes with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from faust.types import TP
from kafka import KafkaConsumer, TopicPartition

from deploy import drawing
from deploy.settings import Settings
from deploy.worker import Models
from featurestore import lake, store
from featurestore.catalogue import Item
from streams import catalogue, codec, connection, control, ingest, outcomes, score, topics, transport
from trainer import predictor, texts

POLL_MS = 100
RECORDS = 5_000  # of a poll
LOOK_S = 5.0  # between two looks at the control log, and two lines
SAMPLE = 3  # predictions that are shown


class Looked(msgspec.Struct, kw_only=True):
    """What a worker would have done; counts since the start."""

    seconds: float = 0.0
    events: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0
    missing: int = 0  # records that nobody holds any more
    nothing: int = 0  # messages that hold no event
    unkeyed: int = 0
    predictions: int = 0
    prediction_bytes: int = 0
    dead_letters: dict[str, int] = {}  # by reason
    lag: int = 0
    version: str = ""
    latency_ms: dict[str, float] | None = None  # record's arrival to its prediction, at lag 0
    busy_s: dict[str, float] = {}
    sample: list[codec.Prediction] = []  # the newest
    titles: dict[str, str] = {}  # of their items


class Outlet:
    """What would have been published."""

    def __init__(self) -> None:
        self.told = self.bytes = 0
        self.newest: deque[bytes] = deque(maxlen=SAMPLE)
        self.dead: Counter[str] = Counter()

    async def predictions(self, messages: Sequence[tuple[bytes, bytes | None]]) -> list[asyncio.Future[Any]]:
        """Counted, and acknowledged at once."""
        values = [value for _, value in messages if value is not None]
        self.told += len(values)
        self.bytes += sum(map(len, values))
        self.newest.extend(values)
        return []

    async def dead_letter(self, dead: codec.DeadLetter) -> asyncio.Future[Any]:
        """Counted by its reason."""
        self.dead[dict(dead.headers)["x-reason"].decode()] += 1
        return _acknowledged()


def _acknowledged() -> asyncio.Future[Any]:
    answer = asyncio.get_running_loop().create_future()
    answer.set_result(None)
    return answer


def run(
    settings: Settings, *, for_ms: int | None = None, stopped: Callable[[], bool] = lambda: False,
    tell: Callable[[Looked], None] = lambda _: None,
) -> Looked:  # fmt: skip
    """Look until stopped, or until `for_ms` after it was ready; `tell` hears how far it is now and then."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="nextclick-dry-run-") as folder, _following(settings) as (following, known):
        look = Look(settings, Path(folder), following, known)
        try:
            asyncio.run(look.run(for_ms, stopped, tell))
        finally:
            look.close()
        return look.told()


@contextlib.contextmanager
def _following(settings: Settings) -> Iterator[tuple[control.ControlLog, list[Item]]]:
    """The control log and the catalogue as it stands; empty ones where they are not there yet."""
    names, log_ = settings.topics(), control.ControlLog(settings.kafka, topic=settings["topics.control"])
    items = catalogue.Catalogue(settings.kafka, names.items)
    missing, _ = topics.compared(settings.kafka, names)
    read = [one for one in (log_, items) if one.topic not in missing]
    try:
        for one in read:
            one.start()
        for one in read:
            if not one.caught_up(60):
                raise topics.TopicUnusable(f"{one.topic} could not be read within a minute: is the broker well?")
        yield log_, list(items.items.values())
    finally:
        for one in read:
            one.close()


class Look:
    """The worker's own parts, around a plain consumer and an outlet that leads nowhere."""

    def __init__(self, settings: Settings, folder: Path, following: control.ControlLog, known: list[Item]) -> None:
        self.settings, self.outlet, self.titles = settings, Outlet(), dict[str, str]()
        names = settings.topics()
        self.lake = lake.Lake(settings.shared, "dry-run")
        log_ids = topics.log_ids(settings.kafka, names.events)
        beside = self.lake.aside(folder / "shared", {f"{name}@{log_ids[name]}" for name in names.events})
        self.taken = ingest.Ingest(
            store_=store.Store(folder / "store.duckdb"), lake_=beside, settings=settings.sessions(), log_ids=log_ids,
            keep_ms=settings["store.keep"], keep=settings["personal.keep"],
        )  # fmt: skip
        self.taken.forgotten = following.state.forgotten
        vectors = texts.Texts(settings.encoder(), settings.shared, None)
        self.models = Models(
            shared=settings.shared, texts_=vectors, lake_=self.lake, log_=following,
            horizon_ms=settings["horizon.next"], lateness_ms=settings["session.lateness"],
        )  # fmt: skip
        self.models.catalogue = lambda: known
        predictor.Predictor.rehearse(vectors)
        vectors.load()
        self.models.begin()
        self.models.current.stock(known)
        self.scorer = score.Scorer(
            ingest_=self.taken, model=self.models.current, outlet=self.outlet, may_emit=lambda: True,
            holdback=settings["holdback"], outcomes_=outcomes.Outcomes(horizon_ms=settings["horizon.next"], share=0.0),
        )  # fmt: skip
        self.consumer = self._connected()
        self.before = Counter[str]()
        self.began_s = time.monotonic()

    def _connected(self) -> Any:
        consumer = connection.client(KafkaConsumer, self.settings.kafka, {
            "group_id": None, "enable_auto_commit": False, "auto_offset_reset": "none", "fetch_max_wait_ms": 50,
            "isolation_level": "read_committed", "max_poll_records": RECORDS,
        })  # fmt: skip
        events = self.settings.topics().events
        consumer.assign([TopicPartition(name, p) for name in events for p in consumer.partitions_for_topic(name) or ()])
        return consumer

    async def _begin(self) -> None:
        """Every partition where a worker would go on with it."""
        parts = self.consumer.assignment()
        first, ends = self.consumer.beginning_offsets(parts), self.consumer.end_offsets(parts)
        bounds = {TP(*at): (first[at], ends[at]) for at in parts}
        for tp, offset in (await self.taken.adopt(set(bounds), bounds)).items():
            self.consumer.seek(TopicPartition(*tp), offset)
        self.before = Counter(self._counts())
        self.began_s = time.monotonic()

    async def run(self, for_ms: int | None, stopped: Callable[[], bool], tell: Callable[[Looked], None]) -> None:
        """Poll, fold, score; now and then see whether there is another champion."""
        await self._begin()
        looked_s = self.began_s
        while not stopped() and (for_ms is None or time.monotonic() - self.began_s < for_ms / 1000):
            with self.taken.busy("fetch"):
                polled = self.consumer.poll(timeout_ms=POLL_MS)
            batch = await self.taken.fold({TP(*at): self._stretch(at, records) for at, records in polled.items()})
            if batch is not None:
                self.titles |= {r.event.item_id: r.event.title for r in batch.rows if r.event.item_id and r.event.title}
                await self.scorer.score()
                self.taken.waiting.clear()  # nothing of it is kept
            if time.monotonic() - looked_s >= LOOK_S:
                looked_s = time.monotonic()
                self._follow()
                tell(self.told())

    def _stretch(self, at: Any, records: list[Any]) -> transport.Stretch:
        """Records as a worker gets them; behind the last of them the log may hold markers, which are no lag."""
        end = self.consumer.highwater(at) or 0
        if self.consumer.position(at) >= end:
            end = records[-1].offset + 1
        return transport.Stretch(start=self.taken.parts[TP(*at)].read, records=records, end=end)

    def _follow(self) -> None:
        version = self.models.wanted()
        model = self.models.tried(version) if version is not None else None
        if model is not None:
            self.models.current = model
            self.scorer.swap(model)

    def _counts(self) -> dict[str, int]:
        parts = self.taken.parts.values()
        return {name: sum(getattr(part.open, name) for part in parts) for name in ("stored", "duplicates", "rejected")}

    def told(self) -> Looked:
        """How far it is."""
        taken, latencies = self.taken, sorted(self.scorer.latencies_ms)
        recent = statistics.quantiles(latencies, n=100) if len(latencies) > 1 else []
        counts = Counter(self._counts())
        counts.subtract(self.before)
        sample = [codec.decode_prediction(value) for value in self.outlet.newest]
        named = {item.item_id for one in sample for item in one.items}
        return Looked(
            seconds=round(time.monotonic() - self.began_s, 1), events=taken.events, **counts, nothing=taken.nothing,
            missing=sum(part.missing for part in taken.parts.values()), unkeyed=taken.unkeyed,
            predictions=self.outlet.told, prediction_bytes=self.outlet.bytes,
            dead_letters=dict(self.outlet.dead), lag=sum(max(0, part.end - part.read) for part in taken.parts.values()),
            version=self.models.current.version, busy_s={k: round(s, 3) for k, s in taken.busy.s.items()},
            latency_ms={"p50": round(recent[49], 1), "p99": round(recent[98], 1)} if recent else None,
            sample=sample, titles={item: self.titles[item] for item in named if item in self.titles},
        )  # fmt: skip

    def close(self) -> None:
        """Disconnect, and let go of the file."""
        self.consumer.close()
        self.taken.writer.shutdown()
        self.scorer.thread.shutdown()
        self.taken.store.close()


def line(looked: Looked) -> str:
    """How far it is, in a line."""
    latency = looked.latency_ms
    timed = f", p50 {latency['p50']:,.0f} ms, p99 {latency['p99']:,.0f} ms" if latency else ""
    rate = looked.events / max(looked.seconds, 0.1)
    return (
        f"{looked.events:,} events read ({rate:,.0f}/s), {looked.predictions:,} predictions by {looked.version}, "
        f"{sum(looked.dead_letters.values()):,} dead letters, lag {looked.lag:,}{timed}"
    )


def plain(looked: Looked) -> str:
    """What would have been published, with its newest predictions."""
    counts = (
        f"{looked.stored:,} rows, {looked.duplicates:,} duplicates, {looked.rejected:,} rejected, {looked.nothing:,} "
        f"messages with nothing to store; {looked.prediction_bytes / 1e6:,.1f} MB of predictions"
    )
    dead = ", ".join(f"{reason} {count:,}" for reason, count in looked.dead_letters.items())
    shown = [drawing.prediction(one, looked.titles.get) for one in looked.sample]
    return "\n".join([line(looked), counts, *([f"dead letters: {dead}"] if dead else []), *shown,
                      "nothing was published, nothing was committed"])  # fmt: skip
