"""Everything on one machine: broker, topics, worker, trainer and input under one supervisor, told in plain lines."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import orjson

from deploy import broker, health, history, replay, verdicts
from deploy.demo import scenarios, shop
from deploy.settings import Settings, written
from deploy.supervisor import Child, Supervisor
from featurestore import database, lake
from streams import control, quality, topics

READY_S = 120.0
DRAIN_S = 90.0
LINE_S = 5.0
SIGNALLED_S = 5.0  # who presses ctrl-C does not wait for a broker that is gone
QUIET_S = 15.0  # longer than a worker needs to come back


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: which input, how long, and how to tell."""

    replay: Path | None = None
    speed: float | None = None
    simulate: bool = False
    rate: float = 30.0
    users: int = 2_000
    seed: int = 7
    scenario: str = "usual"
    history_ms: int = 0
    for_ms: int | None = None
    json: bool = False


class NotReady(RuntimeError):
    """The worker did not become ready in time, or kept failing; the message names its log."""


class Watch:
    """What can be seen from outside: beats, predictions, dead letters."""

    def __init__(self, settings: Settings, *, from_start: bool) -> None:
        self.settings, self.names, self.from_start = settings, settings.topics(), from_start
        self.beats: dict[str, dict[str, Any]] = {}
        self.predictions = self.dead_letters = self.recent = 0
        self.newest: dict[str, tuple[int, int]] = {}  # user -> (partition, offset) of the newest trigger
        self.unanswered: dict[bytes, tuple[int, int]] = {}  # user -> the newest event that no prediction has met yet
        self.read = 0
        self.latest: dict[str, Any] | None = None
        self.titles: dict[str, str] = {}
        self.latency_ms: dict[str, float] | None = None
        self.failed: Exception | None = None
        self._stop, self._thread = threading.Event(), threading.Thread(target=self._run, daemon=True, name="watch")

    def start(self) -> None:
        """Follow what is written from now on (`from_start`: everything, on a broker that this run started)."""
        self._consumer = self._connected()
        self._thread.start()

    def _connected(self) -> Any:
        from kafka import KafkaConsumer, TopicPartition

        consumer = KafkaConsumer(
            **self.settings.kafka.for_kafka_python(), group_id=None, enable_auto_commit=False,
            auto_offset_reset="earliest", fetch_max_wait_ms=100,
        )  # fmt: skip
        watched = (self.names.state, self.names.predictions, self.names.dead_letters, *self.names.events)
        parts = [TopicPartition(t, p) for t in watched for p in consumer.partitions_for_topic(t) or ()]
        consumer.assign(parts)
        if self.from_start:  # the embedded broker says a wrong latest offset
            consumer.seek_to_beginning(*parts)
            return consumer
        for part, end in consumer.end_offsets(parts).items():  # an older run's records are not this run's
            consumer.seek(part, end)
        return consumer

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                for part, records in self._consumer.poll(timeout_ms=200).items():
                    for record in records:
                        self._take(part.topic, record)
        except Exception as error:
            self.failed = error
        finally:
            self._consumer.close()

    def _take(self, topic: str, record: Any) -> None:
        if topic == self.names.dead_letters:
            self.dead_letters += 1
            self.unanswered.pop(record.key, None)
        elif record.value is None:
            return
        elif topic == self.names.state:
            self._beat(orjson.loads(record.value))
        elif topic == self.names.predictions:
            self._prediction(orjson.loads(record.value))
        else:
            self.read += 1
            at = (record.partition, record.offset)
            if record.key is not None and self.newest.get(record.key.decode(errors="replace"), (-1, -1)) < at:
                self.unanswered[record.key] = at
            with contextlib.suppress(orjson.JSONDecodeError):
                self._title(orjson.loads(record.value))

    def _beat(self, beat: dict[str, Any]) -> None:
        self.beats[beat["worker"]] = beat
        if beat.get("lag") == 0 and beat.get("latency_ms"):
            self.latency_ms = beat["latency_ms"]

    def _prediction(self, said: dict[str, Any]) -> None:
        self.predictions += 1
        self.recent += 1
        self.latest = said
        trigger = said["trigger"]
        at, known = (trigger["partition"], trigger["offset"]), self.newest.get(said["user_id"])
        if known is None or known[0] != at[0] or known < at:
            self.newest[said["user_id"]] = at
        if self.unanswered.get(user := said["user_id"].encode(), (at[0], at[1] + 1)) <= at:
            del self.unanswered[user]

    def _title(self, said: Any) -> None:
        for event in said if isinstance(said, list) else [said]:
            if (
                isinstance(event, dict)
                and isinstance(event.get("item_id"), str)
                and isinstance(event.get("title"), str)
            ):
                if len(self.titles) > 100_000:
                    self.titles.clear()
                self.titles[event["item_id"]] = event["title"]

    def total(self, name: str) -> int:
        """A count over all workers' newest beats."""
        return sum(int(b.get(name) or 0) for b in self.beats.values())

    @property
    def ready(self) -> bool:
        """Whether every event partition has an owner that beats."""
        owned = {p for b in self.beats.values() for p in b.get("partitions", ())}
        return len(owned) >= 8 * len(self.names.events)

    def stop(self) -> None:
        """Stop following."""
        self._stop.set()
        self._thread.join(10)


