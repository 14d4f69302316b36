"""A storm: workers, broker, trainer and folders are killed, frozen and taken away under load; then all is counted.

`python tests/faults/storm.py` (`make faults`) runs the long one; NEXTCLICK_FAULTS_KILLS=5 and the like change it.
Prints a table, and one line of JSON with `--json`; ends with 1 where anything is lost, doubled, cut or stale.
"""

from __future__ import annotations

import json
import logging
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import arena as arenas

from deploy import kafka as real_kafka

GAP_MS, LATENESS_MS, KEEP_MS = 1_000, 40_000, 60_000  # some 3,500 open sessions a partition
BURST = 3  # events that one user sends at once: as many sessions are predicted for as there are bursts
CHANGING = ("B", "C")  # workers that come and go; A stays
BEHIND_S = 30.0  # of the full rate: where more waits, the source sends a tenth until it is caught up with
FLOWS_S, CAUGHT_UP_S = 45.0, 20.0  # a deed waits so long for the lake to go on, and for what was sent before it


@dataclass(frozen=True)
class Plan:
    """What a storm consists of."""

    seed: int = 1
    rate: int = 3_000  # events a second at most
    kills: int = 50  # kill -9 of a worker
    members: int = 20  # joins, leaves, kills and freezes of two more
    brokers: int = 10  # kill -9 of the broker
    trainers: int = 2  # kill -9 of the trainer in mid-train
    folders: int = 2  # the registry's folder is away for a while
    minutes: int = 17  # for all of them: where they are late, what was sent is not waited for

    @classmethod
    def told(cls) -> Self:
        """As the environment says."""
        return cls(**{f.name: int(arenas.environment(f.name, f.default)) for f in fields(cls)})  # type: ignore[arg-type]


