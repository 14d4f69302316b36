"""The backtest on a made-up shop whose followers are nearly certain."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from deploy import backtest, plots, tables
from deploy.settings import Settings
from streams import quality
from tests.test_cli import run as command
from trainer import extras

SETTINGS = {"encoder": "none", "n_min": "100", "horizon.next": "5m", "horizon.purchase": "5m"}
ARMS = ("last", "popular", "markov1", "markov2", "vmis-knn", "gru4rec")


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 3,000 views and some purchases by people who mostly go on to the item after the last one."""
    rng, at, lines = random.Random(3), {}, []
    for i in range(3_000):
        user = f"u{rng.randrange(30)}-{i // 500}"
        item = at[user] = (at.get(user, rng.randrange(40)) + 1) % 40 if rng.random() < 0.85 else rng.randrange(40)
        bought = item % 8 == 7 and rng.random() < 0.5
        event = {"event_id": f"e{i}", "type": "purchase" if bought else "view", "user_id": user}
        event |= {"ts": 1_700_000_000_000 + i * 2_000, "item_id": f"i{item}", "category": f"c{item % 8}"}
        lines.append(json.dumps(event))
    file = tmp_path_factory.mktemp("shop") / "shop.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def result(shop: Path) -> dict[str, Any]:
    """What came of it at two cadences."""
    plan = backtest.Plan(cadences_ms=[1_200_000, None], baselines=ARMS)
    return backtest.run(Settings.load(SETTINGS), shop, plan)


def test_model_beats_the_baselines_where_items_follow_each_other(result: dict[str, Any]) -> None:
    """Next item, next category: the trained arm is above popularity and the last category, intervals apart."""
    arms = {name: arm["metrics"] for name, arm in result["arms"].items()}
    assert arms["markov1"]["item.mrr20"]["low"] > arms["popular"]["item.mrr20"]["high"]  # the shop is of first order
    assert arms["gru4rec@never"]["item.mrr20"]["low"] > arms["popular"]["item.mrr20"]["high"]
    assert arms["markov2"]["category.log_loss"]["high"] < arms["popular"]["category.log_loss"]["low"]
    for cadence in ("20m", "never"):
        assert result["arms"][cadence]["trainings"] >= 1
        assert arms[cadence]["item.mrr20"]["low"] > arms["popular"]["item.mrr20"]["high"]
        assert arms[cadence]["category.r1"]["low"] > arms["last"]["category.r1"]["high"]
        assert arms[cadence]["category.log_loss"]["high"] < arms["popular"]["category.log_loss"]["low"]
        assert result["against"]["popular"]["beaten"]


def test_every_arm_is_judged_on_the_same_cuts(result: dict[str, Any]) -> None:
    """n is that of the cuts with a next item, for whoever answers; each figure lies within its interval."""
    n = result["arms"]["never"]["metrics"]["item.r20"]["n"]
    assert {arm["metrics"]["item.r20"]["n"] for name, arm in result["arms"].items() if name != "funnel"} == {n}
    assert set(result["arms"]["funnel"]["metrics"]) == {"purchase.log_loss", "purchase.auc", "ece.purchase"}
    for arm in result["arms"].values():
        for name, bound in arm["metrics"].items():
            assert bound["low"] <= bound["mean"] <= bound["high"] or name.startswith("ece")
    metrics = result["arms"]["never"]["metrics"]
    rising = [metrics[f"item.r{k}"]["mean"] for k in (1, 5, 10, 20)]
    assert rising == sorted(rising)
    assert metrics["item.mrr20"]["mean"] < metrics["item.ndcg20"]["mean"] < metrics["item.r20"]["mean"]
    assert metrics["none.log_loss"]["n"] == result["cuts"] > metrics["item.r20"]["n"]


def test_recommends_with_a_reason(result: dict[str, Any]) -> None:
    """One of the cadences, in one sentence with CPU seconds; the gain is the difference of the means."""
    (gain,) = result["gains"]
    assert (gain["cadence"], gain["over"]) == ("20m", "never")
    means = {name: result["arms"][name]["metrics"]["item.r20"]["mean"] for name in ("20m", "never")}
    assert abs(gain["mean"] - (means["20m"] - means["never"])) < 2e-5
    assert result["recommended"]["cadence"] in ("20m", "never")
    assert "CPU" in result["recommended"]["reason"]


