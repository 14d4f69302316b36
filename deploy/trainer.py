"""The trainer process: one leads, others stand by; retrains, and tunings beside them, run in processes of their own."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections import Counter
from types import FrameType
from typing import Any

import kafka
import msgspec
import structlog
from apscheduler.schedulers.background import BackgroundScheduler
from kafka.coordinator.assignors.sticky.sticky_assignor import StickyPartitionAssignor

from deploy import child, ending, errors, health, logs, upkeep, verdicts
from deploy import settings as dials
from deploy.job import Job, Kind
from featurestore import lake
from streams import control, topics
from trainer import cadence, extras, registry

log = structlog.get_logger()

TICK_S = 1.0
NEEDS = {  # a setting that is not off: the module that it needs, and the extra that brings it
    "experiments.tensorboard": ("tensorboard", "experiments"), "experiments.mlflow": ("mlflow", "mlflow"),
    "ranker": ("lightgbm", "ranking"),
}  # fmt: skip
VERDICTS = ("retrain.judged", "retrain.rejected")  # rejected: with the report of a candidate that leaves no version

Verdict = child.Answer  # a trainer.retrain.Verdict


class StoodDown(Exception):
    """Another trainer leads now; what this one was making is dropped."""


class Trainer:
    """Leads while it holds the group's one partition; the control log is its memory."""

    def __init__(self, settings: dials.Settings, following: control.ControlLog, writer: control.ControlWriter) -> None:
        self.settings, self.following, self.writer = settings, following, writer
        self.registry = registry.Registry(settings.shared)
        self.lake = lake.Lake(settings.shared, f"{settings.worker}-trainer")
        self.last_start_ms: int | None = None
        self.last_tune_ms: int | None = None
        self.answered: set[str] = set()  # each `retrain.now` that a retrain was begun for
        self.unusable: set[str] = set()
        self.had: int | None = None  # events in the lake when the last retrain began
        self.decision: cadence.Decision | None = None  # the newest, for the status
        self.leading, self.busy = threading.Event(), threading.Lock()  # the first: of this term, set while it lasts
        self.told: tuple[threading.Event, int, str] | None = None  # in which term and log, what this one said last
        self.retraining, self.tuning = child.Child(), child.Child()
        self.preparing: threading.Thread | None = None
        self.encoded: str | None = None  # a tuned language model that waits for its judgement
        self.retrains: Counter[str] = Counter()  # by what came of them
        self.upkeep = upkeep.Upkeep(settings, self.lake, self.registry, following, lambda: self.leading.is_set())

    def lead(self) -> None:
        """Retrain from now on: a new term, which nothing that an earlier one began belongs to."""
        self.leading = threading.Event()
        self.leading.set()
        log.info("Leading.", trainer=self.settings.worker)

    def stand_by(self) -> None:
        """Retrain no more: a retrain that runs is ended and nothing is said of it."""
        self.leading.clear()
        for running in (self.retraining, self.tuning):
            running.kill()
        log.info("Standing by.", trainer=self.settings.worker)

    def heard(self, entry: control.Entry) -> None:
        """Remember from the control log what any leader did; hearing an entry twice changes nothing."""
        if entry.kind == "retrain.started":
            self.answered.add(str(entry.data.get("asked")))
            self.last_start_ms = min(entry.at_ms, int(time.time() * 1000))  # another machine's clock may be ahead
        elif entry.kind in VERDICTS and entry.data.get("kind") == "tune" and entry.data.get("metrics"):
            self.tuned(entry.at_ms - int(entry.data.get("wall_ms", 0)))
        elif entry.kind == "tuning.failed":
            self.tuned(entry.at_ms)
        elif entry.kind == "version.published" and self.last_tune_ms is None:
            self.tuned(entry.at_ms)  # the first tuning comes a cadence of its own after the first version

    def tuned(self, began_ms: int) -> None:
        """A tuning that began then is done with; the next waits for its own cadence."""
        self.last_tune_ms = max(self.last_tune_ms or 0, began_ms)

    def live(self, state: control.ControlState) -> dials.Settings:
        """The dials as they stand now: the control log comes first."""
        settings, errors = self.settings.with_control(state.dials)
        for error in {str(e) for e in errors} - self.unusable:
            log.warning("A live setting cannot be used and is passed over.", error=error)
            self.unusable.add(error)
        return settings

    def own_dials(self) -> dict[str, dict[str, str]]:
        """What this trainer was started with, for `cadence show`: where the control log is silent, this counts."""
        own = self.settings
        return {d.name: {"value": own.text(d.name), "source": own.source(d.name)} for d in dials.DIALS if d.live}

    def tick(self) -> None:
        """Ask whether a retrain is due, and run it to its end where it is."""
        term = self.leading
        if not term.is_set() or not self.busy.acquire(blocking=False):
            return
        try:
            if not self.abreast(term):
                return
            state, now_ms = self.following.state, int(time.time() * 1000)
            settings = self.live(state)
            stored = self.stored()
            known = cadence.CadenceState(
                last_start_ms=self.last_start_ms,
                cut_off=state.running is not None,
                last_tune_ms=self.last_tune_ms,
                champion=state.champion is not None,
                tuning=self.preparing is not None and self.preparing.is_alive(),
                tuned=self.encoded is not None,
                asked=state.asked is not None and state.asked.id not in self.answered,
                paused_until_ms=state.pause.until_ms if state.pause else None,
                paused_by=state.pause.by if state.pause else "",
                labels=stored - self.had if self.had is not None else None,
                **verdicts.standing(state, now_ms),
            )
            policy = settings.cadence_policy()
            decision = cadence.due(known, policy, now_ms)
            self.decision = decision
            if decision.kind == "prepare":
                self.preparing = threading.Thread(target=self.prepare, args=(settings, now_ms, term), daemon=True)
                self.preparing.start()
                decision = cadence.due(msgspec.structs.replace(known, tuning=True), policy, now_ms)
            if decision.kind is not None:
                self.last_start_ms, self.had = now_ms, stored
                if state.asked is not None:
                    self.answered.add(state.asked.id)
                verdict = self.lead_one(settings, decision.kind, decision.reason, term)
                if decision.kind == "tune":
                    self.encoded = None
                    if verdict is None or not verdict["accepted"]:
                        self.lead_one(settings, "refresh", "the tuned one did not pass", term)
        except StoodDown:
            log.info("A retrain was dropped: another trainer leads, or this one stops.", trainer=self.settings.worker)
        except Exception:
            log.exception("Stopping: a retrain could not be led to its end.")
            os._exit(3)
        finally:
            self.busy.release()

    def abreast(self, term: threading.Event) -> bool:
        """Whether the control log is known up to what this trainer said last; a term begins by saying that it does.

        Without it who leads again after the broker was away would decide by what it knew before: by no champion, or by
        a command that was answered.
        """
        if self.told is None or self.told[:2] != (term, self.following.logs):
            self.say("trainer.leads", {}, term)
        return self.told is not None and self.following.knows(self.told[2])

    def say(self, kind: str, data: dict[str, Any], term: threading.Event) -> None:
        """One entry more, which `abreast` waits for."""
        logs = self.following.logs
        self.told = (term, logs, self.writer.append(kind, data, by=self.settings.worker).id)

    def stored(self) -> int:
        """Events in the lake so far, imported ones included: each is a cut, whose label is known a horizon later."""
        told = map(self.lake.progress, self.lake.keys())
        return sum(progress.stored for progress in told if progress is not None)

    def prepare(self, settings: dials.Settings, now_ms: int, term: threading.Event) -> None:
        """Have a language model tuned; meanwhile retrains go on. Too few labels are no tuning: it is tried again."""
        try:
            answer = self._in_a_process(self.job(settings, "prepare"), term)
            if not term.is_set():
                return
            if isinstance(answer, str):
                log.error("A tuning of the language model failed.", why=answer)
                told = {"kind": "tune", "why": "a tuning of the language model is due", "reason": answer}
                self.writer.append("tuning.failed", told, by=settings.worker)
                self.tuned(now_ms)
                return
            log.info("The language model was prepared.", **answer)
            self.encoded = answer["encoded"]
            if self.encoded is not None:
                self.tuned(now_ms)
        except Exception:
            log.exception("Stopping: a tuning could not be led to its end.")
            os._exit(3)

    def job(self, settings: dials.Settings, kind: Kind) -> Job:
        """What the process of one retrain or tuning needs."""
        state = self.following.state
        return Job(
            shared=str(settings.shared), name=settings.worker, encoder=settings.encoder(), champion=state.champion,
            since=self.seen(state.champion), policy=settings.window_policy(), forgotten=state.forgotten,
            logs=settings["logs"], kind=kind, tune=settings.tuning(), network=settings.network(),
            ranker=settings["ranker"] == "lambdarank",
            encoded=self.encoded if kind == "tune" else None, tensorboard=settings["experiments.tensorboard"],
            mlflow=settings["experiments.mlflow"],
        )  # fmt: skip

    def lead_one(self, settings: dials.Settings, kind: Kind, why: str, term: threading.Event) -> Verdict | None:
        """One retrain: train and judge elsewhere, then say what came of it; None where it came to no verdict."""
        state = self.following.state
        job = self.job(settings, kind)
        begun = {"kind": kind, "why": why, "champion": state.champion}
        begun |= {"asked": state.asked.id} if state.asked is not None else {}
        self.say("retrain.started", begun, term)
        verdict = self._in_a_process(job, term)
        if not term.is_set():
            raise StoodDown
        if isinstance(verdict, str):
            log.error("A retrain came to no verdict; the champion goes on.", why=verdict)
            self.retrains["failed"] += 1
            self.say("retrain.failed", {"kind": kind, "why": why, "reason": verdict}, term)
            return None
        if verdict["version"] is not None:
            self.say("version.published", {"version": verdict["version"]}, term)
            self.say("champion.changed", {"version": verdict["version"], "predecessor": job.champion}, term)
        self.retrains["accepted" if verdict["accepted"] else "kept_out"] += 1
        said = verdict | {"why": why, "dials": self.own_dials()}
        rejected = bool(verdict["metrics"]) and not verdict["accepted"]
        self.say(VERDICTS[rejected], said, term)
        log.info("Judged.", **{name: verdict[name] for name in ("kind", "accepted", "reason", "version", "n")})
        self.upkeep.prune(settings, self.encoded)
        return verdict

    def seen(self, champion: str | None) -> dict[str, int]:
        """How far the champion has seen the data; nothing where that cannot be read."""
        try:
            return dict(self.registry.meta(champion)["data_offsets"]) if champion else {}
        except (registry.UnknownVersion, OSError, KeyError, msgspec.MsgspecError):
            return {}

    def _in_a_process(self, job: Job, term: threading.Event) -> child.Answer | str:
        """What came of it, or why nothing did."""
        where = self.tuning if job.kind == "prepare" else self.retraining
        return where.run(job, term)

    def status(self) -> dict[str, Any]:
        """How this trainer is, for its web server."""
        state = self.following.state
        judged = list(state.verdicts)
        passed = next((v for v in reversed(judged) if v["accepted"]), None)
        return {
            "verdict_ms": int(judged[-1]["at_ms"]) if judged else None,
            "accepted_ms": int(passed["at_ms"]) if passed else None,
            "rejected_in_a_row": verdicts.rejected_in_a_row(judged),
            "cadence_ms": int(self.live(state)["cadence"]),
            "trainer": self.settings.worker, "at_ms": int(time.time() * 1000), "leading": self.leading.is_set(),
            "busy": self.busy.locked(), "tuning": self.preparing is not None and self.preparing.is_alive(),
            "champion": state.champion,
            "versions": len(state.versions), "retrains": dict(self.retrains),
            "paused_until_ms": state.pause.until_ms if state.pause else None, "last_start_ms": self.last_start_ms,
            "decision": self.decision.reason if self.decision else None,
        }  # fmt: skip


