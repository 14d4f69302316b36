"""Files whose lines are not in the order in which things happened: told before anything is written, or sorted."""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path

import pyarrow as pa

from deploy import replay
from featurestore import database, disk, lake, sessions
from featurestore.events import Event, Origin
from featurestore.lake import PartitionKey
from streams import codec

SAMPLE = 20_000  # messages
SHARE = 0.05  # of events behind those before them, beyond which a file is taken to be in no order
CHUNK = 50_000
_SHAPE = pa.schema([("ts_ms", pa.int64()), ("value", pa.binary())])


class NotInOrder(ValueError):
    """The file's lines are in no order of time; the message says how many lie behind, and the remedy."""


def require(file: Path, dialect: str | None, settings: sessions.SessionSettings, keep: Collection[str]) -> None:
    """Raises NotInOrder where too many of the first events lie behind others by more than may arrive late."""
    open_: dict[PartitionKey, sessions.OpenSessions] = defaultdict(sessions.OpenSessions)
    events = behind = 0
    for line in itertools.islice(replay.lines(file, dialect), SAMPLE):
        for event in _events(line, keep):
            key = lake.history_key(event.user_id)
            folded = sessions.fold(
                open_[key], event, Origin(key.topic, key.partition, events, 0, event.ts_ms), settings
            )
            events += 1
            behind += folded.outcome == "too-late" or (folded.row is not None and folded.row.late)
    if behind > SHARE * events:
        raise NotInOrder(
            f"{file} is not in order of time: {behind:,} of its first {events:,} events lie more than "
            f"{settings.lateness_ms / 60_000:g} min behind ones before them, and nothing is learnt at such: "
            "add --sort, which sorts it by `ts` first"
        )


def by_time(
    file: Path, into: Path, dialect: str | None, keep: Collection[str], tell: Callable[[int], None] = lambda _: None
) -> Path:
    """The same as events of our own, one a line, by their `ts`; what cannot be read stays where it was."""
    into.parent.mkdir(parents=True, exist_ok=True)
    scratch = into.with_suffix(".duckdb")
    for left in (scratch, *into.parent.glob(f".{into.name}.*.tmp")):  # by one that was killed over it
        left.unlink(missing_ok=True)
    with database.connect(scratch) as con:
        con.execute("CREATE TABLE lines (ts_ms BIGINT, value BLOB, place BIGINT)")
        place = 0
        source = _timed(replay.lines(file, dialect), keep)
        while some := list(itertools.islice(source, CHUNK)):
            chunk = pa.table([[ts for ts, _ in some], [value for _, value in some]], schema=_SHAPE)
            chunk = chunk.append_column("place", pa.array(range(place, place + len(some)), pa.int64()))
            con.register("chunk", chunk)
            con.execute("INSERT INTO lines SELECT * FROM chunk")
            con.unregister("chunk")
            place += len(some)
            tell(place)
        with disk.replacing(into) as temporary, temporary.open("wb") as out:
            for batch in con.sql("SELECT value FROM lines ORDER BY ts_ms, place").to_arrow_reader(CHUNK):
                out.writelines(value + b"\n" for value in batch.column(0).to_pylist())
    scratch.unlink()
    return into


def _timed(lines: Iterable[replay.Line], keep: Collection[str]) -> Iterator[tuple[int, bytes]]:
    """Each event with its time; a line that holds none as it is, at the time of the one before it."""
    last_ms = 0
    for line in lines:
        found = _events(line, keep)
        if not found or len(found) < line.events:
            yield last_ms, line.value
            continue
        for event in found:
            last_ms = event.ts_ms
            yield last_ms, codec.encode_event(event)


def _events(line: replay.Line, keep: Collection[str]) -> list[Event]:
    try:
        held = codec.decode(line.value, key=line.key, record_ms=round(time.time() * 1000), keep=keep)
    except codec.BadEvent:
        return []
    return [element for element in held if isinstance(element, Event)]
