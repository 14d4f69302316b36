"""What an open session costs in memory, and what an event costs as sessions, partitions and items grow.

    python tests/benchmarks/growth.py [--sessions 1000,10000,100000,1000000] [--folder docs/img]

Each point in a process of its own; CPU µs an event, the best of three turns. Writes `growth.svg` and prints the points.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import math
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiokafka
import orjson
import structlog
from faust.types import TP

from featurestore import lake, sessions, store
from streams import ingest, transport

EVENTS, POLL, TURNS = 48_000, 4_000, 3
START_MS = 1_770_000_000_000


def polls(count: int, users: int, items: int, partitions: int, ends: list[int], spread: bool) -> Any:
    """Polls of views; `spread`: each user in turn, else at random."""
    pick, number = random.Random(7), sum(ends)
    for first in range(0, count, POLL):
        poll: dict[int, list[Any]] = {}
        for i in range(first, min(count, first + POLL)):
            user, item = (i if spread else pick.randrange(users)) % users, pick.randrange(items)
            p, at_ms = user % partitions, START_MS + number // 100
            value = orjson.dumps({
                "event_id": f"{number:x}", "type": "view", "user_id": f"u-{user}", "ts": at_ms,
                "item_id": f"sku-{item}", "title": f"Kestrel light trail shoes {item}", "category": "Sports > Shoes",
            })  # fmt: skip
            key = b"u-%d" % user
            record = aiokafka.ConsumerRecord("t", p, ends[p], at_ms, 0, key, value, 0, len(key), len(value), ())
            poll.setdefault(p, []).append(record)
            ends[p], number = ends[p] + 1, number + 1
        yield {TP("t", p): transport.Stretch(start=r[0].offset, records=r) for p, r in poll.items()}


async def point(users: int, partitions: int, items: int, rows: int) -> dict[str, float]:
    """Open that many sessions of `rows` events each, then time `EVENTS` more of the same users."""
    with tempfile.TemporaryDirectory(prefix="nextclick-growth-") as folder:
        taken = ingest.Ingest(
            store_=store.Store(Path(folder) / "g.duckdb"), lake_=lake.Lake(Path(folder) / "shared", "g"),
            settings=sessions.SessionSettings(), log_ids={"t": "log"}, keep_ms=86_400_000,
        )  # fmt: skip
        parts = {TP("t", p) for p in range(partitions)}
        await taken.adopt(parts, dict.fromkeys(parts, (0, 0)))
        ends = [0] * partitions
        before = rss_bytes()
        for poll in polls(users * rows, users, items, partitions, ends, True):
            await taken.fold(poll)
            taken.waiting.clear()  # memory of the fold alone: nothing goes to the disk
        held = (rss_bytes() - before) / users
        gc.freeze()
        cpu = []
        for _ in range(TURNS):
            made = list(polls(EVENTS, users, items, partitions, ends, False))
            begun = time.process_time()
            for poll in made:
                batch = await taken.fold(poll)
                assert batch is not None
                taken.acknowledged(batch.seq)
                async with taken.disk:
                    await taken.commit()
            cpu.append((time.process_time() - begun) / EVENTS * 1e6)
        begun = time.process_time()
        await taken.flush()
        flush = time.process_time() - begun
    return {"bytes": round(held), "cpu_us": round(min(cpu), 2), "flush_s": round(flush, 3)}


def rss_bytes() -> int:
    """Resident memory after a collection."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def apart(**said: int) -> dict[str, float]:
    """One point, in a process of its own."""
    done = subprocess.run([sys.executable, __file__, "--point", json.dumps(said)], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return dict(json.loads(done.stdout))


def plot(series: dict[str, list[tuple[int, float]]]) -> str:
    """Lines over a logarithmic axis, as SVG."""
    colours, top = ("#1b6ca8", "#c8553d", "#588157"), 1.15 * max(y for line in series.values() for _, y in line)
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 300" font-family="sans-serif" font-size="12">',
           '<rect width="640" height="300" fill="white"/>']  # fmt: skip
    for k in range(5):
        y = 260 - 220 * k / 4
        out.append(f'<path d="M50 {y}H470" stroke="#ddd"/><text x="44" y="{y + 4}" text-anchor="end">'
                   f"{top * k / 4:.0f}</text>")  # fmt: skip
    for e in range(7):
        out.append(f'<text x="{50 + 70 * e}" y="278" text-anchor="middle">10{"⁰¹²³⁴⁵⁶"[e]}</text>')
    out.append('<text x="50" y="28">CPU µs an event: decode, fold, dedupe, commit</text>')
    for (name, line), colour in zip(series.items(), colours, strict=False):
        at = [(50 + 70 * math.log10(x), 260 - 220 * y / top) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in at]
        out.append(f'<text x="{at[-1][0] + 8:.1f}" y="{at[-1][1] + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*out, "</svg>\n"])


def main() -> None:
    """All points, printed as they come, then the picture."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--sessions", default="1000,10000,100000,1000000")
    asked.add_argument("--partitions", default="1,4,16,64")
    asked.add_argument("--items", default="1000,10000,100000,1000000")
    asked.add_argument("--folder", type=Path, default=Path("docs/img"))
    asked.add_argument("--point", help=argparse.SUPPRESS)
    said = asked.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    if said.point:
        print(json.dumps(asyncio.run(point(**json.loads(said.point)))))
        return
    usual = {"users": 10_000, "partitions": 8, "items": 2_000, "rows": 2}
    series: dict[str, list[tuple[int, float]]] = {}
    for name, what in (("open sessions", "users"), ("partitions", "partitions"), ("items", "items")):
        for n in map(int, getattr(said, {"users": "sessions"}.get(what, what)).split(",")):
            found = apart(**usual | {what: n})
            series.setdefault(name, []).append((n, found["cpu_us"]))
            print(f"{n:>9,} {name:<14} {found['cpu_us']:6.2f} CPU µs an event, flush {found['flush_s']:.2f} CPU s",
                  flush=True)  # fmt: skip
    for users in (100_000, 1_000_000):
        one, three = (apart(**usual | {"users": users, "rows": rows})["bytes"] for rows in (1, 3))
        print(f"{users:>9,} open sessions  {one:,.0f} bytes each of 1 event, {three:,.0f} of 3: "
              f"{(three - one) / 2:,.0f} bytes an event more", flush=True)  # fmt: skip
    said.folder.mkdir(parents=True, exist_ok=True)
    (said.folder / "growth.svg").write_text(plot(series), encoding="utf-8")


if __name__ == "__main__":
    main()
