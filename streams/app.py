"""The Faust app of a worker: one agent that folds polls, one that scores behind a bounded channel, and the timers."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import time
import traceback
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import aiokafka
import faust
import msgspec
import structlog
from aiokafka import partitioner
from faust.types import TP
from kafka import errors

from featurestore import segments
from streams import codec, connection, ingest, score, topics, transport, watchdog

log = structlog.get_logger()

SESSION_TIMEOUT_S = 6.0
STALLED_LOOKS = 60  # one a second
METADATA_MS = 30_000  # how soon a partition that was added is found
LOGS_S = 30.0  # how often it is asked whether the topics are still the same
FETCH_BYTES = 256 * 1024  # of a partition at once: bounds a poll, and with it what waits for the scorer in memory
MAX_REQUEST = 2**31 - 1  # the topics' own limits hold
BATCH_BYTES = 256 * 1024  # of predictions in one record batch: a quarter of what a topic takes by default
STARTED_S = 30.0  # how long a broker is waited for that is away when something is to be sent first
PAUSE_S = 1.0
FULL_GC = 100  # collections of the middle generation until a full one, in place of 10: it walks all open sessions
KEPT_MS = 7 * topics.DAY_MS  # a dead letter older than this would soon be older than its topic keeps


class AppSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the Faust app is built from; `kafka` is a `Connection`, or plain `host:port[,host:port]`."""

    kafka: str | connection.Connection
    worker: str
    events: tuple[str, ...]
    predictions: str
    dead_letters: str
    state: str
    group: str = "nextclick"
    flush_s: float = 5.0
    data: Path = Path("store")


class Outlet:
    """The worker's producers: predictions, dead letters, beats."""

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self.producers: dict[str | None, Any] = {}  # by compression
        self.starting = asyncio.Lock()
        self.partition_of = partitioner.DefaultPartitioner()
        self.beating: asyncio.Future[Any] | None = None  # the newest beat, until the broker has it

    async def _started(self, compression: str | None = None) -> Any:
        async with self.starting:  # made on the running loop, at the first send
            if compression not in self.producers:
                producer = aiokafka.AIOKafkaProducer(  # no linger: what is sent together shares a request anyway
                    **connection.of(self.settings.kafka).for_aiokafka(), linger_ms=0, acks="all",
                    compression_type=compression, max_request_size=MAX_REQUEST, max_batch_size=BATCH_BYTES,
                )  # fmt: skip
                await _begun(producer)
                self.producers[compression] = producer
        return self.producers[compression]

    async def stop(self) -> None:
        for producer in self.producers.values():
            await producer.stop()

    async def predictions(self, messages: Sequence[tuple[bytes, bytes | None]]) -> list[asyncio.Future[Any]]:
        """Key and value of each, in order; None is a tombstone: it takes back what was said of that user.

        A record batch a partition, by Kafka's own partitioner: `send` would make a future of each and fill 16 KB.
        """
        producer, topic = await self._started(), self.settings.predictions
        partitions = sorted(await producer.partitions_for(topic))
        filled: list[tuple[int, Any]] = []
        open_: dict[int, Any] = {}
        for key, value in messages:
            partition = self.partition_of(key, partitions, partitions)
            batch = open_.get(partition)
            if batch is None or batch.append(key=key, value=value, timestamp=None) is None:  # none yet, or full
                batch = open_[partition] = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)  # the first one always fits
                filled.append((partition, batch))
        return [await producer.send_batch(batch, topic, partition=partition) for partition, batch in filled]

    async def dead_letter(self, dead: codec.DeadLetter) -> Any:
        age_ms = time.time() * 1000 - dead.timestamp_ms
        stamp = dead.timestamp_ms if dead.timestamp_ms >= 0 and age_ms < KEPT_MS else None  # else deleted at once
        sent = await self._dead_letter(dead.key, dead.value, dead.headers, stamp)
        return asyncio.ensure_future(self._kept(sent, dead))

    async def _dead_letter(
        self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]], stamp: int | None
    ) -> Any:
        """A value that is larger than a topic takes came compressed, and fits compressed."""
        packed = value is not None and len(value) > topics.MESSAGE_MAX_BYTES
        producer = await self._started("gzip" if packed else None)
        if value is not None or key is not None:
            return await producer.send(self.settings.dead_letters, value, key=key, headers=headers, timestamp_ms=stamp)
        batch = producer.create_batch()  # `send` takes no record without key and value
        batch.append(key=None, value=None, timestamp=stamp, headers=headers)
        return await producer.send_batch(batch, self.settings.dead_letters, partition=0)

    async def _kept(self, sent: Any, dead: codec.DeadLetter) -> None:
        """Where the topic refuses a dead letter it is kept with what the topic takes: it must not stop the worker."""
        try:
            await sent
        except aiokafka.errors.InvalidTimestampError:
            await (await self._dead_letter(dead.key, dead.value, dead.headers, None))
        except (aiokafka.errors.MessageSizeTooLargeError, aiokafka.errors.RecordListTooLargeError):
            size = len(dead.value or b"")
            log.error("A dead letter was larger than its topic takes and is kept without its value.", bytes=size,
                      max_message_bytes=topics.DEAD_LETTER_MAX_BYTES)  # fmt: skip
            headers = [*dead.headers, ("x-value-bytes", str(size).encode())]
            await (await self._dead_letter(dead.key, b"", headers, None))

    async def beat(self, value: bytes) -> None:
        """Send one unless the last is still on its way; one that is lost is said: the next one says more."""
        if self.beating is not None and not self.beating.done():
            return
        try:
            producer = await self._started()
            self.beating = await producer.send(self.settings.state, value, key=self.settings.worker.encode())
            self.beating.add_done_callback(_missed)
        except aiokafka.errors.KafkaError as error:
            log.warning("A beat was not sent; another one follows.", why=f"{type(error).__name__}: {error}")


