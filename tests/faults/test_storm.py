"""A short storm of everything at once; `make faults` runs the long one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import kafka as real_kafka

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(300)]

SHORT = {"kills": 5, "members": 4, "brokers": 1, "trainers": 1, "folders": 1, "rate": 1_000}


def test_a_short_storm_leaves_every_event_once(tmp_path: Path) -> None:
    """Worker, broker and trainer killed, workers joining, leaving, frozen, the registry away: all counts are one."""
    if (why := real_kafka.missing()) and os.environ.get("NEXTCLICK_REQUIRE_KAFKA") != "1":
        pytest.skip(why)
    told = {f"NEXTCLICK_FAULTS_{name.upper()}": str(count) for name, count in SHORT.items()}
    storm = Path(__file__).with_name("storm.py")
    done = subprocess.run(
        [sys.executable, str(storm), "--json"], cwd=storm.parents[2], env=os.environ | told | {"TMPDIR": str(tmp_path)},
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    assert done.returncode == 0, done.stderr[-3000:]
    said = json.loads(done.stdout)
    assert said["faults"] == []
    assert said["deeds"]["kill"] == SHORT["kills"]
    assert said["counts"]["repeats"] > 0  # the broker was killed under the source
