"""When a retrain is due beside the clock: volume, drift, and a budget that holds it back; each with its reason."""

from __future__ import annotations

import pytest

from trainer.cadence import CadencePolicy, CadenceState, due

POLICY = CadencePolicy(cadence_ms=60_000, volume=1_000, drift_nats=0.1, cpu_seconds_an_hour=600)


@pytest.mark.parametrize(
    ("state", "now_ms", "kind", "why"),
    [
        ({"labels": 999, "drifted_nats": 0.05}, 59_000, None, "due in 1 s"),
        ({"labels": 1_000}, 20_000, "refresh", "1,000 new labels"),
        ({"labels": 1_000}, 14_000, None, "due in 46 s"),
        ({"drifted_nats": 0.12}, 20_000, "refresh", "drift"),
        ({}, 60_000, "refresh", "the cadence has passed"),
        ({"labels": 0}, 60_000, None, "nothing came since the last retrain began"),
        ({"labels": 0, "tuned": True}, 60_000, "tune", "a tuned language model is there"),
        ({"labels": 0, "asked": True}, 60_000, "refresh", "asked for"),
        ({"spent_cpu_seconds": 590.0, "last_cpu_seconds": 20.0}, 60_000, None, "over the budget of 600"),
        ({"spent_cpu_seconds": 590.0, "last_cpu_seconds": 20.0, "asked": True}, 1, "refresh", "asked for"),
    ],
)
def test_each_trigger_says_why(state: dict[str, float], now_ms: int, kind: str | None, why: str) -> None:
    """Volume and drift wait for a quarter of the cadence; the budget holds back all but a command."""
    decision = due(CadenceState(last_start_ms=0, champion=True, **state), POLICY, now_ms)  # type: ignore[arg-type]
    assert decision.kind == kind
    assert why in decision.reason


def test_unset_triggers_ask_for_nothing() -> None:
    """By default only the clock counts."""
    busy = CadenceState(last_start_ms=0, labels=10**9, drifted_nats=9.0, spent_cpu_seconds=10**6)
    assert due(busy, CadencePolicy(), 59_999).kind is None
    assert due(busy, CadencePolicy(), 60_000).kind == "refresh"