def _missed(beat: asyncio.Future[Any]) -> None:
    if not beat.cancelled() and (error := beat.exception()) is not None:
        log.warning("A beat did not arrive; another one follows.", why=f"{type(error).__name__}: {error}")


async def _begun(producer: Any) -> None:
    """Start a producer; a broker that is away is waited for, for as long as an event may take to be delivered."""
    deadline = time.monotonic() + STARTED_S
    while True:
        try:
            await producer.start()
            return
        except aiokafka.errors.KafkaConnectionError as error:
            if time.monotonic() >= deadline:
                await producer.stop()
                raise
            log.warning("No broker answers; trying again.", why=str(error))
            await asyncio.sleep(PAUSE_S)


class LogMadeAnew(RuntimeError):
    """A topic was deleted and made anew while it was read: its offsets mean other records from now on."""


EXPECTED = (  # told without a traceback
    ingest.LogBehindProgress, ingest.UnreadableLog, ingest.WrongKeys, LogMadeAnew, topics.TopicUnusable,
    aiokafka.errors.KafkaError, segments.UnreadableSegment,
)  # fmt: skip

R = TypeVar("R")


def fail_stop(step: Callable[..., Awaitable[R]]) -> Callable[..., Coroutine[Any, Any, R]]:
    """An exception ends the process: a sink that failed must not be passed over."""

    @functools.wraps(step)
    async def stopping(*args: Any, **kwargs: Any) -> R:
        try:
            return await step(*args, **kwargs)
        except Exception as error:
            if not isinstance(error, EXPECTED):
                traceback.print_exc()
            log.error("Stopping; what was being worked on will be read again.", step=step.__name__,
                      why=f"{type(error).__name__}: {error}")  # fmt: skip
            os._exit(3)

    return stopping


def tell_other_logs(ingest_: ingest.Ingest) -> None:
    """Say where the folders hold other logs of a topic: another broker's, or the topic's before it was made anew."""
    known = {key.topic for key in (*ingest_.lake.keys(), *ingest_.store.progress())}
    for topic, log_id in ingest_.log_ids.items():
        others = sorted(k.partition("@")[2] for k in known if k.partition("@")[0] == topic and k != f"{topic}@{log_id}")
        if others:
            log.warning("The folders hold another log of this topic (of another broker, or from before it was made "
                        "anew): it stays as it is, and this log is read from its own start or progress.",
                        topic=topic, log=log_id, others=others)  # fmt: skip


async def same_logs(settings: AppSettings, log_ids: Mapping[str, str]) -> bool:
    """Whether the event topics' logs are those that were read so far; False where nobody answers, else it raises.

    A broker that goes down may hang up in the middle of a log-in: who was let in before does not stop for it.
    """
    try:
        found = await asyncio.to_thread(topics.log_ids, settings.kafka, settings.events)
    except (connection.BrokerUnreachable, connection.NotLetIn, errors.KafkaError) as error:
        log.warning("Nobody says just now whether the topics are still the same.", why=str(error))
        return False
    for topic in settings.events:
        if found[topic] != log_ids[topic]:
            raise LogMadeAnew(
                f"topic {topic} was made anew while it was read (its log was {log_ids[topic]} and is {found[topic]}): "
                "started again, the worker reads the new log from its start and leaves what it has of the old one"
            )
    return True


def credentials(kafka: connection.Connection) -> Any:
    """A connection as Faust wants it said; None where there is neither TLS nor a user."""
    if kafka.sasl:
        return faust.SASLCredentials(
            username=kafka.user, password=kafka.password, mechanism=kafka.mechanism, ssl_context=kafka.context()
        )
    return faust.SSLCredentials(kafka.context()) if kafka.tls else None


