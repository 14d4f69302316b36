"""The trainer: what it asks of a retrain, what it remembers, what it says."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy import history, retraining, trainer
from deploy.demo import shop
from deploy.settings import Settings
from featurestore.events import Event, Origin, Row
from featurestore.lake import PartitionKey
from streams import control
from trainer import registry, retrain


class Log:
    """A control log at hand: what is appended is folded and heard at once, or, where it lags, when it catches up."""

    def __init__(self) -> None:
        self.state = control.ControlState()
        self.entries: list[control.Entry] = []
        self.heard = 0
        self.logs, self.lags = 1, False
        self.on_entry: Any = None

    def append(self, kind: str, data: dict[str, Any] | None = None, *, by: str) -> control.Entry:
        """One entry more."""
        entry = control.Entry(id=f"e{len(self.entries)}", kind=kind, at_ms=len(self.entries), by=by, data=data or {})
        self.entries.append(entry)
        if not self.lags:
            self.catch_up()
        return entry

    def catch_up(self) -> None:
        """Hear and fold what is not known yet."""
        for entry in self.entries[self.heard :]:
            self.state = control.fold(self.state, entry)
            self.on_entry(entry)
        self.heard = len(self.entries)

    def knows(self, id_: str) -> bool:
        """Whether an entry is among what was heard."""
        return id_ in {entry.id for entry in self.entries[: self.heard]}


class Trainer(trainer.Trainer):
    """A trainer whose retrains are answered from a list; events go on coming, unless it is told otherwise."""

    def __init__(self, folder: Path, log: Log, *answers: retrain.Verdict | str, **options: str) -> None:
        said = {"shared": str(folder), "store.folder": str(folder.parent / "store"), "encoder": "some/encoder"}
        said |= {"cadence": "1ms", "tune.every": "6h", "worker": "t1"} | options
        super().__init__(Settings.load(said), log, log)  # type: ignore[arg-type]
        log.on_entry = self.heard
        self.leading.set()
        self.answers, self.jobs = list(answers), list[trainer.Job]()
        self.events, self.goes_on = 0, True
        self.tunings: list[Any] = []  # what each `prepare` comes to: its answer, or a function that makes it

    def stored(self) -> int:
        self.events += self.goes_on
        return self.events

    def _in_a_process(self, job: trainer.Job, term: threading.Event) -> trainer.Verdict | str:
        self.jobs.append(job)
        if job.kind == "prepare":
            answer = self.tunings.pop(0)
            return answer() if callable(answer) else answer  # type: ignore[no-any-return]
        answer = self.answers.pop(0)
        return answer if isinstance(answer, str) else dict(msgspec.to_builtins(answer))


FEW = retrain.Verdict(kind="refresh", accepted=False, reason="too few labels")
WORSE = retrain.Verdict(
    kind="refresh", accepted=False, reason="worse", n=700, metrics={"candidate": {"ece": 0.1}}, champion="v1"
)
TUNED = msgspec.structs.replace(WORSE, kind="tune", reason="not better")


@pytest.fixture
def log() -> Log:
    """An empty control log."""
    return Log()


def test_every_live_dial_reaches_the_next_retrain(log: Log, tmp_path: Path) -> None:
    """What the control log says of window and tuning counts from the next tick on; a reset gives the options back."""
    leader = Trainer(tmp_path, log, FEW, FEW, FEW, window="9000")
    leader.tick()
    log.append("cadence.set", {"window": "50"}, by="ann")
    log.append("retrain.now", by="ann")
    leader.tick()
    log.append("cadence.reset", by="ann")
    log.append("retrain.now", by="ann")
    leader.tick()
    assert [j.policy.cuts for j in leader.jobs] == [9_000, 50, 9_000]


FEW_PAIRS = {"encoded": None, "reason": "too few labels"}
ENCODED = {"encoded": "abc", "reason": "tuned"}


def tick(leader: Trainer) -> None:
    """A tick whose cadence has passed; what it began beside itself is over too."""
    leader.last_start_ms = 0
    leader.tick()
    if leader.preparing is not None:
        leader.preparing.join()


@pytest.fixture
def champion(log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is a champion whose data offsets are not asked for."""
    monkeypatch.setattr(registry.Registry, "meta", lambda registry, version: {"data_offsets": {}})
    log.on_entry = lambda entry: None
    log.append("champion.changed", {"version": "v1", "predecessor": None}, by="t0")


