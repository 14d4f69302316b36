"""Whether lake and stores hold what they say: every segment read, every count added up; reads only."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore import database, lake, store
from featurestore.events import ADDED
from featurestore.lake import Cover, LakeProgress, PartitionKey, Segment

NAME = re.compile(r"(\d+)-(\d+)(?:\.g(\d+))?\.parquet")
IDENTITY = ["offset", "n", "event_id", "user_id"]  # rows that are equal in these are the same row
NAMED = 3  # offsets that a finding names
FORMAT = b"1"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """Something that is not as it should be, where, and what to do; a notice (`fault` false) mends itself."""

    kind: str
    where: str
    what: str
    remedy: str = ""
    fault: bool = True

    def __str__(self) -> str:
        return f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")


class StoreInUse(RuntimeError):
    """A worker runs on this store file, which nobody else may open: stop it to have the file checked."""


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """A segment in the chain that covers a partition: rows above `above` are its, `told` is the progress at its end."""

    segment: Segment
    rows: int
    told: LakeProgress | None


class Part(msgspec.Struct, kw_only=True):
    """One partition of the lake as it was found."""

    key: PartitionKey
    chain: list[Link] = []
    files: int = 0
    erased: int = 0  # rows that were stored and then forgotten
    progress: LakeProgress | None = None  # at `end`
    findings: list[Finding] = []

    @property
    def name(self) -> str:
        return f"{self.key.topic} partition {self.key.partition}"

    @property
    def first(self) -> int:
        return self.chain[0].segment.first if self.chain else 0

    @property
    def end(self) -> int:
        """The next offset: where the cover ends."""
        return self.chain[-1].segment.last + 1 if self.chain else 0

    @property
    def rows(self) -> int:
        return sum(link.rows for link in self.chain)

    @property
    def cover(self) -> Cover:
        return Cover(segments=tuple(link.segment for link in self.chain))

    def said(self, kind: str, what: str, remedy: str = "", *, path: Path | None = None, fault: bool = True) -> None:
        """Note a finding of the partition, or of one of its files."""
        where = f"{self.name}, {path.name}" if path else self.name
        self.findings.append(Finding(kind=kind, where=where, what=what, remedy=remedy, fault=fault))


# ---------------------------------------------------------------- the lake


def lake_parts(shared: Path) -> Iterator[Part]:
    """Every partition of the lake below a shared folder, read whole."""
    for folder in sorted((shared / "events").glob("t=*/p=*")):
        topic, number = unquote(folder.parent.name[2:]), folder.name[2:]
        if number.isdecimal() and ("@" in topic or topic == lake.HISTORY):
            yield _part(folder, PartitionKey(topic, int(number)))
        else:
            part = Part(key=PartitionKey(topic, -1), findings=[])
            part.said("foreign", f"the folder {folder.name} is none of the lake's", "move it out of the lake")
            yield part


def _part(folder: Path, key: PartitionKey) -> Part:
    part = Part(key=key, chain=[], findings=[])
    sound: list[Segment] = []
    broken: list[tuple[Path, int, int, str]] = []
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name == "progress.json":
            continue  # being written, or left by a killed process: compaction removes it
        part.files += 1
        named = NAME.fullmatch(path.name)
        if named is None or int(named[1]) > int(named[2]):
            part.said("foreign", "no segment's name: readers ignore it", "move it out of the lake", path=path)
            continue
        first, last = int(named[1]), int(named[2])
        kind, why = _fault(path, key, first, last)
        if kind == "gone":
            part.files -= 1  # compaction or expiry was faster
        elif kind == "unreadable":
            broken.append((path, first, last, why))
        elif kind:
            part.said(kind, why, "move it out of the lake", path=path)
        else:
            generation = int(named[3] or 0)
            sound.append(Segment(path=path, key=key, first=first, last=last, above=first - 1, generation=generation))
    chosen, hole = _chain(sound)
    part.chain = [_link(segment) for segment in chosen]
    for path, first, last, why in broken:
        held = any(s.first <= first and last <= s.last for s in sound)
        part.said("unreadable", f"cannot be read ({why})", _mend(first, held), path=path)
    if hole is not None:
        part.said("gap", f"the cover ends at offset {part.end:,}, the next segment begins at {hole:,}: what lies "
                  "behind is not read", _mend(part.end, False))  # fmt: skip
    _overlaps(part, sound)
    _duplicates(part)
    _counts(part)
    _progress(part, folder / "progress.json", hole is not None)
    return part


def _mend(offset: int, held: bool) -> str:
    if held:
        return "remove the file: other segments hold its offsets"
    return (
        f"stop the workers, remove the store file of the one that owns the partition (and the broken file), start it: "
        f"it reads again what Kafka still holds from offset {offset:,} on"
    )


def _fault(path: Path, key: PartitionKey, first: int, last: int) -> tuple[str, str]:
    """What is wrong with one segment, every page of it read; empty where nothing is."""
    offsets: list[dict[str, Any]] = []
    topics, partitions = {key.topic}, {key.partition}
    try:
        with pq.ParquetFile(path) as file:
            if missing := [name for name in lake.SCHEMA.names if name not in {*file.schema_arrow.names, *ADDED}]:
                return "foreign", f"lacks the columns {', '.join(missing)}"
            written = (file.metadata.metadata or {}).get(b"nextclick.format")
            for batch in file.iter_batches():
                offsets.append(pc.min_max(batch["offset"]).as_py())
                topics |= set(pc.unique(batch["topic"]).to_pylist())
                partitions |= set(pc.unique(batch["partition"]).to_pylist())
    except FileNotFoundError:
        return "gone", ""
    except (OSError, pa.ArrowException) as error:
        return "unreadable", str(error).strip().split("\n")[0].rstrip(".")
    if written != FORMAT:
        return "foreign", f"has the format {(written or b'none').decode(errors='replace')}, not {FORMAT.decode()}"
    if others := (topics - {key.topic}) | (partitions - {key.partition}):
        return "foreign", f"holds rows of another topic or partition: {', '.join(map(str, others))}"
    found = [o[end] for o in offsets for end in ("min", "max") if o[end] is not None]
    if found and (min(found) < first or max(found) > last):
        return "range", f"holds rows at offsets {min(found):,} to {max(found):,}, outside its name's range"
    return "", ""


def _chain(segments: list[Segment]) -> tuple[list[Segment], int | None]:
    """The readers' rule, written down a second time: by (first, −last), each above what is covered; the first hole."""
    chosen: list[Segment] = []
    for s in sorted(segments, key=lambda s: (s.first, -s.last, -s.generation)):
        covered = chosen[-1].last if chosen else s.first - 1
        if s.first > covered + 1:
            return chosen, s.first
        if s.last > covered:
            chosen.append(
                Segment(path=s.path, key=s.key, first=s.first, last=s.last, above=covered, generation=s.generation)
            )
    return chosen, None


