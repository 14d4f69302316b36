"""Store, lake and Kafka against each other: what `nextclick store check` finds."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import pyarrow.parquet as pq

from deploy.settings import Settings
from featurestore import lake, verify
from featurestore.events import Event
from featurestore.lake import LakeProgress, PartitionKey
from featurestore.store import Progress
from featurestore.verify import Finding, Part
from streams import codec, topics

SILENT_S = 20.0  # a broker that says nothing for so long is told instead of waited for


class Report(msgspec.Struct, kw_only=True):
    """Everything that was looked at, and what was found."""

    partitions: list[dict[str, Any]] = []
    stores: list[str] = []
    skipped: list[str] = []
    findings: list[Finding] = []

    @property
    def faults(self) -> int:
        return sum(finding.fault for finding in self.findings)


def check(settings: Settings, *, with_kafka: bool, forgotten: frozenset[str] = frozenset()) -> Report:
    """Read all of the lake, every store file that no worker holds, and (asked for) what Kafka still has of it."""
    report = Report(partitions=[], stores=[], skipped=[], findings=[])
    parts = {part.key: part for part in verify.lake_parts(settings.shared)}
    owns = _stores(report, settings["store.folder"], parts, forgotten)
    events = {part.key: 0 for part in parts.values()}
    if with_kafka:
        events |= asyncio.run(_kafka(settings, report, parts, owns))
    for part in parts.values():
        report.findings += part.findings
        report.partitions.append({
            "topic": part.key.topic, "partition": part.key.partition, "segments": part.files, "first": part.first,
            "next": part.end, "rows": part.rows, "erased": part.erased,
            "duplicates": part.progress.duplicates if part.progress else None,
            "rejected": part.progress.rejected if part.progress else None,
            "compared_with_kafka": events[part.key],
        })  # fmt: skip
    return report


def _stores(
    report: Report, folder: Path, parts: Mapping[PartitionKey, Part], forgotten: frozenset[str]
) -> dict[Path, dict[PartitionKey, Progress]]:
    owns = {}
    for path in sorted(folder.glob("*.duckdb")):
        try:
            found, owns[path] = verify.store_findings(path, parts, forgotten)
        except verify.StoreInUse as running:
            report.skipped.append(str(running))
            continue
        report.stores.append(path.name)
        report.findings += found
    if not owns and not report.skipped:
        report.skipped.append(f"no store file in {folder}")
    return owns


# ---------------------------------------------------------------- Kafka


async def _kafka(
    settings: Settings, report: Report, parts: Mapping[PartitionKey, Part],
    owns: Mapping[Path, Mapping[PartitionKey, Progress]],
) -> dict[PartitionKey, int]:  # fmt: skip
    """Events of the log against rows, duplicates and rejected; how many of each partition were compared."""
    ids = topics.log_ids(settings.kafka, settings["topics.events"])
    here = {f"{name}@{log_id}": name for name, log_id in ids.items()}
    compacted = topics.compacted(settings.kafka, list(ids))
    compared = {}
    consumer = aiokafka.AIOKafkaConsumer(
        **settings.kafka.for_aiokafka(), enable_auto_commit=False, isolation_level="read_committed",
        auto_offset_reset="none", fetch_max_wait_ms=50,
    )  # fmt: skip
    await consumer.start()
    await asyncio.sleep(0)  # a task of aiokafka that never began makes `stop` fail, where nothing is read between
    try:
        keys = parts.keys() | {key for own in owns.values() for key in own}
        for key in sorted(keys):
            if key.topic not in here:
                if key.topic != lake.HISTORY:
                    report.skipped.append(f"{key.topic} partition {key.partition}: another log than {settings.kafka}'s")
                continue
            part = parts.get(key) or Part(key=key, chain=[], findings=[])
            log = _Log(consumer, aiokafka.TopicPartition(here[key.topic], key.partition))
            needed = {path.name: own[key].next for path, own in owns.items() if key in own}
            try:
                await _bounds(log, part, needed)
                compared[key] = await _compare(log, part, compacted=here[key.topic] in compacted)
            except (aiokafka.errors.KafkaError, TimeoutError) as error:
                part.said("kafka", f"could not be compared with Kafka: {type(error).__name__} {error}".rstrip(),
                          "look after the broker, then check again")  # fmt: skip
            if key not in parts:
                report.findings += part.findings
    finally:
        await consumer.stop()
    return compared


class _Log:
    """One partition of an event topic, read forward."""

    def __init__(self, consumer: Any, tp: Any) -> None:
        self.consumer, self.tp = consumer, tp
        self.first = self.end = 0
        self.held: list[Any] = []

    async def open(self) -> None:
        self.consumer.assign([self.tp])
        self.first = (await self.consumer.beginning_offsets([self.tp]))[self.tp]
        self.consumer.seek(self.tp, self.first)
        waited = 0.0
        while self.consumer.highwater(self.tp) is None:  # the one number that every broker tells rightly
            await self._poll()
            waited += 0.2
            if waited > SILENT_S:
                raise TimeoutError("the broker tells no end of the log")
        self.end = max(self.consumer.highwater(self.tp), self.first)

    def seek(self, offset: int) -> None:
        self.held = []
        self.consumer.seek(self.tp, offset)

    async def upto(self, end: int) -> list[Any]:
        """Records below an offset, as many as came; empty at that offset."""
        while True:
            now, later = [r for r in self.held if r.offset < end], [r for r in self.held if r.offset >= end]
            if now:
                self.held = later
                return now
            if later or await self.consumer.position(self.tp) >= end:
                return []
            await self._poll(until=end)

    async def _poll(self, until: int | None = None) -> None:
        for _ in range(int(SILENT_S * 5)):
            got = (await self.consumer.getmany(self.tp, timeout_ms=200)).get(self.tp, [])
            self.held += got
            if got or until is None or await self.consumer.position(self.tp) >= until:
                return
        raise TimeoutError(f"no record came for {SILENT_S:.0f} s")


async def _bounds(log: _Log, part: Part, needed: Mapping[str, int]) -> None:
    await log.open()
    for who, offset in {"the lake": part.end, **needed}.items():
        if offset > log.end:
            part.said("kafka", f"{who} ends at offset {offset:,}, Kafka's log at {log.end:,}: records were lost or the "
                      "log is another", "give this log folders of its own (--shared, store.folder)")  # fmt: skip
    behind = max([part.end, *needed.values()])
    if behind < log.first:
        part.said("kafka", f"Kafka begins at offset {log.first:,}: {log.first - behind:,} offsets were deleted before "
                  "they were read", "they are lost: raise the topic's retention.ms, or run more workers")  # fmt: skip


async def _compare(log: _Log, part: Part, *, compacted: bool) -> int:
    """From the first segment that Kafka holds whole: events in the log = rows + duplicates + rejected (+ erased).

    Of a compacted topic Kafka may hold fewer; that it does is a notice.
    """
    compared = 0
    before = LakeProgress(next=0) if part.first == 0 else None
    for link in part.chain:
        first, end = link.segment.above + 1, link.segment.last + 1
        if first < log.first or end > log.end:
            before = link.told
            continue
        log.seek(first)
        rows = _rows(link.segment)
        events, unlike = 0, Counter[int]()
        while records := await log.upto(end):
            for record in records:
                for n, event_id in enumerate(_ids(record)):
                    events += 1
                    known = rows.pop((record.offset, n), None)
                    if known is not None and known != event_id:
                        unlike[record.offset] += 1
        compared += events
        path, mend = link.segment.path, _mend(part)
        if unlike:
            part.said("kafka", f"holds other events than Kafka at offsets {_some(unlike)}", mend, path=path)
        if rows:
            part.said("kafka", f"holds {len(rows):,} rows that Kafka has not, at offsets "
                      f"{_some(Counter(o for o, _ in rows))}", "the topic is compacted: set cleanup.policy=delete to "
                      "keep what could be read again" if compacted else mend, path=path,
                      fault=not compacted)  # fmt: skip
        if link.told is not None and before is not None and not rows:
            told = link.told
            grown = [getattr(told, k) - getattr(before, k) for k in ("stored", "duplicates", "rejected")]
            if events > sum(grown) or (events < sum(grown) and not compacted):
                part.said("kafka", f"Kafka holds {events:,} events at offsets {first:,} to {end - 1:,}, the counts say "
                          f"{grown[0]:,} stored, {grown[1]:,} duplicates and {grown[2]:,} rejected", mend,
                          path=path)  # fmt: skip
        before = link.told
    return compared


def _mend(part: Part) -> str:
    return (
        "to read it again from Kafka, stop the workers, move the lake's folder of partition "
        f"{part.key.partition} and its owner's store file away, and start them"
    )


def _rows(segment: lake.Segment) -> dict[tuple[int, int], str]:
    table = pq.read_table(segment.path, columns=["offset", "n", "event_id"], partitioning=None)
    offsets, places, ids = (table[name].to_pylist() for name in table.column_names)
    return {(o, n): i for o, n, i in zip(offsets, places, ids, strict=True) if o > segment.above}


def _ids(record: Any) -> list[str | None]:
    """The ids of a message's events in order, None in the place of one that cannot be read."""
    try:
        elements = codec.decode(record.value, record.headers, key=record.key, record_ms=record.timestamp)
    except codec.BadEvent:
        return [None]
    return [element.event_id if isinstance(element, Event) else None for element in elements]


def _some(offsets: Counter[int]) -> str:
    return verify.some((offset,) for offset in offsets)
