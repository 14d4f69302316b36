"""An open loop: every event has its time in advance, and its latency counts from there (no coordinated omission)."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import orjson

from deploy.demo import shop
from deploy.timings import Turn, quantile

USERS = 10_000  # far enough apart that a person's events seldom meet in one batch
SILENT_S = 20.0  # no answer for so long: what is missing does not come any more
BEHIND_S = 1.0  # an event that waits for longer when sending ends counts as behind


class Ledger:
    """Which events of a turn wait for an answer; an answer to one answers the earlier ones of its user.

    >>> ledger = Ledger(rate=10, start_s=100.0)
    >>> ledger.answer(USERS + 3, 100.5 + USERS / 10)
    >>> [round(ms) for ms in ledger.latencies_ms]
    [1000200, 200]
    """

    def __init__(self, *, rate: int, start_s: float) -> None:
        self.rate, self.start_s = rate, start_s
        self.answered: dict[int, int] = {}  # user: the next event of this user that waits
        self.latencies_ms: list[float] = []
        self.last_s = start_s

    def scheduled_s(self, i: int) -> float:
        """When event i is due, whatever happened to those before it."""
        return self.start_s + i / self.rate

    def answer(self, i: int, now_s: float) -> None:
        """An answer came: to event i and to its user's events before it."""
        user = i % USERS
        for j in range(self.answered.get(user, user), i + 1, USERS):
            self.latencies_ms.append((now_s - self.scheduled_s(j)) * 1000)
        self.answered[user] = max(self.answered.get(user, user), i + USERS)
        self.last_s = now_s

    def behind(self, sent: int, now_s: float) -> int:
        """How many of those sent wait for longer than `BEHIND_S`."""
        due = min(sent, max(0, int((now_s - BEHIND_S - self.start_s) * self.rate)))
        return sum(len(range(self.answered.get(user, user), due, USERS)) for user in range(min(USERS, due)))


class _Trigger(msgspec.Struct):
    event_id: str


class _Answer(msgspec.Struct):
    """The one field of a prediction (or of an echo) that is looked at."""

    trigger: _Trigger


_answer = msgspec.json.Decoder(_Answer).decode


class Side:
    """A worker or an echo as the bench sees it: a topic in, a topic out."""

    def __init__(self, who: str, topic: str, producer: Any, consumer: Any, events: Events) -> None:
        self.who, self.topic, self.producer, self.consumer, self.events = who, topic, producer, consumer, events
        self.ledgers: dict[str, Ledger] = {}
        self.turns = 0
        self.sizes: deque[int] = deque(maxlen=1_000)

    async def read(self) -> None:
        """Take what comes back, for as long as the bench runs."""
        while True:
            polled = await self.consumer.getmany(timeout_ms=200)
            now_s = time.monotonic()
            for records in polled.values():
                for record in records:
                    if record.value is not None:
                        self.sizes.append(len(record.value))
                        turn, _, i = _answer(record.value).trigger.event_id.rpartition("-")
                        if turn in self.ledgers:
                            self.ledgers[turn].answer(int(i), now_s)

    async def turn(self, rate: int, seconds: float, busy: Callable[[], Mapping[str, float]]) -> Turn:
        """Offer a rate for so long, then wait for what is still to come."""
        self.turns += 1
        name = f"{self.who}{self.turns}"
        self.ledgers = {name: (ledger := Ledger(rate=rate, start_s=time.monotonic() + 0.05))}
        turn, before, total, i, late = Turn(who=self.who, rate=rate), busy(), int(rate * seconds), 0, []
        while i < total:
            now_s = time.monotonic()
            due = min(total, int((now_s - ledger.start_s) * rate) + 1)
            while i < due:
                late.append(time.monotonic() - ledger.scheduled_s(i))
                user, value = self.events.event(name, i)
                await self.producer.send(self.topic, value, key=user)
                i += 1
            await asyncio.sleep(max(0.001, ledger.scheduled_s(i) - time.monotonic()))
        end_s = ledger.last_s = time.monotonic()
        turn.sent, turn.behind, turn.late_ms = total, ledger.behind(total, end_s), quantile(late, 0.99) * 1000
        while len(ledger.latencies_ms) < total and time.monotonic() - ledger.last_s < SILENT_S:
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.1)  # the beat that tells of the last batch
        turn.busy_s = {k: round(v - before.get(k, 0.0), 3) for k, v in busy().items()}
        turn.latencies_ms = ledger.latencies_ms
        turn.answered = len(ledger.latencies_ms)
        turn.p50_ms, turn.p99_ms = quantile(turn.latencies_ms, 0.5), quantile(turn.latencies_ms, 0.99)
        turn.max_ms = max(turn.latencies_ms, default=0.0)
        return turn


class Events:
    """Views of the demo shop's items, each with the turn and its number as its id."""

    def __init__(self) -> None:
        items = [item for shelf in shop.catalogue().values() for item in shelf]
        self.fields = [orjson.dumps(msgspec.to_builtins(item) | {"currency": "EUR"})[1:] for item in items]

    def event(self, turn: str, i: int) -> tuple[bytes, bytes]:
        """Key and value: a person walks along one shelf of the shop."""
        user = i % USERS
        fields = self.fields[(user * 36 + i // USERS + i % 7) % len(self.fields)]
        head = f'{{"event_id":"{turn}-{i}","type":"view","user_id":"b{user}","ts":{int(time.time() * 1000)},'
        return b"b%d" % user, head.encode() + fields
