"""From the lake to examples: cuts with what was seen at them and what came of them, mature ones only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import duckdb
import msgspec
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from featurestore import database
from featurestore.events import ENGAGED
from featurestore.lake import HISTORY, Cover, PartitionKey
from featurestore.outages import Outage, outages

LENGTH = 50  # tokens of a session at a cut
POOL_MS = 86_400_000  # how far back the judging slice reaches for want of cuts
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# All rows in the order of the memory, but for sessions that turned out to be a program's, from their first row on; a
# user's repeated event ids beyond the first fall out.
_ROWS = """
SELECT * FROM ({relation}) ANTI JOIN ({programs}) USING (user_id, session_id)
QUALIFY row_number() OVER (
    PARTITION BY user_id, event_id ORDER BY topic <> '~history', topic, "partition", "offset", n) = 1
ORDER BY topic <> '~history', topic, "partition", "offset", n
"""
# What the user of a cut engaged with later: a higher offset of its partition (all that is live after history).
_LATER = """
FROM cuts a JOIN engaged b ON a.user_id = b.user_id AND b.ts_ms > a.ts_ms AND b.ts_ms <= a.ts_ms + {horizon}
AND ((a.part = b.part AND b."offset" > a."offset") OR (a.past AND NOT b.past))
"""


class WindowPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """Which cuts are used; all durations are event time."""

    horizon_next_ms: int = 1_800_000
    horizon_purchase_ms: int = 86_400_000
    lateness_ms: int = 120_000
    cuts: int = 200_000
    max_age_ms: int = 14 * 86_400_000
    n_min: int = 500
    slice_share: float = 0.2
    since: dict[PartitionKey, int] = {}  # the champion's data offsets: what lies at or above is new to it


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Cuts in order of event time; all row numbers point into `rows`."""

    rows: pa.Table  # history first, then (topic, partition, offset, n)
    row: Ints  # [cuts]
    tokens: Ints  # [cuts, LENGTH] rows of the session as seen, in order of arrival, −1 on the left
    next_row: Ints  # [cuts] the first different item engaged with, −1: none
    category_offsets: Ints  # [cuts + 1] into category_rows
    category_rows: Ints  # the first row of each category engaged with
    purchase: NDArray[np.int8]  # [cuts] −1: not mature yet, or an outage was within the horizon
    at_ms: Ints
    session_key: Ints  # [cuts] cuts of one session share a number
    user: Ints  # [cuts] cuts of one user share a number
    fresh: Bools  # newer than the champion's data
    judge: Bools  # held out
    train: Bools  # not held out, and no label lies where the held-out part begins
    begins: dict[PartitionKey, int]  # where in each partition that begins which is not all mature: no cut lies there
    outages: tuple[Outage, ...] = ()  # in which purchases were not recorded

    def __len__(self) -> int:
        return len(self.row)

    def categories(self, i: int) -> Ints:
        """The rows whose categories are the labels of a cut."""
        return self.category_rows[self.category_offsets[i] : self.category_offsets[i + 1]]


def examples(cover: Cover, policy: WindowPolicy) -> Examples:
    """All mature cuts of the window with their features by offset and their labels by event time."""
    con = database.connect()
    try:
        rows = _rows(con, cover, policy)
        part, keys = _parts(rows)
        limit = _by_row(mature_ms(cover), keys, part)
        ts = ints(rows, "ts_ms")
        begins = _immature(cover, keys, part, ints(rows, "offset"), ts + policy.horizon_next_ms >= limit)
        early = ints(rows, "offset") < _by_row(begins, keys, part)
        usable = ~rows.column("late").to_numpy() & early
        row = np.flatnonzero(usable)
        row = row[np.lexsort((row, ts[row]))][max(0, int(usable.sum()) - policy.cuts) :]
        session = _codes(rows, ["user_id", "session_id"], part)
        tokens = _tokens(rows, part, session)[row]
        labels = _labels(con, rows, part, keys, row, tokens, policy)
    finally:
        con.close()
    next_row, category_offsets, category_rows, bought = labels
    lost = outages(ts, rows["type"], session, policy.horizon_purchase_ms)
    ends_ms = ts[row] + policy.horizon_purchase_ms
    known = ends_ms < limit[row]
    for outage in lost:
        known &= (ends_ms < outage.from_ms) | (ts[row] >= outage.to_ms)
    fresh = (ints(rows, "offset") >= _by_row(policy.since, keys, part))[row]
    judge = _held_out(ts[row], fresh, policy)
    judged_ms = ts[row][judge].min() if judge.any() else np.iinfo(np.int64).max
    label_ms = np.where(next_row >= 0, ts[next_row] if len(ts) else 0, -1)
    return Examples(
        rows=rows,
        row=row,
        tokens=tokens,
        next_row=next_row,
        category_offsets=category_offsets,
        category_rows=category_rows,
        purchase=np.where(known, bought, -1).astype(np.int8),
        at_ms=ts[row],
        session_key=session[row],
        user=_codes(rows, ["user_id"])[row],
        fresh=fresh,
        judge=judge,
        train=~judge & (label_ms < judged_ms),
        begins=begins,
        outages=lost,
    )