def _link(segment: Segment) -> Link:
    metadata = pq.read_metadata(segment.path)
    rows = metadata.num_rows
    if segment.above >= segment.first:
        rows = pc.sum(pc.greater(pq.read_table(segment.path, columns=["offset"])["offset"], segment.above)).as_py() or 0
    said = (metadata.metadata or {}).get(b"nextclick.progress")
    try:
        told = None if said is None else msgspec.json.decode(said, type=LakeProgress)
    except msgspec.MsgspecError:
        told = None
    return Link(segment=segment, rows=rows, told=told if told and told.next == segment.last + 1 else None)


def _overlaps(part: Part, segments: list[Segment]) -> None:
    """Segments that speak of the same offsets hold the same rows there; one that was rewritten may hold fewer."""
    chosen = {link.segment.path: link.segment for link in part.chain}
    for s in segments:
        for other in chosen.values():
            first, last = max(s.first, other.first), min(s.last, other.last)
            if first > last or other.path == s.path or (s.path in chosen and s.first < other.first):
                continue  # two of the chain are compared once
            mine, theirs = _identities(s, first, last), _identities(other, first, last)
            if s.generation != other.generation:  # somebody was forgotten in one of them
                older, newer = (mine, theirs) if s.generation < other.generation else (theirs, mine)
                differ = newer - older
            else:
                differ = mine ^ theirs
            if differ:
                part.said("overlap", f"differs from {other.path.name} in rows at offsets {some(differ)}",
                          "keep the one whose rows Kafka has (--kafka says), move the other out of the lake",
                          path=s.path)  # fmt: skip


def _identities(segment: Segment, first: int, last: int) -> set[tuple[Any, ...]]:
    within = (pc.field("offset") >= first) & (pc.field("offset") <= last)
    table = pq.read_table(segment.path, columns=IDENTITY, filters=within, partitioning=None)
    return set(zip(*(table[name].to_pylist() for name in IDENTITY), strict=True))


