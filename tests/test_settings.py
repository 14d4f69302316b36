"""The dials: where a value comes from, and what is said about a bad one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from deploy.settings import DIALS, Settings, SettingsError, duration, from_arguments, pairs, written


def test_control_beats_option_beats_env_beats_file_beats_default(tmp_path: Path) -> None:
    """The nearer voice wins, and each value names it."""
    file = tmp_path / "n.toml"
    file.write_text('cadence = "1s"\nn_min = 7\n[session]\ngap = "5m"\n[store]\nkeep = "2h"\n')
    env = {"NEXTCLICK_CADENCE": "2s", "NEXTCLICK_SESSION_GAP": "6m", "NEXTCLICK_MODELS_KEEP": "3"}
    options = {"cadence": "3s", "models.keep": "4"}
    settings = Settings.load(options, env, file, {"cadence": {"value": "4s", "by": "ada", "at_ms": 9}})
    assert [(settings[n], settings.source(n)) for n in ("cadence", "models.keep", "session.gap", "store.keep")] == [
        (4_000, "control"), (4, "option"), (360_000, "env"), (7_200_000, "file"),
    ]  # fmt: skip
    assert (settings["n_min"], settings["lake.keep"], settings.source("lake.keep")) == (7, 2_592_000_000, "default")
    assert next(r for r in settings.table() if r["name"] == "cadence")["by"] == "ada"


def test_control_moves_live_dials_only() -> None:
    """What cannot change while it runs is not taken from the control log."""
    assert Settings.load(control={"session.gap": "1m"})["session.gap"] == 1_800_000


def test_control_is_laid_over_what_the_process_was_started_with() -> None:
    """A live value beats the option and names who and when; one that cannot be used changes nothing and is said."""
    started = Settings.load({"window": "9000", "tune": "lora"}, {"NEXTCLICK_CADENCE": "2s"})
    said = {
        "cadence": {"value": "soon", "by": "ann", "at_ms": 5}, "window": {"value": "50", "by": "ann", "at_ms": 5},
        "session.gap": "1m",
    }  # fmt: skip
    settings, errors = started.with_control(said)
    assert [(settings[n], settings.source(n)) for n in ("cadence", "window", "tune", "session.gap")] == [
        (2_000, "env"), (50, "control"), ("lora", "option"), (1_800_000, "default"),
    ]  # fmt: skip
    assert settings.values["window"].told == "control (ann, 1970-01-01T00:00:00Z)"
    assert ["cadence = 'soon' (from control)" in str(e) for e in errors] == [True]
    assert started["window"] == 9_000


def test_tuning_keeps_pace_with_the_cadence_where_a_gpu_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Auto means every cadence on a GPU, else six hours; what is written counts everywhere; no encoder, no tuning."""
    auto, written_ = {"encoder": "some/encoder", "cadence": "40s"}, {"tune.every": "2h"}
    for gpu, every_ms in ((True, 40_000), (False, 21_600_000)):
        monkeypatch.setattr("deploy.machine.has_gpu", lambda gpu=gpu: gpu)
        assert Settings.load(auto).cadence_policy().tune_every_ms == every_ms
        assert Settings.load(auto | written_).cadence_policy().tune_every_ms == 7_200_000
    assert Settings.load({"encoder": "none"}).cadence_policy().tune == "off"


def test_asking_for_a_gpu_leaves_torch_outside() -> None:
    """The trainer's parent process stays light: torch is asked in a process of its own."""
    code = "import sys; from deploy import machine; print(machine.has_gpu(), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() in (["True", "False"], ["False", "False"])


@pytest.mark.parametrize("name", [d.name for d in DIALS if d.clock or d.name in ("n_min", "kafka", "http")])
def test_bad_value_names_key_value_and_remedy(name: str) -> None:
    """A bad value says what, where from, and what to write instead."""
    with pytest.raises(SettingsError, match=rf"{name} = 'x y' \(from option\) cannot be used: write "):
        Settings.load({name: "x y"})


def test_unknown_name_suggests_the_nearest() -> None:
    """A misspelt name is an error with a suggestion."""
    with pytest.raises(SettingsError, match=r"did you mean session\.gap"):
        pairs(["sesion.gap=3m"])
    with pytest.raises(SettingsError, match="NAME=VALUE"):
        pairs(["cadence"])


def test_unreadable_file_is_said(tmp_path: Path) -> None:
    """A missing or broken file names itself."""
    with pytest.raises(SettingsError, match="check --config"):
        Settings.load(file=tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("cadence = 60s")
    with pytest.raises(SettingsError, match="is not TOML"):
        Settings.load(file=tmp_path / "bad.toml")


def test_options_give_a_child_the_same_values(tmp_path: Path) -> None:
    """What is handed to child processes loads to the same settings."""
    settings = Settings.load({"cadence": "5s", "shared": str(tmp_path / "a b"), "worker": "w1"})
    again = from_arguments(settings.options(), {})
    assert [again[d.name] for d in DIALS] == [settings[d.name] for d in DIALS]


def test_store_inside_shared_is_refused(tmp_path: Path) -> None:
    """A worker's file does not lie in the shared folder."""
    with pytest.raises(SettingsError, match=r"store\.folder"):
        Settings.load({"shared": str(tmp_path), "store.folder": str(tmp_path / "store")})


@pytest.mark.parametrize(
    ("text", "ms"), [("30m", 1_800_000), ("24h", 86_400_000), ("500ms", 500), ("1d2h", 93_600_000)]
)
def test_durations_are_read_and_written(text: str, ms: int) -> None:
    """A duration survives the round trip."""
    assert (duration(text), written(ms)) == (ms, "1d" if text == "24h" else text)


def test_the_knobs_of_a_tuning_are_settings() -> None:
    """Each reaches the tuning, and a value out of its range is said with the range."""
    said = {
        "tune": "full", "tune.optimiser": "sgd", "tune.learning_rate": "0.01", "tune.schedule": "cosine",
        "tune.batch": "64", "tune.epochs": "9", "tune.weight_decay": "0.1", "tune.dropout": "0.2", "tune.patience": "0",
        "tune.validation": "0.3", "tune.frozen": "embeddings,layer.0", "tune.masked": "0.5", "tune.proximal": "2",
    }  # fmt: skip
    made = Settings.load(said).tuning()
    assert (made.mode, made.optimiser, made.learning_rate, made.schedule) == ("full", "sgd", 0.01, "cosine")
    assert (made.batch, made.epochs, made.weight_decay, made.dropout, made.patience) == (64, 9, 0.1, 0.2, 0)
    assert (made.validation, made.frozen, made.masked, made.proximal) == (0.3, ("embeddings", "layer.0"), 0.5, 2.0)
    assert Settings.load().tuning().learning_rate is None
    for name, text, remedy in (
        ("tune.learning_rate", "fast", "write a number from 1e-07 to 1, like 5e-4"),
        ("tune.optimiser", "adam", "write one of adamw, sgd"),
        ("tune.validation", "0.9", r"write a number from 0 to 0\.5"),
        ("tune.batch", "1", "write a whole number from 2 to"),
    ):
        with pytest.raises(SettingsError, match=rf"{name} = '{text}' \(from option\) cannot be used: {remedy}"):
            Settings.load({name: text})
