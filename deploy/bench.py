"""How long from an event to its prediction: open loop, in turns with a plain aiokafka echo of the same sizes."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import statistics
import sys
import tempfile
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import orjson

from deploy import broker
from deploy.demo import shop
from deploy.settings import Settings, from_arguments
from deploy.supervisor import last_words
from streams import control, topics
from streams.connection import Connection

USERS = 10_000  # far enough apart that a person's events seldom meet in one batch
WARM = 4_000  # events before the first turn, so that the memory has something to say
READY_S = 180.0
SILENT_S = 20.0  # no answer for so long: what is missing does not come any more
BEHIND_S = 1.0  # an event that waits for longer when sending ends ...
BEHIND_SHARE = 0.01  # ... is one too many from this share of a turn on
LATE_S = 0.1  # a generator later than this did not offer its rate
STAGES = {
    "fetch": "fetch: waiting for records", "fold": "fold: decode and sessions", "predict": "predict",
    "send": "send: encode and produce", "ack": "ack: waiting for the broker", "commit": "commit: DuckDB",
    "flush": "flush: the lake",
}  # fmt: skip


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What is measured: rates in events a second, each for `seconds` a turn, `rounds` turns of either."""

    rates: tuple[int, ...] = (200, 1_000, 3_000)
    seconds: float = 10.0
    rounds: int = 3
    model: str | None = None


class Turn(msgspec.Struct, kw_only=True):
    """One rate offered for a while to one of the two, and what came back."""

    who: str
    rate: int
    sent: int = 0
    answered: int = 0
    behind: int = 0  # unanswered for more than `BEHIND_S` when sending ended
    late_ms: float = 0.0  # p99 of how late the generator was: counted in the latencies
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    max_ms: float = 0.0
    busy_s: dict[str, float] = {}  # what the worker's beats say of its stages
    latencies_ms: list[float] = []

    @property
    def offered(self) -> bool:
        """Whether the generator kept its schedule."""
        return self.late_ms < LATE_S * 1000

    @property
    def sustained(self) -> bool:
        """Whether what was offered was kept up with."""
        return self.behind <= self.sent * BEHIND_SHARE and self.answered == self.sent


class Ledger:
    """Which events of a turn wait for an answer; an answer to one answers the earlier ones of its user.

    >>> ledger = Ledger(rate=10, start_s=100.0)
    >>> ledger.answer(USERS + 3, 100.5 + USERS / 10)
    >>> [round(ms) for ms in ledger.latencies_ms]
    [1000200, 200]
    """

    def __init__(self, *, rate: int, start_s: float) -> None:
        self.rate, self.start_s = rate, start_s
        self.answered: dict[int, int] = {}  # user: the next event of this user that waits
        self.latencies_ms: list[float] = []
        self.last_s = start_s

    def scheduled_s(self, i: int) -> float:
        """When event i is due, whatever happened to those before it."""
        return self.start_s + i / self.rate

    def answer(self, i: int, now_s: float) -> None:
        """An answer came: to event i and to its user's events before it."""
        user = i % USERS
        for j in range(self.answered.get(user, user), i + 1, USERS):
            self.latencies_ms.append((now_s - self.scheduled_s(j)) * 1000)
        self.answered[user] = max(self.answered.get(user, user), i + USERS)
        self.last_s = now_s

    def behind(self, sent: int, now_s: float) -> int:
        """How many of those sent wait for longer than `BEHIND_S`."""
        due = min(sent, max(0, int((now_s - BEHIND_S - self.start_s) * self.rate)))
        return sum(len(range(self.answered.get(user, user), due, USERS)) for user in range(min(USERS, due)))


class _Trigger(msgspec.Struct):
    event_id: str


class _Answer(msgspec.Struct):
    """The one field of a prediction (or of an echo) that is looked at."""

    trigger: _Trigger


_answer = msgspec.json.Decoder(_Answer).decode