def _duplicates(part: Part) -> None:
    sql = part.cover.relation(["offset", "n"])
    with database.connect() as con:
        twice = con.execute(f'SELECT "offset", n FROM ({sql}) GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL').fetchall()
    for link in part.chain:
        here = [place for place in twice if link.segment.above < place[0] <= link.segment.last]
        if here:
            part.said("duplicates", f"holds {len(here):,} rows more than once, at offsets {some(here)}",
                      _mend(link.segment.first, False), path=link.segment.path)  # fmt: skip


def _counts(part: Part) -> None:
    """From segment to segment the counts grow by the rows that are there; less only where somebody was forgotten."""
    before = LakeProgress(next=0) if part.first == 0 else None
    for link in part.chain:
        told, path = link.told, link.segment.path
        if told is None:
            part.said("counts", "does not say the counts at its end", path=path, fault=False)
        elif before is not None:
            grown = told.stored - before.stored
            behind = [
                name
                for name in ("watermark_ms", "stored", "duplicates", "rejected")
                if getattr(told, name) < getattr(before, name)
            ]
            if behind:
                part.said("counts", f"goes back in {', '.join(behind)} from the segment before it",
                          _mend(link.segment.first, False), path=path)  # fmt: skip
            elif link.rows > grown or (link.rows < grown and not link.segment.generation):
                part.said("counts", f"holds {link.rows:,} rows where its counts say {grown:,}",
                          _mend(link.segment.first, False), path=path)  # fmt: skip
            else:
                part.erased += grown - link.rows
        before = told


def _progress(part: Part, path: Path, hole: bool) -> None:
    """What `progress.json` says of where the cover ends."""
    last = part.chain[-1].told if part.chain else None
    part.progress = last
    try:
        told = msgspec.json.decode(path.read_bytes(), type=LakeProgress)
    except FileNotFoundError:
        if part.chain:
            part.said("progress", "has no progress.json; its segments speak for it", fault=False)
        return
    except (OSError, msgspec.MsgspecError) as error:
        part.said("progress", f"progress.json cannot be read ({error})",
                  "remove it: the next flush writes it again")  # fmt: skip
        return
    if told.next > part.end and part.chain:
        if not hole:
            part.said("progress", f"progress.json speaks of offsets up to {told.next:,}, the segments end at "
                      f"{part.end:,}: rows are missing", _mend(part.end, False))  # fmt: skip
        return
    if told.next < part.end:
        part.said("progress", f"progress.json stands at {told.next:,}, the segments end at {part.end:,}: a flush was "
                  "cut off, the next one moves it", fault=False)  # fmt: skip
        return
    counted = (told.stored, told.duplicates, told.rejected)
    if last is not None and counted != (last.stored, last.duplicates, last.rejected):
        part.said("progress", f"progress.json counts {told.stored:,} stored, {told.duplicates:,} duplicates and "
                  f"{told.rejected:,} rejected, the last segment {last.stored:,}, {last.duplicates:,} and "
                  f"{last.rejected:,}", "remove progress.json: the next flush writes it again")  # fmt: skip
    part.progress = last or told


# ---------------------------------------------------------------- a worker's store


def store_findings(
    path: Path, parts: Mapping[PartitionKey, Part], forgotten: Collection[str] = ()
) -> tuple[list[Finding], dict[PartitionKey, store.Progress]]:
    """A store file against itself and the lake, and its progress; raises StoreInUse where a worker holds the file."""
    found: list[Finding] = []

    def said(kind: str, what: str, remedy: str = AFRESH, key: PartitionKey | None = None, fault: bool = True) -> None:
        where = f"{path.name}, {key.topic} partition {key.partition}" if key else path.name
        found.append(Finding(kind=kind, where=where, what=what, remedy=remedy, fault=fault))

    try:
        con = database.connect(path, read_only=True)
    except duckdb.IOException as error:
        if "lock" in str(error).lower():
            raise StoreInUse(f"{path.name}: a worker runs on it; stop the worker to have its store checked") from error
        said("unreadable", f"cannot be opened ({str(error).splitlines()[0]})")
        return found, {}
    except duckdb.Error as error:
        said("unreadable", f"cannot be opened ({str(error).splitlines()[0]})")
        return found, {}
    progress: dict[PartitionKey, store.Progress] = {}
    with con:
        try:
            for record in con.execute(store.query("progress")).fetchall():
                progress[PartitionKey(record[0], record[1])] = store.Progress(*record[2:])
            for record in con.execute(ROWS).fetchall():
                key, (rows, newest, twice) = PartitionKey(*record[:2]), record[2:]
                own = progress.get(key)
                if own is None:
                    said("store", f"holds {rows:,} rows of a partition whose progress it does not know", key=key)
                elif newest >= own.next:
                    said("store", f"holds a row at offset {newest:,}, its progress stands at {own.next:,}", key=key)
                if twice:
                    said("duplicates", f"holds {twice:,} rows more than once", key=key)
            for key, own in progress.items():
                part = parts.get(key)
                if part is not None and part.progress is not None:
                    _beside_lake(con, key, own, part, frozenset(forgotten), said)
                else:
                    _above(con, key, own, LakeProgress(next=0) if part is None else None, said)
        except duckdb.Error as error:
            said("unreadable", f"cannot be read ({str(error).splitlines()[0]})")
    return found, progress


