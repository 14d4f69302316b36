"""Events that never were in Kafka, folded into sessions and written to the lake as `~history`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

from featurestore import lake, sessions
from featurestore.events import Event, Origin, Row
from featurestore.lake import PartitionKey

CHUNK = 50_000


def write(past: Iterable[Event], into: lake.Lake, settings: sessions.SessionSettings) -> int:
    """Write events in order of time beyond what `~history` holds already; how many rows were stored."""
    known = into.cover().end
    started = {k: v for k, v in known.items() if k.topic == lake.HISTORY}
    open_: dict[PartitionKey, sessions.OpenSessions] = defaultdict(sessions.OpenSessions)
    offsets: dict[PartitionKey, int] = defaultdict(int, started)
    waiting: dict[PartitionKey, list[Row]] = defaultdict(list)
    stored = 0
    for event in past:
        key = lake.history_key(event.user_id)
        origin = Origin(key.topic, key.partition, offsets[key], 0, event.ts_ms)
        folded = sessions.fold(open_[key], event, origin, settings)
        if folded.row is None:
            continue
        offsets[key] += 1
        waiting[key].append(folded.row)
        stored += 1
        if len(waiting[key]) >= CHUNK:
            _flush(into, key, waiting.pop(key))
    for key, rows in waiting.items():
        _flush(into, key, rows)
    return stored


def _flush(into: lake.Lake, key: PartitionKey, rows: list[Row]) -> None:
    into.write_rows(key, rows[0].origin.offset, rows)
