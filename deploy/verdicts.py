"""What came of a retrain, in a word; how many came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from streams import control


def outcome(said: dict[str, Any]) -> str:
    """Accepted, rejected by the gate, no candidate (nothing was judged), or failed.

    >>> outcome({"accepted": False, "metrics": {}})
    'no candidate'
    """
    if said["accepted"]:
        return "accepted"
    return "failed" if said.get("failed") else "rejected" if said.get("metrics") else "no candidate"


def rejected_in_a_row(judged: Sequence[dict[str, Any]]) -> int:
    """How many candidates were kept out since the last one that passed.

    >>> no, yes = {"accepted": False, "metrics": {"candidate": {}}}, {"accepted": True}
    >>> rejected_in_a_row([no, yes, no, {"accepted": False}, no])
    2
    """
    count = 0
    for verdict in reversed(judged):
        if verdict["accepted"]:
            break
        count += bool(verdict.get("metrics"))
    return count


def standing(state: control.ControlState, now_ms: int) -> dict[str, Any]:
    """What the verdicts say of when to retrain next: drift of the champion and CPU spent, as a cadence's state."""
    judged = [v for v in state.verdicts if v.get("metrics")]
    spent = [float(v.get("cpu_seconds") or 0) for v in state.verdicts if now_ms - v["at_ms"] < 3_600_000]
    return {
        "drifted_nats": drifted(judged, state.champion),
        "spent_cpu_seconds": sum(spent),
        "last_cpu_seconds": float(judged[-1].get("cpu_seconds") or 0) if judged else 0.0,
    }


def drifted(judged: Sequence[dict[str, Any]], champion: str | None) -> float | None:
    """The champion's log loss on the newest slice minus its own when it was promoted; None before it was met again.

    >>> at = lambda arm, loss, **more: {"metrics": {arm: {"log_loss": {"mean": loss}}}, **more}
    >>> drifted([at("candidate", 2.0, version="a"), at("champion", 2.5, champion="a")], "a")
    0.5
    """
    at_promotion = [_loss(v, "candidate") for v in judged if v.get("version") == champion]
    since = [_loss(v, "champion") for v in judged if v.get("champion") == champion]
    if champion is None or not at_promotion or not since:
        return None
    was, now = at_promotion[-1], since[-1]
    return now - was if was is not None and now is not None else None


def _loss(verdict: dict[str, Any], arm: str) -> float | None:
    mean: float | None = (verdict["metrics"].get(arm) or {}).get("log_loss", {}).get("mean")
    return mean