def calm_collector() -> None:
    """What was imported is left out of garbage collection (a tenth of a second each time), full ones come rarely."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_GC)


def build(
    settings: AppSettings,
    *,
    ingest_: ingest.Ingest,
    make_scorer: Callable[[Callable[[], bool]], score.Scorer],
    outlet: Outlet,
    beat: Callable[[], bytes],
    upkeep: Callable[[], Awaitable[None]],
) -> Any:
    """The app; `upkeep` runs every flush (swaps, following the lake), `beat` says how the worker is every second."""
    tell_other_logs(ingest_)
    app = faust.App(
        settings.group,
        broker="kafka://" + str(settings.kafka).replace(",", ";"),
        broker_credentials=credentials(connection.of(settings.kafka)),
        store="memory://",
        datadir=str(settings.data / f"{settings.worker}.faust"),
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=1,  # polls grow while a batch is worked on
        stream_wait_empty=False,
        consumer_max_fetch_size=FETCH_BYTES,
        consumer_metadata_max_age_ms=METADATA_MS,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=0.5,  # how soon the others hear that one has left
        broker_rebalance_timeout=10,
        broker_request_timeout=15,
    )
    bridge = transport.Transport(app.conf.broker, app, loop=None)
    bridge.event_topics = frozenset(settings.events)

    async def adopt(
        partitions: set[TP], bounds: Mapping[TP, tuple[int, int]], still: Callable[[], bool]
    ) -> dict[TP, int]:
        if partitions - ingest_.parts.keys():
            while still() and not await same_logs(settings, ingest_.log_ids):
                await asyncio.sleep(0.5)
        return await ingest_.adopt(partitions, bounds) if still() else {}  # locks are fair: a revoke comes after it

    async def unreadable(positions: Mapping[TP, int], why: str) -> None:
        await settle()
        at = ", ".join(f"{tp.topic}-{tp.partition} from offset {offset}" for tp, offset in positions.items())
        raise ingest.UnreadableLog(
            f"a batch of records cannot be read ({why}): {at}. Where a restart does not mend it the broker's file is "
            "damaged: delete the records up to the next sound batch (kafka-delete-records); what is missing is counted"
        )

    bridge.starts = cast(transport.Starts, SimpleNamespace(adopt=fail_stop(adopt), unreadable=fail_stop(unreadable)))
    app.transport = bridge
    scorer = make_scorer(lambda: time.monotonic() - bridge.heard_s < SESSION_TIMEOUT_S)
    events = app.topic(*settings.events, value_serializer="raw", key_serializer="raw")
    folded = app.channel(maxsize=0)  # numbers of batches; what holds ingest back is the room in its memory
    dog = watchdog.Watchdog(limit=STALLED_LOOKS)

    @app.agent(events, name="ingest")  # type: ignore[untyped-decorator]
    async def ingest_agent(stream: Any) -> None:
        since_s = time.perf_counter()
        async for event in stream.events():
            ingest_.busy.s["fetch"] += time.perf_counter() - since_s
            await take(event.value)
            since_s = time.perf_counter()

    @fail_stop
    async def take(poll: transport.Poll) -> None:
        batch = await ingest_.fold(poll)
        if batch is not None:
            await folded.send(value=batch.seq)
            await ingest_.room.wait()

    @app.agent(folded, name="score")  # type: ignore[untyped-decorator]
    async def score_agent(stream: Any) -> None:
        async for event in stream.events():
            if event.value > scorer.scored_seq:  # else it was scored together with an earlier one
                await tell()

    tell = fail_stop(scorer.score)

    @app.task  # type: ignore[untyped-decorator]
    @fail_stop
    async def commit(app: Any) -> None:
        while True:
            await ingest_.due()
            await ingest_.group_commit()

    @app.timer(settings.flush_s)  # type: ignore[untyped-decorator]
    @fail_stop
    async def flush(app: Any) -> None:
        await ingest_.flush()
        await upkeep()

    @app.timer(LOGS_S)  # type: ignore[untyped-decorator]
    @fail_stop
    async def look(app: Any) -> None:
        await same_logs(settings, ingest_.log_ids)

    @app.timer(1.0)  # type: ignore[untyped-decorator]
    @fail_stop
    async def heartbeat(app: Any) -> None:
        for tp in ingest_.parts:
            if (end := app.consumer.end(tp)) is not None:
                ingest_.hear_end(tp, end)
        ingest_.raise_idle()
        scorer.settle()
        watch()
        await outlet.beat(beat())

    def watch() -> None:
        """No progress while there is lag, for a minute that the process ran: stop, a restart may mend it."""
        done = (sum(part.read for part in ingest_.parts.values()), scorer.predictions, scorer.scored_seq)
        lag = any(part.end > part.read for part in ingest_.parts.values())
        if dog.stalled(done=done, lag=lag):
            log.error("Stopping: there is lag, and nothing was read or predicted for a minute.", read=done[0])
            os._exit(3)

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def revoked(app: Any, revoked: Any, **_: Any) -> None:
        await fail_stop(ingest_.release)(set(revoked), drop=True)

    async def settle() -> None:
        """Commit and flush what is acknowledged within 3 s."""
        deadline = time.monotonic() + 3
        while ingest_.waiting and ingest_.acked_seq < ingest_.waiting[-1].seq and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await fail_stop(ingest_.release)(set(ingest_.parts), drop=False)

    @app.on_before_shutdown.connect  # type: ignore[untyped-decorator]
    async def stopping(app: Any, **_: Any) -> None:
        await settle()
        await outlet.stop()

    return app
