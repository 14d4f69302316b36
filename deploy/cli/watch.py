"""`nextclick watch`: predictions as they come, with titles and bars."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from deploy import drawing
from deploy.cli import options

AGAIN_S = 10.0  # a lake is not read more often for titles


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
    titles = titles_of(settings.shared)
    shown = 0
    with client.PredictionConsumer(settings.kafka, name, from_start=from_start) as consumer, _stoppable():
        for prediction in consumer:
            if user is not None and prediction.user_id != user:
                continue
            if json:
                print(codec.encode_prediction(prediction).decode(), flush=True)
            else:
                print(drawing.prediction(prediction, titles, width=width, colours=colours), flush=True)
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


def titles_of(shared: Path, now: Callable[[], float] = time.monotonic) -> drawing.Titles:
    """What items are called, as the lake's newest rows have it; asked again, now and then, for an item new to it."""
    known: dict[str, str] = {}
    asked_s = -AGAIN_S

    def title(item_id: str) -> str | None:
        nonlocal asked_s
        if item_id not in known and now() - asked_s >= AGAIN_S:
            asked_s = now()
            known.update(_read(shared))
        return known.get(item_id)

    return title


def _read(shared: Path) -> dict[str, str]:
    """Every item's newest title; none where there is no lake, or no DuckDB to read it by."""
    if not (shared / "events").is_dir():
        return {}
    try:
        from featurestore import database, lake
    except ImportError:
        return {}

    def titles(cover: lake.Cover) -> dict[str, str]:
        relation = cover.relation(["item_id", "title", "ts_ms"], where="item_id IS NOT NULL AND title IS NOT NULL")
        with database.connect() as con:
            return dict(con.execute(f"SELECT item_id, arg_max(title, ts_ms) FROM ({relation}) GROUP BY 1").fetchall())

    return lake.Lake(shared, "watch").read(titles)
