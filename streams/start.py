"""The one start rule: where a partition is read from, what is restored for it, and what nobody can give back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec
import pyarrow as pa
import structlog

from featurestore import lake, sessions, store
from featurestore.lake import LakeProgress, PartitionKey

log = structlog.get_logger()

NO_ROWS = lake.SCHEMA.empty_table()


@dataclass(frozen=True, kw_only=True)
class Start:
    """Where a partition goes on."""

    progress: store.Progress
    flushed: int  # in the lake up to here
    missing: int  # offsets that nobody holds any more


@dataclass(frozen=True, kw_only=True)
class _Known:
    """What the lake knows of a partition beside this worker's own file."""

    next: int = 0
    progress: LakeProgress | None = None
    resumes: int | None = None  # behind a gap the lake goes on here
    lacking: int = 0  # rows that were flushed and are in neither
    rows: pa.Table = field(default_factory=NO_ROWS.slice)  # to restore where the lake is ahead


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The larger of the store's offset and the lake's; a lake that is ahead replaces the store.

    Where the lake lost what the store does not hold any more, reading starts at that gap and fills it from Kafka. What
    Kafka dropped too is said, counted and passed over, so that all that lies behind it stays in the cover.
    """

    store_: store.Store
    lake_: lake.Lake
    settings: sessions.SessionSettings
    keep_ms: int

    def start(self, key: PartitionKey, first: int, forgotten: Collection[str] = ()) -> Start:
        """`first`: the first offset that Kafka still holds."""
        missing = 0
        while True:
            own = self.store_.progress().get(key)
            known = self.lake_.read(lambda cover, o=own: self._known(cover, key, o), forgotten=forgotten, keys={key})  # type: ignore[misc]
            ahead = own is not None and own.next > known.next
            if known.resumes is None or known.next >= first or (ahead and not known.lacking):
                break
            missing += self._bridge(key, known, min(first, known.resumes))
        own = self._own(key, known, own, first)
        if own is None:
            own = store.Progress(next=first, watermark_ms=0, stored=0, duplicates=0, rejected=0)
            if first:
                log.warning("This log does not begin at 0: what came before was deleted before it was read here.",
                            topic=key.topic, partition=key.partition, start=first)  # fmt: skip
        return Start(progress=own, flushed=known.next or first, missing=missing)

    def _own(self, key: PartitionKey, known: _Known, own: store.Progress | None, first: int) -> store.Progress | None:
        """The progress to go on with, in the store as well."""
        again = known.lacking > 0 and first <= known.next
        if known.lacking:
            log.error("The lake lost rows that were flushed; they are read again." if again else
                      "The lake lost rows that were flushed, and Kafka no longer holds them.",
                      topic=key.topic, partition=key.partition, start=known.next, rows=known.lacking)  # fmt: skip
        if known.progress is not None and (own is None or known.next > own.next or again):
            told = msgspec.structs.asdict(known.progress)
            own = store.Progress(
                **{name: told[name] for name in store.Progress.__struct_fields__} | {"next": known.next}
            )
            self.store_.adopt(key, known.rows, own)
        elif again:
            self.store_.drop(key)
            own = None
        return own

    def _known(self, cover: lake.Cover, key: PartitionKey, own: store.Progress | None) -> _Known:
        nxt, told, resumes = cover.end.get(key, 0), cover.progress.get(key), cover.resumes.get(key)
        lacking = 0
        if own is not None and own.next > nxt:
            flushed, stored = (told.next, told.stored) if told is not None else (0, 0)
            lacking = max(0, own.stored - stored - self.store_.held(key, flushed, own.next))
        rows = NO_ROWS
        if told is not None and (own is None or nxt > own.next or lacking):
            at_ms = told.watermark_ms
            rows = cover.restorable(key, at_ms - self.keep_ms, sessions.passed_ms(at_ms, self.settings))
        return _Known(next=nxt, progress=told, resumes=resumes, lacking=lacking, rows=rows)

    def _bridge(self, key: PartitionKey, known: _Known, upto: int) -> int:
        """Read positions that nobody holds any more become a segment without rows; returns how many they are."""
        told = known.progress or LakeProgress(next=upto)
        self.lake_.write(key, known.next, upto, NO_ROWS, msgspec.structs.replace(told, next=upto, raised_ms=0))
        log.error("The lake has a gap and Kafka no longer holds what lay in it; going on behind it.",
                  topic=key.topic, partition=key.partition, start=known.next, missing=upto - known.next)  # fmt: skip
        return upto - known.next
