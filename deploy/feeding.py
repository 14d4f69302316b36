"""Where a run's events come from: a file, the simulated shop, or nowhere; sent by a thread of its own."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec

from deploy import history, replay
from deploy.demo import scenarios, shop
from deploy.settings import Settings
from featurestore import lake


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """Which events; without a file and without `simulate` there are none but those of others."""

    replay: Path | None = None
    speed: float | None = None  # times as fast as the file's events happened; None: as fast as possible
    simulate: bool = False
    rate: float = 30.0  # simulated events a second
    users: int = 2_000
    seed: int = 7
    scenario: str = "usual"
    history_ms: int = 0  # simulated time before the start


class Input:
    """The thread that sends events; it counts what it sent."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.sent = replay.Sent()
        self.failed: Exception | None = None
        self.done = not (source.replay or source.simulate)
        self._settings, self._source, self._stop = settings, source, threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="input")

    def start(self) -> None:
        """Send from now on."""
        if not self.done:
            self._thread.start()

    def _run(self) -> None:
        try:
            producer = replay.producer(self._settings.kafka)
            lines, speed = opened(self._source)
            replay.play(lines, producer, self._settings["topics.events"][0], speed=speed, sent=self.sent,
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


def opened(source: Source) -> tuple[Iterator[replay.Line], float | None]:
    """Its lines and the speed to send them at."""
    if source.replay is not None:
        return replay.opened(source.replay), source.speed
    made = _shop(source, int(time.time() * 1000))
    return (replay.Line(m.key.encode(), m.value, m.at_ms, m.events) for m in made.messages()), 1.0


def write_file(source: Source, file: Path, duration_ms: int) -> int:
    """So much of the shop's time, the newest now, one message a line; how many events."""
    end_ms, count = int(time.time() * 1000), 0
    with gzip.open(file, "wb") if file.suffix == ".gz" else file.open("wb") as out:
        for message in _shop(source, end_ms - duration_ms).messages():
            if message.at_ms >= end_ms:
                return count
            out.write(message.value + b"\n")
            count += message.events
    return count


def _shop(source: Source, start_ms: int) -> shop.Shop:
    return shop.Shop(seed=source.seed, users=source.users, rate=source.rate, start_ms=start_ms,
                     scenario=scenarios.SCENARIOS[source.scenario])  # fmt: skip


def write_history(settings: Settings, source: Source, end_ms: int) -> int:
    """Simulated history through the lake, before anything is live; how many events."""
    past = shop.history(seed=source.seed, users=source.users, rate=source.rate, end_ms=end_ms,
                        duration_ms=source.history_ms, scenario=scenarios.SCENARIOS[source.scenario])  # fmt: skip
    return history.write(past, lake.Lake(settings.shared, "history"), settings.sessions())
