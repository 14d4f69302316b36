"""`nextclick status` and `nextclick sql`: looking, never touching."""

from __future__ import annotations

import sys
import time
from typing import Annotated, Any

import typer

from deploy import settings as dials
from deploy.cli import options


def status(
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Workers, lag, champion, verdicts, the next retrain; 1 is the code where no worker is alive.

    Read from the topics, so it answers while every worker is down. Example: nextclick status --kafka HOST:PORT --json
    """
    from deploy import status as standing
    from deploy.cli import log
    from streams import topics

    settings = options.settings_of(kafka, None, None, config, assigned)
    topics.log_ids(settings.kafka, [settings["topics.state"]])  # one clear message where there is no broker or topic
    state = log.state(settings)
    settings, errors = settings.with_control(state.dials)
    for error in errors:
        print(f"nextclick: {error}; it is passed over", file=sys.stderr)
    told = standing.gather(standing.beats(settings), state, settings, int(time.time() * 1000))
    options.show(told, json, "\n".join(standing.plain(told)))
    sys.stdout.flush()
    if not any(worker["alive"] for worker in told["workers"]):
        raise typer.Exit(1)


def sql(
    statement: Annotated[str, typer.Argument(help="SELECT … FROM events | sessions | labels.")],
    limit: Annotated[int, typer.Option("--limit", min=1, help="Rows printed at most.")] = 100,
    shared: options.Shared = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Ask the lake: views events, sessions and labels (the next different item of each row); read only.

    Example: nextclick sql "SELECT type, count(*) FROM events GROUP BY type"
    """
    settings = options.settings_of(None, shared, None, config, assigned)
    from featurestore import lake, views

    if not (settings.shared / "events").is_dir():
        raise options.NothingThere(f"there is no lake in {settings.shared}: set --shared")
    horizon_ms = int(settings["horizon.next"])

    def ask(cover: Any) -> Any:
        return views.ask(cover, statement, limit=limit, horizon_ms=horizon_ms)

    try:
        names, rows = lake.Lake(settings.shared, "sql").read(ask)
    except views.BadStatement as error:
        raise dials.SettingsError(f"the statement cannot be answered: {error}") from error
    plain = options.table([names, *[["" if v is None else str(v) for v in row] for row in rows]])
    options.show([dict(zip(names, row, strict=True)) for row in rows], json, plain)
