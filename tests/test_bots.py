"""Sessions that no person makes: what the rule says, that a restart says the same, and where it keeps them out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore import bots, cover, lake, segments, sessions, store, views, window
from featurestore.events import COLUMNS, Event, EventType, Origin, Row
from streams import codec, outcomes
from tests.test_outcomes import said
from trainer.memory import Memory

SETTINGS = sessions.SessionSettings(bots=bots.Rule(pace_ms=1_000, burst=5, length=12))
KEY = lake.PartitionKey("t@log", 0)


def event(n: int, ts_ms: int, *, user: str = "u", type_: EventType = "view", **more: Any) -> Event:
    """What a user did at an instant."""
    return Event(event_id=f"e{n}", type=type_, user_id=user, ts_ms=ts_ms, item_id=f"i{n}", **more)


def folded(events: list[Event], settings: sessions.SessionSettings = SETTINGS) -> list[Row]:
    """Their rows, in order of arrival."""
    open_ = sessions.OpenSessions()
    made = [sessions.fold(open_, e, Origin(*KEY, n, 0, 10**12), settings).row for n, e in enumerate(events)]
    return [row for row in made if row is not None]


def flags(events: list[Event], settings: sessions.SessionSettings = SETTINGS) -> list[str | None]:
    """Why each row was left out."""
    return [row.bot for row in folded(events, settings)]


def test_who_acts_at_a_persons_pace_is_one() -> None:
    """As many acts as fit, for as long as the length allows; a rest takes back what a burst was ahead."""
    assert flags([event(n, 1_000 * n) for n in range(12)]) == [None] * 12
    bursts = [event(n, 10_000 * (n // 5) + 100 * (n % 5)) for n in range(10)]
    assert flags(bursts) == [None] * 10


def test_a_burst_beyond_the_pace_is_a_programs_and_stays_one() -> None:
    """Five acts ahead are let through, the next is not, nor what comes an hour later in the same session."""
    told = flags([event(n, 1 + n) for n in range(7)] + [event(9, 1_000_000)])
    assert told == [None] * 5 + ["rate"] * 3


def test_rows_of_one_instant_are_one_act_and_impressions_none() -> None:
    """A basket of thirty, a page of fifty products, and a phone that uploads its events backwards are a person's."""
    assert set(flags([event(n, 7, type_="purchase") for n in range(30)])) == {None}
    assert set(flags([event(n, n, type_="impression") for n in range(50)])) == {None}
    assert set(flags([event(n, 1_000 - n) for n in range(50)])) == {None}


def test_length_and_agent() -> None:
    """A session of more acts than the length; a user agent that names a program, at once, and no other field."""
    assert flags([event(n, 2_000 * n) for n in range(14)]) == [None] * 12 + ["length"] * 2
    agent = '{"context": {"x": 1}, "userAgent": "Mozilla/5.0 (compatible; Googlebot/2.1)"}'
    assert flags([event(0, 0, properties=agent), event(1, 9_000)]) == ["agent"] * 2
    assert flags([event(0, 0, properties='{"note": "a robot, curl/8", "user_agent": "Mozilla/5.0"}')]) == [None]


BOT, BROWSER = "Mozilla/5.0 (compatible; Googlebot/2.1)", "Mozilla/5.0 (X11; Linux x86_64) Firefox/140.0"


def segment(n: int, **more: Any) -> Event:
    """A track call of Segment as a worker reads it."""
    call = {"type": "track", "event": "Product Viewed", "messageId": f"m{n}", "userId": "u", "properties":
            {"product_id": f"p{n}", "name": "Lamp"}, "timestamp": f"2001-09-09T01:46:{n:02}Z"}  # fmt: skip
    (made,) = codec.decode(json.dumps(call | more).encode(), key=b"u", record_ms=10**12)
    assert isinstance(made, Event), made
    return made


@pytest.mark.parametrize(
    ("more", "bot"),
    [
        ({"context": {"userAgent": BOT}}, "agent"),
        ({"context": {"userAgent": "python-requests/2.32 " + "x" * 100_000}}, "agent"),
        ({"context_user_agent": BOT}, "agent"),
        ({"context": {"userAgent": BROWSER}}, None),
        ({"context": {"userAgent": BROWSER, "page": {"title": "Googlebot"}}}, None),
        ({"context": {"userAgent": {"brand": "HeadlessChrome"}}}, None),
        ({"context": {"userAgent": 7}}, None),
        ({"context": "HeadlessChrome"}, None),
        ({"context": {"userAgent": None}}, None),
        ({}, None),
    ],
)
def test_the_user_agent_of_a_segment_call_names_a_program_or_is_dropped(more: dict[str, Any], bot: str | None) -> None:
    """`context.userAgent`, or a warehouse's column of it: a program's is kept short, a person's is personal."""
    made = segment(0, **more)
    assert flags([made, segment(1)]) == [bot, bot]  # who is one stays one, whatever the next call says
    said = json.loads(made.properties or "{}")
    assert ("user_agent" in said) == (bot is not None)
    assert len(made.properties or "") < 1_000
    assert BROWSER not in (made.properties or "")


def test_each_part_can_be_turned_off() -> None:
    """0 is off; sessions of another user and of the same one later are judged by themselves."""
    off = sessions.SessionSettings(bots=bots.Rule(pace_ms=0, length=0))
    assert set(flags([event(n, n) for n in range(600)], off)) == {None}
    later = [event(n, n) for n in range(7)] + [event(8, 9_000_000), event(9, 8, user="v")]
    assert flags(later)[-2:] == [None, None]


ACTS = st.lists(st.tuples(st.integers(0, 4_000_000), st.sampled_from("uv"), st.sampled_from(["view", "impression"])),
                min_size=1, max_size=60)  # fmt: skip