@pytest.mark.usefixtures("champion")
@pytest.mark.parametrize(("mode", "kinds"), [("lora", ["prepare", "refresh"]), ("off", ["refresh"])])
def test_tuning_is_switched_while_it_runs(log: Log, tmp_path: Path, mode: str, kinds: list[str]) -> None:
    """`tune=off` in the control log beats the option, and the other way round."""
    leader = Trainer(tmp_path, log, WORSE, tune="off" if mode == "lora" else "lora")
    leader.tunings = [FEW_PAIRS]
    log.append("cadence.set", {"tune": mode}, by="ann")
    tick(leader)
    assert sorted(j.kind for j in leader.jobs) == kinds


@pytest.mark.usefixtures("champion")
def test_a_shop_where_nothing_happens_is_not_learnt_again(log: Log, tmp_path: Path) -> None:
    """The same events would get the same answer; with the first one that comes the cadence counts again."""
    leader = Trainer(tmp_path, log, WORSE, WORSE, tune="off")
    tick(leader)
    leader.goes_on = False
    tick(leader)
    assert leader.decision is not None
    assert (len(leader.jobs), leader.decision.reason) == (1, "nothing came since the last retrain began")
    leader.goes_on = True
    tick(leader)
    assert len(leader.jobs) == 2


@pytest.mark.usefixtures("champion")
def test_refreshes_go_on_while_the_language_model_is_tuned(log: Log, tmp_path: Path) -> None:
    """However long it takes, each cadence has its refresh; then a version is judged with it, and a refresh follows."""
    leader = Trainer(tmp_path, log, WORSE, WORSE, WORSE, TUNED, WORSE)
    done = threading.Event()
    leader.tunings = [lambda: ENCODED if done.wait(20) else "nobody went on"]
    for _ in range(3):
        leader.last_start_ms = 0
        leader.tick()
    done.set()
    tick_before = leader.preparing
    assert tick_before is not None
    tick_before.join()
    tick(leader)
    assert sorted(j.kind for j in leader.jobs[:4]) == ["prepare", "refresh", "refresh", "refresh"]
    assert [(j.kind, j.encoded) for j in leader.jobs[4:]] == [("tune", "abc"), ("refresh", None)]


@pytest.mark.usefixtures("champion")
def test_a_tuning_that_failed_waits_for_its_own_cadence(log: Log, tmp_path: Path) -> None:
    """It is told, the refresh that runs meanwhile goes on, and it is not tried again at once."""
    leader = Trainer(tmp_path, log, WORSE, WORSE)
    leader.tunings = ["its process ended with code -9"]
    tick(leader)
    tick(leader)
    assert sorted(j.kind for j in leader.jobs) == ["prepare", "refresh", "refresh"]
    failed = [v for v in log.state.verdicts if v.get("failed")]
    assert [(v["kind"], v["reason"]) for v in failed] == [("tune", "its process ended with code -9")]
    begun = control.Entry(id="1", kind="retrain.started", at_ms=5, by="t", data={"kind": "refresh"})
    ended = control.Entry(id="2", kind="tuning.failed", at_ms=6, by="t", data={"kind": "tune", "reason": "it died"})
    assert control.fold(control.fold(control.ControlState(), begun), ended).running == begun


def test_a_tuning_is_remembered_however_many_refreshes_followed(log: Log, tmp_path: Path) -> None:
    """The last tuning is found in the whole log, not in the verdicts that the fold keeps; twice heard counts once."""
    leader = Trainer(tmp_path, log)
    log.append("retrain.judged", msgspec.to_builtins(TUNED) | {"wall_ms": 0}, by="t0")
    for _ in range(control.VERDICTS + 1):
        log.append("retrain.judged", msgspec.to_builtins(WORSE), by="t0")
    assert leader.last_tune_ms == 0
    for entry in log.entries:
        leader.heard(entry)
    assert leader.last_tune_ms == 0


