"""`nextclick config`: what every setting stands at, and who said so."""

from __future__ import annotations

import os

import msgspec
import typer

from deploy import settings as dials
from deploy.cli import options

app = typer.Typer(no_args_is_help=True, help="Settings and where they come from.")


@app.callback()
def _group() -> None:
    """Settings and where they come from."""


@app.command()
def show(
    kafka: options.Kafka = None, shared: options.Shared = None, worker: options.Worker = None,
    config: options.Config = None, assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Every setting with its value and its source; live ones are asked of the control log where --kafka is given."""
    settings = options.settings_of(kafka, shared, worker, config, assigned)
    if settings.source("kafka") != "default":
        from deploy.cli import log

        said = log.state(settings).dials
        layers = {d.name: settings.text(d.name) for d in dials.DIALS if settings.source(d.name) == "option"}
        live = dials.Settings.load(layers, os.environ, config, said)
        values = {n: v if v.source == "control" else settings.values[n] for n, v in live.values.items()}
        settings = msgspec.structs.replace(settings, values=values)
    rows = settings.table()
    plain = [["SETTING", "VALUE", "SOURCE", "CLOCK", "", ""]]
    for row in rows:
        source = f"{row['source']} ({row['by']})" if row["by"] else str(row["source"])
        plain.append([row["name"], row["value"], source, row["clock"], "live" if row["live"] else "", row["help"]])
    options.show(rows, json, options.table(plain))
