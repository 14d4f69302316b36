"""Workers and a trainer that are treated badly, beside a source of events; counted by `outside`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import outside
import source

from deploy import supervisor

ROOT = Path(__file__).parents[2]
BACK_MS = 4_000  # how far some event times lie behind their sending: less than the lateness, so nothing is late
FLUSH_S = 5.0
SLOWEST = 1_000  # events a second that are caught up with at least, where many wait


class Arena:
    """A topic set of its own, a source, and the product's processes, each with its log in the arena's folder."""

    def __init__(
        self, address: str, folder: Path, *, rate: float = 300, gap_ms: int = 3_000, lateness_ms: int = 6_000,
        seed: int = 7, burst: int = 1, **settings: str,
    ) -> None:  # fmt: skip
        self.address, self.folder, self.gap_ms, self.lateness_ms = address, folder, gap_ms, lateness_ms
        self.tag = uuid.uuid4().hex[:8]
        self.events, self.predictions = f"events-{self.tag}", f"predictions-{self.tag}"
        users = int(1.1 * rate / burst * gap_ms / 1000)  # sessions open, end and are bridged all the time
        self.source = source.Source(
            address, self.events, rate=rate, users=users, back_ms=BACK_MS, seed=seed, burst=burst
        )
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.begun: dict[str, int] = {}  # where the log of a running process begins
        topics = {t: f"{t}-{self.tag}" for t in ("events", "items", "dead_letters", "predictions", "control", "state")}
        self.said = {f"topics.{name}": topic for name, topic in topics.items()}
        self.said |= {"encoder": "none", "kafka": address, "shared": str(folder / "shared"), "logs": "json"}
        self.said |= {"session.gap": f"{gap_ms}ms", "session.lateness": f"{lateness_ms}ms"} | settings

    # processes

    def command(self, name: str, kind: str = "worker") -> list[str]:
        """How a process is started; each worker has a store folder of its own."""
        said = self.said | {"worker": name, "store.folder": str(self.folder / name)}
        return [sys.executable, "-m", f"deploy.{kind}", *(a for k, v in said.items() for a in ("--set", f"{k}={v}"))]

    def start(self, name: str, kind: str = "worker") -> None:
        """Start a worker or a trainer."""
        with (self.folder / f"{name}.log").open("ab") as log:
            log.write(b"\n")  # who died in the middle of a line did not end it
            log.flush()
            self.begun[name] = log.tell()
            self.workers[name] = subprocess.Popen(self.command(name, kind), stdout=log, stderr=log, cwd=ROOT)

    def signal(self, name: str, number: int) -> None:
        """Send a signal and, where it ends the process, wait for the end."""
        worker = self.workers[name]
        worker.send_signal(number)
        if number in (signal.SIGKILL, signal.SIGTERM):
            worker.wait(30)
            del self.workers[name]

    def logged(self, *names: str) -> list[dict[str, Any]]:
        """The log lines of some processes (of all), in their order; what is no JSON is left out."""
        found = []
        for path in sorted(self.folder.glob("*.log")):
            for line in path.read_text(errors="replace").splitlines() if not names or path.stem in names else ():
                try:
                    found.append(_said(line) | {"who": path.stem})
                except (ValueError, TypeError):
                    continue
        return found

    def last_words(self, name: str) -> str:
        """The end of what a process said since it was started."""
        with (self.folder / f"{name}.log").open(errors="replace") as log:
            log.seek(self.begun[name])
            lines = [line for line in log.read().splitlines() if line.strip() and not supervisor.LEAKS.match(line)]
        return " | ".join(lines[-3:])[-900:]

    def owns(self, name: str) -> set[int]:
        """The partitions that a worker has now, as its log says."""
        mine: set[int] = set()
        with (self.folder / f"{name}.log").open(errors="replace") as log:
            log.seek(self.begun[name])
            for line in log:
                if '"Partition assigned."' in line:
                    mine.add(_said(line)["partition"])
                elif '"Partition released."' in line:
                    mine.discard(_said(line)["partition"])
        return mine

    def owned_ms(self) -> dict[int, list[float]]:
        """When each partition got a new owner, as the workers' logs say."""
        found = defaultdict(list)
        for line in self.logged():
            if line.get("event") == "Partition assigned.":
                found[line["partition"]].append(datetime.fromisoformat(line["timestamp"]).timestamp() * 1000)
        return {partition: sorted(instants) for partition, instants in found.items()}

    def tail(self) -> str:
        """The ends of the logs, for a failure's message."""
        return "\n".join(f"{p.name}: {p.read_text(errors='replace')[-1500:]}" for p in self.folder.glob("*.log"))

    def close(self) -> None:
        """End everything, whatever state it is in."""
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
        self.source.kill()

    # what is seen from outside

    def reached(self) -> int:
        """How far the lake is, all partitions together."""
        return outside.reached(self.folder / "shared", self.events)

    def more(self, records: int = 300, seconds: float = 120) -> None:
        """Wait until the lake is so much further."""
        before = self.reached()
        wait_for(lambda: self.reached() >= before + records, seconds, self.tail)

    def finish(self, tend: Callable[[], None] = lambda: None) -> outside.Sent:
        """Stop sending, wait until all is in the lake, end every process cleanly; what the event topic holds.

        The last worker is ended when it owns everything: its file then holds everything.
        """
        self.source.stop()
        sent = outside.Sent()
        outside.scan(self.address, self.events, sent.take)
        end = sum(sent.ends.values())

        def complete() -> bool:
            tend()
            return self.reached() >= end

        behind = end - self.reached()
        wait_for(complete, 180 + behind / SLOWEST, lambda: f"{self.reached()} of {end}: {self.tail()}")
        *others, last = sorted(self.workers, reverse=True)
        for name in others:
            self.signal(name, signal.SIGTERM)
        wait_for(lambda: len(self.owns(last)) == len(sent.ends), 60, self.tail)
        self.signal(last, signal.SIGTERM)
        return sent

    def counted(self, sent: outside.Sent, keep_ms: int = 86_400_000) -> tuple[dict[str, Any], list[str]]:
        """Everything counted, after all have ended, and what is not as it must be."""
        lake = outside.lake(self.folder / "shared", self.events)
        rows, faults = outside.stores([p for p in self.folder.iterdir() if p.is_dir()], lake, sent.ends, keep_ms)
        told = outside.Told(self.owned_ms())
        outside.scan(self.address, self.predictions, told.take)
        first, wanted = np.array(sent.places), sent.sessions(self.gap_ms)
        source_ = self.source
        counts = {
            "sent": source_.sent, "acknowledged": source_.acked, "sent_again": source_.again,
            "records": sum(sent.ends.values()), "repeats": sent.repeats, "events": int((first >= 0).sum()),
            "lake_rows": len(lake.numbers), "lake_places": lake.distinct, "store_rows": rows,
            "overlapping_segments": lake.overlapping, "sessions": len(np.unique(wanted)), "merges": lake.merges,
            "longest_way_s": round(sent.behind_ms / 1000),
            "predictions": told.predictions, "redone": told.redone, "on_its_way": told.on_its_way,
            "zombies": len(told.zombies), "stale_users": len(told.stale(sent.newest)),
            "stale_after_compaction": len(told.covered_up(sent.newest)),
        }  # fmt: skip
        if not source_.sent == source_.acked == counts["events"] == counts["lake_rows"] == lake.distinct:
            faults.append("sent, acknowledged, events in the topic, rows and places of the lake are not one number")
        found = np.full(max(len(first), int(lake.numbers.max(initial=-1)) + 1), -1)
        found[lake.numbers] = lake.places
        if not np.array_equal(found, first):
            wrong = np.flatnonzero(found[: len(first)] != first)
            faults.append(f"{len(wrong)} events do not lie in the lake as they first came: {wrong[:5]}")
        if not np.array_equal(lake.sessions, wanted):
            wrong = np.flatnonzero(lake.sessions[: len(wanted)] != wanted[: len(lake.sessions)])
            faults.append(f"{len(wrong)} events are not in the session that they must be in: {wrong[:5]}")
        if sent.behind_ms >= self.lateness_ms:
            faults.append(f"an event came {sent.behind_ms / 1000:.0f} s late: more than the lateness asks to stand")
        faults += [f"the lake has a hole: {hole}" for hole in lake.holes]
        faults += [f"a zombie spoke: {zombie}" for zombie in told.zombies[:5]]
        if counts["stale_users"] or counts["stale_after_compaction"]:
            faults.append(f"stale users: {told.stale(sent.newest)[:5]}, {told.covered_up(sent.newest)[:5]}")
        return counts, faults


def wait_for(done: Callable[[], object], seconds: float, why: Callable[[], str] = str) -> None:
    """Wait for a condition; fail with what it looked like at the end."""
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, why()
        time.sleep(0.2)


def environment(name: str, default: float) -> float:
    """A number that `make faults` may be told, like NEXTCLICK_FAULTS_KILLS=5."""
    return float(os.environ.get(f"NEXTCLICK_FAULTS_{name.upper()}", default))


def _said(line: str) -> Any:
    """A log line; who died before may have left half of one in front of it."""
    return json.loads(line[line.index("{") :])
