"""What operators look at: status, the lake by SQL, dead letters."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import kafka
import orjson
import pytest

from deploy import broker, cli, dead_letters, history, status
from deploy.settings import Settings
from featurestore import lake, sessions
from featurestore.events import Event
from streams import codec, control, interests, quality, topics, waiting
from tests.conftest import Run


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """An embedded broker with its topics."""
    with broker.embedded(port=0) as running:
        made = Settings.load({"kafka": running.address, "shared": str(tmp_path_factory.mktemp("shared"))})
        topics.ensure(running.address, made.topics())
        yield made


@pytest.fixture
def run(settings: Settings, typed: Callable[[Settings], Run]) -> Run:
    """A command as an operator types it."""
    return typed(settings)


def test_status_is_told_from_the_topics_alone(run: Run, settings: Settings) -> None:
    """Nobody runs: no worker is 1; a beat, a verdict and a pause are told without whoever wrote them."""
    assert "no worker beats" in run("status", code=1)
    now_ms = int(time.time() * 1000)
    beat = {"worker": "w1", "at_ms": now_ms + 60_000, "partitions": {"t@l|0": 5, "t@l|1": 6}, "lag": 3,
            "watermark_ms": now_ms, "horizon_ms": 60_000, "lateness_ms": 5_000, "open_sessions": 2,
            "version": "v1"}  # fmt: skip
    sums = {name: [0.0, 5.0] + [1.0] * (waiting.GROUPS - 2) for name in interests.FIELDS}
    beat["outcomes"] = dict.fromkeys(quality.COUNTS, 4) | {"by": [{"version": "v1", "arm": "champion", "sums": sums}]}
    producer = kafka.KafkaProducer(**settings.kafka.for_kafka_python())
    for value in (b"no json", orjson.dumps(beat | {"worker": "w0", "at_ms": 1}), orjson.dumps(beat)):
        producer.send("interest.state", key=b"w1", value=value).get(timeout=20)
    producer.close()
    writer = control.ControlWriter(settings.kafka)
    writer.append("champion.changed", {"version": "v1", "predecessor": None}, by="t")
    judged = {"kind": "refresh", "accepted": True, "version": "v1", "reason": "fine", "n": 700, "wall_ms": 4_000,
              "dials": {"cadence": {"value": "90s", "source": "file"}}}  # fmt: skip
    writer.append("retrain.judged", judged, by="t")
    kept_out = judged | {"accepted": False, "version": None, "reason": "worse", "metrics": {"candidate": {}}}
    writer.append("retrain.rejected", kept_out, by="t")
    writer.append("pause", {"until_ms": now_ms + 3_600_000}, by="ann")
    writer.close()
    told = run("status", "--json")
    assert [(w["worker"], w["alive"]) for w in told["workers"]] == [("w0", False), ("w1", True)]
    assert (told["lag"], told["champion"], told["rejected_in_a_row"], told["paused"]["by"]) == (3, "v1", 1, "ann")
    assert told["freshness_ms"]["training"] == 4_000
    assert told["freshness_ms"]["total"] == 60_000 + 5_000 + 90_000 + 4_000  # theirs, not this command's
    text = run("status")
    assert (told["live"]["open"], told["live"]["by"][0]["n"]) == (8, 26)  # two workers', the silent one's too
    assert "worker w1: 2 partitions, lag 3" in text
    assert "live v1 champion (n=26): log loss 1.000" in text
    assert "refresh rejected: worse (n=700)" in text
    assert "paused by ann" in text
    assert "horizon 1m + lateness 5s + cadence 1m30s + training 4s = 2m39s" in text


def test_when_the_next_retrain_comes() -> None:
    """A cadence after the last one began, a pause later, never while one runs."""
    judged = control.ControlState(verdicts=({"at_ms": 20_000, "wall_ms": 5_000},))
    assert status.next_retrain_ms(judged, 60_000) == 75_000
    paused = control.ControlState(verdicts=judged.verdicts, pause=control.Pause(until_ms=90_000, by="ann"))
    assert status.next_retrain_ms(paused, 60_000) == 90_000
    assert status.next_retrain_ms(control.ControlState(), 60_000) is None


def test_lake_is_asked_in_sql(run: Run, settings: Settings) -> None:
    """Views of events, sessions and labels; nothing but one SELECT, and no other file of the machine."""
    past = [Event(event_id=f"e{i}", type="view", user_id="u", ts_ms=i * 1_000, item_id=f"i{i // 2}") for i in range(6)]
    history.write(past, lake.Lake(settings.shared, "h"), sessions.SessionSettings())
    assert run("sql", "SELECT count(*) AS n FROM events", "--json") == [{"n": 6}]
    assert run("sql", "SELECT events, items FROM sessions", "--json") == [{"events": 6, "items": 3}]
    labels = run("sql", 'SELECT next_item FROM labels ORDER BY "offset"', "--json")
    assert [row["next_item"] for row in labels] == ["i1", "i1", "i2", "i2", None, None]
    for statement in ("DROP VIEW events", "SELECT 1; SELECT 2", "SELEC", "SELECT * FROM nothing",
                      "SELECT * FROM read_csv('/etc/passwd')", "COPY (SELECT 1) TO '/tmp/x.csv'"):  # fmt: skip
        assert "the statement cannot be answered" in run("sql", statement, code=1)
    assert "there is no lake in" in run("sql", "SELECT 1", "--shared", "/nowhere", code=1)


def letters(settings: Settings) -> list[dead_letters.Letter]:
    """What lies in the topic."""
    return list(dead_letters.read(settings))


def test_dead_letters_are_listed_shown_and_sent_once_more(run: Run, settings: Settings) -> None:
    """With reason and source; what is sent once more has its key and bytes and none of our headers."""
    assert "none" in run("dead-letters", "list")
    producer = kafka.KafkaProducer(**settings.kafka.for_kafka_python())
    for n, reason in enumerate(("bad-json", "schema")):
        source = Bad(topic="clickstream.events", partition=2, offset=40 + n, key=b"u", value=b"{bad %d" % n)
        dead = codec.dead_letter(source, codec.BadEvent(reason, "why"))
        producer.send("clickstream.dead-letters", key=dead.key, value=dead.value, headers=dead.headers).get(20)
    producer.close()
    told = run("dead-letters", "list", "--reason", "schema", "--json")
    assert told["counts"] == {"bad-json": 1, "schema": 1}
    assert [(t["offset"], t["source"]) for t in told["dead_letters"]] == [(1, "clickstream.events-2@41")]
    assert "{bad 1" in run("dead-letters", "show", "1")
    assert "no dead letter at offset 9" in run("dead-letters", "show", "9", code=1)
    assert "nothing is sent by accident" in run("dead-letters", "replay", code=1)
    assert run("dead-letters", "replay", "--reason", "schema", "--json") == {"sent": 1, "left": 0}
    consumer = kafka.KafkaConsumer("clickstream.events", auto_offset_reset="earliest", consumer_timeout_ms=3_000,
                                   **settings.kafka.for_kafka_python())  # fmt: skip
    assert [(r.key, r.value, r.headers) for r in consumer] == [(b"u", b"{bad 1", [("trace", b"t")])]
    consumer.close()


class Bad:
    """A record as the codec sees it."""

    def __init__(self, **said: Any) -> None:
        self.__dict__.update(said, timestamp=5, headers=[("trace", b"t")])


@pytest.mark.parametrize("command", [["status"], ["dead-letters", "list"], ["dead-letters", "show", "1"]])
def test_without_a_broker_it_is_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The address and the remedy, no traceback."""
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--kafka", f"127.0.0.1:{broker.free_port()}"])
    err = capsys.readouterr().err
    assert (ended.value.code, len(err.strip().splitlines())) == (1, 1)
    assert "no Kafka broker answers" in err
