"""Operating: each command against a broker, and what every process then reads in the control log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deploy import broker
from deploy.cli import log
from deploy.settings import Settings
from streams import control, topics
from tests.conftest import Run
from trainer import registry


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """An embedded broker."""
    with broker.embedded(port=0) as running:
        yield running.address


@pytest.fixture
def settings(address: str, tmp_path: Path, request: pytest.FixtureRequest) -> Settings:
    """A control log of the test's own and a folder with two versions, the second one the champion."""
    names = {f"topics.{t}": f"{t}-{request.node.name}" for t in ("control", "state", "items")}
    folders = {"shared": str(tmp_path / "shared"), "store.folder": str(tmp_path / "store")}
    made = Settings.load({"kafka": address} | names | folders)
    topics.ensure(address, made.topics())
    out = registry.Registry(made.shared)
    old, new = (out.publish(lambda d: (d / "config.json").write_text("{}") and None, {"n": n}) for n in (1, 2))
    writer = control.ControlWriter(address, made["topics.control"])
    writer.append("champion.changed", {"version": old, "predecessor": None}, by="t")
    writer.append("champion.changed", {"version": new, "predecessor": old}, by="t")
    for version, reason in ((new, "not worse"), (None, "log loss may be worse")):
        said = {"kind": "refresh", "accepted": bool(version), "version": version, "champion": new, "n": 700}
        own = {"cadence": {"value": "77s", "source": "file"}}
        kind = "retrain.judged" if version else "retrain.rejected"
        writer.append(kind, said | {"reason": reason, "metrics": {"candidate": {}}, "dials": own}, by="t")
    writer.close()
    return made


@pytest.fixture
def run(settings: Settings, typed: Callable[[Settings], Run]) -> Run:
    """A command as an operator types it."""
    return typed(settings)


def test_roll_back_promote_and_unpin(run: Run, settings: Settings) -> None:
    """Back to the predecessor and forward again; both pin; what cannot be is one line and changes nothing."""
    old, new = registry.Registry(settings.shared).names()
    assert f"back from {new} to {old}" in run("models", "rollback")
    state = log.state(settings)
    assert (state.champion, state.predecessor, state.pinned, old in state.pins) == (old, new, True, True)
    assert run("models", "promote", new, "--json")["data"] == {"version": new}
    assert log.state(settings).champion == new
    assert "is the champion already" in run("models", "promote", new, code=1)
    assert "there is no version v9" in run("models", "promote", "v9", code=1)
    run("models", "unpin")
    state = log.state(settings)
    assert (state.champion, state.pinned, state.entries) == (new, False, 7)


def test_versions_are_listed_with_how_they_were_judged(run: Run, settings: Settings) -> None:
    """The champion is marked, its verdict has its reason, and what was rejected is told with why."""
    old, new = registry.Registry(settings.shared).names()
    text = run("models", "list")
    assert f"* {new}" in text
    assert "not worse" in text
    assert "log loss may be worse" in text.partition("rejected lately")[2]
    told = run("models", "list", "--json")
    assert [(v["version"], v["champion"]) for v in told["versions"]] == [(old, False), (new, True)]
    assert told["rejected"][0]["n"] == 700
    shown = run("models", "show", new, "--kafka", str(settings.kafka), "--json")
    assert (shown["meta"]["n"], shown["verdict"]["reason"]) == (2, "not worse")
    assert [v["reason"] for v in shown["rejected_against_it"]] == ["log loss may be worse"]


def test_live_settings_are_set_shown_and_reset(run: Run, settings: Settings) -> None:
    """What was set counts for every process, with who and when; without it, what the trainer was started with."""
    run("cadence", "set", "30s", "--window", "50000", "tune=off")
    assert {n: v["value"] for n, v in log.state(settings).dials.items()} == {
        "cadence": "30s", "window": "50000", "tune": "off",
    }  # fmt: skip
    live = run("cadence", "show", "--json")["live"]
    assert (live["window"]["value"], live["window"]["source"], live["window"]["by"] is None) == (
        "50000", "control", False,
    )  # fmt: skip
    rows = {r["name"]: r for r in run("config", "show", "--kafka", str(settings.kafka), "--json")}
    assert (rows["cadence"]["value"], rows["cadence"]["source"]) == ("30s", "control")
    assert rows["cadence"]["at_ms"] is not None
    run("cadence", "reset")
    shown = run("cadence", "show")
    assert shown.split()[:5] == ["cadence", "77s", "file", "(the", "trainer's)"]
    assert "log loss may be worse" in shown
    assert "nothing to set" in run("cadence", "set", code=1)
    assert "cannot be used: write a duration" in run("cadence", "set", "soon", code=1)


def test_a_pause_has_an_end_and_is_ended(run: Run, settings: Settings) -> None:
    """Pause, resume and now are entries that every process reads; a pause without an end is refused."""
    assert "a pause always has an end" in run("cadence", "pause", code=1)
    assert "a pause always has an end" in run("cadence", "pause", "--for", "0s", code=1)
    run("cadence", "pause", "--for", "2h")
    pause = log.state(settings).pause
    assert pause is not None
    assert pause.until_ms > time.time() * 1000
    assert "paused" in run("cadence", "show")
    writer = control.ControlWriter(settings.kafka, settings["topics.control"])
    writer.append("retrain.started", {"kind": "tune", "why": "asked for"}, by="t1")
    assert "running since" in run("cadence", "show")
    assert run("cadence", "show", "--json")["running"]["by"] == "t1"
    writer.append("retrain.failed", {"kind": "tune", "why": "asked for", "reason": "it took too long"}, by="t1")
    writer.close()
    shown = run("cadence", "show")
    assert "running since" not in shown
    assert "it took too long" in shown
    run("cadence", "resume", "--json")
    run("cadence", "now")
    state = log.state(settings)
    assert (state.pause, state.asked is None) == (None, False)
