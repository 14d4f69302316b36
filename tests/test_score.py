"""Which sessions are scored after which batches, with which trigger."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types import TP

from featurestore import sessions
from featurestore.events import Event, Origin, Row
from featurestore.lake import PartitionKey
from streams import codec, outcomes, score, stages
from streams.parts import Batch, Part
from trainer.predictor import Interest

TP0 = TP("events", 0)
T0 = 1_700_000_000_000


class Shop:
    """Builds batches by folding events, as ingest does."""

    def __init__(self) -> None:
        self.part = Part(key=PartitionKey("events@log", 0), open=sessions.OpenSessions(), read=0, flushed=0)
        self.seq = 0

    def batch(self, *said: tuple[str, int, dict[str, Any]]) -> Batch:
        """One batch of (user, seconds, more fields)."""
        self.seq += 1
        batch = Batch(seq=self.seq)
        for user, second, more in said:
            offset, ts = self.part.read, T0 + second * 1000
            self.part.read += 1
            event = Event(event_id=f"e{offset}", type="view", user_id=user, ts_ms=ts, item_id=f"i{offset}", **more)
            folded = sessions.fold(
                self.part.open, event, Origin("events@log", 0, offset, 0, ts), sessions.SessionSettings()
            )
            assert folded.row is not None
            assert folded.session is not None
            batch.rows.append(folded.row)
            batch.sessions.append(folded.session)
        batch.progress[TP0] = (self.part, self.part.progress())
        return batch


def triggers(found: list[score.Due]) -> dict[str, int]:
    """User → offset of the trigger."""
    return {trigger.event.user_id: trigger.origin.offset for _, _, _, trigger in found}


def test_session_touched_by_two_batches_is_scored_once_with_its_newest_row() -> None:
    """What was touched again before it was scored is one prediction, triggered by the newest row."""
    shop = Shop()
    batches = [shop.batch(("ann", 0, {}), ("bob", 1, {})), shop.batch(("ann", 2, {}))]
    assert triggers(score.due(batches)) == {"ann": 2, "bob": 1}


def test_what_was_folded_since_is_left_to_its_own_batch() -> None:
    """A batch that waited is scored as of its own end: its user's other session is not older news afterwards."""
    shop = Shop()
    own = {"session_id": "a"}, {"session_id": "b"}
    batches = [shop.batch(("ann", 0, own[0])), shop.batch(("ann", 1, own[1])), shop.batch(("ann", 2, own[0]))]
    told = [triggers(score.due([batch]))["ann"] for batch in batches]
    assert told == [0, 1, 2]
    ((_, _, session, _),) = score.due(batches[:1])
    assert [row.origin.offset for row in session.rows] == [0]


def test_user_of_two_sessions_hears_of_the_newer_row_last() -> None:
    """Predictions are made in the order of their triggers, whichever session was touched first."""
    shop = Shop()
    batch = shop.batch(("ann", 3_000, {"session_id": "b"}), ("ann", 2_990, {"session_id": "a"}),
                       ("ann", 3_010, {"session_id": "b"}))  # fmt: skip
    assert [trigger.origin.offset for _, _, _, trigger in score.due([batch])] == [1, 2]


def test_row_without_consent_triggers_nothing_and_is_not_seen() -> None:
    """A session touched only by rows without consent is not scored; such rows are no features either."""
    shop = Shop()
    assert score.due([shop.batch(("ann", 0, {"consent": False}))]) == []
    ((_, _, seen, trigger),) = score.due([shop.batch(("ann", 1, {}))])
    assert trigger.origin.offset == 1
    assert [row.origin.offset for row in seen.rows] == [1]


def test_late_row_triggers_nothing() -> None:
    """A row behind the watermark enters its session but makes no prediction."""
    shop = Shop()
    shop.batch(("ann", 0, {}), ("bob", 600, {}))
    assert score.due([shop.batch(("ann", 30, {}))]) == []


def test_absorbed_session_is_not_scored() -> None:
    """A session that a later batch merged away is not scored beside the one that took it in."""
    shop = Shop()
    first = shop.batch(("ann", 0, {}), ("ann", 3_000, {}))
    bridge = shop.batch(("ann", 1_500, {}))
    assert all(user == "ann" for user in triggers(score.due([first, bridge])))
    assert len({s.session_id for _, _, s, _ in score.due([first, bridge])}) == len(score.due([first, bridge]))


def test_record_carries_the_trigger_and_its_id_depends_on_trigger_and_version_alone() -> None:
    """Scored twice after a crash, a trigger has the same prediction id, whatever the numbers."""
    row: Row = Shop().batch(("ann", 0, {})).rows[0]

    def said(version: str, probability: float) -> codec.Prediction:
        interest = Interest("ann", row.session_id, [("i9", probability)], [], 0.5, None, "model", version)
        return score.prediction(interest, row, horizon_ms=60_000, now_ms=T0 + 5)

    one, again, other = said("v1", 0.3), said("v1", 0.2), said("v2", 0.3)
    assert one.prediction_id == again.prediction_id != other.prediction_id
    assert (one.trigger.topic, one.trigger.offset) == ("events", 0)
    assert one.expires_at == codec.instant(row.event.ts_ms + 60_000)


