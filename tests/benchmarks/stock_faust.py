"""The same work in a stock Faust agent, as its manual has it: decode, validate, sessions in memory, rows into DuckDB.

Kinder than real life: a plain dictionary instead of a table with its changelog, Arrow instead of executemany, no lake,
no start rule. Arguments: kafka, topic, folder, events. Prints one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import duckdb
import faust
import orjson
import pyarrow as pa

REQUIRED = ("event_id", "type", "user_id", "ts")
TYPES = frozenset({"browse", "view", "click", "search", "cart", "remove", "checkout", "purchase", "impression"})
FIELDS = ("event_id", "type", "user_id", "ts", "item_id", "title", "category", "brand", "price", "currency", "position")
GAP_MS = 1_800_000


def main(kafka: str, topic: str, folder: Path, events: int) -> None:
    """Read so many and tell how long it took."""
    folder.mkdir(parents=True, exist_ok=True)
    con = duckdb.connect(str(folder / "stock.duckdb"))
    con.execute("SET threads = 1")
    con.execute(
        "CREATE TABLE events (event_id VARCHAR, type VARCHAR, user_id VARCHAR, ts BIGINT, item_id VARCHAR, "
        "title VARCHAR, category VARCHAR, brand VARCHAR, price DOUBLE, currency VARCHAR, position BIGINT)"
    )
    app = faust.App(
        f"stock-{uuid.uuid4().hex[:8]}", broker=f"kafka://{kafka}", store="memory://", web_enabled=False,
        topic_disable_leader=True, datadir=str(folder / "faust"),
    )  # fmt: skip
    open_sessions: dict[str, dict[str, Any]] = {}
    seen = {"events": 0, "rows": 0}
    begun: dict[str, float] = {}

    def fold(event: dict[str, Any]) -> bool:
        session = open_sessions.get(event["user_id"])
        if session is None or event["ts"] > session["last"] + GAP_MS:
            session = open_sessions[event["user_id"]] = {"last": 0, "ids": set(), "events": []}
        if event["event_id"] in session["ids"]:
            return False
        session["ids"].add(event["event_id"])
        session["events"].append(event)
        session["last"] = max(session["last"], event["ts"])
        return True

    @app.agent(app.topic(topic, value_serializer="raw"), name="stock")  # type: ignore[untyped-decorator]
    async def stock(stream: Any) -> None:
        async for values in stream.take(1_000, within=0.1):
            if not begun:
                begun.update(wall=time.monotonic(), cpu=time.process_time())
            rows = []
            for value in values:
                event = orjson.loads(value)
                if all(name in event for name in REQUIRED) and event["type"] in TYPES and fold(event):
                    rows.append(event)
            table = pa.table({name: [row.get(name) for row in rows] for name in FIELDS})
            con.register("batch", table)
            con.execute("INSERT INTO events SELECT * FROM batch")
            con.unregister("batch")
            seen["events"] += len(values)
            if seen["events"] >= events:
                wall, cpu = time.monotonic() - begun["wall"], time.process_time() - begun["cpu"]
                print(json.dumps({"events": seen["events"], "seconds": wall, "cpu_s": cpu}), flush=True)
                os._exit(0)

    faust.Worker(app, loglevel="error", redirect_stdouts=False, quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