def mature_ms(cover: Cover) -> dict[PartitionKey, int]:
    """The instant that each partition's watermark has reached; history also ages with the slowest live partition."""
    known = {key: progress.mature_ms for key, progress in cover.progress.items()}
    live = min((at for key, at in known.items() if key.topic != HISTORY), default=0)
    return {key: max(at, live) if key.topic == HISTORY else at for key, at in known.items()}


def _by_row(said: dict[PartitionKey, int], keys: list[PartitionKey], part: Ints) -> Ints:
    """What is said of each row's partition, 0 where nothing is."""
    made: Ints = np.array([said.get(key, 0) for key in keys] or [0], np.int64)[part]
    return made


def _immature(
    cover: Cover, keys: list[PartitionKey], part: Ints, offset: Ints, immature: Bools
) -> dict[PartitionKey, int]:
    """The first offset of each partition whose label may still change, its end where there is none."""
    first = np.array([cover.end.get(key, 0) for key in keys], np.int64)
    np.minimum.at(first, part[immature], offset[immature])
    return {**cover.end, **dict(zip(keys, first.tolist(), strict=True))}


def _rows(con: duckdb.DuckDBPyConnection, cover: Cover, policy: WindowPolicy) -> pa.Table:
    latest = con.execute(f"SELECT max(ts_ms) FROM ({cover.relation(['ts_ms'])})").fetchall()[0][0] or 0
    relation = cover.relation(where=f"consent AND ts_ms >= {latest - policy.max_age_ms}")
    programs = cover.relation(["user_id", "session_id"], where="bot IS NOT NULL")
    return con.sql(_ROWS.format(relation=relation, programs=programs)).to_arrow_table().combine_chunks()


def ints(rows: pa.Table, name: str) -> Ints:
    """A column of whole numbers."""
    return np.asarray(rows.column(name).to_numpy(), np.int64)


def _codes(rows: pa.Table, names: list[str], start: Ints | None = None) -> Ints:
    """One number for each distinct combination."""
    code = np.zeros(len(rows), np.int64) if start is None else start
    for name in names:
        column = rows.column(name).combine_chunks().dictionary_encode()
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        indices = np.asarray(column.indices.to_numpy(zero_copy_only=False), np.int64)
        code = np.unique(code * (len(column.dictionary) + 1) + indices, return_inverse=True)[1].astype(np.int64)
    return code


def _parts(rows: pa.Table) -> tuple[Ints, list[PartitionKey]]:
    """The partition of each row as a number, and what the numbers mean."""
    part = _codes(rows, ["topic"], ints(rows, "partition"))
    first = np.unique(part, return_index=True)[1]
    found = rows.select(["topic", "partition"]).take(first).to_pylist()
    return part, [PartitionKey(r["topic"], r["partition"]) for r in found]


def _tokens(rows: pa.Table, part: Ints, session: Ints) -> Ints:
    """The newest rows of its session at each row [rows, LENGTH]: itself and what arrived before it."""
    order = np.argsort(session, kind="stable")  # by session, within it by arrival
    starts = np.flatnonzero(np.r_[True, np.diff(session[order]) != 0]) if len(order) else np.empty(0, np.int64)
    begin = np.repeat(starts, np.diff(np.r_[starts, len(order)]))
    back = np.arange(len(order))[:, None] - np.arange(LENGTH - 1, -1, -1)[None, :]
    tokens = np.empty((len(order), LENGTH), np.int64)
    tokens[order] = np.where(back >= begin[:, None], order[np.maximum(back, 0)] if len(order) else -1, -1)
    _merge(rows, part, tokens)
    return tokens


