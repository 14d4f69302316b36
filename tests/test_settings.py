"""The dials: where a value comes from, and what is said about a bad one."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", [d.name for d in DIALS if d.clock or d.name in ("n_min", "kafka", "http.port")])
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
