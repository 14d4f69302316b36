"""The Faust app of a worker: one agent that folds polls, one that scores behind a bounded channel, and the timers."""

from __future__ import annotations

import asyncio
import functools
import os
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import aiokafka
import faust
import msgspec
import structlog

from streams import ingest, score, transport

log = structlog.get_logger()

SESSION_TIMEOUT_S = 6.0
STALLED_S = 60.0
MAX_REQUEST = 4 * 1024 * 1024


class AppSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the Faust app is built from; `kafka` is `host:port[,host:port]`."""

    kafka: str
    worker: str
    events: tuple[str, ...]
    predictions: str
    dead_letters: str
    state: str
    group: str = "nextclick"
    flush_s: float = 5.0
    data: Path = Path("store")


class Outlet:
    """The worker's producer: predictions, dead letters, beats."""

    def __init__(self, settings: AppSettings) -> None:
        self.settings = settings
        self.producer: Any = None
        self.starting = asyncio.Lock()

    async def _started(self) -> Any:
        async with self.starting:  # made on the running loop, at the first send
            if self.producer is None:
                producer = aiokafka.AIOKafkaProducer(
                    bootstrap_servers=self.settings.kafka, linger_ms=5, acks="all", max_request_size=MAX_REQUEST
                )
                await producer.start()
                self.producer = producer
        return self.producer

    async def stop(self) -> None:
        if self.producer is not None:
            await self.producer.stop()

    async def prediction(self, key: bytes, value: bytes) -> Any:
        return await (await self._started()).send(self.settings.predictions, value, key=key)

    async def dead_letter(self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes]]) -> Any:
        return await (await self._started()).send(self.settings.dead_letters, value, key=key, headers=headers)

    async def beat(self, value: bytes) -> None:
        await (await self._started()).send_and_wait(self.settings.state, value, key=self.settings.worker.encode())


def fail_stop(step: Callable[..., Awaitable[None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """An exception ends the process: a sink that failed must not be passed over."""

    @functools.wraps(step)
    async def stopping(*args: Any, **kwargs: Any) -> None:
        try:
            await step(*args, **kwargs)
        except Exception:
            log.exception("Stopping: a step failed; what it was working on will be read again.")
            os._exit(3)

    return stopping


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
    app = faust.App(
        settings.group,
        broker="kafka://" + settings.kafka.replace(",", ";"),
        store="memory://",
        datadir=str(settings.data / f"{settings.worker}.faust"),
        web_enabled=False,
        topic_disable_leader=True,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=1,  # polls grow while a batch is worked on
        stream_wait_empty=False,
        broker_session_timeout=SESSION_TIMEOUT_S,
        broker_heartbeat_interval=1.5,
        broker_rebalance_timeout=10,
        broker_request_timeout=15,
    )
    bridge = transport.Transport(app.conf.broker, app, loop=None)
    bridge.event_topics, bridge.starts = frozenset(settings.events), ingest_
    app.transport = bridge
    scorer = make_scorer(lambda: time.monotonic() - bridge.heard_s < SESSION_TIMEOUT_S)
    events = app.topic(*settings.events, value_serializer="raw", key_serializer="raw")
    folded = app.channel(maxsize=2)  # a full channel holds ingest back: lag grows, memory does not
    moved = {"at_s": time.monotonic(), "read": -1}

    @app.agent(events, name="ingest")  # type: ignore[untyped-decorator]
    async def ingest_agent(stream: Any) -> None:
        async for event in stream.events():
            await take(event.value)

    @fail_stop
    async def take(poll: transport.Poll) -> None:
        batch = await ingest_.fold(poll)
        if batch is not None:
            await folded.send(value=batch.seq)

    @app.agent(folded, name="score")  # type: ignore[untyped-decorator]
    async def score_agent(stream: Any) -> None:
        async for _ in stream.events():
            await tell()

    @fail_stop
    async def tell() -> None:
        await scorer.score()
        await ingest_.commit_if_due()

    @app.timer(ingest.COMMIT_S)  # type: ignore[untyped-decorator]
    @fail_stop
    async def commit(app: Any) -> None:
        await ingest_.commit_if_due()

    @app.timer(settings.flush_s)  # type: ignore[untyped-decorator]
    @fail_stop
    async def flush(app: Any) -> None:
        await ingest_.flush()
        await upkeep()

    @app.timer(1.0)  # type: ignore[untyped-decorator]
    @fail_stop
    async def heartbeat(app: Any) -> None:
        for tp, part in ingest_.parts.items():
            part.end = app.consumer.highwater(tp) or part.end
        ingest_.raise_idle()
        watch()
        await outlet.beat(beat())

    def watch() -> None:
        """No progress while there is lag, for a minute that the process ran: stop, a restart may mend it."""
        read = sum(part.read for part in ingest_.parts.values())
        lag = any(part.end > part.read + 1 for part in ingest_.parts.values())
        if read != moved["read"] or not lag:
            moved.update(at_s=0.0, read=read)
        else:
            moved["at_s"] += 1.0  # ticks, so that a frozen process is not blamed
        if moved["at_s"] > STALLED_S:
            log.error("Stopping: there is lag and nothing was read for a minute.", read=read)
            os._exit(3)

    @app.on_partitions_revoked.connect  # type: ignore[untyped-decorator]
    async def revoked(app: Any, revoked: Any, **_: Any) -> None:
        await fail_stop(ingest_.release)(set(revoked), drop=True)

    @app.on_before_shutdown.connect  # type: ignore[untyped-decorator]
    async def stopping(app: Any, **_: Any) -> None:
        deadline = time.monotonic() + 3
        while ingest_.waiting and ingest_.acked_seq < ingest_.waiting[-1].seq and time.monotonic() < deadline:
            await asyncio.sleep(0.05)
        await fail_stop(ingest_.release)(set(ingest_.parts), drop=False)
        await outlet.stop()

    return app
