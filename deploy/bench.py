"""How long from an event to its prediction: open loop, in turns with a plain aiokafka echo of the same sizes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import orjson

from deploy import broker, probe, timings
from deploy.settings import Settings
from deploy.supervisor import last_words
from streams import control, topics
from streams.connection import Connection

WARM = 4_000  # events before the first turn, so that the memory has something to say
READY_S = 180.0


def run(settings: Settings, plan: timings.Plan, say: Callable[[str], None], *, embedded: bool) -> dict[str, Any]:
    """Measure on `settings.kafka`, or on a broker of its own; topics and folders are the bench's and go with it."""
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        if not embedded:
            return asyncio.run(_measure(settings, plan, say, Path(folder)))
        with broker.embedded(port=0) as own:
            return asyncio.run(_measure(settings.changed(kafka=own.address), plan, say, Path(folder)))


async def _measure(settings: Settings, plan: timings.Plan, say: Callable[[str], None], folder: Path) -> dict[str, Any]:
    tag = f"bench-{uuid.uuid4().hex[:8]}"
    said = {f"topics__{t}": f"{tag}-{t}" for t in ("events", *TOPICS)}
    said |= {"shared": str(folder / "shared"), "store__folder": str(folder / "store"), "worker": "bench", "http": ""}
    said |= {"bots__pace": "0s"}  # its users are faster than people at a high rate
    mine = settings.changed(**said)
    names = mine.topics()
    echoed = msgspec.structs.replace(names, events=(f"{tag}-echo-in",), predictions=f"{tag}-echo-out")
    topics.ensure(mine.kafka, names)
    topics.ensure(mine.kafka, echoed)
    if plan.model is not None:
        _bring(settings.shared, mine, plan.model)
    children: list[Any] = []
    try:
        log = folder / "worker.log"
        children.append(broker.spawn([sys.executable, "-m", "deploy.worker", *mine.options()], log,
                                     mine.secrets()))  # fmt: skip
        async with contextlib.AsyncExitStack() as stack:
            beats = await stack.enter_async_context(_beats(mine))
            events = probe.Events()
            producer = aiokafka.AIOKafkaProducer(**mine.kafka.for_aiokafka(), linger_ms=0, acks="all")
            await stack.enter_async_context(producer)
            worker = await _side(stack, "worker", mine, names, producer, events)
            await _warm(worker, beats, plan.model, children[0], log, say)
            size = round(statistics.mean(worker.sizes))
            command = [sys.executable, "-m", "deploy.echo", *_ends(echoed), str(size), *mine.options()]
            children.append(broker.spawn(command, folder / "echo.log", mine.secrets()))
            echo = await _side(stack, "echo", mine, echoed, producer, events)
            await _answering(echo, children[1], folder / "echo.log")
            turns = await _turns(plan, worker, echo, beats, say)
            version = beats.newest.get("version")
            for child in children:
                if child.poll() is not None:
                    raise broker.BrokerError(f"a process of the bench ended: {last_words(log)}")
    finally:
        for child in children:
            child.send_signal(signal.SIGTERM)
        for child in children:
            with contextlib.suppress(Exception):
                child.wait(15)
            if child.poll() is None:
                child.kill()
        _remove(mine.kafka, [*topics.shapes(names), *echoed.events, echoed.predictions])
    return timings.result(
        turns, plan, version=version, prediction_bytes=size, event_bytes=len(events.event("worker1", 1)[1])
    )


TOPICS = ("items", "dead_letters", "predictions", "control", "state")


def _ends(names: topics.Topics) -> tuple[str, str]:
    return names.events[0], names.predictions


def lend(shared: Path, to: Path, version: str) -> None:
    """A version with its encoder, and the vectors that are there: a worker would embed the whole shop anew."""
    source = shared / "versions" / version
    if not (source / "digest").is_file():
        raise FileNotFoundError(f"there is no version {version} in {shared}; `nextclick models list` names those")
    shutil.copytree(source, to / "versions" / version)
    if (shared / "encoders").is_dir():
        (to / "encoders").symlink_to((shared / "encoders").resolve())
    for shard in (shared / "vectors").glob("*/*.parquet"):  # one by one: what the worker adds stays its own
        mine = to / shard.relative_to(shared)
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.symlink_to(shard.resolve())


