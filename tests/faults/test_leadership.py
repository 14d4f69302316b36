"""Two trainers on a real Kafka: one leads; where it is killed or frozen the other takes over and publishes."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kafka.admin import KafkaAdminClient

from deploy import history
from deploy.demo import shop
from deploy.kafka import Kafka
from deploy.settings import Settings
from deploy.trainer import VERDICTS
from featurestore import lake
from streams import control, topics
from trainer import registry

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


class Arena:
    """A lake with history, a control log of its own, trainers to be treated badly."""

    def __init__(self, address: str, folder: Path) -> None:
        self.folder, tag = folder, uuid.uuid4().hex[:8]
        said = {
            f"topics.{t}": f"{t}-{tag}" for t in ("events", "items", "dead_letters", "predictions", "control", "state")
        }
        said |= {"kafka": address, "shared": str(folder / "shared"), "store.folder": str(folder / "store")}
        said |= {"encoder": "none", "cadence": "1h", "n_min": "100", "horizon.next": "60s", "horizon.purchase": "60s"}
        self.said = said
        self.settings = Settings.load(said)
        past = shop.history(seed=1, users=60, rate=2.0, end_ms=1_800_000_000_000, duration_ms=1_800_000)
        assert history.write(past, lake.Lake(self.settings.shared, "history"), self.settings.sessions()) > 2_000
        topics.ensure(address, self.settings.topics())
        self.entries: dict[str, control.Entry] = {}
        self.trainers: dict[str, subprocess.Popen[bytes]] = {}
        self.follow()

    def follow(self) -> None:
        """Read the control log (anew)."""
        self.log = control.ControlLog(self.settings.kafka, self.heard, self.settings.topics().control)
        self.log.start()

    def heard(self, entry: control.Entry) -> None:
        """Keep each entry once, in order."""
        self.entries.setdefault(entry.id, entry)

    def start(self, name: str, until: str) -> None:
        """Start a trainer and wait until it says so."""
        arguments = [a for k, v in (self.said | {"worker": name}).items() for a in ("--set", f"{k}={v}")]
        with (self.folder / f"{name}.log").open("ab") as log:
            self.trainers[name] = subprocess.Popen(
                [sys.executable, "-m", "deploy.trainer", *arguments],
                stdout=log, stderr=log, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        self.wait(lambda: self.told(name, until), 60)

    def told(self, name: str, sentence: str) -> bool:
        """Whether a trainer's log has it."""
        return sentence in (self.folder / f"{name}.log").read_text(errors="replace")

    def of(self, kind: str, by: str) -> list[control.Entry]:
        """Entries of a kind that one trainer wrote."""
        return [e for e in self.entries.values() if (e.kind, e.by) == (kind, by)]

    def verdicts(self, by: str) -> list[control.Entry]:
        """What one trainer judged."""
        return [e for e in self.entries.values() if e.kind in VERDICTS and e.by == by]

    def child(self, name: str) -> int | None:
        """The process that a trainer's retrain runs in (not the resource tracker)."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields, command = stat.read_text(), (stat.parent / "cmdline").read_bytes()
            except OSError:
                continue
            if int(fields.rpartition(")")[2].split()[1]) == self.trainers[name].pid and b"spawn_main" in command:
                return int(stat.parent.name)
        return None

    def members(self) -> int:
        """How many trainers the settled group has."""
        admin = KafkaAdminClient(**self.settings.kafka.for_kafka_python())
        try:
            group = f"nextclick-trainer-{self.settings.topics().control}"
            told = admin.describe_groups([group])[group]
        finally:
            admin.close()
        return len(told["members"]) if told["group_state"] == "Stable" else 0

    def wait(self, done: Callable[[], object], seconds: float, every_s: float = 0.1) -> None:
        """Wait for a condition; fail with what it looked like at the end. Who is looked at gets the processor."""
        end = time.monotonic() + seconds
        while not done():
            logs = "\n".join(p.read_text(errors="replace")[-1500:] for p in sorted(self.folder.glob("*.log")))
            assert time.monotonic() < end, f"{[(e.kind, e.by) for e in self.entries.values()]}\n{logs}"
            time.sleep(every_s)

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for trainer in self.trainers.values():
            trainer.kill()
            trainer.wait()
        self.log.close()


@pytest.fixture
def arena(kafka: str, tmp_path: Path) -> Iterator[Arena]:
    """Ready with enough history to train on."""
    made = Arena(kafka, tmp_path)
    try:
        yield made
    finally:
        made.close()


def begun(arena: Arena) -> bool:
    """A's retrain runs."""
    return bool(arena.of("retrain.started", "A")) and arena.child("A") is not None


