"""What came of a retrain, in a word."""

from __future__ import annotations

from typing import Any


def outcome(said: dict[str, Any]) -> str:
    """Accepted, rejected by the gate, no candidate (nothing was judged), or failed.

    >>> outcome({"accepted": False, "metrics": {}})
    'no candidate'
    """
    if said["accepted"]:
        return "accepted"
    return "failed" if said.get("failed") else "rejected" if said.get("metrics") else "no candidate"
