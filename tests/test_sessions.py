"""Sessions: folding, merging, expiring and restoring."""

from __future__ import annotations

import itertools
from typing import Any

import hypothesis.strategies as st
from hypothesis import example, given, settings

from featurestore import sessions
from featurestore.events import Event, Origin, Row
from featurestore.sessions import CAP, Folded, OpenSessions, SessionSettings

MINUTE = 60_000
START = 1_700_000_000_000
DEFAULT = SessionSettings()


class Partition:
    """Folds events written as (minute, user, options) with rising offsets and keeps what was stored."""

    def __init__(self, settings: SessionSettings = DEFAULT) -> None:
        self.settings = settings
        self.open = OpenSessions()
        self.rows: list[Row] = []
        self.offset = 0

    def event(
        self, minute: float, user: str = "u", *, n: int = 0, record_ms: int | None = None, **fields: Any
    ) -> Folded:
        ts = START + int(minute * MINUTE)
        origin = Origin("events@log", 0, self.offset, n, ts if record_ms is None else record_ms)
        self.offset += 1
        fields.setdefault("event_id", f"e{self.offset}")
        event = Event(type="view", user_id=user, ts_ms=ts, item_id="i", **fields)
        folded = sessions.fold(self.open, event, origin, self.settings)
        if folded.row is not None:
            self.rows.append(folded.row)
        return folded

    def restored(self) -> OpenSessions:
        again = OpenSessions()
        sessions.restore(again, self.rows, self.open.watermark_ms, self.settings)
        return again


def stored(folded: Folded) -> Row:
    assert folded.outcome == "stored"
    assert folded.row is not None
    return folded.row


def state(open: OpenSessions, settings: SessionSettings) -> Any:
    """Everything that later folds depend on, closed sessions left out; the ids of events made where not yet there."""
    sessions.expire(open, settings)
    assert not any(s.has("no such event") for s in open.sessions())  # type: ignore[attr-defined]
    assert len(open) == len(list(open.sessions()))
    return open.watermark_ms, {(s.user_id, s.session_id): s for s in open.sessions()}


def test_gap_itself_joins_and_more_opens() -> None:
    """A row exactly one gap after the last joins; a millisecond more opens another session."""
    p = Partition()
    first = stored(p.event(0))
    assert stored(p.event(30)).session_id == first.session_id
    assert stored(p.event(60 + 1 / MINUTE)).session_id != first.session_id


def test_extends_backward_by_exact_gap() -> None:
    """An earlier row joins up to one gap before the first, is flagged late, and moves the first back."""
    p = Partition()
    first = stored(p.event(30))
    folded = p.event(0)
    assert stored(folded).late
    assert stored(folded).session_id == first.session_id
    assert folded.session is not None
    assert folded.session.first_ms == START
    assert stored(p.event(-30 - 1 / MINUTE)).session_id != first.session_id


def test_users_never_share_a_session() -> None:
    """Two users at the same instant have a session each, own ids included."""
    p = Partition()
    assert stored(p.event(0, "a")).session_id != stored(p.event(0, "b")).session_id
    one, two = p.event(0, "a", session_id="s"), p.event(0, "b", session_id="s")
    assert one.session is not two.session


def test_session_id_is_a_hash_of_the_opening_row() -> None:
    """A derived id follows from the opening row's identity alone."""
    p = Partition()
    assert stored(p.event(0)).session_id == sessions.derived_id(Origin("events@log", 0, 0, 0, 5))


def test_bridge_merges_into_the_older() -> None:
    """A row that bridges two sessions joins the older, which absorbs the younger; the others keep their ids."""
    p = Partition(SessionSettings(lateness_ms=60 * MINUTE))
    young, old = stored(p.event(40)), stored(p.event(0))
    assert young.session_id != old.session_id
    folded = p.event(20)
    bridge = stored(folded)
    assert (bridge.session_id, bridge.absorbs, bridge.seen) == (old.session_id, (young.session_id,), 3)
    assert folded.session is not None
    assert [r.origin.offset for r in folded.session.rows] == [0, 1, 2]
    assert (folded.session.first_ms, folded.session.last_ms) == (START, START + 40 * MINUTE)
    assert folded.session.count == 3
    assert len(p.open) == 1
    assert young.session_id in {r.session_id for r in p.rows}