def equipped(settings: dials.Settings) -> None:
    """Raises `NotInstalled` where a setting needs what is missing: before hours of training, not after."""
    for name, (module, extra) in NEEDS.items():
        if settings[name] not in ("", "off"):
            extras.need(module, asked=f"the setting {name}={settings[name]}", extra=extra)


def run(settings: dials.Settings, stop: threading.Event) -> None:
    """Follow the control log; while this process leads, let the scheduler tick the cadence."""
    equipped(settings)
    told = health.serve(settings)
    names = settings.topics()
    topics.ensure(settings.kafka, names)
    following = control.ControlLog(settings.kafka, topic=names.control)
    writer = control.ControlWriter(settings.kafka, topic=names.control, patient=True)
    trainer = Trainer(settings, following, writer)
    following.on_entry = trainer.heard
    following.start()
    if not following.caught_up(60):
        raise topics.TopicUnusable(f"{names.control} could not be read within a minute: is the broker well?")
    scheduler = BackgroundScheduler(timezone="UTC")
    for job, seconds in (
        (trainer.tick, TICK_S),
        (trainer.upkeep.erase, TICK_S),
        (trainer.upkeep.tidy, upkeep.TIDY_S),
    ):
        scheduler.add_job(job, "interval", seconds=seconds, max_instances=2, coalesce=True, misfire_grace_time=None)
    consumer = kafka.KafkaConsumer(
        names.control, **settings.kafka.for_kafka_python(), group_id=f"nextclick-trainer-{names.control}",
        session_timeout_ms=6_000, heartbeat_interval_ms=1_500, auto_offset_reset="latest", enable_auto_commit=False,
        partition_assignment_strategy=[StickyPartitionAssignor],  # who leads goes on when another one joins
    )  # fmt: skip
    trainer.stand_by()
    scheduler.start()
    try:
        while not stop.is_set():
            consumer.poll(timeout_ms=500)
            told.pulse(trainer.status(), ())
            leads = bool(consumer.assignment())
            if leads != trainer.leading.is_set():
                (trainer.lead if leads else trainer.stand_by)()
    finally:
        trainer.stand_by()
        scheduler.shutdown(wait=True)
        consumer.close()
        writer.close()
        following.close()


def main(settings: dials.Settings) -> None:
    """What `nextclick trainer` becomes, and `python -m deploy.trainer [--set key=value]… [--config FILE]`."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    stop = threading.Event()

    def ask(number: int, frame: FrameType | None) -> None:
        if not stop.is_set():
            ending.within()
        stop.set()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, ask)
    logs.configure(settings["logs"])
    run(settings, stop)


if __name__ == "__main__":
    sys.exit(errors.code_of(lambda: main(dials.from_arguments(sys.argv[1:], os.environ))))
