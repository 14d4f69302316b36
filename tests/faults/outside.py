"""What an outsider counts: topics by a plain consumer, files by plain DuckDB, sessions by a sessioniser of its own.

Shares no code with the product: what it says of the product's counters is worth something.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiokafka
import duckdb
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Place = tuple[int, int]  # partition, offset
Ints = NDArray[np.int64]


# ---------------------------------------------------------------- topics


def scan(address: str, topic: str, take: Callable[[Any], None]) -> None:
    """Every record of a topic, each partition in its order."""
    asyncio.run(_scan(address, topic, take))


async def _scan(address: str, topic: str, take: Callable[[Any], None]) -> None:
    consumer = aiokafka.AIOKafkaConsumer(topic, bootstrap_servers=address, auto_offset_reset="earliest")  # no group
    await consumer.start()
    try:
        parts = consumer.assignment()
        ends = await consumer.end_offsets(parts)
        while any([await consumer.position(part) < ends[part] for part in parts]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    take(record)
    finally:
        await consumer.stop()


class Sent:
    """What the event topic holds; an event counts where it lies first, its repeats do not.

    The source names its events e0, e1, … and its users u0, u1, …; four numbers an event are held, 32 bytes.
    """

    def __init__(self) -> None:
        self.places, self.stamps, self.users = (
            array("q"),
            array("q"),
            array("q"),
        )  # by event number; a place of -1: none
        self.newest: dict[str, Place] = {}  # each user's
        self.ends: dict[int, int] = {}
        self.repeats = self.behind_ms = 0
        self._newest_ms: dict[int, int] = {}

    def take(self, record: Any) -> None:
        """One record."""
        event, partition, user = json.loads(record.value), record.partition, record.key.decode()
        self.ends[partition] = record.offset + 1
        number = int(event["event_id"][1:])
        if number >= len(self.places):
            more = number + 1 - len(self.places)
            for column in (self.places, self.stamps, self.users):
                column.extend([-1] * more)
        if self.places[number] >= 0:
            self.repeats += 1
            return
        self.places[number] = place(partition, record.offset)
        self.stamps[number], self.users[number] = event["ts"], int(user[1:])
        self.newest[user] = max((partition, record.offset), self.newest.get(user, (partition, record.offset)))
        self._newest_ms[partition] = max(event["ts"], self._newest_ms.get(partition, 0))
        self.behind_ms = max(self.behind_ms, self._newest_ms[partition] - event["ts"])

    def sessions(self, gap_ms: int) -> Ints:
        """What the sessions have to be: a user's events in order of event time, cut where the gap is longer.

        Of each event number the least number in its session.
        """
        users, stamps = np.array(self.users), np.array(self.stamps)
        order = np.lexsort((stamps, users))
        begins = np.ones(len(order), bool)
        begins[1:] = (np.diff(users[order]) != 0) | (np.diff(stamps[order]) > gap_ms)
        return least(order, np.cumsum(begins) - 1)


def place(partition: Any, offset: Any) -> Any:
    """A place as one number."""
    return partition * 2**40 + offset


def least(numbers: Ints, group: Ints) -> Ints:
    """Of each event number the least number of its group."""
    if not len(numbers):
        return numbers
    first = np.full(int(group.max()) + 1, np.iinfo(np.int64).max)
    np.minimum.at(first, group, numbers)
    found = np.full(int(numbers.max()) + 1, -1)
    found[numbers] = first[group]
    return found


@dataclass
class Told:
    """The predictions in the order of their log, as a consumer upserts them that ignores a lower trigger.

    `owned_ms`: when each partition got a new owner. The owner of one epoch goes forward only; so where a lower trigger
    comes after a higher one, one of the two was made in another epoch, or by who owned the partition no more.
    """

    owned_ms: Mapping[int, Sequence[float]]
    seen: dict[str, tuple[Place, float]] = field(default_factory=dict)  # by the rule
    last: dict[str, Place] = field(default_factory=dict)  # without it: what compaction leaves
    predictions: int = 0
    redone: int = 0  # made by a new owner that begins where was committed: legal
    on_its_way: int = 0  # made before its partition went to another owner, arrived after that one's word
    zombies: list[str] = field(default_factory=list)  # made after it: must not be

    def take(self, record: Any) -> None:
        """One record; a tombstone says nothing."""
        if record.value is None:
            return
        self.predictions += 1
        user, said = record.key.decode(), json.loads(record.value)
        place = (said["trigger"]["partition"], said["trigger"]["offset"])
        made_ms = datetime.fromisoformat(said["predicted_at"]).timestamp() * 1000
        self.last[user] = place
        before, before_ms = self.seen.get(user, (place, made_ms))
        if place >= before:  # a user's events lie in one partition
            self.seen[user] = (place, made_ms)
            return
        owned = self.owned_ms.get(place[0], ())
        epoch, epoch_before = bisect.bisect(owned, made_ms), bisect.bisect(owned, before_ms)
        if epoch > epoch_before:
            self.redone += 1
        elif epoch < epoch_before:
            self.on_its_way += 1
        else:
            self.zombies.append(f"{user}: {place} made {made_ms:.0f} after {before} made {before_ms:.0f}")

    def stale(self, newest: Mapping[str, Place]) -> list[str]:
        """Users whose newest event is not what they were told about last, by the rule."""
        return sorted(user for user, place in newest.items() if self.seen.get(user, (None,))[0] != place)

    def covered_up(self, newest: Mapping[str, Place]) -> list[str]:
        """Users of whom the last record in the topic, which compaction leaves, is not about their newest event."""
        return sorted(user for user, place in newest.items() if self.last.get(user) != place)


# ---------------------------------------------------------------- files


@dataclass
class Lake:
    """The rows that the lake's readers see: segments by (first, −last), each read above what came before it.

    Columns have an entry a row: the event's number, its place and its event time.
    """

    numbers: Ints
    places: Ints
    stamps: Ints
    distinct: int  # places with the row's number within its message
    sessions: Ints  # of each event number the least number in its session
    merges: int = 0
    overlapping: int = 0
    holes: list[str] = field(default_factory=list)


def segments(shared: Path, topic: str) -> Iterator[tuple[int, list[tuple[int, int, Path]]]]:
    """Each partition's segments in the order of the readers' rule: first, −last, file."""
    for folder in sorted(shared.glob(f"events/t={topic}@*/p=*")):
        named = []
        for path in folder.glob("[0-9]*.parquet"):
            first, last = path.name.split(".")[0].split("-")
            named.append((int(first), -int(last), path))
        yield int(folder.name.removeprefix("p=")), sorted(named)


def reached(shared: Path, topic: str) -> int:
    """How many read positions the lake's file names cover, of all partitions together."""
    total = 0
    for folder in shared.glob(f"events/t={topic}@*/p=*"):
        names = (name for name in os.listdir(folder) if name[0].isdigit())
        total += max((int(name.partition("-")[2].partition(".")[0]) + 1 for name in names), default=0)
    return total