class Side:
    """A worker or an echo as the bench sees it: a topic in, a topic out."""

    def __init__(self, who: str, topic: str, producer: Any, consumer: Any, events: Events) -> None:
        self.who, self.topic, self.producer, self.consumer, self.events = who, topic, producer, consumer, events
        self.ledgers: dict[str, Ledger] = {}
        self.turns = 0
        self.sizes: deque[int] = deque(maxlen=1_000)

    async def read(self) -> None:
        """Take what comes back, for as long as the bench runs."""
        while True:
            polled = await self.consumer.getmany(timeout_ms=200)
            now_s = time.monotonic()
            for records in polled.values():
                for record in records:
                    if record.value is not None:
                        self.sizes.append(len(record.value))
                        turn, _, i = _answer(record.value).trigger.event_id.rpartition("-")
                        if turn in self.ledgers:
                            self.ledgers[turn].answer(int(i), now_s)

    async def turn(self, rate: int, seconds: float, busy: Callable[[], Mapping[str, float]]) -> Turn:
        """Offer a rate for so long, then wait for what is still to come."""
        self.turns += 1
        name = f"{self.who}{self.turns}"
        self.ledgers = {name: (ledger := Ledger(rate=rate, start_s=time.monotonic() + 0.05))}
        turn, before, total, i, late = Turn(who=self.who, rate=rate), busy(), int(rate * seconds), 0, []
        while i < total:
            now_s = time.monotonic()
            due = min(total, int((now_s - ledger.start_s) * rate) + 1)
            while i < due:
                late.append(time.monotonic() - ledger.scheduled_s(i))
                user, value = self.events.event(name, i)
                await self.producer.send(self.topic, value, key=user)
                i += 1
            await asyncio.sleep(max(0.001, ledger.scheduled_s(i) - time.monotonic()))
        end_s = ledger.last_s = time.monotonic()
        turn.sent, turn.behind, turn.late_ms = total, ledger.behind(total, end_s), quantile(late, 0.99) * 1000
        while len(ledger.latencies_ms) < total and time.monotonic() - ledger.last_s < SILENT_S:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.1)  # the beat that tells of the last batch
        turn.busy_s = {k: round(v - before.get(k, 0.0), 3) for k, v in busy().items()}
        turn.latencies_ms = ledger.latencies_ms
        turn.answered = len(ledger.latencies_ms)
        turn.p50_ms, turn.p99_ms = quantile(turn.latencies_ms, 0.5), quantile(turn.latencies_ms, 0.99)
        turn.max_ms = max(turn.latencies_ms, default=0.0)
        return turn


