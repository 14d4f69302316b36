"""What an outsider counts: topics by a plain consumer, files by plain DuckDB, sessions by a sessioniser of its own.

Shares no code with the product: what it says of the product's counters is worth something.
"""

from __future__ import annotations

import asyncio
import bisect
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiokafka
import duckdb

Place = tuple[int, int]  # partition, offset


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


@dataclass
class Sent:
    """What the event topic holds; an event counts where it lies first, its repeats do not."""

    first: dict[str, Place] = field(default_factory=dict)
    newest: dict[str, Place] = field(default_factory=dict)  # each user's
    ends: dict[int, int] = field(default_factory=dict)
    stamps: dict[str, list[tuple[int, str]]] = field(default_factory=lambda: defaultdict(list))
    repeats: int = 0

    def take(self, record: Any) -> None:
        """One record."""
        event, place = json.loads(record.value), (record.partition, record.offset)
        self.ends[record.partition] = record.offset + 1
        if event["event_id"] in self.first:
            self.repeats += 1
            return
        self.first[event["event_id"]] = place
        self.newest[event["user_id"]] = max(place, self.newest.get(event["user_id"], place))
        self.stamps[event["user_id"]].append((event["ts"], event["event_id"]))

    def sessions(self, gap_ms: int) -> set[frozenset[str]]:
        """What the sessions have to be: a user's events in order of event time, cut where the gap is longer."""
        found = set()
        for stamps in self.stamps.values():
            chain: list[str] = []
            last_ms = 0
            for ts_ms, event_id in sorted(stamps):
                if chain and ts_ms - last_ms > gap_ms:
                    found.add(frozenset(chain))
                    chain = []
                chain.append(event_id)
                last_ms = ts_ms
            found.add(frozenset(chain))
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
    """The rows that the lake's readers see: segments by (first, −last), each read above what came before it."""

    rows: int = 0
    places: dict[str, Place] = field(default_factory=dict)  # of each event id
    stamps: dict[str, int] = field(default_factory=dict)
    distinct: set[tuple[int, int, int]] = field(default_factory=set)
    overlapping: int = 0
    holes: list[str] = field(default_factory=list)
    sessions: set[frozenset[str]] = field(default_factory=set)
    merges: int = 0


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
    return sum(max([-last + 1 for _, last, _ in named], default=0) for _, named in segments(shared, topic))


def lake(shared: Path, topic: str) -> Lake:
    """Read every row of a topic's only log."""
    found, into = Lake(), {}
    members: dict[tuple[str, str], set[str]] = defaultdict(set)
    columns = 'SELECT "offset", n, event_id, user_id, ts_ms, session_id, absorbs'
    con = duckdb.connect()
    for partition, named in segments(shared, topic):
        upto = -1
        for first, last, path in named:
            found.overlapping += first <= upto
            if first > upto + 1:
                found.holes.append(f"p={partition}: {upto + 1} to {first - 1}")
            if -last <= upto:
                continue
            query = f"{columns} FROM read_parquet('{path}', hive_partitioning=false) WHERE \"offset\" > {upto}"
            for offset, n, event_id, user, ts_ms, session, absorbs in con.execute(query).fetchall():
                found.rows += 1
                found.distinct.add((partition, offset, n))
                found.places[event_id] = (partition, offset)
                found.stamps[event_id] = ts_ms
                members[user, session].add(event_id)
                into |= {(user, gone): session for gone in absorbs or ()}
            upto = -last
    con.close()
    found.merges = len(into)
    merged: dict[tuple[str, str], set[str]] = defaultdict(set)
    for (user, session), ids in members.items():
        end = session
        while (user, end) in into:
            end = into[user, end]
        merged[user, end] |= ids
    found.sessions = {frozenset(ids) for ids in merged.values()}
    return found


def stores(folders: Sequence[Path], lake_: Lake, ends: Mapping[int, int], keep_ms: int) -> tuple[int, list[str]]:
    """Rows in the files of the last owners, and what is wrong with them: each row that is young enough, once."""
    owners: dict[int, tuple[int, int, Path]] = {}  # the file that is furthest: a killed one's may be left behind
    faults: list[str] = []
    for path in (path for folder in folders for path in folder.glob("*.duckdb")):
        with duckdb.connect(path, read_only=True) as con:
            for part, nxt, watermark in con.execute('SELECT "partition", next, watermark_ms FROM progress').fetchall():
                owners[part] = max(owners.get(part, (-1, 0, path)), (nxt, watermark, path))
    young: dict[int, set[str]] = defaultdict(set)
    for event_id, (part, _) in lake_.places.items():
        if part in owners and lake_.stamps[event_id] >= owners[part][1] - keep_ms:
            young[part].add(event_id)
    count = 0
    for part, end in sorted(ends.items()):
        nxt, _, path = owners.get(part, (0, 0, Path()))
        if nxt != end:
            faults.append(f"partition {part}: the furthest store goes on at {nxt}, the log ends at {end}")
            continue
        with duckdb.connect(path, read_only=True) as con:
            rows = con.execute('SELECT event_id, "offset", n FROM events WHERE "partition" = $1', [part]).fetchall()
        count += len(rows)
        ids = {row[0] for row in rows}
        missing, unknown = len(young[part] - ids), len(ids - lake_.places.keys())
        if len(rows) != len({row[1:] for row in rows}) or missing or unknown:
            faults.append(f"partition {part} in {path}: {len(rows)} rows, {len(ids)} events, {missing} missing, "
                          f"{unknown} unknown to the lake")  # fmt: skip
    return count, faults
