"""Segments: the lake's immutable Parquet files, each named by the offsets that were read for it."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from featurestore import disk
from featurestore.events import ADDED, COLUMNS, Row, to_columns

HISTORY = "~history"  # the pseudo topic of what never was in Kafka; precedes all live rows
HISTORY_PARTITIONS = 8
FORMAT = b"1"

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
_REPEATING = [  # columns that gain by a dictionary in the file; of values that never come twice one costs time and room
    name for name in SCHEMA.names
    if name not in ("offset", "record_ms", "event_id", "ts_ms", "prediction_id", "absorbs")
]  # fmt: skip
_log = structlog.get_logger(__name__)


class PartitionKey(NamedTuple):
    """A partition of one log: the topic carries the log's id, `<topic>@<log id>`."""

    topic: str
    partition: int


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
    """A segment cannot be written, read back or read; nothing was dropped. The message names the remedy."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """One file of a cover, from which rows with an offset above `above` are read."""

    path: Path
    key: PartitionKey
    first: int
    last: int  # inclusive read positions, holes included
    above: int
    generation: int = 0


def table(rows: list[Row]) -> pa.Table:
    """Rows with the columns of the store and the lake."""
    return pa.table(to_columns(rows), schema=SCHEMA)


def place(folder: Path, key: PartitionKey, first: int, last: int, generation: int = 0) -> Segment:
    """Where the segment of the read positions `first` to `last` lies; a higher generation replaces a lower one."""
    suffix = f".g{generation}" if generation else ""
    path = folder / f"{first}-{last}{suffix}.parquet"
    return Segment(path=path, key=key, first=first, last=last, above=first - 1, generation=generation)


def write(segment: Segment, table: pa.Table, progress: LakeProgress | None, writer: str) -> None:
    """Writes, syncs, renames, syncs the folder and reads the footer back."""
    table = table.select(SCHEMA.names).cast(SCHEMA)
    _within(segment, table)
    path = segment.path
    said = {b"nextclick.format": FORMAT}
    if progress is not None:
        said[b"nextclick.progress"] = msgspec.json.encode(progress)
    try:
        with disk.replacing(path, writer) as temporary:
            # by its path: through a file object of Python's each piece would wait for the interpreter's lock
            whole = table.replace_schema_metadata(said)
            pq.write_table(whole, str(temporary), compression="zstd", use_dictionary=_REPEATING)
    except OSError as error:
        raise UnreadableSegment(f"{path} could not be written ({error}): make room on that disk") from error
    try:
        rows = pq.read_metadata(path).num_rows
    except (OSError, pa.ArrowInvalid) as error:
        raise UnreadableSegment(f"{path}: {error}") from error
    if rows != table.num_rows:
        raise UnreadableSegment(f"{path}: {rows} rows, not {table.num_rows}")


def listed(folder: Path, key: PartitionKey) -> list[Segment]:
    """The sound segments of a partition; others are named and left alone."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            if entry.name.startswith(".") or entry.name == "progress.json":
                continue
            named = _NAME.fullmatch(entry.name)
            if named is None or int(named[1]) > int(named[2]):
                _ignored(entry.path, "its name is no segment's")
                continue
            segment = place(folder, key, int(named[1]), int(named[2]), int(named[3] or 0))
            with contextlib.suppress(FileNotFoundError):  # compaction was faster
                if why := _fault(segment):
                    _ignored(entry.path, why)
                else:
                    found.append(segment)
    return found


def rank(segment: Segment) -> tuple[int, int, int]:
    """The order in which a cover takes segments: those that begin first, of them the widest, of them the newest."""
    return segment.first, -segment.last, -segment.generation


def footer(path: Path) -> LakeProgress | None:
    """The progress that was noted when a segment was written."""
    try:
        said = (pq.read_metadata(path).metadata or {}).get(b"nextclick.progress")
        return None if said is None else msgspec.json.decode(said, type=LakeProgress)
    except (OSError, pa.ArrowInvalid, msgspec.MsgspecError):
        return None


def newest_ms(path: Path) -> int:
    """The latest event time in a segment, by its statistics."""
    known = path.stat()
    return _footer(path, known.st_mtime_ns, known.st_size).newest_ms


def age_ms(path: Path, now_ms: int) -> float:
    """How long ago a file was written, on the wall clock; -1 where it is gone."""
    try:
        return now_ms - path.stat().st_mtime_ns / 1e6
    except FileNotFoundError:
        return -1.0


def history_key(user_id: str) -> PartitionKey:
    """Where a user's history lies.

    >>> history_key("u1").topic
    '~history'
    """
    return PartitionKey(HISTORY, zlib.crc32(user_id.encode()) % HISTORY_PARTITIONS)


def _within(segment: Segment, table: pa.Table) -> None:
    offsets = table.column("offset").to_numpy()
    if len(offsets) and (offsets.min() < segment.first or offsets.max() > segment.last):
        raise ValueError(
            f"rows {offsets.min()}-{offsets.max()} of {segment.key} do not lie in the segment "
            f"{segment.first}-{segment.last}"
        )


class _Footer(NamedTuple):
    """What a file says of itself: its format, the columns it lacks, and the range of its rows' places."""

    format: str
    lacks: tuple[str, ...]
    places: tuple[tuple[Any, Any], ...]  # (topic, partition, offset), the least and the greatest of each row group
    newest_ms: int
    older: bool  # written before `ADDED` columns came


def is_older(path: Path) -> bool:
    """Whether a segment was written before the columns that were added since."""
    known = path.stat()
    return _footer(path, known.st_mtime_ns, known.st_size).older


def _fault(segment: Segment) -> str:
    """Why a file is no segment of this partition and range, told by its footer; empty where it is one."""
    path, key = segment.path, segment.key
    known = path.stat()
    try:
        told = _footer(path, known.st_mtime_ns, known.st_size)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException) as error:
        return f"it cannot be read ({str(error).strip().splitlines()[0].rstrip('.')})"
    if told.format != FORMAT.decode() or told.lacks:
        return f"it has the format {told.format} and lacks {', '.join(told.lacks) or 'no column'}"
    for least, greatest in told.places:
        if not (*key, segment.first) <= least or not greatest <= (*key, segment.last):
            return f"it holds rows of another partition or range: {least} to {greatest}"
    return ""


@functools.lru_cache(maxsize=100_000)
def _footer(path: Path, mtime_ns: int, size: int) -> _Footer:
    """Read once for each state of a file."""
    metadata = pq.read_metadata(path)
    names = metadata.schema.to_arrow_schema().names
    said = (metadata.metadata or {}).get(b"nextclick.format", b"none").decode(errors="replace")
    lacks = tuple(name for name in SCHEMA.names if name not in names and name not in ADDED)
    places, newest = [], 0
    for group in range(0 if lacks else metadata.num_row_groups):
        columns = metadata.row_group(group)
        at = columns.column(SCHEMA.get_field_index("ts_ms")).statistics
        if at is not None and at.has_min_max:
            newest = max(newest, int(at.max))
        found = [columns.column(SCHEMA.get_field_index(n)).statistics for n in ("topic", "partition", "offset")]
        if all(s is not None and s.has_min_max for s in found):
            places.append((tuple(s.min for s in found), tuple(s.max for s in found)))
    return _Footer(said, lacks, tuple(places), newest, older=not ADDED.issubset(names))


@functools.lru_cache(maxsize=10_000)
def _ignored(path: str, why: str) -> None:
    """Said once."""
    _log.warning("A file in the lake is none of its segments and is ignored.", path=path, why=why)
