"""What a shop's topics are like before nextclick is started on them: findings, each with its remedy."""

from __future__ import annotations

import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec
from kafka import KafkaConsumer, TopicPartition

from deploy import rights
from deploy.findings import Finding, Level
from featurestore import sessions
from featurestore.events import Event, Origin, Row
from streams import codec, connection, topics
from streams.connection import Connection

SAMPLED = 2_000  # of each partition, the newest
SHARE = 0.01  # of events with another key, beyond which a worker stops
SKEW_MS = 600_000
DAY_MS = 86_400_000
SESSION = sessions.SessionSettings()


class Sample(msgspec.Struct, kw_only=True):
    """The newest records of the event topics, as they were read."""

    events: list[tuple[Event, Any]] = []  # with the record each came in
    records: int = 0
    judged: int = 0  # events, and messages that could not be read
    dialects: Counter[str] = msgspec.field(default_factory=Counter)
    bad: Counter[str] = msgspec.field(default_factory=Counter)  # reasons
    flagged: list[Row] = []  # of sessions that no person makes
    example: str = ""
    cpu_s: float = 0.0


def examine(
    kafka: Connection,
    names: topics.Topics,
    tokenizer: Callable[[], Any] | None,
    group: str = "nextclick",
    settings: sessions.SessionSettings = SESSION,
) -> list[Finding]:
    """Every finding; raises where no broker lets us in. Nothing is written, no group is joined."""
    made = [Finding(check="connection", level="ok", text=f"{kafka} lets us in")]
    missing, differences = topics.compared(kafka, names)
    made += _shapes(names, missing, differences)
    made += rights.examine(kafka, names, missing, group)
    there = [name for name in names.events if name not in missing]
    if there:
        sample = judged(newest(kafka, there), settings)
        made += described(sample)
        if tokenizer is not None:
            made.append(language(sample, tokenizer))
    return made


def _shapes(
    names: topics.Topics, missing: Sequence[str], differences: Sequence[topics.Difference]
) -> Iterator[Finding]:
    for name in missing:
        level: Level = "fault" if name in names.events else "notice"
        yield Finding(check="topics", level=level, text=f"topic {name} is not there",
                      remedy="name yours with --set topics.events=NAME; where nobody sends yet, `nextclick up` makes it"
                      if level == "fault" else "a worker makes it at its start; it needs the right to")  # fmt: skip
    for d in differences:
        exactly = d.setting == "partitions" and d.topic in (names.control, names.state)
        yield Finding(check="topics", level="fault" if exactly else "notice", text=str(d),
                      remedy="make it anew with 1 partition, or name another" if exactly else
                      "works as it is; as many workers share a topic as it has partitions" if d.setting == "partitions"
                      else f"kafka-configs --alter --topic {d.topic} --add-config {d.setting}={d.wanted}")  # fmt: skip
    if not missing and not differences:
        yield Finding(check="topics", level="ok", text="all six topics are there, in their shapes")


def newest(kafka: Connection, names: Sequence[str], count: int = SAMPLED) -> list[Any]:
    """The newest records of each partition of these topics; raises where they may not be read."""
    consumer = connection.client(KafkaConsumer, kafka, {"enable_auto_commit": False, "auto_offset_reset": "earliest"})
    try:
        parts = [TopicPartition(name, p) for name in names for p in consumer.partitions_for_topic(name) or ()]
        consumer.assign(parts)
        first, ends = consumer.beginning_offsets(parts), consumer.end_offsets(parts)
        for part in parts:
            consumer.seek(part, max(first[part], ends[part] - count))
        records: list[Any] = []
        waiting = {part for part in parts if ends[part] > first[part]}
        quiet = time.monotonic() + 10
        while waiting and time.monotonic() < quiet:
            for part, some in consumer.poll(timeout_ms=500).items():
                records += some
                quiet = time.monotonic() + 5
                if consumer.position(part) >= ends[part]:
                    waiting.discard(part)
        return records
    finally:
        consumer.close()


def judged(records: Sequence[Any], settings: sessions.SessionSettings = SESSION) -> Sample:
    """Records as a worker would read and fold them, and what that costs here."""
    made, begun = Sample(records=len(records)), time.process_time()
    open_: dict[tuple[str, int], sessions.OpenSessions] = defaultdict(sessions.OpenSessions)
    for record in records:
        try:
            held = codec.read(record.value, record.headers, key=record.key, record_ms=record.timestamp)
        except codec.BadEvent as bad:
            made.judged += 1
            made.bad[bad.reason] += 1
            made.example = made.example or str(bad)
            continue
        made.dialects[held.dialect] += 1
        for n, element in enumerate(held.elements):
            made.judged += 1
            if not isinstance(element, Event):
                made.bad[element.reason] += 1
                made.example = made.example or element.message
                continue
            made.events.append((element, record))
            origin = Origin(record.topic, record.partition, record.offset, n, record.timestamp)
            folded = sessions.fold(open_[record.topic, record.partition], element, origin, settings)
            made.bad[folded.outcome] += folded.outcome != "stored"
            if folded.row is not None and folded.row.bot is not None:
                made.flagged.append(folded.row)
    made.cpu_s = time.process_time() - begun
    return made


