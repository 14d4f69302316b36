"""`nextclick bench`: what this machine and this broker make of it."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from deploy import settings as dials
from deploy.cli import options

app = typer.Typer(no_args_is_help=True, help="Measure it here.")


@app.callback()
def _group() -> None:
    """Measure it here."""


@app.command()
def latency(
    rate: Annotated[list[int] | None, typer.Option("--rate", min=1, help="Events a second; may be repeated. "
                    "Default: 200, 1000 and 3000.")] = None,
    for_: Annotated[str, typer.Option("--for", help="How long one turn offers its rate.")] = "10s",
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Turns of worker and echo at each rate.")] = 3,
    model: Annotated[str | None, typer.Option("--model", help="A version of the shared folder to answer with; "
                     "default: the memory alone.")] = None,
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Time from an event to its prediction, p50 and p99, beside a plain aiokafka echo of the same record sizes.

    Open loop: events have their times in advance, and latency counts from those. Without --kafka on an embedded broker.
    Topics and folders are made for it and removed; the worker joins the consumer group `nextclick`, so on a broker that
    serves other workers their partitions are assigned anew.

    Example: nextclick bench latency --rate 200 --for 5s --kafka localhost:9092
    """
    settings = options.settings_of(kafka, shared, None, config, assigned)
    seconds = (options.milliseconds(for_, "--for") or 0) / 1000
    if seconds <= 0:
        raise dials.SettingsError(f"--for {for_!r} cannot be used: write a duration above zero, like 10s")
    embedded = settings.source("kafka") == "default"
    if not embedded:
        from streams import topics

        topics.require_listener(settings.kafka)
    from deploy import bench, timings

    plan = timings.Plan(rates=tuple(rate or timings.Plan().rates), seconds=seconds, rounds=rounds, model=model)
    told = bench.run(settings, plan, lambda text: print(text, file=sys.stderr, flush=True), embedded=embedded)
    options.show(told, json, "\n".join(timings.table(told)))
