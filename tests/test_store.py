"""The store: one transaction a commit, restoring, evicting, erasing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import duckdb
import pytest

from featurestore import sessions
from featurestore.events import COLUMNS, Event, Origin, Row
from featurestore.sessions import OpenSessions, SessionSettings
from featurestore.store import Batch, OffsetsWentBack, PartitionKey, Progress, Store, StoreFromNewerVersion

KEY = PartitionKey("events@log", 0)
OTHER = PartitionKey("events@log", 1)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(tmp_path / "store" / "w.duckdb")
    yield opened
    opened.close()


def row(offset: int, *, user: str = "u", ts: int | None = None, session: str = "s", key: PartitionKey = KEY,
        seen: int = 1, absorbs: tuple[str, ...] = ()) -> Row:  # fmt: skip
    event = Event(event_id=f"e{offset}", type="click", user_id=user, ts_ms=offset if ts is None else ts, item_id="i",
                  title="Schuhe 👟 鞋", price=9.5, quantity=2, properties='{"a":1}')  # fmt: skip
    return Row(event, Origin(key.topic, key.partition, offset, 0, 7), session, False, seen, absorbs)


def progress(nxt: int) -> Progress:
    return Progress(nxt, nxt - 1, nxt, 0, 0)


def test_rows_come_back_as_they_went_in(store: Store) -> None:
    """A row is the same after the store, its missing fields and absorbed sessions included."""
    rows = [row(0), row(1, session="t"), row(2, absorbs=("t",), seen=3)]
    store.commit(Batch(rows, {KEY: progress(3)}))
    assert store.rows(KEY, 0) == rows
    assert store.rows(OTHER, 0) == []
    assert store.progress() == {KEY: progress(3)}


def test_file_opens_again(tmp_path: Path) -> None:
    """What was committed is there after the file was closed and opened again."""
    first = Store(tmp_path / "w.duckdb")
    first.commit(Batch([row(0)], {KEY: progress(1), OTHER: progress(5)}))
    first.close()
    again = Store(tmp_path / "w.duckdb")
    assert (again.progress(), again.rows(KEY, 0)) == ({KEY: progress(1), OTHER: progress(5)}, [row(0)])
    again.close()


def test_progress_commits_without_rows(store: Store) -> None:
    """A batch in which nothing was stored moves the next offset all the same."""
    store.commit(Batch([], {KEY: progress(4)}))
    store.commit(Batch([], {KEY: progress(9)}))
    assert store.progress() == {KEY: progress(9)}


def test_row_below_the_stored_offset_is_refused(store: Store) -> None:
    """A batch that goes back is refused whole; another partition's offsets are its own."""
    store.commit(Batch([row(0), row(5)], {KEY: progress(6)}))
    with pytest.raises(OffsetsWentBack, match="offset 5"):
        store.commit(Batch([row(6), row(5)], {KEY: progress(7)}))
    store.commit(Batch([row(0, key=OTHER)], {OTHER: progress(1)}))
    assert [r.origin.offset for r in store.rows(KEY, 0)] == [0, 5]


def test_error_rolls_back_and_the_store_goes_on(store: Store) -> None:
    """A failing statement leaves neither rows nor progress behind, and the next commit works."""
    bad = Progress(1, 0, 0, 0, None)  # type: ignore[arg-type]
    with pytest.raises(duckdb.Error):
        store.commit(Batch([row(0)], {KEY: bad}))
    assert (store.rows(KEY, 0), store.progress()) == ([], {})
    store.commit(Batch([row(0)], {KEY: progress(1)}))
    assert store.rows(KEY, 0) == [row(0)]


def test_restoring_reads_whole_sessions(store: Store) -> None:
    """A session with one recent row comes whole, and with what it absorbed, over two merges."""
    rows = [row(0, session="a"), row(1, session="b"), row(2, session="b", absorbs=("a",), seen=3),
            row(3, session="c"), row(4, session="c", absorbs=("b",), seen=5), row(5, session="x"),
            row(6, session="c", user="v")]  # fmt: skip
    store.commit(Batch([*rows, row(7, ts=900, session="c", seen=6)], {KEY: progress(8)}))
    assert [r.origin.offset for r in store.rows(KEY, 800)] == [0, 1, 2, 3, 4, 7]
    assert [r.origin.offset for r in store.rows(KEY, 800, [("u", "x")])] == [0, 1, 2, 3, 4, 5, 7]


def test_evict_spares_open_unflushed_and_recent(store: Store) -> None:
    """Only what is old, flushed and in no open session goes, sessions that an open one absorbed stay."""
    rows = [row(0, session="gone"), row(1, session="a"), row(2, session="open", absorbs=("a",), seen=2),
            row(3, ts=500, session="recent"), row(4, session="unflushed")]  # fmt: skip
    store.commit(Batch(rows, {KEY: progress(5)}))
    assert store.evict(KEY, 100, 4, {("u", "open")}) == 1
    assert [r.origin.offset for r in store.rows(KEY, 0)] == [1, 2, 3, 4]
    assert store.evict(KEY, 100, 4, set()) == 2
    assert store.evict(KEY, 0, 4, set()) == 0


def test_adopt_replaces_one_partition(store: Store) -> None:
    """What the lake gives takes the place of a partition's rows and progress, also when it lies lower."""
    store.commit(Batch([row(0), row(1, key=OTHER)], {KEY: progress(9), OTHER: progress(2)}))
    store.adopt(KEY, [row(3)], progress(4))
    assert (store.rows(KEY, 0), store.rows(OTHER, 0)) == ([row(3)], [row(1, key=OTHER)])
    store.adopt(KEY, store.flush_rows({KEY: (0, 9)})[KEY], progress(5))
    assert (store.rows(KEY, 0), store.progress()[KEY]) == ([row(3)], progress(5))