def lake(shared: Path, topic: str) -> Lake:
    """Read every row of a topic's only log."""
    overlapping, holes, parts = 0, list[str](), list[tuple[Any, ...]]()
    into: dict[tuple[int, str], str] = {}
    con = duckdb.connect()
    con.execute("SET threads = 1")
    con.execute("CREATE TABLE rows (number BIGINT, place BIGINT, n INTEGER, ts BIGINT, user BIGINT, session VARCHAR)")
    for partition, named in segments(shared, topic):
        upto = -1
        for first, last, path in named:
            overlapping += first <= upto
            if first > upto + 1:
                holes.append(f"p={partition}: {upto + 1} to {first - 1}")
            if -last <= upto:
                continue
            source = f"read_parquet('{path}', hive_partitioning=false) WHERE \"offset\" > {upto}"
            numbered = 'substr(event_id, 2)::BIGINT, {p} + "offset", n, ts_ms, substr(user_id, 2)::BIGINT, session_id'
            con.execute(f"INSERT INTO rows SELECT {numbered.format(p=place(partition, 0))} FROM {source}")
            merging = f"SELECT substr(user_id, 2)::BIGINT, session_id, absorbs FROM {source} AND len(absorbs) > 0"
            for user, session, absorbs in con.execute(merging).fetchall():
                into |= {(user, gone): session for gone in absorbs}
            upto = -last
    con.execute("CREATE TABLE final (user BIGINT, session VARCHAR, last VARCHAR)")
    for user, session in into:
        end = session
        while (user, end) in into:
            end = into[user, end]
        parts.append((user, session, end))
    if parts:
        users, gone, ends = zip(*parts, strict=True)
        con.register("merged", pa.table({"user": users, "session": gone, "last": ends}))
        con.execute("INSERT INTO final SELECT * FROM merged")
    told = con.execute("""
        SELECT number, place, ts, dense_rank() OVER (ORDER BY r.user, coalesce(last, r.session)) - 1 AS session
        FROM rows r LEFT JOIN final f ON f.user = r.user AND f.session = r.session
    """).fetchnumpy()
    distinct = con.execute("SELECT count(*) FROM (SELECT DISTINCT place, n FROM rows)").fetchall()[0][0]
    con.close()
    numbers = told["number"]
    return Lake(
        numbers=numbers, places=told["place"], stamps=told["ts"], distinct=distinct, merges=len(into),
        sessions=least(numbers, told["session"]), overlapping=overlapping, holes=holes,
    )  # fmt: skip


def stores(folders: Sequence[Path], lake_: Lake, ends: Mapping[int, int], keep_ms: int) -> tuple[int, list[str]]:
    """Rows in the files of the last owners, and what is wrong with them: each row that is young enough, once."""
    owners: dict[int, tuple[int, int, Path]] = {}  # the file that is furthest: a killed one's may be left behind
    faults: list[str] = []
    for path in (path for folder in folders for path in folder.glob("*.duckdb")):
        with duckdb.connect(path, read_only=True) as con:
            for part, nxt, watermark in con.execute('SELECT "partition", next, watermark_ms FROM progress').fetchall():
                owners[part] = max(owners.get(part, (-1, 0, path)), (nxt, watermark, path))
    count = 0
    for part, end in sorted(ends.items()):
        nxt, watermark, path = owners.get(part, (0, 0, Path()))
        if nxt != end:
            faults.append(f"partition {part}: the furthest store goes on at {nxt}, the log ends at {end}")
            continue
        mine = (lake_.places >= place(part, 0)) & (lake_.places < place(part + 1, 0))
        young = lake_.numbers[mine & (lake_.stamps >= watermark - keep_ms)]
        with duckdb.connect(path, read_only=True) as con:
            rows = con.execute(
                'SELECT substr(event_id, 2)::BIGINT AS number, "offset", n FROM events WHERE "partition" = $1', [part]
            ).fetchnumpy()
        held = rows["number"]
        count += len(held)
        distinct = len(np.unique(np.stack([rows["offset"], rows["n"]]), axis=1).T)
        missing, unknown = len(np.setdiff1d(young, held)), len(np.setdiff1d(held, lake_.numbers))
        if len(held) != distinct or missing or unknown:
            faults.append(f"partition {part} in {path}: {len(held)} rows, {distinct} places, {missing} missing, "
                          f"{unknown} unknown to the lake")  # fmt: skip
    return count, faults
