"""What one event costs, stage by stage, on one thread and without a broker."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiokafka
import pyarrow as pa
import pytest
from faust.types import TP
from full_topic import messages

from featurestore import events, lake, sessions, store
from streams import codec, ingest, transport

pytestmark = pytest.mark.timeout(1_800)
COUNT, POLL, TURNS = 100_000, 4_000, 3
Timed = Callable[[str, Callable[[], Any]], Any]


def records(count: int) -> list[Any]:
    """Messages as aiokafka hands them over."""
    made = []
    for offset, (key, value) in enumerate(messages(count)):
        made.append(aiokafka.ConsumerRecord(
            "t", 0, offset, int(time.time() * 1000), 0, key, value, 0, len(key), len(value), ()
        ))  # fmt: skip
    return made


def apart(polls: list[list[Any]], folder: Path, timed: Timed) -> None:
    """The pure steps one after the other, each over a whole poll."""
    open_, settings = sessions.OpenSessions(), sessions.SessionSettings()
    opened, written = store.Store(folder / "apart.duckdb"), lake.Lake(folder / "apart", "w")
    key, first = store.PartitionKey("t@log", 0), 0
    for poll in polls:
        decoded = timed("decode", lambda poll=poll: [_decoded(record) for record in poll])

        def fold(poll: list[Any] = poll, decoded: list[Any] = decoded) -> list[events.Row]:
            rows = []
            for record, event in zip(poll, decoded, strict=True):
                if event is not None:
                    origin = events.Origin(key.topic, 0, record.offset, 0, record.timestamp)
                    row = sessions.fold(open_, event, origin, settings).row
                    if row is not None:
                        rows.append(row)
            sessions.expire(open_, settings)
            return rows

        rows = timed("fold", fold)
        table = timed("columns", lambda rows=rows: pa.table(events.to_columns(rows), schema=lake.SCHEMA))
        progress = store.Progress(poll[-1].offset + 1, open_.watermark_ms, open_.stored, open_.duplicates, 0)
        timed("commit", lambda rows=rows, p=progress: opened.commit(store.Batch(rows, {key: p})))
        del table
    for nxt in range(0, COUNT + 1, 5 * POLL):
        if nxt:
            read = timed("flush: read", lambda first=first, nxt=nxt: opened.flush_rows({key: (first, nxt)})[key])
            said = lake.LakeProgress(next=nxt)
            timed("flush: write", lambda a=first, b=nxt, t=read, s=said: written.write(key, a, b, t, s))
            first = nxt
    opened.close()


def _decoded(record: Any) -> events.Event | None:
    try:
        event = codec.decode(record.value, record.headers)[0]
    except codec.BadEvent:
        return None
    return event if isinstance(event, events.Event) else None


async def together(polls: list[list[Any]], folder: Path, cpu: dict[str, list[float]]) -> None:
    """The same through `Ingest`, as the worker does it."""
    taken = ingest.Ingest(
        store_=store.Store(folder / "together.duckdb"), lake_=lake.Lake(folder / "together", "w"),
        settings=sessions.SessionSettings(), log_ids={"t": "log"}, keep_ms=86_400_000,
    )  # fmt: skip
    tp = TP("t", 0)
    await taken.adopt({tp}, {tp: (0, COUNT)})
    spent: dict[str, float] = defaultdict(float)
    for poll in polls:
        began = time.process_time()
        batch = await taken.fold({tp: transport.Stretch(start=poll[0].offset, records=poll)})
        assert batch is not None
        spent["Ingest.fold"] += time.process_time() - began
        began = time.process_time()
        taken.acknowledged(batch.seq)
        async with taken.disk:
            await taken.commit()
        spent["Ingest.commit"] += time.process_time() - began
    began = time.process_time()
    await taken.flush()
    spent["Ingest.flush"] += time.process_time() - began
    taken.writer.shutdown()
    taken.store.close()
    for name, seconds in spent.items():
        cpu[name].append(seconds / COUNT * 1e6)


def test_stages(tmp_path: Path) -> None:
    """CPU µs an event, median of three turns."""
    made = records(COUNT)
    polls = [made[i : i + POLL] for i in range(0, COUNT, POLL)]
    cpu: dict[str, list[float]] = defaultdict(list)
    for turn in range(TURNS):
        folder = tmp_path / str(turn)
        folder.mkdir()
        spent: dict[str, float] = defaultdict(float)

        def timed(stage: str, step: Callable[[], Any], spent: dict[str, float] = spent) -> Any:
            began = time.process_time()
            made = step()
            spent[stage] += time.process_time() - began
            return made

        apart(polls, folder, timed)
        for name, seconds in spent.items():
            cpu[name].append(seconds / COUNT * 1e6)
        asyncio.run(together(polls, folder, cpu))
    print(f"\nCPU µs an event, {COUNT:,} events in polls of {POLL:,}, median of {TURNS} turns")
    for name, each in cpu.items():
        print(f"  {name:<14} {statistics.median(each):6.2f}   [{', '.join(f'{us:.2f}' for us in each)}]")
