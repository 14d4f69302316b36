"""Polls become rows: decode, fold, and one progress number a partition that moves only behind acknowledgements."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import structlog
from faust.types import TP

from featurestore import lake, sessions, store
from featurestore.events import Event, Origin, Row, Session
from featurestore.lake import PartitionKey
from streams import codec, stages, start, transport
from streams.parts import KEYED_SHARE, KEYED_WINDOW, Batch, Part

log = structlog.get_logger()

COMMIT_S = 0.2
COMMIT_ROWS = 15_000  # a group commit comes early where so much is acknowledged
FLUSH_ROWS = 100_000
WAITING_ROWS = 60_000  # folding waits where so much waits for its commit: lag grows, memory does not
BEHIND_BEATS = 10  # a log may end too early for a moment, while its leader changes


class LogBehindProgress(RuntimeError):
    """A needed offset lies above the log's end: another log. Give it folders of its own (--shared, store.folder)."""


class WrongKeys(RuntimeError):
    """Events are not keyed by their user, so that one user's events lie in several partitions."""


class UnreadableLog(RuntimeError):
    """Kafka hands out a batch of records that is damaged: nobody can say what it held."""


class LostPoll(RuntimeError):
    """Records between the last one folded and the first one fetched never arrived; restart to read them again."""


def _behind(tp: TP, part: Part, end: int) -> LogBehindProgress:
    return LogBehindProgress(
        f"{tp.topic}-{tp.partition} needs offset {part.read}, the log ends at {end}: it is not the log that was read "
        "before; give it folders of its own (--shared, --set store.folder=DIR)"
    )


