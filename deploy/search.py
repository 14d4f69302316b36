"""Settings tried on a file of old events: each is trained on what was known and judged on what came next."""

from __future__ import annotations

import math
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from deploy import backtest
from deploy.settings import Settings
from featurestore import lake
from featurestore.events import Row
from trainer import extras, network, registry, retrain, texts

WINDOWS = 3  # of the file's second half, each judged before it is trained on


class NothingToJudge(LookupError):
    """No trial could be judged: the file holds too few labels. Give more events, or lower n_min."""

    def __str__(self) -> str:
        return str(self.__doc__)


def run(settings: Settings, file: Path, budget_ms: int, storage: Path) -> dict[str, Any]:
    """Try settings until the time is over; what was tried lies in `storage`, where the next call goes on.

    The first trial is the settings as they are. A trial's score is the mean log loss of its windows.
    """
    extras.need("optuna", asked="the search", extra="experiments")
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    until, rows = time.monotonic() + budget_ms / 1000, backtest.read(settings, file)
    storage.parent.mkdir(parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=f"{file.name}, encoder {settings.text('encoder')}, tune {settings['tune']}",
        storage=JournalStorage(JournalFileBackend(str(storage))), load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=7 + _tried(storage)),
    )  # fmt: skip
    made = 0
    if not study.trials:
        study.enqueue_trial(_as_they_are(settings))

    def trial(asked: Any) -> float:
        said = _suggested(asked, settings)
        loss, cpu = scored(settings.changed(**{k.replace(".", "__"): v for k, v in said.items()}), rows)
        asked.set_user_attr("cpu_seconds", cpu)
        asked.set_user_attr("settings", said)
        _progress(made, loss, budget_ms / 1000 - (until - time.monotonic()), budget_ms / 1000)
        return loss

    while time.monotonic() < until or not made:
        study.optimize(trial, n_trials=1)
        made += 1
    if sys.stderr.isatty():
        sys.stderr.write("\n")
    done = [t for t in study.trials if t.value is not None and math.isfinite(t.value)]
    if not done:
        raise NothingToJudge
    best = min(done, key=lambda t: float(t.value))
    return {
        "trials": len(study.trials), "new": made, "best": best.user_attrs["settings"],
        "log_loss": round(best.value, 4), "as_they_are": round(done[0].value, 4), "storage": str(storage),
        "cpu_seconds": best.user_attrs["cpu_seconds"],
    }  # fmt: skip


def scored(settings: Settings, rows: list[Row]) -> tuple[float, float]:
    """The mean log loss on each window before it was trained on, and the CPU seconds that it took."""
    cpu, losses = time.process_time(), []
    edges = np.linspace(len(rows) // 2, len(rows), WINDOWS + 1).astype(int)
    with tempfile.TemporaryDirectory() as folder:
        the_lake, out = lake.Lake(Path(folder), "search"), registry.Registry(Path(folder))
        words = texts.Texts(settings.encoder(), Path(folder), "search")
        champion, since = None, dict[lake.PartitionKey, int]()
        for begin, end in zip([0, *edges], edges, strict=False):
            the_lake.write_rows(backtest.KEY, rows[begin].origin.offset, rows[begin:end])
            policy = msgspec.structs.replace(settings.window_policy(), since=since)
            kind = "tune" if champion is not None and settings["tune"] not in ("off", "frozen") else "refresh"
            recipe = retrain.Recipe(
                kind=kind if words.encoder is not None else "refresh",  # type: ignore[arg-type]
                network=network.NetworkSettings(**settings.network()), tune=settings.tuning(),
            )  # fmt: skip
            verdict = retrain.run(the_lake.cover(), champion, recipe, policy, 0, texts=words, out=out)
            if champion is not None and "candidate" in verdict.metrics:
                losses.append(float(verdict.metrics["candidate"]["log_loss"].mean))
            if verdict.version is not None:
                champion = out.path(verdict.version)
                since = {backtest.KEY: next(iter(verdict.data_offsets.values()))}
    return (float(np.mean(losses)) if losses else math.inf), round(time.process_time() - cpu, 1)


def fragment(found: dict[str, Any]) -> str:
    """A settings file's lines, for `--config`."""
    lines = [f"# {found['log_loss']} nats after {found['trials']} trials; as the settings were: {found['as_they_are']}"]
    return "\n".join([*lines, *(f'"{name}" = "{value}"' for name, value in sorted(found["best"].items()))]) + "\n"


def _suggested(asked: Any, settings: Settings) -> dict[str, str]:
    said: dict[str, Any] = {
        "epochs": asked.suggest_int("epochs", 1, 4),
        "network.learning_rate": asked.suggest_float("network.learning_rate", 1e-3, 1e-2, log=True),
        "network.dropout": asked.suggest_float("network.dropout", 0.1, 0.5),
        "network.replay": asked.suggest_float("network.replay", 0.0, 3.0),
    }
    if settings["tune"] not in ("off", "frozen") and settings.encoder() is not None:
        said |= {
            "tune.learning_rate": asked.suggest_float("tune.learning_rate", 1e-5, 3e-3, log=True),
            "tune.temperature": asked.suggest_float("tune.temperature", 0.02, 0.2, log=True),
            "tune.batch": asked.suggest_categorical("tune.batch", [16, 32, 64]),
        }
    return {name: f"{value:.3g}" if isinstance(value, float) else str(value) for name, value in said.items()}


def _as_they_are(settings: Settings) -> dict[str, Any]:
    names = ("epochs", "network.learning_rate", "network.dropout", "network.replay")
    return {name: settings[name] for name in names}


def _tried(storage: Path) -> int:
    """A number that differs each time the search goes on, so that it does not draw the same again."""
    return storage.stat().st_size % 10_000 if storage.is_file() else 0


def _progress(done: int, loss: float, spent_s: float, budget_s: float) -> None:
    """A line that grows on a terminal's stderr, nothing elsewhere."""
    if sys.stderr.isatty():
        share = min(1.0, spent_s / max(budget_s, 1e-9))
        sys.stderr.write(f"\r[{'#' * int(20 * share):<20}] {share:4.0%}, {done + 1} trials, the last {loss:.3f} nats ")