class Input:
    """The thread that sends events; it counts what it sent."""

    def __init__(self, settings: Settings, plan: Plan) -> None:
        self.sent = replay.Sent()
        self.failed: Exception | None = None
        self.done = not (plan.replay or plan.simulate)
        self._settings, self._plan, self._stop = settings, plan, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="input")

    def start(self) -> None:
        """Send from now on."""
        if not self.done:
            self._thread.start()

    def _run(self) -> None:
        try:
            producer = replay.producer(self._settings.kafka)
            source, speed = source_of(self._plan)
            replay.play(source, producer, self._settings["topics.events"][0], speed=speed, sent=self.sent,
                        stopped=self._stop.is_set)  # fmt: skip
            producer.close(timeout=10)
        except Exception as error:
            self.failed = error
        self.done = True

    def stop(self, within_s: float = 60.0) -> None:
        """Send no more; what was handed over is flushed, if the broker takes it in time."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(within_s)


def source_of(plan: Plan) -> tuple[Iterator[replay.Line], float | None]:
    """The lines of the plan's input and the speed to send them at."""
    if plan.replay is not None:
        return replay.opened(plan.replay), plan.speed
    made = shop.Shop(seed=plan.seed, users=plan.users, rate=plan.rate, start_ms=int(time.time() * 1000),
                     scenario=scenarios.SCENARIOS[plan.scenario])  # fmt: skip
    return (replay.Line(m.key.encode(), m.value, m.at_ms, m.events) for m in made.messages()), 1.0


def write_history(settings: Settings, plan: Plan, end_ms: int) -> int:
    """Simulated history through the lake, before anything is live; how many events."""
    past = shop.history(seed=plan.seed, users=plan.users, rate=plan.rate, end_ms=end_ms, duration_ms=plan.history_ms,
                        scenario=scenarios.SCENARIOS[plan.scenario])  # fmt: skip
    return history.write(past, lake.Lake(settings.shared, "history"), settings.sessions())