class Ingest:
    """The state of one worker's partitions, on the event loop; SQL and files on the thread of `writer`.

    Two locks, taken in this order: `lock` for who owns what (fold, adopt, release), `disk` for store and lake (commit,
    flush, and whoever changes owners). So that an event need not wait for the disk: folding goes on beside a flush.
    """

    def __init__(
        self,
        *,
        store_: store.Store,
        lake_: lake.Lake,
        settings: sessions.SessionSettings,
        log_ids: Mapping[str, str],
        keep_ms: int,
        keep: Collection[str] = (),
    ) -> None:
        self.store, self.lake, self.settings, self.log_ids = store_, lake_, settings, log_ids
        self.keep_ms, self.keep = keep_ms, keep  # rows so long; of foreign events' personal fields these
        self.lock, self.disk = asyncio.Lock(), asyncio.Lock()
        self.writer = ThreadPoolExecutor(1, thread_name_prefix="store")
        self.parts: dict[TP, Part] = {}
        self.left: set[PartitionKey] = set()  # revoked and still in the file: most come back with the next assignment
        self.waiting: deque[Batch] = deque()  # folded, not committed
        self.room, self.full = asyncio.Event(), asyncio.Event()  # for more to be folded; a commit's worth acknowledged
        self.room.set()
        self.acked_seq = self.seq = 0
        self.forgotten: frozenset[str] = frozenset()
        self.told_forgotten: Callable[[], frozenset[str]] = frozenset
        self.erased: dict[str, int] = {}  # user: the last batch that may have caused a prediction for them
        self.events = self.unkeyed = self.dead_letters = 0
        self.nothing = 0  # messages that hold no event
        self.bot_rows: Counter[str] = Counter()  # rows of sessions that no person makes, by reason
        self.bot_sessions: Counter[str] = Counter()
        self.heard_ms: Callable[[], int] = lambda: 0  # the largest watermark that other workers told
        self.unflushed = 0  # rows committed since the last flush
        self.busy = stages.Busy()

    async def on_writer(self, work: Callable[..., Any], *args: Any) -> Any:
        """Run on the store's thread; a cancelled caller leaves it to finish."""
        return await asyncio.shield(asyncio.get_running_loop().run_in_executor(self.writer, work, *args))

    # fold

    async def fold(self, poll: transport.Poll) -> Batch | None:
        """Decode and fold a poll; None where nothing of it is still ours."""
        async with self.lock:
            self.seq += 1
            batch = Batch(seq=self.seq)
            for tp, stretch in poll.items():
                part = self.parts.get(tp)
                if part is None:
                    continue  # revoked while it waited in the stream
                part.end = max(part.end, stretch.end)
                if stretch.records[0].offset < stretch.start and stretch.end < part.read:
                    raise _behind(tp, part, stretch.end)  # the consumer went back by itself, to a shorter log's start
                if stretch.expired and stretch.start > part.read:
                    self._pass_over(tp, part, stretch.start)
                if stretch.start > part.read and stretch.records[-1].offset >= part.read:
                    raise LostPoll(f"{tp.topic}-{tp.partition}: read up to {part.read}, fetched from {stretch.start}")
                with self.busy("fold"):
                    self._fold_records(batch, tp, part, stretch.records)
                    sessions.expire(part.open, self.settings)
                batch.progress[tp] = (part, part.progress())
            if not batch.progress:
                return None
            self.waiting.append(batch)
            self._look_for_room()
            return batch

    def _look_for_room(self) -> None:
        """Whether more may be folded before something is committed."""
        (self.room.set if sum(batch.size for batch in self.waiting) <= WAITING_ROWS else self.room.clear)()

    def _pass_over(self, tp: TP, part: Part, first: int) -> None:
        """Go on from the log's start where retention was ahead of us; how many are missing is said and counted."""
        part.missing += first - part.read
        log.error("Kafka no longer holds records that are needed; going on from the log's start.",
                  topic=tp.topic, partition=tp.partition, start=first, missing=first - part.read)  # fmt: skip
        part.read = first

    def hear_end(self, tp: TP, end: int) -> None:
        """The log's end as the newest fetch told it; an empty log tells 0."""
        part = self.parts[tp]
        if end >= part.read:
            part.end, part.behind = end, 0
            return
        part.behind += 1
        if part.behind > BEHIND_BEATS:
            raise _behind(tp, part, end)

    def _fold_records(self, batch: Batch, tp: TP, part: Part, records: Sequence[Any]) -> None:
        """Those that were not read yet: most hold one plain event; of all others the codec tells what they hold."""
        for record in records:
            if record.offset < part.read:
                continue
            event = codec.plain(record.value)
            if event is None:
                self._fold_message(batch, tp, part, record)
            elif (refused := self._fold_event(batch, tp, part, record, 0, event)) is not None:
                self._reject(batch, record, [refused])
            part.read = record.offset + 1

    def _fold_message(self, batch: Batch, tp: TP, part: Part, record: Any) -> None:
        """A message of several events, of another dialect, with fields of its own, or that is none."""
        try:
            elements = codec.decode(
                record.value, record.headers, key=record.key, record_ms=record.timestamp, keep=self.keep
            )
        except codec.BadEvent as bad_message:
            self.events += 1
            part.open.rejected += 1
            self._reject(batch, record, bad_message)
            return
        self.nothing += not elements
        bad: list[codec.BadElement] = []
        for n, element in enumerate(elements):
            if isinstance(element, Event):
                refused = self._fold_event(batch, tp, part, record, n, element)
                if refused is not None:
                    bad.append(refused)
            else:
                self.events += 1
                part.open.rejected += 1
                bad.append(element)
        if bad:
            self._reject(batch, record, bad)

    def _fold_event(
        self, batch: Batch, tp: TP, part: Part, record: Any, n: int, event: Event
    ) -> codec.BadElement | None:
        """One event into its session; why it was refused, where that makes a dead letter."""
        self.events += 1
        user_id = event.user_id
        part.keys.judged += 1
        if record.key != user_id.encode():
            self.unkeyed += 1
            self._judge_keys(tp, part, record)
        if user_id in self.forgotten:
            part.open.rejected += 1  # no dead letter: it would keep what was to be forgotten
            return None
        origin = Origin(part.key.topic, tp.partition, record.offset, n, record.timestamp)
        folded = sessions.fold(part.open, event, origin, self.settings)
        row, session, outcome = folded.row, folded.session, folded.outcome
        if row is not None and session is not None:
            batch.rows.append(row)
            batch.sessions.append(session)
            if row.bot is not None:
                self.bot_rows[row.bot] += 1
                self.bot_sessions[row.bot] += len(session.rows) < 2 or session.rows[-2].bot is None
        elif outcome in ("future-ts", "too-late"):
            return codec.BadElement(n, outcome, f"event {event.event_id}: ts {event.ts_ms}")
        return None

    def _judge_keys(self, tp: TP, part: Part, record: Any) -> None:
        """An event whose key is not its user: a few are let in."""
        if not part.keys.wrong_one():
            raise WrongKeys(
                f"{tp.topic}-{tp.partition}: more than {KEYED_SHARE:.0%} of the last {KEYED_WINDOW:,} events up to "
                f"offset {record.offset} do not have their user_id as the message's key (this one: {record.key!r})"
                ": key each message with its user_id, as streams.client.EventProducer does, in a topic of its own"
            )

    def _reject(self, batch: Batch, record: Any, bad: codec.BadEvent | list[codec.BadElement]) -> None:
        self.dead_letters += 1
        batch.dead.append(codec.dead_letter(record, bad))

    # commit, flush

    def acknowledged(self, seq: int) -> None:
        """All that batches up to this one caused has been acknowledged by the broker."""
        self.acked_seq = max(self.acked_seq, seq)
        if sum(batch.size for batch in self.waiting if batch.seq <= seq) > COMMIT_ROWS:
            self.full.set()

    async def commit(self) -> None:
        """Write the acknowledged prefix: rows and next offsets in one transaction. Call it under `disk`."""
        rows: list[Row] = []
        progress: dict[PartitionKey, store.Progress] = {}
        while self.waiting and self.waiting[0].seq <= self.acked_seq:
            batch = self.waiting.popleft()  # taken first: a cancelled await must not write it twice
            ours = {part.key: p for tp, (part, p) in batch.progress.items() if self.parts.get(tp) is part}
            progress |= ours
            if len(ours) == len(batch.progress):
                rows += batch.rows
            else:
                rows += [r for r in batch.rows if (r.origin.topic, r.origin.partition) in ours]
        self.full.clear()
        if progress:
            with self.busy("commit"):
                await self.on_writer(self.store.commit, store.Batch(rows=rows, progress=progress))
            self.unflushed += len(rows)
        self._look_for_room()

    async def due(self) -> None:
        """Wait for the next group commit: 200 ms, or a commit's worth of acknowledged rows."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.full.wait(), COMMIT_S)

    async def group_commit(self) -> None:
        """Commit what is acknowledged; the lake gets its rows every 100,000 without waiting for its time."""
        async with self.disk:
            await self.commit()
            if self.unflushed >= FLUSH_ROWS:
                await self._forget()
                await self._flush()

    async def flush(self) -> None:
        """Commit, then move what is committed to the lake and let the store forget what is old and flushed."""
        async with self.disk:
            await self.commit()
            await self._forget()
            await self._flush()

    async def _flush(self) -> None:
        self.unflushed = 0
        with self.busy("flush"):
            parts = list(self.parts.values())
            rows = await self.on_writer(self._committed, parts)
            for part in parts:
                await self.on_writer(self._flush_part, part, rows, list(part.open.sessions()))

    async def _forget(self) -> None:
        """Before anything goes to the lake: who was forgotten since then leaves memory and file."""
        users = self.told_forgotten()
        fresh = users - self.forgotten
        if not fresh:
            return
        self.forgotten = users
        for batch in self.waiting:
            batch.sessions = [session for session in batch.sessions if session.user_id not in fresh]
            batch.rows = [row for row in batch.rows if row.event.user_id not in fresh]
        for part in self.parts.values():
            part.open.forget(fresh)
            part.predicted.forget(fresh)
        self.erased |= dict.fromkeys(fresh, self.waiting[-1].seq if self.waiting else 0)
        await self.on_writer(self.store.forget, users)
        log.info("Forgotten users left the store.", users=len(fresh))

    def _committed(self, parts: list[Part]) -> dict[PartitionKey, pa.Table]:
        """What the store holds of these partitions and the lake does not: one reading is cheaper than one a part."""
        progress = self.store.progress()
        ranges = {part.key: (part.flushed, progress[part.key].next) for part in parts if part.key in progress}
        return self.store.flush_rows(ranges)

    def _flush_part(self, part: Part, rows: dict[PartitionKey, pa.Table], open_: list[Session]) -> None:
        progress = self.store.progress().get(part.key)
        if progress is None:
            return
        self._to_lake(part, rows[part.key], progress)
        before_ms = progress.watermark_ms - self.keep_ms
        keep = {(s.user_id, s.session_id) for s in open_ if s.first_ms < before_ms}  # the others have no row so old
        self.store.evict(part.key, before_ms, part.flushed, keep)

    def _to_lake(self, part: Part, rows: pa.Table, progress: store.Progress) -> None:
        self.lake.write(part.key, part.flushed, progress.next, rows, progress)
        part.flushed = max(part.flushed, progress.next)
        if part.raised_ms > progress.watermark_ms and part.read == progress.next:
            self.lake.note(part.key, progress, part.raised_ms)

    def raise_idle(self) -> None:
        """A partition without lag takes the largest watermark known: silence matures, a dead worker does not."""
        latest = max([self.heard_ms(), *(p.open.watermark_ms for p in self.parts.values())], default=0)
        for part in self.parts.values():
            if part.read >= part.end and not self.waiting:
                part.raised_ms = latest

    # ownership

    async def adopt(self, partitions: set[TP], bounds: Mapping[TP, tuple[int, int]]) -> dict[TP, int]:
        """The start rule: the larger of the store's offset and the lake's; a lake that is ahead replaces the store."""
        async with self.lock, self.disk:
            for tp in sorted(partitions - self.parts.keys()):
                self.parts[tp] = await self.on_writer(self._adopt, tp, *bounds[tp])
            for key in sorted(self.left - {part.key for part in self.parts.values()}):
                await self.on_writer(self.store.drop, key)  # others have them now
            self.left.clear()
            return {tp: self.parts[tp].read for tp in partitions}

    def _adopt(self, tp: TP, first: int, end: int) -> Part:
        key = PartitionKey(f"{tp.topic}@{self.log_ids[tp.topic]}", tp.partition)
        rule = start.Rule(store_=self.store, lake_=self.lake, settings=self.settings, keep_ms=self.keep_ms)
        found = rule.start(key, first, self.forgotten)
        progress = found.progress
        open_ = sessions.OpenSessions()
        open_.stored, open_.duplicates, open_.rejected = progress.stored, progress.duplicates, progress.rejected
        passed_ms = sessions.passed_ms(progress.watermark_ms, self.settings)
        sessions.restore(open_, self.store.rows(key, passed_ms), progress.watermark_ms, self.settings)
        part = Part(key=key, open=open_, read=progress.next, flushed=found.flushed, end=max(end, progress.next),
                    missing=found.missing)  # fmt: skip
        if first > part.read:
            self._pass_over(tp, part, first)
        log.info("Partition assigned.", topic=key.topic, partition=key.partition, start=part.read,
                 lake=found.flushed, open_sessions=len(open_))  # fmt: skip
        return part

    async def release(self, partitions: set[TP], *, drop: bool) -> None:
        """Commit, flush to the lake, and (on a revoke) drop what does not come back: its next owner has the lake."""
        async with self.lock, self.disk:
            await self.commit()
            await self._forget()
            gone = [self.parts.pop(tp) for tp in sorted(partitions & self.parts.keys())]
            rows = await self.on_writer(self._committed, gone)
            for part in gone:
                await self.on_writer(self._release, part, rows)
            if drop:
                self.left.update(part.key for part in gone)

    def _release(self, part: Part, rows: dict[PartitionKey, pa.Table]) -> None:
        progress = self.store.progress().get(part.key)
        if progress is not None:
            self._to_lake(part, rows[part.key], progress)
        log.info("Partition released.", topic=part.key.topic, partition=part.key.partition,
                 next=progress.next if progress else None)  # fmt: skip