def test_own_session_id_is_kept_and_not_split() -> None:
    """A producer's own session id spans a gap as long as the watermark has not closed it, and is never merged."""
    p = Partition()
    stored(p.event(0, session_id="mine"))
    assert stored(p.event(32, session_id="mine")).seen == 2
    assert stored(p.event(31, session_id="other")).seen == 1
    assert stored(p.event(31)).absorbs == ()
    assert len(p.open) == 2


def test_own_session_that_was_closed_starts_anew() -> None:
    """An own id that comes back after the watermark closed its session keeps the id and starts with nothing seen."""
    p = Partition()
    stored(p.event(0, session_id="mine"))
    stored(p.event(60, "someone"))
    back = stored(p.event(61, session_id="mine"))
    assert (back.session_id, back.seen) == ("mine", 1)
    assert len(p.open) == 2
    assert sessions.expire(p.open, DEFAULT) == []


def test_duplicate_in_its_session_is_dropped() -> None:
    """A repeated event id of a user inside the joinable session is counted, not stored; another user's is its own."""
    p = Partition()
    stored(p.event(0, event_id="x"))
    again = p.event(1, event_id="x")
    assert (again.outcome, again.row, again.session) == ("duplicate", None, None)
    stored(p.event(1, "v", event_id="x"))
    stored(p.event(100, event_id="x"))
    assert (p.open.stored, p.open.duplicates, p.open.rejected) == (3, 1, 0)


def test_duplicate_bridge_merges_nothing() -> None:
    """A repeated event that would bridge two sessions is dropped and leaves both as they are."""
    p = Partition(SessionSettings(lateness_ms=60 * MINUTE))
    stored(p.event(0, event_id="x"))
    stored(p.event(40))
    assert p.event(20, event_id="x").outcome == "duplicate"
    assert len(p.open) == 2


def test_late_row_is_stored_and_flagged() -> None:
    """A row behind the watermark is stored and flagged; one exactly on it is not late."""
    p = Partition()
    stored(p.event(10))
    assert not stored(p.event(8)).late
    assert stored(p.event(8 - 1 / MINUTE)).late
    assert not stored(p.event(8 - 1 / MINUTE, "v")).scorable


def test_row_of_a_closed_session_opens_its_own() -> None:
    """A late row whose session the watermark has closed opens another, which is not kept open."""
    p = Partition()
    first = stored(p.event(0))
    stored(p.event(100, "v"))
    folded = p.event(1)
    assert stored(folded).session_id != first.session_id
    assert p.open.of("u") == [p.open.get("u", first.session_id)]


def test_rejected_events_change_nothing() -> None:
    """future-ts and too-late are judged first and leave watermark and sessions alone."""
    p = Partition()
    stored(p.event(0))
    before = p.open.watermark_ms
    hour = 60
    assert p.event(hour + 1 / MINUTE, record_ms=START).outcome == "future-ts"
    assert p.event(-2 - 1 / MINUTE - 30 * 24 * hour).outcome == "too-late"
    assert (p.open.watermark_ms, p.open.rejected, len(p.open)) == (before, 2, 1)
    assert p.event(hour, record_ms=START).outcome == "stored"
    assert p.open.watermark_ms == START + 58 * MINUTE


def test_watermark_never_goes_back() -> None:
    """Neither an older event nor a lower raise moves the watermark back."""
    p = Partition()
    p.event(10)
    p.event(0)
    sessions.raise_watermark(p.open, START)
    assert p.open.watermark_ms == START + 8 * MINUTE
    sessions.raise_watermark(p.open, START + 9 * MINUTE)
    assert stored(p.event(8.5)).late


def test_cap_keeps_the_newest_rows_and_counts_all() -> None:
    """Beyond the cap the oldest rows leave memory and go on counting."""
    p = Partition()
    for k in range(CAP + 20):
        folded = p.event(k / 100)
    assert folded.session is not None
    assert (len(folded.session.rows), folded.session.count, stored(folded).seen) == (CAP, CAP + 20, CAP)
    assert folded.session.rows[0].origin.offset == 20
    assert state(p.restored(), DEFAULT) == state(p.open, DEFAULT)


def test_merge_beyond_the_cap() -> None:
    """Two full sessions merge into the newest rows by offset."""
    p = Partition(SessionSettings(lateness_ms=60 * MINUTE))
    for k in range(400):
        p.event(k / 1000)
        p.event(40 + k / 1000)
    folded = p.event(20)
    assert folded.session is not None
    assert (len(folded.session.rows), folded.session.count, len(stored(folded).absorbs)) == (CAP, 801, 1)
    assert [r.origin.offset for r in folded.session.rows] == list(range(301, 801))
    assert state(p.restored(), p.settings) == state(p.open, p.settings)