@pytest.mark.usefixtures("champion")
def test_too_few_labels_are_no_tuning(log: Log, tmp_path: Path) -> None:
    """A tuning without labels does not wait for hours: it is tried again at the next cadence."""
    leader = Trainer(tmp_path, log, FEW, FEW)
    leader.tunings = [FEW_PAIRS, FEW_PAIRS]
    tick(leader)
    assert leader.last_tune_ms is None
    tick(leader)
    assert [j.kind for j in leader.jobs].count("prepare") == 2


def test_a_command_is_answered_once(log: Log, tmp_path: Path) -> None:
    """`retrain.now` goes before a pause, once, whatever the clocks of the two machines say."""
    leader = Trainer(tmp_path, log, FEW)
    leader.last_start_ms = 2**60
    log.append("pause", {"until_ms": 2**61}, by="ann")
    log.append("retrain.now", by="ann")
    leader.tick()
    leader.tick()
    assert len(leader.jobs) == 1
    successor = Trainer(tmp_path, log)
    for entry in log.entries:
        successor.heard(entry)
    successor.heard(log.entries[3])  # as after a reconnect, when the log is read again from its start
    successor.tick()
    assert successor.jobs == []


@pytest.mark.parametrize("ahead_ms", [0, 10**10])
def test_a_cadence_goes_on_where_another_trainer_left_it(log: Log, tmp_path: Path, ahead_ms: int) -> None:
    """A restart or a change of the lead costs no retrain, unless it cut one off; a clock that is ahead delays none."""
    leader = Trainer(tmp_path, log, FEW, cadence="1h")
    at_ms = int(time.time() * 1000) + ahead_ms
    begun = control.Entry(id="a", kind="retrain.started", at_ms=at_ms, by="t0", data={"kind": "refresh"})
    judged = control.Entry(id="b", kind="retrain.judged", at_ms=at_ms, by="t0", data=msgspec.to_builtins(FEW))
    log.entries += [begun, judged]
    log.catch_up()
    leader.tick()
    assert leader.jobs == []
    assert leader.last_start_ms is not None
    assert leader.last_start_ms <= int(time.time() * 1000)
    log.entries.append(msgspec.structs.replace(begun, id="c"))
    log.catch_up()
    leader.tick()
    assert log.entries[-2].data["why"] == "the last one was cut off"


def test_what_was_begun_and_what_was_rejected_is_told(log: Log, tmp_path: Path) -> None:
    """A retrain says that it began and why; a rejected candidate's whole report stays in the log; a crash is told."""
    leader = Trainer(tmp_path, log, WORSE, "its process ended with code -9", FEW)
    for _ in range(3):
        leader.last_start_ms = None
        leader.tick()
    assert [e.kind for e in log.entries] == [
        "trainer.leads", "retrain.started", "retrain.rejected", "retrain.started", "retrain.failed", "retrain.started",
        "retrain.judged",
    ]  # fmt: skip
    assert log.entries[1].data["why"] == "the first"
    assert log.entries[4].data["reason"] == "its process ended with code -9"
    rejected = log.entries[2].data
    assert (rejected["reason"], rejected["n"], rejected["metrics"]) == ("worse", 700, {"candidate": {"ece": 0.1}})
    assert [(v["reason"], v.get("failed", False)) for v in log.state.verdicts] == [
        ("worse", False), ("its process ended with code -9", True), ("too few labels", False),
    ]  # fmt: skip


