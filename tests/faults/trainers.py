"""Trainers on a lake with history, driven and read from outside."""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

from kafka.admin import KafkaAdminClient

from deploy import history
from deploy.demo import shop
from deploy.settings import Settings
from deploy.trainer import VERDICTS
from featurestore import lake
from streams import control, topics


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
        return self.count(name, sentence) > 0

    def count(self, name: str, sentence: str) -> int:
        """How often a trainer's log has it."""
        return (self.folder / f"{name}.log").read_text(errors="replace").count(sentence)

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


def begun(arena: Arena) -> bool:
    """A's retrain runs."""
    return bool(arena.of("retrain.started", "A")) and arena.child("A") is not None
