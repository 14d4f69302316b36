"""A worker and a trainer that are asked to end while the broker is frozen: they end, and nothing is lost."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from deploy import ending
from deploy.kafka import Kafka
from deploy.settings import Settings
from featurestore import lake
from streams import client, topics

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

SAID = "Ended without its goodbyes"


class Run:
    """Folders of its own; processes whose words go to NAME.log."""

    def __init__(self, kafka: str, folder: Path) -> None:
        self.folder = folder
        self.said = {"kafka": kafka, "encoder": "none", "worker": "w", "shared": str(folder / "shared"),
                     "store.folder": str(folder / "store"), "bots.pace": "0s"}  # fmt: skip
        self.settings = Settings.load(self.said)

    def start(self, name: str) -> subprocess.Popen[bytes]:
        """A process of the product."""
        options = [a for k, v in self.said.items() for a in ("--set", f"{k}={v}")]
        with (self.folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen([sys.executable, "-m", f"deploy.{name}", *options], stdout=log, stderr=log)

    def words(self, name: str) -> str:
        """What a process said."""
        return (self.folder / f"{name}.log").read_text()

    def ids(self) -> Counter[str]:
        """How often each event lies in the lake."""
        return Counter(row.event.event_id for row in lake.Lake(self.settings.shared, "test").cover().rows())


def send(kafka: str, first: int, last: int) -> None:
    """Events that the broker has acknowledged."""
    with client.EventProducer(kafka) as producer:
        for n in range(first, last):
            producer.send({"event_id": f"e{n}", "type": "view", "user_id": f"u{n % 50}", "item_id": f"i{n % 7}",
                           "ts": int(time.time() * 1000)})  # fmt: skip
        producer.flush(30)


def until(done: Callable[[], bool], told: Callable[[], str]) -> None:
    """Wait, and say what was seen where it does not come."""
    end = time.monotonic() + 90
    while not done():
        assert time.monotonic() < end, told()
        time.sleep(0.2)


def predicted(kafka: str) -> str:
    """Wait for a first prediction: the worker works."""
    with client.PredictionConsumer(kafka, from_start=True) as consumer:
        return next(iter(consumer)).user_id


def test_frozen_broker_holds_no_stop_up(own_kafka: Kafka, tmp_path: Path) -> None:
    """SIGTERM while the broker is frozen: both end by themselves and say so; the next worker misses no event."""
    run = Run(own_kafka.address, tmp_path)
    topics.ensure(run.settings.kafka, run.settings.topics())
    processes = {name: run.start(name) for name in ("worker", "trainer")}
    send(own_kafka.address, 0, 100)
    assert predicted(own_kafka.address)
    until(lambda: "Leading." in run.words("trainer"), lambda: run.words("trainer"))
    send(own_kafka.address, 100, 2_000)  # some are read, some predicted, some acknowledged
    own_kafka.process.send_signal(signal.SIGSTOP)
    try:
        for process in processes.values():
            process.send_signal(signal.SIGTERM)
        codes = {name: process.wait(120) for name, process in processes.items()}
    finally:
        own_kafka.process.send_signal(signal.SIGCONT)
        for process in processes.values():
            process.kill()
    assert codes == dict.fromkeys(processes, ending.CUT_SHORT), {name: run.words(name) for name in codes}
    assert [name for name in codes if SAID not in run.words(name) or "Traceback" in run.words(name)] == []
    assert run.words("worker").count("Partition released") == 8, run.words("worker")  # committed and flushed before

    worker = run.start("worker")
    until(lambda: len(run.ids()) == 2_000, lambda: run.words("worker"))
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(120) == 0, run.words("worker")
    assert set(run.ids().values()) == {1}
    assert run.words("worker").count(SAID) == 1  # the first one's
