"""`nextclick rekey`: a topic that is not keyed by its user, forwarded so that it is."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Annotated, Any

import msgspec
import typer

from deploy import settings as dials
from deploy.cli import options


def rekey(
    source: Annotated[str, typer.Argument(help="The topic whose messages have other keys, or none.")],
    for_: Annotated[str | None, typer.Option("--for", help="How long; default: until ctrl-C.")] = None,
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Forward a topic into the event topic, each message under its user's key; run several to share the partitions.

    A person's order is that in which their messages are read: across partitions of the source there is none.

    Example: nextclick rekey shop.clicks --kafka localhost:9092
    """
    settings = options.settings_of(kafka, None, None, config, assigned)
    from streams import rekey as forwarding
    from streams import topics

    target = settings["topics.events"][0]
    if source == target:
        raise dials.SettingsError(f"{source} is the event topic itself: name another with --set topics.events=NAME")
    for_ms = options.milliseconds(for_, "--for")
    topics.log_ids(settings.kafka, [source, target])
    over = threading.Event()
    if for_ms is not None:
        threading.Timer(for_ms / 1000, over.set).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    done = forwarding.forward(settings.kafka, source, target, keep=settings["personal.keep"], stopped=over.is_set,
                              tell=_progress)  # fmt: skip
    options.show(
        msgspec.to_builtins(done), json, f"{done.read:,} messages of {source} read, {done.sent:,} sent to {target}"
    )


def _progress(done: Any) -> None:
    if sys.stderr.isatty():
        print(f"\r{done.read:,} read, {done.sent:,} sent", end="", file=sys.stderr, flush=True)
