"""What retrains came to, read back by the tools that it was written for."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import trainer
from deploy.settings import Settings
from trainer import experiments, extras, judge
from trainer.retrain import Verdict

VERDICT = Verdict(
    kind="refresh", accepted=True, reason="not worse", version="v000002-abcdef", champion="v000001-abcdef", n=700,
    metrics={"candidate": {"log_loss": judge.Bound(n=700, mean=3.2, low=3.1, high=3.3), "ece": 0.01,
                           "cold item": {"recall20": judge.Bound(n=0)}}},
    bounds={"log loss": judge.Bound(n=700, mean=-0.1, low=-0.2, high=0.0)}, data_offsets={"t|0": 100, "t|1": 50},
)  # fmt: skip


def test_tensorboard_reads_every_retrain(tmp_path: Path) -> None:
    """A mean with the ends of its interval, each at the number of rows that the version has seen."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard")
    experiments.write(VERDICT, str(tmp_path), "")
    read = events.EventAccumulator(str(tmp_path / "refresh"))
    read.Reload()
    (point,) = read.Scalars("candidate/log_loss")
    assert (point.step, round(point.value, 3)) == (150, 3.2)
    assert {"candidate/log_loss_low", "candidate/ece", "bounds/log loss", "retrain/n"} <= set(read.Tags()["scalars"])
    assert "candidate/cold item/recall20" not in read.Tags()["scalars"]


def test_a_retrain_without_figures_writes_nothing(tmp_path: Path) -> None:
    """Too few labels are no experiment."""
    experiments.write(Verdict(kind="refresh", accepted=False, reason="too few labels"), str(tmp_path), "")
    assert list(tmp_path.iterdir()) == []


def test_mlflow_has_a_run_for_each_retrain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run bears the version's name, its metrics and why it passed."""
    mlflow = pytest.importorskip("mlflow", reason="the extra is not installed: pip install 'nextclick[mlflow]'")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")  # else only a server or a database
    uri = f"file://{tmp_path}"
    experiments.write(VERDICT, "", uri)
    client = mlflow.MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("nextclick").experiment_id])
    assert (run.info.run_name, run.data.tags["reason"]) == ("v000002-abcdef", "not worse")
    assert run.data.metrics["candidate/log_loss"] == 3.2


def test_what_is_missing_is_said_before_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """The message names the setting and what to install; what was not asked for is not looked for."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    trainer.equipped(Settings.load({}))
    with pytest.raises(extras.NotInstalled, match=r"experiments\.mlflow=file:///runs needs.*nextclick\[mlflow\]"):
        trainer.equipped(Settings.load({"experiments.mlflow": "file:///runs"}))


def test_nothing_is_imported_unless_asked_for() -> None:
    """The module costs no TensorBoard and no MLflow."""
    code = "import sys, trainer.experiments; print({'tensorboard', 'mlflow', 'torch'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