def test_drop_leaves_other_partitions(store: Store) -> None:
    """A dropped partition has neither rows nor progress."""
    store.commit(Batch([row(0), row(0, key=OTHER)], {KEY: progress(1), OTHER: progress(1)}))
    store.drop(KEY)
    assert (store.rows(KEY, 0), list(store.progress())) == ([], [OTHER])
    store.commit(Batch([row(0)], {KEY: progress(1)}))


def test_flush_gives_a_range_in_order(store: Store) -> None:
    """A flush holds [first, next) in offset order with the lake's columns."""
    store.commit(Batch([row(0), row(1), row(2)], {KEY: progress(3)}))
    table = store.flush_rows({KEY: (1, 3)})[KEY]
    assert table.column_names == [name for name, _ in COLUMNS]
    assert table["offset"].to_pylist() == [1, 2]
    assert store.flush_rows({KEY: (5, 9)})[KEY].num_rows == 0
    assert store.flush_rows({}) == {}


def test_flush_gives_each_partition_its_own(store: Store) -> None:
    """Ranges of several partitions are read at once and come apart again, those without rows empty."""
    none = PartitionKey(KEY.topic, 99)
    store.commit(Batch([row(0, key=OTHER), row(0), row(1, key=OTHER), row(1)], {KEY: progress(2), OTHER: progress(2)}))
    found = store.flush_rows({OTHER: (0, 2), KEY: (1, 2), none: (0, 9)})
    assert {key: table["offset"].to_pylist() for key, table in found.items()} == {OTHER: [0, 1], KEY: [1], none: []}
    assert found[OTHER]["partition"].to_pylist() == [OTHER.partition] * 2


def test_sessions_view_applies_merges(store: Store) -> None:
    """Absorbed sessions count towards the one that is left, over several merges."""
    rows = [row(0, session="a"), row(1, session="b"), row(2, session="b", absorbs=("a",), seen=3),
            row(3, session="c"), row(4, session="c", absorbs=("b",), seen=5), row(5, session="d")]  # fmt: skip
    store.commit(Batch(rows, {KEY: progress(6)}))
    found = store.connection.execute("SELECT session_id, events, parts, first_ms, last_ms FROM sessions ORDER BY 1")
    assert found.fetchall() == [("c", 5, 3, 0, 4), ("d", 1, 1, 5, 5)]


def test_forgotten_user_leaves_no_bytes(store: Store) -> None:
    """After erasure the file holds the user's id nowhere and everything else as before."""
    gone = "somebody-to-forget"
    store.commit(Batch([row(0, user=gone), row(1)], {KEY: progress(2)}))
    assert store.forget({gone})
    assert not store.forget({gone})  # the file says that it was done
    assert (store.rows(KEY, 0), store.progress()) == ([row(1)], {KEY: progress(2)})
    store.commit(Batch([row(2)], {KEY: progress(3)}))
    store.connection.execute("CHECKPOINT")
    assert gone.encode() not in b"".join(f.read_bytes() for f in store.path.parent.iterdir())


def test_rows_that_were_dropped_long_ago_leave_no_bytes_either(store: Store) -> None:
    """DuckDB keeps deleted bytes: a file that may hold them is rewritten though no row names the user any more."""
    gone = "somebody-to-forget"
    store.commit(Batch([row(0, user=gone), row(0, key=OTHER)], {KEY: progress(1), OTHER: progress(1)}))
    store.drop(KEY)
    store.connection.execute("CHECKPOINT")
    assert gone.encode() in b"".join(f.read_bytes() for f in store.path.parent.iterdir())
    assert store.forget({gone})
    assert gone.encode() not in b"".join(f.read_bytes() for f in store.path.parent.iterdir())


def test_newer_file_is_refused(tmp_path: Path) -> None:
    """A file with a schema step that this version does not know is not touched."""
    newer = Store(tmp_path / "w.duckdb")
    newer.connection.execute("INSERT INTO schema_steps VALUES ('m999_later')")
    newer.close()
    with pytest.raises(StoreFromNewerVersion, match="m999_later"):
        Store(tmp_path / "w.duckdb")


def test_restart_goes_on_where_the_fold_was(store: Store) -> None:
    """Sessions restored from the store after eviction equal the live ones, merges included."""
    settings, live, rows = SessionSettings(gap_ms=10, lateness_ms=20), OpenSessions(), []
    for offset, ts in enumerate([0, 100, 115, 108, 104, 130, 131, 120]):
        event = Event(event_id=str(offset), type="view", user_id="u", ts_ms=ts, item_id="i")
        folded = sessions.fold(live, event, Origin(*KEY, offset, 0, ts), settings)
        assert folded.row is not None
        rows.append(folded.row)
    sessions.expire(live, settings)
    store.commit(Batch(rows, {KEY: Progress(8, live.watermark_ms, 8, 0, 0)}))
    store.evict(KEY, 110, 8, {(s.user_id, s.session_id) for s in live.sessions()})
    again = OpenSessions()
    since = live.watermark_ms - settings.gap_ms - settings.lateness_ms
    sessions.restore(again, store.rows(KEY, since), live.watermark_ms, settings)
    assert not any(s.has("no such event") for s in (*again.sessions(), *live.sessions()))  # type: ignore[attr-defined]
    assert list(again.sessions()) == list(live.sessions())
