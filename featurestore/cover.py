"""A cover: segments that together yield every row of the lake once, however they overlap."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc

from featurestore import database, segments, sessions
from featurestore.events import ADDED, COLUMNS, Row
from featurestore.segments import HISTORY, SCHEMA, LakeProgress, PartitionKey, Segment


@dataclass(frozen=True, kw_only=True)
class Cover:
    """Segments that together hold every row once, how far they reach, and what is missing."""

    segments: tuple[Segment, ...] = ()
    end: dict[PartitionKey, int] = field(default_factory=dict)  # the next offset
    progress: dict[PartitionKey, LakeProgress] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()
    resumes: dict[PartitionKey, int] = field(default_factory=dict)  # behind a gap the next segment begins here
    forgotten: frozenset[str] = frozenset()

    def relation(self, columns: Sequence[str] = (), *, key: PartitionKey | None = None, where: str = "") -> str:
        """SQL that yields every row once, in no order; `columns` default to all of `COLUMNS`."""
        names = ", ".join(f'"{c}"' for c in columns or [name for name, _ in COLUMNS])
        chosen = [s for s in self.segments if key is None or s.key == key]
        older = {s.path for s in chosen if segments.is_older(s.path)}
        parts = []
        for lacking in (False, True):
            same = [s for s in chosen if (s.path in older) == lacking]
            added = "".join(f', NULL::{kind} AS "{name}"' for name, kind in COLUMNS if lacking and name in ADDED)
            plain = [s.path for s in same if s.above < s.first]
            cut = {s.path: s.above for s in same if s.above >= s.first}
            if plain:
                parts.append(f"SELECT *{added} FROM read_parquet({paths(plain)}, hive_partitioning=false)")
            if cut:  # one scan for all of them, each file with its own limit
                limits = ", ".join(f"({text(str(path))}, {above})" for path, above in cut.items())
                parts.append(
                    f"SELECT r.* EXCLUDE (filename){added} "
                    f"FROM read_parquet({paths(cut)}, hive_partitioning=false, filename=true) r "
                    f'JOIN (VALUES {limits}) AS v(path, above) ON r.filename = v.path WHERE r."offset" > v.above'
                )
        if not parts:
            nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in COLUMNS)
            parts.append(f"SELECT {nothing} WHERE false")
        conditions = [where] if where else []
        if self.forgotten:
            conditions.append(f"user_id NOT IN ({', '.join(text(u) for u in sorted(self.forgotten))})")
        clause = f" WHERE {' AND '.join(f'({c})' for c in conditions)}" if conditions else ""
        return f"SELECT {names} FROM ({' UNION ALL '.join(parts)}){clause}"

    def rows(self, key: PartitionKey | None = None, where: str = "") -> list[Row]:
        """Rows (of one partition), history first, then by topic and offset."""
        order = f'topic <> {text(HISTORY)}, topic, "partition", "offset", n'
        with connection() as con:
            table = con.sql(f"{self.relation(key=key, where=where)} ORDER BY {order}").to_arrow_table()
        return database.rows(table)

    def restorable(self, key: PartitionKey, since_ms: int, passed_ms: int) -> pa.Table:
        """What a new owner needs: rows from `since_ms` on and whole sessions with one from `passed_ms` on, in order.

        Reads all that came after the first of them, and further back only where such a session goes back further.
        """
        limit_ms = min(since_ms, passed_ms)
        listed = (s for s in self.segments if s.key == key)
        near = itertools.dropwhile(lambda s: segments.newest_ms(s.path) < limit_ms, listed)  # no file is opened in vain
        late = replace(self, segments=tuple(near))
        relation = late.relation(["offset"], key=key, where=f"ts_ms >= {limit_ms}")
        with connection() as con:
            offset = con.execute(f'SELECT min("offset") FROM ({relation})').fetchall()[0][0]
            if offset is None:
                return SCHEMA.empty_table()
            recent = late._table(con, key, f'"offset" >= {offset}')
            doubtful = database.rows(recent.filter(pc.is_in(recent["user_id"], _doubtful(recent, passed_ms))))
            users = sessions.cut(doubtful, passed_ms)
            if not users:
                return recent
            named = ", ".join(text(user) for user in sorted(users))
            older = self._table(con, key, f'"offset" < {offset} AND user_id IN ({named})')
        ours = [row for row in doubtful if row.event.user_id in users]
        whole = {(r.origin.offset, r.origin.n) for r in sessions.whole(database.rows(older) + ours, passed_ms)}
        places = zip(older["offset"].to_pylist(), older["n"].to_pylist(), strict=True)
        return pa.concat_tables([older.filter(pa.array([place in whole for place in places], pa.bool_())), recent])

    def _table(self, con: duckdb.DuckDBPyConnection, key: PartitionKey, where: str) -> pa.Table:
        ordered = f'{self.relation(key=key, where=where)} ORDER BY "offset", n'
        return con.sql(ordered).to_arrow_table().cast(SCHEMA)


def _doubtful(recent: pa.Table, passed_ms: int) -> pa.Array:
    """Users whose open sessions may have begun before these rows, or absorbed one that did."""
    groups = recent.group_by(["user_id", "session_id"], use_threads=False).aggregate(
        [("seen", "first"), ("seen", "max"), ("ts_ms", "max")]
    )
    whole = pc.and_(pc.equal(groups["seen_first"], 1), pc.less(groups["seen_max"], sessions.CAP))
    going = pc.greater_equal(groups["ts_ms_max"], passed_ms)
    begun = groups.filter(pc.and_(pc.invert(whole), going))["user_id"]
    merging = recent.filter(pc.greater(pc.list_value_length(recent["absorbs"]), 0)).combine_chunks()
    users = merging["user_id"].take(pc.list_parent_indices(merging["absorbs"]))
    absorbed = _named(users, pc.list_flatten(merging["absorbs"]))
    held = groups.filter(whole)
    users = users.filter(pc.invert(pc.is_in(absorbed, _named(held["user_id"], held["session_id"]))))
    return pa.chunked_array([*begun.chunks, *users.chunks], pa.string()).unique()


def _named(users: pa.ChunkedArray, sessions_: pa.ChunkedArray) -> pa.ChunkedArray:
    return pc.binary_join_element_wise(users, sessions_, "\0")


def chain(listed: list[Segment], above: int) -> tuple[list[Segment], list[str], int | None]:
    """The cover of one partition: sorted by (first, −last), each read above what is covered before it.

    With it what is missing, in words, and where the lake goes on behind a gap that ended the cover.
    """
    chosen: list[Segment] = []
    holes: list[str] = []
    resumes = None
    covered = above
    for s in sorted(listed, key=segments.rank):
        if s.last <= covered:
            continue
        if s.first > covered + 1:
            if chosen:
                holes.append(f"ends at offset {covered + 1}, the next segment begins at {s.first}")
                resumes = s.first
                break
            if above >= 0:
                holes.append(f"offsets {covered + 1} to {s.first - 1} are asked for, the lake begins at {s.first}")
        limit = max(covered, s.first - 1)
        chosen.append(replace(s, above=limit))
        covered = s.last
    return chosen, holes, resumes


def believed(told: LakeProgress | None, chosen: list[Segment], reached: int) -> LakeProgress | None:
    """The progress that fits where the cover ends: never of rows that the cover does not hold."""
    if told is not None and (told.next == reached or not chosen):
        return told
    for segment in reversed(chosen):
        noted = segments.footer(segment.path)
        if noted is not None and noted.next <= reached:
            raised = told.raised_ms if told is not None and told.next <= reached else 0
            return msgspec.structs.replace(noted, raised_ms=max(noted.raised_ms, raised))
    return told if told is not None and told.next <= reached else None


def text(value: str) -> str:
    """A value as SQL writes it."""
    return "'" + value.replace("'", "''") + "'"


def paths(files: Iterable[Path]) -> str:
    """Files as `read_parquet` takes them."""
    return f"[{', '.join(text(str(p)) for p in files)}]"


@contextlib.contextmanager
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory, on one thread."""
    con = database.connect()
    try:
        yield con
    finally:
        con.close()