@given(ACTS, st.integers(0, 60))
def test_a_restart_flags_the_same(acts: list[tuple[int, str, Any]], at: int) -> None:
    """Bursts, gaps, merges and disorder: rows restored from what was recorded go on as if nothing had happened."""
    events = [
        event(n, ts // 997 * (1 if n % 3 else 997), user=user, type_=kind) for n, (ts, user, kind) in enumerate(acts)
    ]
    rows = folded(events)
    open_, before = sessions.OpenSessions(), rows[:at]
    newest_ms = max((row.event.ts_ms for row in before), default=0)
    sessions.restore(open_, before, max(0, newest_ms - SETTINGS.lateness_ms), SETTINGS)
    after = [sessions.fold(open_, r.event, r.origin, SETTINGS).row for r in rows[at:]]
    assert [(r.bot, r.session_id) for r in after if r] == [(r.bot, r.session_id) for r in rows[at:]]


def crowd() -> list[Row]:
    """A person who looks at three items, and a program that runs through thirty."""
    people = [event(n, 60_000 * n, user="person") for n in range(3)]
    return folded(people + [event(100 + n, 200_000 + n, user="program") for n in range(30)])


def test_no_cut_no_label_no_count_comes_of_it(tmp_path: Path) -> None:
    """Retrains leave the whole session out, the memory what comes after its flag; the rows stay in the lake."""
    rows = crowd()
    the_lake = lake.Lake(tmp_path, "w")
    the_lake.write_rows(KEY, 0, rows, lake.LakeProgress(next=len(rows), watermark_ms=10**9, stored=len(rows)))
    found = the_lake.cover()
    made = window.examples(found, window.WindowPolicy())
    assert set(made.rows.column("user_id").to_pylist()) == {"person"}
    assert len(found.rows()) == len(rows)
    memory = Memory()
    memory.learn(rows)
    assert len(memory.items) == 3 + 5
    names, told = views.ask(found, "SELECT user_id, reason, events, rows_left_out FROM bots", limit=9, horizon_ms=9)
    assert (names[0], told) == ("user_id", [("program", "rate", 30, 25)])
    _, told = views.ask(found, "SELECT DISTINCT user_id FROM labels", limit=9, horizon_ms=9)
    assert len(told) == 2  # the first five rows are scorable


def test_live_quality_leaves_out_what_was_said_to_a_program() -> None:
    """Predictions made before the flag are passed over, whatever came; the same user's next ones count."""
    made, open_ = outcomes.Outcomes(horizon_ms=1_000), outcomes.Open()
    rows = [row for row in crowd() if row.event.user_id == "program"]
    for row in rows[:5]:
        made.note(open_, said(row.origin.offset, {"x": 0.5}, user="program"), row, [row])
    for row in rows:
        open_.observe(row)
    made.settle(open_, 10**9)
    assert (made.interests.settled, made.interests.noted, made.interests.passed_over) == (0, 0, 5)
    assert made.purchases.settled == 0


def test_segments_and_stores_of_before_are_read(tmp_path: Path) -> None:
    """Without the column nothing is flagged: beside new ones, cut, merged, erased and checked."""
    rows = crowd()
    the_lake = lake.Lake(tmp_path, "w")
    for part in (rows[:16], rows[16:]):
        the_lake.write_rows(KEY, part[0].origin.offset, part)
    old = sorted((tmp_path / "events").rglob("*.parquet"), key=segments_first)[0]
    table = pq.read_table(old, partitioning=None)
    pq.write_table(table.drop_columns(["bot"]), old)
    segments._footer.cache_clear()
    found = the_lake.cover({KEY: 3}).rows()
    assert [row.bot for row in found] == [None] * 12 + ["rate"] * 17
    assert the_lake.compact(0, 10**15) == 2
    assert len(the_lake.cover().rows()) == len(rows)
    assert the_lake.forget({"person"}) == 2
    assert {row.event.user_id for row in the_lake.cover().rows()} == {"program"}
    path = tmp_path / "w.duckdb"
    columns = ", ".join(f'"{name}" {kind}' for name, kind in COLUMNS if name != "bot")
    with duckdb.connect(str(path)) as con:
        con.execute("CREATE TABLE schema_steps (step VARCHAR)")
        con.execute("INSERT INTO schema_steps VALUES ('m001_events'), ('m002_erased')")
        con.execute(f"CREATE TABLE events ({columns})")
        con.execute("CREATE TABLE erased (users VARCHAR)")
        con.execute("CREATE TABLE progress (topic VARCHAR, partition INT, next BIGINT, watermark_ms BIGINT, "
                    "stored BIGINT, duplicates BIGINT, rejected BIGINT, PRIMARY KEY (topic, partition))")  # fmt: skip
    held = store.Store(path)
    held.commit(store.Batch(rows=rows, progress={}))
    assert [row.bot for row in held.rows(KEY, 0)] == [row.bot for row in rows]
    held.close()


def segments_first(path: Path) -> int:
    """Where a segment begins."""
    return int(path.name.split("-")[0])


def test_cover_without_segments_has_the_column() -> None:
    """An empty lake can be asked too."""
    assert views.ask(cover.Cover(), "SELECT * FROM bots", limit=1, horizon_ms=1)[1] == []


@pytest.mark.parametrize(("type_", "more"), [("browse", {}), ("view", {"consent": False})])
def test_what_was_not_scorable_stays_so(type_: EventType, more: dict[str, Any]) -> None:
    """A flag takes predictions away and gives none."""
    (row,) = folded([event(0, 0, type_=type_, **more)])
    assert row.scorable == (more == {})
