"""`nextclick watch`: predictions as they come, with titles and bars."""

from __future__ import annotations

import contextlib
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.cli import options

if TYPE_CHECKING:
    from streams.client import Prediction

SHOWN = 3  # items of a prediction
BAR = 10  # characters
WIDTH = 80
AGAIN_S = 10.0  # a lake is not read more often for titles
COLOURS = {"user": "\x1b[1m", "bar": "\x1b[36m", "dim": "\x1b[2m", "end": "\x1b[0m"}

Titles = Callable[[str], str | None]


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
    colours = COLOURS if sys.stdout.isatty() else dict.fromkeys(COLOURS, "")
    width = min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    titles = titles_of(settings.shared)
    shown = 0
    with client.PredictionConsumer(settings.kafka, name, from_start=from_start) as consumer, _stoppable():
        for prediction in consumer:
            if user is not None and prediction.user_id != user:
                continue
            if json:
                print(codec.encode_prediction(prediction).decode(), flush=True)
            else:
                print(told(prediction, titles, width=width, colours=colours), flush=True)
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


def told(prediction: Prediction, titles: Titles, *, width: int, colours: Mapping[str, str]) -> str:
    """A prediction as people read it: who, what they may do next, how probable each is."""
    head = f"{prediction.event_ts:%H:%M:%S} {prediction.user_id}"
    facts = [f"nothing more {prediction.none_probability:.0%}"]
    if prediction.purchase_probability is not None:
        facts.append(f"buys {prediction.purchase_probability:.0%}")
    facts.append(prediction.model_version if prediction.reason == "model" else f"{prediction.model_version} (fallback)")
    tail = " · ".join(facts)
    first = f"{head[: max(8, width - len(tail) - 2)]}  "
    lines = [f"{colours['user']}{first}{colours['end']}{colours['dim']}{tail}{colours['end']}"]
    rows = [(titles(i.item_id) or i.item_id, i.probability) for i in prediction.items[:SHOWN]]
    rows += [(f"in {c.category}", c.probability) for c in prediction.categories[:1]]
    room = width - BAR - 10
    for name, probability in rows or [("nothing is known to be near", 0.0)]:
        text = name if len(name) <= room else name[: room - 1] + "…"
        lines.append(f"  {colours['bar']}{bar(probability)}{colours['end']} {probability:>4.0%}  {text}")
    return "\n".join(lines)


def bar(share: float) -> str:
    """A share of one as a bar of `BAR` characters.

    >>> bar(0.25)
    '██▌       '
    """
    eighths = round(min(max(share, 0.0), 1.0) * BAR * 8)
    drawn = "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()
    return drawn.ljust(BAR)


def titles_of(shared: Path, now: Callable[[], float] = time.monotonic) -> Titles:
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
