"""One worker's DuckDB file: rows, progress, and sessions as a view; every change is one transaction."""

from __future__ import annotations

import contextlib
import functools
import hashlib
from collections.abc import Collection, Iterator, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import duckdb
import msgspec
import pyarrow as pa

from featurestore import database, migrations, segments
from featurestore.events import COLUMNS, Row
from featurestore.lake import SCHEMA, PartitionKey

__all__ = ["Batch", "OffsetsWentBack", "PartitionKey", "Progress", "Store", "StoreFromNewerVersion", "UnreadableStore"]

_NAMES = ", ".join(f'"{name}"' for name, _ in COLUMNS)
_RANGES = pa.schema([("topic", pa.string()), ("partition", pa.int32()), ("first", pa.int64()), ("next", pa.int64())])
_SESSIONS = pa.schema([("user_id", pa.string()), ("session_id", pa.string())])


class OffsetsWentBack(RuntimeError):
    """A batch holds a row below the stored offset of its partition: it was committed before; restart the worker."""


class StoreFromNewerVersion(RuntimeError):
    """The store was written by a newer version: run that one, or remove the file and let it be restored."""


class UnreadableStore(RuntimeError):
    """A store file is damaged: remove it, it comes back from the lake and Kafka."""


class Progress(msgspec.Struct, frozen=True):
    """How far one partition is: the next offset to read, its watermark and what became of its events so far."""

    next: int
    watermark_ms: int
    stored: int
    duplicates: int
    rejected: int


class Batch(msgspec.Struct, frozen=True):
    """What one group commit writes: rows in offset order and the progress of every partition that was read."""

    rows: list[Row]
    progress: dict[PartitionKey, Progress]