class Events:
    """Views of the demo shop's items, each with the turn and its number as its id."""

    def __init__(self) -> None:
        items = [item for shelf in shop.catalogue().values() for item in shelf]
        self.fields = [orjson.dumps(msgspec.to_builtins(item) | {"currency": "EUR"})[1:] for item in items]

    def event(self, turn: str, i: int) -> tuple[bytes, bytes]:
        """Key and value: a person walks along one shelf of the shop."""
        user = i % USERS
        fields = self.fields[(user * 36 + i // USERS + i % 7) % len(self.fields)]
        head = f'{{"event_id":"{turn}-{i}","type":"view","user_id":"b{user}","ts":{int(time.time() * 1000)},'
        return b"b%d" % user, head.encode() + fields


# ---------------------------------------------------------------- the run


def run(settings: Settings, plan: Plan, say: Callable[[str], None], *, embedded: bool) -> dict[str, Any]:
    """Measure on `settings.kafka`, or on a broker of its own; topics and folders are the bench's and go with it."""
    with tempfile.TemporaryDirectory(prefix="nextclick-bench-") as folder:
        if not embedded:
            return asyncio.run(_measure(settings, plan, say, Path(folder)))
        with broker.embedded(port=0) as own:
            return asyncio.run(_measure(settings.changed(kafka=own.address), plan, say, Path(folder)))


async def _measure(settings: Settings, plan: Plan, say: Callable[[str], None], folder: Path) -> dict[str, Any]:
    tag = f"bench-{uuid.uuid4().hex[:8]}"
    said = {f"topics__{t}": f"{tag}-{t}" for t in ("events", *TOPICS)}
    said |= {"shared": str(folder / "shared"), "store__folder": str(folder / "store"), "worker": "bench", "http": ""}
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
            events = Events()
            producer = aiokafka.AIOKafkaProducer(**mine.kafka.for_aiokafka(), linger_ms=0, acks="all")
            await stack.enter_async_context(producer)
            worker = await _side(stack, "worker", mine, names, producer, events)
            await _warm(worker, beats, plan.model, children[0], log, say)
            size = round(statistics.mean(worker.sizes))
            command = [sys.executable, "-m", "deploy.bench", *_ends(echoed), str(size), *mine.options()]
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
    return result(turns, plan, version=version, prediction_bytes=size, event_bytes=len(events.event("worker1", 1)[1]))


TOPICS = ("items", "dead_letters", "predictions", "control", "state")


def _ends(names: topics.Topics) -> tuple[str, str]:
    return names.events[0], names.predictions


def _bring(shared: Path, mine: Settings, version: str) -> None:
    """Let the bench's worker answer with a version of the shared folder."""
    source = shared / "versions" / version
    if not (source / "digest").is_file():
        raise FileNotFoundError(f"there is no version {version} in {shared}; `nextclick models list` names those")
    shutil.copytree(source, mine.shared / "versions" / version)
    if (shared / "encoders").is_dir():
        (mine.shared / "encoders").symlink_to((shared / "encoders").resolve())
    writer = control.ControlWriter(mine.kafka, topic=mine.topics().control)
    writer.append("model.promote", {"version": version}, by="bench")
    writer.close()


async def _side(
    stack: contextlib.AsyncExitStack, who: str, settings: Settings, names: topics.Topics, producer: Any, events: Events
) -> Side:
    consumer = await _reader(stack, settings.kafka, names.predictions)
    side = Side(who, names.events[0], producer, consumer, events)
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
    side: Side, beats: _Beats, model: str | None, process: Any, log: Path, say: Callable[[str], None]
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


async def _answering(side: Side, process: Any, log: Path) -> None:
    end_s = time.monotonic() + READY_S
    while not (await side.turn(100, 1, dict)).answered:
        if process.poll() is not None or time.monotonic() > end_s:
            raise broker.BrokerError(f"the bench's echo does not answer: {last_words(log)}")
    await side.turn(100, 2, dict)


async def _turns(plan: Plan, worker: Side, echo: Side, beats: _Beats, say: Callable[[str], None]) -> list[Turn]:
    turns: list[Turn] = []
    for rate in plan.rates:
        for number in range(plan.rounds):
            pair = ((worker, beats.busy), (echo, dict)) if number % 2 == 0 else ((echo, dict), (worker, beats.busy))
            for side, busy in pair:
                turn = await side.turn(rate, plan.seconds, busy)
                turns.append(turn)
                say(line(turn))
    return turns


def _remove(kafka: Connection, names: Sequence[str]) -> None:
    from kafka.admin import KafkaAdminClient

    with contextlib.suppress(Exception):  # the broker of its own ends anyway
        admin = KafkaAdminClient(**kafka.for_kafka_python())
        admin.delete_topics(list(dict.fromkeys(names)))
        admin.close()


# ---------------------------------------------------------------- what came out


def line(turn: Turn) -> str:
    """One turn in one line."""
    told = f"{turn.who:<6} {turn.rate:>6,}/s  p50 {turn.p50_ms:8.1f} ms  p99 {turn.p99_ms:8.1f} ms"
    if not turn.offered:
        told += f"  the generator was late (p99 {turn.late_ms:.0f} ms)"
    if not turn.sustained:
        told += f"  NOT SUSTAINED: {turn.behind:,} of {turn.sent:,} behind when sending ended"
        told += f", {turn.sent - turn.answered:,} never answered" if turn.answered < turn.sent else ""
        told += f"; {bottleneck(turn)}" if turn.who == "worker" else ""
    return told


def bottleneck(turn: Turn) -> str:
    """The stage that took most of the turn.

    >>> bottleneck(Turn(who="worker", rate=9, busy_s={"fold": 1.0, "predict": 8.0, "fetch": 9.0}))
    'most of the time went into predict (8.0 s)'
    """
    working = {stage: s for stage, s in turn.busy_s.items() if stage != "fetch"}
    if not working:
        return "the worker's beats do not tell its stages"
    stage = max(working, key=working.__getitem__)
    return f"most of the time went into {STAGES.get(stage, stage)} ({working[stage]:.1f} s)"


def result(turns: Sequence[Turn], plan: Plan, **said: Any) -> dict[str, Any]:
    """All turns, and for each rate the worker beside the echo; a rate that was not sustained has no latency."""
    rates = []
    for rate in plan.rates:
        mine, theirs = ([t for t in turns if t.rate == rate and t.who == who] for who in ("worker", "echo"))
        held = all(t.sustained and t.offered for t in mine)
        entry: dict[str, Any] = {"rate": rate, "sustained": held}
        for who, of in (("worker", mine), ("echo", theirs)):
            pooled = [ms for t in of for ms in t.latencies_ms]
            entry[who] = {"p50_ms": round(quantile(pooled, 0.5), 2), "p99_ms": round(quantile(pooled, 0.99), 2)}
        entry["ratio"] = {k: round(entry["worker"][k] / entry["echo"][k], 2) if entry["echo"][k] else None
                          for k in ("p50_ms", "p99_ms")}  # fmt: skip
        if not held:
            worst = max(mine, key=lambda t: t.behind)
            entry["why"] = bottleneck(worst) if worst.offered else "the generator did not keep its schedule"
        rates.append(entry)
    plainly = [{k: v for k, v in msgspec.to_builtins(t).items() if k != "latencies_ms"} for t in turns]
    return {**said, "seconds_a_turn": plan.seconds, "rounds": plan.rounds, "rates": rates, "turns": plainly}


def table(told: dict[str, Any]) -> Iterator[str]:
    """The result as people read it."""
    yield (f"model {told['version']}, events of {told['event_bytes']} bytes, predictions of {told['prediction_bytes']};"
           f" {told['rounds']} turns of {told['seconds_a_turn']:g} s each")  # fmt: skip
    for rate in told["rates"]:
        worker, echo, ratio = rate["worker"], rate["echo"], rate["ratio"]
        yield (f"{rate['rate']:>6,}/s  event to prediction p50 {worker['p50_ms']:.1f} ms, p99 {worker['p99_ms']:.1f} "
               f"ms; echo {echo['p50_ms']:.1f} and {echo['p99_ms']:.1f}; ratio {ratio['p50_ms']} and "
               f"{ratio['p99_ms']}" + ("" if rate["sustained"] else f"  NOT SUSTAINED: {rate['why']}"))  # fmt: skip


def quantile(values: Sequence[float], share: float) -> float:
    """The nearest-rank quantile; 0 of nothing.

    >>> quantile([3, 1, 2, 4], 0.5), quantile([], 0.5)
    (2, 0.0)
    """
    ranked = sorted(values)
    return ranked[math.ceil(share * len(ranked)) - 1] if ranked else 0.0


# ---------------------------------------------------------------- the echo


async def _echo(kafka: Connection, source: str, sink: str, size: int) -> None:
    """One record of `size` bytes for each that comes, acknowledged before the next poll is taken: nothing else."""
    consumer = aiokafka.AIOKafkaConsumer(
        source, **kafka.for_aiokafka(), group_id=source, auto_offset_reset="earliest", fetch_max_wait_ms=50,
        session_timeout_ms=6_000, heartbeat_interval_ms=1_500,
    )  # fmt: skip
    producer = aiokafka.AIOKafkaProducer(**kafka.for_aiokafka(), linger_ms=0, acks="all")
    async with consumer, producer:
        while True:
            polled = await consumer.getmany(timeout_ms=1_000)
            sends = []
            for record in (record for records in polled.values() for record in records):
                event_id = orjson.loads(record.value)["event_id"]
                head = b'{"trigger":{"event_id":"%s"},"pad":"' % event_id.encode()
                value = head + b"x" * max(0, size - len(head) - 2) + b'"}'
                sends.append(await producer.send(sink, value, key=record.key))
            await asyncio.gather(*sends)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        said = from_arguments(sys.argv[4:], os.environ)
        asyncio.run(_echo(said.kafka, sys.argv[1], sys.argv[2], int(sys.argv[3])))