def test_small_batches_are_scored_together_and_large_ones_one_by_one() -> None:
    """A portion is bounded by its rows, and is never empty while something waits."""
    shop = Shop()
    small, large = (shop.batch(*[("ann", 0, {})] * rows) for rows in (10, score.ROWS + 1))
    assert score.portion([]) == []
    assert score.portion([small, small, large]) == [small, small]
    assert score.portion([large, small]) == [large]


async def test_worker_frozen_between_two_portions_of_a_batch_keeps_the_second_to_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Thawed, it waits until it hears of the group, and what is another's by then is not said."""
    monkeypatch.setattr(score, "TOLD", 1)
    shop = Shop()
    batch = shop.batch(("ann", 0, {}), ("bob", 1, {}))
    told: list[bytes] = []
    heard = [True]
    taken = SimpleNamespace(
        waiting=[batch], parts={TP0: shop.part}, busy=stages.Busy(), acknowledged=lambda seq: None
    )  # fmt: skip

    class Outlet:
        async def predictions(self, messages: Sequence[tuple[bytes, bytes | None]]) -> list[Any]:
            told.extend(key for key, _ in messages)
            heard[0] = False  # the freeze; the group hears nothing of us from here on
            asyncio.get_running_loop().call_later(0.05, taken.parts.clear)  # our word that it was taken from us
            return []

    class Model:
        def learn(self, rows: list[Row]) -> None: ...

        def predict(self, open_: list[Any], at_ms: list[int]) -> list[Interest]:
            return [Interest(s.user_id, s.session_id, [("i9", 0.3)], [], 0.5, None, "model", "v1") for s in open_]

        recall = predict

    scorer = score.Scorer(
        ingest_=taken, model=Model(), outlet=Outlet(), may_emit=lambda: heard[0],  # type: ignore[arg-type]
        outcomes_=outcomes.Outcomes(horizon_ms=1),
    )  # fmt: skip
    await asyncio.wait_for(scorer.score(), 10)
    assert told == [b"ann"]


async def test_held_back_users_get_the_memory_alone_and_outcomes_count_by_arm() -> None:
    """Each user is asked of one answerer, the message names the arm, and the next batch is the first one's outcome."""
    shop = Shop()
    users = [f"u{n}" for n in range(20)]
    told: list[codec.Prediction] = []
    taken = SimpleNamespace(waiting=[], parts={TP0: shop.part}, busy=stages.Busy(), acknowledged=lambda seq: None)

    class Outlet:
        async def predictions(self, messages: Sequence[tuple[bytes, bytes]]) -> list[Any]:
            told.extend(codec.decode_prediction(value) for _, value in messages)
            return []

    class Model:
        def learn(self, rows: list[Row]) -> None: ...

        def predict(self, open_: list[Any], at_ms: list[int]) -> list[Interest]:
            return [Interest(s.user_id, s.session_id, [], [], 0.5, None, "model", "v1") for s in open_]

        def recall(self, open_: list[Any], at_ms: list[int]) -> list[Interest]:
            return [Interest(s.user_id, s.session_id, [], [], 0.4, None, "fallback", "v1") for s in open_]

    scorer = score.Scorer(
        ingest_=taken, model=Model(), outlet=Outlet(), may_emit=lambda: True, holdback=0.5,  # type: ignore[arg-type]
        outcomes_=outcomes.Outcomes(horizon_ms=60_000),
    )  # fmt: skip
    later = [(user, 30 + n, {}) for n, user in enumerate(users)]
    for said in ([(user, n, {}) for n, user in enumerate(users)], [*later, ("last", 400, {})]):
        taken.waiting.append(shop.batch(*said))
        await scorer.score()
    arms = {one.user_id: one.arm for one in told}
    assert all(arms[user] == outcomes.arm_of(user, 0.5) for user in users)
    assert all((one.reason == "fallback") == (one.arm == outcomes.HOLDBACK) for one in told)
    assert len(set(arms.values())) == 2
    beat = scorer.outcomes.told([shop.part.predicted])
    assert {arm: (sums["settled"], sums["next"]) for arm, sums in beat["arms"].items()} == {
        arm: (2 * n, n) for arm in set(arms.values()) for n in [sum(arms[u] == arm for u in users)]
    }  # each user's first met another item, the second none
    assert beat["open"] == 1
    shop.part.raised_ms = 1_800_000_000_000
    scorer.settle()
    assert scorer.outcomes.told([shop.part.predicted])["open"] == 0
