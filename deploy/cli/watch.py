"""`nextclick watch`: predictions as they come, with titles and bars."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Annotated

import typer

from deploy import drawing, titles
from deploy.cli import options


def watch(
    user: Annotated[str | None, typer.Option("--user", help="Only this user_id.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Stop after so many predictions.")] = None,
    from_start: Annotated[bool, typer.Option("--from-start", help="What the topic holds already, first.")] = False,
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:  # fmt: skip
    """Predictions as they come; titles where the shared folder knows them. Until ctrl-C, or --limit.

    Example: nextclick watch --user u-7 --limit 5
    """
    settings = options.settings_of(kafka, shared, None, config, assigned)
    from streams import client, codec, topics

    name = settings["topics.predictions"]
    topics.log_ids(settings.kafka, [name])
    colours = drawing.COLOURS if sys.stdout.isatty() else drawing.PLAIN
    width = min(drawing.WIDTH, shutil.get_terminal_size((drawing.WIDTH, 24)).columns)
    called = titles.of(settings.shared)
    shown = 0
    with client.PredictionConsumer(settings.kafka, name, from_start=from_start) as consumer, _stoppable():
        for prediction in consumer:
            if user is not None and prediction.user_id != user:
                continue
            if json:
                print(codec.encode_prediction(prediction).decode(), flush=True)
            else:
                print(drawing.prediction(prediction, called, width=width, colours=colours), flush=True)
            shown += 1
            if shown == limit:
                break


@contextlib.contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM ends it as ctrl-C does, and neither is an error: there is no other end."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            yield
    finally:
        signal.signal(signal.SIGTERM, old)
