"""`nextclick models diff`: where two versions differ."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from deploy.cli import app


def write(shared: Path, version: str, loss: float, epochs: int, champion: str | None) -> None:
    """A version's readable files."""
    folder = shared / "versions" / version
    folder.mkdir(parents=True)
    bound = {"n": 600, "mean": loss, "low": loss - 0.1, "high": loss + 0.1}
    meta = {"metrics": {"candidate": {"log_loss": bound, "ece": 0.01}}, "champion": champion, "n_train": 900}
    (folder / "meta.json").write_text(json.dumps(meta))
    (folder / "config.json").write_text(json.dumps({"encoder": "none", "words": [], "network": {"epochs": epochs}}))
    (folder / "digest").write_text("x")


@pytest.mark.parametrize(("champion", "same"), [("v000001-aaaaaa", True), (None, False)])
def test_diff_tells_what_differs_and_nothing_else(tmp_path: Path, champion: str | None, same: bool) -> None:
    """Metrics keep their intervals; what is alike is left out; whether the cases were the same is said."""
    write(tmp_path, "v000001-aaaaaa", 2.0, 2, None)
    write(tmp_path, "v000002-bbbbbb", 1.5, 4, champion)
    arguments = ["models", "diff", "v000001-aaaaaa", "v000002-bbbbbb", "--shared", str(tmp_path)]
    said = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    assert said["same_cases"] is same
    assert said["differs"].keys() - {"data.champion"} == {"judged.log_loss", "network.epochs"}
    plain = CliRunner().invoke(app, arguments).stdout
    assert "2.000 [1.900, 2.100] n=600" in plain
