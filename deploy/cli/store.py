"""`nextclick store check`: whether store, lake and Kafka agree."""

from __future__ import annotations

import sys
from typing import Any

import msgspec
import typer

from deploy.cli import options

app = typer.Typer(no_args_is_help=True, help="The workers' store files and the lake.")


@app.callback()
def _group() -> None:
    """The workers' store files and the lake."""


@app.command()
def check(
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Read store, lake and (where a broker answers) Kafka, and say where they disagree; 1 is the code of a fault.

    A store file that a worker runs on is left alone and named. The lake may be checked while everything runs.

    Example: nextclick store check --shared ./nextclick-data
    """
    settings = options.settings_of(kafka, shared, None, config, assigned)
    from deploy import verify
    from streams import topics

    without = None
    try:
        topics.require_listener(settings.kafka)
        topics.log_ids(settings.kafka, settings["topics.events"])
    except (topics.BrokerUnreachable, topics.TopicUnusable) as error:
        if settings.source("kafka") != "default":  # asked for
            raise
        without = f"Kafka ({error})"
    forgotten = frozenset[str]()
    if without is None:
        forgotten = _forgotten(settings)
    report = verify.check(settings, with_kafka=without is None, forgotten=forgotten)
    if without:
        report.skipped.append(without)
    if not report.partitions and not report.stores and not report.findings:
        raise options.NothingThere(
            f"neither a lake in {settings.shared} nor a store in {settings['store.folder']}: set --shared or "
            "--set store.folder=DIR"
        )
    options.show(msgspec.to_builtins(report) | {"faults": report.faults}, json, _plain(report))
    sys.stdout.flush()
    if report.faults:
        raise typer.Exit(1)


def _forgotten(settings: Any) -> frozenset[str]:
    """Whose rows may be missing; nobody where there is no control log."""
    from deploy.cli import log
    from streams import topics

    try:
        return frozenset(log.state(settings).forgotten)
    except topics.TopicUnusable:
        return frozenset()


def _plain(report: Any) -> str:
    lines = [
        f"{p['topic']} partition {p['partition']}: {p['segments']} segments, offsets {p['first']:,} to "
        f"{p['next'] - 1:,}, {p['rows']:,} rows"
        + "".join(f", {p[k]:,} {k}" for k in ("duplicates", "rejected", "erased") if p[k])
        + (f"; {p['compared_with_kafka']:,} events compared with Kafka" if p["compared_with_kafka"] else "")
        for p in report.partitions
        if p["segments"]
    ]
    lines += [f"store {name}" for name in report.stores]
    lines += [f"not checked: {what}" for what in report.skipped]
    lines += [f"{'FAULT' if f.fault else 'notice'} {f.kind}: {f}" for f in report.findings]
    rows, faults = sum(p["rows"] for p in report.partitions), report.faults
    lines.append(f"{faults} fault{'s' * (faults != 1)}" if faults else f"sound: {rows:,} rows in the lake")
    return "\n".join(lines)
