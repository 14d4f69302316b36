"""A prediction counts once its horizon is over, against the label that is trained on, for its version and arm."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore import sessions, window
from featurestore.events import Event, Origin, Row
from featurestore.lake import Lake, LakeProgress, PartitionKey
from streams import codec, interests, outcomes, quality, waiting

KEY = PartitionKey("shop@log1", 0)
HORIZON = 100
BUYING = 60  # the horizon of purchases
SESSION = sessions.SessionSettings(gap_ms=10_000, lateness_ms=30)


def row(offset: int, ts_ms: int, item: str | None, **more: Any) -> Row:
    """A view by user `u`."""
    fields: dict[str, Any] = {"type": "view", "user_id": "u", "category": "c", **more}
    late = fields.pop("late", False)
    event = Event(event_id=f"e{offset}", ts_ms=ts_ms, item_id=item, **fields)
    return Row(event, Origin(KEY.topic, KEY.partition, offset, 0, ts_ms), "s", late)


def said(
    offset: int, items: dict[str, float], none: float = 0.5, *, version: str = "v1", arm: str = "champion",
    categories: tuple[str, ...] = ("c", "d"), user: str = "u",
) -> codec.Prediction:  # fmt: skip
    """A prediction after the row at this offset."""
    trigger = codec.Trigger(event_id=f"e{offset}", topic="shop", partition=0, offset=offset)
    at = codec.instant(0)
    return codec.Prediction(
        prediction_id=codec.prediction_id(trigger, user, "s", version), user_id=user, session_id="s",
        trigger=trigger, event_ts=at, predicted_at=at, expires_at=at, model_version=version, arm=arm, reason="model",
        categories=codec.ranked_categories((c, 0.1) for c in categories), items=codec.ranked_items(items.items()),
        none_probability=none,
    )  # fmt: skip


class Told:
    """One partition whose predictions wait."""

    def __init__(self, **more: Any) -> None:
        self.open, self.outcomes = outcomes.Open(), outcomes.Outcomes(horizon_ms=HORIZON, **more)

    def note(self, trigger: Row, prediction: codec.Prediction, seen: list[Row] | None = None) -> None:
        """Acknowledged, made from these rows."""
        self.outcomes.note(self.open, prediction, trigger, [trigger] if seen is None else seen)

    def settled(self, watermark_ms: int = 1_000_000, key: waiting.Key = ("v1", "champion")) -> dict[str, float]:
        """The sums over all users once the watermark stands here."""
        self.outcomes.settle(self.open, watermark_ms)
        sums = self.outcomes.interests.by.get(key, [[0.0] * len(interests.FIELDS)])
        return {name: sum(column) for name, column in zip(interests.FIELDS, zip(*sums, strict=True), strict=True)}

    def mature(self, items: dict[int, str | None], bought: dict[int, bool], watermark_ms: int) -> None:
        """Note the labels of those whose horizons are over."""
        settled = [*self.open.interests.mature(watermark_ms)], [*self.open.purchases.mature(watermark_ms)]
        assert all(one.until_ms < watermark_ms for kind in settled for one in kind)
        items |= {one.offset: one.item for one in settled[0]}
        bought |= {one.offset: one.came for one in settled[1]}


def test_first_different_item_within_the_horizon_is_the_outcome() -> None:
    """The item the session was at and what nobody engaged with do not count; the second of two listed is rank 2."""
    told, at = Told(), row(0, 1_000, "a")
    told.note(at, said(0, {"x": 0.2, "b": 0.125}, 0.5))
    for later in (row(1, 1_010, "a"), row(2, 1_020, "x", type="browse"), row(3, 1_030, "b", category="d"),
                  row(4, 1_040, "x")):  # fmt: skip
        told.open.observe(later)
    assert told.settled() == pytest.approx({
        "settled": 1, "loss": math.log(8), "next": 1, "hit1": 0, "hit5": 1, "hit20": 1, "reciprocal": 0.5,
        "categorised": 1, "category1": 0, "category5": 1, "none_said": 0.5, "first_said": 0.2, "listed_said": 0.325,
    })  # fmt: skip


def test_nothing_more_is_an_outcome_and_an_item_that_was_not_listed_gets_what_is_left_over() -> None:
    """None costs −log of its probability; another item −log of 1 − none − all listed, and is no hit."""
    nothing = Told()
    nothing.note(row(0, 0, "a"), said(0, {"b": 0.5}, 0.25))
    got = nothing.settled()
    assert (got["loss"], got["next"], got["categorised"]) == (pytest.approx(math.log(4)), 0, 0)
    other = Told()
    other.note(row(0, 0, "a"), said(0, {"b": 0.25}, 0.25))
    other.open.observe(row(1, 5, "z", category=None))
    got = other.settled()
    assert (got["loss"], got["next"], got["hit20"]) == (pytest.approx(math.log(2)), 1, 0)
    assert (got["reciprocal"], got["categorised"]) == (0, 0)


def test_rows_outside_the_horizon_or_before_the_trigger_or_of_others_are_no_outcome() -> None:
    """The horizon's last millisecond counts; the trigger's own instant, a lower offset, no consent, others do not."""
    told = Told()
    told.note(row(5, 1_000, "a"), said(5, {"b": 0.5}))
    for other in (row(6, 1_101, "b"), row(7, 1_000, "b"), row(5, 1_050, "b"), row(8, 1_050, "b", consent=False),
                  row(9, 1_050, "b", user_id="v")):  # fmt: skip
        told.open.observe(other)
    assert told.settled()["next"] == 0
    told.note(row(10, 2_000, "a"), said(10, {"b": 0.5}))
    told.open.observe(row(11, 2_100, "b"))
    assert told.settled()["hit1"] == 1


def test_an_earlier_row_that_arrives_later_is_the_outcome() -> None:
    """The first by event time, whatever the order of arrival, as the window of the retrain has it."""
    told = Told()
    told.note(row(0, 0, "a"), said(0, {"b": 0.3, "c": 0.2}))
    told.open.observe(row(1, 50, "b"))
    told.open.observe(row(2, 40, "c"))
    got = told.settled()
    assert (got["hit1"], got["reciprocal"]) == (0, 0.5)


def test_what_is_told_twice_after_one_row_counts_once() -> None:
    """A session that is touched again while it is scored is told again under the same id."""
    told, at = Told(), row(0, 0, "a")
    told.note(at, said(0, {"b": 0.3}))
    told.note(at, said(0, {"b": 0.4}))
    assert told.settled()["settled"] == 1


def test_nothing_counts_before_the_watermark_has_passed_the_horizon() -> None:
    """Also where something came at once: else those would be counted first after which something came."""
    told = Told()
    told.note(row(0, 0, "a"), said(0, {"b": 0.3}))
    told.open.observe(row(1, 10, "b"))
    assert told.settled(100)["settled"] == 0
    assert told.settled(101)["settled"] == 1
    assert not told.open.interests.by_user


events_ = st.lists(
    st.tuples(
        st.integers(-30, 60),
        st.sampled_from(["a", "b", "c", None]),
        st.sampled_from(["view", "browse", "purchase", "click"]),
        st.sampled_from(["u", "v"]),
    ),
    min_size=1,
    max_size=25,
)


@given(raw=events_)
@settings(max_examples=60, deadline=None)
def test_outcomes_are_the_labels_of_the_window(raw: list[tuple[int, str | None, str, str]]) -> None:
    """Row by row and out of order within the lateness: the same labels as the retrain reads from the lake."""
    open_, told, clock = sessions.OpenSessions(), Told(), 1_000
    told.outcomes.purchases.horizon_ms = BUYING
    rows: list[Row] = []
    items: dict[int, str | None] = {}
    bought: dict[int, bool] = {}
    for step, item, kind, user in raw:
        clock += step
        event = Event(event_id=f"e{len(rows)}", type=kind, user_id=user, ts_ms=clock, item_id=item, category="c")  # type: ignore[arg-type]
        if clock < open_.watermark_ms:
            continue  # a late row may come after its label was counted
        folded = sessions.fold(open_, event, Origin(KEY.topic, 0, len(rows), 0, clock), SESSION)
        assert folded.row is not None
        assert folded.session is not None
        rows.append(folded.row)
        made = said(folded.row.origin.offset, {}, user=user)
        told.note(folded.row, msgspec.structs.replace(made, purchase_probability=0.1), folded.session.rows)
        told.open.observe(folded.row)
        told.mature(items, bought, open_.watermark_ms)
    told.mature(items, bought, 1_000_000)
    with tempfile.TemporaryDirectory() as root:
        lake = Lake(Path(root), "w")
        lake.write_rows(KEY, 0, rows, LakeProgress(next=len(rows), watermark_ms=1_000_000))
        policy = window.WindowPolicy(horizon_next_ms=HORIZON, horizon_purchase_ms=BUYING, n_min=1)
        wanted = window.examples(lake.cover(), policy)
    named = wanted.rows.column("item_id").to_pylist()
    labels = zip(wanted.row.tolist(), wanted.next_row.tolist(), wanted.purchase.tolist(), strict=True)
    assert [(at, items[at], bought[at]) for at in sorted(items)] == sorted(
        (at, named[to] if to >= 0 else None, bool(buys)) for at, to, buys in labels
    )


def test_more_than_the_limit_are_a_sample_by_id_and_the_share_comes_back() -> None:
    """What is left out depends on the id alone, so that two owners leave out the same; all of it is counted."""
    told = Told(limit=40)
    for offset in range(100):
        told.note(row(offset, offset, "a", user_id=f"u{offset}"), said(offset, {"b": 0.3}, user=f"u{offset}"))
        told.outcomes.bound([told.open])
    kept, waits = told.outcomes.interests, told.open.interests
    assert len(waits) <= 40
    assert kept.share < 1
    below = kept.share * 2**32
    ids = [said(n, {}, user=f"u{n}").prediction_id for n in range(100)]
    assert sorted(made.offset for made in waits.waiting) == [n for n in range(100) if int(ids[n][:8], 16) < below]
    assert len(waits) + kept.passed_over == 100
    assert told.settled()["settled"] == kept.settled == 100 - kept.passed_over
    for _ in range(10):
        kept.bound([waits])
    assert kept.share == 1


def test_one_user_has_so_many_open_and_the_forgotten_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program does not cost more with every event; who is forgotten leaves, counted as unsettled."""
    monkeypatch.setattr(waiting, "A_USER", 3)
    told = Told()
    for offset in range(5):
        told.note(row(offset, offset, "a"), said(offset, {"b": 0.3}))
    told.note(row(5, 5, "a", user_id="v"), said(5, {}, user="v"))
    assert told.outcomes.told([told.open])["passed_over"] == 2
    told.open.forget({"u"})
    assert (len(told.open.interests), list(told.open.interests.by_user)) == (1, ["v"])
    assert told.outcomes.told([told.open])["unsettled"] == 3
    assert told.outcomes.told([])["unsettled"] == 4  # the partition went to another worker


