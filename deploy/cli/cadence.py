"""`nextclick cadence`: when retrains happen; every change is an entry of the control log."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from deploy import settings as dials
from deploy.cli import options
from deploy.verdicts import outcome

SHOWN = 10  # verdicts

app = typer.Typer(no_args_is_help=True, help="The retrain cadence: show, set, pause, resume, now, reset.")


@app.command()
def show(
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """The live settings, a pause, the last verdicts with their reasons.

    Example: nextclick cadence show --json
    """
    from deploy.cli import log

    settings = options.settings_of(kafka, None, None, config, assigned)
    state = log.state(settings)
    settings, errors = settings.with_control(state.dials)
    for error in errors:
        print(f"nextclick: {error}; it is passed over", file=sys.stderr)
    live = {name: _standing(settings, state.verdicts, name) for name in _live()}
    verdicts = list(state.verdicts[-SHOWN:])
    now_ms = int(time.time() * 1000)
    paused = state.pause if state.pause and state.pause.until_ms > now_ms else None
    result = {
        "live": {n: {"value": v.text, "source": v.source, "by": v.by, "at_ms": v.at_ms} for n, v in live.items()},
        "paused_until_ms": paused.until_ms if paused else None,
        "paused_by": paused.by if paused else None,
        "running": {"since_ms": begun.at_ms, "by": begun.by} | begun.data if (begun := state.running) else None,
        "champion": state.champion,
        "pinned_by": state.pinned_by,
        "verdicts": verdicts,
        "worth": (worth := _worth(list(state.verdicts), dials.duration(live["cadence"].text))),
    }  # fmt: skip
    lines = [[name, value.text, value.told] for name, value in live.items()]
    if paused:
        lines.append(["paused", dials.written((paused.until_ms - now_ms) // 1000 * 1000) + " more", f"by {paused.by}"])
    if begun:
        lines.append([str(begun.data.get("kind")), f"running since {dials.instant(begun.at_ms)}", f"by {begun.by}"])
    lines.append(["champion", state.champion or "none yet", f"pinned by {state.pinned_by}" if state.pinned else ""])
    plain = options.table(lines)
    if verdicts:
        plain += "\n\n" + options.table([verdict(v) for v in reversed(verdicts)])
    options.show(result, json, plain + "\n\n" + told_worth(worth))


def _worth(verdicts: list[dict[str, Any]], asked_ms: int) -> dict[str, Any]:
    """What the cadence costs and gains: the staleness curve, CPU and time a retrain, the cadence that is kept."""
    import msgspec

    from trainer import staleness

    done = [v for v in verdicts if v.get("metrics")]
    curve = staleness.pooled(done)
    begun = [int(v["at_ms"]) - int(v["wall_ms"]) for v in done if v.get("wall_ms")]
    gaps = sorted(b - a for a, b in itertools.pairwise(begun))
    busy = sorted(int(v["wall_ms"]) for v in done if v.get("wall_ms"))
    sustained = gaps[len(gaps) // 2] if busy and busy[len(busy) // 2] > asked_ms and gaps else None
    cpu = [float(v.get("cpu_seconds", 0)) for v in done]
    back = [float((v.get("staleness") or {}).get("cpu_seconds", 0)) for v in done]
    return {
        "asked_ms": asked_ms,
        "sustained_ms": sustained,  # null: the asked one is kept, as far as is known
        "retrains": len(done),
        "cpu_seconds": sum(cpu) / len(cpu) if cpu else None,
        "cpu_seconds_looking_back": sum(back) / len(back) if back else None,
        "curve": msgspec.to_builtins(curve),
        "curve_standing_still": msgspec.to_builtins(staleness.pooled(done, "shipped")),
        "advice": staleness.advice(curve, asked_ms, sustained),
    }


def told_worth(worth: dict[str, Any]) -> str:
    """What a cadence is worth, in lines: log loss against the newest version by age, above 0 is worse."""
    rows = [["model's age", "trained part that old", "standing still", "cases"]]
    still = {p["rung_ms"]: p for p in worth["curve_standing_still"]}

    def nats(p: dict[str, Any] | None) -> str:
        return f"{p['mean']:+.3f} [{p['low']:+.3f}, {p['high']:+.3f}]" if p else ""

    for p in worth["curve"]:
        rows.append([f"~{p['rung_ms'] // 60_000} min", nats(p), nats(still.get(p["rung_ms"])),
                     f"{p['n']:,} in {p['retrains']} retrains"])  # fmt: skip
    lines = ["log loss against the newest version, nats, 95 % (above 0: worse):", options.table(rows)]
    if worth["cpu_seconds"] is not None:
        lines.append(
            f"{worth['cpu_seconds']:.1f} CPU s a retrain over {worth['retrains']}, "
            f"{worth['cpu_seconds_looking_back']:.1f} of them for this curve"
        )
    if worth["sustained_ms"] is not None:
        lines.append(f"asked for every {worth['asked_ms'] / 1000:.0f} s, sustained: every "
                     f"{worth['sustained_ms'] / 1000:.0f} s")  # fmt: skip
    return "\n".join([*(lines if worth["curve"] else lines[2:]), worth["advice"]])


def _live() -> list[str]:
    """The settings that the control log can hold."""
    from streams import control

    return [d.name for d in dials.DIALS if d.live and d.name in control.LIVE]


def _standing(settings: dials.Settings, verdicts: Sequence[dict[str, Any]], name: str) -> dials.Value:
    """What a live setting stands at: the control log's word, else what the trainer said that it was started with."""
    value = settings.values[name]
    told = next((v["dials"][name] for v in reversed(verdicts) if name in v.get("dials", {})), None)
    if value.source == "control" or told is None:
        return value
    by = "the trainer's"
    return dials.Value(text=told["value"], value=None, source=told["source"], by=by)


