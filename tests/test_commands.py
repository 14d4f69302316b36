"""Every command there is: help with an example, JSON where a result is printed, and a line instead of a traceback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from deploy import cli
from deploy.broker import embedded, free_port
from streams import topics
from tests.test_cli import run

ENDLESS = {"broker", "trainer"}  # print no result
EVENT = {"event_id": "e1", "type": "view", "user_id": "u1", "ts": 1_760_000_000_000, "item_id": "i1"}


def walked(command: Any = None, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its path."""
    command = command or typer.main.get_command(cli.app)
    for name, one in getattr(command, "commands", {}).items():
        if hasattr(one, "commands"):
            yield from walked(one, (*path, name))
        else:
            yield (*path, name), one


COMMANDS = dict(walked())
NEEDED = {  # arguments without which a command does nothing
    ("replay",): ["{file}"], ("backtest",): ["{file}"], ("forget",): ["u1"], ("check",): ["{file}"],
    ("send",): ["{file}"], ("import",): ["{file}"], ("rank",): ["--user", "u1", "--candidates", "{file}"],
    ("sql",): ["SELECT 1"], ("models", "show"): ["v9"], ("models", "promote"): ["v9"], ("cadence", "set"): ["30s"],
    ("cadence", "pause"): ["--for", "1m"], ("dead-letters", "show"): ["17"], ("up",): ["--for", "1s"],
    ("tune",): ["{file}"], ("models", "diff"): ["v8", "v9"], ("dead-letters", "replay"): ["--all"],
    ("rekey",): ["shop", "--for", "1s"],
}  # fmt: skip
LOCAL = {("check",), ("tune",), ("import",), ("backtest",), ("broker",), ("sql",), ("store", "check")}  # need no Kafka
WRONG_ID = [("models", "show"), ("models", "diff"), ("models", "promote"), ("dead-letters", "show")]
EMPTY = [("models", "rollback"), ("models", "pin"), ("rank",), ("sql",), ("store", "check")]


def arguments(path: tuple[str, ...], folder: Path, kafka: str | None) -> list[str]:
    """A command with what it needs, and where it finds things if it asks."""
    file = folder / "events.jsonl"
    file.write_text(json.dumps(EVENT) + "\n")
    known = {option for parameter in COMMANDS[path].params for option in parameter.opts}
    said = [*path, *(part.format(file=file) for part in NEEDED.get(path, []))]
    if kafka is not None and "--kafka" in known:
        said += ["--kafka", kafka]
    return said + (["--shared", str(folder / "shared")] if "--shared" in known else [])


def told(path: tuple[str, ...]) -> str:
    """A command's name, as a test's id."""
    return "-".join(path)


@pytest.mark.parametrize("path", COMMANDS, ids=told)
def test_help_has_an_example(capsys: pytest.CaptureFixture[str], path: tuple[str, ...]) -> None:
    """`--help` ends with 0 and shows a line to copy; a command that prints a result takes --json."""
    code, out, _ = run(capsys, *path, "--help")
    said = " ".join(out.replace("│", " ").split())
    assert code == 0
    assert "Example: " in said
    assert f"nextclick {' '.join(path)}" in said.partition("Example: ")[2]
    assert ("--json" in said) == (path[0] not in ENDLESS)


@pytest.mark.parametrize("path", [p for p in COMMANDS if p not in LOCAL], ids=told)
def test_missing_broker_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, path: tuple[str, ...]
) -> None:
    """Where no broker answers: code 1 and one line with the address (or why it was not even asked), no traceback."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shared" / "events").mkdir(parents=True)
    address = f"127.0.0.1:{free_port()}"
    code, _, err = run(capsys, *arguments(path, tmp_path, address))
    assert (code, "Traceback" in err) == (1, False), err
    assert address in err or "there is no version" in err
    assert len(err.strip().splitlines()) == 1


@pytest.fixture(scope="module")
def kafka() -> Iterator[str]:
    """A broker with the six topics and nothing in them."""
    with embedded(port=0) as broker:
        topics.ensure(broker.address, topics.Topics())
        yield broker.address


@pytest.mark.parametrize("path", [*WRONG_ID, *EMPTY], ids=told)
def test_nothing_there_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kafka: str,
    path: tuple[str, ...],
) -> None:  # fmt: skip
    """A wrong id, an empty lake, no model: code 1 and one line that says what is there."""
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, *arguments(path, tmp_path, kafka))
    assert (code, "Traceback" in err) == (1, False), err
    assert len(err.strip().splitlines()) == 1


@pytest.mark.parametrize("path", [("check",), ("import",), ("send",), ("models", "list"), ("cadence", "show"),
                                  ("config", "show"), ("replay",)], ids=told)  # fmt: skip
def test_json_is_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kafka: str,
    path: tuple[str, ...],
) -> None:  # fmt: skip
    """With --json stdout is JSON alone, the code 0."""
    monkeypatch.chdir(tmp_path)
    code, out, _ = run(capsys, *arguments(path, tmp_path, kafka), "--json")
    assert code == 0
    for document in out.splitlines() if path == ("check",) else [out]:
        json.loads(document)
