"""A Faust transport that hands an agent whole polls and starts where the store says, not where the group says.

Seams of Faust 0.15.3, all in one `Consumer` and its thread: `getmany` (one message a poll), `perform_seek` (called
after every assignment, twice), `_new_offset` and `_add_gap` (the group's offset is for lag displays only).
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import structlog
from aiokafka import errors
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from streams import fetched

log = structlog.get_logger()


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """Records of one partition in one poll; `start` is the position that was fetched from, at or below the first."""

    start: int
    records: Sequence[Any]
    end: int = 0  # the log's end as the fetch told it: on Tansu the offset lookup tells less than there is
    expired: bool = False  # what lay before `start` was dropped by Kafka before it was fetched


Poll = dict[TP, Stretch]


class Starts(Protocol):
    """Who knows where a partition's reading starts."""

    async def adopt(
        self, partitions: set[TP], bounds: Mapping[TP, tuple[int, int]], still: Callable[[], bool]
    ) -> dict[TP, int]:
        """Own these partitions (some perhaps already) and say the offset to read each from; bounds: first, end.

        Nothing where they are not `still` assigned when their turn comes: another assignment follows.
        """

    async def unreadable(self, positions: Mapping[TP, int], why: str) -> None:
        """What lies behind one of these offsets cannot be read: does not return."""


class Consumer(driver.Consumer):  # type: ignore[misc]
    """One message a poll; its value is a `Poll`."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._fetched_to: dict[TP, int] = {}  # behind the last record that was handed on
        self._seeking = self._sought = 0  # so many are setting positions now, and did
        self._unset = False  # whether the last of them was cut short
        self.revocations = 0  # tells whether what was assigned when one began to wait is assigned still
        self._passed: dict[TP, int] = {}  # as `_fetched_to`, what holds no record for us passed as well
        self._expired: set[TP] = set()  # where Kafka dropped records ahead of us, until a poll tells it

    def _ours(self, tp: TP) -> bool:
        return tp.topic in self.transport.event_topics

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        if self._unset and not self._seeking and self.flow_active:
            await self.perform_seek()  # Faust gives it no longer than a request, and reads on from anywhere
        sought = self._sought
        polled, active = await self._fetched(timeout)
        generation = self.app.consumer_generation_id
        if polled is None or self.should_stop:
            return
        if not self.flow_active or self._seeking or self._unset or self._sought != sought:
            await self.perform_seek()  # fetched before or while positions were set: it may begin anywhere
            return
        for tp in filter(self._ours, self.assignment()):
            self._passed[tp] = self._thread.position_now(tp)
        poll: Poll = {}
        for tp, records in polled.items():
            if not records:
                continue
            if self._ours(tp):
                self._fetched_to[tp] = records[-1].offset + 1
                poll[tp] = Stretch(
                    start=records.start, records=records, end=self.end(tp) or 0, expired=tp in self._expired
                )  # fmt: skip
                self._expired.discard(tp)
            elif active is None or tp in active:
                for record in records:
                    yield tp, self._to_message(tp, record)
        if poll and self.flow_active and self.app.consumer_generation_id == generation:
            tp, stretch = next(reversed(poll.items()))
            message = self._to_message(tp, stretch.records[-1])
            message.value = poll
            self._read_offset[tp] = None  # else Faust may drop the whole poll for this one offset
            yield tp, message

    async def _fetched(self, timeout: float) -> Any:
        """What the next poll brings; nothing where a partition's position was at fault."""
        try:
            return await self._wait_next_records(timeout)
        except errors.NoOffsetForPartitionError:
            pass  # the group knows none: `perform_seek` says where to begin
        except errors.OffsetOutOfRangeError as error:
            await self._begin_again(error.args[0])
        except errors.CorruptRecordException as error:  # what was polled with it is lost
            if self._thread.one_by_one():
                await self.seek_wait({tp: self._fetched_to[tp] for tp in self.assignment() if tp in self._fetched_to})
            else:
                at = {tp: self._fetched_to.get(tp, 0) for tp in self.assignment() if _named(tp) in str(error)}
                await self.transport.starts.unreadable(at, str(error))
        return None, None

    async def _begin_again(self, positions: Mapping[TP, int]) -> None:
        """Kafka no longer holds these offsets: go on from the log's start and let the next poll tell.

        A position above the log's end goes there too: a poll that begins below what was read is fail-stop.
        """
        ours = {TP(*tp): at for tp, at in positions.items()}
        for tp, first in (await self.earliest_offsets(*ours)).items():
            await self.seek_wait({tp: first})
            if first > ours[tp]:
                self._expired.add(tp)
                self._fetched_to[tp] = first

    def end(self, tp: TP) -> int | None:
        """Behind the last record that this partition has for us, as fetches told it; None before the first.

        Transaction markers, aborted and compacted records at the log's end are no lag: the position has passed them.
        """
        end: int | None = self._thread.stable_end(tp)
        if end is None or self._passed.get(tp, -1) < end:
            return end
        return min(end, self._fetched_to.get(tp, end))

    def on_buffer_full(self, tp: TP) -> None:
        """Ours are held back by the stream's queue of one poll; no partition is paused for it.

        Faust would pause the poll's last one at every poll, and a record that lies fetched for a paused partition keeps
        aiokafka from asking its broker for any other, for 100 ms.
        """
        if not self._ours(tp):
            super().on_buffer_full(tp)

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        self.revocations += 1  # before anybody who waits for it is told
        await super().on_partitions_revoked(revoked)

    async def perform_seek(self) -> None:
        before = self.revocations

        def still() -> bool:
            return self.revocations == before and not self.app.should_stop

        self._seeking += 1
        self._unset = True
        try:
            await self._seek_ours(still)
            self._unset = False
        except errors.KafkaError as error:  # the broker went, or took partitions away before anybody was told
            if not (error.retriable or isinstance(error, errors.IllegalStateError)):
                raise
            log.info("Where reading begins could not be set; the next poll tries again.", why=str(error))
        finally:
            self._seeking -= 1
            self._sought += 1

    async def _seek_ours(self, still: Callable[[], bool]) -> None:
        await super().perform_seek()  # other topics: the committed offset
        ours = {tp for tp in self.assignment() if self._ours(tp)}
        if not ours:
            return
        first = await self.earliest_offsets(*ours)
        ends = await self.highwaters(*ours)
        bounds = {tp: (first[tp] or 0, ends[tp] or 0) for tp in ours}
        positions = await self.transport.starts.adopt(ours, bounds, still)
        await self.seek_wait(positions)
        for tp, offset in positions.items():
            self._fetched_to[tp] = offset
            self._passed.pop(tp, None)
            self._expired.discard(tp)
            self._read_offset[tp] = offset - 1 if offset else None
            self._committed_offset[tp] = offset or None

    def _new_offset(self, tp: TP) -> int | None:
        if not self._ours(tp):
            return super()._new_offset(tp)  # type: ignore[no-any-return]
        acked = self._acked[tp]
        if not acked:
            return None
        last = max(acked)
        acked.clear()
        self._acked_index[tp].clear()
        return int(last) + 1

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        if not self._ours(tp):
            await super()._add_gap(tp, offset_from, offset_to)

    def _new_consumer_thread(self) -> ConsumerThread:
        return ConsumerThread(self, loop=self.loop, beacon=self.beacon)


