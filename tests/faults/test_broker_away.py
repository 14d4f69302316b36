"""A broker that is away for longer than any request may take: whoever has nothing to do waits for it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from one_worker import Site, event

from deploy.kafka import Kafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

AWAY_S = 50.0  # aiokafka gives what was sent up after 40


def test_idle_worker_outlives_the_broker(own_kafka: Kafka, tmp_path: Path) -> None:
    """Its beats are lost, it says so, and it goes on with the first event that comes afterwards."""
    site = Site(own_kafka.address, tmp_path)
    try:
        site.start()
        site.send(event(1))
        site.settled(stored=1)
        own_kafka.kill()
        time.sleep(AWAY_S)
        assert site.process is not None
        assert site.process.poll() is None, site.told()[-3000:]
        own_kafka.restart()
        site.send(event(2))
        site.settled(stored=2)
        assert site.process.poll() is None
        assert "A beat did not arrive" in site.told()
        assert "Traceback" not in site.told()
        assert site.stop() == 0
        assert site.ids() == ["e1", "e2"]
    finally:
        site.close()