class Store:
    """The rows and the progress of the partitions that one worker owns; one connection, used from one thread."""

    def __init__(self, path: Path, keep_ms: int = 86_400_000) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.keep_ms = keep_ms
        try:
            self._con = database.connect(path)
            self._migrate()
            self._progress = self._read_progress()
        except duckdb.Error as error:
            if "lock" in str(error):  # another process has it
                raise
            raise UnreadableStore(
                f"{path} cannot be read ({str(error).splitlines()[0]}): remove it, the lake and Kafka give it back"
            ) from error

    def close(self) -> None:
        """Close the file; it can then be read with plain SQL."""
        self._con.close()

    @property
    def connection(self) -> duckdb.DuckDBPyConnection:
        """The connection, for reading the tables `events` and `progress` and the view `sessions` on its own thread."""
        return self._con

    def commit(self, batch: Batch) -> None:
        """Write rows and next offsets in one transaction; raises OffsetsWentBack instead of storing a row twice."""
        for row in batch.rows:
            origin = row.origin
            key = (origin.topic, origin.partition)
            known = self._progress.get(key)  # type: ignore[call-overload]
            if known is not None and origin.offset < known.next:
                raise OffsetsWentBack(f"{key[0]}-{key[1]}: offset {origin.offset}, stored up to {known.next}")
        with self._transaction():
            self._insert(segments.table(batch.rows))
            self._upsert(batch.progress)
        self._progress.update(batch.progress)

    def progress(self) -> dict[PartitionKey, Progress]:
        """The progress of every partition in the file."""
        return dict(self._progress)

    def rows(self, key: PartitionKey, since_ms: int, open_ids: Collection[tuple[str, str]] = ()) -> list[Row]:
        """Rows in offset order: whole sessions with a row since then or named by (user, session), merges included."""
        with self._registered("open_sessions", _pairs(open_ids)):
            where = {"topic": key.topic, "partition": key.partition, "since_ms": since_ms}
            return database.rows(self._con.sql(query("rows"), params=where).to_arrow_table())

    def adopt(self, key: PartitionKey, rows: list[Row] | pa.Table, progress: Progress) -> None:
        """Replace what the store holds of a partition, as when the lake is ahead."""
        with self._transaction():
            self._drop(key)
            self._insert(rows if isinstance(rows, pa.Table) else segments.table(rows))
            self._upsert({key: progress})
        self._progress[key] = progress

    def drop(self, key: PartitionKey) -> None:
        """Remove a partition: another worker owns it now."""
        with self._transaction():
            self._drop(key)
        self._progress.pop(key, None)

    def evict(
        self, key: PartitionKey, before_ms: int, flushed_offset: int, keep_sessions: Collection[tuple[str, str]]
    ) -> int:
        """Drop rows older than an instant that are flushed and in no open session; returns how many went."""
        where = {
            "topic": key.topic,
            "partition": key.partition,
            "before_ms": before_ms,
            "flushed": flushed_offset,
        }
        if not self._con.execute(query("evictable"), where).fetchall()[0][0]:
            return 0
        with self._registered("open_sessions", _pairs(keep_sessions)), self._transaction():
            return int(self._con.execute(query("evict"), where).fetchall()[0][0])

    def held(self, key: PartitionKey, first: int, nxt: int) -> int:
        """How many rows with offsets in [first, nxt) are in the file."""
        return int(self._con.execute(query("held"), [key.topic, key.partition, first, nxt]).fetchall()[0][0])

    def flush_rows(self, ranges: Mapping[PartitionKey, tuple[int, int]]) -> dict[PartitionKey, pa.Table]:
        """The rows with offsets in [first, next) of each partition, in offset order, for the lake."""
        wanted = [(*key, first, end) for key, (first, end) in ranges.items()]
        columns = [[one[i] for one in wanted] for i in range(len(_RANGES))]
        with self._registered("ranges", pa.table(columns, schema=_RANGES)):
            found = self._con.sql(query("flush_rows")).to_arrow_table().cast(SCHEMA)
        tables, at = dict.fromkeys(ranges, found.slice(0, 0)), 0
        counts = found.group_by(["topic", "partition"], use_threads=False).aggregate(
            [([], "count_all")]
        )  # in their order
        for topic, partition, count in zip(*(column.to_pylist() for column in counts.columns), strict=True):
            tables[PartitionKey(topic, partition)] = found.slice(at, count)
            at += count
        return tables

    def forget(self, users: Collection[str]) -> bool:
        """Rewrite the file without these users, all that were ever forgotten; whether it was not yet without them.

        Rows that were evicted or dropped long ago count too: DuckDB keeps deleted bytes in its file.
        """
        wanted = hashlib.blake2b("\0".join(sorted(users)).encode(), digest_size=16).hexdigest()
        if not users or (wanted,) in self._con.execute(query("erased")).fetchall():
            return False
        with self._registered("forgotten_users", pa.table({"user_id": pa.array(list(users), pa.string())})):
            self._con.execute(query("forget"))
        fresh = self.path.with_name(self.path.name + ".new")
        for leftover in (fresh, _wal(fresh)):
            leftover.unlink(missing_ok=True)
        copy = Store(fresh, self.keep_ms)
        held = self._con.sql(query("all_rows")).to_arrow_table()
        with copy._transaction():
            copy._insert(held)
            copy._upsert(self._progress)
            copy._con.execute(query("note_erased"), [wanted])
        copy.close()
        self.close()
        _wal(self.path).unlink(missing_ok=True)
        fresh.replace(self.path)
        self._con = database.connect(self.path)
        return True

    def _migrate(self) -> None:
        self._con.execute(query("schema"))
        done = {step for (step,) in self._con.execute(query("steps")).fetchall()}
        newer = done - {name for name, _ in migrations.STEPS}
        if newer:
            self._con.close()
            raise StoreFromNewerVersion(f"{self.path} has {', '.join(sorted(newer))}")
        for name, sql in migrations.STEPS:
            if name not in done:
                with self._transaction():
                    self._con.execute(sql)
                    self._con.execute(query("step_done"), [name])

    def _read_progress(self) -> dict[PartitionKey, Progress]:
        found = self._con.execute(query("progress")).fetchall()
        return {PartitionKey(record[0], record[1]): Progress(*record[2:]) for record in found}

    def _insert(self, table: pa.Table) -> None:
        if table.num_rows:
            with self._registered("batch_rows", table):
                self._con.execute(query("insert_rows"))

    def _upsert(self, progress: dict[PartitionKey, Progress]) -> None:
        if not progress:
            return
        records: list[dict[str, Any]] = [
            {"topic": key[0], "partition": key[1], **msgspec.structs.asdict(p)} for key, p in progress.items()
        ]
        with self._registered("batch_progress", pa.Table.from_pylist(records)):
            self._con.execute(query("upsert_progress"))

    def _drop(self, key: PartitionKey) -> None:
        self._con.execute(query("drop_rows"), [key.topic, key.partition])
        self._con.execute(query("drop_progress"), [key.topic, key.partition])

    @contextlib.contextmanager
    def _registered(self, name: str, table: pa.Table) -> Iterator[None]:
        self._con.register(name, table)
        try:
            yield
        finally:
            self._con.unregister(name)

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._con.execute("BEGIN")
        try:
            yield
        except BaseException:
            self._con.execute("ROLLBACK")  # else every later statement fails
            raise
        self._con.execute("COMMIT")


def query(name: str) -> str:
    """The statement of that name in `queries.sql`."""
    return _queries()[name]


@functools.cache
def _queries() -> dict[str, str]:
    text = resources.files("featurestore").joinpath("queries.sql").read_text(encoding="utf-8")
    named = {}
    for part in text.split("-- name: ")[1:]:
        name, _, body = part.partition("\n")
        lines = [line for line in body.splitlines() if line.strip() and not line.startswith("--")]
        named[name.strip()] = "\n".join(lines).replace("$columns", _NAMES)
    return {name: sql.replace("$absorbed", named["absorbed"]) for name, sql in named.items()}


def _pairs(sessions: Collection[tuple[str, str]]) -> pa.Table:
    users, ids = [user for user, _ in sessions], [session for _, session in sessions]
    return pa.table({"user_id": users, "session_id": ids}, schema=_SESSIONS)


def _wal(path: Path) -> Path:
    return path.with_name(path.name + ".wal")