def test_the_forgotten_leave_the_lake_while_a_retrain_runs(log: Log, tmp_path: Path) -> None:
    """A retrain may take half an hour: who is forgotten meanwhile is in no file of the lake before it ends."""
    leader = Trainer(tmp_path, log, FEW)
    past = shop.history(seed=1, users=5, rate=1.0, end_ms=1_800_000_000_000, duration_ms=300_000)
    history.write(past, leader.lake, leader.settings.sessions())
    gone = leader.lake.cover().rows()[0].event.user_id
    answer = leader._in_a_process

    def held() -> bool:
        return any(gone.encode() in path.read_bytes() for path in leader.lake.root.rglob("*.parquet"))

    def train(job: trainer.Job, term: threading.Event) -> trainer.Verdict | str:
        assert held()
        log.append("forget", {"user_id": gone}, by="ann")
        leader.upkeep.erase()
        assert not held()
        return answer(job, term)

    leader._in_a_process = train  # type: ignore[method-assign]
    leader.tick()
    assert log.entries[-1].kind == "retrain.judged"


def test_what_is_old_leaves_the_lake_though_nothing_is_trained(log: Log, tmp_path: Path) -> None:
    """Who leads keeps the lake by the clock; who stands by does not."""
    leader = Trainer(tmp_path, log, **{"lake.keep": "1m"})
    key = PartitionKey("t@log", 0)
    for n in range(3):
        event = Event(event_id=f"e{n}", type="view", user_id="u", ts_ms=1_000_000 * (n + 1), item_id="i")
        leader.lake.write_rows(key, n, [Row(event, Origin("t@log", 0, n, 0, 0), "s")])
    leader.leading.clear()
    leader.upkeep.tidy()
    assert len(leader.lake.cover().rows()) == 3
    leader.leading.set()
    leader.upkeep.tidy()
    assert [row.event.event_id for row in leader.lake.cover().rows()] == ["e2"]


def test_an_accepted_candidate_is_announced_before_its_verdict(log: Log, tmp_path: Path) -> None:
    """Version, champion, verdict, in this order; the fold makes it the champion."""
    leader = Trainer(
        tmp_path, log, msgspec.structs.replace(FEW, accepted=True, reason="first", version="v000001-abcdef")
    )
    leader.tick()
    assert [e.kind for e in log.entries[2:]] == ["version.published", "champion.changed", "retrain.judged"]
    assert log.state.champion == "v000001-abcdef"


def test_a_trainer_that_lost_the_lead_says_nothing(log: Log, tmp_path: Path) -> None:
    """What it was making is dropped: no version, no champion, no verdict and no failure of its own."""
    leader = Trainer(tmp_path, log, msgspec.structs.replace(FEW, accepted=True, version="v000001-abcdef"))
    answer = leader._in_a_process

    def lose_it(job: trainer.Job, term: threading.Event) -> trainer.Verdict | str:
        leader.stand_by()
        return answer(job, term)

    leader._in_a_process = lose_it  # type: ignore[method-assign]
    leader.tick()
    leader.tick()
    assert [e.kind for e in log.entries] == ["trainer.leads", "retrain.started"]
    assert log.state.running == log.entries[1]
    leader.lead()
    leader.answers = [FEW]
    leader._in_a_process = answer  # type: ignore[method-assign]
    leader.tick()
    assert log.entries[-1].kind == "retrain.judged"
    assert log.state.running is None


def test_a_leader_decides_nothing_before_it_knows_what_it_said_last(log: Log, tmp_path: Path) -> None:
    """Where its reader of the log is behind, there is no second first champion, and no command is answered again."""
    first = msgspec.structs.replace(FEW, accepted=True, reason="first", version="v000001-abcdef")
    leader = Trainer(tmp_path, log, first, FEW, cadence="1h")
    log.lags = True
    leader.tick()
    assert [e.kind for e in log.entries] == ["trainer.leads"]
    log.catch_up()
    leader.tick()
    told = [e.kind for e in log.entries]
    assert told[-1] == "retrain.judged"
    log.append("retrain.now", by="ann")
    leader.tick()
    leader.stand_by()
    leader.lead()
    leader.tick()
    assert [e.kind for e in log.entries] == [*told, "retrain.now", "trainer.leads"]
    log.catch_up()
    leader.tick()
    assert [j.champion for j in leader.jobs] == [None, "v000001-abcdef"]


