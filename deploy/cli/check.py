"""`nextclick check`: what would become of these lines, without a broker."""

from __future__ import annotations

import collections
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
import orjson
import typer

from deploy import settings as dials
from deploy.cli import options

Dialect = Annotated[
    str | None, typer.Option("--dialect", help="The system that wrote the lines, where their shape does not say it.")
]


def check(
    file: Annotated[Path, typer.Argument(help="Events, one message a line, packed or not; CSV too; - is stdin.")],
    dialect: Dialect = None,
    key: Annotated[str | None, typer.Option("--key", help="The key that the messages would have in Kafka.")] = None,
    config: options.Config = None, assigned: options.Set = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line, the summary last.")] = False,
) -> None:  # fmt: skip
    """What would become of these lines: events, nothing to store, or dead letters; code 1 where there are any.

    Example: nextclick check events.jsonl.gz --dialect segment
    """
    from deploy import replay

    settings = options.settings_of(None, None, None, config, assigned)
    lines = replay.values(file, named(dialect))
    tally: dict[str, collections.Counter[str]] = {}
    for found in judged(lines, dialect, key, settings["personal.keep"], round(time.time() * 1000)):
        _count(tally.setdefault(found["dialect"], collections.Counter()), found)
        print(orjson.dumps(found).decode() if json else _told(found))
    if not tally:
        raise replay.UnreadableFile(f"{file} holds no events (it is empty): give a file of one event a line")
    total = sum(tally.values(), collections.Counter())
    summary = {"dialects": {name: _figures(counts) for name, counts in tally.items()}, "total": _figures(total)}
    print(orjson.dumps({"summary": summary}).decode() if json else "\n" + _table(summary))
    if total["dead_letters"]:
        raise typer.Exit(1)


def named(dialect: str | None) -> str | None:
    """The name of a dialect, where it is one."""
    from streams.dialects import table

    if dialect is not None and dialect not in table.NAMES:
        raise dials.SettingsError(f"--dialect {dialect!r} is none that is known: use one of {', '.join(table.NAMES)}")
    return dialect


def judged(
    lines: Iterator[tuple[int, bytes]], dialect: str | None, key: str | None, keep: tuple[str, ...], now_ms: int
) -> Iterator[dict[str, Any]]:
    """Per line its dialect, its events, why there is nothing to store, and why it would be a dead letter."""
    from featurestore import sessions
    from featurestore.events import Event
    from streams import codec

    kafka_key = None if key is None else key.encode()
    for number, value in lines:
        try:
            message = codec.read(value, key=kafka_key, record_ms=now_ms, keep=keep, dialect=dialect, line=number)
        except codec.BadEvent as bad:
            message = codec.Message(dialect or "unknown", [codec.BadElement(0, bad.reason, str(bad))], [])
        early = [
            codec.BadElement(n, "future-ts", f"event {e.event_id}: ts {e.ts_ms} is more than an hour ahead of now")
            for n, e in enumerate(message.elements)
            if isinstance(e, Event) and e.ts_ms > now_ms + sessions.FUTURE_MS
        ]
        bad_ones = [e for e in message.elements if isinstance(e, codec.BadElement)] + early
        refused = {e.n for e in early}
        yield {
            "line": number + 1,
            "dialect": message.dialect,
            "events": [
                orjson.Fragment(codec.encode_event(e))
                for n, e in enumerate(message.elements)
                if isinstance(e, Event) and n not in refused
            ],
            "nothing": message.nothing,
            "dead_letter": [msgspec.to_builtins(e) for e in sorted(bad_ones, key=lambda e: e.n)],
        }


def _count(counts: collections.Counter[str], found: dict[str, Any]) -> None:
    held = bool(found["events"] or found["dead_letter"])
    counts.update(lines=1, events=len(found["events"]), nothing=int(not held))
    counts.update(with_events=int(bool(found["events"])), dead_letters=int(bool(found["dead_letter"])))


def _figures(counts: collections.Counter[str]) -> dict[str, int]:
    return {name: counts[name] for name in ("lines", "with_events", "events", "nothing", "dead_letters")}


def _told(found: dict[str, Any]) -> str:
    """A line for people: one row an event, a reason where there is none."""
    place = f"{found['line']:>6}  {found['dialect']:<14}"
    rows = [f"event        {orjson.dumps(event).decode()}" for event in found["events"]]
    rows += [f"nothing      {why}" for why in found["nothing"]]
    rows += [f"dead letter  {bad['reason']}: {bad['message']}" for bad in found["dead_letter"]]
    return "\n".join(f"{place}  {row}" for row in rows or ["nothing      the line holds no event"])


def _table(summary: dict[str, Any]) -> str:
    head = ["dialect", "lines", "with events", "events", "nothing to store", "dead letters"]
    rows = [[name, *map(str, figures.values())] for name, figures in summary["dialects"].items()]
    return options.table([head, *rows, ["total", *map(str, summary["total"].values())]])
