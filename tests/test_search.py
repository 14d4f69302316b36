"""The search for settings: on a budget, in one file, and into one that the other commands read."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from deploy import cli
from deploy.settings import Settings

pytest.importorskip("optuna", reason="the extra is not installed: pip install 'nextclick[experiments]'")


def test_a_search_goes_on_where_it_stopped_and_writes_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its first trial is the settings as they are; its result is never worse and loads as a settings file."""
    rng, at, lines = random.Random(3), {}, []
    for i in range(2_500):
        user = f"u{rng.randrange(30)}-{i // 500}"
        item = at[user] = (at.get(user, rng.randrange(40)) + 1) % 40 if rng.random() < 0.85 else rng.randrange(40)
        event = {"event_id": f"e{i}", "type": "view", "user_id": user, "ts": 1_700_000_000_000 + i * 2_000}
        lines.append(json.dumps(event | {"item_id": f"i{item}", "category": f"c{item % 8}"}))
    file, out = tmp_path / "shop.jsonl", tmp_path / "tuned.toml"
    file.write_text("\n".join(lines))
    said = ["--set", "encoder=none", "--set", "n_min=50", "--set", "horizon.next=5m", "--set", "horizon.purchase=5m"]
    told = []
    for _ in range(2):
        with pytest.raises(SystemExit) as end:
            cli.main(["tune", str(file), "--for", "1ms", "--out", str(out), "--storage", str(tmp_path / "j"),
                      "--json", *said])  # fmt: skip
        captured = capsys.readouterr()
        assert end.value.code == 0, captured.err
        told.append(json.loads(captured.out))
    assert [(t["trials"], t["new"]) for t in told] == [(1, 1), (2, 1)]
    assert told[1]["log_loss"] <= told[1]["as_they_are"]
    settings = Settings.load(file=out)
    assert settings.source("network.dropout") == "file"
    assert told[0]["best"]["network.dropout"] == "0.3"
    assert settings.text("epochs") == told[1]["best"]["epochs"]
