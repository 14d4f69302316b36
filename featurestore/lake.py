"""The lake below one shared folder: write, cover, read, compact, expire, forget; beside other writers."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar
from urllib.parse import quote, unquote

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
import structlog

from featurestore import disk, segments
from featurestore.cover import Cover, believed, chain, connection, paths, text
from featurestore.events import Row
from featurestore.segments import (
    HISTORY,
    SCHEMA,
    LakeProgress,
    PartitionKey,
    Segment,
    UnreadableSegment,
    history_key,
)

__all__ = [
    "HISTORY",
    "SCHEMA",
    "Cover",
    "Lake",
    "LakeProgress",
    "PartitionKey",
    "Segment",
    "UnreadableSegment",
    "history_key",
]

FULL = 250_000  # rows from which a segment is left alone by compaction
DEAD_MS = 600_000  # no writer takes that long over a file
ERASE_EVERY_MS = 10_000
READS = 10

T = TypeVar("T")
_log = structlog.get_logger(__name__)


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


class _Part(NamedTuple):
    """A segment that may be merged with its neighbours."""

    segment: Segment
    rows: int
    newest_ms: int

    @classmethod
    def of(cls, segment: Segment) -> _Part:
        rows = int(pq.read_metadata(segment.path).num_rows)
        return cls(segment, rows, segments.newest_ms(segment.path))

    def fits(self, run: list[_Part], span_ms: int | None) -> bool:
        """Whether it may follow these in one segment."""
        since_ms = next((part.newest_ms for part in run if part.rows), self.newest_ms)
        near = span_ms is None or not self.rows or self.newest_ms - since_ms <= span_ms
        return near and self.rows < FULL and sum(part.rows for part in run) + self.rows <= 2 * FULL


class Lake:
    """The lake below one shared folder, as one writer sees it; every method may run beside other writers and readers.

    `compact`, `expire` and `forget` are one keeper's at a time, else they do nothing: a file that one of them rewrites
    while another expires it would come back, with a gap behind it.
    """

    def __init__(self, root: Path, writer: str) -> None:
        self.root = Path(root) / "events"
        self.writer = re.sub(r"[^A-Za-z0-9_-]", "_", writer)
        self._checked: dict[Path, tuple[float, frozenset[str]]] = {}  # segments that hold none of these users
        self._gaps: dict[PartitionKey, str] = {}
        self._erased: tuple[frozenset[str], int] = frozenset(), 0

    def write(self, key: PartitionKey, first: int, nxt: int, table: pa.Table, progress: Counts) -> Path | None:
        """Makes the rows read in [first, nxt) durable, then moves the progress; None where nothing was read."""
        if nxt <= first:
            self.note(key, progress)
            return None
        said = _said(progress)
        segment = segments.place(self._folder(key), key, first, nxt - 1)
        segments.write(segment, table, said, self.writer)
        self.note(key, said)
        return segment.path

    def write_rows(self, key: PartitionKey, first: int, rows: list[Row], progress: Counts | None = None) -> Path | None:
        """Writes rows that are at hand, as an import has them; the watermark is the latest event time unless told."""
        if not rows:
            return None
        nxt = max(r.origin.offset for r in rows) + 1
        before = self.progress(key) or LakeProgress(next=first)
        latest = max(before.watermark_ms, max(r.event.ts_ms for r in rows))
        said = progress or LakeProgress(next=nxt, watermark_ms=latest, stored=before.stored + len(rows))
        return self.write(key, first, nxt, segments.table(rows), said)

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
        disk.replace(folder / "progress.json", [msgspec.json.encode(said)], self.writer)

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

    def aside(self, root: Path, topics: Collection[str]) -> Lake:
        """These topics as they stand now, below another root: what is written there changes nothing here."""
        other = Lake(root, self.writer)
        for key in filter(lambda key: key.topic in topics, self.keys()):
            folder = other._folder(key)
            for file in self._path(key).glob("[!.]*"):
                (folder / file.name).symlink_to(file.absolute())
        return other

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
        found: list[Segment] = []
        end: dict[PartitionKey, int] = {}
        progress: dict[PartitionKey, LakeProgress] = {}
        gaps: list[str] = []
        resumes: dict[PartitionKey, int] = {}
        for key in self.keys() if keys is None else keys:
            wanted = (above or {}).get(key, -1)
            told = self.progress(key)  # before the listing: segments are written first
            chosen, holes, behind = chain(segments.listed(self._path(key), key), wanted)
            if holes:  # a file may have been replaced while the folder was listed
                chosen, holes, behind = chain(segments.listed(self._path(key), key), wanted)
            for hole in holes:
                gaps.append(f"{key.topic} partition {key.partition}: {hole}")
                if self._gaps.get(key) != hole:  # said once
                    _log.error("The lake has a gap.", topic=key.topic, partition=key.partition, what=hole)
                self._gaps[key] = hole
            if behind is not None:
                resumes[key] = behind
            found += chosen
            reached = max(chosen[-1].last + 1 if chosen else 0, wanted + 1)
            if chosen or wanted >= 0:
                end[key] = reached
            fitting = believed(told, chosen, reached)
            if fitting is not None:
                progress[key] = fitting
        return Cover(
            segments=tuple(found), end=end, progress=progress, gaps=tuple(gaps), resumes=resumes,
            forgotten=frozenset(forgotten),
        )  # fmt: skip

    def compact(self, older_than_ms: int, now_ms: int, span_ms: int | None = None) -> int:
        """Merges neighbouring segments that are old enough and removes what a wider one has replaced as long ago.

        Both ages are wall clock; readers keep their files for that long. `span_ms`, event time: a merged segment's
        parts are no further apart, so that `expire` can take it once all of it is old. Returns the number of files
        merged.
        """
        merged = 0
        with self._keeping() as mine:
            for key in self.keys() if mine else ():
                with contextlib.suppress(FileNotFoundError, duckdb.IOException):  # a file went meanwhile: next time
                    merged += self._compact(key, older_than_ms, now_ms, span_ms)
        return merged

    @contextlib.contextmanager
    def _keeping(self) -> Iterator[bool]:
        """Whether this is the only keeper."""
        if not self.root.is_dir():
            yield True  # there is nothing to keep
            return
        with disk.alone(self.root / ".keeper.lock") as mine:
            if not mine:
                _log.warning("Another process keeps the lake just now; this one leaves it alone.", path=str(self.root))
            yield mine

    def _compact(self, key: PartitionKey, older_than_ms: int, now_ms: int, span_ms: int | None) -> int:
        self._clean(key, older_than_ms, now_ms)
        merged, run = 0, list[_Part]()
        for segment in chain(segments.listed(self._path(key), key), -1)[0]:
            part = _Part.of(segment) if segments.age_ms(segment.path, now_ms) >= older_than_ms else None
            if part is not None and part.fits(run, span_ms):
                run.append(part)
                continue
            merged += self._merge(key, run)
            run = [part] if part is not None and part.rows < FULL else []
        return merged + self._merge(key, run)

    def expire(self, keep_ms: int) -> int:
        """Removes leading segments whose newest event lies further behind the watermark than `keep_ms`."""
        with self._keeping() as mine:
            return self._expired(keep_ms) if mine else 0

    def _expired(self, keep_ms: int) -> int:
        cover = self.cover()
        newest = max((p.mature_ms for p in cover.progress.values()), default=0)
        removed = 0
        for key in cover.end:
            known = cover.progress.get(key)
            limit = (newest if key.topic == HISTORY or known is None else known.mature_ms) - keep_ms
            leading = [s for s in cover.segments if s.key == key][:-1]  # the last one tells where we are
            with contextlib.suppress(FileNotFoundError):  # another one removed a file: next time
                removed += self._expire(key, leading, limit)
        return removed

    def _expire(self, key: PartitionKey, leading: list[Segment], limit_ms: int) -> int:
        removed = 0
        for segment in leading:
            if segments.newest_ms(segment.path) >= limit_ms:
                break
            for other in segments.listed(self._path(key), key):
                if other.last <= segment.last:
                    other.path.unlink(missing_ok=True)
                    removed += 1
        return removed

    def forget(self, users: Iterable[str]) -> int:
        """Rewrites every segment that holds one of these users, without them; returns how many were rewritten."""
        names = frozenset(users)
        if not names:
            return 0
        with self._keeping() as mine:
            if mine:
                return self._forget(names)
            self._erased = frozenset(), 0  # again, soon
            return 0

    def _forget(self, names: frozenset[str]) -> int:
        rewritten, checked = 0, {}
        for key in self.keys():
            for segment in segments.listed(self._path(key), key):
                seen = (segments.age_ms(segment.path, 0), names)
                with contextlib.suppress(FileNotFoundError, duckdb.IOException):  # merged meanwhile: next time
                    if self._checked.get(segment.path) != seen and self._rewrite(segment, names):
                        rewritten += 1
                    else:
                        checked[segment.path] = seen
            for path in self._path(key).glob(".*.tmp"):
                if segments.age_ms(path, int(time.time() * 1000)) >= DEAD_MS:  # its writer died over it
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
        try:
            for tried in range(READS):
                time.sleep(0.01 * tried * tried)  # upkeep may be faster than reading for a while
                with contextlib.suppress(duckdb.IOException, FileNotFoundError):
                    return what(self.cover(above, gone, keys=keys))
            return what(self.cover(above, gone, keys=keys))
        except duckdb.Error as error:
            raise UnreadableSegment(
                f"the lake cannot be read ({str(error).splitlines()[0]}): `nextclick store check` names the file and "
                "what to do"
            ) from error

    def _rewrite(self, segment: Segment, users: frozenset[str]) -> bool:
        listed = ", ".join(text(u) for u in sorted(users))
        source = f"read_parquet({paths([segment.path])}, hive_partitioning=false)"
        with connection() as con:
            held = con.execute(f"SELECT count(*) FROM {source} WHERE user_id IN ({listed})").fetchall()[0][0]
            if not held:
                return False
            whole = Cover(segments=(segments.place(segment.path.parent, segment.key, segment.first, segment.last,
                                                   segment.generation),))  # fmt: skip
            sql = f'{whole.relation(where=f"user_id NOT IN ({listed})")} ORDER BY "offset", n'
            table = con.sql(sql).to_arrow_table()
        key, first, last = segment.key, segment.first, segment.last
        clean = segments.place(segment.path.parent, key, first, last, segment.generation + 1)
        segments.write(clean, table, segments.footer(segment.path), self.writer)
        segment.path.unlink(missing_ok=True)
        disk.sync(segment.path.parent)
        return True

    def _merge(self, key: PartitionKey, parts: list[_Part]) -> int:
        while parts and parts[0].rows > sum(part.rows for part in parts[1:]):
            parts = parts[1:]  # a large one waits for as much again, else each small one would have it written anew
        run = [part.segment for part in parts]
        if len(run) < 2:
            return 0
        first = max(run[0].first, run[0].above + 1)
        sql = Cover(segments=tuple(run)).relation()
        with connection() as con:
            table = con.sql(f'{sql} ORDER BY "offset", n').to_arrow_table()
        generation = max(s.generation for s in run)
        merged = segments.place(self._path(key), key, first, run[-1].last, generation)
        segments.write(merged, table, segments.footer(run[-1].path), self.writer)
        return len(run)

    def _clean(self, key: PartitionKey, older_than_ms: int, now_ms: int) -> None:
        """Removes files that one wider (or newer) file has held for long enough, and temporary files of the dead."""
        kept: Segment | None = None
        for segment in sorted(segments.listed(self._path(key), key), key=segments.rank):
            if kept is not None and segment.last <= kept.last:
                if segments.age_ms(kept.path, now_ms) >= older_than_ms:
                    segment.path.unlink(missing_ok=True)
            else:
                kept = segment
        for path in self._path(key).glob(".*.tmp"):
            if segments.age_ms(path, now_ms) >= max(older_than_ms, 3_600_000):
                path.unlink(missing_ok=True)

    def _path(self, key: PartitionKey) -> Path:
        return self.root / f"t={quote(key.topic, safe='@~')}" / f"p={key.partition}"

    def _folder(self, key: PartitionKey) -> Path:
        path = self._path(key)
        if not path.is_dir():
            path.mkdir(parents=True, exist_ok=True)
            for above in (path.parent, self.root, self.root.parent):
                disk.sync(above)
        return path


def _said(progress: Counts, raised_ms: int = 0) -> LakeProgress:
    return LakeProgress(
        next=progress.next,
        watermark_ms=progress.watermark_ms,
        stored=progress.stored,
        duplicates=progress.duplicates,
        rejected=progress.rejected,
        raised_ms=max(raised_ms, getattr(progress, "raised_ms", 0)),
    )
