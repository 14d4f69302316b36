"""What this user may do with the topics, as the broker tells it: nothing is written to find out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from kafka import errors

from deploy.findings import Finding
from streams import topics
from streams.connection import Connection

TOLD = "__consumer_offsets"  # asking for a group would make it
DENIED = (errors.TopicAuthorizationFailedError.errno, errors.ClusterAuthorizationFailedError.errno)


def needed(names: topics.Topics) -> dict[str, tuple[str, ...]]:
    """The operations of each topic that worker and trainer use, as Kafka calls them."""
    return dict.fromkeys(names.events, ("READ",)) | {
        names.items: ("READ",),
        names.dead_letters: ("WRITE",),
        names.predictions: ("WRITE",),
        names.control: ("READ", "WRITE"),
        names.state: ("READ", "WRITE"),
    }


def examine(kafka: Connection, names: topics.Topics, missing: Sequence[str], group: str) -> list[Finding]:
    """Rights on the topics that are there, on those that are to be made, and on the workers' group."""
    with topics.admin_of(kafka) as admin:
        there = [name for name in needed(names) if name not in missing]
        told = {one["name"]: one.get("authorized_operations") for one in admin.describe_topics(there)} if there else {}
        cluster = admin.describe_cluster().get("authorized_operations")
        if cluster is None or None in told.values():
            return [Finding(check="rights", level="notice", text="the broker does not tell what this user may do",
                            remedy="start, and see: who may not write is told so in one line")]  # fmt: skip
        found = [
            *_on_topics(kafka, names, told),
            *_to_make(admin, kafka, names, missing),
            *_on_group(admin, kafka, group),
        ]
    return found or [Finding(check="rights", level="ok", text=_all(names, missing))]


def _all(names: topics.Topics, missing: Sequence[str]) -> str:
    make = f", and make {', '.join(missing)}" if missing else ""
    return f"this user may read {', '.join(names.events)}, write the other topics{make}"


def _on_topics(kafka: Connection, names: topics.Topics, told: dict[str, list[str]]) -> Iterator[Finding]:
    for name, operations in needed(names).items():
        lacking = [one for one in operations if one not in told.get(name, operations)]
        if lacking:
            yield Finding(check="rights", level="fault", text=f"{' and '.join(lacking)} on topic {name} is not allowed",
                          remedy=_acl(kafka, lacking, f"--topic {name}"))  # fmt: skip


def _to_make(admin: Any, kafka: Connection, names: topics.Topics, missing: Sequence[str]) -> Iterator[Finding]:
    """Whether the missing ones could be made as they are meant to be: the broker checks it and makes none."""
    if not missing:
        return
    asked = topics.requests({name: topics.shapes(names)[name] for name in missing}, names.replication)
    answers = admin.create_topics(asked, validate_only=True, raise_errors=False)["topics"]
    for answer in answers:
        name, code = answer["name"], answer["error_code"]
        if code in DENIED:
            options = " ".join(f"--config {key}={value}" for key, value in asked[name]["configs"].items())
            yield Finding(
                check="rights", level="fault", text=f"topic {name} may not be made by this user",
                remedy=f"kafka-topics --bootstrap-server {kafka} --create --topic {name} --partitions "
                f"{asked[name]['num_partitions']} {options}, by who may; or {_acl(kafka, ['CREATE'], '--cluster')}",
            )  # fmt: skip
        elif code:
            told = answer.get("error_message") or errors.for_code(code).__name__
            yield Finding(check="rights", level="fault", text=f"topic {name} could not be made: {told}",
                          remedy="set topics.replication and topics.partitions to what the brokers allow, or have it "
                          "made by who may")  # fmt: skip


def _on_group(admin: Any, kafka: Connection, group: str) -> Iterator[Finding]:
    """Where no group was ever asked for, nothing is said: asking would make Kafka's own topic for them."""
    if any(topic["error_code"] for topic in admin.describe_topics([TOLD])):
        return
    try:
        admin.describe_groups([group])
    except errors.GroupAuthorizationFailedError:
        yield Finding(check="rights", level="fault", text=f"the consumer group {group} is not allowed",
                      remedy=_acl(kafka, ["READ"], f"--group {group}"))  # fmt: skip


def _acl(kafka: Connection, operations: Sequence[str], on: str) -> str:
    allowed = " ".join(f"--operation {one.title()}" for one in operations)
    return (f"kafka-acls --bootstrap-server {kafka} --add --allow-principal User:{kafka.user or 'NAME'} {allowed} {on}"
            )  # fmt: skip
