"""The lake holds every row once, whoever wrote it how often."""

import itertools
import os
import tempfile
from pathlib import Path

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import database, lake, sessions
from featurestore.events import Event, Origin, Row, Session
from featurestore.lake import Lake, LakeProgress, PartitionKey
from featurestore.segments import table
from featurestore.store import Progress, Store

KEY = PartitionKey("shop@log1", 3)


def row(offset: int, user: str = "u", n: int = 0, key: PartitionKey = KEY, ts_ms: int | None = None) -> Row:
    """A view of item `i<offset>` at second `offset`."""
    ts_ms = offset * 1000 if ts_ms is None else ts_ms
    event = Event(event_id=f"e{offset}.{n}", type="view", user_id=user, ts_ms=ts_ms, item_id=f"i{offset}")
    return Row(event, Origin(key.topic, key.partition, offset, n, ts_ms), "s", absorbs=("x", "y"))


def put(store: Lake, first: int, nxt: int, users: tuple[str, ...] = ("u",), key: PartitionKey = KEY) -> Path | None:
    """Writes the segment [first, nxt) with a row at every even offset."""
    rows = [row(o, users[o // 2 % len(users)], key=key) for o in range(first, nxt) if o % 2 == 0]
    return store.write(key, first, nxt, table(rows), LakeProgress(next=nxt, watermark_ms=nxt * 1000, stored=nxt))


def offsets(cover: lake.Cover, key: PartitionKey | None = None) -> list[int]:
    """The offsets that a cover yields."""
    return [r.origin.offset for r in cover.rows(key)]


@given(
    cuts=st.lists(st.tuples(st.integers(0, 30), st.integers(1, 12)), min_size=1, max_size=8),
    above=st.integers(-1, 40),
)
@settings(max_examples=40, deadline=None)
def test_cover_yields_every_row_once_whatever_overlaps(cuts: list[tuple[int, int]], above: int) -> None:
    """Whatever ranges are flushed twice, nested or overlapping, a row comes once; the first hole ends it."""
    with tempfile.TemporaryDirectory() as root:
        store = Lake(Path(root), "w")
        for first, length in cuts:
            put(store, first, first + length)
        cover = store.cover({KEY: above} if above >= 0 else {})
        held = sorted({o for first, length in cuts for o in range(first, first + length) if o > above})
        run = held[:1]
        for o in held[1:]:
            if o != run[-1] + 1:
                break
            run.append(o)
        assert offsets(cover) == [o for o in run if o % 2 == 0]
        assert cover.end[KEY] == (run[-1] if run else above) + 1
        con = duckdb.connect()
        assert con.execute(f"SELECT count(*) FROM ({cover.relation(['user_id'])})").fetchall() == [
            (len(offsets(cover)),)
        ]
        con.close()
        assert not run or cover.progress[KEY].next <= cover.end[KEY]


def test_row_comes_back_as_it_was(tmp_path: Path) -> None:
    """Every field of a row survives the lake."""
    store = Lake(tmp_path, "w")
    event = Event(
        event_id="é", type="search", user_id="o'neil", ts_ms=5, session_id="own", query="シューズ", price=1.5,
        quantity=2, consent=False, properties='{"a":1}',
    )  # fmt: skip
    kept = Row(event, Origin(KEY.topic, KEY.partition, 7, 2, 9), "s", True, 4, ("a", "b"))
    store.write_rows(KEY, 0, [kept])
    assert store.cover().rows() == [kept]
    assert store.cover(forgotten=["o'neil"]).rows() == []


def test_gap_ends_the_cover_and_is_said(tmp_path: Path) -> None:
    """Rows behind a hole are not read, and neither is the watermark that speaks of them."""
    store = Lake(tmp_path, "w")
    for first in (0, 10, 30):
        put(store, first, first + 10)
    cover = store.cover()
    assert max(offsets(cover)) == 18
    assert cover.end == {KEY: 20}
    assert "ends at offset 20, the next segment begins at 30" in cover.gaps[0]
    assert cover.progress[KEY].watermark_ms == 20_000


def test_segment_of_rejected_events_only_carries_the_cover_on(tmp_path: Path) -> None:
    """A read range without a row is a segment all the same."""
    store = Lake(tmp_path, "w")
    put(store, 0, 4)
    store.write(KEY, 4, 9, table([]), LakeProgress(next=9, rejected=5))
    put(store, 9, 11)
    assert offsets(store.cover()) == [0, 2, 10]
    assert store.cover().gaps == ()


def test_row_outside_its_segment_is_refused(tmp_path: Path) -> None:
    """A segment's name never lies about what is in it."""
    with pytest.raises(ValueError, match="do not lie in the segment"):
        Lake(tmp_path, "w").write(KEY, 0, 3, table([row(3)]), LakeProgress(next=3))


def test_progress_only_moves_forward(tmp_path: Path) -> None:
    """A zombie's older progress is ignored; a watermark raised by silence stays."""
    store = Lake(tmp_path, "w")
    put(store, 0, 10)
    store.note(KEY, LakeProgress(next=10, watermark_ms=10_000), raised_ms=99_000)
    put(store, 0, 6)
    assert store.progress(KEY) == LakeProgress(next=10, watermark_ms=10_000, raised_ms=99_000)
    put(store, 10, 20)
    assert store.cover().progress[KEY].mature_ms == 99_000


def test_half_written_and_foreign_files_are_left_alone(tmp_path: Path) -> None:
    """What is not a whole segment does not disturb the cover."""
    store = Lake(tmp_path, "w")
    path = put(store, 0, 10)
    assert path is not None
    (path.parent / "10-19.parquet").write_bytes(b"PAR1 torn")
    (path.parent / "notes.txt").write_text("mine")
    (path.parent / "progress.json").write_text("{")
    assert offsets(store.cover()) == [0, 2, 4, 6, 8]
    assert store.cover().progress[KEY].next == 10  # the footer speaks where the file cannot


def test_compaction_changes_nothing_that_is_read(tmp_path: Path) -> None:
    """Merged segments yield the same rows; what they replaced goes one period later."""
    store = Lake(tmp_path, "w")
    for first in range(0, 50, 5):
        put(store, first, first + 7)
    before = store.cover()
    now_ms = before.segments[-1].path.stat().st_mtime_ns // 1_000_000 + 1_000
    assert store.compact(60_000, now_ms) == 0
    assert store.compact(0, now_ms) == 10
    after = store.cover()
    assert len(after.segments) == 1
    assert after.rows() == before.rows()
    assert (after.end, after.progress) == (before.end, before.progress)
    store.compact(0, now_ms)
    assert len(list(after.segments[0].path.parent.glob("*.parquet"))) == 1
    assert store.cover().rows() == after.rows()


def test_compaction_keeps_nothing_beyond_its_time(tmp_path: Path) -> None:
    """However often neighbours are merged, what is older than the lake keeps goes, a span later at the most."""
    store = Lake(tmp_path, "w")
    for first in range(0, 200, 2):
        put(store, first, first + 2)  # a second of event time an offset
        now_ms = store.cover().segments[-1].path.stat().st_mtime_ns // 1_000_000 + 1_000
        store.compact(0, now_ms, 10_000)
        store.expire(40_000)
        kept = offsets(store.cover())
        assert kept[0] >= first - 40 - 10 - 2
        assert kept == list(range(kept[0], first + 2, 2))
    assert len(store.cover().segments) < 20


def test_large_segment_is_not_written_anew_for_a_small_one(tmp_path: Path) -> None:
    """Small ones are merged with each other until they are as much as the large one before them."""
    store = Lake(tmp_path, "w")
    bounds = [0, 100, *range(104, 133, 4)]
    for first, nxt in itertools.pairwise(bounds):
        put(store, first, nxt)
    now_ms = store.cover().segments[-1].path.stat().st_mtime_ns // 1_000_000 + 1_000
    assert store.compact(0, now_ms) == 8
    assert [(s.first, s.last) for s in store.cover().segments] == [(0, 99), (100, 131)]
    put(store, 132, 250)
    assert store.compact(0, now_ms + 60_000) == 3
    assert offsets(store.cover()) == list(range(0, 250, 2))


def test_forgotten_user_leaves_no_byte(tmp_path: Path) -> None:
    """After `forget` no file of the lake holds the user's id, and a returning old file does not bring it back."""
    store = Lake(tmp_path, "w")
    old = put(store, 0, 10, ("keep-me", "forget-me"))
    assert old is not None
    held = old.read_bytes()
    assert store.forget(["forget-me"]) == 1
    assert not any(b"forget-me" in f.read_bytes() for f in tmp_path.rglob("*.parquet"))
    assert {r.event.user_id for r in store.cover().rows()} == {"keep-me"}
    assert store.cover().progress[KEY].next == 10
    old.write_bytes(held)
    assert {r.event.user_id for r in store.cover().rows()} == {"keep-me"}


def test_expiry_takes_the_oldest_segments_only(tmp_path: Path) -> None:
    """What lies further behind the watermark than is kept goes; the rest is still without a gap."""
    store = Lake(tmp_path, "w")
    for first in range(0, 50, 10):
        put(store, first, first + 10)
    assert store.expire(15_000) == 3
    cover = store.cover()
    assert (offsets(cover)[0], cover.end, cover.gaps) == (30, {KEY: 50}, ())
    assert "are asked for" in store.cover({KEY: 4}).gaps[0]


def test_a_lake_aside_has_what_was_there_and_keeps_what_it_writes(tmp_path: Path) -> None:
    """What only looks may bridge a gap and move the progress for itself; other topics do not come along."""
    store = Lake(tmp_path / "shared", "w")
    put(store, 0, 4)
    put(store, 8, 12)
    put(store, 0, 4, key=PartitionKey("other@log1", 0))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    beside = store.aside(tmp_path / "own", {KEY.topic})
    put(beside, 4, 8)
    put(beside, 12, 20)
    assert (beside.keys(), beside.cover().end, offsets(beside.cover())) == ([KEY], {KEY: 20}, list(range(0, 20, 2)))
    progress = beside.progress(KEY)
    assert progress is not None
    assert progress.next == 20
    assert {p: p.read_bytes() for p in (tmp_path / "shared").rglob("*") if p.is_file()} == before
    assert store.cover({}, keys=[KEY]).end == {KEY: 4}


def test_another_log_is_another_partition_space(tmp_path: Path) -> None:
    """The same topic under another log id never mixes with the first; history comes before both."""
    store = Lake(tmp_path, "w")
    put(store, 0, 4)
    put(store, 0, 4, key=PartitionKey("shop@log2", 3))
    mine = lake.history_key("u")
    store.write_rows(mine, 0, [row(0, key=mine), row(1, key=mine)])
    cover = store.cover()
    assert [r.origin.topic for r in cover.rows()] == ["~history"] * 2 + ["shop@log1"] * 2 + ["shop@log2"] * 2
    assert offsets(cover, PartitionKey("shop@log2", 3)) == [0, 2]
    assert set(store.cover(keys=[KEY]).end) == {KEY}


def restored(
    store: Lake, live: sessions.OpenSessions, keep_ms: int, rules: sessions.SessionSettings, root: Path
) -> list[Session]:
    """The open sessions that a new owner has after it read the lake into its own file, by name."""
    again, at_ms = sessions.OpenSessions(), live.watermark_ms
    passed_ms = sessions.passed_ms(at_ms, rules)
    own = Store(root / "own.duckdb")
    own.adopt(KEY, store.cover().restorable(KEY, at_ms - keep_ms, passed_ms), Progress(0, at_ms, 0, 0, 0))
    sessions.restore(again, own.rows(KEY, passed_ms), at_ms, rules)
    own.close()
    return by_name(again)


def by_name(open_: sessions.OpenSessions) -> list[Session]:
    """The sessions in memory in an order that does not tell how they came there, with the ids of their events."""
    assert not any(s.has("no such event") for s in open_.sessions())  # type: ignore[attr-defined]
    return sorted(open_.sessions(), key=lambda s: (s.user_id, s.session_id))


def folded(
    live: sessions.OpenSessions, steps: list[tuple[int, str, str | None]], rules: sessions.SessionSettings
) -> list[Row]:
    """The rows of events given as (time, user, own session id)."""
    rows = []
    for offset, (ts_ms, user, own) in enumerate(steps):
        event = Event(event_id=f"e{offset}", type="view", user_id=user, ts_ms=ts_ms, item_id="i", session_id=own)
        made = sessions.fold(live, event, Origin(KEY.topic, KEY.partition, offset, 0, ts_ms), rules)
        if made.row is not None:
            rows.append(made.row)
    sessions.expire(live, rules)
    return rows


def test_session_longer_than_the_store_keeps_is_restored_whole(tmp_path: Path) -> None:
    """A producer's own session goes on for longer than `store.keep`: its new owner has all of it."""
    rules = sessions.SessionSettings(gap_ms=100, lateness_ms=20)
    live = sessions.OpenSessions()
    steps = [(0, "gone", None)] + [(ts, "long", "own") for ts in range(0, 5_000, 90)] + [(4_900, "other", None)]
    rows = folded(live, steps, rules)
    store = Lake(tmp_path, "w")
    store.write_rows(KEY, 0, rows)
    assert restored(store, live, 500, rules, tmp_path) == by_name(live)
    assert (
        database.rows(store.cover().restorable(KEY, 4_400, 4_600)) == rows[1:]
    )  # what is closed and old is left where it is


@given(
    steps=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from("uv"), st.sampled_from([None, None, None, "x", "y"])), max_size=40
    ),
    drift=st.integers(0, 6),
    keep_ms=st.integers(0, 60),
)
@settings(max_examples=120, deadline=None)
def test_live_fold_equals_restored_from_the_lake(
    steps: list[tuple[int, str, str | None]], drift: int, keep_ms: int
) -> None:
    """Whatever `store.keep` is, late rows and merges included, a new owner folds on as the old one would have."""
    rules = sessions.SessionSettings(gap_ms=10, lateness_ms=5)
    live = sessions.OpenSessions()
    rows = folded(live, [(ts + n * drift, user, own) for n, (ts, user, own) in enumerate(steps)], rules)
    with tempfile.TemporaryDirectory() as root:
        store = Lake(Path(root), "w")
        store.write_rows(KEY, 0, rows)
        assert restored(store, live, keep_ms, rules, Path(root)) == by_name(live)


def test_forgetting_goes_on_where_a_slow_worker_writes_once_more(tmp_path: Path) -> None:
    """The users are looked for again after a while, in what is new; a file that a dead writer left goes too."""
    store = Lake(tmp_path, "w")
    old = put(store, 0, 10, ("keep-me", "forget-me"))
    assert old is not None
    gone = frozenset({"forget-me"})
    assert store.keep_forgotten(gone, 1_000) == 1
    left = old.parent / ".10-19.parquet.dead.1.tmp"
    left.write_bytes(b"forget-me")
    os.utime(left, (0, 0))
    put(store, 10, 20, ("forget-me",))
    assert store.keep_forgotten(gone, 2_000) == 0
    assert store.keep_forgotten(gone, 1_000 + lake.ERASE_EVERY_MS) == 1
    assert not any(b"forget-me" in f.read_bytes() for f in tmp_path.rglob("*") if f.is_file())
    assert (offsets(store.cover()), store.cover().end) == ([0, 4, 8], {KEY: 20})


def test_reader_takes_a_new_cover_where_a_file_was_rewritten(tmp_path: Path) -> None:
    """Erasure may take a segment away between a cover and its reading."""
    store = Lake(tmp_path, "w")
    put(store, 0, 10, ("keep-me", "forget-me"))

    def reading(cover: lake.Cover) -> list[int]:
        store.forget(["forget-me"])
        return offsets(cover)

    assert store.read(reading) == [0, 4, 8]


@pytest.mark.parametrize("how", ["truncated", "of another partition", "of another range", "of another format"])
def test_file_that_is_none_of_the_segments_is_never_read(tmp_path: Path, how: str) -> None:
    """A right name alone makes no segment: the cover ends before it, and says so once."""
    store = Lake(tmp_path, "w")
    paths = [put(store, first, first + 10) for first in (0, 10, 20)]
    bad = paths[1]
    assert bad is not None
    said = pq.read_schema(bad).metadata
    other = PartitionKey(KEY.topic, 4)
    if how == "truncated":
        bad.write_bytes(bad.read_bytes()[:-40])
    if how == "of another partition":
        pq.write_table(table([row(o, key=other) for o in range(10, 20)]).replace_schema_metadata(said), bad)
    if how == "of another range":
        pq.write_table(table([row(o) for o in range(15, 25)]).replace_schema_metadata(said), bad)
    if how == "of another format":
        pq.write_table(table([row(10)]).replace_schema_metadata({"nextclick.format": "9"}), bad)
    cover = Lake(tmp_path, "reader").cover()
    assert (offsets(cover), cover.end, cover.resumes) == ([0, 2, 4, 6, 8], {KEY: 10}, {KEY: 20})


def test_damaged_page_is_an_error_that_names_the_remedy(tmp_path: Path) -> None:
    """Behind a sound footer: nobody reads half of it."""
    store = Lake(tmp_path, "w")
    path = put(store, 0, 10)
    assert path is not None
    content = bytearray(path.read_bytes())
    content[40:200] = bytes(160)
    path.write_bytes(content)
    with pytest.raises(lake.UnreadableSegment, match="nextclick store check"):
        store.read(offsets)
