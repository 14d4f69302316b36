"""Everything on one machine: broker, topics, worker, trainer and input under one supervisor."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from deploy import broker, feeding, health, live, summary, watching
from deploy.settings import Settings, written
from deploy.supervisor import Child, Supervisor
from streams import control, topics

READY_S = 300.0  # a machine that is busy with other things learns a large lake slowly; who fails ends it sooner
DRAIN_S = 90.0
SIGNALLED_S = 5.0  # who presses ctrl-C does not wait for a broker that is gone
QUIET_S = 15.0  # longer than a worker needs to come back


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What to run: which input, how long, and how to tell."""

    source: feeding.Source = feeding.Source()
    for_ms: int | None = None
    json: bool = False


class NotReady(RuntimeError):
    """The worker did not become ready in time, or kept failing; the message names its log."""


def run(settings: Settings, plan: Plan, *, embedded: bool) -> dict[str, Any]:
    """Run until `for_ms` after it was ready, or until stopped; the summary of what happened."""
    shows = live.chosen(sys.stderr if plan.json else sys.stdout)
    stopped = threading.Event()
    with contextlib.ExitStack() as stack:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                old = signal.signal(number, lambda *_: stopped.set())
                stack.callback(signal.signal, number, old)
        if embedded:
            started = stack.enter_context(broker.embedded(port=0))
            settings = settings.changed(kafka=started.address)
            shows.say(f"embedded broker on {started.address} (in memory: everything in it ends with this command)")
        for differs in topics.ensure(settings.kafka, settings.topics()):
            shows.say(f"topic {differs.topic}: {differs.setting} is {differs.found}, wanted {differs.wanted}")
        if plan.source.history_ms and plan.source.simulate:
            count = feeding.write_history(settings, plan.source, int(time.time() * 1000))
            shows.say(f"history: {count:,} simulated events of {written(plan.source.history_ms)} in the lake")
        return _supervised(settings, plan, stopped, shows, embedded)


def _supervised(
    settings: Settings, plan: Plan, stopped: threading.Event, shows: live.Shows, embedded: bool
) -> dict[str, Any]:
    watch, feed = watching.Watch(settings, from_start=embedded), feeding.Input(settings, plan.source)
    log = control.ControlLog(settings.kafka, topic=settings.topics().control)
    supervisor = Supervisor(shows.say)
    log.start()
    watch.start()
    logs = settings.shared / "logs"
    try:
        _start(settings, supervisor, logs, shows)
        if sys.stdout.isatty() and not plan.json:
            shows.say(f"in another shell: {exports(settings)}")
        _until_ready(watch, supervisor, stopped, logs)
        if not stopped.is_set():
            shows.say(f"ready: {watch.partitions} partitions of {', '.join(settings['topics.events'])} on "
                      f"{settings.kafka}")  # fmt: skip
        feed.start()
        _until_over(plan, watch, feed, supervisor, stopped, log, shows)
        feed.stop(SIGNALLED_S if stopped.is_set() else 60.0)
        if plan.for_ms is not None:
            _drain(watch, feed, supervisor, stopped)
    finally:
        shows.close()
        supervisor.stop()
        time.sleep(0.5)  # what was acknowledged last is still to be read
        watch.stop()
        state = log.state
        log.close()
    if feed.failed is not None:
        raise feed.failed
    result = summary.counted(settings, watch, feed, state)
    if not plan.json:
        shows.say(summary.told(result))
    return result


def _start(settings: Settings, supervisor: Supervisor, logs: Path, shows: live.Shows) -> None:
    for name in ("worker", "trainer"):
        own = settings if name == "worker" else health.beside(settings)
        command = [sys.executable, "-m", "deploy.cli", name, *own.options()]
        if own["http"] is not None:
            shows.say(f"{name} tells how it is at {health.url(own['http'])}: /live /ready /metrics /status")
        supervisor.start(Child(name=name, command=command, output=logs / f"{name}.log", environment=settings.secrets()))
    shows.say(f"worker and trainer are starting; their logs: {logs}")


def exports(settings: Settings) -> str:
    """What lets the commands in another shell find this run."""
    said = {"NEXTCLICK_KAFKA": settings.kafka, "NEXTCLICK_SHARED": settings.shared.absolute()}
    return "export " + " ".join(f"{name}={shlex.quote(str(value))}" for name, value in said.items())


def _until_ready(watch: watching.Watch, supervisor: Supervisor, stopped: threading.Event, logs: Path) -> None:
    end = time.monotonic() + READY_S
    while not watch.ready and not stopped.wait(0.2):
        supervisor.step()
        if (why := supervisor.hopeless()) is not None:
            raise NotReady(why)
        if watch.failed is not None:
            raise watch.failed
        if time.monotonic() > end:
            raise NotReady(f"the worker was not ready within {READY_S:.0f} s: read {logs / 'worker.log'}")


def _until_over(
    plan: Plan, watch: watching.Watch, feed: feeding.Input, supervisor: Supervisor, stopped: threading.Event,
    log: control.ControlLog, shows: live.Shows,
) -> None:  # fmt: skip
    started, told_s, rates = time.monotonic(), time.monotonic(), live.Rates()
    while not stopped.wait(0.2):
        supervisor.step()
        now = time.monotonic()
        if feed.failed is not None or watch.failed is not None:
            raise feed.failed or watch.failed or RuntimeError
        if plan.for_ms is not None and now - started >= plan.for_ms / 1000:
            return
        rates.take(watch.total("events"), watch.predictions)
        if now - told_s >= shows.every_s:
            told_s = now
            shows.show(live.seen(watch, log.state, rates, ran_ms=round((now - started) * 1000), for_ms=plan.for_ms,
                                 now_ms=int(time.time() * 1000)))  # fmt: skip


def _drain(watch: watching.Watch, feed: feeding.Input, supervisor: Supervisor, stopped: threading.Event) -> None:
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


def fresh_folder(root: Path) -> Path:
    """A folder of its own for a run on a broker that forgets."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return next(p for n in itertools.count() if not (p := root / f"run-{stamp}{f'-{n}' if n else ''}").exists())
