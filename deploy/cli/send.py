"""`nextclick send`: JSON lines from a pipe into the event topic, each checked before it leaves."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from deploy.cli import options

NAMED = 100  # refused lines and undelivered events that the summary lists


def send(
    file: Annotated[Path, typer.Argument(help="One event a line, packed or not; - is stdin.")] = Path("-"),
    items: Annotated[bool, typer.Option("--items", help="The lines are items of the catalogue: JSON, or CSV with a "
                                        'header; {"item_id": …, "withdrawn": true} takes one back.')] = False,
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Send events, keyed by their user; 1 is the code where a line was refused or the broker did not take one.

    With --items the catalogue, keyed by item: what it names is proposed before its first click.

    Example: tail -f events.jsonl | nextclick send --kafka localhost:9092

    Example: nextclick send catalogue.csv --items --kafka localhost:9092
    """
    settings = options.settings_of(kafka, None, None, config, assigned)
    from deploy import replay, stocking
    from streams import client, topics

    topic = settings["topics.items"] if items else settings["topics.events"][0]
    topics.log_ids(settings.kafka, [topic])
    refused: list[dict[str, Any]] = []
    missing: list[str] = []
    count = bad = 0
    started = time.monotonic()
    made = client.ItemProducer if items else client.EventProducer
    producer = made(settings.kafka, topic)
    source = stocking.lines(file) if items else replay.raw_lines(file, "give one JSON object a line")
    try:
        for number, raw in _told(source):
            count += 1
            try:
                producer.send(event_of(raw))
            except client.BadEvent as error:
                bad += 1
                print(f"line {number + 1} is not sent: {error.reason}: {error}", file=sys.stderr, flush=True)
                if bad <= NAMED:
                    refused.append({"line": number + 1, "reason": error.reason, "message": str(error)})
    finally:
        try:
            producer.close()
        except client.NotDelivered as error:
            missing = error.event_ids
            print(f"nextclick: {error}", file=sys.stderr, flush=True)
    seconds = time.monotonic() - started
    result = {
        "lines": count, "delivered": producer.delivered, "refused": bad, "refused_lines": refused,
        "not_delivered": len(missing), "not_delivered_ids": missing[:NAMED], "idempotent": producer.idempotent,
        "topic": topic, "seconds": round(seconds, 2),
    }  # fmt: skip
    told = f"{producer.delivered:,} of {count:,} lines delivered to {topic} in {seconds:.1f} s, {bad:,} refused"
    options.show(result, json, told)
    if bad or missing:
        raise typer.Exit(1)


def event_of(raw: bytes) -> dict[str, Any]:
    """The fields of one line; raises `BadEvent` where it is no JSON object."""
    from streams.client import BadEvent

    try:
        fields = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadEvent("bad-json", f"not JSON ({error}): write one event a line as a JSON object") from error
    if not isinstance(fields, dict):
        raise BadEvent("schema", "a line is one JSON object: an event, or with --items an item")
    return fields


def _told(lines: Iterator[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """The same lines, with how many they were so far on a terminal."""
    shown = time.monotonic()
    for count, line in enumerate(lines):
        if sys.stderr.isatty() and time.monotonic() - shown > 1:
            shown = time.monotonic()
            print(f"\r{count:,} lines", end="", file=sys.stderr, flush=True)
        yield line
