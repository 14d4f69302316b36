"""The topics: made once, compared afterwards, told apart by their log."""

from __future__ import annotations

import time
import uuid

import pytest
from kafka.admin import KafkaAdminClient

from deploy import broker
from streams import topics
from streams.topics import Topics


def own_topics() -> Topics:
    """Six names that no other test uses."""
    mark = uuid.uuid4().hex[:8]
    return Topics(
        events=(f"a.{mark}", f"b.{mark}"),
        **{name: f"{name}.{mark}" for name in ("items", "dead_letters", "predictions", "control", "state")},
    )


def check_made_once(address: str) -> None:
    """Both brokers: the first call makes all, the second finds nothing to say, and every log has its id."""
    mine = own_topics()
    assert topics.ensure(address, mine) == []
    assert topics.ensure(address, mine) == []
    ids = topics.log_ids(address, mine)
    assert ids.keys() == topics.shapes(mine).keys()
    assert len(set(ids.values())) == len(ids) == 7
    assert topics.log_ids(address, mine.events) == {name: ids[name] for name in mine.events}


@pytest.mark.kafka
def test_topics_are_made_once_in_kafka(kafka: str) -> None:
    """A real Kafka gets the topics once."""
    check_made_once(kafka)


def test_topics_are_made_once_in_the_embedded_broker() -> None:
    """The embedded broker gets them too; started anew, its logs are others."""
    mine = own_topics()
    logs = set()
    for _ in range(2):
        with broker.embedded(port=0) as embedded:
            check_made_once(embedded.address)
            topics.ensure(embedded.address, mine)
            logs.update(topics.log_ids(embedded.address, mine).values())
    assert len(logs) == 14


@pytest.mark.kafka
def test_what_differs_is_said(kafka: str) -> None:
    """An existing topic is left as it is; its partitions and settings that differ are told."""
    mine = own_topics()
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics(
        {
            mine.predictions: {
                "num_partitions": 3,
                "replication_factor": 1,
                "configs": {"cleanup.policy": "delete", "max.message.bytes": "100000"},
            },
            mine.dead_letters: {"num_partitions": 1, "replication_factor": 1},
            mine.events[0]: {
                "num_partitions": 8,
                "replication_factor": 1,
                "configs": {"max.message.bytes": "3000000"},
            },
        },
        wait_for_metadata=True,
    )
    admin.close()
    told = {(d.topic, d.setting): (d.found, d.wanted) for d in topics.ensure(kafka, mine)}
    assert told[mine.predictions, "partitions"] == ("3", "8")
    assert told[mine.predictions, "cleanup.policy"] == ("delete", "compact,delete")
    assert told[mine.predictions, "max.message.bytes"] == ("100000", "1048588")  # a batch of them would be refused
    assert told[mine.dead_letters, "max.message.bytes"] == ("1048588", "2097152")
    assert not [key for key in told if key[0] == mine.events[0]]  # a larger limit is no harm


@pytest.mark.kafka
def test_control_log_in_two_partitions_is_refused(kafka: str) -> None:
    """The control log has an order only in one partition: another number stops with the remedy."""
    mine = own_topics()
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.create_topics({mine.control: {"num_partitions": 2, "replication_factor": 1}}, wait_for_metadata=True)
    admin.close()
    with pytest.raises(topics.TopicUnusable, match=r"partitions is 2.*name another topic"):
        topics.ensure(kafka, mine)


@pytest.mark.kafka
def test_topic_made_anew_is_another_log(kafka: str) -> None:
    """A topic that was deleted and made again has another log id."""
    mine = own_topics()
    topics.ensure(kafka, mine)
    before = topics.log_ids(kafka, mine.events)
    admin = KafkaAdminClient(bootstrap_servers=kafka)
    admin.delete_topics([mine.events[0]])
    deadline = time.monotonic() + 20
    while mine.events[0] in admin.list_topics():  # the broker deletes after it has answered
        assert time.monotonic() < deadline, "the topic was not deleted"
        time.sleep(0.05)
    admin.close()
    topics.ensure(kafka, mine)
    after = topics.log_ids(kafka, mine.events)
    assert after[mine.events[0]] != before[mine.events[0]]
    assert after[mine.events[1]] == before[mine.events[1]]


@pytest.mark.kafka
def test_missing_topic_is_named(kafka: str) -> None:
    """A topic that is not there has no log id; the message names it."""
    with pytest.raises(topics.TopicUnusable, match="no-such-topic"):
        topics.log_ids(kafka, ["no-such-topic"])


@pytest.mark.parametrize("address", ["127.0.0.1:1", "localhost", "localhost:kafka", "127.0.0.1:99999"])
def test_no_broker_is_a_clear_message(address: str) -> None:
    """Where nothing answers, the message names the address and the remedy."""
    with pytest.raises(topics.BrokerUnreachable, match=rf"{address} .*--kafka HOST:PORT"):
        topics.ensure(address, Topics())


@pytest.mark.parametrize(
    ("cluster", "topic", "told"),
    [("c-1", None, "c-1"), ("c-1", uuid.UUID(int=0), "c-1"), ("", uuid.UUID(int=1), f"{1:032x}")],
)
def test_log_id_takes_what_is_given(cluster: str, topic: uuid.UUID | None, told: str) -> None:
    """The log id is made of the ids that the broker gives."""
    assert topics.log_id(cluster, topic) == told


def test_log_id_is_safe_in_a_file_name() -> None:
    """A cluster's id with other signs becomes a digest; without any id there is an error."""
    assert topics.log_id("../my cluster@1", None).isalnum()
    with pytest.raises(topics.TopicUnusable):
        topics.log_id(None, None)


def test_dead_letter_always_fits() -> None:
    """The dead-letter topic takes at least nearly twice what an event topic takes."""
    shapes = topics.shapes(Topics())
    room = int(shapes["clickstream.dead-letters"].configs["max.message.bytes"])
    assert room >= 2 * topics.MESSAGE_MAX_BYTES - 1024