AFRESH = "stop the worker and remove its store file: it comes back from the lake and Kafka"
ROWS = """
SELECT topic, "partition", count(*), max("offset"), count(*) - count(DISTINCT ("offset", n)) FROM events GROUP BY ALL
"""


def _beside_lake(
    con: duckdb.DuckDBPyConnection, key: PartitionKey, own: store.Progress, part: Part, forgotten: frozenset[str],
    said: Any,
) -> None:  # fmt: skip
    """Rows that both hold are the same; what the lake has not is all in the store, and the counts add up."""
    assert part.progress is not None
    cover = Cover(segments=part.cover.segments, forgotten=forgotten)
    relation = cover.relation(["offset", "n", "event_id"])
    limit = min(part.end, own.next)
    users = ", ".join("'" + user.replace("'", "''") + "'" for user in sorted(forgotten)) or "NULL"
    alone = con.execute(
        'SELECT e."offset", e.n FROM events e WHERE e.topic = ? AND e."partition" = ? AND e."offset" BETWEEN ? AND ? '
        f"AND (e.user_id IN ({users})) IS NOT TRUE AND NOT EXISTS (SELECT 1 FROM ({relation}) l "
        'WHERE l."offset" = e."offset" AND l.n = e.n AND l.event_id = e.event_id) ORDER BY ALL',
        [key.topic, key.partition, part.first, limit - 1],
    ).fetchall()
    if alone and (forgotten or not part.erased):
        said("store", f"holds {len(alone):,} rows that the lake has not, at offsets {some(alone)}", key=key,
             remedy=f"the lake lost them: {_mend(min(alone)[0], False)}")  # fmt: skip
    told = part.progress
    if own.next < part.end:
        said("store", f"stands at {own.next:,}, the lake at {part.end:,}: another worker took over; it is restored "
             "from the lake when it is assigned again", "", key=key, fault=False)  # fmt: skip
    elif own.next == part.end and (own.stored, own.duplicates, own.rejected) != (
        told.stored, told.duplicates, told.rejected
    ):  # fmt: skip
        said("counts", f"counts {own.stored:,} stored, {own.duplicates:,} duplicates and {own.rejected:,} rejected, "
             f"the lake {told.stored:,}, {told.duplicates:,} and {told.rejected:,}", key=key)  # fmt: skip
    elif own.next > part.end:
        _above(con, key, own, told, said)


def _above(
    con: duckdb.DuckDBPyConnection, key: PartitionKey, own: store.Progress, told: LakeProgress | None, said: Any
) -> None:
    """What was not flushed yet lies in the store, none of it missing."""
    if told is None:
        return
    held = con.execute(
        'SELECT count(*) FROM events WHERE topic = ? AND "partition" = ? AND "offset" >= ? AND "offset" < ?',
        [key.topic, key.partition, told.next, own.next],
    ).fetchall()[0][0]
    if held != own.stored - told.stored:
        said("counts", f"holds {held:,} rows above the lake's end {told.next:,} where the counts say "
             f"{own.stored - told.stored:,}", key=key)  # fmt: skip


def some(places: Iterable[tuple[Any, ...]]) -> str:
    """A few offsets of many.

    >>> some([(1, 0), (5, 0), (5, 1), (7, 0), (9, 0)])
    '1, 5, 7 and 1 more'
    """
    offsets = sorted({place[0] for place in places})
    more = f" and {len(offsets) - NAMED:,} more" if len(offsets) > NAMED else ""
    return ", ".join(f"{cast(int, o):,}" for o in offsets[:NAMED]) + more
