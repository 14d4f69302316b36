"""`nextclick models`: the versions, and which one answers; changes are entries of the control log."""

from __future__ import annotations

import json as json_
from typing import Annotated, Any

import typer

from deploy.cli import cadence, options
from deploy.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Model versions: list, show, promote, roll back, pin.")
SHOWN = 10  # rejected candidates
WAITS = "automatic promotion waits for `nextclick models unpin`"
Version = Annotated[str, typer.Argument(help="A version, as `nextclick models list` names it.")]


def _meta(settings: Settings, version: str) -> dict[str, Any]:
    file = settings.shared / "versions" / version / "meta.json"
    if "/" in version or version.startswith(".") or not file.is_file():
        there = ", ".join(_versions(settings)[-5:]) or "none yet"
        raise options.NothingThere(f"there is no version {version} in {settings.shared}: newest are {there}")
    return dict(json_.loads(file.read_text(encoding="utf-8")))


def _versions(settings: Settings) -> list[str]:
    return sorted(p.parent.name for p in (settings.shared / "versions").glob("v*/digest"))


@app.command("list")
def list_(
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """All versions with how each was judged, the champion marked; then what was rejected lately, and why.

    Example: nextclick models list --kafka localhost:9092
    """
    from deploy.cli import log

    settings = options.settings_of(kafka, shared, None, config, assigned)
    state = log.state(settings)
    judged = {v["version"]: v for v in state.verdicts if v.get("version")}
    rows: list[dict[str, Any]] = [
        {"version": v, "champion": v == state.champion, "pinned": v in state.pins, "announced": v in state.versions,
         "verdict": judged.get(v)}
        for v in _versions(settings)
    ]  # fmt: skip
    rejected = [v for v in state.verdicts if v.get("metrics") and not v["accepted"]][-SHOWN:]
    plain = [[("* " if r["champion"] else "  ") + r["version"], _standing(r), *_judged(r["verdict"])] for r in rows]
    told = options.table(plain) or f"no versions yet in {settings.shared}"
    if state.versions and not rows:
        told = f"the control log names {state.versions[-1]}, but no version lies in {settings.shared}: set --shared"
    if rejected:
        told += "\n\nrejected lately:\n" + options.table([cadence.verdict(v) for v in reversed(rejected)])
    options.show({"versions": rows, "pinned_by": state.pinned_by, "rejected": rejected}, json, told)


def _standing(row: dict[str, Any]) -> str:
    if row["pinned"]:
        return "pinned"
    return "" if row["announced"] else "never announced"


def _judged(verdict: dict[str, Any] | None) -> list[str]:
    return cadence.verdict(verdict)[:2] + cadence.verdict(verdict)[4:] if verdict else ["", "", "", ""]


@app.command()
def show(
    version: Version, kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """What a version says about itself, and with --kafka how it was judged and what it held off since.

    Example: nextclick models show v000004-3fa2c1
    """
    settings = options.settings_of(kafka, shared, None, config, assigned)
    meta = _meta(settings, version)
    file = settings.shared / "versions" / version / "README.md"
    told = file.read_text(encoding="utf-8") if file.is_file() else json_.dumps(meta, indent=2)
    result: dict[str, Any] = {"version": version, "meta": meta}
    if settings.source("kafka") != "default":
        from deploy.cli import log

        state = log.state(settings)
        of = [v for v in state.verdicts if v.get("version") == version]
        against = [v for v in state.verdicts if v.get("champion") == version and v.get("metrics") and not v["accepted"]]
        result |= {"verdict": of[-1] if of else None, "rejected_against_it": against}
        for title, verdicts in (("judged", of[-1:]), ("rejected against it", against[-SHOWN:])):
            if verdicts:
                told += f"\n{title}:\n" + options.table([cadence.verdict(v) for v in reversed(verdicts)]) + "\n"
    options.show(result, json, told.rstrip())


@app.command()
def diff(
    a: Version, b: Version, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Where two versions differ: how they were judged, on what data, what they remember, their settings.

    Example: nextclick models diff v000003-ab12cd v000004-3fa2c1
    """
    settings = options.settings_of(None, shared, None, config, assigned)
    sides = [_sides(settings, version) for version in (a, b)]
    names = sorted(sides[0].keys() | sides[1].keys(), key=lambda name: (name.split(".")[0] != "judged", name))
    differing = {name: [side.get(name) for side in sides] for name in names}
    differing = {name: pair for name, pair in differing.items() if pair[0] != pair[1]}
    same = any(side.get("data.champion") == other for side, other in zip(sides, (b, a), strict=True))
    told = (
        "one was judged against the other on the same cases: `nextclick models show` with --kafka has the paired bounds"
        if same
        else "each was judged on the newest cuts of its own time: intervals that overlap say nothing of which is better"
    )
    rows = [["", a, b], *([name, *(_briefly(value) for value in pair)] for name, pair in differing.items())]
    result = {"a": a, "b": b, "same_cases": same, "differs": {n: {"a": x, "b": y} for n, (x, y) in differing.items()}}
    options.show(result, json, options.table(rows) + f"\n{told}")


def _sides(settings: Settings, version: str) -> dict[str, Any]:
    """What one version says of itself, flat: `judged.log_loss`, `data.n_train`, `memory.items`, `network.epochs`."""
    meta, folder = _meta(settings, version), settings.shared / "versions" / version
    said = {f"judged.{name}": value for name, value in meta.get("metrics", {}).get("candidate", {}).items()}
    said |= {f"data.{name}": meta.get(name) for name in ("kind", "champion", "made_ms", "n", "n_train", "data_offsets")}
    said["memory.items"] = meta.get("items")
    said["memory.bytes"] = sum(file.stat().st_size for file in folder.glob("memory.*"))
    config = json_.loads((folder / "config.json").read_text(encoding="utf-8"))
    said |= {f"network.{name}": value for name, value in config.get("network", {}).items()}
    return said | {"encoder": config.get("encoder"), "words": len(config.get("words", ()))}


def _briefly(value: Any) -> str:
    """A value in a column: a mean with its interval, a count of partitions, else as it is.

    >>> _briefly({"n": 9, "mean": 0.5, "low": 0.4, "high": 0.6})
    '0.500 [0.400, 0.600] n=9'
    """
    if isinstance(value, dict) and value.get("mean") is not None and "low" in value:
        return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}] n={value['n']}"
    if isinstance(value, dict):
        inner = value.get("log_loss")
        return _briefly(inner) if inner else f"{sum(v for v in value.values() if isinstance(v, int)):,} in all"
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


@app.command()
def promote(
    version: Version, kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Make a version the champion by hand, and pin it.

    Example: nextclick models promote v000004-3fa2c1
    """
    from deploy.cli import log

    settings = options.settings_of(kafka, shared, None, config, assigned)
    _meta(settings, version)
    if version == log.state(settings).champion:
        raise options.NothingThere(f"{version} is the champion already; `nextclick models pin` keeps it there")
    _say(settings, "model.promote", {"version": version}, json, f"{version} is the champion and pinned; {WAITS}")


@app.command()
def rollback(
    kafka: options.Kafka = None, shared: options.Shared = None, config: options.Config = None,
    assigned: options.Set = None, json: options.Json = False,
) -> None:  # fmt: skip
    """Go back to the champion's predecessor, and pin it.

    Example: nextclick models rollback
    """
    from deploy.cli import log

    settings = options.settings_of(kafka, shared, None, config, assigned)
    state = log.state(settings)
    before = state.predecessor
    if before is None or before == state.champion:
        raise options.NothingThere("there is no version to roll back to: the champion has no predecessor")
    _meta(settings, before)
    _say(settings, "model.rollback", {"version": before}, json,
         f"back from {state.champion} to {before}, which is pinned; {WAITS}")  # fmt: skip


@app.command()
def pin(
    version: Annotated[str | None, typer.Argument(help="Default: the champion.")] = None, kafka: options.Kafka = None,
    shared: options.Shared = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Keep a version, and let no other be promoted by itself.

    Example: nextclick models pin
    """
    from deploy.cli import log

    settings = options.settings_of(kafka, shared, None, config, assigned)
    kept = version or log.state(settings).champion
    if kept is None:
        raise options.NothingThere("there is no champion to pin yet: `nextclick cadence show` tells why")
    _meta(settings, kept)
    _say(settings, "model.pin", {"version": kept}, json, f"{kept} is pinned; {WAITS}")


@app.command()
def unpin(
    kafka: options.Kafka = None, config: options.Config = None, assigned: options.Set = None,
    json: options.Json = False,
) -> None:  # fmt: skip
    """Let the gates promote again.

    Example: nextclick models unpin
    """
    settings = options.settings_of(kafka, None, None, config, assigned)
    _say(settings, "model.unpin", {}, json, "nothing is pinned; what passes the gate is promoted again")


def _say(settings: Settings, kind: str, data: dict[str, Any], json: bool, told: str) -> None:
    from deploy.cli import log

    entry = log.append(settings, kind, data)
    options.show(entry, json, f"{told} (entry {entry['id']})")
