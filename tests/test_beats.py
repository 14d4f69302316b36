"""The other workers' beats: the largest watermark of our own logs, over a real Kafka."""

from __future__ import annotations

import json
import time
import uuid

import kafka as client
import pytest

from streams import beats, control, topics

pytestmark = pytest.mark.kafka


@pytest.fixture
def names(kafka: str) -> topics.Topics:
    """Topics of the test's own."""
    tag = uuid.uuid4().hex[:8]
    made = topics.Topics(
        events=(f"events-{tag}",), items=f"items-{tag}", dead_letters=f"dead-{tag}", predictions=f"predictions-{tag}",
        control=f"control-{tag}", state=f"state-{tag}",
    )  # fmt: skip
    topics.ensure(kafka, made)
    return made


def test_largest_watermark_of_our_logs_is_known_whoever_lives(kafka: str, names: topics.Topics) -> None:
    """Beats of another log and what is no beat count for nothing; a smaller one later takes nothing back."""
    producer = client.KafkaProducer(bootstrap_servers=kafka)

    def beat(worker: str, log: str, watermark_ms: int) -> None:
        said = {"worker": worker, "partitions": {f"{log}|0": 7}, "watermark_ms": watermark_ms, "swaps": 0}
        producer.send(names.state, key=worker.encode(), value=json.dumps(said).encode()).get(20)

    beat("a", "events@ours", 500)
    beat("other", "events@theirs", 9_000)
    producer.send(names.state, key=b"x", value=b"no beat").get(20)
    heard = beats.Beats(kafka, names.state, ["events@ours"])
    heard.start()
    try:
        assert heard.caught_up(30)
        assert heard.watermark_ms == 500
        beat("b", "events@ours", 800)
        beat("a", "events@ours", 600)
        end = time.monotonic() + 30
        while heard.watermark_ms < 800:
            assert time.monotonic() < end
            time.sleep(0.05)
    finally:
        heard.close()
        producer.close()


def test_caught_up_means_that_all_was_folded(kafka: str, names: topics.Topics) -> None:
    """Only a broker's answer says where a log ends, an empty one's too: silence would forget the forgotten."""
    empty = control.ControlLog(kafka, topic=names.control)
    empty.start()
    assert empty.caught_up(30)
    empty.close()
    writer = control.ControlWriter(kafka, topic=names.control)
    writer.append("forget", {"user_id": "bob"}, by="ann")
    writer.close()
    again = control.ControlLog(kafka, topic=names.control)
    again.start()
    assert again.caught_up(30)
    assert again.state.forgotten == {"bob"}
    again.close()
