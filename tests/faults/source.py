"""Sends events at a rate that may change; one that was not acknowledged is sent again under the same event_id."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import threading
import time
from collections import deque
from typing import Any

import aiokafka

OUTSTANDING = 5_000  # events that may wait for their acknowledgement
ANSWER_S = 4.0  # then an event counts as not acknowledged
TICK_S = 0.02


class Source:
    """A producer in a thread of its own. Shares no code with the product's."""

    def __init__(
        self, address: str, topic: str, *, rate: float, users: int, back_ms: int, seed: int, burst: int = 1
    ) -> None:
        """`burst`: a user sends so many at once, as a page does that shows, lists and counts."""
        self.address, self.topic, self.rate, self.users, self.back_ms = address, topic, rate, users, back_ms
        self.burst, self._user = burst, ""
        self.sent = self.acked = self.again = 0
        self.newest: deque[tuple[bytes, bytes]] = deque(maxlen=64)  # acknowledged
        self.repeat = threading.Event()  # set: send the newest once more, as who did not hear of its acknowledgement
        self._chance, self._stop, self._killed = random.Random(seed), threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="source")

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Send no more; returns when all that was sent is acknowledged."""
        self._stop.set()
        if self._thread.ident is not None:
            self._thread.join()

    def kill(self) -> None:
        """End, whatever was acknowledged."""
        self._killed.set()
        self.stop()

    def event(self) -> tuple[bytes, bytes]:
        """The next one: key and value. A fifth lies a little behind its sending."""
        chance, number = self._chance, self.sent
        if number % self.burst == 0:
            self._user = f"u{chance.randrange(self.users)}"
        user = self._user
        back_ms = chance.randrange(self.back_ms) if self.back_ms and chance.random() < 0.2 else 0
        said = {"event_id": f"e{number}", "type": "purchase" if chance.random() < 0.02 else "view", "user_id": user,
                "ts": int(time.time() * 1000) - back_ms, "item_id": f"i{chance.randrange(31)}"}  # fmt: skip
        return user.encode(), json.dumps(said).encode()

    async def _run(self) -> None:
        self._producer = await self._started()
        waiting: set[asyncio.Task[None]] = set()
        due, last_s = 0.0, time.monotonic()
        while not self._stop.is_set():
            await asyncio.sleep(TICK_S)
            now_s = time.monotonic()
            due, last_s = min(due + (now_s - last_s) * self.rate, self.rate), now_s
            if self.repeat.is_set():
                self.repeat.clear()
                self.again += len(self.newest)
                waiting.add(asyncio.create_task(self._deliver(list(self.newest), fresh=False)))
            ones = []
            while due >= 1 and self.sent - self.acked < OUTSTANDING:
                due -= 1
                ones.append(self.event())
                self.sent += 1
            waiting.add(asyncio.create_task(self._deliver(ones)))
            waiting = {task for task in waiting if not task.done()}
        while waiting and not self._killed.is_set():
            await asyncio.wait(waiting, timeout=0.5)
            waiting = {task for task in waiting if not task.done()}
        for task in waiting:
            task.cancel()
        await asyncio.wait_for(self._producer.stop(), ANSWER_S)

    async def _deliver(self, ones: list[tuple[bytes, bytes]], fresh: bool = True) -> None:
        """Until each is acknowledged; one task for what is sent together: one an event costs more than sending."""
        while ones:
            sent: list[asyncio.Future[Any]] = []
            with contextlib.suppress(TimeoutError, aiokafka.errors.KafkaError):
                async with asyncio.timeout(ANSWER_S):
                    for key, value in ones:
                        sent.append(await self._producer.send(self.topic, value, key=key))
                    await asyncio.wait(sent)
            for future in sent:
                future.add_done_callback(lambda done: done.cancelled() or done.exception())  # what comes too late
            heard = {n for n, future in enumerate(sent) if future.done() and not future.cancelled()}
            heard = {n for n in heard if sent[n].exception() is None}
            self.acked += len(heard) * fresh
            self.newest += [one for n, one in enumerate(ones) if n in heard]
            ones = [one for n, one in enumerate(ones) if n not in heard]
            if ones:
                self.again += len(ones)
                await asyncio.sleep(0.1)

    async def _started(self) -> Any:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=self.address, acks="all", linger_ms=20)
        await producer.start()
        return producer
