"""Two trainers on a real Kafka: one leads; where it is killed or frozen the other takes over and publishes."""

from __future__ import annotations

import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from trainers import Arena, begun

from trainer import registry

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


@pytest.fixture
def arena(kafka: str, tmp_path: Path) -> Iterator[Arena]:
    """Ready with enough history to train on."""
    made = Arena(kafka, tmp_path)
    try:
        yield made
    finally:
        made.close()


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
    assert [e.kind for e in arena.entries.values() if e.by == "A"] == ["trainer.leads", "retrain.started"]


def test_a_frozen_leader_that_thaws_changes_nothing_that_its_successor_said(arena: Arena) -> None:
    """A wakes up with an old retrain after B has published: B's champion stays."""
    arena.start("A", "Leading.")
    arena.start("B", "Standing by.")
    arena.wait(lambda: begun(arena), 60)
    arena.trainers["A"].send_signal(signal.SIGSTOP)
    arena.wait(lambda: arena.verdicts("B"), 150)
    champion = arena.log.state.champion
    arena.trainers["A"].send_signal(signal.SIGCONT)
    arena.wait(lambda: arena.count("A", "Standing by.") > 1, 60)
    assert champion is not None
    assert arena.log.state.champion == champion
    assert arena.trainers["A"].poll() is None


def running(pid: int) -> bool:
    """Whether a process is there and not merely unburied."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