def test_expire_drops_exactly_what_is_closed() -> None:
    """A session goes when the watermark has passed its last row by gap + lateness, not before."""
    p = Partition()
    p.event(0)
    p.event(5)
    sessions.raise_watermark(p.open, START + 37 * MINUTE)
    assert sessions.expire(p.open, DEFAULT) == []
    sessions.raise_watermark(p.open, START + 37 * MINUTE + 1)
    assert [s.count for s in sessions.expire(p.open, DEFAULT)] == [2]
    assert len(p.open) == 0


SMALL = SessionSettings(gap_ms=10, lateness_ms=8, lake_keep_ms=60)
STEPS = st.lists(
    st.tuples(
        st.integers(-30, 30),  # event time against the newest so far
        st.sampled_from("ab"),
        st.sampled_from([None, None, None, "s", "t"]),  # own session id
        st.integers(0, 12),  # event id
        st.sampled_from(["fold", "fold", "fold", "expire", "raise"]),
    ),
    max_size=60,
)


def run(steps: list[tuple[int, str, str | None, int, str]], *, expiring: bool = True) -> tuple[OpenSessions, list[Row]]:
    open, rows, newest = OpenSessions(), [], 1_000
    for offset, (step, user, own, event_id, action) in enumerate(steps):
        ts = newest + step
        newest = max(newest, ts)
        event = Event(event_id=str(event_id), type="view", user_id=user, ts_ms=ts, session_id=own, item_id="i")
        folded = sessions.fold(open, event, Origin("t", 0, offset, 0, ts), SMALL)
        if folded.row is not None:
            rows.append(folded.row)
        if action == "expire" and expiring:
            sessions.expire(open, SMALL)
        elif action == "raise":
            sessions.raise_watermark(open, newest + step)
    return open, rows


@settings(max_examples=300, deadline=None)
@given(STEPS)
@example([(0, "a", None, 0, "fold"), (8, "a", None, 1, "fold"), (11, "a", None, 2, "fold"), (-9, "a", None, 3, "fold")])
def test_live_fold_equals_restore(steps: list[tuple[int, str, str | None, int, str]]) -> None:
    """Restoring from the stored rows yields the state that the live fold ended with, closed sessions left out."""
    open, rows = run(steps)
    again = OpenSessions()
    sessions.restore(again, rows, open.watermark_ms, SMALL)
    assert state(again, SMALL) == state(open, SMALL)


@settings(max_examples=200, deadline=None)
@given(STEPS, STEPS)
def test_a_hand_over_changes_no_later_row(
    before: list[tuple[int, str, str | None, int, str]], after: list[tuple[int, str, str | None, int, str]]
) -> None:
    """A new owner that restores half-way folds every later event as the old one would have."""
    open, rows = run(before)
    again = OpenSessions()
    sessions.restore(again, rows, open.watermark_ms, SMALL)
    newest = max([1_000, *(r.event.ts_ms for r in rows)])
    for offset, (step, user, own, event_id, _) in enumerate(after, start=1_000):
        event = Event(event_id=str(event_id), type="view", user_id=user, ts_ms=newest + step, session_id=own)
        origin = Origin("t", 0, offset, 0, newest + step)
        assert sessions.fold(open, event, origin, SMALL) == sessions.fold(again, event, origin, SMALL)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_when_expire_is_called_does_not_matter(steps: list[tuple[int, str, str | None, int, str]]) -> None:
    """Expiring often or never leaves every row and the open sessions the same."""
    often, often_rows = run(steps)
    never, never_rows = run(steps, expiring=False)
    assert often_rows == never_rows
    assert state(often, SMALL) == state(never, SMALL)


@settings(max_examples=200, deadline=None)
@given(STEPS)
def test_events_are_stored_duplicates_or_rejected(steps: list[tuple[int, str, str | None, int, str]]) -> None:
    """The counters add up to the events, and derived sessions of a user stay more than a gap apart."""
    open, rows = run(steps)
    assert open.stored + open.duplicates + open.rejected == len(steps)
    assert open.stored == len(rows)
    state(open, SMALL)
    for user in "ab":
        derived = sorted((s.first_ms, s.last_ms) for s in open.of(user) if not s.own_id)
        assert all(left[1] + SMALL.gap_ms < right[0] for left, right in itertools.pairwise(derived))