def test_sums_of_workers_add_up_by_version_and_arm() -> None:
    """Two workers' beats are one, in whatever order; arms of a version stay apart."""
    workers = []
    for n in (1, 2):
        told = Told()
        for offset in range(4 * n):
            arm = outcomes.HOLDBACK if offset % 4 == 0 else outcomes.CHAMPION
            trigger = row(offset, 0, "a", user_id=f"u{offset}")
            told.note(trigger, said(offset, {"b": 0.5}, user=f"u{offset}", arm=arm))
            if offset % 2:
                told.open.observe(row(100 + offset, 10, "b", user_id=f"u{offset}"))
        told.settled()
        workers.append({"outcomes": told.outcomes.told([told.open])})
    live = quality.merged([*workers, {"worker": "of an older version"}])
    assert live == quality.merged(workers[::-1])
    assert (live["settled"], live["open"]) == (12, 0)
    assert [(one["version"], one["arm"], one["n"]) for one in live["by"]] == [
        ("v1", "champion", 9), ("v1", "holdback", 3),
    ]  # fmt: skip
    assert live["by"][0]["first_item"] == {"said": 0.5, "came": 6 / 9}


def test_old_versions_are_told_in_the_arm_alone() -> None:
    """A beat stays small however many versions there were, and what an arm counts never goes back."""
    told, before = Told(), 0.0
    for n in range(interests.Interests.kept + 5):
        told.note(row(n, n, "a"), said(n, {}, version=f"v{n}"))
        told.settled()
        beat = told.outcomes.told([told.open])
        assert len(beat["by"]) <= interests.Interests.kept
        assert beat["arms"]["champion"]["settled"] == before + 1
        before += 1


def test_a_user_is_in_one_arm_whose_share_is_as_asked() -> None:
    """Nearly a fifth of many users at .2, the same ones again at .3; the arm says nothing of the group."""
    users = [f"u{n}" for n in range(5_000)]
    fifth = {u for u in users if outcomes.arm_of(u, 0.2) == outcomes.HOLDBACK}
    assert 0.18 < len(fifth) / len(users) < 0.22
    assert fifth <= {u for u in users if outcomes.arm_of(u, 0.3) == outcomes.HOLDBACK}
    assert not any(outcomes.arm_of(u, 0.0) == outcomes.HOLDBACK for u in users)
