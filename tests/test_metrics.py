"""Dashboard, alert rules and documentation speak of metrics that are really exported."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest

from deploy import health
from streams import interests
from tests.test_outcomes import row
from tests.test_purchases import Told

ROOT = Path(__file__).parents[1]
GRAFANA = ROOT / "deploy" / "grafana"
NAME = re.compile(r"\b(?:nextclick|process)_[a-z_]+")
SERIES = {f"nextclick_latency_seconds_{end}": "nextclick_latency_seconds" for end in ("bucket", "count", "sum")}
WORKER: dict[str, Any] = {
    **dict.fromkeys(health.COUNTED, 1), "version": "v1", "busy_s": {"fold": 0.5},
    "bots": {"rows": {"rate": 1}, "sessions": {"rate": 1}}, "catalogue": {"items": 1},
    "outcomes": {"open": 1, "passed_over": 1, "arms": {"champion": dict.fromkeys(interests.FIELDS, 1)}} | {
        "purchases": {"open": 1, "passed_over": 1, "arms": [{"arm": "champion", "sums": [[1.0] * 36]}]}},
    "parts": [{"topic": "t", "partition": 0} | dict.fromkeys([*health.COUNTED_BY_PARTITION, *health.BY_PARTITION], 1)],
}  # fmt: skip
TRAINER: dict[str, Any] = {"champion": "v1", "leading": True, "retrains": {"accepted": 1}} | {
    key: 1 for key, _, _ in health.OF_TRAINER.values()
}


def exported() -> set[str]:
    """The names of the series that worker and trainer export."""
    names: set[str] = set()
    for status in (WORKER, TRAINER):
        told, registry = health.Health(), CollectorRegistry()
        told.pulse(status, ())
        registry.register(health.Collector(told))
        ProcessCollector(registry=registry)
        names |= set(re.findall(r"^(\w+)[ {]", generate_latest(registry).decode(), re.M))
    return names


def rules() -> str:
    """The expressions of the alert rules."""
    return "\n".join(re.findall(r"expr: (.*)", (GRAFANA / "alerts.yaml").read_text(encoding="utf-8")))


def queries() -> str:
    """The expressions of the dashboard."""
    board = json.loads((GRAFANA / "dashboard.json").read_text(encoding="utf-8"))
    return "\n".join(target["expr"] for panel in board["panels"] for target in panel["targets"])


def test_what_purchase_probabilities_came_to_is_counted_by_arm() -> None:
    """One of two bought: counts, what was said, and the loss over all users; what waits is told apart."""
    followed = Told()
    for n, (user, arm) in enumerate([("u", "champion"), ("v", "champion"), ("w", "holdback")]):
        followed.buys(row(n, 1_000 * (n // 2), "a", user_id=user), 0.25, arm=arm)
    followed.open.observe(row(3, 1_010, "b", type="purchase"))
    followed.open.observe(row(4, 10, "b", type="purchase"))
    followed.sums(1_000)
    found = {
        (sample.name.removeprefix("nextclick_purchase_outcome"), sample.labels.get("arm")): sample.value
        for family in health.outcomes(followed.outcomes.told([followed.open]))
        for sample in family.samples
        if sample.name.startswith("nextclick_purchase_")
    }
    assert found == {
        ("s_open", None): 1, ("s_passed_over_total", None): 0, ("s_total", "champion"): 2,
        ("_loss_total", "champion"): pytest.approx(math.log(4) - math.log(0.75), abs=1e-3),
        ("_said_total", "champion"): 0.5, ("_bought_total", "champion"): 1,
    }  # fmt: skip


@pytest.mark.parametrize("said", [rules(), queries()], ids=["alerts", "dashboard"])
def test_what_is_asked_for_is_exported(said: str) -> None:
    """A name in an expression that nobody exports would be an alert that never rings."""
    named = set(NAME.findall(said))
    assert len(named) > 5
    assert named <= exported()


def test_what_is_exported_is_documented() -> None:
    """Every metric of ours stands in the table, and nothing else does."""
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    documented = {name for name in re.findall(r"`(nextclick_[a-z_]+)`", text) if not name.endswith("_")}
    assert documented == {SERIES.get(name, name) for name in exported() if name.startswith("nextclick_")}


def test_every_alert_says_what_to_do() -> None:
    """Its name stands in the table of the documentation."""
    alerts = set(re.findall(r"alert: (\w+)", (GRAFANA / "alerts.yaml").read_text(encoding="utf-8")))
    text = (ROOT / "docs" / "operate.md").read_text(encoding="utf-8")
    assert alerts == set(re.findall(r"^\| (Nextclick\w+) \|", text, re.M))
