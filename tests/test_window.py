"""Examples hold what was seen at a cut, what came of it, and nothing that is not known yet."""

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import lake, window
from featurestore.events import ENGAGED, Event, Origin, Row
from featurestore.lake import Lake, LakeProgress, PartitionKey
from featurestore.window import Examples, WindowPolicy

KEY = PartitionKey("shop@log1", 0)
POLICY = WindowPolicy(horizon_next_ms=100, horizon_purchase_ms=300, n_min=1)


def row(offset: int, ts_ms: int, item: str | None = "a", **other: object) -> Row:
    """A view of an item by user `u` in session `s`."""
    fields = {"user_id": "u", "type": "view", "event_id": f"e{offset}", "category": "c", **other}
    session = str(fields.pop("session", "s"))
    late, absorbs, key = bool(fields.pop("late", False)), fields.pop("absorbs", ()), fields.pop("key", KEY)
    event = Event(ts_ms=ts_ms, item_id=item, **fields)  # type: ignore[arg-type]
    origin = Origin(key.topic, key.partition, offset, 0, ts_ms)  # type: ignore[attr-defined]
    return Row(event, origin, session, late, absorbs=absorbs)  # type: ignore[arg-type]


def made(rows: list[Row], watermark_ms: int = 10_000, policy: WindowPolicy = POLICY) -> Examples:
    """The examples of rows that lie in a lake whose watermark has come this far."""
    with tempfile.TemporaryDirectory() as root:
        store = Lake(Path(root), "w")
        for key in {PartitionKey(r.origin.topic, r.origin.partition) for r in rows}:
            mine = [r for r in rows if r.origin.topic == key.topic and r.origin.partition == key.partition]
            nxt = max(r.origin.offset for r in mine) + 1
            store.write_rows(key, 0, mine, LakeProgress(next=nxt, watermark_ms=watermark_ms))
        return window.examples(store.cover(), policy)


def label(e: Examples, i: int) -> str | None:
    """The item that a cut's label names."""
    return None if e.next_row[i] < 0 else e.rows.column("item_id")[int(e.next_row[i])].as_py()


rows_ = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from(["view", "browse", "purchase", "click"]),
        st.sampled_from(["u", "v"]),
        st.booleans(),
    ),
    min_size=1,
    max_size=20,
)


@given(raw=rows_, watermark_ms=st.integers(0, 900))
@settings(max_examples=40, deadline=None)
def test_examples_agree_with_the_definition(
    raw: list[tuple[int, str | None, str, str, bool]], watermark_ms: int
) -> None:
    """No feature has a higher offset, no label a lower one or one outside its horizon, nothing immature is used."""
    rows = [
        row(o, ts, item, type=kind, user_id=user, late=late, session=f"{user}1")
        for o, (ts, item, kind, user, late) in enumerate(raw)
    ]
    e = made(rows, watermark_ms)
    open_ = next((i for i, r in enumerate(rows) if r.event.ts_ms + 100 >= watermark_ms), len(rows))
    cuts = [i for i, r in enumerate(rows[:open_]) if not r.late]
    assert e.begins[KEY] == open_
    assert sorted(e.row.tolist()) == cuts
    for i, at in enumerate(e.row.tolist()):
        cut = rows[at]
        seen = [j for j in range(at + 1) if rows[j].event.user_id == cut.event.user_id]
        assert [t for t in e.tokens[i].tolist() if t >= 0] == seen
        touched = [rows[j].event.item_id for j in seen if rows[j].event.type in ENGAGED and rows[j].event.item_id]
        current = touched[-1] if touched else None
        later = [
            (r.event.ts_ms, j)
            for j, r in enumerate(rows)
            if j > at and r.event.user_id == cut.event.user_id and r.event.ts_ms > cut.event.ts_ms
        ]
        near = [j for ts, j in sorted(later) if ts <= cut.event.ts_ms + 100 and rows[j].event.type in ENGAGED]
        wanted = [j for j in near if rows[j].event.item_id not in (None, current)]
        assert e.next_row[i] == (wanted[0] if wanted else -1)
        assert e.categories(i).tolist() == near[:1]
        bought = any(rows[j].event.type == "purchase" for ts, j in later if ts <= cut.event.ts_ms + 300)
        assert e.purchase[i] == (int(bought) if cut.event.ts_ms + 300 < watermark_ms else -1)