def test_text_plot_and_json_tell_the_same(result: dict[str, Any], tmp_path: Path) -> None:
    """Each mean of the table and each point of the plot is the JSON's; all targets can be told."""
    pytest.importorskip("matplotlib")
    for target, figure in (("item", "item.r20"), ("category", "category.r5"), ("purchase", "purchase.auc")):
        one = json.loads(json.dumps(result | {"target": target}))
        text = tables.told(one)
        drawn = plots.points(one, figure)
        for name, (cpu, mean, low, high) in drawn.items():
            bound = one["arms"][name]["metrics"][figure]
            assert (mean, low, high) == (bound["mean"], bound["low"], bound["high"])
            assert cpu == one["arms"][name]["train_cpu_seconds"]
            assert quality.told(bound) in text
        assert {"20m", "never"} <= set(drawn)
        plots.draw(one, tmp_path / f"{target}.png")
        assert (tmp_path / f"{target}.png").read_bytes().startswith(b"\x89PNG")


def test_future_plays_no_part(shop: Path) -> None:
    """What is said of a cut is the same where all that comes after it is another story (a leak test)."""
    settings = Settings.load(SETTINGS | {"epochs": "1"})
    rows = backtest.read(settings, shop)
    past = backtest.past_of(settings, rows)
    middle = int(past.labels.row[past.wanted[len(past.wanted) // 2]])
    rng = random.Random(5)
    items = [row.event.item_id for row in rows[middle + 1 :]]
    rng.shuffle(items)
    other = rows[: middle + 1] + [
        msgspec.structs.replace(row, event=msgspec.structs.replace(row.event, item_id=item, category="other"))
        for row, item in zip(rows[middle + 1 :], items, strict=True)
    ]
    plan = backtest.Plan(cadences_ms=[1_200_000], baselines=ARMS)

    def heard(rows: list[backtest.Row]) -> dict[tuple[str, int], backtest.Answer]:
        made = dataclasses.replace(backtest.past_of(settings, rows), wanted=past.wanted[::9], half_ms=past.half_ms)
        said = [*backtest.walk(settings, made, "20m", 1_200_000, plan, {}), *backtest.beside(settings, made, plan, {})]
        return {(name, i): answer for name, i, answer in said if made.labels.row[i] <= middle}

    first, second = heard(past.rows), heard(other)
    assert len(first) > 50 * len(ARMS)
    assert {name for name, _ in first} >= {"20m", "gru4rec@20m", "markov2", "funnel"}
    assert first == second


def test_options_walk(
    shop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """--target, --baselines, --plot and --json go together; what cannot be had is one line with a remedy."""
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    few = tmp_path / "few.jsonl"
    few.write_text("\n".join(shop.read_text().splitlines()[:1_600]))
    said = ["backtest", str(few), *(f"--set={name}={value}" for name, value in SETTINGS.items()), "--cadence", "never"]
    code, out, err = command(
        capsys, *said, "--target", "purchase", "--baselines", "popular", "--plot", "p.svg", "--json"
    )
    assert code == 0, err
    made = json.loads(out)
    assert (made["target"], made["decides"], made["plot"]) == ("purchase", "purchase.log_loss", "p.svg")
    assert set(made["arms"]) == {"never", "popular", "funnel"}
    assert (tmp_path / "p.svg").read_text().count("purchase.auc")
    for wrong, told in (
        (["--baselines", "knn"], "there is no baseline 'knn'"),
        (["--baselines", "textbook"], "set `encoder`"),
        (["--plot", "p.doc"], "ends in .png"),
        (["--plot", "no/p.png"], "there is no folder"),
        (["--cadence", "often"], "--cadence 'often'"),
    ):
        code, _, err = command(capsys, *said, *wrong)
        assert (code, "Traceback" in err, told in err) == (1, False, True), err


def test_missing_extra_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without Matplotlib the message names the extra, before anything long begins."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(extras.NotInstalled, match=r"nextclick\[plots\]"):
        plots.ready(tmp_path / "p.png")
