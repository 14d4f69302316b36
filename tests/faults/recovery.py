"""How long until the next prediction after a kill, a clean leave, a broker that comes back: medians, on a real Kafka.

`make faults` runs it behind the storm; NEXTCLICK_FAULTS_ROUNDS (10) says how often each. A partition has recovered when
it has a prediction about an event that was sent after the fault (for the broker: after it answers again).
"""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import aiokafka
import arena as arenas
import outside

from deploy import kafka as real_kafka
from deploy.supervisor import Child, Supervisor

RATE = 200
SETTLED_S = 2.0


class Watch:
    """Follows the predictions: of each partition when the newest was sent, and about an event of which instant."""

    def __init__(self, address: str, topic: str) -> None:
        self.address, self.topic = address, topic
        self.sent: list[tuple[int, float, float]] = []  # partition, sent, event sent; seconds since the epoch
        threading.Thread(target=lambda: asyncio.run(self._follow()), daemon=True).start()

    async def _follow(self) -> None:
        consumer = aiokafka.AIOKafkaConsumer(self.topic, bootstrap_servers=self.address, auto_offset_reset="earliest")
        await consumer.start()
        async for record in consumer:
            said = json.loads(record.value)
            event_s = datetime.fromisoformat(said["event_ts"]).timestamp()
            self.sent.append((said["trigger"]["partition"], record.timestamp / 1000, event_s))

    def recovered(self, fault_s: float) -> dict[int, float]:
        """Of each partition that has recovered since a fault: after how many seconds."""
        found: dict[int, float] = {}
        for partition, sent_s, event_s in reversed(self.sent):
            if sent_s < fault_s - 60:
                break
            if event_s > fault_s:
                found[partition] = sent_s - fault_s
        return found


class Bench:
    """Two workers under the product's supervisor, a steady source, a watch."""

    def __init__(self, broker: real_kafka.Kafka, folder: Path) -> None:
        self.broker = broker
        self.arena = arenas.Arena(broker.address, folder, rate=RATE, gap_ms=3_000, lateness_ms=30_000)
        self.arena.source.back_ms = 0
        self.supervisor = Supervisor(lambda text: print(text[:100], file=sys.stderr))
        self.children: dict[str, Child] = {}

    def start(self, name: str) -> None:
        """A worker that is started again where it ends."""
        child = Child(name=name, command=self.arena.command(name), output=self.arena.folder / f"{name}.log")
        self.arena.begun[name] = child.output.stat().st_size if child.output.exists() else 0
        self.children[name] = child
        self.supervisor.start(child)

    def wait(self, done: Callable[[], object], seconds: float = 90) -> None:
        """Until something is so; what has ended is started again meanwhile."""
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, self.arena.tail()
            self.supervisor.step()
            time.sleep(0.05)

    def settle(self, *names: str) -> None:
        """Until these own all partitions and each has had a prompt prediction for a while."""
        for name in self.children.keys() - set(names):
            self.leave(name)
        for name in set(names) - self.children.keys():
            self.start(name)
        self.wait(lambda: all(self.arena.owns(name) for name in names))
        for child in self.children.values():
            child.failures = 0  # as after a minute in health: the next restart is prompt
        since_s = time.time()
        self.wait(lambda: time.time() > since_s + SETTLED_S and self.flows(time.time() - 1))

    def flows(self, since_s: float) -> bool:
        """Whether every partition was predicted for since then."""
        return len(self.watch.recovered(since_s)) == len(outside_partitions(self.arena))

    def leave(self, name: str) -> None:
        """A clean stop."""
        child = self.children.pop(name)
        self.supervisor.children.remove(child)
        assert child.process is not None
        child.process.send_signal(signal.SIGTERM)

    def kill(self, name: str) -> float:
        """kill -9, by which its log begins anew; when."""
        process = self.children[name].process
        assert process is not None
        process.kill()
        fault_s = time.time()
        process.wait()
        self.arena.begun[name] = self.children[name].output.stat().st_size
        return fault_s

    def killed(self) -> float:
        """kill -9 while a second worker is alive."""
        self.settle("A", "B")
        return self.kill("A")

    def killed_alone(self) -> float:
        """kill -9 of the only worker, which the supervisor starts again."""
        self.settle("A")
        return self.kill("A")

    def left(self) -> float:
        """A clean stop while a second worker is alive."""
        self.settle("A", "B")
        fault_s = time.time()
        self.leave("B")
        return fault_s

    def restarted(self) -> float:
        """The broker killed and started again: from when it answers."""
        self.settle("A")
        self.broker.kill()
        self.broker.restart()
        return time.time()

    def measure(self, rounds: int, names: list[str]) -> dict[str, dict[str, object]]:
        """Each fault (those that are named, or all) so many times."""
        self.start("A")
        self.wait(lambda: self.arena.owns("A"))
        self.arena.source.start()
        self.wait(lambda: len(outside_partitions(self.arena)) == 8)
        self.watch = Watch(self.broker.address, self.arena.predictions)
        found: dict[str, dict[str, object]] = {}
        for fault in (self.killed, self.killed_alone, self.left, self.restarted):
            if names and fault.__name__ not in names:
                continue
            first, last = [], []
            for _ in range(rounds):
                fault_s = fault()

                def seen(fault_s: float = fault_s) -> dict[int, float]:
                    return self.watch.recovered(fault_s)

                self.wait(lambda: len(seen()) == len(outside_partitions(self.arena)))
                times = seen().values()
                first.append(round(min(times), 2))
                last.append(round(max(times), 2))
                print(
                    f"{fault.__name__}: first {first[-1]} s, all partitions {last[-1]} s", file=sys.stderr, flush=True
                )
            found[fault.__name__] = {
                "median_s": statistics.median(last), "all_s": last, "first_median_s": statistics.median(first),
            }  # fmt: skip
        return found

    def close(self) -> None:
        """End everything."""
        for child in self.supervisor.children:
            if child.process is not None:
                child.process.kill()
        self.arena.close()


def outside_partitions(arena: arenas.Arena) -> list[int]:
    """The partitions that the lake knows: all that were ever read."""
    return [partition for partition, _ in outside.segments(arena.folder / "shared", arena.events)]


def main() -> None:
    """Run it on a Kafka of its own and print a table, one line of JSON with `--json`."""
    logging.disable(logging.ERROR)
    folder = tempfile.TemporaryDirectory(prefix="nextclick-recovery-", ignore_cleanup_errors=True)
    with folder as name, real_kafka.start(0, Path(name) / "kafka") as broker:
        bench = Bench(broker, Path(name))
        try:
            found = bench.measure(int(arenas.environment("rounds", 10)), [a for a in sys.argv[1:] if a != "--json"])
        finally:
            bench.close()
    if "--json" in sys.argv:
        print(json.dumps(found))
        return
    for fault, said in found.items():
        print(f"{fault.replace('_', ' '):14} median {said['median_s']:5.2f} s, first partition "
              f"{said['first_median_s']:5.2f} s; all: {said['all_s']}")  # fmt: skip


if __name__ == "__main__":
    main()