def _merge(rows: pa.Table, part: Ints, tokens: Ints) -> None:
    """Does again, in order of arrival, what belongs to sessions that absorbed others."""
    lengths = np.asarray(rows.column("absorbs").combine_chunks().value_lengths().fill_null(0))
    merging = np.flatnonzero(lengths)
    if not len(merging):
        return
    absorbs = {int(i): rows.column("absorbs")[int(i)].as_py() for i in merging}
    users = rows.column("user_id").to_pylist()
    ids = rows.column("session_id").to_pylist()
    touched = {(int(part[i]), users[i], s) for i, others in absorbs.items() for s in [ids[i], *others]}
    open_: dict[tuple[int, str, str], list[int]] = {}
    for i, key in enumerate(zip(part.tolist(), users, ids, strict=True)):
        if key not in touched:
            continue
        held = open_.setdefault(key, [])
        if i in absorbs:
            for other in absorbs[i]:
                held += open_.pop((key[0], key[1], other), [])
            held.sort()
        held.append(i)
        last = held[-LENGTH:]
        tokens[i] = -1
        tokens[i, LENGTH - len(last) :] = last


def _labels(
    con: duckdb.DuckDBPyConnection,
    rows: pa.Table,
    part: Ints,
    keys: list[PartitionKey],
    row: Ints,
    tokens: Ints,
    policy: WindowPolicy,
) -> tuple[Ints, Ints, Ints, NDArray[np.int8]]:
    past = np.array([k.topic == HISTORY for k in keys] or [False])[part]
    names = ["user_id", "ts_ms", "offset", "type", "item_id", "category"]
    plain: dict[str, Any] = {name: rows.column(name) for name in names}
    everything = pa.table({**plain, "part": part, "past": past, "pos": np.arange(len(rows))})
    cuts = everything.take(row).append_column("cut", pa.array(np.arange(len(row))))
    cuts = cuts.append_column("current", rows.column("item_id").take(_current(rows, tokens)))
    con.register("everything", everything)
    con.register("cuts", cuts)
    con.execute(f"CREATE TEMP TABLE engaged AS FROM everything WHERE type IN {tuple(sorted(ENGAGED))}")
    later = _LATER.format(horizon=policy.horizon_next_ms)
    found = con.execute(
        f"SELECT a.cut, arg_min(b.pos, (b.ts_ms, b.pos)) AS pos {later} AND b.item_id IS NOT NULL"
        " AND b.item_id IS DISTINCT FROM a.current GROUP BY a.cut"
    ).fetchnumpy()
    next_row = np.full(len(row), -1, np.int64)
    next_row[np.asarray(found["cut"], np.int64)] = np.asarray(found["pos"], np.int64)
    found = con.execute(
        f"SELECT a.cut, arg_min(b.pos, (b.ts_ms, b.pos)) AS pos, min((b.ts_ms, b.pos)) AS first {later}"
        " AND b.category IS NOT NULL GROUP BY a.cut, b.category ORDER BY a.cut, first"
    ).fetchnumpy()
    counts = np.bincount(np.asarray(found["cut"], np.int64), minlength=len(row))
    offsets = np.r_[0, np.cumsum(counts)].astype(np.int64)
    later = _LATER.format(horizon=policy.horizon_purchase_ms)
    bought = con.execute(f"SELECT DISTINCT a.cut {later} AND b.type = 'purchase'").fetchnumpy()["cut"]
    purchase = np.zeros(len(row), np.int8)
    purchase[np.asarray(bought, np.int64)] = 1
    return next_row, offsets, np.asarray(found["pos"], np.int64), purchase


def _current(rows: pa.Table, tokens: Ints) -> pa.Array:
    """The row with the item that the session is at: the last that was engaged with, null where none was."""
    engaged = rows.column("item_id").is_valid().to_numpy() & np.isin(rows.column("type").to_numpy(), [*ENGAGED])
    has = np.r_[engaged, False][tokens]  # −1 is the False at the end
    last = LENGTH - 1 - np.argmax(has[:, ::-1], axis=1)
    return pa.array(tokens[np.arange(len(tokens)), last], mask=~has.any(axis=1))


def _held_out(at_ms: Ints, fresh: Bools, policy: WindowPolicy) -> Bools:
    """The newest share of the fresh cuts; with a champion to beat at least `n_min`, from up to 24 h."""
    judge = np.zeros(len(at_ms), np.bool_)
    newest = np.flatnonzero(fresh)  # cuts are in order of time
    if len(newest):
        n = int(np.ceil(policy.slice_share * len(newest)))
        if policy.since and n < policy.n_min:
            near = int((at_ms[newest] >= at_ms[newest[-1]] - POOL_MS).sum())
            n = max(n, min(policy.n_min, near))
        judge[newest[len(newest) - n :]] = True
    return judge