def _bring(shared: Path, mine: Settings, version: str) -> None:
    """Let the bench's worker answer with a version of the shared folder."""
    lend(shared, mine.shared, version)
    writer = control.ControlWriter(mine.kafka, topic=mine.topics().control)
    writer.append("model.promote", {"version": version}, by="bench")
    writer.close()


async def _side(
    stack: contextlib.AsyncExitStack,
    who: str,
    settings: Settings,
    names: topics.Topics,
    producer: Any,
    events: probe.Events,
) -> probe.Side:
    consumer = await _reader(stack, settings.kafka, names.predictions)
    side = probe.Side(who, names.events[0], producer, consumer, events)
    reading = asyncio.create_task(side.read())
    stack.callback(reading.cancel)
    return side


async def _reader(stack: contextlib.AsyncExitStack, kafka: Connection, topic: str) -> Any:
    """Everything in a topic from its start, without a group."""
    consumer = aiokafka.AIOKafkaConsumer(
        topic, **kafka.for_aiokafka(), enable_auto_commit=False, auto_offset_reset="earliest", fetch_max_wait_ms=50
    )
    await stack.enter_async_context(consumer)
    return consumer


class _Beats:
    """The newest beat of the bench's worker."""

    def __init__(self, consumer: Any) -> None:
        self.consumer = consumer
        self.newest: dict[str, Any] = {}

    async def read(self) -> None:
        while True:
            for records in (await self.consumer.getmany(timeout_ms=200)).values():
                for record in records:
                    self.newest = orjson.loads(record.value or b"{}") or self.newest

    def busy(self) -> Mapping[str, float]:
        """Seconds of each stage since the worker started; empty where the beats do not tell."""
        return dict(self.newest.get("busy_s") or {})


@contextlib.asynccontextmanager
async def _beats(settings: Settings) -> AsyncIterator[_Beats]:
    async with contextlib.AsyncExitStack() as stack:
        beats = _Beats(await _reader(stack, settings.kafka, settings.topics().state))
        reading = asyncio.create_task(beats.read())
        stack.callback(reading.cancel)
        yield beats


async def _warm(
    side: probe.Side, beats: _Beats, model: str | None, process: Any, log: Path, say: Callable[[str], None]
) -> None:
    """Until the worker answers, with the model that was asked for."""
    say("a worker starts and warms up")
    end_s = time.monotonic() + READY_S
    for i in range(WARM):
        user, value = side.events.event("warm", i)
        await side.producer.send(side.topic, value, key=user)
    await side.producer.flush()

    def ready() -> bool:
        caught_up = beats.newest.get("events", 0) >= WARM and not beats.newest.get("lag", 1)
        return bool(side.sizes) and caught_up and model in (None, beats.newest.get("version"))

    while not ready():
        if process.poll() is not None or time.monotonic() > end_s:
            raise broker.BrokerError(f"the bench's worker does not answer: {last_words(log)}")
        await asyncio.sleep(0.2)
    for _ in range(2):  # the first batches of a process pay for what is loaded late
        await side.turn(100, 2, beats.busy)


async def _answering(side: probe.Side, process: Any, log: Path) -> None:
    end_s = time.monotonic() + READY_S
    while not (await side.turn(100, 1, dict)).answered:
        if process.poll() is not None or time.monotonic() > end_s:
            raise broker.BrokerError(f"the bench's echo does not answer: {last_words(log)}")
    await side.turn(100, 2, dict)


async def _turns(
    plan: timings.Plan, worker: probe.Side, echo: probe.Side, beats: _Beats, say: Callable[[str], None]
) -> list[timings.Turn]:
    turns: list[timings.Turn] = []
    for rate in plan.rates:
        for number in range(plan.rounds):
            pair = ((worker, beats.busy), (echo, dict)) if number % 2 == 0 else ((echo, dict), (worker, beats.busy))
            for side, busy in pair:
                turn = await side.turn(rate, plan.seconds, busy)
                turns.append(turn)
                say(timings.line(turn))
    return turns


def _remove(kafka: Connection, names: Sequence[str]) -> None:
    from kafka.admin import KafkaAdminClient

    with contextlib.suppress(Exception):  # the broker of its own ends anyway
        admin = KafkaAdminClient(**kafka.for_kafka_python())
        admin.delete_topics(list(dict.fromkeys(names)))
        admin.close()