def run(settings: Settings, plan: Plan, *, embedded: bool, say: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Run until `for_ms` after it was ready, or until stopped; the summary of what happened."""
    out = sys.stderr if plan.json else sys.stdout
    tell = say or (lambda text: print(text, file=out, flush=True))
    stopped = threading.Event()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                old = signal.signal(number, lambda *_: stopped.set())
                stack.callback(signal.signal, number, old)
        if embedded:
            started = stack.enter_context(broker.embedded(port=0))
            settings = settings.changed(kafka=started.address)
            tell(f"embedded broker on {started.address} (in memory: everything in it ends with this command)")
        for difference in topics.ensure(settings.kafka, settings.topics()):
            tell(f"topic {difference.topic}: {difference.setting} is {difference.found}, wanted {difference.wanted}")
        if plan.history_ms and plan.simulate:
            count = write_history(settings, plan, int(time.time() * 1000))
            tell(f"history: {count:,} simulated events of {written(plan.history_ms)} in the lake")
        return _supervised(settings, plan, stopped, tell, embedded)


def _supervised(
    settings: Settings, plan: Plan, stopped: threading.Event, tell: Callable[[str], None], embedded: bool
) -> dict[str, Any]:
    watch, feed = Watch(settings, from_start=embedded), Input(settings, plan)
    log = control.ControlLog(settings.kafka, topic=settings.topics().control)
    supervisor = Supervisor(tell)
    log.start()
    watch.start()
    logs = settings.shared / "logs"
    try:
        for name in ("worker", "trainer"):
            own = settings if name == "worker" else health.beside(settings)
            command = [sys.executable, "-m", "deploy.cli", name, *own.options()]
            if own["http"] is not None:
                tell(f"{name} tells how it is at {health.url(own['http'])}: /live /ready /metrics /status")
            supervisor.start(Child(name=name, command=command, output=logs / f"{name}.log",
                                   environment=settings.secrets()))  # fmt: skip
        tell(f"worker and trainer are starting; their logs: {logs}")
        if sys.stdout.isatty() and not plan.json:
            tell(f"in another shell: {exports(settings)}")
        _until_ready(watch, supervisor, stopped, logs)
        if not stopped.is_set():
            tell(f"ready: {settings.worker} owns {len(settings['topics.events'])} event topic(s) on {settings.kafka}")
        feed.start()
        _watch_until_over(plan, watch, feed, supervisor, stopped, log, tell)
        feed.stop(SIGNALLED_S if stopped.is_set() else 60.0)
        if plan.for_ms is not None:
            _drain(watch, feed, supervisor, stopped)
    finally:
        supervisor.stop()
        time.sleep(0.5)  # what was acknowledged last is still to be read
        watch.stop()
        state = log.state
        log.close()
    if feed.failed is not None:
        raise feed.failed
    result = summary(settings, watch, feed, state)
    if not plan.json:
        tell(told(result))
    return result


def exports(settings: Settings) -> str:
    """What lets the commands in another shell find this run."""
    said = {"NEXTCLICK_KAFKA": settings.kafka, "NEXTCLICK_SHARED": settings.shared.absolute()}
    return "export " + " ".join(f"{name}={shlex.quote(str(value))}" for name, value in said.items())


def _until_ready(watch: Watch, supervisor: Supervisor, stopped: threading.Event, logs: Path) -> None:
    end = time.monotonic() + READY_S
    while not watch.ready and not stopped.wait(0.2):
        supervisor.step()
        if (why := supervisor.hopeless()) is not None:
            raise NotReady(why)
        if watch.failed is not None:
            raise watch.failed
        if time.monotonic() > end:
            raise NotReady(f"the worker was not ready within {READY_S:.0f} s: read {logs / 'worker.log'}")


def _watch_until_over(
    plan: Plan, watch: Watch, feed: Input, supervisor: Supervisor, stopped: threading.Event,
    log: control.ControlLog, tell: Callable[[str], None],
) -> None:  # fmt: skip
    started = last = time.monotonic()
    before = 0
    while not stopped.wait(0.2):
        supervisor.step()
        now = time.monotonic()
        if feed.failed is not None or watch.failed is not None:
            raise feed.failed or watch.failed or RuntimeError
        if plan.for_ms is not None and now - started >= plan.for_ms / 1000:
            return
        if now - last >= LINE_S:
            state = log.state
            cadence_ms = int(watch.settings.with_control(state.dials)[0]["cadence"])
            tell(line(watch, state, feed.sent.events, before, now - last, cadence_ms=cadence_ms,
                      now_ms=int(time.time() * 1000)))  # fmt: skip
            before, last, watch.recent = feed.sent.events, now, 0


def _drain(watch: Watch, feed: Input, supervisor: Supervisor, stopped: threading.Event) -> None:
    """Wait until nothing lags and every user's newest event is answered, or nothing has moved for a while."""
    end, seen, moved = time.monotonic() + DRAIN_S, (-1, -1), time.monotonic()
    while time.monotonic() < end and not stopped.wait(1.1):  # a beat a second
        supervisor.step()
        judged = watch.total("stored") + watch.total("duplicates") + watch.total("rejected")
        now = (judged, watch.predictions)
        if (
            now == seen
            and watch.total("lag") == 0
            and not watch.unanswered
            and watch.read >= feed.sent.messages - feed.sent.failed_messages
        ):
            return
        if now != seen:
            seen, moved = now, time.monotonic()
        elif time.monotonic() - moved > QUIET_S:
            return


def line(
    watch: Watch, state: control.ControlState, sent: int, before: int, seconds: float, *, cadence_ms: int, now_ms: int
) -> str:
    """How things stand, in one line.

    `12.0 events/s · 11.2 predictions/s · lag 0 · 140 open sessions · champion v000003-ab12cd · …`
    """
    parts = [
        f"{(sent - before) / seconds:,.0f} events/s", f"{watch.recent / seconds:,.0f} predictions/s",
        f"lag {watch.total('lag'):,}", f"{watch.total('open_sessions'):,} open sessions",
        f"champion {state.champion or 'none yet: the memory answers'}",
    ]  # fmt: skip
    if state.verdicts:
        last = state.verdicts[-1]
        told = f"{last.get('kind')} {verdicts.outcome(last)}"
        parts.append(f"last retrain: {told} ({last.get('reason')}, n={last.get('n', 0)})")
    parts.append(told_next(state, cadence_ms, now_ms))
    return " · ".join(parts) + (f"\n    {told_prediction(watch)}" if watch.latest else "")


def told_next(state: control.ControlState, cadence_ms: int, now_ms: int) -> str:
    """What the trainer does now, or when it will: a cadence after it began last."""
    if state.running is not None:
        return f"{state.running.data.get('kind', 'retrain')} runs for {(now_ms - state.running.at_ms) // 1000} s"
    if state.pause is not None and state.pause.until_ms > now_ms:
        return f"retrains paused for {(state.pause.until_ms - now_ms) // 1000} s by {state.pause.by}"
    if not state.verdicts:
        return "the first retrain is due"
    begun_ms = int(state.verdicts[-1]["at_ms"]) - int(state.verdicts[-1].get("wall_ms", 0))
    return f"next retrain in {max(0, begun_ms + cadence_ms - now_ms) // 1000} s"


def told_prediction(watch: Watch) -> str:
    """The newest prediction with titles."""
    said = watch.latest or {}
    items = [f"{watch.titles.get(i['item_id'], i['item_id'])} {i['probability']:.0%}" for i in said["items"][:3]]
    nothing = said.get("none_probability")
    return f"{said['user_id']} → {', '.join(items) or '–'}" + (f"; nothing more {nothing:.0%}" if nothing else "")


def summary(settings: Settings, watch: Watch, feed: Input, state: control.ControlState) -> dict[str, Any]:
    """What this run did, counted in the lake's cover, the topics and the control log."""
    cover = lake.Lake(settings.shared, "summary").cover()
    counts: Counter[str] = Counter()
    for key, progress in cover.progress.items():
        if not key.topic.startswith("~"):
            for name in ("stored", "duplicates", "rejected"):
                counts[name] += getattr(progress, name)
    latency = watch.latency_ms or {}
    return {
        "events_sent": feed.sent.events - feed.sent.failed,
        "stored": counts["stored"],
        "duplicates": counts["duplicates"],
        "rejected": counts["rejected"],
        "dead_letters": watch.dead_letters,
        "predictions": watch.predictions,
        "stale_users": stale_users(cover, watch.newest),
        "versions": list(state.versions),
        "swaps": watch.total("swaps"),
        "verdicts": list(state.verdicts),
        "champion": state.champion,
        "latency_ms": {"p50": latency.get("p50"), "p99": latency.get("p99")},
        "live": quality.merged(watch.beats.values()),
    }


def told(result: dict[str, Any]) -> str:
    """The summary in plain lines: what came in, what went out, and each verdict with its n and bounds."""
    latency = result["latency_ms"]
    p50, p99 = (f"{latency[p]:,.0f} ms" if latency[p] is not None else "not timed" for p in ("p50", "p99"))
    lines = [
        f"{result['events_sent']:,} events sent: {result['stored']:,} stored, {result['duplicates']:,} duplicates, "
        f"{result['rejected']:,} rejected, {result['dead_letters']:,} dead letters",
        f"{result['predictions']:,} predictions, p50 {p50}, p99 {p99}; users without one for their newest event: "
        f"{result['stale_users']:,}",
        f"{len(result['versions'])} versions, {result['swaps']} swaps, champion {result['champion'] or 'none'}",
    ]
    return "\n".join([*lines, *map(told_verdict, result["verdicts"]), *quality.plain(result["live"])])


def told_verdict(verdict: dict[str, Any]) -> str:
    """One verdict in a line."""
    bounds = [
        f"{name} {b['mean']:+.3f} [{b['low']:+.3f}, {b['high']:+.3f}]"
        for name, b in verdict.get("bounds", {}).items()  # one that failed tells its reason only
        if b["mean"] is not None
    ]
    numbers = [f"n={verdict.get('n', 0):,}", *bounds, f"{verdict.get('cpu_seconds', 0):.0f} CPU s"]
    version = f" as {verdict['version']}" if verdict["accepted"] else ""
    return f"  {verdict['kind']} {verdicts.outcome(verdict)}{version}: {verdict['reason']} ({', '.join(numbers)})"


def stale_users(cover: lake.Cover, newest: dict[str, tuple[int, int]]) -> int:
    """Users with a scorable row whose newest prediction's trigger is not their newest scorable row."""
    with database.connect() as con:
        where = "consent AND NOT late AND topic NOT LIKE '~%'"
        relation = cover.relation(["user_id", "partition", "offset"], where=where)
        rows = con.execute(f'SELECT user_id, partition, max("offset") FROM ({relation}) GROUP BY ALL').fetchall()
    last = {(user, part): offset for user, part, offset in rows}
    users = {user for user, _ in last}
    return sum(user not in newest or last.get((user, newest[user][0])) != newest[user][1] for user in users)


def fresh_folder(root: Path) -> Path:
    """A folder of its own for a run on a broker that forgets."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return next(p for n in itertools.count() if not (p := root / f"run-{stamp}{f'-{n}' if n else ''}").exists())