def half_written(arena: Arena) -> bool:
    """A's version has files but no name."""
    return any(p.name.endswith(".tmp") for p in (arena.settings.shared / "versions").glob(".*"))


@pytest.mark.parametrize("moment", [begun, half_written])
def test_the_other_takes_over_where_the_leader_is_killed(arena: Arena, moment: Callable[[Arena], bool]) -> None:
    """Killed while it trains or writes, A leaves no champion behind and no process; B leads and publishes."""
    arena.start("A", "Leading.")
    arena.start("B", "Standing by.")
    arena.wait(lambda: moment(arena), 120, every_s=0.002)
    child = arena.child("A")
    arena.trainers["A"].send_signal(signal.SIGKILL)
    arena.trainers["A"].wait()
    if sys.platform == "linux" and child is not None:
        arena.wait(lambda: not running(child), 10)
    arena.wait(lambda: arena.of("champion.changed", "B"), 150)
    arena.wait(lambda: arena.log.state.champion, 10)
    assert arena.log.state.champion == arena.of("champion.changed", "B")[0].data["version"]
    assert not arena.of("champion.changed", "A")
    versions = registry.Registry(arena.settings.shared)
    versions.verify(str(arena.log.state.champion))
    assert all(re.fullmatch(r"v\d{6}-[0-9a-f]{6}", name) for name in versions.names())


def test_who_leads_goes_on_when_another_joins_and_a_stop_hands_over(arena: Arena) -> None:
    """A newcomer does not take the lead; a clean stop in mid-train says nothing false and ends with 0; B leads."""
    arena.start("A", "Leading.")
    arena.wait(lambda: begun(arena), 60)
    os.kill(arena.child("A") or 0, signal.SIGSTOP)  # so that the stop surely comes in mid-train
    arena.start("B", "Standing by.")
    arena.wait(lambda: arena.members() == 2, 60)
    assert not arena.told("B", "Leading.")
    arena.trainers["A"].send_signal(signal.SIGTERM)
    assert arena.trainers["A"].wait(30) == 0
    arena.wait(lambda: arena.of("champion.changed", "B"), 150)
    assert [e.kind for e in arena.entries.values() if e.by == "A"] == ["retrain.started"]


def test_a_frozen_leader_that_thaws_changes_nothing_that_its_successor_said(arena: Arena) -> None:
    """A wakes up with an old retrain after B has published: B's champion stays."""
    arena.start("A", "Leading.")
    arena.start("B", "Standing by.")
    arena.wait(lambda: begun(arena), 60)
    arena.trainers["A"].send_signal(signal.SIGSTOP)
    arena.wait(lambda: arena.verdicts("B"), 150)
    champion = arena.log.state.champion
    arena.trainers["A"].send_signal(signal.SIGCONT)
    arena.wait(lambda: (arena.folder / "A.log").read_text().count("Standing by.") > 1, 60)
    assert champion is not None
    assert arena.log.state.champion == champion
    assert arena.trainers["A"].poll() is None


def test_a_broker_that_comes_back_is_followed_and_led_on(own_kafka: Kafka, tmp_path: Path) -> None:
    """The broker is killed and started again: the trainer answers the next command, and answers it once."""
    arena = Arena(own_kafka.address, tmp_path)
    try:
        arena.start("A", "Leading.")
        arena.wait(lambda: arena.verdicts("A"), 150)
        arena.log.close()
        own_kafka.kill()
        own_kafka.restart()
        arena.follow()
        writer = control.ControlWriter(own_kafka.address, arena.settings.topics().control)
        asked = writer.append("retrain.now", by="ann").id
        writer.close()
        arena.wait(lambda: len(arena.verdicts("A")) == 2, 150)
        assert [e.data.get("asked") for e in arena.of("retrain.started", "A")] == [None, asked]
        assert arena.trainers["A"].poll() is None
    finally:
        arena.close()


def running(pid: int) -> bool:
    """Whether a process is there and not merely unburied."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
