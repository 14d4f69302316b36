"""`nextclick up | broker | worker | trainer`: what runs until it is stopped."""

from __future__ import annotations

import importlib
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from deploy import settings as dials
from deploy.cli import options
from deploy.demo.scenarios import SCENARIOS

DEMO = {
    "cadence": "30s", "horizon.next": "60s", "horizon.purchase": "3m", "session.lateness": "5s", "window": "20000",
    "epochs": "2", "n_min": "200", "tune.budget": "25s", "tune.every": "60s",
}  # fmt: skip


def up(
    kafka: options.Kafka = None, shared: options.Shared = None, worker: options.Worker = None,
    config: options.Config = None, assigned: options.Set = None,
    replay: Annotated[Path | None, typer.Option("--replay", help="A .jsonl or .jsonl.gz file to play.")] = None,
    speed: Annotated[str, typer.Option("--speed", help="Times as fast as it happened, or `unlimited`.")] = "1",
    simulate: Annotated[bool, typer.Option("--simulate", help="A simulated shop as input.")] = False,
    rate: Annotated[float, typer.Option("--rate", min=0.01, help="Simulated events a second.")] = 30.0,
    users: Annotated[int, typer.Option("--users", min=1, help="Simulated people.")] = 2_000,
    seed: Annotated[int, typer.Option("--seed", help="What the simulation hangs on.")] = 7,
    scenario: Annotated[str, typer.Option("--scenario", help=" | ".join(SCENARIOS))] = "usual",
    history: Annotated[str | None, typer.Option("--history", help="Simulated time before the start.")] = None,
    for_: Annotated[str | None, typer.Option("--for", help="Stop this long after it was ready.")] = None,
    demo: Annotated[bool, typer.Option("--demo", help="The simulated shop on a quick clock.")] = False,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Broker (unless --kafka says which), worker, trainer and input together; ctrl-C stops all of it.

    Example: nextclick up --simulate --for 5m
    """
    preset = DEMO if demo else None
    settings = options.settings_of(kafka, shared, worker, config, assigned, preset)
    if demo:
        simulate, history = True, history or "2h"
        for_ = for_ or (None if sys.stdout.isatty() else "3m")
    if replay is not None and simulate:
        raise dials.SettingsError("--replay and --simulate are two inputs: choose one")
    check_scenario(scenario)
    rapid = speed_of(speed)
    if replay is not None and not replay.is_file():
        raise dials.SettingsError(f"--replay {replay} is no file: give a .jsonl or .jsonl.gz file of one event a line")
    from deploy import feeding
    from deploy import replay as playing
    from deploy import up as running

    if replay is not None:
        playing.opened(replay)
    embedded = settings.source("kafka") == "default"
    if embedded:  # a log that ends with the command gets a folder of its own
        folder = running.fresh_folder(settings.shared)
        settings = settings.changed(shared=str(folder / "shared"), store__folder=str(folder / "store"))
    source = feeding.Source(
        replay=replay, speed=rapid, simulate=simulate, rate=rate, users=users, seed=seed, scenario=scenario,
        history_ms=options.milliseconds(history, "--history") or 0,
    )  # fmt: skip
    plan = running.Plan(source=source, for_ms=options.milliseconds(for_, "--for"), json=json)
    result = running.run(settings, plan, embedded=embedded)
    if json:
        options.show(result, True, "")


def check_scenario(name: str) -> None:
    """A scenario that is not known is answered by those that are."""
    if name not in SCENARIOS:
        known = "; ".join(f"{known}: {one.help}" for known, one in SCENARIOS.items())
        raise dials.SettingsError(f"--scenario {name!r} is not known: write one of {known}")


def speed_of(text: str) -> float | None:
    """A speed factor; None for as fast as possible."""
    if text in ("unlimited", "max"):
        return None
    try:
        speed = float(text)
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise dials.SettingsError(f"--speed {text!r} cannot be used: write a number above 0, like 60, or `unlimited`")
    return speed


def broker(
    host: Annotated[str, typer.Option("--host", help="Where to listen.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65_535, help="0 takes a free one.")] = 9092,
) -> None:
    """The embedded broker, in memory, for trying things out.

    Example: nextclick broker --port 9092
    """
    from deploy import broker as embedded

    over = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: over.set())
    with embedded.embedded(host, port) as running:
        print(f"broker on {running.address}, in memory: everything in it ends with this command", flush=True)
        while running.running and not over.wait(0.2):
            pass
        if not over.is_set():
            raise embedded.BrokerError(f"the broker on {running.address} ended: start it again")


def worker(
    kafka: options.Kafka = None, shared: options.Shared = None, name: options.Worker = None,
    config: options.Config = None, assigned: options.Set = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Read and score; publish and commit nothing.")] = False,
    for_: Annotated[str | None, typer.Option("--for", help="With --dry-run: stop so long after it began.")] = None,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: print what came of it as JSON.")] = False,
) -> None:  # fmt: skip
    """Read events, predict, keep the lake; as many as there are partitions.

    With --dry-run nothing is published, committed or written, no group is joined, and what would have been published is
    told: where the lake ends it begins, and without --for it goes on until ctrl-C. It serves no /metrics: --json has
    the figures.

    Example: nextclick worker --kafka localhost:9092 --shared /srv/nextclick
    """
    settings = options.settings_of(kafka, shared, name, config, assigned)
    if dry_run:
        _look(settings, options.milliseconds(for_, "--for"), json)
    elif for_ is not None or json:
        raise dials.SettingsError("--for and --json are for --dry-run: a worker runs until it is stopped")
    else:
        _become("deploy.worker", settings)


def _look(settings: dials.Settings, for_ms: int | None, json: bool) -> None:
    from streams import topics

    topics.log_ids(settings.kafka, settings["topics.events"])  # said at once, before what is heavy is imported
    from deploy import dry_run

    over = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: over.set())
    looked = dry_run.run(
        settings, for_ms=for_ms, stopped=over.is_set,
        tell=lambda told: None if json else print(dry_run.line(told), flush=True),
    )  # fmt: skip
    options.show(msgspec.to_builtins(looked), json, dry_run.plain(looked))


def trainer(
    kafka: options.Kafka = None, shared: options.Shared = None, name: options.Worker = None,
    config: options.Config = None, assigned: options.Set = None,
) -> None:  # fmt: skip
    """Retrain every cadence; one leads, others stand by.

    Example: nextclick trainer --kafka localhost:9092 --set cadence=30s
    """
    _become("deploy.trainer", options.settings_of(kafka, shared, name, config, assigned))


def _become(process: str, settings: dials.Settings) -> None:
    from streams import topics

    topics.require_listener(settings.kafka)  # said at once, before what is heavy is imported
    importlib.import_module(process).main(settings)
