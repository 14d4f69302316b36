"""The six topics: made where they are missing, compared where they exist, and which log each one is."""

from __future__ import annotations

import contextlib
import hashlib
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec
from kafka import errors
from kafka.admin import ConfigFilterType, ConfigResource, ConfigResourceType, KafkaAdminClient

from streams.connection import BrokerUnreachable, Connection, of
from streams.connection import knock as require_listener

__all__ = ["BrokerUnreachable", "Difference", "Shape", "TopicUnusable", "Topics", "admin_of", "compared", "ensure",
           "log_id", "log_ids", "requests", "require_listener", "shapes"]  # fmt: skip

DAY_MS = 86_400_000
MESSAGE_MAX_BYTES = 1_048_588  # Kafka's own default for `max.message.bytes`
DEAD_LETTER_MAX_BYTES = 2 * 1024 * 1024


class Topics(msgspec.Struct, frozen=True, kw_only=True):
    """The topics' names; events may come on several."""

    events: tuple[str, ...] = ("clickstream.events",)
    items: str = "clickstream.items"
    dead_letters: str = "clickstream.dead-letters"
    predictions: str = "interest.predictions"
    control: str = "interest.control"
    state: str = "interest.state"
    partitions: int = 8  # of events, items and predictions, where they are made
    replication: int = 1  # of all six, where they are made; -1: as the broker has it


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """How a topic is meant to be; `exactly` where another number of partitions would break something."""

    partitions: int
    exactly: bool = False
    configs: dict[str, str] = {}


class Difference(msgspec.Struct, frozen=True, kw_only=True):
    """What an existing topic has otherwise than nextclick would have made it."""

    topic: str
    setting: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"topic {self.topic}: {self.setting} is {self.found}, wanted is {self.wanted}"


class TopicUnusable(RuntimeError):
    """A topic is missing or has a shape that cannot work; the message names it and the remedy."""


def shapes(topics: Topics) -> dict[str, Shape]:
    """Every topic with the shape it is made in."""
    event = Shape(
        partitions=topics.partitions,
        configs={"cleanup.policy": "delete", "max.message.bytes": str(MESSAGE_MAX_BYTES)},
    )
    return dict.fromkeys(topics.events, event) | {
        topics.items: Shape(partitions=topics.partitions, configs={"cleanup.policy": "compact"}),
        topics.dead_letters: Shape(
            partitions=1,
            configs={"retention.ms": str(14 * DAY_MS), "max.message.bytes": str(DEAD_LETTER_MAX_BYTES)},
        ),
        topics.predictions: Shape(
            partitions=topics.partitions,
            configs={
                "cleanup.policy": "compact,delete",
                "min.compaction.lag.ms": str(DAY_MS),
                "max.message.bytes": str(MESSAGE_MAX_BYTES),
            },
        ),
        topics.control: Shape(
            partitions=1,
            exactly=True,
            configs={"cleanup.policy": "delete", "retention.ms": "-1", "retention.bytes": "-1"},
        ),
        topics.state: Shape(partitions=1, exactly=True, configs={"cleanup.policy": "compact"}),
    }


def ensure(kafka: str | Connection, topics: Topics) -> list[Difference]:
    """Make what is missing and say in what existing topics differ; waits until every topic has its leaders."""
    wanted = shapes(topics)
    with admin_of(kafka) as admin:
        missing = wanted.keys() - set(admin.list_topics())
        if missing:
            _create(admin, {name: wanted[name] for name in wanted if name in missing}, topics.replication)
        existing = {name: shape for name, shape in wanted.items() if name not in missing}
        differences = _partitions(admin, existing) + _configs(admin, existing)
    broken = [d for d in differences if d.setting == "partitions" and wanted[d.topic].exactly]
    if broken:
        raise TopicUnusable(f"{broken[0]}: name another topic for it (`topics.*`) or make it anew with 1 partition")
    return differences


def compared(kafka: str | Connection, topics: Topics) -> tuple[list[str], list[Difference]]:
    """Topics that are not there, and in what the others differ; nothing is made."""
    wanted = shapes(topics)
    with admin_of(kafka) as admin:
        there = set(admin.list_topics())
        existing = {name: shape for name, shape in wanted.items() if name in there}
        return [name for name in wanted if name not in there], _partitions(admin, existing) + _configs(admin, existing)