class Storm:
    """One run; `deeds` counts what was done."""

    def __init__(self, plan: Plan, broker: real_kafka.Kafka, folder: Path) -> None:
        self.plan, self.broker, self.chance = plan, broker, random.Random(plan.seed)
        self.arena = arenas.Arena(
            broker.address, folder, rate=plan.rate, gap_ms=GAP_MS, lateness_ms=LATENESS_MS, seed=plan.seed, burst=BURST,
            **{"store.keep": f"{KEEP_MS}ms", "cadence": "15s", "n_min": "100", "window": "20000",
               "horizon.next": "5s", "horizon.purchase": "5s"},
        )  # fmt: skip
        self.deeds: Counter[str] = Counter()
        self.thaw_s: dict[str, float] = {}  # who is frozen, until when
        self.again_s: dict[str, float] = {}  # who is to be started again, as a supervisor does: when
        self.ended: list[str] = []  # who ended by itself
        self.full_s = self.looked_s = 0.0  # how long the full rate was offered; when that was last looked at

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"{time.strftime('%H:%M:%S')} {text} (lake {self.arena.reached():,} of {self.arena.source.acked:,})",
              file=sys.stderr, flush=True)  # fmt: skip

    def tend(self) -> None:
        """What time brings: the frozen thaw, the ended are started again a second later."""
        now_s, arena = time.monotonic(), self.arena
        self.hold(now_s)
        for name in [n for n, at_s in self.thaw_s.items() if at_s <= now_s]:
            del self.thaw_s[name]
            arena.signal(name, signal.SIGCONT)
        for name, process in list(arena.workers.items()):
            if (code := process.poll()) is not None:
                del arena.workers[name]
                self.thaw_s.pop(name, None)
                self.ended.append(f"{name} ended with {code}: {arena.last_words(name)}")
                self.say(self.ended[-1])
                self.again_s[name] = now_s + 1
        for name in [n for n, at_s in self.again_s.items() if at_s <= now_s]:
            del self.again_s[name]
            arena.start(name, "trainer" if name == "T" else "worker")

    def hold(self, now_s: float) -> None:
        """The full rate, unless so much waits that the sessions of what is sent now would be over when it is read."""
        if now_s - self.looked_s < 1:
            return
        source = self.arena.source
        self.full_s += (now_s - self.looked_s) * (source.rate == self.plan.rate) * (self.looked_s > 0)
        behind = source.acked - self.arena.reached()
        source.rate = self.plan.rate / (10 if behind > BEHIND_S * self.plan.rate else 1)
        self.looked_s = now_s

    def pause(self, seconds: float) -> None:
        """Let it run for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.tend()
            time.sleep(0.05)

    def until(self, done: Callable[[], object], seconds: float) -> bool:
        """Let it run until something is so; whether it came to be."""
        end = time.monotonic() + seconds
        while not done():
            if time.monotonic() > end:
                return False
            self.pause(0.2)
        return True

    # deeds

    def kill(self) -> None:
        """kill -9 of a worker, which is started again."""
        running = sorted(self.arena.workers.keys() - {"T"})
        if not running:
            self.until(lambda: self.arena.workers.keys() - {"T"}, 30)
            return self.kill()
        name = self.chance.choice(running)
        self.thaw_s.pop(name, None)
        self.arena.signal(name, signal.SIGKILL)
        self.again_s[name] = time.monotonic() + 1
        self.deeds["kill"] += 1

    def member(self) -> None:
        """One of two more workers joins, leaves, is killed for good or is frozen."""
        name = self.chance.choice(CHANGING)
        if name not in self.arena.workers:
            self.again_s.pop(name, None)
            self.arena.start(name)
            self.deeds["join"] += 1
            return
        deed = self.chance.choice(("leave", "kill for good", "freeze", "freeze"))
        if name in self.thaw_s or deed == "freeze":
            self.thaw_s[name] = time.monotonic() + self.chance.choice(
                (self.chance.uniform(1, 5), self.chance.uniform(8, 16))
            )
            self.arena.signal(name, signal.SIGSTOP)
            self.deeds["freeze"] += 1
            return
        self.arena.signal(name, signal.SIGTERM if deed == "leave" else signal.SIGKILL)
        self.deeds[deed] += 1

    def broker_(self) -> None:
        """kill -9 of the broker, which comes back with its data; the source repeats what it may not have heard of."""
        self.broker.kill()
        self.pause(self.chance.uniform(0, 4))
        self.broker.restart()
        self.arena.source.repeat.set()
        self.deeds["broker"] += 1

    def trainer(self) -> None:
        """kill -9 of the trainer while it trains."""
        began = self.until(self.training, 90)
        if "T" in self.arena.workers:
            self.arena.signal("T", signal.SIGKILL)
            self.again_s["T"] = time.monotonic() + 1
            self.deeds["trainer in mid-train" if began else "trainer"] += 1

    def training(self) -> bool:
        """Whether the trainer has a retrain's process."""
        trainer = self.arena.workers.get("T")
        if trainer is None:
            return False
        children = Path(f"/proc/{trainer.pid}/task").glob("*/children")
        pids = [pid for path in children for pid in path.read_text().split()]
        return any(b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids)

    def folder(self) -> None:
        """The registry's folder is away for a while, as where a share is not mounted."""
        versions = self.arena.folder / "shared" / "versions"
        if self.until(versions.exists, 40):
            away = versions.with_name("away")
            versions.rename(away)
            self.pause(self.chance.uniform(5, 15))
            if versions.exists():  # somebody made a new one: what was written there stays
                for path in versions.iterdir():
                    shutil.move(path, away / path.name)
                versions.rmdir()
            away.rename(versions)
            self.deeds["registry away"] += 1

    def recover(self, due_s: float) -> None:
        """Wait until rows come to the lake again, and until `due_s` for those that were sent before this."""
        before, sent = self.arena.reached(), self.arena.source.acked
        if not self.until(lambda: self.arena.reached() > before, FLOWS_S):
            self.say(f"nothing came to the lake for {FLOWS_S:.0f} s")
        self.until(lambda: self.arena.reached() >= sent, min(CAUGHT_UP_S, due_s - time.monotonic()))

    def blow(self) -> None:
        """All deeds in an order that the seed says, at moments that it says."""
        plan, chance, began_s = self.plan, self.chance, time.monotonic()
        deeds = [self.kill] * plan.kills + [self.member] * plan.members + [self.broker_] * plan.brokers
        deeds += [self.trainer] * plan.trainers + [self.folder] * plan.folders
        chance.shuffle(deeds)
        for number, deed in enumerate(deeds, 1):
            deed()
            self.say(f"{number} of {len(deeds)}: {deed.__name__.strip('_')}, {self.arena.source.rate:.0f}/s")
            if number % 3:  # after every third the next comes before anything has recovered
                self.recover(began_s + 60 * plan.minutes * number / len(deeds))
            self.pause(chance.uniform(0, 3))

    def run(self) -> tuple[dict[str, Any], list[str]]:
        """From the first event to the last count."""
        arena, began_s = self.arena, time.monotonic()
        arena.start("A")
        arenas.wait_for(lambda: arena.owns("A"), 120, arena.tail)
        arena.start("T", "trainer")
        arena.source.start()
        arena.more()
        self.blow()
        self.say("stopping the source")
        self.until(lambda: not self.thaw_s and not self.again_s, 60)
        sent = arena.finish(self.tend)
        counts, faults = arena.counted(sent, KEEP_MS)
        swapped = sum(line.get("event") == "Swapped." for line in arena.logged("A", "B", "C"))
        counts |= {
            "swaps": swapped,
            "seconds_at_full_rate": round(self.full_s),
            "ended_by_themselves": len(self.ended),
            "seconds": round(time.monotonic() - began_s),
        }
        return counts, faults


def main() -> int:
    """Run it on a Kafka of its own in a folder of its own; the folder stays where something is wrong."""
    logging.disable(logging.ERROR)  # clients of a broker that is killed have much to say
    plan = Plan.told()
    folder = Path(tempfile.mkdtemp(prefix="nextclick-storm-"))
    with real_kafka.start(0, folder / "kafka") as broker:
        storm = Storm(plan, broker, folder)
        try:
            counts, faults = storm.run()
        except AssertionError as error:
            counts, faults = {}, [str(error)]
        finally:
            storm.arena.close()
    if "--json" in sys.argv:
        print(json.dumps({"plan": asdict(plan), "deeds": storm.deeds, "counts": counts, "faults": faults}))
    else:
        for name, value in [*storm.deeds.items(), *counts.items()]:
            print(f"{name.replace('_', ' '):24}{value:>12,}")
        print("\n".join(faults) or "nothing lost, nothing twice")
    print("\n".join(storm.ended), file=sys.stderr)
    if faults:
        print(f"what is left lies in {folder}", file=sys.stderr)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
