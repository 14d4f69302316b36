"""What a worker's memory and texts hold, until all that is bounded is full: 250,000 sessions, 100,000 searches, texts.

    python tests/benchmarks/held.py [--events 6000000] [--every 500000]

The people of the soak in one process: fold, learn, and ask for the vector of what each row says (hashed texts), as a
prediction does; no broker, no file, nothing predicted. A line every so many events, MB.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import visits

from featurestore import sessions
from featurestore.events import Origin, Row
from streams import codec
from trainer import texts
from trainer.predictor import Predictor

PARTITIONS, BATCH = 8, 500
COLUMNS = ("events", "rss", "cpu_us", "open", "words", "searches", "items", "sessions", "texts")


def learnt(model: Predictor, rows: list[Row]) -> None:
    """What a batch of rows leaves behind."""
    model.learn(rows)
    model.texts.known.tell(rows[-1].event.ts_ms)
    model.texts.vectors([texts.row_text(row) for row in rows])


def series(model: Predictor, count: int, every: int) -> None:
    """Feed it and print what it holds."""
    settings, rows = sessions.SessionSettings(), list[Row]()
    open_ = [sessions.OpenSessions() for _ in range(PARTITIONS)]
    offsets, began_s = [0] * PARTITIONS, time.process_time()
    for number, (at_ms, key, value, _) in enumerate(visits.events(count), 1):
        p = int(key[2:]) % PARTITIONS
        event, offsets[p] = codec.plain(value), offsets[p] + 1
        if event is not None:
            row = sessions.fold(open_[p], event, Origin("t", p, offsets[p], 0, at_ms), settings).row
            rows += [row] if row is not None else []
        if len(rows) >= BATCH:
            learnt(model, rows)
            rows = []
            for mine in open_:
                sessions.expire(mine, settings)
        if number % every == 0:
            holds, spent_s = model.holds(), time.process_time() - began_s
            told = (
                number, rss_mb(), round(1e6 * spent_s / every), sum(map(len, open_)), holds["words"],
                model.memory.searches, holds["items"], holds["sessions"], holds["texts"],
            )  # fmt: skip
            print("  ".join(f"{n:>9,}" for n in told), flush=True)
            began_s = time.process_time()


def rss_mb() -> int:
    """Resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") // 2**20


def main() -> None:
    """Parse, run, print."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--events", type=int, default=6_000_000)
    asked.add_argument("--every", type=int, default=500_000)
    said = asked.parse_args()
    print("  ".join(f"{name:>9}" for name in COLUMNS), flush=True)
    with tempfile.TemporaryDirectory(prefix="nextclick-held-") as folder:
        series(Predictor.cold(texts.Texts(None, Path(folder), "held")), said.events, said.every)


if __name__ == "__main__":
    main()
