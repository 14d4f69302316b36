"""The lake: immutable Parquet segments named by what they read, and the cover that yields every row of them once."""

from __future__ import annotations

import contextlib
import os
import re
import time
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote, unquote

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from featurestore import events, sessions
from featurestore.events import COLUMNS, Row

HISTORY = "~history"  # the pseudo topic of what never was in Kafka; precedes all live rows
HISTORY_PARTITIONS = 8
FULL = 250_000  # rows from which a segment is left alone by compaction
DEAD_MS = 600_000  # no writer takes that long over a file
ERASE_EVERY_MS = 10_000
READS = 3

T = TypeVar("T")
_NAME = re.compile(r"(\d+)-(\d+)(?:\.g(\d+))?\.parquet")
_ARROW = {
    "VARCHAR": pa.string(),
    "INTEGER": pa.int32(),
    "BIGINT": pa.int64(),
    "DOUBLE": pa.float64(),
    "BOOLEAN": pa.bool_(),
    "VARCHAR[]": pa.list_(pa.string()),
}
SCHEMA = pa.schema([(name, _ARROW[kind]) for name, kind in COLUMNS])
_log = structlog.get_logger(__name__)


class PartitionKey(NamedTuple):
    """A partition of one log: the topic carries the log's id, `<topic>@<log id>`."""

    topic: str
    partition: int


class Counts(Protocol):
    """What a partition's progress says, whoever keeps it."""

    @property
    def next(self) -> int: ...
    @property
    def watermark_ms(self) -> int: ...
    @property
    def stored(self) -> int: ...
    @property
    def duplicates(self) -> int: ...
    @property
    def rejected(self) -> int: ...


class LakeProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a partition got: the offset all numbers speak of, the watermark and the counts up to it."""

    next: int
    watermark_ms: int = 0
    stored: int = 0
    duplicates: int = 0
    rejected: int = 0
    raised_ms: int = 0  # watermark raised by silence: it matures labels, no row carried it

    @property
    def mature_ms(self) -> int:
        """The instant up to which nothing more is expected of this partition."""
        return max(self.watermark_ms, self.raised_ms)


class UnreadableSegment(OSError):
    """The segment just written does not read back: the disk is full or failing. Nothing was dropped; free it, retry."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One file of a cover, from which rows with an offset above `above` are read."""

    path: Path
    key: PartitionKey
    first: int
    last: int  # inclusive read positions, holes included
    above: int
    generation: int = 0


@dataclass(frozen=True, kw_only=True)
class Cover:
    """Segments that together hold every row once, how far they reach, and what is missing."""

    segments: tuple[Segment, ...] = ()
    end: dict[PartitionKey, int] = field(default_factory=dict)  # the next offset
    progress: dict[PartitionKey, LakeProgress] = field(default_factory=dict)
    gaps: tuple[str, ...] = ()
    forgotten: frozenset[str] = frozenset()

    def relation(self, columns: Sequence[str] = (), *, key: PartitionKey | None = None, where: str = "") -> str:
        """SQL that yields every row once, in no order; `columns` default to all of `COLUMNS`."""
        names = ", ".join(f'"{c}"' for c in columns or [name for name, _ in COLUMNS])
        chosen = [s for s in self.segments if key is None or s.key == key]
        plain = [s.path for s in chosen if s.above < s.first]
        cut = {s.path: s.above for s in chosen if s.above >= s.first}
        parts = []
        if plain:
            parts.append(f"SELECT * FROM read_parquet({_paths(plain)}, hive_partitioning=false)")
        if cut:  # one scan for all of them, each file with its own limit
            limits = ", ".join(f"({_text(str(path))}, {above})" for path, above in cut.items())
            parts.append(
                "SELECT r.* EXCLUDE (filename) "
                f"FROM read_parquet({_paths(cut)}, hive_partitioning=false, filename=true) r "
                f'JOIN (VALUES {limits}) AS v(path, above) ON r.filename = v.path WHERE r."offset" > v.above'
            )
        if not parts:
            nothing = ", ".join(f'NULL::{kind} AS "{name}"' for name, kind in COLUMNS)
            parts.append(f"SELECT {nothing} WHERE false")
        conditions = [where] if where else []
        if self.forgotten:
            conditions.append(f"user_id NOT IN ({', '.join(_text(u) for u in sorted(self.forgotten))})")
        clause = f" WHERE {' AND '.join(f'({c})' for c in conditions)}" if conditions else ""
        return f"SELECT {names} FROM ({' UNION ALL '.join(parts)}){clause}"

    def rows(self, key: PartitionKey | None = None, where: str = "") -> list[Row]:
        """Rows (of one partition), history first, then by topic and offset."""
        order = f'topic <> {_text(HISTORY)}, topic, "partition", "offset", n'
        with _connection() as con:
            records = con.execute(f"{self.relation(key=key, where=where)} ORDER BY {order}").fetchall()
        return [events.from_record(r) for r in records]

    def restorable(self, key: PartitionKey, since_ms: int, open_ms: int) -> list[Row]:
        """What a new owner needs: rows from `since_ms` on and whole sessions with one from `open_ms` on, in order.

        Reads all that came after the first of them, and further back only where such a session goes back further.
        """
        relation = self.relation(["offset"], key=key, where=f"ts_ms >= {min(since_ms, open_ms)}")
        with _connection() as con:
            offset = con.execute(f'SELECT min("offset") FROM ({relation})').fetchall()[0][0]
        if offset is None:
            return []
        recent = self.rows(key, f'"offset" >= {offset}')
        users = sessions.cut(recent, open_ms)
        if not users:
            return recent
        named = ", ".join(_text(user) for user in sorted(users))
        found = {(row.origin.offset, row.origin.n): row for row in recent}
        for row in sessions.whole(self.rows(key, f"user_id IN ({named})"), open_ms):
            found[row.origin.offset, row.origin.n] = row
        return [row for _, row in sorted(found.items())]


