"""A broker that is away for longer than any request may take: worker and trainer wait for it, and nothing is lost."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from one_worker import Site, event
from trainers import Arena, begun

from deploy.kafka import Kafka
from streams import control
from trainer import registry

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

AWAY_S = 50.0  # aiokafka gives what was sent up after 40, a writer of the control log after 20
SAID = ["trainer.leads", "retrain.started", "version.published", "champion.changed", "retrain.judged"]


def test_an_idle_worker_and_a_trainer_in_mid_train_outlive_the_broker(own_kafka: Kafka, tmp_path: Path) -> None:
    """The worker's beats are lost, it says so and goes on; what the trainer judged is told once the broker is back.

    Each entry of the control log counts once, the version is sound and the only one that had no champion before it,
    though the trainer may lose the lead and lead again meanwhile; the next command is answered once.
    """
    folders = [tmp_path / name for name in ("worker", "trainer")]
    for folder in folders:
        folder.mkdir()
    site, arena = Site(own_kafka.address, folders[0]), Arena(own_kafka.address, folders[1])
    try:
        site.start()
        site.send(event(1))
        site.settled(stored=1)
        arena.start("A", "Leading.")
        arena.wait(lambda: begun(arena), 60)
        arena.log.close()
        own_kafka.kill()
        time.sleep(AWAY_S)
        assert site.process is not None
        assert site.process.poll() is None, site.told()[-3000:]
        assert arena.trainers["A"].poll() is None
        arena.wait(lambda: arena.told("A", "what is to be said waits for the broker"), 60)
        own_kafka.restart()

        arena.follow()
        arena.wait(lambda: arena.verdicts("A"), 60)
        assert [e.kind for e in arena.entries.values() if e.by == "A"][:5] == SAID
        version = arena.of("champion.changed", "A")[0].data["version"]
        registry.Registry(arena.settings.shared).verify(version)
        assert arena.log.state.champion == version
        writer = control.ControlWriter(own_kafka.address, arena.settings.topics().control)
        asked = writer.append("retrain.now", by="ann").id
        writer.close()
        arena.wait(lambda: asked in {e.data.get("asked") for e in arena.of("retrain.started", "A")}, 60)
        arena.wait(lambda: arena.log.state.running is None, 150)
        started, judged = arena.of("retrain.started", "A"), arena.verdicts("A")
        assert [e.data["champion"] is None for e in started] == [True] + [False] * (len(started) - 1)
        assert len(started) == len(judged) + arena.count("A", "A retrain was dropped")
        published = [e.data["version"] for e in arena.of("version.published", "A")]
        assert published == [e.data["version"] for e in judged if e.data["accepted"]]
        assert arena.trainers["A"].poll() is None
        assert not arena.told("A", "Traceback")

        site.send(event(2))
        site.settled(stored=2)
        assert site.process.poll() is None
        assert "A beat did not arrive" in site.told()
        assert "Traceback" not in site.told()
        assert site.stop() == 0
        assert site.ids() == ["e1", "e2"]
    finally:
        arena.close()
        site.close()
