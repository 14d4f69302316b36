"""`nextclick dead-letters`: what could not be taken, why, and once more."""

from __future__ import annotations

from collections import Counter, deque
from typing import Annotated, Any

import typer

from deploy import settings as dials
from deploy.cli import options

app = typer.Typer(no_args_is_help=True, help="Messages that could not be taken: list, show, replay.")

Reason = Annotated[str | None, typer.Option("--reason", help="Only those with this reason, like bad-json or schema.")]
Offset = Annotated[int, typer.Argument(min=0, help="Its offset, as `nextclick dead-letters list` names it.")]


@app.command("list")
def list_(
    reason: Reason = None,
    limit: Annotated[int, typer.Option("--limit", min=1, help="The newest, so many.")] = 20,
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """The newest, with how many there are of each reason. Example: nextclick dead-letters list --reason schema"""
    settings = options.settings_of(kafka, None, None, config, assigned)
    from deploy import dead_letters

    counts: Counter[str] = Counter()
    newest: deque[Any] = deque(maxlen=limit)
    for one in dead_letters.read(settings):
        counts[one.reason] += 1
        if reason in (None, one.reason):
            newest.append(one)
    told = [one.told(dead_letters.SHOWN) for one in newest]
    lines = [[str(t["offset"]), t["reason"], t["source"], t["message"]] for t in told]
    summary = ", ".join(f"{n:,} {why}" for why, n in counts.most_common()) or "none"
    plain = "\n".join(part for part in (options.table(lines), f"dead letters in the topic: {summary}") if part)
    options.show({"counts": dict(counts), "dead_letters": told}, json, plain)


@app.command()
def show(
    offset: Offset, kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """One of them whole. Example: nextclick dead-letters show 17"""
    settings = options.settings_of(kafka, None, None, config, assigned)
    from deploy import dead_letters

    found = [one.told() for one in dead_letters.read(settings) if one.offset == offset]
    if not found:
        raise options.NothingThere(
            f"there is no dead letter at offset {offset}: `nextclick dead-letters list` has them"
        )
    lines = [[name, str(value)] for name, value in found[0].items() if name != "value"]
    options.show(found[0], json, options.table(lines) + f"\n\n{found[0]['value']}")


@app.command()
def replay(
    offsets: Annotated[list[int] | None, typer.Argument(help="Their offsets; or --reason, or --all.")] = None,
    reason: Reason = None,
    every: Annotated[bool, typer.Option("--all", help="All that the topic holds.")] = False,
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Send them once more to the event topic they came from, once what was wrong is mended.

    Example: nextclick dead-letters replay --reason future-ts
    """
    chosen = sum((bool(offsets), reason is not None, every))
    if chosen != 1:
        raise dials.SettingsError("nothing is sent by accident: name offsets, or --reason REASON, or --all")
    settings = options.settings_of(kafka, None, None, config, assigned)
    from deploy import dead_letters

    wanted = set(offsets or ())
    letters = [
        one for one in dead_letters.read(settings) if every or one.offset in wanted or (reason and one.reason == reason)
    ]
    if missing := wanted - {one.offset for one in letters}:
        raise options.NothingThere(f"there is no dead letter at offset {', '.join(map(str, sorted(missing)))}")
    events = settings["topics.events"]
    sent = dead_letters.send(settings, letters, events)
    left = len(letters) - sent
    plain = f"{sent:,} sent once more" + (f"; {left:,} came from other topics than {', '.join(events)}" if left else "")
    options.show({"sent": sent, "left": left}, json, plain)