class Lake:
    """The lake below one shared folder, as one writer sees it; every method may run beside those of other writers."""

    def __init__(self, root: Path, writer: str) -> None:
        self.root = Path(root) / "events"
        self.writer = re.sub(r"[^A-Za-z0-9_-]", "_", writer)
        self._checked: dict[Path, tuple[float, frozenset[str]]] = {}  # segments that hold none of these users
        self._erased: tuple[frozenset[str], int] = frozenset(), 0

    def write(self, key: PartitionKey, first: int, nxt: int, table: pa.Table, progress: Counts) -> Path | None:
        """Makes the rows read in [first, nxt) durable, then moves the progress; None where nothing was read."""
        if nxt <= first:
            self.note(key, progress)
            return None
        said = _said(progress)
        path = self._put(key, first, nxt - 1, 0, _conform(table), said)
        self.note(key, said)
        return path

    def write_rows(self, key: PartitionKey, first: int, rows: list[Row], progress: Counts | None = None) -> Path | None:
        """Writes rows that are at hand, as an import has them; the watermark is the latest event time unless told."""
        if not rows:
            return None
        nxt = max(r.origin.offset for r in rows) + 1
        before = self.progress(key) or LakeProgress(next=first)
        latest = max(before.watermark_ms, max(r.event.ts_ms for r in rows))
        said = progress or LakeProgress(next=nxt, watermark_ms=latest, stored=before.stored + len(rows))
        return self.write(key, first, nxt, pa.table(events.to_columns(rows), schema=SCHEMA), said)

    def note(self, key: PartitionKey, progress: Counts, raised_ms: int = 0) -> None:
        """Moves a partition's `progress.json` forward; what is behind the file is ignored."""
        said = _said(progress, raised_ms)
        old = self.progress(key)
        if old is not None:
            if (said.next, said.watermark_ms) < (old.next, old.watermark_ms):
                return
            said = msgspec.structs.replace(said, raised_ms=max(said.raised_ms, old.raised_ms))
            if said == old:
                return
        folder = self._folder(key)
        temporary = folder / f".progress.{self.writer}.{os.getpid()}.tmp"
        with temporary.open("wb") as file:
            file.write(msgspec.json.encode(said))
            _sync(file.fileno())
        temporary.replace(folder / "progress.json")
        _sync_folder(folder)

    def progress(self, key: PartitionKey) -> LakeProgress | None:
        """What `progress.json` says, None where there is none that can be read."""
        path = self._path(key) / "progress.json"
        try:
            return msgspec.json.decode(path.read_bytes(), type=LakeProgress)
        except FileNotFoundError:
            return None
        except (msgspec.MsgspecError, OSError) as error:
            _log.warning(
                "A progress file of the lake cannot be read; the segments speak for it.",
                path=str(path),
                error=str(error),
            )
            return None

    def keys(self) -> list[PartitionKey]:
        """Every partition that the lake knows."""
        found = []
        for folder in sorted(self.root.glob("t=*/p=*")):
            with contextlib.suppress(ValueError):
                found.append(PartitionKey(unquote(folder.parent.name[2:]), int(folder.name[2:])))
        return found

    def cover(
        self,
        above: Mapping[PartitionKey, int] | None = None,
        forgotten: Iterable[str] = (),
        *,
        keys: Collection[PartitionKey] | None = None,
    ) -> Cover:
        """Everything with an offset higher than `above` of its partition (the last offset already read; default: all).

        A gap between two segments ends the cover of its partition and is said. Where the lake begins later than `above`
        asks (older segments expired), the cover begins with the lake, and that is said too.
        """
        segments: list[Segment] = []
        end: dict[PartitionKey, int] = {}
        progress: dict[PartitionKey, LakeProgress] = {}
        gaps: list[str] = []
        for key in self.keys() if keys is None else keys:
            wanted = (above or {}).get(key, -1)
            told = self.progress(key)  # before the listing: segments are written first
            chosen, holes = _chain(self._list(key), wanted)
            if holes:  # a file may have been replaced while the folder was listed
                chosen, holes = _chain(self._list(key), wanted)
            for hole in holes:
                text = f"{key.topic} partition {key.partition}: {hole}"
                gaps.append(text)
                _log.warning("The lake has a gap.", topic=key.topic, partition=key.partition, what=hole)
            segments += chosen
            reached = max(chosen[-1].last + 1 if chosen else 0, wanted + 1)
            if chosen or wanted >= 0:
                end[key] = reached
            believed = _believed(told, chosen, reached)
            if believed is not None:
                progress[key] = believed
        return Cover(
            segments=tuple(segments), end=end, progress=progress, gaps=tuple(gaps), forgotten=frozenset(forgotten)
        )

    def compact(self, older_than_ms: int, now_ms: int) -> int:
        """Merges neighbouring segments that are old enough and removes what a wider one has replaced as long ago.

        Both ages are wall clock; readers keep their files for that long. Returns the number of files merged.
        """
        merged = 0
        for key in self.keys():
            self._clean(key, older_than_ms, now_ms)
            chain, _ = _chain(self._list(key), -1)
            run: list[Segment] = []
            size = 0
            for segment in [*chain, None]:
                rows = 0
                if segment is not None and _age_ms(segment.path, now_ms) >= older_than_ms:
                    rows = int(pq.read_metadata(segment.path).num_rows)
                    if rows < FULL and size + rows <= 2 * FULL:
                        run.append(segment)
                        size += rows
                        continue
                merged += self._merge(key, run)
                fits = segment is not None and 0 < rows < FULL
                run, size = ([segment], rows) if segment is not None and fits else ([], 0)
        return merged

    def expire(self, keep_ms: int) -> int:
        """Removes leading segments whose newest event lies further behind the watermark than `keep_ms`."""
        cover = self.cover()
        newest = max((p.mature_ms for p in cover.progress.values()), default=0)
        removed = 0
        for key in cover.end:
            known = cover.progress.get(key)
            limit = (newest if key.topic == HISTORY or known is None else known.mature_ms) - keep_ms
            for segment in [s for s in cover.segments if s.key == key][:-1]:  # the last one tells where we are
                if _newest_ms(segment.path) >= limit:
                    break
                for other in self._list(key):
                    if other.last <= segment.last:
                        other.path.unlink(missing_ok=True)
                        removed += 1
        return removed

    def forget(self, users: Iterable[str]) -> int:
        """Rewrites every segment that holds one of these users, without them; returns how many were rewritten."""
        names = frozenset(users)
        if not names:
            return 0
        rewritten, checked = 0, {}
        for key in self.keys():
            for segment in self._list(key):
                seen = (_age_ms(segment.path, 0), names)
                if self._checked.get(segment.path) != seen and self._rewrite(segment, names):
                    rewritten += 1
                else:
                    checked[segment.path] = seen
            for path in self._path(key).glob(".*.tmp"):
                if _age_ms(path, int(time.time() * 1000)) >= DEAD_MS:  # its writer died over it
                    path.unlink(missing_ok=True)
        self._checked = checked
        return rewritten

    def keep_forgotten(self, users: frozenset[str], now_ms: int) -> int:
        """`forget` at once where the users changed, then every 10 s: a slow or frozen worker may still write one."""
        known, at_ms = self._erased
        if not users or (users == known and now_ms - at_ms < ERASE_EVERY_MS):
            return 0
        self._erased = users, now_ms
        return self.forget(users)

    def read(
        self,
        what: Callable[[Cover], T],
        above: Mapping[PartitionKey, int] | None = None,
        forgotten: Iterable[str] = (),
        *,
        keys: Collection[PartitionKey] | None = None,
    ) -> T:
        """What a reader makes of a cover; of a new one where `forget` took a file of the first away meanwhile."""
        gone = frozenset(forgotten)
        for _ in range(READS):
            with contextlib.suppress(duckdb.IOException, FileNotFoundError):
                return what(self.cover(above, gone, keys=keys))
        return what(self.cover(above, gone, keys=keys))

    def _rewrite(self, segment: Segment, users: frozenset[str]) -> bool:
        listed = ", ".join(_text(u) for u in sorted(users))
        source = f"read_parquet({_paths([segment.path])}, hive_partitioning=false)"
        with _connection() as con:
            held = con.execute(f"SELECT count(*) FROM {source} WHERE user_id IN ({listed})").fetchall()[0][0]
            if not held:
                return False
            sql = f'SELECT * FROM {source} WHERE user_id NOT IN ({listed}) ORDER BY "offset", n'
            table = con.sql(sql).to_arrow_table()
        told = _footer(segment.path)
        self._put(segment.key, segment.first, segment.last, segment.generation + 1, _conform(table), told)
        segment.path.unlink(missing_ok=True)
        _sync_folder(segment.path.parent)
        return True

    def _merge(self, key: PartitionKey, run: list[Segment]) -> int:
        if len(run) < 2:
            return 0
        first = max(run[0].first, run[0].above + 1)
        sql = Cover(segments=tuple(run)).relation()
        with _connection() as con:
            table = con.sql(f'{sql} ORDER BY "offset", n').to_arrow_table()
        generation = max(s.generation for s in run)
        self._put(key, first, run[-1].last, generation, _conform(table), _footer(run[-1].path))
        return len(run)

    def _clean(self, key: PartitionKey, older_than_ms: int, now_ms: int) -> None:
        """Removes files that one wider (or newer) file has held for long enough, and temporary files of the dead."""
        kept: Segment | None = None
        for segment in sorted(self._list(key), key=_rank):
            if kept is not None and segment.last <= kept.last:
                if _age_ms(kept.path, now_ms) >= older_than_ms:
                    segment.path.unlink(missing_ok=True)
            else:
                kept = segment
        for path in self._path(key).glob(".*.tmp"):
            if _age_ms(path, now_ms) >= max(older_than_ms, 3_600_000):
                path.unlink(missing_ok=True)

    def _put(
        self, key: PartitionKey, first: int, last: int, generation: int, table: pa.Table, progress: LakeProgress | None
    ) -> Path:
        """Writes, syncs, renames, syncs the folder and reads the footer back."""
        _within(key, table, first, last)
        folder = self._folder(key)
        suffix = f".g{generation}" if generation else ""
        path = folder / f"{first}-{last}{suffix}.parquet"
        temporary = folder / f".{path.name}.{self.writer}.{os.getpid()}.tmp"
        said = {b"nextclick.format": b"1"}
        if progress is not None:
            said[b"nextclick.progress"] = msgspec.json.encode(progress)
        try:
            with temporary.open("wb") as file:
                pq.write_table(table.replace_schema_metadata(said), file, compression="zstd")
                file.flush()
                _sync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(folder)
        try:
            rows = pq.read_metadata(path).num_rows
        except (OSError, pa.ArrowInvalid) as error:
            raise UnreadableSegment(f"{path}: {error}") from error
        if rows != table.num_rows:
            raise UnreadableSegment(f"{path}: {rows} rows, not {table.num_rows}")
        return path

    def _path(self, key: PartitionKey) -> Path:
        return self.root / f"t={quote(key.topic, safe='@~')}" / f"p={key.partition}"

    def _folder(self, key: PartitionKey) -> Path:
        path = self._path(key)
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            for above in (path.parent, self.root, self.root.parent):
                _sync_folder(above)
        return path

    def _list(self, key: PartitionKey) -> list[Segment]:
        """The sound segments of a partition; others are named and left alone."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for entry in os.scandir(self._path(key)):
                if entry.name.startswith(".") or entry.name == "progress.json":
                    continue
                named = _NAME.fullmatch(entry.name)
                path = Path(entry.path)
                if named is None or int(named[1]) > int(named[2]):
                    _log.warning("A file in the lake is none of its own and is ignored.", path=entry.path)
                elif not _sound(path):
                    _log.warning("A segment of the lake is incomplete and is ignored.", path=entry.path)
                else:
                    first, last, generation = int(named[1]), int(named[2]), int(named[3] or 0)
                    found.append(
                        Segment(path=path, key=key, first=first, last=last, above=first - 1, generation=generation)
                    )
        return found


def history_key(user_id: str) -> PartitionKey:
    """Where a user's history lies.

    >>> history_key("u1").topic
    '~history'
    """
    return PartitionKey(HISTORY, zlib.crc32(user_id.encode()) % HISTORY_PARTITIONS)


def _rank(segment: Segment) -> tuple[int, int, int]:
    return segment.first, -segment.last, -segment.generation


def _chain(segments: list[Segment], above: int) -> tuple[list[Segment], list[str]]:
    """The cover of one partition: sorted by (first, −last), each read above what is covered before it."""
    chosen: list[Segment] = []
    holes: list[str] = []
    covered = above
    for s in sorted(segments, key=_rank):
        if s.last <= covered:
            continue
        if s.first > covered + 1:
            if chosen:
                holes.append(f"ends at offset {covered + 1}, the next segment begins at {s.first}")
                break
            if above >= 0:
                holes.append(f"offsets {covered + 1} to {s.first - 1} are asked for, the lake begins at {s.first}")
        limit = max(covered, s.first - 1)
        chosen.append(Segment(path=s.path, key=s.key, first=s.first, last=s.last, above=limit, generation=s.generation))
        covered = s.last
    return chosen, holes


def _believed(told: LakeProgress | None, chosen: list[Segment], reached: int) -> LakeProgress | None:
    """The progress that fits where the cover ends: never of rows that the cover does not hold."""
    if told is not None and (told.next == reached or not chosen):
        return told
    for segment in reversed(chosen):
        noted = _footer(segment.path)
        if noted is not None and noted.next <= reached:
            raised = told.raised_ms if told is not None and told.next <= reached else 0
            return msgspec.structs.replace(noted, raised_ms=max(noted.raised_ms, raised))
    return told if told is not None and told.next <= reached else None


def _footer(path: Path) -> LakeProgress | None:
    try:
        said = (pq.read_metadata(path).metadata or {}).get(b"nextclick.progress")
        return None if said is None else msgspec.json.decode(said, type=LakeProgress)
    except (OSError, pa.ArrowInvalid, msgspec.MsgspecError):
        return None


def _newest_ms(path: Path) -> int:
    metadata = pq.read_metadata(path)
    column = SCHEMA.get_field_index("ts_ms")
    groups = [metadata.row_group(g).column(column).statistics for g in range(metadata.num_row_groups)]
    return max((int(s.max) for s in groups if s is not None and s.has_min_max), default=0)


def _said(progress: Counts, raised_ms: int = 0) -> LakeProgress:
    return LakeProgress(
        next=progress.next,
        watermark_ms=progress.watermark_ms,
        stored=progress.stored,
        duplicates=progress.duplicates,
        rejected=progress.rejected,
        raised_ms=max(raised_ms, getattr(progress, "raised_ms", 0)),
    )


def _conform(table: pa.Table) -> pa.Table:
    return table.select(SCHEMA.names).cast(SCHEMA)


def _within(key: PartitionKey, table: pa.Table, first: int, last: int) -> None:
    offsets = table.column("offset").to_numpy()
    if len(offsets) and (offsets.min() < first or offsets.max() > last):
        raise ValueError(f"rows {offsets.min()}-{offsets.max()} of {key} do not lie in the segment {first}-{last}")


def _sound(path: Path) -> bool:
    """Whether a file ends as a Parquet file does; its footer is read by whoever reads it."""
    try:
        with path.open("rb") as file:
            if file.read(4) != b"PAR1" or file.seek(0, os.SEEK_END) < 12:
                return False
            file.seek(-4, os.SEEK_END)
            return file.read(4) == b"PAR1"
    except OSError:
        return False


def _age_ms(path: Path, now_ms: int) -> float:
    try:
        return now_ms - path.stat().st_mtime_ns / 1e6
    except FileNotFoundError:
        return -1.0


def _sync(descriptor: int) -> None:
    os.fsync(descriptor)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


def _paths(paths: Iterable[Path]) -> str:
    return f"[{', '.join(_text(str(p)) for p in paths)}]"


@contextlib.contextmanager
def _connection() -> Iterator[duckdb.DuckDBPyConnection]:
    con = duckdb.connect(config={"threads": 1})
    try:
        yield con
    finally:
        con.close()
