"""`nextclick config`: what every setting stands at, and who said so."""

from __future__ import annotations

import sys

import typer

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
    """Every setting with its value and its source; live ones are asked of the control log where --kafka is given.

    Example: nextclick config show --config nextclick.toml
    """
    settings = options.settings_of(kafka, shared, worker, config, assigned)
    if settings.source("kafka") != "default":
        from deploy.cli import log

        settings, errors = settings.with_control(log.state(settings).dials)
        for error in errors:
            print(f"nextclick: {error}; it is passed over", file=sys.stderr)
    rows = settings.table()
    plain = [["SETTING", "VALUE", "SOURCE", "CLOCK", "", ""]]
    for row in rows:
        source = settings.values[row["name"]].told
        plain.append([row["name"], row["value"], source, row["clock"], "live" if row["live"] else "", row["help"]])
    options.show(rows, json, options.table(plain))