def log_ids(kafka: str | Connection, topics: Topics | Sequence[str]) -> dict[str, str]:
    """The id of each topic's log: the cluster's with the topic's where the broker gives one; safe in a file name.

    A topic that was made anew, and an in-memory broker that was restarted, have another one.
    """
    names = list(shapes(topics)) if isinstance(topics, Topics) else list(topics)
    with admin_of(kafka) as admin:
        cluster = admin.describe_cluster().get("cluster_id")
        described = {topic["name"]: topic for topic in admin.describe_topics(names)}
    ids = {}
    for name in names:
        if name not in described or described[name].get("error_code"):
            raise TopicUnusable(f"topic {name} is not at {kafka}: create it first (`nextclick up` does)")
        ids[name] = log_id(cluster, described[name].get("topic_id"))
    return ids


def compacted(kafka: str | Connection, names: Sequence[str]) -> frozenset[str]:
    """Those of the topics that lose records to compaction, as far as the broker tells."""
    with admin_of(kafka) as admin:
        told = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, name) for name in names],
                                      config_filter=ConfigFilterType.ALL).get("topic", {})  # fmt: skip
    policies = {name: _value(told.get(name, {}).get("cleanup.policy")) or "" for name in names}
    return frozenset(name for name, policy in policies.items() if "compact" in policy.split(","))


def log_id(cluster: str | None, topic: uuid.UUID | str | None) -> str:
    """One log's id from what its broker tells.

    >>> log_id("abc", uuid.UUID(int=5))
    'abc.00000000000000000000000000000005'
    """
    number = uuid.UUID(str(topic)).hex if topic else ""
    parts = [part for part in (cluster, number.strip("0") and number) if part]
    if not parts:
        raise TopicUnusable("the broker tells neither its cluster's id nor the topics': use Kafka 2.8 or later")
    told = ".".join(parts)
    return (
        told
        if re.fullmatch(r"[\w.-]{1,80}", told, re.ASCII)
        else hashlib.blake2b(told.encode(), digest_size=16).hexdigest()
    )


@contextlib.contextmanager
def admin_of(kafka: str | Connection) -> Iterator[Any]:
    """Kafka's own client for what is no record; raises BrokerUnreachable or NotLetIn."""
    require_listener(kafka)
    try:
        admin = KafkaAdminClient(client_id="nextclick", bootstrap_timeout_ms=5_000, **of(kafka).for_kafka_python())
    except (errors.KafkaError, OSError) as error:
        raise BrokerUnreachable(kafka, type(error).__name__) from error
    try:
        yield admin
    finally:
        admin.close()


def requests(missing: Mapping[str, Shape], replication: int) -> dict[str, dict[str, Any]]:
    """Topics as the admin client is asked for them."""
    return {
        name: {"num_partitions": shape.partitions, "replication_factor": replication, "configs": dict(shape.configs)}
        for name, shape in missing.items()
    }


def _create(admin: Any, missing: dict[str, Shape], replication: int) -> None:
    try:
        admin.create_topics(requests(missing, replication), wait_for_metadata=True)
    except errors.TopicAlreadyExistsError:  # another process was first
        admin.wait_for_topics(list(missing))
    except errors.KafkaError as error:
        raise TopicUnusable(f"topics {', '.join(missing)} could not be made: {error}") from error


def _partitions(admin: Any, existing: dict[str, Shape]) -> list[Difference]:
    if not existing:
        return []
    found = {topic["name"]: len(topic["partitions"]) for topic in admin.describe_topics(list(existing))}
    return [
        Difference(topic=name, setting="partitions", found=str(found[name]), wanted=str(shape.partitions))
        for name, shape in existing.items()
        if found[name] != shape.partitions
    ]


def _configs(admin: Any, existing: dict[str, Shape]) -> list[Difference]:
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in existing]
    if not resources:
        return []
    told = admin.describe_configs(resources, config_filter=ConfigFilterType.ALL).get("topic", {})
    return [
        Difference(topic=name, setting=key, found=str(found), wanted=value)
        for name, shape in existing.items()
        for key, value in shape.configs.items()
        if (found := _value(told.get(name, {}).get(key))) is not None and not _agrees(key, found, value)
    ]


def _value(config: Any) -> str | None:
    """A config's value, None where the broker does not tell it."""
    return config.get("value") if isinstance(config, Mapping) else config


def _agrees(key: str, found: str, wanted: str) -> bool:
    if key == "cleanup.policy":
        return set(found.split(",")) == set(wanted.split(","))
    if key == "max.message.bytes":
        return int(found) >= int(wanted)
    return found == wanted
