"""The command: what it prints, and one line where something is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import cli
from deploy.broker import free_port
from streams import control


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """One command: code, stdout, stderr."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    out = capsys.readouterr()
    return int(ended.value.code or 0), out.out, out.err


def test_config_show_names_sources(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dial with its value and who said so."""
    monkeypatch.setenv("NEXTCLICK_SESSION_GAP", "5m")
    code, out, _ = run(capsys, "config", "show", "--json", "--set", "cadence=9s")
    rows = {r["name"]: r for r in json.loads(out)}
    assert (code, rows["cadence"]["source"], rows["session.gap"]["source"]) == (0, "option", "env")
    assert rows["session.gap"]["value"] == "5m"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["config", "show", "--set", "cadence=soon"],
            "cadence = 'soon' (from option) cannot be used: write a duration",
        ),
        (["up", "--replay", "/nowhere"], "--replay /nowhere is no file"),
        (["up", "--simulate", "--speed", "fast"], "--speed 'fast' cannot be used"),
        (["up", "--kafka", "nohost"], "kafka = 'nohost' (from option) cannot be used: write HOST:PORT"),
        (["replay", "/nowhere"], "/nowhere cannot be read"),
        (["simulate", "--out", "shop.jsonl"], "--out needs --for"),
        (["simulate", "--scenario", "calm"], "--scenario 'calm' is not known"),
        (["cadence", "set", "session.gap=3m"], "cannot change while it runs"),
        (["models", "show", "v1"], "there is no version v1"),
        (["config", "show", "--config", "/nowhere.toml"], "check --config"),
    ],
)
def test_mistakes_are_one_line(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """A mistake is told in one line that names the remedy, without a traceback."""
    code, _, err = run(capsys, *arguments)
    assert code == 1
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nosuch"], "No such command 'nosuch': see `nextclick --help`"),
        (["cadence", "nosuch"], "No such command 'nosuch': see `nextclick cadence --help`"),
        (["up", "--simulat"], "No such option: --simulat"),
        (["forget"], "Missing argument 'user_id': see `nextclick forget --help`"),
        (["up", "--rate", "fast"], "Invalid value for '--rate'"),
        (["up", "--rate"], "--rate"),
    ],
)
def test_mistyped_is_one_line_and_code_2(capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    """A command, option, argument or value that is not known or missing, without a traceback."""
    code, _, err = run(capsys, *arguments)
    assert code == 2
    assert said in err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("arguments", [[], ["models"]])
def test_group_alone_shows_its_help(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Where commands follow, they are listed."""
    code, out, err = run(capsys, *arguments)
    assert code == 2
    assert "Usage" in out + err
    assert "Traceback" not in out + err


def test_missing_broker_is_one_line(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Where nothing listens, the address and the remedy are told."""
    address = f"127.0.0.1:{free_port()}"
    code, _, err = run(capsys, "cadence", "now", "--kafka", address)
    assert (code, len(err.strip().splitlines())) == (1, 1)
    assert f"no Kafka broker answers at {address}" in err


def test_help_is_light() -> None:
    """The command line and the settings import no torch, Faust, DuckDB or Kafka."""
    heavy = "{'torch', 'faust', 'duckdb', 'kafka', 'numpy', 'pyarrow'}"
    code = f"import sys, deploy.cli; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_failed_retrain_has_a_line_in_the_summary() -> None:
    """It has a reason and no numbers; an accepted one names its version."""
    from deploy.summary import told_verdict

    entry = control.Entry(id="1", kind="retrain.failed", at_ms=1, by="t", data={"kind": "tune", "reason": "it died"})
    (failed,) = control.fold(control.ControlState(), entry).verdicts
    assert told_verdict(failed) == "  tune failed: it died (n=0, 0 CPU s)"
    passed = {"kind": "refresh", "accepted": True, "version": "v1", "reason": "fine", "n": 5, "cpu_seconds": 2.4}
    assert told_verdict(passed) == "  refresh accepted as v1: fine (n=5, 2 CPU s)"


def test_the_line_of_up_says_what_the_trainer_does() -> None:
    """Running, paused, due, or how long until the next one."""
    from deploy.live import told_next

    begun = control.Entry(id="1", kind="retrain.started", at_ms=5_000, by="t", data={"kind": "tune"})
    assert told_next(control.ControlState(), 60_000, 0) == "the first retrain is due"
    assert told_next(control.ControlState(running=begun), 60_000, 9_000) == "tune runs for 4 s"
    paused = control.ControlState(pause=control.Pause(until_ms=30_000, by="ann"))
    assert told_next(paused, 60_000, 9_000) == "retrains paused for 21 s by ann"
    judged = control.ControlState(verdicts=({"at_ms": 20_000, "wall_ms": 10_000},))
    assert told_next(judged, 60_000, 40_000) == "next retrain in 30 s"


@pytest.mark.parametrize("name", ["shop.jsonl", "shop.jsonl.gz"])
def test_a_simulated_file_is_one_that_check_reads(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str
) -> None:
    """So much of a shop's time as a file: what it says was written is what is found in it."""
    file = tmp_path / name
    told = run(capsys, "simulate", "--rate", "200", "--for", "20s", "--out", str(file), "--json")
    found = run(capsys, "check", str(file), "--json")
    lines = [json.loads(line) for line in found[1].splitlines()]
    count = sum(len(line.get("events", [])) + len(line.get("dead_letter", [])) for line in lines)
    assert told[0] == 0
    assert json.loads(told[1])["events"] == count > 3_000
