"""An exception in a step ends the process: what failed must not be passed over."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import aiokafka
import msgspec
import pytest

from streams import app, connection, topics

SETTINGS = app.AppSettings(
    kafka="host:9092", worker="w", events=("events",), predictions="p", dead_letters="d", state="s"
)
STEP = """
import asyncio
from streams import app, ingest

@app.fail_stop
async def take(poll):
    raise {error}("what went wrong")

async def agent():
    try:
        await take(None)
    finally:
        print("passed over")

asyncio.run(agent())
"""


@pytest.mark.parametrize(("error", "traced"), [("ZeroDivisionError", True), ("ingest.WrongKeys", False)])
def test_step_that_raises_ends_the_process_with_a_code_and_its_reason(error: str, traced: bool) -> None:
    """At once, before anything behind it runs; what is expected is told in a line, without a traceback."""
    done = subprocess.run([sys.executable, "-c", STEP.format(error=error)], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert "passed over" not in done.stdout
    assert "what went wrong" in done.stdout + done.stderr
    assert ("Traceback" in done.stderr) == traced


async def test_broker_that_hangs_up_on_its_way_down_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a topic is still the same is not known just then; another log's id is fail-stop."""
    why: list[Exception] = [connection.NotLetIn("hangs up"), connection.BrokerUnreachable("host:9092", "refused")]

    def log_ids(*_: object) -> dict[str, str]:
        if why:
            raise why.pop()
        return {"events": "another"}

    monkeypatch.setattr(topics, "log_ids", log_ids)
    assert not await app.same_logs(SETTINGS, {"events": "log"})
    assert not await app.same_logs(SETTINGS, {"events": "log"})
    with pytest.raises(app.LogMadeAnew):
        await app.same_logs(SETTINGS, {"events": "log"})


class Producer:
    """Starts at the third attempt; what is sent waits until the test says what became of it."""

    def __init__(self, **_: Any) -> None:
        self.attempts = 0
        self.sent: list[asyncio.Future[None]] = []

    async def start(self) -> None:
        """As where the broker comes up late."""
        self.attempts += 1
        if self.attempts < 3:
            raise aiokafka.errors.KafkaConnectionError("Unable to bootstrap from host:9092")

    async def send(self, topic: str, value: bytes, key: bytes) -> asyncio.Future[None]:
        """On its way."""
        self.sent.append(asyncio.get_running_loop().create_future())
        return self.sent[-1]


async def test_broker_that_is_away_ends_no_idle_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """A producer waits for it; a beat that never arrives is passed over, and none is piled upon one on its way."""
    made = Producer()
    monkeypatch.setattr(aiokafka, "AIOKafkaProducer", lambda **_: made)
    monkeypatch.setattr(app, "PAUSE_S", 0)
    outlet = app.Outlet(SETTINGS)
    await outlet.beat(b"1")
    await outlet.beat(b"2")
    assert (made.attempts, len(made.sent)) == (3, 1)
    made.sent[0].set_exception(aiokafka.errors.KafkaTimeoutError())
    await asyncio.sleep(0)
    await outlet.beat(b"3")
    assert len(made.sent) == 2


async def test_producer_gives_a_broker_up_after_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a beat is passed over and a prediction ends the worker: the supervisor tries again later."""
    stopped: list[int] = []

    class Never(Producer):
        """Finds no broker."""

        async def start(self) -> None:
            """At any time."""
            raise aiokafka.errors.KafkaConnectionError("Unable to bootstrap from host:9092")

        async def stop(self) -> None:
            """What was opened is closed."""
            stopped.append(1)

    monkeypatch.setattr(aiokafka, "AIOKafkaProducer", Never)
    monkeypatch.setattr(app, "STARTED_S", 0)
    outlet = app.Outlet(SETTINGS)
    await outlet.beat(b"1")
    with pytest.raises(aiokafka.errors.KafkaConnectionError):
        await outlet.predictions([(b"u", b"{}")])
    assert stopped == [1, 1]


async def test_predictions_arrive_whole_in_order_and_where_their_users_other_records_are(
    kafka: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many record batches they fill; a tombstone is one of them."""
    monkeypatch.setattr(app, "BATCH_BYTES", 2_000)
    names = topics.Topics(predictions="told", dead_letters="told-dead", state="told-state", events=("told-events",))
    topics.ensure(connection.of(kafka), names)
    users = [f"user-{n % 7}".encode() for n in range(300)]
    messages = [(user, None if n % 50 == 9 else b'{"n":%d}' % n + b" " * 300) for n, user in enumerate(users)]
    outlet = app.Outlet(msgspec.structs.replace(SETTINGS, kafka=kafka, predictions="told"))
    sent = await outlet.predictions(messages[:200]) + await outlet.predictions(messages[200:])
    await asyncio.gather(*sent)
    assert await outlet.predictions([]) == []
    await outlet.stop()
    came: dict[bytes, list[bytes | None]] = {}
    places: dict[bytes, set[int]] = {}
    async with (
        aiokafka.AIOKafkaProducer(bootstrap_servers=kafka) as producer,
        aiokafka.AIOKafkaConsumer("told", bootstrap_servers=kafka, auto_offset_reset="earliest") as consumer,
    ):
        for user in set(users):
            places[user] = {(await producer.send_and_wait("told", b"last", key=user)).partition}
        for _ in range(len(messages) + len(places)):
            record = await asyncio.wait_for(consumer.getone(), 20)
            came.setdefault(record.key, []).append(record.value)
            places[record.key].add(record.partition)
    assert came == {user: [*(value for of, value in messages if of == user), b"last"] for user in places}
    assert {len(at) for at in places.values()} == {1}
