"""Touched sessions become predictions, and their acknowledgements let progress move."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress
from typing import Any, Protocol

from faust.types import TP

from featurestore.events import Row, Session
from featurestore.lake import PartitionKey
from streams import codec, ingest, outcomes
from streams.parts import Batch, Part

ROWS = 5_000  # their sessions are scored at once, unless a single poll has more: bounds what waits for acknowledgement
TOKENS = 50  # the newest rows of a session that a model looks at
TOLD = 500  # predictions that are handed over together


class Model(Protocol):
    """What the scorer asks of a predictor."""

    def learn(self, rows: list[Row]) -> Any: ...
    def predict(self, sessions: list[Session], at_ms: list[int]) -> list[Any]: ...
    def recall(self, sessions: list[Session], at_ms: list[int]) -> list[Any]: ...


Acknowledged = asyncio.Future[Any]


class Outlet(Protocol):
    """Where predictions and dead letters go: awaited they are accepted, what comes back is their acknowledgement."""

    async def predictions(self, messages: Sequence[tuple[bytes, bytes | None]]) -> list[Acknowledged]: ...
    async def dead_letter(self, dead: codec.DeadLetter) -> Acknowledged: ...


Due = tuple[TP, Part, Session, Row]


def snapshot(session: Session, end: int | None = None) -> tuple[Session, Row] | None:
    """A session as a model may see it, and its newest row that may be scored; None where there is none.

    `end`: an offset before which its rows count; those from there on were folded, and their turn comes.
    """
    known = len(session.rows)
    while end is not None and known and session.rows[known - 1].origin.offset >= end:
        known -= 1
    trigger = next((session.rows[i] for i in reversed(range(known)) if session.rows[i].scorable), None)
    if trigger is None:
        return None
    rows = [row for row in session.rows[max(0, known - TOKENS) : known] if row.event.consent]
    return Session(session.session_id, session.user_id, session.first_ms, session.last_ms, rows, session.count), trigger


def due(batches: list[Batch]) -> list[Due]:
    """One entry a touched session, however many batches touched it; its trigger is its newest scorable row.

    Sessions are alive: what later batches added is left to them, so that no user hears of an older row after a newer.
    """
    ends = {id(part): progress.next for batch in batches for part, progress in batch.progress.values()}
    touched: dict[tuple[str, str], tuple[TP, Part, Session]] = {}
    for batch in batches:
        owners: dict[tuple[str, int], tuple[TP, Part]] = {p.key: (tp, p) for tp, (p, _) in batch.progress.items()}
        for row, session in zip(batch.rows, batch.sessions, strict=True):
            origin, user_id = row.origin, row.event.user_id
            for gone in row.absorbs:
                touched.pop((user_id, gone), None)
            if row.scorable:
                touched[user_id, row.session_id] = (*owners[origin.topic, origin.partition], session)
    found: list[Due] = []
    for tp, part, session in touched.values():
        seen = snapshot(session, ends[id(part)])
        if seen is not None:
            found.append((tp, part, *seen))
    return sorted(found, key=lambda one: one[3].origin.offset)  # a user of two sessions hears of the newer row last


def portion(waiting: Iterable[Batch]) -> list[Batch]:
    """The next batches to score together: small ones share their predictions, large ones go one by one."""
    batches: list[Batch] = []
    rows = 0
    for batch in waiting:
        rows += len(batch.rows)
        if batches and rows > ROWS:
            break
        batches.append(batch)
    return batches


def prediction(
    interest: Any, trigger: Row, *, horizon_ms: int, now_ms: int, arm: str = outcomes.CHAMPION
) -> codec.Prediction:
    """One prediction as its message tells it."""
    origin, event = trigger.origin, trigger.event
    because = codec.Trigger(
        event_id=event.event_id, topic=origin.topic.partition("@")[0], partition=origin.partition, offset=origin.offset
    )
    return codec.Prediction(
        prediction_id=codec.prediction_id(because, event.user_id, trigger.session_id, interest.version),
        user_id=event.user_id,
        session_id=interest.session_id,
        trigger=because,
        event_ts=codec.instant(event.ts_ms),
        predicted_at=codec.instant(now_ms),
        expires_at=codec.instant(event.ts_ms + horizon_ms),
        model_version=interest.version,
        arm=arm,
        reason=interest.reason,
        categories=codec.ranked_categories(interest.categories),
        items=codec.ranked_items(interest.items),
        none_probability=interest.none_probability,
        purchase_probability=interest.purchase_probability,
    )


class Scorer:
    """Holds the model in use; scores off the event loop; swaps between two batches."""

    def __init__(
        self,
        *,
        ingest_: ingest.Ingest,
        model: Model,
        outlet: Outlet,
        outcomes_: outcomes.Outcomes,
        may_emit: Callable[[], bool],
        holdback: float = 0.0,
    ) -> None:
        self.ingest, self.model, self.outlet = ingest_, model, outlet
        self.outcomes, self.may_emit, self.holdback = outcomes_, may_emit, holdback
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="score")
        self.scored_seq = 0
        self.predictions = 0
        self.latencies_ms: deque[float] = deque(maxlen=20_000)

    def swap(self, model: Model) -> None:
        """One reference: the next batch is scored by the new model whole."""
        self.model = model

    async def score(self) -> None:
        """Score a portion of what has been folded; returns when the broker has acknowledged all of it."""
        batches = portion(b for b in self.ingest.waiting if b.seq > self.scored_seq)
        if not batches:
            return
        last = batches[-1].seq
        found = due(batches)
        rows = [row for batch in batches for row in batch.rows]
        model = self.model
        busy = self.ingest.busy
        with busy("predict"):
            interests = await asyncio.get_running_loop().run_in_executor(self.thread, self._run, model, rows, found)
        await self._heard(found)
        with busy("send"):
            sends = [await self.outlet.dead_letter(dead) for batch in batches for dead in batch.dead]
            sent: list[tuple[Due, codec.Prediction]] = []
            for at in range(0, len(found), TOLD):
                some = zip(found[at : at + TOLD], interests[at : at + TOLD], strict=True)
                made = [(one, self._prediction(interest, one[3])) for one, interest in some]
                messages = [(said.user_id.encode(), codec.encode_prediction(said)) for _, said in made]
                await self._heard(found)  # a freeze may have come since
                ours = [self.ingest.parts.get(tp) is part for (tp, part, _, _), _ in made]
                sends += await self.outlet.predictions(list(compress(messages, ours)))
                sent += compress(made, ours)
                self.predictions += sum(ours)
        with busy("ack"):
            await asyncio.gather(*sends)
        self._note_latencies(found)
        self.scored_seq = last
        self.ingest.acknowledged(last)
        with busy("outcomes"):
            self._meet(batches, sent)

    def settle(self) -> None:
        """Count what silence made mature: a partition without lag, whose watermark others have passed."""
        for part in self.ingest.parts.values():
            self.outcomes.settle(part.predicted, part.raised_ms)

    def _meet(self, batches: list[Batch], sent: list[tuple[Due, codec.Prediction]]) -> None:
        """What was told waits for its outcome; what came is the outcome of what was told before it."""
        for (_, part, session, trigger), said in sent:
            self.outcomes.note(part.predicted, said, trigger, session.rows)
        for batch in batches:
            parts = {part.key: part for part, _ in batch.progress.values()}
            for row in batch.rows:
                parts[PartitionKey(row.origin.topic, row.origin.partition)].predicted.observe(row)
            for part, progress in batch.progress.values():
                self.outcomes.settle(part.predicted, progress.watermark_ms)
        self.outcomes.bound([part.predicted for part in self.ingest.parts.values()])

    def _prediction(self, interest: Any, trigger: Row) -> codec.Prediction:
        return prediction(
            interest, trigger, horizon_ms=self.outcomes.horizon_ms, now_ms=int(time.time() * 1000),
            arm=self._arm(trigger.event.user_id),
        )  # fmt: skip

    def _arm(self, user_id: str) -> str:
        return outcomes.arm_of(user_id, self.holdback)

    async def _heard(self, found: list[Due]) -> None:
        """Wait while the group has not heard of us for too long: another may own these partitions by now."""
        while not self.may_emit() and self._still_ours(found):
            await asyncio.sleep(0.1)

    def _run(self, model: Model, rows: list[Row], found: list[Due]) -> list[Any]:
        model.learn(rows)
        asked = [(session, trigger.event.ts_ms) for _, _, session, trigger in found]
        held = [self._arm(session.user_id) == outcomes.HOLDBACK for session, _ in asked]
        answers: list[Any] = [None] * len(asked)
        for held_back, answer in ((False, model.predict), (True, model.recall)):
            places = [i for i, h in enumerate(held) if h == held_back]
            if places:
                made = answer([asked[i][0] for i in places], [asked[i][1] for i in places])
                for i, interest in zip(places, made, strict=True):
                    answers[i] = interest
        return answers

    def _still_ours(self, found: list[Due]) -> bool:
        return any(self.ingest.parts.get(tp) is part for tp, part, _, _ in found)

    def _note_latencies(self, found: list[Due]) -> None:
        acked_ms = time.time() * 1000
        for _, part, _, trigger in found:
            if part.read >= part.end:  # at lag 0
                self.latencies_ms.append(acked_ms - trigger.origin.record_ms)
