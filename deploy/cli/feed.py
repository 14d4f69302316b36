"""`nextclick replay | simulate | backtest`: events from a file or from nowhere."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import typer

from deploy import settings as dials
from deploy.cli import check, options, processes
from deploy.demo.scenarios import SCENARIOS

Target = Literal["item", "category", "purchase"]


def replay(
    file: Annotated[Path, typer.Argument(help="One event a line, packed or not; other systems' events, and CSV, too.")],
    dialect: check.Dialect = None,
    speed: Annotated[str, typer.Option("--speed", help="Times as fast as it happened, or `unlimited`.")] = "unlimited",
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Play a file into the event topic.

    Example: nextclick replay events.jsonl.gz --speed 60 --kafka localhost:9092
    """
    from deploy import replay as playing

    settings = options.settings_of(kafka, None, None, config, assigned)
    topic, rapid, source = (
        settings["topics.events"][0],
        processes.speed_of(speed),
        playing.opened(file, check.named(dialect)),
    )
    producer = playing.producer(settings.kafka, topic)
    started = time.monotonic()
    sent = playing.play(source, producer, topic, speed=rapid)
    producer.close(timeout=30)
    seconds = time.monotonic() - started
    playing.checked(sent)
    result = msgspec.to_builtins(sent) | {"seconds": round(seconds, 2)}
    options.show(result, json, f"{sent.events:,} events in {sent.messages:,} messages sent in {seconds:.1f} s")


def simulate(
    rate: Annotated[float, typer.Option("--rate", min=0.01, help="Events a second.")] = 30.0,
    users: Annotated[int, typer.Option("--users", min=1, help="People.")] = 2_000,
    for_: Annotated[str | None, typer.Option("--for", help="How long; default: until ctrl-C.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="What the simulation hangs on.")] = 7,
    scenario: Annotated[str, typer.Option("--scenario", help=" | ".join(SCENARIOS))] = "usual",
    history: Annotated[str | None, typer.Option("--history", help="Time before the start, into the lake.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write a file for `backtest` and `replay` (.jsonl or "
                                             ".jsonl.gz) and send nothing; needs --for.")] = None,
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """A plausible shop's events into the event topic.

    Example: nextclick simulate --rate 50 --for 10m --kafka localhost:9092
    """
    from deploy import feeding
    from deploy import replay as playing

    settings = options.settings_of(kafka, shared, None, config, assigned)
    for_ms = options.milliseconds(for_, "--for")
    processes.check_scenario(scenario)
    shop = feeding.Source(simulate=True, rate=rate, users=users, seed=seed, scenario=scenario,
                          history_ms=options.milliseconds(history, "--history") or 0)  # fmt: skip
    if out is not None:
        if for_ms is None:
            raise dials.SettingsError("--out needs --for: how much of the shop's time the file is to hold")
        count = feeding.write_file(shop, out, for_ms)
        options.show({"file": str(out), "events": count}, json, f"{count:,} events in {out}")
        return
    topic = settings["topics.events"][0]
    producer = playing.producer(settings.kafka, topic)
    past = feeding.write_history(settings, shop, int(time.time() * 1000)) if shop.history_ms else 0
    end = None if for_ms is None else time.monotonic() + for_ms / 1000
    source, speed = feeding.opened(shop)
    sent = playing.Sent()
    with contextlib.suppress(KeyboardInterrupt):
        playing.play(
            source, producer, topic, speed=speed, sent=sent,
            stopped=lambda: end is not None and time.monotonic() >= end,
        )  # fmt: skip
    producer.close(timeout=30)
    playing.checked(sent)
    result = msgspec.to_builtins(sent) | {"history": past}
    options.show(result, json, f"{sent.events:,} events in {sent.messages:,} messages sent, {past:,} of history")


def backtest(
    file: Annotated[Path, typer.Argument(help="A .jsonl or .jsonl.gz file of one event a line.")],
    cadence: Annotated[str, typer.Option("--cadence", help="One or several, like 7d,never; event time.")] = "7d,never",
    target: Annotated[Target, typer.Option("--target", help="What the figures and the advice are about.")] = "item",
    beside: Annotated[
        str, typer.Option("--baselines", help="Names with commas, `cheap` (nothing to train), `all` or `none`.")
    ] = "cheap",
    budget: Annotated[str, typer.Option("--budget", help="CPU time of one training of a baseline.")] = "60s",
    items: Annotated[Path | None, typer.Option("--items", help="The catalogue: JSON lines or CSV, as `send --items` "
                                               "takes it; `ts` tells since when.")] = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Draw it into this file (.png, .svg, .pdf).")] = None,
    config: options.Config = None, assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """The same predictor and the same retrains on the event clock, beside baselines, and what each cadence gains.

    Example: nextclick backtest events.jsonl.gz --cadence 6h,1d,7d,never --plot cadence.png
    """
    from deploy import plots, stocking, tables
    from deploy import replay as playing

    settings = options.settings_of(None, None, None, config, assigned)
    playing.opened(file)
    if plot is not None:
        plots.ready(plot)
    from deploy.backtest import Plan, run
    from trainer import baselines

    stock = stocking.read(items) if items is not None else []
    every = [None if c == "never" else options.milliseconds(c, "--cadence") for c in cadence.split(",")]
    every_one = tuple(name for name in baselines.ARMS if name != "textbook" or settings.encoder() is not None)
    names = {"cheap": baselines.CHEAP, "all": every_one, "none": ()}.get(beside, tuple(beside.split(",")))
    budget_s = (options.milliseconds(budget, "--budget") or 0) / 1000
    plan = Plan(cadences_ms=every, target=target, baselines=names, budget_s=budget_s, items=stock)
    result = run(settings, file, plan)
    if plot is not None:
        plots.draw(result, plot)
        result["plot"] = str(plot)
    options.show(result, json, tables.told(result))
