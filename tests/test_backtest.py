"""The backtest on a made-up shop whose followers are nearly certain."""

from __future__ import annotations

import json
import random
from pathlib import Path

from deploy import backtest
from deploy.settings import Settings
from trainer import baselines


def test_model_beats_the_baselines_where_items_follow_each_other(tmp_path: Path) -> None:
    """Next item, next category: the trained arm is above popularity and the last category, intervals apart."""
    rng, at, lines = random.Random(3), {}, []
    for i in range(3_000):
        user = f"u{rng.randrange(30)}-{i // 500}"
        item = at[user] = (at.get(user, rng.randrange(40)) + 1) % 40 if rng.random() < 0.85 else rng.randrange(40)
        event = {"event_id": f"e{i}", "type": "view", "user_id": user, "ts": 1_700_000_000_000 + i * 2_000}
        lines.append(json.dumps(event | {"item_id": f"i{item}", "category": f"c{item % 8}"}))
    file = tmp_path / "shop.jsonl"
    file.write_text("\n".join(lines))
    settings = Settings.load({"encoder": "none", "n_min": "100", "horizon.next": "5m", "horizon.purchase": "5m"})
    result = backtest.run(settings, file, [1_200_000, None])
    for arm in result["arms"].values():
        metrics = arm["metrics"]
        assert arm["retrained"] >= 1
        assert metrics["item.mrr20"]["low"] > metrics["popular.item.mrr20"]["high"]
        assert (
            metrics["markov1.item.mrr20"]["low"] > metrics["popular.item.mrr20"]["high"]
        )  # the shop is of first order
        assert metrics["markov2.category.log_loss"]["high"] < metrics["popular.category.log_loss"]["low"]
        assert metrics["category.r1"]["low"] > metrics["last.category.r1"]["high"]
        assert metrics["category.log_loss"]["high"] < metrics["popular.category.log_loss"]["low"]
    assert "cadence never" in backtest.told(result)


def test_markov_backs_off_to_what_it_knows() -> None:
    """Two names say more than one, one more than none; all shares sum to one."""
    chain = baselines.Markov(2)
    for _ in range(50):
        chain.learn(["a", "b"], "c")
        chain.learn(["x", "b"], "d")
    chain.learn([], "e")
    assert chain.probabilities(["a", "b"])["c"] > 0.9 > chain.probabilities(["new", "b"])["c"] > 0.4
    assert chain.probabilities(["new"]) == chain.probabilities([])
    for before in (["a", "b"], ["b"], []):
        assert abs(sum(chain.probabilities(before).values()) - 1) < 1e-9