def test_what_an_earlier_term_made_is_dropped_though_its_trainer_leads_again(log: Log, tmp_path: Path) -> None:
    """Between the two somebody else may have led."""
    leader = Trainer(tmp_path, log, msgspec.structs.replace(FEW, accepted=True, version="v000001-abcdef"))
    answer = leader._in_a_process

    def lose_it_for_a_moment(job: trainer.Job, term: threading.Event) -> trainer.Verdict | str:
        leader.stand_by()
        leader.lead()
        return answer(job, term)

    leader._in_a_process = lose_it_for_a_moment  # type: ignore[method-assign]
    leader.tick()
    assert [e.kind for e in log.entries] == ["trainer.leads", "retrain.started"]
    leader.answers, leader._in_a_process = [FEW], answer  # type: ignore[method-assign]
    leader.tick()
    assert [e.kind for e in log.entries[2:]] == ["trainer.leads", "retrain.started", "retrain.judged"]


def test_a_log_made_anew_is_told_who_leads(log: Log, tmp_path: Path) -> None:
    """What was said in the old one will never be heard in the new one."""
    leader = Trainer(tmp_path, log, FEW, FEW)
    leader.tick()
    log.entries, log.heard, log.logs, log.state = [], 0, 2, control.ControlState()
    leader.last_start_ms = None
    leader.tick()
    assert [e.kind for e in log.entries] == ["trainer.leads", "retrain.started", "retrain.judged"]


@pytest.mark.parametrize("how", ["gone", "broken", "of another nextclick"])
def test_a_champion_that_cannot_be_built_on_is_succeeded(log: Log, tmp_path: Path, how: str) -> None:
    """After an upgrade, or where its files are gone, one is trained without it and takes its place in the log."""
    leader = Trainer(tmp_path, log, n_min="100", encoder="none", **{"horizon.next": "60s", "horizon.purchase": "60s"})
    past = shop.history(seed=1, users=60, rate=2.0, end_ms=1_800_000_000_000, duration_ms=900_000)
    history.write(past, leader.lake, leader.settings.sessions())
    old = leader.registry.publish(lambda d: (d / "config.json").write_text('{"encoder": "x"}') and None, {"n": 1})
    if how == "gone":
        shutil.rmtree(leader.registry.path(old))
    if how == "broken":
        (leader.registry.path(old) / "config.json").write_text("")
    log.append("champion.changed", {"version": old, "predecessor": None}, by="t0")
    leader._in_a_process = lambda job, term: msgspec.to_builtins(retraining.judged(job))  # type: ignore[method-assign]
    leader.tick()
    version = log.state.verdicts[-1]["version"]
    leader.registry.verify(version)
    assert (log.state.champion, log.state.predecessor) == (version, old)


def test_a_tracking_server_that_is_down_costs_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came of a retrain is returned, whatever TensorBoard or MLflow say."""

    def down(*said: Any) -> None:
        raise ConnectionError

    monkeypatch.setattr(retraining.experiments, "write", down)
    monkeypatch.setattr(retraining.retrain, "run", lambda *said, **more: FEW)
    job = Trainer(tmp_path, Log(), encoder="none").job(Settings.load({"encoder": "none"}), "refresh")
    assert retraining.judged(job) == FEW


def test_the_process_that_waits_is_light() -> None:
    """Torch, scipy and numba are loaded by a retrain's own process only."""
    code = "import sys, deploy.trainer; print(sorted({'torch', 'scipy', 'numba', 'transformers'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_imported_counts_as_new(log: Log, tmp_path: Path) -> None:
    """An import into a shop where nothing else happens is learnt by the next retrain."""
    leader = trainer.Trainer(Settings.load({"shared": str(tmp_path), "worker": "t1"}), log, log)  # type: ignore[arg-type]
    assert leader.stored() == 0
    past = shop.history(seed=1, users=5, rate=1.0, end_ms=10**12, duration_ms=60_000)
    count = history.write(past, leader.lake, leader.settings.sessions())
    assert leader.stored() == count > 0
