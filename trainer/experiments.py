"""What retrains came to, for TensorBoard and MLflow; neither is imported unless it was asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from trainer.retrain import Verdict
    from trainer.tuning import Told

EXPERIMENT = "nextclick"


def numbers(verdict: Verdict) -> dict[str, float]:
    """Everything of a verdict that is a number, under names like `candidate/cold item/recall20`."""
    found = dict(_flat(msgspec.to_builtins(verdict.metrics)))
    found |= {f"bounds/{name}": value for name, value in _flat(msgspec.to_builtins(verdict.bounds))}
    found |= {"retrain/accepted": float(verdict.accepted), "retrain/cpu_seconds": verdict.cpu_seconds}
    return found | {"retrain/n": float(verdict.n), "retrain/n_train": float(verdict.n_train)}


def write(verdict: Verdict, tensorboard: str, mlflow: str) -> None:
    """One retrain: for TensorBoard a point in each curve, for MLflow a run; the step is the rows that were seen."""
    if not verdict.metrics:
        return
    step = sum(verdict.data_offsets.values())
    if tensorboard:
        with _events(f"{tensorboard}/{verdict.kind}") as writer:
            for name, value in numbers(verdict).items():
                writer.add_scalar(name, value, step)
            writer.add_text("verdict", f"{verdict.version or 'no version'}: {verdict.reason}", step)
    if mlflow:
        _export(verdict, mlflow, step)


def write_tuning(told: Told, digest: str, tensorboard: str) -> None:
    """The curves of one tuning, under a name of its own."""
    if not tensorboard:
        return
    with _events(f"{tensorboard}/encoder-{digest}") as writer:
        for step, loss in told.losses:
            writer.add_scalar("tuning/loss", loss, step)
        for step, loss in told.validation:
            writer.add_scalar("tuning/validation", loss, step)
        for number, loss in enumerate(told.masked):
            writer.add_scalar("tuning/masked", loss, number)
        writer.add_text("settings", f"`{msgspec.json.encode(told.settings).decode()}`")


@contextlib.contextmanager
def _events(folder: str) -> Iterator[Any]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(folder)
    try:
        yield writer
    finally:
        writer.close()


def _export(verdict: Verdict, uri: str, step: int) -> None:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=uri)
    known = client.get_experiment_by_name(EXPERIMENT)
    experiment = known.experiment_id if known is not None else client.create_experiment(EXPERIMENT)
    name = verdict.version or f"{verdict.kind} kept out"
    run = client.create_run(experiment, run_name=name, tags={"reason": verdict.reason, "kind": verdict.kind})
    for metric, value in numbers(verdict).items():
        client.log_metric(run.info.run_id, metric.replace("@", "at"), value, step=step)
    for key in ("kind", "champion", "version"):
        client.log_param(run.info.run_id, key, getattr(verdict, key))
    client.set_terminated(run.info.run_id)


def _flat(told: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """The means of intervals and the other numbers, each with its path."""
    if isinstance(told, dict) and {"n", "mean", "low", "high"} <= told.keys():
        if told["mean"] is not None:  # no path below the mean's: a store of files makes a folder of each
            yield from ((name, told["mean"]), (f"{name}_low", told["low"]), (f"{name}_high", told["high"]))
    elif isinstance(told, dict):
        for key, value in told.items():
            yield from _flat(value, f"{name}/{key}".strip("/"))
    elif isinstance(told, int | float):
        yield name, float(told)
