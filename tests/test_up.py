"""Everything on one machine: what it tells those who want to look at it from elsewhere."""

from __future__ import annotations

import shlex
from pathlib import Path

from deploy import summary, up
from deploy.settings import Settings
from streams import quality


def test_another_shell_is_told_how_to_find_this_run(tmp_path: Path) -> None:
    """The line names broker and shared folder from wherever it is typed, whatever characters are in them."""
    folder = tmp_path / "a shop's"
    said = shlex.split(up.exports(Settings.load({"kafka": "127.0.0.1:9", "shared": str(folder)})))
    assert said == ["export", "NEXTCLICK_KAFKA=127.0.0.1:9", f"NEXTCLICK_SHARED={folder}"]


def test_the_summary_of_a_run_that_sent_nothing_tells_of_others_events() -> None:
    """With one's own Kafka there is no input of ours: what was stored is told all the same."""
    result = {
        "events_sent": 0, "stored": 9_665, "duplicates": 0, "rejected": 23, "dead_letters": 23, "predictions": 9_595,
        "stale_users": 0, "versions": [], "swaps": 0, "verdicts": [], "champion": None,
        "latency_ms": {"p50": 4.2, "p99": None}, "live": quality.merged([]),
    }  # fmt: skip
    lines = summary.told(result).splitlines()
    assert lines[0] == "events of others: 9,665 stored, 0 duplicates, 23 rejected, 23 dead letters"
    assert summary.told(result | {"events_sent": 5}).startswith("5 events sent: 9,665 stored")
    assert "p50 4 ms, p99 not timed" in lines[1]
