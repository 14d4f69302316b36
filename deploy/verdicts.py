"""What came of a retrain, in a word; how many came to nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


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