def _named(tp: TP) -> str:
    """A partition as aiokafka's errors name it."""
    return f"topic={tp.topic!r}, partition={tp.partition})"


class ConsumerThread(driver.AIOKafkaConsumerThread):  # type: ignore[misc]
    """Reads committed records only, answers a waiting fetch soon, and notes when the group last heard of us."""

    def _create_worker_consumer(self, transport: Any) -> Any:
        consumer = super()._create_worker_consumer(transport)
        consumer._isolation_level = "read_committed"  # Faust says read_uncommitted unless it is exactly_once
        consumer._fetch_max_wait_ms = 50
        consumer._auto_offset_reset = "none"  # else what retention took ahead of us looks like a legal hole
        return consumer

    def one_by_one(self) -> bool:
        """From now on a poll is one record, so that all that lies before a damaged batch comes; whether that is new."""
        consumer = self._ensure_consumer()
        before, consumer._max_poll_records = consumer._max_poll_records, 1
        return bool(before != 1)

    def position_now(self, tp: TP) -> int:
        """Where the next fetch begins; -1 where the partition is not read."""
        state = self._state(tp)
        return state.position if state is not None and state.has_valid_position else -1

    def stable_end(self, tp: TP) -> int | None:
        """The end of what is committed, as the last fetch told it; of the log on brokers without transactions."""
        state = self._state(tp)
        if state is None:
            return None
        end: int | None = state.highwater if state.lso is None or state.lso < 0 else state.lso
        return end

    def _state(self, tp: TP) -> Any:
        assignment = getattr(self._ensure_consumer()._subscription.subscription, "assignment", None)
        return assignment.state_value(tp) if assignment is not None and tp in assignment.tps else None

    async def on_start(self) -> None:
        await super().on_start()
        fetched.make_small(self._ensure_consumer())
        transport = self.consumer.transport
        transport.heard_s = time.monotonic()

    async def subscribe(self, topics: Any) -> None:
        await super().subscribe(topics)
        coordinator, transport = self._consumer._coordinator, self.consumer.transport
        beat = coordinator._do_heartbeat

        async def noted() -> Any:
            sent_s = time.monotonic()
            ok = await beat()
            if ok:
                transport.heard_s = sent_s
            return ok

        coordinator._do_heartbeat = noted


class Transport(driver.Transport):  # type: ignore[misc]
    """Set as `app.transport`; `event_topics` are read in whole polls from where `starts` says."""

    Consumer = Consumer
    event_topics: frozenset[str] = frozenset()
    starts: Starts
    heard_s: float = 0.0  # monotonic instant of the newest heartbeat that the group answered