def test_label_at_the_horizon_counts_and_one_beyond_does_not() -> None:
    """The horizon is closed at its end."""
    assert label(made([row(0, 0), row(1, 100, "b")]), 0) == "b"
    assert label(made([row(0, 0), row(1, 101, "b")]), 0) is None


def test_merged_session_is_seen_merged_only_after_the_merge() -> None:
    """Before a row bridges two sessions a cut sees its own; afterwards it sees both in order of arrival."""
    e = made([row(0, 0, session="s"), row(1, 90, session="t"), row(2, 45, session="s", absorbs=("t",)), row(3, 99)])
    seen = {int(r): [t for t in tokens.tolist() if t >= 0] for r, tokens in zip(e.row, e.tokens, strict=True)}
    assert seen == {0: [0], 1: [1], 2: [0, 1, 2], 3: [0, 1, 2, 3]}


def test_repeated_event_and_one_without_consent_fall_out() -> None:
    """Neither becomes a row of the window."""
    e = made([row(0, 0), row(1, 10, "b", event_id="e0"), row(2, 20, "c", consent=False)])
    assert len(e.rows) == 1
    assert label(e, 0) is None


def test_history_is_followed_by_what_is_live() -> None:
    """A cut of history finds its label in a live partition, never the other way."""
    past = lake.history_key("u")
    e = made([row(9, 0, key=past), row(0, 50, "b"), row(10, 90, "h", key=past)])
    found = {int(r): label(e, i) for i, r in enumerate(e.row)}
    assert found == {0: "b", 1: None, 2: None}


def test_session_longer_than_the_tokens_keeps_its_newest() -> None:
    """Tokens are the last fifty."""
    e = made([row(o, o) for o in range(60)])
    assert e.tokens[-1].tolist() == list(range(10, 60))


def test_newest_share_of_the_fresh_cuts_is_held_out() -> None:
    """Cuts below the champion's data offset are never judged on; too small a share is filled up to `n_min`."""
    rows = [row(o, o * 1000) for o in range(100)]
    policy = WindowPolicy(horizon_next_ms=100, since={KEY: 50}, n_min=5)
    e = made(rows, 1_000_000, policy)
    assert e.fresh.sum() == 50
    assert np.flatnonzero(e.judge).tolist() == list(range(90, 100))
    pooled = made(rows, 1_000_000, WindowPolicy(horizon_next_ms=100, since={KEY: 50}, n_min=30))
    assert (int(pooled.judge.sum()), int(pooled.train.sum())) == (30, 70)


def test_nothing_held_out_is_a_label_in_training() -> None:
    """A cut whose label lies in the judged stretch is left out of training."""
    rows = [row(o, o * 10, "ab"[o % 2]) for o in range(20)]
    e = made(rows)
    begins = e.at_ms[e.judge].min()
    assert e.judge.sum() == 4
    assert (e.rows.column("ts_ms").to_numpy()[e.next_row[e.train]] < begins).all()
    assert e.train.sum() == 15


def test_empty_lake_gives_no_examples() -> None:
    """No rows, no cuts, no error."""
    assert len(window.examples(lake.Cover(), POLICY)) == 0


def test_what_is_not_all_mature_is_left_for_the_next_window() -> None:
    """No cut lies behind the first row whose label may still change, whatever its own time is."""
    e = made([row(0, 0), row(1, 500), row(2, 100), row(3, 400)], watermark_ms=560)
    assert e.row.tolist() == [0]
    assert e.begins == {KEY: 1}
    assert made([row(0, 0), row(1, 100)]).begins == {KEY: 2}