def verdict(said: dict[str, Any]) -> list[str]:
    """A verdict as one line of a table: when, what, whether it passed, the version, why."""
    return [
        dials.instant(said["at_ms"]), said["kind"], outcome(said),
        said.get("version") or "", f"n={said.get('n', 0)}", said["reason"],
    ]  # fmt: skip


@app.command("set")
def set_(
    assignments: Annotated[
        list[str] | None, typer.Argument(help="A cadence like 30s, or NAME=VALUE of any live setting.")
    ] = None,
    window: Annotated[str | None, typer.Option("--window", help="The newest cuts trained on, like 50000.")] = None,
    tune: Annotated[str | None, typer.Option("--tune", help=" | ".join(dials.TUNE_MODES))] = None,
    kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Change live settings for every process, now: `set 30s --window 50000 --tune off`.

    Example: nextclick cadence set 30s --window 50000 --tune off
    """
    said = dials.pairs([a if "=" in a else f"cadence={a}" for a in assignments or []])
    said |= {name: text for name, text in (("window", window), ("tune", tune)) if text is not None}
    live = _live()
    if not said:
        raise dials.SettingsError(f"nothing to set: write a cadence like 30s, or NAME=VALUE of {', '.join(live)}")
    for name, text in said.items():
        if name not in live:
            raise dials.SettingsError(
                f"{name} = {text!r} cannot change while it runs: live are {', '.join(live)}; restart with --set"
            )
        dials.parsed(dials.BY_NAME[name], text, "option")
    told = ", ".join(f"{name} = {text}" for name, text in said.items())
    _say(options.settings_of(kafka, None, None, config), "cadence.set", dict(said), json,
         f"{told} from the trainer's next tick on; `nextclick cadence reset` undoes all that was set")  # fmt: skip


@app.command()
def pause(
    for_: Annotated[
        str | None, typer.Option("--for", help="How long, like 2h: a pause always has an end.", show_default=False)
    ] = None,
    kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False,
) -> None:  # fmt: skip
    """No retrains for a while; predictions go on.

    Example: nextclick cadence pause --for 2h
    """
    length_ms = options.milliseconds(for_, "--for")
    if not length_ms:
        raise dials.SettingsError("a pause always has an end: write one above zero, like --for 2h")
    until_ms = int(time.time() * 1000) + length_ms
    _say(options.settings_of(kafka, None, None, config), "pause", {"until_ms": until_ms}, json,
         f"no retrains until {dials.instant(until_ms)}; `nextclick cadence resume` ends it")  # fmt: skip


@app.command()
def resume(kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False) -> None:
    """End a pause.

    Example: nextclick cadence resume
    """
    _say(options.settings_of(kafka, None, None, config), "resume", {}, json, "retrains go on")


@app.command()
def now(kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False) -> None:
    """Retrain at once.

    Example: nextclick cadence now
    """
    _say(options.settings_of(kafka, None, None, config), "retrain.now", {}, json,
         "a retrain is asked for; `nextclick cadence show` tells what came of it")  # fmt: skip


@app.command()
def reset(kafka: options.Kafka = None, config: options.Config = None, json: options.Json = False) -> None:
    """Back to what options, environment and file say.

    Example: nextclick cadence reset
    """
    _say(options.settings_of(kafka, None, None, config), "cadence.reset", {}, json,
         "the trainer's own options, environment and file count again")  # fmt: skip


def _say(settings: dials.Settings, kind: str, data: dict[str, Any], json: bool, told: str) -> None:
    from deploy.cli import log

    entry = log.append(settings, kind, data)
    options.show(entry, json, f"{told} (entry {entry['id']})")