def described(sample: Sample) -> Iterator[Finding]:
    """What the sample shows."""
    if not sample.records:
        yield Finding(check="events", level="notice", text="the event topics are empty: nothing to look at",
                      remedy="send some (`nextclick send`, `nextclick replay FILE`) and ask again")  # fmt: skip
        return
    told = ", ".join(f"{name} {count:,}" for name, count in sample.dialects.most_common())
    yield Finding(check="dialects", level="ok", text=f"{sample.records:,} messages: {told or 'none that can be read'}")
    bad = Counter({reason: count for reason, count in sample.bad.items() if count and reason != "duplicate"})
    share = bad.total() / max(1, sample.judged)
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in bad.most_common())
    yield Finding(
        check="dead letters", level="fault" if share > 0.5 else "notice" if bad else "ok",
        text=f"{share:.1%} of the events could not be taken ({reasons}); the first: {sample.example}" if bad
        else "every event can be taken",
        remedy="`nextclick check FILE` says of each line what is wrong" if bad else "",
    )  # fmt: skip
    if not sample.events:
        return
    yield _keys(sample)
    yield from _clocks(sample)
    twice = sample.bad["duplicate"] / len(sample.events)
    yield Finding(check="duplicates", level="notice" if twice > 0.05 else "ok",
                  text=f"{twice:.1%} are repeated event_ids",
                  remedy="they count once; look for a producer that sends twice" if twice > 0.05 else "")  # fmt: skip
    yield _bots(sample)
    yield _capacity(sample)


def _keys(sample: Sample) -> Finding:
    wrong: Counter[tuple[str, int]] = Counter()
    total: Counter[tuple[str, int]] = Counter()
    for event, record in sample.events:
        total[record.topic, record.partition] += 1
        wrong[record.topic, record.partition] += record.key != event.user_id.encode()
    worst = max(total, key=lambda at: wrong[at] / total[at])
    share = wrong[worst] / total[worst]
    return Finding(
        check="keys", level="fault" if share > SHARE else "notice" if wrong.total() else "ok",
        text=f"{1 - wrong.total() / total.total():.1%} of the events are keyed by their user"
        + (f"; in {worst[0]}-{worst[1]} {share:.1%} are not" if share else ""),
        remedy="key each message with its user_id, as EventProducer does: a worker stops above 1 %" if share else "",
    )  # fmt: skip


def _clocks(sample: Sample) -> Iterator[Finding]:
    ahead = sorted(event.ts_ms - record.timestamp for event, record in sample.events)
    middle, most = statistics.median(ahead), ahead[min(len(ahead) - 1, len(ahead) * 99 // 100)]
    skewed = most > SKEW_MS or middle < -SKEW_MS
    yield Finding(
        check="clocks", level="notice" if skewed else "ok",
        text=f"event times are {-middle / 1000:,.1f} s behind Kafka's (median); "
        + (f"1 % are more than {most / 1000:,.1f} s ahead" if most > 0 else "not one in a hundred is ahead"),
        remedy="beyond an hour ahead is a dead letter: set the producers' clocks; far behind is a replay, or `ts` is "
        "not when it happened" if skewed else "",
    )  # fmt: skip


def _bots(sample: Sample) -> Finding:
    """Sessions that a worker would leave out, by its own rule; a sample knows only their newest events."""
    users = {event.user_id for event, _ in sample.events}
    found = {row.event.user_id for row in sample.flagged}
    reasons = ", ".join(f"{name} {n:,}" for name, n in Counter(row.bot for row in sample.flagged).most_common())
    share = len(sample.flagged) / len(sample.events)
    return Finding(
        check="bots", level="notice" if found else "ok",
        text=f"{len(found):,} of {len(users):,} users act like programs ({share:.1%} of the events left out: {reasons})"
        if found else f"none of {len(users):,} users acts like a program",
        remedy="they are neither learnt from nor predicted for; `bots.pace`, `bots.burst` and `bots.length` set from "
        "when, `nextclick sql \"SELECT * FROM bots\"` lists them" if found else "",
    )  # fmt: skip


def _capacity(sample: Sample) -> Finding:
    seconds = Counter(record.timestamp // 1000 for _, record in sample.events)
    busiest, cost_us = max(seconds.values()), sample.cpu_s / max(1, len(sample.events)) * 1e6
    return Finding(
        check="capacity", level="ok",
        text=f"the busiest second of the sample has {busiest:,} events; reading and folding one takes {cost_us:,.0f} "
        f"µs of a core here, {busiest * cost_us / 1e6:.1%} of it at that rate",
        remedy="what predicting and storing add: `nextclick bench latency --kafka HOST:PORT`",
    )  # fmt: skip


def language(sample: Sample, tokenizer: Callable[[], Any]) -> Finding:
    """Whether the encoder's tokenizer knows the script of the texts."""
    from trainer import encoders

    said = sorted({text for event, _ in sample.events for text in (event.title, event.query) if text})
    if not said:
        return Finding(check="language", level="notice", text="no event has a title or a query",
                       remedy="send titles: without them an item is known by its id alone")  # fmt: skip
    wrong = encoders.broken_up(tokenizer(), said)
    knows = "does not know" if wrong else "knows"
    return Finding(check="language", level="notice" if wrong else "ok", remedy=wrong or "",
                   text=f"the encoder {knows} the script of {len(said):,} texts")  # fmt: skip
