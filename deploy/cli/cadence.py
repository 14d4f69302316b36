"""`nextclick cadence`: when retrains happen; every change is an entry of the control log."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer

from deploy import settings as dials
from deploy.cli import options

app = typer.Typer(no_args_is_help=True, help="The retrain cadence: show, set, pause, resume, now, reset.")


@app.command()
def show(
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """The live settings, a pause, the last verdict."""
    from deploy.cli import log

    settings = options.settings_of(kafka, None, None, config, assigned)
    state = log.state(settings)
    live = {d.name: {"value": settings.text(d.name), "source": settings.source(d.name)} for d in dials.DIALS if d.live}
    live |= {n: {**v, "source": "control"} for n, v in state.dials.items()}
    paused = state.pause if state.pause and state.pause.until_ms > time.time() * 1000 else None
    result = {
        "live": live, "paused_until_ms": paused.until_ms if paused else None,
        "paused_by": paused.by if paused else None,
        "last_verdict": state.verdicts[-1] if state.verdicts else None,
    }  # fmt: skip
    lines = [[n, str(v["value"]), str(v["source"]) + (f" ({v['by']})" if v.get("by") else "")] for n, v in live.items()]
    if paused:
        lines.append(["paused", dials.written(paused.until_ms - int(time.time() * 1000)) + " more", f"by {paused.by}"])
    options.show(result, json, options.table(lines))


@app.command("set")
def set_(
    assignments: Annotated[list[str], typer.Argument(help="cadence=30s, window=50000, tune=off")],
    kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Change live settings for every process, now."""
    said = dials.pairs([a if "=" in a else f"cadence={a}" for a in assignments])
    for name, text in said.items():
        if not dials.BY_NAME[name].live:
            live = ", ".join(d.name for d in dials.DIALS if d.live)
            raise dials.SettingsError(
                f"{name} = {text!r} cannot change while it runs: live are {live}; restart with --set"
            )
        dials.parsed(dials.BY_NAME[name], text, "option")
    _say(options.settings_of(kafka, None, None, config), "cadence.set", dict(said), json)


@app.command()
def pause(
    for_: Annotated[str, typer.Option("--for", help="How long: a pause always has an end.")],
    kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False,
) -> None:  # fmt: skip
    """No retrains for a while."""
    until_ms = int(time.time() * 1000) + (options.milliseconds(for_, "--for") or 0)
    _say(options.settings_of(kafka, None, None, config), "pause", {"until_ms": until_ms}, json)


@app.command()
def resume(kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False) -> None:
    """End a pause."""
    _say(options.settings_of(kafka, None, None, config), "resume", {}, json)


@app.command()
def now(kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False) -> None:
    """Retrain at once."""
    _say(options.settings_of(kafka, None, None, config), "retrain.now", {}, json)


@app.command()
def reset(kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False) -> None:
    """Back to what options, environment and file say."""
    _say(options.settings_of(kafka, None, None, config), "cadence.reset", {}, json)


def _say(settings: dials.Settings, kind: str, data: dict[str, Any], json: bool) -> None:
    from deploy.cli import log

    entry = log.append(settings, kind, data)
    told = ", ".join(f"{k}={v}" for k, v in data.items())
    options.show(entry, json, f"{kind} {told}".strip() + f" written as {entry['id']}")
